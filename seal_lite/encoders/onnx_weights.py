"""Weights out of an ONNX file, for networks that are published in no other form."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import interpolate

from seal_lite.errors import InputError, reading

# An exporter names a network's own parameters as the network does, and numbers what it has folded
# or transposed. These two are the position embeddings of transformers' DINOv2.
CLASS_POSITION = "onnx::Concat_1957"
PATCH_POSITIONS = "onnx::Reshape_1962"
# From a layer's name in transformers to that in timm.
RENAMED = {
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}


def fill_dinov2(model: nn.Module, *, package: str, file: str) -> None:
    """Load transformers' DINOv2 out of an ONNX file into timm's, strictly.

    Parameters
    ----------
    model
        A DINOv2 of timm, at any image size.
    package, file
        A package that is installed, and the file's path inside it. The package is not imported,
        so that what its code needs can be missing.

    Raises
    ------
    InputError
        Where the file cannot be read, or does not hold these weights.
    ModuleNotFoundError
        Where the package, or that which reads ONNX, is not installed.
    """
    path = find_file(package, file)
    stored = read_weights(path)
    with reading(path, fault="does not hold the network's weights", remedy="reinstall its package"):
        grid = int(model.patch_embed.grid_size[0])  # type: ignore[union-attr,index]
        model.load_state_dict(_rename_dinov2(stored, grid), strict=True)


def find_file(package: str, file: str) -> Path:
    """Return the path of a package's file without importing the package.

    Raises
    ------
    ModuleNotFoundError
        Where the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)
    return Path(spec.submodule_search_locations[0]) / file


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of an ONNX file by name.

    The exporter transposes the matrix of a linear layer and drops its name. It is found by the
    named bias that is added to its product, and returned as that layer's ``weight``.

    Raises
    ------
    InputError
        Where the file cannot be read.
    """
    import onnx  # here: only these rows need it

    with reading(path, remedy="reinstall its package"):
        graph = onnx.load(path).graph
        tensors = {}
        for initializer in graph.initializer:
            array = onnx.numpy_helper.to_array(initializer)
            tensors[initializer.name] = torch.from_numpy(array.copy())
    matrix_of = {}  # the name of a product, and of its matrix
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            matrix_of[node.output[0]] = node.input[1]
    for node in graph.node:
        if node.op_type != "Add":
            continue
        bias, product = node.input
        if bias.endswith(".bias") and product in matrix_of:
            name = bias.removesuffix("bias") + "weight"
            tensors[name] = tensors.pop(matrix_of[product]).T.contiguous()  # (out, in)
    return tensors


def _rename_dinov2(stored: dict[str, torch.Tensor], grid: int) -> dict[str, torch.Tensor]:
    """Return timm's names and tensors of transformers' DINOv2 at grid x grid patches."""
    projection = "backbone.embeddings.patch_embeddings.projection"
    weights = {
        "cls_token": stored["backbone.embeddings.cls_token"],
        "pos_embed": _join_positions(stored, grid),
        "patch_embed.proj.weight": stored[f"{projection}.weight"],
        "patch_embed.proj.bias": stored[f"{projection}.bias"],
        "norm.weight": stored["backbone.layernorm.weight"],
        "norm.bias": stored["backbone.layernorm.bias"],
    }
    for name, tensor in stored.items():
        match = re.fullmatch(r"backbone\.encoder\.layer\.(\d+)\.(.*)", name)
        if match is None or ".attention.attention." in name:
            continue
        block, layer = match.groups()
        for old, new in RENAMED.items():
            layer = layer.replace(old, new)
        weights[f"blocks.{block}.{layer}"] = tensor
    for name in list(stored):
        match = re.fullmatch(r"backbone\.encoder\.layer\.(\d+)\.(.*\.)query\.(\w+)", name)
        if match is None:
            continue
        block, attention, kind = match.groups()
        prefix = f"backbone.encoder.layer.{block}.{attention}"
        parts = [stored[f"{prefix}{part}.{kind}"] for part in ("query", "key", "value")]
        weights[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    return weights


def _join_positions(stored: dict[str, torch.Tensor], grid: int) -> torch.Tensor:
    """Return the positions of the class token and of grid x grid patches, (1, tokens, width).

    They are resampled as transformers does it: bicubic, without antialiasing.
    """
    for name in (CLASS_POSITION, PATCH_POSITIONS):
        if name not in stored:
            raise InputError(f"has no {name}")
    patches = stored[PATCH_POSITIONS]  # (1, side * side, width)
    side = round(patches.shape[1] ** 0.5)
    table = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, width, side, side)
    resampled = interpolate(table, size=(grid, grid), mode="bicubic", align_corners=False)
    positions = resampled.flatten(2).transpose(1, 2)  # (1, grid * grid, width)
    return torch.cat([stored[CLASS_POSITION], positions], 1)
