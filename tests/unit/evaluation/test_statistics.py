"""Paired differences, their intervals, and the gap of a shift."""

import numpy as np
import pytest

from seal_lite.evaluation.statistics import bootstrap_ci, deltas, shifted, verdicts


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
    clear = row | {"mean": 0.2, "ci95": [0.1, 0.3]}
    unclear = row | {"mean": 0.2, "ci95": [-0.1, 0.3], "class": "visible"}
    first, second = verdicts({"delta": [clear], "delta_gap": [unclear]})
    assert first == "tuned - frozen, hest, log1p_raw: +0.200 [+0.100, +0.300]"
    assert second == (
        "tuned - frozen, hest, log1p_raw [visible], gap: +0.200 [-0.100, +0.300]  (no difference)"
    )


def make_tables(rng, n_folds, *, fold_sd, mean=0.0):
    """A table (seeds, genes) of each fold: an effect of the fold, noise of seeds and genes."""
    tables = []
    for effect in mean + fold_sd * rng.standard_normal(n_folds):
        seed_noise = 0.3 * rng.standard_normal((3, 1))
        tables.append(effect + seed_noise + 0.3 * rng.standard_normal((3, 20)))
    return tables


def test_the_interval_covers_the_true_mean():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        low, high = bootstrap_ci(make_tables(rng, 10, fold_sd=1.0, mean=0.7), repeats=400)
        covered.append(low <= 0.7 <= high)
    # A percentile interval from 10 folds is a little short of 95%. Treating all 600 values as
    # independent would cover 20%.
    assert 0.85 <= np.mean(covered) <= 1


def test_the_interval_is_wider_where_folds_disagree():
    rng = np.random.default_rng(0)
    widths = [np.ptp(bootstrap_ci(make_tables(rng, 4, fold_sd=sd))) for sd in (0.0, 0.5, 2.0)]
    assert widths[0] < widths[1] < widths[2]
    same = [np.full((3, 5), 0.2)] * 4
    assert bootstrap_ci(same) == pytest.approx([0.2, 0.2])
