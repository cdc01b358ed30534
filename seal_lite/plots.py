"""Figures of sections: tissue, expression, predictions, errors, retrieved patches.

Axes are in um and carry a scale bar; spots are discs at their place on the section. Colours are
safe for colour-blind readers: viridis for amounts, PuOr for signed values, Okabe and Ito for
categories. Functions that return a figure leave nothing open in pyplot.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

if TYPE_CHECKING:
    from seal_lite.data.genes import GenePanel
    from seal_lite.data.section import Section

INK = "#222222"
GREY = "#8a8a8a"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
STYLE: dict[Any, Any] = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlepad": 5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
}
OVERVIEW_UM_PER_PX, TISSUE_UM_PER_PX = 4.0, 6.0  # of the tissue in an overview, and behind maps
WIDTH = 8.0  # of a figure, in inches
SCALE_BARS_UM = np.array([10, 20, 50, 100, 200, 500, 1000, 2000, 5000])

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Make a function draw under `STYLE` and close its figure in pyplot.

    A notebook then shows the figure once, where a cell ends with it.
    """

    @functools.wraps(draw)
    def draw_styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*args, **kwargs)
        plt.close(figure)
        return figure

    return draw_styled


@styled
def overview(section: Section) -> Figure:
    """Draw a section's H&E, and beside it the same with its spots at their true size.

    Spots without a patch have a bold outline.
    """
    adata = section.adata
    has_patch = np.isin(np.arange(adata.n_obs), section.rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 4 * aspect(section) + 0.4))
    tissue(left, section, um_per_px=OVERVIEW_UM_PER_PX, title=f"{section.name}: H&E")
    title = f"{adata.n_obs} spots, {len(section.rows)} with a patch"
    tissue(right, section, um_per_px=OVERVIEW_UM_PER_PX, title=title)
    _add_circles(
        right,
        _spots_um(section),
        adata.uns["spot_um"],
        facecolors="none",
        linewidths=np.where(has_patch, 0.8, 2),
        edgecolors=np.where(has_patch, INK, COLOURS[1]),
    )
    return figure


@styled
def gene_maps(
    section: Section, values: np.ndarray, names: Sequence[str], *, label: str, columns: int = 3
) -> Figure:
    """Draw the tissue, and to its right a map of each column of `values`.

    Parameters
    ----------
    section
        A section with n patches.
    values : array (n, k)
        Aligned with the patches.
    names : (k,)
        Titles of the maps.
    label
        Names the unit of the colour bars. Each map has its own bar.
    columns
        Maps in a row.
    """
    rows = _count_rows(len(names), columns)
    width = WIDTH / (columns + 1)
    size = (8.5, rows * (width * aspect(section) + 0.2))
    figure, axes = plt.subplots(rows, columns + 1, squeeze=False, figsize=size)
    tissue(axes[0, 0], section, title=section.name)
    maps = axes[:, 1:].ravel()
    for ax in (*axes[1:, 0], *maps[len(names) :]):
        ax.set_visible(False)
    for ax, column, name in zip(maps, np.asarray(values).T, names, strict=False):
        colour_bar(figure, discs(ax, section, column, title=name), ax)
    figure.supxlabel(f"colour: {label}", fontsize=9, color=GREY, x=0.99, ha="right")
    return figure


@styled
def patches(
    images: Sequence[np.ndarray] | np.ndarray,
    titles: Sequence[str],
    *,
    patch_um: float,
    columns: int = 6,
) -> Figure:
    """Draw a grid of patches with a scale bar.

    Parameters
    ----------
    images : (n, h, w, 3)
        uint8, or floats in [0, 1].
    titles : (n,)
        One above each patch.
    patch_um
        Edge of a patch in um.
    columns
        Patches in a row.
    """
    rows = _count_rows(len(images), columns)
    figure = plt.figure(figsize=(WIDTH, rows * (WIDTH / columns + 0.25)))
    _draw_patches(figure, images, titles, patch_um=patch_um, columns=columns)
    return figure


