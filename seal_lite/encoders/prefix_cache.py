"""The prefix cache: activations that no training step changes are computed once per view.

Only the last blocks are tuned, so the activations before them are a fixed function of weights,
pixels and view. The cache stores them as one array (views, n, ...) for each section. The file's
name holds a hash of all three, so that no activations of another encoder are read, and a checksum
of its content, so that a damaged file is noticed.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from hashlib import sha256 as new_sha256
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from seal_lite.cache import cache_folder, cache_limit, free_memory, make_room, mark_used
from seal_lite.encoders.views import make_views
from seal_lite.encoders.vision import VisionEncoder, hash_tensors
from seal_lite.io import reserve, sha256
from seal_lite.locks import lock
from seal_lite.terminal import printable

if TYPE_CHECKING:
    from seal_lite.data.section import Section
    from seal_lite.data.shards import Shard

log = logging.getLogger(__name__)
ROOM = 0.8  # the share of free disk or memory that the cache may take
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a full disk, a quota, a limit
CHECKSUM_DIGITS = 16  # of a SHA-256, in the names of files
_INTACT: set[tuple[Path, int, int]] = set()  # files checked by this process: path, size, time


class PrefixCache:
    """Activations before the first tuned block, of all views of a section's patches.

    Parameters
    ----------
    encoder
        Its prefix is run, with the weights that it has now.
    n_views
        Views 0 to ``n_views - 1`` of `make_views` are stored.
    jitter
        Standard deviation of each stain's log-scale, as in `make_views`.
    folder
        Arrays are memory-mapped from files ``<key>-<checksum>.npy`` there, and written first where
        they are absent. A file appears only when it is complete. "auto" is the common folder
        (`cache_folder`), which stays below its limit. None keeps arrays in memory.
    batch_size
        Number of images whose prefix is computed at once; None leaves it to the encoder.
    progress
        Show a progress bar.
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        *,
        n_views: int,
        jitter: float,
        folder: str | Path | None = None,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> None:
        self.encoder = encoder
        self.n_views = n_views
        self.jitter = jitter
        self.folder = None if folder is None else cache_folder(folder)
        self.batch_size = batch_size
        self.progress = progress
        self.is_full = False
        self.weights = self._hash_prefix()

    def key(self, section: Section | Shard) -> str:
        """Return what names a section's activations, as 32 hex digits.

        It is a hash of the prefix's weights, the normalisation, the views, and the section's
        names, counts and pixels.
        """
        return new_sha256((self.weights + section.digest).encode()).hexdigest()[:32]

    def fits(self, sections: Sequence[Section | Shard]) -> bool:
        """Return whether there is room for the sections, and log the size of their activations.

        Nothing is written. Sections that are in the folder already need no room, and count as used
        now, so that they stay.
        """
        absent = [section for section in sections if not self._files(section)]
        n_images = sum(len(section.rows) for section in absent) * self.n_views
        image_bytes = self._run_prefix(sections[0], range(1), 0).nbytes
        size = n_images * image_bytes
        if self.folder is None:
            place = "memory"
            free = free_memory()
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            place = str(self.folder)
            free = shutil.disk_usage(self.folder).free
            limit = cache_limit(self.folder)
            free = free if limit is None else min(free, limit)
        fits = size <= ROOM * free
        message = f"prefix cache: {size / 1e6:,.1f} MB in {place}, {free / 1e9:,.1f} GB free"
        if not fits:
            message += ": too large, so the prefix runs in every step"
        if absent:
            log.info(message)
        for section in sections:
            for path in self._files(section):
                mark_used(path)
        return fits

    def activations(self, section: Section | Shard) -> np.ndarray | None:
        """Return the activations of a section of n patches.

        Returns
        -------
        array (n_views, n, ...)
            In the encoder's working precision; `as_tensor` reads it. None where the disk has
            proved too small for them, which the log says once: then the prefix is to be run.
        """
        if self.folder is None:
            return self._compute(section)
        try:
            return self._stored(section, self.folder)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            reason = f"{self.folder}: {error.strerror}"
        log.warning("prefix cache: %s, so the prefix runs in every step", reason)
        self.is_full = True
        return None

    def activations_of_all(
        self, sections: Sequence[Section | Shard], *, share: tuple[int, int] = (0, 1)
    ) -> list[np.ndarray] | None:
        """Return the `activations` of each section, or None where those of one are not stored.

        Parameters
        ----------
        sections
            The sections, or shards of them.
        share
            (index, number) of the processes that fill the folder. Each computes its own sections
            first, every `number`-th, and then finds those of the others in the folder.
        """
        index, n_processes = share
        places = sorted(range(len(sections)), key=lambda i: (i - index) % n_processes)
        arrays = {}
        for i in places:
            array = self.activations(sections[i])
            if array is None:
                return None
            arrays[i] = array
        return [arrays[i] for i in range(len(sections))]

    def _stored(self, section: Section | Shard, folder: Path) -> np.ndarray | None:
        """Return activations from the section's file, which is written where the disk is not full.

        One of several processes computes, the others wait.
        """
        with lock(folder / self.key(section)):
            file = intact_file(folder, self.key(section))
            if file is None and self.is_full:
                return None
            if file is None:
                file = self._write(section, folder)
            mark_used(file)
            return np.load(file, mmap_mode="r")

    def _hash_prefix(self) -> str:
        """Hash the views, the prefix's weights, the normalisation, and how the network is called.

        LoRA wraps modules of the tail only. The tail is left out, so that all runs share the cache.
        """
        encoder = self.encoder
        tail = tuple(f"{stage}." for stage in encoder.tail_stages)
        tensors = {**encoder.base.state_dict(), "mean": encoder.mean, "std": encoder.std}
        fixed = {name: tensor for name, tensor in tensors.items() if not name.startswith(tail)}
        salt = repr((encoder.prefix_stages, self.n_views, self.jitter))
        if not encoder.tail_stages:  # the prefix is then the whole call
            salt += repr((encoder.row.call, encoder.row.call_args))
        if encoder.working_dtype != torch.float32:
            salt += str(encoder.working_dtype)
        return hash_tensors(fixed, salt=salt)

    def _files(self, section: Section | Shard) -> list[Path]:
        """List the section's files in the folder, intact or not."""
        if self.folder is None:
            return []
        return list(self.folder.glob(f"{self.key(section)}-*.npy"))

    def _write(self, section: Section | Shard, folder: Path) -> Path:
        """Compute the section's activations into a file that appears when it is complete.

        They are written one batch after another, after room for all is reserved: a disk that is
        full is then an `OSError`, while writing into a memory map would end the process.
        """
        part = folder / f".{self.key(section)}.part"
        try:
            with part.open("wb") as file:
                for i, hidden in enumerate(self._batches(section)):
                    if i == 0:
                        shape = (self.n_views, len(section.rows), *hidden.shape[1:])
                        make_room(folder, self.n_views * len(section.rows) * hidden[0].nbytes)
                        _begin_array(file, hidden.dtype, shape)
                    file.write(np.ascontiguousarray(hidden).data)
            path = folder / f"{self.key(section)}-{_checksum(part)}.npy"
            os.replace(part, path)
            _INTACT.add(_version(path))
        finally:  # the disk may be full
            part.unlink(missing_ok=True)
        return path

    def _compute(self, section: Section | Shard) -> np.ndarray:
        """Compute the section's activations (n_views, n, ...) in memory."""
        n = len(section.rows)
        array = None
        start = 0
        for hidden in self._batches(section):
            if array is None:
                array = np.empty((self.n_views * n, *hidden.shape[1:]), hidden.dtype)
            array[start : start + len(hidden)] = hidden
            start += len(hidden)
        assert array is not None, "a section has patches"
        return array.reshape(self.n_views, n, *array.shape[1:])

    def _batches(self, section: Section | Shard) -> Iterator[np.ndarray]:
        """Yield the activations (b, ...) of all patches, one view after another."""
        n = len(section.rows)
        size = self.batch_size or self.encoder.batch_size(section.patches.shape[1])
        starts = range(0, n, size)
        batches = [(view, start) for view in range(self.n_views) for start in starts]
        title = printable(f"cache {section.name}")
        for view, start in tqdm(batches, title, disable=not self.progress, leave=False):
            yield self._run_prefix(section, range(start, min(start + size, n)), view)

    def _run_prefix(self, section: Section | Shard, rows: range, view: int) -> np.ndarray:
        """Return the activations (b, ...) of one view of b neighbouring patches."""
        images = make_views(
            section.patches[rows.start : rows.stop],
            [section.key(i) for i in rows],
            [view] * len(rows),
            jitter=self.jitter,
            device=self.encoder.device,
        )  # (b, 3, px, px)
        with torch.inference_mode():
            return as_array(self.encoder.prefix(images).cpu())


