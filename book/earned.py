"""Which parts earn their place: the ablation's table and the log of trials (for `results.py`)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from page import (
    CLAIMS,
    NBSP,
    SHORT,
    figure,
    interval,
    label,
    load,
    missing,
    r,
    rechecked,
    source,
    stale,
)
from seal_lite import Config
from seal_lite.evaluation.statistics import bootstrap_ci
from seal_lite.plots import COLOURS, GREY, STYLE
from seal_lite.training.provenance import code_hash
from settings import shown, table
from trials import CODE, FULL, REFERENCE, votes

PLACES = {  # column: features/probe/target
    "residuals, B": "tuned/tuned_ridge/pearson_residuals",
    "given depth, B": "tuned/tuned_ridge/log1p_cp10k|depth",
    "residuals, A": "tuned/hest/pearson_residuals",
    "recall@10": "recall@10",
}


def section(results: Path, out: Path) -> list[str]:
    """Which parts earn their place: the trials read as an ablation."""
    parts = ["\n(earned)=\n## Which parts earn their place\n"]
    trials = load(results / "trials.json")
    if trials is None:
        return [*parts, missing(results / "trials.json", "make trials")]
    file = "figures/results_ablation.png"
    forest(trials, out / file)
    return [
        *parts,
        old(trials, results),
        "One setting changed at a time, everything else as in the full recipe, which has every "
        "part of the method; the default is the recipe without those that make no difference. "
        "Real tissue: trained on each pair of the four sections with a seed of its own, scored on "
        "the other two. The training set is two thirds of the one above, so scores are a little "
        "lower. Bold: the interval, over the six trainings, does not contain 0. Recall@10 is of a "
        "spot's profile for its own region. The first row of the table has the full recipe's "
        "scores, every other its differences to them; s is what a training took in seconds, on one "
        "core.\n",
        unfinished(trials),
        plainly(trials),
        figure(
            file,
            "Difference to the full recipe, Pearson residuals, probe B. Filled: the "
            "interval leaves 0 out. Colours: changes to one kind of thing (loss, genes, ...).",
            "Forest plot of every ablation's difference to the full recipe with intervals.",
        ),
        ablation_table(trials),
        "### The same encoders, read otherwise\n\nA decoder trained with the encoder; prediction "
        "by retrieval as BLEEP and Loki do it (expression of the training spots, weighted by their "
        "closeness in the shared space); the frozen encoder at each of its stages; embeddings side "
        "by side.\n",
        reads_table(trials),
        source(trials["provenance"]),
    ]


def log(results: Path) -> str:
    """The log of trials, for its chapter."""
    trials = load(results / "trials.json")
    if trials is None:
        return missing(results / "trials.json", "make trials")
    return "\n".join(
        [
            old(trials, results) + unfinished(trials),
            trial_table(trials),
            source(trials["provenance"]),
        ]
    )


def old(result: dict, results: Path) -> str:
    """A warning where runs were made by other code than this book's."""
    now = code_hash(CODE)
    others = {run["code"] for run in result["runs"]} - {now}
    made = {"code": CODE, "code_sha256": min(others, default=now)}
    return stale(made, rechecked(results, "trials"), command="make trials")


def unfinished(result: dict) -> str:
    """Which share of the planned runs is there, unless all are."""
    planned = len(result["arms"]) * result["provenance"]["seeds"]
    there = len(result["runs"])
    return (
        ""
        if there >= planned
        else (
            f"\n**Unfinished: {there} of {planned} runs.** Each difference is over the runs that both "
            "arms have.\n"
        )
    )


def scores(result: dict, arm: str, key: str) -> dict[tuple, dict[str, float]]:
    """{training pair: {test section: score}} of an arm's runs that did not fail."""
    return {
        tuple(run["train"]): {s: v[key] for s, v in run["scores"].items() if s != "seconds"}
        for run in result["runs"]
        if run["arm"] == arm and "failed" not in run["scores"]
    }


