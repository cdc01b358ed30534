"""The pixels of a TIFF's level: its tiles or rows, decoded as they are asked for, in RGB."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import product
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from seal_lite.data.images.colour import on_white
from seal_lite.data.images.slide import Box
from seal_lite.io import usable_cores

if TYPE_CHECKING:
    from tifffile import TiffPage, TiffPageSeries

JPEG_COMPRESSIONS = (6, 7, 34892, 33007)  # whose decoder gives RGB for YCbCr
ASSOCIATED_ALPHA, UNASSOCIATED_ALPHA = 1, 2  # of the tag ExtraSamples
BAND_ROWS = 256  # rows that are decoded together where an image has no tiles
MANY_TILES = 64  # that are decoded by several threads: those of a box that is no patch
KEPT_BYTES = 2**28  # of decoded tiles or rows of a level


def kind_of(page: TiffPage) -> str:
    """Return the name of the tag PhotometricInterpretation, as RGB, or its number."""
    return str(getattr(page.photometric, "name", page.photometric))


def is_raw_ycbcr(page: TiffPage) -> bool:
    """Return whether the decoder leaves luma and chroma as they are stored."""
    is_jpeg = page.compression in JPEG_COMPRESSIONS and page.planarconfig == 1
    return kind_of(page) == "YCBCR" and not is_jpeg


class Level:
    """A level of a series, read by boxes, also by several threads at once.

    Attributes
    ----------
    size
        Width and height in px.
    """

    def __init__(self, series: TiffPageSeries, number: int) -> None:
        import zarr

        self._page: TiffPage = series.keyframe
        is_light_white = kind_of(self._page) in ("RGB", "MINISBLACK")
        fill = 255 if is_light_white else 0  # of tiles that are left out
        store = series.aszarr(level=number, fillvalue=fill)
        array: Any = zarr.open(store, mode="r")
        length = dict(zip(series.axes, array.shape, strict=True))
        chunk = dict(zip(series.axes, array.chunks, strict=True))
        self.size = (length["X"], length["Y"])
        planes = _Planes(array, series.axes)
        is_tiled = chunk["X"] < length["X"]
        self._pixels: _Tiles | _Planes | _Bands
        if not is_tiled:
            self._pixels = _Bands(planes, self.size, chunk_rows=chunk["Y"])
        elif _has_one_page(series, number):
            self._pixels = _Tiles(series.levels[number], fill)
        else:
            self._pixels = planes

    def read(self, box: Box) -> np.ndarray:
        """Return a box, which may end beyond the level, as grey (h, w, 1) or RGB (h, w, 3) uint8.

        What lies beyond repeats the edge, for a level's size may be rounded down.
        """
        left, top, right, bottom = box
        width, height = self.size
        stored = self._pixels.read((left, top, min(right, width), min(bottom, height)))
        colours = _colours(stored, self._page)
        beyond = [(0, bottom - top - len(colours)), (0, right - left - colours.shape[1]), (0, 0)]
        if not np.any(beyond):
            return colours
        return np.pad(colours, beyond, mode="edge")


def _has_one_page(series: TiffPageSeries, number: int) -> bool:
    """Return whether a level is one page whose tiles hold all channels."""
    level = series.levels[number]
    is_interleaved = level.keyframe.planarconfig == 1 or level.keyframe.samplesperpixel == 1
    is_flat = set(level.axes) <= set("YXS") and level.shape == level.keyframe.shape
    return is_interleaved and is_flat and level.keyframe.tiledepth <= 1


class _Tiles:
    """The tiles of one page, of which the last are kept: patches side by side share them.

    zarr would decode a tile anew for each patch, and read for one thread at a time.
    """

    def __init__(self, level: TiffPageSeries, fill: int) -> None:
        page = level[0]
        assert page is not None, "the level of a slide has a page"
        self._page = page
        self._keyframe: TiffPage = level.keyframe
        self._fill = fill
        self._n_channels = self._keyframe.samplesperpixel
        self._rows, self._columns = self._keyframe.chunks[:2]
        self._n_across = self._keyframe.chunked[1]
        tile_bytes = self._rows * self._columns * self._n_channels
        self._tile = lru_cache(max(2, KEPT_BYTES // tile_bytes))(self._decode)

    def read(self, box: Box) -> np.ndarray:
        """Return a box inside the page as it is stored, (h, w, channels)."""
        left, top, right, bottom = box
        shape = (bottom - top, right - left, self._n_channels)
        pixels = np.empty(shape, self._keyframe.dtype)

        def paste(place: tuple[int, int]) -> None:
            row, column = place
            y, x = row * self._rows, column * self._columns
            first_y, last_y = max(top, y), min(bottom, y + self._rows)
            first_x, last_x = max(left, x), min(right, x + self._columns)
            tile = self._tile(row * self._n_across + column)
            part = tile[first_y - y : last_y - y, first_x - x : last_x - x]
            pixels[first_y - top : last_y - top, first_x - left : last_x - left] = part

        rows = range(top // self._rows, -(-bottom // self._rows))
        columns = range(left // self._columns, -(-right // self._columns))
        places = list(product(rows, columns))
        if len(places) < MANY_TILES:
            for place in places:
                paste(place)
            return pixels
        with ThreadPoolExecutor(usable_cores()) as threads:
            for _ in threads.map(paste, places):
                pass  # raises what a thread has raised
        return pixels

    def _decode(self, number: int) -> np.ndarray:
        """Decode a tile, (rows, columns, channels); one that is left out has the fill's value."""
        shape = (self._rows, self._columns, self._n_channels)
        content = self._stored(number)
        if content is None:
            return np.full(shape, self._fill, self._keyframe.dtype)
        headers = {"jpegtables": self._page.jpegtables, "jpegheader": self._keyframe.jpegheader}
        given = {name: header for name, header in headers.items() if header is not None}
        tile, _, _ = self._keyframe.decode(content, number, _fullsize=True, **given)
        return np.asarray(tile).reshape(shape)

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

    def __init__(self, array: Any, axes: str) -> None:
        self._array = array
        self._axes = axes
        self.nbytes: int = array.nbytes

    def read(self, box: Box) -> np.ndarray:
        """Return a box inside the level as it is stored, (h, w, channels)."""
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
        return rows_first if channels else rows_first[..., None]


class _Bands:
    """Whole rows of a level without tiles, of which the last are kept.

    A box is a small part of its rows, or of the one strip that holds the image.
    """

    def __init__(self, planes: _Planes, size: tuple[int, int], *, chunk_rows: int) -> None:
        self._planes = planes
        self._width, self._height = size
        self._rows = max(BAND_ROWS, chunk_rows)
        band_bytes = self._rows * planes.nbytes // self._height
        self._band = lru_cache(max(2, KEPT_BYTES // band_bytes))(self._decode)
        self._one_thread = Lock()  # a band may be the whole image, and is decoded once

    def read(self, box: Box) -> np.ndarray:
        """Return a box inside the level as it is stored, (h, w, channels)."""
        left, top, right, bottom = box
        first = top // self._rows
        last = (bottom - 1) // self._rows
        with self._one_thread:
            bands = [self._band(number)[:, left:right] for number in range(first, last + 1)]
        above = first * self._rows
        return np.concatenate(bands)[top - above : bottom - above]

    def _decode(self, number: int) -> np.ndarray:
        """Decode whole rows, (rows, w, channels); fewer at the lower edge."""
        top = number * self._rows
        return self._planes.read((0, top, self._width, min(top + self._rows, self._height)))


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
        colours = np.moveaxis(table[:, colours[..., 0]], 0, -1)
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
