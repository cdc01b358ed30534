"""Write the page of recorded results and the table of settings. No number in them is typed.

    python book/results.py

reads results/*.json and seal_lite/. Writes, in book/: results.md, headline.md (for the
introduction), settings.md (for the method), defaults.md (for the notebook on finetuning),
trial_log.md, fooled_table.md, speed_table.md, promises/ (for their pages), commands.md,
citation.md, figures/results_*.png, figures/architecture.png. All of them are ignored by git.
`make results` runs it.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np

import benches
import earned
import fooled
import promises
import reference
import speed
from architecture import architecture
from forest import deltas
from page import (
    CLAIMS,
    NBSP,
    details,
    drawn,
    figure,
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
from seal_lite.evaluation.scores import summary, tidy
from seal_lite.tutorial import charts
from settings import settings, table

ROOT = Path(__file__).parents[1]

FEATURES = (
    "tuned",
    "shuffled",
    "frozen",
    "frozen_best",
    "random_init",
    "colour",
    "log_depth",
    "neighbours",
    "ceiling",
    "oracle",
)
PROBES = ("hest", "tuned_ridge", "decoder", "none")
TARGETS = ("pearson_residuals", "log1p_cp10k|depth", "log1p_cp10k", "log1p_raw")
RIVALS = ("shuffled", "frozen_best")  # a gain has to be one over both

RECORDS = {
    "her2st": (
        "Real tissue: her2st, one section held out",
        "Sections of one HER2-positive breast tumour {cite:p}`andersson2021her2st`. Each is held "
        "out once while the others train. They are **neighbouring sections of one tumour**, so "
        "this asks how the encoder does on a new section. It does not ask about a new patient.",
    ),
    "phantom": (
        "Known truth: the phantom, patients held out",
        "Sections of the tissue phantom, one patient each, so a new section is a new patient here, "
        "with its own stain, scanner and batch effect. Finetuned on {} of them; every other one "
        "is scored by itself. The truth is known: an oracle that predicts "
        "the noise-free expectation says how high a score can be, gene class by gene class. The "
        "invisible class is a null: nothing drawn follows it. A difference found there is chance, "
        "and shows how far such intervals can be trusted.",
    ),
}
CLASSES = {
    "visible": "follows the cell type",
    "subtle": "follows a cell's state that shows only in chromatin texture or in how nuclei lie",
    "invisible": "follows a state that is not drawn at all",
}

HEAD = "# Recorded results\n\n```{include} results_intro.md\n```\n"


def write(results: Path = ROOT / "results", out: Path = ROOT / "book"):
    """Write the pages' generated parts under `out` from the records in `results`."""
    (out / "figures").mkdir(parents=True, exist_ok=True)
    parts = [HEAD]
    for name in RECORDS:
        parts += crossval_section(name, results / f"{name}.json", out)
    parts += earned.section(results, out)
    parts += benches.sections(results, out)
    parts += real_section(results / "her2st_figures.json", out)
    parts += speed.section(results / "bench.json", out)
    (out / "results.md").write_text("\n".join(parts))
    (out / "headline.md").write_text(headline(results))
    (out / "settings.md").write_text(settings())
    (out / "trial_log.md").write_text(earned.log(results))
    (out / "defaults.md").write_text(earned.defaults(results))
    (out / "fooled_table.md").write_text(fooled.chapter(results, out))
    (out / "speed_table.md").write_text(speed.chapter(results / "bench.json", out))
    (out / "promises").mkdir(exist_ok=True)
    for name, text in promises.chapter(results / "promises.json").items():
        (out / f"promises/{name}.md").write_text(text)
    (out / "commands.md").write_text(reference.commands())
    (out / "citation.md").write_text(reference.citations())
    architecture().savefig(out / "figures/architecture.png", bbox_inches="tight")


def why_not(row: dict) -> str:
    """Why a difference gets no verdict, or nothing."""
    if row["target"] not in CLAIMS:
        return "*(depth)*"
    return "*(decoder)*" if row["probe"] == "decoder" else ""