def as_array(hidden: torch.Tensor) -> np.ndarray:
    """Return activations as an array; NumPy has no bfloat16, whose bits become uint16."""
    if hidden.dtype == torch.bfloat16:
        hidden = hidden.view(torch.uint16)
    return hidden.numpy()


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """Return the activations that `as_array` stored."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def _begin_array(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Write the header of an array in NumPy's format, and reserve room for its values."""
    descr = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    file.flush()
    reserve(file, file.tell() + math.prod(shape) * dtype.itemsize)


def intact_file(folder: Path, key: str) -> Path | None:
    """Return the file of a key in a cache folder, if there is one; remove those that are damaged.

    Its name is ``<key>-<checksum>``, with a suffix.
    """
    for path in folder.glob(f"{key}-*"):
        if _is_intact(path):
            return path
        log.warning("%s: is damaged; it is computed again", path)
        path.unlink()
    return None


def _is_intact(path: Path) -> bool:
    """Return whether a file has the checksum in its name; a process reads a file once for it."""
    if _version(path) in _INTACT:
        return True
    intact = path.stem.endswith(_checksum(path))
    if intact:
        _INTACT.add(_version(path))
    return intact


def _version(path: Path) -> tuple[Path, int, int]:
    """Return what changes when a file does: path, size and time in ns."""
    status = path.stat()
    return path.absolute(), status.st_size, status.st_mtime_ns


def _checksum(path: Path) -> str:
    """Return the first hex digits of a file's SHA-256."""
    return sha256(path)[:CHECKSUM_DIGITS]
