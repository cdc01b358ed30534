"""Phantom tissue: regions, cells and the expression programs the cells carry.

Lengths are micrometres, positions (x, y) from the image's upper left corner, angles radians in
image axes. Nothing here knows of pixels or spots: `render` draws a `Tissue`, `phantom` measures it.

Sources. Sizes of cells, nuclei, vacuoles, acini and vessels: Mescher, Junqueira's Basic Histology.
Nuclei of ductal carcinoma: Tan et al., Mod Pathol 2001 (44 um2 in low-grade, 72 um2 in high-grade
lesions; HER2-positive tumours are mostly high-grade); darker or more vesicular ones: Bell et al.,
J Surg Oncol 1987. Densities follow from packing cells of these sizes: 8,000 nuclei/mm2 in nests of
carcinoma, 1,800 in stroma, 17,000 in lymphoid tissue. Markers and relative RNA content by type:
Wu et al., Nat Genet 2021, an atlas of breast cancers. No number was chosen by a finetuned model's
score, and but two (see `CHROMATIN`) by none at all.
"""

from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from scipy.special import expit

STEP = 2.0  # um: the grid of masks and regions
FLOW_STEP = 16.0  # um: the grid of the fibres' coordinates

# A cell type: its nucleus (length and width in um, coefficient of variation of its size, mean
# haematoxylin), the visible cytoplasm (diameter in um, eosin, basophilia: haematoxylin; densities
# are optical) and its transcripts relative to an average cell.
CellType = namedtuple("CellType", "name length width spread nucleus cell eosin basophilia rna")
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

# Compartment: nucleus spacing in um (density = 1.15 / spacing^2) and its mixture of cell types.
COMPARTMENTS = {
    "nest": (12.0, {"tumour": 0.95, "tcell": 0.03, "macrophage": 0.02}),
    "stroma": (25.0, {"fibroblast": 0.76, "tcell": 0.06, "macrophage": 0.08, "endothelial": 0.06,
                      "plasma": 0.04}),
    "inflamed": (14.0, {"fibroblast": 0.30, "tcell": 0.40, "bcell": 0.06, "plasma": 0.12,
                        "macrophage": 0.10, "endothelial": 0.02}),
    "lymphoid": (8.2, {"tcell": 0.50, "bcell": 0.42, "plasma": 0.04, "macrophage": 0.04}),
    "necrosis": (15.0, {"pyknotic": 0.88, "macrophage": 0.12}),
}  # fmt: skip
COMPARTMENT = {name: i for i, name in enumerate(COMPARTMENTS, start=1)}  # 0: nothing, or its own

# Region: bias, correlation length (um) of its random field, spread of the bias between patients.
REGIONS = {
    "tumour": (0.75, 300, 0.35), "stroma": (0.55, 300, 0.25), "gland": (0.0, 250, 0.35),
    "adipose": (-0.25, 300, 0.35), "lymphoid": (-0.75, 110, 0.25), "necrosis": (-0.95, 180, 0.3),
}  # fmt: skip

# Three binary states of a cell. Each follows its own smooth field, independent of the regions and
# with the same statistics, and *every* cell type carries it: so a state's genes are independent of
# composition and differ only in how the state shows. That is deliberately less real than biology.
STATES = (
    "chromatin",  # fine, or coarse with a nucleolus, at equal mean density, size and shape
    "arrangement",  # nuclei evenly spaced, or drawn into groups of about seven at equal density
    "interferon",  # not drawn at all
)
STATE_SCALE, STATE_GAIN = 200.0, 2.0  # um (one spot pitch); slope of the logistic of the field
STATE_OFF = 1 / 8  # expression with the state off: the contrast of a marker between cell types
# How strongly the two are drawn. `subtle` is to mean: there, and hardly read by generic features.
# At full contrast, and a pull of 0.27, it did not: a linear probe on the frozen ImageNet network's
# best stage had most of the oracle's r. Both were weakened until it has about a third, on as many
# pairs as the recorded cross-validation trains on (`book/yardstick.py`); no finetuned encoder was
# looked at. Format 2's 0.4 and 0.18 were set on a third as many pairs: on all of them the probe had
# 59% and 55%.
CHROMATIN = 0.26  # contrast of coarse chromatin, 1 being that of a high-grade carcinoma
GROUP_SIZE, GROUP_PULL = 7, 0.13  # cells of a group, and the share of the way to its centre


def gene_table():
    """A frame of gene, class, program and per_mille, the share of the program's cells' transcripts;
    a row per gene and program (a gene may belong to two cell types). Of the classes, `visible`
    genes follow a cell type, `subtle` and `invisible` ones a state, which is drawn or not, at a
    level above that of, say, MKI67 in real spots, so that all can be measured; `housekeeping` genes
    fill the rest of every cell's transcriptome alike."""
    return pd.read_csv(Path(__file__).with_name("phantom_genes.tsv"), sep="\t")


