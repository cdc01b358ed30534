"""Commands about whole slides."""

from __future__ import annotations

from pathlib import Path

import typer

from seal_lite.cli.options import (
    AnyRun,
    Frozen,
    Json,
    Seeds,
    _run_or_backbone,
    _write_json,
    option,
    output,
)
from seal_lite.errors import InputError


def embed(
    slides: option(Path, "Folder of slides (SVS, TIFF, ...) or pictures."),
    out: output("Folder for <slide>.h5, kept."),
    run: AnyRun = None,
    backbone: Frozen = None,
    um_per_px: option(float | None, "Of pictures that do not say it themselves.", min=1e-3) = None,
    patch_um: option(float | None, "Default: as in training.", min=1.0) = None,
):
    """Write every slide's features as TRIDENT does: tissue, a grid of regions, H5."""
    from seal_lite.encoders.vision import build_encoder
    from seal_lite.slides.embed import embed_slides, list_slides

    model, config = _run_or_backbone(run, backbone)
    encoder = model.encoder if model else build_encoder(config.backbone)
    um = patch_um or config.patch_um
    px = round(um * (config.patch_px if model else encoder.row.px) / config.patch_um)
    files = embed_slides(
        encoder, list_slides(slides), out, patch_um=um, patch_px=px, um_per_px=um_per_px
    )
    typer.echo(f"features of {len(files)} slides are in {out}")


def slide_bench(
    task: option(Path, "A Patho-Bench task: config.yaml, k=all.tsv."),
    features: option(list[str], "NAME=FOLDER of feature files, repeated."),
    json_file: Json,
    seeds: Seeds = 3,
):
    """Score bags of features on a slide-level task, each against all that are named before it."""
    import pandas as pd

    from seal_lite.slides.bench import score_bags
    from seal_lite.slides.tasks import read_bags, read_slide_task

    asked, given = read_slide_task(task), [text.partition("=")[::2] for text in features]
    if bare := [name for name, folder in given if not (name and folder)]:
        raise InputError(f"--features {bare[0]}: give NAME=FOLDER")
    bags = {name: read_bags(asked, folder) for name, folder in given}
    result = score_bags(asked, bags, seeds=seeds)
    for part in ("scores", "delta"):
        typer.echo(pd.DataFrame(result[part]).to_string(index=False))
    _write_json(json_file, result)
