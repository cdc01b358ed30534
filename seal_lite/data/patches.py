"""Patches of H&E around spots, of a stated size in um."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from seal_lite.config import Config
from seal_lite.data.images import Slide, open_slide, resized
from seal_lite.data.readers.sparse import check_finite
from seal_lite.errors import InputError, reading
from seal_lite.io import open_h5, refuse_oversize
from seal_lite.schema import check_array

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

MAX_UPSAMPLING = 2.0  # more would ask for detail the scanner never recorded
# Share of spots off the image, and where the image states the same scale as the spots.
MAX_OFF_IMAGE, MAX_OFF_PART = 0.5, 0.9
IMAGE_SCALE_TOLERANCE = 0.1  # relative difference between the um per px of image and spots
READY_SUFFIX = ".h5"  # of HEST's files of patches
HEST_UM = 112.0  # edge of HEST's ready patches: 224 px at 0.5 um per px


def extract_patches(
    adata: AnnData, *, patch_um: float = Config.patch_um, patch_px: int = Config.patch_px
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a square patch around every spot and resample it.

    A patch that leaves the image is dropped and reported in the log.

    Parameters
    ----------
    adata
        A section as `seal_lite.data.section.read_counts` returns it.
    patch_um
        Edge of the patch in um.
    patch_px
        Edge of the patch in px after resampling.

    Returns
    -------
    rows : numpy.ndarray
        (n,) int, indices into `adata` of the spots that have a patch.
    patches : numpy.ndarray
        (n, patch_px, patch_px, 3) uint8 RGB, aligned with `rows`.

    Raises
    ------
    InputError
        If there is no image, spots lie off it, the patch is larger than the image, or the patch
        asks for more than twice the image's resolution.
    """
    name = adata.uns["section_id"]
    if not adata.uns["image_path"]:
        raise InputError(
            f"section {name}: no image beside its counts of {adata.n_obs} spots and {adata.n_vars} "
            "genes; add its full-resolution H&E image, or leave it out"
        )
    path = Path(adata.uns["image_path"])
    if path.suffix == READY_SUFFIX:
        return _cut_ready_patches(adata, path, patch_um, patch_px)
    slide = open_slide(path)
    edge = patch_um / adata.uns["um_per_px"]
    subject = f"section {name} ({path.name})"
    check_resolution(subject, patch_um=patch_um, patch_px=patch_px, edge=edge)
    if edge > min(slide.size):
        raise InputError(
            f"section {name}: no patch of {patch_um:g} um ({edge:.0f} px) fits into its "
            f"{_size_text(slide)}; set a smaller patch_um"
        )
    centres = np.asarray(adata.obsm["spatial"])
    corners = centres - edge / 2
    is_inside = (corners >= 0).all(axis=1) & (corners + edge <= slide.size).all(axis=1)
    _check_on_image(name, slide, centres, is_inside, um_per_px=adata.uns["um_per_px"])
    for note in slide.notes:
        log.warning("%s: its image %s %s", name, path.name, note)
    if not is_inside.all():
        log.info("%s: %d patches leave the image: dropped", name, (~is_inside).sum())
    rows = np.flatnonzero(is_inside)
    return rows, slide.read_all(corners[rows], edge=edge, px=patch_px)


def _check_on_image(
    name: str, slide: Slide, centres: np.ndarray, is_inside: np.ndarray, *, um_per_px: float
) -> None:
    """Raise `InputError` where too few spots lie on the image, or no patch inside it.

    That the image itself states the spots' scale speaks for a part of a section.
    """
    is_off = ((centres < 0) | (centres > slide.size)).any(axis=1)
    most = MAX_OFF_PART if states_scale(slide, um_per_px) else MAX_OFF_IMAGE
    if is_off.mean() > most or not is_inside.any():
        raise InputError(
            f"section {name}: {is_off.mean():.0%} of its spots, {1 - is_inside.mean():.0%} of its "
            f"patches lie off its {_size_text(slide)}; image and coordinates must share one scale"
        )


def states_scale(slide: Slide, um_per_px: float) -> bool:
    """Return whether an image itself states the um per px of its spots, or nearly so."""
    if slide.um_per_px is None:
        return False
    return abs(slide.um_per_px / um_per_px - 1) < IMAGE_SCALE_TOLERANCE


def _size_text(slide: Slide) -> str:
    width, height = slide.size
    return f"{width} x {height} px image"


