"""Pathway activity from expression: the labels that slide-level tasks predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seal_lite.data.genes import log_normalise
from seal_lite.errors import reading

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def read_gmt(path: str | Path) -> pd.DataFrame:
    """Read a gene-set file as a network.

    Parameters
    ----------
    path
        A GMT file: set, description and genes of one set a line, separated by tabs.

    Returns
    -------
    DataFrame
        Columns source (the set) and target (the gene), one row for each gene of each set.

    Raises
    ------
    InputError
        Where the file is no GMT file.
    """
    import decoupler as dc

    with reading(path, fault="is no GMT file", remedy="one set a line, by tabs"):
        network = dc.pp.read_gmt(str(path))
        return network.drop_duplicates(["source", "target"])


def activities(adata: AnnData, net: pd.DataFrame, *, min_genes: int = 3) -> pd.DataFrame:
    """Score the activity of every gene set in every sample.

    Parameters
    ----------
    adata
        Raw counts ``layers["counts"]`` of n samples.
    net
        Columns source, target and, if weighted, weight: from `read_gmt`, or from
        ``decoupler.op.progeny()`` or ``.hallmark()``.
    min_genes
        Sets with fewer genes among the data's are left out.

    Returns
    -------
    DataFrame
        Activity (n, sets).

    Raises
    ------
    InputError
        Where no set has ``min_genes`` genes among the data's.

    Notes
    -----
    Univariate linear model on log-normalised counts: Badia-i-Mompel et al., Bioinformatics
    Advances 2022 (decoupler).
    """
    import anndata as ad
    import decoupler as dc

    expression = log_normalise(adata.layers["counts"])
    scored = ad.AnnData(expression, obs=adata.obs[[]], var=adata.var[[]])
    fault = f"no set has {min_genes} genes among the data's"
    with reading("pathways", fault=fault, remedy="use the same gene names"):
        dc.mt.ulm(scored, net, tmin=min_genes)
        return scored.obsm["score_ulm"]
