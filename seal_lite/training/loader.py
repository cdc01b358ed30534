"""All training pairs, and the batches that an epoch makes of them: from the cache, or streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from seal_lite.config import Config
from seal_lite.data.genes import GenePanel
from seal_lite.data.section import Section
from seal_lite.data.shards import Shard
from seal_lite.encoders.devices import pinned
from seal_lite.encoders.prefix_cache import PrefixCache, as_tensor
from seal_lite.encoders.views import Views, augment
from seal_lite.encoders.vision import VisionEncoder
from seal_lite.errors import InputError
from seal_lite.io import read_ahead
from seal_lite.training.distributed import all_agree, share_of
from seal_lite.training.provenance import Shuffle

Sections = Sequence[Section] | Sequence[Shard]


@dataclass(frozen=True)
class ViewedPatches:
    """Patches as they are read, and the views that the device makes of them.

    Parameters
    ----------
    pixels : Tensor (b, h, w, 3) uint8
    views
        Of these patches.
    """

    pixels: Tensor
    views: Views


# What reading gives, before the device has done its part.
Read = Tensor | ViewedPatches


def check_pairs(sections: Sections, config: Config, *, processes: int = 1) -> None:
    """Check that the sections' patches are of the config's size, and that they fill a batch.

    Raises
    ------
    InputError
        Where they are not or do not, or the processes cannot share a batch equally.
    """
    for section in sections:
        px = section.patches.shape[1]
        if px != config.patch_px:
            asked = f"patch_um={config.patch_um:g}, patch_px={config.patch_px}"
            raise InputError(f"{section.name}: has patches of {px} px; load it with {asked}")
    n_pairs = sum(len(section.rows) for section in sections)
    size = config.batch_size
    if n_pairs < size:
        remedy = "add some or lower it"
        raise InputError(f"{n_pairs} training pairs are fewer than batch_size={size}; {remedy}")
    if size % processes:
        raise InputError(f"batch_size={size}: is no multiple of {processes} processes; set one")


def check_extra_expression(extra_expression: np.ndarray | None, panel: GenePanel) -> None:
    """Check that profiles without an image, if there are any, have the panel's genes.

    Raises
    ------
    InputError
        Where they are no array (m, genes).
    """
    if extra_expression is None:
        return
    n_genes = len(panel.genes)
    if extra_expression.ndim != 2 or extra_expression.shape[1] != n_genes:
        shape = f"extra_expression: has shape {extra_expression.shape}"
        raise InputError(f"{shape}; give (m, {n_genes}), as `panel.transform` returns it")


class Activations:
    """Activations before the first tuned block, of any view of any patch.

    They are read from the prefix cache where that has room for them (`PrefixCache.fits`), and
    computed for every batch where not. Both give the same views and so the same losses.

    Parameters
    ----------
    encoder
        The encoder whose frozen blocks are run.
    sections
        The sections or shards with the patches.
    config
        Its `n_views` and `stain_jitter` decide the views.
    state
        accelerate's state of all processes, which all read from the cache or all do not, and which
        fill the cache's folder together; None is one process.
    cached
        Whether to use the cache at all.
    cache_dir
        Folder of the cache, as `cache_folder` takes it; None keeps it in memory.
    chunk
        Number of images to compute at once; 0 means the batch size.
    progress
        Whether to show a progress bar while the cache fills.
    """

    def __init__(  # noqa: PLR0913
        self,
        encoder: VisionEncoder,
        sections: Sections,
        config: Config,
        *,
        state: PartialState | None = None,
        cached: bool = True,
        cache_dir: str | Path | None = None,
        chunk: int = 0,
        progress: bool = True,
    ) -> None:
        self.encoder = encoder
        self.sections = sections
        self.jitter = config.stain_jitter
        self.chunk = chunk or config.batch_size
        self.stored: list[np.ndarray] | None = None  # of each section (n_views, n, ...)
        if cached:
            cache = PrefixCache(
                encoder,
                n_views=config.n_views,
                jitter=config.stain_jitter,
                folder=cache_dir,
                progress=progress,
            )
            if all_agree(state, cache.fits(sections)):
                self.stored = cache.activations_of_all(sections, share=share_of(state))
                if not all_agree(state, self.stored is not None):  # a disk was full
                    self.stored = None

    @property
    def device(self) -> torch.device:
        """Where the encoder is, and so the activations."""
        return self.encoder.device

    def read(self, sections: np.ndarray, rows: np.ndarray, views: np.ndarray) -> Read:
        """Read stored activations (b, ...), or the patches that `finish` makes them of.

        No network runs, so that a thread may read ahead of the training.

        Parameters
        ----------
        sections, rows : array (b,) int
            Which section each patch is from, and its row there.
        views : array (b,) int
            Which view of it.
        """
        places = list(zip(sections, rows, strict=True))
        if self.stored is not None:
            read = [self.stored[s][v, row] for (s, row), v in zip(places, views, strict=True)]
            return pinned(as_tensor(np.stack(read)), self.device)
        patches = np.stack([self.sections[s].patches[row] for s, row in places])
        keys = [self.sections[s].key(row) for s, row in places]
        of_patches = Views.of(keys, views, jitter=self.jitter, device=self.device)
        return ViewedPatches(pinned(torch.from_numpy(patches), self.device), of_patches)

    def finish(self, read: Read) -> Tensor:
        """Return the activations (b, ...) of what `read` returned, on the encoder's device."""
        device = self.device
        if isinstance(read, Tensor):
            return read.to(device, non_blocking=True)
        pixels = read.pixels.to(device, non_blocking=True)
        images = augment(pixels, read.views)  # (b, 3, h, w)
        with torch.no_grad():
            return torch.cat([self.encoder.prefix(part) for part in images.split(self.chunk)])


