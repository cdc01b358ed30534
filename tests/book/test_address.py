"""The repository's address stands in one place, and everything else follows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

import address

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tmp_path):
    """The files that name the address, in a folder of their own."""
    for pattern in (*address.PLACES, "_config.yml"):
        for path in ROOT.glob(pattern):
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return tmp_path


def test_a_fork_changes_its_address_in_one_place(copy):
    config = copy / "_config.yml"
    home = yaml.safe_load(config.read_text())["repository"]["url"]
    config.write_text(config.read_text().replace(home, "https://github.com/lab/our-seal"))
    address.move(copy)
    slug = home.removeprefix("https://github.com/")
    files = [path for path in copy.rglob("*") if path.is_file()]
    assert [path.name for path in files if f"/{slug}" in path.read_text()] == []
    readme = (copy / "README.md").read_text()
    chapters = list(copy.glob("notebooks/*.py"))
    assert readme.count("colab.research.google.com/github/lab/our-seal/blob/main/") == len(chapters)


def test_the_address_is_the_same_everywhere(copy):
    """What `make sync` would write is what is there."""
    address.move(copy)
    files = [path for path in copy.rglob("*") if path.is_file()]
    changed = [p.name for p in files if p.read_text() != (ROOT / p.relative_to(copy)).read_text()]
    assert changed == []


def test_the_readme_links_the_book_of_the_fork_and_shows_its_results(copy, tmp_path):
    config = copy / "_config.yml"
    home = yaml.safe_load(config.read_text())["repository"]["url"]
    config.write_text(config.read_text().replace(home, "https://github.com/lab/our-seal"))
    results = tmp_path / "measured"
    shutil.copytree(ROOT / "results", results)
    measured = json.loads((results / "her2st.json").read_text())
    for row in measured["delta"]:
        row["mean"] = 0.777
    (results / "her2st.json").write_text(json.dumps(measured))
    address.move(copy, results=results)
    readme = (copy / "README.md").read_text()
    assert "https://lab.github.io/our-seal/" in readme
    assert address.site_of(home.removeprefix("https://github.com/")) not in readme
    table = readme.partition(address.RESULTS[0])[2].partition(address.RESULTS[1])[0]
    assert table.count("+0.777") == 4
