"""Other batches and other profiles than the method's, which `variants.py` lists by name.

`trainer` makes of a kind of batches, a loss, or profiles what stands in the place of `finetune`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from seal_lite import SEAL, Config, Section, finetune
from seal_lite.data.genes import MIN_STD, GenePanel, smoothing
from seal_lite.data.section import read_counts
from seal_lite.encoders.embedding import embed_patches
from seal_lite.evaluation.targets import patch_targets
from seal_lite.model.losses import PairOutputs, seal_loss
from seal_lite.training.distributed import join_processes
from seal_lite.training.loader import Activations, Pairs
from seal_lite.training.loop import Loss, train

History = list[dict[str, Any]]
Trainer = Callable[..., tuple[SEAL, History]]  # takes sections, config, panel and cache_dir
Profiles = Callable[[Sequence[Section], GenePanel, Config], list[np.ndarray]]  # each (n, genes)

N_COMPONENTS = 20  # of a denoised profile


def trainer(
    batches: type[Pairs] = Pairs, *, loss: Loss = seal_loss, profiles: Profiles | None = None
) -> Trainer:
    """Return a training that has the images and steps of `finetune`.

    Parameters
    ----------
    batches
        What makes the batches of an epoch.
    loss
        What they are trained with.
    profiles
        What stands beside the patches in place of their measured profiles.
    """

    def train_on(
        sections: Sequence[Section], config: Config, panel: GenePanel, *, cache_dir: Path, **_: Any
    ) -> tuple[SEAL, History]:
        state, device = join_processes()
        model = SEAL.build(panel, config, device=device)
        activations = Activations(
            model.encoder, sections, config, cache_dir=cache_dir, progress=False
        )
        pairs = batches(sections, panel, config, activations)
        if profiles is not None:
            pairs.expression = list(profiles(sections, panel, config))
        history = train(model, pairs, state, loss=loss, progress=False)
        return model.eval(), history

    return train_on


class TwoViews(Pairs):
    """Batches of two views of each patch, in place of one view and its expression.

    A batch holds as many images as one of `Pairs`, and an epoch as many batches.
    """

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches whose second half shows the patches of the first in other views."""
        rng = np.random.default_rng([self.config.seed, number])
        order = rng.permutation(len(self))
        n_patches = self.config.batch_size // 2
        for step in range(self.steps):
            patches = order[step * n_patches : (step + 1) * n_patches]
            first = rng.integers(self.config.n_views, size=n_patches)
            step_to_other = rng.integers(1, self.config.n_views, size=n_patches)
            second = (first + step_to_other) % self.config.n_views
            yield self.batch(np.tile(patches, 2), np.concatenate([first, second]))


def view_loss(outputs: PairOutputs, config: Config) -> dict[str, Tensor]:
    """Ask which image of the batch is the other view of a patch (SimCLR, Chen et al., 2020)."""
    z = normalize(outputs.image_projection, dim=1)  # (b, d)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / outputs.temperature).masked_fill(itself, -math.inf)  # (b, b)
    other_view = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return {"loss": cross_entropy(logits, other_view)}


class OneSection(Pairs):
    """Batches of one section each, so that no pair is told from another by its section.

    A section's incomplete last batch is left out.
    """

    @property
    def steps(self) -> int:
        """Number of batches of an epoch."""
        return sum(n // self.config.batch_size for n in self.sizes)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the sections' batches in random order."""
        rng = np.random.default_rng([self.config.seed, number])
        size = self.config.batch_size
        batches: list[np.ndarray] = []
        for start, n in zip(self.starts, self.sizes, strict=False):
            order = start + rng.permutation(n)
            batches += [order[i : i + size] for i in range(0, n - size + 1, size)]
        for i in rng.permutation(len(batches)):
            views = rng.integers(self.config.n_views, size=size)
            yield self.batch(batches[i], views)


def without_images(sections: Sequence[Section], panel: GenePanel) -> np.ndarray:
    """Return profiles (m, genes) of the sections of other patients, read without their images."""
    root = Path(sections[0].adata.uns["image_path"]).parents[4]
    files = sorted(root.glob("data/ST-cnts/*.tsv.gz"))
    names = [path.name.removesuffix(".tsv.gz") for path in files]
    others = [read_counts(root, name) for name in names if name[0] != sections[0].patient]
    return np.concatenate([panel.transform(adata) for adata in others])


def denoised(sections: Sequence[Section], panel: GenePanel, config: Config) -> list[np.ndarray]:
    """Return profiles as a linear gene model of these and 24 more sections describes them."""
    measured = [section.expression(panel) for section in sections]
    model = PCA(N_COMPONENTS, random_state=config.seed)
    model.fit(np.concatenate([*measured, without_images(sections, panel)]))
    return [model.inverse_transform(model.transform(x)).astype(np.float32) for x in measured]


def residuals(sections: Sequence[Section], panel: GenePanel, config: Config) -> list[np.ndarray]:
    """Return z-scored analytic Pearson residuals, on which depth has little effect."""
    profiles = []
    for section in sections:
        x = patch_targets(section, panel.genes)["pearson_residuals"]  # (n, genes)
        z = (x - x.mean(0)) / np.maximum(x.std(0), MIN_STD)
        profiles.append(np.clip(z, -config.clip, config.clip).astype(np.float32))
    return profiles


def train_with_teacher(
    sections: Sequence[Section], config: Config, panel: GenePanel, *, cache_dir: Path, **_: Any
) -> tuple[SEAL, History]:
    """Finetune on the mean of the measured profiles and a teacher's.

    A section's teacher is finetuned on the other sections. Its prediction is averaged over the spot
    and its neighbours, which have half of the weight.
    """
    targets = []
    histories: list[dict[str, Any]] = []
    for section in sections:
        others = [other for other in sections if other is not section]
        teacher, history = finetune(
            others, config, panel=panel, cache_dir=cache_dir, progress=False
        )
        histories += history
        embedding = embed_patches(teacher.encoder, section.patches)
        around = smoothing(section.adata, share=0.5)[section.rows][:, section.rows]
        weight = np.asarray(around.sum(1))  # a neighbour without a patch has no prediction
        predicted = (around @ teacher.predict_genes(embedding)) / weight
        targets.append(((section.expression(panel) + predicted) / 2).astype(np.float32))

    student = trainer(profiles=lambda *_: targets)
    model, history = student(sections, config, panel, cache_dir=cache_dir)
    return model, [*histories, *history]
