"""Hooks that end a network's forward pass at a block, or start it there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Stopped(Exception):  # noqa: N818 (no error: it carries a result)
    """Ends a forward pass; carries the activations (b, ...) that the pass was run for."""

    def __init__(self, activations: torch.Tensor) -> None:
        super().__init__()
        self.activations = activations


def stop_before(module: nn.Module, args: tuple) -> None:
    """Forward pre-hook: end the pass with the block's input."""
    raise Stopped(args[0])


def stop_after(module: nn.Module, args: tuple, output: Any) -> None:
    """Forward hook: end the pass with the block's output."""
    raise Stopped(hidden_states(output))


class Feed:
    """Forward pre-hook: replaces a block's input by stored activations (b, ...)."""

    def __init__(self, activations: torch.Tensor) -> None:
        self.activations = activations

    def __call__(self, module: nn.Module, args: tuple) -> tuple:
        """Return what the block gets instead of `args`."""
        return (self.activations, *args[1:])


class Keep:
    """Forward hook: stores a block's output as ``outputs[name]``; may end the pass there."""

    def __init__(self, name: str, outputs: dict[str, torch.Tensor], *, stop: bool) -> None:
        self.name = name
        self.outputs = outputs
        self.stop = stop

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Store `output`."""
        activations = hidden_states(output)
        self.outputs[self.name] = activations
        if self.stop:
            raise Stopped(activations)


@contextmanager
def skipped(block: nn.Module, *, returns_tuple: bool) -> Iterator[None]:
    """Let a block return its input, as if it were not there, while the context lasts."""
    block.forward = _return_input_in_tuple if returns_tuple else _return_input
    try:
        yield
    finally:
        del block.forward


def _return_input(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Take the place of a block that returns its activations."""
    return x


def _return_input_in_tuple(x: torch.Tensor, *args: Any, **kwargs: Any) -> tuple:
    """Take the place of a block that returns (activations, attention weights)."""
    return x, None


def hidden_states(output: Any) -> torch.Tensor:
    """Return a block's activations, which some networks return as the first part of a tuple."""
    return output[0] if isinstance(output, tuple) else output
