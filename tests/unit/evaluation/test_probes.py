"""Probes and the ridge from sums, against scikit-learn and references written out by hand."""

import numpy as np
import pytest
from scipy.sparse.linalg import lsqr as scipy_lsqr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from seal_lite.evaluation.probes import ALPHAS, PROBES, hest_probe, tuned_probe
from seal_lite.evaluation.ridge import Ridge, Sums, hest_bench_ridge, lsqr
from seal_lite.evaluation.targets import pearson


def make_data(n=90, d=40, g=7, *, seed=0, noise=1.0):
    """Features (n, d) of unequal scale, targets (n, g) that follow them, and three groups."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * rng.uniform(0.1, 5, d) + 3
    y = (x - 3) @ rng.standard_normal((d, g)) * 0.2 + noise * rng.standard_normal((n, g)) + 2
    return x, y, np.repeat(["a", "b", "c"], n // 3)


def make_embeddings(*, n: int, d: int, g=20, seed=0):
    """Features as networks give them, with a falling spectrum, and log counts that follow them."""
    rng = np.random.default_rng(seed)
    scales = np.arange(1, d + 1) ** -0.7
    x = rng.standard_normal((n, d)) * scales @ rng.standard_normal((d, d))
    weights = rng.standard_normal((d, g)) / d**0.5
    rates = np.exp(1 + (x - x.mean(0)) @ weights / x.std())
    return x + 3, np.log1p(rng.poisson(rates))


def columnwise_r(a, b):
    return np.array([np.corrcoef(a[:, gene], b[:, gene])[0, 1] for gene in range(a.shape[1])])


def upstream(x, y, x_test, *, seed=1):
    """HEST-bench's trainer, in sklearn's and scipy's terms (mahmoodlab/HEST, bench/trainer.py)."""
    scaler, pca = StandardScaler(), PCA(256, random_state=seed)
    components = pca.fit_transform(scaler.fit_transform(x))
    alpha = 100 / (components.shape[1] * y.shape[1])
    ridge = SklearnRidge(alpha=alpha, solver="lsqr", fit_intercept=False, max_iter=1000)
    return ridge.fit(components, y).predict(pca.transform(scaler.transform(x_test)))


@pytest.mark.parametrize("d", [300, 768])  # above 320 sklearn's PCA is a randomised one
def test_the_published_probe_is_reproduced(d):
    n = 2000
    x, y = make_embeddings(n=n + 500, d=d)
    sums = Sums.total([Sums.of(x[:700], y[:700]), Sums.of(x[700:n], y[700:n])])
    predicted = hest_bench_ridge(sums, x[n:])
    reference = upstream(x[:n], y[:n], x[n:])
    reference_r = columnwise_r(reference, y[n:])
    np.testing.assert_allclose(columnwise_r(predicted, y[n:]), reference_r, atol=1e-3)
    intercept = predicted.mean(0) - reference.mean(0)
    np.testing.assert_allclose(intercept, y[:n].mean(0), atol=0.05)


@pytest.mark.parametrize("d", [30, 300])
def test_all_penalties_come_from_one_decomposition(d):
    x, y = make_embeddings(n=200, d=d)
    x[:, 7] = 5.0  # a constant feature
    fitted = Ridge.fit(Sums.of(x, y))
    scaler = StandardScaler().fit(x)
    for alpha in (1e-3, 1.0, 1e4):
        reference = SklearnRidge(alpha=alpha).fit(scaler.transform(x), y)
        expected = reference.predict(scaler.transform(x[:9]))
        np.testing.assert_allclose(fitted.predict(x[:9], alpha=alpha), expected, rtol=1e-5)


@pytest.mark.parametrize("d", [40, 300])
def test_probe_a_is_hest_bench_written_out(d):
    x, y, _ = make_data(d=d)
    x_test, _, _ = make_data(d=d, seed=1)
    scaler = StandardScaler().fit(x)
    k = min(256, len(x), d)
    pca = PCA(k, random_state=0).fit(scaler.transform(x))
    ridge = SklearnRidge(alpha=100 / (k * y.shape[1]), fit_intercept=False, solver="lsqr")
    ridge.fit(pca.transform(scaler.transform(x)), y)
    expected = ridge.predict(pca.transform(scaler.transform(x_test)))
    np.testing.assert_allclose(hest_probe(x, y, x_test), expected, atol=1e-6)
    assert hest_probe(x, y[:, :1], x_test).shape == (90, 1)


def test_all_targets_stop_where_scipy_stops_each():
    """Well conditioned, so that rounding moves no stop; some targets have nothing to fit."""
    rng = np.random.default_rng(0)
    k, g = 30, 40
    spread = np.linspace(5, 1, k)
    projected = rng.standard_normal((k, g)) * rng.uniform(0, 3, g)
    unexplained = rng.uniform(0, 9, g)
    projected[:, :2] = 0
    unexplained[[0, 2]] = 0
    matrix = np.vstack([np.diag(spread), np.zeros(k)])
    expected, steps = [], []
    for target in np.vstack([projected, unexplained]).T:
        solution, _, n_steps, *_ = scipy_lsqr(matrix, target, damp=0.3, atol=1e-4, btol=1e-4)
        expected.append(solution)
        steps.append(n_steps)
    assert len(set(steps)) > 3
    squared_norms = (projected**2).sum(0) + unexplained**2
    weights = lsqr(spread, projected, squared_norms=squared_norms, damp=0.3)
    np.testing.assert_allclose(weights, np.stack(expected, 1), atol=1e-9)


