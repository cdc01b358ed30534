"""Every default in one place: a flat, frozen `Config` and the released SEAL settings beside it."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from seal_lite.errors import InputError, reading
from seal_lite.io import read_json

ABOVE_0 = (
    "patch_um",
    "patch_px",
    "n_views",
    "n_genes",
    "clip",
    "temperature",
    "epochs",
    "grad_clip",
)
SHARES = ("smooth", "lora_dropout", "head_dropout", "soft_targets", "warmup")


@dataclass(frozen=True)
class Config:
    """Settings of one finetuning run. Physical quantities carry their unit in the name.

    Raises `InputError` for a value that is not among a setting's choices, or not above 0 where it
    must be, and for a batch of fewer than 2.
    """

    # pairs: a region of H&E around a spot
    patch_um: float = 224.0  # edge of the region: the spot and what lies around it
    patch_px: int = 160  # what the encoder sees
    n_views: int = 8  # one clean + (n_views - 1) augmented views of each patch
    stain_jitter: float = 0.15  # sd of the log-scale of each stain's optical density

    # genes
    n_genes: int = 128  # highly variable genes of the training sections
    hvg: str = "pearson_residuals"  # or "seurat", as released
    smooth: float = 0.2  # share of the array neighbours' mean in a spot's expression
    zscore: str = "section"  # mean and sd from each "section" itself, or from "train"ing
    clip: float = 5.0  # |z| beyond this is clipped

    # vision encoder
    backbone: str = "tf_efficientnet_lite0"  # a name of `seal-lite encoders`, or any timm model
    tune_blocks: int = 3  # LoRA on the last k blocks at or below the tap
    lora_rank: int = 32  # 0: no LoRA, all weights of the tuned blocks
    lora_alpha: float = 64.0
    lora_dropout: float = 0.0

    # gene encoder and heads
    hidden: tuple[int, ...] = (1024, 512)
    n_flows: int = 0  # planar flows behind the VAE's Gaussian
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
    precision: str = "no"  # accelerate's mixed precision: no, bf16, fp16
    seed: int = 0

    def __post_init__(self):
        choices = {
            "hvg": ("pearson_residuals", "seurat"),
            "zscore": ("section", "train"),
            "precision": ("no", "bf16", "fp16"),
        }
        for key, kind in self.kinds().items():
            value, most = getattr(self, key), 1 if key in SHARES else math.inf
            if value not in (allowed := choices.get(key, (value,))):
                raise InputError(f"config: {key}={value!r} is unknown; use one of {allowed}")
            if not isinstance(value, int | float if kind is float else kind):
                raise InputError(f"config: {key}={value!r} is no {kind.__name__}; correct it")
            if kind in (int, float) and not (value > 0 if key in ABOVE_0 else 0 <= value <= most):
                least = "above 0" if key in ABOVE_0 else f"in 0 to {most}"
                raise InputError(f"config: {key}={value} must be {least}; correct it")
        if not min(self.hidden, default=0) > 0:
            raise InputError(f"config: hidden={self.hidden} must be widths above 0; correct it")
        if self.batch_size < 2:
            raise InputError("config: batch_size must be at least 2; the contrast needs negatives")

    @classmethod
    def kinds(cls) -> dict[str, type]:
        """The type of each setting, by name."""
        return {f.name: type(f.default) for f in dataclasses.fields(cls)}

    def override(self, assignments: list[str]) -> Config:
        """Return a copy with `key=value` strings applied, parsed to each field's type.

        Raises `InputError` for an unknown key or a value of the wrong type.
        """
        kinds, changes = self.kinds(), {}
        parse = {
            tuple: lambda v: tuple(map(int, v.split(","))),
            bool: lambda v: {"true": True, "false": False}[v],
        }
        for text in assignments:
            key, _, value = text.partition("=")
            if key not in kinds:
                raise InputError(f"--set {text}: no setting '{key}'; known: {', '.join(kinds)}")
            fault = f"'{value}' is not a {kinds[key].__name__}"
            with reading(f"--set {text}", fault=fault, remedy="correct it"):
                changes[key] = parse.get(kinds[key], kinds[key])(value)
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """All settings as the text of a run's `config.json`, which `from_json` reads."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, path: Path) -> Config:
        """Read a run's `config.json`; damage, and unknown or missing keys, are an `InputError`."""
        raw = read_json(path, "backbone")
        if odd := ", ".join(sorted(raw.keys() ^ cls.kinds())):
            raise InputError(f"{path}: keys {odd} differ from this version's; finetune again")
        return cls(**{**raw, "hidden": tuple(raw["hidden"])})


def preset(name: str) -> Config:
    """`default`, or `paper`: the released SEAL settings (mahmoodlab/SEAL v0.0.1).

    The released gene loss is 0.1 * (0.05 * sum_g (1 - c_gg)^2 + 5 * mse); with 2,000 genes and our
    mean over genes that is 0.5 * mse + 10 * mean_g (1 - c_gg)^2. Raises `InputError` for another
    name.
    """
    paper = Config(
        patch_um=112.0,
        patch_px=224,
        n_genes=2000,
        hvg="seurat",
        smooth=0.5,
        zscore="train",
        clip=float("inf"),
        tune_blocks=1,
        lora_rank=8,
        lora_alpha=8.0,
        lora_dropout=0.15,
        n_flows=3,
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
        grad_clip=float("inf"),
        seed=42,
    )
    if name not in ("default", "paper"):
        raise InputError(f"--preset {name}: unknown; use default or paper")
    return paper if name == "paper" else Config()
