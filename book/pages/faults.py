"""What the page on robustness shows of the tests: each fault of data or files, and its message."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

TESTS = Path(__file__).parents[2] / "tests"
TABLES = ("hostile", "data", "runs", "slides")  # tests/integration/test_faults_*.py


def fault_rows(table: str) -> list[tuple[str, str, str]]:
    """Return (command, fault, part of the message that it must give) of every row of a table."""
    for folder in (TESTS, TESTS / "integration"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    module = importlib.import_module(f"test_faults_{table}")
    return [(fault.command, fault.name, _in_table(fault.message)) for fault in module.FAULTS]


def _in_table(text: str) -> str:
    """Return text as code in a cell of a Markdown table."""
    plain = text.replace("|", "/").replace("`", "'").replace("\n", " ")
    return f"`{plain}`"
