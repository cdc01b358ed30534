"""The prefix cache: activations that no training step changes are computed once per view.

Only the last blocks are tuned, so the activations before them are a fixed function of weights,
pixels and view. The cache stores them as one array (views, n, ...) for each section. The file's
name holds a hash of all three, so that no activations of another encoder are read, and a checksum
of its content, so that a damaged file is noticed.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256 as new_sha256
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import psutil
import torch
from tqdm import tqdm

from seal_lite.encoders.views import make_views
from seal_lite.encoders.vision import VisionEncoder, hash_tensors
from seal_lite.io import sha256
from seal_lite.locks import lock
from seal_lite.terminal import printable

if TYPE_CHECKING:
    from seal_lite.data.section import Section
    from seal_lite.data.shards import Shard

log = logging.getLogger(__name__)
ROOM = 0.8  # the share of free disk or memory that the cache may take
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
        they are absent. A file appears only when it is complete. None keeps arrays in memory.
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
        self.folder = None if folder is None else Path(folder)
        self.batch_size = batch_size
        self.progress = progress
        self.weights = self._hash_prefix()

    def key(self, section: Section | Shard) -> str:
        """Return what names a section's activations, as 32 hex digits.

        It is a hash of the prefix's weights, the normalisation, the views, and the section's
        names, counts and pixels.
        """
        return new_sha256((self.weights + section.digest).encode()).hexdigest()[:32]

    def fits(self, sections: Sequence[Section | Shard]) -> bool:
        """Return whether there is room for the sections, and log the size of their activations.

        Nothing is written. Sections that are in the folder already need no room.
        """
        absent = [section for section in sections if not self._files(section)]
        n_images = sum(len(section.rows) for section in absent) * self.n_views
        image_bytes = self._run_prefix(sections[0], range(1), 0).nbytes
        size = n_images * image_bytes
        if self.folder is None:
            place = "memory"
            free = psutil.virtual_memory().available
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            place = str(self.folder)
            free = shutil.disk_usage(self.folder).free
        fits = size <= ROOM * free
        message = f"prefix cache: {size / 1e9:.3g} GB in {place} with {free / 1e9:.3g} GB free"
        if not fits:
            message += ": too large, so the prefix runs in every step"
        log.info(message)
        return fits

    def activations(self, section: Section | Shard) -> np.ndarray:
        """Return the activations of a section of n patches.

        Returns
        -------
        array (n_views, n, ...)
            In the encoder's working precision; `as_tensor` reads it.
        """
        if self.folder is None:
            return self._compute(section, np.empty)
        path = self.folder / self.key(section)
        with lock(path):  # one of several processes computes, the others wait
            stored = self._intact_file(section)
            if stored is None:
                stored = self._write(section, self.folder)
            return np.load(stored, mmap_mode="r")

    def _hash_prefix(self) -> str:
        """Hash the views, the prefix's weights and the normalisation.

        LoRA wraps modules of the tail only. The tail is left out, so that all runs share the cache.
        """
        encoder = self.encoder
        tail = tuple(f"{stage}." for stage in encoder.tail_stages)
        tensors = {**encoder.base.state_dict(), "mean": encoder.mean, "std": encoder.std}
        fixed = {name: tensor for name, tensor in tensors.items() if not name.startswith(tail)}
        salt = repr((encoder.prefix_stages, self.n_views, self.jitter))
        if encoder.working_dtype != torch.float32:
            salt += str(encoder.working_dtype)
        return hash_tensors(fixed, salt=salt)

    def _files(self, section: Section | Shard) -> list[Path]:
        """List the section's files in the folder, intact or not."""
        if self.folder is None:
            return []
        return list(self.folder.glob(f"{self.key(section)}-*.npy"))

    def _intact_file(self, section: Section | Shard) -> Path | None:
        """Return the section's file, if there is one; remove files that lack their checksum."""
        for path in self._files(section):
            if _is_intact(path):
                return path
            log.warning("%s: is damaged; it is computed again", path)
            path.unlink()
        return None

    def _write(self, section: Section | Shard, folder: Path) -> Path:
        """Compute the section's activations into a file that appears when it is complete."""
        part = folder / f".{self.key(section)}.part"
        try:
            allocate = partial(np.lib.format.open_memmap, part, "w+")
            array = cast(np.memmap, self._compute(section, allocate))
            array.flush()
            path = folder / f"{self.key(section)}-{_checksum(part)}.npy"
            os.replace(part, path)
            _INTACT.add(_version(path))
        finally:  # the disk may be full
            part.unlink(missing_ok=True)
        return path

    def _compute(self, section: Section | Shard, allocate: Callable[..., np.ndarray]) -> np.ndarray:
        """Compute the activations of all views in an array from ``allocate(dtype=, shape=)``."""
        n = len(section.rows)
        size = self.batch_size or self.encoder.batch_size(section.patches.shape[1])
        starts = range(0, n, size)
        batches = [(view, start) for view in range(self.n_views) for start in starts]
        title = printable(f"cache {section.name}")
        array = None
        for view, start in tqdm(batches, title, disable=not self.progress, leave=False):
            rows = range(start, min(start + size, n))
            hidden = self._run_prefix(section, rows, view)  # (b, ...)
            if array is None:
                array = allocate(dtype=hidden.dtype, shape=(self.n_views, n, *hidden.shape[1:]))
            array[view, rows.start : rows.stop] = hidden
        assert array is not None, "a section has patches"
        return array

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
    """Return 16 hex digits of a file's SHA-256."""
    return sha256(path)[:16]
