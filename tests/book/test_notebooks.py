"""The notebooks' two forms agree, are clean, take parameters, and are in the book."""

import copy
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))


def cells(notebook) -> list[tuple]:
    """What both forms must share of each cell."""
    return [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in notebook.cells]


def problems(script, notebook) -> list[str]:
    """What is wrong with a notebook: drift from its script, outputs, missing parameters."""
    found = []
    if cells(script) != cells(notebook):
        found.append("it differs from its script: run `make sync`")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if any(cell.outputs or cell.execution_count for cell in code):
        found.append("it holds outputs: delete it and run `make sync`")
    if sum("parameters" in cell.metadata.get("tags", []) for cell in code) != 1:
        found.append("it needs exactly one code cell tagged `parameters`")
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_is_its_script_without_outputs(script):
    twin = script.with_suffix(".ipynb")
    assert twin.exists(), "run `make sync` and commit the notebook"
    assert problems(jupytext.read(script), nbformat.read(twin, as_version=4)) == []


def test_the_book_shows_exactly_these_notebooks():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    pages = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    shown = [page for page in pages if page.startswith("notebooks/")]
    assert shown == [f"notebooks/{path.stem}" for path in SCRIPTS]


def test_the_check_can_fail():
    text = "# %% [markdown]\n# # Title\n\n# %% tags=['parameters']\nseed = 0\n"
    script = jupytext.reads(text.replace("'", '"'), fmt="py:percent")
    assert problems(script, script) == []
    drifted, executed, bare = (copy.deepcopy(script) for _ in range(3))
    drifted.cells[1].source = "seed = 1"
    executed.cells[1].execution_count = 1
    bare.cells[1].metadata.tags = []
    assert "differs" in problems(script, drifted)[0]
    assert "outputs" in problems(script, executed)[0]
    assert "parameters" in problems(bare, bare)[0]
