"""Pathway activity from expression: the labels that a slide is asked for."""

from __future__ import annotations

import pandas as pd

from .errors import InputError, reading


def read_gmt(path) -> pd.DataFrame:
    """A gene-set file (set, description, genes, by tabs) as a network: columns source, target.

    A row for each gene of each set. Raises `InputError` where the file is no GMT or holds no set.
    """
    import decoupler as dc

    with reading(path, fault="is no GMT file", remedy="one set a line, by tabs"):
        net = dc.pp.read_gmt(str(path)).drop_duplicates(["source", "target"])
    if net.empty:
        raise InputError(f"{path}: holds no gene set; one set a line, by tabs")
    return net


def activities(adata, net: pd.DataFrame, *, min_genes: int = 3) -> pd.DataFrame:
    """Activity of every set in every row of `layers["counts"]`: (n, sets), scored by decoupler's
    univariate linear model on log-normalised counts (Badia-i-Mompel et al., 2022).

    `net` has columns source, target and, if weighted, weight: `read_gmt`, or where there is a
    network `decoupler.op.progeny()` or `.hallmark()`. Sets of fewer than `min_genes` known genes
    are left out; where none is left that is an `InputError`.
    """
    import anndata as ad
    import decoupler as dc

    from .genes import log_normalise

    known = net[net.target.isin(adata.var_names)].groupby("source").size()
    if not (known >= min_genes).any():
        said = f"pathways: no set has {min_genes} genes among the data's"
        raise InputError(f"{said}; use the same gene names")
    plain = ad.AnnData(log_normalise(adata.layers["counts"]), obs=adata.obs[[]], var=adata.var[[]])
    dc.mt.ulm(plain, net, tmin=min_genes)
    return plain.obsm["score_ulm"]
