"""Pairs per second of the plain loop and of the cached one, on the same views, in one run."""

from __future__ import annotations

import itertools
import time

import torch

from .config import Config
from .genes import GenePanel
from .model import SEAL
from .train import Pairs


def throughput(sections, config: Config, *, steps: int = 6) -> dict:
    """Time `steps` training steps of both loops, in turn, step by step.

    Returns pairs_per_s of each, their ratio, the largest difference of the two losses (same
    weights, same views), and the seconds that filling the cache took.
    """
    panel = GenePanel.from_config(sections, config)
    model = SEAL.build(panel, config)
    started = time.perf_counter()
    loops = {"cached": Pairs(sections, panel, config, model.encoder, cached=True)}
    cache_seconds = time.perf_counter() - started
    loops["plain"] = Pairs(sections, panel, config, model.encoder, cached=False)
    seconds, losses = dict.fromkeys(loops, 0.0), {k: [] for k in loops}
    batches = {k: itertools.chain.from_iterable(map(p.epoch, itertools.count()))
               for k, p in loops.items()}  # fmt: skip
    for step in range(steps + 1):  # the first step warms up and is not counted
        for name, batch in batches.items():
            started = time.perf_counter()
            torch.manual_seed(step)  # the same dropout in both
            model.train()
            terms = model(*next(batch))
            model.zero_grad()
            terms["loss"].backward()
            seconds[name] += (time.perf_counter() - started) * (step > 0)
            losses[name].append(terms["loss"].item())
    rate = {k: steps * config.batch_size / s for k, s in seconds.items()}
    gap = max(abs(a - b) for a, b in zip(losses["plain"], losses["cached"], strict=True))
    return {
        "pairs_per_s": rate,
        "ratio": rate["cached"] / rate["plain"],
        "largest_loss_difference": gap,
        "cache_seconds": cache_seconds,
        "pairs": len(loops["plain"].keys),
        "threads": torch.get_num_threads(),
    }
