"""Features of whole slides, in TRIDENT's layout."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from filelock import Timeout
from tqdm import tqdm

from seal_lite.config import Positive, Px
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
from seal_lite.encoders.embedding import digest_of, embed_patches
from seal_lite.errors import InputError, reading
from seal_lite.io import atomic_file, open_h5, read_ahead
from seal_lite.locks import lock
from seal_lite.paths import file_name
from seal_lite.schema import Sha256, Size, check
from seal_lite.slides.places import FindPlaces, TissueGrid, scale_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seal_lite.encoders.vision import VisionEncoder

log = logging.getLogger(__name__)
PATCHES_IN_MEMORY = 256
UM_PER_PX_AT_1X = 10.0  # TRIDENT's convention: 0.5 um per px are 20 x
ON_TISSUE = TissueGrid()
KEPT_REMEDY = "choose another folder, or remove it"


@dataclass(frozen=True)
class Origin:
    """What decides the features of a slide. Their file states it, so that none stands for others.

    Attributes
    ----------
    encoder
        The encoder's digest (`digest_of`).
    patch_um, patch_px
        Edge of a patch in um, and in px, as the encoder reads it.
    places
        Where the patches lie, as `FindPlaces.describe` says it.
    """

    encoder: Sha256
    patch_um: Positive
    patch_px: Px
    places: Annotated[str, Size(1, 1000)]


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
    _check_names(slides)
    return slides


def _check_names(slides: Sequence[Path]) -> None:
    """Raise an `InputError` where two slides would have one file of features, on any system."""
    slide_of: dict[str, Path] = {}
    for path in slides:
        other = slide_of.setdefault(path.stem.casefold(), path)
        if other != path:
            raise InputError(f"{path}: is called as {other} is, but for its suffix; rename one")


def _one_of_each_series(files: list[Path]) -> list[Path]:
    """Return the files, but of a slide in DICOM, which is several files, the first alone."""
    slides: dict[str, Path] = {}
    for path in files:
        is_dicom = path.suffix.lower() == ".dcm"
        slides.setdefault(dicom_series(path) if is_dicom else str(path), path)
    return list(slides.values())


def embed_slides(  # noqa: PLR0913 (an entry point)
    encoder: VisionEncoder,
    slides: Sequence[Path],
    out: str | Path,
    *,
    patch_um: float,
    patch_px: int,
    um_per_px: float | None = None,
    places: FindPlaces = ON_TISSUE,
    progress: bool = True,
) -> list[Path]:
    """Write the features of every slide in TRIDENT's layout.

    The log states the size of a patch. A file appears only when it is complete, and one that exists
    is kept if it states that it is of this encoder and these patches. Several processes that write
    into one folder share the work.

    Parameters
    ----------
    encoder
        The encoder, with d dimensions.
    slides
        Paths of the slides.
    out
        Folder for <slide>.h5: "features" (n, d) float32, and "coords" (n, 2) int, the corners of
        the patches in px of full resolution. The attributes of "coords" state the size of a patch
        and the magnification at both scales, as TRIDENT reads them; those of "features" are the
        `Origin`.
    patch_um
        Edge of a patch in um.
    patch_px
        Edge of a patch in px, as the encoder reads it.
    um_per_px
        Scale of full resolution, for slides that do not state it.
    places
        Where the patches lie: a `TissueGrid`, or `StoredCoords`.
    progress
        Show a progress bar.

    Returns
    -------
    list of Path
        The files, in the order of `slides`.

    Raises
    ------
    InputError
        Before any file is written: where a slide cannot be read, its scale is unknown, it is
        coarser than half the requested resolution, or `places` does not fit it; where a file that
        exists has another origin, or states none, as those of other programs. At the end: where a
        file has been removed.
    """
    _check_names(slides)
    files = [Path(out) / f"{file_name(path.stem)}.h5" for path in slides]
    encoder_digest = digest_of(encoder)
    jobs = []
    for path, file in zip(slides, files, strict=True):
        if not file.exists():
            slide = open_slide(path, um_per_px=um_per_px)
            _check_slide(slide, places, patch_um=patch_um, patch_px=patch_px)
        origin = Origin(encoder_digest, float(patch_um), patch_px, places.describe(path))
        jobs.append((path, file, origin))
    missing = []
    for path, file, origin in jobs:
        if file.exists():
            _check_kept(file, origin)
            _check_scale(file, path, um_per_px)
        else:
            missing.append((path, file, origin))
    log.info("%d slides, patches of %g um, %d px", len(slides), patch_um, patch_px)
    for wait in (False, True):  # first the slides that no other process is embedding
        for path, file, origin in tqdm(missing, "embed", disable=wait or not progress):
            with suppress(Timeout), lock(file, wait=wait):
                if not file.exists():
                    slide = open_slide(path, um_per_px=um_per_px)
                    write_features(encoder, slide, file, origin=origin, places=places)
    for path, file, origin in jobs:
        if not file.exists():  # somebody else has emptied the folder meanwhile
            raise InputError(f"{file}: was removed after {path.name} was embedded; embed it again")
        _check_kept(file, origin)  # somebody else may have written it meanwhile
    return files


def _check_slide(slide: Slide, places: FindPlaces, *, patch_um: float, patch_px: int) -> None:
    """Raise an `InputError` where a slide has no such patches; log its notes."""
    edge = patch_um / scale_of(slide)
    check_resolution(slide.path, patch_um=patch_um, patch_px=patch_px, edge=edge)
    places.check(slide, patch_um)
    for note in slide.notes:
        log.warning("%s: %s", slide.path, note)


def _check_kept(file: Path, origin: Origin) -> None:
    """Raise an `InputError` where a file of features is not known to be of this origin."""
    with reading(file, fault="holds no features", remedy=KEPT_REMEDY), open_h5(file) as h5:
        attributes = dict(h5["features"].attrs)
    names = [field.name for field in fields(Origin)]
    if not set(names) <= set(attributes):
        fault = "does not state of which encoder and patches it is, as files of other programs"
        raise InputError(f"{file}: {fault}; {KEPT_REMEDY}")
    stated = {name: attributes[name] for name in names}
    stored: Origin = check(stated, Origin, path=file, remedy=KEPT_REMEDY)
    if stored.encoder != origin.encoder:
        fault = "was embedded by another encoder, or in another precision"
        raise InputError(f"{file}: {fault}; {KEPT_REMEDY}")
    for name in names:
        old = getattr(stored, name)
        new = getattr(origin, name)
        if old != new:
            raise InputError(f"{file}: was embedded with {name}={old}, not {new}; {KEPT_REMEDY}")


def _check_scale(file: Path, slide_path: Path, um_per_px: float | None) -> None:
    """Raise an `InputError` where a slide now has other um per px than when it was embedded.

    Only a scale that is given can have changed. The slide is opened to see whether that counts.
    """
    with reading(file, fault="states no scale", remedy=KEPT_REMEDY), open_h5(file) as h5:
        stored = float(h5["coords"].attrs["um_per_px_level0"])
    if um_per_px in (None, stored):
        return
    scale = scale_of(open_slide(slide_path, um_per_px=um_per_px))
    if scale != stored:
        fault = f"was embedded at {stored:g} um per px, not {scale:g}"
        raise InputError(f"{file}: {fault}; {KEPT_REMEDY}")


def write_features(
    encoder: VisionEncoder,
    slide: Slide,
    file: Path,
    *,
    origin: Origin,
    places: FindPlaces = ON_TISSUE,
) -> None:
    """Write the features of one slide, as `embed_slides` describes them."""
    import h5py

    patch_px = origin.patch_px
    place = places.find(slide, origin.patch_um)
    corners = place.corners
    if not len(corners):
        log.warning("%s: no tissue found: its file has no patches", slide.path)

    def read(start: int) -> np.ndarray:
        batch = corners[start : start + PATCHES_IN_MEMORY]
        return slide.read_all(batch, edge=place.edge, px=patch_px)

    parts = [np.zeros((0, encoder.row.dim), np.float32)]
    for patches in read_ahead(read, range(0, len(corners), PATCHES_IN_MEMORY)):
        parts.append(embed_patches(encoder, patches))
    um_per_px = scale_of(slide)
    with atomic_file(file) as part, h5py.File(part, "w") as h5:
        h5["features"] = np.concatenate(parts)
        h5["features"].attrs.update(asdict(origin))
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
