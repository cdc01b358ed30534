"""Folders of stored activations and embeddings: the common one, its limit, how to clear one.

Such a folder holds files that anybody may remove, for they are computed again. A file's name begins
with its key, 32 hex digits.
"""

from __future__ import annotations

import errno
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from seal_lite.errors import InputError
from seal_lite.locks import lock

GB = 10**9
LIMIT_GB = 100.0  # of the common folder
STORED = re.compile(
    r"\.?([0-9a-f]{32})(-[0-9a-f]{16}\.npy|-[0-9a-f]{16}\.safetensors(\.part)?|\.part)"
)


def cache_folder() -> Path:
    """Return the common folder, of `--cache auto`: SEAL_LITE_CACHE, or in the user's cache."""
    stated = os.environ.get("SEAL_LITE_CACHE")
    if stated:
        return Path(stated)
    import pooch

    return Path(pooch.os_cache("seal-lite")) / "prefix"


def cache_limit(folder: str | Path) -> int | None:
    """Return how many bytes a folder may hold; None for any but the common one.

    SEAL_LITE_CACHE_GB sets it.

    Raises
    ------
    InputError
        Where that is no number.
    """
    if Path(folder).resolve() != cache_folder().resolve():
        return None
    stated = os.environ.get("SEAL_LITE_CACHE_GB", str(LIMIT_GB))
    try:
        return int(float(stated) * GB)
    except (ValueError, OverflowError):
        raise InputError(f"SEAL_LITE_CACHE_GB '{stated}': is no number; set one") from None


def cached_files(folder: str | Path) -> list[Path]:
    """Return the stored files of a folder, whole ones and parts, the last used last."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    files = [path for path in folder.iterdir() if STORED.fullmatch(path.name)]
    return sorted(files, key=_last_use)


def cache_size(folder: str | Path) -> int:
    """Return the bytes of all activations in a folder."""
    return sum(_size(path) for path in cached_files(folder))


def mark_used(path: Path) -> None:
    """Note that a file was used now. Its time of change stays."""
    with suppress(OSError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def make_room(folder: str | Path, size: int) -> None:
    """Remove the files used longest ago until a folder has room for `size` bytes in its limit.

    Raises
    ------
    OSError
        EDQUOT, where they are more than the limit; nothing is removed then.
    """
    limit = cache_limit(folder)
    if limit is None:
        return
    if size > limit:
        raise OSError(errno.EDQUOT, f"is limited to {limit / GB:.3g} GB (SEAL_LITE_CACHE_GB)")
    excess = cache_size(folder) + size - limit
    for path in cached_files(folder):
        if excess <= 0:
            break
        excess -= _remove(path)


def clear_cache(folder: str | Path) -> int:
    """Remove all activations in a folder, and return how many bytes they took.

    What a process is writing at the moment stays, as do files of other kinds.
    """
    return sum(_remove(path) for path in cached_files(folder))


def _remove(path: Path) -> int:
    """Remove a file that nobody is writing; return the bytes that are free now."""
    match = STORED.fullmatch(path.name)
    assert match is not None, "only files of this name are listed"
    size = _size(path)
    try:
        with lock(path.with_name(match[1]), wait=False):
            path.unlink()
    except OSError:  # in use; filelock's Timeout is one, too
        return 0
    return size


def _last_use(path: Path) -> float:
    """Return when a file was used, in s; 0 where it is gone."""
    with suppress(OSError):
        return path.stat().st_atime
    return 0.0


def _size(path: Path) -> int:
    """Return the bytes of a file; 0 where it is gone."""
    with suppress(OSError):
        return path.stat().st_size
    return 0
