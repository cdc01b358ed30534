"""Phantom tissue: regions, cells and the expression programs the cells carry.

Lengths are micrometres, positions (x, y) from the image's upper left corner, angles radians in
image axes. Nothing here knows of pixels or spots: `render` draws a `Tissue`, `measurement` measures
it.

Sources. Sizes of cells, nuclei, vacuoles, acini and vessels: Mescher, Junqueira's Basic Histology.
Nuclei of ductal carcinoma: Tan et al., Mod Pathol 2001 (44 um2 in low-grade, 72 um2 in high-grade
lesions; HER2-positive tumours are mostly high-grade); darker or more vesicular ones: Bell et al.,
J Surg Oncol 1987. Densities follow from packing cells of these sizes: 8,000 nuclei/mm2 in nests of
carcinoma, 1,800 in stroma, 17,000 in lymphoid tissue. Markers and relative RNA content by type:
Wu et al., Nat Genet 2021, an atlas of breast cancers. No number was chosen by a finetuned model's
score, and only two (see `CHROMATIN`) by the score of any model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from scipy.special import expit

STEP = 2.0  # um: the grid of masks and regions
FLOW_STEP = 16.0  # um: the grid of the fibres' coordinates

Noise = Callable[..., np.ndarray]  # `smooth_field` for one section, of a scale in um


class CellType(NamedTuple):
    """How a type of cell looks, and how much it transcribes.

    Parameters
    ----------
    name
        Name of the type.
    length, width
        Of the nucleus, in um; 0 without one.
    spread
        Coefficient of variation of the size.
    nucleus
        Mean haematoxylin of the nucleus, an optical density.
    body
        Diameter of the visible cytoplasm in um; 0 where none is visible.
    eosin, basophilia
        Optical densities of eosin and haematoxylin in the cytoplasm.
    rna
        Transcripts relative to an average cell.
    """

    name: str
    length: float
    width: float
    spread: float
    nucleus: float
    body: float
    eosin: float
    basophilia: float
    rna: float


CELL_TYPES = (
    CellType("tumour", 10.6, 8.7, 0.17, 0.62, 15.0, 0.10, 0.09, 2.0),
    CellType("luminal", 8.6, 6.4, 0.08, 0.66, 12.0, 0.10, 0.04, 1.2),
    CellType("myoepithelial", 9.0, 3.6, 0.12, 0.70, 10.0, 0.08, 0.02, 0.9),
    CellType("fibroblast", 14.5, 3.9, 0.18, 0.62, 0.0, 0.0, 0.0, 0.8),
    CellType("endothelial", 11.0, 3.0, 0.12, 0.70, 0.0, 0.0, 0.0, 0.8),
    CellType("tcell", 6.6, 6.2, 0.08, 0.90, 7.5, 0.04, 0.10, 0.5),
    CellType("bcell", 6.8, 6.4, 0.08, 0.86, 7.5, 0.04, 0.12, 0.5),
    CellType("plasma", 7.2, 6.2, 0.08, 0.88, 12.0, 0.06, 0.18, 1.5),
    CellType("macrophage", 9.5, 6.5, 0.15, 0.50, 17.0, 0.07, 0.02, 1.2),
    CellType("adipocyte", 9.5, 2.6, 0.10, 0.78, 0.0, 0.0, 0.0, 1.0),
    CellType("pyknotic", 4.2, 3.2, 0.25, 1.00, 10.0, 0.05, 0.0, 0.1),
    CellType("erythrocyte", 0.0, 0.0, 0.05, 0.0, 7.2, 0.65, 0.0, 0.0),  # no nucleus
)
KIND = {cell.name: i for i, cell in enumerate(CELL_TYPES)}


class Compartment(NamedTuple):
    """Spacing of its nuclei in um (density = 1.15 / spacing^2), and its mixture of cell types."""

    spacing: float
    mixture: dict[str, float]


COMPARTMENTS = {
    "nest": Compartment(12.0, {"tumour": 0.95, "tcell": 0.03, "macrophage": 0.02}),
    "stroma": Compartment(
        25.0,
        {
            "fibroblast": 0.76,
            "tcell": 0.06,
            "macrophage": 0.08,
            "endothelial": 0.06,
            "plasma": 0.04,
        },
    ),
    "inflamed": Compartment(
        14.0,
        {
            "fibroblast": 0.30,
            "tcell": 0.40,
            "bcell": 0.06,
            "plasma": 0.12,
            "macrophage": 0.10,
            "endothelial": 0.02,
        },
    ),
    "lymphoid": Compartment(
        8.2, {"tcell": 0.50, "bcell": 0.42, "plasma": 0.04, "macrophage": 0.04}
    ),
    "necrosis": Compartment(15.0, {"pyknotic": 0.88, "macrophage": 0.12}),
}
# Values of the compartments' grid. 0 is for what has no cells, or cells of its own.
COMPARTMENT = {name: i for i, name in enumerate(COMPARTMENTS, start=1)}


class Region(NamedTuple):
    """Bias and correlation length (um) of a region's random field.

    `spread` is the standard deviation of the bias between patients.
    """

    bias: float
    scale: float
    spread: float


REGIONS = {
    "tumour": Region(0.75, 300, 0.35),
    "stroma": Region(0.55, 300, 0.25),
    "gland": Region(0.0, 250, 0.35),
    "adipose": Region(-0.25, 300, 0.35),
    "lymphoid": Region(-0.75, 110, 0.25),
    "necrosis": Region(-0.95, 180, 0.3),
}

# Three binary states of a cell. Each follows its own smooth field, independent of the regions and
# with the same statistics, and *every* cell type carries it: so a state's genes are independent of
# composition and differ only in how the state shows. That is deliberately less real than biology.
STATES = (
    "chromatin",  # fine, or coarse with a nucleolus, at equal mean density, size and shape
    "arrangement",  # nuclei evenly spaced, or drawn into groups of about seven at equal density
    "interferon",  # not drawn at all
)
STATE_SCALE = 200.0  # um: one spot pitch
STATE_GAIN = 2.0  # slope of the logistic of the field
STATE_OFF = 1 / 8  # expression with the state off: the contrast of a marker between cell types
# How strongly the two are drawn. `subtle` is to mean: there, and hardly read by generic features.
# At full contrast, and a pull of 0.27, it did not: a linear probe on the frozen ImageNet network's
# best stage had most of the oracle's r. Both were weakened until it has about a third, on as many
# pairs as the reference cross-validation trains on (`benchmarks/subtlety.py`); no finetuned
# encoder was looked at. Format 2's 0.4 and 0.18 were set on a third as many pairs: on all of them
# the probe had 59% and 55%.
CHROMATIN = 0.26  # contrast of coarse chromatin, 1 being that of a high-grade carcinoma
GROUP_PULL = 0.13  # how far cells are drawn towards the centre of their group, 1 being onto it
GROUP_SIZE = 7  # cells of a group
GROUP_REACH = 60.0  # um: a cell further from the centre is left in its place


def gene_table() -> pd.DataFrame:
    """Return the genes of the phantom.

    Returns
    -------
    DataFrame
        Columns gene, class, program and per_mille: the share of the program's cells' transcripts.
        One row per gene and program; a gene may belong to two cell types.

    Notes
    -----
    Genes of class ``visible`` follow a cell type. Genes of class ``subtle`` and ``invisible``
    follow a state, which is drawn or not, at a level above that of, say, MKI67 in real spots, so
    that all can be measured. Genes of class ``housekeeping`` fill the rest of every cell's
    transcriptome alike.
    """
    return pd.read_csv(Path(__file__).with_name("phantom_genes.tsv"), sep="\t")


class Transcriptomes(NamedTuple):
    """What cells express, as shares of a cell's transcripts.

    Parameters
    ----------
    genes
        Names, (g,).
    base
        Expression with all states off, (cell types, g); rows sum to one.
    gain
        What a state adds when it is on, (states, g). Rows sum to zero: the housekeeping genes make
        room.
    """

    genes: np.ndarray
    base: np.ndarray
    gain: np.ndarray


def transcriptomes() -> Transcriptomes:
    """Return what the phantom's cells express."""
    genes = gene_table()
    table = genes.pivot(index="program", columns="gene", values="per_mille").fillna(0) / 1000
    table = table[genes["gene"].unique()]  # pivoting has sorted them
    of_states = table.loc[list(STATES)].to_numpy()
    housekeeping = table.loc["all cells"].to_numpy()
    housekeeping_share = housekeeping / housekeeping.sum()
    base = table.reindex(list(KIND), fill_value=0).to_numpy() + STATE_OFF * of_states.sum(0)
    base += np.outer(1 - base.sum(1), housekeeping_share)
    gain = (1 - STATE_OFF) * of_states
    gain -= np.outer(gain.sum(1), housekeeping_share)
    return Transcriptomes(table.columns.to_numpy(), base, gain)


