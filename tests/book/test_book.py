"""How chapters begin, move, are finished, and find the repository's address."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
import yaml

from seal_lite.tutorial import frames, start

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "notebooks").glob("*.py"))
sys.path.append(str(ROOT / "book"))
import address  # noqa: E402
import finish  # noqa: E402


@pytest.fixture
def light(monkeypatch, tmp_path):
    """`begin` in an empty folder, without making or fetching anything: what it asked for."""
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        start, "phantom", lambda out, **size: asked.append((out, size)) or Path(out)
    )
    monkeypatch.setattr(
        start, "fetch_her2st", lambda out, **what: asked.append((out, what)) or Path(out)
    )
    monkeypatch.setattr(start, "list_sections", lambda root: ["A1", "B1", "C1"])
    return asked


def test_on_a_processor_a_chapter_begins_with_the_phantom_and_the_small_network(light):
    here = start.begin()
    assert light == [("data/phantom", start.PHANTOM)] and here.held_out == "C1"
    assert (here.config.backbone, here.config.epochs, here.config.n_views) == (
        "tf_efficientnet_lite0",
        12,
        4,
    )


def test_on_a_gpu_the_defaults_grow_by_themselves(light, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    here = start.begin()
    ((folder, what),) = light
    assert folder == "data/her2st" and len(what["sections"]) == 8
    c = here.config
    assert (c.backbone, c.epochs, c.n_views) == ("phikon", 20, 8)
    assert (c.patch_px, c.patch_um) == (224, 112.0)  # as that encoder was trained
    row = start.backbone_row("phikon")
    assert not row.gated
    assert start.begin(smoke=True).config.backbone == "tf_efficientnet_lite0"


def test_what_is_asked_for_is_taken(light):
    here = start.begin("somewhere", "test_vit", 3, test="B1", seed=7)
    assert light == [] and here.root == Path("somewhere") and here.held_out == "B1"
    assert (here.config.backbone, here.config.epochs, here.config.seed) == ("test_vit", 3, 7)
    assert here.run("x") != start.begin("somewhere", "test_vit", 3, test="A1", seed=7).run("x")


def test_a_slider_holds_all_its_pictures_and_shows_the_last():
    figures = {}
    for value, width in ((1, 2), (2, 3)):
        figures[value], _ = plt.subplots(figsize=(width, 2))
        plt.close(figures[value])
    page = frames.slider(figures, label="rank", alt="A <small> picture.").data
    assert page.count("<img") == 2 and page.count(" hidden>") == 1
    assert 'alt="A &lt;small&gt; picture. rank: 1."' in page and 'max="1"' in page
    assert "http" not in page  # nothing is loaded from anywhere


def test_a_cells_alternative_text_leaves_its_source_for_the_metadata():
    cell = nbformat.v4.new_code_cell("#| alt: Two words\n#| and more.\nx = 1")
    finish.alternative(cell)
    assert cell.source == "x = 1" and cell.metadata.mystnb.image.alt == "Two words and more."
    cell.metadata["tags"] = ["hide-cell", "solution"]
    finish.named(cell)
    assert cell.metadata.mystnb.code_prompt_show == "Solution"
    assert cell.metadata.mystnb.image.alt  # both are kept
    drawing = nbformat.v4.new_code_cell("#| alt: A picture.\n" + "x = 1\n" * 20)
    finish.alternative(drawing)
    finish.named(drawing)
    assert drawing.metadata.tags == ["hide-input"]
    assert drawing.metadata.mystnb.code_prompt_show == "Show the code"


def executed():
    pages = sorted((ROOT / "book/notebooks").glob("*.ipynb"))
    names = {path.stem for path in CHAPTERS}
    pages = [p for p in pages if p.stem in names]
    if not pages:
        pytest.skip("no executed chapter in book/notebooks: run `make notebooks` first")
    return {p.stem: nbformat.read(p, as_version=4) for p in pages}


def test_every_picture_of_every_chapter_has_words_for_who_cannot_see_it():
    silent = []
    for name, notebook in executed().items():
        for cell in notebook.cells:
            pictures = [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            if pictures and len(alt.split()) < 5:
                silent.append(f"{name}: {cell.source[:60]!r}")
    assert silent == []


def test_every_chapter_ends_in_what_it_was_executed_with():
    for name, notebook in executed().items():
        foot = notebook.cells[-1].source
        assert re.search(r"Executed in \d+ s by kernel `python3`", foot), name
        assert f"torch {torch.__version__.split('+')[0]}" in foot, name


def test_every_chapter_has_exercises_whose_solutions_ran():
    for name, notebook in executed().items():
        solved = [c for c in notebook.cells if "solution" in c.metadata.get("tags", [])]
        asked = sum(len(re.findall(r"^\*\*\d\.\*\*", c.source, re.M)) for c in notebook.cells)
        assert 2 <= len(solved) == asked <= 4, name
        assert all(c.outputs and c.execution_count for c in solved), name
        headings = re.findall(r"^## (.+)", "\n".join(c.source for c in notebook.cells), re.M)
        assert headings[-3:] == ["What to remember", "Exercises", "Further reading"], name


def test_the_statistics_page_lists_every_chapter():
    pages = executed()
    text = finish.statistics()
    assert all(f"notebooks/{name}.ipynb" in text for name in pages)


def test_a_fork_changes_its_address_in_one_place(tmp_path):
    for place in ("_config.yml", "CITATION.cff", "pyproject.toml", "README.md"):
        (tmp_path / place).write_text((ROOT / place).read_text())
    (tmp_path / "notebooks").mkdir()
    for path in CHAPTERS:
        (tmp_path / "notebooks" / path.name).write_text(path.read_text())
    config = tmp_path / "_config.yml"
    home = yaml.safe_load(config.read_text())["repository"]["url"]
    slug = home.removeprefix("https://github.com/")
    config.write_text(config.read_text().replace(home, "https://github.com/lab/our-seal"))
    address.move(tmp_path)
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert f"/{slug}" not in path.read_text(), path
    assert "git+https://github.com/lab/our-seal" in next(tmp_path.glob("notebooks/0*")).read_text()
    readme = (tmp_path / "README.md").read_text()
    assert readme.count("colab.research.google.com/github/lab/our-seal/blob/main/") == len(CHAPTERS)


def test_the_address_is_the_same_everywhere(tmp_path):
    """What `make sync` would write is what is there."""
    places = [p for place in address.PLACES for p in ROOT.glob(place)] + [ROOT / "_config.yml"]
    for path in places:
        (tmp_path / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path.relative_to(ROOT)).write_text(path.read_text())
    address.move(tmp_path)
    for path in places:
        assert (tmp_path / path.relative_to(ROOT)).read_text() == path.read_text(), path


def install_cell(path) -> str:
    (cell,) = re.findall(
        r'# %% tags=\["hide-cell"\]\n(import importlib.util\n.+?)\n\n# %%', path.read_text(), re.S
    )
    return cell


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_the_first_cell_keeps_the_torch_that_is_there(path, monkeypatch):
    """It asks pip for the package and for the very torch that is there, so pip cannot move it."""
    run = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: run.append(command))
    real = __import__("importlib.util").util.find_spec
    gone = ("seal_lite", "torchmil")
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n in gone else real(n))
    exec(install_cell(path), {})
    ((*_, home, kept, vision),) = run
    assert kept == f"torch=={version('torch')}" and vision.startswith("torchvision==")
    assert home.startswith("seal_lite[")


def test_pip_leaves_another_torch_alone(tmp_path):
    """In an environment with an older torch, as a stock Colab has it, nothing of it is replaced."""
    env = tmp_path / "colab"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True)
    (site,) = env.glob("lib/python*/site-packages")
    there = {"torch": "2.6.0+cu124", "torchvision": "0.21.0+cu124"}
    for name, release in there.items():
        info = site / f"{name}-{release}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")
        (info / "RECORD").write_text("")
        (info / "INSTALLER").write_text("pip")
    report, kept = tmp_path / "report.json", [f"{n}=={v}" for n, v in there.items()]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        env / "bin/python",
        "install",
        "-q",
        "--dry-run",
        "--report",
        report,
    ]
    done = subprocess.run([*pip, f"{ROOT}[offline,slides]", *kept], capture_output=True, text=True)
    if "No matching distribution" in done.stderr or "Could not fetch" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr[-2000:]
    names = {i["metadata"]["name"].lower() for i in json.loads(report.read_text())["install"]}
    assert "torchmil" in names and not names & {"torch", "torchvision"}
