"""Draw book/figures/overview.png: the whole loop in one picture, on the phantom (`make hero`).

Finetunes on two of the phantom's patients and shows the third, with the settings of the chapter on
finetuning. The gene is the most variable visible one of the training sections; no score chooses it.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import EllipseCollection
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

from seal_lite import Config
from seal_lite.data.patches import thumbnail
from seal_lite.data.phantom import phantom
from seal_lite.data.phantom.truth import gene_classes
from seal_lite.data.section import load_sections
from seal_lite.encoders.embedding import embed_patches
from seal_lite.evaluation.scores import genes_to_score
from seal_lite.evaluation.targets import pearson, target_genes
from seal_lite.plots import COLOURS, GREY, INK
from seal_lite.training.loop import finetune

ROOT = Path(__file__).parents[1]
SHOWN = ("ERBB2", "COL1A1", "CD3E", "ADIPOQ")  # markers: tumour, stroma, T cells, fat


def fit():
    """Data and numbers of the picture: a training section, the held one, gene, its two maps."""
    config = Config(epochs=12, n_views=4)
    root = phantom(ROOT / "data/phantom", patients=3, sections_per_patient=1, spots=160, seed=0)
    *train, held = load_sections(root, patch_um=config.patch_um, patch_px=config.patch_px)
    model, _ = finetune(
        train,
        config,
        include=genes_to_score(root, train),
        out=ROOT / "runs/hero",
        cache_dir=ROOT / "runs/cache",
    )
    classes = gene_classes(root)
    gene = next(g for g in target_genes([s.adata for s in train]) if classes.get(g) == "visible")
    at = model.panel.genes.index(gene)
    measured = model.panel.transform(held.adata)[held.rows, at]
    predicted = model.predict_genes(embed_patches(model.encoder, held.patches))[:, at]
    profiles = model.panel.transform(train[0].adata)[train[0].rows]
    shown = profiles[:, [model.panel.genes.index(g) for g in SHOWN]]
    return train[0], shown, held, gene, measured, predicted


def tissue(ax, section):
    """The H&E thumbnail on um axes; returns the patches' centres in um (n, 2)."""
    image, step = thumbnail(section.adata, um_per_px=5.0)
    um = section.adata.uns["um_per_px"]
    h, w = np.array(image.shape[:2]) * step * um
    ax.imshow(image, extent=(0, w, h, 0), interpolation="antialiased")
    ax.plot([0, 1000], [h * 1.03] * 2, color=INK, lw=2.5, solid_capstyle="butt", clip_on=False)
    ax.text(1100, h * 1.03, "1 mm", va="center", fontsize=9)
    ax.set(xlim=(0, w), ylim=(h, 0))
    return section.adata.obsm["spatial"][section.rows] * um


def discs(ax, section, z, title):
    at = section.adata.obsm["spatial"][section.rows] * section.adata.uns["um_per_px"]
    size = np.full(len(at), 185.0)
    spots = EllipseCollection(
        size,
        size,
        0 * size,
        units="xy",
        offsets=at,
        linewidths=0,
        offset_transform=ax.transData,
        cmap="viridis",
    )
    spots.set_array((z - z.mean()) / z.std())
    spots.set_clim(-2, 2)
    ax.add_collection(spots)
    low, high = at.min(0) - 150, at.max(0) + 150
    ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal")
    ax.set_title(title, fontsize=10)


