"""TIFF, SVS and the like: which of its images is the slide, its colours, its scale."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from seal_lite.data.images.colour import on_white
from seal_lite.data.images.slide import Box, Slide, choose_scale
from seal_lite.errors import InputError, reading
from seal_lite.io import refuse_bomb

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries
    from tiffslide import TiffSlide

# Colours that can be read, with their number of channels.
CHANNELS = {"MINISBLACK": 1, "MINISWHITE": 1, "PALETTE": 1, "RGB": 3, "YCBCR": 3, "SEPARATED": 4}
JPEG_COMPRESSIONS = (6, 7, 34892, 33007)  # whose decoder gives RGB for YCbCr
ASSOCIATED_IMAGES = ("label", "macro", "map", "thumbnail")  # a scanner's own, beside the slide
PAGES_AS_CHANNELS = "CIQ"  # axes along which three grey planes are R, G and B
ASSOCIATED_ALPHA, UNASSOCIATED_ALPHA = 1, 2  # of the tag ExtraSamples
UM_OF_UNIT = {
    "nm": 1e-3,
    "um": 1.0,
    "µm": 1.0,
    "μm": 1.0,
    "\\u00b5m": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "in": 25400.0,
    "inch": 25400.0,
}
SAME_FIELD = 0.02  # relative difference in aspect between an image and its smaller copy
# A TIFF of one of these kinds may name other files to be read with it: only this one is.
ONE_FILE = {"_multifile": False, "is_mmstack": False, "is_ndtiff": False}
BAND_ROWS = 256  # rows that are decoded together where an image has no tiles
BANDS_BYTES = 2**28  # of decoded rows that are kept


def open_tiff(path: Path, um_per_px: float | None) -> Slide:
    """Open a TIFF, SVS and the like; `um_per_px` counts where the file states none.

    Of several images the largest in colour is taken, and the others are named in `Slide.notes`.

    Raises
    ------
    InputError
        If the file is damaged, or no image in it is grey or in colour, of 8 bits a channel.
    """
    from tiffslide import TiffSlide

    with reading(path):
        slide = TiffSlide(path, tifffile_options=ONE_FILE)
        file = slide.ts_tifffile
        if file.is_scn:
            return _open_scn(path, slide, um_per_px)
        series = _choose_series(path, file)
        levels = [_Level(series, number) for number in range(len(series.levels))]
        width, height = levels[0].size
        refuse_bomb(path, width * height)
        stated = list(_stated_scales(slide, series))
    scale, notes = choose_scale(stated, um_per_px)
    notes += _set_aside(file, series)
    steps = tuple((width / w + height / h) / 2 for w, h in (level.size for level in levels))
    region = partial(_read_level, path, levels, series.keyframe)
    return Slide(path, (width, height), scale, steps, region, notes=notes)


def _open_scn(path: Path, slide: TiffSlide, um_per_px: float | None) -> Slide:
    """Open a slide of Leica's, whose scanned areas tiffslide puts in their places."""
    width, height = slide.dimensions
    refuse_bomb(path, width * height)
    stated = _number(slide.properties.get("tiffslide.mpp-x"))
    scale, notes = choose_scale([stated], um_per_px)
    region = partial(_scn_region, path, slide)
    steps = tuple(float(step) for step in slide.level_downsamples)
    return Slide(path, (width, height), scale, steps, region, notes=notes)


def _scn_region(path: Path, slide: TiffSlide, level: int, box: Box) -> np.ndarray:
    """Read a box of a level; tiffslide takes its corner in px of full resolution."""
    left, top, right, bottom = box
    step = slide.level_downsamples[level]
    corner = (int(np.ceil(left * step)), int(np.ceil(top * step)))
    with reading(path):
        return slide.read_region(corner, level, (right - left, bottom - top), as_array=True)


# ------------------------------------------------------------------------------ which image


def _choose_series(path: Path, file: TiffFile) -> TiffPageSeries:
    """Return the largest image in colour, or the largest grey one."""
    candidates = [series for series in file.series if not _is_associated(series)]
    readable = [series for series in candidates if _fault(series) is None]
    if not readable:
        fault = _fault(candidates[0]) if candidates else "holds no slide"
        raise InputError(f"{path}: {fault}; convert it to 8-bit RGB")
    return max(readable, key=lambda series: (_is_colour(series), _area(series)))


