"""Slides of scanners' own formats, which openslide reads: MRXS, DICOM, BIF and the like."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from seal_lite.data.images.slide import Box, Slide, choose_scale
from seal_lite.errors import InputError, reading

if TYPE_CHECKING:
    from openslide import OpenSlide

# Of formats that nothing else here reads.
VENDOR_SUFFIXES = (".bif", ".dcm", ".mrxs", ".svslide", ".vms", ".vmu")
OPENSLIDE_REMEDY = "pip install 'seal_lite[openslide]'"


def has_openslide() -> bool:
    """Return whether openslide is installed, its library included."""
    try:
        importlib.import_module("openslide")
    except (ImportError, OSError):
        return False
    return True


def is_vendors(path: Path) -> bool:
    """Return whether openslide is installed and knows a file as a scanner's own."""
    if not has_openslide():
        return False
    from openslide import OpenSlide

    return OpenSlide.detect_format(path) not in (None, "generic-tiff")


def open_vendors(path: Path, um_per_px: float | None) -> Slide:
    """Open a slide by openslide; `um_per_px` counts where the file states none.

    What was not scanned is white.

    Raises
    ------
    InputError
        If openslide is not installed, or cannot read the file.
    """
    if not has_openslide():
        raise InputError(f"{path}: needs openslide; {OPENSLIDE_REMEDY}")
    from openslide import OpenSlide

    with reading(path):
        slide = OpenSlide(path)
        width, height = slide.dimensions
        steps = tuple(float(step) for step in slide.level_downsamples)
        stated = slide.properties.get("openslide.mpp-x")
        scale, notes = choose_scale([float(stated) if stated else None], um_per_px)
    region = partial(_vendors_region, path, slide)
    return Slide(path, (width, height), scale, steps, region, notes=notes)


def dicom_series(path: Path) -> str:
    """Return the identifier of the slide to which a DICOM file belongs, or else its own path.

    A slide in DICOM is a folder of files, one or more a level, and any of them opens it.
    """
    if not has_openslide():
        return str(path)
    from openslide import OpenSlide, OpenSlideError

    try:
        with OpenSlide(path) as slide:
            return slide.properties.get("dicom.SeriesInstanceUID", str(path))
    except OpenSlideError:  # it is named when it is opened
        return str(path)


def _vendors_region(path: Path, slide: OpenSlide, level: int, box: Box) -> Image.Image:
    """Read a box of a level; openslide takes its corner in px of full resolution."""
    left, top, right, bottom = (int(edge) for edge in box)
    step = slide.level_downsamples[level]
    with reading(path):
        return slide.read_region(
            (round(left * step), round(top * step)), level, (right - left, bottom - top)
        )
