"""Where spots lie: microns per pixel, the lattice of the array, pooling, neighbours."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

from seal_lite.data.images import open_slide
from seal_lite.data.readers.common import ARRAY, array_table, make_spots
from seal_lite.data.readers.visium import VISIUM_STEP_UM
from seal_lite.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

# Neighbours lie within so many times the usual distance. That takes in a square array's diagonal
# (1.41), and not a hexagon's second ring (1.73). (Visium counts every second column, so a radius of
# sqrt(2) in array units finds 4 of 6 neighbours: a fault of the released SEAL code.)
REACH = 1.5
MAX_NEIGHBOURS = 32  # four times those on an array: a crowd of n cells would have n^2 pairs
MAX_TURN = 0.2  # of an upright image: a step's share along the other axis
MAX_STRETCH = 1.05  # ratio of the scales along the array's two axes
ARRAY_SCALE_TOLERANCE = 0.05  # between the stated um per px and the array's
PITCH_TOLERANCE = 0.15  # between the stated pitch and the distance between nearest spots
MAX_USUAL_OFFSET = 0.15  # of half of the spots from their places on the array, in steps
NEAR = 1.15  # ratio of two distances that count as one; a hexagon's are equal
# Columns and rows to a spot's possible neighbours, and which of them are near on which lattice.
DENSE = np.array([(1, 0), (0, 1), (1, 1), (1, -1)])
DENSE_KINDS = {(True, True, False, False): "square"}
STAGGERED = np.array([(1, 1), (1, -1), (2, 0), (0, 2)])
STAGGERED_KINDS = {
    (True, True, False, False): "staggered",
    (True, True, True, False): "hex",
}
# Steps along columns and rows, in distances of nearest spots.
UNIT_STEPS = {"square": (1.0, 1.0), "hex": (0.5, 0.75**0.5), "staggered": (0.5**0.5, 0.5**0.5)}


@dataclass(frozen=True)
class Layout:
    """How the spots of a section lie.

    Attributes
    ----------
    um_per_px
        Microns per px of the full image.
    pitch_um
        Distance between neighbouring spots in um.
    grid
        "square", "hex" (every second column, shifted by one in every other row), "staggered" (a
        square one with a spot in the middle of each square, numbered in half steps), or "free"
        without array coordinates.
    spot_um
        Diameter of a spot in um.
    notes
        What was set aside, in clauses that follow the section's name.
    """

    um_per_px: float
    pitch_um: float
    grid: str
    spot_um: float
    notes: list[str]


def locate_spots(
    adata: AnnData,
    metadata: Mapping[str, Any],
    *,
    path: Path,
    image: str | Path | None,
    fit_to: np.ndarray | None = None,
) -> Layout:
    """Find the scale and the lattice of a section's spots, and check them against each other.

    The scale is the stated one, else that of the array, else the image's own. That of the array is
    the least-squares fit of pixel = A @ (col, row) + t. An array that contradicts the coordinates
    is set aside, that is removed from `obs`, where the scale is known without it.

    Parameters
    ----------
    adata
        Spots with x, y in px of the full image in `obsm["spatial"]`; where they lie on an array,
        with `obs` array_col and array_row, which come back numbered without steps.
    metadata
        What is known of the section. Read are the lengths um_per_px, pitch_um and spot_um; step_um,
        the um of one step along the columns and along the rows, (200, 200) on the legacy ST array
        and (50, 86.6) on Visium's, where a neighbour is two columns away; upright, whether the
        image cannot have been turned or mirrored; spots_path, the file of the coordinates.
    path
        The section's file, which errors name.
    image
        The section's image, if there is one.
    fit_to
        (n,) bool, the spots to which the array is fitted; all of them by default.

    Raises
    ------
    InputError
        If the scale is unknown, or scale, pitch and array contradict each other.
    """
    stated = _length(metadata, "um_per_px")
    notes: list[str] = []
    lattice = None
    contradiction = None
    try:
        lattice = _lattice(adata, metadata, path=path, fit_to=fit_to)
    except ContradictionError as error:
        contradiction = error
    fitted = None if lattice is None else lattice.um_per_px
    scale = stated or fitted
    if scale is None:
        scale = _scale_of_image(path, image, contradiction)
    if not scale > 0:
        raise InputError(f"{path}: um_per_px is {scale:g}; correct it")
    if contradiction is not None:
        notes.append(
            f"its array contradicts the coordinates and is set aside ({contradiction.fault})"
        )
        log.warning("%s: %s", path, notes[-1])
        adata.obs = adata.obs.drop(columns=list(ARRAY))
    pitch = scale * _usual_distance(np.asarray(adata.obsm["spatial"]))
    stated_pitch = _length(metadata, "pitch_um")
    if fitted is not None:
        _check_scale(path, stated=scale, fitted=fitted)
    elif stated_pitch is not None:
        _check_pitch(path, scale, stated=stated_pitch, measured=pitch)
    if lattice is not None and lattice.pitch_um is not None:
        pitch = lattice.pitch_um
    spot_um = _length(metadata, "spot_um")
    return Layout(
        um_per_px=scale,
        pitch_um=pitch,
        grid="free" if lattice is None else lattice.grid,
        spot_um=pitch / 2 if spot_um is None else spot_um,
        notes=notes,
    )


def _scale_of_image(
    path: Path, image: str | Path | None, contradiction: ContradictionError | None
) -> float:
    """Return the image's own um per px, where there is no other.

    Raises
    ------
    InputError
        If it is unknown: why the array does not tell it (`contradiction`), or the image.
    """
    slide = open_slide(image) if image else None
    if slide is not None and slide.um_per_px is not None:
        return slide.um_per_px
    if contradiction is not None:
        raise contradiction
    reasons = f" ({slide.path.name} {slide.scale_fault})" if slide and slide.notes else ""
    raise InputError(f"{path}: um per px is unknown{reasons}; give um_per_px in sections.tsv")


def _length(metadata: Mapping[str, Any], key: str) -> float | None:
    """Return a length of the metadata, or None where it is absent or 0."""
    value = metadata.get(key)
    if not value or float(value) == 0:
        return None
    return float(value)


def _usual_distance(points: np.ndarray) -> float:
    """Return the median distance of points (n, 2) to their nearest neighbour."""
    distances, _ = cKDTree(points).query(points, k=2)  # the first is the point itself
    return float(np.median(distances[:, 1]))


def _check_scale(path: Path, *, stated: float, fitted: float) -> None:
    """Raise `InputError` where the stated um per px is not the array's."""
    if not 1 - ARRAY_SCALE_TOLERANCE < stated / fitted < 1 + ARRAY_SCALE_TOLERANCE:
        raise InputError(
            f"{path}: um_per_px is {stated:.3f}, but the spots' array has {fitted:.3f}; "
            "correct um_per_px, give pitch_um, or give the coordinates' own image"
        )


