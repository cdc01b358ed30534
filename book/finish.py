"""The last step of executing a notebook: alternative texts, and what it was executed with.

    python book/finish.py EXECUTED.ipynb PAGE.ipynb   # write the page that the book shows
    python book/finish.py --table                     # book/executed.md, of all such pages

A cell that draws says in words what is to be seen, in comments that begin with `#| alt:` (as Quarto
has them). They become the picture's alternative text and leave the source.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import nbformat
import torch

from settings import table

BOOK = Path(__file__).parent
PACKAGES = ("seal-lite", "torch", "timm", "peft", "scanpy", "squidpy", "numpy", "matplotlib")
NAMES = {"solution": "Solution", "hide-cell": "Show the code", "hide-input": "Show the code"}
LONG = 12  # lines of code above which a cell that draws is folded, and its picture is not
HEAD = """# Execution statistics

Each chapter was executed by papermill when this book was built, with {where}. Chapters share data
and runs: whichever comes first makes them, and takes longer.

"""


def where() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    python = f"Python {platform.python_version()}"
    return f"{python} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores, {device}"


def alternative(cell) -> None:
    """Move a cell's `#| alt:` comments into the metadata that MyST-NB reads."""
    lines, words = cell.source.splitlines(), []
    while lines and lines[0].startswith("#| "):
        words.append(lines.pop(0).removeprefix("#| ").removeprefix("alt: ").strip())
    if words:
        cell.source = "\n".join(lines).lstrip("\n")
        cell.metadata["mystnb"] = {"image": {"alt": " ".join(words)}}
        if len(lines) > LONG and not cell.metadata.get("tags"):
            cell.metadata["tags"] = ["hide-input"]


def named(cell) -> None:
    """A folded cell says what it holds: the first name that one of its tags has."""
    for tag, name in NAMES.items():
        if tag in cell.metadata.get("tags", []):
            prompts = {"code_prompt_show": name, "code_prompt_hide": f"Hide: {name.lower()}"}
            cell.metadata.setdefault("mystnb", {}).update(prompts)
            return


def finish(executed: Path, page: Path) -> None:
    notebook = nbformat.read(executed, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            alternative(cell)
            named(cell)
    kernel = notebook.metadata.kernelspec
    seconds = notebook.metadata.papermill.duration
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    notebook.metadata["executed"] = {"seconds": seconds}
    text = (
        "---\n\n"
        f"Executed in {seconds:.0f} s by kernel `{kernel.name}` ({kernel.display_name}), "
        f"{where()}; "
        f"{versions}. [All chapters](../executed.md)"
    )
    notebook.cells.append(nbformat.v4.new_markdown_cell(text, metadata={"tags": ["foot"]}))
    nbformat.write(notebook, page)


def statistics() -> str:
    rows, total = [], 0.0
    for chapter in sorted((BOOK.parent / "notebooks").glob("*.py")):  # not what is left of old ones
        path = BOOK / "notebooks" / f"{chapter.stem}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
        cells = sum(cell.cell_type == "code" for cell in notebook.cells)
        seconds = notebook.metadata.executed.seconds
        total += seconds
        rows.append((f"[{title}](notebooks/{path.name})", cells, f"{seconds:.0f}"))
    rows.append(("all", sum(row[1] for row in rows), f"{total:.0f}"))
    return HEAD.format(where=where()) + table(["chapter", "code cells", "seconds"], rows, right=2)


if __name__ == "__main__":
    if sys.argv[1:] == ["--table"]:
        (BOOK / "executed.md").write_text(statistics())
    else:
        finish(*map(Path, sys.argv[1:]))
