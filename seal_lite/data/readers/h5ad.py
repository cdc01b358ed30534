"""Any AnnData with coordinates, as a file (.h5ad) or as a store (.zarr)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from seal_lite.data.readers.common import (
    ARRAY,
    PIXELS,
    add_note,
    as_flags,
    as_numbers,
    coordinates,
    is_unknown,
    kept_metadata,
    read_h5ad,
    read_parts,
    text_of,
)
from seal_lite.errors import InputError
from seal_lite.io import open_zarr
from seal_lite.paths import check_store

if TYPE_CHECKING:
    from anndata import AnnData

# Columns of `obs` that tell which section a row is of, where several were concatenated.
LIBRARY_COLUMNS = (
    "library_id",
    "library",
    "sample",
    "sample_id",
    "sample_name",
    "section",
    "section_id",
    "slide",
    "slide_id",
    "orig.ident",
    "batch",
)
BETWEEN = 0.75  # of the distance between neighbours; on one array, spots are never closer
MAX_SHARED = 0.1  # share of the spots that may lie between those of another section
SEQUENCE = r"([ACGT]{12,})"  # of a barcode, which a section has once


def read_anndata(path: Path, labels: dict[str, str]) -> AnnData:
    """Read any AnnData with `obsm["spatial"]` in px of the full image.

    Raises
    ------
    InputError
        If it holds several sections and the label library names none of them, and as `read_h5ad`,
        `check_store` and `open_zarr` do.
    """
    if path.is_dir():
        check_store(path)
        adata = read_parts(path, open_zarr(path))
    else:
        adata = read_h5ad(path)
    adata.uns = kept_metadata(adata.uns)
    if "spatial" not in adata.obsm:
        _find_coordinates(path, adata)
    if "in_tissue" in adata.obs and not as_flags(path, "in_tissue", adata.obs.in_tissue).any():
        del adata.obs["in_tissue"]
        add_note(path, adata, "in_tissue is 0 for all spots: set aside, and all spots are read")
    return one_library(path, adata, library=labels.get("library"))


def _find_coordinates(path: Path, adata: AnnData) -> None:
    """Write x, y into `obsm["spatial"]` that stand under another usual name."""
    if "X_spatial" in adata.obsm:
        adata.obsm["spatial"] = adata.obsm["X_spatial"]
    elif set(PIXELS) <= set(adata.obs):
        adata.obsm["spatial"] = adata.obs[PIXELS]
    else:
        raise InputError(f'{path}: has no obsm["spatial"]; give px of the full image there')


def one_library(
    path: Path, adata: AnnData, *, library: str | None = None, column: str | None = None
) -> AnnData:
    """Return the spots of one section, where several were put into one AnnData.

    Sections are told apart by `column` of `obs`, else by a column of `LIBRARY_COLUMNS`, else by
    what is around the sequence of barcodes that are there more than once, else by coordinates that
    are. Parts that lie beside one another, as a microarray's cores, are one section.

    Raises
    ------
    InputError
        If `library` is none of the sections' names, or None where several lie on one another.
    """
    parts = _parts(path, adata, column)
    names = [] if parts is None else sorted(parts.dropna().unique())
    if library is not None:
        if library not in names:
            raise InputError(
                f"{path}: has no library {library} ({', '.join(names) or 'only one'}); "
                "correct the column library of sections.tsv"
            )
        return adata[np.asarray(parts == library)].copy()
    if parts is not None and _lie_on_one_another(path, adata, parts):
        raise InputError(
            f"{path}: holds sections {', '.join(names)} by {parts.name}; write one file a section, "
            "or name one in the column library of sections.tsv"
        )
    return adata


def _parts(path: Path, adata: AnnData, column: str | None) -> pd.Series | None:
    """Return the section of each row (n,), NaN where unknown; None where there is but one."""
    for name in LIBRARY_COLUMNS if column is None else (column,):
        if name in adata.obs:
            values = adata.obs[name].astype(object)
            parts = values.map(text_of).mask(values.map(is_unknown))
            if parts.nunique() > 1:
                return parts
    barcodes = adata.obs_names.to_series()
    if barcodes.str.extract(SEQUENCE)[0].dropna().duplicated().any():
        around = barcodes.str.replace(SEQUENCE, "", n=1, regex=True).str.strip("-_ ")
        if around.nunique() > 1:
            return around.rename("barcode")
    places = pd.DataFrame(coordinates(path, adata)).set_axis(["x", "y"], axis=1)
    if places.duplicated().mean() > MAX_SHARED:
        nth = places.groupby(["x", "y"]).cumcount().astype(str)
        return nth.set_axis(adata.obs_names).rename("coordinates")
    return None


def _lie_on_one_another(path: Path, adata: AnnData, parts: pd.Series) -> bool:
    """Return whether parts share places of the array, or have spots between those of others."""
    is_known = parts.notna().to_numpy()
    if set(ARRAY) <= set(adata.obs):
        array = {name: as_numbers(path, name, adata.obs[name]) for name in ARRAY}
        places = pd.DataFrame(array).assign(part=parts.to_numpy()).dropna().drop_duplicates()
        if places.duplicated(list(ARRAY)).any():
            return True
    xy = coordinates(path, adata)
    is_placed = is_known & np.isfinite(xy).all(axis=1)
    n_shared = 0
    for name in parts.dropna().unique():
        is_own = (parts == name).to_numpy() & is_placed
        is_other = is_placed & ~is_own
        if is_own.sum() > 1 and is_other.any():
            own = xy[is_own]
            pitch = np.median(cKDTree(own).query(own, k=2)[0][:, 1])
            to_others, _ = cKDTree(xy[is_other]).query(own)
            n_shared += int((to_others < BETWEEN * pitch).sum())
    return n_shared > MAX_SHARED * is_placed.sum()
