"""SpatialData stores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seal_lite.data.readers.common import add_note, kept_metadata, text_of
from seal_lite.data.readers.h5ad import one_library
from seal_lite.data.readers.sparse import check_matrices
from seal_lite.errors import InputError
from seal_lite.io import open_zarr
from seal_lite.paths import check_store

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

TABLES = ("tables", "table")  # where a store keeps them, and where version 0.0 did
Systems = dict[str, Any]  # spatialdata's transformation to each coordinate system, by its name


def read_spatialdata(path: Path, labels: dict[str, str]) -> AnnData:
    """Read a SpatialData store: its table, the centroids of what that annotates, its H&E image.

    The image is the largest of three channels of 8 bits. Where there are more, the labels table (a
    name), library (a region) and image (NAME.zarr/images/IMAGE) choose. Rows of the table without
    a place on the image are dropped and reported.

    Raises
    ------
    InputError
        If table or image are missing, the choice of the table is open, several regions lie on one
        another, spots and image share no coordinate system, or as `check_store`, `open_zarr` and
        `check_matrices` do.
    """
    import spatialdata

    check_store(path)
    for consolidated in (None, False):  # what a store repeats about its arrays may differ
        store = open_zarr(path, use_consolidated=consolidated)
        for tables in TABLES:
            if tables in store:
                check_matrices(path, store[tables])
    data = spatialdata.read_zarr(path)
    adata = data.tables[_table_name(path, data, labels)]
    if "spatialdata_attrs" not in adata.uns:
        raise InputError(f"{path}: its table annotates no region; write one that does")
    region_key = adata.uns["spatialdata_attrs"]["region_key"]
    regions = adata.obs[region_key].astype(object)
    if "library" in labels:
        adata = adata[(regions == labels["library"]).to_numpy()].copy()
        regions = adata.obs[region_key].astype(object)
    transforms = {name: _transforms(data[name]) for name in regions.dropna().unique()}
    image = _image_name(path, data, labels, transforms)
    adata.obsm["spatial"] = _pixels(data, adata, image)
    adata.uns = {**kept_metadata(adata.uns), "image_path": path / "images" / image}
    is_placed = np.isfinite(adata.obsm["spatial"]).all(axis=1)
    if not is_placed.all():
        n_dropped = (~is_placed).sum()
        add_note(path, adata, f"{n_dropped} rows of its table have no place on {image}: dropped")
    return one_library(path, adata[is_placed].copy(), column=region_key)


def _table_name(path: Path, data: SpatialData, labels: dict[str, str]) -> str:
    """Return the name of the table to read: the label's, or that of the only one."""
    names = list(data.tables)
    if "table" in labels and labels["table"] in names:
        return labels["table"]
    if "table" not in labels and len(names) == 1:
        return names[0]
    if not names:
        raise InputError(f"{path}: has no table of counts; write one into the store")
    raise InputError(
        f"{path}: has tables {', '.join(names)}; name one in the column table of sections.tsv"
    )


def _image_name(
    path: Path, data: SpatialData, labels: dict[str, str], transforms: Mapping[str, Systems]
) -> str:
    """Return the name of the image that the label names, else of the largest one in colour.

    It shares a coordinate system with each region, whose ones are `transforms`.
    """
    names = list(data.images)
    if not names:
        raise InputError(f"{path}: has no image; write its H&E into the store")
    if "image" in labels:
        named = Path(labels["image"]).name
        if named not in names:
            raise InputError(f"{path}: has images {', '.join(names)}; correct sections.tsv")
        in_colour = {named: 1}
    else:
        sizes = {name: _colour_size(data.images[name]) for name in names}
        in_colour = {name: size for name, size in sizes.items() if size}
    if not in_colour:
        raise InputError(
            f"{path}: none of its images ({', '.join(names)}) has colours of 8 bits; "
            "write its H&E into the store"
        )
    for name in sorted(in_colour, key=in_colour.__getitem__, reverse=True):
        systems = _transforms(data.images[name]).keys()
        if transforms and all(systems & of_region.keys() for of_region in transforms.values()):
            return name
    raise InputError(
        f"{path}: no image shares a coordinate system with {', '.join(transforms) or 'a region'}; "
        "write one for both, or name one region in the column library of sections.tsv"
    )


def _transforms(element: Any) -> Systems:
    """Return an element's transformation to each of its coordinate systems."""
    from spatialdata.transformations import get_transformation

    return get_transformation(element, get_all=True)


def _colour_size(image: Any) -> int:
    """Return the number of px of an image of three or four channels of 8 bits, 0 of any other."""
    from spatialdata import get_pyramid_levels

    largest = get_pyramid_levels(image, n=0) if hasattr(image, "subtree") else image  # of a tree
    if largest.dtype != np.uint8 or largest.sizes["c"] not in (3, 4):
        return 0
    return largest.sizes["y"] * largest.sizes["x"]


def _pixels(data: SpatialData, adata: AnnData, image_name: str) -> np.ndarray:
    """Return x, y (n, 2) of the spots in px of an image, NaN where a spot has no place.

    Each region has its own transformation to a coordinate system of the image.
    """
    from spatialdata import get_centroids

    annotation = adata.uns["spatialdata_attrs"]
    region_of = adata.obs[annotation["region_key"]].astype(object)
    instance_of = adata.obs[annotation["instance_key"]].astype(object).map(text_of)
    of_image = _transforms(data.images[image_name])
    xy = np.full((adata.n_obs, 2), np.nan)
    for region in region_of.dropna().unique():
        is_own = (region_of == region).to_numpy()
        system = sorted(_transforms(data[region]).keys() & of_image.keys())[0]
        centroids = get_centroids(data[region], coordinate_system=system).compute()
        centroids.index = centroids.index.map(text_of)
        places = centroids.reindex(instance_of[is_own])[["x", "y"]].to_numpy()
        to_px = of_image[system].inverse().to_affine_matrix(("x", "y"), ("x", "y"))
        xy[is_own] = places @ to_px[:2, :2].T + to_px[:2, 2]
    return xy