@dataclass(frozen=True)
class Tissue:
    """A section before anything is measured.

    Parameters
    ----------
    side
        Edge of the square image in um.
    region
        Indices of REGIONS, -1 without tissue: (rows, cols) int8 on a grid of STEP um.
    masks
        By name, (rows, cols) uint8 with soft edges, on the same grid.
    fibre
        um along and across the collagen, (2, rows, cols) float32 on a grid of FLOW_STEP um.
    cells
        One row per cell: x and y (um), kind (an index of CELL_TYPES), angle, and a bool for each of
        STATES.
    """

    side: float
    region: np.ndarray
    masks: dict[str, np.ndarray]
    fibre: np.ndarray
    cells: pd.DataFrame


def smooth_field(
    rng: np.random.Generator, side: float, scale: float, *, step: float = STEP
) -> np.ndarray:
    """Draw a Gaussian random field of zero mean and unit variance.

    Parameters
    ----------
    rng
        Source of randomness.
    side
        Edge of the square in um.
    scale
        The correlation falls to 1/e at twice this distance, in um.
    step
        Of the field's grid, in um.

    Returns
    -------
    np.ndarray
        (n, n) float32 with n = side / step.
    """
    n_cells = 2 * side / scale
    n = round(side / step)
    noise = rng.standard_normal((int(n_cells) + 9,) * 2).astype(np.float32)
    noise = gaussian_filter(noise, 2.0, mode="wrap") * (4 * np.sqrt(np.pi))  # back to unit variance
    box = (4.0, 4.0, 4.0 + n_cells, 4.0 + n_cells)
    return np.asarray(Image.fromarray(noise).resize((n, n), Image.Resampling.BICUBIC, box=box))


