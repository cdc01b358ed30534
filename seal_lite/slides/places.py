"""Where the patches of a slide lie: on a grid over its tissue, or where a file says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, TypedDict

import numpy as np
from PIL import Image

from seal_lite.data.images import Slide, tissue_mask
from seal_lite.errors import InputError, reading
from seal_lite.io import open_h5, refuse_oversize
from seal_lite.paths import file_name, inside
from seal_lite.schema import Number, check

MASK_UM = 16.0  # um per px of the thumbnail in which tissue is found
MIN_TISSUE = (
    0.05  # share of a patch: keeps as many patches as TRIDENT's rule, any tissue of its mask
)
EDGE_TOLERANCE = 0.02  # relative difference between the edge of stored patches and the encoder's
DIGEST_DIGITS = 16  # of the SHA-256 of stored coords
COORDS_ENDINGS = (".h5", "_patches.h5")  # the second is TRIDENT's, of a file without features


@dataclass(frozen=True)
class Places:
    """Where the patches of a slide lie.

    Attributes
    ----------
    corners
        Upper left corners (n, 2): x and y in px of full resolution.
    edge
        Edge of a patch in px of full resolution.
    overlap
        How far neighbours overlap, as a share of the edge.
    """

    corners: np.ndarray
    edge: float
    overlap: float = 0.0


class _Spacing(TypedDict, total=False):
    """Attributes of stored coords, in px of the patches' own magnification."""

    overlap: Annotated[float, Number(at_least=0)]
    patch_size: Annotated[float, Number(above=0)]


class FindPlaces(Protocol):
    """A rule that says where the patches of a slide lie."""

    def check(self, slide: Slide, patch_um: float) -> None:
        """Raise an `InputError` where the rule cannot be followed; this takes no time."""

    def find(self, slide: Slide, patch_um: float) -> Places:
        """Return where the patches lie, whose edge is `patch_um` um."""

    def describe(self, path: Path) -> str:
        """Return what tells the places on this slide from others, without opening the slide."""


@dataclass(frozen=True)
class TissueGrid:
    """Patches side by side from the slide's corner, of which those on tissue are kept.

    Attributes
    ----------
    min_tissue
        Share of a patch that must be tissue. By default nearly any tissue is enough, as for
        TRIDENT.
    """

    min_tissue: float = MIN_TISSUE

    def check(self, slide: Slide, patch_um: float) -> None:
        """Raise an `InputError` where the slide's scale is unknown."""
        scale_of(slide)

    def find(self, slide: Slide, patch_um: float) -> Places:
        """Return where the patches lie, as `grid` does."""
        corners = grid(slide, patch_um=patch_um, min_tissue=self.min_tissue)
        return Places(corners, patch_um / scale_of(slide))

    def describe(self, path: Path) -> str:
        """Return the share that must be tissue."""
        return f"min_tissue {self.min_tissue:g}"


@dataclass(frozen=True)
class StoredCoords:
    """The patches that another program has chosen, so that encoders see the same ones.

    Attributes
    ----------
    folder
        Holds <slide>.h5, or TRIDENT's <slide>_patches.h5, of every slide. Its dataset "coords"
        (n, 2) has the corners in px of full resolution; the edge of a patch is in its attributes
        (`stored_edge`).
    """

    folder: Path

    def check(self, slide: Slide, patch_um: float) -> None:
        """Raise an `InputError` where `find` does."""
        self.find(slide, patch_um)

    def find(self, slide: Slide, patch_um: float) -> Places:
        """Return where the patches lie, in the order of the file.

        Raises
        ------
        InputError
            Where the file is absent or damaged, a patch lies outside of the slide, or the edge is
            not `patch_um`.
        """
        path = self._path(slide.path.stem)
        corners, attributes = _read_coords(path)
        edge = stored_edge(path, attributes)
        overlap = _stored_overlap(path, attributes, edge)
        edge_um = edge * scale_of(slide)
        if abs(edge_um / patch_um - 1) > EDGE_TOLERANCE:
            raise InputError(
                f"{path}: its patches show {edge_um:.4g} um of {slide.path.name}, not the "
                f"{patch_um:g} um that are embedded; make coords of that size, or give "
                f"--patch-um {edge_um:.4g}"
            )
        is_on_slide = (corners > -edge).all(axis=1) & (corners < slide.size).all(axis=1)
        if not is_on_slide.all():
            x, y = corners[~is_on_slide][0]
            width, height = slide.size
            raise InputError(
                f"{path}: the patch at {x:g}, {y:g} lies outside of {slide.path.name}, which has "
                f"{width} x {height} px; give the coords of this slide"
            )
        return Places(corners, edge, overlap)

    def describe(self, path: Path) -> str:
        """Return a hash of the stored corners and their edge; raises where the file is damaged."""
        file = self._path(path.stem)
        corners, attributes = _read_coords(file)
        edge = stored_edge(file, attributes)
        digest = hashlib.sha256(corners.tobytes() + repr(edge).encode()).hexdigest()
        return f"coords {digest[:DIGEST_DIGITS]}"

    def _path(self, name: str) -> Path:
        """Return the file of a slide of this name."""
        for stem in (name, file_name(name)):
            for ending in COORDS_ENDINGS:
                path = inside(self.folder, stem + ending, table="--coords")
                if path.is_file():
                    return path
        raise InputError(f"{self.folder}: has no {name}.h5; give the folder of its coords")


