"""A row for a network that has none, from what its own configuration states.

What the configuration does not state is read from the network itself, of `timm` or of Hugging
Face's `transformers`, which is built without weights.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from torch import nn

from seal_lite.encoders.blocks import find_blocks
from seal_lite.encoders.networks.loading import LOADING_ERRORS, loading_errors
from seal_lite.encoders.networks.row import (
    FOLDER_PREFIX,
    OWN_ROWS,
    TIMM_ARGS,
    TIMM_LOADER,
    TRANSFORMERS_LOADER,
    Backbone,
    Colour,
    Deviation,
)
from seal_lite.errors import InputError, reading
from seal_lite.io import sha256
from seal_lite.schema import read

PATHOLOGY_UM_PER_PX = 0.5  # 20 x, at which most encoders of pathology were trained
ON_HUB = re.compile(r"hf[-_]hub:([^@]+)(?:@(.+))?")  # OWNER/NAME[@REVISION]
CONFIGURATION = "config.json"
NORMALISATION = "preprocessor_config.json"
TOWERS = ("vision_config", "text_config")  # of a configuration of two networks
CONTENT = ("*.json", "*.safetensors", "*.bin", "*.pt", "*.pth")  # the files of a folder that count
GIVE_A_ROW = f"give it a row ({OWN_ROWS})"


class _Normalisation(TypedDict):
    image_mean: Colour
    image_std: tuple[Deviation, Deviation, Deviation]


class Normalisation(_Normalisation, total=False):
    """What transformers' preprocessor_config.json states of the values of pixels."""

    do_normalize: bool
    do_rescale: bool
    rescale_factor: float


@dataclass(frozen=True)
class Place:
    """Where a network that is not timm's own comes from: a folder, or a repository of the hub.

    Parameters
    ----------
    source
        The folder, or OWNER/NAME.
    is_folder
        Whether it is a folder.
    revision
        The repository's branch, tag or commit; None is its main branch.
    """

    source: str
    is_folder: bool
    revision: str | None = None

    @classmethod
    def of(cls, name: str) -> Place | None:
        """Return the place that ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME[@REVISION]`` names.

        Any other name is timm's own; it gives None.
        """
        if name.startswith(FOLDER_PREFIX):
            return cls(name.removeprefix(FOLDER_PREFIX), is_folder=True)
        on_hub = ON_HUB.fullmatch(name)
        return cls(on_hub[1], is_folder=False, revision=on_hub[2]) if on_hub else None

    @property
    def card(self) -> str:
        """The page of the repository on the hub; "" of a folder."""
        return "" if self.is_folder else f"https://huggingface.co/{self.source}"

    def read(self, file: str, kind: Any) -> Any:
        """Return what one of its JSON files holds, checked against a schema.

        Raises
        ------
        InputError
            The folder or the file is absent, or the file does not fit the schema `kind`.
        OSError
            The hub does not give the file.
        """
        return read(self._find(file), kind, remedy="save the network again")

    def digest(self) -> str:
        """Return the SHA-256 of a folder's files, 64 hex digits; "" of a repository of the hub."""
        if not self.is_folder:
            return ""
        digest = hashlib.sha256()
        files = {path for pattern in CONTENT for path in Path(self.source).glob(pattern)}
        for path in sorted(files):
            with reading(path):
                digest.update(f"{path.name} {sha256(path)}\n".encode())
        return digest.hexdigest()

    def _find(self, file: str) -> Path:
        """Return the path of one of its files, which the hub is asked for; raises as `read`."""
        absent = InputError(f"{self.source}: has no {file}; {_how_to_save(file)}")
        if not self.is_folder:
            try:
                return Path(hf_hub_download(self.source, file, revision=self.revision))
            except RemoteEntryNotFoundError as error:
                raise absent from error
        path = Path(self.source, file)
        if not path.parent.is_dir():
            raise InputError(f"{self.source}: no such folder; give the encoder's")
        if not path.is_file():
            raise absent
        return path


def _how_to_save(file: str) -> str:
    """Return the remedy for an absent JSON file: what writes it."""
    if file == NORMALISATION:
        return "it states the normalisation of images: save the model's AutoImageProcessor there"
    return "write it by timm.models.save_for_hf, or by save_pretrained of transformers"


@functools.cache
def described_row(name: str) -> Backbone:
    """Return the row that a network states itself.

    A process reads a network's configuration once, and then keeps the row. The row of a transformer
    from a folder or from the hub states 0.5 um per px, the scale at which most encoders of
    pathology were trained. That of a transformer of timm's own states no scale.

    Parameters
    ----------
    name
        A name that `timm.create_model` takes; or ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``,
        where timm or transformers has saved the network.

    Raises
    ------
    InputError
        There is no such network, it cannot be built, or it is of a kind that needs a row.
    """
    place = Place.of(name)
    if place is None:
        return _row_of_timm(name, None)
    with loading_errors(_undescribed(name, place)):
        stated = place.read(CONFIGURATION, dict[str, Any])
    is_of_transformers = "model_type" in stated and "architecture" not in stated
    row_of = _row_of_transformers if is_of_transformers else _row_of_timm
    return replace(row_of(name, place), content=place.digest())


def _undescribed(name: str, place: Place | None) -> Backbone:
    """Return a row for timm's loader that lacks what the network states itself."""
    card = place.card if place else ""
    return Backbone(
        name=name, loader=TIMM_LOADER, source=name, dim=0, args=TIMM_ARGS, arch=name, card=card
    )


def _row_of_timm(name: str, place: Place | None) -> Backbone:
    """Return the row of a network of `timm`; building it may ask the hub."""
    import timm  # here: it takes seconds, and a row needs no network

    row = _undescribed(name, place)
    with loading_errors(row), torch.device("meta"):
        net: Any = timm.create_model(name, num_classes=0)
    config = net.pretrained_cfg
    is_transformer = hasattr(net, "patch_embed") and hasattr(net, "blocks")
    reads_any_size = getattr(net, "dynamic_img_size", False)
    return replace(
        row,
        dim=getattr(net, "head_hidden_size", net.num_features),
        px=config["input_size"][-1],
        prefix_tokens=getattr(net, "num_prefix_tokens", 0),
        fixed=hasattr(net, "patch_embed") and not reads_any_size,
        px_step=net.patch_embed.patch_size[0] if reads_any_size else 1,
        recipe="transformer" if is_transformer else "convolution",
        um_per_px=PATHOLOGY_UM_PER_PX if is_transformer and place else None,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        licence=config.get("license") or "unknown",
    )


def _row_of_transformers(name: str, place: Place) -> Backbone:
    """Return the row of a vision transformer that `transformers` has saved."""
    row = Backbone(
        name=name,
        loader=TRANSFORMERS_LOADER,
        source=place.source,
        dim=0,
        args={"revision": place.revision} if place.revision else {},
        um_per_px=PATHOLOGY_UM_PER_PX,
        extra="transformers",
        card=place.card,
    )
    with loading_errors(row):
        import transformers

        config = transformers.AutoConfig.from_pretrained(place.source, **row.args)
        whole: Any = _build_shallow(config)
        mean, std = _read_normalisation(place)
    is_pair = hasattr(whole, "vision_model")  # of an image tower and a text tower, as CLIP's
    net = whole.vision_model if is_pair else whole
    shape = _see_shape(net, name)
    has_optional_pooler = "add_pooling_layer" in inspect.signature(type(whole)).parameters
    return replace(
        row,
        args={**row.args, "add_pooling_layer": False} if has_optional_pooler else row.args,
        part="vision_model" if is_pair else "",
        dim=shape.width,
        px=shape.px,
        fixed=not shape.reads_any_size,
        px_step=shape.patch_px if shape.reads_any_size else 1,
        prefix_tokens=shape.prefix_tokens,
        embedding="class" if shape.prefix_tokens else "mean",
        tuple_blocks=shape.blocks_return_tuples,
        mean=mean,
        std=std,
    )