def check_resolution(subject: str | Path, *, patch_um: float, patch_px: int, edge: float) -> None:
    """Check that an image has the detail that a patch asks for.

    Parameters
    ----------
    subject
        What the error is about: a file, or a section's name.
    patch_um, edge
        Edge of the patch in um, and in px of the image.
    patch_px
        Edge of the patch in px after resampling.

    Raises
    ------
    InputError
        If `patch_px` is more than twice `edge`.
    """
    if patch_px > MAX_UPSAMPLING * edge:
        raise InputError(
            f"{subject}: has {patch_um / edge:.2f} um/px, but {patch_px} px for {patch_um:g} um "
            f"need {patch_um / patch_px:.2f}; ask for fewer px or a larger patch"
        )


def _cut_ready_patches(
    adata: AnnData, path: Path, patch_um: float, patch_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and patches as `extract_patches`: the middle of HEST's ready patches."""
    ready = read_patches(path)
    if patch_um > HEST_UM:
        raise InputError(
            f"{path}: its patches show {HEST_UM:g} um, not {patch_um:g}; "
            f"set patch_um={HEST_UM:g} or fetch the whole slide"
        )
    ready_px = ready.images.shape[1]
    edge = ready_px * patch_um / HEST_UM
    check_resolution(path, patch_um=patch_um, patch_px=patch_px, edge=edge)
    low = (ready_px - edge) / 2
    box = (low, low, low + edge, low + edge)
    position = {barcode: i for i, barcode in enumerate(ready.barcodes)}
    rows = np.flatnonzero([barcode in position for barcode in adata.obs_names])
    patches = []
    with reading(path, fault="holds no patch of these spots", remedy="pair the right files"):
        for barcode in adata.obs_names[rows]:
            image = Image.fromarray(ready.images[position[barcode]])
            patches.append(resized(image, patch_px, box=box))
        return rows, np.stack(patches)


class ReadyPatches(NamedTuple):
    """What a file of HEST's patches holds.

    Attributes
    ----------
    images
        (n, h, w, 3) uint8 RGB.
    barcodes
        n names of spots.
    coords
        (n, 2) x, y of the patches' centres in px of the full image.
    """

    images: np.ndarray
    barcodes: list[str]
    coords: np.ndarray


def read_patches(path: str | Path) -> ReadyPatches:
    """Read a file of HEST's patches.

    Raises
    ------
    InputError
        If the file is damaged or lacks one of the three arrays.
    """
    with reading(path, fault="has no img, barcode and coords"), open_h5(path) as file:
        stored = file["img" if "img" in file else "imgs"]
        named = file["barcode" if "barcode" in file else "barcodes"]
        refuse_oversize(path, stored.nbytes + named.nbytes + file["coords"].nbytes)
        images = stored[:]
        names = named[:]
        barcodes = [b.decode() if isinstance(b, bytes) else str(b) for b in names.ravel()]
        n_patches = len(barcodes)
        check_array(path, "img", images, shape=(n_patches, None, None, 3), dtype="uint8")
        check_array(path, "coords", file["coords"], shape=(n_patches, 2))
        check_finite(path, "coords", file["coords"])
        return ReadyPatches(images, barcodes, file["coords"][:])


class Thumbnail(NamedTuple):
    """A section's whole image at low resolution.

    Attributes
    ----------
    image
        (h, w, 3) uint8 RGB.
    step
        Px of the full image per px of the thumbnail.
    """

    image: np.ndarray
    step: float


def thumbnail(adata: AnnData, *, um_per_px: float = 8.0) -> Thumbnail:
    """Return a section's whole image at about `um_per_px`.

    Raises
    ------
    InputError
        If the image cannot be read.
    """
    path = Path(adata.uns["image_path"])
    step = um_per_px / adata.uns["um_per_px"]
    if path.suffix == READY_SUFFIX:
        return Thumbnail(_lay_out(path, HEST_UM / adata.uns["um_per_px"], step), step)
    slide = open_slide(path)
    image = slide.thumbnail(step)
    return Thumbnail(image, slide.size[0] / image.shape[1])


def _lay_out(path: Path, edge: float, step: float) -> np.ndarray:
    """Return HEST's ready patches at their places on white, (h, w, 3) uint8.

    `edge` is a patch's in px of the full image, and `step` counts those in a px of the result.
    """
    ready = read_patches(path)
    px = max(1, round(edge / step))
    corners = np.rint((ready.coords - edge / 2) / step).astype(int)  # (n, 2) x, y
    corners = corners.clip(0)
    width, height = (int(length) for length in corners.max(axis=0) + px)
    refuse_oversize(path, 3 * width * height)
    canvas = np.full((height, width, 3), 255, np.uint8)
    for (x, y), patch in zip(corners, ready.images, strict=True):
        canvas[y : y + px, x : x + px] = resized(Image.fromarray(patch), px)
    return canvas
