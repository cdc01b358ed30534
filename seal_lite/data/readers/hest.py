"""Samples of HEST-1k."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

from seal_lite.data.readers.common import ARRAY, LONGEST_NAME, LONGEST_UM, known
from seal_lite.data.readers.h5ad import read_anndata
from seal_lite.schema import Number, Size, read

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


# HEST pools these technologies into squares, and states the size of what it pooled.
POOLED = ("Visium HD", "Xenium")
BIN_FIELDS = ("pitch_um", "spot_um")

# A patient's name is that of HEST and the title of the study together.
Name = Annotated[str, Size(at_most=LONGEST_NAME // 3)]
Stated = Annotated[float, Number(undefined=True)] | Name | None
LengthUm = str | Annotated[float, Number(at_least=0, at_most=LONGEST_UM, undefined=True)] | None


class HestMetadata(TypedDict, total=False):
    """What of a sample's metadata is used; a value may be absent, null, NaN or "NA"."""

    pixel_size_um_estimated: LengthUm
    inter_spot_dist: LengthUm
    spot_diameter: LengthUm
    patient: Stated
    species: Stated
    dataset_title: Stated
    organ: Stated
    st_technology: Stated
    disease_state: Stated
    subseries: Stated


def read_hest(path: Path, labels: dict[str, str]) -> AnnData:
    """Read a sample of HEST-1k with its metadata, where they are there.

    Below the folder, st/NAME.h5ad holds counts and coordinates, metadata/NAME.json the metadata.
    HEST counts patients within a study, so the study is part of the patient's name. The array of
    pooled samples is set aside: HEST numbers its squares after it has dropped the empty ones.
    """
    adata = read_anndata(path, labels)
    metadata_path = path.parents[1] / f"metadata/{path.stem}.json"
    if not metadata_path.exists():
        return adata
    metadata: HestMetadata = read(
        metadata_path, HestMetadata, remedy="correct it, or fetch it again"
    )
    stated = known(metadata)
    fields = {field: stated[name] for field, name in HEST_FIELDS.items() if name in stated}
    if "patient" in fields and "dataset_title" in stated:
        fields["patient"] = f"{fields['patient']} of: {stated['dataset_title']}"
    if stated.get("st_technology") in POOLED:
        adata.obs = adata.obs.drop(columns=list(ARRAY), errors="ignore")
        fields = {name: value for name, value in fields.items() if name not in BIN_FIELDS}
    adata.uns = {**fields, "notes": adata.uns.get("notes", [])}
    adata.uns["labels"] = {key: str(stated[key]) for key in HEST_LABELS if key in stated}
    return adata