def outline(rng: np.random.Generator, side: float) -> np.ndarray:
    """Draw how far inside the tissue each point is; level sets are outlines of tissue.

    The shape is a rotated superellipse with a ragged edge. It ends before the image's border.

    Parameters
    ----------
    rng
        Source of randomness.
    side
        Edge of the image in um.

    Returns
    -------
    np.ndarray
        (n, n) float32 on a grid of STEP um.
    """
    n = round(side / FLOW_STEP)
    y, x = (np.mgrid[:n, :n].astype(np.float32) + 0.5) * (2 / n) - 1
    turn = rng.uniform(0, np.pi)
    aspect = rng.uniform(0.8, 1.0)
    power = rng.uniform(2.2, 4.0)
    long = x * np.cos(turn) + y * np.sin(turn)
    short = (y * np.cos(turn) - x * np.sin(turn)) / aspect
    radius = (np.abs(long) ** power + np.abs(short) ** power) ** (1 / power)
    inside = 1 - radius + 0.10 * smooth_field(rng, side, 450.0, step=FLOW_STEP)
    to_border = 1 - np.maximum(np.abs(x), np.abs(y))
    inside = np.minimum(inside, 3 * to_border - 0.1 + inside * 0.2)
    size = (round(side / STEP),) * 2
    inside = np.asarray(Image.fromarray(inside).resize(size, Image.Resampling.BICUBIC))
    return inside + 0.012 * smooth_field(rng, side, 40.0) + 0.005 * smooth_field(rng, side, 12.0)


