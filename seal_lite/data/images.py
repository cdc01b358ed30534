"""Images read by region, so that a slide of any size never enters memory as a whole.

A plain image (JPEG, PNG) has one level and is decoded whole. TIFF, SVS and the like are read
through tiffslide, an image of a SpatialData store (OME-Zarr) through zarr.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from seal_lite.errors import InputError, reading
from seal_lite.io import refuse_bomb

if TYPE_CHECKING:
    import zarr
    from tiffslide import TiffSlide

PLAIN_SUFFIXES = (".jpg", ".jpeg", ".png")
IMAGE_SUFFIXES = (*PLAIN_SUFFIXES, ".svs", ".tif", ".tiff", ".btf", ".ndpi", ".scn", ".vms")
STRIP_PX = 2**24  # px that a thumbnail reads at a time: about 50 MB of RGB
MIN_SATURATION = 12  # of 255; a slide without tissue has grey noise only
Image.MAX_IMAGE_PIXELS = 2**31  # plain images are trusted local files of about 10^8 px

Box = tuple[int, int, int, int]  # left, top, right, bottom in px
AnyImage = Image.Image | np.ndarray


@dataclass(frozen=True)
class Slide:
    """An image of known size whose regions are read one by one.

    Attributes
    ----------
    path
        The file, or the folder of an OME-Zarr image.
    size
        Width and height in px of full resolution.
    um_per_px
        Microns per px of full resolution, or None where the image does not state it.
    levels
        (n,) px of full resolution per px of each level, rising from 1.
    region
        Function (level, box) that returns the box, in px of that level and inside it, as an image
        or an array (h, w, channels).
    decoded
        Whether the whole image is in memory already.
    """

    path: Path
    size: tuple[int, int]
    um_per_px: float | None
    levels: tuple[float, ...]
    region: Callable[[int, Box], AnyImage]
    decoded: bool = False

    def read(self, x: float, y: float, *, edge: float, px: int) -> np.ndarray:
        """Read a square at sub-pixel precision, from the coarsest level that has the detail.

        Parameters
        ----------
        x, y
            The square's upper left corner in px of full resolution.
        edge
            The square's width in px of full resolution.
        px
            Width of the result in px.

        Returns
        -------
        numpy.ndarray
            (px, px, 3) uint8 RGB.

        Raises
        ------
        InputError
            If the image has more than 8 bits a channel, or the region cannot be read.
        """
        level = self._coarsest_level(edge / px)
        step = self.levels[level]
        start = np.array([x, y]) / step
        stop = start + edge / step
        if self.decoded:  # resampling the whole image gives the same values for every region
            low = np.zeros(2, int)
            high = np.array(self.size)
        else:
            level_size = np.ceil(np.array(self.size) / step - 0.01)
            margin = 2 * max(1.0, edge / step / px) + 1  # px that the bicubic filter looks at
            low = np.clip(np.floor(start - margin), 0, level_size).astype(int)
            high = np.clip(np.ceil(stop + margin), 0, level_size).astype(int)
        image = to_rgb(self.region(level, (low[0], low[1], high[0], high[1])), self.path)
        left, top = start - low
        right, bottom = stop - low
        return resized(image, px, box=(left, top, right, bottom))

    def thumbnail(self, factor: float) -> np.ndarray:
        """Return the whole image with 1 px for `factor` px of full resolution.

        The image is read in strips, so that it is never in memory as a whole.

        Returns
        -------
        numpy.ndarray
            (h, w, 3) uint8 RGB.

        Raises
        ------
        InputError
            If the image has more than 8 bits a channel, or cannot be read.
        """
        width, height = (max(1, round(s / factor)) for s in self.size)
        level = self._coarsest_level(factor)
        step = self.levels[level]
        level_width, level_height = (max(1, int(s / step + 0.01)) for s in self.size)
        scale = level_height / height  # rows of the level for one row of the thumbnail
        strip_height = max(1, int(STRIP_PX / level_width / scale))
        strips = []
        for first in range(0, height, strip_height):
            last = min(first + strip_height, height)
            low = int(first * scale)
            high = min(level_height, int(np.ceil(last * scale)))
            image = to_rgb(self.region(level, (0, low, level_width, high)), self.path)
            box = (0, first * scale - low, level_width, min(last * scale, level_height) - low)
            strip = image.resize((width, last - first), Image.Resampling.BOX, box=box)
            strips.append(np.asarray(strip))
        return np.concatenate(strips)

    def _coarsest_level(self, factor: float) -> int:
        """Return the coarsest level with at most `factor` full px per px; 0 where none has."""
        fine_enough = [i for i, step in enumerate(self.levels) if step <= factor + 1e-6]
        return max(fine_enough, default=0)


def open_slide(path: str | Path, *, um_per_px: float | None = None) -> Slide:
    """Open an image for reading by region.

    Parameters
    ----------
    path
        A plain image, a slide that tiffslide reads, or the folder of an OME-Zarr image.
    um_per_px
        Microns per px of full resolution; overrides what the file states.

    Raises
    ------
    InputError
        If the file is damaged or of no format that can be read.
    """
    path = Path(path)
    if path.suffix.lower() in PLAIN_SUFFIXES:
        return _open_plain(path, um_per_px)
    if path.is_dir():
        return _open_zarr(path, um_per_px)
    return _open_tiff(path, um_per_px)


def _open_plain(path: Path, um_per_px: float | None) -> Slide:
    """Decode a JPEG or PNG, which states no scale."""
    image = open_image(path)
    region = partial(_plain_region, image)
    return Slide(path, image.size, um_per_px, (1.0,), region, decoded=True)


def _plain_region(image: Image.Image, level: int, box: Box) -> Image.Image:
    """Crop the image, unless the box is all of it."""
    if box == (0, 0, *image.size):
        return image
    return image.crop(box)


def _open_tiff(path: Path, um_per_px: float | None) -> Slide:
    """Open a TIFF, SVS and the like, which may state its scale."""
    from tiffslide import TiffSlide

    with reading(path):
        slide = TiffSlide(path)
        width, height = slide.dimensions
        levels = tuple(float(step) for step in slide.level_downsamples)
        stated = slide.properties.get("tiffslide.mpp-x")
        refuse_bomb(path, width * height)
    if um_per_px is None and stated is not None:
        um_per_px = float(stated)
    region = partial(_tiff_region, path, slide)
    return Slide(path, (width, height), um_per_px, levels, region)


def _tiff_region(path: Path, slide: TiffSlide, level: int, box: Box) -> np.ndarray:
    """Read a box of a level; tiffslide takes its corner in px of full resolution."""
    left, top, right, bottom = box
    step = slide.level_downsamples[level]
    corner = (int(np.ceil(left * step)), int(np.ceil(top * step)))
    with reading(path):
        return slide.read_region(corner, level, (right - left, bottom - top), as_array=True)


def _open_zarr(path: Path, um_per_px: float | None) -> Slide:
    """Open an OME-Zarr image, whose arrays are (channels, h, w), one for each level."""
    import zarr

    with reading(path, fault="is no OME-Zarr image", remedy="write it again"):
        group = zarr.open_group(path, mode="r")
        attributes = dict(group.attrs)
        ome: Any = attributes.get("ome", attributes)
        (scales,) = ome["multiscales"]
        arrays: list[Any] = [group[dataset["path"]] for dataset in scales["datasets"]]
        refuse_bomb(path, sum(array.nbytes for array in arrays))
    height, width = arrays[0].shape[1:]
    levels = tuple(width / array.shape[2] for array in arrays)
    region = partial(_zarr_region, path, arrays)
    return Slide(path, (width, height), um_per_px, levels, region)


def _zarr_region(path: Path, arrays: list[zarr.Array], level: int, box: Box) -> np.ndarray:
    """Read a box of a level, channels last."""
    left, top, right, bottom = box
    with reading(path):
        channels_first = np.asarray(arrays[level][:, top:bottom, left:right])
    return np.moveaxis(channels_first, 0, -1)


def resized(
    image: Image.Image, px: int, *, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Return an image, or a box of it in px, as an array (px, px, channels) uint8.

    The filter is bicubic, and low-pass where the result has fewer pixels.
    """
    return np.asarray(image.resize((px, px), Image.Resampling.BICUBIC, box))


