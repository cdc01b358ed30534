"""A vision encoder in two halves: frozen blocks, then tuned blocks, read at a feature layer.

`VisionEncoder.prefix` runs everything before the first tuned block, and `VisionEncoder.tail` runs
the rest. Both use the forward pass of the network itself. Hooks end that pass at a block, or start
it there. So any network whose blocks follow one another can be cut without code of its own.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from seal_lite.config import Config
from seal_lite.encoders import blocks
from seal_lite.encoders.checks import check_cut, check_fingerprint, check_gradients
from seal_lite.encoders.devices import (
    computing_in,
    find_batch_size,
    resolve_device,
    resolve_precision,
)
from seal_lite.encoders.networks.loading import load_backbone
from seal_lite.encoders.networks.row import Backbone
from seal_lite.encoders.registry import PACKAGED, backbone_row
from seal_lite.errors import InputError

OUTPUT = "output"  # the stage behind all blocks: what the network returns
ADDED_BY_PEFT = re.compile(r"\.(lora_|modules_to_save\.)")
WRAPPED_BY_PEFT = re.compile(r"\.(base_layer|original_module)\.")


class VisionEncoder(nn.Module):
    """Frozen blocks (the prefix), tuned blocks (the tail), and a pooled feature layer.

    `forward` is `prefix`, then `tail`. Everything before the first tuned block is frozen.

    Parameters
    ----------
    net
        The network that `row` describes, frozen.
    row
        Its row.
    tune_blocks
        Number of blocks to tune: the last ones up to the feature layer.
    rank
        Rank of LoRA in the tuned blocks. With 0 there is no LoRA: all their weights are tuned.
    alpha
        LoRA's update is scaled by ``alpha / rank``.
    dropout
        Dropout on the input of LoRA, in training.
    as_released
        LoRA adapts the layers that it adapts in released SEAL (`Backbone.released`).

    Attributes
    ----------
    precision : str
        As in `resolve_precision`, for prefix and tail alike; "no" unless `build_encoder` or you
        set another.
    feature_layer : str
        Name of the stage at which the embedding is read.
    prefix_stages, tail_stages : list of str
        Names of the blocks or stages in the two halves, in order.
    adapted : list of str
        Names of the layers that LoRA adapts.

    Raises
    ------
    InputError
        The network has fewer than `tune_blocks` blocks, or LoRA does not find in them what the row
        states.

    Notes
    -----
    LoRA is that of Hu et al. (2021), as implemented in ``peft``.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        net: nn.Module,
        row: Backbone,
        *,
        tune_blocks: int = 0,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.15,
        as_released: bool = False,
    ) -> None:
        super().__init__()
        if as_released:
            row = replace(row, **row.released)
        prefix_stages, tail_stages = _split_stages(net, row, tune_blocks)
        self.row = row
        self.precision = "no"
        self._batch_sizes: dict[tuple[torch.device, int], int] = {}
        self.prefix_stages = prefix_stages
        self.tail_stages = tail_stages
        self.feature_layer = [*prefix_stages, *tail_stages][-1]
        self.net: Any = net
        self.adapted: list[str] = []
        tuned = self._tuned_blocks()
        if tuned and rank:
            # peft takes seconds to import, and frozen networks do not need it.
            from seal_lite.encoders.lora import adapt_blocks

            self.net, self.adapted = adapt_blocks(
                net, row, tuned, rank=rank, alpha=alpha, dropout=dropout
            )
        elif tuned:
            for block in tuned:
                net.get_submodule(block).requires_grad_(True)
        mean = torch.tensor(row.mean).view(3, 1, 1)
        std = torch.tensor(row.std).view(3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of images: `prefix`, then `tail`.

        Parameters
        ----------
        images : Tensor (b, 3, h, w)
            In [0, 1]. The height and width are the row's ``px`` where that is ``fixed``.

        Returns
        -------
        Tensor (b, dim)
            In float32, whatever the precision inside.
        """
        hidden = self.prefix(images)  # (b, ...)
        return self.tail(hidden)  # (b, dim)

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return self.mean.device

    @property
    def working_dtype(self) -> torch.dtype:
        """The type in which prefix and tail compute, where the encoder is."""
        return resolve_precision(self.precision, self.device)

    def batch_size(self, px: int) -> int:
        """Return how many images of `px` by `px` to embed at once; on a GPU, measured once."""
        key = (self.device, px)
        if key not in self._batch_sizes:
            self._batch_sizes[key] = find_batch_size(self, px=px, device=self.device)
        return self._batch_sizes[key]

    def prefix(self, images: torch.Tensor) -> torch.Tensor:
        """Return the activations that enter the first tuned block.

        Where no block is tuned, they are the output of the feature layer, not yet pooled.

        Parameters
        ----------
        images : Tensor (b, 3, h, w)
            In [0, 1].

        Returns
        -------
        Tensor (b, ...)
            Tokens (b, tokens, width), a feature map in the network's layout, or (b, width), in
            `working_dtype`.
        """
        normalised = (images - self.mean) / self.std  # (b, 3, h, w)
        if self.tail_stages:
            first_tuned = self._stage(self.tail_stages[0])
            stop = first_tuned.register_forward_pre_hook(blocks.stop_before)
        elif self.feature_layer != OUTPUT:
            stop = self._stage(self.feature_layer).register_forward_hook(blocks.stop_after)
        else:
            return self._in_working_dtype(self._run_network(normalised))  # (b, ...)
        with stop:
            try:
                hidden = self._run_network(normalised)
            except blocks.Stopped as stopped:
                hidden = stopped.activations
        return self._in_working_dtype(hidden)  # (b, ...)

    def tail(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the pooled embedding (b, dim) of what `prefix` returned, (b, ...), in float32."""
        outputs = self._run_tail(hidden)
        return self.pool(outputs[self.feature_layer]).float()  # (b, dim)

    def feature_layers(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the pooled output of the prefix and of every stage of the tail.

        Parameters
        ----------
        hidden : Tensor (b, ...)
            What `prefix` returned.

        Returns
        -------
        dict
            {stage: Tensor (b, width of that stage), float32}. The feature layer comes last.
        """
        outputs = self._run_tail(hidden)
        return {stage: self.pool(output).float() for stage, output in outputs.items()}

    def every_layer(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the pooled output of every block up to the feature layer.

        Parameters
        ----------
        images : Tensor (b, 3, h, w)
            In [0, 1].

        Returns
        -------
        dict
            {stage: Tensor (b, width of that stage), float32}. The feature layer comes last.
        """
        normalised = (images - self.mean) / self.std  # (b, 3, h, w)
        outputs: dict[str, torch.Tensor] = {}
        with ExitStack() as stack:
            for name in [*self.prefix_stages, *self.tail_stages]:
                if name != OUTPUT:
                    keep = blocks.Keep(name, outputs, stop=name == self.feature_layer)
                    stack.enter_context(self._stage(name).register_forward_hook(keep))
            with suppress(blocks.Stopped):
                outputs[OUTPUT] = self._run_network(normalised)
        return {stage: self.pool(output).float() for stage, output in outputs.items()}

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """Return a stage's output as one vector an image, by the row's ``embedding``.

        Parameters
        ----------
        x : Tensor
            Tokens (b, tokens, width), a feature map in the network's layout, or vectors
            (b, width), which are returned as they are.

        Returns
        -------
        Tensor (b, width)
            (b, 2 * width) for tokens where the embedding is "class+mean".
        """
        if x.ndim == 2:
            return x  # (b, width)
        if x.ndim == 4:
            channels_last = getattr(self.base, "output_fmt", "") == "NHWC"
            return x.mean((1, 2)) if channels_last else x.mean((2, 3))  # (b, width)
        n_prefix = self.row.prefix_tokens
        class_token = x[:, 0]  # (b, width)
        patch_tokens = x[:, n_prefix:]  # (b, patches, width)
        if self.row.embedding == "mean" or not n_prefix:
            return patch_tokens.mean(1)  # (b, width)
        if self.row.embedding == "class+mean":
            return torch.cat([class_token, patch_tokens.mean(1)], 1)  # (b, 2 * width)
        return class_token

    def train(self, mode: bool = True) -> VisionEncoder:
        """Set the training mode of LoRA's dropout alone; frozen layers stay in eval mode."""
        super().train(False)
        for module in self.modules():
            if hasattr(module, "lora_dropout"):
                module.lora_dropout.train(mode)  # type: ignore[union-attr]
        self.training = mode
        return self

    @property
    def base(self) -> nn.Module:
        """The network itself, with LoRA's layers in place where it was adapted."""
        return self.net.get_base_model() if self.adapted else self.net

    def merged(self) -> AbstractContextManager[None]:
        """Return a context in which the tuned blocks run without LoRA's layers, and thus faster.

        Their matrices hold LoRA's change meanwhile. There is no gradient.
        """
        if not self.adapted:
            return nullcontext()
        from seal_lite.encoders.lora import merged

        return merged(self.net)

    def layers_without_gradient(self) -> list[str]:
        """List the layers whose LoRA the backward pass has not reached.

        Some networks use a layer's weight without calling the layer. What LoRA adds there has no
        effect, and is never trained.
        """
        silent = []
        for name in self.adapted:
            parameters = self._stage(name).named_parameters()
            added = [parameter for key, parameter in parameters if "lora_" in key]
            if all(parameter.grad is None for parameter in added):
                silent.append(name)
        return silent

    def base_digest(self) -> str:
        """Return the SHA-256 of the weights that finetuning leaves as they were loaded.

        Without LoRA, the tuned blocks are left out, because their loaded weights are gone.

        Returns
        -------
        str
            64 hex digits.
        """
        overwritten = () if self.adapted else tuple(f"{stage}." for stage in self.tail_stages)
        weights = {}
        for name, tensor in self.base.state_dict().items():
            original_name = WRAPPED_BY_PEFT.sub(".", name)
            added = ADDED_BY_PEFT.search(name)
            if not added and not original_name.startswith(overwritten):
                weights[original_name] = tensor
        return hash_tensors(dict(sorted(weights.items())))

    def _in_working_dtype(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return activations in half precision where the encoder computes in it.

        Autocast leaves some layers' outputs in float32, and a cache of these takes twice the room.
        """
        dtype = self.working_dtype
        return hidden if dtype == torch.float32 else hidden.to(dtype)

    def _run_network(self, images: torch.Tensor) -> torch.Tensor:
        """Run the row's ``call`` on normalised images (b, 3, h, w); return (b, ...)."""
        call = getattr(self.base, self.row.call)
        with computing_in(self.working_dtype, self.device):
            output = call(channels_last(images), **self.row.call_args)
        output = getattr(output, "last_hidden_state", output)  # as transformers returns it
        return blocks.hidden_states(output)

    def _run_tail(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return {stage: its output} for the last stage of the prefix and all of the tail.

        The network runs on a blank image. Its frozen blocks return their input, and the first tuned
        block is fed with `hidden` (b, ...). Tokens are fed in float32: in a whole network their
        positions make the residual stream float32, too, under autocast.
        """
        start = self.prefix_stages[-1] if self.prefix_stages else "stem"
        outputs = {start: hidden}
        if not self.tail_stages:
            return outputs
        tuned = self._tuned_blocks()
        px = self._edge_of(hidden)
        blank = torch.zeros(1, 3, px, px, device=hidden.device)
        with ExitStack() as stack:
            for name in self.prefix_stages:
                block = self._stage(name)
                stack.enter_context(blocks.skipped(block, returns_tuple=self.row.tuple_blocks))
            is_tokens = hidden.ndim == 3
            feed = blocks.Feed(hidden.float() if is_tokens else channels_last(hidden))
            stack.enter_context(self._stage(tuned[0]).register_forward_pre_hook(feed))
            for name in tuned:
                keep = blocks.Keep(name, outputs, stop=name == self.feature_layer)
                stack.enter_context(self._stage(name).register_forward_hook(keep))
            with suppress(blocks.Stopped):
                outputs[OUTPUT] = self._run_network(blank)
        return outputs

    def _edge_of(self, hidden: torch.Tensor) -> int:
        """Return the edge in px of the images of which these are the activations (b, ...).

        A network computes the positions that it hands to every block from the image.
        """
        if self.row.fixed or hidden.ndim != 3:
            return self.row.px
        edge = math.isqrt(hidden.shape[1] - self.row.prefix_tokens)  # in patches
        return edge * self.row.px_step if self.row.px_step > 1 else self.row.px

    def _tuned_blocks(self) -> list[str]:
        """List the names of the tuned blocks, in order."""
        return [stage for stage in self.tail_stages if stage != OUTPUT]

    def _stage(self, name: str) -> nn.Module:
        """Return the block or stage of this name."""
        return self.base.get_submodule(name)


def _stages_up_to_feature_layer(net: nn.Module, row: Backbone) -> list[str]:
    """List the blocks up to the row's feature layer; without one, all and `OUTPUT`."""
    names = blocks.find_blocks(net, inside=row.blocks)
    if not row.feature_layer:
        return [*names, OUTPUT]
    return names[: names.index(row.feature_layer) + 1]


def _split_stages(net: nn.Module, row: Backbone, tune_blocks: int) -> tuple[list[str], list[str]]:
    """Return the stages before the first tuned block, and those from there on."""
    stages = _stages_up_to_feature_layer(net, row)
    n_blocks = len(stages) - stages.count(OUTPUT)
    if tune_blocks > n_blocks:
        raise InputError(
            f"tune_blocks={tune_blocks}: {row.name} has {n_blocks} blocks up to its feature layer, "
            "at the depth that the settings keep; tune fewer"
        )
    n_frozen = n_blocks - tune_blocks if tune_blocks else len(stages)
    return stages[:n_frozen], stages[n_frozen:]


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Lay out a batch (b, c, h, w) so that depthwise convolutions are fast on a CPU."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def hash_tensors(tensors: Mapping[str, torch.Tensor], *, salt: str = "") -> str:
    """Return the SHA-256 of `salt`, names and values in their order, as 64 hex digits."""
    digest = hashlib.sha256(salt.encode())
    for name, tensor in tensors.items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def build_encoder(
    name: str,
    *,
    pretrained: bool = True,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "auto",
    depth: float = 1.0,
    pooling: str = "own",
    **tuning: Any,
) -> VisionEncoder:
    """Return an encoder by name, in eval mode.

    Parameters
    ----------
    name
        As in `backbone_row`.
    pretrained
        False draws random weights: the control without pretraining.
    seed
        Draws LoRA's initial weights, and the random weights of the control.
    device
        Where the encoder is put; "auto" as in `resolve_device`.
    precision
        Precision in which the encoder computes; "auto" as in `resolve_precision`.
    depth
        The share of the blocks that stay; those behind are removed, and the network's last norm
        reads what is left.
    pooling
        How the embedding is read from the tokens: "class", "mean", "class+mean", or the network's
        "own" way.
    **tuning
        `tune_blocks`, `rank`, `alpha`, `dropout` and `as_released` of `VisionEncoder`.

    Raises
    ------
    InputError
        The weights cannot be loaded, the loaded network embeds a fixed image otherwise than its row
        states, it has no such depth or pooling, or `VisionEncoder` raises it. For a network that is
        not in backbones.toml, also where its blocks do not follow one another, or where LoRA has no
        effect on a layer.
    """
    place = resolve_device(device)
    row = backbone_row(name)
    net = load_backbone(row, pretrained=pretrained, seed=seed)
    if pretrained and row.fingerprint:
        check_fingerprint(VisionEncoder(net, row))
    row = row.pooled(pooling)
    if depth < 1:
        names = blocks.find_blocks(net, inside=row.blocks)
        left = blocks.remove_last_blocks(net, names, depth=depth)
        row = replace(row, feature_layer=left[-1] if row.feature_layer else "")
        row = replace(row, dim=_measure_width(net, row))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # LoRA's A matrices
        encoder = VisionEncoder(net, row, **tuning).eval()
    if name not in PACKAGED:
        check_cut(encoder)
        check_gradients(encoder)
    encoder.precision = precision
    return encoder.to(place)


def _measure_width(net: nn.Module, row: Backbone) -> int:
    """Return the width of the embedding; the stages of a convolutional network differ in it."""
    if row.recipe == "transformer":
        return row.dim
    with torch.inference_mode():
        return VisionEncoder(net, row)(torch.zeros(1, 3, row.px, row.px)).shape[1]


def encoder_for(
    config: Config, *, pretrained: bool = True, device: str | torch.device = "auto"
) -> VisionEncoder:
    """Return the encoder with which a config's finetuning starts; LoRA has no effect yet.

    `pretrained` and `device` are those of `build_encoder`, and so are the errors.
    """
    return build_encoder(
        config.backbone,
        pretrained=pretrained,
        seed=config.seed,
        device=device,
        precision=config.precision,
        depth=config.depth,
        pooling=config.pooling,
        as_released=config.as_released,
        tune_blocks=config.tune_blocks,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
    )
