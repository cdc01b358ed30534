"""Ridge regression from sums: every fold and target of a data set from one pass over its samples.

A ridge on standardised features needs of its training data only n and the sums of x, y, y^2, x'x
and x'y. These add up over samples. So each sample is read once, a fold's sums are those of its
training samples, and one decomposition of them serves all targets and penalties.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

OVERSAMPLES = 10  # random directions beyond the wanted ones, as in sklearn's `randomized_svd`
TOLERANCE = 1e-4  # at which LSQR stops, as sklearn's ridge has it
MAX_STEPS = 1000


@dataclass(frozen=True)
class Sums:
    """Sums over n samples of d features and g targets.

    Parameters
    ----------
    n
        Number of samples.
    x
        Sum of the features (d,).
    y
        Sum of the targets (g,).
    yy
        Sum of the squared targets (g,).
    xx
        x'x (d, d).
    xy
        x'y (d, g).
    """

    n: int
    x: np.ndarray
    y: np.ndarray
    yy: np.ndarray
    xx: np.ndarray
    xy: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> Sums:
        """Return the sums of features (n, d) and targets (n, g)."""
        x = np.asarray(x, float)
        y = np.asarray(y, float)
        return cls(len(x), x.sum(0), y.sum(0), (y**2).sum(0), x.T @ x, x.T @ y)

    @staticmethod
    def total(parts: Iterable[Sums]) -> Sums:
        """Return the sums over the samples of all parts together."""
        return functools.reduce(operator.add, parts)

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            n=self.n + other.n,
            x=self.x + other.x,
            y=self.y + other.y,
            yy=self.yy + other.yy,
            xx=self.xx + other.xx,
            xy=self.xy + other.xy,
        )


@dataclass(frozen=True)
class Ridge:
    """A ridge regression decomposed along the principal axes of the standardised features.

    One decomposition gives the predictions of every penalty.

    Parameters
    ----------
    mean, scale
        Mean and standard deviation (d,) of the features, as sklearn's StandardScaler has them.
    spread
        Singular values (k,), largest first.
    axes
        Right singular vectors (d, k).
    projected
        The targets along the left singular vectors, (k, g).
    intercept
        Mean of the targets (g,).
    """

    mean: np.ndarray
    scale: np.ndarray
    spread: np.ndarray
    axes: np.ndarray
    projected: np.ndarray
    intercept: np.ndarray

    @classmethod
    def fit(cls, sums: Sums, *, components: int | None = None, seed: int = 0) -> Ridge:
        """Standardise and decompose the features.

        Parameters
        ----------
        sums
            Sums over the training samples.
        components
            Keep this many axes; None keeps all. They are those of sklearn's PCA, which
            approximates them where there are many features.
        seed
            Draws the random start of the approximation, as PCA's ``random_state``.

        Returns
        -------
        Ridge
            The fitted regression.
        """
        mean = sums.x / sums.n
        intercept = sums.y / sums.n
        variance = np.maximum(np.diag(sums.xx) / sums.n - mean**2, 0)
        constant = variance <= 1e-12 * np.maximum(mean**2, 1e-12)
        scale = np.where(constant, 1.0, np.sqrt(variance))  # a constant feature stays 0
        gram = (sums.xx - sums.n * np.outer(mean, mean)) / np.outer(scale, scale)  # (d, d)
        cross = (sums.xy - sums.n * np.outer(mean, intercept)) / scale[:, None]  # (d, g)
        gram[constant] = 0
        gram[:, constant] = 0
        cross[constant] = 0
        if components is not None and _pca_is_randomised(sums.n, len(gram), components):
            spread, axes, projected = _randomised_axes(gram, cross, components, seed)
        else:
            spread, axes, projected = _exact_axes(gram, cross)
        kept = slice(components)
        return cls(mean, scale, spread[kept], axes[:, kept], projected[kept], intercept)

    def predict(self, x: np.ndarray, *, alpha: float | np.ndarray) -> np.ndarray:
        """Return predictions (m, g) for features (m, d) with a penalty, or one of each target."""
        return self.predict_along(self.along_axes(x), alpha=alpha)

    def along_axes(self, x: np.ndarray) -> np.ndarray:
        """Return features (m, d) along the axes, (m, k): what all penalties have in common."""
        return (np.asarray(x) - self.mean) / self.scale @ self.axes

    def predict_along(self, along: np.ndarray, *, alpha: float | np.ndarray) -> np.ndarray:
        """Return the predictions (m, g) of `predict` from what `along_axes` returned."""
        spread = self.spread[:, None]
        return along @ (spread / (spread**2 + alpha) * self.projected) + self.intercept

    def combine(self, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return predictions (m, g) for features (m, d) from weights (k, g) of the axes."""
        coefficients = self.axes @ weights / self.scale[:, None]
        return np.asarray(x) @ coefficients + (self.intercept - self.mean @ coefficients)


def _pca_is_randomised(n: int, d: int, components: int) -> bool:
    """Whether sklearn's PCA (svd_solver="auto") approximates the axes of (n, d) features."""
    few = components < 0.8 * min(n, d)
    by_covariance = d <= 1000 and n >= 10 * d
    return few and n >= d and max(n, d) > 500 and not by_covariance


