"""The package stays short enough to be read: a budget of lines, kept by a test."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "seal_lite"
CORE = ("config", "genes", "views", "backbones", "encoders", "cache", "losses", "model", "batches",
        "train")  # fmt: skip
LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
          tokenize.ENDMARKER)  # fmt: skip


def code_lines(source: str) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    told = set()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            told |= set(range(first.lineno, first.end_lineno + 1))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    held = (range(t.start[0], t.end[0] + 1) for t in tokens if t.type not in LAYOUT)
    return len({line for lines in held for line in lines} - told)


def test_code_lines_are_counted():
    doc, text = '    """Two\n    lines."""\n', '    return """a\nb"""\n'
    source = f'"""Doc."""\n\n# why\nprint(1)  # one\n\n\ndef f():\n{doc}{text}'
    assert code_lines(source) == 4


BESIDE = PACKAGE.parent / "book"


@pytest.mark.parametrize("path", sorted([*PACKAGE.glob("*.py"), *BESIDE.glob("*/*.py")]),
                         ids=lambda p: p.stem)  # fmt: skip
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


def test_the_method_and_the_package_keep_their_budgets():
    lines = {p.stem: code_lines(p.read_text()) for p in PACKAGE.rglob("*.py")}
    assert sum(lines[name] for name in CORE) <= 1200
    assert sum(lines.values()) <= 3500