def _is_associated(series: TiffPageSeries) -> bool:
    return series.name.lower() in ASSOCIATED_IMAGES


def _kind(page: TiffPage) -> str:
    """Return the name of the tag PhotometricInterpretation, as RGB, or its number."""
    return str(getattr(page.photometric, "name", page.photometric))


def _area(series: TiffPageSeries) -> int:
    shape = dict(zip(series.axes, series.shape, strict=True))
    return shape.get("Y", 0) * shape.get("X", 0)


def _planes(series: TiffPageSeries) -> dict[str, int]:
    """Return the lengths of all axes but height and width, where they exceed 1."""
    shape = zip(series.axes, series.shape, strict=True)
    return {axis: length for axis, length in shape if axis not in "YX" and length > 1}


def _is_colour(series: TiffPageSeries) -> bool:
    page = series.keyframe
    return _kind(page) not in ("MINISBLACK", "MINISWHITE") or bool(_planes(series))


def _fault(series: TiffPageSeries) -> str | None:
    """Return why an image cannot be read, or None."""
    page = series.keyframe
    colours = _kind(page)
    planes = _planes(series)
    is_channels = colours == "MINISBLACK" and list(planes.values()) == [3]
    if page.dtype not in (np.dtype(np.uint8), np.dtype(bool)):
        return "has more than 8 bits a channel"
    if colours not in CHANNELS or not {"Y", "X"} <= set(series.axes):
        return f"has colours of the kind {colours}"
    if _is_subsampled(page):
        return "has YCbCr colours of which some were left out"
    if is_channels and set(planes) <= set(PAGES_AS_CHANNELS):
        return None
    n_channels = CHANNELS[colours] + len(page.extrasamples)
    if planes not in ({}, {"S": n_channels}) or (not planes and n_channels > 1):
        lengths = ", ".join(f"{axis} {length}" for axis, length in planes.items())
        return f"has other channels or planes than an H&E image ({lengths})"
    return None


def _is_raw_ycbcr(page: TiffPage) -> bool:
    """Return whether the decoder leaves luma and chroma as they are stored."""
    is_jpeg = page.compression in JPEG_COMPRESSIONS and page.planarconfig == 1
    return _kind(page) == "YCBCR" and not is_jpeg


def _is_subsampled(page: TiffPage) -> bool:
    return _is_raw_ycbcr(page) and tuple(page.subsampling or (1, 1)) != (1, 1)


def _is_reduced(series: TiffPageSeries, chosen: TiffPageSeries) -> bool:
    """Return whether an image is a smaller copy of the chosen one, a level stored as an image."""
    if series.axes != chosen.axes or series.dtype != chosen.dtype:
        return False
    size = dict(zip(series.axes, series.shape, strict=True))
    full = dict(zip(chosen.axes, chosen.shape, strict=True))
    height, width = size.pop("Y"), size.pop("X")
    shrunk = full.pop("Y") / height
    is_same_field = abs(full.pop("X") / width / shrunk - 1) < SAME_FIELD
    return size == full and shrunk >= 2 and is_same_field


def _set_aside(file: TiffFile, chosen: TiffPageSeries) -> tuple[str, ...]:
    """Return a sentence that names the images that were not taken; none where there is one."""
    sizes = []
    for series in file.series:
        is_other = series is not chosen and not _is_reduced(series, chosen)
        if is_other and not _is_associated(series):
            shape = " x ".join(str(length) for length in series.shape)
            sizes.append(f"{series.name or 'unnamed'} ({series.axes} {shape})")
    if not sizes:
        return ()
    shape = " x ".join(str(length) for length in chosen.shape)
    return (f"holds several images: {shape} is read, and not {', '.join(sizes)}",)


# ------------------------------------------------------------------------------ which pixels


