"""Markdown for computed values: numbers, labels, intervals, verdicts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from seal_lite.evaluation.statistics import excludes_zero
from seal_lite.studies.plan import ENOUGH_UNITS
from seal_lite.studies.verdict import kind_of
from seal_lite.tutorial import charts

NBSP = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
SHORT_LABELS = {
    "tuned": "**finetuned**",
    "shuffled": "shuffled pairs",
    "frozen": "frozen",
    "frozen_best": "frozen, best layer",
    "hest": "A",
    "tuned_ridge": "B",
    "none": "–",
    "retrieval": "retrieval",
}


def label(key: str) -> str:
    """Return the name of features, a probe or a target as a table shows it."""
    name = SHORT_LABELS.get(key) or charts.LABELS[key]
    return name.replace("\n", " ").replace("|", "given")


def number(value: float, form: str = ".3f") -> str:
    """Return a number with a typographic minus sign, and without one where it is 0 as printed."""
    text = format(value, form)
    if "+" not in form and not re.search("[1-9]", text):
        text = text.removeprefix("-")
    return text.replace("-", MINUS)


def percent(value: float, digits: int = 0) -> str:
    """Return a share as a percentage."""
    return number(value, f".{digits}%")


def interval(row: Mapping[str, Any]) -> str:
    """Return "mean [low, high] (units)" of a row with "mean", "ci95" and maybe "units"."""
    mean = number(row["mean"], "+.3f")
    units = f" ({row['units']})" if "units" in row else ""
    if row["ci95"] is None:
        return f"{mean}{units}".replace(" ", NBSP)
    low, high = (number(end, "+.3f") for end in row["ci95"])
    return f"{mean} [{low}, {high}]{units}".replace(" ", NBSP)


def verdict(row: Mapping[str, Any]) -> str:
    """Return what a difference says: better, no difference, worse, or why there is no verdict."""
    if row["ci95"] is None:
        return "one unit"
    kind = kind_of({"units": ENOUGH_UNITS, **row})  # a bootstrap's interval has no units
    if kind == "description":
        return "too few units"
    if kind == "no difference":
        return f"no{NBSP}difference"
    return f"**{kind}**"


def tally(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return in words how many differences are better, worse, none, or without a verdict."""
    kinds = Counter(verdict(row).strip("*").replace(NBSP, " ") for row in rows)
    text = f"Of {kinds.total()} differences, {kinds['better']} are better, {kinds['worse']} worse "
    text += f"and {kinds['no difference']} no difference"
    without = kinds["one unit"] + kinds["too few units"]
    return f"{text}; {without} have too few units for a verdict." if without else f"{text}."


def marked(row: Mapping[str, Any]) -> str:
    """Return the difference, bold where its interval leaves 0 out, with the interval below it."""
    mean, _, rest = interval(row).partition(NBSP)
    if excludes_zero(row):
        mean = f"**{mean}**"
    return f"{mean}<br>{rest}"


def versus(row: Mapping[str, Any]) -> str:
    """Return the two sides of a difference."""
    return f"{label(row['of'])} {MINUS} {label(row['minus'])}"
