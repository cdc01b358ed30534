"""A study's result in words: the verdict, the methods paragraph, the checklist."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from seal_lite.evaluation.scores import summary, tidy
from seal_lite.evaluation.statistics import excludes_zero
from seal_lite.studies.plan import ENOUGH_UNITS, plural, times
from seal_lite.tutorial.charts import LABELS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from seal_lite.config import Config
    from seal_lite.studies.plan import Plan

TARGET = "pearson_residuals"
PROBE = "tuned_ridge"  # the verdict's; HEST-bench's own stands beside it
REFERENCES = {"frozen_best": "the frozen encoder's best layer", "shuffled": "shuffled pairs"}
PROBES = {name: LABELS[name] for name in (PROBE, "hest")}
CITATIONS = (
    "Hemker et al., 2026, arXiv:2602.14177 (SEAL)",
    "Lause et al., 2021, Genome Biology 22, 258 (analytic Pearson residuals)",
    "Jaume et al., 2024, NeurIPS 37 (HEST-bench)",
    "Nadeau and Bengio, 2003, Machine Learning 52, 239-281 (corrected resampled t)",
    "Hu et al., 2021, arXiv:2106.09685 (LoRA)",
)
RECIPE_ORIGIN = (
    "no: they were fixed before this study. One exception: the package's defaults were chosen on "
    "her2st's sections C2 to C5, and scores on those are too high"
)


@dataclass(frozen=True)
class Verdict:
    """What a study found.

    Parameters
    ----------
    kind
        "better", "no difference", "worse" or "description"; "mixed" where one probe says better and
        the other worse.
    headline
        A few words, as large for a loss as for a gain.
    sentences
        Two sentences with interval and number of units.
    advice
        What to do now, and what would make the answer clearer.
    """

    kind: str
    headline: str
    sentences: list[str]
    advice: str


HEADLINES = {
    "better": "Finetuning helped.",
    "no difference": "Finetuning made no difference that this study could see.",
    "worse": "Finetuning made the encoder worse.",
    "mixed": "The two probes disagree: finetuning helped by one and hurt by the other.",
    "description": "Too few {units} for a verdict.",
}


def difference_row(result: Mapping[str, Any], minus: str, probe: str = PROBE) -> dict[str, Any]:
    """Return a study's difference of the tuned encoder to `minus` on Pearson residuals."""
    keys = {"of": "tuned", "minus": minus, "probe": probe, "target": TARGET}
    rows = [row for row in result["delta"] if "class" not in row]
    return next(row for row in rows if all(row[key] == value for key, value in keys.items()))


def kind_of(row: Mapping[str, Any]) -> str:
    """Return what a difference says: "better", "no difference", "worse" or "description"."""
    if row["units"] < ENOUGH_UNITS:
        return "description"
    if not excludes_zero(row):
        return "no difference"
    return "better" if row["mean"] > 0 else "worse"


def verdict(result: Mapping[str, Any], plan: Plan) -> Verdict:
    """Return the verdict of a study.

    Parameters
    ----------
    result
        The result of `crossval.crossval`.
    plan
        What was held out.
    """
    to_frozen = difference_row(result, "frozen_best")
    to_shuffled = difference_row(result, "shuffled")
    by_other_probe = difference_row(result, "frozen_best", "hest")
    kind = kind_of(to_frozen)
    if {kind, kind_of(by_other_probe)} == {"better", "worse"}:
        kind = "mixed"
    units = plural(plan.by)
    means = summary(result)[TARGET]
    tuned, frozen = means["tuned", PROBE], means["frozen_best", PROBE]
    first = (
        f"On {units} that training did not see, predicted and measured expression correlate at "
        f"{tuned:.3f} with the finetuned encoder and at {frozen:.3f} with the best layer of the "
        f"frozen one, averaged over genes: a difference of {interval_words(to_frozen, plan.by)}."
    )
    second = f"{_what_pairs_taught(to_shuffled)}: {interval_words(to_shuffled, plan.by)}."
    if kind == "mixed":
        words = interval_words(by_other_probe, plan.by)
        advice = f"Keep the frozen encoder: {PROBES['hest']} finds a difference of {words}."
    else:
        advice = _advice(kind, to_frozen, to_shuffled, units=units)
    advice += plan.shortening()
    return Verdict(kind, HEADLINES[kind].format(units=units), [first, second], advice)


def interval_words(row: Mapping[str, Any], by: str) -> str:
    """Return a difference with its interval and the number of units, for readers of the page."""
    mean = f"{row['mean']:+.3f}"
    if row["ci95"] is None:
        return f"{mean} (one {by}, so no interval)"
    low, high = row["ci95"]
    return f"{mean} (95% interval {low:+.3f} to {high:+.3f}, {row['units']} {plural(by)})"


def _what_pairs_taught(row: Mapping[str, Any]) -> str:
    """Return what the difference to shuffled pairs says."""
    beginnings = {
        "better": "True pairs of image and expression helped more than shuffled pairs, the control",
        "no difference": "This study sees no difference between true pairs of image and expression "
        "and shuffled pairs, the control",
        "worse": "True pairs of image and expression helped less than shuffled pairs, the control",
        "description": "The difference to an encoder trained on shuffled pairs, the control",
    }
    return beginnings[kind_of(row)]