def grow(
    rng: np.random.Generator,
    inside: np.ndarray,
    *,
    side: float,
    bias: Mapping[str, float],
    lift: Mapping[str, np.ndarray] | None = None,
) -> Tissue:
    """Grow the tissue of one image.

    Parameters
    ----------
    rng
        Source of randomness.
    inside
        Where there is tissue, (rows, cols) bool on a grid of STEP um.
    side
        Edge of the image in um.
    bias
        Weight of each region in this patient.
    lift
        By state, what is added to its logit, on a grid of FLOW_STEP um.
    """
    noise = partial(smooth_field, rng, side)
    region = _grow_regions(noise, inside, bias)
    fibre = _grow_fibres(rng, noise, side)
    is_in = {name: region == i for i, name in enumerate(REGIONS)}
    # Carcinoma grows as nests and cords of 50 to 200 um, in places shrunk away from its stroma.
    nests = noise(30.0) + 0.5 * noise(130.0) + 0.2 * noise(8.0)
    nest = is_in["tumour"] & (nests > -0.25)
    cleft = is_in["tumour"] & (np.abs(nests + 0.33) < 0.08) & (noise(60.0) > 0.7)
    inflamed = noise(110.0) + 0.4 * noise(20.0) > 1.2

    layers = _Layers(
        void=cleft,
        walls=np.zeros_like(nest),
        glands=np.zeros_like(nest),
        rim=np.zeros(region.shape, np.uint8),
    )
    structures = [_draw_adipose(rng, side, is_in["adipose"], layers)]
    tubes = _place_glands(rng, side, is_in["gland"])
    tubes += _place_vessels(rng, side, is_in["stroma"] | is_in["adipose"])
    for tube in tubes:
        structures += _draw_tube(rng, tube, layers)

    free = inside & ~(layers.void | layers.walls | is_in["adipose"])
    compartment = np.zeros(region.shape, np.uint8)
    for name, area in {  # later ones take over
        "stroma": inside,
        "inflamed": inflamed,
        "lymphoid": is_in["lymphoid"],
        "necrosis": is_in["necrosis"],
        "nest": nest,
    }.items():
        compartment[area & free] = COMPARTMENT[name]
    rows = np.vstack([_scatter_cells(rng, side, compartment, _direction(fibre)), *structures])
    rows = rows[_value_at(inside, *rows[:, :2].T)]
    cells = pd.DataFrame(rows, columns=["x", "y", "kind", "angle"]).astype({"kind": int})

    masks = {
        "tissue": _soften(inside, 1.0),
        "epithelium": _soften((nest | layers.glands) & ~layers.void, 1.2),
        "void": _soften(layers.void & inside, 0.9),
        "rim": _soften(layers.rim, 0.6),
        "inflamed": _soften(inflamed, 6.0),
        "necrosis": _soften(is_in["necrosis"] & free, 5.0),
        "lymphoid": _soften(is_in["lymphoid"] & free, 6.0),
        "collagen": (expit(1.6 * noise(160.0) + 0.5) * 255).astype(np.uint8),
    }
    _draw_states(rng, side, cells, lift or {})
    _pull_groups(rng, cells)
    return Tissue(side, region, masks, fibre, cells)


def _grow_regions(noise: Noise, inside: np.ndarray, bias: Mapping[str, float]) -> np.ndarray:
    """Give each point to the region with the highest field, (rows, cols) int8."""
    ragged = 0.12 * noise(20.0)
    scores = []
    for i, (name, region) in enumerate(REGIONS.items()):
        edge = ragged if i % 2 else -ragged
        scores.append(noise(region.scale) + bias[name] + edge)
    return np.where(inside, np.argmax(scores, axis=0), -1).astype(np.int8)


