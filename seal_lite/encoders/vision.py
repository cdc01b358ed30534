"""A vision encoder cut in two: a frozen prefix, and last blocks that LoRA adapts, read at a tap.

The cut works on any network whose blocks follow one another: its own forward pass runs, and hooks
stop it, or feed it, at a block. No class and no branch per encoder.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from seal_lite.encoders.lora import _adapted
from seal_lite.encoders.registry import BACKBONES, Backbone, backbone_row, load_backbone
from seal_lite.errors import InputError, reading


class _Reached(Exception):
    """Ends a forward pass at the block where its result is known."""


def find_blocks(net: nn.Module) -> list[str]:
    """Names of the transformer blocks or convolution stages, in order.

    Those are the siblings of one class, in a list or numbered alike (`layer1`, `layer2`), that hold
    most of the network's weights. Returns an empty list where there are none.
    """
    best, most = [], 0
    for name, module in net.named_modules():
        alike: dict[tuple, list[str]] = {}
        for child, block in module.named_children():
            if any(True for _ in block.parameters()):
                alike.setdefault((child.rstrip("0123456789"), type(block)), []).append(child)
        for found in (v for v in alike.values() if len(v) > 1 and v[0][-1:].isdigit()):
            blocks = [f"{name}.{child}".lstrip(".") for child in found]
            weights = sum(p.numel() for b in blocks for p in net.get_submodule(b).parameters())
            if weights > most:
                best, most = blocks, weights
    return best


class VisionEncoder(nn.Module):
    """A frozen prefix, a tail that LoRA may adapt, and a pooled tap.

    `prefix` then `tail` is what `forward` does, in two halves; everything before the first tuned
    block is in the prefix. net: the network that `row`, a `Backbone`, describes. The last
    `tune_blocks` blocks up to the tap are tuned: by LoRA (Hu et al., 2021; peft's) of this `rank`,
    scaled by `alpha` / `rank`, with `dropout`; with rank 0 all their weights are.

    Attributes: `row`; `tap`, `prefix_stages`, `tail_stages`, names of stages; `adapted`, names of
    the layers that have LoRA. Raises `InputError` where there are fewer blocks, or LoRA finds no
    layer in them.
    """

    def __init__(
        self,
        net: nn.Module,
        row: Backbone,
        *,
        tune_blocks: int = 0,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.15,
    ):
        super().__init__()
        stages = find_blocks(net.get_submodule(row.blocks))
        stages = [f"{row.blocks}.{s}".lstrip(".") for s in stages]
        stages = stages[: stages.index(row.tap) + 1] if row.tap else [*stages, "output"]
        self.tap, n = stages[-1], len(stages) - (not row.tap)
        if tune_blocks > n:
            raise InputError(f"tune_blocks={tune_blocks}: {row.name} has {n} blocks up to its tap")
        split = n - tune_blocks if tune_blocks else len(stages)
        self.row, self.prefix_stages, self.tail_stages = row, stages[:split], stages[split:]
        self.net, self.adapted = net, []
        tuned = [s for s in self.tail_stages if s != "output"]
        if rank and tuned:
            self.net, self.adapted = _adapted(net, row, tuned, rank, alpha, dropout)
        for stage in tuned if not rank else ():  # no LoRA: every weight of the tuned blocks
            net.get_submodule(stage).requires_grad_(True)
        self.register_buffer("mean", torch.tensor(row.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(row.std).view(3, 1, 1), persistent=False)

    @property
    def base(self) -> nn.Module:
        """The network itself (with LoRA layers in place where it was adapted)."""
        return self.net.get_base_model() if self.adapted else self.net

    def base_digest(self) -> str:
        """SHA-256 of the weights that finetuning does not change: those of the network as loaded.

        In 64 hex digits. Without LoRA the tuned blocks are left out, for theirs are gone.
        """
        weights = {}
        for name, tensor in self.base.state_dict().items():
            if not re.search(r"\.(lora_|modules_to_save\.)", name):
                weights[re.sub(r"\.(base_layer|original_module)\.", ".", name)] = tensor
        gone, digest = () if self.adapted else self.tail_stages, hashlib.sha256()
        for name in sorted(n for n in weights if not n.startswith(tuple(f"{s}." for s in gone))):
            digest.update(name.encode() + weights[name].cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def train(self, mode: bool = True):
        """BatchNorm and every other frozen layer stay in eval; only LoRA's dropout follows."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, LoraLayer):
                module.lora_dropout.train(mode)
        self.training = mode
        return self

    def prefix(self, images: torch.Tensor) -> torch.Tensor:
        """Images (b, 3, h, w) in [0, 1] -> activations (b, ...) before the first tuned block.

        Where no block is tuned, they are the tap's output, as `pool` takes it.
        """
        found = []

        def stop(module, args, output=None):
            found.append(args[0] if output is None else output)
            raise _Reached

        with ExitStack() as undo:
            if self.tail_stages:
                first = self._stage(self.tail_stages[0])
                undo.enter_context(first.register_forward_pre_hook(stop))
            elif self.row.tap:
                undo.enter_context(self._stage(self.row.tap).register_forward_hook(stop))
            with suppress(_Reached):
                found.append(self._call((images - self.mean) / self.std))
        return found[0]

    def tail(self, x: torch.Tensor) -> torch.Tensor:
        """Activations (b, ...) that `prefix` returned -> pooled embedding (b, dim)."""
        return self.pool(list(self._outputs(x).values())[-1])

    def taps(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The pooled embedding behind the prefix and behind every block of the tail, by stage.

        x (b, ...) as for `tail`. Returns {stage: (b, its width)}, the tap last.
        """
        return {stage: self.pool(out) for stage, out in self._outputs(x).items()}

    def _outputs(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Activations -> {stage: its output}, by the network's own forward pass on a blank image,
        in which the blocks of the prefix pass on what they get and the first tuned one gets `x`."""
        found = {(self.prefix_stages or ["stem"])[-1]: x}
        if not self.tail_stages:
            return found
        blocks = [s for s in self.tail_stages if s != "output"]

        def feed(module, args):
            return (_channels_last(x), *args[1:])

        def keep(stage, module, args, output):
            found[stage] = output[0] if self.row.tuple_blocks else output
            if stage == self.row.tap:
                raise _Reached

        with ExitStack() as undo:
            for stage in self.prefix_stages:
                undo.enter_context(_passing_on(self._stage(stage), self.row.tuple_blocks))
            undo.enter_context(self._stage(blocks[0]).register_forward_pre_hook(feed))
            for stage in blocks:
                hook = self._stage(stage).register_forward_hook
                undo.enter_context(hook(partial(keep, stage)))
            with suppress(_Reached):
                blank = torch.zeros(1, 3, self.row.px, self.row.px, device=x.device)
                found["output"] = self._call(blank)
        return found

    def _stage(self, name: str) -> nn.Module:
        return self.base.get_submodule(name)

    def _call(self, images: torch.Tensor) -> torch.Tensor:
        """What the row's `call` returns for normalised images."""
        out = getattr(self.base, self.row.call)(_channels_last(images), **self.row.call_args)
        out = getattr(out, "last_hidden_state", out)
        return out[0] if isinstance(out, tuple) else out

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """A stage's output -> (b, its width), as the row's `embedding` says.

        x: (b, tokens, width), a feature map in the network's layout, or (b, width), which is
        returned.
        """
        if x.ndim == 2:
            return x
        if x.ndim == 4:  # a feature map
            return x.mean((1, 2) if getattr(self.base, "output_fmt", "") == "NHWC" else (2, 3))
        k, rule = self.row.prefix_tokens, self.row.embedding  # (b, tokens, width)
        if rule == "mean" or not k:
            return x[:, k:].mean(1)
        return torch.cat([x[:, 0], x[:, k:].mean(1)], 1) if rule == "class+mean" else x[:, 0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (b, 3, h, w) in [0, 1] -> embeddings (b, dim): `prefix`, then `tail`.

        h and w are the row's `px` where it is `fixed`.
        """
        return self.tail(self.prefix(images))


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """The layout in which depthwise convolutions are fast on a CPU."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


@contextmanager
def _passing_on(block: nn.Module, as_tuple: bool):
    """The block returns its input for as long as this lasts."""
    block.forward = lambda x, *_, **__: (x, None) if as_tuple else x
    try:
        yield
    finally:
        del block.forward


def fingerprint(encoder: VisionEncoder) -> str:
    """A short checksum of the embedding of a fixed image, rounded so that machines agree.

    16 hex digits of SHA-256. The encoder must be on the CPU.
    """
    px = encoder.row.px if encoder.row.fixed else 64
    ramp = torch.linspace(0, 1, px * px * 3).reshape(1, px, px, 3).permute(0, 3, 1, 2)
    with torch.inference_mode():
        out = encoder(torch.sin(9 * ramp) ** 2)[0]
    digits = np.round(out.double().numpy() / out.abs().mean().item(), 2) + 0.0
    return hashlib.sha256(" ".join(f"{d:.2f}" for d in digits).encode()).hexdigest()[:16]


def build_encoder(name: str, *, pretrained: bool = True, seed: int = 0, **lora) -> VisionEncoder:
    """A ready encoder by name, in eval mode; `pretrained=False` gives the random-init control.

    `seed` draws LoRA's first weights, and the control's. `lora` takes tune_blocks, rank, alpha,
    dropout of `VisionEncoder`. Raises `InputError` as that does, where the weights cannot be had or
    give the row's fixed image another embedding than they should, and for a network without a row
    whose blocks do not follow one another.
    """
    row = backbone_row(name)
    net = load_backbone(row, pretrained=pretrained, seed=seed)
    if pretrained and row.fingerprint:
        found = fingerprint(VisionEncoder(net, row))
        if found != row.fingerprint:
            said = f"its embedding of the fixed input is {found}, not {row.fingerprint}"
            raise InputError(f"backbone {name}: {said}; reinstall its weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # LoRA's A matrices
        encoder = VisionEncoder(net, row, **lora).eval()
    if name not in BACKBONES:  # is it a network that can be cut at all?
        fault = f"its stages {encoder.prefix_stages} do not follow one another"
        remedy = "use another, or name its blocks in a row of backbones.toml"
        with reading(f"backbone {name}", fault=fault, remedy=remedy), torch.inference_mode():
            encoder(torch.zeros(1, 3, row.px, row.px))
    return encoder
