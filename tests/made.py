"""A section in which everything is known, and files of it in Space Ranger's layout."""

import json
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from PIL import Image

UM = 2.0  # per px of the image
GENES = ["ERBB2", "KRT19", "COL1A1", "CD3E"]
IDS = [f"ENSG{i:011d}" for i in range(4)]


ARRAY = np.array([(c, r) for r in range(6) for c in range(12) if (c + r) % 2 == 0])


def make_truth():
    """A Visium-like section: 32 spots, 512 x 512 px of 2 um, in which R and G tell x and y."""
    array = ARRAY
    xy = array * [25.0, 25.0 * 3**0.5] + [100.3, 120.7]
    counts = np.random.default_rng(0).poisson(60, (len(array), 4)).astype(np.float32)
    y, x = np.indices((512, 512))
    image = np.stack([x // 2, y // 2, 0 * x + 9], -1).astype(np.uint8)
    barcodes = [f"{b:016b}-1".replace("0", "A").replace("1", "C") for b in range(len(array))]
    return SimpleNamespace(array=array, xy=xy, counts=counts, image=image, barcodes=barcodes)


def write_10x(path, counts, barcodes, *, genes=GENES):
    """Space Ranger's H5 (version 3 of its layout)."""
    m = sp.csc_matrix(counts.T.astype(np.int32))
    with h5py.File(path, "w") as file:
        about = {"filetype": "matrix", "chemistry_description": "Spatial 3' v1"}
        file.attrs.update(library_ids=np.array(["S1"], "S"), **about)
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, "S")
        for key in ("data", "indices", "indptr"):
            group[key] = getattr(m, key)
        group["shape"] = np.array(m.shape, np.int32)
        about = {"id": IDS, "name": genes, "feature_type": ["Gene Expression"] * 4,
                 "genome": ["GRCh38"] * 4}  # fmt: skip
        for key, values in about.items():
            group[f"features/{key}"] = np.array(values, "S")
        group["features/_all_tag_keys"] = np.array(["genome"], "S")


def write_visium(folder, truth, *, header=True):
    (folder / "spatial").mkdir(parents=True)
    # a spot off the tissue is in the positions, not in the filtered counts
    write_10x(folder / "filtered_feature_bc_matrix.h5", truth.counts, truth.barcodes)
    table = pd.DataFrame({
        "barcode": [*truth.barcodes, "GGGGGGGGGGGGGGGG-1"], "in_tissue": [1] * len(truth.xy) + [0],
        "array_row": [*truth.array[:, 1], 20], "array_col": [*truth.array[:, 0], 20],
        "pxl_row_in_fullres": [*truth.xy[:, 1], 5], "pxl_col_in_fullres": [*truth.xy[:, 0], 5],
    })  # fmt: skip
    name = "tissue_positions.csv" if header else "tissue_positions_list.csv"
    table.to_csv(folder / "spatial" / name, index=False, header=header)
    scale = {"spot_diameter_fullres": 27.5, "tissue_hires_scalef": 0.25,
             "fiducial_diameter_fullres": 40.0, "tissue_lowres_scalef": 0.1}  # fmt: skip
    (folder / "spatial/scalefactors_json.json").write_text(json.dumps(scale))
    for which in ("hires", "lowres"):
        Image.fromarray(truth.image[::4, ::4]).save(folder / f"spatial/tissue_{which}_image.png")
