"""Where spots lie: microns per pixel, the lattice of the array, pooling, neighbours."""

from __future__ import annotations

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

# Neighbours lie within so many times the usual distance. That takes in a square array's diagonal
# (1.41), and not a hexagon's second ring (1.73). (Visium counts every second column, so a radius of
# sqrt(2) in array units finds 4 of 6 neighbours: a fault of the released SEAL code.)
REACH = 1.5
MAX_TURN = 0.2  # of an upright image: a step's share along the other axis
MAX_STRETCH = 1.05  # ratio of the scales along the array's two axes
SCALE_TOLERANCE = 0.05  # between the stated um per px and the array's
PITCH_TOLERANCE = 0.15  # between the stated pitch and the distance between nearest spots


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
        "square" or "hex", or "free" without array coordinates.
    spot_um
        Diameter of a spot in um.
    """

    um_per_px: float
    pitch_um: float
    grid: str
    spot_um: float


def locate_spots(
    adata: AnnData,
    metadata: Mapping[str, Any],
    *,
    path: Path,
    image: str | Path | None,
    fit_to: np.ndarray | None = None,
) -> Layout:
    """Find the scale and the lattice of a section's spots, and check them against each other.

    The scale is the stated one, else that of the array, else the image's own.

    Parameters
    ----------
    adata
        Spots with x, y in px of the full image in `obsm["spatial"]`; where they lie on an array,
        with `obs` array_col and array_row.
    metadata
        What is known of the section. Read are the lengths um_per_px, pitch_um and spot_um;
        step_um and upright (see `um_per_px`); spots_path, the file of the coordinates.
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
    grid = _grid_kind(adata)
    stated_pitch = _length(metadata, "pitch_um")
    step_um = _step_um(grid, metadata, stated_pitch)
    fitted = None
    if step_um is not None:
        fitted = um_per_px(
            adata if fit_to is None else adata[fit_to],
            step_um=step_um,
            upright=bool(metadata.get("upright")),
            source=metadata.get("spots_path", path),
        )
    scale = _scale(metadata, fitted, image)
    if scale is None or not scale > 0:
        raise InputError(f"{path}: um per px is unknown; give um_per_px in sections.tsv")
    pitch = scale * _usual_distance(np.asarray(adata.obsm["spatial"]))
    if fitted is not None:
        _check_scale(path, stated=scale, fitted=fitted)
    elif stated_pitch is not None:
        _check_pitch(path, scale, stated=stated_pitch, measured=pitch)
    if step_um is not None:
        columns_apart = 2 if grid == "hex" else 1
        pitch = step_um[0] * columns_apart
    spot_um = _length(metadata, "spot_um")
    if spot_um is None:
        spot_um = pitch / 2
    return Layout(um_per_px=scale, pitch_um=pitch, grid=grid, spot_um=spot_um)


def _grid_kind(adata: AnnData) -> str:
    """Return "hex" where array columns and rows sum to even numbers, "square" or "free"."""
    if not set(ARRAY) <= set(adata.obs):
        return "free"
    is_even = adata.obs[list(ARRAY)].sum(axis=1) % 2 == 0
    return "hex" if is_even.all() else "square"


def _length(metadata: Mapping[str, Any], key: str) -> float | None:
    """Return a length of the metadata, or None where it is absent or 0."""
    value = metadata.get(key)
    if not value or float(value) == 0:
        return None
    return float(value)


def _step_um(
    grid: str, metadata: Mapping[str, Any], pitch_um: float | None
) -> tuple[float, float] | None:
    """Return um of one step along the array's columns and rows, or None where it is unknown."""
    if grid == "free":
        return None
    if metadata.get("step_um"):
        return metadata["step_um"]
    if grid == "hex":
        return VISIUM_STEP_UM
    if pitch_um is None:
        return None
    return pitch_um, pitch_um


def _scale(
    metadata: Mapping[str, Any], fitted: float | None, image: str | Path | None
) -> float | None:
    """Return the stated um per px, else the array's, else the image's own."""
    if metadata.get("um_per_px"):
        return float(metadata["um_per_px"])
    if fitted is not None:
        return fitted
    if image:
        return open_slide(image).um_per_px
    return None


def _usual_distance(points: np.ndarray) -> float:
    """Return the median distance of points (n, 2) to their nearest neighbour."""
    distances, _ = cKDTree(points).query(points, k=2)  # the first is the point itself
    return float(np.median(distances[:, 1]))


def _check_scale(path: Path, *, stated: float, fitted: float) -> None:
    """Raise `InputError` where the stated um per px is not the array's."""
    if not 1 - SCALE_TOLERANCE < stated / fitted < 1 + SCALE_TOLERANCE:
        raise InputError(
            f"{path}: um_per_px is {stated:.3f}, but the spots' array has {fitted:.3f}; "
            "correct um_per_px, or give the coordinates' own image"
        )


