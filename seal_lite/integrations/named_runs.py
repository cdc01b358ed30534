"""Runs that have a name, and what a tool asks of an encoder before it loads any weights."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from seal_lite.config import Config
from seal_lite.encoders.registry import backbone_row
from seal_lite.errors import InputError
from seal_lite.model.storage import HUB_PREFIX, local_folder

RUNS_VARIABLE = "SEAL_LITE_RUNS"
CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class RunFacts:
    """What a run's settings say of its encoder.

    Attributes
    ----------
    dim
        Width of the embedding.
    px
        Edge of the images that it reads, in px.
    um_per_px
        Scale of those images.
    mean, std
        Normalisation (3,) of images in [0, 1].
    """

    dim: int
    px: int
    um_per_px: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_facts(run: str | Path) -> RunFacts:
    """Return the facts of a run; only its settings are read, or fetched.

    Parameters
    ----------
    run
        A run folder, or "hf-hub:OWNER/NAME".

    Raises
    ------
    InputError
        Where the settings cannot be fetched or read, or name no known encoder.
    """
    folder = local_folder(run, files=[CONFIG_FILE])
    config = Config.from_json(folder / CONFIG_FILE)
    row = backbone_row(config.backbone).pooled(config.pooling)
    scale = config.patch_um / config.patch_px
    return RunFacts(row.dim, config.patch_px, scale, tuple(row.mean), tuple(row.std))


def named_runs(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the runs that the variable SEAL_LITE_RUNS lists, by name.

    Entries are separated as in PATH. A run is called "seal:" and the name of its folder, or of its
    repository on the hub.

    Parameters
    ----------
    environment
        The environment variables.

    Returns
    -------
    dict
        {name: run folder, or "hf-hub:OWNER/NAME"}, in the order of the variable.

    Raises
    ------
    InputError
        Where two runs have one name.
    """
    # On Linux and macOS the separator is also in "hf-hub:", which begins an entry.
    entry = f"(?:{HUB_PREFIX})?[^{os.pathsep}]+"
    runs: dict[str, str] = {}
    for listed in re.findall(entry, environment.get(RUNS_VARIABLE, "")):
        run = listed.strip()
        if not run:
            continue
        if not run.startswith(HUB_PREFIX):
            run = os.path.abspath(run)
        name = f"seal:{Path(run).name}"
        if runs.setdefault(name, run) != run:
            both = f"{runs[name]} and {run}"
            raise InputError(f"{RUNS_VARIABLE}: {both} are both called {name}; rename one folder")
    return runs