def to_rgb(image: AnyImage, path: str | Path) -> Image.Image:
    """Convert any 8-bit image, or array (h, w, channels), to RGB.

    Raises
    ------
    InputError
        If the image has more than 8 bits a channel; clipping would whiten it. `path` names it.
    """
    if isinstance(image, Image.Image):
        is_deep = image.mode[0] in "IF"
    else:
        is_deep = image.dtype != np.uint8
    if is_deep:
        raise InputError(f"{path}: has more than 8 bits a channel; convert it to 8-bit RGB")
    if isinstance(image, np.ndarray):
        is_grey = image.shape[-1] == 1
        image = Image.fromarray(image[..., 0] if is_grey else image)
    if image.mode == "RGB":
        return image
    return image.convert("RGB")


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


def tissue_mask(image: np.ndarray) -> np.ndarray:
    """Return where an image shows tissue.

    Parameters
    ----------
    image
        (h, w, 3) uint8 RGB, usually a thumbnail.

    Returns
    -------
    numpy.ndarray
        (h, w) bool.

    Notes
    -----
    Tissue is where the saturation (of HSV) exceeds its threshold by Otsu (1979).
    """
    from skimage.filters import threshold_otsu

    saturation = np.asarray(Image.fromarray(image).convert("HSV"))[..., 1]
    threshold = max(threshold_otsu(saturation), MIN_SATURATION)
    return saturation > threshold
