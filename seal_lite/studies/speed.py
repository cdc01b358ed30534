"""How fast this machine trains, embeds and probes, from half a minute of the real work."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from seal_lite.data.genes import GenePanel
from seal_lite.encoders.devices import clock
from seal_lite.encoders.embedding import embed_patches
from seal_lite.evaluation.scores import genes_to_score, probe_scores
from seal_lite.model.seal import SEAL
from seal_lite.studies.costs import peak_memory_gb
from seal_lite.training.distributed import join_processes
from seal_lite.training.loader import Activations, Pairs
from seal_lite.training.loop import train

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from seal_lite.config import Config
    from seal_lite.data.section import Section

STEPS = 4  # batches an epoch of the trial; the first epoch warms up and does not count
FEATURE_SETS = 8  # that an evaluation probes: tuned, shuffled, frozen, best layer, four controls
SECONDS_OF_REPORT = 15.0  # figures
SECONDS_A_SPOT = 0.004  # of two UMAPs


@dataclass(frozen=True)
class Speed:
    """What `measure_speed` found.

    Parameters
    ----------
    training_pairs
        Pairs a second in training, from the cache.
    cached_patches
        Views a second of patches whose frozen blocks are run, to fill the cache.
    embedded_patches
        Patches a second that are embedded.
    seconds_a_probed_pair
        Time to score all features of a fold, divided by the number of its pairs.
    cache_bytes
        Bytes of a view of a patch in the cache.
    run_bytes
        Bytes of what a training leaves: the weights that it tunes.
    memory_bytes
        Highest memory of the process so far: it held all patches, a batch and its gradients, and
        the matrices of a probe.
    seconds_of_report
        Time of the figures and the UMAPs.
    """

    training_pairs: float
    cached_patches: float
    embedded_patches: float
    seconds_a_probed_pair: float
    cache_bytes: float
    run_bytes: float
    memory_bytes: float
    seconds_of_report: float


def measure_speed(
    sections: Sequence[Section], config: Config, *, device: str | torch.device = "auto"
) -> Speed:
    """Measure the speed of each kind of work on a few batches of the study's own patches.

    Parameters
    ----------
    sections
        All sections of the study.
    config
        The recipe.
    device
        Where the networks run (`resolve_device`).
    """
    trial = dataclasses.replace(config, epochs=2, gene_warmup_epochs=0, n_views=1)
    few = _first_pairs(sections, STEPS * config.batch_size)
    n_pairs = sum(len(section.rows) for section in few)
    state, place = join_processes(device)
    panel = GenePanel.from_config(few, trial)
    model = SEAL.build(panel, trial, device=place)

    # Not part of the speed: the first batches, and on a card the search for their size.
    model.encoder.batch_size(trial.patch_px)
    embed_patches(model.encoder, few[0].patches[:1])

    started = clock(place)
    activations = Activations(model.encoder, few, trial, cached=True, progress=False)
    cached = n_pairs / (clock(place) - started)
    pairs = Pairs(few, panel, trial, activations)
    history = train(model, pairs, state, progress=False)

    started = clock(place)
    patches = np.concatenate([section.patches for section in few])
    embed_patches(model.encoder, patches)
    embedded = n_pairs / (clock(place) - started)

    stored = activations.stored or []
    n_spots = sum(len(section.rows) for section in sections)
    return Speed(
        training_pairs=history[-1]["pairs_per_s"],
        cached_patches=cached,
        embedded_patches=embedded,
        seconds_a_probed_pair=_probe_seconds(sections, model.encoder.row.dim),
        cache_bytes=sum(array.nbytes for array in stored) / n_pairs,
        run_bytes=sum(tensor.nbytes for tensor in model.trainable().values()),
        memory_bytes=1e9 * peak_memory_gb(),
        seconds_of_report=SECONDS_OF_REPORT + SECONDS_A_SPOT * n_spots,
    )


def _first_pairs(sections: Sequence[Section], n: int) -> list[Section]:
    """Return sections with their first pairs only, n together or all that there are."""
    share = min(1.0, n / sum(len(section.rows) for section in sections))
    few = []
    for section in sections:
        size = int(np.ceil(share * len(section.rows)))
        few.append(
            dataclasses.replace(section, rows=section.rows[:size], patches=section.patches[:size])
        )
    return few


def _probe_seconds(sections: Sequence[Section], dim: int) -> float:
    """Return the time to probe all features of a fold, over the number of its pairs."""
    rng = np.random.default_rng(0)
    train, test = list(sections[:-1]), [sections[-1]]
    genes = genes_to_score([section.adata for section in train])
    x = [rng.standard_normal((len(s.rows), dim)).astype(np.float32) for s in sections]
    started = time.perf_counter()
    probe_scores(train, test, genes, train_x=x[:-1], test_x=x[-1:])
    seconds = time.perf_counter() - started
    return FEATURE_SETS * seconds / sum(len(section.rows) for section in sections)
