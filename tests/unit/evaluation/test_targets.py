"""Targets and ceilings against references written out by hand."""

import numpy as np
import pytest
from helpers import make_adata
from hypothesis import given, settings
from hypothesis import strategies as st

from seal_lite.data.genes import depth
from seal_lite.data.registration import neighbour_mean
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


def expected_counts(n=100, g=30, *, seed=0, sd=0.8):
    """Expected counts (n, g): each gene's share varies over spots, and so does depth."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.ones(g) * 5) * np.exp(sd * rng.standard_normal((n, g)))
    share /= share.sum(1, keepdims=True)
    return share * rng.lognormal(np.log(2000), 0.5, (n, 1))


def columnwise_r(a, b):
    return [np.corrcoef(a[:, gene], b[:, gene])[0, 1] for gene in range(a.shape[1])]


def test_pearson_residuals_are_those_of_scanpy():
    import anndata as ad
    import scanpy as sc

    adata = make_adata(np.random.default_rng(1).poisson(expected_counts()))
    reference = ad.AnnData(adata.layers["counts"].toarray())
    sc.experimental.pp.normalize_pearson_residuals(reference, theta=100)
    genes = ["G3", "G17", "G29"]  # some genes, with the totals of all
    residuals = section_targets(adata, genes)["pearson_residuals"]
    np.testing.assert_allclose(residuals, reference.X[:, [3, 17, 29]], rtol=1e-5, atol=1e-6)


def test_log_targets_are_their_formulas():
    adata = make_adata(np.random.default_rng(1).poisson(expected_counts()))
    counts = adata.layers["counts"].toarray().astype(float)
    targets = section_targets(adata, ["G2", "ABSENT"])
    normalised = np.log1p(1e4 * counts[:, 2] / counts.sum(1))
    np.testing.assert_allclose(targets["log1p_cp10k"][:, 0], normalised, rtol=1e-6)
    np.testing.assert_allclose(targets["log1p_raw"][:, 0], np.log1p(counts[:, 2]), rtol=1e-6)
    for values in targets.values():
        assert np.ptp(values[:, 1]) < 1e-5  # an absent gene is constant


def test_residuals_do_not_see_depth_and_raw_counts_do():
    """Spots of one composition that differ in depth only: why residuals are the main target."""
    rng = np.random.default_rng(0)
    depths = rng.lognormal(np.log(3000), 0.7, 2000)
    counts = rng.poisson(np.outer(depths, rng.dirichlet(np.ones(40))))
    targets = make_targets(counts, counts.sum(1))
    log_depth = np.log(counts.sum(1))[:, None]
    assert abs(pearson(targets["pearson_residuals"], log_depth).mean()) < 0.02
    assert pearson(targets["log1p_raw"], log_depth).mean() > 0.5


def test_pearson_is_numpys_and_a_constant_earns_nothing():
    a, b = np.random.default_rng(0).standard_normal((2, 40, 5))
    np.testing.assert_allclose(pearson(a, b), columnwise_r(a, b), rtol=1e-12)
    a[:, 2] = 3.0
    assert pearson(a, b)[2] == 0
    assert np.isfinite(pearson(a, b)).all()


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_partial_correlation_is_that_of_regression_residuals(seed):
    from sklearn.linear_model import LinearRegression

    rng = np.random.default_rng(seed)
    covariate = rng.standard_normal((30, 1))
    a, b = rng.standard_normal((2, 30, 3))
    a = a + 2 * covariate
    b = b - covariate

    def residual(y):
        return y - LinearRegression().fit(covariate, y).predict(covariate)

    expected = columnwise_r(residual(a), residual(b))
    np.testing.assert_allclose(partial_pearson(a, b, covariate[:, 0]), expected, atol=1e-10)


def test_neighbours_predict_their_mean():
    adata = make_adata(np.random.default_rng(1).poisson(expected_counts()))
    target = section_targets(adata, ["G1"])["log1p_raw"]
    neighbours = neighbour_mean(adata)[11].indices
    assert len(neighbours) == 8
    predicted = neighbour_prediction(adata, ["G1"])["log1p_raw"]
    assert predicted[11, 0] == pytest.approx(target[neighbours].mean())


@pytest.mark.parametrize("sd", [0.1, 0.2])
def test_ceiling_is_the_r_of_the_expectation_with_the_data(sd):
    """Poisson counts of a known expectation; the estimate may not see the expectation."""
    expected = expected_counts(n=900, sd=sd)
    adata = make_adata(np.random.default_rng(2).poisson(expected))
    genes = list(adata.var_names)
    ceiling = noise_ceiling(adata, genes, np.arange(900))
    perfect = make_targets(expected, expected.sum(1))
    best = score(perfect, section_targets(adata, genes), np.log(depth(adata)))
    for target, r in best.items():
        assert ceiling[target].mean() == pytest.approx(r.mean(), abs=0.03), target
    main = "pearson_residuals"  # log1p CP10k of a gene with few counts follows depth in both halves
    assert np.abs(ceiling[main] - best[main]).max() < 0.1
    assert 0.3 < best[main].mean() < 0.97  # neither trivial nor hopeless


def test_oracle_knows_expression_and_not_depth():
    expected = expected_counts(n=400)
    share = expected / expected.sum(1, keepdims=True)
    counts = np.random.default_rng(0).poisson(expected)
    other_depths = np.random.default_rng(1).permutation(counts.sum(1))
    oracle = oracle_prediction(share, counts.sum(1))
    same = oracle_prediction(share, other_depths)
    for target in TARGETS:
        np.testing.assert_array_equal(oracle[target], same[target])
    measured = make_targets(counts, counts.sum(1))
    assert pearson(oracle["pearson_residuals"], measured["pearson_residuals"]).min() > 0.4
