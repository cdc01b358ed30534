"""Targets, ceilings and probes against written-out references."""

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from conftest import make_adata
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.preprocessing import StandardScaler

from seal_lite.data.genes import depth
from seal_lite.data.registration import neighbour_mean
from seal_lite.evaluation.probes import ALPHAS, hest_probe, tuned_probe
from seal_lite.evaluation.statistics import bootstrap_ci
from seal_lite.evaluation.targets import (
    TARGETS,
    make_targets,
    neighbour_prediction,
    noise_ceiling,
    oracle_prediction,
    partial_pearson,
    pearson,
    score,
    section_targets,
)


def truth(n=100, g=30, *, seed=0, sd=0.8):
    """Expected counts (n, g): each gene's share varies over spots, depth does too."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.ones(g) * 5) * np.exp(sd * rng.standard_normal((n, g)))
    share /= share.sum(1, keepdims=True)
    return share * rng.lognormal(np.log(2000), 0.5, (n, 1))


def test_pearson_residuals_are_those_of_scanpy():
    adata = make_adata(np.random.default_rng(1).poisson(truth()))
    reference = ad.AnnData(adata.layers["counts"].toarray())
    sc.experimental.pp.normalize_pearson_residuals(reference, theta=100)
    genes = ["G3", "G17", "G29"]  # some genes, with the totals of all
    found = section_targets(adata, genes)["pearson_residuals"]
    np.testing.assert_allclose(found, reference.X[:, [3, 17, 29]], rtol=1e-5, atol=1e-6)


def test_log_targets_are_their_formulas():
    adata = make_adata(np.random.default_rng(1).poisson(truth()))
    x = adata.layers["counts"].toarray().astype(float)
    found = section_targets(adata, ["G2", "ABSENT"])
    expected = np.log1p(1e4 * x[:, 2] / x.sum(1))
    np.testing.assert_allclose(found["log1p_cp10k"][:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(found["log1p_raw"][:, 0], np.log1p(x[:, 2]), rtol=1e-6)
    assert all(np.ptp(v[:, 1]) < 1e-5 for v in found.values())  # absent: one constant value


def test_residuals_do_not_see_depth_and_raw_counts_do():
    """Spots of one composition that differ in depth only: why residuals are the main target."""
    rng = np.random.default_rng(0)
    depth, share = rng.lognormal(np.log(3000), 0.7, 2000), rng.dirichlet(np.ones(40))
    counts = rng.poisson(np.outer(depth, share))
    made, log_depth = make_targets(counts, counts.sum(1)), np.log(counts.sum(1))[:, None]
    assert abs(pearson(made["pearson_residuals"], log_depth).mean()) < 0.02
    assert pearson(made["log1p_raw"], log_depth).mean() > 0.5


def test_pearson_is_numpys_and_a_constant_earns_nothing():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 40, 5))
    expected = [np.corrcoef(a[:, g], b[:, g])[0, 1] for g in range(5)]
    np.testing.assert_allclose(pearson(a, b), expected, rtol=1e-12)
    a[:, 2] = 3.0
    assert pearson(a, b)[2] == 0 and np.isfinite(pearson(a, b)).all()


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_partial_correlation_is_that_of_regression_residuals(seed):
    rng = np.random.default_rng(seed)
    given_, a, b = rng.standard_normal(30), *rng.standard_normal((2, 30, 3))
    a, b = a + 2 * given_[:, None], b - given_[:, None]

    def rest(y):
        return y - LinearRegression().fit(given_[:, None], y).predict(given_[:, None])

    expected = [np.corrcoef(rest(a)[:, g], rest(b)[:, g])[0, 1] for g in range(3)]
    np.testing.assert_allclose(partial_pearson(a, b, given_), expected, atol=1e-10)


def test_neighbours_predict_their_mean():
    adata = make_adata(np.random.default_rng(1).poisson(truth()))
    x = section_targets(adata, ["G1"])["log1p_raw"]
    near = neighbour_mean(adata)[11].indices
    assert len(near) == 8
    found = neighbour_prediction(adata, ["G1"])["log1p_raw"]
    assert found[11, 0] == pytest.approx(x[near].mean())


@pytest.mark.parametrize("sd", [0.1, 0.2])
def test_ceiling_is_the_r_of_the_truth_with_the_data(sd):
    """Poisson counts of a known expectation; the estimate may not see the expectation."""
    expected = truth(n=900, sd=sd)
    adata = make_adata(np.random.default_rng(2).poisson(expected))
    genes = list(adata.var_names)
    found = noise_ceiling(adata, genes, np.arange(900))
    measured, totals = section_targets(adata, genes), depth(adata)
    best = score(make_targets(expected, expected.sum(1)), measured, np.log(totals))
    for target, r in best.items():
        assert found[target].mean() == pytest.approx(r.mean(), abs=0.03), target
    main = "pearson_residuals"  # log1p CP10k of a gene with few counts follows depth in both halves
    assert np.abs(found[main] - best[main]).max() < 0.1
    assert 0.3 < best["pearson_residuals"].mean() < 0.97  # neither trivial nor hopeless


def test_oracle_knows_expression_and_not_depth():
    expected = truth(n=400)
    share = expected / expected.sum(1, keepdims=True)
    counts = np.random.default_rng(0).poisson(expected)
    oracle = oracle_prediction(share, counts.sum(1))
    moved = oracle_prediction(share, np.random.default_rng(1).permutation(counts.sum(1)))
    measured = make_targets(counts, counts.sum(1))
    for target in TARGETS:
        np.testing.assert_array_equal(oracle[target], moved[target])
    assert pearson(oracle["pearson_residuals"], measured["pearson_residuals"]).min() > 0.4


def features(n=90, d=40, g=7, *, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * rng.uniform(0.1, 5, d) + 3
    y = (x - 3) @ rng.standard_normal((d, g)) * 0.2 + noise * rng.standard_normal((n, g)) + 2
    return x, y, np.repeat(["a", "b", "c"], n // 3)


@pytest.mark.parametrize("d", [40, 300])
def test_probe_a_is_hest_bench_written_out(d):
    x, y, groups = features(d=d)
    x_test = features(d=d, seed=1)[0]
    found = hest_probe(x, y, groups, x_test)
    scaler = StandardScaler().fit(x)
    k = min(256, len(x), d)
    pca = PCA(k, random_state=0).fit(scaler.transform(x))
    ridge = Ridge(alpha=100 / (k * y.shape[1]), fit_intercept=False, solver="lsqr", random_state=0)
    ridge.fit(pca.transform(scaler.transform(x)), y)
    expected = ridge.predict(pca.transform(scaler.transform(x_test)))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    one = hest_probe(x, y[:, :1], groups, x_test)
    assert one.shape == (90, 1)


def _best_alpha(x, y, groups):
    """Leave one group out, by hand: the alpha with the best mean r over genes and groups."""
    means = []
    for alpha in ALPHAS:
        r = []
        for group in np.unique(groups):
            scaler = StandardScaler().fit(x[groups != group])
            ridge = Ridge(alpha=alpha).fit(scaler.transform(x[groups != group]), y[groups != group])
            p = ridge.predict(scaler.transform(x[groups == group]))
            r.append(
                [np.corrcoef(p[:, g], y[groups == group][:, g])[0, 1] for g in range(y.shape[1])]
            )
        means.append(np.mean(r))
    return ALPHAS[np.argmax(means)]


@pytest.mark.parametrize("noise", [0.1, 5.0])
def test_probe_b_takes_the_alpha_that_is_best_on_held_out_groups(noise):
    x, y, groups = features(noise=noise)
    x_test = features(seed=1)[0]
    alpha, scaler = _best_alpha(x, y, groups), StandardScaler().fit(x)
    expected = Ridge(alpha=alpha).fit(scaler.transform(x), y).predict(scaler.transform(x_test))
    np.testing.assert_allclose(tuned_probe(x, y, groups, x_test), expected, atol=1e-6)


def test_probe_b_regularises_weak_signal_more_than_strong():
    """300 features of which one carries signal: probe A overfits, probe B must not."""
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(5):
        x, x_test = rng.standard_normal((2, 120, 300))
        y, y_test = (0.5 * v[:, :1] + rng.standard_normal((120, 10)) for v in (x, x_test))
        groups = np.repeat(["a", "b", "c"], 40)
        scores.append(
            [pearson(p(x, y, groups, x_test), y_test).mean() for p in (hest_probe, tuned_probe)]
        )
    a, b = np.mean(scores, 0)
    assert b > a


def test_probe_b_with_one_group_uses_blocks_of_spots():
    x, y, _ = features()
    x_test = features(seed=1)[0]
    blocks = np.repeat(list("abcde"), 18)
    np.testing.assert_allclose(
        tuned_probe(x, y, np.repeat("a", 90), x_test), tuned_probe(x, y, blocks, x_test)
    )


def table(rng, folds, *, fold_sd, mean=0.0):
    """(seeds, genes) of each fold: an effect of the fold, and noise of seeds and genes."""
    effect = mean + fold_sd * rng.standard_normal(folds)
    return [
        e + 0.3 * rng.standard_normal((3, 1)) + 0.3 * rng.standard_normal((3, 20)) for e in effect
    ]


def test_interval_covers_the_true_mean():
    rng = np.random.default_rng(0)
    covered = [
        low <= 0.7 <= high
        for low, high in (
            bootstrap_ci(table(rng, 10, fold_sd=1.0, mean=0.7), repeats=400) for _ in range(200)
        )
    ]
    # A percentile interval from 10 folds is a little short of 95%; treating all 600 numbers as
    # independent would cover 20%.
    assert 0.85 <= np.mean(covered) <= 1


def test_interval_is_wider_where_folds_disagree():
    rng = np.random.default_rng(0)
    widths = [np.ptp(bootstrap_ci(table(rng, 4, fold_sd=sd))) for sd in (0.0, 0.5, 2.0)]
    assert widths[0] < widths[1] < widths[2]
    same = [np.full((3, 5), 0.2)] * 4
    assert bootstrap_ci(same) == pytest.approx([0.2, 0.2])
