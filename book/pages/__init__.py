"""Pages with computed values: Jinja templates, filled in from results/ when Sphinx reads them.

A page calls the functions of the modules beside this one, as in `{{ verdict(row) }}`. What several
pages share stands in book/includes/.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import yaml

from pages import (
    ablation,
    chapters,
    commands,
    controls,
    evaluations,
    faults,
    figures,
    headline,
    licences,
    markdown,
    nested,
)
from seal_lite.evaluation.scores import summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Their functions are those that a page can call.
MODULES = (
    ablation,
    chapters,
    controls,
    evaluations,
    faults,
    figures,
    headline,
    licences,
    markdown,
    nested,
)
BOOK = Path(__file__).parents[1]
ROOT = BOOK.parent


def render(
    text: str, *, results: Path = ROOT / "results", drawings: Path = BOOK / "figures"
) -> str:
    """Return a page's text with every value filled in, from the JSON files in `results`.

    Figures are written to `drawings`.
    """
    if "{{ " not in text and "{% " not in text:
        return text
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(BOOK / "includes"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

    def load(name: str) -> Any:
        path = results / f"{name}.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: absent, and a page shows it; measure it (`make help`)"
            )
        return json.loads(path.read_text())

    def draw(figure: Figure, name: str, *, caption: str, alt: str) -> str:
        drawings.mkdir(parents=True, exist_ok=True)
        figure.savefig(drawings / f"results_{name}.png", dpi=150, bbox_inches="tight")
        return f":::{{figure}} /figures/results_{name}.png\n:alt: {alt}\n\n{caption}\n:::\n"

    for module in MODULES:
        environment.globals |= vars(module)
    environment.globals |= {"load": load, "draw": draw, "bibtex": bibtex, "summary": summary}
    environment.globals |= {
        "COMMANDS": commands.COMMANDS,
        "command_time": partial(commands.command_time, results=results),
        "command_sentences": partial(commands.command_sentences, results=results),
    }
    return environment.from_string(text).render()


def bibtex(key: str) -> str:
    """Return the BibTeX entry of a paper in references.bib, or of the "software" itself."""
    if key != "software":
        references = (BOOK / "references.bib").read_text()
        (entry,) = re.findall(rf"^@\w+\{{{key},.*?^\}}", references, re.M | re.S)
        return entry
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    fields = {
        "author": f"{{{citation['authors'][0]['name']}}}",
        "title": f"{{{citation['title']}}}",
        "version": citation["version"],
        "year": str(citation.get("date-released", "2026"))[:4],
        "url": citation["repository-code"],
        "license": citation["license"],
    }
    lines = [f"    {name} = {{{value}}}" for name, value in fields.items()]
    return "@software{seal_lite,\n" + ",\n".join(lines) + "\n}"
