"""The one exception whose message a user reads."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seal_lite.terminal import one_line

MESSAGE_LENGTH = 200  # characters of another package's error that a message quotes


class InputError(ValueError):
    """Invalid input: one sentence that names the file, the field and the remedy.

    The command line prints it on stderr and exits with code 2. Nothing has been written by then.
    The sentence may quote names from files; as text it is one line that prints.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


@contextmanager
def reading(
    path: str | Path, *, fault: str = "cannot be read", remedy: str = "fetch it again"
) -> Iterator[None]:
    """Turn any exception of the `with` block into an `InputError` about `path`.

    Readers of damaged files raise exceptions of many kinds, and no two packages agree. The block
    is not begun where the path is a pipe or the like, which would keep a reader waiting.

    Parameters
    ----------
    path
        The file, folder or name that the message begins with.
    fault, remedy
        What is wrong with it, and what the user can do.

    Raises
    ------
    InputError
        As `refuse_special` does, and where the block raises anything but an `InputError` or a
        missing package; those two pass through unchanged.
    """
    refuse_special(path)
    try:
        yield
    except (InputError, ModuleNotFoundError):
        raise
    except MemoryError as error:
        shortage = "needs more memory than is free; read it where there is more"
        raise InputError(f"{path}: {shortage}") from error
    except Exception as error:
        raise InputError(f"{path}: {fault} ({summary(error)}); {remedy}") from error


def refuse_special(path: str | Path) -> None:
    """Check that what is to be read is a file or a folder, if it is there at all.

    Raises
    ------
    InputError
        Where it is a pipe, a socket or a device: to read it may take for ever.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # absent; or no path but a name
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path}: is a pipe, a socket or a device; give a file with its content")


@contextmanager
def blaming(path: str | Path) -> Iterator[None]:
    """Begin the message of any `InputError` of the `with` block with the file that led to it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def summary(error: Exception) -> str:
    """Return the error's kind and message on one line, without any access token in it."""
    text = f"{type(error).__name__}: {error}"
    without_token = re.sub(r"\bhf_\w+", "hf_...", text)
    one_line = " ".join(without_token.split())
    return one_line[:MESSAGE_LENGTH]
