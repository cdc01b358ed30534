"""The pieces that every generated page is made of: figures, tables, provenance, verdicts."""

from __future__ import annotations

import json
from pathlib import Path

from seal_lite.training.provenance import code_hash
from seal_lite.tutorial import charts
from settings import table

NBSP = "\N{NO-BREAK SPACE}"
CLAIMS = ("pearson_residuals", "log1p_cp10k|depth")  # the targets from which depth is discounted
SHORT = {
    "tuned": "**finetuned**",
    "shuffled": "shuffled pairs",
    "hest": "A",
    "tuned_ridge": "B",
    "frozen": "frozen",
    "frozen_best": "frozen, best stage",
    "none": "–",
}


def load(path: Path):
    return json.loads(path.read_text()) if path.exists() else None


def rechecked(results: Path, name: str) -> dict | None:
    """What `book/recheck.py` found of a record."""
    return (load(results / "recheck.json") or {}).get(name)


def missing(path: Path, command: str = "make record") -> str:
    return f"*Not recorded yet: there is no `results/{path.name}`. `{command}` writes it.*\n"


def figure(path: str, caption: str, alt: str) -> str:
    return f":::{{figure}} {path}\n:alt: {alt}\n{caption}\n:::\n"


def drawn(picture, out: Path, path: str, caption: str, alt: str) -> str:
    """Save a matplotlib figure under `out`, and the `figure` that shows it."""
    picture.savefig(out / path, dpi=150, bbox_inches="tight")
    return figure(f"/{path}", caption, alt)  # from the book's root: chapters include pages


def details(title: str, body: str) -> str:
    return f"::::{{dropdown}} {title}\n{body}::::\n"


def label(key: str) -> str:
    """A short name for a table's cell, or else the figures' name."""
    return SHORT.get(key) or charts.LABELS[key].replace("|", "given")


def r(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def stale(provenance: dict, again: dict | None = None, *, command: str = "make record") -> str:
    """A warning where the record was made by other code than this book's; `command` renews it.

    `again` is what `rechecked` found with the code at hand: beside the record's own code, or beside
    the record itself.
    """
    now = code_hash(provenance["code"])
    if provenance["code_sha256"] == now:
        return ""
    if again and again["code_sha256"] == now:
        beside = (
            "A short run by this book's code and one by the code that made the record, commit "
            f"`{again['commit']}`, side by side,"
            if "commit" in again
            else f"Fold {again['test']} with seed {again['seed']}, made again, and the record"
        )
        gap = f"differ by at most {again['largest_difference']:.4f} in any of"
        how = gap if again["largest_difference"] else "give the same in each of"
        return (
            f":::{{note}}\nThe code has changed since this was recorded. {beside} {how} "
            f"{again['compared']:,} scores (`make recheck`).\n:::\n"
        )
    return (
        ":::{admonition} Stale\n:class: caution\nThis record was made by an earlier version of the "
        f"code than this book's. `{command}` brings it up to date.\n:::\n"
    )


def provenance_table(p: dict) -> str:
    rows = [
        ("sections", ", ".join(p["sections"])),
        ("data, SHA-256", f"`{p['data_sha256'][:16]}`"),
        ("settings, SHA-256", f"`{p['config_sha256'][:16]}`"),
        ("code, SHA-256", f"`{p['code_sha256'][:16]}`"),
        ("commit", f"`{p['commit']}`"),
        ("seeds", ", ".join(map(str, range(p["seeds"]))) if "seeds" in p else p["seed"]),
        ("device", p["device"]),
        ("versions", ", ".join(f"{k} {v}" for k, v in p["versions"].items())),
    ]
    if "finished" in p:
        rows.append(("date", p["finished"]))
    return table(["", ""], rows)


def source(provenance: dict, more: str = "") -> str:
    """Where a record comes from, folded away."""
    return details("Where this comes from", provenance_table(provenance) + more)


def versus(row: dict) -> str:
    """The two that a difference is between."""
    return f"{label(row['of'])} − {label(row['minus'])}"


def verdict(ci) -> str:
    low, high = ci
    return "**higher**" if low > 0 else "**lower**" if high < 0 else f"no{NBSP}difference"


def interval(row: dict) -> str:
    low, high = row["ci95"]
    text = f"{row['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
    return text.replace("-", "−").replace(" ", NBSP)
