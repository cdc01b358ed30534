"""What every reader uses: tables, HDF5, raw counts, and the AnnData that it returns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from seal_lite.errors import InputError, reading
from seal_lite.io import open_h5

if TYPE_CHECKING:
    from anndata import AnnData

ARRAY = ("array_col", "array_row")  # columns of `obs`: where a spot lies on the array
POOL_UM = 100.0  # edge of pseudo-spots; HEST pools to the same
KEPT_METADATA = ("um_per_px", "pitch_um", "spot_um", "patient", "species")  # of an AnnData's `uns`


def make_spots(
    counts: np.ndarray | sp.spmatrix,
    *,
    obs: pd.DataFrame,
    genes: pd.DataFrame | Sequence[str] | pd.Index,
    xy: np.ndarray,
    uns: dict[str, Any],
) -> AnnData:
    """Return an AnnData of spots.

    Parameters
    ----------
    counts
        (n, g) raw counts, which become `X` and `layers["counts"]`, csr float32.
    obs
        n rows, named by barcodes.
    genes
        g names, or the table that becomes `var`.
    xy
        (n, 2) x, y in px of the full image, which become `obsm["spatial"]`, float64.
    uns
        Metadata of the section.
    """
    import anndata as ad

    counts = sp.csr_matrix(counts, dtype=np.float32)
    var = genes if isinstance(genes, pd.DataFrame) else pd.DataFrame(index=genes)
    return ad.AnnData(
        counts,
        obs=obs,
        var=var,
        layers={"counts": counts},
        obsm={"spatial": np.asarray(xy, np.float64)},
        uns=uns,
    )


def array_table(positions: np.ndarray) -> pd.DataFrame:
    """Return `obs` of spots at array columns and rows (n, 2) int, which are called "COLxROW"."""
    barcodes = [f"{col}x{row}" for col, row in positions]
    return pd.DataFrame(positions, columns=list(ARRAY), index=barcodes)


def kept_metadata(uns: dict[str, Any]) -> dict[str, Any]:
    """Return those of an AnnData's unstructured metadata that a section uses."""
    return {key: value for key, value in uns.items() if key in KEPT_METADATA}


def read_table(path: Path, *, needs: Sequence[str] = (), **options: Any) -> pd.DataFrame:
    """Read a table whose columns are separated by tabs, or by `sep`.

    Parameters
    ----------
    path
        A text file, which may be compressed.
    needs
        Columns that the table must have.
    **options
        Passed to `pandas.read_csv`.

    Raises
    ------
    InputError
        If the file cannot be read, or lacks a column of `needs`.
    """
    with reading(path):
        table = pd.read_csv(path, **{"sep": "\t", **options})
    missing = sorted(set(needs) - set(table))
    if missing:
        raise InputError(f"{path}: column {', '.join(missing)} is missing; restore it")
    return table


def read_h5ad(path: str | Path) -> AnnData:
    """Read an AnnData file.

    Raises
    ------
    InputError
        If the file declares more bytes than it can hold.
    """
    import anndata as ad

    with open_h5(path):
        return ad.read_h5ad(path)


def raw_counts(path: str | Path, adata: AnnData) -> sp.csr_matrix:
    """Return the counts of `layers["counts"]`, `raw` or `X`, whichever is there first.

    `raw` counts only where it has the shape of `X`.

    Returns
    -------
    scipy.sparse.csr_matrix
        (n, g) float32.

    Raises
    ------
    InputError
        If a count is not a whole number from 0. `path` names the file.
    """
    if "counts" in adata.layers:
        matrix = adata.layers["counts"]
    elif adata.raw is not None and adata.raw.shape == adata.shape:
        matrix = adata.raw.X
    else:
        matrix = adata.X
    counts = sp.csr_matrix(matrix, dtype=np.float32)
    values = counts.data
    is_count = np.isfinite(values) & (values >= 0) & (values == np.floor(values))
    if not is_count.all():
        raise InputError(f"{path}: needs whole numbers >= 0; give raw counts, not normalised ones")
    return counts