def crossval_section(name: str, path: Path, out: Path) -> list[str]:
    """One recorded cross-validation: answer, figures, whole tables, provenance."""
    title, text = RECORDS[name]
    result = load(path)
    few = result["provenance"].get("train_groups") if result else "some"
    parts = [f"\n({name}-results)=\n## {title}\n", text.replace("{}", str(few)) + "\n"]
    if result is None:
        return [*parts, missing(path)]
    p = result["provenance"]
    # The decoder's own difference is many times larger and would hide the encoder's.
    probed = {**result, "delta": [d for d in result["delta"] if d["probe"] != "decoder"]}
    folds = sorted({f["test"] for f in result["folds"]})
    parts += [
        stale(p, rechecked(path.parent, name)),
        answer(result),
        f"Held out: {', '.join(folds)}, {p['seeds']} seeds each.\n",
    ]
    if result.get("leakage"):  # allowed on the command line
        parts.append(f"**On both sides of its splits:** {'; '.join(result['leakage'])}.\n")
    for kind, draw, caption, alt in (
        (
            "scores",
            charts.scores,
            "Mean *r* of every kind of features, Pearson residuals. Dots: single folds and seeds.",
            "Mean correlation of all features with folds as dots",
        ),
        (
            "deltas",
            deltas,
            "Paired differences with their 95% intervals. What crosses the "
            "zero line is no difference.",
            "Forest plot of paired differences with intervals",
        ),
    ):
        file = f"figures/results_{name}_{kind}.png"
        parts.append(drawn(draw(probed), out, file, caption, f"{alt}, {name}."))
    if result["classes"]:
        parts.append(class_table(result))
        parts.append(yardstick(path.with_name("yardstick.json")))
    parts += [
        morphology_table(result),
        "### Every score\n",
        score_table(result),
        "The last rows are no encoders. The neighbours' mean and the noise ceiling look at the "
        "held-out section's own counts: they say what space alone predicts, and how much of a "
        "score noise leaves to be had.\n",
        "### Every difference\n",
        "Finetuned minus frozen is shown because everybody asks; it does not separate what the "
        "pairs taught from what any finetuning does. Minus shuffled does, but training on wrong "
        "pairs can also harm an encoder, so a gain has to be one over the frozen encoder at its "
        "best stage as well. No verdict where it would mislead: *(depth)*, "
        "a target that depth confounds; *(decoder)*, trained on shuffled pairs it had nothing to "
        "learn, so the difference tells of the decoder and not of the encoder.\n",
        delta_table(result["delta"]),
        f"The same for every gene, fold and seed: {{download}}`results/{path.name} "
        f"<../results/{path.name}>`.\n",
        source(p, command(result)),
    ]
    return parts


def command(result: dict) -> str:
    """The command line that measures the record again, from its own provenance."""
    p, name = result["provenance"], result["data"]
    lines = [
        f"seal-lite crossval --data {name} --sections {','.join(p['sections'])} \\",
        f"  --groups {p['groups']} --seeds {p['seeds']} --backbone {result['backbone']} --out OUT",
    ]
    if p.get("train_groups"):
        lines[-1] += f" --train-groups {p['train_groups']}"
    if result.get("leakage"):
        lines[-1] += " --allow-leakage"
    return (
        "\nMeasured again by `make record`, or by itself:\n\n```sh\n"
        + "\n".join(lines)
        + ("\n```\n")
    )


def claims(result: dict) -> list[dict]:
    """The differences that carry a claim about the encoder: finetuned minus shuffled, and minus the
    frozen encoder at its best, read by a probe, on the targets of `CLAIMS`."""
    return [
        d
        for minus in RIVALS
        for t in CLAIMS
        for d in result["delta"]
        if d["target"] == t and "class" not in d and d["minus"] == minus and d["probe"] != "decoder"
    ]


def count(found: list[dict]) -> str:
    """How many of some differences are higher, lower, or none, in words."""
    higher, lower = sum(d["ci95"][0] > 0 for d in found), sum(d["ci95"][1] < 0 for d in found)
    small, large = (f"{f(d['mean'] for d in found):+.3f}".replace("-", "−") for f in (min, max))
    return (
        f"Of the {len(found)} comparisons that may carry a claim, against shuffled pairs and "
        f"against the frozen encoder at its best stage, the finetuned one is higher in {higher} "
        f"and lower in {lower}; in {len(found) - higher - lower} there is no difference. The "
        f"differences in *r* are {small} to {large}."
    )


def answer(result: dict) -> str:
    """Every difference that may carry a claim, with its verdict."""
    head = ["finetuned minus", "target", "probe", "*r* [95% CI]", "verdict"]
    found = claims(result)
    rows = [
        (label(d["minus"]), label(d["target"]), label(d["probe"]), interval(d), verdict(d["ci95"]))
        for d in found
    ]
    return (
        "Did the pairing of picture and profile teach the encoder anything that shows on held-out "
        f"tissue? {count(found)}\n\n" + table(head, rows)
    )


