"""Features of whole slides, in TRIDENT's layout."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import Timeout
from tqdm import tqdm

from seal_lite.data.images import (
    IMAGE_SUFFIXES,
    OPENSLIDE_REMEDY,
    UNREAD_SUFFIXES,
    VENDOR_SUFFIXES,
    Slide,
    dicom_series,
    has_openslide,
    is_hidden,
    open_slide,
)
from seal_lite.data.patches import check_resolution
from seal_lite.encoders.embedding import embed_patches
from seal_lite.errors import InputError
from seal_lite.io import atomic_file, read_ahead
from seal_lite.locks import lock
from seal_lite.paths import file_name
from seal_lite.slides.places import FindPlaces, TissueGrid, scale_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seal_lite.encoders.vision import VisionEncoder

log = logging.getLogger(__name__)
PATCHES_IN_MEMORY = 256
UM_PER_PX_AT_1X = 10.0  # TRIDENT's convention: 0.5 um per px are 20 x
ON_TISSUE = TissueGrid()


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
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    remedies: dict[str, tuple[str, ...]] = {"convert them to TIFF": UNREAD_SUFFIXES}
    if has_openslide():
        suffixes += VENDOR_SUFFIXES
    else:
        remedies[OPENSLIDE_REMEDY] = VENDOR_SUFFIXES
    slides = _one_of_each_series([path for path in files if path.suffix.lower() in suffixes])
    reasons = []
    for remedy, unread_suffixes in remedies.items():
        unread = [path.name for path in files if path.suffix.lower() in unread_suffixes]
        if unread:
            reasons.append(f"{', '.join(unread)}: cannot be read; {remedy}")
    skipped = "; ".join(reasons)
    if not slides:
        expected = f"give one with {', '.join(suffixes)}"
        raise InputError(f"{folder}: holds no slide; {skipped or expected}")
    if skipped:
        log.warning("%s: %s", folder, skipped)
    names = set()
    for path in slides:
        if path.stem in names:
            raise InputError(f"{folder}: two slides are called {path.stem}; rename one")
        names.add(path.stem)
    return slides


def _one_of_each_series(files: list[Path]) -> list[Path]:
    """Return the files, but of a slide in DICOM, which is several files, the first alone."""
    slides: dict[str, Path] = {}
    for path in files:
        is_dicom = path.suffix.lower() == ".dcm"
        slides.setdefault(dicom_series(path) if is_dicom else str(path), path)
    return list(slides.values())


def embed_slides(
    encoder: VisionEncoder,
    slides: Sequence[Path],
    out: str | Path,
    *,
    patch_um: float,
    patch_px: int,
    um_per_px: float | None = None,
    places: FindPlaces = ON_TISSUE,
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
    places
        Where the patches lie: a `TissueGrid`, or `StoredCoords`.

    Returns
    -------
    list of Path
        The files, in the order of `slides`.

    Raises
    ------
    InputError
        Before any file is written: where a slide cannot be read, its scale is unknown, it is
        coarser than half the requested resolution, or `places` does not fit it. At the end: where
        a file has been removed.
    """
    files = [Path(out) / f"{file_name(path.stem)}.h5" for path in slides]
    missing = [(path, file) for path, file in zip(slides, files, strict=True) if not file.exists()]
    for path, _ in missing:
        slide = open_slide(path, um_per_px=um_per_px)
        edge = patch_um / scale_of(slide)
        check_resolution(path, patch_um=patch_um, patch_px=patch_px, edge=edge)
        places.check(slide, patch_um)
        for note in slide.notes:
            log.warning("%s: %s", path, note)
    write = partial(write_features, patch_um=patch_um, patch_px=patch_px, places=places)
    for wait in (False, True):  # first the slides that no other process is embedding
        for path, file in tqdm(missing, "embed", disable=wait):
            with suppress(Timeout), lock(file, wait=wait):
                if not file.exists():
                    slide = open_slide(path, um_per_px=um_per_px)
                    write(encoder, slide, file)
    for path, file in zip(slides, files, strict=True):
        if not file.exists():  # somebody else has emptied the folder meanwhile
            raise InputError(f"{file}: was removed after {path.name} was embedded; embed it again")
    return files


def write_features(
    encoder: VisionEncoder,
    slide: Slide,
    file: Path,
    *,
    patch_um: float,
    patch_px: int,
    places: FindPlaces = ON_TISSUE,
) -> None:
    """Write the features of one slide, as `embed_slides` describes them."""
    import h5py

    place = places.find(slide, patch_um)
    corners = place.corners
    if not len(corners):
        log.warning("%s: no tissue found: its file has no patches", slide.path)

    def read(start: int) -> np.ndarray:
        batch = corners[start : start + PATCHES_IN_MEMORY]
        return np.stack([slide.read(x, y, edge=place.edge, px=patch_px) for x, y in batch])

    parts = [np.zeros((0, encoder.row.dim), np.float32)]
    for patches in read_ahead(read, range(0, len(corners), PATCHES_IN_MEMORY)):
        parts.append(embed_patches(encoder, patches))
    um_per_px = scale_of(slide)
    with atomic_file(file) as part, h5py.File(part, "w") as h5:
        h5["features"] = np.concatenate(parts)
        h5["coords"] = np.rint(corners).astype(int)
        h5["coords"].attrs.update(
            patch_size=patch_px,
            patch_size_level0=round(place.edge),
            level0_magnification=UM_PER_PX_AT_1X / um_per_px,
            target_magnification=UM_PER_PX_AT_1X * patch_px / (place.edge * um_per_px),
            overlap=round(place.overlap * patch_px),
            name=file.stem,
            level0_width=slide.size[0],
            level0_height=slide.size[1],
            um_per_px_level0=um_per_px,
        )
