"""The first spatial transcriptomics array (Ståhl et al., 2016) in her2st's layout."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from seal_lite.data.readers.common import ARRAY, make_spots, read_table
from seal_lite.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

# Ståhl et al., 2016: spots of 100 um, 200 um apart. The image is never turned against the array.
LEGACY_ARRAY = {"step_um": (200.0, 200.0), "spot_um": 100.0, "upright": True}
# Its successor has a spot in the middle of each square, and is numbered in half steps: 66 x 63 of
# them between the same corners as 33 x 35 whole ones, or simply halves.
STAGGERED_STEPS_UM = ((200.0 * 32 / 65, 200.0 * 34 / 62), (100.0, 100.0))
STAGGERED_ARRAY = {"step_um": STAGGERED_STEPS_UM, "upright": True}
MIN_STAGGERED = 16  # spots; fewer may lie on every second place by chance


def read_legacy_st(path: Path, labels: dict[str, str]) -> AnnData:
    """Read a section of the first spatial transcriptomics array, in her2st's layout.

    Below data/, ST-cnts/SECTION.tsv.gz holds rows "XxY" and columns of genes,
    ST-spotfiles/SECTION_selection.tsv x, y, pixel_x, pixel_y and selected of each spot, and
    ST-imgs/PATIENT/SECTION/ the image (Andersson et al., 2021). Spots without counts are dropped
    and reported in the log.

    Raises
    ------
    InputError
        If a file is damaged, a barcode or gene is listed twice, or the files share no barcode.
    """
    name = path.name.removesuffix(".tsv.gz")
    spots_path = path.parents[1] / f"ST-spotfiles/{name}_selection.tsv"
    counts = _read_counts_table(path)
    spots = _read_spot_table(spots_path)
    barcodes = [barcode for barcode in spots.index if barcode in counts.index]
    if not barcodes:
        raise InputError(f"{path}: no barcode is also in {spots_path}; pair the right files")
    n_missing = len(spots) - len(barcodes)
    if n_missing:
        log.info("%s: %d of %d selected spots have no counts: dropped", name, n_missing, len(spots))
    places = spots[["x", "y"]].astype(float)
    is_staggered = len(spots) >= MIN_STAGGERED and (places.sum(axis=1) % 2).nunique() == 1
    spots = spots.loc[barcodes]
    counts = counts.loc[barcodes]
    return make_spots(
        counts.to_numpy(np.float32),
        obs=spots[["x", "y"]].astype(float).set_axis(list(ARRAY), axis=1),
        genes=counts.columns.astype(str),
        xy=spots[["pixel_x", "pixel_y"]].to_numpy(float),
        uns={
            "spots_path": spots_path,
            "spots_without_counts": n_missing,
            "patient": patient_of(name),
            **(STAGGERED_ARRAY if is_staggered else LEGACY_ARRAY),
        },
    )


def _read_counts_table(path: Path) -> pd.DataFrame:
    """Read counts, barcodes x genes, each barcode and gene once."""
    counts = read_table(path, index_col=0)
    if not counts.shape[1]:
        raise InputError(f"{path}: has one column; separate barcodes, genes and counts by tabs")
    header = read_table(path, index_col=0, header=None, nrows=1)  # pandas renames duplicates
    if not counts.index.is_unique:
        raise InputError(f"{path}: a barcode is listed twice; keep one")
    if not header.iloc[0].is_unique:
        raise InputError(f"{path}: a gene is listed twice; keep one")
    return counts


def _read_spot_table(path: Path) -> pd.DataFrame:
    """Read the selected spots, indexed by barcode "XxY", with their pixels as numbers."""
    spots = read_table(path, needs=("x", "y", "pixel_x", "pixel_y"))
    if "selected" in spots:
        spots = spots[spots.selected == 1]
    barcodes = [f"{x}x{y}" for x, y in zip(spots.x, spots.y, strict=True)]
    spots = spots.set_axis(barcodes)
    if not spots.index.is_unique:
        raise InputError(f"{path}: a spot is listed twice; keep one")
    for column in ("pixel_x", "pixel_y"):
        pixels = pd.to_numeric(spots[column], errors="coerce").astype(float)
        if not np.isfinite(pixels).all():
            raise InputError(f"{path}: a {column} is not a number; correct it")
        spots[column] = pixels
    return spots


def patient_of(name: str) -> str:
    """Return a section's patient, 'C' of 'C2': her2st numbers the sections of a patient."""
    return name.rstrip("0123456789")
