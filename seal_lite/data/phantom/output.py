"""A generated folder that is there as a whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from seal_lite.errors import InputError


@contextmanager
def whole_folder(out: Path, marker: str, arguments: Mapping[str, object]) -> Iterator[Path | None]:
    """Yield a new folder that becomes ``out`` once the block has written all of it.

    Nothing is left behind where the block fails.

    Parameters
    ----------
    out
        The folder to make.
    marker
        Name of the JSON file that holds the arguments.
    arguments
        What determines the folder's content.

    Yields
    ------
    Path or None
        The new folder, or None where ``out`` holds what these arguments make.

    Raises
    ------
    InputError
        Where ``out`` holds anything else.
    """
    text = json.dumps(arguments, indent=1) + "\n"
    is_taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if is_taken:
        is_same = (out / marker).is_file() and (out / marker).read_text() == text
        if not is_same:
            raise InputError(f"{out}: not made with these arguments; remove it, or choose another")
        yield None
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.partial-", dir=out.parent) as partial:
        root = Path(partial, out.name)
        root.mkdir()
        yield root
        (root / marker).write_text(text)
        root.replace(out)
