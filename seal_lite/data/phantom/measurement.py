"""Measure a phantom `Tissue` with an array of spots: what the counts would be, and the counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.spatial import cKDTree, distance

from seal_lite.data.phantom.tissue import (
    CELL_TYPES,
    REGIONS,
    STATES,
    STEP,
    outline,
    transcriptomes,
)


@dataclass(frozen=True)
class Assay:
    """The measurement. None of its numbers was chosen by any model's score."""

    pitch_um: float = 200.0  # centre to centre, Ståhl et al., Science 2016
    spot_um: float = 100.0  # diameter, ibid.
    depth: tuple[float, float] = (5500.0, 10500.0)  # median counts a spot; 8,500 in her2st's C2
    depth_sd: float = 0.4  # of the log of a spot's depth beyond what its RNA content explains
    # depth ~ RNA^0.5; log-sd 0.6 in all, 1.1 in C2 with its empty spots
    depth_power: float = 0.5
    # A spot's share of transcripts from its neighbours: 30% and more at 100 um pitch (SpotClean,
    # Ni et al., Nat Commun 2022); less is expected at 200 um.
    diffusion: float = 0.2
    ambient: float = 0.02  # share of the section's mean everywhere, ibid.
    # Var = mean + dispersion mean^2: a coefficient of variation of 0.3 beyond Poisson, between
    # that of replicates of one line (0.1) and of human individuals (0.4), edgeR user's guide.
    dispersion: float = 0.1
    batch_sd: float = 0.3  # of the log of a gene's factor in a patient
    no_counts: int = 2  # up to so many selected spots without a row in the counts, as upstream
    genes_lost: int = 3  # weakly expressed genes that a section's table lacks, as upstream


ASSAY = Assay()


@dataclass(frozen=True)
class SpotLayout:
    """An outline of tissue and the n spots under it.

    Parameters
    ----------
    side
        Edge of the image in um.
    inside
        Where there is tissue, (rows, cols) bool on a grid of STEP um.
    index
        Column and row of each spot on the array, (n, 2) int.
    position
        x and y of each spot in um, (n, 2).
    """

    side: float
    inside: np.ndarray
    index: np.ndarray
    position: np.ndarray


def place_spots(rng: np.random.Generator, n_spots: int) -> SpotLayout:
    """Draw an outline of tissue over exactly ``n_spots`` positions of an array."""
    n = int(np.ceil(np.sqrt(n_spots / 0.7)))
    side = (n + 1) * ASSAY.pitch_um
    score = outline(rng, side)
    index = np.stack(np.meshgrid(np.arange(1, n + 1), np.arange(1, n + 1)), -1).reshape(-1, 2)
    column, row = (index * ASSAY.pitch_um / STEP).astype(int).T
    score_of_spot = score[row, column]
    best = np.argsort(-score_of_spot, kind="stable")[:n_spots]
    chosen = np.sort(best)
    # The array is printed with a small error; the tissue reaches a little beyond the last spots.
    position = (index[chosen] + rng.normal(0, 0.01, (n_spots, 2))) * ASSAY.pitch_um
    inside = score > score_of_spot[chosen].min() - 0.01
    return SpotLayout(side, inside, index[chosen], position)


def expected_expression(
    cells: pd.DataFrame, layout: SpotLayout, batch: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the noise-free expression of each spot, after diffusion and with a batch effect.

    Parameters
    ----------
    cells
        Those of a `Tissue`.
    layout
        The n spots.
    batch
        A factor for each gene, (g,).

    Returns
    -------
    shares
        Expected share of each gene in the spot's transcripts, (n, g); rows sum to one.
    content
        RNA of each spot in average cells, (n,).
    """
    expression = _expression_under_spots(cells, layout.position)
    near = csr_array(distance.cdist(layout.index, layout.index, "chebyshev") == 1, dtype=float)
    n_near = np.maximum(near.sum(1), 1)
    around = near @ expression / n_near[:, None]
    expression += ASSAY.diffusion * (around - expression)
    expression += ASSAY.ambient * (expression.mean(0) - expression)
    shares = expression * batch
    return shares / shares.sum(1, keepdims=True), expression.sum(1)


def _expression_under_spots(cells: pd.DataFrame, position: np.ndarray) -> np.ndarray:
    """Sum the transcripts of the cells under each spot at a position in um, (n, g)."""
    _, base, gain = transcriptomes()
    n_spots = len(position)
    tree = cKDTree(cells[["x", "y"]])
    under = tree.query_ball_point(position, ASSAY.spot_um / 2)  # sorted
    cells = cells.iloc[np.concatenate(under).astype(int)]
    spot = np.repeat(np.arange(n_spots), [len(indices) for indices in under])
    rna = np.array([cell_type.rna for cell_type in CELL_TYPES])
    amount = rna[cells["kind"]]
    amount_of_kind = csr_array((amount, (spot, cells["kind"])), shape=(n_spots, len(rna)))
    expression = amount_of_kind @ base
    for state, state_gain in zip(STATES, gain, strict=True):
        amount_in_state = np.bincount(spot, amount * cells[state], n_spots)
        expression += np.outer(amount_in_state, state_gain)
    return expression


def draw_counts(
    rng: np.random.Generator, shares: np.ndarray, content: np.ndarray, *, median_depth: float
) -> np.ndarray:
    """Draw negative binomial counts.

    Parameters
    ----------
    rng
        Source of randomness.
    shares
        Expected share of each gene, (n, g).
    content
        RNA of each spot, (n,).
    median_depth
        Counts of a spot of median RNA content.

    Returns
    -------
    np.ndarray
        Counts (n, g) int64.
    """
    depth = (content / np.median(content)) ** ASSAY.depth_power
    depth *= median_depth * rng.lognormal(0, ASSAY.depth_sd, len(content))
    shape = 1 / ASSAY.dispersion  # negative binomial as a Poisson of a gamma
    return rng.poisson(shares * depth[:, None] * rng.gamma(shape, 1 / shape, shares.shape))


def dominant_region(region: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return the most frequent region under each spot.

    Parameters
    ----------
    region
        Indices of REGIONS, (rows, cols) on a grid of STEP um.
    position
        x and y of n spots in um, (n, 2).

    Returns
    -------
    np.ndarray
        Names, (n,) str.
    """
    reach = int(ASSAY.spot_um / 2 / STEP)
    from_centre = np.indices((2 * reach + 1,) * 2) - reach
    disc = np.argwhere(np.hypot(*from_centre) <= reach) - reach
    points = (position / STEP).astype(int)[:, None] + disc  # (n, points of a spot, 2)
    x, y = np.moveaxis(points, -1, 0)
    n_points = np.stack([(region[y, x] == i).sum(1) for i in range(len(REGIONS))])
    return np.array(list(REGIONS))[n_points.argmax(0)]