def transcriptomes():
    """What a cell expresses: `genes` (names); `base`, (cell types, genes) with all states off; and
    `gain`, (states, genes), what a state adds when on. Both are shares of the cell's transcripts: a
    row of `base` sums to one, a row of `gain` to zero, as the housekeeping genes make room."""
    genes = gene_table()
    table = genes.pivot(index="program", columns="gene", values="per_mille").fillna(0) / 1000
    table = table[genes["gene"].unique()]  # pivoting has sorted them
    on, fill = table.loc[list(STATES)].to_numpy(), table.loc["all cells"].to_numpy()
    base = table.reindex(list(KIND), fill_value=0).to_numpy() + STATE_OFF * on.sum(0)
    base += np.outer(1 - base.sum(1), fill / fill.sum())
    gain = (1 - STATE_OFF) * on
    gain -= np.outer(gain.sum(1), fill / fill.sum())
    return table.columns.to_numpy(), base, gain


# A section before anything is measured: `side` in um; `region`, indices of REGIONS (-1: no tissue),
# and `masks` by name (uint8, 0 to 255, soft edges) on a grid of STEP um; `fibre` (2, rows, cols),
# um along and across the collagen, on one of FLOW_STEP um; `cells`, a frame with a row per cell:
# x, y, kind, angle and a bool for each of STATES.
Tissue = namedtuple("Tissue", "side region masks fibre cells")


def smooth_field(rng, side, scale, step=STEP):
    """Gaussian random field: (n, n) float32 of zero mean and unit variance on a grid of `step` um
    over `side` um; its correlation falls to 1/e at 2 `scale` um."""
    cells, n = 2 * side / scale, round(side / step)
    noise = rng.standard_normal((int(cells) + 9,) * 2).astype(np.float32)
    noise = gaussian_filter(noise, 2.0, mode="wrap") * (4 * np.sqrt(np.pi))  # back to unit variance
    box = (4.0, 4.0, 4.0 + cells, 4.0 + cells)
    return np.asarray(Image.fromarray(noise).resize((n, n), Image.BICUBIC, box=box))


def outline(rng, side):
    """How far inside the tissue a point is, (n, n) float32: a rotated superellipse with a ragged
    edge, falling to nothing before the image's border. Its level sets are outlines of tissue."""
    n = round(side / FLOW_STEP)
    y, x = (np.mgrid[:n, :n].astype(np.float32) + 0.5) * (2 / n) - 1
    turn, aspect, power = rng.uniform(0, np.pi), rng.uniform(0.8, 1.0), rng.uniform(2.2, 4.0)
    a, b = x * np.cos(turn) + y * np.sin(turn), (y * np.cos(turn) - x * np.sin(turn)) / aspect
    radius = (np.abs(a) ** power + np.abs(b) ** power) ** (1 / power)
    inside = 1 - radius + 0.10 * smooth_field(rng, side, 450.0, FLOW_STEP)
    inside = np.minimum(inside, 3 * (1 - np.maximum(np.abs(x), np.abs(y))) - 0.1 + inside * 0.2)
    inside = np.asarray(Image.fromarray(inside).resize((round(side / STEP),) * 2, Image.BICUBIC))
    return inside + 0.012 * smooth_field(rng, side, 40.0) + 0.005 * smooth_field(rng, side, 12.0)


def _lattice(rng, side, spacing, jitter=0.22):
    """Hexagonal lattice over a square, each point moved by `jitter` spacings: (points, 2) in um."""
    j, i = np.mgrid[: int(side / (spacing * 0.866)) + 1, : int(side / spacing) + 1]
    points = np.stack([(i + 0.5 * (j % 2)) * spacing, j * spacing * 0.866], -1).reshape(-1, 2)
    return points + rng.normal(0, jitter * spacing, points.shape)


def _at(grid, x, y, step=STEP):
    """Values of a grid at points in um."""
    row, col = (np.clip(v / step, 0, grid.shape[-1] - 1).astype(int) for v in (y, x))
    return grid[row, col]


def _rows(x, y, kind, angle):
    """Cells as rows (x, y, kind, angle), the kind given by its name."""
    return np.column_stack(np.broadcast_arrays(x, y, KIND[kind], angle))


def _tubes(rng, side, home, kind, spacing, jitter, radii):
    """Gland acini or vessels in `home` (bool grid): (kind, x, y, outer, lumen radius) of each."""
    points = _lattice(rng, side, spacing, jitter)
    x, y = points[_at(home, *points.T) & (rng.random(len(points)) < 0.9)].T
    outer = rng.uniform(*radii, len(x))
    lumen = outer * rng.uniform(0.25, 0.6, len(x)) if kind == "gland" else outer - 3
    return [(kind, *tube) for tube in zip(x, y, outer, lumen, strict=True)]


