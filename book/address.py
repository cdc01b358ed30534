"""Write what README.md and others take from elsewhere (`make sync`).

    python book/address.py

Every badge, button and install line names the repository, and the README links the published book.
For a fork, change `repository: url` in _config.yml, then `make sync`. The README's results are the
table of the book's front page, from the files in results/.
"""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import yaml

import pages

ROOT = Path(__file__).parents[1]
PLACES = ("README.md", "CITATION.cff", "pyproject.toml", "notebooks/*.py", "book/*.md")
CHAPTERS = ("<!-- chapters: written by `make sync` -->", "<!-- end of chapters -->")
RESULTS = ("<!-- results: written by `make sync` -->", "<!-- end of results -->")
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({})"
HEADLINE = '{% include "headline.md" %}'
COLAB = "https://colab.research.google.com/github/{slug}/blob/{branch}/notebooks/{name}.ipynb"


def move(root: Path = ROOT, *, results: Path = ROOT / "results") -> None:
    """Write the address of `root`/_config.yml over the one that CITATION.cff still has.

    The README's tables are written anew, that of the results from the files in `results`.
    """
    repository = yaml.safe_load((root / "_config.yml").read_text())["repository"]
    slug = repository["url"].removeprefix("https://github.com/").strip("/")
    cited = yaml.safe_load((root / "CITATION.cff").read_text())["repository-code"]
    old = cited.removeprefix("https://github.com/").strip("/")
    for path in [path for pattern in PLACES for path in root.glob(pattern)]:
        text = path.read_text()
        moved = re.sub(rf"(github(?:\.com)?/){re.escape(old)}(?![\w-])", rf"\g<1>{slug}", text)
        moved = moved.replace(site_of(old), site_of(slug))
        if path.name == "README.md":
            moved = fill(moved, CHAPTERS, chapter_table(root, slug, repository["branch"]))
            moved = fill(moved, RESULTS, pages.render(HEADLINE, results=results))
        if moved != text:
            path.write_text(moved)


def site_of(slug: str) -> str:
    """Return the address of the book that GitHub Pages publishes for a repository."""
    owner, _, name = slug.partition("/")
    return f"https://{owner}.github.io/{name}/"


def fill(text: str, marks: tuple[str, str], content: str) -> str:
    """Return a text with new content between two marks."""
    before, _, rest = text.partition(marks[0])
    after = rest.partition(marks[1])[2]
    return f"{before}{marks[0]}\n\n{content.strip()}\n\n{marks[1]}{after}"


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
