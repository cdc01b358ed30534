"""TIFF, SVS and the like: which of its images is the slide, its colours, its scale."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

from seal_lite.data.images.blocks import read_level
from seal_lite.data.images.colour import WHITE
from seal_lite.data.images.slide import Box, Slide, choose_scale
from seal_lite.data.images.tiff_pixels import is_raw_ycbcr, kind_of, open_level
from seal_lite.errors import InputError, reading
from seal_lite.io import refuse_bomb

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries
    from tiffslide import TiffSlide

# Colours that can be read, with their number of channels.
CHANNELS = {"MINISBLACK": 1, "MINISWHITE": 1, "PALETTE": 1, "RGB": 3, "YCBCR": 3, "SEPARATED": 4}
ASSOCIATED_IMAGES = ("label", "macro", "map", "thumbnail")  # a scanner's own, beside the slide
PAGES_AS_CHANNELS = "CIQ"  # axes along which three grey planes are R, G and B
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
        levels = [open_level(series, number) for number in range(len(series.levels))]
        width, height = levels[0].size
        refuse_bomb(path, width * height)
        stated = list(_stated_scales(slide, series))
    scale, notes = choose_scale(stated, um_per_px)
    notes += _set_aside(file, series)
    steps = tuple((width / w + height / h) / 2 for w, h in (level.size for level in levels))
    region = partial(read_level, path, levels)
    blocks = tuple(level.block for level in levels)
    return Slide(path, (width, height), scale, steps, region, notes=notes, blocks=blocks)


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
    """Read a box of a level; tiffslide takes its corner in px of full resolution.

    It leaves black, to the bit, what was not scanned; no tissue is.
    """
    left, top, right, bottom = box
    step = slide.level_downsamples[level]
    corner = (int(np.ceil(left * step)), int(np.ceil(top * step)))
    with reading(path):
        pixels = slide.read_region(corner, level, (right - left, bottom - top), as_array=True)
        was_scanned = pixels.any(axis=-1, keepdims=True)
        return np.where(was_scanned, pixels, np.uint8(WHITE))


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


def _area(series: TiffPageSeries) -> int:
    shape = dict(zip(series.axes, series.shape, strict=True))
    return shape.get("Y", 0) * shape.get("X", 0)


def _planes(series: TiffPageSeries) -> dict[str, int]:
    """Return the lengths of all axes but height and width, where they exceed 1."""
    shape = zip(series.axes, series.shape, strict=True)
    return {axis: length for axis, length in shape if axis not in "YX" and length > 1}


def _is_colour(series: TiffPageSeries) -> bool:
    page = series.keyframe
    return kind_of(page) not in ("MINISBLACK", "MINISWHITE") or bool(_planes(series))


def _fault(series: TiffPageSeries) -> str | None:
    """Return why an image cannot be read, or None."""
    page = series.keyframe
    colours = kind_of(page)
    planes = _planes(series)
    is_channels = colours == "MINISBLACK" and list(planes.values()) == [3]
    if page.dtype not in (np.dtype(np.uint8), np.dtype(bool)):
        return "has more than 8 bits a channel"
    if not isinstance(page.bitspersample, int):
        return f"has channels of {page.bitspersample} bits"
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


def _is_subsampled(page: TiffPage) -> bool:
    return is_raw_ycbcr(page) and tuple(page.subsampling or (1, 1)) != (1, 1)


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
