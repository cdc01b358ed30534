"""What the page of execution statistics shows of the executed chapters."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat

CHAPTERS = Path(__file__).parents[1] / "notebooks"


def executed_rows(folder: Path = CHAPTERS) -> list[tuple[str, str, float, str]]:
    """Return (page, title, seconds, end) of every chapter that papermill has executed."""
    rows = []
    for path in sorted(folder.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        run = notebook.metadata.papermill
        title, *_ = re.findall(r"^# (.+)$", notebook.cells[0].source, re.M)
        end = run.end_time[:16].replace("T", " ")
        rows.append((f"notebooks/{path.name}", title, run.duration, end))
    return rows
