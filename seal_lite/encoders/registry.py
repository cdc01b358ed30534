"""Pretrained networks by name: a row of backbones.toml each, or any timm model without one."""

from __future__ import annotations

import contextlib
import importlib.resources
import pydoc
import tomllib
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path

import timm
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from torch import nn

from seal_lite.errors import InputError

HALF = (0.5, 0.5, 0.5)
TIMM = {"pretrained": True, "num_classes": 0}


@dataclass(frozen=True)
class Backbone:
    """A row of backbones.toml: where a network comes from, and how an embedding is read from it.

    `loader`, any function by its dotted name, is called with `source` and `args`. An embedding is
    what `call` returns, pooled by `embedding`: "class" token, "mean" of the tokens behind the first
    `prefix_tokens` or of a feature map, both as "class+mean", or "output" where it is pooled
    already. With a `tap` that is the output of this block, and what lies behind it never runs.
    `lora` matches the names, inside a block, of the layers that LoRA adapts, `whole` of those that
    are tuned whole beside them. `blocks` names the list of blocks where it is not the largest.

    An embedding is (b, `dim`). The network reads images (b, 3, h, w) in [0, 1], less `mean` (3,),
    over `std` (3,); h = w = `px` pixels where `fixed`, else `px` is what is usual. `um_per_px` is
    the scale of its training, in um per pixel, or None. `licence`, `gated`, `card` (a page) and
    `extra` (what to install) are for whoever uses it. `arch` builds the same network without
    weights, `part` is the image tower in what the loader returns, `state` and `fill` are other ways
    to the weights, `fingerprint` is what `encoders.fingerprint` should find. `tuple_blocks`: a
    block returns a tuple, hidden states first.
    """

    name: str
    loader: str
    source: str
    dim: int
    args: dict = field(default_factory=dict)
    arch: str = ""  # of timm: builds the same network without weights, for the random-init control
    arch_args: dict = field(default_factory=dict)  # what the hub's own config adds to `args`
    part: str = ""  # of what the loader returns: the image tower
    state: str = ""  # PACKAGE:FILE of weights in the network's own order, under other names
    fill: str = ""  # a vendor's function that loads the weights into `model`, if it is another
    fill_args: dict = field(default_factory=dict)
    call: str = "forward"
    call_args: dict = field(default_factory=dict)
    embedding: str = "output"
    prefix_tokens: int = 1
    px: int = 224
    fixed: bool = True  # reads images of `px` pixels only
    um_per_px: float | None = None  # of its training
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    tap: str = ""
    blocks: str = ""
    tuple_blocks: bool = False  # a block returns a tuple, hidden states first
    lora: str = ".*"
    whole: str = ""
    fingerprint: str | None = None  # of the embedding of a fixed input, see `encoders.fingerprint`
    licence: str = "unknown"
    gated: bool = False
    extra: str = ""  # what to install beside this package
    card: str = ""


_ROWS = importlib.resources.files(__package__).joinpath("backbones.toml").read_text()
BACKBONES = {k: Backbone(name=k, **row) for k, row in tomllib.loads(_ROWS).items()}


def backbone_row(name: str) -> Backbone:
    """The table's row; for any other timm, hf-hub: or local-dir: model one from its own config.

    Its embedding is then timm's own pooled features. Raises `InputError` for an unknown name.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    row = Backbone(name, "timm.create_model", name, 0, TIMM, name)
    with _explained(row), torch.device("meta"):
        net = timm.create_model(name, num_classes=0)
    cfg = net.pretrained_cfg
    return replace(
        row,
        dim=getattr(net, "head_hidden_size", net.num_features),
        px=cfg["input_size"][-1],
        prefix_tokens=getattr(net, "num_prefix_tokens", 0),
        fixed=hasattr(net, "patch_embed"),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        licence=cfg.get("license") or "unknown",
    )


def load_backbone(row: Backbone, *, pretrained: bool = True, seed: int = 0) -> nn.Module:
    """The row's network in eval mode, its weights loaded strictly, nothing trainable.

    `pretrained=False` draws its weights from `seed`. Raises `InputError` where it cannot be had.
    """
    args = {k: pydoc.locate(v) or v if isinstance(v, str) else v for k, v in row.args.items()}
    with torch.random.fork_rng(devices=[]), _explained(row):
        torch.manual_seed(seed)
        if row.arch and not pretrained:
            args = {**row.arch_args, **TIMM, **args, "pretrained": False}
            net = timm.create_model(row.arch, **args)
        else:
            net = _function(row.loader)(*[row.source] * bool(row.source), **args)
            net = net[0] if isinstance(net, tuple) else net  # some give their transform, too
            net = net.get_submodule(row.part)
            if row.state:
                _load_in_order(net, row.state)
            if row.fill:
                _function(row.fill)(model=net, **row.fill_args)
            for module in () if pretrained else net.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
    return net.eval().requires_grad_(False)


def _function(name: str):
    """A function, or a method of a class, by its dotted name."""
    package = importlib.import_module(name.partition(".")[0])  # says itself what is not installed
    return pydoc.locate(name) or attrgetter(name.partition(".")[2])(package)


def _load_in_order(net: nn.Module, place: str):
    package, _, file = place.partition(":")
    path = Path(str(importlib.resources.files(package) / file))
    theirs = list(torch.load(path, map_location="cpu", weights_only=True).values())
    ours = net.state_dict()
    if [tuple(t.shape) for t in theirs] != [tuple(t.shape) for t in ours.values()]:
        raise InputError(f"{path}: its tensors do not have the network's order and shapes")
    net.load_state_dict(dict(zip(ours, theirs, strict=True)), strict=True)


@contextlib.contextmanager
def _explained(row: Backbone):
    """Whatever keeps a network from being loaded, as one sentence with the remedy."""
    try:
        yield
    except ImportError as error:
        remedy = row.extra or (error.name or "").split(".")[0].replace("_", "-")
        said = f"backbone {row.name}: {error.name} is not installed; pip install {remedy}"
        raise InputError(said) from error
    except (OSError, RuntimeError, ValueError) as error:
        causes = [error]
        while cause := causes[-1].__cause__ or causes[-1].__context__:
            causes.append(cause)
        if any(isinstance(c, GatedRepoError) for c in causes):
            text = f"is gated; accept its terms at {row.card}, then `hf auth login`"
        elif any(isinstance(c, RepositoryNotFoundError) for c in causes):
            text = "the hub has no such model, or hides it; check the name, or `hf auth login`"
        elif any(isinstance(c, OSError) for c in causes):
            text = (
                f"its weights cannot be fetched ({type(error).__name__}); go online, or use "
                "the offline default tf_efficientnet_lite0"
            )
        else:
            reason = str(error).splitlines()[0]
            text = f"cannot be built ({reason}); see `seal-lite encoders` and timm.list_models()"
        raise InputError(f"backbone {row.name}: {text}") from error
