"""Figures of sections: tissue, expression, predictions, errors, what was retrieved.

Axes are in um and carry a scale bar; spots are discs at their place on the section. Colours are
safe for colour-blind readers: viridis for amounts, PuOr for signed values, Okabe and Ito for
categories. Each function returns a matplotlib figure that nothing else holds on to.
"""

from __future__ import annotations

import functools

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import EllipseCollection
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

INK, GREY = "#222222", "#8a8a8a"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
STYLE = {
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


def styled(draw):
    """Draw under `STYLE` and leave pyplot's registry empty: a notebook shows a figure by name."""

    @functools.wraps(draw)
    def styled(*args, **kwargs):
        with plt.rc_context(STYLE):
            figure = draw(*args, **kwargs)
        plt.close(figure)
        return figure

    return styled


def _microns(section) -> np.ndarray:
    """Centres of the section's patches in um, (n, 2)."""
    return section.adata.obsm["spatial"][section.rows] * section.adata.uns["um_per_px"]


def _frame(ax, section):
    """Square um axes around the section's spots, with a scale bar."""
    at = section.adata.obsm["spatial"] * section.adata.uns["um_per_px"]
    pitch = section.adata.uns["pitch_um"]
    (left, top), (right, bottom) = at.min(0) - pitch, at.max(0) + pitch
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    scale_bar(ax)


def scale_bar(ax):
    """Draw a round length of about a quarter of the axes below them; their data are in um."""
    left, right = ax.get_xlim()
    steps = np.array([10, 20, 50, 100, 200, 500, 1000, 2000, 5000])
    length = steps[np.abs(np.log(steps / (0.25 * (right - left)))).argmin()]
    place = {"transform": ax.get_xaxis_transform(), "clip_on": False}
    ends = [left, left + length]
    ax.plot(ends, [-0.03, -0.03], color=INK, lw=2.5, solid_capstyle="butt", **place)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length} µm"
    ax.text(left, -0.05, text, va="top", fontsize=9, **place)


def tissue(ax, section, *, um_per_px=6.0, title=None):
    """Draw the H&E thumbnail of a `Section` on um axes, at `um_per_px`, with a scale bar."""
    image, step = section.thumbnail(um_per_px=um_per_px)
    h, w = np.array(image.shape[:2]) * step * section.adata.uns["um_per_px"]
    ax.imshow(image, extent=(0, w, h, 0), interpolation="antialiased")
    _frame(ax, section)
    ax.set_title(title)


def _circles(ax, at, diameter, **look):
    """Circles of a diameter in um around centres (n, 2) in um."""
    size = np.full(len(at), diameter)
    circles = EllipseCollection(
        size, size, 0 * size, units="xy", offsets=at, offset_transform=ax.transData, **look
    )
    return ax.add_collection(circles)


def discs(ax, section, values, *, cmap="viridis", limits=None, title=None):
    """Draw a disc per patch coloured by `values` (n,), larger than the spot, which is hard to see.

    `limits` are the values at the ends of the colours, by default the 2nd and 98th percentile.
    Returns what `colour_bar` takes.
    """
    wide = 0.9 * section.adata.uns["pitch_um"]
    discs = _circles(ax, _microns(section), wide, cmap=cmap, linewidths=0)
    discs.set_array(np.asarray(values, float))
    discs.set_clim(*(np.percentile(values, [2, 98]) if limits is None else limits))
    _frame(ax, section)
    ax.set_title(title)
    return discs


def colour_bar(figure, discs, axes, label, **place):
    """Draw the colour bar of `discs` beside one or more axes; `place` as for `Figure.colorbar`."""
    bar = figure.colorbar(discs, ax=axes, **{"shrink": 0.7, "aspect": 18, "pad": 0.02, **place})
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.set_label(label, fontsize=9)


def aspect(section) -> float:
    """Height over width of the area that `_frame` shows."""
    about = section.adata.uns
    width, height = np.ptp(section.adata.obsm["spatial"] * about["um_per_px"], axis=0)
    return (height + 2 * about["pitch_um"]) / (width + 2 * about["pitch_um"])


