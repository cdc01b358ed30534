"""Batches shared by processes, and batches larger than the memory for activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.utils.checkpoint import checkpoint


def gather_batch(x: Tensor) -> Tensor:
    """Return the rows x (b, ...) of all processes, one below another, with gradients.

    A single process gets x itself. Everything cheap is then computed on the whole batch by each
    process alike, BatchNorm's statistics and the contrast's negatives included. The processes share
    only the vision encoder's work.
    """
    if dist.is_available() and dist.is_initialized():
        return torch.cat(all_gather(x))
    return x


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Let each process draw random numbers of its own; afterwards all draw the same ones again.

    So each part of a batch has its own dropout masks, while what every process computes on the
    whole batch stays alike. A single process draws as ever.
    """
    if not (dist.is_available() and dist.is_initialized()):
        yield
        return
    cards = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards):
        seed = int(torch.randint(2**62, ()))  # the same in all processes
        torch.manual_seed(seed + dist.get_rank())
        yield


def map_chunks(function: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """Return function(x) for x (b, ...), computed `size` rows at a time; 0 means all at once.

    The backward pass computes the activations of each chunk again, and so holds those of one chunk
    at a time (Chen et al., 2016).
    """
    if not size or size >= len(x):
        return function(x)
    chunks = [checkpoint(function, chunk, use_reentrant=False) for chunk in x.split(size)]
    return torch.cat(chunks)
