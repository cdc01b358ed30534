"""The files of a run folder that hold a model, and what is trainable in its encoder.

    config.json             the settings
    panel.json              the genes and their scale
    base.json               the pretrained network: its name and the SHA-256 of its weights
    heads.safetensors       everything but the vision encoder
    adapter/                LoRA in peft's format, or
    blocks.safetensors      without LoRA the weights of the tuned blocks
    checksums.json          the SHA-256 of each of these files

Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from seal_lite.config import Config, EncoderName, Rank, Weight
from seal_lite.data.genes import GenePanel
from seal_lite.encoders.vision import VisionEncoder
from seal_lite.errors import InputError, reading
from seal_lite.io import RUN_REMEDY, sha256, write_atomic
from seal_lite.schema import Pattern, Sha256, read

SHARED_FILES = ["*.json", "*.safetensors", "adapter/*", "README.md"]  # of a run on the hub
HUB_PREFIX = "hf-hub:"
# What the backbone of a shared run may begin with: not "local-dir", a folder of whoever loads it.
SHARED_SOURCES = ("hf-hub", "hf_hub", "timm")
MODEL_REMEDY = "take the backbone, panel.json and config.json that it was made with"
TUNED = "tuned."  # prefix of the vision encoder's tensors in `SEAL.trainable`
HEADS_FILE = "heads.safetensors"
ADAPTER_FILE = "adapter/adapter_model.safetensors"
BLOCKS_FILE = "blocks.safetensors"
ADAPTER_CONFIG = "adapter/adapter_config.json"
CHECKSUMS = "checksums.json"
MODEL_FILES = ("config.json", "panel.json", "base.json", HEADS_FILE, BLOCKS_FILE)
ADAPTER_FILES = (ADAPTER_FILE, ADAPTER_CONFIG)
SETTINGS_FILES = ("config.json", "panel.json", CHECKSUMS)
RunFile = Annotated[str, Pattern(r"(adapter/)?\w+\.(json|jsonl|safetensors)", "a file of a run")]


class _Base(TypedDict):
    sha256: Sha256


class Base(_Base, total=False):
    """What `base.json` holds; the name of the network only since version 0.1."""

    backbone: EncoderName


class AdapterConfig(TypedDict, total=False):
    """What of peft's `adapter_config.json` decides the adapter's effect."""

    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Weight


def local_folder(run: str | Path, *, files: Sequence[str] = SHARED_FILES) -> Path:
    """Return the run's folder; of "hf-hub:OWNER/NAME" the `files` are downloaded first.

    Raises
    ------
    InputError
        The hub does not give the run, or the run's network is a local folder.
    """
    name = str(run)
    if not name.startswith(HUB_PREFIX):
        return Path(run)
    remedy = "check the name, go online, or `hf auth login`"
    with reading(name, fault="cannot be fetched", remedy=remedy):
        repository = name.removeprefix(HUB_PREFIX)
        folder = Path(snapshot_download(repository, allow_patterns=list(files)))
    check_source(folder, name)
    return folder


def check_source(folder: str | Path, name: str | Path) -> None:
    """Check that others can get a run's network: that it is not a local folder.

    A run from the hub must not decide which local folder is read.

    Parameters
    ----------
    folder
        The run, or a copy of it.
    name
        The run's name in the message.

    Raises
    ------
    InputError
        The run was finetuned from a local folder.
    """
    path = Path(folder, "config.json")
    if not path.exists():
        return
    backbone = Config.from_json(path).backbone
    source, colon, _ = backbone.partition(":")
    if colon and source not in SHARED_SOURCES:
        raise InputError(
            f"{name}: its config.json names backbone={backbone!r}, a local folder, which a run on "
            "the hub may not name; if you trust the run, download it and give its folder. To share "
            "a run, finetune hf-hub:OWNER/NAME"
        )


def tuned_tensors(encoder: VisionEncoder) -> dict[str, Tensor]:
    """Return what training changes in the vision encoder, by name.

    With LoRA that is the adapter, under peft's names; without, the weights of the tuned blocks,
    under the network's own names.
    """
    if encoder.adapted:
        from peft.utils import get_peft_model_state_dict

        return get_peft_model_state_dict(encoder.net)
    return {name: p.detach() for name, p in encoder.net.named_parameters() if p.requires_grad}


def load_tuned_tensors(encoder: VisionEncoder, tensors: dict[str, Tensor]) -> None:
    """Put `tuned_tensors` back into the vision encoder; their names and shapes must fit."""
    if encoder.adapted:
        from peft.utils import set_peft_model_state_dict

        set_peft_model_state_dict(encoder.net, tensors)
    else:
        encoder.net.load_state_dict({**encoder.net.state_dict(), **tensors}, strict=True)


def write_model(
    out: Path, *, config: Config, panel: GenePanel, encoder: VisionEncoder, heads: dict[str, Tensor]
) -> None:
    """Write the model's files into the folder `out`, which is made."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "config.json", config.to_json())
    panel.save(out / "panel.json")
    base = {"backbone": config.backbone, "sha256": encoder.base_digest()}
    write_atomic(out / "base.json", json.dumps(base, indent=1))
    _save_tensors(heads, out / HEADS_FILE)
    if encoder.adapted:
        shutil.rmtree(out / "adapter", ignore_errors=True)
        encoder.net.save_pretrained(str(out / "adapter"))
    else:
        _save_tensors(tuned_tensors(encoder), out / BLOCKS_FILE)
    _let_others_read(out)
    (out / CHECKSUMS).unlink(missing_ok=True)
    written = [name for name in MODEL_FILES if (out / name).exists()]
    add_checksums(out, [*written, *(ADAPTER_FILES if encoder.adapted else ())])


