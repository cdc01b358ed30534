"""SpatialData stores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seal_lite.data.images import Slide, open_slide
from seal_lite.data.readers.common import kept_metadata
from seal_lite.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def read_spatialdata(path: Path, labels: dict[str, str]) -> AnnData:
    """Read a SpatialData store: its table, the centroids of what that annotates, its largest image.

    Where there are more, the labels table (a name) and image (NAME.zarr/images/IMAGE) choose.

    Raises
    ------
    InputError
        If the choice of the table is open, or spots and image share no coordinate system.
    """
    import spatialdata

    data = spatialdata.read_zarr(path)
    adata = data.tables[_table_name(path, data, labels)]
    slide = _largest_image(path, data, labels)
    adata.obsm["spatial"] = _pixels(path, data, adata, slide.path.name)
    adata.uns = {**kept_metadata(adata.uns), "image_path": slide.path}
    return adata


def _table_name(path: Path, data: SpatialData, labels: dict[str, str]) -> str:
    """Return the name of the table to read: the label's, or that of the only one."""
    names = list(data.tables)
    if "table" in labels and labels["table"] in names:
        return labels["table"]
    if "table" not in labels and len(names) == 1:
        return names[0]
    raise InputError(
        f"{path}: has tables {', '.join(names)}; name one in the column table of sections.tsv"
    )


def _largest_image(path: Path, data: SpatialData, labels: dict[str, str]) -> Slide:
    """Open the image that the label names, else the largest of the store."""
    if "image" in labels:
        return open_slide(path / "images" / Path(labels["image"]).name)
    slides = [open_slide(path / "images" / name) for name in data.images]
    return max(slides, key=lambda slide: slide.size)


def _pixels(path: Path, data: SpatialData, adata: AnnData, image_name: str) -> np.ndarray:
    """Return x, y (n, 2) of the spots in px of an image, by a coordinate system of both."""
    from spatialdata import get_centroids
    from spatialdata.transformations import get_transformation

    annotation = adata.uns["spatialdata_attrs"]
    shapes = data[annotation["region"]]
    of_shapes = get_transformation(shapes, get_all=True)
    of_image = get_transformation(data.images[image_name], get_all=True)
    shared = sorted(of_shapes.keys() & of_image.keys())
    if not shared:
        raise InputError(
            f"{path}: {image_name} and its spots share no coordinate system; write one for both"
        )
    centroids = get_centroids(shapes, coordinate_system=shared[0]).compute()
    xy = centroids.loc[adata.obs[annotation["instance_key"]], ["x", "y"]].to_numpy()
    to_px = of_image[shared[0]].inverse().to_affine_matrix(("x", "y"), ("x", "y"))
    return xy @ to_px[:2, :2].T + to_px[:2, 2]
