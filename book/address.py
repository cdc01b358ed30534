"""Write the address of _config.yml, `repository: url`, wherever else it stands (`make sync`).

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
    for path in [path for pattern in PLACES for path in root.glob(pattern)]:
        text = path.read_text()
        moved = re.sub(rf"(github(?:\.com)?/){old}(?![\w-])", rf"\g<1>{slug}", text)
        if path.name == "README.md":
            before, _, rest = moved.partition(MARKS[0])
            rows = chapter_table(root, slug, repository["branch"])
            moved = f"{before}{MARKS[0]}\n\n{rows}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"
        if moved != text:
            path.write_text(moved)


def chapter_table(root: Path, slug: str, branch: str) -> str:
    """Return the README's table of notebooks, each with its title and a Colab button."""
    lines = ["| | chapter | |", "|--:|---|---|"]
    for path in sorted((root / "notebooks").glob("*.py")):
        title = jupytext.read(path).cells[0].source.splitlines()[0].removeprefix("# ")
        button = BADGE.format(COLAB.format(slug=slug, branch=branch, name=path.stem))
        number = int(path.stem.partition("_")[0])
        lines.append(f"| {number} | [{title}](notebooks/{path.name}) | {button} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    move()
