"""Options that several commands share, and the functions that read their values.

Heavy packages are imported inside the functions, so that `seal-lite --help` needs none of them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seal_lite.errors import InputError
from seal_lite.paths import nearest_existing
from seal_lite.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from seal_lite.config import Config
    from seal_lite.data.section import Section
    from seal_lite.model.seal import SEAL


def check_output_folder(folder: Path) -> Path:
    """Return a folder to write into, or raise an `InputError` where that is not possible."""
    nearest = nearest_existing(folder)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"{folder}: cannot be written there; choose another folder")
    return folder


def check_output_file(file: Path) -> Path:
    """Return a file to write, or raise an `InputError` where that is not possible."""
    nearest = nearest_existing(file)
    is_inside_file = nearest.is_file() and nearest != file.absolute()
    is_no_file = file.exists() and not file.is_file()  # a folder, a pipe, a device
    if is_no_file or is_inside_file or not os.access(nearest, os.W_OK):
        raise InputError(f"{file}: cannot be written there; choose another file")
    return file


def check_device(name: str) -> str:
    """Return the name of a device, or raise an `InputError` where this machine has none such."""
    if name != "auto":
        from seal_lite.encoders.devices import resolve_device

        resolve_device(name)
    return name


Data = Annotated[Path, typer.Option(help="Folder of sections, in any format that can be read.")]
Run = Annotated[Path, typer.Option(help="Run folder that `finetune` wrote.")]
OptionalRun = Annotated[Path | None, typer.Option(help="Run folder that `finetune` wrote.")]
Backbone = Annotated[str | None, typer.Option(help="Or a frozen encoder by name.")]
TunedBackbone = Annotated[
    str | None,
    typer.Option(help="Encoder to finetune, a name of `seal-lite encoders`; default: a small one."),
]
Epochs = Annotated[
    int | None, typer.Option(help="How often training visits every pair; default: the preset's.")
]
Sections = Annotated[str | None, typer.Option(help="C2,C3,...; default: all that can be used.")]
Include = Annotated[str | None, typer.Option(help="More genes that the panel must hold: ERBB2,...")]
Preset = Annotated[str, typer.Option(help="default, small (for a CPU), or paper (as released).")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key=value.")]
Seeds = Annotated[int, typer.Option(min=1, help="Number of runs of each fold.")]
Top = Annotated[int, typer.Option(min=1, help="Number of patches to retrieve.")]
Device = Annotated[
    str,
    typer.Option(
        callback=check_device,
        help="Where networks run: auto (cuda, then mps, then cpu), or a name.",
    ),
]
AllowLeakage = Annotated[
    bool, typer.Option(help="Test on data seen in training; marks the result.")
]
JsonFile = Annotated[
    Path, typer.Option("--json", callback=check_output_file, help="File for the scores.")
]


def split_names(text: str) -> list[str]:
    """Return the names in a comma-separated list; none is an `InputError`."""
    names = [name.strip() for name in text.split(",")]
    names = [name for name in names if name]
    if not names:
        raise InputError(f"'{text}': names nothing; give a comma-separated list")
    return names


def split_optional(text: str | None) -> list[str] | None:
    """Return the names in a comma-separated list, or None where the option is absent."""
    return None if text is None else split_names(text)


def build_config(
    preset_name: str = "default",
    overrides: Sequence[str] | None = None,
    **settings: str | int | None,
) -> Config:
    """Return a preset with `key=value` overrides, then with the settings that are not None.

    The preset is the one that suits the backbone which the overrides or settings name
    (`config_for`).

    Raises
    ------
    InputError
        A setting, its value, the backbone or the preset is unknown, or the backbone does not read
        patches of that size.
    """
    from dataclasses import replace

    from seal_lite.config import Config
    from seal_lite.encoders.registry import absolute_name, backbone_row, config_for

    assignments = list(overrides or [])
    for name, value in settings.items():
        if value is not None:
            assignments.append(f"{name}={value}")
    backbone = Config().override(assignments).backbone
    config = config_for(backbone, preset_name).override(assignments)
    backbone_row(config.backbone).check_px(config.patch_px)  # before all sections are read
    return replace(config, backbone=absolute_name(config.backbone))


def read_sections(data: Path, names: Sequence[str] | None, config: Config) -> list[Section]:
    """Return sections whose patches have the size of a config; None reads all of them."""
    from seal_lite.data.section import load_sections

    return load_sections(data, names, patch_um=config.patch_um, patch_px=config.patch_px)


def read_run_or_backbone(
    run: Path | None, backbone: str | None, *, device: str = "auto"
) -> tuple[SEAL | None, Config]:
    """Return the run's model and config, or None and the config of a frozen encoder.

    Raises
    ------
    InputError
        Both are given or neither is, the run cannot be loaded, or the encoder is unknown.
    """
    if (run is None) == (backbone is None):
        raise InputError("give either --run or --backbone")
    if run is None:
        return None, build_config(backbone=backbone)
    from seal_lite.model.seal import SEAL

    model = SEAL.from_pretrained(run, device=device)
    return model, model.config


def training_sections(run: Path) -> list[str]:
    """Return the names of the sections that a run was trained on; the run may be on the hub."""
    from seal_lite.model.storage import local_folder
    from seal_lite.training.provenance import read_provenance

    return read_provenance(local_folder(run) / "provenance.json")["sections"]


def required_genes(adatas: Sequence[AnnData], data: Path, include: str | None) -> list[str]:
    """Return the genes that a panel must hold: those to score, then those of `--include`."""
    from seal_lite.data.phantom.truth import GroundTruth
    from seal_lite.evaluation.scores import genes_to_score

    genes = genes_to_score(adatas, GroundTruth.find(data))
    return [*genes, *(split_optional(include) or [])]


def say(text: str) -> None:
    """Print a line on standard output."""
    typer.echo(printable(text))


def say_table(table: pd.DataFrame, **layout: Any) -> None:
    """Print a table; `layout` goes to `to_string`, which escapes line breaks in cells."""
    for line in table.to_string(**layout).split("\n"):
        say(line)


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file, and print where it is."""
    from seal_lite.io import write_atomic

    write_atomic(file, json.dumps(value, indent=1))
    say(f"wrote {file}")