def _draw_tube(rng, kind, x, y, outer, lumen, walls, glands, void, rim):
    """Draw one acinus or vessel into the masks and return its cells as blocks of rows."""
    (p, q), (a, b) = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.04, 0.16, 2)

    def swell(angle):  # round only roughly
        return 1 + a * np.sin(2 * angle + p) + b * np.sin(3 * angle + q)

    x0, y0 = (max(int((c - 1.4 * outer) / STEP), 0) for c in (x, y))
    x1, y1 = (int((c + 1.4 * outer) / STEP) + 1 for c in (x, y))
    window = np.s_[y0:y1, x0:x1]
    rows, cols = np.indices(void[window].shape)
    dx, dy = (cols + x0 + 0.5) * STEP - x, (rows + y0 + 0.5) * STEP - y
    radius = np.hypot(dx, dy) / swell(np.arctan2(dy, dx))
    wall = radius < outer
    walls[window] |= wall
    glands[window] |= wall & (kind == "gland")
    void[window] = np.where(wall, radius < lumen, void[window])
    edge = 255 * np.exp(-(((radius - outer) / 2.0) ** 2))  # the basement membrane
    rim[window] = np.where(radius < outer - 4, 0, np.maximum(rim[window], edge))

    def ring(name, radius, spacing, turn=np.pi / 2):  # lying along it, or turned to point inwards
        count = max(int(2 * np.pi * radius / spacing), 3)
        angle = rng.uniform(0, 2 * np.pi) + np.arange(count) * 2 * np.pi / count
        angle += rng.normal(0, 0.12 * spacing / radius, count)
        r = radius * swell(angle) + rng.normal(0, 0.6, count)
        turned = angle + rng.normal(turn, 0.15, count)
        return _rows(x + r * np.cos(angle), y + r * np.sin(angle), name, turned)

    if kind == "vessel":
        blood = _lattice(rng, 2 * lumen, 9.0) - lumen
        blood = blood[(np.hypot(*blood.T) < lumen - 5) & (rng.random(len(blood)) < 0.6)] + [x, y]
        return [ring("endothelial", outer - 1.5, 16.0), _rows(*blood.T, "erythrocyte", 0)]
    layers = np.arange(lumen + 5.0, outer - 6.0, 8.5)  # one or two around the lumen
    return [ring("myoepithelial", outer - 2.5, 15.0)] + [ring("luminal", r, 8.6, 0) for r in layers]


def _adipose(rng, side, area, void, rim):
    """Draw the vacuoles of `area` (bool grid) into the masks: a Voronoi tessellation with rounded
    corners, thin walls and flat nuclei pressed into them, returned as rows."""
    seeds = _lattice(rng, side, 68.0)
    seeds = seeds[_at(area, *seeds.T)]
    if len(seeds) < 8:
        return np.empty((0, 4))
    rows, cols = np.nonzero(area)
    tree = cKDTree(seeds)
    near, _ = tree.query((np.column_stack([cols, rows]) + 0.5) * STEP, k=3)
    # Distance to the nearest two walls; their smooth minimum rounds the corners.
    gap = -5 * np.logaddexp((near[:, 0] - near[:, 1]) / 5, (near[:, 0] - near[:, 2]) / 5)
    void[rows, cols] |= (gap > 1.5) & (near[:, 0] < 55)
    rim[rows, cols] = np.maximum(rim[rows, cols], 130 * (np.abs(gap) < 2.5))
    _, neighbours = tree.query(seeds, k=6)
    way = seeds[neighbours[np.arange(len(seeds)), rng.integers(1, 6, len(seeds))]] - seeds
    return _rows(*(seeds + 0.47 * way).T, "adipocyte", np.arctan2(*way.T[::-1]) + np.pi / 2)


def _scatter(rng, side, compartment, flow_angle):
    """Cells of the compartments, as rows."""
    rows = []
    for name, (spacing, mixture) in COMPARTMENTS.items():
        points = _lattice(rng, side, spacing)
        x, y = points[_at(compartment, *points.T) == COMPARTMENT[name]].T
        kind = rng.choice([KIND[k] for k in mixture], len(x), p=list(mixture.values()))
        follows = np.isin(kind, [KIND["fibroblast"], KIND["endothelial"]])  # lie along the collagen
        flow = _at(flow_angle, x, y, FLOW_STEP) + rng.normal(0, 0.2, len(x))
        angle = np.where(follows, flow, rng.uniform(0, np.pi, len(x)))
        rows.append(np.column_stack([x, y, kind, angle]))
    return np.vstack(rows)


