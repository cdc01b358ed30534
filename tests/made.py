"""A section in which everything is known, and files of it in everybody's layouts."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
import tifffile
import yaml
from PIL import Image

from seal_lite import Config
from seal_lite.data.genes import GenePanel
from seal_lite.data.phantom import write_pyramid, write_task
from seal_lite.data.shards import write_shards

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
        about = {
            "id": IDS,
            "name": genes,
            "feature_type": ["Gene Expression"] * 4,
            "genome": ["GRCh38"] * 4,
        }
        for key, values in about.items():
            group[f"features/{key}"] = np.array(values, "S")
        group["features/_all_tag_keys"] = np.array(["genome"], "S")


def write_visium(folder, truth, *, header=True):
    (folder / "spatial").mkdir(parents=True)
    # a spot off the tissue is in the positions, not in the filtered counts
    write_10x(folder / "filtered_feature_bc_matrix.h5", truth.counts, truth.barcodes)
    table = pd.DataFrame(
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
    table.to_csv(folder / "spatial" / name, index=False, header=header)
    scale = {
        "spot_diameter_fullres": 27.5,
        "tissue_hires_scalef": 0.25,
        "fiducial_diameter_fullres": 40.0,
        "tissue_lowres_scalef": 0.1,
    }
    (folder / "spatial/scalefactors_json.json").write_text(json.dumps(scale))
    for which in ("hires", "lowres"):
        Image.fromarray(truth.image[::4, ::4]).save(folder / f"spatial/tissue_{which}_image.png")


def make_h5ad(truth, *, genes=GENES):
    return ad.AnnData(
        sp.csr_matrix(truth.counts),
        obs=pd.DataFrame(index=truth.barcodes),
        var=pd.DataFrame(index=list(genes)),
        obsm={"spatial": truth.xy},
    )


def write_xenium(folder, truth):
    """Xenium's folder; returns the squares of its 20 pseudo-spots and their counts of `GENES`."""
    rng, pixel_um = np.random.default_rng(2), 0.2125
    folder.mkdir(parents=True)
    (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": pixel_um}))
    square = np.array([(c, r) for r in range(4) for c in range(5)])
    counts = rng.poisson(40, (len(square), 4))
    spot, gene = (np.repeat(i.ravel(), counts.ravel()) for i in np.indices(counts.shape))
    um = (square[spot] + rng.uniform(0.01, 0.99, (len(spot), 2))) * 100
    names = np.array(GENES)[gene]
    bad = pd.DataFrame(
        {
            "x_location": [50.0, 51, 52],
            "y_location": 50.0,
            "qv": [40.0, 40, 19.9],
            "feature_name": ["NegControlProbe_1", "BLANK_0007", "ERBB2"],
        }
    )
    good = pd.DataFrame(
        {"x_location": um[:, 0], "y_location": um[:, 1], "qv": 30.0, "feature_name": names}
    )
    table = pd.concat([good, bad]).sample(frac=1, random_state=0)
    pq.write_table(pa.Table.from_pandas(table), folder / "transcripts.parquet", row_group_size=500)
    s = UM / pixel_um  # x of the morphology grows with y of the H&E, y with 450 - x
    align = np.array([[0, s, -20 * s], [-s, 0, 450 * s], [0, 0, 1]])
    np.savetxt(folder / "S1_he_imagealignment.csv", align, delimiter=",")
    write_pyramid(folder / "S1_he_image.ome.tif", truth.image, um_per_px=UM)
    Image.fromarray(truth.image).save(folder / "morphology.ome.tif")  # another stain: not this one
    return square, counts


def write_hest(root, truth, image="wsis"):
    """A sample of HEST-1k, S1, with its slide ("wsis") or with ready patches ("patches")."""
    adata = make_h5ad(truth)
    adata.obs[["array_col", "array_row"]] = truth.array
    for folder in ("st", "metadata", image):
        (root / folder).mkdir(parents=True)
    adata.write_h5ad(root / "st/S1.h5ad")
    said = {
        "pixel_size_um_estimated": UM,
        "inter_spot_dist": 100.0,
        "spot_diameter": 55.0,
        "patient": "P7",
        "species": "Homo sapiens",
        "organ": "Breast",
        "st_technology": "Visium",
        "subseries": float("nan"),
    }
    (root / "metadata/S1.json").write_text(json.dumps(said))
    if image == "wsis":
        return write_pyramid(root / "wsis/S1.tif", truth.image, um_per_px=UM)
    with h5py.File(root / "patches/S1.h5", "w") as file:  # 112 um at 224 px, as published
        slide = Image.fromarray(truth.image)
        file["img"] = np.stack(
            [
                np.asarray(
                    slide.resize(
                        (224, 224), Image.Resampling.BICUBIC, box=(x - 28, y - 28, x + 28, y + 28)
                    )
                )
                for x, y in truth.xy
            ]
        )
        file["barcode"] = np.array(truth.barcodes, "S")[:, None]
        file["coords"] = truth.xy.astype(int)


def write_spatialdata(path, truth, *, scales=None):
    """A SpatialData store: spots in um, two images of px, one coordinate system."""
    import spatialdata as sd
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Affine, Scale

    shift = Affine(np.array([[UM, 0, 40.0], [0, UM, -30.0], [0, 0, 1]]), ("x", "y"), ("x", "y"))
    image = Image2DModel.parse(
        truth.image.transpose(2, 0, 1),
        dims=("c", "y", "x"),
        transformations={"slide": shift},
        scale_factors=scales,
    )
    eighth = {"slide": Scale([8 * UM] * 2, ("x", "y"))}
    small = Image2DModel.parse(
        truth.image[::8, ::8].transpose(2, 0, 1), dims=("c", "y", "x"), transformations=eighth
    )
    spots = ShapesModel.parse(
        (truth.xy * UM + [40, -30])[::-1],
        geometry=0,
        radius=27.5,
        index=np.arange(len(truth.xy))[::-1],
        transformations={"slide": sd.transformations.Identity()},
    )
    adata = make_h5ad(truth)
    del adata.obsm["spatial"]
    adata.obs["spot"], adata.obs["region"] = (
        np.arange(len(truth.xy)),
        pd.Categorical(["spots"] * len(truth.xy)),
    )
    adata.uns["um_per_px"] = UM
    table = TableModel.parse(adata, region="spots", region_key="region", instance_key="spot")
    data = sd.SpatialData(
        images={"he": image, "small": small}, shapes={"spots": spots}, tables={"table": table}
    )
    data.write(path)


CASES = 40  # every fourth has two slides
MUTANT = np.arange(CASES) // 2 % 2  # in both folds alike
STATUS = {"status": np.where(MUTANT, "mutant", "wildtype")}
NAMES = {"label_dict": {"0": "wildtype", "1": "mutant"}}


def write_slide_task(
    where, columns=STATUS, config=NAMES, *, sample="case_id", folds=True, shift=3.0
):
    """A task in WHERE/task, features in WHERE/features; a mutant has 2 of 10 patches moved."""
    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(CASES)]
    slides = [(c, f"{c}_{k}") for i, c in enumerate(names) for k in range(1 + (i % 4 == 3))]
    table = pd.DataFrame({"case_id": names, **columns})
    if folds:
        table["fold_0"] = np.where(np.arange(CASES) % 2, "train", "test")
        table["fold_1"] = np.where(np.arange(CASES) % 2, "test", "train")
    table = pd.DataFrame(slides, columns=["case_id", "slide_id"]).merge(table)
    root, features = where / "task", where / "features"
    for folder in (root, features):
        folder.mkdir(exist_ok=True)
    table.to_csv(root / "k=all.tsv", sep="\t", index=False)
    config = {"task_col": list(columns)[0], "sample_col": sample, **config}
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    for i, (case, slide) in enumerate(slides):
        x = rng.standard_normal((10, 4)).astype("f4")
        x[:2, 0] += shift * (names.index(case) // 2 % 2)
        with h5py.File(features / f"{slide}.h5", "w") as file:
            file["features"] = x if i % 2 else x[None]  # both shapes that TRIDENT has written
    return root, features


def write_everything(root, phantom_root, sections, run):
    """A folder with data of every kind, each in a folder of its name, from a phantom, its sections
    and a run on the first."""
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
    write_hest(root / "ready", truth, "patches")
    folds = [(["PA1"], ["PB1"]), (["PB1"], ["PA1"])]
    write_task(root / "bench", "TINY", sections, folds, ["ERBB2", "COL1A1"])
    write_slide_task(root)
    (root / "sets.gmt").write_text("tumour\tx\tERBB2\tGRB7\tEPCAM\n")
    config = replace(Config.from_json(root / "run/config.json"), n_views=2, gene_warmup_epochs=0)
    panel = GenePanel.from_config(sections[:1], config)
    write_shards(sections[:1], panel, config, root / "shards")
    return root
