"""Commands about whole slides: embed, slide-bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seal_lite.cli.options import (
    Backbone,
    Device,
    JsonFile,
    OptionalRun,
    check_output_folder,
    read_run_or_backbone,
    say,
    say_table,
    write_json,
)
from seal_lite.errors import InputError


def embed(  # noqa: PLR0913 (a command has as many options as it needs)
    slides: Annotated[Path, typer.Option(help="Folder of slides (SVS, TIFF, ...) or images.")],
    out: Annotated[
        Path, typer.Option(callback=check_output_folder, help="Folder for <slide>.h5; resumes.")
    ],
    run: OptionalRun = None,
    backbone: Backbone = None,
    frozen: Annotated[
        bool,
        typer.Option(
            help="The run's encoder before finetuning, read in the same way: the control."
        ),
    ] = False,
    um_per_px: Annotated[
        float | None, typer.Option(min=1e-3, help="Scale of images that do not state it.")
    ] = None,
    patch_um: Annotated[
        float | None, typer.Option(min=1.0, help="Edge of a patch; default: as in finetuning.")
    ] = None,
    coords: Annotated[
        Path | None, typer.Option(help="Folder of TRIDENT's coords: embed these patches.")
    ] = None,
    min_tissue: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Share of a patch that must be tissue; default: 0.05."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Write every slide's features as TRIDENT does: tissue, a grid of patches, H5."""
    from seal_lite.encoders.vision import build_encoder, encoder_for
    from seal_lite.slides.embed import embed_slides, list_slides
    from seal_lite.slides.places import FindPlaces, StoredCoords, TissueGrid

    if frozen and run is None:
        raise InputError("--frozen: needs a run; give --run, or --backbone alone")
    model, config = read_run_or_backbone(run, backbone, device=device)
    if model is None:
        encoder = build_encoder(config.backbone, device=device)
    elif frozen:
        encoder = encoder_for(config, device=device)
    else:
        encoder = model.encoder
    if patch_um is None:
        patch_um = config.patch_um
    patch_px = encoder.row.px_at_scale(config, patch_um)
    if coords is not None:
        places: FindPlaces = StoredCoords(coords)
    elif min_tissue is not None:
        places = TissueGrid(min_tissue)
    else:
        places = TissueGrid()
    files = embed_slides(
        encoder,
        list_slides(slides),
        out,
        patch_um=patch_um,
        patch_px=patch_px,
        um_per_px=um_per_px,
        places=places,
    )
    say(f"features of {len(files)} slides are in {out}")


def slide_bench(
    task: Annotated[Path, typer.Option(help="A Patho-Bench task: config.yaml, k=all.tsv.")],
    features: Annotated[list[str], typer.Option(help="NAME=FOLDER of feature files, repeated.")],
    json_file: JsonFile,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of times that each model is fitted in each fold.")
    ] = 3,
    device: Device = "auto",
) -> None:
    """Score bags of features on a slide-level task, each against all that are named before it."""
    import pandas as pd

    from seal_lite.encoders.devices import resolve_device
    from seal_lite.slides.bench import score_bags
    from seal_lite.slides.tasks import read_bags, read_slide_task

    place = resolve_device(device)
    slide_task = read_slide_task(task)
    folders = split_features(features)
    bags = {name: read_bags(slide_task, folder) for name, folder in folders.items()}
    result = score_bags(slide_task, bags, seeds=seeds, device=place)
    for part in ("scores", "delta"):
        say_table(pd.DataFrame(result[part]), index=False)
    write_json(json_file, result)


def split_features(texts: list[str]) -> dict[str, Path]:
    """Return {name: folder} of NAME=FOLDER texts.

    Raises
    ------
    InputError
        A text is no NAME=FOLDER, or two have one name.
    """
    folders = {}
    for text in texts:
        name, _, folder = text.partition("=")
        if not (name and folder):
            raise InputError(f"--features {text}: give NAME=FOLDER")
        if name in folders:
            raise InputError(f"--features {text}: there is a {name}; give it another name")
        folders[name] = Path(folder)
    return folders
