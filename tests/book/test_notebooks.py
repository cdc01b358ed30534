"""The chapters' scripts, and what is made of them: the book's notebooks and those for Colab."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import grimp
import jupytext
import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

import colab
from dependencies import direct_modules, file_of

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))
INSTALL = re.compile(r'# %% tags=\["hide-cell"\]\n(# On Colab: .+?)\n\n# %%', re.S)


def offenders(problem_of) -> dict[str, str]:
    """{script: what is wrong with it} of all scripts for which `problem_of` returns something."""
    problems = {path.name: problem_of(path) for path in SCRIPTS}
    return {name: problem for name, problem in problems.items() if problem}


@pytest.fixture(scope="module")
def addresses():
    return colab.Addresses.read()


@pytest.fixture(scope="module")
def papers():
    return colab.parse_file(ROOT / "book/references.bib")


def code_cells(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_is_what_the_script_makes(addresses, papers):
    def problem_of(path):
        written = path.with_suffix(".ipynb")
        if not written.exists():
            return "run `make sync` and commit the notebook"
        notebook = nbformat.read(written, as_version=4)
        return notebook != colab.twin(path, addresses, papers) and "run `make sync`"

    assert offenders(problem_of) == {}


def test_colab_runs_the_very_code_of_the_script():
    def problem_of(path):
        notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
        return code_cells(notebook) != code_cells(jupytext.read(path)) and "other code"

    assert offenders(problem_of) == {}


def test_colab_shows_no_role_directive_template_or_relative_link():
    def problem_of(path):
        return colab.unreadable(nbformat.read(path.with_suffix(".ipynb"), as_version=4))

    assert offenders(problem_of) == {}


def test_colab_gives_the_notebook_a_gpu():
    def problem_of(path):
        about = nbformat.read(path.with_suffix(".ipynb"), as_version=4).metadata
        return (about.accelerator, about.colab.gpuType) != ("GPU", "T4") and "no GPU"

    assert offenders(problem_of) == {}


@pytest.mark.parametrize(
    "text, what",
    [
        ("See {cite:p}`hu2021lora`.", "a role"),
        ("A {term}`spot`.", "a role"),
        (":::{note}\nText.\n:::", "a directive"),
        ("(a-label)=\n## Heading", "a label"),
        ("{{ number(1) }}", "a template"),
        ('{% include "speed.md" %}', "a template"),
        ("[results](../results.md)", "a relative link"),
        ("[a label](earned)", "a relative link"),
    ],
)
def test_what_colab_cannot_show_is_seen_and_is_made_plain(text, what, addresses, papers):
    raw, plain = (
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source)])
        for source in (text, colab.plain(text, addresses, papers))
    )
    assert colab.unreadable(raw)[0].startswith(what)
    assert colab.unreadable(plain) == []


def test_roles_and_links_lead_where_they_lead_in_the_book(papers):
    lab = colab.Addresses("Lab/our-seal", "main")
    book, github = "https://lab.github.io/our-seal", "https://colab.research.google.com/github"

    def plain(text):
        return colab.plain(text, lab, papers)

    paper = "[Hemker et al., 2026](https://arxiv.org/abs/2602.14177)"
    lora = "[Hu et al., 2021](https://arxiv.org/abs/2106.09685)"
    assert plain("{cite:p}`hemker2026seal`") == f"({paper})"
    assert plain("{cite:p}`hemker2026seal,hu2021lora`") == f"({paper}; {lora})"
    in_text = "[Hemker et al. (2026)](https://arxiv.org/abs/2602.14177)"
    assert plain("{cite:t}`hemker2026seal`") == in_text
    assert plain("{term}`H&E`") == f"[H&E]({book}/glossary.html#term-H-E)"
    assert plain("{term}`spots <spot>`") == f"[spots]({book}/glossary.html#term-spot)"
    assert plain("[a](../results.md#b)") == f"[a]({book}/results.html#b)"
    assert plain("[a](what-differs)") == f"[a]({book}/method.html#what-differs)"
    chapter = f"{github}/Lab/our-seal/blob/main/notebooks/08_finetune.ipynb"
    assert plain("[a](08_finetune.ipynb)") == f"[a]({chapter})"
    figure = ":::{figure} /figures/a.png\n:alt: Words\n\nCaption.\n:::"
    assert plain(figure) == f"![Words]({book}/_images/a.png)\n\nCaption."
    assert plain(":::{tip} Title\nOne\n\ntwo\n:::") == "> **Title**\n>\n> One\n>\n> two"


@pytest.mark.parametrize(
    "text",
    ["[a](20_none.ipynb)", "[a](../none.md)", "{term}`none`", "{eq}`one`", ":::{tabs}\na\n:::"],
)
def test_what_leads_nowhere_on_colab_is_an_error(text, addresses, papers):
    with pytest.raises(ValueError, match="none|eq|tabs"):
        colab.plain(text, addresses, papers)


def test_every_chapter_takes_parameters():
    def problem_of(path):
        tags = [cell.metadata.get("tags", []) for cell in jupytext.read(path).cells]
        marked = sum("parameters" in of_cell for of_cell in tags)
        return marked != 1 and f"{marked} cells are tagged `parameters`"

    assert offenders(problem_of) == {}


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


def result_problem(notebook) -> str | None:
    """What is wrong with the section of a chapter that states its result."""
    sources = [cell.source for cell in notebook.cells]
    headings = re.findall(r"^## (.+)", "\n".join(sources), re.M)
    if headings[-4:-3] != ["Result"]:
        return f"before its last three sections stands {headings[-4:-3]}"
    (start,) = [i for i, source in enumerate(sources) if re.search(r"^## Result$", source, re.M)]
    (end,) = [i for i, source in enumerate(sources) if "## What to remember" in source]
    code = [cell for cell in notebook.cells[start:end] if cell.cell_type == "code"]
    if len(code) != 1 or code[0].metadata.get("tags") != ["hide-input"]:
        return "its result needs one code cell, tagged `hide-input`"
    last = ast.parse(code[0].source).body[-1]
    is_box = isinstance(last, ast.Expr) and "result_box" in ast.unparse(last)
    return None if is_box else "its result does not end with result_box(...)"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_chapter_states_its_result(path):
    assert result_problem(jupytext.read(path)) is None


def test_a_chapter_without_its_result_is_seen():
    def problem(*cells):
        text = "".join(f"# %% {cell}\n" for cell in cells)
        return result_problem(jupytext.reads(text, fmt="py:percent"))

    heading = "[markdown]\n# ## Result"
    rest = "[markdown]\n# ## What to remember\n# ## Exercises\n# ## Further reading"
    box = 'tags=["hide-input"]\nresult_box("It is better.")'
    assert problem(heading, box, rest) is None
    assert "stands" in problem(box, rest)
    assert "one code cell" in problem(heading, rest)
    assert "end with" in problem(heading, 'tags=["hide-input"]\nprint("It is better.")', rest)


def test_what_chapter_16_states_about_gpus_is_so():
    """It states that none was available as long as no results file has a GPU's times."""
    (path,) = [path for path in SCRIPTS if path.stem.startswith("15_")]
    is_stated = "No GPU was available" in path.read_text()
    assert is_stated is not (ROOT / "results/gpu.json").exists()


