"""What reaches a terminal or a log: lines of text that print, and nothing that a terminal obeys.

Names come from files. One may hold an escape sequence that rewrites the lines above it, a line
break that forges a message, or a character that reverses the direction of writing.
"""

from __future__ import annotations

import logging
import sys
import traceback
from types import TracebackType
from typing import TextIO


def printable(text: str) -> str:
    r"""Return text in which each character that does not print is written as its escape, as \x1b.

    Those are control and formatting characters, line breaks, halves of undecodable characters, and
    blanks other than the common one. The result is one line.
    """
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    """Return a character as Python writes it, in ASCII."""
    return character.encode("unicode_escape").decode()


def one_line(text: str) -> str:
    """Return text of several lines as one line that prints."""
    lines = [line.strip() for line in text.splitlines()]
    return printable(" ".join(line for line in lines if line))


class _PrintableFormatter(logging.Formatter):
    """Formats a message of the log as one line that prints."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a message."""
        return one_line(super().format(record))


def start_logging(stream: TextIO, *, level: int = logging.INFO, force: bool = False) -> None:
    """Write the log, and Python's warnings, to a stream: a line a message.

    Parameters
    ----------
    stream
        Where to; standard output or error.
    level
        The least important messages to write.
    force
        Replace what was started before; otherwise that stays.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_PrintableFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=force)
    logging.captureWarnings(True)


def show_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print the traceback of an error that nobody expected; a `sys.excepthook`."""
    text = "".join(traceback.format_exception(kind, error, trace))
    for line in text.rstrip("\n").split("\n"):
        print(printable(line), file=sys.stderr)
