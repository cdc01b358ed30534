"""Several processes share every batch."""

from __future__ import annotations

import datetime

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env, reduce
from torch import nn

from seal_lite.encoders.devices import resolve_device

PATIENCE = datetime.timedelta(days=1)  # all processes wait until the last has filled its cache


def join_processes(device: str | torch.device = "auto") -> tuple[PartialState, torch.device]:
    """Return accelerate's state of all processes, and the device of this one.

    A single process runs on `device`, as `resolve_device` reads it. Under `accelerate launch` each
    process has the device that it was launched for.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    if state.num_processes > 1:
        return state, resolve_device(state.device)
    return state, resolve_device(device)


def share_of(state: PartialState | None) -> tuple[int, int]:
    """Return (index, number) of the equal parts of the work that this process does.

    None is a single process.
    """
    if state is None:
        return 0, 1
    return state.process_index, state.num_processes


def all_agree(state: PartialState | None, answer: bool) -> bool:
    """Return whether the answer is yes in every process; None is a single one."""
    if state is None or state.num_processes == 1:
        return answer
    votes = reduce(torch.tensor(float(answer), device=state.device), "sum")
    return round(votes.item()) == state.num_processes


def average_gradients(state: PartialState, model: nn.Module) -> None:
    """Replace all gradients by their mean over processes, in one message.

    A single process keeps its own. LoRA's gradients are few, so that nothing overlaps with the
    backward pass.
    """
    if state.num_processes == 1:
        return
    trained = []
    gradients = []
    for parameter in model.parameters():
        if parameter.grad is not None:
            trained.append(parameter)
            gradients.append(parameter.grad.flatten())
    mean = reduce(torch.cat(gradients), "mean")  # (all gradients,)
    parts = mean.split([len(gradient) for gradient in gradients])
    for parameter, part in zip(trained, parts, strict=True):
        parameter.grad = part.view_as(parameter)