def test_colab_installs_from_where_the_book_lives():
    home = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    missing = f"it does not install git+{home}"
    assert offenders(lambda path: f"git+{home}" not in path.read_text() and missing) == {}


def install_cell(path: Path) -> str:
    """The cell of a script that installs SEAL-lite on Colab."""
    (cell,) = INSTALL.findall(path.read_text())
    return cell


def extras_of(path: Path) -> list[str]:
    """The extras that a chapter installs on Colab."""
    (package,) = re.findall(r'^PACKAGE = "(.+)"$', install_cell(path), re.M)
    return sorted(Requirement(package).extras)


def test_all_chapters_install_in_the_same_way():
    def shape(path):
        return re.sub(r"(?m)^PACKAGE = .+$", "", install_cell(path))

    expected = shape(SCRIPTS[0])
    assert offenders(lambda path: shape(path) != expected and shape(path)) == {}


def modules_of_extras() -> dict[str, set[str]]:
    """{extra: names that can be imported once it is installed}; zarr comes with anndata."""
    other = {"scikit-image": "skimage", "open_clip_torch": "open_clip"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    modules = {}
    for extra, requirements in project["optional-dependencies"].items():
        names = [Requirement(line).name for line in requirements]
        modules[extra] = {other.get(name, name.replace("-", "_")) for name in names} - {"zarr"}
    return modules


def imports(path: Path) -> set[str]:
    """The packages that a file imports, at its top or inside a function."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            packages.add((node.module or "").partition(".")[0])
    return packages


def test_a_chapter_installs_what_it_needs_and_nothing_more():
    """Its imports and those of the modules it uses; an encoder's weights, and what reads them."""
    graph = grimp.build_graph("seal_lite")
    provided = {extra: modules_of_extras()[extra] for extra in ("data", "slides", "elsewhere")}
    optional = set().union(*provided.values())
    encoders = r"\b(build_encoder|encoder_for|finetuned|load_encoder)\("

    def problem_of(path):
        text, chosen = path.read_text(), set(extras_of(path))
        uses_encoder = re.search(encoders, text) is not None
        any_encoder = uses_encoder and not re.search(r'BACKBONE = [(\s]*"tf_', text)
        if ("offline" in chosen, "encoders" in chosen) != (uses_encoder, any_encoder):
            return f"it uses an encoder: {uses_encoder}; Phikon on a GPU: {any_encoder}"
        files = [path, *(ROOT / file_of(module) for module in direct_modules(path, graph))]
        needed = set().union(*(imports(file) for file in files)) & optional
        others = chosen - {"offline", "encoders"}
        missing = needed - set().union(*(provided[extra] for extra in others))
        idle = [extra for extra in others if not needed & provided[extra]]
        return (missing or idle) and f"missing: {missing}; not needed: {idle}"

    assert offenders(problem_of) == {}


def test_the_first_cell_keeps_the_torch_that_is_there(monkeypatch):
    """It asks pip for the package and for the very torch that is there, so pip cannot move it."""
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(install_cell(SCRIPTS[0]), {})
    ((*_, home, torch, vision),) = commands
    assert re.fullmatch(r"seal_lite(\[.+\])? @ git\+https://github\.com/.+", home)
    assert torch == f"torch=={version('torch')}" and vision.startswith("torchvision==")


def test_the_weekly_run_in_colab_lets_each_chapter_install_itself():
    """It installs nothing of the package by hand, and starts each chapter in a fresh image."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/colab.yml").read_text())
    (command,) = [step["run"] for step in workflow["jobs"]["notebooks"]["steps"][2:3]]
    assert re.findall(r"pip install (.+)", command) == ["--quiet papermill"]
    home = re.search(r'^HOME = "git\+(.+)"$', install_cell(SCRIPTS[0]), re.M)[1]
    assert f"insteadOf {home}" in command
    assert command.index("for notebook in") < command.index("docker run")


@pytest.mark.nightly  # pip fetches what it would install: as long as the package index takes
def test_pip_leaves_another_torch_alone(tmp_path):
    """In an environment with an older torch, as a stock Colab has it, nothing of it is replaced."""
    environment = tmp_path / "colab"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    extras = sorted({extra for path in SCRIPTS for extra in extras_of(path)})
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
    pip += ["-q", "--dry-run", "--report", tmp_path / "report.json", f"{ROOT}[{','.join(extras)}]"]
    pip += [f"{name}=={release}" for name, release in installed.items()]
    done = subprocess.run(pip, capture_output=True, text=True)
    if "No matching distribution" in done.stderr or "Could not fetch" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr[-2000:]
    report = (tmp_path / "report.json").read_text()
    names = {item["metadata"]["name"].lower() for item in yaml.safe_load(report)["install"]}
    assert "torchmil" in names and not names & set(installed)
