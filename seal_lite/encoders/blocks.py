"""A network's blocks: which they are, how to do without the last, and hooks at their borders.

The hooks end a network's forward pass at a block, or start it there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from seal_lite.errors import InputError


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


def find_blocks(net: nn.Module, *, inside: str = "") -> list[str]:
    """Return the names of a network's transformer blocks or convolution stages, in order.

    These are siblings of one class, in a list or numbered alike (``layer1``, ``layer2``). Of
    several such groups, the one with the most weights is taken.

    Parameters
    ----------
    net
        The network.
    inside
        Dotted name of the module to search; empty for all.

    Returns
    -------
    list of str
        Empty where a network has no such siblings.
    """
    best: list[str] = []
    most_weights = 0
    for name, module in net.get_submodule(inside).named_modules():
        parent = _join(inside, name)
        for siblings in _numbered_siblings(module):
            blocks = [_join(parent, child) for child in siblings]
            n_weights = sum(_count_weights(net.get_submodule(block)) for block in blocks)
            if n_weights > most_weights:
                best = blocks
                most_weights = n_weights
    return best


def _numbered_siblings(module: nn.Module) -> list[list[str]]:
    """Group the children with weights and numbered names by class; keep groups of two or more."""
    groups: dict[tuple[str, type], list[str]] = {}
    for name, child in module.named_children():
        if _count_weights(child):
            key = (name.rstrip("0123456789"), type(child))
            groups.setdefault(key, []).append(name)
    return [names for names in groups.values() if len(names) > 1 and names[0][-1].isdigit()]


def _count_weights(module: nn.Module) -> int:
    """Count the entries of all weight tensors."""
    return sum(parameter.numel() for parameter in module.parameters())


def _join(parent: str, child: str) -> str:
    """Return the dotted name of a child of a module; the root's name is empty."""
    return ".".join(name for name in (parent, child) if name)


def remove_last_blocks(net: nn.Module, blocks: list[str], *, depth: float) -> list[str]:
    """Remove a network's last blocks, in place; what follows the blocks then reads those left.

    Parameters
    ----------
    net
        The network.
    blocks
        Names of its blocks, in order (`find_blocks`).
    depth
        The share of them that stays, 0 to 1.

    Returns
    -------
    list of str
        Names of the blocks that are left; at least two.

    Raises
    ------
    InputError
        The blocks are no list of their own, so that none can be left out.
    """
    n_left = max(2, round(depth * len(blocks)))  # one alone is not found again
    parent = net.get_submodule(blocks[0].rpartition(".")[0]) if blocks else net
    if not isinstance(parent, nn.ModuleList | nn.Sequential) or len(parent) != len(blocks):
        raise InputError(f"depth={depth}: the network's blocks are no list; set depth=1")
    del parent[n_left:]
    return blocks[:n_left]
