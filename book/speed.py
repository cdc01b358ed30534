"""What it costs: the results page's section on speed, and the chapter's tables, from bench.json."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from page import drawn, load, missing, source, stale
from seal_lite import plots
from settings import table
from steps import OFF

COMMAND = "make bench"


def section(path: Path, out: Path) -> list[str]:
    """The section on the results page: everything that is fast, beside what it is compared with."""
    title = "\n(speed)=\n## Speed\n"
    b = load(path)
    if b is None:
        return [title, missing(path, COMMAND)]
    return [
        title,
        stale(b["provenance"], command=COMMAND),
        *tables(b, out),
        *others(b),
        source(b["provenance"]),
    ]


def chapter(path: Path, out: Path) -> str:
    """The part that the chapter on cost includes."""
    b = load(path)
    if b is None:
        return missing(path, COMMAND)
    where = f"Recorded on {b['provenance']['device']}; all of it and its origin: {{ref}}`speed`.\n"
    return "\n".join([stale(b["provenance"], command=COMMAND), *tables(b, out), where])


def tables(b: dict, out: Path) -> list[str]:
    rows = []
    for name, t in b["training"].items():
        rates = t["rates"]
        saved = 1 / rates["streamed"] - 1 / rates["cached"]  # seconds a pair
        pays = t["cache_seconds"] / t["pairs"] / saved if saved > 0 else np.inf
        rows.append(
            [
                name,
                *(f"{rates[k]:,.0f}" for k in ("tutorial", "streamed", "cached")),
                f"{t['ratio']:.1f}",
                f"{t['gap']:.0e}",
                f"{pays:.1f}",
            ]
        )
    head = [
        "pairs/s",
        "tutorial's loop",
        "ours, streamed",
        "ours, cached",
        "cached / tutorial",
        "largest difference of losses",
        "epochs until the cache has paid",
    ]
    on = b["parts"]["all on"]
    labels = {
        **OFF,
        "bf16": "*half precision on (bf16)*",
        "one thread": "*one thread in place of two*",
    }
    parts = [
        [what, f"{b['parts'][k]:,.0f}", f"{on / b['parts'][k]:.2f}"]
        for k, what in labels.items()
        if k in b["parts"]
    ]
    c, peak = b["chunks"], b["chunks"]["peak_bytes"]
    return [
        "### Training\n\nThe tutorial's loop runs the whole network in every step, as peft wraps "
        "it, on contiguous images; ours takes the same steps on the same views. "
        f"{next(iter(b['training'].values()))['threads']} threads.\n",
        table(head, rows, right=6),
        "",
        f"What makes the last row fast, each part switched off alone (all on: {on:,.0f} pairs/s):"
        "\n",
        table(["without", "pairs/s", "all on is faster by"], parts, right=2),
        "",
        f"A batch of {c['batch']} pairs, whole and {c['chunk']} images at a time: "
        f"{peak['whole'] / 1e9:.2f} and {peak['chunks'] / 1e9:.2f} GB at the peak of the process, "
        f"{c['rates']['whole']:.0f} and {c['rates']['chunks']:.0f} pairs/s, losses differ by at "
        f"most {c['gap']:.0e}.\n",
        "### From thousands to hundreds of thousands of pairs\n",
        drawn(
            curves(b["scale"]),
            out,
            "figures/results_scale.png",
            "An epoch streamed from shards: 32 px, batches of 256, full shuffle. Dotted: slopes "
            "of 1 and 0.",
            "Time and peak memory of an epoch against the number of pairs, on logarithmic axes.",
        ),
        table(
            ["pairs", "on disk", "epoch", "per pair", "peak memory"],
            [
                [
                    f"{s['pairs']:,}",
                    f"{s['disk_bytes'] / 1e9:.2f} GB",
                    f"{s['seconds']:.0f} s",
                    f"{1e3 * s['seconds'] / s['pairs']:.2f} ms",
                    f"{s['peak_bytes'] / 1e9:.2f} GB",
                ]
                for s in b["scale"]
            ],
            right=4,
        ),
        "",
    ]


def slopes(scale: list[dict]) -> dict[str, float]:
    """Of time and of memory against pairs, in double-logarithmic axes."""
    pairs = np.log([s["pairs"] for s in scale])
    return {
        k: float(np.polyfit(pairs, np.log([s[k] for s in scale]), 1)[0])
        for k in ("seconds", "peak_bytes")
    }


@plots.drawn
def curves(scale: list[dict]):
    pairs, fitted = np.array([s["pairs"] for s in scale]), slopes(scale)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    for ax, key, unit, label, slope in (
        (axes[0], "seconds", 1, "seconds an epoch", 1),
        (axes[1], "peak_bytes", 1e9, "peak memory, GB", 0),
    ):
        values = np.array([s[key] for s in scale]) / unit
        ax.loglog(pairs, values, "o-", color=plots.COLOURS[0], label=f"slope {fitted[key]:.2f}")
        ax.loglog(pairs, values[-1] * (pairs / pairs[-1]) ** slope, ls=":", color=plots.GREY)
        ax.set(xlabel="pairs", ylabel=label)
        ax.legend()
    axes[1].set_ylim(0.1, 10)
    return figure


def others(b: dict) -> list[str]:
    """Embedding, probing, searching: each beside the usual way."""
    e, p, s = b["embedding"], b["probing"], b["searching"]
    folds = f"HEST-bench's {p['samples']} folds of {p['patches']:,} patches"
    folds = f"{folds}, {p['features']:,} features"
    top = f"top {s['top']} of {s['gallery']:,} × {s['features']} for {s['queries']} queries"
    rows = [
        [
            "embedding patches of 224 px",
            f"{e['rates']['tutorial']:.0f} patches/s",
            f"{e['rates']['ours']:.0f} patches/s",
            f"{e['ratio']:.1f}",
            f"sums within {e['gap']:.0e}",
        ],
        [
            folds,
            f"{p['seconds']['upstream']:.0f} s",
            f"{p['seconds']['ours']:.1f} s",
            f"{p['ratio']:.0f}",
            f"*r* within {p['largest_difference']:.0e}",
        ],
        [
            f"{top}, faiss flat",
            f"{s['seconds']['faiss']:.1f} s",
            f"{s['seconds']['ours']:.1f} s",
            f"{s['ratio']:.1f}",
            f"{s['agree']:.1%} the same",
        ],
    ]
    start = b["start_up"]
    return [
        "### Embedding, probing, searching\n\nAn embedding stops at the tap. A ridge needs of its "
        "data only sums, so a benchmark's folds share one pass. Search is exact.\n",
        table(["", "the usual way", "ours", "ratio", "agreement"], rows, right=4),
        f"\n`import seal_lite` takes {start['import']:.2f} s, `seal-lite --help` "
        f"{start['help']:.2f} s.\n",
    ]
