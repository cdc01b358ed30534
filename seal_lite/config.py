"""Every default in one place: a flat, frozen `Config`, and the released SEAL settings beside it."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from seal_lite.errors import InputError, reading
from seal_lite.io import read_json
from seal_lite.schema import Number, Pattern, Size, check, field_types

CONFIG_REMEDY = "correct it, or use the version of seal_lite that wrote it"

# What settings may be. The upper ends keep a damaged file from filling the memory.
Positive = Annotated[float, Number(above=0, at_most=1e6)]
Cut = Annotated[float, Number(above=0, infinite=True)]
# A bound of CLIP (Radford et al., 2021): a lower one lets the contrast diverge.
LOWEST_TEMPERATURE = 0.01
Temperature = Annotated[float, Number(at_least=LOWEST_TEMPERATURE)]
Weight = Annotated[float, Number(at_least=0, at_most=1e9)]
Share = Annotated[float, Number(at_least=0, at_most=1)]
Seed = Annotated[int, Number(at_least=0, at_most=2**32 - 1)]
AtLeastOne = Annotated[int, Number(at_least=1, at_most=1_000_000)]
AtLeastZero = Annotated[int, Number(at_least=0, at_most=1_000_000)]
Px = Annotated[int, Number(at_least=1, at_most=8192)]
Pairs = Annotated[int, Number(at_least=2, at_most=1_000_000)]  # the contrast needs negatives
Few = Annotated[int, Number(at_least=0, at_most=100)]
Rank = Annotated[int, Number(at_least=0, at_most=4096)]
Width = Annotated[int, Number(at_least=1, at_most=16_384)]
Project = Annotated[int, Number(at_least=0, at_most=16_384)]
Widths = Annotated[tuple[Width, ...], Size(1, 16)]
EncoderName = Annotated[str, Pattern(r"[^\x00-\x1f\x7f]{1,1000}", "a name in one line")]
Hvg = Literal["pearson_residuals", "seurat"]
SmoothOver = Literal["ring", "disc"]
Zscore = Literal["section", "train"]
Pooling = Literal["own", "class", "mean", "class+mean"]
Precision = Literal["auto", "no", "bf16", "fp16"]


@dataclass(frozen=True)
class Config:
    """Settings of one finetuning run. Physical quantities carry their unit in the name.

    Raises
    ------
    InputError
        Where a value does not fit the annotation of its setting.
    """

    # pairs: a patch of H&E around a spot
    patch_um: Positive = 224.0  # edge of the patch: the spot and what lies around it
    patch_px: Px = 160  # what the encoder sees
    n_views: AtLeastOne = 8  # the patch itself and n_views - 1 augmented views of it
    stain_jitter: Weight = 0.15  # sd of the log-scale of each stain's optical density

    # genes
    n_genes: AtLeastOne = 128  # highly variable genes of the training sections
    hvg: Hvg = "pearson_residuals"  # or "seurat", as released
    smooth: Share = 0.2  # the neighbours' share of a spot's expression
    smooth_over: SmoothOver = "ring"  # or "disc", as released: the spot and those within sqrt(2)
    zscore: Zscore = "section"  # by the mean and sd of each "section", or of all that "train"
    clip: Cut = 5.0  # |z| beyond this is clipped

    # vision encoder
    backbone: EncoderName = "tf_efficientnet_lite0"  # of `seal-lite encoders`, or any timm model
    depth: Share = 1.0  # share of the blocks that stay; those behind are removed
    pooling: Pooling = "own"  # of a transformer's tokens; "own" is the network's own way
    tune_blocks: AtLeastZero = 3  # so many blocks up to the feature layer change
    lora_rank: Rank = 32  # 0: no LoRA, all weights of the tuned blocks
    lora_alpha: Weight = 64.0  # the update is scaled by lora_alpha / lora_rank
    lora_dropout: Share = 0.0  # on the input of the update

    # gene encoder and heads
    hidden: Widths = (1024, 512)  # widths of the hidden layers
    n_flows: Few = 0  # planar flows behind the VAE's Gaussian
    as_released: bool = False  # log counts in and out, image decoder ends in a ReLU, flows are free
    project: Project = 128  # shared space of the contrast; 0: the encoder's own dimension
    head_dropout: Share = 0.1  # in the gene encoder and the image decoder

    # loss
    temperature: Temperature = 0.1  # similarities are divided by it
    learn_temperature: bool = False  # whether the temperature is trained
    soft_targets: Share = 0.0  # share of similarity-based targets in the contrast
    w_clip: Weight = 0.5  # of the contrast
    w_gene: Weight = 1.0  # gene -> gene reconstruction
    w_image: Weight = 1.0  # image -> gene reconstruction
    w_mse: Weight = 1.0  # inside both reconstructions
    w_corr: Weight = 0.0  # inside both reconstructions: mean over genes of (1 - c_gg)^2
    w_kl: Weight = 0.0  # of the KL divergence to a standard normal

    # optimisation
    epochs: AtLeastOne = 20  # in which both encoders train together
    gene_warmup_epochs: AtLeastZero = 0  # gene encoder alone, before the encoder joins
    batch_size: Pairs = 64  # pairs that a contrast compares
    lr_lora: Weight = 4e-3  # learning rate of the image encoder's tuned weights
    lr_heads: Weight = 1e-3  # learning rate of all other weights
    weight_decay: Weight = 0.01  # of AdamW; not on biases, norms or the temperature
    warmup: Share = 0.1  # share of the steps with rising learning rate
    grad_clip: Cut = 1.0  # the gradient's norm is cut to this; one bad batch cannot break a run
    precision: Precision = "auto"  # bf16 or fp16 as the GPU has it, float32 ("no") on a CPU
    seed: Seed = 0  # of weights, order and views

    def __post_init__(self) -> None:
        for name, kind in field_types(type(self)).items():
            value = check(getattr(self, name), kind, path="config", field=name)
            object.__setattr__(self, name, value)  # a list has become a tuple

    @classmethod
    def setting_types(cls) -> dict[str, type]:
        """Return the type of every setting by name, in the order of the class."""
        return {field.name: type(field.default) for field in dataclasses.fields(cls)}

    def override(self, assignments: list[str]) -> Config:
        """Return a copy with settings changed.

        Parameters
        ----------
        assignments
            "name=value" each; the value is parsed to the setting's type, lists as "1024,512".

        Raises
        ------
        InputError
            For an unknown name, and a value of another type or out of range.
        """
        types = self.setting_types()
        changes = {}
        for assignment in assignments:
            name, _, text = assignment.partition("=")
            if name not in types:
                settings = ", ".join(types)
                raise InputError(f"--set {assignment}: no setting '{name}'; use one of {settings}")
            fault = f"'{text}' is not a {types[name].__name__}"
            with reading(f"--set {assignment}", fault=fault, remedy="correct it"):
                changes[name] = _parse(text, types[name])
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """Return all settings as JSON text, which `from_json` reads; an infinite value is null."""
        settings = dataclasses.asdict(self)
        for name, value in settings.items():
            if value == math.inf:
                settings[name] = None
        return json.dumps(settings, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, path: str | Path) -> Config:
        """Read a run's `config.json`.

        A run of an older version may lack a setting: it takes its default. The backbone must be
        named.

        Raises
        ------
        InputError
            Where the file is damaged, holds a setting that this version does not have, or a value
            that a `Config` does not take.
        """
        return check(read_json(path, "backbone"), cls, path=path, remedy=CONFIG_REMEDY)


# What a family of networks needs beside the defaults, measured in results/transformer_trials.json.
RECIPES: dict[str, dict[str, Any]] = {
    "convolution": {},
    "transformer": {
        "patch_px": 224,
        "depth": 0.75,
        "pooling": "class+mean",
        "tune_blocks": 5,
        "lr_lora": 1e-3,
    },
}
SMALL: dict[str, Any] = {"n_views": 4, "epochs": 8, "batch_size": 32}  # for two cores
SMALL_PX = 140  # edge of the small preset's patches, or the next smaller that a network reads


def preset(name: str, *, recipe: str = "convolution") -> Config:
    """Return the `default` settings, the `small` ones, or those of the `paper`.

    Parameters
    ----------
    name
        `small` is `default` with fewer views, epochs and pairs a step, for two cores.
    recipe
        Family of the network, of `RECIPES`; the paper's settings do not depend on it.

    Raises
    ------
    InputError
        For any other name.

    Notes
    -----
    `paper` has the settings of mahmoodlab/SEAL v0.0.1. The released gene loss is
    0.1 * (0.05 * sum_g (1 - c_gg)^2 + 5 * mse); with 2,000 genes and our mean over genes that is
    0.5 * mse + 10 * mean_g (1 - c_gg)^2. With ``as_released`` the gene encoder reads log counts,
    both decoders predict them, and only the loss standardises. LoRA then adapts what the release
    adapts (`Backbone.released`).
    """
    if name == "default":
        return Config(**RECIPES[recipe])
    if name == "small":
        return Config(**RECIPES[recipe], **SMALL)
    if name != "paper":
        raise InputError(f"--preset {name}: unknown; use default, small or paper")
    return Config(
        patch_um=112.0,
        patch_px=224,
        n_genes=2000,
        hvg="seurat",
        smooth=0.5,
        smooth_over="disc",
        zscore="train",
        clip=math.inf,
        tune_blocks=1,
        lora_rank=8,
        lora_alpha=8.0,
        lora_dropout=0.15,
        n_flows=3,
        as_released=True,
        project=0,
        head_dropout=0.0,
        temperature=0.05,
        w_clip=1.0,
        w_mse=0.5,
        w_corr=10.0,
        epochs=10,
        gene_warmup_epochs=0,
        batch_size=384,
        lr_lora=1e-4,
        lr_heads=1e-4,
        weight_decay=0.2,
        warmup=0.0,
        grad_clip=math.inf,
        seed=42,
    )


def _parse(text: str, kind: type) -> Any:
    """Return the value that a setting of this type has in an assignment."""
    if kind is bool:
        return {"true": True, "false": False}[text]
    if kind is tuple:
        return tuple(int(width) for width in text.split(","))
    return kind(text)