def level(result: dict, arm: str, key: str) -> float:
    """An arm's mean score over its runs and their test sections."""
    return float(np.mean([list(run.values()) for run in scores(result, arm, key).values()]))


def difference(result: dict, arm: str, key: str, *, minus: tuple | None = None) -> dict:
    """Mean paired difference of an arm's score and another's (arm, key), else the full recipe's
    of the same name, over runs and test sections, and its 95% interval, clustered by run, named as
    `crossval.deltas` names them."""
    mine, theirs = scores(result, arm, key), scores(result, *(minus or (REFERENCE, key)))
    found = [
        np.array([[mine[run][s] - theirs[run][s] for s in mine[run]]])
        for run in sorted(mine.keys() & theirs.keys())
    ]
    return {"mean": float(np.mean([f.mean() for f in found])), "ci95": bootstrap_ci(found)}


def sure(row: dict) -> bool:
    """Whether the interval leaves 0 out."""
    low, high = row["ci95"]
    return low > 0 or high < 0


def marked(row: dict) -> str:
    """The difference, bold where its interval leaves 0 out, and below it the interval."""
    mean, ci = interval(row).split(f"{NBSP}[")
    return f"**{mean}**<br>[{ci}" if sure(row) else f"{mean}<br>[{ci}"


def ablation_rows(result: dict) -> list[list]:
    """A row per arm: the full recipe's scores, any other's differences to it, seconds a run."""
    rows = []
    for arm in dict.fromkeys(run["arm"] for run in result["runs"]):
        runs = [run["scores"] for run in result["runs"] if run["arm"] == arm]
        seconds = [s["seconds"] for s in runs if "failed" not in s]
        broken = len(runs) - len(seconds)
        if not seconds:
            rows.append([arm, f"broke in all {broken} runs", *[""] * len(PLACES)])
            continue
        cells = [
            r(level(result, arm, key)) if arm == REFERENCE else marked(difference(result, arm, key))
            for key in PLACES.values()
        ]
        name = f"{arm} ({broken} of {len(runs)} runs broke)" if broken else arm
        rows.append([name, *cells, f"{np.mean(seconds):.0f}"])
    return rows


def plainly(result: dict) -> str:
    """Which parts earn their place: what leaving each one out costs, in words."""
    said: dict[str, list] = {}
    for arm in dict.fromkeys(run["arm"] for run in result["runs"]):
        if not arm.startswith("no ") or not scores(result, arm, "recall@10"):
            continue
        found = {name: difference(result, arm, key) for name, key in PLACES.items()}
        lower = [name for name, row in found.items() if row["ci95"][1] < 0]
        higher = [name for name, row in found.items() if row["ci95"][0] > 0]
        where = f" ({', '.join(lower or higher)})" if lower or higher else ""
        said.setdefault("earns" if lower else "costs" if higher else "nothing", []).append(
            f"{arm.removeprefix('no ')}{where}"
        )
    words = {
        "earns": "Earns its place, as leaving it out lowers something",
        "costs": "Better left out",
        "nothing": "Makes no difference here",
    }
    return "\n".join(f"- **{words[k]}:** {'; '.join(said[k])}." for k in words if k in said) + "\n"


def forest(result: dict, file):
    """Every arm's difference to the full recipe, Pearson residuals, probe B, and its interval."""
    key = PLACES["residuals, B"]
    arms = [
        a
        for a in dict.fromkeys(run["arm"] for run in result["runs"])
        if a != REFERENCE and scores(result, a, key)
    ]
    groups = list(dict.fromkeys(result["arms"][a]["group"] for a in arms))
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(8, 0.6 + 0.24 * len(arms)))
        for y, arm in enumerate(arms):
            found = difference(result, arm, key)
            colour = COLOURS[groups.index(result["arms"][arm]["group"]) % len(COLOURS)]
            ax.plot(found["ci95"], [y, y], color=colour, lw=1.8)
            fill = colour if sure(found) else "white"
            ax.plot(found["mean"], y, "o", ms=6, mec=colour, mfc=fill)
        ax.axvline(0, color=GREY, lw=0.8, zorder=0)
        ax.set_yticks(range(len(arms)), arms)
        ax.set(
            ylim=(len(arms) - 0.4, -0.6), xlabel="difference in mean r to the full recipe, 95% CI"
        )
        figure.savefig(file, dpi=150, bbox_inches="tight")
    plt.close(figure)


