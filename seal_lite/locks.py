"""Locks on files that are being made, and folders that one run at a time writes to."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from seal_lite.errors import InputError, reading

log = logging.getLogger(__name__)
LOCK_SUFFIXES = (".lock", ".owner")
# What systems answer where a file system has no locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_WITHOUT_LOCKS: set[Path] = set()  # folders on such file systems, which the log has named
_HELD: dict[Path, tuple[Path, os.stat_result]] = {}  # of each folder of a run, its lock's file


@contextmanager
def lock(path: str | Path, *, wait: bool = True) -> Iterator[None]:
    """Keep others from making `path` while the block lasts.

    The lock is an empty file `.<name>.lock` beside `path`, which the system frees when its process
    dies. Where the file system has no locks, the log says so once, and the lock is the file
    `.<name>.owner`, which names its process and host. One that a dead process of this host has left
    is removed; nobody can know that of another host, so the log, or the error, names it.

    Parameters
    ----------
    path
        What is being made.
    wait
        Whether to wait until others are done.

    Raises
    ------
    Timeout
        Filelock's, with `wait=False`, where somebody else has the lock.
    """
    path = Path(path)
    check_held(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    held = _acquire(path, wait=wait)
    try:
        yield
    finally:
        held.release()


def _acquire(path: Path, *, wait: bool) -> BaseFileLock:
    """Return the lock on a path, locked."""
    file, owner = (path.with_name(f".{path.name}{suffix}") for suffix in LOCK_SUFFIXES)
    if path.parent not in _WITHOUT_LOCKS:
        native = FileLock(file)
        try:
            native.acquire(timeout=-1 if wait else 0)
            return native
        except Timeout:
            raise
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            file.unlink(missing_ok=True)
            _WITHOUT_LOCKS.add(path.parent)
            log.warning("%s: has no locks; files named .owner stand for them", path.parent)
    soft = SoftFileLock(owner)
    try:
        soft.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise
        log.warning("%s: %s makes it; %s", path, *_holder(path))
        soft.acquire()
    return soft


def _holder(path: Path) -> tuple[str, str]:
    """Return who has the lock on a path, and what to do about it, as far as its file tells."""
    for suffix in LOCK_SUFFIXES:
        file = path.with_name(f".{path.name}{suffix}")
        try:
            process, host, *_ = file.read_text().split("\n")
        except (OSError, ValueError):
            continue
        return f"process {process} of {host}", f"wait, or remove {file} if it has ended"
    return "another run", "wait"


@contextmanager
def exclusive_folder(folder: str | Path) -> Iterator[None]:
    """Make a folder and keep every other run out of it while the block lasts.

    Raises
    ------
    InputError
        Where the folder cannot be made, or another run writes there.
    """
    path = Path(folder).absolute()
    run = path / "run"
    check_held(path)
    try:
        with reading(folder, fault="cannot be written", remedy="choose another folder"):
            path.mkdir(parents=True, exist_ok=True)
        held = _acquire(run, wait=False)
    except Timeout:
        rival, remedy = _holder(run)
        raise InputError(f"{folder}: {rival} writes there; {remedy}, or choose another") from None
    file = Path(held.lock_file)
    status = file.stat()
    _HELD[path] = (file, status)
    try:
        yield
    finally:
        if not isinstance(held, SoftFileLock) and _is_same(file, status):
            file.unlink()
        del _HELD[path]
        held.release()


def _is_same(file: Path, status: os.stat_result) -> bool:
    """Return whether a path still leads to the file that had this status."""
    try:
        return os.path.samestat(file.stat(), status)
    except OSError:
        return False


def check_held(path: str | Path) -> None:
    """Check, before a file is written, that the folder of this run that it lies in is still there.

    Raises
    ------
    InputError
        Where somebody has removed, or replaced, the folder since the run began to write there.
    """
    path = Path(path).absolute()
    for folder, (file, status) in list(_HELD.items()):
        if path.is_relative_to(folder) and not _is_same(file, status):
            raise InputError(
                f"{folder}: was removed while this run wrote there, and its results with it; "
                "run the same command again"
            )
