"""Files that are whole or not there, folders that one run at a time writes into, honest sizes."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from seal_lite.errors import InputError, reading

PACKED = 1100  # deflate makes at most 1,032 bytes of one: what declares more is a hole, or a bomb
RUN = "give a folder that `finetune` finished"
HIDDEN = (".lock", ".part")  # suffixes of what is there while something is written


@contextmanager
def atomic_file(path):
    """The name under which to write `path`; it gets its own when the block has ended well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path, text: str):
    """Write a file that appears only when complete."""
    with atomic_file(path) as part:
        part.write_text(text)


def lock(path, *, wait: bool = True) -> FileLock:
    """A lock on the making of `path`, for `with`: other processes wait, or get a `Timeout`.

    The system frees it when its process dies. It is an empty file .<name>.lock beside `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=-1 if wait else 0)


@contextmanager
def exclusive_folder(folder):
    """Make a folder and write into it alone: a second run there is an `InputError`.

    So is one that cannot be made.
    """
    with reading(folder, fault="cannot be written", remedy="choose another folder"):
        held = lock(Path(folder) / "run", wait=False)
    try:
        held.acquire()
    except Timeout:
        raise InputError(f"{folder}: another run writes there; wait, or choose another") from None
    try:
        yield
    finally:
        os.unlink(held.lock_file)
        held.release()


def read_json(path, *needs: str, remedy: str = RUN):
    """What a JSON file holds; an `InputError` where it is damaged, or lacks what it `needs`."""
    with reading(path, remedy=remedy):
        found = json.loads(Path(path).read_text())
        if needs and not found.keys() >= {*needs}:
            raise KeyError(*needs)
        return found


def sha256(path) -> str:
    """SHA-256 of a file, in 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_bomb(path, declared: int):
    """An `InputError` where a file, or folder, declares more bytes than it could have packed."""
    path = Path(path)
    stored = sum(p.stat().st_size for p in (path, *path.rglob("*")))
    if declared > PACKED * max(stored, 1):
        said = f"declares {declared / 1e9:.3g} GB, of which it holds {stored / 1e9:.1g} GB"
        raise InputError(f"{path}: {said}; do not trust it, fetch it again")


@contextmanager
def open_h5(path):
    """An HDF5 file to read; what declares more than it can hold is refused (`refuse_bomb`)."""
    import h5py

    with h5py.File(path) as file:
        refuse_h5_bomb(file)
        yield file


def refuse_h5_bomb(file):
    """`refuse_bomb` of an open HDF5 file."""
    sizes = []
    file.visititems(lambda _, item: sizes.append(getattr(item, "nbytes", 0)))
    refuse_bomb(os.fsdecode(file.filename), sum(sizes))
