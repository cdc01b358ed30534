"""Options that several commands share, and what is made of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from seal_lite.errors import InputError


def option(kind, text: str, *names: str, **how):
    """The annotation of an option, short enough to stand beside its name."""
    return Annotated[kind, typer.Option(*names, help=text, **how)]


def output(text: str, *names: str, folder: bool = True):
    """A place to write to: that it can be is found out before any work."""

    def check(path: Path):
        there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        if not os.access(there, os.W_OK) or (not there.is_dir() if folder else path.is_dir()):
            raise InputError(f"{path}: cannot be written there; choose another place")
        return path

    return option(Path, text, *names, callback=check)


Data = option(Path, "A folder of sections, in any format that is read.")

Run = option(Path, "A run folder that `finetune` wrote.")

Set = option(list[str] | None, "Override a setting: key=value.", "--set")

Json = output("Where to write the scores.", "--json", folder=False)

AnyRun = option(Path | None, "A run folder that `finetune` wrote.")

Frozen = option(str | None, "Or a frozen encoder alone.")

Include = option(str | None, "Further genes that the panel must hold.")

Sections = option(str | None, "C2,C3,...; default: all that can be used.")

Seeds = option(int, "So many runs of each fold.", min=1)

Top = option(int, "So many regions are retrieved.", min=1)

Leak = option(bool, "Test on what has been seen; marks the result.")

Preset = option(str, "default, or paper (the released SEAL settings).")


def _names(text: str | None) -> list[str] | None:
    names = text and [t.strip() for t in text.split(",") if t.strip()]
    if text is not None and not names:
        raise InputError(f"'{text}': names nothing; give a comma-separated list")
    return names


def _config(preset_name: str, overrides, **changes):
    from seal_lite.config import preset

    given = [f"{k}={v}" for k, v in changes.items() if v is not None]
    return preset(preset_name).override([*(overrides or []), *given])


def _load(data, names, config):
    from seal_lite.data.section import load_sections

    return load_sections(data, names, patch_um=config.patch_um, patch_px=config.patch_px)


def _run_or_backbone(run, backbone):
    """(the finetuned model or None, its config)."""
    from seal_lite.model.seal import SEAL

    if (run is None) == (backbone is None):
        raise InputError("give either --run or --backbone")
    model = SEAL.from_pretrained(run) if run else None
    return model, model.config if model else _config("default", None, backbone=backbone)


def _seen(run: Path) -> list[str]:
    """Names of the sections that a run was trained on."""
    from seal_lite.io import read_json

    return read_json(run / "provenance.json", "sections")["sections"]


def _write_json(path: Path, value):
    from seal_lite.io import write_atomic

    write_atomic(path, json.dumps(value, indent=1))
    typer.echo(f"wrote {path}")
