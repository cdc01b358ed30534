"""Which genes, in which order, on which scale: fitted on training sections, stored by name."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

from .config import Config
from .errors import InputError, reading
from .files import RUN, read_json, write_atomic

log = logging.getLogger(__name__)

# Neighbours lie within so many times the usual distance. That takes in a square array's diagonal
# (1.41), and not a hexagon's second ring (1.73). (Visium counts every second column, so a radius of
# sqrt(2) in array units finds 4 of 6 neighbours: a fault of the released SEAL code.)
REACH = 1.5
NOT_GENES = ("BLANK", "NEGCONTROL", "ANTISENSE", "UNASSIGNED", "DEPRECATED", "AMBIGUOUS")


def neighbour_mean(adata) -> sp.csr_matrix:
    """Row-normalised (n, n) matrix W: `W @ x` is the mean of each spot's array neighbours.

    8 neighbours on a square array, 6 on a hexagonal one (`adata.uns["grid"]`), fewer at the
    tissue's edge; the row of a lonely spot is empty. On a "free" grid, without array coordinates,
    they are the spots within `REACH` of the usual distance to the nearest.
    """
    if (grid := adata.uns["grid"]) == "free":
        at = np.asarray(adata.obsm["spatial"])
        step = np.median(cKDTree(at).query(at, k=2)[0][:, 1])
    else:  # hexagonal: two columns, or a row of sqrt(3) columns and one column
        step = 2 if grid == "hex" else 1
        at = adata.obs[["array_col", "array_row"]].to_numpy(int) * [1, 3**0.5 if step == 2 else 1]
    rows, cols = cKDTree(at).query_pairs(REACH * step, output_type="ndarray").T
    rows, cols = np.r_[rows, cols], np.r_[cols, rows]
    degree = np.bincount(rows, minlength=adata.n_obs)
    return sp.csr_matrix((1.0 / degree[rows], (rows, cols)), shape=(adata.n_obs, adata.n_obs))


def smooth(adata, *, share: float) -> sp.csr_matrix:
    """x' = (1 - share) x + share mean(neighbours), on counts; a lonely spot keeps its own counts.

    Returns (n, genes) float64, sparse. Released SEAL: share 0.5, before normalisation.
    """
    counts = adata.layers["counts"].astype(np.float64)
    if share == 0:
        return counts
    weights = neighbour_mean(adata)
    lonely = sp.diags((np.diff(weights.indptr) == 0).astype(float))
    return ((1 - share) * counts + share * (weights @ counts + lonely @ counts)).tocsr()


def log_normalise(counts, *, total: float = 1e4):
    """log1p of counts scaled to `total` a spot over all of the section's genes; stays sparse.

    counts (n, g), dense or sparse. Returns (n, g) float64.
    """
    counts = sp.csr_matrix(counts, dtype=np.float64)
    depth = np.asarray(counts.sum(1)).ravel()
    return (sp.diags(total / np.maximum(depth, 1e-12)) @ counts).log1p().tocsr()


def columns(matrix, names, wanted) -> tuple[np.ndarray, np.ndarray]:
    """Dense columns of `matrix` for the `wanted` names, by name; zeros where absent.

    Returns values (n, len(wanted)) float32 and present (len(wanted),) bool.
    """
    place = {g: i for i, g in enumerate(names)}
    at = np.array([place.get(g, -1) for g in wanted], int)
    out = np.zeros((matrix.shape[0], len(at)), np.float32)
    out[:, at >= 0] = sp.csc_matrix(matrix)[:, at[at >= 0]].toarray()
    return out, at >= 0


def select_genes(sections, n: int, *, flavor="pearson_residuals", min_spots=0.0) -> list[str]:
    """The `n` most variable genes of the given (training) sections (AnnData), best first.

    scanpy's highly variable genes with one batch per section, by the variance of analytic Pearson
    residuals (Lause et al., 2021) or, as released SEAL does, `flavor="seurat"` on log-normalised
    data, which at spot depth prefers rare, noisy genes. Only genes common to all sections, seen at
    least three times, and in at least the share `min_spots` of all spots are considered, no control
    probes. Fewer come back where there are fewer; without any, an `InputError` is raised.
    """
    import anndata as ad
    import scanpy as sc

    plain = [ad.AnnData(s.layers["counts"], obs=s.obs[[]], var=s.var[[]]) for s in sections]
    joined = ad.concat(plain, join="inner", label="batch", index_unique="/")
    seen = np.asarray((joined.X > 0).mean(0)).ravel()
    real = ~joined.var_names.str.startswith(NOT_GENES)
    keep = real & (np.asarray(joined.X.sum(0)).ravel() >= 3) & (seen >= min_spots)
    joined = joined[:, keep].copy()
    if not joined.n_vars:
        raise InputError("gene panel: the sections share no usable gene; check their names")
    options = {"n_top_genes": min(n, joined.n_vars), "batch_key": "batch"}
    if flavor == "seurat":
        joined.X = log_normalise(joined.X)
        sc.pp.highly_variable_genes(joined, flavor="seurat", **options)
        rank = joined.var["dispersions_norm"]
    else:
        sc.experimental.pp.highly_variable_genes(joined, flavor="pearson_residuals", **options)
        rank = joined.var["residual_variances"]
    order = rank.sort_values(ascending=False, kind="stable").index
    batches = joined.var["highly_variable_nbatches"]  # chosen in most sections first
    return list(batches[order].sort_values(ascending=False, kind="stable").index[:n])


@dataclass(frozen=True)
class GenePanel:
    """An ordered gene vocabulary with its training mean and standard deviation.

    Expression is neighbourhood-smoothed, scaled to 1e4 counts a spot, log1p, then z-scored with
    either the training or the section's own statistics and clipped.

    genes: names (g,), in order. mean, std (g,): of log1p expression over the training spots. share:
    of the neighbours' mean (`smooth`). zscore: "section" or "train", whose statistics. clip: the
    largest |z|. max_missing: the share of `genes` that a section may lack.
    """

    genes: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    share: float
    zscore: str
    clip: float
    max_missing: float = 0.2

    @classmethod
    def fit(cls, sections, *, n_genes=Config.n_genes, include=(), flavor=Config.hvg,
            share=Config.smooth, zscore=Config.zscore, clip=Config.clip):  # fmt: skip
        """Choose genes and fit their scale on training sections (AnnData) only.

        `include` names genes that must be in the panel beside the `n_genes` most variable ones, of
        `select_genes` by `flavor`; the rest are attributes of the panel. Raises `InputError` if an
        included gene is in none of the sections, and as `select_genes` does.
        """
        sections = list(sections)
        for gene in include:
            if not any(gene in s.var_names for s in sections):
                raise InputError(f"gene panel: {gene} is in no training section; drop it")
        genes = tuple(dict.fromkeys([*include, *select_genes(sections, n_genes, flavor=flavor)]))
        panel = cls(genes, np.zeros(len(genes)), np.ones(len(genes)), share, zscore, clip)
        parts = [panel.expression(s) for s in sections]
        values = np.concatenate([np.where(p, v, np.nan) for v, p in parts])  # absent is not zero
        mean, std = np.nanmean(values, 0), np.nanstd(values, 0)
        return cls(genes, mean, np.where(std > 1e-6, std, 1.0), share, zscore, clip)

    @classmethod
    def from_config(cls, sections, config: Config, *, include=()):
        """`fit` with a config's settings on training `sections.Section`s."""
        return cls.fit(
            [s.adata for s in sections], n_genes=config.n_genes, include=include, flavor=config.hvg,
            share=config.smooth, zscore=config.zscore, clip=config.clip)  # fmt: skip

    def expression(self, adata) -> tuple[np.ndarray, np.ndarray]:
        """Smoothed log-normalised expression (n, genes) float32, and which genes were present.

        Those are (genes,) bool; an absent gene's expression is 0.
        """
        matrix = log_normalise(smooth(adata, share=self.share))
        return columns(matrix, adata.var_names, self.genes)

    def transform(self, adata) -> np.ndarray:
        """z-scored expression of any section, (n, genes) float32 in the panel's order.

        Genes are matched by name. Missing ones are logged and set to 0 (the mean); more than
        `max_missing` of the panel missing raises `InputError`.
        """
        values, present = self.expression(adata)
        lost = [g for g, p in zip(self.genes, present, strict=True) if not p]
        name = adata.uns["section_id"]
        if len(lost) > self.max_missing * len(self.genes):
            said = f"{len(lost)} of the panel's {len(self.genes)} genes are missing"
            remedy = "use gene symbols of the panel's species"
            raise InputError(f"section {name}: {said} ({', '.join(lost[:3])}, ...); {remedy}")
        if lost:
            log.info("%s: %d panel genes missing, set to the mean", name, len(lost))
        mean, std = self.mean, self.std
        if self.zscore == "section":  # unsupervised: needs no image and no other section
            mean, std = values.mean(0), values.std(0)
            std = np.where(std > 1e-6, std, 1.0)
        z = np.clip((values - mean) / std, -self.clip, self.clip)
        return np.where(present, z, 0.0).astype(np.float32)

    def save(self, path):
        """Write the panel as JSON; no clipping is null."""
        numbers = {"mean": self.mean.tolist(), "std": self.std.tolist()}
        clip = {"clip": self.clip if np.isfinite(self.clip) else None}
        write_atomic(path, json.dumps(vars(self) | numbers | clip))

    @classmethod
    def load(cls, path) -> GenePanel:
        """Read a panel written by `save`; a damaged file is an `InputError`."""
        r = read_json(path, "mean", "std", "genes", "clip")
        r |= {k: np.array(r[k]) for k in ("mean", "std")} | {"genes": tuple(r["genes"])}
        with reading(path, remedy=RUN):
            return cls(**r | {"clip": np.inf if r["clip"] is None else r["clip"]})