def _check_pitch(path: Path, scale: float, *, stated: float, measured: float) -> None:
    """Raise `InputError` where spots do not lie at the stated pitch (um)."""
    if not 1 - PITCH_TOLERANCE < measured / stated < 1 + PITCH_TOLERANCE:
        raise InputError(
            f"{path}: spots are {measured:.0f} um apart at {scale:.3f} um per px, not "
            f"{stated:g}; correct um_per_px or pitch_um"
        )


# ------------------------------------------------------------------------------ the lattice


class ContradictionError(InputError):
    """An array and the coordinates of its spots, in the file `source`, contradict each other."""

    def __init__(self, source: str | Path, fault: str, remedy: str) -> None:
        super().__init__(f"{source}: {fault}; {remedy}")
        self.fault = fault


@dataclass(frozen=True)
class Lattice:
    """The array of a section, as its coordinates confirm it.

    Attributes
    ----------
    grid
        As in `Layout`.
    um_per_px, pitch_um
        As in `Layout`; None where the um of a step are unknown.
    """

    grid: str
    um_per_px: float | None
    pitch_um: float | None


def _lattice(
    adata: AnnData, metadata: Mapping[str, Any], *, path: Path, fit_to: np.ndarray | None
) -> Lattice | None:
    """Fit the array of a section to its coordinates; None where it has none.

    Raises
    ------
    InputError
        If the image is turned or mirrored where it cannot be.
    ContradictionError
        If the spots do not lie on the array.
    """
    if not set(ARRAY) <= set(adata.obs):
        return None
    source = metadata.get("spots_path", path)
    numbering = adata.obs[list(ARRAY)].to_numpy(float)
    gaps = _numbering_steps(numbering)
    numbering = (numbering - numbering.min(axis=0)) / gaps
    chosen = slice(None) if fit_to is None else fit_to
    axes = _fit_axes(
        numbering[chosen],
        adata.obsm["spatial"][chosen],
        upright=bool(metadata.get("upright")),
        source=source,
    )
    grid = _grid_kind(numbering, axes)
    pitch = _length(metadata, "pitch_um")
    if "step_um" in metadata:
        of_a_step = np.atleast_2d(metadata["step_um"])
        steps = np.concatenate([of_a_step * gaps, of_a_step])
    elif grid == "hex" and pitch is None:  # of the hexagonal arrays Visium's is the usual one
        steps = np.array([VISIUM_STEP_UM])
    elif grid in UNIT_STEPS:
        steps = np.array([UNIT_STEPS[grid]]) * (pitch or 1.0)
    else:
        return Lattice("free", None, None)
    step = _fitting_step(axes, steps, _length(metadata, "um_per_px"), source)
    if (gaps > 1).any():
        adata.obs = adata.obs.assign(**dict(zip(ARRAY, numbering.T.astype(int), strict=True)))
    is_known = "step_um" in metadata or pitch is not None or grid == "hex"
    if not is_known:
        return Lattice(grid, None, None)
    nearest_um = _neighbour_distances(numbering, np.diag(step)).min()
    return Lattice(grid, _scale_of(axes, step), float(nearest_um))


