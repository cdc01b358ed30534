"""Pretrained networks by name: a row of backbones.toml each, or any timm model without one."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.resources
import pydoc
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from torch import nn

from seal_lite.config import SMALL_PX, Config, preset
from seal_lite.errors import InputError

HALF = (0.5, 0.5, 0.5)
ON_HUB = re.compile(r"(?:hf[-_]hub:|https://huggingface\.co/)([^/]+/[^/]+)$")
TIMM_LOADER = "timm.create_model"
TIMM = {"pretrained": True, "num_classes": 0}
PATHOLOGY_UM_PER_PX = 0.5  # 20 x, at which most encoders of pathology were trained


@dataclass(frozen=True)
class Backbone:
    """A row of backbones.toml: where a network comes from, and how its embedding is read.

    Attributes
    ----------
    name
        The name by which `backbone_row` finds it.
    loader
        Dotted name of the function that builds the network with its weights. It is called with
        `source`, where that is given, and `args`.
    source
        The loader's positional argument, such as a name on the hub.
    dim
        Width of the embedding, (b, dim).
    args
        The loader's keyword arguments. Dotted names of classes stand for the classes.
    arch, arch_args
        A `timm` name, and what the hub's own configuration adds to `args`. They build the same
        network without its weights, for the random control.
    part
        The image tower inside what the loader returns, a dotted name of attributes; empty for the
        whole.
    state
        ``PACKAGE:FILE`` of weights in the network's own order, under other names.
    fill, fill_args
        A vendor's function that loads the weights into its argument ``model``, and its other
        arguments.
    call, call_args
        The network's method that returns what is embedded, and its arguments.
    embedding
        How that is pooled: the "class" token; the "mean" of the tokens behind the first
        `prefix_tokens`, or of a feature map; both as "class+mean"; or "output" where the network
        has pooled already.
    prefix_tokens
        Number of tokens before those of the patches: class token and registers.
    px
        Edge of the images that it reads, in pixels; the usual one where not `fixed`.
    fixed
        The network reads images of `px` pixels only.
    px_step
        Where not `fixed`, the edge of an image is a multiple of this many pixels.
    um_per_px
        Scale of its training images, in um per pixel; None where it has none.
    mean, std
        Normalisation (3,) of images in [0, 1].
    feature_layer
        The block whose output is pooled; what lies behind it never runs. Empty for the result of
        `call`.
    blocks
        Dotted name of the module that holds the blocks, where `find_blocks` needs it.
    tuple_blocks
        A block returns a tuple, hidden states first.
    lora, whole
        Patterns for the names, inside a block, of the layers that LoRA adapts, and of those that
        are tuned whole.
    lora_per_block
        Number of layers that LoRA adapts in each block, which is checked; 0 where blocks differ or
        the number is not known.
    released
        Keys of the row that are others in released SEAL, with its values.
    recipe
        The family whose settings suit it, one of `config.RECIPES`.
    fingerprint
        The `fingerprint` of the network with the right weights; None is not checked.
    licence, gated, card, extra
        Licence of the weights, whether the hub asks to accept its terms, the page that states
        them, and what must be installed beside this package.
    """

    name: str
    loader: str
    source: str
    dim: int
    args: dict[str, Any] = field(default_factory=dict)
    arch: str = ""
    arch_args: dict[str, Any] = field(default_factory=dict)
    part: str = ""
    state: str = ""
    fill: str = ""
    fill_args: dict[str, Any] = field(default_factory=dict)
    call: str = "forward"
    call_args: dict[str, Any] = field(default_factory=dict)
    embedding: str = "output"
    prefix_tokens: int = 1
    px: int = 224
    fixed: bool = True
    px_step: int = 1
    um_per_px: float | None = None
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    feature_layer: str = ""
    blocks: str = ""
    tuple_blocks: bool = False
    lora: str = ".*"
    whole: str = ""
    lora_per_block: int = 0
    released: dict[str, Any] = field(default_factory=dict)
    recipe: str = "transformer"
    fingerprint: str | None = None
    licence: str = "unknown"
    gated: bool = False
    extra: str = ""
    card: str = ""

    def check_px(self, px: int) -> None:
        """Raise an `InputError` where the network reads no images of `px` pixels."""
        if self.fixed and px != self.px:
            raise InputError(f"{self.name}: reads {self.px} px; set patch_px={self.px}")
        if not self.fixed and px % self.px_step:
            nearest = max(1, round(px / self.px_step)) * self.px_step
            message = f"{self.name}: reads multiples of {self.px_step} px, not {px}"
            raise InputError(f"{message}; set patch_px={nearest}")

    def px_at_scale(self, config: Config, patch_um: float) -> int:
        """Return the width in px of patches of another size, at the um per px of a config.

        Parameters
        ----------
        config
            Settings of a run, or those that `config_for` gives a frozen encoder, with the size of
            their patches in um and px.
        patch_um
            Edge of the patches in um.

        Raises
        ------
        InputError
            Where the network does not read that many.
        """
        px = round(patch_um * config.patch_px / config.patch_um)
        try:
            self.check_px(px)
        except InputError as error:
            scale = config.patch_um / config.patch_px
            fault = f"{patch_um:g} um are {px} px at {scale:.3g} um per px, which it does not read"
            remedy = (
                f"give patches of {config.patch_um:g} um, or finetune with --set "
                f"patch_um={patch_um:g}"
            )
            raise InputError(f"{self.name}: {fault}; {remedy}") from error
        return px

    @property
    def hub_name(self) -> str:
        """The network's OWNER/NAME on the Hugging Face Hub; "" where it is not from there."""
        places = [self.source, self.args.get("checkpoint_path", ""), self.card]
        for place in places:
            on_hub = ON_HUB.match(str(place))
            if on_hub:
                return on_hub[1]
        return ""

    def pooled(self, pooling: str) -> Backbone:
        """Return the row with the embedding read in another way.

        Parameters
        ----------
        pooling
            "class", "mean" or "class+mean" of the tokens; "own" changes nothing.

        Raises
        ------
        InputError
            Where the network returns no tokens to pool, or has no class token.
        """
        if pooling in ("own", self.embedding):
            return self
        row = self
        if self.loader == TIMM_LOADER and self.call == "forward":
            row = replace(self, call="forward_features")  # what `forward` pools
        elif self.embedding == "output":
            raise InputError(f"pooling={pooling}: {self.name} pools by itself; set pooling=own")
        if "class" in pooling and (self.recipe != "transformer" or not self.prefix_tokens):
            raise InputError(f"pooling={pooling}: {self.name} has no class token; set pooling=mean")
        width = self.dim // 2 if self.embedding == "class+mean" else self.dim
        dim = 2 * width if pooling == "class+mean" else width
        return replace(row, embedding=pooling, dim=dim)


