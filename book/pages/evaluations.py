"""What the pages show of the evaluations: frames and rows from the files in results/."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

from pages.markdown import interval, label, number, percent, verdict
from seal_lite.evaluation.scores import summary, tidy
from seal_lite.evaluation.statistics import (
    excludes_zero,
    leave_one_out_ratio,
    mean_and_interval,
    shifted,
)

Result = dict[str, Any]
Rows = list[dict[str, Any]]

CLAIMS = ("pearson_residuals", "log1p_cp10k|depth")  # the targets that discount depth
TARGETS = (*CLAIMS, "log1p_cp10k", "log1p_raw")
REFERENCES = ("shuffled", "frozen_best")  # a gain has to be one over both
REFERENCE_NAMES = {"shuffled": "shuffled pairs", "frozen_best": "the frozen encoder's best layer"}
ENCODERS = ("tuned", "shuffled", "frozen", "frozen_best", "random_init", "colour")
FEATURES = (*ENCODERS, "log_depth", "neighbours", "ceiling", "oracle")
CLAIMANTS = ("hest", "tuned_ridge")  # what reads the encoder alone; the others read trained heads
PROBES = (*CLAIMANTS, "decoder", "BLEEP", "Loki", "none")

SLIDE_ENCODERS = ("frozen", "shuffled", "tuned", "oracle")
SLIDE_METRICS = {"mutation": "auc", "response": "auc", "activity": "pearson", "survival": "c_index"}
METRIC_LABELS = {"auc": "AUC", "pearson": "*r*", "c_index": "C index"}
MODEL_LABELS = {"mean": "mean patch", "abmil": "ABMIL"}
# As `seal_lite.data.leakage` says it of two sections.
SAME_PATIENT = re.compile(
    r"sections (?P<one>.+) and (?P<other>.+) are both of patient (?P<patient>.+)"
)


def select(rows: Rows, gene_class: str | None = None, **fields: str) -> Rows:
    """Return the rows with these values in their fields, over all genes or of one class."""
    rows = [row for row in rows if row.get("class") == gene_class]
    return [row for row in rows if all(row[key] == value for key, value in fields.items())]


def claims(result: Result) -> Rows:
    """Return the differences that carry a claim about the encoder.

    Those are finetuned minus each of `REFERENCES` on the targets of `CLAIMS`, read by a probe.
    """
    rows = []
    for minus in REFERENCES:
        for target in CLAIMS:
            rows += select(result["delta"], minus=minus, target=target)
    return [row for row in rows if row["probe"] in CLAIMANTS]


def claim_sentences(result: Result) -> str:
    """Return in words what each probe reads over both references, on Pearson residuals."""
    sentences = []
    for probe in ("tuned_ridge", "hest"):
        text = over_references(select(claims(result), probe=probe, target="pearson_residuals"))
        sentences.append(f"Probe {label(probe)}: the finetuned encoder's difference is {text}.")
    return " ".join(sentences)


def over_references(rows: Rows) -> str:
    """Return in words a difference to each of `REFERENCES`, the frozen encoder first."""
    by_reference = {row["minus"]: row for row in rows}
    parts = []
    for minus in reversed(REFERENCES):
        row = by_reference[minus]
        parts.append(f"{interval(row)} to {REFERENCE_NAMES[minus]} ({verdict(row)})")
    return " and ".join(parts)


def depth_sentence(result: Result) -> str:
    """Return in words how much of the score depth explains, and what is left of the differences."""
    means = summary(result)["pearson_residuals"]
    log_depth = means["log_depth", "tuned_ridge"]
    given_depth = select(claims(result), probe="tuned_ridge", target="log1p_cp10k|depth")
    differences = over_references(given_depth)
    return (
        f"Log depth alone reaches *r* = {number(log_depth)} on Pearson residuals, so a part of "
        "every score is depth. The partial correlation given log depth removes its linear part. "
        f"Probe B's differences are then {differences}."
    )


def class_sentence(result: Result) -> str:
    """Return in words the differences to the frozen encoder's best layer in each gene class."""
    parts = []
    for gene_class in ("visible", "subtle", "invisible"):
        rows = select(result["delta"], gene_class, target="pearson_residuals", minus="frozen_best")
        by_probe = {row["probe"]: f"{interval(row)}, {verdict(row)}" for row in rows}
        texts = [f"probe {label(probe)} {by_probe[probe]}" for probe in ("tuned_ridge", "hest")]
        parts.append(f"*{gene_class}* {', '.join(texts)}")
    return f"{'; '.join(parts)}."


