"""The frozen-prefix cache: what no step can change is computed once per view.

Only the last blocks adapt, so the activations before them are a fixed function of weights, pixels
and view. They are stored per section as one array (views, spots, ...) named by a hash of all three,
so a stale file cannot be picked up, and by a checksum of the file, so a damaged one cannot either.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from tqdm import tqdm

from seal_lite.encoders.views import make_views
from seal_lite.encoders.vision import VisionEncoder
from seal_lite.io import lock, sha256

log = logging.getLogger(__name__)
ROOM = 0.8  # of what is free, on disk or in memory, may be taken


class PrefixCache:
    """Activations before the first tuned block, of all views of a section's patches.

    encoder: the `VisionEncoder` whose prefix is run, as it is now. Views 0 to `n_views` - 1 are
    those of `make_views`, with `jitter` the sd of each stain's log-scale; `batch_size` images are
    computed at once. With a `folder` they are memory-mapped from (or first written to)
    `<hash>-<checksum>.npy`, which appears only when complete; a damaged one is made anew.
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        *,
        n_views: int,
        jitter: float,
        folder=None,
        batch_size: int = 16,
        progress: bool = True,
    ):
        self.encoder, self.n_views, self.jitter = encoder, n_views, jitter
        self.folder = None if folder is None else Path(folder)
        self.batch_size, self.progress = batch_size, progress
        h = hashlib.sha256(repr((encoder.prefix_stages, n_views, jitter)).encode())
        # LoRA wraps only tail modules; they are left out so that every run shares the cache.
        tail = tuple(f"{s}." for s in encoder.tail_stages)
        scale = {"mean": encoder.mean, "std": encoder.std}
        for name, tensor in (encoder.base.state_dict() | scale).items():
            if not name.startswith(tail):
                h.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        self.weights = h.hexdigest()

    def key(self, section) -> str:
        """SHA-256 over prefix weights, normalisation, views and the section (names, counts,
        pixels): its first 32 hex digits."""
        return hashlib.sha256((self.weights + section.digest).encode()).hexdigest()[:32]

    def _files(self, section) -> list[Path]:
        return [] if self.folder is None else [*self.folder.glob(f"{self.key(section)}-*.npy")]

    def _prefix(self, section, rows: range, view: int) -> np.ndarray:
        images = make_views(
            section.patches[rows.start : rows.stop],
            [section.key(i) for i in rows],
            [view] * len(rows),
            jitter=self.jitter,
            device=next(self.encoder.parameters()).device,
        )
        with torch.inference_mode():
            return self.encoder.prefix(images).float().cpu().numpy()

    def fits(self, sections) -> bool:
        """Is there room for these sections? Says the size, before anything is written.

        What is in the folder already needs no more.
        """
        absent = [s for s in sections if not self._files(s)]
        size = sum(len(s.rows) for s in absent) * self.n_views
        size *= self._prefix(sections[0], range(1), 0).nbytes
        if self.folder is None:
            where, free = "memory", psutil.virtual_memory().available
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            where, free = self.folder, shutil.disk_usage(self.folder).free
        room = size <= ROOM * free
        log.info(
            "prefix cache: %.3g GB in %s with %.3g GB free%s",
            size / 1e9,
            where,
            free / 1e9,
            "" if room else ": too large, so the prefix runs in every step",
        )
        return room

    def activations(self, section) -> np.ndarray:
        """Activations (n_views, n, ...) float32 of a `Section` or `Shard` of n patches."""
        if self.folder is None:
            return self._computed(section, np.empty)
        with lock(self.folder / self.key(section)):  # of several processes one computes
            for path in self._files(section):
                if path.stem.endswith(sha256(path)[:16]):
                    return np.load(path, mmap_mode="r")
                log.warning("%s: is damaged; it is made anew", path)
                path.unlink()
            part = self.folder / f".{self.key(section)}.part"
            try:
                self._computed(section, partial(np.lib.format.open_memmap, part, "w+")).flush()
                path = self.folder / f"{self.key(section)}-{sha256(part)[:16]}.npy"
                os.replace(part, path)
            finally:  # above all on a full disk
                part.unlink(missing_ok=True)
            return np.load(path, mmap_mode="r")

    def _computed(self, section, empty):
        """All activations, written into an array that `empty(dtype=, shape=)` has made."""
        n, out = len(section.rows), None
        jobs = [(v, i) for v in range(self.n_views) for i in range(0, n, self.batch_size)]
        for v, i in tqdm(jobs, f"cache {section.name}", disable=not self.progress, leave=False):
            rows = range(i, min(i + self.batch_size, n))
            hidden = self._prefix(section, rows, v)
            if out is None:
                out = empty(dtype=np.float32, shape=(self.n_views, n, *hidden.shape[1:]))
            out[v, rows.start : rows.stop] = hidden
        return out
