"""Which genes, in which order, on which scale: fitted on training sections, stored by name."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import scipy.sparse as sp

from seal_lite.config import Config, Cut, Share, SmoothOver, Zscore
from seal_lite.data.readers.gene_names import gene_key, spelled
from seal_lite.data.registration import disc_mean, neighbour_mean
from seal_lite.data.variable_genes import blocks, select_genes
from seal_lite.errors import InputError
from seal_lite.io import RUN_REMEDY, write_atomic
from seal_lite.schema import Number, Size, read

if TYPE_CHECKING:
    from anndata import AnnData

    from seal_lite.data.section import Section

log = logging.getLogger(__name__)

TOTAL = 1e4  # counts to which each spot is scaled
HIGHEST_MEAN = math.log1p(TOTAL)  # of a gene with all counts of every spot
MIN_STD = 1e-6  # a gene below is constant; its standard deviation counts as 1


def depth(adata: AnnData) -> np.ndarray:
    """Return the total counts of each spot, (n,) float64."""
    return np.asarray(adata.layers["counts"].sum(1), float).ravel()


def smoothing(adata: AnnData, *, share: float, over: str = Config.smooth_over) -> sp.csr_matrix:
    """Return the matrix (n, n) float64 that mixes values of a spot with its neighbours' mean.

    Parameters are those of `smooth`.
    """
    identity = sp.identity(adata.n_obs, format="csr")
    if share == 0:
        return identity
    if over == "disc":
        return ((1 - share) * identity + share * disc_mean(adata)).tocsr()
    weights = neighbour_mean(adata)
    is_isolated = np.diff(weights.indptr) == 0
    own_share = np.where(is_isolated, 1.0, 1 - share)
    return (sp.diags(own_share) + share * weights).tocsr()


def smooth(adata: AnnData, *, share: float, over: str = Config.smooth_over) -> sp.csr_matrix:
    """Mix the counts of each spot with the mean counts of its neighbours on the array.

    x' = (1 - share) x + share mean(neighbours). A spot without neighbours keeps its counts.

    Parameters
    ----------
    adata
        A section: ``layers["counts"]`` (n, g), and what `neighbour_mean` needs.
    share
        Weight of the mean, 0 to 1.
    over
        What the mean is over: the "ring" of all neighbours on the array (`neighbour_mean`), or the
        "disc" of released SEAL, in which the spot itself counts as well (`disc_mean`).

    Returns
    -------
    csr_matrix
        Smoothed counts (n, g), float64.

    Notes
    -----
    Released SEAL (mahmoodlab/SEAL v0.0.1) uses share 0.5 over the disc, before normalisation. In a
    Visium array that is 0.6 of the spot's own counts and 0.1 of each of four neighbours.
    """
    counts = adata.layers["counts"].astype(np.float64)
    return smoothing(adata, share=share, over=over) @ counts


def log_normalise(counts: np.ndarray | sp.spmatrix) -> sp.csr_matrix:
    """Scale each spot to `TOTAL` counts over all genes of the section, and take log1p.

    Parameters
    ----------
    counts
        Counts (n, g), dense or sparse.

    Returns
    -------
    csr_matrix
        Log-normalised expression (n, g), float64.
    """
    counts = sp.csr_matrix(counts, dtype=np.float64)
    factors = _size_factors(np.asarray(counts.sum(1)).ravel())
    return (sp.diags(factors) @ counts).log1p().tocsr()


def _size_factors(spot_depth: np.ndarray) -> np.ndarray:
    """Return by what counts are multiplied, (n,), so that each spot of a depth (n,) has `TOTAL`."""
    return TOTAL / np.maximum(spot_depth, 1e-12)


def columns(
    matrix: np.ndarray | sp.spmatrix, names: Iterable[str], genes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns of ``genes``, matched by name, whatever its case.

    Parameters
    ----------
    matrix
        Values (n, m), dense or sparse.
    names
        The m names of the matrix's columns.
    genes
        The g names to return, in order.

    Returns
    -------
    values
        Dense (n, g) float32, 0 where a gene is absent.
    present
        (g,) bool: whether the matrix has the gene.
    """
    column_of = {gene_key(name): i for i, name in enumerate(names)}
    source = np.array([column_of.get(gene_key(gene), -1) for gene in genes], int)
    present = source >= 0
    values = np.zeros((matrix.shape[0], len(source)), np.float32)
    values[:, present] = sp.csr_matrix(matrix)[:, source[present]].toarray()
    return values, present