def hest_sentence(result: Result) -> str:
    """Return in words the differences of HEST-bench's own score on real tissue."""
    text = over_references(select(result["delta"], target="hest_bench"))
    return f"On real tissue, the finetuned encoder's difference is {text}."


def speed_sentence(bench: Result) -> str:
    """Return in words how near training and embedding come to the machine's limit."""
    shares = [
        run[kind]["share"]
        for run in bench["throughput"].values()
        for kind in ("cached", "streamed", "embedding")
    ]
    return (
        f"Training and embedding reach {percent(min(shares))} to {percent(max(shares))} of what "
        "the bare network allows on the same machine."
    )


def main_difference(result: Result, minus: str, probe: str = "tuned_ridge") -> str:
    """Return finetuned minus `minus` on Pearson residuals: the interval, units and verdict."""
    (row,) = select(result["delta"], minus=minus, probe=probe, target="pearson_residuals")
    return f"{interval(row)}, {verdict(row)}"


def held_out(result: Result) -> list[str]:
    """Return the names of the test groups."""
    return sorted({fold["test"] for fold in result["folds"]})


def verdict_or_reason(row: dict[str, Any]) -> str:
    """Return the verdict on a difference, or the reason why it gets none."""
    if row["target"] not in CLAIMS:
        return "*(depth)*"
    return verdict(row) if row["probe"] in CLAIMANTS else f"*({label(row['probe'])})*"


def seed_scores(result: Result, test: str, probe: str) -> dict[str, list[float]]:
    """Return mean r over genes on one test section, Pearson residuals, by features: one a seed."""
    scores: dict[str, list[float]] = {}
    for fold in result["folds"]:
        for row in fold["scores"]:
            probes = (probe, "none") if row["features"] in ("neighbours", "ceiling") else (probe,)
            is_asked = row["target"] == "pearson_residuals" and row["probe"] in probes
            if fold["test"] == test and is_asked:
                scores.setdefault(row["features"], []).append(row["pcc"])
    return scores


def seed_text(values: list[float]) -> str:
    """Return the mean over seeds, and in brackets each seed where they differ."""
    mean = number(float(np.mean(values)))
    if len(set(values)) == 1:
        return mean
    return f"{mean} ({', '.join(number(value) for value in values)})"


def seed_gap(scores: dict[str, list[float]], of: str, minus: str) -> str:
    """Return the difference of two kinds of features: the mean over seeds, and each seed's."""
    gaps = np.subtract(scores[of], scores[minus])
    each = ", ".join(number(gap, "+.3f") for gap in gaps)
    return f"{number(float(gaps.mean()), '+.3f')} ({each})"


def class_means(result: Result) -> pd.DataFrame:
    """Return mean r on Pearson residuals: a row per gene class and probe, a column per features."""
    scores = tidy(result)
    scores = scores[scores["target"] == "pearson_residuals"]
    means = scores.pivot_table("r", ["class", "probe"], "features")
    means["oracle"] = means["oracle"].groupby("class").transform("max")  # it needs no probe
    return means


def morphology(folds: Rows) -> pd.DataFrame:
    """Return mean, min and max over folds of every measure of the embeddings, by features."""
    rows = [
        {"features": features, **measures}
        for fold in folds
        for features, measures in fold["morphology"].items()
    ]
    return pd.DataFrame(rows).groupby("features").agg(["mean", "min", "max"])


def hest_means(result: Result) -> pd.DataFrame:
    """Return HEST-bench's r and R^2, and probe B's r on Pearson residuals, by features."""
    scores = tidy(result)
    means = scores.pivot_table("r", "features", ["probe", "target"])
    columns = {
        "r": means["hest", "hest_bench"],
        "r2": pd.DataFrame([fold["r2"] for fold in result["folds"]]).mean(),
        "residuals": means["tuned_ridge", "pearson_residuals"],
    }
    return pd.DataFrame(columns).dropna()


