"""From whole slides to feature files: tissue mask, a grid of regions, TRIDENT's H5."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import numpy as np
from filelock import Timeout
from PIL import Image
from tqdm import tqdm

from seal_lite.data.images import KINDS, Slide, open_slide, tissue_mask
from seal_lite.data.patches import check_resolution
from seal_lite.encoders.embedding import embed_patches
from seal_lite.encoders.vision import VisionEncoder
from seal_lite.errors import InputError
from seal_lite.io import atomic_file, lock

log = logging.getLogger(__name__)
MASK_UM = 16.0  # um per px of the thumbnail in which tissue is sought
MIN_TISSUE = 0.5  # share of a region


def grid(slide: Slide, *, patch_um: float) -> np.ndarray:
    """Corners (n, 2) in full-resolution px of the regions of `patch_um` that are mostly tissue.

    x, y of squares `patch_um` um wide, side by side from the slide's corner, at least half of each
    tissue. The slide's `um_per_px` must be known.
    """
    mask = tissue_mask(slide.thumbnail(MASK_UM / slide.um_per_px))
    edge, size = patch_um / slide.um_per_px, np.array(slide.size)
    n = (size / edge + 1e-6).astype(int)  # columns and rows
    if not n.all():
        return np.zeros((0, 2))
    area = n * edge / size * mask.shape[::-1]  # what they cover of the mask
    share = Image.fromarray(mask.astype(np.float32)).resize(n, Image.Resampling.BOX, (0, 0, *area))
    return np.argwhere(np.asarray(share) >= MIN_TISSUE)[:, ::-1] * edge


def list_slides(folder) -> list[Path]:
    """Every slide or picture under `folder`, sorted; none, or two of a name: `InputError`."""
    found = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in KINDS)
    if not found:
        raise InputError(f"{folder}: holds no slide; known are {', '.join(KINDS)}")
    stems = [p.stem for p in found]
    if twice := [s for s in stems if stems.count(s) > 1]:
        raise InputError(f"{folder}: two slides are called {twice[0]}; rename one")
    return found


def embed_slides(
    encoder: VisionEncoder,
    slides,
    out,
    *,
    patch_um: float,
    patch_px: int,
    um_per_px: float | None = None,
) -> list[Path]:
    """Write `out/<slide>.h5` for every slide, as TRIDENT does, and return the files.

    "features" (n, dim) float32 and "coords" (n, 2) int, corners in full-resolution px, with the
    region's size in the attributes of both scales. Regions are those of `grid`, resampled to
    `patch_px` px; `um_per_px` overrides what the slides say. A file that is there is kept; one
    appears only when complete, and processes that write into one folder share the work. Raises
    `InputError`, before any is written, where a slide cannot be read, is coarser than half the
    wanted resolution, or its scale unknown.
    """
    files = [Path(out) / f"{path.stem}.h5" for path in slides]
    todo = [pair for pair in zip(slides, files, strict=True) if not pair[1].exists()]
    for path, _ in todo:  # all of them can be read: before hours of work
        slide = open_slide(path, um_per_px)
        if not slide.um_per_px:
            raise InputError(f"{path}: does not say its um per px; give --um-per-px")
        check_resolution(path, patch_um, patch_px, patch_um / slide.um_per_px)
    for wait in (False, True):  # first what no other process is at
        for path, file in tqdm(todo, "embed", disable=wait):
            with suppress(Timeout), lock(file, wait=wait):
                if not file.exists():
                    _write_features(encoder, open_slide(path, um_per_px), file, patch_um, patch_px)
    return files


def _write_features(encoder, slide: Slide, file: Path, patch_um: float, patch_px: int):
    import h5py

    edge, corners = patch_um / slide.um_per_px, grid(slide, patch_um=patch_um)
    if not len(corners):
        log.warning("%s: no tissue found: an empty file", slide.path)
    parts = [np.zeros((0, encoder.row.dim), np.float32)]
    for i in range(0, len(corners), 256):
        images = [slide.read(x, y, edge, patch_px) for x, y in corners[i : i + 256]]
        parts.append(embed_patches(encoder, np.stack(images)))
    with atomic_file(file) as part, h5py.File(part, "w") as h5:
        h5["features"] = np.concatenate(parts)
        h5["coords"] = np.rint(corners).astype(int)
        h5["coords"].attrs.update(
            patch_size=patch_px,
            patch_size_level0=round(edge),
            overlap=0,
            name=file.stem,
            level0_width=slide.size[0],
            level0_height=slide.size[1],
            um_per_px_level0=slide.um_per_px,
        )
