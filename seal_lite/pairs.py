"""Pairs of a spot's expression and the region of H&E around it, of a stated size in um."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from .config import Config
from .errors import InputError, reading
from .files import open_h5
from .images import MAX_UPSAMPLING, open_slide, resized

log = logging.getLogger(__name__)

OFF = 0.1  # share of the spots: those of a section lie on tissue, and that on the image
HEST_UM = 112.0  # edge of the regions in HEST's files of patches: 224 px at 0.5 um per px


@dataclass
class Section:
    """A section with the image regions of those spots that have one.

    adata: all spots with counts (see `sections.read_section`). rows: (n,) indices into `adata` of
    the spots whose region lies on the image. patches: (n, px, px, 3) uint8 RGB, aligned with
    `rows`.
    """

    adata: object
    rows: np.ndarray
    patches: np.ndarray

    @property
    def name(self) -> str:
        """The section's id, by which it is asked for and held out."""
        return self.adata.uns["section_id"]

    @property
    def patient(self) -> str:
        """The patient's id; where none is known, the section's."""
        return self.adata.uns["patient_id"]

    def label(self, by: str) -> str | None:
        """What the section is by "section", "patient" or a column of sections.tsv, if known."""
        labels = self.adata.uns.get("labels", {})
        return {**labels, "section": self.name, "patient": self.patient}.get(by)

    @property
    def keys(self) -> list[str]:
        """One stable name a patch: 'section/barcode'."""
        return [f"{self.name}/{b}" for b in self.adata.obs_names[self.rows]]

    def key(self, i: int) -> str:
        """The name of patch `i`, as in `keys`."""
        return f"{self.name}/{self.adata.obs_names[self.rows[i]]}"

    def expression(self, panel) -> np.ndarray:
        """z-scored expression (n, genes) float32 beside the patches: `GenePanel.transform`."""
        return panel.transform(self.adata)[self.rows]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, counts and pixels: what a recorded result was computed from."""
        h = hashlib.sha256("\n".join([*self.keys, *self.adata.var_names]).encode())
        counts = self.adata.layers["counts"]
        for part in (counts.data, counts.indices, counts.indptr, self.patches):
            h.update(np.ascontiguousarray(part).data)
        return h.hexdigest()


def um_per_px(adata, *, step_um, upright: bool = True, source: str = "coordinates") -> float:
    """Microns per pixel from the array: pixel = A @ (col, row) + t, least squares.

    `step_um` is what one step along the columns and the rows measures: (200, 200) on the legacy ST
    array, (50, 86.6) on Visium's, where a neighbour is two columns away. `upright`: the image
    cannot have been turned. Raises `InputError` where array and pixels disagree: an upright image
    with axes swapped or mirrored, scales of the two axes more than 5% apart, or spots further than
    half a pitch from the fitted array.
    """
    array = adata.obs[["array_col", "array_row"]].to_numpy(float)
    design = np.c_[array, np.ones(len(array))]
    pixel = np.asarray(adata.obsm["spatial"], float)
    if len(array) < 3 or np.linalg.matrix_rank(design - design.mean(0) + [0, 0, 1]) < 3:
        raise InputError(f"{source}: spots lie on one line, so no um per px is known; add spots")
    coef, *_ = np.linalg.lstsq(design, pixel, rcond=None)
    (xx, xy), (yx, yy) = coef[:2]
    if upright and (max(abs(xy), abs(yx)) > 0.2 * min(abs(xx), abs(yy)) or xx <= 0 or yy <= 0):
        said = "pixel_x does not grow with x and pixel_y with y"
        raise InputError(f"{source}: {said}; swap or unmirror them")
    um = np.sqrt(np.prod(step_um))  # the area of a step is independent of its direction
    step_px = np.sqrt(abs(xx * yy - xy * yx))
    long, short = np.linalg.svd(coef[:2] / np.reshape(step_um, (2, 1)), compute_uv=False)
    if not long < 1.05 * short:
        said = f"the array's axes have {long:.3f} and {short:.3f} px per um"
        raise InputError(f"{source}: {said}; rescale or unshear the image")
    off = np.abs(design @ coef - pixel).max()
    if off > step_px / 2:
        raise InputError(f"{source}: a spot is {off:.0f} px off its place on the array; correct it")
    return float(um / step_px)


def extract_patches(adata, *, patch_um=Config.patch_um, patch_px=Config.patch_px):
    """Cut a square region of `patch_um` um around every spot and resample it to `patch_px`.

    Returns rows (n,) into `adata` and patches (n, patch_px, patch_px, 3) uint8. A region that
    leaves the image is dropped and reported. Raises `InputError` where the image is absent, no spot
    lies on it, or the wanted resolution is more than twice the recorded one.
    """
    name, path = adata.uns["section_id"], Path(adata.uns["image_path"])
    if not adata.uns["image_path"]:
        raise InputError(f"section {name}: no image beside its counts; fetch it or leave it out")
    if path.suffix == ".h5":
        return _cut_patches(adata, path, patch_um, patch_px)
    slide = open_slide(path)
    edge = patch_um / adata.uns["um_per_px"]  # px in the full image
    refuse_upsampling(f"section {name}", patch_um, patch_px, edge)
    corner = np.asarray(adata.obsm["spatial"]) - edge / 2
    inside = (corner >= 0).all(1) & (corner + edge <= slide.size).all(1)
    rows = np.flatnonzero(inside)
    if len(rows) < len(inside):
        log.info("%s: %d regions leave the image: dropped", name, (~inside).sum())
    size = "{} x {} px image".format(*slide.size)
    if edge > min(slide.size):
        said = f"no region of {patch_um:g} um ({edge:.0f} px) fits into its {size}"
        raise InputError(f"section {name}: {said}; set a smaller patch_um")
    off = ((adata.obsm["spatial"] < 0) | (adata.obsm["spatial"] > slide.size)).any(1).mean()
    if off > OFF or not len(rows):
        said = f"{off:.0%} of its spots, {1 - inside.mean():.0%} of regions lie off its {size}"
        raise InputError(f"section {name}: {said}; image and coordinates must share one scale")
    patches = np.empty((len(rows), patch_px, patch_px, 3), np.uint8)
    for patch, (x, y) in zip(patches, corner[rows], strict=True):
        patch[:] = slide.read(x, y, edge, patch_px)
    return rows, patches


def refuse_upsampling(what, patch_um: float, patch_px: int, edge: float):
    """An `InputError` about `what` where `edge` px of an image cannot be `patch_px` of detail."""
    if patch_px > MAX_UPSAMPLING * edge:
        said = f"has {patch_um / edge:.2f} um/px, but {patch_px} px for {patch_um:g} um need "
        said += f"{patch_um / patch_px:.2f}; ask for fewer px or a larger region"
        raise InputError(f"{what}: {said}")


def _cut_patches(adata, path: Path, patch_um: float, patch_px: int):
    """The middle of ready patches, where HEST's file of them is all that there is of the image."""
    images, barcodes, _ = read_patches(path)
    if patch_um > HEST_UM:
        remedy = f"set patch_um={HEST_UM:g} or fetch the whole slide"
        raise InputError(f"{path}: its patches show {HEST_UM:g} um, not {patch_um:g}; {remedy}")
    edge = images.shape[1] * patch_um / HEST_UM
    refuse_upsampling(path, patch_um, patch_px, edge)
    at = {b: i for i, b in enumerate(barcodes)}
    rows = np.flatnonzero([b in at for b in adata.obs_names])
    low = (images.shape[1] - edge) / 2
    box, mine = (low, low, low + edge, low + edge), [images[at[b]] for b in adata.obs_names[rows]]
    with reading(path, fault="holds no patch of these spots", remedy="pair the right files"):
        return rows, np.stack([resized(Image.fromarray(i), patch_px, box) for i in mine])


def read_patches(path) -> tuple[np.ndarray, list[str], np.ndarray]:
    """HEST's file of patches: images (n, h, w, 3) uint8, their barcodes, and centres (n, 2).

    Raises `InputError` where it is no such file.
    """
    with reading(path, fault="has no img, barcode and coords"), open_h5(path) as file:
        images = file["img" if "img" in file else "imgs"][:]
        barcodes = file["barcode" if "barcode" in file else "barcodes"][:]
        names = [b.decode() if isinstance(b, bytes) else str(b) for b in barcodes.ravel()]
        return images, names, file["coords"][:]


def thumbnail(adata, *, um_per_px: float = 8.0) -> tuple[np.ndarray, float]:
    """The whole section at about `um_per_px`: RGB uint8 (h, w, 3) and full-image px per its px."""
    slide = open_slide(adata.uns["image_path"])
    small = slide.thumbnail(um_per_px / adata.uns["um_per_px"])
    return small, slide.size[0] / small.shape[1]
