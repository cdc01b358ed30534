"""What is predicted, and how well anything could predict it.

Sequencing depth follows tissue density, which every image shows. So the main target is the analytic
Pearson residual, and the depth-normalised target is also scored given depth. Raw log1p stands
beside them because HEST-bench uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from seal_lite.data.genes import columns, depth
from seal_lite.data.registration import neighbour_mean
from seal_lite.data.variable_genes import pearson_residuals, select_genes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from seal_lite.data.section import Section

TARGETS = ("pearson_residuals", "log1p_cp10k", "log1p_raw")
PARTIAL = "log1p_cp10k|depth"  # scores log1p_cp10k by partial correlation given log depth


def target_genes(adatas: Sequence[AnnData], n: int = 50) -> list[str]:
    """Return the ``n`` genes to predict, chosen on the training sections.

    Parameters
    ----------
    adatas
        The training sections.
    n
        How many genes. Fewer come back where fewer are usable.

    Returns
    -------
    list of str
        The most variable genes among those seen in at least 10% of all spots, best first.
    """
    return select_genes(adatas, n, min_spots=0.1)


def make_targets(counts: np.ndarray, totals: np.ndarray) -> dict[str, np.ndarray]:
    """Return the three targets of one section.

    Everything is a function of this section's counts: nothing is fitted across sections.

    Parameters
    ----------
    counts
        Raw counts (n, g) of some genes.
    totals
        Counts (n,) of each spot over all genes.

    Returns
    -------
    dict
        By target, (n, g): "pearson_residuals"; "log1p_cp10k", log1p of counts per 10,000; and
        "log1p_raw", log1p of counts.
    """
    share = counts.sum(0) / totals.sum()
    return {
        "pearson_residuals": pearson_residuals(counts, totals, share),
        "log1p_cp10k": np.log1p(1e4 * counts / totals[:, None]),
        "log1p_raw": np.log1p(counts),
    }


def section_targets(adata: AnnData, genes: Sequence[str]) -> dict[str, np.ndarray]:
    """Return `make_targets` of a section for genes matched by name.

    Parameters
    ----------
    adata
        The section, with n spots.
    genes
        Names of g genes. The counts of a missing gene are zero.

    Returns
    -------
    dict
        By target, (n, g) of all spots, also of those without a patch.
    """
    counts, _ = columns(adata.layers["counts"], adata.var_names, genes)
    return make_targets(counts.astype(float), depth(adata))


def spot_targets(section: Section, genes: Sequence[str]) -> dict[str, np.ndarray]:
    """Return `section_targets` of a section, which keeps those of the last genes asked for.

    An evaluation asks for the same genes again for each of its features, probes and references.
    """
    memory = vars(section)
    kept_genes, targets = memory.get("_spot_targets", (None, {}))
    if kept_genes != tuple(genes):
        targets = section_targets(section.adata, genes)
        memory["_spot_targets"] = (tuple(genes), targets)
    return targets


def patch_targets(section: Section, genes: Sequence[str]) -> dict[str, np.ndarray]:
    """Return `spot_targets` of the spots that have a patch, by target (n patches, g)."""
    return rows_of(spot_targets(section, genes), section.rows)


def rows_of(targets: Mapping[str, np.ndarray], rows: np.ndarray | slice) -> dict[str, np.ndarray]:
    """Return these rows of every target."""
    return {target: values[rows] for target, values in targets.items()}


def stack_targets(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the targets (n_i, g) of several sections stacked, (sum of n_i, g) by target."""
    return {target: np.concatenate([part[target] for part in parts]) for target in parts[0]}


