"""What the reference part of the book is made of: the commands, and how to cite (for `results.py`).

The commands come from the command line's own description of itself. (Sphinx's extensions for that
know click's commands, and typer has classes of its own.)
"""

from __future__ import annotations

import re
from pathlib import Path

import typer
import yaml
from pybtex.database import BibliographyData, Entry, Person, parse_file
from typer.main import get_command

from seal_lite.cli import app

ROOT = Path(__file__).parents[1]
PAPERS = {"method": ["hemker2026seal"], "data": ["andersson2021her2st", "jaume2024hest"]}


def shown(param, usage: str) -> str:
    """An option as it is typed, `--set STR` for `--set <list[str]>`, or an argument: `NAME`."""
    if param.param_type_name == "argument":
        return param.name.upper()
    return re.sub(r"<(?:list\[)?(\w+)\]?>", lambda kind: kind[1].upper(), usage)


def commands() -> str:
    """Every command of `seal-lite`: what it does, how it is called, its options."""
    parts = []
    for name, command in get_command(app).commands.items():
        context = typer.Context(command)
        records = [(param, *param.get_help_record(context)) for param in command.params]
        asked = [(param, shown(param, usage), words) for param, usage, words in records]
        needed = " ".join(usage for param, usage, _ in asked if param.required)
        parts.append(f"### seal-lite {name}\n\n{command.help}\n")
        parts.append(f"```sh\nseal-lite {name} {needed}".rstrip() + "\n```\n")
        for param, usage, words in asked:
            parts.append(f"`{usage}`\n: {words or f'The setting `{param.name}`.'}\n")
    return "\n".join(parts)


def citations(root: Path = ROOT) -> str:
    """BibTeX of this software, from CITATION.cff, and of the papers, from references.bib."""
    about = yaml.safe_load((root / "CITATION.cff").read_text())
    year = yaml.safe_load((root / "_config.yml").read_text())["copyright"]
    software = Entry(
        "software",
        {
            "title": "{" + about["title"] + "}",
            "version": about["version"],
            "year": about.get("date-released", year)[:4],
            "url": about["repository-code"],
            "license": about["license"],
        },
        persons={"author": [Person("{" + a["name"] + "}") for a in about["authors"]]},
    )
    papers = parse_file(root / "book/references.bib").entries
    found = {"software": {"seal_lite": software}}
    found |= {part: {key: papers[key] for key in keys} for part, keys in PAPERS.items()}
    parts = []
    for part, entries in found.items():
        bibtex = BibliographyData(entries).to_string("bibtex").strip()
        parts.append(f"<!-- {part} -->\n\n```bibtex\n{bibtex}\n```\n")
    return "\n".join(parts)
