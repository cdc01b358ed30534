"""All training pairs, and the batches that an epoch makes of them: from the cache, or streamed."""

from __future__ import annotations

import numpy as np
import torch

from seal_lite.config import Config
from seal_lite.data.genes import GenePanel
from seal_lite.encoders.prefix_cache import PrefixCache
from seal_lite.encoders.views import make_views
from seal_lite.errors import InputError


def check_batch_size(sections, config: Config, *, processes: int = 1):
    """An `InputError` where all pairs are fewer than a batch, or it cannot be shared equally."""
    n, b = sum(len(s.rows) for s in sections), config.batch_size
    if n < b:
        raise InputError(f"{n} training pairs are fewer than batch_size={b}; add some or lower it")
    if b % processes:
        raise InputError(f"batch_size={b}: is no multiple of {processes} processes; set one")


class Pairs:
    """All training pairs, and their batches as (prefix activations, expression).

    With `cached=True` activations come from the frozen-prefix cache, if there is room for it
    (`PrefixCache.fits`); otherwise pairs are streamed, and the prefix runs in every step. Both see
    the same views and give the same losses. `shuffle_pairs` breaks the pairing within each
    section: the control that every gain is measured against.

    sections: `Section`s or `Shard`s. encoder: the `VisionEncoder` whose prefix is run, `chunk`
    images at a time (0: the whole batch). cache_dir: the cache's folder; with None it is in memory.
    share: (which, of how many) equal parts of every batch is this process's. Of `config`, the batch
    size, seed, views and jitter count. Raises `InputError` where pairs are fewer than a batch, and
    where a batch has no such parts. Its length is the number of pairs; their order is that of the
    sections.
    """

    def __init__(
        self,
        sections,
        panel: GenePanel,
        config: Config,
        encoder,
        *,
        cached=True,
        chunk=0,
        cache_dir=None,
        shuffle_pairs=False,
        share=(0, 1),
        progress=True,
    ):
        sizes = [len(s.rows) for s in sections]
        check_batch_size(sections, config, processes=share[1])
        self.sections, self.config, self.encoder = sections, config, encoder
        self.chunk, self.share = chunk or config.batch_size, share
        self.ends = np.cumsum(sizes)
        rng = np.random.default_rng(config.seed)  # whose expression stands beside a patch
        self.partner = np.concatenate(
            [rng.permutation(n) if shuffle_pairs else np.arange(n) for n in sizes]
        )
        self.expression = [s.expression(panel) for s in sections]
        self.cache = None
        if cached:
            cache = PrefixCache(
                encoder,
                n_views=config.n_views,
                jitter=config.stain_jitter,
                folder=cache_dir,
                progress=progress,
            )
            self.cache = [cache.activations(s) for s in sections] if cache.fits(sections) else None

    def __len__(self) -> int:
        return int(self.ends[-1])

    def epoch(self, number: int):
        """Yield batches in an order, and with views, that depend on (seed, epoch) alone.

        A batch is (prefix activations (b, ...), expression (b, genes)), b this process's part of
        the batch size. The order is a full shuffle, for a row of a shard is read as fast as its
        neighbour; what is left over at the end is dropped.
        """
        rng = np.random.default_rng([self.config.seed, number])
        order = rng.permutation(len(self))
        views = rng.integers(self.config.n_views, size=len(order))
        b, (part, parts) = self.config.batch_size, self.share
        for i in range(0, len(order) - b + 1, b):  # the last, smaller batch is dropped
            mine = slice(i + b // parts * part, i + b // parts * (part + 1))
            yield self.batch(order[mine], views[mine])

    def batch(self, index, views):
        """Prefix activations (b, ...) of these views (b,) of pairs (b,), and their expression."""
        of = np.searchsorted(self.ends, index, side="right")
        rows = index - np.r_[0, self.ends][of]
        x = [self.expression[s][j] for s, j in zip(of, self.partner[index], strict=True)]
        return self._hidden(of, rows, views), torch.from_numpy(np.stack(x))

    def _hidden(self, of, rows, views):
        if self.cache is not None:
            stored = [self.cache[s][v, j] for s, j, v in zip(of, rows, views, strict=True)]
            return torch.from_numpy(np.stack(stored))
        at = [(self.sections[s], j) for s, j in zip(of, rows, strict=True)]
        images = make_views(
            np.stack([s.patches[j] for s, j in at]),
            [s.key(j) for s, j in at],
            views,
            jitter=self.config.stain_jitter,
            device=next(self.encoder.parameters()).device,
        )
        with torch.no_grad():
            return torch.cat([self.encoder.prefix(part) for part in images.split(self.chunk)])
