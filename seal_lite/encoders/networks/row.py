"""A pretrained network as data: where it comes from, and how its embedding is read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, cast

from seal_lite.config import Config
from seal_lite.errors import InputError
from seal_lite.schema import Number

HALF = (0.5, 0.5, 0.5)
ON_HUB = re.compile(r"(?:hf[-_]hub:|https://huggingface\.co/)([^/]+/[^/@]+)(?:@.+)?$")
FOLDER_PREFIX = "local-dir:"  # of the name of a network in a folder, as in timm
OWN_ROWS = "SEAL_LITE_BACKBONES"  # the environment variable that names a file of your own rows
TIMM_LOADER = "timm.create_model"
TIMM_ARGS = {"pretrained": True, "num_classes": 0}
TRANSFORMERS_LOADER = "transformers.AutoModel.from_pretrained"
Colour = tuple[float, float, float]  # by channel, of images in [0, 1]
Deviation = Annotated[float, Number(above=0)]
Width = Annotated[int, Number(at_least=1)]
Embedding = Literal["class", "mean", "class+mean", "output"]


@dataclass(frozen=True)
class Backbone:
    """A row: where a network comes from, and how its embedding is read.

    Rows stand in backbones.toml and in a file of your own; `described_row` makes the others.

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
        Edge of the images that it reads, in pixels; where not `fixed`, the usual edge.
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
        Keys of the row whose values differ in released SEAL, with its values.
    recipe
        The family whose settings suit it, one of `config.RECIPES`.
    fingerprint
        The `fingerprint` of the network with the right weights; None is not checked.
    licence, gated, card, extra
        Licence of the weights, whether the hub asks to accept its terms, the page that states
        them, and what must be installed beside this package.
    content
        SHA-256 of the files of a local folder, so that another network in it is another row.
    """

    name: str
    loader: str
    source: str
    dim: Width
    args: dict[str, Any] = field(default_factory=dict)
    arch: str = ""
    arch_args: dict[str, Any] = field(default_factory=dict)
    part: str = ""
    state: str = ""
    fill: str = ""
    fill_args: dict[str, Any] = field(default_factory=dict)
    call: str = "forward"
    call_args: dict[str, Any] = field(default_factory=dict)
    embedding: Embedding = "output"
    prefix_tokens: Annotated[int, Number(at_least=0)] = 1
    px: Width = 224
    fixed: bool = True
    px_step: Width = 1
    um_per_px: Annotated[float, Number(above=0)] | None = None
    mean: Colour = HALF
    std: tuple[Deviation, Deviation, Deviation] = HALF
    feature_layer: str = ""
    blocks: str = ""
    tuple_blocks: bool = False
    lora: str = ".*"
    whole: str = ""
    lora_per_block: int = 0
    released: dict[str, Any] = field(default_factory=dict)
    recipe: Literal["transformer", "convolution"] = "transformer"
    fingerprint: str | None = None
    licence: str = "unknown"
    gated: bool = False
    extra: str = ""
    card: str = ""
    content: str = ""

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
            The network reads no images of that many pixels.
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
            The network returns no tokens to pool, or has no class token.
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
        return replace(row, embedding=cast("Embedding", pooling), dim=dim)
