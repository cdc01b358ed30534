"""Samples of HEST-1k."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lite.data.readers.h5ad import read_anndata

if TYPE_CHECKING:
    from anndata import AnnData

# HEST-bench: the columns of a split, and the file of the genes to predict.
SPLIT_COLUMNS = ["sample_id", "patches_path", "expr_path"]
GENES_FILE = "var_50genes.json"

HEST_FIELDS = {  # HEST's name of each of our fields
    "um_per_px": "pixel_size_um_estimated",
    "pitch_um": "inter_spot_dist",
    "spot_um": "spot_diameter",
    "patient": "patient",
    "species": "species",
}
HEST_LABELS = ("organ", "st_technology", "disease_state", "subseries")


def read_hest(path: Path, labels: dict[str, str]) -> AnnData:
    """Read a sample of HEST-1k with its metadata.

    Below the folder, st/NAME.h5ad holds counts and coordinates, metadata/NAME.json the metadata.
    """
    adata = read_anndata(path, labels)
    metadata_path = path.parents[1] / f"metadata/{path.stem}.json"
    metadata = json.loads(metadata_path.read_text())
    # NaN stands for unknown, and is the only value that differs from itself.
    stated = {key: value for key, value in metadata.items() if value == value}
    adata.uns = {field: stated.get(hest_field) for field, hest_field in HEST_FIELDS.items()}
    adata.uns["labels"] = {key: str(stated[key]) for key in HEST_LABELS if stated.get(key)}
    return adata
