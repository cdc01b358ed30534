"""Pretrained networks by name: the row of each, from backbones.toml, your own file or itself."""

from __future__ import annotations

import importlib.resources
import os
import re
import tomllib
from dataclasses import replace
from pathlib import Path

from seal_lite.config import SMALL_PX, Config, preset
from seal_lite.encoders.networks.described import described_row
from seal_lite.encoders.networks.row import FOLDER_PREFIX, OWN_ROWS, TIMM_LOADER, Backbone
from seal_lite.errors import InputError, reading
from seal_lite.schema import check


def _read_rows(text: str) -> dict[str, Backbone]:
    """Return the rows of a TOML text, by name."""
    return {name: Backbone(name=name, **row) for name, row in tomllib.loads(text).items()}


def _read_own_rows() -> dict[str, Backbone]:
    """Return the rows of the user's file; without one there are none.

    Raises
    ------
    InputError
        The file cannot be read, a row does not fit `Backbone`, or it has the name of a row of
        backbones.toml.
    """
    file = os.environ.get(OWN_ROWS)
    if not file:
        return {}
    remedy = f"give each row of {OWN_ROWS} the keys of `Backbone`"
    with reading(file, remedy=remedy):
        table = tomllib.loads(Path(file).read_text())
        rows = {}
        for name, row in table.items():
            rows[name] = check(
                {**row, "name": name}, Backbone, path=file, field=name, remedy=remedy
            )
            re.compile(rows[name].lora)
    taken = sorted(rows.keys() & PACKAGED.keys())
    if taken:
        raise InputError(f"{file}: there is an encoder {taken[0]}; give the row another name")
    return rows


PACKAGED = _read_rows(importlib.resources.files(__package__).joinpath("backbones.toml").read_text())
BACKBONES = {**PACKAGED, **_read_own_rows()}


def backbone_row(name: str) -> Backbone:
    """Return the row of an encoder.

    A network without a row gets one from its own configuration (`described_row`); its embedding is
    then timm's pooled features, or the class token of transformers.

    Parameters
    ----------
    name
        A row of backbones.toml, or of the file that the environment variable SEAL_LITE_BACKBONES
        names; or any name that `timm.create_model` takes; or ``hf-hub:OWNER/NAME`` or
        ``local-dir:FOLDER``, with what timm or transformers has saved there.

    Raises
    ------
    InputError
        No such encoder is known.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    return described_row(absolute_name(name))


def absolute_name(backbone: str) -> str:
    """Return an encoder's name with its folder, if it has one, as an absolute path.

    A run stores this name, so that it can be loaded from any working directory.
    """
    if not backbone.startswith(FOLDER_PREFIX):
        return backbone
    folder = Path(backbone.removeprefix(FOLDER_PREFIX))
    return f"{FOLDER_PREFIX}{folder.resolve()}"


def config_for(backbone: str, preset_name: str = "default") -> Config:
    """Return the settings that suit an encoder: those of its family, at its own scale.

    Parameters
    ----------
    backbone
        The encoder's name.
    preset_name
        `default`, `small` or `paper`, as in `config.preset`. `small` also shrinks the patches, in
        pixels, where the network reads other sizes than that of its training.

    Raises
    ------
    InputError
        No such encoder or preset is known.
    """
    row = backbone_row(backbone)
    config = replace(preset(preset_name, recipe=row.recipe), backbone=absolute_name(backbone))
    if backbone == Config.backbone:
        return config
    row = replace(row, **row.released) if config.as_released else row
    px = row.px
    if preset_name == "small" and not row.fixed:
        px = max(1, min(row.px, SMALL_PX) // row.px_step) * row.px_step
    config = replace(config, patch_px=px)
    if row.um_per_px:
        config = replace(config, patch_um=row.px * row.um_per_px)
    if row.embedding == "output" and row.loader != TIMM_LOADER:
        return replace(config, pooling="own")  # the network pools by itself
    if config.pooling == "class+mean" and not row.prefix_tokens:
        return replace(config, pooling="mean")  # it has no class token
    return config
