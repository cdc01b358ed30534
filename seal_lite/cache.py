"""Room for stored activations and embeddings: the common folder, its limit, how to clear one.

A folder holds files that anybody may remove, for they are computed again. A file's name begins
with its key, 32 hex digits.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from seal_lite.errors import InputError
from seal_lite.locks import lock

GB = 10**9
AUTO = "auto"  # the name of the common folder
LIMIT_GB = 100.0  # of the common folder
CGROUPS = Path("/sys/fs/cgroup")  # where Linux shows the limits of jobs and containers
OF_PROCESS = Path("/proc/self/cgroup")
STORED = re.compile(
    r"\.?([0-9a-f]{32})(-[0-9a-f]{16}\.npy|-[0-9a-f]{16}\.safetensors(\.part)?|\.part)"
)


def cache_folder(named: str | Path = AUTO) -> Path:
    """Return the folder of a cache by its path.

    "auto" is the common folder: SEAL_LITE_CACHE, or in the user's cache. The command line and all
    functions that take a ``cache_dir`` mean it so.
    """
    if str(named) != AUTO:
        return Path(named)
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


def free_memory() -> int:
    """Return the bytes that this process may still take.

    That is what the machine has available, and no more than the limit of a container or a Slurm job
    leaves. Processes that `accelerate launch` started on this machine share it equally.
    """
    free = min([psutil.virtual_memory().available, *_left_of_limits()])
    n_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return free // n_processes


def _left_of_limits() -> Iterator[int]:
    """Yield the bytes that are left of each memory limit (cgroup v2) on this process."""
    try:
        own = OF_PROCESS.read_text().rpartition("0::/")[2].strip()
    except OSError:  # not Linux
        return
    group = CGROUPS / own
    while group.is_relative_to(CGROUPS):
        try:
            limit = (group / "memory.max").read_text().strip()
            used = int((group / "memory.current").read_text())
            statistics = dict(line.split() for line in (group / "memory.stat").open())
        except OSError:  # the root group has no such files
            limit = "max"
        if limit != "max":
            reclaimable = int(statistics.get("inactive_file", 0))  # cached files
            yield max(0, int(limit) - used + reclaimable)
        group = group.parent


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