def _read_table() -> dict[str, Backbone]:
    """Read every row of backbones.toml, by name."""
    text = importlib.resources.files(__package__).joinpath("backbones.toml").read_text()
    return {name: Backbone(name=name, **row) for name, row in tomllib.loads(text).items()}


BACKBONES = _read_table()


def backbone_row(name: str) -> Backbone:
    """Return the row of an encoder.

    A `timm` model without a row gets one from its own configuration; its embedding is then timm's
    pooled features. A transformer from elsewhere than `timm` is taken for one of pathology, which
    mostly see 0.5 um per px.

    Parameters
    ----------
    name
        A row of backbones.toml, or any name that `timm.create_model` takes, also with
        ``hf-hub:`` or ``local-dir:``.

    Raises
    ------
    InputError
        No such encoder is known.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    return _row_of_timm(name)


@functools.cache
def _row_of_timm(name: str) -> Backbone:
    """Return the row that a network of `timm` states itself; building it may ask the Hub."""
    import timm  # here: it takes seconds, and a row needs no network

    row = Backbone(name=name, loader=TIMM_LOADER, source=name, dim=0, args=TIMM, arch=name)
    with _loading_errors(row), torch.device("meta"):
        net: Any = timm.create_model(name, num_classes=0)
    config = net.pretrained_cfg
    is_transformer = _is_transformer(net)
    is_from_elsewhere = name.startswith(("hf-hub:", "local-dir:"))
    return replace(
        row,
        dim=getattr(net, "head_hidden_size", net.num_features),
        px=config["input_size"][-1],
        prefix_tokens=getattr(net, "num_prefix_tokens", 0),
        fixed=hasattr(net, "patch_embed"),
        recipe="transformer" if is_transformer else "convolution",
        um_per_px=PATHOLOGY_UM_PER_PX if is_transformer and is_from_elsewhere else None,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        licence=config.get("license") or "unknown",
    )


def config_for(backbone: str, preset_name: str = "default") -> Config:
    """Return the settings that suit an encoder: those of its family, at its own scale.

    Parameters
    ----------
    backbone
        The encoder's name.
    preset_name
        `default`, `small` or `paper`, as in `config.preset`. `small` also shrinks the patches, in
        pixels, where the network reads other sizes than that of its training.

    Raises
    ------
    InputError
        No such encoder or preset is known.
    """
    row = backbone_row(backbone)
    config = replace(preset(preset_name, recipe=row.recipe), backbone=backbone)
    if backbone == Config.backbone:
        return config
    row = replace(row, **row.released) if config.as_released else row
    px = row.px
    if preset_name == "small" and not row.fixed:
        px = max(1, SMALL_PX // row.px_step) * row.px_step
    config = replace(config, patch_px=px)
    if row.um_per_px:
        config = replace(config, patch_um=row.px * row.um_per_px)
    if row.embedding == "output" and row.loader != TIMM_LOADER:
        return replace(config, pooling="own")  # the network pools by itself
    if config.pooling == "class+mean" and not row.prefix_tokens:
        return replace(config, pooling="mean")  # it has no class token
    return config


def _is_transformer(net: nn.Module) -> bool:
    """Return whether a network of `timm` maps patches to tokens and has one list of blocks."""
    return hasattr(net, "patch_embed") and hasattr(net, "blocks")


def load_backbone(row: Backbone, *, pretrained: bool = True, seed: int = 0) -> nn.Module:
    """Return a row's network in eval mode, with nothing trainable.

    Parameters
    ----------
    row
        The network's row.
    pretrained
        Load the weights, strictly; False draws them at random.
    seed
        Of the random weights.

    Raises
    ------
    InputError
        The network cannot be built, or its weights cannot be loaded. The message names the cause
        and the remedy.
    """
    with torch.random.fork_rng(devices=[]), _loading_errors(row):
        torch.manual_seed(seed)
        if row.arch and not pretrained:
            net = _build_architecture(row)
        else:
            net = _call_loader(row)
            _fill_weights(net, row)
            if not pretrained:
                _reset_weights(net)
    # Some checkpoints are in half precision; autocast expects float32.
    return net.float().eval().requires_grad_(False)


def _build_architecture(row: Backbone) -> nn.Module:
    """Build the row's network by timm, with random weights."""
    import timm

    options = {**row.arch_args, **TIMM, **_resolved(row.args), "pretrained": False}
    return timm.create_model(row.arch, **options)


