"""Build a row's network with its weights; an error names the cause and the remedy."""

from __future__ import annotations

import contextlib
import importlib
import importlib.resources
import pydoc
from collections.abc import Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors import SafetensorError
from torch import nn

from seal_lite.encoders.networks.row import (
    FOLDER_PREFIX,
    OWN_ROWS,
    TIMM_ARGS,
    TRANSFORMERS_LOADER,
    Backbone,
)
from seal_lite.errors import InputError, summary

# What timm, transformers and vendors raise for a configuration or weights that do not fit.
LOADING_ERRORS = (
    ImportError,
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    SafetensorError,
)
SOURCE_ARGS = ("revision", "code_revision")  # arguments of transformers that name a version


def load_backbone(row: Backbone, *, pretrained: bool = True, seed: int = 0) -> nn.Module:
    """Return a row's network in eval mode, with nothing trainable.

    Parameters
    ----------
    row
        The network's row.
    pretrained
        Load the weights, strictly; False draws them at random.
    seed
        Seed of the random weights.

    Raises
    ------
    InputError
        The network cannot be built, or its weights cannot be loaded. The message names the cause
        and the remedy.
    """
    with torch.random.fork_rng(devices=[]), loading_errors(row):
        torch.manual_seed(seed)
        if row.arch and not pretrained:
            net = _build_architecture(row)
        elif row.loader == TRANSFORMERS_LOADER and not pretrained:
            net = _build_transformers(row)
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

    options = {**row.arch_args, **TIMM_ARGS, **_resolved(row.args), "pretrained": False}
    return timm.create_model(row.arch, **options)


def _build_transformers(row: Backbone) -> nn.Module:
    """Build the row's network by transformers, with random weights."""
    import transformers

    of_source = {key: row.args[key] for key in SOURCE_ARGS if key in row.args}
    of_network = {key: value for key, value in row.args.items() if key not in SOURCE_ARGS}
    trust = {key: value for key, value in row.args.items() if key == "trust_remote_code"}
    config = transformers.AutoConfig.from_pretrained(row.source, **of_source, **trust)
    return _image_tower(transformers.AutoModel.from_config(config, **of_network), row)


def _call_loader(row: Backbone) -> nn.Module:
    """Call the row's loader; return the image tower of its network."""
    load = _find_function(row.loader)
    options = _resolved(row.args)
    if row.loader == TRANSFORMERS_LOADER:
        with _silent_transformers():
            net, report = load(row.source, output_loading_info=True, **options)
        _check_complete(report["missing_keys"], row)
        return _image_tower(net, row)
    loaded = load(row.source, **options) if row.source else load(**options)
    net = loaded[0] if isinstance(loaded, tuple) else loaded  # some return a transform, too
    return _image_tower(net, row)


@contextlib.contextmanager
def _silent_transformers() -> Iterator[None]:
    """Keep transformers from reporting weights that were not asked for, and from drawing bars."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    draws_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if draws_bars:
            logging.enable_progress_bar()


def _image_tower(net: nn.Module, row: Backbone) -> nn.Module:
    """Return the part of a network that the row reads."""
    return attrgetter(row.part)(net) if row.part else net


def _check_complete(missing: Iterable[str], row: Backbone) -> None:
    """Raise a `ValueError` where weights are missing, which transformers would draw at random."""
    inside = f"{row.part}." if row.part else ""
    needed = sorted(name for name in missing if name.startswith(inside) and "pooler" not in name)
    if needed:
        raise ValueError(f"{len(needed)} of its weights are missing, the first {needed[0]}")


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
    """Load the tensors of ``PACKAGE:FILE`` into the network in their order.

    Raises
    ------
    InputError
        Their order or shapes are not the network's.
    """
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
def loading_errors(row: Backbone) -> Iterator[None]:
    """Turn any of `LOADING_ERRORS` in the `with` block into an `InputError` with the remedy."""
    try:
        yield
    except InputError as error:
        raise InputError(f"backbone {row.name}: {error}") from error
    except LOADING_ERRORS as error:
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
    is_folder = row.name.startswith(FOLDER_PREFIX)
    if any(isinstance(cause, OSError) for cause in causes) and not is_folder:
        return (
            f"its weights cannot be fetched ({type(error).__name__}); go online, or use the "
            "offline default tf_efficientnet_lite0"
        )
    remedy = (
        f"see `seal-lite encoders` and timm.list_models(), or name its row's file in {OWN_ROWS}"
    )
    if is_folder:
        remedy = "save it again"
    return f"cannot be built ({summary(error)}); {remedy}"


def _chain_of_causes(error: BaseException) -> list[BaseException]:
    """Return an error and those that led to it, from the last to the first."""
    chain = [error]
    cause = error.__cause__ or error.__context__
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain
