"""Several processes share a batch."""

from __future__ import annotations

import torch


def average_gradients(accelerator, model):
    """The mean over processes of all gradients, in one message; LoRA's are few. Alone: nothing."""
    if accelerator.num_processes == 1:
        return
    held = [p for p in model.parameters() if p.grad is not None]
    mean = accelerator.reduce(torch.cat([p.grad.flatten() for p in held]), "mean")
    for p, part in zip(held, mean.split([p.numel() for p in held]), strict=True):
        p.grad = part.view_as(p)
