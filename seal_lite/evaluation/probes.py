"""Linear probes on frozen embeddings: one as HEST-bench does it, one properly regularised."""

from __future__ import annotations

import numpy as np
from sklearn import linear_model
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from seal_lite.evaluation.ridge import Ridge, Sums
from seal_lite.evaluation.targets import pearson

ALPHAS = 10.0 ** np.arange(-2, 6.01, 0.5)


def hest_probe(x, y, groups, x_test, *, seed: int = 0):
    """Probe A, HEST-bench's (Jaume et al., 2024): StandardScaler, PCA(256), ridge with alpha =
    100 / (components x genes), lsqr, no intercept (Pearson does not see it).

    With few spots this is badly under-regularised and flatters features with few directions.
    x (n, d), y (n, g), x_test (m, d) -> predictions (m, g). `groups` is not used.
    """
    components = min(256, *x.shape)
    alpha = 100 / (components * y.shape[1])
    ridge = linear_model.Ridge(alpha=alpha, fit_intercept=False, solver="lsqr")
    model = make_pipeline(StandardScaler(), PCA(components, random_state=seed), ridge)
    return model.fit(x, y).predict(x_test).reshape(len(x_test), -1)


def tuned_probe(x, y, groups, x_test, *, seed: int = 0):
    """Probe B: StandardScaler, ridge with alpha chosen by leave-one-group-out inside training.

    The alpha of `ALPHAS` with the best of `inner_scores` wins. `groups` (n,) names the group of
    each row. Shapes as in `hest_probe`.
    """
    best = ALPHAS[inner_scores(x, y, groups).argmax()]
    return Ridge.fit(Sums.of(x, y)).predict(x_test, alpha=best)


def inner_scores(x, y, groups) -> np.ndarray:
    """Mean r over genes for each of `ALPHAS`, leaving one group of the training data out at a time.

    With a single group, five contiguous blocks of spots stand in for groups. Returns (17,), one for
    each alpha from 1e-2 to 1e6. Shapes as in `tuned_probe`.
    """
    if len(names := np.unique(groups)) > 1:
        parts = [np.flatnonzero(groups == name) for name in names]
    else:
        parts = np.array_split(np.arange(len(x)), 5)
    sums = [Sums.of(x[part], y[part]) for part in parts]
    found = []
    for i, part in enumerate(parts):
        fitted = Ridge.fit(sum(sums[:i] + sums[i + 1 :]))
        predicted = (fitted.predict(x[part], alpha=alpha) for alpha in ALPHAS)
        found.append([pearson(p, y[part]).mean() for p in predicted])
    return np.mean(found, axis=0)


PROBES = {"hest": hest_probe, "tuned_ridge": tuned_probe}
