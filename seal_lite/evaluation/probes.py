"""Linear probes on frozen embeddings: one as HEST-bench has it, one properly regularised."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from seal_lite.evaluation.ridge import Ridge, Sums, lsqr
from seal_lite.evaluation.targets import pearson

ALPHAS = 10.0 ** np.arange(-2, 6.01, 0.5)  # penalties among which probe B chooses, (17,)
BLOCKS = 5  # stand in for groups where the training data have one group only


class Probe(Protocol):
    """Fits on training features and predicts the targets of test features.

    Several targets of equally many genes may stand side by side in ``train_y``: what depends on the
    features alone is then done once.
    """

    def __call__(
        self,
        train_x: np.ndarray,
        train_y: np.ndarray,
        test_x: np.ndarray,
        *,
        groups: np.ndarray,
        seed: int = 0,
        n_targets: int = 1,
    ) -> np.ndarray:
        """Return predictions (m, g)."""


def hest_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
    n_targets: int = 1,
) -> np.ndarray:
    """Return the predictions of probe A, HEST-bench's.

    With few spots it is badly under-regularised and flatters features with few directions.

    Parameters
    ----------
    train_x, train_y
        Features (n, d) and targets (n, g) of the training spots.
    test_x
        Features (m, d) to predict from.
    groups
        Not used. It is here because `tuned_probe` takes it.
    seed
        Of the PCA.
    n_targets
        How many targets stand side by side in ``train_y``.

    Returns
    -------
    np.ndarray
        Predictions (m, g).

    Notes
    -----
    Jaume et al., 2024: StandardScaler, PCA(256), ridge with alpha = 100 / (components x genes),
    LSQR, no intercept (the correlation does not see it). Where rounding moves LSQR's stop, see
    `ridge.lsqr`.
    """
    components = min(256, *train_x.shape)
    alpha = 100 * n_targets / (components * train_y.shape[1])
    reduce = make_pipeline(StandardScaler(), PCA(components, random_state=seed))
    reduced = reduce.fit_transform(train_x)  # (n, components)
    spread = np.linalg.norm(reduced, axis=0)
    projected = reduced.T @ train_y / np.maximum(spread, 1e-12)[:, None]
    squared_norms = (train_y**2).sum(0)
    weights = lsqr(spread, projected, squared_norms=squared_norms, damp=np.sqrt(alpha))
    return reduce.transform(test_x) @ weights


def tuned_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    *,
    groups: np.ndarray,
    seed: int = 0,
    n_targets: int = 1,
) -> np.ndarray:
    """Return the predictions of probe B: a ridge whose penalty is chosen inside training.

    StandardScaler, then a ridge with the alpha of `ALPHAS` that has the best `inner_scores`; each
    target has its own.

    Parameters
    ----------
    train_x, train_y
        Features (n, d) and targets (n, g) of the training spots.
    test_x
        Features (m, d) to predict from.
    groups
        The group (n,) of each training spot; a group is left out as a whole.
    seed
        Not used. It is here because `hest_probe` takes it.
    n_targets
        How many targets stand side by side in ``train_y``.

    Returns
    -------
    np.ndarray
        Predictions (m, g).
    """
    r = inner_correlations(train_x, train_y, groups)  # (17, g)
    r_of_target = r.reshape(len(ALPHAS), n_targets, -1).mean(2)
    best = ALPHAS[r_of_target.argmax(0)]
    alpha = np.repeat(best, train_y.shape[1] // n_targets)
    return Ridge.fit(Sums.of(train_x, train_y)).predict(test_x, alpha=alpha)


def inner_scores(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the mean over genes of `inner_correlations`, (17,), one for each of `ALPHAS`."""
    return inner_correlations(x, y, groups).mean(1)


def inner_correlations(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the r of each gene under each penalty, leaving one training group out at a time.

    With a single group, `BLOCKS` contiguous blocks of spots stand in for groups.

    Parameters
    ----------
    x, y
        Features (n, d) and targets (n, g) of the training spots.
    groups
        The group (n,) of each spot.

    Returns
    -------
    np.ndarray
        Mean r over groups, (17, g), one row for each of `ALPHAS`.
    """
    names = np.unique(groups)
    if len(names) > 1:
        parts = [np.flatnonzero(groups == name) for name in names]
    else:
        parts = np.array_split(np.arange(len(x)), BLOCKS)
    sums = [Sums.of(x[rows], y[rows]) for rows in parts]
    r = np.zeros((len(ALPHAS), y.shape[1]))
    for i, rows in enumerate(parts):
        others = Sums.total(sums[:i] + sums[i + 1 :])
        fitted = Ridge.fit(others)
        along = fitted.along_axes(x[rows])
        for row, alpha in zip(r, ALPHAS, strict=True):
            row += pearson(fitted.predict_along(along, alpha=alpha), y[rows]) / len(parts)
    return r


PROBES: dict[str, Probe] = {"hest": hest_probe, "tuned_ridge": tuned_probe}
