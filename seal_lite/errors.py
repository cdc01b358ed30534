"""The one error a user is meant to read."""

from __future__ import annotations

import re
from contextlib import contextmanager


class InputError(ValueError):
    """Bad input: one sentence that names the file, the field and the remedy.

    The command line prints it on stderr and exits with code 2; nothing has been written by then.
    """


@contextmanager
def reading(path, *, fault: str = "cannot be read", remedy: str = "fetch it again"):
    """Whatever goes wrong inside is an `InputError` about `path`.

    Readers of damaged files raise what they please, and no two packages agree. What already is an
    `InputError`, and a package that is not installed, are passed on.
    """
    try:
        yield
    except (InputError, ModuleNotFoundError):
        raise
    except Exception as error:
        why = re.sub(r"\bhf_\w+", "hf_...", f"{type(error).__name__}: {error}").split()  # no token
        raise InputError(f"{path}: {fault} ({' '.join(why)[:200]}); {remedy}") from error
