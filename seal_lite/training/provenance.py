"""What a result was computed from, and by which version."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypedDict

import numpy as np
import torch

from seal_lite import __version__
from seal_lite.config import Config, Seed
from seal_lite.encoders.devices import resolve_device
from seal_lite.encoders.networks.row import Backbone
from seal_lite.encoders.registry import backbone_row
from seal_lite.io import RUN_REMEDY
from seal_lite.schema import Count, Names, Sha256, Size, read

if TYPE_CHECKING:
    from seal_lite.data.section import Section
    from seal_lite.data.shards import Shard


# Whether, and how often, pairs of patch and expression are broken.
Shuffle: TypeAlias = Literal[False, True, "every epoch"]


class _Sections(TypedDict):
    sections: Names


class Provenance(_Sections, total=False):
    """What `provenance.json` holds. Older versions, and other work, have some of it."""

    data_sha256: Sha256
    config_sha256: Sha256
    backbone_sha256: Sha256
    panel_sha256: Sha256
    genes_sha256: Sha256  # of older runs
    extra_expression_sha256: Sha256
    seed: Seed
    seeds: Count
    package: str
    commit: str
    device: str
    versions: dict[str, str]
    shuffle_pairs: Shuffle
    loss: str
    callbacks: list[str]
    groups: str
    train_groups: Count | None
    finished: Annotated[str, Size(10, 40)]


def read_provenance(path: str | Path, *, remedy: str = RUN_REMEDY) -> Provenance:
    """Return what a run's or a result's `provenance.json` holds.

    Raises
    ------
    InputError
        Where the file is absent or damaged.
    """
    return read(path, Provenance, remedy=remedy)


def provenance(
    sections: Iterable[Section | Shard],
    config: Config,
    *,
    device: str | torch.device = "auto",
    **extra: Any,
) -> dict[str, Any]:
    """Return what a result is computed from, ready for JSON.

    Parameters
    ----------
    sections
        The sections or shards that are read.
    config
        The settings.
    device
        Where the networks run (`resolve_device`).
    **extra
        Further entries.

    Returns
    -------
    dict
        "sections" (names), "data_sha256", "config_sha256", "backbone_sha256", "seed", "package"
        (this package's version), "commit" (of its git checkout, or "unknown"), "versions" (of
        Python and libraries), "device", and the entries of `extra`.
    """
    sections = list(sections)
    return {
        "sections": [section.name for section in sections],
        "data_sha256": _sha256("".join(section.digest for section in sections)),
        "seed": config.seed,
        "config_sha256": _sha256(config.to_json()),
        "backbone_sha256": _backbone_sha256(backbone_row(config.backbone)),
        "package": __version__,
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": importlib.metadata.version("timm"),
            "numpy": np.__version__,
        },
        "device": _name_of(resolve_device(device)),
        **extra,
    }


def _sha256(text: str) -> str:
    """Return the SHA-256 of a text, 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _backbone_sha256(row: Backbone) -> str:
    """Return a hash of what the row sets; a field that a later version adds does not change it."""
    defaults = type(row)(name="", loader="", source="", dim=0)
    settings = {
        field.name: getattr(row, field.name)
        for field in dataclasses.fields(row)
        if getattr(row, field.name) != getattr(defaults, field.name)
    }
    return _sha256(json.dumps(settings, sort_keys=True))


def _commit() -> str:
    """Return the commit of the git checkout that holds this package, or "unknown"."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    git = subprocess.run(command, text=True, cwd=Path(__file__).parent, capture_output=True)
    return git.stdout.strip() or "unknown"


def _name_of(device: torch.device) -> str:
    """Return a card's name or a device's type, the machine's architecture and the threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    n_threads = torch.get_num_threads()
    threads = "1 thread" if n_threads == 1 else f"{n_threads} threads"
    return f"{name} ({platform.machine()}, {threads})"
