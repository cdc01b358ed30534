"""Features of whole slides: tissue mask, a grid of patches, files in TRIDENT's layout."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import Timeout
from PIL import Image
from tqdm import tqdm

from seal_lite.config import Config
from seal_lite.data.images import (
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    Slide,
    is_hidden,
    open_slide,
    tissue_mask,
)
from seal_lite.data.patches import check_resolution
from seal_lite.encoders.embedding import embed_patches
from seal_lite.errors import InputError
from seal_lite.io import atomic_file, read_ahead
from seal_lite.locks import lock
from seal_lite.paths import file_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seal_lite.encoders.registry import Backbone
    from seal_lite.encoders.vision import VisionEncoder

log = logging.getLogger(__name__)
MASK_UM = 16.0  # um per px of the thumbnail in which tissue is found
MIN_TISSUE = 0.5  # share of a patch
PATCHES_IN_MEMORY = 256
UM_PER_PX_AT_1X = 10.0  # TRIDENT's convention: 0.5 um per px are 20 x


def grid(slide: Slide, *, patch_um: float) -> np.ndarray:
    """Return the corners of the patches that lie on tissue.

    Patches lie side by side from the slide's corner. A patch is kept if at least half of it is
    tissue.

    Parameters
    ----------
    slide
        A slide whose `um_per_px` is known.
    patch_um
        Edge of a patch in um.

    Returns
    -------
    np.ndarray
        Corners (n, 2) float64: x and y in px of full resolution.
    """
    mask = tissue_mask(slide.thumbnail(MASK_UM / _um_per_px(slide)))
    edge = patch_um / _um_per_px(slide)
    size = np.array(slide.size)
    n_patches = (size / edge + 1e-6).astype(int)  # columns and rows
    if not n_patches.all():
        return np.zeros((0, 2))
    width, height = n_patches * edge / size * mask.shape[::-1]  # the patches' part of the mask
    tissue = Image.fromarray(mask.astype(np.float32)).resize(
        tuple(n_patches), Image.Resampling.BOX, (0, 0, width, height)
    )
    rows_and_columns = np.argwhere(np.asarray(tissue) >= MIN_TISSUE)
    return rows_and_columns[:, ::-1] * edge


def _um_per_px(slide: Slide) -> float:
    """Return the slide's scale, or raise an `InputError` where it is unknown."""
    if not slide.um_per_px:
        raise InputError(f"{slide.path}: {slide.scale_fault}; give --um-per-px")
    return slide.um_per_px


def patch_size(
    row: Backbone, config: Config | None, *, patch_um: float | None = None
) -> tuple[float, int]:
    """Return the edge of a patch, in um and in px, at the scale that an encoder was trained at.

    Parameters
    ----------
    row
        The encoder's row.
    config
        Settings of the run that finetuned it. None for a frozen encoder: then the row states the
        scale. A row without one sees `Config.patch_um` across its own number of pixels.
    patch_um
        Edge of a patch in um; None for that of the training.

    Raises
    ------
    InputError
        Where the encoder does not read as many pixels as `patch_um` has at that scale.
    """
    if config is not None:
        px = config.patch_px
        um = config.patch_um
    else:
        px = row.px
        um = Config.patch_um if row.um_per_px is None else row.um_per_px * row.px
    if patch_um is None:
        return um, px
    asked_px = round(patch_um * px / um)
    try:
        row.check_px(asked_px)
    except InputError as error:
        fault = f"--patch-um {patch_um:g}: is {asked_px} px at {um / px:.3g} um per px"
        remedy = f"leave it out: {um:g} um are {px} px"
        raise InputError(f"{fault}, which {row.name} does not read; {remedy}") from error
    return patch_um, asked_px


