"""Paths that data decide: names as file names, files inside a folder, nothing but plain files."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from seal_lite.errors import InputError, refuse_special

LONGEST_NAME = 200  # bytes; file systems take 255, and a temporary file's name is longer
NOT_IN_NAMES = frozenset('<>:"/\\|?*')  # what some system does not take in a file's name
# Names of devices on Windows, with any suffix.
DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)
MARK = re.compile(r"~[0-9a-f]{32}$")  # the end of a name that was changed


def file_name(text: str) -> str:
    """Return a name from data, as of a section or a patient, as the name of one file or folder.

    A name that every system takes stays as it is. In any other, what is not allowed (separators,
    control characters, dots and blanks at either end, ...) is replaced or cut off, and a hash of
    the whole name is added. So no two names give one file, except on file systems that ignore case:
    see `file_names`.

    Parameters
    ----------
    text
        Any text.

    Returns
    -------
    str
        A file name of at most `LONGEST_NAME` bytes, which may be given a suffix.
    """
    composed = unicodedata.normalize("NFC", text)  # some systems take both forms for one
    allowed = [c if c.isprintable() and c not in NOT_IN_NAMES else "_" for c in composed]
    name = "".join(allowed).strip(" .")
    is_device = DEVICE.fullmatch(name) is not None
    is_short = len(name.encode()) <= LONGEST_NAME
    if name == text and name and is_short and not is_device and not MARK.search(name):
        return name
    return _marked(f"_{name}" if is_device else name, text)


def file_names(texts: Sequence[str]) -> list[str]:
    """Return the `file_name` of each text; those that differ in case alone get a hash, too.

    Parameters
    ----------
    texts
        All names that share a folder, no two of them equal.

    Returns
    -------
    list of str
        File names that differ on every file system.
    """
    names = [file_name(text) for text in texts]
    counts = Counter(name.casefold() for name in names)
    return [
        name if counts[name.casefold()] == 1 or MARK.search(name) else _marked(name, text)
        for name, text in zip(names, texts, strict=True)
    ]


def _marked(name: str, text: str) -> str:
    """Return the beginning of a file name, and a hash of the text that it stands for."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    mark = f"~{digest[:32]}"
    beginning = name.encode()[: LONGEST_NAME - len(mark)]
    return beginning.decode(errors="ignore") + mark


def inside(folder: str | Path, text: str, *, table: str | Path) -> Path:
    """Return the path that data name, as a cell of a table does, inside a folder.

    Data that were downloaded must not choose which of the reader's files are read, so the path may
    not leave the folder: not through "..", and not as an absolute path. Symbolic links are
    followed, wherever they lead. Whoever keeps the folder made them, or a program did that stores
    the data elsewhere (the hub's cache, DVC, DataLad), and linking large images into a folder is
    how they are named from outside of it.

    Parameters
    ----------
    folder
        The folder that the user gave.
    text
        A path relative to it, or an absolute one that lies in it.
    table
        What names the path, for the error message.

    Raises
    ------
    InputError
        Where the path lies outside of the folder.
    """
    folder = Path(folder)
    relative = Path(os.path.normpath(text))
    for root in (folder.absolute(), folder.resolve()):
        if relative.is_relative_to(root):
            relative = relative.relative_to(root)
    is_outside = relative.is_absolute() or relative.drive or ".." in relative.parts
    if is_outside or "\0" in text:
        raise InputError(
            f"{table}: names {text}, which is outside of {folder}; "
            "put that file, or a link to it, into the folder and name it there"
        )
    return folder / relative


def check_store(path: str | Path) -> None:
    """Check a Zarr store, a folder that counts as one file: all of it is plain, and lies within.

    Raises
    ------
    InputError
        Where a part is a link that leads out of the store or to a folder with links to folders, of
        which a circle is made, or is no plain file.
    """
    path = Path(path)
    root = path.resolve()
    to_folders: dict[Path, Path] = {}  # links, and where they lead
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            part = Path(folder, name)
            refuse_special(part)
            if not part.is_symlink():
                continue
            target = part.resolve()
            if not target.is_relative_to(root):
                raise InputError(
                    f"{path / part.relative_to(root)}: is a link that leads out of its store; "
                    "copy the store with what its links lead to (cp -rL)"
                )
            if target.is_dir():
                to_folders[part] = target
    targets = set(to_folders.values())
    for part in to_folders:
        if not targets.isdisjoint(part.parents):
            raise InputError(
                f"{path / part.relative_to(root)}: is a link in a folder that a link leads to; "
                "put the folder itself there"
            )


def nearest_existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