def add_checksums(run: Path, names: Iterable[str]) -> None:
    """Add the SHA-256 of files of a run folder to its list, or replace them there."""
    path = run / CHECKSUMS
    known = read(path, dict[RunFile, Sha256]) if path.exists() else {}
    new = {name: sha256(run / name) for name in names}
    write_atomic(path, json.dumps(known | new, indent=1))


def check_checksums(run: Path) -> None:
    """Check the files of a run folder against their SHA-256; absent files are left out.

    A run of an older version has no list of them.

    Raises
    ------
    InputError
        A file differs from what was written.
    """
    path = run / CHECKSUMS
    if not path.exists():
        return
    remedy = f"fetch it again, or remove {CHECKSUMS} if you have changed the file"
    for name, expected in read(path, dict[RunFile, Sha256], remedy=f"remove {CHECKSUMS}").items():
        if (run / name).exists() and sha256(run / name) != expected:
            fault = f"is not as it was written: its SHA-256 is not that of {CHECKSUMS}"
            raise InputError(f"{run / name}: {fault}; {remedy}")


def check_adapter(run: Path, config: Config) -> None:
    """Check that the adapter of a run folder has the rank and the scale of its settings.

    Raises
    ------
    InputError
        Where one of them differs.
    """
    path = run / ADAPTER_CONFIG
    if not path.exists():
        return
    adapter: AdapterConfig = read(path, AdapterConfig)
    own = {"r": config.lora_rank, "lora_alpha": config.lora_alpha}
    for name, expected in own.items():
        stated = adapter.get(name, expected)
        if stated != expected:
            fault = f"{name} is {stated}, but {expected} in config.json"
            raise InputError(f"{path}: {fault}; take the files of one run")


def check_base(run: Path, config: Config, encoder: VisionEncoder) -> None:
    """Check that the encoder has the weights that the run was tuned from.

    Raises
    ------
    InputError
        The encoder has other weights, or base.json names another network.
    """
    path = run / "base.json"
    base: Base = read(path, Base)
    backbone = base.get("backbone", config.backbone)
    if backbone != config.backbone:
        difference = f"the run was tuned from {backbone}, but config.json names {config.backbone}"
        raise InputError(f"{path}: {difference}; take the files of one run")
    if base["sha256"] != encoder.base_digest():
        network = f"{encoder.row.name}, as config.json builds it here,"
        difference = f"{network} has other weights than the run was tuned from"
        raise InputError(f"{path}: {difference}; take the version that it names")


def tensor_files(config: Config) -> dict[str, str]:
    """Return the files of a run's tensors, and what their names begin with in `SEAL.trainable`."""
    adapted = config.lora_rank > 0 and config.tune_blocks > 0
    return {ADAPTER_FILE if adapted else BLOCKS_FILE: TUNED, HEADS_FILE: ""}


def read_shapes(path: Path, prefix: str) -> dict[str, torch.Size]:
    """Return the shape of each tensor of a safetensors file, of which only the header is read.

    Raises
    ------
    InputError
        Where the file is absent or damaged.
    """
    remedy = f"{RUN_REMEDY}, with its own config.json"
    with reading(path, remedy=remedy), safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return {prefix + name: torch.Size(file.get_slice(name).get_shape()) for name in names}


def check_rank(path: Path, shapes: dict[str, torch.Size], rank: int) -> None:
    """Check that LoRA's matrices have a rank.

    Raises
    ------
    InputError
        A matrix has another rank.
    """
    for name, shape in shapes.items():
        if ".lora_A." in name and shape[:1] != (rank,):
            fault = f"tensor {name} does not fit this model, whose lora_rank is {rank}"
            raise InputError(f"{path}: {fault}; {MODEL_REMEDY}")


def shapes_of(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shape of each tensor."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def check_shapes(
    shapes: dict[str, torch.Size], own: dict[str, torch.Size], *, source: str | Path
) -> None:
    """Check that tensors have a model's own names and shapes.

    Raises
    ------
    InputError
        A tensor is missing, is unknown or has another shape; the message names it and `source`.
    """
    differing = [name for name in shapes | own if shapes.get(name) != own.get(name)]
    if differing:
        fault = f"tensor {min(differing)} does not fit this model"
        raise InputError(f"{source}: {fault}; {MODEL_REMEDY}")


def check_tensors(
    tensors: dict[str, Tensor], own: dict[str, Tensor], *, source: str | Path
) -> None:
    """Check that tensors are of the kind of a model's own, and finite.

    Raises
    ------
    InputError
        Where one is not; the message names it and `source`.
    """
    for name, tensor in tensors.items():
        is_number = tensor.is_floating_point() == own[name].is_floating_point()
        if not is_number or tensor.is_complex():
            fault = f"tensor {name} is of {tensor.dtype}, not {own[name].dtype}"
            raise InputError(f"{source}: {fault}; {MODEL_REMEDY}")
        if not torch.isfinite(tensor).all():
            raise InputError(f"{source}: tensor {name} has NaN or infinity; {RUN_REMEDY}")
        if name.endswith("running_var") and (tensor < 0).any():
            raise InputError(f"{source}: tensor {name} has negative variances; {RUN_REMEDY}")


def read_tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a file; raises as `read_shapes`."""
    with reading(path, remedy=RUN_REMEDY):
        return {prefix + name: tensor for name, tensor in load_file(path).items()}


def _let_others_read(out: Path) -> None:
    """Give tensor files the mode that the user's umask gives others; safetensors writes 0600."""
    mode = (out / "config.json").stat().st_mode
    for path in out.rglob("*.safetensors"):
        path.chmod(mode)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file; it takes contiguous tensors only."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
