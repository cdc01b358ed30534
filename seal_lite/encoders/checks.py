"""Checks of a built encoder: its weights, its cut, and the gradients of LoRA."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from seal_lite.encoders.networks.row import OWN_ROWS
from seal_lite.errors import InputError, reading

if TYPE_CHECKING:
    from seal_lite.encoders.vision import VisionEncoder

CUT_STEPS = 2  # steps by which the second size is larger at which a cut is checked


def fingerprint(encoder: VisionEncoder) -> str:
    """Return a short checksum of the embedding of a fixed image.

    The embedding is rounded, so that different machines agree. The encoder must be on the CPU.

    Returns
    -------
    str
        16 hex digits.
    """
    row = encoder.row
    px = row.px
    if not row.fixed:
        px = 64 if row.px_step == 1 else 10 * row.px_step
    ramp = torch.linspace(0, 1, px * px * 3).reshape(1, px, px, 3).permute(0, 3, 1, 2)
    image = torch.sin(9 * ramp) ** 2  # (1, 3, px, px)
    with torch.inference_mode():
        embedding = encoder(image)[0]  # (dim,)
    scale = embedding.abs().mean().item()
    rounded = np.round(embedding.double().numpy() / scale, 2) + 0.0  # + 0.0: no negative zero
    text = " ".join(f"{value:.2f}" for value in rounded)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_fingerprint(encoder: VisionEncoder) -> None:
    """Raise an `InputError` where the weights are not those that the row was written for."""
    row = encoder.row
    measured = fingerprint(encoder)
    if measured != row.fingerprint:
        raise InputError(
            f"backbone {row.name}: its embedding of the fixed image has fingerprint {measured}, "
            f"not {row.fingerprint}; reinstall its weights"
        )


def check_cut(encoder: VisionEncoder) -> None:
    """Check that a network can be cut at its first tuned block, at all sizes that it reads.

    Raises
    ------
    InputError
        Prefix and tail fail, differ from the network's own forward pass, or give what is not
        finite; or the embedding is not as wide as the row states.
    """
    row = encoder.row
    fault = f"its stages {encoder.prefix_stages} do not follow one another"
    remedy = f"use another, or name its blocks in a row of your own ({OWN_ROWS})"
    sizes = [row.px] if row.fixed else [row.px, row.px + CUT_STEPS * row.px_step]
    for px in sizes:
        image = torch.rand(1, 3, px, px, generator=torch.Generator().manual_seed(0))
        with reading(f"backbone {row.name}", fault=fault, remedy=remedy), torch.inference_mode():
            embedding = encoder(image)
            expected = encoder.every_layer(image)[encoder.feature_layer]
        if embedding.shape[1] != row.dim:
            wrong = f"its embedding has {embedding.shape[1]} dimensions, not {row.dim}"
        elif not embedding.isfinite().all():
            wrong = "its embedding is not finite"
        elif not torch.allclose(embedding, expected, rtol=1e-3, atol=1e-3):
            wrong = f"cut at its first tuned block it gives another embedding at {px} px"
        else:
            continue
        raise InputError(f"backbone {row.name}: {wrong}; {remedy}")


def check_gradients(encoder: VisionEncoder) -> None:
    """Raise an `InputError` where LoRA has no effect on a layer that it adapts.

    What is built in inference mode cannot be trained, and is not checked.
    """
    if not encoder.adapted or torch.is_inference_mode_enabled():
        return
    row = encoder.row
    with torch.no_grad():
        hidden = encoder.prefix(torch.zeros(1, 3, row.px, row.px))  # (1, ...)
    with torch.enable_grad():
        encoder.tail(hidden).sum().backward()
    check_adapted(encoder)
    encoder.zero_grad(set_to_none=True)


def check_adapted(encoder: VisionEncoder) -> None:
    """Check, after a backward pass, that it reached every layer that LoRA adapts.

    Raises
    ------
    InputError
        Where it did not. The message names the first such layer.
    """
    silent = encoder.layers_without_gradient()
    if silent:
        raise InputError(
            f"backbone {encoder.row.name}: no gradient reaches LoRA on {len(silent)} of "
            f"{len(encoder.adapted)} layers, the first {silent[0]}; set lora_rank=0, or leave them "
            f"out of `lora` in a row of your own ({OWN_ROWS})"
        )