class _Level:
    """A level of a series, read by boxes.

    Attributes
    ----------
    size
        Width and height in px.
    """

    def __init__(self, series: TiffPageSeries, number: int) -> None:
        import zarr

        is_light_white = _kind(series.keyframe) in ("RGB", "MINISBLACK")
        fill = 255 if is_light_white else 0  # of tiles that are left out
        store = series.aszarr(level=number, fillvalue=fill)
        array: Any = zarr.open(store, mode="r")
        self._array = array
        self._axes = series.axes
        length = dict(zip(series.axes, array.shape, strict=True))
        chunk = dict(zip(series.axes, array.chunks, strict=True))
        self.size = (length["X"], length["Y"])
        self._is_tiled = chunk["X"] < length["X"]
        self._band_rows = max(BAND_ROWS, chunk["Y"])
        band_bytes = self._band_rows * array.nbytes // length["Y"]
        self._band = lru_cache(max(2, BANDS_BYTES // band_bytes))(self._decode_band)

    def read(self, box: Box) -> np.ndarray:
        """Return a box as it is stored, (h, w, channels).

        Where there are no tiles, whole rows are decoded, and the last of them are kept: a box is
        a small part of its rows, or of the one strip that holds the image.
        """
        if self._is_tiled:
            return self._decode(box)
        left, top, right, bottom = box
        first = top // self._band_rows
        last = (bottom - 1) // self._band_rows
        bands = np.concatenate([self._band(number) for number in range(first, last + 1)])
        above = first * self._band_rows
        return bands[top - above : bottom - above, left:right]

    def _decode_band(self, number: int) -> np.ndarray:
        """Decode whole rows, (rows, w, channels); fewer at the lower edge."""
        width, height = self.size
        top = number * self._band_rows
        return self._decode((0, top, width, min(top + self._band_rows, height)))

    def _decode(self, box: Box) -> np.ndarray:
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


def _read_level(
    path: Path, levels: list[_Level], page: TiffPage, level: int, box: Box
) -> np.ndarray:
    """Read a box of a level as grey (h, w, 1) or RGB (h, w, 3) uint8."""
    left, top, right, bottom = box
    width, height = levels[level].size
    with reading(path):
        pixels = levels[level].read((left, top, min(right, width), min(bottom, height)))
        colours = _colours(pixels, page)
    beyond = [(0, bottom - top - len(colours)), (0, right - left - colours.shape[1]), (0, 0)]
    return np.pad(colours, beyond, mode="edge")  # a level's size may be rounded down


def _colours(pixels: np.ndarray, page: TiffPage) -> np.ndarray:
    """Return pixels (h, w, channels) as grey (h, w, 1) or RGB (h, w, 3) uint8, on white."""
    extra = page.extrasamples
    n_colours = pixels.shape[-1] - len(extra)
    colours = pixels[..., :n_colours]
    kind = _kind(page)
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
    elif _is_raw_ycbcr(page):
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


# ------------------------------------------------------------------------------ which scale


def _stated_scales(slide: TiffSlide, series: TiffPageSeries) -> Iterator[float | None]:
    """Yield what a file says of its um per px, the most trustworthy first."""
    file = slide.ts_tifffile
    page = series.keyframe
    if file.is_ome:
        yield _ome_scale(file.ome_metadata, file.series.index(series))
    if file.is_imagej:
        unit = str((file.imagej_metadata or {}).get("unit", ""))
        yield _um_of_pixel(page, UM_OF_UNIT.get(unit.strip().lower()))
    if file.is_svs or file.is_philips:
        yield _number(slide.properties.get("tiffslide.mpp-x"))
    um_of_unit = {2: 25400.0, 3: 1e4, 4: 1e3, 5: 1.0}  # of the tag ResolutionUnit
    yield _um_of_pixel(page, um_of_unit.get(int(page.resolutionunit)))


def _ome_scale(description: str | None, number: int) -> float | None:
    """Return the physical size of a pixel in um, of the image of that number in OME-XML."""
    sizes = ElementTree.fromstring(description or "<OME/>").findall(".//{*}Image/{*}Pixels")
    if number >= len(sizes):
        return None
    size = _number(sizes[number].get("PhysicalSizeX"))
    um = UM_OF_UNIT.get(sizes[number].get("PhysicalSizeXUnit", "um").lower())
    return None if size is None or um is None else size * um


def _um_of_pixel(page: TiffPage, um_of_unit: float | None) -> float | None:
    """Return um per px by the tag XResolution, which counts px per unit."""
    tag = page.tags.get("XResolution")
    if tag is None or um_of_unit is None:
        return None
    pixels, units = tag.value
    return um_of_unit * units / pixels if pixels else None


def _number(value: object) -> float | None:
    """Return a value as a number, also where it has a decimal comma; None where it is none."""
    try:
        return float(str(value).replace(",", "."))
    except ValueError:
        return None
