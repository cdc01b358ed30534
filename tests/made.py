"""A section in which everything is known, and files of it in the layout of every format."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import yaml
from PIL import Image

from seal_lite import Config
from seal_lite.data.phantom import write_pyramid, write_task

if TYPE_CHECKING:
    from anndata import AnnData

UM = 2.0  # per px of the image
PITCH_PX = 25.0  # half of the distance between neighbours in a row: 100 um
GENES = ["ERBB2", "KRT19", "COL1A1", "CD3E"]
IDS = [f"ENSG{i:011d}" for i in range(4)]
# Columns and rows of a hexagonal array: every second column, shifted by one in every other row.
ARRAY = np.array([(col, row) for row in range(6) for col in range(12) if (col + row) % 2 == 0])


@dataclass
class Truth:
    """What every reader should find: places (n, 2), counts (n, 4), the image, n barcodes."""

    array: np.ndarray
    xy: np.ndarray
    counts: np.ndarray
    image: np.ndarray
    barcodes: list[str]


def make_truth() -> Truth:
    """A Visium-like section: 36 spots, 512 x 512 px of 2 um, in which R and G tell x and y."""
    rows, cols = np.indices((512, 512))
    n = len(ARRAY)
    return Truth(
        array=ARRAY,
        xy=ARRAY * [PITCH_PX, PITCH_PX * 3**0.5] + [100.3, 120.7],
        counts=np.random.default_rng(0).poisson(60, (n, 4)).astype(np.float32),
        image=np.stack([cols // 2, rows // 2, np.full_like(rows, 9)], -1).astype(np.uint8),
        barcodes=[f"{i:016b}".replace("0", "A").replace("1", "C") + "-1" for i in range(n)],
    )


# ---------------------------------------------------------------------------- Visium, Visium HD


def write_10x(path: Path, counts, barcodes, *, genes=GENES) -> None:
    """Write Space Ranger's H5 (version 3 of its layout)."""
    matrix = sp.csc_matrix(counts.T.astype(np.int32))
    features = {
        "id": IDS,
        "name": genes,
        "feature_type": ["Gene Expression"] * 4,
        "genome": ["GRCh38"] * 4,
    }
    with h5py.File(path, "w") as file:
        file.attrs["library_ids"] = np.array(["S1"], "S")
        file.attrs["filetype"] = "matrix"
        file.attrs["chemistry_description"] = "Spatial 3' v1"
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, "S")
        group["data"] = matrix.data
        group["indices"] = matrix.indices
        group["indptr"] = matrix.indptr
        group["shape"] = np.array(matrix.shape, np.int32)
        for key, values in features.items():
            group[f"features/{key}"] = np.array(values, "S")
        group["features/_all_tag_keys"] = np.array(["genome"], "S")


def write_visium(folder: Path, truth: Truth, *, header: bool = True) -> None:
    """Write Space Ranger's folder of version 2 (with a header) or 1, without the full image."""
    (folder / "spatial").mkdir(parents=True)
    write_10x(folder / "filtered_feature_bc_matrix.h5", truth.counts, truth.barcodes)
    # A spot off the tissue is in the positions, not in the filtered counts.
    positions = pd.DataFrame(
        {
            "barcode": [*truth.barcodes, "GGGGGGGGGGGGGGGG-1"],
            "in_tissue": [1] * len(truth.xy) + [0],
            "array_row": [*truth.array[:, 1], 20],
            "array_col": [*truth.array[:, 0], 20],
            "pxl_row_in_fullres": [*truth.xy[:, 1], 5],
            "pxl_col_in_fullres": [*truth.xy[:, 0], 5],
        }
    )
    name = "tissue_positions.csv" if header else "tissue_positions_list.csv"
    positions.to_csv(folder / "spatial" / name, index=False, header=header)
    scale_factors = {
        "spot_diameter_fullres": 27.5,
        "tissue_hires_scalef": 0.25,
        "fiducial_diameter_fullres": 40.0,
        "tissue_lowres_scalef": 0.1,
    }
    (folder / "spatial/scalefactors_json.json").write_text(json.dumps(scale_factors))
    quarter = Image.fromarray(truth.image[::4, ::4])
    quarter.save(folder / "spatial/tissue_hires_image.png")
    quarter.save(folder / "spatial/tissue_lowres_image.png")


