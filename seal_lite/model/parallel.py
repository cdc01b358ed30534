"""Batches shared by processes, and batches larger than the memory for activations."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather
from torch.utils.checkpoint import checkpoint


def gather_batch(x: torch.Tensor) -> torch.Tensor:
    """x (b, ...) of every process, one below another, with gradients; of one process x itself.

    All that is cheap is then done on the whole batch by each process alike, BatchNorm's statistics
    and the contrast's negatives included; only the vision encoder's work is shared out.
    """
    return torch.cat(all_gather(x)) if dist.is_available() and dist.is_initialized() else x


def map_chunks(function, x: torch.Tensor, size: int) -> torch.Tensor:
    """function(x) for x (b, ...), `size` rows at a time (0: all), of which the backward pass holds
    one part's activations at a time: it computes them again (Chen et al., 2016)."""
    if not size or size >= len(x):
        return function(x)
    return torch.cat([checkpoint(function, part, use_reentrant=False) for part in x.split(size)])
