"""Charts of the book: predictions, losses, scores, named and coloured alike in every chapter."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from seal_lite.data.phantom.tissue import REGIONS
from seal_lite.evaluation.targets import pearson
from seal_lite.plots import COLOURS, GREY, INK, aspect, colour_bar, discs, styled, tissue

if TYPE_CHECKING:
    from seal_lite.data.section import Section

# The names of features, probes and targets in figures and tables, in the order of their rows.
LABELS = {
    "tuned": "finetuned",
    "shuffled": "finetuned on\nshuffled pairs",
    "frozen": "frozen",
    "frozen_best": "frozen, best layer",
    "random_init": "random weights",
    "colour": "colour statistics",
    "log_depth": "log depth",
    "neighbours": "8 neighbours' mean",
    "ceiling": "noise ceiling",
    "oracle": "oracle",
    "hest": "probe A (HEST-bench)",
    "tuned_ridge": "probe B (tuned ridge)",
    "decoder": "decoder",
    "BLEEP": "BLEEP",
    "Loki": "Loki",
    "pearson_residuals": "Pearson residuals",
    "log1p_cp10k": "log1p CP10k",
    "log1p_cp10k|depth": "log1p CP10k given depth",
    "log1p_raw": "log1p raw counts",
    "hest_bench": "HEST-bench's score",
}
# Of error maps, here and in the explorer: orange where the prediction is too high, purple where too
# low.
ERROR_COLOURS = "PuOr_r"
LOSS_TERMS = {
    "loss": "weighted sum",
    "clip": "contrast",
    "image": "image to gene",
    "gene": "gene to gene",
}


def label_colours(labels: Sequence[str]) -> dict[str, str]:
    """Return {label: colour}, in the order of the labels.

    A region of the phantom has the same colour in every chapter. Other labels take the colours in
    turn.
    """
    names = list(dict.fromkeys(labels))
    ordered = list(REGIONS) if set(names) <= set(REGIONS) else names
    colours = dict(zip(ordered, itertools.cycle(COLOURS), strict=False))
    return {name: colours[name] for name in names}


@styled
def prediction_maps(
    section: Section, measured: np.ndarray, predicted: np.ndarray, *, genes: Sequence[str]
) -> Figure:
    """Draw a row for each gene: tissue, measured, predicted, error.

    Values are in standard deviations, because the score is a correlation; the title gives r within
    the section. The error is the difference of the two maps, orange where the prediction is too
    high and purple where too low.

    Parameters
    ----------
    section
        A section with n patches.
    measured, predicted : array (n, g)
        Aligned with the patches.
    genes : (g,)
        Names of the rows.
    """
    size = (8.4, len(genes) * (2.1 * aspect(section) + 0.4) + 0.7)
    figure, axes = plt.subplots(len(genes), 4, squeeze=False, figsize=size)
    r = pearson(np.asarray(measured, float), np.asarray(predicted, float))
    measured_sd = _standardise(measured)
    predicted_sd = _standardise(predicted)
    error_sd = predicted_sd - measured_sd
    for i, (row, gene) in enumerate(zip(axes, genes, strict=True)):
        tissue(row[0], section, title=gene)
        value_map = discs(row[1], section, measured_sd[:, i], limits=(-2, 2), title="measured")
        title = f"predicted, r = {r[i]:.2f}"
        discs(row[2], section, predicted_sd[:, i], limits=(-2, 2), title=title)
        error_look: dict[str, Any] = {"cmap": ERROR_COLOURS, "limits": (-3, 3)}
        error_map = discs(row[3], section, error_sd[:, i], title="error", **error_look)
    bar = {"location": "bottom", "shrink": 0.8, "aspect": 30, "pad": 0.01}
    colour_bar(figure, value_map, axes[:, 1:3], label="expression (sd)", **bar)
    colour_bar(figure, error_map, axes[:, 3], label="predicted - measured (sd)", **bar)
    return figure


def _standardise(values: np.ndarray) -> np.ndarray:
    """Return the columns of values (n, g) with mean 0 and standard deviation 1."""
    values = np.asarray(values, float)
    return (values - values.mean(0)) / np.maximum(values.std(0), 1e-12)


@styled
def loss_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the loss and its terms by epoch; the gene encoder's own epochs are shaded.

    Parameters
    ----------
    history
        What `finetune` returns. The KL term is left out, because its default weight is 0.
    """
    figure, ax = plt.subplots(figsize=(7.5, 3.6))
    for (term, name), colour in zip(LOSS_TERMS.items(), (INK, *COLOURS), strict=False):
        _draw_term(ax, history, term, name=name, colour=colour)
    n_warmup = sum(epoch["phase"] == "genes" for epoch in history)
    if n_warmup:
        ax.axvspan(0.5, n_warmup + 0.5, color="#eeeeee", lw=0)
        ax.text(
            0.6,
            0.02,
            "gene encoder\nalone",
            transform=ax.get_xaxis_transform(),
            va="bottom",
            fontsize=9,
            color=GREY,
        )
    ax.set(xlabel="epoch", ylabel="training loss", xlim=(0.5, len(history) + 0.5), ylim=(0, None))
    ax.locator_params(axis="x", integer=True)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _draw_term(
    ax: Axes, history: Sequence[Mapping[str, Any]], term: str, *, name: str, colour: str
) -> None:
    """Draw one term of the loss over the epochs in which it means the same.

    The weighted sum means something else in the warm-up; gene to gene does not.
    """
    epochs = [
        epoch
        for epoch in history
        if term in epoch and (term == "gene" or epoch["phase"] == "joint")
    ]
    if not epochs:
        return
    values = [epoch[term] for epoch in epochs]
    ax.plot(
        [epoch["epoch"] + 1 for epoch in epochs],
        values,
        "o-",
        ms=3,
        color=colour,
        lw=2 if term == "loss" else 1.4,
        label=f"{name}: {values[0]:.2f} to {values[-1]:.2f}",
    )


