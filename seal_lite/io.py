"""Files that are complete or absent, folders of one run at a time, size checks, reading ahead."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from seal_lite.errors import InputError, reading

if TYPE_CHECKING:
    import h5py

Item = TypeVar("Item")
Result = TypeVar("Result")
DEFLATE_LIMIT = 1100  # deflate packs at most 1,032 bytes into one; more is damage, or a bomb
RUN_REMEDY = "give a folder that `finetune` finished"
TEMPORARY_SUFFIXES = (".lock", ".part")  # of files that exist only while something is written


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary name to write to; the file is renamed to `path` when the block succeeds.

    When the block raises, an older file at `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: str | Path, text: str) -> None:
    """Write a text file that appears only when complete."""
    with atomic_file(path) as part:
        part.write_text(text)


def lock(path: str | Path, *, wait: bool = True) -> FileLock:
    """Return a lock on the making of `path`, for a `with` statement.

    The lock is an empty file `.<name>.lock` beside `path`. The system frees it when its process
    dies. Other processes wait for it, or with `wait=False` get filelock's `Timeout`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    timeout = -1 if wait else 0
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout)


@contextmanager
def exclusive_folder(folder: str | Path) -> Iterator[None]:
    """Make a folder and keep every other run out of it while the block lasts.

    Raises
    ------
    InputError
        Where the folder cannot be made, or another run writes there.
    """
    with reading(folder, fault="cannot be written", remedy="choose another folder"):
        run_lock = lock(Path(folder) / "run", wait=False)
    try:
        run_lock.acquire()
    except Timeout:
        raise InputError(f"{folder}: another run writes there; wait, or choose another") from None
    try:
        yield
    finally:
        os.unlink(run_lock.lock_file)
        run_lock.release()


def read_json(path: str | Path, *required: str, remedy: str = RUN_REMEDY) -> Any:
    """Return what a JSON file holds.

    Parameters
    ----------
    path
        The file.
    *required
        Keys that must be there.
    remedy
        What the error message advises.

    Raises
    ------
    InputError
        Where the file is absent, is no JSON, or lacks a required key.
    """
    with reading(path, remedy=remedy):
        content = json.loads(Path(path).read_text("utf-8"), object_pairs_hook=_each_key_once)
        if required and not isinstance(content, dict):
            raise TypeError("it is no JSON object")
        missing = [key for key in required if key not in content]
        if missing:
            raise KeyError(*missing)
    return content


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; one that names a key twice has no single meaning."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name is there twice")
    return content


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_bomb(path: str | Path, declared: int) -> None:
    """Check that a file, or a folder, can hold the `declared` number of bytes.

    Raises
    ------
    InputError
        Where compression cannot have packed that much into what is stored.
    """
    path = Path(path)
    stored = sum(file.stat().st_size for file in (path, *path.rglob("*")))
    if declared > DEFLATE_LIMIT * max(stored, 1):
        sizes = f"declares {declared / 1e9:.3g} GB, of which it holds {stored / 1e9:.1g} GB"
        raise InputError(f"{path}: {sizes}; do not trust it, fetch it again")


@contextmanager
def open_h5(path: str | Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; raises `InputError` as `refuse_bomb` does."""
    import h5py

    with h5py.File(path) as file:
        refuse_h5_bomb(file)
        yield file


def refuse_h5_bomb(file: h5py.File) -> None:
    """Apply `refuse_bomb` to an open HDF5 file."""
    sizes: list[int] = []
    file.visititems(lambda _, item: sizes.append(getattr(item, "nbytes", 0)))
    refuse_bomb(os.fsdecode(file.filename), sum(sizes))


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield read(item) of every item, in order, while a thread reads the next one."""
    with ThreadPoolExecutor(1) as reader:
        pending: Future[Result] | None = None
        for item in items:
            following = reader.submit(read, item)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
