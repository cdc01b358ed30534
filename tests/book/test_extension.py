"""What the book's Sphinx extension does to chapters and pages."""

from __future__ import annotations

import nbformat
import pytest


@pytest.fixture(scope="module")
def extension():
    import extension

    return extension


def test_alternative_text_moves_from_the_source_to_the_metadata(extension):
    cell = nbformat.v4.new_code_cell("#| alt: Two words\n#| and more.\nx = 1")
    extension.describe_figures(cell)
    assert cell.source == "x = 1"
    assert cell.metadata.mystnb.image.alt == "Two words and more."


def test_a_long_cell_that_draws_is_folded_and_named(extension):
    cell = nbformat.v4.new_code_cell("#| alt: A figure.\n" + "x = 1\n" * 20)
    extension.describe_figures(cell)
    extension.name_folded_code(cell)
    assert cell.metadata.tags == ["hide-input"]
    assert cell.metadata.mystnb.code_prompt_show == "Show the code"
    assert cell.metadata.mystnb.image.alt == "A figure."


def test_a_solution_is_folded_under_its_own_name(extension):
    cell = nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["hide-cell", "solution"]})
    extension.name_folded_code(cell)
    assert cell.metadata["mystnb"]["code_prompt_show"] == "Solution"


def test_papermills_copy_of_the_parameters_is_left_out(extension):
    cells = [
        nbformat.v4.new_code_cell("SEED = 0", metadata={"tags": [tag]})
        for tag in ("parameters", "injected-parameters")
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    extension.prepare_chapter(notebook)
    left_out = ["remove-cell" in cell.metadata.tags for cell in notebook.cells[:2]]
    assert left_out == [False, True]


def test_a_chapter_ends_in_what_it_was_executed_with(extension):
    notebook = nbformat.v4.new_notebook(metadata={"papermill": {"duration": 12.3}})
    extension.prepare_chapter(notebook)
    foot = notebook.cells[-1].source
    assert "Executed in 12 s" in foot and "torch " in foot and "seal-lite " in foot


@pytest.mark.parametrize(
    "page, source", [("notebooks/01_x", "notebooks/01_x.py"), ("api/data", "book/api/data.md")]
)
def test_the_edit_button_leads_to_the_source(extension, page, source):
    url = "https://github.com/o/r/edit/main/wrong.ipynb"
    button = {"label": "source-edit-button", "url": url}
    context = {"header_buttons": [{"buttons": [button]}], "script_files": ["thebe.js", "a.js"]}
    context["github_version"] = "main"
    extension.repair_page(None, page, "page.html", context, None)
    assert button["url"] == f"https://github.com/o/r/edit/main/{source}"
    assert context["script_files"] == ["a.js"]
