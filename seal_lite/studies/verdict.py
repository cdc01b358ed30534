"""A study's result in words: the verdict, the methods paragraph, the checklist."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from seal_lite.evaluation.scores import summary
from seal_lite.evaluation.statistics import excludes_zero, interval_text
from seal_lite.studies.plan import ENOUGH_UNITS, plural

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from seal_lite.config import Config
    from seal_lite.studies.plan import Plan

TARGET = "pearson_residuals"
PROBE = "tuned_ridge"  # the verdict's; HEST-bench's own stands beside it
REFERENCES = {"frozen_best": "the frozen encoder's best layer", "shuffled": "shuffled pairs"}
PROBES = {PROBE: "ridge with a tuned penalty", "hest": "HEST-bench's ridge"}
CITATIONS = (
    "Hemker et al., 2026, arXiv:2602.14177 (SEAL)",
    "Lause et al., 2021, Genome Biology 22, 258 (analytic Pearson residuals)",
    "Jaume et al., 2024, NeurIPS 37 (HEST-bench)",
    "Nadeau and Bengio, 2003, Machine Learning 52, 239-281 (corrected resampled t)",
    "Hu et al., 2021, arXiv:2106.09685 (LoRA)",
)
RECIPE_ORIGIN = (
    "no: the settings were fixed before this study. The package's defaults were chosen on sections "
    "C2 to C5 of her2st, so a study of those is kind to them"
)


@dataclass(frozen=True)
class Verdict:
    """What a study found.

    Parameters
    ----------
    kind
        "better", "no difference", "worse" or "description".
    headline
        A few words, as large for a loss as for a gain.
    sentences
        Two sentences with interval and number of units.
    """

    kind: str
    headline: str
    sentences: list[str]


HEADLINES = {
    "better": "Finetuning helped.",
    "no difference": "Finetuning made no difference that this study could see.",
    "worse": "Finetuning made the encoder worse.",
    "description": "Too few units for a verdict: this is a description.",
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
    kind = kind_of(to_frozen)
    means = summary(result)[TARGET]
    tuned, frozen = means["tuned", PROBE], means["frozen_best", PROBE]
    first = (
        f"On held-out {plural(plan.by)}, the mean correlation of predicted and measured expression "
        f"is {tuned:.3f} with the finetuned encoder and {frozen:.3f} with the best layer of the "
        f"frozen one: a difference of {interval_text(to_frozen)}."
    )
    second = f"{_what_pairs_taught(to_shuffled)}: {interval_text(to_shuffled)}."
    return Verdict(kind, HEADLINES[kind], [first, second])


def _what_pairs_taught(row: Mapping[str, Any]) -> str:
    """Return what the difference to shuffled pairs says."""
    beginnings = {
        "better": "True pairs taught it more than shuffled pairs did",
        "no difference": "True pairs taught it no more than shuffled pairs did, as far as this "
        "study can see",
        "worse": "It learnt less from true pairs than from shuffled ones",
        "description": "The difference to an encoder finetuned on shuffled pairs",
    }
    return beginnings[kind_of(row)]


def difference_rows(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return every difference that carries a claim: {"minus", "probe", "text", "kind"}."""
    rows = []
    for minus, name in REFERENCES.items():
        for probe, probe_name in PROBES.items():
            row = difference_row(result, minus, probe)
            text = interval_text(row)
            rows.append({"minus": name, "probe": probe_name, "text": text, "kind": kind_of(row)})
    return rows


def methods(result: Mapping[str, Any], plan: Plan, config: Config, *, n_pairs: int) -> str:
    """Return a paragraph for a paper, with versions and citations."""
    origin = result["provenance"]
    tune = "LoRA" if config.lora_rank else "full finetuning"
    design = (
        f"each of {plan.units} {plural(plan.by)} was held out once"
        if plan.train_groups is None
        else f"{plan.train_groups} {plural(plan.by)} trained and {plan.units} were held out"
    )
    libraries = ", ".join(f"{name} {number}" for name, number in origin["versions"].items())
    sources = "; ".join(CITATIONS)
    return (
        f"The encoder {config.backbone} was finetuned on {n_pairs} pairs of H&E patch "
        f"({config.patch_um:g} um, {config.patch_px} px) and spatial gene expression from "
        f"{len(origin['sections'])} sections with SEAL-lite {origin['package']} (commit "
        f"{origin['commit']}): {tune} of its last {config.tune_blocks} blocks (rank "
        f"{config.lora_rank}), a gene encoder, a contrastive loss and two reconstructions, for "
        f"{config.epochs} epochs at a learning rate of {config.lr_lora:g}. For evaluation "
        f"{design}, with {plan.seeds} random seeds; genes, scaling, encoder and penalties were "
        "chosen without the held-out units. Ridge regressions predicted analytic Pearson residuals "
        "of the most variable genes from the embedding; scores are Pearson correlations over the "
        "spots of a section, averaged over genes, seeds and units. Controls were the frozen "
        "encoder at the layer that predicts best inside the training part, and the same finetuning "
        "on shuffled pairs. Intervals are 95% t intervals over held-out units, with the variance "
        "corrected for shared training data where each unit was left out in turn. Software: "
        f"{libraries}; {origin['device']}. References: {sources}; versions: SEAL-lite "
        f"{version('seal_lite')}, scanpy {version('scanpy')}, scikit-learn "
        f"{version('scikit-learn')}."
    )


def checklist(
    result: Mapping[str, Any], plan: Plan, *, leakage: Sequence[str], allowed: bool
) -> list[tuple[str, str]]:
    """Return a reporting checklist, filled in: (question, answer)."""
    origin = result["provenance"]
    leaks = "; ".join(leakage) if leakage else "none found"
    mark = " (allowed on the command line)" if leakage and allowed else ""
    return [
        ("What is the unit of the intervals?", f"a held-out {plan.by}; {plan.units} units"),
        ("What was held out before anything was fitted?", f"{plural(plan.by)}. {plan.reason}"),
        ("Samples on both sides of a split?", f"{leaks}{mark}"),
        ("Were settings chosen on the test units?", RECIPE_ORIGIN),
        ("How many random seeds?", f"{plan.seeds}, averaged within a unit"),
        ("Which baseline?", "the frozen encoder at the layer that is best inside training"),
        ("Which negative control?", "the same finetuning on shuffled pairs"),
        ("Is depth discounted?", "yes: Pearson residuals; log depth is scored as a predictor"),
        ("Which genes are scored?", "the most variable of the training part"),
        ("What could so many units show?", plan.power()),
        ("Data and settings", f"SHA-256 {origin['data_sha256']}, {origin['config_sha256']}"),
        ("Is every result reported?", "yes: gains, losses and null results, on this page"),
    ]
