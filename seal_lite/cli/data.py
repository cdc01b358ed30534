"""Commands about data: fetch, check, phantom, cohort, shard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seal_lite.cli.options import (
    AnyRun,
    Data,
    Include,
    Preset,
    Sections,
    Set,
    _config,
    _names,
    _run_or_backbone,
    option,
    output,
)
from seal_lite.errors import InputError


def fetch(
    name: Annotated[str, typer.Argument(help="her2st, visium or hest")],
    out: output("Folder to download into; resumes."),
    sections: option(str | None, "C2,C3,..., 10x's names, or HEST-1k's ids.") = None,
):
    """Download public data, each file verified against its recorded hash."""
    if name not in ("her2st", "visium", "hest"):
        raise InputError(f"fetch {name}: unknown data set; use her2st, visium or hest")
    from seal_lite.data import download

    getattr(download, f"fetch_{name}")(out, sections=_names(sections))
    typer.echo(f"{name} is in {out}")


def check(
    data: Data,
    out: output("The page to write (HTML).", folder=False),
    sections: Sections = None,
    run: AnyRun = None,
    set_: Set = None,
):
    """Look at data before hours of training: pairs, scale, depth, pictures, what seems wrong."""
    from seal_lite.data.report import check_page, check_sections
    from seal_lite.io import write_atomic

    config = _config("default", set_)
    model = _run_or_backbone(run, None)[0] if run else None
    said, found = check_sections(data, config, names=_names(sections), panel=model and model.panel)
    page = check_page(said, found, config, title=f"Check of {data.resolve().name}")
    write_atomic(out, page)
    pairs, lines = sum(len(s.rows) for s, *_ in found.values()), [f"- {text}" for text in said]
    typer.echo("\n".join([*lines, f"{pairs} pairs in {len(found)} sections; wrote {out}"]))


def encoders():
    """List the pretrained encoders that have a name here; any other timm model has its own."""
    import pandas as pd

    from seal_lite.encoders.registry import BACKBONES

    shown = ["name", "dim", "px", "um_per_px", "embedding", "licence", "gated", "card", "extra"]
    table = pd.DataFrame([vars(row) for row in BACKBONES.values()])[shown]
    typer.echo(table.fillna("").to_string(index=False))
    typer.echo("or any timm model by its own name, hf-hub:OWNER/MODEL or local-dir:FOLDER")


def shard(
    data: Data,
    train: option(str, "Training sections, to which the panel is fitted: C2,C3."),
    out: output("Folder of shards, which `finetune` takes as data; resumes."),
    include: Include = None,
    preset: Preset = "default",
    set_: Set = None,
):
    """Write pairs to disk, a file for each section: to train on more than memory holds."""
    from seal_lite.data.phantom.truth import GroundTruth
    from seal_lite.data.section import load_counts
    from seal_lite.data.shards import shard_sections
    from seal_lite.evaluation.scores import genes_to_score

    config = _config(preset, set_)
    adatas = load_counts(data, _names(train))
    genes = [*genes_to_score(adatas, GroundTruth.find(data)), *(_names(include) or ())]
    made = shard_sections(adatas, config, out, include=genes)
    typer.echo(f"{len(made)} shards are in {out}")


Out = Annotated[Path, typer.Option(help="Folder to write.")]
Shift = Annotated[str | None, typer.Option(help="stain, regions or batch: half of them differ.")]


def phantom(
    out: Out,
    patients: int = 4,
    sections_per_patient: int = 2,
    spots: int = 300,
    seed: int = 0,
    shift: Shift = None,
):
    """Write a tissue phantom with known truth, in the layout of real data."""
    from seal_lite.data.phantom import phantom as write

    write(
        out,
        patients=patients,
        sections_per_patient=sections_per_patient,
        spots=spots,
        seed=seed,
        shift=shift,
    )
    typer.echo(f"phantom is in {out}")


def cohort(out: Out, patients: int = 60, spots: int = 100, seed: int = 0):
    """Write a cohort of phantom patients: slides, expression, and slide-level tasks."""
    from seal_lite.data.phantom import cohort as write

    typer.echo(f"cohort is in {write(out, patients=patients, spots=spots, seed=seed)}")
