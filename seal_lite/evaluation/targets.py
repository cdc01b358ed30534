"""What is predicted, and how well anything could predict it.

Sequencing depth follows tissue density, which every image shows. So the main target is the analytic
Pearson residual, and the depth-normalised target is also scored given depth; raw log1p stands
beside them because HEST-bench uses it.
"""

from __future__ import annotations

import numpy as np

from seal_lite.data.genes import columns, depth, select_genes
from seal_lite.data.registration import neighbour_mean

TARGETS = ("pearson_residuals", "log1p_cp10k", "log1p_raw")
PARTIAL = "log1p_cp10k|depth"  # scores of log1p_cp10k as partial correlation given log depth
THETA = 100.0  # negative-binomial overdispersion of UMI counts (Lause et al., 2021)


def target_genes(sections, n: int = 50) -> list[str]:
    """The genes to predict: most variable in the training sections (AnnData), seen in >= 10%."""
    return select_genes(sections, n, min_spots=0.1)


def pearson_residuals(counts, totals, share) -> np.ndarray:
    """Analytic Pearson residuals (Lause et al., 2021, eq. 3), clipped at +-sqrt(n).

    counts (n, g) of some genes, totals (n,) over all genes, share (g,) of each gene in the
    section's counts: mu = totals * share, r = (x - mu) / sqrt(mu + mu^2 / theta).
    """
    mu = np.maximum(np.outer(totals, share), 1e-12)
    bound = np.sqrt(len(totals))
    return np.clip((counts - mu) / np.sqrt(mu + mu**2 / THETA), -bound, bound)


def make_targets(counts, totals) -> dict[str, np.ndarray]:
    """The three targets (n, g) from raw counts (n, g) of some genes and the spots' totals (n,).

    {"pearson_residuals", "log1p_cp10k": log1p of counts per 10,000, "log1p_raw"}. Everything is a
    function of one section's counts: nothing is fitted across sections.
    """
    share = counts.sum(0) / totals.sum()
    return {
        "pearson_residuals": pearson_residuals(counts, totals, share),
        "log1p_cp10k": np.log1p(1e4 * counts / totals[:, None]),
        "log1p_raw": np.log1p(counts),
    }


def section_targets(adata, genes) -> dict[str, np.ndarray]:
    """`make_targets` of a section for genes matched by name (a missing gene is all zero).

    Returns {target: (n, g)} for all n spots of `adata`, also those without a patch.
    """
    counts, _ = columns(adata.layers["counts"], adata.var_names, genes)
    return make_targets(counts.astype(float), depth(adata))


def neighbour_prediction(adata, genes) -> dict[str, np.ndarray]:
    """The mean target of a spot's array neighbours: what space alone predicts.

    Returns {target: (n, g)} for all n spots of `adata`; 0 for a spot without neighbours.
    """
    weights = neighbour_mean(adata)
    return {k: weights @ v for k, v in section_targets(adata, genes).items()}


def oracle_prediction(expected, totals) -> dict[str, np.ndarray]:
    """Targets of the noise-free expectation (n, g), as fractions of a spot's counts.

    Known for the phantom only. Depth is set to its median: an oracle of expression, not of depth.
    totals (n,): the spots' counts. Returns {target: (n, g)}.
    """
    typical = np.full(len(totals), np.median(totals))
    return make_targets(expected * typical[:, None], typical)


def noise_ceiling(adata, genes, rows, *, repeats: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """The r that a perfect predictor of the expectation would reach, per gene, (g,).

    Over the spots `rows`, as the mean of `repeats` splits: {target: r}, targets as in `score`.
    Binomial thinning splits the counts into two independent halves; their correlation is the
    reliability at half depth, Spearman-Brown takes it to full depth, and its square root bounds a
    noise-free prediction's r with the noisy target.
    """
    rng = np.random.default_rng(seed)
    counts, _ = columns(adata.layers["counts"], adata.var_names, genes)
    counts, totals = counts.astype(int), depth(adata).astype(int)
    halves: dict[str, list] = {}
    for _ in range(repeats):
        first, rest = rng.binomial(counts, 0.5), rng.binomial(totals - counts.sum(1), 0.5)
        total = np.maximum(first.sum(1) + rest, 1)
        one = make_targets(first, total)
        two = make_targets(counts - first, np.maximum(totals - total, 1))
        one, two = ({k: v[rows] for k, v in half.items()} for half in (one, two))
        for name, r in score(one, two, np.log(totals[rows])).items():
            halves.setdefault(name, []).append(r)
    mean = {k: np.clip(np.nanmean(v, 0), 0, 1) for k, v in halves.items()}
    return {k: np.sqrt(2 * r / (1 + r)) for k, r in mean.items()}


def pearson(a, b) -> np.ndarray:
    """Column-wise Pearson correlation of (n, g) and (n, g), (g,); 0 where a column is constant.

    A constant prediction earns nothing, so it counts as 0 and is never left out of a mean.
    """
    a, b = a - a.mean(0), b - b.mean(0)
    norm = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.where(norm > 1e-12, (a * b).sum(0) / np.maximum(norm, 1e-12), 0.0)


def partial_pearson(a, b, given) -> np.ndarray:
    """Column-wise correlation of what is left of a and b after regressing out `given` (n,).

    a, b (n, g). Returns (g,).
    """
    design = np.c_[np.ones(len(given)), given]
    fit = design @ np.linalg.pinv(design)
    return pearson(a - fit @ a, b - fit @ b)


def score(predicted: dict, measured: dict, log_depth) -> dict[str, np.ndarray]:
    """Per-gene r of every target, and of `PARTIAL`, for predictions by target name.

    predicted, measured: {target: (n, g)}; log_depth (n,). Returns {target: (g,)}; `PARTIAL`,
    "log1p_cp10k|depth", is that target's r given log depth (`partial_pearson`).
    """
    scores = {t: pearson(predicted[t], measured[t]) for t in predicted}
    scores[PARTIAL] = partial_pearson(predicted["log1p_cp10k"], measured["log1p_cp10k"], log_depth)
    return scores