def _grow_fibres(rng: np.random.Generator, noise: Noise, side: float) -> np.ndarray:
    """Draw um along and across the collagen, (2, rows, cols) float32 on FLOW_STEP um."""
    angle = rng.uniform(0, np.pi)
    angle_across = angle + np.pi / 2
    y, x = (np.indices((round(side / FLOW_STEP),) * 2) + 0.5) * FLOW_STEP
    along = x * np.cos(angle) + y * np.sin(angle)
    along = along + 120 * noise(400.0, step=FLOW_STEP)
    across = x * np.cos(angle_across) + y * np.sin(angle_across)
    across = across + 190 * noise(400.0, step=FLOW_STEP)
    across = across + 25 * noise(90.0, step=FLOW_STEP)
    return np.stack([along, across]).astype(np.float32)


def _direction(fibre: np.ndarray) -> np.ndarray:
    """Return the angle of the collagen: along the lines of equal distance across it."""
    down, right = np.gradient(fibre[1])
    return np.arctan2(-right, down)


@dataclass
class _Layers:
    """What structures draw into, (rows, cols) each, on a grid of STEP um."""

    void: np.ndarray  # bool: lumina, vacuoles and clefts
    walls: np.ndarray  # bool: glands and vessels
    glands: np.ndarray  # bool
    rim: np.ndarray  # uint8: membranes


def _lattice(
    rng: np.random.Generator, side: float, spacing: float, *, jitter: float = 0.22
) -> np.ndarray:
    """Return a hexagonal lattice, each point moved by ``jitter`` spacings: (points, 2) in um."""
    n_rows = int(side / (spacing * 0.866)) + 1
    n_columns = int(side / spacing) + 1
    j, i = np.mgrid[:n_rows, :n_columns]
    x = (i + 0.5 * (j % 2)) * spacing
    y = j * spacing * 0.866
    points = np.stack([x, y], -1).reshape(-1, 2)
    return points + rng.normal(0, jitter * spacing, points.shape)


def _value_at(grid: np.ndarray, x: np.ndarray, y: np.ndarray, *, step: float = STEP) -> np.ndarray:
    """Return the values of a grid of ``step`` um at points in um."""
    last = grid.shape[-1] - 1
    row = np.clip(y / step, 0, last).astype(int)
    column = np.clip(x / step, 0, last).astype(int)
    return grid[row, column]


def _cell_rows(x: np.ndarray, y: np.ndarray, kind: str, angle: np.ndarray | float) -> np.ndarray:
    """Return cells of one kind as rows (x, y, kind, angle)."""
    return np.column_stack(np.broadcast_arrays(x, y, KIND[kind], angle))


class _Tube(NamedTuple):
    """An acinus of a gland, or a vessel: centre, radius and that of the lumen, in um."""

    is_gland: bool
    x: float
    y: float
    radius: float
    lumen: float


def _place_glands(rng: np.random.Generator, side: float, area: np.ndarray) -> list[_Tube]:
    """Place acini in an area (bool grid)."""
    x, y = _sites(rng, area, _lattice(rng, side, 84.0, jitter=0.1))
    radius = rng.uniform(24.0, 39.0, len(x))
    lumen = radius * rng.uniform(0.25, 0.6, len(x))
    return [_Tube(True, *tube) for tube in zip(x, y, radius, lumen, strict=True)]


def _place_vessels(rng: np.random.Generator, side: float, area: np.ndarray) -> list[_Tube]:
    """Place vessels in an area (bool grid)."""
    x, y = _sites(rng, area, _lattice(rng, side, 300.0, jitter=0.3))
    radius = rng.uniform(10.0, 26.0, len(x))
    return [_Tube(False, *tube) for tube in zip(x, y, radius, radius - 3, strict=True)]


