"""The results page's sections on the other evaluations, and on speed."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from page import (
    NBSP,
    details,
    drawn,
    interval,
    label,
    load,
    missing,
    provenance_table,
    r,
    rechecked,
    source,
    stale,
    verdict,
    versus,
)
from seal_lite import plots
from seal_lite.evaluation.crossval import shifted
from seal_lite.evaluation.scores import tidy
from seal_lite.evaluation.statistics import bootstrap_ci
from seal_lite.tutorial import charts
from settings import table

SHIFTS = {
    "stain": "The second site stains and scans differently; tissue and assay are the same.",
    "regions": "The second site's tissue is made of other shares: less tumour and gland.",
    "batch": "The second site's assay counts every gene with a factor of its own.",
}
FIRST = {"mutation": "auc", "response": "auc", "activity": "pearson", "survival": "c_index"}
METRICS = {"auc": "AUC", "pearson": "*r*", "c_index": "C index"}
MODELS = {"mean": "mean patch", "abmil": "ABMIL"}
ENCODERS = ("frozen", "shuffled", "tuned", "oracle")
SHOWN = ("tuned", "shuffled", "frozen", "frozen_best", "random_init", "colour")


def sections(results: Path, out: Path) -> list[str]:
    return [
        *hest_section(results / "hest.json"),
        *retrieval_section(results / "retrieval.json", out),
        *cohort_section(results / "cohort.json", out),
        *shift_section(results, out),
    ]


def many(n: int, what: str) -> str:
    return f"{n} {what}" + "s" * (n != 1)


def hest_section(path: Path) -> list[str]:
    """HEST-bench's number of every kind of features, its R^2, and what it says of a gain."""
    parts = [
        "\n(hest-results)=\n## HEST-bench, as published\n",
        "The same encoders under the benchmark's own protocol {cite:p}`jaume2024hest`: its files, "
        "regions of 112 µm, log1p of raw counts, *r* over all test spots together, its hardly "
        "regularised ridge. Raw counts follow depth, so *log depth* is the row to read first; the "
        "last column is the same probe's fit with an intercept, without which no *R*² has a "
        "meaning ([why](notebooks/12_hest_bench)).\n",
    ]
    records = load(path)
    if records is None:
        return [*parts, missing(path, "make tasks")]
    for name, result in records.items():
        p, long = result["provenance"], tidy(result)
        mean = long.groupby(["features", "probe", "target"])["r"].mean()
        r2 = pd.DataFrame([f["r2"] for f in result["folds"]]).mean()
        names = [f for f in (*SHOWN, "log_depth") if (f, "hest", "hest_bench") in mean.index]
        rows = [
            [
                label(f),
                r(mean[f, "hest", "hest_bench"]),
                r(r2[f]),
                r(mean[f, "tuned_ridge", "pearson_residuals"]),
            ]
            for f in names
        ]
        head = ["features", "HEST-bench's *r*", "*R*²", "probe B, Pearson residuals"]
        said = [
            (versus(d), interval(d), verdict(d["ci95"]))
            for d in result["delta"]
            if d["target"] == "hest_bench" and "class" not in d
        ]
        tests, seeds = ({f[k] for f in result["folds"]} for k in ("test", "seed"))
        parts += [
            stale(p, command="make tasks"),
            f"### {name}: {many(len(tests), 'fold')}, {many(len(seeds), 'seed')}\n",
            table(head, rows, right=3),
            "",
            table(["difference, HEST-bench's *r*", "[95% CI]", "verdict"], said),
            source(p),
        ]
    return parts