def headline(results: Path) -> str:
    """One line per record for the introduction, linked to the whole story."""
    lines = []
    for name, (title, _) in RECORDS.items():
        result = load(results / f"{name}.json")
        said = "Not recorded yet." if result is None else count(claims(result))
        lines.append(f"- {{ref}}`{title} <{name}-results>`. {said}")
    return "\n".join(lines) + "\n"


def score_table(result: dict) -> str:
    """Features x probe x target, mean r over folds, seeds and genes."""
    means = summary(result)
    rows = [
        [label(f), label(p), *(r(means.loc[(f, p), t]) for t in TARGETS)]
        for f in FEATURES
        for p in PROBES
        if (f, p) in means.index
    ]
    return table(["features", "probe", *map(label, TARGETS)], rows, right=len(TARGETS))


def delta_table(delta: list[dict]) -> str:
    """Every paired difference, then the same by gene class for the targets of `CLAIMS`."""

    def rows(found, *, kind=""):
        return [
            (
                versus(d),
                label(d["probe"]),
                label(t) + kind,
                interval(d),
                why_not(d) or verdict(d["ci95"]),
            )
            for t in TARGETS
            for d in found
            if d["target"] == t
        ]

    head = ["difference", "probe", "target", "*r* [95% CI]", "verdict"]
    whole = table(head, rows([d for d in delta if "class" not in d]))
    by_class = []
    for kind in CLASSES:
        found = [d for d in delta if d.get("class") == kind and d["target"] in CLAIMS]
        by_class += rows(found, kind=f", {kind} genes")
    return whole + (
        "\n" + details("The same by gene class", table(head, by_class)) if by_class else ""
    )


def class_table(result: dict) -> str:
    """Mean r on Pearson residuals and its share of the oracle's, per declared gene class."""
    long = tidy(result)
    long = long[long["target"] == "pearson_residuals"]
    mean = long.groupby(["class", "features", "probe"])["r"].mean()
    rows = []
    for kind in CLASSES:
        best, n = mean[kind, "oracle", "none"], list(result["classes"].values()).count(kind)
        for probe in ("hest", "tuned_ridge"):
            found = [mean[kind, f, probe] for f in ("frozen", "shuffled", "tuned")]
            shares = [f"{f / best:.0%}".replace("-", "−") for f in (found[0], found[2])]
            rows.append(
                [f"{kind} ({n}{NBSP}genes)", label(probe), r(best), *map(r, found), *shares]
            )
    head = [
        "gene class",
        "probe",
        "oracle",
        "frozen",
        "shuffled",
        "finetuned",
        "frozen / oracle",
        "finetuned / oracle",
    ]
    meanings = "; ".join(f"*{k}* ({v})" for k, v in CLASSES.items())
    return (
        f"### By gene class\n\nWhat could be seen at all: genes are {meanings}. Scores are on "
        "Pearson residuals; the last two columns are the share of the oracle's *r*. Below zero, "
        "what a probe took for a relation in the training patients was chance, and failed in the "
        "next.\n\n"
    ) + table(head, rows, right=6)


def yardstick(path: Path) -> str:
    """How subtle the subtle classes are: the frozen encoder's share of the oracle, by contrast."""
    record = load(path)
    if record is None:
        return missing(path, "make yardstick")
    rows = []
    for row in record["rows"]:
        for program, found in row["programs"].items():
            stage, best = max(found["frozen"].items(), key=lambda item: item[1])
            share = f"{best / found['oracle']:.0%}".replace("-", "−")
            rows.append(
                [
                    f"{row['chromatin']:g}, {row['pull']:g}",
                    program,
                    r(found["oracle"]),
                    f"{r(best)} ({stage})",
                    share,
                ]
            )
    head = ["contrast, pull", "genes of", "oracle", "frozen, best stage", "share"]
    return (
        stale(record["provenance"], command="make yardstick") + "How subtle is *subtle*? At first "
        "chromatin was drawn at full contrast and groups of nuclei pulled together more strongly, "
        "and the frozen encoder read most of both: no yardstick for what finetuning adds. Both "
        "were weakened until its best stage, chosen here by the very scores, had about a third of "
        "the oracle's *r*. That took two attempts: the first measured it on 750 pairs, and on "
        "2,400 the same ridge reads nearly twice as much. No "
        "finetuned encoder was looked at for either.\n\n"
    ) + details(
        "The frozen encoder's share, before and after",
        table(head, rows, right=3) + provenance_table(record["provenance"]),
    )


