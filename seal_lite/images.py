"""Images read by region, so that a slide of any size never enters memory as a whole.

A picture (JPEG, PNG) has one level and is decoded whole; a TIFF, SVS and the like is read through
tiffslide, an image of a SpatialData store (OME-Zarr) through zarr.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import InputError, reading
from .files import refuse_bomb

PICTURES = (".jpg", ".jpeg", ".png")
KINDS = (*PICTURES, ".svs", ".tif", ".tiff", ".btf", ".ndpi", ".scn", ".vms")
MAX_UPSAMPLING = 2.0  # more would ask for detail the scanner never recorded
Image.MAX_IMAGE_PIXELS = 2**31  # pictures are trusted local files of about 10^8 px


@dataclass(frozen=True)
class Slide:
    """An image of known size and, where it says so, scale.

    size: width and height in px of full resolution. um_per_px: there, or None. levels: (n,) full px
    per px of each level, rising. region: (level, box) -> uint8 (h, w, channels), the box in px of
    that level and inside it. decoded: the whole image is in memory and need not be cut twice. Both
    methods raise `InputError` for more than 8 bits a channel.
    """

    path: Path
    size: tuple[int, int]
    um_per_px: float | None
    levels: tuple[float, ...]
    region: Callable
    decoded: bool = False

    def read(self, x: float, y: float, edge: float, px: int) -> np.ndarray:
        """The square of `edge` full px whose corner is (x, y), as RGB uint8 (px, px, 3).

        It is cut at sub-pixel precision from the smallest level that still has the wanted detail.
        """
        level = max(i for i, d in enumerate(self.levels) if not i or d <= edge / px + 1e-6)
        down = self.levels[level]
        around = 2 * max(1.0, edge / down / px) + 1  # px that the bicubic filter looks at
        size = np.ceil(np.array(self.size) / down - 0.01)
        corner = np.array([x, y]) / down
        low = np.clip(np.floor(corner - around), 0, size).astype(int)
        high = np.clip(np.ceil(corner + edge / down + around), 0, size).astype(int)
        if self.decoded:  # cut from the whole, as rounding would tell the difference
            low, high = np.zeros(2, int), np.array(self.size)
        box = np.r_[corner, corner + edge / down] - np.r_[low, low]
        return resized(rgb(self.region(level, (*low, *high)), self.path), px, tuple(box))

    def thumbnail(self, factor: float) -> np.ndarray:
        """The whole image with 1 px for `factor` full px, RGB uint8 (h, w, 3)."""
        size = [max(1, round(s / factor)) for s in self.size]
        level = max(i for i, d in enumerate(self.levels) if not i or d <= factor + 1e-6)
        down = self.levels[level]
        w, h = (max(1, int(s / down + 0.01)) for s in self.size)
        step = h / size[1]  # rows of that level for one of the thumbnail
        some = max(1, int(2**24 / w / step))  # of its rows at a time: some 50 MB
        parts = []
        for first in range(0, size[1], some):
            last = min(first + some, size[1])
            low, high = int(first * step), min(h, int(np.ceil(last * step)))
            image = rgb(self.region(level, (0, low, w, high)), self.path)
            box = (0, first * step - low, w, min(last * step, h) - low)
            parts.append(image.resize((size[0], last - first), Image.Resampling.BOX, box=box))
        return np.concatenate([np.asarray(part) for part in parts])


def open_slide(path, um_per_px: float | None = None) -> Slide:
    """Open an image; `um_per_px` overrides what the file says. Unreadable: `InputError`."""
    path = Path(path)
    if path.suffix.lower() in PICTURES:
        image = open_image(path)
        whole = (0, 0, *image.size)
        return Slide(path, image.size, um_per_px, (1.0,), decoded=True,
                     region=lambda _, box: image if box == whole else image.crop(box))  # fmt: skip
    if path.is_dir():
        return _open_zarr(path, um_per_px)
    from tiffslide import TiffSlide

    with reading(path):
        slide = TiffSlide(path)
        um_per_px = um_per_px or slide.properties.get("tiffslide.mpp-x")
        levels = tuple(float(d) for d in slide.level_downsamples)
        size = slide.dimensions
        refuse_bomb(path, size[0] * size[1])
    region = partial(_tiff_region, path, slide)
    return Slide(path, size, um_per_px and float(um_per_px), levels, region)


def _tiff_region(path, slide, level, box):
    x0, y0, x1, y1 = box
    at = [int(np.ceil(v * slide.level_downsamples[level])) for v in (x0, y0)]
    with reading(path):
        return slide.read_region(at, level, (x1 - x0, y1 - y0), as_array=True)


def _open_zarr(path: Path, um_per_px) -> Slide:
    import zarr

    with reading(path, fault="is no OME-Zarr image", remedy="write it again"):
        group = zarr.open_group(path, mode="r")
        about = dict(group.attrs)
        (scales,) = about.get("ome", about)["multiscales"]
        arrays = [group[d["path"]] for d in scales["datasets"]]
        refuse_bomb(path, sum(a.nbytes for a in arrays))
    height, width = arrays[0].shape[1:]

    def region(level, box):
        x0, y0, x1, y1 = box
        with reading(path):
            return np.moveaxis(arrays[level][:, y0:y1, x0:x1], 0, -1)

    levels = tuple(width / a.shape[2] for a in arrays)
    return Slide(path, (width, height), um_per_px, levels, region)


def resized(image, px: int, box=None) -> np.ndarray:
    """A picture, or a box of it, at `px` x `px` pixels, low-pass filtered where that is fewer."""
    return np.asarray(image.resize((px, px), Image.Resampling.BICUBIC, box))


def rgb(image, path) -> Image.Image:
    """Any 8-bit image as RGB; deeper ones are an `InputError`, as clipping would whiten them."""
    deep = image.mode[0] in "IF" if isinstance(image, Image.Image) else image.dtype != np.uint8
    if deep:
        raise InputError(f"{path}: has more than 8 bits a channel; convert it to 8-bit RGB")
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else image.convert("RGB")
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")


def open_image(path) -> Image.Image:
    """Decode a picture to RGB; a damaged one is an `InputError`."""
    with reading(path, fault="cannot be decoded"):
        image = Image.open(path)
        refuse_bomb(path, image.width * image.height)
        image.load()
    return rgb(image, path)
