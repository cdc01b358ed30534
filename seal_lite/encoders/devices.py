"""Where a network runs, and in which precision.

Every function that runs a network takes ``device="auto"`` and follows the one rule of
`resolve_device`. Parameters stay float32; `resolve_precision` decides the type in which
`torch.autocast` computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from seal_lite.errors import InputError

ON_CPU = 16  # images at once
SIZES = (16, 32, 64, 128, 256, 512, 1024)
GAIN = 1.05  # what the next size has to gain
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return a device; "auto" is CUDA where there is a card, then MPS, then the CPU.

    On a card, float32 matrix products may use TF32 from then on.

    Parameters
    ----------
    device
        "auto", or a name that `torch.device` takes, such as "cpu" or "cuda:1".

    Raises
    ------
    InputError
        No such device is known, or this machine has none.
    """
    if device == "auto":
        device = _best_device()
    try:
        resolved = torch.device(device)
    except RuntimeError:
        resolved = None
    if resolved is None or resolved.type not in ("cuda", "mps", "cpu"):
        raise InputError(f"--device {device}: is unknown; use auto, cuda, mps or cpu")
    if resolved.type == "cuda":
        if not has_cuda():
            raise InputError(f"--device {device}: torch finds no CUDA card here; use auto or cpu")
        last = torch.cuda.device_count() - 1
        if resolved.index is not None and resolved.index > last:
            raise InputError(f"--device {device}: the last card here is cuda:{last}; use that")
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"--device {device}: torch finds no MPS device here; use auto or cpu")
    return resolved


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the type in which a network computes on a device.

    Parameters
    ----------
    precision
        "no" (float32), "bf16" or "fp16". "auto" is bf16 on a card that has it, fp16 on any other
        card, such as a T4, and float32 elsewhere.
    device
        Where the network runs.

    Raises
    ------
    InputError
        For any other word.
    """
    if precision in DTYPES:
        return DTYPES[precision]
    if precision != "auto":
        known = ", ".join(DTYPES)
        raise InputError(f"precision {precision}: is unknown; use auto, {known}")
    if device.type != "cuda":
        return torch.float32
    # An emulated bf16 would be slower than float32.
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float16


def computing_in(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a network on `device` computes in `dtype`."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)


def synchronize(device: torch.device) -> None:
    """Wait until a card has done all that it was sent."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(device: torch.device) -> float:
    """Return the time in seconds, when all that was sent to the device is done."""
    synchronize(device)
    return time.perf_counter()


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor in memory from which a card copies while it computes; others need none."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def find_batch_size(
    network: Callable[[torch.Tensor], Any], *, px: int, device: torch.device
) -> int:
    """Return the number of images that a device runs at once at close to its best rate.

    A CPU is as fast with few. On a card the number doubles until that gains less than `GAIN`, or
    memory ends.

    Parameters
    ----------
    network
        Takes images (b, 3, px, px).
    px
        Edge of the images.
    device
        Where the network runs.
    """
    if device.type != "cuda":
        return ON_CPU
    best = ON_CPU
    best_rate = 0.0
    with torch.inference_mode():
        for size in SIZES:
            try:
                rate = _images_per_second(network, torch.zeros(size, 3, px, px, device=device))
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                break
            if rate < GAIN * best_rate:
                break
            best = size
            best_rate = rate
    return best


def _images_per_second(network: Callable[[torch.Tensor], Any], images: torch.Tensor) -> float:
    """Return the rate of a network on a batch of images; the first run warms up."""
    network(images)
    started = clock(images.device)
    network(images)
    return len(images) / (clock(images.device) - started)


def has_cuda() -> bool:
    """Return whether torch finds a CUDA card."""
    return torch.cuda.is_available()


def _best_device() -> str:
    """Return the type of the fastest device of this machine."""
    if has_cuda():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