def _read_coords(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the corners (n, 2) float64 of stored patches, and the attributes of "coords"."""
    remedy = "make it again, or leave --coords out"
    with reading(path, fault="holds no coords of patches", remedy=remedy), open_h5(path) as h5:
        refuse_oversize(path, h5["coords"].nbytes)
        stored = np.asarray(h5["coords"], float)
        if stored.size and stored.shape[-1] != 2:
            raise ValueError(f"coords are {stored.shape} numbers, not (n, 2)")
        return stored.reshape(-1, 2), dict(h5["coords"].attrs)


def stored_edge(path: Path, attributes: Mapping[str, Any]) -> float:
    """Return the edge of stored patches in px of full resolution.

    Parameters
    ----------
    path
        The file, for the error message.
    attributes
        Of its coords: "patch_size_level0"; or "patch_size" in px at "target_magnification", and
        "level0_magnification".

    Raises
    ------
    InputError
        Where they do not state it, or it is not above 0.
    """
    stated = ["patch_size", "level0_magnification", "target_magnification"]
    if "patch_size_level0" in attributes:
        stated = ["patch_size_level0"]
    missing = [name for name in stated if name not in attributes]
    if missing:
        lacking = f"its coords have no attribute {missing[0]}"
        raise InputError(f"{path}: {lacking}; add patch_size_level0, the edge in px")
    with reading(path, fault="has an edge that is no number", remedy="correct its attributes"):
        edge, *scales = (float(attributes[name]) for name in stated)
        if scales:
            edge *= scales[0] / scales[1]
    if not 0 < edge < np.inf:
        raise InputError(f"{path}: states patches {edge:g} px wide; correct {stated[0]}")
    return edge


def _stored_overlap(path: Path, attributes: Mapping[str, Any], edge: float) -> float:
    """Return how far stored patches overlap, as a share of their edge."""
    spacing: _Spacing = check(attributes, _Spacing, path=path, field="coords")
    overlap = spacing.get("overlap", 0)
    width = spacing.get("patch_size", edge)
    if overlap >= width:
        raise InputError(
            f"{path}: states an overlap of {overlap:g} px of patches {width:g} px wide; "
            "correct overlap or patch_size"
        )
    return float(overlap / width)


def grid(slide: Slide, *, patch_um: float, min_tissue: float = MIN_TISSUE) -> np.ndarray:
    """Return the corners of the patches that lie on tissue.

    Patches lie side by side from the slide's corner.

    Parameters
    ----------
    slide
        A slide whose `um_per_px` is known.
    patch_um
        Edge of a patch in um.
    min_tissue
        Share of a patch that must be tissue; at 0 any tissue is enough.

    Returns
    -------
    np.ndarray
        Corners (n, 2) float64: x and y in px of full resolution.
    """
    mask = tissue_mask(slide.thumbnail(MASK_UM / scale_of(slide)))
    edge = patch_um / scale_of(slide)
    size = np.array(slide.size)
    n_patches = (size / edge + 1e-6).astype(int)  # columns and rows
    if not n_patches.all():
        return np.zeros((0, 2))
    width, height = n_patches * edge / size * mask.shape[::-1]  # the patches' part of the mask
    tissue = Image.fromarray(mask.astype(np.float32)).resize(
        tuple(n_patches), Image.Resampling.BOX, (0, 0, width, height)
    )
    share = np.asarray(tissue)
    rows_and_columns = np.argwhere((share >= min_tissue) & (share > 0))
    return rows_and_columns[:, ::-1] * edge


def scale_of(slide: Slide) -> float:
    """Return the slide's um per px, or raise an `InputError` where it is unknown."""
    if not slide.um_per_px:
        raise InputError(f"{slide.path}: {slide.scale_fault}; give --um-per-px")
    return slide.um_per_px
