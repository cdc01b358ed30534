"""The pixels of a TIFF's level: its tiles or rows, decoded as they are asked for, in RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from seal_lite.data.images.blocks import Blocks
from seal_lite.data.images.colour import WHITE, on_white
from seal_lite.data.images.slide import Box

if TYPE_CHECKING:
    from tifffile import TiffPage, TiffPageSeries

JPEG_COMPRESSIONS = (6, 7, 34892, 33007)  # whose decoder gives RGB for YCbCr
ASSOCIATED_ALPHA, UNASSOCIATED_ALPHA = 1, 2  # of the tag ExtraSamples
BAND_ROWS = 256  # rows that are decoded together where an image has no tiles


def kind_of(page: TiffPage) -> str:
    """Return the name of the tag PhotometricInterpretation, as RGB, or its number."""
    return str(getattr(page.photometric, "name", page.photometric))


def is_raw_ycbcr(page: TiffPage) -> bool:
    """Return whether the decoder leaves luma and chroma as they are stored."""
    is_jpeg = page.compression in JPEG_COMPRESSIONS and page.planarconfig == 1
    return kind_of(page) == "YCBCR" and not is_jpeg


def open_level(series: TiffPageSeries, number: int) -> Blocks:
    """Return a level of a series as grey (h, w, 1) or RGB (h, w, 3) uint8: its tiles, or rows."""
    import zarr

    page: TiffPage = series.keyframe
    store = series.aszarr(level=number, fillvalue=_stored_white(page))
    array: Any = zarr.open(store, mode="r")
    length = dict(zip(series.axes, array.shape, strict=True))
    chunk = dict(zip(series.axes, array.chunks, strict=True))
    size = (length["X"], length["Y"])
    is_tiled = chunk["X"] < length["X"]
    block = (chunk["Y"], chunk["X"])
    if not is_tiled:  # a patch is a small part of its rows
        block = (max(BAND_ROWS, chunk["Y"]), length["X"])
    reader: _Tiles | _Planes = _Planes(array, series.axes, page)
    has_tiles = is_tiled and _has_one_page(series, number)
    if has_tiles:
        reader = _Tiles(series.levels[number])
    px_bytes = max(3, array.nbytes // (length["X"] * length["Y"]))
    return Blocks(reader.decode, size, block, px_bytes=px_bytes, one_at_a_time=not has_tiles)


def _stored_white(page: TiffPage) -> int:
    """Return what zarr reads of a tile that is left out: white, as most kinds store it."""
    if kind_of(page) not in ("RGB", "MINISBLACK"):
        return 0
    return 2 ** min(8, page.bitspersample) - 1


def _has_one_page(series: TiffPageSeries, number: int) -> bool:
    """Return whether a level is one page whose tiles hold all channels."""
    level = series.levels[number]
    is_interleaved = level.keyframe.planarconfig == 1 or level.keyframe.samplesperpixel == 1
    is_flat = set(level.axes) <= set("YXS") and level.shape == level.keyframe.shape
    return is_interleaved and is_flat and level.keyframe.tiledepth <= 1


class _Tiles:
    """The tiles of one page. zarr would read them for one thread at a time."""

    def __init__(self, level: TiffPageSeries) -> None:
        page = level[0]
        assert page is not None, "the level of a slide has a page"
        self._page = page
        self._keyframe: TiffPage = level.keyframe
        self._shape = (*self._keyframe.chunks[:2], self._keyframe.samplesperpixel)
        self._decode = self._keyframe.decode  # which is set up on first access
        one_px = np.zeros((1, 1, self._shape[2]), self._keyframe.dtype)
        self._n_colours = _colours(one_px, self._keyframe).shape[2]

    def decode(self, box: Box) -> np.ndarray:
        """Decode the tile that is a box, to grey or RGB; one that is left out is white."""
        left, top, right, bottom = box
        rows, columns, _ = self._shape
        number = top // rows * self._keyframe.chunked[1] + left // columns
        content = self._stored(number)
        if content is None:
            return np.full((bottom - top, right - left, self._n_colours), WHITE, np.uint8)
        headers = {"jpegtables": self._page.jpegtables, "jpegheader": self._keyframe.jpegheader}
        given = {name: header for name, header in headers.items() if header is not None}
        tile, _, _ = self._decode(content, number, _fullsize=True, **given)
        stored = np.asarray(tile).reshape(self._shape)
        return _colours(stored[: bottom - top, : right - left], self._keyframe)

    def _stored(self, number: int) -> bytes | None:
        """Return the bytes of a tile; None where it is left out, as the last of a list may be."""
        offsets, counts = self._page.dataoffsets, self._page.databytecounts
        is_listed = number < min(len(offsets), len(counts))
        if not (is_listed and offsets[number] and counts[number]):
            return None
        file = self._page.parent.filehandle
        with file.lock:
            file.seek(offsets[number])
            return file.read(counts[number])


class _Planes:
    """The array of a level of any axes, as zarr reads it."""

    def __init__(self, array: Any, axes: str, page: TiffPage) -> None:
        self._array = array
        self._axes = axes
        self._page = page

    def decode(self, box: Box) -> np.ndarray:
        """Decode a box inside the level, to grey or RGB."""
        left, top, right, bottom = box
        place: dict[str, int | slice] = {"X": slice(left, right), "Y": slice(top, bottom)}
        chosen: list[int | slice] = []
        kept = ""
        for axis, length in zip(self._axes, self._array.shape, strict=True):
            is_channels = axis not in "YX" and length > 1
            chosen.append(place.get(axis, slice(None) if is_channels else 0))
            if is_channels or axis in "YX":
                kept += axis
        pixels = np.asarray(self._array[tuple(chosen)])
        channels = kept.replace("Y", "").replace("X", "")
        rows_first = pixels.transpose([kept.index(axis) for axis in f"YX{channels}"])
        return _colours(rows_first if channels else rows_first[..., None], self._page)


def _colours(pixels: np.ndarray, page: TiffPage) -> np.ndarray:
    """Return pixels (h, w, channels) as grey (h, w, 1) or RGB (h, w, 3) uint8, on white."""
    extra = page.extrasamples
    n_colours = pixels.shape[-1] - len(extra)
    colours = pixels[..., :n_colours]
    kind = kind_of(page)
    if kind == "PALETTE":
        table = np.asarray(page.colormap)  # (3, colours)
        is_deep = table.max() > 255
        table = (table >> 8 if is_deep else table).astype(np.uint8)
        colours = np.moveaxis(table[:, colours[..., 0].astype(int)], 0, -1)
    elif page.bitspersample < 8:
        colours = colours.astype(np.uint8) * np.uint8(255 // (2**page.bitspersample - 1))
    if kind == "MINISWHITE":
        colours = 255 - colours
    elif kind == "SEPARATED":
        colours = _converted(colours, "CMYK")
    elif is_raw_ycbcr(page):
        colours = _converted(colours, "YCbCr")
    for i, use in enumerate(extra):
        if use in (ASSOCIATED_ALPHA, UNASSOCIATED_ALPHA):
            alpha = pixels[..., n_colours + i]
            colours = on_white(colours, alpha, is_associated=use == ASSOCIATED_ALPHA)
    return colours


def _converted(colours: np.ndarray, mode: str) -> np.ndarray:
    """Convert colours of a mode of Pillow's to RGB."""
    height, width, _ = colours.shape
    image = Image.frombytes(mode, (width, height), np.ascontiguousarray(colours).tobytes())
    return np.asarray(image.convert("RGB"))
