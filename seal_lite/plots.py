"""Every figure of the book: tissue, expression, predictions, errors, scores.

Axes are in um and carry a scale bar; spots are discs at their place on the section. Colours are
safe for colour-blind readers: viridis for amounts, PuOr for signed values, Okabe & Ito's palette for
categories. Each function returns a matplotlib figure that nothing else holds on to.
"""

from __future__ import annotations

import functools

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import EllipseCollection
from matplotlib.patches import FancyBboxPatch, Rectangle

from .sections import PITCH_UM, SPOT_UM, thumbnail
from .targets import pearson

INK, GREY = "#222222", "#8a8a8a"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
STYLE = {
    "figure.dpi": 150, "savefig.dpi": 150, "figure.constrained_layout.use": True,
    "font.size": 10, "axes.titlesize": 10, "axes.titlepad": 5, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY,
    "xtick.color": INK, "ytick.color": INK, "text.color": INK, "axes.labelcolor": INK,
}  # fmt: skip
LABELS = {
    "tuned": "finetuned", "shuffled": "finetuned on\nshuffled pairs", "frozen": "frozen ImageNet",
    "random_init": "random weights", "colour": "colour (6 numbers)", "log_depth": "log depth",
    "neighbours": "8 neighbours' mean", "ceiling": "noise ceiling", "oracle": "oracle",
    "hest": "probe A (HEST-bench)", "tuned_ridge": "probe B (tuned ridge)", "decoder": "decoder",
    "pearson_residuals": "Pearson residuals", "log1p_cp10k": "log1p CP10k",
    "log1p_cp10k|depth": "log1p CP10k | depth", "log1p_raw": "log1p raw counts",
}  # fmt: skip


def _styled(draw):
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
    (left, top), (right, bottom) = at.min(0) - PITCH_UM, at.max(0) + PITCH_UM
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    _scale_bar(ax)


def _scale_bar(ax):
    """A round length of about a quarter of the axes, drawn below them (their data are in um)."""
    left, right = ax.get_xlim()
    steps = np.array([10, 20, 50, 100, 200, 500, 1000, 2000, 5000])
    length = steps[np.abs(np.log(steps / (0.25 * (right - left)))).argmin()]
    place = {"transform": ax.get_xaxis_transform(), "clip_on": False}
    ax.plot(
        [left, left + length], [-0.03, -0.03], color=INK, lw=2.5, solid_capstyle="butt", **place
    )
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length} µm"
    ax.text(left, -0.05, text, va="top", fontsize=9, **place)


def _tissue(ax, section, *, um_per_px=6.0, title=None):
    """The H&E thumbnail on um axes."""
    image, step = thumbnail(section.adata, um_per_px=um_per_px)
    h, w = np.array(image.shape[:2]) * step * section.adata.uns["um_per_px"]
    ax.imshow(image, extent=(0, w, h, 0), interpolation="antialiased")
    _frame(ax, section)
    ax.set_title(title)


def _discs(ax, section, values, *, cmap="viridis", limits=None, title=None, diameter=180.0):
    """One disc per patch coloured by `values` (n,); drawn wider than the 100 um spot, to be seen."""
    sizes = np.full(len(values), diameter)
    discs = EllipseCollection(sizes, sizes, np.zeros(len(values)), units="xy", cmap=cmap,
                              offsets=_microns(section), offset_transform=ax.transData,
                              linewidths=0)  # fmt: skip
    discs.set_array(np.asarray(values, float))
    discs.set_clim(*(np.percentile(values, [2, 98]) if limits is None else limits))
    ax.add_collection(discs)
    _frame(ax, section)
    ax.set_title(title)
    return discs


def _rings(ax, at, *, colour, label=None, lw=0.9):
    """Outlines of the measured spots, at their true diameter."""
    sizes = np.full(len(at), SPOT_UM)
    ax.add_collection(EllipseCollection(
        sizes, sizes, np.zeros(len(at)), units="xy", offsets=at, offset_transform=ax.transData,
        facecolors="none", edgecolors=colour, linewidths=lw))  # fmt: skip
    ax.plot([], [], "o", mfc="none", mec=colour, mew=1.5, ms=7, label=label)


def _grid(n, *, columns, cell, extra=0.0):
    """A figure with n axes in rows of `columns`, each about `cell` (w, h) inches; spares hidden."""
    rows = -(-n // columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False,
                                figsize=(columns * cell[0] + extra, rows * cell[1]))  # fmt: skip
    for ax in axes.flat[n:]:
        ax.set_visible(False)
    return figure, axes


def _aspect(section) -> float:
    """Height over width of the area that `_frame` shows."""
    width, height = np.ptp(section.adata.obsm["spatial"] * section.adata.uns["um_per_px"], axis=0)
    return (height + 2 * PITCH_UM) / (width + 2 * PITCH_UM)


@_styled
def overview(section):
    """The section's H&E beside the same with its measured spots drawn to scale."""
    figure, axes = _grid(2, columns=2, cell=(4, 4 * _aspect(section) + 0.6))
    a = section.adata
    for ax in axes.flat:
        _tissue(ax, section, um_per_px=4.0)
    axes[0, 0].set_title(f"{section.name}: H&E at {a.uns['um_per_px']:.2f} µm/px")
    axes[0, 1].set_title(f"{a.n_obs} spots of {SPOT_UM:g} µm, {PITCH_UM:g} µm apart")
    _rings(axes[0, 1], _microns(section), colour="#000000", label="has a patch")
    lost = np.setdiff1d(np.arange(a.n_obs), section.rows)
    if len(lost):
        off = a.obsm["spatial"][lost] * a.uns["um_per_px"]
        _rings(axes[0, 1], off, colour=COLOURS[1], label="patch leaves the image", lw=1.6)
        figure.legend(loc="outside lower right", ncols=2)
    return figure