def _advice(
    kind: str, to_frozen: Mapping[str, Any], to_shuffled: Mapping[str, Any], *, units: str
) -> str:
    """Return what to do, given the kind of the verdict and both differences."""
    keep = "Keep the frozen encoder, read at its best layer."
    if kind == "description":
        return (
            f"The values below describe these {units}. A verdict takes at least {ENOUGH_UNITS}: "
            f"add {units} and run the study again."
        )
    if kind == "worse":
        return f"{keep} Read the gene table below before you try other settings."
    if kind == "no difference":
        high = to_frozen["ci95"][1]
        return (
            f"{keep} The interval allows a gain of up to {high:+.3f}; more {units} would narrow it."
        )
    if kind_of(to_shuffled) != "better":
        return (
            "Do not credit the gain to gene expression yet: the difference to shuffled pairs is "
            f"not clearly above 0. More {units} would tell."
        )
    return "Use the finetuned encoder: it is in the folder encoder/ beside this page."


def unit_means(result: Mapping[str, Any], probe: str = PROBE) -> pd.DataFrame:
    """Return mean r on Pearson residuals, a row for each held-out unit, a column by features."""
    scores = tidy(result)
    scores = scores[(scores.probe == probe) & (scores.target == TARGET)]
    return scores.pivot_table("r", "test", "features", sort=False)


def difference_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every difference that carries a claim.

    Rows are {"minus", "probe", "mean", "ci95", "units", "kind"}: `kind_of` says "description" where
    units are too few.
    """
    rows = []
    for minus, name in REFERENCES.items():
        for probe, probe_name in PROBES.items():
            row = difference_row(result, minus, probe)
            values = {key: row[key] for key in ("mean", "ci95", "units")}
            rows.append({"minus": name, "probe": probe_name, **values, "kind": kind_of(row)})
    return rows


def leakage_statement(leakage: Sequence[str], plan: Plan) -> str:
    """Return in words what stands on both sides of a split."""
    if not leakage:
        return (
            "The study compared counts, expression profiles, images and patients of all sections, "
            "and found no sample or patient on both sides of a split."
        )
    findings = "; ".join(leakage)
    return (
        f"Samples or patients on both sides of a split were allowed on the command line: "
        f"{findings}. {plan.reason}"
    )


def methods(result: Mapping[str, Any], plan: Plan, config: Config, *, n_pairs: int) -> str:
    """Return a paragraph for a paper, with versions and citations."""
    origin = result["provenance"]
    what = f"LoRA of rank {config.lora_rank} in" if config.lora_rank else "all weights of"
    blocks = "block" if config.tune_blocks == 1 else f"{config.tune_blocks} blocks"
    commit = "" if origin["commit"] == "unknown" else f" (commit {origin['commit']})"
    libraries = ", ".join(f"{name} {number}" for name, number in origin["versions"].items())
    sources = "; ".join(CITATIONS)
    return (
        f"The encoder {config.backbone} was finetuned on {n_pairs} pairs of H&E patch "
        f"({config.patch_um:g} um, {config.patch_px} px) and spatial gene expression from "
        f"{len(origin['sections'])} sections with SEAL-lite {origin['package']}{commit}: {what} "
        f"its last {blocks}, a gene encoder, a contrastive loss and two "
        f"reconstructions, for {config.epochs} epochs at a learning rate of {config.lr_lora:g}. "
        f"{plan.design()} Each training ran {times(plan.seeds)}, with a random seed of its own. "
        "Genes, scaling, encoder and penalties were chosen without the held-out units. Ridge "
        "regressions predicted analytic Pearson residuals of the most variable genes from the "
        "embedding; scores are Pearson correlations over the spots of a section, averaged over "
        "genes, seeds and units. Controls were the frozen encoder at the layer that predicts best "
        "inside the training part, and the same finetuning on shuffled pairs. Intervals are 95% t "
        "intervals over held-out units, with the variance corrected for shared training data "
        f"where each unit was left out in turn. Software: {libraries}, scanpy {version('scanpy')}, "
        f"scikit-learn {version('scikit-learn')}; {origin['device']}. References: {sources}."
    )


def checklist(
    result: Mapping[str, Any], plan: Plan, *, leakage: Sequence[str]
) -> list[tuple[str, str]]:
    """Return a reporting checklist, filled in: (question, answer)."""
    origin = result["provenance"]
    genes = "the most variable ones of the training part"
    if result["classes"] is not None:
        genes = "those that the phantom declares"
    return [
        ("What is the unit of the intervals?", f"a held-out {plan.by}; {plan.units} units"),
        ("What was held out before anything was fitted?", f"{plan.design()} {plan.reason}"),
        ("Is a sample on both sides of a split?", leakage_statement(leakage, plan)),
        ("Were settings chosen on the held-out units?", RECIPE_ORIGIN),
        ("How many random seeds?", f"{plan.seeds}, averaged within a unit"),
        ("Which baseline?", "the frozen encoder at the layer that is best inside training"),
        ("Which negative control?", "the same finetuning on shuffled pairs"),
        (
            "Is sequencing depth discounted?",
            "yes: Pearson residuals are scored, and log depth is one of the predictors",
        ),
        ("Which genes are scored?", genes),
        ("How small a gain could the study show?", plan.power()),
        ("Data and settings", f"SHA-256 {origin['data_sha256']} and {origin['config_sha256']}"),
        ("Is every result reported?", "yes: gains, losses and null results, on this page"),
    ]
