"""Draw book/figures/overview.png: the whole loop in one figure, on the phantom.

    make hero        # minutes on 2 cores

Finetunes on two of the phantom's patients and shows the third. The gene is the most variable
visible one of the training sections; no score chooses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

from seal_lite import Config, Section, finetune, load_sections
from seal_lite.data.phantom import GroundTruth, phantom
from seal_lite.encoders.embedding import embed_patches
from seal_lite.evaluation.targets import pearson, target_genes
from seal_lite.plots import COLOURS, GREY, INK, STYLE, discs, tissue

ROOT = Path(__file__).parents[1]
MARKERS = ("ERBB2", "COL1A1", "CD3E", "ADIPOQ")  # of tumour, stroma, T cells, fat
PICKED = (0, 1, 3)  # the markers for which the spot with the highest expression is shown


@dataclass(frozen=True)
class Drawing:
    """What the figure shows."""

    section: Section  # of the training
    markers: np.ndarray  # (n, 4) z-scores of `MARKERS` in it
    held_out: Section
    gene: str
    measured: np.ndarray  # (n,) z-scores of the gene in the held-out section
    predicted: np.ndarray


def finetune_and_predict() -> Drawing:
    """Return what the figure shows, of a run kept in runs/hero."""
    config = Config(epochs=12, n_views=4)
    root = phantom(ROOT / "data/phantom", patients=3, sections_per_patient=1, spots=160, seed=0)
    classes = GroundTruth.find(root).classes
    *train, held_out = load_sections(root, patch_um=config.patch_um, patch_px=config.patch_px)
    folders = {"out": ROOT / "runs/hero", "cache_dir": ROOT / "runs/cache"}
    model, _ = finetune(train, config, include=list(classes), **folders)
    ranked = target_genes([section.adata for section in train])
    gene = next(name for name in ranked if classes.get(name) == "visible")
    column = model.panel.genes.index(gene)
    markers = [model.panel.genes.index(name) for name in MARKERS]
    profiles = train[0].expression(model.panel)[:, markers]
    measured = held_out.expression(model.panel)[:, column]
    embeddings = embed_patches(model.encoder, held_out.patches)
    predicted = model.predict_genes(embeddings)[:, column]
    return Drawing(train[0], profiles, held_out, gene, measured, predicted)


def draw_pair(figure: Figure, place: tuple, patch: np.ndarray, z: np.ndarray, colour: str) -> None:
    """Draw a patch beside the expression of its spot."""
    image, bars = (figure.add_subplot(cell) for cell in place)
    image.imshow(patch)
    image.spines[:].set(color=colour, linewidth=2.2, visible=True)
    bars.barh(range(len(MARKERS)), z, color=colour, height=0.65)
    bars.set(xlim=(-2.2, 11), ylim=(len(MARKERS) - 0.4, -0.6))
    bars.axvline(0, color=GREY, lw=0.8)
    bars.spines[:].set_visible(False)
    for y, name in enumerate(MARKERS):
        bars.text(11, y, name, fontsize=6.5, va="center", ha="right", color=INK)


def draw_encoders(ax: Axes) -> None:
    """Draw two encoders as boxes, and the space in which the pairs meet."""
    ax.set(xlim=(0, 10), ylim=(0, 10))
    ax.spines[:].set_visible(False)
    texts = {7.1: ("image encoder", "last blocks tuned by LoRA")}
    texts[1.1] = ("gene encoder", "variational autoencoder")
    for y, (name, note) in texts.items():
        rounded = "round,pad=0.1,rounding_size=0.3"
        ax.add_patch(FancyBboxPatch((0.2, y), 5.2, 1.9, boxstyle=rounded, fc="#f4f4f4", ec=GREY))
        ax.text(2.8, y + 1.3, name, ha="center", va="center", fontsize=10)
        ax.text(2.8, y + 0.5, note, ha="center", va="center", fontsize=7.5, color=GREY)
        tip = (6.5, 6.4 if y > 5 else 3.6)
        arrow = FancyArrowPatch(
            (5.6, y + 0.95), tip, arrowstyle="-|>", mutation_scale=11, lw=1.2, color=GREY
        )
        ax.add_patch(arrow)
    ax.add_patch(Circle((7.9, 5), 1.75, fc="white", ec=GREY))
    for (x, y), colour in zip(((7.3, 5.9), (8.7, 5.2), (7.6, 4.0)), COLOURS, strict=False):
        ax.plot(x - 0.16, y, "s", color=colour, ms=6)
        ax.plot(x + 0.22, y - 0.12, "o", color=colour, ms=6)
    ax.text(8.1, 2.3, "one shared space", ha="center", fontsize=8.5)


def draw(shown: Drawing) -> Figure:
    """Draw a section, its pairs, the encoders, and a gene on a patient never seen."""
    figure = plt.figure(figsize=(9.4, 6.7), layout="none")
    edges = {"left": 0.01, "right": 0.99, "top": 0.94, "bottom": 0.05}
    grid = figure.add_gridspec(2, 3, width_ratios=(1.15, 1, 1.3), wspace=0.14, hspace=0.36, **edges)
    below = grid[1, :].subgridspec(1, 3, wspace=0.1)
    pairs = grid[0, 1].subgridspec(3, 2, wspace=0.12, hspace=0.22, width_ratios=(1, 1.1))

    ax = figure.add_subplot(grid[0, 0])
    tissue(ax, shown.section, um_per_px=5.0)
    adata = shown.section.adata
    centres = adata.obsm["spatial"][shown.section.rows] * adata.uns["um_per_px"]
    for row, (marker, colour) in enumerate(zip(PICKED, COLOURS, strict=False)):
        spot = shown.markers[:, marker].argmax()
        ax.add_patch(Rectangle(centres[spot] - 90, 180, 180, fc="none", ec=colour, lw=2.2))
        place = (pairs[row, 0], pairs[row, 1])
        draw_pair(figure, place, shown.section.patches[spot], shown.markers[spot], colour)
    draw_encoders(figure.add_subplot(grid[0, 2]))

    r = pearson(shown.measured[:, None], shown.predicted[:, None])[0]
    tissue(figure.add_subplot(below[0]), shown.held_out, um_per_px=5.0)
    maps = {f"{shown.gene}, measured": shown.measured}
    maps[f"from the image alone, r = {r:.2f}"] = shown.predicted
    for cell, (title, z) in zip((below[1], below[2]), maps.items(), strict=True):
        standardised = (z - z.mean()) / z.std()
        discs(figure.add_subplot(cell), shown.held_out, standardised, limits=(-2, 2), title=title)

    titles = {(0, 0): "1  A section", (0, 1): "2  Pairs", (0, 2): "3  Finetune"}
    titles[1, 0] = "4  Predict, for a patient never seen"
    for (row, column), text in titles.items():
        box = grid[row, column].get_position(figure)
        gap = 0.06 if row else 0.025
        figure.text(box.x0, box.y1 + gap, text, fontsize=12.5, fontweight="bold", color=INK)
    for ax in figure.axes:
        ax.set(xticks=[], yticks=[])
    return figure


if __name__ == "__main__":
    shown = finetune_and_predict()
    with plt.rc_context(STYLE):
        draw(shown).savefig(ROOT / "book/figures/overview.png", dpi=150)
    print("wrote book/figures/overview.png")