def retrieval_sentence(run: Result) -> str:
    """Return in words what the gene set and the profiles of one real section retrieve."""
    scores = run["retrieval"]
    is_above = scores["z_hits"] > scores["z_chance95"]
    outcome = "higher expression than" if is_above else "expression no higher than that of"
    lies = f"{number(scores['z_hits'], '+.2f')} standard deviations from the section's mean"
    chance = f"95% of random choices stay below {number(scores['z_chance95'], '+.2f')}"
    share, expected = percent(scores["recall@10"]), percent(scores["chance@10"])
    return (
        f"On real section {run['section']}, the gene set {' and '.join(scores['genes'])} retrieves "
        f"patches with {outcome} 95% of random choices: they lie {lies}, and {chance}. A whole "
        f"profile retrieves its own patch among the first ten for {share} of the {scores['n']} "
        f"spots, where chance is {expected}."
    )


def retrieval_frame(record: Result) -> pd.DataFrame:
    """Return all queries with the share of the way from random to oracle that was reached."""
    frame = pd.DataFrame(record["rows"])
    frame["share"] = (frame["found"] - frame["random"]) / (frame["oracle"] - frame["random"])
    frame["patient"] = frame["slide"].str.rstrip("0123456789")
    frame["question"] = frame["direction"] + ", " + frame["scope"]
    return frame


def retrieval_means(record: Result) -> pd.DataFrame:
    """Return the mean of every column by question and model."""
    frame = retrieval_frame(record)
    return frame.groupby(["question", "model"], sort=False).mean(numeric_only=True)


def retrieval_gaps(record: Result) -> dict[str, dict[str, Any]]:
    """Return the difference of shares, finetuned minus shuffled, of each question.

    A unit of its interval is a patient.
    """
    gaps = {}
    for question, rows in retrieval_frame(record).groupby("question", sort=False):
        shares = rows.set_index(["patient", "seed", "slide", "model"])["share"].unstack("model")
        by_patient = (shares["tuned"] - shares["shuffled"]).groupby("patient")
        gaps[question] = mean_and_interval(by_patient.mean().to_numpy())
    return gaps


def retrieval_dots(record: Result) -> dict[str, dict[str, pd.Series]]:
    """Return the share reached for each patient: {question: {model: shares}}."""
    means = retrieval_frame(record).groupby(["question", "model", "patient"])["share"].mean()
    questions = dict.fromkeys(means.index.get_level_values("question"))
    return {q: {model: means[q, model] for model in ("shuffled", "tuned")} for q in questions}


def found_by_chance(retrieval: dict[str, Any]) -> str:
    """Return whether a gene set finds more than 95% of random draws of as many patches do."""
    is_more = retrieval["z_hits"] > retrieval["z_chance95"]
    return f"{'' if is_more else 'no '}more than 95% of random draws do"


def gene_set_means(record: Result) -> pd.DataFrame:
    """Return the mean z of each gene set over the regions retrieved for it, by model."""
    frame = pd.DataFrame(record["sets"])
    return frame.groupby(["set", "model"])[["random", "found", "oracle"]].mean().unstack("model")


def widest_intervals(record: Result, kind: str, keys: list[str]) -> Rows:
    """Return the rows of `kind` ("scores" or "delta") of the cohort, pooled over finetuning seeds.

    The mean is that of all seeds. The interval is the widest reach of theirs, so a verdict holds
    for each seed.
    """
    rows = [
        {"task": result["task"], **row, "low": row["ci95"][0], "high": row["ci95"][1]}
        for result in record["results"]
        for row in result[kind]
        if row["metric"] == SLIDE_METRICS[result["task"]]
    ]
    groups = pd.DataFrame(rows).groupby(["task", "model", *keys], sort=False)
    pooled = groups.agg({"mean": "mean", "low": "min", "high": "max"}).reset_index()
    return [{**row, "ci95": [row["low"], row["high"]]} for row in pooled.to_dict("records")]


def leakage_text(sentences: list[str]) -> str:
    """Return what stood on both sides of splits, with the sections of a patient in one clause."""
    sections: dict[str, list[str]] = {}
    others = []
    for sentence in sentences:
        pair = SAME_PATIENT.fullmatch(sentence)
        if pair is None:
            others.append(sentence)
            continue
        of_patient = sections.setdefault(pair["patient"], [])
        of_patient += [name for name in pair.group("one", "other") if name not in of_patient]
    clauses = [
        f"sections {', '.join(names[:-1])} and {names[-1]} are of patient {patient}"
        for patient, names in sections.items()
    ]
    return "; ".join([*clauses, *others])