def _call_loader(row: Backbone) -> nn.Module:
    """Call the row's loader; return the image tower of its network."""
    load = _find_function(row.loader)
    options = _resolved(row.args)
    loaded = load(row.source, **options) if row.source else load(**options)
    net = loaded[0] if isinstance(loaded, tuple) else loaded  # some return a transform, too
    return attrgetter(row.part)(net) if row.part else net


def _fill_weights(net: nn.Module, row: Backbone) -> None:
    """Load the weights that the loader itself does not."""
    if row.state:
        _load_in_order(net, row.state)
    if row.fill:
        fill = _find_function(row.fill)
        fill(model=net, **row.fill_args)


def _reset_weights(net: nn.Module) -> None:
    """Draw all weights at random."""
    for module in net.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()


def _resolved(options: dict[str, Any]) -> dict[str, Any]:
    """Return options in which the dotted name of an object is replaced by the object."""
    resolved = dict(options)
    for key, value in options.items():
        located = pydoc.locate(value) if isinstance(value, str) else None
        if located:
            resolved[key] = located
    return resolved


def _find_function(name: str) -> Any:
    """Return a function, or a method of a class, by its dotted name."""
    package_name, _, rest = name.partition(".")
    package = importlib.import_module(package_name)  # its ImportError names what is not installed
    return pydoc.locate(name) or attrgetter(rest)(package)


def _load_in_order(net: nn.Module, place: str) -> None:
    """Load the tensors of ``PACKAGE:FILE`` into the network by their order."""
    package, _, file = place.partition(":")
    path = Path(str(importlib.resources.files(package) / file))
    stored = list(torch.load(path, map_location="cpu", weights_only=True).values())
    names = list(net.state_dict())
    stored_shapes = [tensor.shape for tensor in stored]
    expected_shapes = [tensor.shape for tensor in net.state_dict().values()]
    if stored_shapes != expected_shapes:
        raise InputError(f"{path}: its tensors do not have the network's order and shapes")
    net.load_state_dict(dict(zip(names, stored, strict=True)), strict=True)


@contextlib.contextmanager
def _loading_errors(row: Backbone) -> Iterator[None]:
    """Turn what keeps a network from being loaded into an `InputError` with the remedy."""
    try:
        yield
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"backbone {row.name}: {_explain(error, row)}") from error


def _explain(error: Exception, row: Backbone) -> str:
    """Return the cause of a loading error and the remedy."""
    if isinstance(error, ImportError):
        missing = error.name or str(error)
        package = row.extra or missing.split(".")[0].replace("_", "-")
        return f"{missing} is not installed; pip install {package}"
    causes = _chain_of_causes(error)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"is gated; accept its terms at {row.card}, then `hf auth login`"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return "the hub has no such model, or hides it; check the name, or `hf auth login`"
    if any(isinstance(cause, OSError) for cause in causes):
        return (
            f"its weights cannot be fetched ({type(error).__name__}); go online, or use the "
            "offline default tf_efficientnet_lite0"
        )
    reason = str(error).splitlines()[0]
    return f"cannot be built ({reason}); see `seal-lite encoders` and timm.list_models()"


def _chain_of_causes(error: BaseException) -> list[BaseException]:
    """Return an error, and those that led to it, the first last."""
    chain = [error]
    cause = error.__cause__ or error.__context__
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain
