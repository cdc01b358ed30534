"""Images of every format as `Slide`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from seal_lite.data.images.blocks import Blocks, read_level
from seal_lite.data.images.colour import to_rgb
from seal_lite.data.images.slide import Box, Slide
from seal_lite.data.images.tiff import open_tiff
from seal_lite.data.images.vendors import VENDOR_SUFFIXES, is_vendors, open_vendors
from seal_lite.errors import InputError, reading, refuse_special
from seal_lite.io import refuse_bomb
from seal_lite.paths import check_store

if TYPE_CHECKING:
    import zarr

PLAIN_SUFFIXES = (".jpg", ".jpeg", ".png")
IMAGE_SUFFIXES = (*PLAIN_SUFFIXES, ".svs", ".tif", ".tiff", ".btf", ".ndpi", ".scn")
UNREAD_SUFFIXES = (".czi", ".isyntax", ".vsi")  # of slides that no reader here knows
# The images that are open, in a block of `slides_kept_open`.
_KEPT: ContextVar[dict[tuple[Path, float | None], Slide] | None] = ContextVar("kept", default=None)
Image.MAX_IMAGE_PIXELS = 2**31  # plain images are trusted local files of about 10^8 px


def is_hidden(path: Path) -> bool:
    """Return whether a path, relative to the folder in question, is or lies in a hidden one.

    macOS writes a hidden ._NAME beside each NAME on disks of other systems.
    """
    return any(part.startswith(".") for part in path.parts)


def open_slide(path: str | Path, um_per_px: float | None = None) -> Slide:
    """Open an image for reading by region.

    Parameters
    ----------
    path
        A plain image, a slide, or the folder of an OME-Zarr image.
    um_per_px
        Microns per px of full resolution, for a file that does not state it.

    Raises
    ------
    InputError
        If the file is damaged or of no format that can be read.
    """
    path = Path(path)
    kept = _KEPT.get()
    if kept is None:
        return _open_format(path, um_per_px)
    key = (path, um_per_px)
    if key not in kept:
        kept[key] = _open_format(path, um_per_px)
    return kept[key]


@contextmanager
def slides_kept_open() -> Iterator[None]:
    """Open each image once while the block lasts: to open it again gives the same slide.

    What reads a section by steps, its scale, patches and thumbnails, would decode it for each.
    """
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def _open_format(path: Path, um_per_px: float | None) -> Slide:
    """Open an image by the reader of its format."""
    refuse_special(path)
    if path.suffix.lower() in PLAIN_SUFFIXES:
        return _open_plain(path, um_per_px)
    if path.is_dir():
        return _open_zarr(path, um_per_px)
    if path.suffix.lower() in VENDOR_SUFFIXES:
        return open_vendors(path, um_per_px)
    try:
        return open_tiff(path, um_per_px)
    except InputError:
        if not is_vendors(path):
            raise
    return open_vendors(path, um_per_px)


def _open_plain(path: Path, um_per_px: float | None) -> Slide:
    """Decode a JPEG or PNG, which states no scale."""
    image = open_image(path)
    region = partial(_plain_region, image)
    return Slide(path, image.size, um_per_px, (1.0,), region)


def _plain_region(image: Image.Image, level: int, box: Box) -> Image.Image:
    """Crop the image, unless the box is all of it."""
    if box == (0, 0, *image.size):
        return image
    return image.crop(box)


def _open_zarr(path: Path, um_per_px: float | None) -> Slide:
    """Open an OME-Zarr image, one array for each level."""
    import zarr

    with reading(path, fault="is no OME-Zarr image", remedy="write it again"):
        check_store(path)
        group = zarr.open_group(path, mode="r")
        attributes = dict(group.attrs)
        ome: Any = attributes.get("ome", attributes)
        (scales,) = ome["multiscales"]
        arrays: list[Any] = [group[dataset["path"]] for dataset in scales["datasets"]]
        refuse_bomb(path, sum(array.nbytes for array in arrays))
        axes = "".join(axis["name"] for axis in scales.get("axes", ())) or "cyx"
        width, height = (arrays[0].shape[axes.index(axis)] for axis in "xy")
        _check_planes(path, axes, arrays[0].shape)
        steps = tuple(width / array.shape[axes.index("x")] for array in arrays)
        levels = [_blocks_of(array, axes) for array in arrays]
    region = partial(read_level, path, levels)
    blocks = tuple(level.block for level in levels)
    return Slide(path, (width, height), um_per_px, steps, region, blocks=blocks)


def _blocks_of(array: zarr.Array, axes: str) -> Blocks:
    """Return an array's blocks, channels last: its chunks, which may be the whole image."""

    def decode(box: Box) -> np.ndarray:
        left, top, right, bottom = box
        place = {"x": slice(left, right), "y": slice(top, bottom), "c": slice(None)}
        pixels = np.asarray(array[tuple(place.get(axis, 0) for axis in axes)])
        kept = [axis for axis in axes if axis in place]
        rows_first = pixels.transpose([kept.index(axis) for axis in "yxc" if axis in kept])
        return rows_first if "c" in kept else rows_first[..., None]

    width, height = (array.shape[axes.index(axis)] for axis in "xy")
    chunk_width, chunk_height = (array.chunks[axes.index(axis)] for axis in "xy")
    px_bytes = max(1, array.nbytes // (width * height))
    block = (min(chunk_height, height), min(chunk_width, width))
    return Blocks(decode, (width, height), block, px_bytes=px_bytes, one_at_a_time=True)


def _check_planes(path: Path, axes: str, shape: tuple[int, ...]) -> None:
    """Raise an `InputError` where an image is a stack or a film."""
    for axis, length in zip(axes, shape, strict=True):
        if axis not in "cyx" and length > 1:
            raise InputError(f"{path}: has {length} planes along {axis}; write the one to read")


def open_image(path: str | Path) -> Image.Image:
    """Decode a plain image to RGB.

    Raises
    ------
    InputError
        If the file is damaged, or has more than 8 bits a channel.
    """
    with reading(path, fault="cannot be decoded"):
        image = Image.open(path)
        refuse_bomb(path, image.width * image.height)
        image.load()
    return to_rgb(image, path)
