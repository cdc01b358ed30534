"""Figures of the results pages: intervals in rows."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pages.evaluations import (
    CLAIMANTS,
    METRIC_LABELS,
    MODEL_LABELS,
    SLIDE_ENCODERS,
    SLIDE_METRICS,
    Result,
    Rows,
    widest_intervals,
)
from pages.markdown import label
from seal_lite import plots
from seal_lite.tutorial import charts


@plots.styled
def forest(points: Rows, *, xlabel: str = "difference in mean r, 95% CI") -> Figure:
    """Draw means with their 95% intervals, filled where the interval leaves the null value out.

    points: {"row", "series", "mean", "ci95"} each, and where there is more than one panel "panel",
    and where the null value is not 0 "null".
    """
    panels = list(dict.fromkeys(point.get("panel", "") for point in points))
    rows = list(dict.fromkeys(point["row"] for point in points))
    series = list(dict.fromkeys(point["series"] for point in points))
    beside = len(points) / len(panels) / len(rows)  # series in a row
    size = (max(8.0, 2.5 + 2.7 * len(panels)), 1.2 + (0.1 + 0.17 * beside) * len(rows))
    figure, axes = plt.subplots(
        1, len(panels), sharey=True, sharex=True, squeeze=False, figsize=size
    )
    for ax, panel in zip(axes.flat, panels, strict=True):
        shown = [point for point in points if point.get("panel", "") == panel]
        ax.set_yticks(range(len(rows)), rows)
        ax.tick_params(axis="y", length=0)
        ax.set(title=panel, xlabel=xlabel, ylim=(len(rows) - 0.4, -0.6))
        ax.spines["left"].set_visible(False)
        ax.locator_params(axis="x", nbins=5)
        for y, row in enumerate(rows):
            in_row = [point for point in shown if point["row"] == row]
            for i, point in enumerate(in_row):
                offset = 0.8 / max(beside, 2) * (i - (len(in_row) - 1) / 2)
                draw_interval(ax, y + offset, point, series.index(point["series"]))
                ax.vlines(point.get("null", 0.0), y - 0.4, y + 0.4, color=plots.GREY, lw=0.8)
    charts.legend(figure, series)
    return figure


def draw_interval(ax: Axes, y: float, point: dict, series: int) -> None:
    """Draw one interval at height y in the colour of its series."""
    mean = point["mean"]
    low, high = point["ci95"] or (mean, mean)  # one unit has no interval
    null = point.get("null", 0.0)
    colour = plots.COLOURS[series % len(plots.COLOURS)]
    ax.plot([low, high], [y, y], color=colour, lw=1.8)
    is_open = point["ci95"] is None or low <= null <= high
    fill = "white" if is_open else colour
    ax.plot(mean, y, "o", ms=5, mec=colour, mfc=fill)


def crossval_points(result: Result) -> Rows:
    """Return the differences read by a probe: a panel per reference, gene classes below."""
    points = []
    for row in result["delta"]:
        gene_class = row.get("class")
        if row["probe"] not in CLAIMANTS:  # a head's own difference would hide the encoder's
            continue
        if gene_class and row["target"] != "pearson_residuals":
            continue
        name = charts.LABELS[row["target"]]
        points.append(
            {
                "panel": f"finetuned\nminus {label(row['minus'])}",
                "row": f"{name}\n{gene_class} genes" if gene_class else name,
                "series": row["probe"],
                **row,
            }
        )
    return sorted(points, key=lambda point: "class" in point)


def slide_points(record: Result) -> Rows:
    """Return the slide-level scores: a panel per model, a row per task."""
    points = []
    for row in widest_intervals(record, "scores", ["features"]):
        metric = SLIDE_METRICS[row["task"]]
        point = {
            "panel": MODEL_LABELS[row["model"]],
            "row": f"{row['task']}\n{METRIC_LABELS[metric].strip('*')}",
            "series": row["features"],
            "null": 0.0 if metric == "pearson" else 0.5,  # chance
            **row,
        }
        if row["features"] in SLIDE_ENCODERS:
            points.append(point)
    return points