@styled
def overview(section):
    """The section's H&E beside the same with its spots to scale, bold where they have no patch."""
    a, kept = section.adata, np.isin(np.arange(section.adata.n_obs), section.rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4 * aspect(section) + 0.4))
    tissue(left, section, um_per_px=4.0, title=f"{section.name}: H&E")
    title = f"{a.n_obs} spots, {len(section.rows)} with a patch"
    tissue(right, section, um_per_px=4.0, title=title)
    look = {"linewidths": np.where(kept, 0.8, 2), "edgecolors": np.where(kept, INK, COLOURS[1])}
    at = a.obsm["spatial"] * a.uns["um_per_px"]
    _circles(right, at, a.uns["spot_um"], facecolors="none", **look)
    return figure


@styled
def gene_maps(section, values, names, *, label, columns=3):
    """The tissue, and right of it `columns` maps a row: values (n, k) aligned with its patches.

    `names` (k,) are the maps' titles. `label` names the unit of the colour bars, of which every map
    has its own.
    """
    rows, width = -(-len(names) // columns), 8 / (columns + 1)
    figure, axes = plt.subplots(
        rows, columns + 1, squeeze=False, figsize=(8.5, rows * (width * aspect(section) + 0.2))
    )
    tissue(axes[0, 0], section, title=section.name)
    maps = axes[:, 1:].ravel()
    for ax in (*axes[1:, 0], *maps[len(names) :]):
        ax.set_visible(False)
    for ax, column, name in zip(maps, np.asarray(values).T, names, strict=False):
        colour_bar(figure, discs(ax, section, column, title=name), ax, "")
    figure.supxlabel(f"colour: {label}", fontsize=9, color=GREY, x=0.99, ha="right")
    return figure


@styled
def patches(images, titles, *, patch_um, columns=6):
    """A grid of patches (n, h, w, 3) of `patch_um` um, uint8 or in [0, 1], with a scale bar."""
    rows, width = -(-len(images) // columns), 8 / columns
    figure = plt.figure(figsize=(8, rows * (width + 0.25)))
    _patches(figure, images, titles, patch_um=patch_um, columns=columns)
    return figure


def _patches(figure, images, titles, *, patch_um, columns):
    axes = figure.subplots(-(-len(images) // columns), columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        ax.imshow(image, extent=(0, patch_um, patch_um, 0))
        ax.set_title(title, fontsize=9)
    scale_bar(axes[-1, 0])


@styled
def retrieval(section, panel, genes, hits, cosines, *, patch_um):
    """Where the regions that a gene set found lie, what was measured there, and how they look.

    `genes` are of the `panel`, regions `patch_um` um wide. hits (k,) indices of patches, best
    first; cosines (k,). z is the mean measured z-score of the set, smoothed as in training.
    """
    z = panel.transform(section.adata)[section.rows]
    z = z[:, [panel.genes.index(g) for g in genes]].mean(1)
    columns = min(5, len(hits))
    heights = [4 * aspect(section) + 0.4, 1.95 * -(-len(hits) // columns)]
    figure = plt.figure(figsize=(8, sum(heights)))
    top, bottom = figure.subfigures(2, 1, height_ratios=heights)
    left, right = top.subplots(1, 2)
    tissue(left, section, um_per_px=4.0, title=f"{section.name}: regions found, best first")
    shown = discs(right, section, z, title=f"measured: {', '.join(genes)}")
    colour_bar(top, shown, right, "mean z")
    for rank, (x, y) in enumerate(_microns(section)[hits], 1):
        for ax in (left, right):
            ax.add_patch(
                Rectangle(
                    (x - patch_um / 2, y - patch_um / 2),
                    patch_um,
                    patch_um,
                    fill=False,
                    color=INK,
                    lw=1.4,
                )
            )
        left.text(
            x + patch_um * 0.6,
            y,
            rank,
            va="center",
            weight="bold",
            fontsize=9,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
    titles = [
        f"{rank}: cosine {cosine:.2f}, z {z[hit]:+.1f}"
        for rank, (hit, cosine) in enumerate(zip(hits, cosines, strict=True), 1)
    ]
    _patches(bottom, section.patches[hits], titles, patch_um=patch_um, columns=columns)
    return figure
