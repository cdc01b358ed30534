"""The settings chosen anew inside every outer fold: the nested estimate of the trials."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from seal_lite.evaluation.statistics import leave_one_out_ratio, mean_and_interval

TARGET = "pearson_residuals"
SEES = {"backbone", "patch_um", "patch_px"}  # settings that decide what the frozen encoder sees
NO_SETTINGS = (  # arms with another frozen baseline, and those with fewer counts
    "two scales",
    "centre-weighted pooling",
    "a quarter of the counts",
    "three parts fewer, a quarter",
    "default, a quarter",
)
SECTIONS = ("C2", "C3", "C4", "C5")


class InnerFold(NamedTuple):
    """A training of an arm that an outer fold does not see: scores on two sections by reading."""

    arm: str
    inner: dict[str, float]  # on the section that chooses
    outer: dict[str, float]  # on the section that the outer fold holds out


class NestedFold(NamedTuple):
    """What an outer fold chose without its test section, and how that scores there."""

    test: str
    arm: str  # the chosen settings
    layer: str  # the chosen layer of the frozen encoder
    chosen: float
    fixed: float  # of the arm that the defaults are
    frozen: float


def inner_folds(trials: dict[str, Any], test: str) -> Iterator[InnerFold]:
    """Yield the trainings of which `test` is one of the two sections scored."""
    for run in trials["runs"]:
        if test in run["train"] or "failed" in run["scores"]:
            continue
        (other,) = set(SECTIONS) - {test, *run["train"]}
        scores = run["scores"]
        yield InnerFold(run["arm"], scores[other], scores[test])


def nested_folds(trials: dict[str, Any], *, fixed: str, probe: str) -> list[NestedFold]:
    """Return an outer fold for each section.

    The arm with the best mean inner score is chosen, and so is the frozen encoder's layer. The
    candidates are `complete_arms`.

    Parameters
    ----------
    trials
        results/trials.json or results/transformer_trials.json.
    fixed
        The arm that is today's default.
    probe
        "tuned_ridge" or "hest".
    """
    candidates = complete_arms(trials)
    first = next(iter(trials["arms"]))
    tuned = f"tuned/{probe}/{TARGET}"
    folds = []
    for test in SECTIONS:
        runs = [run for run in inner_folds(trials, test) if run.arm in candidates]
        inner = mean_by_arm(runs, tuned, "inner")
        outer = mean_by_arm(runs, tuned, "outer")
        arm = max(inner, key=lambda name: inner[name])
        references = [run for run in runs if run.arm == first]
        layer = inner_best_layer(references, probe)
        key = f"{layer}/{probe}/{TARGET}"
        frozen = float(np.mean([run.outer[key] for run in references]))
        folds.append(NestedFold(test, arm, layer, outer[arm], outer[fixed], frozen))
    return folds


def complete_arms(trials: dict[str, Any]) -> set[str]:
    """Return the arms that ran on every pair of sections, on the first arm's encoder and patches.

    Controls and arms with fewer counts are no settings. Arms that read other or further patches
    have another baseline.
    """
    first, *others = trials["arms"]
    settings = {first}
    for name in others:
        arm = trials["arms"][name]
        is_control = arm.get("variant", "").startswith("shuffled")
        sees_other = bool(SEES & arm["changes"].keys()) or arm.get("second_um") is not None
        if not is_control and not sees_other and name not in NO_SETTINGS:
            settings.add(name)
    n_runs = dict.fromkeys(settings, 0)
    for run in trials["runs"]:
        if run["arm"] in settings and "failed" not in run["scores"]:
            n_runs[run["arm"]] += 1
    everything = max(n_runs.values())
    return {arm for arm, n in n_runs.items() if n == everything}


def mean_by_arm(runs: list[InnerFold], key: str, side: str) -> dict[str, float]:
    """Return by arm the mean over its trainings of a score on the inner or the outer section."""
    values: dict[str, list[float]] = {}
    for run in runs:
        values.setdefault(run.arm, []).append(getattr(run, side)[key])
    return {arm: float(np.mean(scores)) for arm, scores in values.items()}


def inner_best_layer(references: list[InnerFold], probe: str) -> str:
    """Return the frozen layer with the best mean inner score, as it is named in the scores."""
    ending = f"/{probe}/{TARGET}"
    layers = [key.removesuffix(ending) for key in references[0].inner if key.endswith(ending)]
    frozen = [layer for layer in layers if layer.startswith("frozen ")]

    def inner_mean(layer: str) -> float:
        return float(np.mean([run.inner[f"{layer}{ending}"] for run in references]))

    return max(frozen, key=inner_mean)


def nested_difference(folds: list[NestedFold], of: str, minus: str) -> dict[str, Any]:
    """Return the mean difference over the outer folds, with its interval and number."""
    values = [getattr(fold, of) - getattr(fold, minus) for fold in folds]
    return mean_and_interval(values, test_to_train=leave_one_out_ratio(len(values)))