@_styled
def gene_maps(section, values, names, *, label, signed=False, columns=4):
    """The tissue, then one spot map per column of `values` (n, k), aligned with its patches.

    `label` names the unit of the colour bars; `signed` values get a diverging map around 0.
    """
    figure, axes = _grid(len(names) + 1, columns=columns, extra=0.5,
                         cell=(8 / columns, 8 / columns * _aspect(section) + 0.2))  # fmt: skip
    _tissue(axes.flat[0], section, title=section.name)
    top = np.percentile(np.abs(values), 98)
    look = {"cmap": "PuOr_r", "limits": (-top, top)} if signed else {}
    for ax, column, name in zip(axes.flat[1:], np.asarray(values).T, names, strict=False):
        discs = _discs(ax, section, column, title=name, **look)
        bar = figure.colorbar(discs, ax=ax, shrink=0.7, aspect=18, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=2)
    figure.supxlabel(f"colour: {label}", fontsize=9, color=GREY, x=0.99, ha="right")
    return figure


@_styled
def regions(section, labels, *, title="dominant region"):
    """The tissue beside the category of each patch: `labels` (n,) of at most eight names."""
    figure, axes = _grid(2, columns=2, cell=(3.6, 3.6 * _aspect(section) + 0.5), extra=1.2)
    _tissue(axes[0, 0], section, um_per_px=4.0, title=section.name)
    names, code = np.unique(labels, return_inverse=True)
    cmap = plt.matplotlib.colors.ListedColormap(COLOURS[: len(names)])
    _discs(axes[0, 1], section, code, cmap=cmap, limits=(-0.5, len(names) - 0.5), title=title)
    for name, colour in zip(names, COLOURS, strict=False):
        axes[0, 1].plot([], [], "o", color=colour, ms=8, label=name)
    axes[0, 1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@_styled
def patches(images, titles, *, patch_um, columns=6):
    """A grid of patches (n, h, w, 3) of `patch_um` um, uint8 or in [0, 1], with a scale bar."""
    width = 8 / columns
    lines = 1 + max(str(t).count("\n") for t in titles)
    figure, axes = _grid(len(images), columns=columns, cell=(width, width + 0.2 * lines))
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        _patch(ax, image, title, patch_um=patch_um)
    _scale_bar(axes[-1, 0])
    return figure


def _patch(ax, image, title, *, patch_um):
    ax.imshow(image, extent=(0, patch_um, patch_um, 0))
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontsize=9)


def _standard(values):
    values = np.asarray(values, float)
    return (values - values.mean(0)) / np.maximum(values.std(0), 1e-12)


@_styled
def prediction_maps(section, measured, predicted, genes):
    """A row per gene: tissue, measured, predicted, error; r within the section in the title.

    measured, predicted: (n, g) aligned with the patches. Both are shown in standard deviations,
    because r is what is scored; the error is the difference of the two.
    """
    figure, axes = _grid(4 * len(genes), columns=4, extra=0.6,
                         cell=(1.9, 1.9 * _aspect(section) + 0.35))  # fmt: skip
    r = pearson(np.asarray(measured, float), np.asarray(predicted, float))
    m, p = _standard(measured), _standard(predicted)
    for i, (row, gene) in enumerate(zip(axes, genes, strict=True)):
        _tissue(row[0], section, title=gene)
        shown = _discs(row[1], section, m[:, i], limits=(-2, 2), title="measured")
        _discs(row[2], section, p[:, i], limits=(-2, 2), title=f"predicted, r = {r[i]:.2f}")
        error = _discs(row[3], section, p[:, i] - m[:, i], cmap="PuOr_r", limits=(-3, 3),
                       title="error")  # fmt: skip
    for discs, where, label in ((shown, axes[:, 1:3], "expression (sd)"),
                                (error, axes[:, 3], "predicted - measured (sd)")):  # fmt: skip
        bar = figure.colorbar(discs, ax=where, location="bottom", shrink=0.8, aspect=30, pad=0.01)
        bar.set_label(label, fontsize=9)
        bar.outline.set_visible(False)
    return figure


@_styled
def loss_curves(history):
    """The loss and its terms by epoch; the gene encoder's own epochs are shaded.

    `history` is what `finetune` returns. KL is left out: by default it carries no weight.
    """
    figure, ax = plt.subplots(figsize=(7.5, 3.6))
    names = {"loss": "weighted sum", "clip": "contrast", "image": "image to gene",
             "gene": "gene to gene"}  # fmt: skip
    for (key, name), colour in zip(names.items(), (INK, *COLOURS), strict=False):
        at = [(h["epoch"] + 1, h[key]) for h in history if key in h]
        warm = [(h["epoch"] + 1, h[key]) for h in history if key in h and h["phase"] == "genes"]
        joint = at if key == "gene" else at[len(warm) :]  # the sum's meaning changes with the phase
        ax.plot(*zip(*joint, strict=True), "o-", ms=3, color=colour, lw=2 if key == "loss" else 1.4,
                label=f"{name}: {joint[0][1]:.2f} to {joint[-1][1]:.2f}")  # fmt: skip
    warm = sum(h["phase"] == "genes" for h in history)
    if warm:
        ax.axvspan(0.5, warm + 0.5, color="#eeeeee", lw=0)
        ax.text(0.6, 0.02, "gene encoder\nalone", transform=ax.get_xaxis_transform(), va="bottom",
                fontsize=9, color=GREY)  # fmt: skip
    ax.set(xlabel="epoch", ylabel="training loss", xlim=(0.5, len(history) + 0.5), ylim=(0, None))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