@styled
def retrieval(
    section: Section,
    hits: np.ndarray,
    cosines: np.ndarray,
    *,
    genes: Sequence[str],
    panel: GenePanel,
    patch_um: float,
) -> Figure:
    """Draw where retrieved patches lie, the measured expression, and the patches.

    Parameters
    ----------
    section
        The section that was searched.
    hits : array (k,) int
        Indices of its patches, best first.
    cosines : array (k,)
        Their similarity with the query.
    genes
        The genes of the query. The map shows their mean z-score, smoothed as in training.
    panel
        The panel that holds these genes.
    patch_um
        Edge of a patch in um.
    """
    z = _mean_z(section, panel, genes)
    columns = min(5, len(hits))
    heights = [4 * aspect(section) + 0.4, 1.95 * _count_rows(len(hits), columns)]
    figure = plt.figure(figsize=(WIDTH, sum(heights)))
    (top,), (bottom,) = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)
    left, right = top.subplots(1, 2)
    tissue(
        left, section, um_per_px=OVERVIEW_UM_PER_PX, title=f"{section.name}: retrieved, best first"
    )
    z_map = discs(right, section, z, title=f"measured: {', '.join(genes)}")
    colour_bar(top, z_map, right, label="mean z")
    centres = _spots_um(section)[section.rows][hits]
    for rank, (x, y) in enumerate(centres, 1):
        _add_square(left, x, y, patch_um)
        _add_square(right, x, y, patch_um)
        left.text(
            x + patch_um * 0.6,
            y,
            str(rank),
            va="center",
            weight="bold",
            fontsize=9,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
    titles = [
        f"{rank}: cosine {cosine:.2f}, z {z[hit]:+.1f}"
        for rank, (hit, cosine) in enumerate(zip(hits, cosines, strict=True), 1)
    ]
    _draw_patches(bottom, section.patches[hits], titles, patch_um=patch_um, columns=columns)
    return figure


def tissue(
    ax: Axes,
    section: Section,
    *,
    um_per_px: float = TISSUE_UM_PER_PX,
    title: str | None = None,
) -> None:
    """Draw the H&E thumbnail of a section on um axes, at `um_per_px`, with a scale bar."""
    image, step = section.thumbnail(um_per_px=um_per_px)
    height, width = np.array(image.shape[:2]) * step * section.adata.uns["um_per_px"]
    ax.imshow(image, extent=(0, width, height, 0), interpolation="antialiased")
    _frame(ax, section)
    ax.set_title(title or "")


def discs(
    ax: Axes,
    section: Section,
    values: np.ndarray,
    *,
    cmap: str = "viridis",
    limits: tuple[float, float] | None = None,
    title: str | None = None,
) -> EllipseCollection:
    """Draw a coloured disc for each patch, larger than the spot, which would be hard to see.

    Parameters
    ----------
    ax
        Where to draw.
    section
        A section with n patches.
    values : array (n,)
        Shown as colours.
    cmap
        A colour map of matplotlib.
    limits
        The values at the ends of the colours; by default the 2nd and 98th percentile.
    title
        Of the axes.

    Returns
    -------
    EllipseCollection
        What `colour_bar` takes.
    """
    diameter = 0.9 * section.adata.uns["pitch_um"]
    centres = _spots_um(section)[section.rows]
    collection = _add_circles(ax, centres, diameter, cmap=cmap, linewidths=0)
    low, high = np.percentile(values, [2, 98]) if limits is None else limits
    collection.set_array(np.asarray(values, float))
    collection.set_clim(low, high)
    _frame(ax, section)
    ax.set_title(title or "")
    return collection


def colour_bar(
    figure: FigureBase,
    collection: EllipseCollection,
    axes: Axes | Sequence[Axes] | np.ndarray,
    *,
    label: str = "",
    **options: Any,
) -> None:
    """Draw the colour bar of discs beside one or more axes.

    Parameters
    ----------
    figure
        The figure of the axes.
    collection
        What `discs` returned.
    axes
        The bar stands beside these.
    label
        Of the bar.
    **options
        As for ``Figure.colorbar``.
    """
    options = {"shrink": 0.7, "aspect": 18, "pad": 0.02, **options}
    bar = figure.colorbar(collection, ax=axes, **options)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.set_label(label, fontsize=9)


def scale_bar(ax: Axes) -> None:
    """Draw a round length of about a quarter of the axes below them; their data are in um."""
    left, right = ax.get_xlim()
    quarter = 0.25 * (right - left)
    nearest = np.abs(np.log(SCALE_BARS_UM / quarter)).argmin()
    length = SCALE_BARS_UM[nearest]
    below: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "clip_on": False}
    ends = [left, left + length]
    ax.plot(ends, [-0.03, -0.03], color=INK, lw=2.5, solid_capstyle="butt", **below)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length} µm"
    ax.text(left, -0.05, text, va="top", fontsize=9, **below)


def aspect(section: Section) -> float:
    """Return the height over the width of the area that a map of the section shows."""
    pitch = section.adata.uns["pitch_um"]
    width, height = np.ptp(_spots_um(section), axis=0)
    return (height + 2 * pitch) / (width + 2 * pitch)


def _frame(ax: Axes, section: Section) -> None:
    """Set um axes around the section's spots, with a scale bar."""
    spots = _spots_um(section)
    pitch = section.adata.uns["pitch_um"]
    left, top = spots.min(0) - pitch
    right, bottom = spots.max(0) + pitch
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    scale_bar(ax)


def _spots_um(section: Section) -> np.ndarray:
    """Return the centres of all spots in um, (spots, 2)."""
    return section.adata.obsm["spatial"] * section.adata.uns["um_per_px"]


def _mean_z(section: Section, panel: GenePanel, genes: Sequence[str]) -> np.ndarray:
    """Return the mean z-score of some genes at each patch, (n,)."""
    z = panel.transform(section.adata)[section.rows]  # (n, genes of the panel)
    columns = [panel.genes.index(gene) for gene in genes]
    return z[:, columns].mean(1)


def _add_circles(
    ax: Axes, centres: np.ndarray, diameter: float, **options: Any
) -> EllipseCollection:
    """Add circles of a diameter in um around centres (n, 2) in um."""
    diameters = np.full(len(centres), diameter)
    circles = EllipseCollection(
        diameters,
        diameters,
        np.zeros(len(centres)),
        units="xy",
        offsets=centres,
        offset_transform=ax.transData,
        **options,
    )
    ax.add_collection(circles)
    return circles


def _add_square(ax: Axes, x: float, y: float, edge: float) -> None:
    """Add the outline of a square around (x, y); all in um."""
    corner = (x - edge / 2, y - edge / 2)
    ax.add_patch(Rectangle(corner, edge, edge, fill=False, color=INK, lw=1.4))


def _draw_patches(
    figure: FigureBase,
    images: Sequence[np.ndarray] | np.ndarray,
    titles: Sequence[str],
    *,
    patch_um: float,
    columns: int,
) -> None:
    """Draw a grid of patches, as `patches` does, into a figure."""
    rows = _count_rows(len(images), columns)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        ax.imshow(image, extent=(0, patch_um, patch_um, 0))
        ax.set_title(title, fontsize=9)
    scale_bar(axes[-1, 0])


def _count_rows(n: int, columns: int) -> int:
    """Return the number of rows that hold n things in so many columns."""
    return -(-n // columns)