def encoders(ax):
    """Two encoders, drawn as boxes, and the space in which the pairs meet."""
    ax.set(xlim=(0, 10), ylim=(0, 10))
    for y, name, note in (
        (7.1, "image encoder", "last blocks tuned by LoRA"),
        (1.1, "gene encoder", "variational autoencoder"),
    ):
        ax.add_patch(
            FancyBboxPatch(
                (0.2, y),
                5.2,
                1.9,
                boxstyle="round,pad=0.1,rounding_size=0.3",
                fc="#f4f4f4",
                ec=GREY,
            )
        )
        ax.text(2.8, y + 1.3, name, ha="center", va="center", fontsize=10)
        ax.text(2.8, y + 0.5, note, ha="center", va="center", fontsize=7.5, color=GREY)
        ax.add_patch(
            FancyArrowPatch(
                (5.6, y + 0.95),
                (6.5, 6.4 if y > 5 else 3.6),
                color=GREY,
                arrowstyle="-|>",
                mutation_scale=11,
                lw=1.2,
            )
        )
    ax.add_patch(Circle((7.9, 5), 1.75, fc="white", ec=GREY))
    for (x, y), colour in zip(((7.3, 5.9), (8.7, 5.2), (7.6, 4.0)), COLOURS, strict=False):
        ax.plot(x - 0.16, y, "s", color=colour, ms=6)
        ax.plot(x + 0.22, y - 0.12, "o", color=colour, ms=6)
    ax.text(8.1, 2.3, "one shared space", ha="center", fontsize=8.5)


def draw(section, shown, held, gene, measured, predicted):
    figure = plt.figure(figsize=(9.4, 6.7), dpi=150)
    grid = figure.add_gridspec(
        2,
        3,
        width_ratios=(1.15, 1, 1.3),
        wspace=0.14,
        hspace=0.36,
        left=0.01,
        right=0.99,
        top=0.94,
        bottom=0.05,
    )
    below = grid[1, :].subgridspec(1, 3, wspace=0.1)
    ax = figure.add_subplot(grid[0, 0])
    at = tissue(ax, section)
    # One spot per marker: the one that expresses most of it stands for its kind of tissue.
    picks = [int(shown[:, i].argmax()) for i in (0, 1, 3)]
    for i, colour in zip(picks, COLOURS, strict=False):
        ax.add_patch(Rectangle(at[i] - 90, 180, 180, fc="none", ec=colour, lw=2.2))
    pairs = grid[0, 1].subgridspec(3, 2, wspace=0.12, hspace=0.22, width_ratios=(1, 1.1))
    for row, (i, colour) in enumerate(zip(picks, COLOURS, strict=False)):
        patch, bars = figure.add_subplot(pairs[row, 0]), figure.add_subplot(pairs[row, 1])
        patch.imshow(section.patches[i])
        patch.spines[:].set(color=colour, linewidth=2.2, visible=True)
        bars.barh(range(len(SHOWN)), shown[i], color=colour, height=0.65)
        bars.set(xlim=(-2.2, 11), ylim=(len(SHOWN) - 0.4, -0.6))
        bars.axvline(0, color=GREY, lw=0.8)
        for y, name in enumerate(SHOWN):
            bars.text(11, y, name, fontsize=6.5, va="center", ha="right", color=INK)
    encoders(figure.add_subplot(grid[0, 2]))
    r = pearson(measured[:, None], predicted[:, None])[0]
    tissue(figure.add_subplot(below[0]), held)
    discs(figure.add_subplot(below[1]), held, measured, f"{gene}, measured")
    discs(figure.add_subplot(below[2]), held, predicted, f"from the picture alone, r = {r:.2f}")
    for ax in figure.axes:
        ax.set(xticks=[], yticks=[])
        if not ax.images or len(ax.get_xlim()) and ax.get_xlim()[1] > 1000:
            ax.spines[:].set_visible(False)
    for place, text, gap in (
        (grid[0, 0], "1  A section", 0.025),
        (grid[0, 1], "2  Pairs", 0.025),
        (grid[0, 2], "3  Finetune", 0.025),
        (grid[1, 0], "4  Predict, for a patient never seen", 0.06),
    ):
        box = place.get_position(figure)
        figure.text(box.x0, box.y1 + gap, text, fontsize=12.5, fontweight="bold", color=INK)
    return figure


if __name__ == "__main__":
    picture = draw(*fit())
    picture.savefig(ROOT / "book/figures/overview.png", dpi=150)
    print("wrote book/figures/overview.png")