class Pairs:
    """All training pairs of patch and expression, and the batches of an epoch.

    `len(pairs)` is the number of pairs; their order is that of the sections.

    Parameters
    ----------
    sections
        The sections, or shards of them.
    panel
        The genes of the expression, and their scale.
    config
        Its batch size, seed and number of views are used.
    activations
        Where the patches' activations come from.
    shuffle_pairs
        True gives each patch the profile of a random spot of its section, the same in every epoch:
        the control that every gain is measured against. "every epoch" draws it anew each time.
    extra_expression : array (m, genes) float32, optional
        z-scored profiles without an image, which `expression_epoch` visits beside the pairs' own.
    share
        (index, number) of the equal parts of each batch that this process reads.

    Raises
    ------
    InputError
        As `check_pairs` and `check_extra_expression`.
    """

    def __init__(
        self,
        sections: Sections,
        panel: GenePanel,
        config: Config,
        activations: Activations,
        *,
        shuffle_pairs: Shuffle = False,
        extra_expression: np.ndarray | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        check_pairs(sections, config, processes=share[1])
        check_extra_expression(extra_expression, panel)
        sizes = [len(section.rows) for section in sections]
        self.config = config
        self.activations = activations
        self.share = share
        self.expression = [section.expression(panel) for section in sections]
        self.sizes = sizes
        self.redraws = shuffle_pairs == "every epoch"
        self.partner = [np.arange(n) for n in sizes]  # whose expression stands beside a patch
        if shuffle_pairs:
            self._draw_partners(np.random.default_rng(config.seed))
        self.n_extra = 0
        if extra_expression is not None:  # as if it were one more section, but for its patches
            self.n_extra = len(extra_expression)
            self.expression.append(extra_expression.astype(np.float32, copy=False))
            self.partner.append(np.arange(self.n_extra))
        self.starts = np.cumsum([0, *sizes])  # of each section's pairs, and behind the last

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _draw_partners(self, rng: np.random.Generator) -> None:
        """Give each patch the profile of a random spot of its section."""
        for section, n in enumerate(self.sizes):
            self.partner[section] = rng.permutation(n)

    @property
    def steps(self) -> int:
        """Number of batches of an `epoch`."""
        return len(self) // self.config.batch_size

    @property
    def expression_steps(self) -> int:
        """Number of batches of an `expression_epoch`."""
        return (len(self) + self.n_extra) // self.config.batch_size

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of (activations (b, ...), z-scored expression (b, genes)).

        Order and views depend on (seed, `number`) alone. The order is a full shuffle, which shards
        allow: any row of theirs is read equally fast. b is this process's part of the batch size;
        an incomplete last batch is left out. A thread reads the next batch while this one trains.
        Both tensors are on the encoder's device.
        """
        rng = np.random.default_rng([self.config.seed, number])
        order = rng.permutation(len(self))
        if self.redraws:
            self._draw_partners(np.random.default_rng([self.config.seed, number, 1]))
        views = rng.integers(self.config.n_views, size=len(order))

        def read(part: slice) -> tuple[Read, Tensor]:
            return self._read(order[part], views[part])

        for patches, x in read_ahead(read, self._parts(len(order))):
            yield self.activations.finish(patches), x.to(self.device, non_blocking=True)

    def expression_epoch(self, number: int) -> Iterator[tuple[None, Tensor]]:
        """Yield batches of (None, z-scored expression (b, genes)), with the extra profiles.

        Without those the order is that of `epoch`.
        """
        rng = np.random.default_rng([self.config.seed, number])
        order = rng.permutation(len(self) + self.n_extra)
        for part in self._parts(len(order)):
            sections, rows = self._places(order[part])
            yield None, self._profiles(sections, rows).to(self.device, non_blocking=True)

    def batch(self, index: np.ndarray, views: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return activations (b, ...) and expression (b, genes) of the pairs `index` (b,).

        `views` (b,) says which view of each patch.
        """
        read, x = self._read(index, views)
        return self.activations.finish(read), x.to(self.device)

    @property
    def device(self) -> torch.device:
        """The device of the encoder, to which batches go."""
        return self.activations.device

    def _read(self, index: np.ndarray, views: np.ndarray) -> tuple[Read, Tensor]:
        """Read what `batch` needs, without running a network."""
        sections, rows = self._places(index)
        return self.activations.read(sections, rows, views), self._profiles(sections, rows)

    def _parts(self, n: int) -> Iterator[slice]:
        """Yield this process's part of every whole batch of n."""
        size = self.config.batch_size
        which, parts = self.share
        part_size = size // parts
        for first in range(0, n - size + 1, size):
            start = first + which * part_size
            yield slice(start, start + part_size)

    def _places(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which section each pair is from (b,), and its row there (b,)."""
        sections = np.searchsorted(self.starts[1:], index, side="right")
        return sections, index - self.starts[sections]

    def _profiles(self, sections: np.ndarray, rows: np.ndarray) -> Tensor:
        """Return the expression (b, genes) that stands beside these patches."""
        profiles = []
        for section, row in zip(sections, rows, strict=True):
            partner = self.partner[section][row]
            profiles.append(self.expression[section][partner])
        return pinned(torch.from_numpy(np.stack(profiles)), self.device)
