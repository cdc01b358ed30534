"""The files of a run folder that hold a model, and what is trainable in its encoder.

    config.json             the settings
    panel.json              the genes and their scale
    base.json               the pretrained network: its name and the SHA-256 of its weights
    heads.safetensors       everything but the vision encoder
    adapter/                LoRA in peft's format, or
    blocks.safetensors      without LoRA the weights of the tuned blocks

Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor

from seal_lite.config import Config
from seal_lite.data.genes import GenePanel
from seal_lite.encoders.vision import VisionEncoder
from seal_lite.errors import InputError, reading
from seal_lite.io import RUN_REMEDY, read_json, write_atomic

SHARED_FILES = ["*.json", "*.safetensors", "adapter/*", "README.md"]  # of a run on the hub
HUB_PREFIX = "hf-hub:"
TUNED = "tuned."  # prefix of the vision encoder's tensors in `SEAL.trainable`
HEADS_FILE = "heads.safetensors"
ADAPTER_FILE = "adapter/adapter_model.safetensors"
BLOCKS_FILE = "blocks.safetensors"


def local_folder(run: str | Path, *, files: Sequence[str] = SHARED_FILES) -> Path:
    """Return the run's folder; of "hf-hub:OWNER/NAME" the `files` are downloaded first.

    Raises
    ------
    InputError
        Where the hub does not give it.
    """
    name = str(run)
    if not name.startswith(HUB_PREFIX):
        return Path(run)
    remedy = "check the name, go online, or `hf auth login`"
    with reading(name, fault="cannot be fetched", remedy=remedy):
        repository = name.removeprefix(HUB_PREFIX)
        return Path(snapshot_download(repository, allow_patterns=list(files)))


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


def check_base(run: Path, encoder: VisionEncoder) -> None:
    """Check that the encoder has the weights that the run was tuned from.

    Raises
    ------
    InputError
        Where it has others.
    """
    path = run / "base.json"
    if read_json(path, "sha256")["sha256"] != encoder.base_digest():
        difference = f"{encoder.row.name} has other weights here than the run was tuned from"
        raise InputError(f"{path}: {difference}; take the version that it names")


def read_tensors(run: Path, *, adapted: bool) -> dict[str, Tensor]:
    """Return the tensors of a run folder as `SEAL.trainable` names them.

    Raises
    ------
    InputError
        Where a file is absent or damaged.
    """
    tuned_file = ADAPTER_FILE if adapted else BLOCKS_FILE
    tensors = {}
    for file, prefix in ((tuned_file, TUNED), (HEADS_FILE, "")):
        with reading(run / file, remedy=RUN_REMEDY):
            for name, tensor in load_file(run / file).items():
                tensors[prefix + name] = tensor
    return tensors


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file; it takes contiguous tensors only."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