def write_visium_hd(folder: Path, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Write Space Ranger's folder of Visium HD with its image; 24 x 24 bins of 16 um.

    Returns x, y in px (n, 2) of the bins and their counts (n, 4).
    """
    bins = folder / "binned_outputs/square_016um"
    (bins / "spatial").mkdir(parents=True)
    array = np.array([(col, row) for row in range(24) for col in range(24)])
    xy = (array + 0.5) * 16 / UM + 100
    counts = np.random.default_rng(1).poisson(4, (len(array), 4)).astype(np.float32)
    barcodes = [f"s_016um_{row:05d}_{col:05d}-1" for col, row in array]
    write_10x(bins / "filtered_feature_bc_matrix.h5", counts, barcodes)
    positions = pd.DataFrame(
        {
            "barcode": barcodes,
            "in_tissue": 1,
            "array_row": array[:, 1],
            "array_col": array[:, 0],
            "pxl_row_in_fullres": xy[:, 1],
            "pxl_col_in_fullres": xy[:, 0],
        }
    )
    positions.to_parquet(bins / "spatial/tissue_positions.parquet", index=False)
    scale_factors = {
        "spot_diameter_fullres": 8.0,
        "bin_size_um": 16.0,
        "microns_per_pixel": UM,
        "tissue_hires_scalef": 0.25,
        "tissue_lowres_scalef": 0.1,
        "regist_target_img_scalef": 1.0,
        "fiducial_diameter_fullres": 40.0,
    }
    (bins / "spatial/scalefactors_json.json").write_text(json.dumps(scale_factors))
    identity = np.eye(3).tolist()
    metadata = {
        "hd_layout_json": json.dumps({"file_format": "1.0", "transform": identity}),
        "transform_matrices": {
            "cytassist_colrow_to_spot_colrow": identity,
            "spot_colrow_to_cytassist_colrow": identity,
            "microscope_colrow_to_spot_colrow": identity,
            "spot_colrow_to_microscope_colrow": identity,
        },
    }
    with h5py.File(folder / "feature_slice.h5", "w") as file:
        file.attrs["metadata_json"] = json.dumps(metadata)
    write_pyramid(folder / "tissue_image.btf", truth.image, um_per_px=UM)
    return xy, counts


# ---------------------------------------------------------------------------- other formats


def make_h5ad(truth: Truth, *, genes=GENES) -> AnnData:
    import anndata as ad

    return ad.AnnData(
        sp.csr_matrix(truth.counts),
        obs=pd.DataFrame(index=truth.barcodes),
        var=pd.DataFrame(index=list(genes)),
        obsm={"spatial": truth.xy},
    )


def write_xenium(folder: Path, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Write Xenium's folder.

    Returns columns and rows (20, 2) of its pseudo-spots of 100 um and their counts (20, 4).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(2)
    pixel_um = 0.2125  # of the morphology
    folder.mkdir(parents=True)
    (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": pixel_um}))
    squares = np.array([(col, row) for row in range(4) for col in range(5)])
    counts = rng.poisson(40, (len(squares), 4))
    spot, gene = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))
    um = (squares[spot] + rng.uniform(0.01, 0.99, (len(spot), 2))) * 100
    counted = pd.DataFrame(
        {
            "x_location": um[:, 0],
            "y_location": um[:, 1],
            "qv": 30.0,
            "feature_name": np.array(GENES)[gene],
        }
    )
    not_counted = pd.DataFrame(
        {
            "x_location": [50.0, 51, 52],
            "y_location": 50.0,
            "qv": [40.0, 40, 19.9],
            "feature_name": ["NegControlProbe_1", "BLANK_0007", "ERBB2"],
        }
    )
    table = pd.concat([counted, not_counted]).sample(frac=1, random_state=0)
    pq.write_table(pa.Table.from_pandas(table), folder / "transcripts.parquet", row_group_size=500)
    # x of the morphology grows with y of the H&E, y with 450 - x.
    scale = UM / pixel_um
    alignment = np.array([[0, scale, -20 * scale], [-scale, 0, 450 * scale], [0, 0, 1]])
    np.savetxt(folder / "S1_he_imagealignment.csv", alignment, delimiter=",")
    write_pyramid(folder / "S1_he_image.ome.tif", truth.image, um_per_px=UM)
    Image.fromarray(truth.image).save(folder / "morphology.ome.tif")  # another stain: not this one
    return squares, counts


def write_hest(root: Path, truth: Truth, *, image: str = "wsis") -> None:
    """Write a sample of HEST-1k, S1, with its slide ("wsis") or with ready patches ("patches")."""
    for folder in ("st", "metadata", image):
        (root / folder).mkdir(parents=True)
    adata = make_h5ad(truth)
    adata.obs[["array_col", "array_row"]] = truth.array
    adata.write_h5ad(root / "st/S1.h5ad")
    metadata = {
        "pixel_size_um_estimated": UM,
        "inter_spot_dist": 100.0,
        "spot_diameter": 55.0,
        "patient": "P7",
        "species": "Homo sapiens",
        "organ": "Breast",
        "st_technology": "Visium",
        "subseries": float("nan"),
    }
    (root / "metadata/S1.json").write_text(json.dumps(metadata))
    if image == "wsis":
        write_pyramid(root / "wsis/S1.tif", truth.image, um_per_px=UM)
    else:
        _write_ready_patches(root / "patches/S1.h5", truth)


def _write_ready_patches(path: Path, truth: Truth) -> None:
    """Write patches of 112 um at 224 px, as published."""
    slide = Image.fromarray(truth.image)
    patches = []
    for x, y in truth.xy:
        box = (x - 28, y - 28, x + 28, y + 28)
        patches.append(np.asarray(slide.resize((224, 224), Image.Resampling.BICUBIC, box=box)))
    with h5py.File(path, "w") as file:
        file["img"] = np.stack(patches)
        file["barcode"] = np.array(truth.barcodes, "S")[:, None]
        file["coords"] = truth.xy.astype(int)


def write_spatialdata(path: Path, truth: Truth, *, scales=None) -> None:
    """Write a SpatialData store: spots in um, two images of px, one coordinate system."""
    import spatialdata as sd
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Affine, Identity, Scale

    to_um = Affine(np.array([[UM, 0, 40.0], [0, UM, -30.0], [0, 0, 1]]), ("x", "y"), ("x", "y"))
    image = Image2DModel.parse(
        truth.image.transpose(2, 0, 1),
        dims=("c", "y", "x"),
        transformations={"slide": to_um},
        scale_factors=scales,
    )
    small = Image2DModel.parse(
        truth.image[::8, ::8].transpose(2, 0, 1),
        dims=("c", "y", "x"),
        transformations={"slide": Scale([8 * UM] * 2, ("x", "y"))},
    )
    n = len(truth.xy)
    spots = ShapesModel.parse(
        (truth.xy * UM + [40, -30])[::-1],
        geometry=0,
        radius=27.5,
        index=np.arange(n)[::-1],
        transformations={"slide": Identity()},
    )
    adata = make_h5ad(truth)
    del adata.obsm["spatial"]
    adata.obs["spot"] = np.arange(n)
    adata.obs["region"] = pd.Categorical(["spots"] * n)
    adata.uns["um_per_px"] = UM
    table = TableModel.parse(adata, region="spots", region_key="region", instance_key="spot")
    data = sd.SpatialData(
        images={"he": image, "small": small}, shapes={"spots": spots}, tables={"table": table}
    )
    data.write(path)


# ---------------------------------------------------------------------------- tasks, everything

CASES = 40  # every fourth has two slides
MUTANT = np.arange(CASES) // 2 % 2  # in both folds alike
STATUS = {"status": np.where(MUTANT, "mutant", "wildtype")}
NAMES = {"label_dict": {"0": "wildtype", "1": "mutant"}}


def write_slide_task(
    folder: Path, columns=STATUS, config=NAMES, *, sample="case_id", folds=True, shift=3.0
) -> tuple[Path, Path]:
    """Write a task into FOLDER/task and features into FOLDER/features.

    A mutant has 2 of its 10 patches moved. Returns the two folders.
    """
    root = folder / "task"
    features = folder / "features"
    root.mkdir(exist_ok=True)
    features.mkdir(exist_ok=True)
    cases = [f"c{i}" for i in range(CASES)]
    labels = pd.DataFrame({"case_id": cases, **columns})
    if folds:
        labels["fold_0"] = np.where(np.arange(CASES) % 2, "train", "test")
        labels["fold_1"] = np.where(np.arange(CASES) % 2, "test", "train")
    slides = pd.DataFrame(
        [(case, f"{case}_{k}") for i, case in enumerate(cases) for k in range(1 + (i % 4 == 3))],
        columns=["case_id", "slide_id"],
    )
    slides.merge(labels).to_csv(root / "k=all.tsv", sep="\t", index=False)
    config = {"task_col": list(columns)[0], "sample_col": sample, **config}
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    rng = np.random.default_rng(0)
    for i, slide in slides.iterrows():
        x = rng.standard_normal((10, 4)).astype("f4")
        x[:2, 0] += shift * MUTANT[cases.index(slide.case_id)]
        with h5py.File(features / f"{slide.slide_id}.h5", "w") as file:
            file["features"] = x if i % 2 else x[None]  # both shapes that TRIDENT has written
    return root, features


def write_everything(root: Path, phantom_root: Path, sections, run: Path) -> Path:
    """Write data of every kind, each in a folder of its name.

    They come from a phantom, its sections and a run on the first. Returns `root`.
    """
    import tifffile

    from seal_lite.data.genes import GenePanel
    from seal_lite.data.shards import write_shards

    truth = make_truth()
    shutil.copytree(phantom_root, root / "legacy")
    shutil.copytree(run, root / "run")
    for name in ("h5ad", "slides", "bench"):
        (root / name).mkdir()
    make_h5ad(truth).write_h5ad(root / "h5ad/S1.h5ad")
    for path in ("h5ad/S1.tif", "slides/s.tif", "slides/t.tif"):
        write_pyramid(root / path, truth.image, um_per_px=UM)
    write_visium(root / "visium/S1", truth)
    tifffile.imwrite(root / "visium/S1/image.tif", truth.image, photometric="rgb")
    write_xenium(root / "xenium/S1", truth)
    write_spatialdata(root / "zarr/S1.zarr", truth)
    write_hest(root / "hest", truth)
    write_hest(root / "ready", truth, image="patches")
    folds = [(["PA1"], ["PB1"]), (["PB1"], ["PA1"])]
    write_task(root / "bench", "TINY", sections, folds=folds, genes=["ERBB2", "COL1A1"])
    write_slide_task(root)
    (root / "sets.gmt").write_text("tumour\tx\tERBB2\tGRB7\tEPCAM\n")
    config = replace(Config.from_json(root / "run/config.json"), n_views=2, gene_warmup_epochs=0)
    panel = GenePanel.from_config(sections[:1], config)
    write_shards(sections[:1], root / "shards", panel=panel, config=config)
    return root
