"""From files to counts and coordinates: a function for each format, (path, labels) -> AnnData.

What they return is raw: counts in `layers["counts"]`, `raw` or `X`, `obsm["spatial"]` in px of the
full image, `obs` array_col and array_row where there is an array, and in `uns` what the source says
of um_per_px, step_um, spot_um, image_path, patient, species, and more. `sections` checks it all,
and makes an `InputError` of what a reader cannot read.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .errors import InputError, reading
from .files import open_h5
from .images import open_slide

log = logging.getLogger(__name__)

LEGACY = {"step_um": (200.0,) * 2, "spot_um": 100.0, "upright": True}  # Ståhl et al., 2016
VISIUM = {"step_um": (50.0, 50.0 * 3**0.5), "spot_um": 55.0}  # 10x Genomics, 6.5 mm slide
POOL_UM = 100.0  # edge of pseudo-spots; HEST pools to the same
MIN_QV = 20.0  # Xenium's own threshold for a transcript to be counted
SCALE = "spatial/scalefactors_json.json"
KEPT = ("um_per_px", "pitch_um", "spot_um", "patient", "species")  # of an AnnData's `uns`
CONTROLS = "NegControl|antisense|BLANK|Unassigned|Deprecated|Intergenic"


def spots_of(counts, obs, genes, xy, told):
    """An AnnData of spots: counts (n, g), names of genes (g,), x, y in px (n, 2), `uns`."""
    import anndata as ad

    counts = sp.csr_matrix(counts, dtype=np.float32)
    var = genes if isinstance(genes, pd.DataFrame) else pd.DataFrame(index=genes)
    return ad.AnnData(counts, obs=obs, var=var, layers={"counts": counts}, uns=told,
                      obsm={"spatial": np.asarray(xy, np.float64)})  # fmt: skip


def legacy(path: Path, labels):
    """her2st's layout (Andersson et al., 2021).

    Below data/, ST-cnts/<section>.tsv.gz holds rows "XxY" and columns of genes, ST-spotfiles/
    <section>_selection.tsv x y new_x new_y pixel_x pixel_y selected, and
    ST-imgs/<patient>/<section>/ the image.
    """
    name = path.name.removesuffix(".tsv.gz")
    file = path.parents[1] / f"ST-spotfiles/{name}_selection.tsv"
    counts = read_table(path, index_col=0)
    header = read_table(path, index_col=0, header=None, nrows=1)  # pandas renames doubles
    if not counts.shape[1]:
        raise InputError(f"{path}: has one column; separate barcodes, genes and counts by tabs")
    for what, names in (("barcode", counts.index), ("gene", header.iloc[0])):
        if not names.is_unique:
            raise InputError(f"{path}: a {what} stands there twice; keep one")
    spots = read_table(file, needs=("x", "y", "pixel_x", "pixel_y"))
    if "selected" in spots:
        spots = spots[spots.selected == 1]
    spots = spots.set_axis([f"{x}x{y}" for x, y in zip(spots.x, spots.y, strict=True)])
    pixels = spots[["pixel_x", "pixel_y"]].apply(pd.to_numeric, errors="coerce").astype(float)
    if bad := [column for column in pixels if not np.isfinite(pixels[column]).all()]:
        raise InputError(f"{file}: some {bad[0]} is not a number; correct it")
    both = [b for b in spots.index if b in counts.index]
    if not both:
        raise InputError(f"{path}: no barcode is also in {file}; pair the right files")
    missing = len(spots) - len(both)
    if missing:
        log.info("%s: %d of %d selected spots have no counts: dropped", name, missing, len(spots))
    spots, pixels, counts = spots.loc[both], pixels.loc[both], counts.loc[both]
    obs = spots[["x", "y"]].astype(float).set_axis(["array_col", "array_row"], axis=1)
    told = {"source": file, "spots_without_counts": missing, "patient": patient_of(name), **LEGACY}
    return spots_of(counts.to_numpy(np.float32), obs, counts.columns.astype(str), pixels, told)


def patient_of(name: str) -> str:
    """'C2' -> 'C': her2st numbers the sections of a patient."""
    return name.rstrip("0123456789")


def read_table(path: Path, *, needs=(), **options) -> pd.DataFrame:
    """A file separated by tabs (or `sep`); unreadable, or without a column that it `needs`, an
    `InputError`."""
    with reading(path):
        table = pd.read_csv(path, **{"sep": "\t", **options})
    if lacking := sorted(set(needs) - set(table)):
        raise InputError(f"{path}: column {', '.join(lacking)} is missing; restore it")
    return table


def visium(path: Path, labels):
    """Space Ranger's folder, by squidpy; the full image lies in it or beside it."""
    import squidpy as sq

    with open_h5(path):
        adata = sq.read.visium(path.parent, counts_file=path.name)
    adata.uns = dict(VISIUM)
    return adata


def visium_hd(path: Path, labels):
    """Space Ranger's folder of Visium HD, by spatialdata-io: its 16 um bins, or 8 um ones."""
    from spatialdata_io import visium_hd as read

    sizes = [s for s in (16, 8) if (path / f"square_{s:03}um").is_dir()]
    if not sizes:
        raise InputError(f"{path}: has neither 16 nor 8 um bins; run Space Ranger with them")
    data = read(path.parent, bin_size=sizes[0], load_segmentations_only=False, gex_only=True)
    bins = path / f"square_{sizes[0]:03}um"
    adata, scale = data.tables[bins.name], json.loads((bins / SCALE).read_text())
    adata.uns = {"um_per_px": scale["microns_per_pixel"], "step_um": (float(sizes[0]),) * 2}
    return adata


