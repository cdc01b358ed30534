"""Ridge regression from sums: every fold and target of a data set from one pass over its samples.

A ridge on standardised features needs of its training data only n and the sums of x, y, y^2, x'x
and x'y. These add up over samples. So each sample is read once, a fold's sums are those of its
training samples, and one decomposition of them serves all targets and penalties.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse.linalg import LinearOperator, lsqr


@dataclass(frozen=True)
class Sums:
    """n, sum of x (d,), of y (g,), of y^2 (g,), x'x (d, d), x'y (d, g) over some samples."""

    n: int
    x: np.ndarray
    y: np.ndarray
    yy: np.ndarray
    xx: np.ndarray
    xy: np.ndarray

    @classmethod
    def of(cls, x, y) -> Sums:
        """The sums of features (n, d) and targets (n, g)."""
        x, y = np.asarray(x, float), np.asarray(y, float)
        return cls(len(x), x.sum(0), y.sum(0), (y**2).sum(0), x.T @ x, x.T @ y)

    def __add__(self, other: Sums) -> Sums:
        both = zip(vars(self).values(), vars(other).values(), strict=True)
        return Sums(*(a + b for a, b in both))

    def __radd__(self, zero) -> Sums:
        """`sum(parts)` starts from 0."""
        return self


@dataclass(frozen=True)
class Ridge:
    """The decomposition that answers for every penalty: principal axes of standardised features.

    mean, scale (d,): as StandardScaler has them. spread (k,), axes (d, k): singular values and
    directions, largest first. seen (k, g): the targets along the left singular vectors. target
    (g,): the intercept.
    """

    mean: np.ndarray
    scale: np.ndarray
    spread: np.ndarray
    axes: np.ndarray
    seen: np.ndarray
    target: np.ndarray

    @classmethod
    def fit(cls, sums: Sums, *, components: int | None = None, seed: int = 0) -> Ridge:
        """Standardise and decompose: all axes, or the `components` that sklearn's PCA gives with
        this seed, which for many features are approximate (see `_randomised`)."""
        mean, target = sums.x / sums.n, sums.y / sums.n
        variance = np.maximum(np.diag(sums.xx) / sums.n - mean**2, 0)
        constant = variance <= 1e-12 * np.maximum(mean**2, 1e-12)
        scale = np.where(constant, 1.0, np.sqrt(variance))  # a constant feature stays 0
        gram = (sums.xx - sums.n * np.outer(mean, mean)) / np.outer(scale, scale)
        cross = (sums.xy - sums.n * np.outer(mean, target)) / scale[:, None]
        gram[constant], gram[:, constant], cross[constant] = 0, 0, 0
        n, d = sums.n, len(gram)
        few = components is not None and components < 0.8 * min(n, d)
        if few and n >= d and max(n, d) > 500 and not (d <= 1000 and n >= 10 * d):
            found = _randomised(gram, cross, components, seed)
        else:
            values, axes = np.linalg.eigh(gram)
            spread, axes = np.sqrt(np.maximum(values[::-1], 0)), axes[:, ::-1]
            found = spread, axes, axes.T @ cross / np.maximum(spread, 1e-12)[:, None]
        k = slice(components)
        return cls(mean, scale, found[0][k], found[1][:, k], found[2][k], target)

    def predict(self, x, *, alpha: float) -> np.ndarray:
        """Predictions (m, g) for features (m, d) with penalty `alpha`."""
        return self.combine(x, (self.spread / (self.spread**2 + alpha))[:, None] * self.seen)

    def combine(self, x, weights) -> np.ndarray:
        """Predictions (m, g) for features (m, d) from weights (k, g) of the axes."""
        weights = self.axes @ weights / self.scale[:, None]
        return np.asarray(x) @ weights + (self.target - self.mean @ weights)


def _randomised(gram, cross, components: int, seed: int):
    """sklearn's `randomized_svd` of x (Halko et al., 2011) from x'x (d, d) and x'y (d, g) alone.

    The same random start and number of power iterations span the same subspace, and the singular
    vectors inside it are the same, so HEST-bench's number is found with its seed. Returns singular
    values (k,), right vectors (d, k), and y along the left ones (k, g).
    """
    start = np.random.RandomState(seed).normal(size=(len(gram), components + 10))
    for _ in range(7 if components < 0.1 * len(gram) else 4):
        start, _ = np.linalg.qr(gram @ start)
    values, vectors = np.linalg.eigh(start.T @ gram @ start)
    basis = start @ (vectors / np.sqrt(np.maximum(values, 1e-12)))  # x @ basis is orthonormal
    small = basis.T @ gram  # its singular values from its own square: gram is one already
    values, left = (v[..., ::-1] for v in np.linalg.eigh(small @ small.T))
    spread = np.sqrt(np.maximum(values, 1e-12))
    return spread, small.T @ (left / spread), left.T @ (basis.T @ cross)


def hest_bench_ridge(sums: Sums, x, *, seed: int = 1) -> np.ndarray:
    """Predictions (m, g) of HEST-bench's probe (Jaume et al., 2024), with the intercept that it
    leaves out: StandardScaler, PCA(256), ridge with alpha = 100 / (components x genes) by LSQR.

    Its penalty is next to nothing; what regularises it is that LSQR stops at a tolerance of 1e-4.
    So that is kept. LSQR's steps and its rule to stop do not see a rotation, so it runs on the
    axes, with all that no axis explains as one more row: for 256 numbers a gene, not n. Rounding
    may move the stop by a step, as it does upstream when training rows change places; a gene's r
    then differs by 0.001 on thousands of spots, and by up to 0.005 on hundreds. sums: `Sums` of the
    training spots. x (m, d): features to predict from.
    """
    k = min(256, sums.n - 1, len(sums.x))
    fitted = Ridge.fit(sums, components=k, seed=seed)
    unseen = np.sqrt(np.maximum(sums.yy - (fitted.seen**2).sum(0), 0))
    system = LinearOperator(
        (k + 1, k),
        lambda w: np.append(fitted.spread * w.ravel(), 0),
        lambda b: fitted.spread * b.ravel()[:k],
    )
    damp = np.sqrt(100 / (k * len(sums.y)))
    options = {"damp": damp, "atol": 1e-4, "btol": 1e-4, "iter_lim": 1000}
    weights = [lsqr(system, b, **options)[0] for b in np.vstack([fitted.seen, unseen]).T]
    return fitted.combine(x, np.stack(weights, 1))
