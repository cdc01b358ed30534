"""SpatialData stores."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from seal_lite.data.readers.common import kept_metadata, text_of
from seal_lite.data.readers.h5ad import one_library
from seal_lite.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

log = logging.getLogger(__name__)


def read_spatialdata(path: Path, labels: dict[str, str]) -> AnnData:
    """Read a SpatialData store: its table, the centroids of what that annotates, its H&E image.

    The image is the largest of three channels of 8 bits. Where there are more, the labels table (a
    name), library (a region) and image (NAME.zarr/images/IMAGE) choose. Rows of the table without
    a place on the image are dropped and reported in the log.

    Raises
    ------
    InputError
        If table or image are missing, the choice of the table is open, several regions lie on one
        another, or spots and image share no coordinate system.
    """
    import spatialdata

    data = spatialdata.read_zarr(path)
    adata = data.tables[_table_name(path, data, labels)]
    if "spatialdata_attrs" not in adata.uns:
        raise InputError(f"{path}: its table annotates no region; write one that does")
    region_key = adata.uns["spatialdata_attrs"]["region_key"]
    image = _image_name(path, data, labels)
    adata.obsm["spatial"] = _pixels(path, data, adata, image)
    is_placed = np.isfinite(adata.obsm["spatial"]).all(axis=1)
    if not is_placed.all():
        log.info("%s: %d rows have no place on %s: dropped", path, (~is_placed).sum(), image)
    adata = one_library(path, adata[is_placed].copy(), labels, column=region_key)
    adata.uns = {**kept_metadata(adata.uns), "image_path": path / "images" / image}
    return adata


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


def _image_name(path: Path, data: SpatialData, labels: dict[str, str]) -> str:
    """Return the name of the image that the label names, else of the largest one in colour."""
    sizes = {name: _colour_size(image) for name, image in data.images.items()}
    if not sizes:
        raise InputError(f"{path}: has no image; write its H&E into the store")
    if "image" in labels:
        name = Path(labels["image"]).name
        if name in sizes:
            return name
        raise InputError(f"{path}: has images {', '.join(sizes)}; correct sections.tsv")
    name = max(sizes, key=sizes.__getitem__)
    if not sizes[name]:
        raise InputError(
            f"{path}: none of its images ({', '.join(sizes)}) has three channels of 8 bits; "
            "write its H&E into the store"
        )
    return name


def _colour_size(image: Any) -> int:
    """Return the number of px of an image of three or four channels of 8 bits, 0 of any other."""
    from spatialdata import get_pyramid_levels

    largest = get_pyramid_levels(image, n=0)
    if largest.dtype != np.uint8 or largest.sizes["c"] not in (3, 4):
        return 0
    return largest.sizes["y"] * largest.sizes["x"]


def _pixels(path: Path, data: SpatialData, adata: AnnData, image_name: str) -> np.ndarray:
    """Return x, y (n, 2) of the spots in px of an image, NaN where a spot has no place on it.

    Each region has its own transformation to a coordinate system of the image.
    """
    from spatialdata import get_centroids
    from spatialdata.transformations import get_transformation

    annotation = adata.uns["spatialdata_attrs"]
    region_of = adata.obs[annotation["region_key"]].astype(object)
    instance_of = adata.obs[annotation["instance_key"]].map(text_of)
    of_image = get_transformation(data.images[image_name], get_all=True)
    xy = np.full((adata.n_obs, 2), np.nan)
    for region in region_of.dropna().unique():
        is_own = (region_of == region).to_numpy()
        element = data[region]
        shared = sorted(get_transformation(element, get_all=True).keys() & of_image.keys())
        if not shared:
            continue
        centroids = get_centroids(element, coordinate_system=shared[0]).compute()
        centroids.index = centroids.index.map(text_of)
        places = centroids.reindex(instance_of[is_own])[["x", "y"]].to_numpy()
        to_px = of_image[shared[0]].inverse().to_affine_matrix(("x", "y"), ("x", "y"))
        xy[is_own] = places @ to_px[:2, :2].T + to_px[:2, 2]
    if np.isnan(xy).all():
        raise InputError(
            f"{path}: {image_name} and its spots share no coordinate system; write one for both"
        )
    return xy