@styled
def strips(groups: Mapping[str, Mapping[str, Sequence[float]]], *, label: str) -> Figure:
    """Draw rows of values: each value a dot, their mean a bar.

    Parameters
    ----------
    groups
        {row: {series: values}}. Names in `LABELS` are replaced.
    label
        Of the axis of values.
    """
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    n_lines = sum(max(len(group), 1.5) for group in groups.values())
    figure, ax = plt.subplots(figsize=(8, 1.0 + 0.2 * n_lines))
    for row, group in enumerate(groups.values()):
        for i, (name, values) in enumerate(group.items()):
            y = row + min(0.25, 0.9 / len(group)) * (i - (len(group) - 1) / 2)
            colour = COLOURS[series.index(name)]
            spread = 0.07 if len(values) > 1 else 0.0
            jitter = spread * np.sin(np.arange(len(values)) * 2.4)
            mean = np.mean(values)
            ax.plot(values, y + jitter, "o", ms=3.5, mew=0, alpha=0.4, color=colour)
            ax.plot([mean, mean], [y - 0.11, y + 0.11], color=colour, lw=3.5)
    _name_rows(ax, list(groups), label=label)
    if len(series) > 1:
        legend(figure, series)
    return figure


def _name_rows(ax: Axes, names: Sequence[str], *, label: str) -> None:
    """Name the rows of a chart from the top down, and draw a line at zero.

    Parameters
    ----------
    ax
        Where row i lies at y = i.
    names
        Of the rows. Names in `LABELS` are replaced.
    label
        Of the axis of values.
    """
    ax.set_yticks(range(len(names)), [LABELS.get(name, name) for name in names])
    ax.set(xlabel=label, ylim=(len(names) - 0.4, -0.6))
    ax.axvline(0, color=GREY, lw=0.8, zorder=0)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def legend(figure: Figure, series: Sequence[str]) -> None:
    """Draw the names of the series above the axes, in the order of `COLOURS`."""
    marks = [Line2D([], [], marker="o", color=colour) for colour in COLOURS[: len(series)]]
    labels = [LABELS.get(name, name) for name in series]
    figure.legend(marks, labels, loc="outside upper right", ncols=min(len(series), 4))


def scores(result: Mapping[str, Any], *, target: str = "pearson_residuals") -> Figure:
    """Draw the mean r of all features: a dot for each fold and seed.

    Neighbours, noise ceiling and oracle come last.

    Parameters
    ----------
    result
        What `crossval` returns and writes as metrics.json.
    target
        The target whose scores are drawn.
    """
    rows: dict[str, dict[str, list[float]]] = {}
    for fold in result["folds"]:
        for score in fold["scores"]:
            if score["target"] == target:
                probe = "no probe" if score["probe"] == "none" else score["probe"]
                row = rows.setdefault(score["features"], {})
                row.setdefault(probe, []).append(score["pcc"])
    ordered = {name: rows[name] for name in LABELS if name in rows}
    return strips(ordered, label=f"mean r over genes, {LABELS[target]}")