def _give_states(rng, side, cells, lift):
    """Draw the three states of every cell from their fields and move the cells that are grouped."""
    for name in STATES:
        field = STATE_GAIN * smooth_field(rng, side, STATE_SCALE, FLOW_STEP)
        chance = expit(field + lift.get(name, 0))
        cells[name] = rng.random(len(cells)) < _at(chance, cells.x, cells.y, FLOW_STEP)
    # One in GROUP_SIZE cells is a centre; the cells nearest to it are its group, with its state.
    position = cells[["x", "y"]].to_numpy()
    centres = np.flatnonzero(rng.random(len(cells)) < 1 / GROUP_SIZE)
    distance, nearest = cKDTree(position[centres]).query(position)
    group = centres[nearest]
    cells["arrangement"] = cells["arrangement"].to_numpy()[group]
    fixed = np.isin(cells.kind, [KIND["adipocyte"], KIND["endothelial"]])  # they line a wall
    pull = GROUP_PULL * (cells.arrangement & (distance < 60) & ~fixed).to_numpy()
    cells[["x", "y"]] = position + pull[:, None] * (position[group] - position)
    return cells


def grow(rng, side, inside, bias, lift=None):
    """Grow the Tissue of an image of `side` um within `inside` (bool grid of STEP um); `bias` gives
    each region's weight in this patient, `lift` what is added to the logit of a state, by name, on
    a grid of FLOW_STEP um."""

    def soft(mask, blur):
        grey = mask if mask.dtype == np.uint8 else np.uint8(255) * mask
        return np.asarray(Image.fromarray(grey).filter(ImageFilter.GaussianBlur(blur)))

    noise = partial(smooth_field, rng, side)
    ragged = 0.12 * noise(20.0)
    scores = [noise(scale) + bias[name] + (ragged if i % 2 else -ragged)
              for i, (name, (_, scale, _)) in enumerate(REGIONS.items())]  # fmt: skip
    region = np.where(inside, np.argmax(scores, axis=0), -1).astype(np.int8)

    along, across = rng.uniform(0, np.pi) + np.array([0, np.pi / 2])
    y, x = (np.indices((round(side / FLOW_STEP),) * 2) + 0.5) * FLOW_STEP
    u = x * np.cos(along) + y * np.sin(along) + 120 * noise(400.0, FLOW_STEP)
    v = x * np.cos(across) + y * np.sin(across) + 190 * noise(400.0, FLOW_STEP)
    fibre = np.stack([u, v + 25 * noise(90.0, FLOW_STEP)]).astype(np.float32)
    down, right = np.gradient(fibre[1])
    flow_angle = np.arctan2(-right, down)  # along the lines of equal `across`
    # Carcinoma grows as nests and cords of 50 to 200 um, in places shrunk away from its stroma.
    nests = noise(30.0) + 0.5 * noise(130.0) + 0.2 * noise(8.0)
    tumour, stroma, gland, adipose, lymphoid, necrosis = (region == i for i in range(len(REGIONS)))
    nest = tumour & (nests > -0.25)
    void = tumour & (np.abs(nests + 0.33) < 0.08) & (noise(60.0) > 0.7)
    inflamed = noise(110.0) + 0.4 * noise(20.0) > 1.2
    rim, walls, glands = np.zeros(region.shape, np.uint8), np.zeros_like(nest), np.zeros_like(nest)
    special = [_adipose(rng, side, adipose, void, rim)]
    tubes = _tubes(rng, side, gland, "gland", 84.0, 0.1, (24.0, 39.0))
    tubes += _tubes(rng, side, stroma | adipose, "vessel", 300.0, 0.3, (10.0, 26.0))
    for tube in tubes:
        special += _draw_tube(rng, *tube, walls, glands, void, rim)

    free = inside & ~(void | walls | adipose)
    layers = {"stroma": inside, "inflamed": inflamed, "lymphoid": lymphoid, "necrosis": necrosis,
              "nest": nest}  # fmt: skip
    compartment = np.zeros(region.shape, np.uint8)
    for name, layer in layers.items():  # later ones take over
        compartment[layer & free] = COMPARTMENT[name]
    cells = np.vstack([_scatter(rng, side, compartment, flow_angle), *special])
    cells = cells[_at(inside, *cells[:, :2].T)]
    cells = pd.DataFrame(cells, columns=["x", "y", "kind", "angle"]).astype({"kind": int})
    masks = {
        "tissue": soft(inside, 1.0), "epithelium": soft((nest | glands) & ~void, 1.2),
        "void": soft(void & inside, 0.9), "rim": soft(rim, 0.6), "inflamed": soft(inflamed, 6.0),
        "necrosis": soft(necrosis & free, 5.0), "lymphoid": soft(lymphoid & free, 6.0),
        "collagen": (expit(1.6 * noise(160.0) + 0.5) * 255).astype(np.uint8),
    }  # fmt: skip
    return Tissue(side, region, masks, fibre, _give_states(rng, side, cells, lift or {}))
