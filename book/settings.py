"""The table of settings, read from `Config` itself so that it cannot drift (for `results.py`)."""

from __future__ import annotations

import inspect
import re

from seal_lite import Config, preset


def table(header, rows, *, right=0) -> str:
    """A Markdown table; the last `right` columns are right-aligned."""
    left = len(header) - right
    lines = [header, ["---"] * left + ["---:"] * right, *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def settings() -> str:
    """The table of settings: names, both presets and comments, read from `Config` itself."""
    default, paper = preset("default"), preset("paper")
    rows, group = [], None
    for line in inspect.getsource(Config).splitlines():
        if heading := re.fullmatch(r"    # (.+)", line):
            group = heading[1].partition(":")[0]
        elif field := re.match(r"    (\w+): [^=]+ = [^#]+(?:  # (.+))?$", line):
            name, meaning = field[1], (field[2] or "").replace("|", r"\|")
            a, b = (shown(getattr(c, name)) for c in (default, paper))
            rows.append((group, f"`{name}`", a, a if a == b else f"**{b}**", meaning))
            group = ""
    return table(["", "setting", "default", "paper", "meaning"], rows)


def shown(value) -> str:
    """A setting's value as the book prints it."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "none" if value == float("inf") else f"{value:g}" if isinstance(value, float) else value
