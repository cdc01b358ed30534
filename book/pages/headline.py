"""The headline table: what finetuning gains over its two references, everywhere it was measured.

The front page and the README show the same rows, so a loss stands beside every gain.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from pages.evaluations import ENCODERS, Result, Rows, seed_scores, select
from pages.markdown import NBSP, label, marked, number, tally, verdict
from seal_lite.evaluation.scores import summary

Load = Callable[[str], Result]
Cells = list[dict | None]

# (probe, reference) of each column of the table, in the order of the header.
CELLS = (
    ("tuned_ridge", "frozen_best"),
    ("tuned_ridge", "shuffled"),
    ("hest", "frozen_best"),
    ("hest", "shuffled"),
)
CNN = "CNN"
TRANSFORMER = "transformer"
CROSSVALS = (
    ("her2st", "Real tumour, new section", CNN),
    ("her2st_transformer", "Real tumour, new section", TRANSFORMER),
    ("mob", "Mouse olfactory bulb, new section", CNN),
    ("phantom", "Phantom, new patients", CNN),
    ("phantom_transformer", "Phantom, new patients", TRANSFORMER),
)


def headline_rows(load: Load) -> list[tuple[str, str, Cells]]:
    """Return (evidence, encoder, differences) of every row; None where a cell was not measured."""
    rows = [(title, encoder, crossval_cells(load(name))) for name, title, encoder in CROSSVALS]
    protocol = ("Real tumour, HEST-bench's protocol", CNN, hest_cells(load("hest")["her2st"]))
    blind = load("blind/her2st_a04a8d6")
    unseen = [
        (f"Real tumour {test}, {text}", CNN, blind_cells(blind, test))
        for test, text in blind["test"].items()
    ]
    return [*rows[:2], protocol, *unseen, *rows[2:]]


def crossval_cells(result: Result) -> Cells:
    """Return the four differences of a cross-validation on Pearson residuals."""
    return [headline_cell(result["delta"], probe, minus) for probe, minus in CELLS]


def headline_cell(
    delta: Rows, probe: str, minus: str, *, target: str = "pearson_residuals"
) -> dict | None:
    """Return the difference over all genes that a cell shows."""
    rows = select(delta, probe=probe, minus=minus, target=target)
    return rows[0] if rows else None


def hest_cells(result: Result) -> Cells:
    """Return the differences of HEST-bench's own score, which probe B does not read."""
    cells: Cells = []
    for probe, minus in CELLS:
        is_own = probe == "hest"
        row = headline_cell(result["delta"], probe, minus, target="hest_bench")
        cells.append(row if is_own else None)
    return cells


def blind_cells(result: Result, test: str) -> Cells:
    """Return the differences on one blind section, the mean over seeds; one unit, no interval."""
    cells: Cells = []
    for probe, minus in CELLS:
        scores = seed_scores(result, test, probe)
        gaps = np.subtract(scores["tuned"], scores[minus])
        cells.append({"mean": float(gaps.mean()), "ci95": None, "units": 1})
    return cells


def headline_text(cell: dict | None) -> str:
    """Return a cell of the table: difference, interval, and verdict with the number of units."""
    if cell is None:
        return "–"
    if cell["ci95"] is None:
        return f"{number(cell['mean'], '+.3f')}<br>{verdict(cell)}"
    lines, _, units = marked(cell).rpartition(NBSP)
    return f"{lines}<br>{verdict(cell).strip('*')}{NBSP}{units}"


def headline_counts(load: Load) -> str:
    """Return in words how many of the table's differences are better, worse and so on."""
    cells = [cell for _, _, cells in headline_rows(load) for cell in cells if cell is not None]
    return tally(cells)


def blind_sentence(result: Result) -> str:
    """Return in words how often the finetuned encoder is above its references on blind sections."""
    cells = [cell for test in result["test"] for cell in blind_cells(result, test)]
    gaps = [cell["mean"] for cell in cells if cell is not None]
    higher = sum(gap > 0 for gap in gaps)
    sections = " and ".join(f"{name} ({text})" for name, text in result["test"].items())
    return (
        f"On sections {sections}, the finetuned encoder scores above its reference in {higher} of "
        f"{len(gaps)} differences: two probes, each minus frozen and minus shuffled pairs. They "
        f"are {number(min(gaps), '+.3f')} to {number(max(gaps), '+.3f')}."
    )


def side_by_side(load: Load) -> pd.DataFrame:
    """Return mean r on Pearson residuals: a row per features, a column per encoder and probe."""
    columns = {}
    for name, title, encoder in CROSSVALS:
        means = summary(load(name))["pearson_residuals"]
        for probe in ("tuned_ridge", "hest"):
            tissue = title.partition(",")[0]
            columns[f"{tissue}, {encoder}, {label(probe)}"] = means.xs(probe, level="probe")
    table = pd.DataFrame(columns)
    shown = [key for key in ENCODERS if key in table.index]
    return table.loc[[*shown, "log_depth"]]
