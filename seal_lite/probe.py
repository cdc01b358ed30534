"""Linear probes on frozen embeddings: one as HEST-bench does it, one properly regularised."""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .targets import pearson

ALPHAS = 10.0 ** np.arange(-2, 6.01, 0.5)


def hest_probe(x, y, groups, x_test, *, seed: int = 0):
    """Probe A, HEST-bench's (Jaume et al., 2024): StandardScaler, PCA(256), ridge with alpha =
    100 / (components x genes), lsqr, no intercept (Pearson does not see it).

    With few spots this is badly under-regularised and flatters features with few directions.
    x (n, d), y (n, g), x_test (m, d) -> predictions (m, g). `groups` is not used.
    """
    components = min(256, *x.shape)
    alpha = 100 / (components * y.shape[1])
    ridge = Ridge(alpha=alpha, fit_intercept=False, solver="lsqr")
    model = make_pipeline(StandardScaler(), PCA(components, random_state=seed), ridge)
    return model.fit(x, y).predict(x_test).reshape(len(x_test), -1)


def tuned_probe(x, y, groups, x_test, *, seed: int = 0):
    """Probe B: StandardScaler, ridge with alpha chosen by leave-one-group-out inside training.

    The alpha with the best mean r over genes wins. Shapes as in `hest_probe`.
    """
    best = ALPHAS[inner_scores(x, y, groups).argmax()]
    return next(ridge_path(x, y, x_test, alphas=[best]))


def inner_scores(x, y, groups) -> np.ndarray:
    """Mean r over genes for each of `ALPHAS`, leaving one group of the training data out at a time.

    With a single group, five contiguous blocks of spots stand in for groups. Shapes as in
    `hest_probe`.
    """
    n_groups = len(np.unique(groups))
    folds = GroupKFold(n_groups).split(x, y, groups) if n_groups > 1 else KFold(5).split(x)
    return np.mean(
        [
            [pearson(p, y[valid]).mean() for p in ridge_path(x[train], y[train], x[valid])]
            for train, valid in folds
        ],
        axis=0,
    )


def ridge_path(x, y, x_test, *, alphas=ALPHAS):
    """Yield standardised-ridge predictions (m, g) with an intercept for each alpha.

    One eigendecomposition serves all alphas.
    """
    scaler = StandardScaler().fit(x)
    x, x_test, mean = scaler.transform(x), scaler.transform(x_test), y.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x)
    projected, onto = vectors.T @ (x.T @ (y - mean)), x_test @ vectors
    for alpha in alphas:
        yield onto @ (projected / (np.maximum(values, 0) + alpha)[:, None]) + mean


PROBES = {"hest": hest_probe, "tuned_ridge": tuned_probe}