def _read_normalisation(place: Place) -> tuple[Colour, Colour]:
    """Return the mean and deviation of images in [0, 1] that transformers subtracts and divides by.

    Raises
    ------
    InputError
        The file is absent or damaged, or scales images in another way than by 1 / 255.
    """
    stated: Normalisation = place.read(NORMALISATION, Normalisation)
    is_scaled = stated.get("do_rescale", True)
    factor = stated.get("rescale_factor", 1 / 255)
    if not is_scaled or abs(255 * factor - 1) > 1e-3:
        fault = f"{place.source}: {NORMALISATION} does not scale pixels by 1 / 255"
        raise InputError(f"{fault}; {GIVE_A_ROW}")
    if not stated.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return stated["image_mean"], stated["image_std"]


def _build_shallow(config: Any) -> nn.Module:
    """Build a network of transformers with random weights and two blocks, to see its shape.

    It has data: on the meta device, transformers would keep tables without data for the process.
    """
    import transformers

    shallow = copy.deepcopy(config)
    for part in (shallow, *(getattr(shallow, name, None) for name in TOWERS)):
        if hasattr(part, "num_hidden_layers"):
            part.num_hidden_layers = min(2, part.num_hidden_layers)
    with torch.random.fork_rng(devices=[]):
        return transformers.AutoModel.from_config(shallow).eval()


@dataclass(frozen=True)
class _Shape:
    """What a forward pass shows of a vision transformer."""

    width: int  # of a token
    px: int  # edge of an image
    patch_px: int  # edge of the image's part that is one token
    prefix_tokens: int
    reads_any_size: bool
    blocks_return_tuples: bool


def _see_shape(net: nn.Module, name: str) -> _Shape:
    """Return what a forward pass shows of a network.

    Raises
    ------
    InputError
        Its tokens are no grid of patches behind a class token and registers, or it has no blocks.
    """
    config: Any = net.config
    px = _edge(getattr(config, "image_size", 0))
    patch_px = _edge(getattr(config, "patch_size", 0))
    n_patches = (px // patch_px) ** 2 if patch_px else 0
    names = find_blocks(net)
    returned: list[Any] = []
    tokens = None
    if n_patches and names:
        first_block = net.get_submodule(names[0])
        with first_block.register_forward_hook(lambda *args: returned.append(args[-1])):
            tokens = _token_shape(net, px)
    n_registers = getattr(config, "num_register_tokens", 0)
    n_class = 2 if config.model_type == "deit" else 1  # DeiT has one for its teacher
    known = (n_patches, n_patches + n_class + n_registers)
    if tokens is None or tokens[1] not in known or not returned:
        raise InputError(f"backbone {name}: is no plain vision transformer; {GIVE_A_ROW}")
    larger = _token_shape(net, px + patch_px)
    return _Shape(
        width=tokens[2],
        px=px,
        patch_px=patch_px,
        prefix_tokens=tokens[1] - n_patches,
        reads_any_size=larger is not None and larger[1] > tokens[1],
        blocks_return_tuples=isinstance(returned[0], tuple),
    )


def _edge(size: int | list[int] | tuple[int, ...]) -> int:
    """Return the edge in px that a configuration states, as a number or as height and width."""
    return size if isinstance(size, int) else size[0]


def _token_shape(net: nn.Module, px: int) -> torch.Size | None:
    """Return (1, tokens, width) of a black image; None of a network without tokens."""
    try:
        with torch.inference_mode():
            output = net(torch.zeros(1, 3, px, px)).last_hidden_state
    except LOADING_ERRORS:
        return None
    return output.shape if output.ndim == 3 else None
