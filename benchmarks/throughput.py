"""Pairs and patches per second, beside the limit that the network itself sets.

    python benchmarks/throughput.py '{"data": HER2ST, "sections": ["C2"], "backbone": ..., ...}'

prints one line of JSON; `bench.py` runs each job in a process of its own. The limit of training is
the tuned blocks' forward and backward pass on activations that are in place. Where the loop
streams, the frozen blocks' pass on images in place is part of it. The limit of embedding is the
bare forward pass. Loop and limit take turns, so whatever else the machine does hits both.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from seal_lite import SEAL, Config, load_sections
from seal_lite.data.genes import GenePanel
from seal_lite.encoders.devices import clock
from seal_lite.encoders.embedding import embed_patches, image_batches
from seal_lite.encoders.registry import config_for
from seal_lite.training.callbacks import Callback
from seal_lite.training.distributed import join_processes
from seal_lite.training.loader import Activations, Pairs
from seal_lite.training.loop import train

EPOCHS = 4  # the first warms up and does not count
ROUNDS = 3


class Limit(Callback):
    """After each epoch, the clock on the blocks alone, in as many steps as the epoch had."""

    def __init__(self, pairs: Pairs, images: torch.Tensor | None) -> None:
        self.steps = pairs.steps
        self.images = images  # (b, 3, px, px) where the frozen blocks are part of the limit
        self.hidden, _ = next(pairs.epoch(0))  # (b, ...)
        self.seconds: list[float] = []

    def on_epoch_end(self, model: SEAL, history: list[dict[str, Any]]) -> None:
        """Run the blocks forward and backward."""
        hidden = self.hidden
        started = clock(hidden.device)
        for _ in range(self.steps):
            if self.images is not None:
                with torch.no_grad():
                    hidden = model.encoder.prefix(self.images)
            model.encoder.tail(hidden).sum().backward()
        self.seconds.append(clock(hidden.device) - started)


def share(rates: list[float], limits: list[float]) -> dict[str, float]:
    """Return the median of both rates, and the median over turns of their ratio."""
    ratios = np.array(rates) / np.array(limits)
    medians = (float(np.median(values)) for values in (rates, limits, ratios))
    return dict(zip(("rate", "limit", "share"), medians, strict=True))


def training(sections: list[Any], config: Config, *, cached: bool) -> dict[str, float]:
    """Return pairs per second of the loop, of the limit, and their ratio."""
    panel = GenePanel.from_config(sections, config)
    state, device = join_processes()
    model = SEAL.build(panel, config, device=device)
    activations = Activations(model.encoder, sections, config, cached=cached, progress=False)
    pairs = Pairs(sections, panel, config, activations)
    images = None
    if not cached:
        images = first_images(sections, config.batch_size).to(device)
    limit = Limit(pairs, images)
    history = train(model, pairs, state, callbacks=[limit], progress=False)
    rates = [epoch["pairs_per_s"] for epoch in history]
    limits = [pairs.steps * config.batch_size / seconds for seconds in limit.seconds]
    return share(rates[1:], limits[1:])


def first_images(sections: list[Any], n: int) -> torch.Tensor:
    """Return the first n patches as images (n, 3, px, px)."""
    patches = np.concatenate([section.patches for section in sections])
    return next(image_batches(patches[:n], batch_size=n))


def embedding(sections: list[Any], config: Config) -> dict[str, float]:
    """Return patches per second of `embed_patches`, of the bare forward pass, and their ratio."""
    encoder = SEAL.build(GenePanel.from_config(sections, config), config).encoder.eval()
    patches = np.concatenate([section.patches for section in sections])
    images = first_images(sections, config.batch_size).to(encoder.device)

    def run_limit() -> None:
        with torch.inference_mode(), encoder.merged():
            for _ in range(0, len(patches), len(images)):
                encoder(images)

    steps = -(-len(patches) // len(images))
    rates = []
    limits = []
    for _ in range(ROUNDS):
        limits.append(steps * len(images) / seconds_of(run_limit, encoder.device))
        run_embedding = partial(embed_patches, encoder, patches)
        rates.append(len(patches) / seconds_of(run_embedding, encoder.device))
    return share(rates, limits)


def seconds_of(function: Callable[[], Any], device: torch.device) -> float:
    """Return how long a call takes."""
    started = clock(device)
    function()
    return clock(device) - started


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Measure training, cached and streamed, and embedding, with the job's settings."""
    data, names = job.pop("data"), job.pop("sections")
    recipe = config_for(job.pop("backbone", Config.backbone), job.pop("preset", "default"))
    config = replace(recipe, **{"n_views": 2, "epochs": EPOCHS, **job})
    size = {"patch_um": config.patch_um, "patch_px": config.patch_px}
    sections = load_sections(data, names, **size)
    return {
        "cached": training(sections, config, cached=True),
        "streamed": training(sections, config, cached=False),
        "embedding": embedding(sections, config),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
