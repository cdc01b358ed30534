"""The figures of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np

from seal_lite import plots
from seal_lite.studies.verdict import PROBES, REFERENCES, difference_row, unit_means
from seal_lite.tutorial import charts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from seal_lite.data.section import Section
    from seal_lite.studies.evidence import HeldOutMaps, RetrievalExample

N_PATCHES = 6
EMBEDDINGS = {"frozen": "before: frozen", "seal": "after: finetuned"}


@plots.styled
def differences(result: Mapping[str, Any], by: str) -> Figure:
    """Draw each difference with its interval, and each unit's own difference as a dot."""
    rows = [(minus, probe) for minus in REFERENCES for probe in PROBES]
    figure, ax = plt.subplots(figsize=(6, 0.8 * len(rows) + 1.0))
    for y, (minus, probe) in enumerate(rows):
        row = difference_row(result, minus, probe)
        means = unit_means(result, probe)
        units = means["tuned"] - means[minus]
        ax.plot(units, np.full(len(units), y - 0.18), "o", ms=3.5, color=plots.GREY, alpha=0.7)
        if row["ci95"] is not None:
            ax.plot(row["ci95"], [y, y], color=plots.COLOURS[0], lw=2.5)
        ax.plot(row["mean"], y, "o", ms=8, color=plots.COLOURS[0])
        label = f"minus {REFERENCES[minus]}, {PROBES[probe]}"
        place = ax.get_yaxis_transform()
        ax.text(
            0.01, y - 0.32, label, transform=place, va="bottom", fontsize=9, backgroundcolor="white"
        )
    ax.axvline(0, color=plots.INK, lw=0.8)
    ax.spines["left"].set_visible(False)
    ax.set(
        yticks=[],
        ylim=(len(rows) - 0.5, -0.8),
        xlabel=f"difference in mean r (grey: each held-out {by})",
        title="worse  \u2190  finetuned encoder  \u2192  better",
    )
    return figure


@plots.styled
def section_patches(section: Section, patch_um: float) -> Figure:
    """Draw patches of a section that are spread evenly over its spots."""
    rows = np.linspace(0, len(section.rows) - 1, N_PATCHES).astype(int)
    return plots.patches(section.patches[rows], [""] * len(rows), patch_um=patch_um)


def maps(held_out: HeldOutMaps) -> Figure:
    """Draw measured and predicted maps of the chosen genes, and their difference."""
    return charts.prediction_maps(
        held_out.section, held_out.measured, held_out.predicted, genes=held_out.genes
    )


def example(retrieval: RetrievalExample, patch_um: float) -> Figure:
    """Draw the patches that a gene retrieves, with their cosine similarity."""
    titles = [f"similarity {cosine:.2f}" for cosine in retrieval.cosines]
    patches = retrieval.section.patches[retrieval.rows]
    return plots.patches(patches, titles, patch_um=patch_um)


@plots.styled
def embedding_map(joint: AnnData, embedding: str, colour_by: str) -> Figure:
    """Draw the UMAP of one of `EMBEDDINGS`, coloured by a column of ``obs``."""
    figure, ax = plt.subplots(figsize=(4.6, 4.6))
    labels = joint.obs[colour_by].astype(str)
    names = sorted(labels.unique(), key=lambda name: (len(name), name))
    size = float(np.clip(250 / np.sqrt(len(joint)), 2, 8))
    _scatter(ax, joint.obsm[f"X_umap_{embedding}"], labels.to_numpy(), names, size)
    ax.set(title=EMBEDDINGS[embedding], xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    figure.legend(loc="outside lower center", ncols=6, markerscale=10 / size, fontsize=9)
    return figure


def _scatter(
    ax: Axes, points: np.ndarray, labels: np.ndarray, names: list[str], size: float
) -> None:
    """Draw points (n, 2), a colour for each name; beyond eight names colours repeat in shades."""
    shades = plt.get_cmap("turbo")(np.linspace(0.05, 0.95, max(len(names), 2)))
    for i, name in enumerate(names):
        colour = plots.COLOURS[i] if len(names) <= len(plots.COLOURS) else shades[i]
        x, y = points[labels == name].T
        ax.plot(x, y, ".", ms=size, color=colour, label=name, rasterized=True)