def test_probe_a_moves_by_less_than_an_order_of_rows_moves_the_published_one():
    """What LSQR makes of rounding is no more than what the same rows in another order make."""
    x, y = make_embeddings(n=500, d=112, g=50)
    x, x_test, y, y_test = x[:350], x[350:], y[:350], y[350:]
    scaler, pca = StandardScaler(), PCA(112, random_state=0)
    ridge = SklearnRidge(alpha=100 / (112 * 50), solver="lsqr", fit_intercept=False)
    published = []
    for order in (np.arange(350), np.random.default_rng(1).permutation(350)):
        components = pca.fit_transform(scaler.fit_transform(x[order]))
        ridge.fit(components, y[order])
        predicted = ridge.predict(pca.transform(scaler.transform(x_test)))
        published.append(columnwise_r(predicted, y_test))
    ours = columnwise_r(hest_probe(x, y, x_test), y_test)
    in_order, permuted = published
    assert np.abs(ours - in_order).max() <= 2 * np.abs(permuted - in_order).max()
    assert ours.mean() == pytest.approx(in_order.mean(), abs=5e-4)


def alpha_by_hand(x, y, groups):
    """Leave one group out: the alpha with the best mean r over genes and groups."""
    means = []
    for alpha in ALPHAS:
        scores = []
        for group in np.unique(groups):
            inside, outside = groups != group, groups == group
            scaler = StandardScaler().fit(x[inside])
            ridge = SklearnRidge(alpha=alpha).fit(scaler.transform(x[inside]), y[inside])
            predicted = ridge.predict(scaler.transform(x[outside]))
            scores.append(columnwise_r(predicted, y[outside]))
        means.append(np.mean(scores))
    return ALPHAS[np.argmax(means)]


@pytest.mark.parametrize("noise", [0.1, 5.0])
def test_probe_b_takes_the_alpha_that_is_best_on_held_out_groups(noise):
    x, y, groups = make_data(noise=noise)
    x_test, _, _ = make_data(seed=1)
    scaler = StandardScaler().fit(x)
    ridge = SklearnRidge(alpha=alpha_by_hand(x, y, groups)).fit(scaler.transform(x), y)
    expected = ridge.predict(scaler.transform(x_test))
    np.testing.assert_allclose(tuned_probe(x, y, x_test, groups=groups), expected, atol=1e-6)


def test_probe_b_regularises_weak_signal_more_than_probe_a():
    """300 features of which one carries signal: probe A overfits, probe B must not."""
    rng = np.random.default_rng(0)
    groups = np.repeat(["a", "b", "c"], 40)
    scores = {"hest": [], "tuned_ridge": []}
    for _ in range(5):
        x, x_test = rng.standard_normal((2, 120, 300))
        y, y_test = (0.5 * v[:, :1] + rng.standard_normal((120, 10)) for v in (x, x_test))
        for name, probe in PROBES.items():
            scores[name].append(pearson(probe(x, y, x_test, groups=groups), y_test).mean())
    assert np.mean(scores["tuned_ridge"]) > np.mean(scores["hest"])


def test_probe_b_with_one_group_uses_blocks_of_spots():
    x, y, _ = make_data()
    x_test, _, _ = make_data(seed=1)
    one_group = tuned_probe(x, y, x_test, groups=np.repeat("a", 90))
    blocks = tuned_probe(x, y, x_test, groups=np.repeat(list("abcde"), 18))
    np.testing.assert_allclose(one_group, blocks)


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_sees_test_spots_one_by_one(name):
    """Scaler, PCA and penalty are fitted on training spots: other test spots change nothing."""
    x, y, groups = make_data()
    x_test, _, _ = make_data(seed=1)
    alone = PROBES[name](x, y, x_test[:5], groups=groups)
    far_away = 100 + 50 * x_test
    beside = PROBES[name](x, y, np.concatenate([x_test[:5], far_away]), groups=groups)
    np.testing.assert_allclose(beside[:5], alone, rtol=1e-6)


@pytest.mark.parametrize("name", PROBES)
def test_targets_side_by_side_are_predicted_as_alone(name):
    """Each has its own penalty: one is all signal, the other nearly all noise."""
    x, clear, groups = make_data(noise=0.1)
    _, noisy, _ = make_data(noise=5.0)
    x_test, _, _ = make_data(seed=1)
    options = {"groups": groups}
    both = PROBES[name](x, np.hstack([clear, noisy]), x_test, n_targets=2, **options)
    alone = [PROBES[name](x, y, x_test, **options) for y in (clear, noisy)]
    np.testing.assert_allclose(both, np.hstack(alone), atol=1e-9)