def _exact_axes(gram: np.ndarray, cross: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular values (d,), right vectors (d, d), and y along the left vectors (d, g)."""
    values, vectors = np.linalg.eigh(gram)
    spread = np.sqrt(np.maximum(values[::-1], 0))
    axes = vectors[:, ::-1]
    return spread, axes, axes.T @ cross / np.maximum(spread, 1e-12)[:, None]


def _randomised_axes(
    gram: np.ndarray, cross: np.ndarray, components: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_exact_axes`, approximately, for the first components + `OVERSAMPLES` axes.

    This is sklearn's `randomized_svd` of x (Halko et al., 2011) from x'x (d, d) and x'y (d, g)
    alone. The same random start and number of power iterations span the same subspace, and the
    singular vectors inside it are the same. So HEST-bench's score is found with its seed.
    """
    start = np.random.RandomState(seed).normal(size=(len(gram), components + OVERSAMPLES))
    iterations = 7 if components < 0.1 * len(gram) else 4
    for _ in range(iterations):
        start, _ = np.linalg.qr(gram @ start)
    values, vectors = np.linalg.eigh(start.T @ gram @ start)
    basis = start @ (vectors / np.sqrt(np.maximum(values, 1e-12)))  # x @ basis is orthonormal
    small = basis.T @ gram
    small_values, small_vectors = np.linalg.eigh(small @ small.T)
    spread = np.sqrt(np.maximum(small_values[::-1], 1e-12))
    left = small_vectors[:, ::-1]
    return spread, small.T @ (left / spread), left.T @ (basis.T @ cross)


def hest_bench_ridge(sums: Sums, x: np.ndarray, *, seed: int = 1) -> np.ndarray:
    """Return the predictions of HEST-bench's probe, with the intercept that it leaves out.

    Parameters
    ----------
    sums
        Sums over the training spots.
    x
        Features (m, d) to predict from.
    seed
        Of the probe's PCA.

    Returns
    -------
    np.ndarray
        Predictions (m, g).

    Notes
    -----
    Jaume et al., 2024: StandardScaler, PCA(256), ridge with alpha = 100 / (components x genes) by
    LSQR (Paige & Saunders, 1982). That penalty is next to nothing. What regularises the probe is
    that LSQR stops at a tolerance of 1e-4, so the tolerance is kept.

    LSQR's steps and its rule to stop do not see a rotation, so it runs on the axes (`lsqr`).
    """
    k = min(256, sums.n - 1, len(sums.x))
    fitted = Ridge.fit(sums, components=k, seed=seed)
    damp = np.sqrt(100 / (k * len(sums.y)))
    weights = lsqr(fitted.spread, fitted.projected, squared_norms=sums.yy, damp=damp)
    return fitted.combine(x, weights)


def lsqr(
    spread: np.ndarray, projected: np.ndarray, *, squared_norms: np.ndarray, damp: float
) -> np.ndarray:
    """Return the weights of the axes at which LSQR stops, all targets at once.

    Each target stops by itself, as in `scipy.sparse.linalg.lsqr` with ``atol = btol = 1e-4``.

    Parameters
    ----------
    spread
        Singular values (k,) of the features.
    projected
        The targets along the left singular vectors, (k, g).
    squared_norms
        The targets' squared lengths (g,), with what no axis explains.
    damp
        Square root of the ridge's penalty.

    Returns
    -------
    np.ndarray
        Weights (k, g).

    Notes
    -----
    Paige & Saunders, 1982. On the axes, the features are the diagonal matrix of ``spread``, and all
    that no axis explains is one more row, of zeros. So a step costs k numbers a target where it
    would cost n k, and needs no loop over targets.

    Rounding may move a stop by a step, as it does upstream when training rows change places. A
    gene's r then differs by 0.001 on thousands of spots, and by up to 0.01 on hundreds; the mean
    over 50 genes by 0.0001.
    """
    unexplained = np.sqrt(np.maximum(squared_norms - (projected**2).sum(0), 0))
    left, beta = _unit(np.vstack([projected, unexplained]))  # (k + 1, g), (g,)
    right, alpha = _unit(spread[:, None] * left[:-1])  # (k, g), (g,)
    direction = right
    x = np.zeros_like(projected)
    weights = np.zeros_like(projected)
    target_norm = beta
    rho_bar, phi_bar = alpha, beta
    norm_squared = np.zeros_like(beta)  # of the features, as LSQR estimates it
    damped_residual = np.zeros_like(beta)
    running = alpha * beta > 0
    for _ in range(MAX_STEPS):
        if not running.any():
            break
        # The next pair of vectors of the bidiagonalisation.
        norm_squared = norm_squared + alpha**2 + damp**2
        along_left = np.vstack([spread[:, None] * right, np.zeros_like(beta)])
        left, beta = _unit(along_left - alpha * left)
        norm_squared = norm_squared + beta**2
        right, alpha = _unit(spread[:, None] * left[:-1] - beta * right)
        # Two rotations: the first removes the penalty, the second the subdiagonal.
        rho_damped = np.hypot(rho_bar, damp)
        damped_residual = damped_residual + (damp / rho_damped * phi_bar) ** 2
        phi_bar = rho_bar / rho_damped * phi_bar
        rho = np.hypot(rho_damped, beta)
        cosine, sine = rho_damped / rho, beta / rho
        phi = cosine * phi_bar
        x = x + phi / rho * direction
        direction = right - sine * alpha / rho * direction
        rho_bar, phi_bar = -cosine * alpha, sine * phi_bar
        # Each target stops where the residual, or its gradient, is small.
        residual = np.sqrt(phi_bar**2 + damped_residual)
        gradient = alpha * np.abs(sine * phi)
        norm = np.sqrt(norm_squared)
        weights[:, running] = x[:, running]
        small_residual = residual <= TOLERANCE * (target_norm + norm * np.linalg.norm(x, axis=0))
        small_gradient = gradient <= TOLERANCE * norm * residual
        running = running & ~small_residual & ~small_gradient
    return weights


def _unit(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors (k, g) scaled to length 1, and their lengths (g,); 0 stays 0."""
    norms = np.linalg.norm(vectors, axis=0)
    return vectors / np.where(norms > 0, norms, 1), norms
