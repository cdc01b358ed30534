"""Charts of the book: predictions, losses, scores, named and coloured alike in every chapter."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

from seal_lite.evaluation.targets import pearson
from seal_lite.plots import COLOURS, GREY, INK, aspect, colour_bar, discs, styled, tissue

LABELS = {
    "tuned": "finetuned",
    "shuffled": "finetuned on\nshuffled pairs",
    "frozen": "frozen ImageNet",
    "frozen_best": "frozen, best stage",
    "random_init": "random weights",
    "colour": "colour (6 numbers)",
    "log_depth": "log depth",
    "neighbours": "8 neighbours' mean",
    "ceiling": "noise ceiling",
    "oracle": "oracle",
    "hest": "probe A (HEST-bench)",
    "tuned_ridge": "probe B (tuned ridge)",
    "decoder": "decoder",
    "pearson_residuals": "Pearson residuals",
    "log1p_cp10k": "log1p CP10k",
    "log1p_cp10k|depth": "log1p CP10k | depth",
    "log1p_raw": "log1p raw counts",
    "hest_bench": "HEST-bench's",
}


@styled
def prediction_maps(section, measured, predicted, genes):
    """A row per gene: tissue, measured, predicted, error; r within the section in the title.

    measured, predicted: (n, g) aligned with the patches. Both are shown in standard deviations,
    because r is what is scored; the error is the difference of the two.
    """
    figure, axes = plt.subplots(
        len(genes),
        4,
        squeeze=False,
        figsize=(8.4, len(genes) * (2.1 * aspect(section) + 0.4) + 0.7),
    )
    both = [np.asarray(v, float) for v in (measured, predicted)]
    r = pearson(*both)
    m, p = ((v - v.mean(0)) / np.maximum(v.std(0), 1e-12) for v in both)
    for i, (row, gene) in enumerate(zip(axes, genes, strict=True)):
        tissue(row[0], section, title=gene)
        shown = discs(row[1], section, m[:, i], limits=(-2, 2), title="measured")
        discs(row[2], section, p[:, i], limits=(-2, 2), title=f"predicted, r = {r[i]:.2f}")
        error = discs(
            row[3], section, p[:, i] - m[:, i], cmap="PuOr_r", limits=(-3, 3), title="error"
        )
    bar = {"location": "bottom", "shrink": 0.8, "aspect": 30, "pad": 0.01}
    colour_bar(figure, shown, axes[:, 1:3], "expression (sd)", **bar)
    colour_bar(figure, error, axes[:, 3], "predicted - measured (sd)", **bar)
    return figure


@styled
def loss_curves(history):
    """The loss and its terms by epoch; the gene encoder's own epochs are shaded.

    `history` is what `finetune` returns. KL is left out: by default it carries no weight.
    """
    figure, ax = plt.subplots(figsize=(7.5, 3.6))
    names = {
        "loss": "weighted sum",
        "clip": "contrast",
        "image": "image to gene",
        "gene": "gene to gene",
    }
    for (key, name), colour in zip(names.items(), (INK, *COLOURS), strict=False):
        # The sum means something else in the warm-up; gene to gene is the same in both.
        shown = [h for h in history if key in h and (key == "gene" or h["phase"] == "joint")]
        if shown:
            ax.plot(
                [h["epoch"] + 1 for h in shown],
                [h[key] for h in shown],
                "o-",
                ms=3,
                color=colour,
                lw=2 if key == "loss" else 1.4,
                label=f"{name}: {shown[0][key]:.2f} to {shown[-1][key]:.2f}",
            )
    warm = sum(h["phase"] == "genes" for h in history)
    if warm:
        ax.axvspan(0.5, warm + 0.5, color="#eeeeee", lw=0)
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
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def named_rows(ax, names, *, label):
    """Named rows from the top down, a zero line, and a legend above."""
    ax.set_yticks(range(len(names)), [LABELS.get(n, n) for n in names])
    ax.set(xlabel=label, ylim=(len(names) - 0.4, -0.6))
    ax.axvline(0, color=GREY, lw=0.8, zorder=0)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def legend(figure, series):
    """The names of the series above the axes, in the order of `COLOURS`."""
    marks = [Line2D([], [], marker="o", color=c) for c in COLOURS[: len(series)]]
    figure.legend(
        marks, [LABELS.get(n, n) for n in series], loc="outside upper right", ncols=len(series)
    )


@styled
def strips(groups, *, label):
    """Rows of values, each a dot, and their mean, a bar: {row: {series: values}}."""
    series = list(dict.fromkeys(name for g in groups.values() for name in g))
    rows = sum(max(len(g), 1.5) for g in groups.values())
    figure, ax = plt.subplots(figsize=(8, 1.0 + 0.2 * rows))
    for y, group in enumerate(groups.values()):
        for i, (name, values) in enumerate(group.items()):
            at, colour = y + 0.25 * (i - (len(group) - 1) / 2), COLOURS[series.index(name)]
            jitter = 0.07 * np.sin(np.arange(len(values)) * 2.4) * (len(values) > 1)
            ax.plot(values, at + jitter, "o", ms=3.5, mew=0, alpha=0.4, color=colour)
            ax.plot([np.mean(values)] * 2, [at - 0.11, at + 0.11], color=colour, lw=3.5)
    named_rows(ax, list(groups), label=label)
    if len(series) > 1:
        legend(figure, series)
    return figure


def scores(result, *, target="pearson_residuals"):
    """Mean r of all features: a dot per fold and seed; ceiling, oracle and neighbours at the end.

    `result` is `crossval`'s dictionary (metrics.json).
    """
    rows: dict = {}
    for s in (s for f in result["folds"] for s in f["scores"] if s["target"] == target):
        probe = "no probe" if s["probe"] == "none" else s["probe"]
        rows.setdefault(s["features"], {}).setdefault(probe, []).append(s["pcc"])
    order = [k for k in LABELS if k in rows]
    return strips({k: rows[k] for k in order}, label=f"mean r over genes, {LABELS[target]}")