def _check_pitch(path: Path, scale: float, *, stated: float, measured: float) -> None:
    """Raise `InputError` where spots do not lie at the stated pitch (um)."""
    if not 1 - PITCH_TOLERANCE < measured / stated < 1 + PITCH_TOLERANCE:
        raise InputError(
            f"{path}: spots are {measured:.0f} um apart at {scale:.3f} um per px, not "
            f"{stated:g}; correct um_per_px or pitch_um"
        )


def um_per_px(
    adata: AnnData,
    *,
    step_um: tuple[float, float],
    upright: bool = True,
    source: str | Path = "coordinates",
) -> float:
    """Return microns per pixel from the array: pixel = A @ (col, row) + t, least squares.

    Parameters
    ----------
    adata
        Spots with x, y in px in `obsm["spatial"]`, and with `obs` array_col and array_row.
    step_um
        Um of one step along the columns and along the rows: (200, 200) on the legacy ST array,
        (50, 86.6) on Visium's, where a neighbour is two columns away.
    upright
        Whether the image cannot have been turned or mirrored.
    source
        What the errors name.

    Raises
    ------
    InputError
        If the spots lie on one line, an upright image has axes swapped or mirrored, the scales of
        the two axes differ by more than 5%, or a spot lies more than half a step off the fit.
    """
    array = adata.obs[list(ARRAY)].to_numpy(float)
    pixels = np.asarray(adata.obsm["spatial"], float)
    design = np.c_[array, np.ones(len(array))]
    _check_rank(design, source)
    coefficients, *_ = np.linalg.lstsq(design, pixels, rcond=None)
    axes = coefficients[:2]  # (2, 2) x, y in px of a step along the columns, along the rows
    if upright:
        _check_upright(axes, source)
    _check_stretch(axes, step_um, source)
    (col_x, col_y), (row_x, row_y) = axes
    # The area of a step is independent of its direction.
    area_px = abs(col_x * row_y - col_y * row_x)
    step_px = np.sqrt(area_px)
    _check_residuals(design @ coefficients - pixels, step_px, source)
    return float(np.sqrt(np.prod(step_um)) / step_px)


def _check_rank(design: np.ndarray, source: str | Path) -> None:
    """Raise `InputError` where the array positions (n, 2) and 1 do not span a plane."""
    too_few = len(design) < 3
    if too_few or np.linalg.matrix_rank(design - design.mean(axis=0) + [0, 0, 1]) < 3:
        raise InputError(f"{source}: spots lie on one line, so um per px is unknown; add spots")


def _check_upright(axes: np.ndarray, source: str | Path) -> None:
    """Raise `InputError` unless x grows along the columns and y along the rows."""
    (col_x, col_y), (row_x, row_y) = axes
    across = max(abs(col_y), abs(row_x))
    along = min(abs(col_x), abs(row_y))
    if across > MAX_TURN * along or col_x <= 0 or row_y <= 0:
        raise InputError(
            f"{source}: pixel_x does not grow with x and pixel_y with y; swap or unmirror them"
        )


def _check_stretch(axes: np.ndarray, step_um: tuple[float, float], source: str | Path) -> None:
    """Raise `InputError` where the image is stretched or sheared."""
    px_per_um = axes / np.reshape(step_um, (2, 1))
    largest, smallest = np.linalg.svd(px_per_um, compute_uv=False)
    if not largest < MAX_STRETCH * smallest:
        raise InputError(
            f"{source}: the array's axes have {largest:.3f} and {smallest:.3f} px per um; "
            "rescale or unshear the image"
        )


def _check_residuals(residuals: np.ndarray, step_px: float, source: str | Path) -> None:
    """Raise `InputError` where a spot lies more than half a step off the fitted array."""
    largest = np.abs(residuals).max()
    if largest > step_px / 2:
        raise InputError(
            f"{source}: a spot is {largest:.0f} px off its place on the array; correct it"
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

    A spot has 8 neighbours on a square array, 6 on a hexagonal one (`adata.uns["grid"]`), fewer at
    the tissue's edge. On a "free" grid, without array coordinates, its neighbours are the spots
    within `REACH` of the usual distance to the nearest.

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
    pairs = cKDTree(points).query_pairs(REACH * distance, output_type="ndarray")
    rows = np.r_[pairs[:, 0], pairs[:, 1]]
    cols = np.r_[pairs[:, 1], pairs[:, 0]]
    degree = np.bincount(rows, minlength=adata.n_obs)
    return sp.csr_matrix((1.0 / degree[rows], (rows, cols)), shape=(adata.n_obs, adata.n_obs))
