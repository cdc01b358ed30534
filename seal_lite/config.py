"""Every default in one place: a flat, frozen `Config`, and the released SEAL settings beside it."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seal_lite.errors import InputError, reading
from seal_lite.io import read_json

CHOICES: dict[str, tuple[str, ...]] = {
    "hvg": ("pearson_residuals", "seurat"),
    "smooth_over": ("ring", "disc"),
    "zscore": ("section", "train"),
    "pooling": ("own", "class", "mean", "class+mean"),
    "precision": ("auto", "no", "bf16", "fp16"),
}
ABOVE_ZERO = {  # every other number may be 0, none may be negative
    "patch_um",
    "patch_px",
    "n_views",
    "n_genes",
    "clip",
    "temperature",
    "epochs",
    "grad_clip",
}
SHARES = {"smooth", "depth", "lora_dropout", "head_dropout", "soft_targets", "warmup"}  # 0 to 1
LEAST = {"batch_size": 2}  # the contrast needs negatives


@dataclass(frozen=True)
class Config:
    """Settings of one finetuning run. Physical quantities carry their unit in the name.

    Raises
    ------
    InputError
        Where a value has another type than its default, is none of a setting's `CHOICES`, or lies
        outside the setting's range (`ABOVE_ZERO`, `SHARES`, `LEAST`).
    """

    # pairs: a patch of H&E around a spot
    patch_um: float = 224.0  # edge of the patch: the spot and what lies around it
    patch_px: int = 160  # what the encoder sees
    n_views: int = 8  # one clean + (n_views - 1) augmented views of each patch
    stain_jitter: float = 0.15  # sd of the log-scale of each stain's optical density

    # genes
    n_genes: int = 128  # highly variable genes of the training sections
    hvg: str = "pearson_residuals"  # or "seurat", as released
    smooth: float = 0.2  # share of the array neighbours' mean in a spot's expression
    smooth_over: str = (
        "ring"  # all neighbours; "disc", as released: the spot and those within sqrt(2)
    )
    zscore: str = "section"  # mean and sd from each "section" itself, or from "train"ing
    clip: float = 5.0  # |z| beyond this is clipped

    # vision encoder
    backbone: str = "tf_efficientnet_lite0"  # a name of `seal-lite encoders`, or any timm model
    depth: float = 1.0  # share of the blocks that stay; those behind are removed
    pooling: str = "own"  # of a transformer's tokens: "class", "mean", "class+mean", or its own way
    tune_blocks: int = 3  # LoRA on the last k blocks up to the feature layer
    lora_rank: int = 32  # 0: no LoRA, all weights of the tuned blocks
    lora_alpha: float = 64.0
    lora_dropout: float = 0.0

    # gene encoder and heads
    hidden: tuple[int, ...] = (1024, 512)
    n_flows: int = 0  # planar flows behind the VAE's Gaussian
    as_released: bool = False  # log counts in and out, image decoder ends in a ReLU, flows are free
    project: int = 128  # shared space of the contrast; 0: the encoder's own dimension
    head_dropout: float = 0.1

    # loss
    temperature: float = 0.1  # similarities are divided by it
    learn_temperature: bool = False
    soft_targets: float = 0.0  # share of similarity-based targets in the contrast
    w_clip: float = 0.5
    w_gene: float = 1.0  # gene -> gene reconstruction
    w_image: float = 1.0  # image -> gene reconstruction
    w_mse: float = 1.0  # inside both reconstructions
    w_corr: float = 0.0  # inside both reconstructions: mean over genes of (1 - c_gg)^2
    w_kl: float = 0.0

    # optimisation
    epochs: int = 20
    gene_warmup_epochs: int = 0  # gene encoder alone, before the encoder joins
    batch_size: int = 64
    lr_lora: float = 4e-3
    lr_heads: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of the steps with rising learning rate
    grad_clip: float = 1.0  # the gradient's norm is cut to this; one bad batch cannot break a run
    precision: str = "auto"  # bf16 or fp16 as the card has it, float32 ("no") on a CPU
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in self.setting_types().items():
            value = getattr(self, name)
            _check_choice(name, value)
            _check_type(name, value, kind)
            if kind in (int, float):
                _check_range(name, value)
        if not self.hidden or min(self.hidden) <= 0:
            raise InputError(f"config: hidden={self.hidden} must be widths above 0; correct it")

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
        settings = read_json(path, "backbone")
        types = cls.setting_types()
        unknown = [name for name in settings if name not in types]
        if unknown:
            remedy = "use the version of seal_lite that wrote it"
            raise InputError(f"{path}: unknown setting {', '.join(unknown)}; {remedy}")
        for name, value in settings.items():
            if types[name] is tuple and isinstance(value, list):
                settings[name] = tuple(value)
            elif types[name] is float and value is None:
                settings[name] = math.inf
        try:
            return cls(**settings)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


# What a family of networks needs beside the defaults, measured in results/transformer_trials.json.
RECIPES: dict[str, dict[str, Any]] = {
    "convolution": {},
    "transformer": {
        "patch_um": 112.0,
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


def _check_choice(name: str, value: Any) -> None:
    """Raise an `InputError` where the setting has choices and the value is none of them."""
    choices = CHOICES.get(name)
    if choices and value not in choices:
        raise InputError(f"config: {name}={value!r} is unknown; use one of {choices}")


def _check_type(name: str, value: Any, kind: type) -> None:
    """Raise an `InputError` where the value has another type; an int may stand for a float."""
    is_flag = isinstance(value, bool)
    if kind is bool:
        fits = is_flag
    elif kind is float:
        fits = isinstance(value, int | float) and not is_flag
    elif kind is tuple:
        fits = isinstance(value, tuple) and all(isinstance(width, int) for width in value)
    else:
        fits = isinstance(value, kind) and not is_flag
    if not fits:
        raise InputError(f"config: {name}={value!r} is no {kind.__name__}; correct it")


def _check_range(name: str, value: float) -> None:
    """Raise an `InputError` where a number lies outside the setting's range."""
    if name in ABOVE_ZERO:
        fits = value > 0
        expected = "above 0"
    elif name in SHARES:
        fits = 0 <= value <= 1
        expected = "in 0 to 1"
    else:
        least = LEAST.get(name, 0)
        fits = value >= least
        expected = f"at least {least}"
    if not fits:
        raise InputError(f"config: {name}={value} must be {expected}; correct it")


def _parse(text: str, kind: type) -> Any:
    """Return the value that a setting of this type has in an assignment."""
    if kind is bool:
        return {"true": True, "false": False}[text]
    if kind is tuple:
        return tuple(int(width) for width in text.split(","))
    return kind(text)
