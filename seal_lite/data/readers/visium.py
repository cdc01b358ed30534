"""Space Ranger's folders: Visium and Visium HD."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lite.errors import InputError
from seal_lite.io import open_h5

if TYPE_CHECKING:
    from anndata import AnnData

# 10x Genomics, 6.5 mm slide: rows of spots 100 um apart, each moved by half against the next; a
# neighbour in the row is two array columns away.
VISIUM_STEP_UM = (50.0, 50.0 * 3**0.5)
VISIUM_SPOT_UM = 55.0
BIN_SIZES_UM = (16, 8)  # of Visium HD, the preferred first


def read_visium(path: Path, labels: dict[str, str]) -> AnnData:
    """Read Space Ranger's folder by squidpy; the full image lies in it or beside it."""
    import squidpy as sq

    with open_h5(path):
        adata = sq.read.visium(path.parent, counts_file=path.name)
    adata.uns = {"step_um": VISIUM_STEP_UM, "spot_um": VISIUM_SPOT_UM}
    return adata


def read_visium_hd(path: Path, labels: dict[str, str]) -> AnnData:
    """Read Space Ranger's folder of Visium HD by spatialdata-io: its 16 um bins, or 8 um ones.

    Raises
    ------
    InputError
        If the folder has bins of neither size.
    """
    from spatialdata_io import visium_hd

    sizes = [size for size in BIN_SIZES_UM if (path / f"square_{size:03}um").is_dir()]
    if not sizes:
        raise InputError(f"{path}: has neither 16 nor 8 um bins; run Space Ranger with them")
    size = sizes[0]
    bins = path / f"square_{size:03}um"
    data = visium_hd(path.parent, bin_size=size, load_segmentations_only=False, gex_only=True)
    adata = data.tables[bins.name]
    scale_factors = json.loads((bins / "spatial/scalefactors_json.json").read_text())
    adata.uns = {
        "um_per_px": scale_factors["microns_per_pixel"],
        "step_um": (float(size), float(size)),
    }
    return adata