def _sites(rng: np.random.Generator, area: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Take nine of ten points in an area, (2, n): x and y."""
    taken = _value_at(area, *points.T) & (rng.random(len(points)) < 0.9)
    return points[taken].T


def _draw_tube(rng: np.random.Generator, tube: _Tube, layers: _Layers) -> list[np.ndarray]:
    """Draw an acinus or a vessel into the layers and return its cells as blocks of rows."""
    swell = _uneven_circle(rng)
    reach = 1.4 * tube.radius
    x0, y0 = (max(int((centre - reach) / STEP), 0) for centre in (tube.x, tube.y))
    x1, y1 = (int((centre + reach) / STEP) + 1 for centre in (tube.x, tube.y))
    window = np.s_[y0:y1, x0:x1]
    rows, columns = np.indices(layers.void[window].shape)
    dx = (columns + x0 + 0.5) * STEP - tube.x
    dy = (rows + y0 + 0.5) * STEP - tube.y
    radius = np.hypot(dx, dy) / swell(np.arctan2(dy, dx))
    wall = radius < tube.radius
    layers.walls[window] |= wall
    if tube.is_gland:
        layers.glands[window] |= wall
    layers.void[window] = np.where(wall, radius < tube.lumen, layers.void[window])
    membrane = 255 * np.exp(-(((radius - tube.radius) / 2.0) ** 2))
    rim = np.maximum(layers.rim[window], membrane)
    layers.rim[window] = np.where(radius < tube.radius - 4, 0, rim)

    ring = partial(_ring_of_cells, rng, tube, swell)
    if not tube.is_gland:
        blood = _blood(rng, tube)
        return [ring("endothelial", radius=tube.radius - 1.5, spacing=16.0), blood]
    blocks = [ring("myoepithelial", radius=tube.radius - 2.5, spacing=15.0)]
    for layer in np.arange(tube.lumen + 5.0, tube.radius - 6.0, 8.5):  # one or two
        blocks.append(ring("luminal", radius=layer, spacing=8.6, turn=0))
    return blocks


def _uneven_circle(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Return the radius of a roughly round outline as a function of the angle, 1 on average."""
    phase_2, phase_3 = rng.uniform(0, 2 * np.pi, 2)
    size_2, size_3 = rng.uniform(0.04, 0.16, 2)

    def radius(angle: np.ndarray) -> np.ndarray:
        return 1 + size_2 * np.sin(2 * angle + phase_2) + size_3 * np.sin(3 * angle + phase_3)

    return radius


def _ring_of_cells(
    rng: np.random.Generator,
    tube: _Tube,
    swell: Callable[[np.ndarray], np.ndarray],
    kind: str,
    *,
    radius: float,
    spacing: float,
    turn: float = np.pi / 2,
) -> np.ndarray:
    """Return a ring of cells as rows; with ``turn`` 0 they point inwards, by default along it."""
    n = max(int(2 * np.pi * radius / spacing), 3)
    angle = rng.uniform(0, 2 * np.pi) + np.arange(n) * 2 * np.pi / n
    angle += rng.normal(0, 0.12 * spacing / radius, n)
    distance = radius * swell(angle) + rng.normal(0, 0.6, n)
    orientation = angle + rng.normal(turn, 0.15, n)
    x = tube.x + distance * np.cos(angle)
    y = tube.y + distance * np.sin(angle)
    return _cell_rows(x, y, kind, orientation)


def _blood(rng: np.random.Generator, vessel: _Tube) -> np.ndarray:
    """Return the erythrocytes of a vessel as rows."""
    points = _lattice(rng, 2 * vessel.lumen, 9.0) - vessel.lumen
    in_lumen = np.hypot(*points.T) < vessel.lumen - 5
    taken = in_lumen & (rng.random(len(points)) < 0.6)
    x, y = (points[taken] + [vessel.x, vessel.y]).T
    return _cell_rows(x, y, "erythrocyte", 0)


def _draw_adipose(
    rng: np.random.Generator, side: float, area: np.ndarray, layers: _Layers
) -> np.ndarray:
    """Draw the vacuoles of an area (bool grid) into the layers and return their nuclei as rows.

    Vacuoles are a Voronoi tessellation with rounded corners, thin walls and flat nuclei pressed
    into them.
    """
    seeds = _lattice(rng, side, 68.0)
    seeds = seeds[_value_at(area, *seeds.T)]
    if len(seeds) < 8:
        return np.empty((0, 4))
    rows, columns = np.nonzero(area)
    tree = cKDTree(seeds)
    centres = (np.column_stack([columns, rows]) + 0.5) * STEP
    near, _ = tree.query(centres, k=3)
    # Distance to the nearest two walls; their smooth minimum rounds the corners.
    gap = -5 * np.logaddexp((near[:, 0] - near[:, 1]) / 5, (near[:, 0] - near[:, 2]) / 5)
    layers.void[rows, columns] |= (gap > 1.5) & (near[:, 0] < 55)
    layers.rim[rows, columns] = np.maximum(layers.rim[rows, columns], 130 * (np.abs(gap) < 2.5))
    _, neighbours = tree.query(seeds, k=6)
    neighbour = neighbours[np.arange(len(seeds)), rng.integers(1, 6, len(seeds))]
    way = seeds[neighbour] - seeds
    x, y = (seeds + 0.47 * way).T  # on the wall between the two
    return _cell_rows(x, y, "adipocyte", np.arctan2(way[:, 1], way[:, 0]) + np.pi / 2)


def _scatter_cells(
    rng: np.random.Generator, side: float, compartment: np.ndarray, flow: np.ndarray
) -> np.ndarray:
    """Return the cells of the compartments as rows; ``flow`` is the angle of the collagen."""
    along_collagen = [KIND["fibroblast"], KIND["endothelial"]]
    blocks = []
    for name, (spacing, mixture) in COMPARTMENTS.items():
        points = _lattice(rng, side, spacing)
        x, y = points[_value_at(compartment, *points.T) == COMPARTMENT[name]].T
        kinds = [KIND[cell] for cell in mixture]
        kind = rng.choice(kinds, len(x), p=list(mixture.values()))
        aligned = _value_at(flow, x, y, step=FLOW_STEP) + rng.normal(0, 0.2, len(x))
        anyhow = rng.uniform(0, np.pi, len(x))
        angle = np.where(np.isin(kind, along_collagen), aligned, anyhow)
        blocks.append(np.column_stack([x, y, kind, angle]))
    return np.vstack(blocks)


def _draw_states(
    rng: np.random.Generator, side: float, cells: pd.DataFrame, lift: Mapping[str, np.ndarray]
) -> None:
    """Draw the three states of every cell from their fields, into a column each."""
    for name in STATES:
        logit = STATE_GAIN * smooth_field(rng, side, STATE_SCALE, step=FLOW_STEP)
        chance = expit(logit + lift.get(name, 0))
        x = cells["x"].to_numpy()
        y = cells["y"].to_numpy()
        cells[name] = rng.random(len(cells)) < _value_at(chance, x, y, step=FLOW_STEP)


def _pull_groups(rng: np.random.Generator, cells: pd.DataFrame) -> None:
    """Give the cells of a group the arrangement of its centre, and draw them towards it.

    One in GROUP_SIZE cells is a centre; the cells nearest to it are its group.
    """
    position = cells[["x", "y"]].to_numpy()
    centres = np.flatnonzero(rng.random(len(cells)) < 1 / GROUP_SIZE)
    distance, nearest = cKDTree(position[centres]).query(position)
    centre_of = centres[nearest]
    cells["arrangement"] = cells["arrangement"].to_numpy()[centre_of]
    lines_a_wall = np.isin(cells["kind"], [KIND["adipocyte"], KIND["endothelial"]])
    is_pulled = cells["arrangement"].to_numpy() & (distance < GROUP_REACH) & ~lines_a_wall
    pull = GROUP_PULL * is_pulled
    cells[["x", "y"]] = position + pull[:, None] * (position[centre_of] - position)


def _soften(mask: np.ndarray, radius: float) -> np.ndarray:
    """Blur a mask, bool or uint8, by ``radius`` steps of its grid: (rows, cols) uint8."""
    grey = mask if mask.dtype == np.uint8 else np.uint8(255) * mask
    return np.asarray(Image.fromarray(grey).filter(ImageFilter.GaussianBlur(radius)))
