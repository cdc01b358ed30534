"""LoRA on the matrices of the tuned blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import layer as lora_layer
from torch import nn

from seal_lite.encoders.networks.row import Backbone
from seal_lite.errors import InputError

ADAPTER = "default"  # peft's name for the one that `get_peft_model` adds


def adapt_blocks(
    net: nn.Module,
    row: Backbone,
    blocks: list[str],
    *,
    rank: int,
    alpha: float,
    dropout: float,
) -> tuple[nn.Module, list[str]]:
    """Return the network with LoRA in some of its blocks.

    Parameters
    ----------
    net
        The frozen network, which is changed in place.
    row
        Its patterns ``lora`` and ``whole`` name the layers, inside a block, that LoRA adapts and
        that are tuned whole.
    blocks
        Names of the blocks.
    rank, alpha, dropout
        As in `VisionEncoder`.

    Returns
    -------
    net : Module
        The ``peft`` model around the network.
    matrices : list of str
        Names of the layers that LoRA adapts.

    Raises
    ------
    InputError
        LoRA finds no layer in the blocks, or another number in a block than the row states.
    """
    candidates = _modules_inside(net, blocks, row.lora)
    matrices = [name for name in candidates if _is_matrix(net, name)]
    if not matrices:
        remedy = f"install {row.extra}" if row.extra else "tune more blocks"
        raise InputError(f"backbone {row.name}: LoRA finds no layer in {blocks}; {remedy}")
    if row.lora_per_block:
        _check_counts(row, blocks, matrices)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft takes any float
        lora_dropout=dropout,
        modules_to_save=_modules_inside(net, blocks, row.whole),
        target_modules="|".join(re.escape(name) for name in matrices),
    )
    adapted = get_peft_model(net, config)
    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    if len(layers) != len(matrices):
        raise RuntimeError(f"LoRA hit {len(layers)} modules, expected {len(matrices)}")
    for layer in layers:
        if isinstance(layer, lora_layer.Conv2d):
            _speed_up_convolution(layer, dropout)
    return adapted, matrices


@contextmanager
def merged(net: nn.Module) -> Iterator[None]:
    """Run a network without LoRA's layers meanwhile: each matrix is W + (alpha / rank) B A.

    That is faster, and equal up to rounding. The matrices themselves come back afterwards, to the
    bit. What is computed inside has no gradient.
    """
    layers: list[Any] = [layer for layer in net.modules() if isinstance(layer, LoraLayer)]
    originals: dict[Any, torch.Tensor] = {}
    try:
        for layer in layers:
            if layer.merged:
                continue
            weight = layer.get_base_layer().weight
            originals[layer] = weight.data
            weight.data = weight.data + layer.get_delta_weight(ADAPTER).detach()
            layer.merged_adapters = [ADAPTER]
        yield
    finally:
        for layer, original in originals.items():
            layer.get_base_layer().weight.data = original
            layer.merged_adapters = []


def _check_counts(row: Backbone, blocks: list[str], matrices: list[str]) -> None:
    """Raise an `InputError` where LoRA finds another number of layers than the row states.

    Another version of the network's package may name them otherwise. The others would be tuned, and
    the run would lose the rest without a word.
    """
    for block in blocks:
        n_found = sum(name.startswith(f"{block}.") for name in matrices)
        if n_found != row.lora_per_block:
            remedy = f"install {row.extra}" if row.extra else "correct `lora` in its row"
            raise InputError(
                f"backbone {row.name}: LoRA finds {n_found} layers in {block}, "
                f"not {row.lora_per_block}; {remedy}"
            )


def _modules_inside(net: nn.Module, blocks: list[str], pattern: str) -> list[str]:
    """List the modules of these blocks whose name inside the block matches `pattern`."""
    matching = []
    for block in blocks:
        for name, _ in net.get_submodule(block).named_modules():
            if name and re.fullmatch(pattern, name):
                matching.append(f"{block}.{name}")
    return matching


def _is_matrix(net: nn.Module, name: str) -> bool:
    """Return whether a module has one matrix that LoRA can adapt.

    A depthwise filter is none, and an ``nn.MultiheadAttention`` does not call its own.
    """
    module = net.get_submodule(name)
    parent = net.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        return False
    if isinstance(module, nn.Conv2d):
        return module.groups == 1
    return isinstance(module, nn.Linear)


def _speed_up_convolution(layer: lora_layer.Conv2d, dropout: float) -> None:
    """Make an adapted convolution cheaper than ``peft`` does."""
    if dropout:
        # Whole channels are dropped. Single positions would average out in the pooled feature
        # layer, and to draw their masks took longer than the rest of the step.
        layer.lora_dropout[ADAPTER] = nn.Dropout2d(dropout)
    else:
        # One pass over the feature map instead of three takes a third off the step.
        layer.forward = MethodType(_merged_forward, layer)  # type: ignore[method-assign]


def _merged_forward(layer: lora_layer.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Run an adapted convolution as one with W + (alpha / rank) B A; equal up to rounding."""
    if layer.disable_adapters or layer.merged:
        return lora_layer.Conv2d.forward(layer, x)
    base: Any = layer.base_layer
    weight = base.weight + layer.get_delta_weight(ADAPTER)  # (out, in, kh, kw)
    return nn.functional.conv2d(
        x, weight, base.bias, base.stride, base.padding, base.dilation, base.groups
    )
