"""Bring the book's address, the one in _config.yml, to wherever else it is written.

    python book/address.py

Every badge, button and install line names the repository. For a fork, change `repository: url` in
_config.yml, then `make sync`.
"""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import yaml

ROOT = Path(__file__).parents[1]
PLACES = ("README.md", "CITATION.cff", "pyproject.toml", "notebooks/*.py", "book/*.md")
MARKS = ("<!-- chapters: written by `make sync` -->", "<!-- end of chapters -->")
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({})"
COLAB = "https://colab.research.google.com/github/{slug}/blob/{branch}/notebooks/{name}.ipynb"


def move(root: Path = ROOT) -> None:
    """Write the address of `root`/_config.yml over the one that CITATION.cff still has."""
    repository = yaml.safe_load((root / "_config.yml").read_text())["repository"]
    slug = repository["url"].removeprefix("https://github.com/").strip("/")
    cited = yaml.safe_load((root / "CITATION.cff").read_text())["repository-code"]
    old = re.escape(cited.removeprefix("https://github.com/").strip("/"))
    for path in (p for place in PLACES for p in root.glob(place)):
        text = path.read_text()
        new = re.sub(rf"(github(?:\.com)?/){old}(?![\w-])", rf"\g<1>{slug}", text)
        if path.name == "README.md":
            before, _, rest = new.partition(MARKS[0])
            rows = chapters(root, slug, repository["branch"])
            new = f"{before}{MARKS[0]}\n\n{rows}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"
        if new != text:
            path.write_text(new)


def chapters(root: Path, slug: str, branch: str) -> str:
    """The README's table of notebooks, each with its title, its question's page and a button."""
    lines = ["| | chapter | |", "|--:|---|---|"]
    for path in sorted((root / "notebooks").glob("*.py")):
        title = jupytext.read(path).cells[0].source.splitlines()[0].removeprefix("# ")
        button = BADGE.format(COLAB.format(slug=slug, branch=branch, name=path.stem))
        number = int(path.stem.partition("_")[0])
        lines.append(f"| {number} | [{title}](notebooks/{path.name}) | {button} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    move()