def morphology_table(result: dict) -> str:
    """Effective rank and, where regions are known, their accuracy: mean and range over folds."""
    kept: dict[str, dict[str, list]] = {}
    for fold in result["folds"]:
        for features, found in fold["morphology"].items():
            for key, value in found.items():
                kept.setdefault(features, {}).setdefault(key, []).append(value)
    columns = {
        "region_accuracy": ("balanced accuracy of the region", 3),
        "effective_rank": ("effective rank", 1),
    }
    columns = {k: v for k, v in columns.items() if k in kept["tuned"]}
    rows = [
        [
            label(f),
            *(
                f"{np.mean(v):.{n}f} ({min(v):.{n}f} to {max(v):.{n}f})"
                for v, n in ((kept[f][k], n) for k, (_, n) in columns.items())
            ),
        ]
        for f in FEATURES
        if f in kept
    ]
    regions = (
        "A logistic regression names the region (tumour, stroma, gland, fat, lymphoid, necrosis) "
        "of every held-out spot. "
        if "region_accuracy" in columns
        else ""
    )
    return (
        f"### Is the tissue still in it?\n\n{regions}The effective rank counts the directions that "
        "an embedding uses on the held-out sections. Mean, and range over folds and seeds.\n\n"
    ) + table(["features", *(title for title, _ in columns.values())], rows, right=len(columns))


def real_section(path: Path, out: Path) -> list[str]:
    """The pictures of one finetuned run on a section it never saw."""
    parts = ["\n(her2st-pictures)=\n## A section the encoder never saw\n"]
    record = load(path)
    if record is None:
        return [*parts, missing(path)]
    p, s, found = record["provenance"], record["section"], record["retrieval"]
    genes = ", ".join(g["gene"] for g in record["genes"])
    asked = " and ".join(found["genes"])
    rows = [(g["gene"], r(g["r"]), r(g["ceiling"])) for g in record["genes"]]
    credit = "Tissue and counts: {cite:t}`andersson2021her2st`."
    return [
        *parts,
        stale(p),
        f"Finetuned on {', '.join(p['sections'])} (seed {p['seed']}), shown on {s}. These pictures "
        "illustrate one run; the evidence is in the tables above.\n",
        figure(
            "figures/her2st_maps.png",
            f"{genes} on {s}: tissue, measured Pearson residuals, "
            f"the model's own prediction from the image alone, and their difference. "
            f"{credit}",
            f"Maps of {genes} on section {s}: measured, predicted, error.",
        ),
        f"{record['rule']} Nobody chose them by score.\n",
        table(["gene", "*r* of the prediction", "noise ceiling"], rows, right=2),
        figure(
            "figures/her2st_retrieval.png",
            f"The {found['top']} regions of {s} closest to a "
            f"profile with {asked} raised and every other gene at its mean. {credit}",
            f"Section {s} with the regions retrieved for {asked} marked and enlarged.",
        ),
        retrieval_text(found),
        figure(
            "figures/her2st_loss.png",
            f"Every term of the loss in that run, from "
            f"{record['loss']['first']:.2f} to {record['loss']['last']:.2f} in all. The shaded "
            "epochs train the gene encoder alone.",
            "Loss curves: contrast, two reconstructions, total, by epoch.",
        ),
        source(p),
    ]


def retrieval_text(found: dict) -> str:
    """How well the query, and every measured profile, found what it asked for."""
    better = found["z_hits"] > found["z_chance95"]
    return (
        f"**Does the gene set find its regions?** What was measured of it in these {found['top']} "
        f"lies {found['z_hits']:+.2f} standard deviations from the section's mean. Of random sets "
        f"of as many regions, 95% lie below {found['z_chance95']:+.2f}; the best possible set lies "
        f"at {found['z_best']:+.2f}. So this query finds "
        f"{'more than chance would' if better else '**no more than chance would**'}.\n\n"
        "**Does a whole profile find its own region?** When each of the "
        f"{found['n']} measured profiles asks, its region is among the ten nearest for "
        f"{found['recall@10']:.1%} of them (by chance {found['chance@10']:.1%}); the median rank "
        f"is {found['median_rank']:.0f}.\n"
    )


if __name__ == "__main__":
    write()