def list_slides(folder: str | Path) -> list[Path]:
    """Return every slide or image under a folder, sorted.

    Hidden files are no slides. Slides of a format that cannot be read are named in the log.

    Raises
    ------
    InputError
        Where the folder holds none, or two files of one name without suffix.
    """
    folder = Path(folder)
    below = sorted(folder.rglob("*"))
    files = [path for path in below if not is_hidden(path.relative_to(folder))]
    slides = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    unread = [path.name for path in files if path.suffix.lower() in UNREAD_SUFFIXES]
    skipped = f"{', '.join(unread)}: cannot be read; convert them to TIFF" if unread else ""
    if not slides:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise InputError(f"{folder}: holds no slide; " + (skipped or f"give one with {suffixes}"))
    if skipped:
        log.warning("%s: %s", folder, skipped)
    names = set()
    for path in slides:
        if path.stem in names:
            raise InputError(f"{folder}: two slides are called {path.stem}; rename one")
        names.add(path.stem)
    return slides


def embed_slides(
    encoder: VisionEncoder,
    slides: Sequence[Path],
    out: str | Path,
    *,
    patch_um: float,
    patch_px: int,
    um_per_px: float | None = None,
) -> list[Path]:
    """Write the features of every slide in TRIDENT's layout.

    A file appears only when it is complete, and one that exists is kept. Several processes that
    write into one folder share the work.

    Parameters
    ----------
    encoder
        The encoder, with d dimensions.
    slides
        Paths of the slides.
    out
        Folder for <slide>.h5: "features" (n, d) float32, and "coords" (n, 2) int, the corners of
        the patches in px of full resolution. The attributes of "coords" state the size of a patch
        and the magnification at both scales, as TRIDENT reads them.
    patch_um
        Edge of a patch in um.
    patch_px
        Edge of a patch in px, as the encoder reads it.
    um_per_px
        Scale of full resolution, for slides that do not state it.

    Returns
    -------
    list of Path
        The files, in the order of `slides`.

    Raises
    ------
    InputError
        Before any file is written: where a slide cannot be read, its scale is unknown, or it is
        coarser than half the requested resolution. At the end: where a file has been removed.
    """
    files = [Path(out) / f"{file_name(path.stem)}.h5" for path in slides]
    missing = [(path, file) for path, file in zip(slides, files, strict=True) if not file.exists()]
    for path, _ in missing:
        slide = open_slide(path, um_per_px=um_per_px)
        edge = patch_um / _um_per_px(slide)
        check_resolution(path, patch_um=patch_um, patch_px=patch_px, edge=edge)
        for note in slide.notes:
            log.warning("%s: %s", path, note)
    for wait in (False, True):  # first the slides that no other process is embedding
        for path, file in tqdm(missing, "embed", disable=wait):
            with suppress(Timeout), lock(file, wait=wait):
                if not file.exists():
                    slide = open_slide(path, um_per_px=um_per_px)
                    write_features(encoder, slide, file, patch_um=patch_um, patch_px=patch_px)
    for path, file in zip(slides, files, strict=True):
        if not file.exists():  # somebody else has emptied the folder meanwhile
            raise InputError(f"{file}: was removed after {path.name} was embedded; embed it again")
    return files


def write_features(
    encoder: VisionEncoder, slide: Slide, file: Path, *, patch_um: float, patch_px: int
) -> None:
    """Write the features of one slide, as `embed_slides` describes them."""
    import h5py

    edge = patch_um / _um_per_px(slide)
    corners = grid(slide, patch_um=patch_um)
    if not len(corners):
        log.warning("%s: no tissue found: its file has no patches", slide.path)

    def read(start: int) -> np.ndarray:
        batch = corners[start : start + PATCHES_IN_MEMORY]
        return np.stack([slide.read(x, y, edge=edge, px=patch_px) for x, y in batch])

    parts = [np.zeros((0, encoder.row.dim), np.float32)]
    for patches in read_ahead(read, range(0, len(corners), PATCHES_IN_MEMORY)):
        parts.append(embed_patches(encoder, patches))
    with atomic_file(file) as part, h5py.File(part, "w") as h5:
        h5["features"] = np.concatenate(parts)
        h5["coords"] = np.rint(corners).astype(int)
        h5["coords"].attrs.update(
            patch_size=patch_px,
            patch_size_level0=round(edge),
            level0_magnification=UM_PER_PX_AT_1X / _um_per_px(slide),
            target_magnification=UM_PER_PX_AT_1X / (patch_um / patch_px),
            overlap=0,
            name=file.stem,
            level0_width=slide.size[0],
            level0_height=slide.size[1],
            um_per_px_level0=slide.um_per_px,
        )
