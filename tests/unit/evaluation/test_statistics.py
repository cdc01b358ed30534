"""Paired differences, their intervals, and the gap of a shift."""

import numpy as np
import pytest
from scipy import stats

from seal_lite.evaluation.statistics import (
    deltas,
    differences,
    leave_one_out_ratio,
    shifted,
    t_interval,
    verdicts,
)


def make_fold(test, tuned, frozen, *, seed=0):
    """A fold with r by gene of two kinds of features."""
    scores = [
        {"features": name, "probe": "hest", "target": "log1p_raw", "per_gene": r}
        for name, r in (("tuned", tuned), ("frozen", frozen))
    ]
    return {"test": test, "seed": seed, "scores": scores}


def test_a_delta_is_the_mean_of_paired_differences():
    folds = [
        make_fold("A", {"a": 0.5, "b": 0.2}, {"a": 0.1, "b": 0.1}),
        make_fold("B", {"a": 0.3, "b": 0.0}, {"b": 0.2, "a": 0.1}),  # another order
    ]
    overall, first, second = deltas(folds, {"a": "visible", "b": "invisible"})
    assert overall["mean"] == pytest.approx((0.4 + 0.1 + 0.2 - 0.2) / 4)
    assert (first["class"], first["mean"]) == ("invisible", pytest.approx(-0.05))
    assert (second["class"], second["mean"]) == ("visible", pytest.approx(0.3))
    assert "class" not in overall
    for delta in (overall, first, second):
        assert (delta["of"], delta["minus"]) == ("tuned", "frozen")
        low, high = delta["ci95"]
        assert low <= delta["mean"] <= high


def test_the_gap_is_the_difference_of_in_and_out_gene_by_gene():
    folds = [
        make_fold("new", {"a": 0.3, "b": 0.1}, {"a": 0.2, "b": 0.1}),
        make_fold("not new", {"a": 0.5, "b": 0.4}, {"a": 0.3, "b": 0.3}),
    ]
    parts = shifted(folds)
    names = {kind: [fold["test"] for fold in part] for kind, part in parts.items()}
    assert names == {"in": ["new"], "out": ["new"], "gap": ["new"]}
    tuned, frozen = (row["per_gene"] for row in parts["gap"][0]["scores"])
    assert tuned == pytest.approx({"a": 0.2, "b": 0.3})
    assert frozen == pytest.approx({"a": 0.1, "b": 0.2})
    (difference,) = deltas(parts["gap"])
    assert difference["mean"] == pytest.approx(0.1)


def test_a_verdict_states_when_the_interval_includes_zero():
    row = {"of": "tuned", "minus": "frozen", "probe": "hest", "target": "log1p_raw"}
    clear = row | {"mean": 0.2, "ci95": [0.1, 0.3], "units": 4}
    unclear = row | {"mean": 0.2, "ci95": [-0.1, 0.3], "units": 4, "class": "visible"}
    first, second = verdicts({"delta": [clear], "delta_gap": [unclear]})
    assert first == "tuned - frozen, hest, log1p_raw: +0.200 [+0.100, +0.300], 4 units"
    assert second == (
        "tuned - frozen, hest, log1p_raw [visible], gap: +0.200 [-0.100, +0.300], 4 units "
        "(no difference)"
    )


def coverage(n_units, *, correlation, ratio):
    """The share of 4,000 simulated evaluations whose interval holds the true mean, 0.7."""
    rng = np.random.default_rng(n_units)
    shared = np.sqrt(correlation) * rng.standard_normal((4000, 1))
    own = np.sqrt(1 - correlation) * rng.standard_normal((4000, n_units))
    evaluations = 0.7 + shared + own
    intervals = [t_interval(units, test_to_train=ratio) for units in evaluations]
    low, high = np.transpose(intervals)
    return np.mean((low <= 0.7) & (high >= 0.7))


@pytest.mark.parametrize("n_units", [2, 4, 8, 16])
def test_the_interval_covers_the_true_mean(n_units):
    assert 0.93 <= coverage(n_units, correlation=0.0, ratio=0.0) <= 0.97


@pytest.mark.parametrize("n_units", [2, 4, 8, 16])
def test_the_interval_covers_where_trainings_share_all_but_one_unit(n_units):
    """Leaving one of n out correlates the scores by about 1 / n; Nadeau and Bengio (2003)."""
    ratio = leave_one_out_ratio(n_units)
    assert 0.93 <= coverage(n_units, correlation=1 / n_units, ratio=ratio) <= 0.97
    assert coverage(n_units, correlation=1 / n_units, ratio=0.0) < 0.92  # without the correction


def test_the_interval_is_that_of_students_t():
    units = [0.1, 0.2, 0.4]
    expected = stats.t.interval(0.95, df=2, loc=np.mean(units), scale=stats.sem(units))
    assert t_interval(units) == pytest.approx(expected)
    assert t_interval([0.2] * 4) == pytest.approx([0.2, 0.2])


def test_one_unit_has_no_interval_and_no_verdict():
    (row,) = deltas([make_fold("A", {"a": 0.5}, {"a": 0.1})])
    assert (row["ci95"], row["units"]) == (None, 1)
    assert verdicts({"delta": [row]}) == [
        "tuned - frozen, hest, log1p_raw: +0.400 (one unit: no interval)"
    ]


def test_seeds_and_genes_of_a_unit_are_averaged_first():
    folds = [
        make_fold("A", {"a": 0.5, "b": 0.1}, {"a": 0.1, "b": 0.1}, seed=0),
        make_fold("A", {"a": 0.3, "b": 0.1}, {"a": 0.1, "b": 0.1}, seed=1),
        make_fold("B", {"a": 0.1, "b": 0.1}, {"a": 0.1, "b": 0.1}, seed=0),
    ]
    (row,) = deltas(folds)
    assert row["units"] == 2
    assert row["mean"] == pytest.approx(np.mean([0.15, 0.0]))
    assert row["ci95"] == pytest.approx(t_interval([0.15, 0.0]), abs=1e-4)


@pytest.mark.parametrize(
    ("groups", "train_groups", "ratio"), [("patient", None, 1 / 2), ("patient", 4, 0.0)]
)
def test_trainings_that_share_sections_widen_the_interval(groups, train_groups, ratio):
    folds = [
        make_fold(name, {"a": r}, {"a": 0.1}) for name, r in (("A", 0.5), ("B", 0.3), ("C", 0.2))
    ]
    origin = {"groups": groups, "train_groups": train_groups}
    (row,) = differences({"folds": folds, "classes": None, "provenance": origin})["delta"]
    expected = t_interval([0.4, 0.2, 0.1], test_to_train=ratio)
    assert row["ci95"] == pytest.approx(expected, abs=1e-4)
