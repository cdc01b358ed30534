"""The command that goes from a folder of sections to a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seal_lite.cli.options import (
    AllowLeakage,
    Data,
    Device,
    Preset,
    Sections,
    Set,
    TunedBackbone,
    build_config,
    check_output_folder,
    split_optional,
)


def study(  # noqa: PLR0913 (a command has as many options as it needs)
    data: Data,
    out: Annotated[
        Path, typer.Option(callback=check_output_folder, help="Folder of the report; resumes.")
    ],
    backbone: TunedBackbone = None,
    groups: Annotated[
        str | None,
        typer.Option(help="Hold out patient or section; default: what can be claimed."),
    ] = None,
    hours: Annotated[
        float | None, typer.Option(min=0.0, help="How long it may take; default: as it needs.")
    ] = None,
    sections: Sections = None,
    preset: Preset = "default",
    set_: Set = None,
    allow_leakage: AllowLeakage = False,
    device: Device = "auto",
) -> None:
    """Is finetuning worth it on this data? Check, plan, cross-validate, finetune, report."""
    from seal_lite.studies import run

    config = build_config(preset, set_, backbone=backbone)
    facts = run.study(
        data,
        out=out,
        config=config,
        by=groups,
        hours=hours,
        names=split_optional(sections),
        allow_leakage=allow_leakage,
        device=device,
    )
    typer.echo(facts["headline"])
    for sentence in facts["sentences"]:
        typer.echo(sentence)
    typer.echo(facts["advice"])
    typer.echo(f"The report is {out / 'report.html'}")
