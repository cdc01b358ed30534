"""LoRA on the matrices of the tuned blocks."""

from __future__ import annotations

import re
from types import MethodType

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import layer as lora_layer
from torch import nn

from seal_lite.encoders.registry import Backbone
from seal_lite.errors import InputError


def _adapted(net: nn.Module, row: Backbone, tuned: list[str], rank, alpha, dropout):
    """The network with LoRA in the tuned blocks, and the names of the layers that have it."""
    matrices = [n for n in _inside(net, tuned, row.lora) if _is_matrix(net, n)]
    if not matrices:
        remedy = f"install {row.extra}" if row.extra else "tune more blocks"
        raise InputError(f"backbone {row.name}: LoRA finds no layer in {tuned}; {remedy}")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        modules_to_save=_inside(net, tuned, row.whole),
        target_modules="|".join(map(re.escape, matrices)),
    )
    net = get_peft_model(net, config)
    layers = [m for m in net.modules() if isinstance(m, LoraLayer)]
    if len(layers) != len(matrices):
        raise RuntimeError(f"LoRA hit {len(layers)} modules, expected {len(matrices)}")
    for layer in (m for m in layers if isinstance(m, lora_layer.Conv2d)):
        if dropout:
            # Drop whole channels: single positions would average out in the pooled tap, and
            # drawing their masks cost more than the rest of the step.
            layer.lora_dropout["default"] = nn.Dropout2d(dropout)
        else:  # one pass over the feature map instead of three: a third off the step
            layer.forward = MethodType(_merged_forward, layer)
    return net, matrices


def _inside(net: nn.Module, blocks: list[str], pattern: str) -> list[str]:
    """Names of the modules in these blocks whose name there matches `pattern`."""
    names = [
        (name, block)
        for block in blocks
        for name, _ in net.named_modules()
        if name.startswith(f"{block}.")
    ]
    return [name for name, block in names if re.fullmatch(pattern, name[len(block) + 1 :])]


def _is_matrix(net: nn.Module, name: str) -> bool:
    """Has the module one matrix that LoRA can adapt? (A MultiheadAttention hides its own.)"""
    parent, module = net.get_submodule(name.rpartition(".")[0]), net.get_submodule(name)
    return (
        isinstance(module, nn.Linear | nn.Conv2d)
        and getattr(module, "groups", 1) == 1
        and not isinstance(parent, nn.MultiheadAttention)
    )


def _merged_forward(layer, x: torch.Tensor) -> torch.Tensor:
    """A LoRA convolution as one convolution with W + (alpha / r) B A; the same up to rounding."""
    if layer.disable_adapters or layer.merged:
        return lora_layer.Conv2d.forward(layer, x)
    base = layer.base_layer
    weight = base.weight + layer.get_delta_weight("default")
    return nn.functional.conv2d(
        x, weight, base.bias, base.stride, base.padding, base.dilation, base.groups
    )