def xenium(path: Path, labels):
    """Xenium's output folder with an H&E image: transcripts pooled into square pseudo-spots.

    Read in batches, so that hundreds of millions of transcripts never are in memory. The image's
    place is what *imagealignment.csv says, a 3 x 3 matrix from its px to the px of the morphology.
    """
    import pyarrow.parquet as pq

    size, folder = float(labels.get("pool_um", POOL_UM)), path.parent
    columns = ["x_location", "y_location", "feature_name", "qv"]
    parts = []
    for batch in pq.ParquetFile(path).iter_batches(2**20, columns=columns):
        table = batch.to_pandas()
        gene = table.feature_name.map(lambda g: g.decode() if isinstance(g, bytes) else g)
        keep = (table.qv >= MIN_QV) & ~gene.str.contains(CONTROLS)
        place = (table[["x_location", "y_location"]] // size).astype(int)[keep]
        parts.append(place.assign(gene=gene[keep]).value_counts())
    counts = pd.concat(parts).groupby(level=[0, 1, 2]).sum()
    array, genes = counts.index.droplevel(2), counts.index.get_level_values(2)
    (row, spots), (col, names) = pd.factorize(array, sort=True), pd.factorize(genes, sort=True)
    spots = np.array([*spots])
    pixel_um = json.loads((folder / "experiment.xenium").read_text())["pixel_size"]
    found = sorted(folder.glob("*imagealignment.csv"))
    if not found:
        raise InputError(f"{folder}: no *imagealignment.csv; export it beside the H&E image")
    align = np.loadtxt(found[0], delimiter=",")
    centre = np.c_[(spots + 0.5) * size / pixel_um, np.ones(len(spots))]
    barcodes = [f"{x}x{y}" for x, y in spots]
    obs = pd.DataFrame(spots, columns=["array_col", "array_row"], index=barcodes)
    um = pixel_um * abs(np.linalg.det(align[:2, :2])) ** 0.5
    told = {"um_per_px": um, "spot_um": size, "step_um": (size, size)}
    at = np.linalg.solve(align, centre.T).T[:, :2]
    return spots_of(sp.csr_matrix((counts, (row, col)), dtype=np.float32), obs, names, at, told)


def hest(path: Path, labels):
    """A sample of HEST-1k, with what its metadata say of it."""
    root, name, adata = path.parents[1], path.stem, h5ad(path, labels)
    about = json.loads((root / f"metadata/{name}.json").read_text())
    said = {k: v for k, v in about.items() if v == v}  # without NaN, which stands for unknown
    names = {"um_per_px": "pixel_size_um_estimated", "pitch_um": "inter_spot_dist",
             "spot_um": "spot_diameter", "patient": "patient", "species": "species"}  # fmt: skip
    labels = ("organ", "st_technology", "disease_state", "subseries")
    adata.uns = {k: said.get(v) for k, v in names.items()}
    adata.uns["labels"] = {k: str(said[k]) for k in labels if said.get(k)}
    return adata


def h5ad(path: Path, labels):
    """Any AnnData with `obsm["spatial"]` in px of the full image."""
    adata = read_h5ad(path)
    adata.uns = {k: v for k, v in adata.uns.items() if k in KEPT}
    return adata


def read_h5ad(path):
    """An AnnData file; one that declares more than it can hold is an `InputError`."""
    import anndata as ad

    with open_h5(path):
        return ad.read_h5ad(path)


def spatialdata(path: Path, labels):
    """A SpatialData store: its table, the centroids of what that annotates, its largest image.

    Where there are more, the columns table (a name) and image (NAME.zarr/images/IMAGE) choose.
    """
    import spatialdata as sd

    data = sd.read_zarr(path)
    name = labels.get("table") or next(iter(data.tables), None)
    if name not in data.tables or (len(data.tables) > 1 and "table" not in labels):
        names = ", ".join(data.tables)
        raise InputError(f"{path}: has tables {names}; name one, column table of sections.tsv")
    adata = data.tables[name]
    about, named = adata.uns["spatialdata_attrs"], labels.get("image")
    images = [Path(named).name] if named else data.images
    image = max((open_slide(path / "images" / n) for n in images), key=lambda i: i.size)
    spots, pixels = data[about["region"]], data.images[image.path.name]
    known = [sd.transformations.get_transformation(e, get_all=True) for e in (spots, pixels)]
    if not (shared := sorted(known[0].keys() & known[1].keys())):
        raise InputError(f"{path}: {image.path.name} and its spots share no coordinate system")
    centres = sd.get_centroids(spots, coordinate_system=shared[0]).compute()
    matrix = known[1][shared[0]].inverse().to_affine_matrix(("x", "y"), ("x", "y"))
    at = centres.loc[adata.obs[about["instance_key"]], ["x", "y"]].to_numpy()
    adata.obsm["spatial"] = at @ matrix[:2, :2].T + matrix[:2, 2]
    adata.uns = {k: v for k, v in adata.uns.items() if k in KEPT} | {"image_path": image.path}
    return adata
