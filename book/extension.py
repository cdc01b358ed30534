"""What the book adds to Sphinx: computed values in pages, executed chapters, small repairs."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import nbformat
import torch
from nbformat import NotebookNode
from sphinx.application import Sphinx

import pages

PACKAGES = ("seal-lite", "torch", "timm", "peft", "scanpy", "squidpy", "numpy", "matplotlib")
PROMPTS = {"solution": "Solution", "hide-cell": "Show the code", "hide-input": "Show the code"}
LONG = 12  # lines of code above which a cell that draws is folded


def read_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Fill in a page's computed values, or prepare an executed chapter."""
    if not app.env.doc2path(page).endswith(".ipynb"):
        source[0] = pages.render(source[0])
        return
    notebook = nbformat.reads(source[0], as_version=4)
    prepare_chapter(notebook)
    source[0] = nbformat.writes(notebook)


def prepare_chapter(notebook: NotebookNode) -> None:
    """Fill in computed values, describe figures, fold long cells, say what it was executed with."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = pages.render(cell.source)
        elif cell.cell_type == "code":
            hide_injected(cell)
            describe_figures(cell)
            name_folded_code(cell)
    notebook.cells.append(nbformat.v4.new_markdown_cell(executed_with(notebook)))


def hide_injected(cell: NotebookNode) -> None:
    """Leave out papermill's copy of the parameters: the chapter prints what they chose."""
    tags = cell.metadata.get("tags", [])
    if "injected-parameters" in tags:
        cell.metadata["tags"] = [*tags, "remove-cell"]


def describe_figures(cell: NotebookNode) -> None:
    """Move a cell's first comments, `#| alt: ...`, to the alternative text of its figures."""
    lines = cell.source.splitlines()
    words = []
    while lines and lines[0].startswith("#| "):
        words.append(lines.pop(0).removeprefix("#| ").removeprefix("alt: ").strip())
    if words:
        cell.source = "\n".join(lines).lstrip("\n")
        cell.metadata["mystnb"] = {"image": {"alt": " ".join(words)}}
        if len(lines) > LONG and not cell.metadata.get("tags"):
            cell.metadata["tags"] = ["hide-input"]


def name_folded_code(cell: NotebookNode) -> None:
    """Give a folded cell a button that says what it holds."""
    names = [name for tag, name in PROMPTS.items() if tag in cell.metadata.get("tags", [])]
    if names:
        prompts = {"code_prompt_show": names[0], "code_prompt_hide": f"Hide: {names[0].lower()}"}
        cell.metadata.setdefault("mystnb", {}).update(prompts)


def executed_with(notebook: NotebookNode) -> str:
    """Return a chapter's last paragraph: seconds, machine and versions."""
    seconds = notebook.metadata.get("papermill", {}).get("duration") or 0
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"---\n\nExecuted in {seconds:.0f} s with Python {platform.python_version()} on "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {device}; {versions}. "
        "[All chapters](../executed.md)"
    )


def repair_page(app: Sphinx, page: str, template: str, context: dict[str, Any], _: Any) -> None:
    """Point the edit button to a page's source, and repair two faults of the theme."""
    source = f"{page}.py" if page.startswith("notebooks/") else f"book/{page}.md"
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []):
            if button.get("label") == "source-edit-button":
                repository = button["url"].partition("/edit/")[0]
                button["url"] = f"{repository}/edit/{context['github_version']}/{source}"
    # Live code is not used; its settings would be declared twice, which is an error.
    context["script_files"] = [file for file in context["script_files"] if not is_thebe(file)]
    if "body" in context:  # ARIA has given up this role
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def is_thebe(script: Any) -> bool:
    """Whether a script is that of live code."""
    return "thebe" in f"{script} {getattr(script, 'attributes', {}).get('body')}".lower()


def add_static_path(app: Sphinx, config: Any) -> None:
    """Add the vendored scripts: Jupyter Book would put those in _static into each page."""
    config.html_static_path.append("_vendor")


def shorten_signature(
    app: Sphinx,
    what: str,
    name: str,
    thing: object,
    options: object,
    signature: str | None,
    *_: str,
) -> tuple[str, str] | None:
    """Leave a signature out whose types state ranges; the table of settings has them."""
    if signature is not None and "Annotated[" in signature:
        return "(...)", ""
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the functions above."""
    app.connect("config-inited", add_static_path)
    app.connect("source-read", read_page)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("html-page-context", repair_page, priority=900)  # after the theme's own
    return {"parallel_read_safe": True, "parallel_write_safe": True}
