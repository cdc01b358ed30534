"""The notebooks' two forms agree, are clean, take parameters, and are in the book."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))


def offenders(problem_of) -> dict[str, str]:
    """{script: what is wrong with it} of all scripts for which `problem_of` returns something."""
    problems = {path.name: problem_of(path) for path in SCRIPTS}
    return {name: problem for name, problem in problems.items() if problem}


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


def test_every_notebook_is_its_script_without_outputs():
    def problem_of(path):
        twin = path.with_suffix(".ipynb")
        if not twin.exists():
            return "run `make sync` and commit the notebook"
        return problems(jupytext.read(path), nbformat.read(twin, as_version=4))

    assert offenders(problem_of) == {}


def test_the_check_can_fail():
    text = '# %% [markdown]\n# # Title\n\n# %% tags=["parameters"]\nseed = 0\n'
    script = jupytext.reads(text, fmt="py:percent")
    assert problems(script, script) == []
    drifted, executed, bare = (copy.deepcopy(script) for _ in range(3))
    drifted.cells[1].source = "seed = 1"
    executed.cells[1].execution_count = 1
    bare.cells[1].metadata.tags = []
    assert "differs" in problems(script, drifted)[0]
    assert "outputs" in problems(script, executed)[0]
    assert "parameters" in problems(bare, bare)[0]


def test_the_book_shows_exactly_these_notebooks():
    toc = yaml.safe_load((ROOT / "book/_toc.yml").read_text())
    pages = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    shown = [page for page in pages if page.startswith("notebooks/")]
    assert shown == [f"notebooks/{path.stem}" for path in SCRIPTS]


def test_every_chapter_asks_closes_and_has_solved_exercises():
    def problem_of(path):
        cells = jupytext.read(path).cells
        first, text = cells[0].source, "\n".join(cell.source for cell in cells)
        exercises = len(re.findall(r"^\*\*\d\.\*\*", text, re.M))
        solutions = sum("solution" in cell.metadata.get("tags", []) for cell in cells)
        headings = re.findall(r"^## (.+)", text, re.M)
        if "?**" not in first or "to read" not in first:
            return "its first cell asks no question, or does not say how long it takes to read"
        if not 2 <= solutions == exercises <= 4:
            return f"it has {exercises} exercises and {solutions} solutions"
        if headings[-3:] != ["What to remember", "Exercises", "Further reading"]:
            return f"it ends with {headings[-3:]}"
        return None

    assert offenders(problem_of) == {}


def test_colab_installs_from_where_the_book_lives():
    home = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    missing = f"it does not install git+{home}"
    assert offenders(lambda path: f"git+{home}" not in path.read_text() and missing) == {}


def test_the_first_cell_keeps_the_torch_that_is_there(monkeypatch):
    """It asks pip for the package and for the very torch that is there, so pip cannot move it."""
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    find_spec = __import__("importlib.util").util.find_spec
    absent = ("seal_lite", "torchmil")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in absent else find_spec(name)
    )
    marker = r'# %% tags=\["hide-cell"\]\n(import importlib.util\n.+?)\n\n# %%'

    def problem_of(path):
        commands.clear()
        (cell,) = re.findall(marker, path.read_text(), re.S)
        exec(cell, {})
        ((*_, home, torch, vision),) = commands
        kept = torch == f"torch=={version('torch')}" and vision.startswith("torchvision==")
        return None if kept and home.startswith("seal_lite[") else commands[0]

    assert offenders(problem_of) == {}


@pytest.mark.nightly  # pip fetches what it would install: as long as the package index takes
def test_pip_leaves_another_torch_alone(tmp_path):
    """In an environment with an older torch, as a stock Colab has it, nothing of it is replaced."""
    environment = tmp_path / "colab"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    installed = {"torch": "2.9.0+cu126", "torchvision": "0.24.0+cu126"}
    for name, release in installed.items():
        folder = site / f"{name}-{release}.dist-info"
        folder.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n"
        (folder / "METADATA").write_text(metadata)
        (folder / "RECORD").write_text("")
        (folder / "INSTALLER").write_text("pip")
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin/python", "install"]
    pip += ["-q", "--dry-run", "--report", tmp_path / "report.json", f"{ROOT}[offline,slides]"]
    pip += [f"{name}=={release}" for name, release in installed.items()]
    done = subprocess.run(pip, capture_output=True, text=True)
    if "No matching distribution" in done.stderr or "Could not fetch" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr[-2000:]
    report = (tmp_path / "report.json").read_text()
    names = {item["metadata"]["name"].lower() for item in yaml.safe_load(report)["install"]}
    assert "torchmil" in names and not names & set(installed)