def slide_verdicts(record: Result, minus: str) -> str:
    """Return how many slide-level differences leave 0 out, and those that do."""
    rows = select(widest_intervals(record, "delta", ["of", "minus"]), of="tuned", minus=minus)
    clear = [row for row in rows if excludes_zero(row)]
    texts = [
        f"{row['task']} ({METRIC_LABELS[SLIDE_METRICS[row['task']]]}) by "
        f"{MODEL_LABELS[row['model']]} {interval(row)}, {verdict(row)}"
        for row in clear
    ]
    listed = f": {'; '.join(texts)}" if texts else ""
    return (
        f"the interval of finetuned minus {label(minus)} excludes 0 in {len(clear)} of {len(rows)} "
        f"comparisons"
        f"{listed}"
    )


def power_sentences(record: Result) -> str:
    """Return in words how many patients each task needs, and how many the cohort has."""
    power = record["power"]
    most = power["most_patients"]
    texts = []
    too_many = []
    for row in power["rows"]:
        needed = row["patients"]
        patients = "no number of patients" if needed is None else f"{needed:,} patients"
        texts.append(f"{row['task']} {interval(row)}: {patients}")
        if needed is None or needed > most:
            too_many.append(row["task"])
    limit = (
        f"The command measures at most {most} patients, fewer than the pilot asks for in "
        f"{' and '.join(too_many)}."
        if too_many
        else "So it has enough for every task."
    )
    return (
        f"A pilot of {power['pilot_patients']} other patients set the size of the cohort. It "
        "measured the oracle's gain over the frozen encoder, read by the mean patch. A two-sided "
        f"test at 5% finds a gain of that size with 80% power in: {'; '.join(texts)}. The cohort "
        f"has {power['patients']} patients. {limit}"
    )


def shift_scores(result: Result) -> dict[str, pd.Series]:
    """Return mean r (features, fold, seed) "in" and "out" of distribution, and their "gap"."""
    scores = {}
    for kind, folds in shifted(result["folds"]).items():
        rows = tidy({**result, "folds": folds})
        rows = rows[(rows["probe"] == "tuned_ridge") & (rows["target"] == "pearson_residuals")]
        scores[kind] = rows.groupby(["features", "test", "seed"])["r"].mean()
    return scores


def shift_gap(result: Result, features: str) -> dict[str, Any]:
    """Return the mean gap of an encoder and its interval; a unit is a fold."""
    by_fold = shift_scores(result)["gap"][features].groupby("test").mean().to_numpy()
    return mean_and_interval(by_fold, test_to_train=leave_one_out_ratio(len(by_fold)))


def shift_text(result: Result, features: str) -> str:
    """Return an encoder's mean r in and out of distribution, and whether the gap is clear."""
    scores = shift_scores(result)
    means = [number(scores[part][features].mean()) for part in ("in", "out")]
    gap = shift_gap(result, features)
    kind = "a loss" if gap["mean"] > 0 else "a gain"
    outcome = kind if excludes_zero(gap) else "no clear gap"
    return f"{means[0]} in and {means[1]} out of distribution (gap {interval(gap)}, {outcome})"


def count_clear_gaps(results: list[Result], features: str) -> str:
    """Return in how many shifts the interval of an encoder's gap excludes 0."""
    clear = sum(excludes_zero(shift_gap(result, features)) for result in results)
    return f"{clear or 'none'} of {len(results)} shifts shows a clear gap"


def shift_dots(result: Result) -> dict[str, dict[str, pd.Series]]:
    """Return the scores of each encoder in and out of distribution, for a chart."""
    scores = shift_scores(result)
    names = {"in": "in distribution", "out": "out of distribution"}
    return {f: {name: scores[kind][f] for kind, name in names.items()} for f in ENCODERS}


def pitfall_dots(record: Result) -> dict[str, dict[str, list[float]]]:
    """Return the scores of each pitfall and of the way around it, for a chart."""
    return {
        row["trap"]: {"pitfall": row["wrong_r"], "the way around it": row["right_r"]}
        for row in record["rows"]
    }


def largest_pitfall(record: Result) -> dict[str, Any]:
    """Return the pitfall that misleads most, with its means over the sections."""
    rows = [
        {
            **row,
            "wrong_mean": float(np.mean(row["wrong_r"])),
            "right_mean": float(np.mean(row["right_r"])),
        }
        for row in record["rows"]
    ]
    return max(rows, key=lambda row: row["wrong_mean"] - row["right_mean"])
