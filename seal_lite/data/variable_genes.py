"""Which genes vary most among those that all training sections have.

Counts are read a block of spots at a time. So the memory is that of the counts themselves, whatever
the number of spots and genes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from seal_lite.data.readers.gene_names import are_genes, gene_keys, spelled
from seal_lite.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

MIN_COUNTS_OF_GENE = 3  # a gene with fewer in all sections is no candidate for the panel
THETA = 100.0  # negative-binomial overdispersion of UMI counts (Lause et al., 2021)
MEAN_BINS = 20  # of seurat's flavour: genes of a similar mean are compared
VALUES_AT_ONCE = 2**20  # of a dense block of spots


def select_genes(
    adatas: Iterable[AnnData],
    n: int,
    *,
    flavor: str = "pearson_residuals",
    min_spots: float = 0.0,
) -> list[str]:
    """Return the ``n`` most variable genes of training sections, best first.

    Only genes that all sections have, with at least three counts in all, are considered; control
    probes are not. They are spelled as in the first section. Fewer than ``n`` genes come back where
    there are fewer.

    Parameters
    ----------
    adatas
        Training sections. ``layers["counts"]`` holds raw counts.
    n
        How many genes to select.
    flavor
        "pearson_residuals", or "seurat" as in released SEAL. The latter ranks log-normalised
        expression; at the depth of a spot it prefers rare, noisy genes.
    min_spots
        Share of all spots, 0 to 1, in which a gene must have a count.

    Raises
    ------
    InputError
        Where the sections share no such gene.

    Notes
    -----
    Variance of analytic Pearson residuals: Lause, Berens & Kobak, Genome Biology 2021. Both
    flavours choose as `highly_variable_genes` of scanpy does with a section as a batch. Genes that
    are variable in most sections come first, and their mean score breaks ties.
    """
    adatas = list(adatas)
    names, columns = _usable_genes(adatas, min_spots=min_spots)
    n = min(n, len(names))
    bound = np.sqrt(adatas[0].n_obs)  # scanpy clips all sections at the first one's
    scores = np.empty((len(adatas), len(names)))
    is_variable = np.zeros(scores.shape, bool)
    for i, adata in enumerate(adatas):
        counts = adata.layers["counts"]
        if flavor == "seurat":
            scores[i], is_variable[i] = _normalised_dispersions(counts, columns[i], n)
        else:
            scores[i] = _residual_variances(counts, columns[i], bound=bound)
            is_variable[i, np.argsort(-scores[i], kind="stable")[:n]] = True
    table = pd.DataFrame({"score": pd.DataFrame(scores).mean(), "sections": is_variable.sum(0)})
    ranked = table.sort_values(["sections", "score"], ascending=False, kind="stable").index
    return [names[i] for i in ranked[:n]]


def pearson_residuals(
    counts: np.ndarray, totals: np.ndarray, share: np.ndarray, *, bound: float | None = None
) -> np.ndarray:
    """Return analytic Pearson residuals, clipped at +-``bound``.

    Parameters
    ----------
    counts
        Raw counts (n, g) of some genes.
    totals
        Counts (n,) of each spot over all genes.
    share
        The share (g,) of each gene in the section's counts.
    bound
        The largest absolute residual; sqrt(n) by default.

    Returns
    -------
    np.ndarray
        Residuals (n, g).

    Notes
    -----
    Lause et al., 2021, equation 3: with mu = totals * share, the residual is
    (counts - mu) / sqrt(mu + mu^2 / theta).
    """
    mu = np.maximum(np.outer(totals, share), 1e-12)
    if bound is None:
        bound = np.sqrt(len(totals))
    return np.clip((counts - mu) / np.sqrt(mu + mu**2 / THETA), -bound, bound)


def blocks(length: int, width: int) -> Iterator[slice]:
    """Yield slices of ``length`` rows of ``width`` values, so few that they may be dense."""
    size = max(1, VALUES_AT_ONCE // max(width, 1))
    for start in range(0, length, size):
        yield slice(start, start + size)


def _usable_genes(
    adatas: Sequence[AnnData], *, min_spots: float
) -> tuple[list[str], list[np.ndarray]]:
    """Return the names (g,) of the genes that may enter a panel, and their columns by section.

    Raises `InputError` where no gene is left.
    """
    keys_of_section = [gene_keys(adata.var_names) for adata in adatas]
    common = reduce(lambda kept, keys: kept.intersection(keys, sort=False), keys_of_section)
    columns = [keys.get_indexer(common) for keys in keys_of_section]
    total = np.zeros(len(common))
    n_spots = np.zeros(len(common))
    for adata, places in zip(adatas, columns, strict=True):
        counts = adata.layers["counts"]
        for rows in blocks(*counts.shape):
            block = counts[rows]
            genes = block.indices
            sums = np.bincount(genes, weights=block.data, minlength=counts.shape[1])
            spots = np.bincount(genes, weights=block.data > 0, minlength=counts.shape[1])
            total += sums[places]
            n_spots += spots[places]
    names = pd.Index(list(spelled(common, adatas[0].var_names).values()))
    share_of_spots = n_spots / sum(adata.n_obs for adata in adatas)
    is_usable = are_genes(names) & (total >= MIN_COUNTS_OF_GENE) & (share_of_spots >= min_spots)
    if not is_usable.any():
        raise InputError("gene panel: the sections share no usable gene; check their names")
    return list(names[is_usable]), [places[is_usable] for places in columns]


def _dense_blocks(counts: sp.csr_matrix, columns: np.ndarray) -> Iterator[np.ndarray]:
    """Yield counts (b, g) float64 of some genes, a block of spots at a time."""
    for rows in blocks(*counts.shape):
        yield counts[rows].astype(np.float64).toarray()[:, columns]


def _residual_variances(counts: sp.csr_matrix, columns: np.ndarray, *, bound: float) -> np.ndarray:
    """Return the variance (g,) of the Pearson residuals of each gene in a section."""
    of_genes = sum(block.sum(0) for block in _dense_blocks(counts, columns))
    share = of_genes / of_genes.sum()
    sums, squares = np.zeros((2, len(columns)))
    for block in _dense_blocks(counts, columns):
        residuals = pearson_residuals(block, block.sum(1), share, bound=bound)
        sums += residuals.sum(0)
        squares += np.einsum("ij,ij->j", residuals, residuals)
    variance = squares / counts.shape[0] - (sums / counts.shape[0]) ** 2
    return np.where(of_genes > 0, variance, 0.0)


def _normalised_dispersions(
    counts: sp.csr_matrix, columns: np.ndarray, n_top: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return seurat's score (g,) of each gene in a section, and which are among the best.

    The score is the logarithm of variance / mean of the counts per 10,000, standardised among
    genes of a similar mean.
    """
    n = counts.shape[0]
    sums, squares = np.zeros((2, len(columns)))
    for block in _dense_blocks(counts, columns):
        scaled = block * (1e4 / np.maximum(block.sum(1, keepdims=True), 1e-12))
        sums += scaled.sum(0)
        squares += np.einsum("ij,ij->j", scaled, scaled)
    is_expressed = sums > 0
    mean = sums[is_expressed] / n
    variance = (squares[is_expressed] - n * mean**2) / max(n - 1, 1)
    with np.errstate(divide="ignore"):
        dispersion = pd.Series(np.log(variance.clip(0) / mean)).replace(-np.inf, np.nan)
    of_bin = dispersion.groupby(pd.cut(pd.Series(np.log1p(mean)), MEAN_BINS), observed=True)
    centre = of_bin.transform("mean")
    spread = of_bin.transform("std")
    is_alone = spread.isna()  # in its bin: its score is 1
    score = (dispersion - centre.where(~is_alone, 0)) / spread.where(~is_alone, centre)
    best = score.dropna().nlargest(n_top)
    scores = np.zeros(len(columns))
    scores[is_expressed] = score
    is_top = np.zeros(len(columns), bool)
    is_top[is_expressed] = score >= best.min()
    return scores, is_top
