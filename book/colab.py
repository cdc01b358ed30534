"""Write the notebooks that Colab opens, notebooks/*.ipynb, from the scripts beside them.

    python book/colab.py

The book executes the scripts themselves, and Sphinx understands their roles and templates. Colab
does not. Here a citation becomes a link to the paper, a term a link to the glossary, a template its
values, and a link between pages an address. The code is the script's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
import nbformat
import yaml
from nbformat import NotebookNode
from pybtex.database import BibliographyData, Entry, parse_file
from pybtex.richtext import Text

import pages
from address import COLAB

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
ROLE = re.compile(r"\{(\w+(?::\w+)?)\}`([^`]+)`")
LINK = re.compile(r"(?<=\])\(([^()\s]+)\)")
DIRECTIVE = re.compile(
    r"^(?P<fence>:{3,}|`{3,})\{(?P<name>[\w-]+)\} *(?P<argument>.*)\n"
    r"(?P<body>(?:.*\n)*?)(?P=fence)$",
    re.M,
)
TARGET = re.compile(r"^\(([\w-]+)\)=\n", re.M)
ADMONITIONS = ("admonition", "caution", "dropdown", "hint", "important", "note", "tip", "warning")
RUNTIME = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# What a reader of Colab must not meet: {pattern: what it is}.
UNREADABLE = {
    r"\{[\w:-]+\}`": "a role",
    r"^(:{3,}|`{3,})\{": "a directive",
    r"^\([\w-]+\)=": "a label",
    r"\{\{|\{%": "a template",
    r"\]\((?!https?://)": "a relative link",
}


@dataclass(frozen=True)
class Addresses:
    """Where the links of a chapter lead on Colab.

    Parameters
    ----------
    slug, branch
        The repository as owner/name, and its branch.
    """

    slug: str
    branch: str

    @classmethod
    def read(cls, config: Path = ROOT / "_config.yml") -> Addresses:
        """Read the repository's address from _config.yml."""
        repository = yaml.safe_load(config.read_text())["repository"]
        slug = repository["url"].removeprefix("https://github.com/").strip("/")
        return cls(slug, repository["branch"])

    @property
    def book(self) -> str:
        """The address of the published book: GitHub Pages of the repository."""
        owner, _, name = self.slug.partition("/")
        return f"https://{owner.lower()}.github.io/{name}"

    @cached_property
    def labels(self) -> dict[str, str]:
        """The address of every label that a page sets, as in `(label)=`."""
        return {
            label: f"{self.book}/{path.relative_to(BOOK).with_suffix('.html')}#{label}"
            for path in sorted(BOOK.rglob("*.md"))
            for label in TARGET.findall(path.read_text())
        }

    def of(self, link: str) -> str:
        """Return the address that a link of a chapter leads to."""
        if link.startswith(("https://", "http://")):
            return link
        label = link.removeprefix("#")
        if label in self.labels:
            return self.labels[label]
        page, _, anchor = link.partition("#")
        path = Path(page)
        if path.suffix == ".ipynb" and (ROOT / "notebooks" / path).with_suffix(".py").exists():
            return COLAB.format(slug=self.slug, branch=self.branch, name=path.stem)
        source = (BOOK / "notebooks" / path).resolve()
        if source.suffix == ".md" and source.exists():
            html = source.relative_to(BOOK).with_suffix(".html")
            return f"{self.book}/{html}" + (f"#{anchor}" if anchor else "")
        raise ValueError(f"{link}: a link to no chapter, page or label of the book")

    def term(self, name: str) -> str:
        """Return the address of a term's entry, with the anchor that Sphinx gives it."""
        entries = re.findall(r"^(?! |:|#|\()(\S.*)\n  \S", (BOOK / "glossary.md").read_text(), re.M)
        by_lower = {entry.lower(): entry for entry in entries}
        if name.lower() not in by_lower:
            raise ValueError(f"{name}: no term of book/glossary.md")
        anchor = re.sub(r"[^a-zA-Z0-9._]+", "-", by_lower[name.lower()]).strip("-")
        return f"{self.book}/glossary.html#term-{anchor}"


