"""Files that are complete or absent, files that are what they declare, reading ahead."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import yaml

from seal_lite.cache import free_memory
from seal_lite.errors import InputError, reading, refuse_special
from seal_lite.locks import LOCK_SUFFIXES, check_held

if TYPE_CHECKING:
    import h5py
    import zarr

Item = TypeVar("Item")
Result = TypeVar("Result")
DEFLATE_LIMIT = 1100  # deflate packs at most 1,032 bytes into one; more is damage, or a bomb
PIECE = 2**20  # bytes unpacked at a time
CANNOT_RESERVE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
YAML_LIMIT = 10**5  # bytes; settings take a few thousand, and a megabyte would take minutes
JSON_GROWTH = 16  # bytes of memory that a byte of JSON may take: a list of small numbers does
RUN_REMEDY = "give a folder that `finetune` finished"
# Of files that exist only while something is written.
TEMPORARY_SUFFIXES = (*LOCK_SUFFIXES, ".part")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary name to write to; the file is renamed to `path` when the block succeeds.

    When the block raises, an older file at `path` stays as it was.

    Raises
    ------
    InputError
        As `check_held` does.
    """
    path = Path(path)
    check_held(path)
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


def reserve(file: BinaryIO, size: int) -> None:
    """Reserve `size` bytes of the disk for a new file, where the file system can.

    Raises
    ------
    OSError
        Where the disk has no room for them.
    """
    if not hasattr(os, "posix_fallocate"):  # as on macOS and Windows
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in CANNOT_RESERVE:
            raise


def read_json_text(path: str | Path) -> str:
    """Return the text of a JSON file, or of one of JSON lines, whose content fits into the memory.

    Raises
    ------
    InputError
        Where it does not.
    """
    path = Path(path)
    refuse_oversize(path, JSON_GROWTH * path.stat().st_size, verb="takes up to")
    return path.read_text("utf-8")


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
        content = json.loads(read_json_text(path), object_pairs_hook=_each_key_once)
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


class _PlainLoader(yaml.SafeLoader):
    """Reads YAML without aliases: a few of them, nested, unfold to more than any memory."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node of the document, which is written out."""
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event().anchor
            raise ValueError(f"{alias} is an alias; write out what it stands for")
        return super().compose_node(parent, index)


def read_yaml(path: str | Path, *, remedy: str = "correct it") -> Any:
    """Return what a YAML file of settings holds.

    Parameters
    ----------
    path
        The file.
    remedy
        What the error message advises.

    Raises
    ------
    InputError
        Where the file is absent, is no YAML, has an alias, or is larger than `YAML_LIMIT`.
    """
    path = Path(path)
    with reading(path, remedy=remedy):
        n_bytes = path.stat().st_size
        if n_bytes > YAML_LIMIT:
            raise ValueError(f"{n_bytes} bytes are more than the {YAML_LIMIT} of any settings")
        loader = _PlainLoader(path.read_text("utf-8"))
        return loader.get_single_data()


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_bomb(path: str | Path, declared: int, *, verb: str = "declares") -> None:
    """Check that a file, or a folder, can hold the `declared` number of bytes.

    Parameters
    ----------
    path
        The file or folder.
    declared
        Bytes, as it declares or unpacks to.
    verb
        Which of the two, for the message.

    Raises
    ------
    InputError
        Where compression cannot have packed that much into what is stored.
    """
    path = Path(path)
    stored = sum(file.stat().st_size for file in (path, *path.rglob("*")))
    if declared > DEFLATE_LIMIT * max(stored, 1):
        sizes = f"{verb} {declared / 1e9:.3g} GB, of which it holds {stored / 1e9:.1g} GB"
        raise InputError(f"{path}: {sizes}; do not trust it, fetch it again")


def refuse_oversize(path: str | Path, declared: int, *, verb: str = "declares") -> None:
    """Check that the `declared` number of bytes, all to be read at once, fit into the free memory.

    Parameters are those of `refuse_bomb`.

    Raises
    ------
    InputError
        Where they do not.
    """
    free = free_memory()
    if declared > free:
        sizes = f"{verb} {declared / 1e9:.3g} GB, and {free / 1e9:.3g} GB of memory are free"
        raise InputError(f"{path}: {sizes}; do not trust it, or read it where there is more")


class _Bounded(RawIOBase):
    """A stream that raises an `InputError` once more has come out of it than a file can hold."""

    def __init__(self, path: Path, stream: BinaryIO, *, is_kept: bool) -> None:
        self._path = path
        self._stream = stream
        self._is_kept = is_kept
        self._n_read = 0

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, and return the number of bytes."""
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        self._n_read += len(content)
        refuse_bomb(self._path, self._n_read, verb="unpacks to")
        if self._is_kept:
            refuse_oversize(self._path, self._n_read, verb="holds")
        return len(content)


@contextmanager
def open_text(path: str | Path, *, is_kept: bool = True) -> Iterator[BufferedReader]:
    """Open a text file, which may be compressed as pandas knows it, and give its bytes.

    Parameters
    ----------
    path
        The file.
    is_kept
        Whether all of it is kept in memory. As it is read, less memory is free: so at most about
        half of what was free is filled.

    Raises
    ------
    InputError
        While reading, as `refuse_bomb` and `refuse_oversize` do.
    """
    from pandas.io.common import get_handle

    path = Path(path)
    with get_handle(path, "rb", compression="infer", is_text=False) as opened:
        yield BufferedReader(_Bounded(path, opened.handle, is_kept=is_kept), PIECE)


@contextmanager
def open_h5(path: str | Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, while the block lasts; raises as `check_h5` does."""
    import h5py

    refuse_special(path)
    with h5py.File(path) as file:
        check_h5(file)
        yield file


def check_h5(file: h5py.File) -> None:
    """Check that an open HDF5 file holds what it declares: it can, and none of it lies elsewhere.

    Raises
    ------
    InputError
        As `refuse_bomb` does, and where a link or a dataset of the file leads to other files.
    """
    import h5py

    path = os.fsdecode(file.filename)
    own_links = (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT)  # that lead to other parts of the file
    sizes: list[int] = []
    elsewhere: list[str] = []

    def visit_link(name: bytes, info: h5py.h5l.LinkInfo) -> None:
        if info.type not in own_links:
            elsewhere.append(os.fsdecode(name))

    def visit_item(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            sizes.append(item.nbytes)
            if item.external or item.is_virtual:
                elsewhere.append(name)

    file.id.links.visit(visit_link, info=True)
    file.visititems(visit_item)
    if elsewhere:
        raise InputError(f"{path}: {elsewhere[0]} lies in another file; write all into this one")
    refuse_bomb(path, sum(sizes))


def open_zarr(path: str | Path, *, use_consolidated: bool | None = None) -> zarr.Group:
    """Open a Zarr store for reading, of version 2 or 3, which `check_store` has passed.

    Parameters
    ----------
    path
        The store, a folder.
    use_consolidated
        Whether its arrays are those that it repeats at its top; by default where it does.

    Raises
    ------
    InputError
        As `refuse_bomb` does.
    """
    import zarr

    group = zarr.open_group(path, mode="r", use_consolidated=use_consolidated)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files of other kinds, as SpatialData's tables
        members = [member for _, member in group.members(max_depth=None)]
    refuse_bomb(path, sum(member.nbytes for member in members if isinstance(member, zarr.Array)))
    return group


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