def trial_rows(result: dict) -> list[list]:
    """A row per trial: what was thought, the gain every outer fold saw, and what followed."""
    rows = []
    for arm in dict.fromkeys(run["arm"] for run in result["runs"]):
        if arm == REFERENCE:
            continue
        gains = votes(result, arm)
        about = [arm, result["arms"][arm]["thought"], result["arms"][arm]["expected"]]
        if not gains:
            rows.append([*about, "the run broke", "no"])
            continue
        seen = ", ".join(f"{g:+.3f}".replace("-", "−") for g in gains.values())
        better = (
            "every fold prefers it"
            if min(gains.values()) > 0
            else ("no fold prefers it" if max(gains.values()) <= 0 else "the folds disagree")
        )
        rows.append([*about, seen, better])
    return rows


def defaults(results: Path) -> str:
    """Every setting of the full recipe that was changed alone, or with one that belongs to it, and
    what the change was worth, in the settings' order (for the notebook that explains them)."""
    result = load(results / "trials.json")
    if result is None:
        return missing(results / "trials.json", "make trials")
    rows, done = [], {run["arm"] for run in result["runs"]}
    for field in dataclasses.fields(Config):
        for arm, about in result["arms"].items():
            changed = list(about.get("changes", ()))
            if arm in done and changed[:1] == [field.name] and len(changed) <= 2:
                key = PLACES["residuals, B"]
                known = scores(result, arm, key)
                said = marked(difference(result, arm, key)) if known else "broke"
                there = ", ".join(
                    f"`{k}` {shown(getattr(FULL, k))} → {shown(v)}"
                    for k, v in about["changes"].items()
                )
                rows.append([there, said])
    return unfinished(result) + "\n" + table(["changed", "difference in *r* [95% CI]"], rows)


def reads_table(result: dict) -> str:
    """Mean r of whatever was read beside the probes on the tuned embedding, for the arms with
    another kind of encoder, and the first target's difference to the arm's own finetuned, B."""
    rows = []
    for arm in (REFERENCE, "contrast only", "two scales"):
        runs = [
            s
            for run in result["runs"]
            if run["arm"] == arm and "failed" not in run["scores"]
            for k, s in run["scores"].items()
            if k != "seconds"
        ]
        read = dict.fromkeys(tuple(k.split("/")[:2]) for s in runs for k in s if "/" in k)
        for features, probe in read:
            if probe == "hest":
                continue
            keys = [f"{features}/{probe}/{t}" for t in CLAIMS]
            own = (arm, f"tuned/tuned_ridge/{CLAIMS[0]}")
            less = "" if keys[0] == own[1] else marked(difference(result, arm, keys[0], minus=own))
            means = [r(level(result, arm, key)) for key in keys]
            rows.append([arm, features, SHORT.get(probe, probe), *means, less])
    head = ["arm", "features", "read by", *map(label, CLAIMS), f"{label(CLAIMS[0])}, minus tuned B"]
    return table(head, rows, right=3)


def ablation_table(result: dict) -> str:
    head = ["arm", *PLACES, "s"]
    return table(head, ablation_rows(result))


def trial_table(result: dict) -> str:
    sections = ", ".join(result["provenance"]["sections"])
    head = ["trial", "hypothesis", "expected", f"gain seen by fold {sections}", "said"]
    return table(head, trial_rows(result))
