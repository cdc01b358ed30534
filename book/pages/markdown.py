"""Markdown for computed values: numbers, labels, intervals, verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seal_lite.tutorial import charts

NBSP = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
SHORT_LABELS = {
    "tuned": "**finetuned**",
    "shuffled": "shuffled pairs",
    "frozen": "frozen",
    "frozen_best": "frozen, best stage",
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
    """Return a number with a typographic minus sign."""
    return format(value, form).replace("-", MINUS)


def percent(value: float, digits: int = 0) -> str:
    """Return a share as a percentage."""
    return number(value, f".{digits}%")


def interval(row: Mapping[str, Any]) -> str:
    """Return "mean [low, high]" of a row with "mean" and "ci95"."""
    low, high = row["ci95"]
    text = f"{number(row['mean'], '+.3f')} [{number(low, '+.3f')}, {number(high, '+.3f')}]"
    return text.replace(" ", NBSP)


def excludes_zero(row: Mapping[str, Any]) -> bool:
    """Whether a row's interval leaves 0 out."""
    low, high = row["ci95"]
    return low > 0 or high < 0


def verdict(row: Mapping[str, Any]) -> str:
    """Return what the interval of a difference says: higher, lower or no difference."""
    if not excludes_zero(row):
        return f"no{NBSP}difference"
    return "**higher**" if row["mean"] > 0 else "**lower**"


def marked(row: Mapping[str, Any]) -> str:
    """Return the difference, bold where its interval leaves 0 out, with the interval below it."""
    mean, low_high = interval(row).split(f"{NBSP}[")
    if excludes_zero(row):
        mean = f"**{mean}**"
    return f"{mean}<br>[{low_high}"


def versus(row: Mapping[str, Any]) -> str:
    """Return the two sides of a difference."""
    return f"{label(row['of'])} {MINUS} {label(row['minus'])}"