@dataclass(frozen=True)
class PanelFields:
    """What a panel's file holds; an infinite ``clip`` is null."""

    genes: Annotated[tuple[Annotated[str, Size(1, 1000)], ...], Size(1, unique=True)]
    mean: list[Annotated[float, Number(at_least=0, at_most=HIGHEST_MEAN)]]
    std: list[Annotated[float, Number(above=0, at_most=HIGHEST_MEAN)]]
    share: Share
    zscore: Zscore
    clip: Cut
    max_missing: Share = 0.2
    over: SmoothOver = "ring"


@dataclass(frozen=True)
class GenePanel:
    """An ordered gene vocabulary with its mean and standard deviation over the training spots.

    Expression is smoothed over neighbours, scaled to 1e4 counts a spot, log1p, then z-scored and
    clipped.

    Parameters
    ----------
    genes
        Names (g,), in order.
    mean, std
        Of log1p expression over the training spots, (g,) float64.
    share, over
        Weight of the neighbours' mean in `smooth`, 0 to 1, and what the mean is over.
    zscore
        Whose mean and standard deviation `transform` uses: those of the "section" itself, or of
        "train"ing.
    clip
        The largest absolute z; infinite for none.
    max_missing
        The share of ``genes`` that a section may lack.
    """

    genes: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    share: float = Config.smooth
    zscore: str = Config.zscore
    clip: float = Config.clip
    max_missing: float = 0.2
    over: str = "ring"  # what a panel.json means that is older than the choice

    @classmethod
    def fit(
        cls,
        adatas: Iterable[AnnData],
        *,
        n_genes: int = Config.n_genes,
        include: Iterable[str] = (),
        flavor: str = Config.hvg,
        **scale: Any,
    ) -> GenePanel:
        """Choose genes and fit their scale on training sections only.

        Parameters
        ----------
        adatas
            Training sections, as `read_counts` returns them.
        n_genes
            How many of the most variable genes to take.
        include
            Names of genes that come first in the panel, whether variable or not. The panel spells
            them as the sections do.
        flavor
            How `select_genes` ranks genes.
        **scale
            `share`, `over`, `zscore` and `clip` of the panel.

        Raises
        ------
        InputError
            Where an included gene is in none of the sections, and as in `select_genes`.
        """
        adatas = list(adatas)
        include = list(include)
        names = [name for adata in reversed(adatas) for name in adata.var_names]
        included = spelled(include, names)
        for gene in include:
            if gene not in included:
                raise InputError(f"gene panel: {gene} is in no training section; drop it")
        variable = select_genes(adatas, n_genes, flavor=flavor)
        gene_of_key = {gene_key(gene): gene for gene in [*included.values(), *variable]}
        genes = tuple(gene_of_key.values())
        unscaled = cls(genes, np.zeros(len(genes)), np.ones(len(genes)), **scale)
        n, sums, squares = np.zeros((3, len(genes)))
        for adata in adatas:
            values, present = unscaled.expression(adata)
            n += adata.n_obs * present  # absent is not zero
            sums += values.sum(0, dtype=np.float64)
            squares += np.einsum("ij,ij->j", values, values, dtype=np.float64)
        mean = sums / n
        std = np.sqrt(np.maximum(squares / n - mean**2, 0))
        return replace(unscaled, mean=mean, std=_nonzero_std(std))

    @classmethod
    def from_config(
        cls, sections: Iterable[Section], config: Config, *, include: Iterable[str] = ()
    ) -> GenePanel:
        """`fit` a panel to training sections with the settings of a config."""
        return cls.from_adatas([section.adata for section in sections], config, include=include)

    @classmethod
    def from_adatas(
        cls, adatas: Iterable[AnnData], config: Config, *, include: Iterable[str] = ()
    ) -> GenePanel:
        """`from_config` for counts whose patches are not in memory."""
        return cls.fit(
            adatas,
            n_genes=config.n_genes,
            include=include,
            flavor=config.hvg,
            share=config.smooth,
            zscore=config.zscore,
            clip=config.clip,
            over=config.smooth_over,
        )

    def expression(self, adata: AnnData) -> tuple[np.ndarray, np.ndarray]:
        """Return smoothed, log-normalised expression of the panel's genes.

        Parameters
        ----------
        adata
            Any section with n spots; genes are matched by name.

        Returns
        -------
        values
            (n, g) float32, 0 where the section lacks a gene.
        present
            (g,) bool: whether the section has the gene.
        """
        counts, present = columns(adata.layers["counts"], adata.var_names, self.genes)
        mixing = smoothing(adata, share=self.share, over=self.over)
        factors = _size_factors(mixing @ depth(adata))
        for genes in blocks(len(self.genes), adata.n_obs):
            smoothed = mixing @ counts[:, genes].astype(np.float64)
            counts[:, genes] = np.log1p(smoothed * factors[:, None])
        return counts, present

    def transform(self, adata: AnnData) -> np.ndarray:
        """Return z-scored expression in the panel's order.

        Parameters
        ----------
        adata
            Any section with n spots; genes are matched by name. Missing genes are logged and set
            to 0, the mean.

        Returns
        -------
        np.ndarray
            z-scores (n, g), float32.

        Raises
        ------
        InputError
            Where the section lacks more than ``max_missing`` of the panel.
        """
        values, present = self.expression(adata)
        self._check_missing(adata.uns["section_id"], present)
        if self.zscore == "section":  # unsupervised: needs no image and no other section
            mean = values.mean(0)
            std = _nonzero_std(values.std(0))
        else:
            mean = self.mean
            std = self.std
        z = np.clip((values - mean) / std, -self.clip, self.clip)
        return np.where(present, z, 0.0).astype(np.float32)

    def _check_missing(self, section_name: str, present: np.ndarray) -> None:
        """Log the genes that a section lacks; raise `InputError` where they are too many."""
        missing = [gene for gene, is_there in zip(self.genes, present, strict=True) if not is_there]
        if len(missing) > self.max_missing * len(self.genes):
            examples = ", ".join(missing[:3])
            raise InputError(
                f"section {section_name}: {len(missing)} of the panel's {len(self.genes)} genes "
                f"are missing ({examples}, ...); use gene symbols of the panel's species"
            )
        if missing:
            log.info("%s: %d panel genes missing, set to the mean", section_name, len(missing))

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides a section's z-scores, 64 hex digits.

        Means and deviations count to four digits: another machine fits them with other rounding.
        """
        rounded = {
            "mean": [f"{value:.3e}" for value in self.mean],
            "std": [f"{value:.3e}" for value in self.std],
        }
        return hashlib.sha256(json.dumps(vars(self) | rounded).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the panel as JSON; an infinite ``clip`` is written as null."""
        fields = vars(self) | {
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "clip": self.clip if np.isfinite(self.clip) else None,
        }
        write_atomic(path, json.dumps(fields))

    @classmethod
    def load(cls, path: str | Path) -> GenePanel:
        """Read a panel written by `save`; raise `InputError` where the file is damaged."""
        stored: PanelFields = read(path, PanelFields)
        for name in ("mean", "std"):
            n_values = len(getattr(stored, name))
            if n_values != len(stored.genes):
                raise InputError(
                    f"{path}: {name} has {n_values} values for {len(stored.genes)} genes; "
                    f"{RUN_REMEDY}"
                )
        fields = vars(stored)
        return cls(**{**fields, "mean": np.array(stored.mean), "std": np.array(stored.std)})


def _nonzero_std(std: np.ndarray) -> np.ndarray:
    """Replace the standard deviation of a constant gene by 1."""
    return np.where(std > MIN_STD, std, 1.0)