def _numbering_steps(numbering: np.ndarray) -> np.ndarray:
    """Return by how much columns and rows (n, 2) are numbered apart, (2,): 1 without steps."""
    from_first = (numbering - numbering.min(axis=0)).astype(int)
    return np.maximum(np.gcd.reduce(from_first, axis=0), 1)


def _fit_axes(
    array: np.ndarray, xy: np.ndarray, *, upright: bool, source: str | Path
) -> np.ndarray:
    """Return x, y in px of a step along the columns, along the rows, (2, 2): least squares."""
    pixels = np.asarray(xy, float)
    design = np.c_[array, np.ones(len(array))]
    _check_rank(design, source)
    coefficients, *_ = np.linalg.lstsq(design, pixels, rcond=None)
    axes = coefficients[:2]
    if upright:
        _check_upright(axes, source)
    _check_residuals(design @ coefficients - pixels, axes, source)
    return axes


def _neighbour_distances(numbering: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return the distances of a spot's possible neighbours, by the axes (2, 2) of a step.

    Where columns and rows (n, 2) sum to even numbers, or to odd ones, every second place is empty.
    """
    is_staggered = len(np.unique(numbering.sum(axis=1) % 2)) == 1
    return np.linalg.norm((STAGGERED if is_staggered else DENSE) @ axes, axis=1)


def _grid_kind(numbering: np.ndarray, axes: np.ndarray) -> str:
    """Return the kind of lattice by the places that are nearest to a spot, as they are numbered."""
    is_staggered = len(np.unique(numbering.sum(axis=1) % 2)) == 1
    distances = _neighbour_distances(numbering, axes)
    is_near = tuple(distances < NEAR * distances.min())
    return (STAGGERED_KINDS if is_staggered else DENSE_KINDS).get(is_near, "free")


def _scale_of(axes: np.ndarray, step_um: np.ndarray) -> float:
    """Return um per px; the area of a step is independent of its direction."""
    return float(np.sqrt(np.prod(step_um) / abs(np.linalg.det(axes))))


def _fitting_step(
    axes: np.ndarray, steps: np.ndarray, stated: float | None, source: str | Path
) -> np.ndarray:
    """Return the um of a step, of several (k, 2), that fits the axes and the stated um per px.

    Raises
    ------
    ContradictionError
        Where none fits: the image is stretched or sheared, or the spots are numbered otherwise.
    """
    px_per_um = axes / steps[:, :, None]
    largest, smallest = np.linalg.svd(px_per_um, compute_uv=False).T
    fits = largest < MAX_STRETCH * smallest
    if not fits.any():
        raise ContradictionError(
            source,
            f"the array's axes have {largest[0]:.3f} and {smallest[0]:.3f} px per um",
            "rescale or unshear the image",
        )
    fitting = steps[fits]
    if stated is None:
        return fitting[0]
    errors = [abs(np.log(_scale_of(axes, step) / stated)) for step in fitting]
    return fitting[int(np.argmin(errors))]


def _check_rank(design: np.ndarray, source: str | Path) -> None:
    """Raise `ContradictionError` where the array positions (n, 2) and 1 do not span a plane."""
    too_few = len(design) < 3
    if too_few or np.linalg.matrix_rank(design - design.mean(axis=0) + [0, 0, 1]) < 3:
        raise ContradictionError(
            source, "spots lie on one line, so um per px is unknown", "add spots"
        )


def _check_upright(axes: np.ndarray, source: str | Path) -> None:
    """Raise `InputError` unless x grows along the columns and y along the rows."""
    (col_x, col_y), (row_x, row_y) = axes
    across = max(abs(col_y), abs(row_x))
    along = min(abs(col_x), abs(row_y))
    if across > MAX_TURN * along or col_x <= 0 or row_y <= 0:
        raise InputError(
            f"{source}: pixel_x does not grow with x and pixel_y with y; swap or unmirror them"
        )


def _check_residuals(residuals: np.ndarray, axes: np.ndarray, source: str | Path) -> None:
    """Raise `ContradictionError` where spots lie off their places on the fitted array."""
    step_px = np.sqrt(abs(np.linalg.det(axes)))
    off = np.abs(residuals).max(axis=1)
    if off.max() > step_px / 2 or np.median(off) > MAX_USUAL_OFFSET * step_px:
        raise ContradictionError(
            source, f"a spot is {off.max():.0f} px off its place on the array", "correct it"
        )


def pool(adata: AnnData, size_um: float) -> AnnData:
    """Sum counts in squares of `size_um` um, whose centres are the coordinates of the new spots.

    HEST pools the cells of Xenium and the bins of Visium HD like this.
    """
    scale = adata.uns["um_per_px"]
    squares_of_spots = (adata.obsm["spatial"] * scale // size_um).astype(int)
    squares, square_of = np.unique(squares_of_spots, axis=0, return_inverse=True)
    ones = np.ones(adata.n_obs, np.float32)
    summing = sp.csr_matrix((ones, (square_of.ravel(), np.arange(adata.n_obs))))
    return make_spots(
        summing @ adata.layers["counts"],
        obs=array_table(squares),
        genes=adata.var,
        xy=(squares + 0.5) * size_um / scale,
        uns={**adata.uns, "pitch_um": size_um, "spot_um": size_um, "grid": "square"},
    )


def neighbour_mean(adata: AnnData) -> sp.csr_matrix:
    """Return the matrix W for which `W @ x` is the mean of each spot's array neighbours.

    A spot has 8 neighbours on a square or staggered array, 6 on a hexagonal one
    (`adata.uns["grid"]`), fewer at the tissue's edge. On a "free" grid, without
    array coordinates, its neighbours are the spots within `REACH` of the usual distance to the
    nearest, and where cells crowd together the nearest `MAX_NEIGHBOURS` of them.

    Returns
    -------
    scipy.sparse.csr_matrix
        (n, n) float64, row-normalised; the row of a spot without neighbours is empty.
    """
    grid = adata.uns["grid"]
    if grid == "free":
        points = np.asarray(adata.obsm["spatial"])
        distance = _usual_distance(points)
    else:
        points = adata.obs[list(ARRAY)].to_numpy(int)
        distance = 1.0
    if grid == "hex":  # a neighbour is two columns away, or one column and a row of sqrt(3)
        points = points * [1, 3**0.5]
        distance = 2.0
    if grid == "staggered":  # a neighbour is one column and one row away, the next two of either
        distance = 2**0.5
    return _mean_of_nearest(points, REACH * distance)


def disc_mean(adata: AnnData) -> sp.csr_matrix:
    """Return the matrix W for which `W @ x` is the mean over each spot's disc, as in released SEAL.

    The disc holds the spot itself and the spots within sqrt(2) in array coordinates: on a square
    array 8 others, on a staggered or hexagonal one 4. Of the 6 neighbours on a hexagonal array the
    two in the same row are two columns away. On a "free" grid the disc is the spot with the
    neighbours of `neighbour_mean`.

    Returns
    -------
    scipy.sparse.csr_matrix
        (n, n) float64, row-normalised.
    """
    if adata.uns["grid"] == "free":
        others = neighbour_mean(adata)
    else:
        others = _mean_of_nearest(adata.obs[list(ARRAY)].to_numpy(int), 2**0.5 * (1 + 1e-9))
    disc = (others > 0).astype(float) + sp.identity(adata.n_obs, format="csr")
    return sp.csr_matrix(sp.diags(1.0 / disc.sum(1).A1) @ disc)


def _mean_of_nearest(points: np.ndarray, radius: float) -> sp.csr_matrix:
    """Return the row-normalised matrix (n, n) of the points (n, 2) within a radius of others.

    Of a crowd, the nearest `MAX_NEIGHBOURS` count.
    """
    n = len(points)
    reach = radius + 1e-100  # the tree takes what is nearer, also where all coincide
    options = {"k": MAX_NEIGHBOURS + 1, "distance_upper_bound": reach}
    _, nearest = cKDTree(points).query(points, **options)  # (n, k); n where there are fewer
    is_neighbour = (nearest < n) & (nearest != np.arange(n)[:, None])
    degree = is_neighbour.sum(1)
    weights = np.repeat(1.0 / np.maximum(degree, 1), degree)
    starts = np.r_[0, np.cumsum(degree)]
    return sp.csr_matrix((weights, nearest[is_neighbour], starts), shape=(n, n))
