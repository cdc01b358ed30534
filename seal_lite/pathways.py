"""Pathway activity from expression: the labels that a slide is asked for."""

from __future__ import annotations

import pandas as pd

from .errors import reading


def read_gmt(path) -> pd.DataFrame:
    """A gene-set file (set, description, genes, by tabs) as a network: columns source, target.

    A row for each gene of each set. Raises `InputError` where the file is no GMT.
    """
    import decoupler as dc

    with reading(path, fault="is no GMT file", remedy="one set a line, by tabs"):
        return dc.pp.read_gmt(str(path)).drop_duplicates(["source", "target"])


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

    plain = ad.AnnData(log_normalise(adata.layers["counts"]), obs=adata.obs[[]], var=adata.var[[]])
    fault = f"no set has {min_genes} genes among the data's"
    with reading("pathways", fault=fault, remedy="use the same gene names"):
        dc.mt.ulm(plain, net, tmin=min_genes)
        return plain.obsm["score_ulm"]