def retrieval_section(path: Path, out: Path) -> list[str]:
    """Both directions and every scope, tuned beside shuffled, and sets of genes."""
    parts = [
        "\n(retrieval-results)=\n## Retrieval within and across patients\n",
        "Patients of the phantom that no encoder has seen, two slides each. A profile asks for "
        "regions, or a region for profiles; the score is the correlation of the query's expression "
        "with that of the ten retrieved, the own pair left out. *Random* is the gallery's mean, "
        "*oracle* the best ten there are ([how it is made](notebooks/11_across_patients)).\n",
    ]
    record = load(path)
    if record is None:
        return [*parts, missing(path, "make tasks")]
    rows = pd.DataFrame(record["rows"])
    rows["share"] = (rows.found - rows.random) / (rows.oracle - rows.random)
    rows["patient"] = rows.slide.str.rstrip("0123456789")
    places = rows[["direction", "scope"]].drop_duplicates().itertuples(index=False)
    lines, spots, dots = [], [], {}
    for direction, scope in places:
        here = rows[(rows.direction == direction) & (rows.scope == scope)]
        of = {k: here[here.model == k] for k in ("shuffled", "tuned")}
        gap = paired(of["tuned"], of["shuffled"])
        mean = [here.random.mean(), *(v.found.mean() for v in of.values()), here.oracle.mean()]
        shares = [f"{v.share.mean():.0%}".replace("-", "−") for v in of.values()]
        place = f"{direction}, {scope}"
        lines.append([place, *map(r, mean), *shares, interval(gap), verdict(gap["ci95"])])
        dots[place] = {k: v.groupby("patient").share.mean() for k, v in of.items()}
        if scope in ("slide", "all"):
            best = of["tuned"]
            spots.append(
                [
                    place,
                    f"{best['recall@10'].mean():.1%}",
                    f"{best['chance@10'].mean():.1%}",
                    f"{best.median_rank.mean():.0f}",
                    f"{best.n.mean():.0f}",
                ]
            )
    sets = pd.DataFrame(record["sets"]).groupby(["set", "model"])[["found", "random", "oracle"]]
    sets = sets.mean().unstack("model")
    asked = [
        [
            name,
            r(s["random", "tuned"]),
            r(s["found", "shuffled"]),
            r(s["found", "tuned"]),
            r(s["oracle", "tuned"]),
        ]
        for name, s in sets.iterrows()
    ]
    picture = charts.strips(dots, label="share of the way from random to oracle, a dot per patient")
    head = [
        "question",
        "random",
        "shuffled",
        "**finetuned**",
        "oracle",
        "shuffled",
        "finetuned",
        "gap of shares [95% CI]",
        "verdict",
    ]
    return [
        *parts,
        stale(record["provenance"], command="make tasks"),
        drawn(
            picture,
            out,
            "figures/results_retrieval.png",
            "Share of the way from random to oracle, a dot per patient, the bar their mean.",
            "Retrieval of the finetuned model and the control in every scope.",
        ),
        details("Every number", table(head, lines, right=6)),
        "### The very spot\n",
        table(["question", "recall@10", "by chance", "median rank", "of"], spots, right=4),
        "### A set of genes asks\n\nThe set's mean z over the ten regions retrieved on each "
        "slide. *interferon* is the null: nothing drawn follows it.\n",
        table(["set", "random", "shuffled", "**finetuned**", "oracle"], asked, right=4),
        source(record["provenance"]),
    ]


def paired(tuned, shuffled) -> dict:
    """Mean difference of the shares and its interval, drawn by patient, then slide and seed."""
    gaps = [
        (
            a.pivot(index="seed", columns="slide", values="share")
            - b.pivot(index="seed", columns="slide", values="share")
        ).to_numpy()
        for (_, a), (_, b) in zip(
            tuned.groupby("patient"), shuffled.groupby("patient"), strict=True
        )
    ]
    return {"mean": float(np.mean([g.mean() for g in gaps])), "ci95": bootstrap_ci(gaps)}


def cohort_section(path: Path, out: Path) -> list[str]:
    """Slide-level tasks: scores, and differences with the widest interval of all seeds."""
    parts = [
        "\n(cohort-results)=\n## Slide level: a cohort\n",
        "Phantom patients with one label each ([how](notebooks/13_slide_level)): a mutation that "
        "coarsens chromatin in a clone, the activity of *arrangement*, response and survival that "
        "follow both. The oracle's features are the true shares of such nuclei in every region.\n",
    ]
    record = load(path)
    if record is None:
        return [*parts, missing(path, "make tasks")]
    found = {}
    for result in record["results"]:
        for kind in ("scores", "delta"):
            for row in result[kind]:
                if row["metric"] == FIRST[result["task"]]:
                    who = row.get("features") or (row["of"], row["minus"])
                    found.setdefault((result["task"], row["model"], who), []).append(row)
    places = list(dict.fromkeys(place[:2] for place in found))

    def widest(rows) -> dict:
        low, high = zip(*(row["ci95"] for row in rows), strict=True)
        return {
            "mean": float(np.mean([row["mean"] for row in rows])),
            "ci95": [min(low), max(high)],
        }

    pooled = {place: widest(rows) for place, rows in found.items()}
    asked = {
        place: (f"{place[0]}, {METRICS[FIRST[place[0]]]}", MODELS[place[1]]) for place in places
    }
    head = ["task", "read by", *map(label, ENCODERS)]
    scores = [[*asked[p], *(r(pooled[*p, e]["mean"]) for e in ENCODERS)] for p in places]
    said = []
    for pair in (("tuned", "frozen"), ("tuned", "shuffled")):
        for place in places:
            d = pooled[*place, pair]
            name = versus({"of": pair[0], "minus": pair[1]})
            said.append((name, *asked[place], interval(d), verdict(d["ci95"])))
    samples = record["results"][0]["samples"]
    seeds = len({result["seed"] for result in record["results"]})
    picture = cohort_figure(pooled)
    return [
        *parts,
        stale(record["provenance"], command="make tasks"),
        f"{samples} patients, {record['slides']} slides, five folds; encoders of "
        f"{many(seeds, 'finetuning seed')}. Intervals draw the test patients again; of the seeds' "
        "intervals the widest reach is given, so a verdict holds for each of them.\n",
        drawn(
            picture,
            out,
            "figures/results_cohort.png",
            "Scores with 95% intervals; grey: chance.",
            "Slide-level scores of frozen, shuffled, finetuned and oracle features.",
        ),
        table(head, scores, right=len(ENCODERS)),
        "",
        table(["difference", "task", "read by", "[95% CI]", "verdict"], said),
        source(record["provenance"]),
    ]