def neighbour_prediction(
    adata: AnnData, genes: Sequence[str], *, targets: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Return the mean target of a spot's array neighbours: what space alone predicts.

    Parameters
    ----------
    adata
        The section, with n spots.
    genes
        Names of g genes.
    targets
        `section_targets` of these genes, where they are known.

    Returns
    -------
    dict
        By target, (n, g) of all spots; 0 for a spot without neighbours.
    """
    weights = neighbour_mean(adata)
    if targets is None:
        targets = section_targets(adata, genes)
    return {target: weights @ values for target, values in targets.items()}


def oracle_prediction(expected: np.ndarray, totals: np.ndarray) -> dict[str, np.ndarray]:
    """Return the targets of the noise-free expectation, which only a phantom has.

    Depth is set to its median: this is an oracle of expression, not of depth.

    Parameters
    ----------
    expected
        Expected shares (n, g) of the genes in a spot's counts.
    totals
        Counts (n,) of each spot over all genes.

    Returns
    -------
    dict
        By target, (n, g).
    """
    typical = np.full(len(totals), np.median(totals))
    return make_targets(expected * typical[:, None], typical)


def noise_ceiling(
    adata: AnnData,
    genes: Sequence[str],
    rows: np.ndarray,
    *,
    repeats: int = 5,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return the correlation that a perfect predictor of the expectation would reach.

    Parameters
    ----------
    adata
        The section.
    genes
        Names of g genes.
    rows
        The spots that count, as indices into ``adata``.
    repeats
        Number of random splits whose reliabilities are averaged.
    seed
        Draws the splits.

    Returns
    -------
    dict
        r (g,) by target, targets as in `score`.

    Notes
    -----
    Binomial thinning splits the counts into two independent halves. Their correlation r is the
    reliability at half depth. 2 r / (1 + r) is the one at full depth (Spearman, 1910; Brown, 1910).
    Its square root bounds the correlation of a noise-free prediction with the noisy target.
    """
    rng = np.random.default_rng(seed)
    float_counts, _ = columns(adata.layers["counts"], adata.var_names, genes)
    counts = float_counts.astype(int)
    totals = depth(adata).astype(int)
    other_counts = totals - counts.sum(1)
    log_depth = np.log(totals[rows])
    splits = []
    for _ in range(repeats):
        first = rng.binomial(counts, 0.5)
        first_totals = np.maximum(first.sum(1) + rng.binomial(other_counts, 0.5), 1)
        second_totals = np.maximum(totals - first_totals, 1)
        first_half = rows_of(make_targets(first, first_totals), rows)
        second_half = rows_of(make_targets(counts - first, second_totals), rows)
        splits.append(score(first_half, second_half, log_depth))
    ceiling = {}
    for target in splits[0]:
        half = np.clip(np.nanmean([split[target] for split in splits], 0), 0, 1)
        ceiling[target] = np.sqrt(2 * half / (1 + half))
    return ceiling


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the column-wise Pearson correlation of two matrices.

    A constant prediction earns nothing, so it counts as 0 and is never left out of a mean.

    Parameters
    ----------
    a, b
        Matrices (n, g).

    Returns
    -------
    np.ndarray
        r (g,); 0 where a column is constant.
    """
    a = a - a.mean(0)
    b = b - b.mean(0)
    norm = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.where(norm > 1e-12, (a * b).sum(0) / np.maximum(norm, 1e-12), 0.0)


def partial_pearson(a: np.ndarray, b: np.ndarray, covariate: np.ndarray) -> np.ndarray:
    """Return the column-wise correlation of the residuals after regressing out a covariate.

    Parameters
    ----------
    a, b
        Matrices (n, g).
    covariate
        What is regressed out of every column, (n,).

    Returns
    -------
    np.ndarray
        Partial r (g,).
    """
    design = np.c_[np.ones(len(covariate)), covariate]
    projection = design @ np.linalg.pinv(design)
    return pearson(a - projection @ a, b - projection @ b)


def score(
    predicted: Mapping[str, np.ndarray],
    measured: Mapping[str, np.ndarray],
    log_depth: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return the correlation of every target, gene by gene.

    Parameters
    ----------
    predicted, measured
        By target, (n, g).
    log_depth
        Logarithm (n,) of the spots' total counts.

    Returns
    -------
    dict
        r (g,) by target, and under `PARTIAL` that of "log1p_cp10k" given log depth
        (`partial_pearson`).
    """
    scores = {target: pearson(predicted[target], measured[target]) for target in predicted}
    scores[PARTIAL] = partial_pearson(predicted["log1p_cp10k"], measured["log1p_cp10k"], log_depth)
    return scores
