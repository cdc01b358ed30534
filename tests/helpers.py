"""The tests' small settings, and sections made by hand."""

from __future__ import annotations

import numpy as np

from seal_lite import Config

# Small enough for seconds; everything else as in the default.
TINY = Config(
    patch_px=64,
    n_views=3,
    n_genes=40,
    hidden=(32, 16),
    project=16,
    batch_size=16,
    tune_blocks=1,
    epochs=2,
    gene_warmup_epochs=1,
)


def square(side):
    """(side^2, 2) array columns and rows of a square array."""
    return np.stack(np.meshgrid(range(side), range(side)), -1).reshape(-1, 2)


def make_adata(counts, *, place=None, genes=None, grid="square", name="X1"):
    """A section made by hand from counts (n, genes); by default on a square array."""
    import anndata as ad
    import pandas as pd
    import scipy.sparse as sp

    counts = np.asarray(counts, np.float32)
    if place is None:
        side = int(np.ceil(np.sqrt(len(counts))))
        place = square(side)[: len(counts)]
    if genes is None:
        genes = [f"G{i}" for i in range(counts.shape[1])]
    barcodes = [f"{column}x{row}" for column, row in place]
    obs = pd.DataFrame({"array_col": place[:, 0], "array_row": place[:, 1]}, index=barcodes)
    counts = sp.csr_matrix(counts)
    adata = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes), layers={"counts": counts})
    adata.uns = {"section_id": name, "patient_id": name[:-1], "grid": grid}
    return adata
