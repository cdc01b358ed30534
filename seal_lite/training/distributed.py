"""Several processes share every batch."""

from __future__ import annotations

import datetime

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import nn

from seal_lite.config import Config

PATIENCE = datetime.timedelta(days=1)  # the other processes wait while the first fills the cache


def make_accelerator(config: Config) -> Accelerator:
    """Return accelerate's object for device, precision and processes of this run."""
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(mixed_precision=config.precision, kwargs_handlers=[patience])


def average_gradients(accelerator: Accelerator, model: nn.Module) -> None:
    """Replace all gradients by their mean over processes, in one message.

    A single process keeps its own. LoRA's gradients are few, so that nothing overlaps with the
    backward pass.
    """
    if accelerator.num_processes == 1:
        return
    trained = []
    gradients = []
    for parameter in model.parameters():
        if parameter.grad is not None:
            trained.append(parameter)
            gradients.append(parameter.grad.flatten())
    mean = accelerator.reduce(torch.cat(gradients), "mean")  # (all gradients,)
    parts = mean.split([len(gradient) for gradient in gradients])
    for parameter, part in zip(trained, parts, strict=True):
        parameter.grad = part.view_as(parameter)