def twin(script: Path, addresses: Addresses, papers: BibliographyData) -> NotebookNode:
    """Return the notebook of a script as Colab shows it, without outputs."""
    cells = []
    for number, source in enumerate(jupytext.read(script).cells):
        cell_id = f"{script.stem.partition('_')[0]}-{number}"
        if source.cell_type == "markdown":
            text = plain(source.source, addresses, papers)
            cells.append(nbformat.v4.new_markdown_cell(text, id=cell_id))
        else:
            tags = source.metadata.get("tags", [])
            metadata = {"tags": tags} if tags else {}
            cell = nbformat.v4.new_code_cell(source.source, id=cell_id, metadata=metadata)
            cells.append(cell)
    return nbformat.v4.new_notebook(cells=cells, metadata=RUNTIME)


def plain(text: str, addresses: Addresses, papers: BibliographyData) -> str:
    """Return the text of a cell in the Markdown that Colab shows."""
    with TemporaryDirectory() as drawings:
        text = pages.render(text, drawings=Path(drawings))
    text = TARGET.sub("", text)
    text = DIRECTIVE.sub(lambda match: without_directive(match, addresses), text)
    text = LINK.sub(lambda match: f"({addresses.of(match[1])})", text)
    return ROLE.sub(lambda match: without_role(match, addresses, papers), text)


def without_directive(match: re.Match[str], addresses: Addresses) -> str:
    """Return a figure as an image with a caption, or an admonition as a quotation."""
    name, argument = match["name"], match["argument"].strip()
    lines = match["body"].splitlines()
    options = [line for line in lines if re.match(r":[\w-]+:", line)]
    body = "\n".join(line for line in lines if line not in options).strip()
    if name == "figure":
        (alt,) = [line.removeprefix(":alt: ") for line in options if line.startswith(":alt: ")]
        image = f"{addresses.book}/_images/{Path(argument).name}"
        return f"![{alt}]({image})\n\n{body}"
    if name in ADMONITIONS:
        title = argument or name.capitalize()
        quoted = [f"> {line}".rstrip() for line in body.splitlines()]
        return "\n".join([f"> **{title}**", ">", *quoted])
    raise ValueError(f"{{{name}}}: book/colab.py knows no Markdown for this directive")


def without_role(match: re.Match[str], addresses: Addresses, papers: BibliographyData) -> str:
    """Return a role's text with the link that it stands for."""
    role, content = match.groups()
    if role in ("cite:p", "cite:t"):
        keys = [key.strip() for key in content.split(",")]
        if role == "cite:t":
            return ", ".join(citation(papers.entries[key], "{} ({})") for key in keys)
        return f"({'; '.join(citation(papers.entries[key], '{}, {}') for key in keys)})"
    explicit = re.fullmatch(r"(.+?)\s*<(.+)>", content, re.S)
    shown, target = explicit.groups() if explicit else (content, content)
    target = " ".join(target.split())
    if role == "term":
        return f"[{shown}]({addresses.term(target)})"
    if role in ("ref", "doc"):
        return f"[{shown}]({addresses.of(target)})"
    raise ValueError(f"{{{role}}}: book/colab.py knows no Markdown for this role")


def citation(entry: Entry, form: str) -> str:
    """Return a paper's authors and year in the given form, linked to the paper."""
    people = entry.persons.get("author", [])
    names = [str(Text.from_latex(" ".join([*p.prelast_names, *p.last_names]))) for p in people]
    authors = names[0] if len(names) == 1 else f"{names[0]} et al."
    if len(names) == 2 and names[1] != "others":
        authors = " and ".join(names)
    text = form.format(authors, entry.fields["year"])
    doi = entry.fields.get("doi")
    url = f"https://doi.org/{doi}" if doi else entry.fields.get("url")
    return f"[{text}]({url})" if url else text


def unreadable(notebook: NotebookNode) -> list[str]:
    """Return what the text of a notebook still holds that Colab would show as it is written."""
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    return [
        f"{what}: {match[0]}{text[match.end() : match.end() + 40]!r}"
        for text in texts
        for pattern, what in UNREADABLE.items()
        for match in re.finditer(pattern, text, re.M)
    ]


def main() -> None:
    """Write every chapter's notebook, and remove those whose script is gone."""
    addresses = Addresses.read()
    papers = parse_file(BOOK / "references.bib")
    scripts = sorted((ROOT / "notebooks").glob("*.py"))
    for script in scripts:
        nbformat.write(twin(script, addresses, papers), script.with_suffix(".ipynb"))
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        if not notebook.with_suffix(".py").exists():
            notebook.unlink()


if __name__ == "__main__":
    main()
