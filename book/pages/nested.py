"""The settings chosen anew inside every outer fold: the nested estimate of the trials."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from seal_lite.evaluation.statistics import leave_one_out_ratio, mean_and_interval

TARGET = "pearson_residuals"
NO_SETTINGS = (  # arms that read patches otherwise, and those with fewer counts
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
    frozen_arm: str  # whose patches the frozen encoder reads, chosen with its layer
    layer: str
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

    The arm with the best mean inner score is chosen. So is the frozen encoder's layer, among those
    of all patches that an arm reads. The candidates are `complete_arms`.

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
    tuned = f"tuned/{probe}/{TARGET}"
    folds = []
    for test in SECTIONS:
        runs = [run for run in inner_folds(trials, test) if run.arm in candidates]
        inner = mean_by_arm(runs, tuned, "inner")
        outer = mean_by_arm(runs, tuned, "outer")
        arm = max(inner, key=lambda name: inner[name])
        frozen_arm, layer = inner_best_layer(runs, probe)
        frozen = mean_by_arm(runs, f"{layer}/{probe}/{TARGET}", "outer")[frozen_arm]
        folds.append(NestedFold(test, arm, frozen_arm, layer, outer[arm], outer[fixed], frozen))
    return folds


def complete_arms(trials: dict[str, Any]) -> set[str]:
    """Return the arms that ran on every pair of sections, on the first arm's encoder.

    Controls and arms with fewer counts are no settings. Arms with another encoder, or that read
    further patches, have another baseline.
    """
    first, *others = trials["arms"]
    settings = {first}
    for name in others:
        arm = trials["arms"][name]
        is_control = arm.get("variant", "").startswith("shuffled")
        sees_other = "backbone" in arm["changes"] or arm.get("second_um") is not None
        if not is_control and not sees_other and name not in NO_SETTINGS:
            settings.add(name)
    n_runs = dict.fromkeys(settings, 0)
    for run in trials["runs"]:
        if run["arm"] in settings and "failed" not in run["scores"]:
            n_runs[run["arm"]] += 1
    everything = max(n_runs.values())
    return {arm for arm, n in n_runs.items() if n == everything}


def mean_by_arm(runs: list[InnerFold], key: str, side: str) -> dict[str, float]:
    """Return by arm the mean over its trainings of a score on the inner or the outer section.

    Arms without that score are left out.
    """
    values: dict[str, list[float]] = {}
    for run in runs:
        scores = getattr(run, side)
        if key in scores:
            values.setdefault(run.arm, []).append(scores[key])
    return {arm: float(np.mean(scores)) for arm, scores in values.items()}


def inner_best_layer(runs: list[InnerFold], probe: str) -> tuple[str, str]:
    """Return the arm and the frozen layer with the best mean inner score.

    The layer has the name that it has in the scores. Arms on the same patches share the scores of
    one of them.
    """
    ending = f"/{probe}/{TARGET}"
    keys = {key for run in runs for key in run.inner if key.endswith(ending)}
    best = ("", "")
    highest = -np.inf
    for key in sorted(keys):
        if not key.startswith("frozen "):
            continue
        for arm, score in mean_by_arm(runs, key, "inner").items():
            if score > highest:
                best, highest = (arm, key.removesuffix(ending)), score
    return best


def nested_difference(folds: list[NestedFold], of: str, minus: str) -> dict[str, Any]:
    """Return the mean difference over the outer folds, with its interval and number."""
    values = [getattr(fold, of) - getattr(fold, minus) for fold in folds]
    return mean_and_interval(values, test_to_train=leave_one_out_ratio(len(values)))