@plots.drawn
def cohort_figure(pooled: dict):
    figure, axes = plt.subplots(1, 2, sharey=True, sharex=True, figsize=(8.5, 3.8))
    tasks = list(dict.fromkeys(task for task, *_ in pooled))
    colours = (plots.GREY, *plots.COLOURS[1::-1], plots.COLOURS[2])
    for ax, (model, title) in zip(axes, MODELS.items(), strict=True):
        for j, (encoder, colour) in enumerate(zip(ENCODERS, colours, strict=True)):
            rows = [pooled[task, model, encoder] for task in tasks]
            y = np.arange(len(tasks)) + 0.18 * (j - 1.5)
            ax.hlines(y, *zip(*(row["ci95"] for row in rows), strict=True), color=colour, lw=1.8)
            ax.plot(
                [row["mean"] for row in rows],
                y,
                "o",
                ms=6,
                color=colour,
                label=charts.LABELS[encoder].replace("\n", " "),
            )
        ax.set_yticks(range(len(tasks)), [f"{t}\n{METRICS[FIRST[t]].strip('*')}" for t in tasks])
        ax.set(title=title, xlabel="score", ylim=(len(tasks) - 0.5, -0.5))
        chance = [0.0 if FIRST[task] == "pearson" else 0.5 for task in tasks]
        ax.vlines(
            chance,
            np.arange(len(tasks)) - 0.4,
            np.arange(len(tasks)) + 0.4,
            color=plots.GREY,
            lw=0.8,
        )
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    return figure


def shift_section(results: Path, out: Path) -> list[str]:
    """For each shift: scores in and out of distribution, and the differences of the gaps."""
    parts = [
        "\n(shift-results)=\n## Out of distribution\n",
        "Phantom patients of two sites that differ in one thing. Each site is held out once while "
        "the other trains; a quarter of the training site's patients is held out as well, so that "
        "there is a score *in* distribution beside the one *out* of it. *Gap* is in minus out; "
        "probe B, Pearson residuals ([how](notebooks/14_out_of_distribution)). With two folds an "
        "interval is hardly more than the range of the two.\n",
    ]
    for name, text in SHIFTS.items():
        path = results / f"shift_{name}.json"
        parts += [f"### {name}\n", text + "\n"]
        result = load(path)
        if result is None:
            parts.append(missing(path, "make record-shifts"))
            continue
        split = shifted(result["folds"])
        runs = {}  # mean r of each features, fold and seed
        for kind, folds in split.items():
            long = tidy({**result, "folds": folds})
            long = long[(long.probe == "tuned_ridge") & (long.target == "pearson_residuals")]
            runs[kind] = long.groupby(["features", "test", "seed"])["r"].mean()
        index = {
            f: [fold["morphology"][f].get("robustness_index", np.nan) for fold in split["out"]]
            for f in SHOWN
        }
        rows = [
            [
                label(f),
                *(r(runs[k][f].mean()) for k in ("in", "out", "gap")),
                f"{np.nanmean(index[f]):.2f}",
            ]
            for f in SHOWN
        ]
        said = [
            (versus(d), kind, interval(d), verdict(d["ci95"]))
            for kind in ("in", "out", "gap")
            for d in result[f"delta_{kind}"]
            if d["probe"] == "tuned_ridge"
            and d["target"] == "pearson_residuals"
            and "class" not in d
        ]
        dots = {
            f: {"in distribution": runs["in"][f], "out of distribution": runs["out"][f]}
            for f in SHOWN
        }
        picture = charts.strips(dots, label="mean r over genes, a dot per fold and seed")
        parts += [
            stale(
                result["provenance"], rechecked(results, path.stem), command="make record-shifts"
            ),
            drawn(
                picture,
                out,
                f"figures/results_shift_{name}.png",
                f"Scores in and out of distribution, {name}.",
                f"Scores in and out of distribution for the {name} shift.",
            ),
            table(["features", "in", "out", "gap", f"robustness{NBSP}index"], rows, right=4),
            "",
            details(
                "Every difference",
                table(["difference", "", "*r* [95% CI]", "verdict"], said)
                + provenance_table(result["provenance"]),
            ),
        ]
    return parts
