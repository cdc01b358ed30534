"""Commands that train, and share what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seal_lite.cli.options import (
    Data,
    Device,
    Epochs,
    Include,
    Preset,
    Run,
    Set,
    TunedBackbone,
    build_config,
    check_output_folder,
    read_sections,
    required_genes,
    say,
    split_names,
    split_optional,
)
from seal_lite.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seal_lite.data.genes import GenePanel
    from seal_lite.data.section import Section
    from seal_lite.data.shards import Shard


def finetune(  # noqa: PLR0913 (a command has as many options as it needs)
    data: Data,
    out: Annotated[
        Path,
        typer.Option(callback=check_output_folder, help="Run folder; an interrupted run resumes."),
    ],
    train: Annotated[
        str | None, typer.Option(help="Training sections: C2,C3,C4; of shards, default all.")
    ] = None,
    backbone: TunedBackbone = None,
    epochs: Epochs = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of all random draws; default: the preset's.")
    ] = None,
    include: Include = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the prefix cache, or auto: see `seal-lite cache`; default: memory."
        ),
    ] = None,
    chunk: Annotated[
        int,
        typer.Option(min=0, help="Images at a time in a step: less memory, same result. 0: all."),
    ] = 0,
    preset: Preset = "default",
    set_: Set = None,
    device: Device = "auto",
) -> None:
    """Finetune the encoder on pairs of expression and tissue, or on shards of them."""
    from seal_lite.data.shards import holds_shards, read_shards
    from seal_lite.training import loop

    config = build_config(preset, set_, backbone=backbone, epochs=epochs, seed=seed)
    sections: Sequence[Section] | Sequence[Shard]
    panel: GenePanel | None = None
    genes: list[str] = []
    if holds_shards(data):
        if include:
            raise InputError(f"--include: {data} has its panel; give it to `shard`")
        sections, panel = read_shards(data, config, names=split_optional(train))
    elif train is None:
        raise InputError("--train: name the sections that train; the others stay unseen")
    else:
        sections = read_sections(data, split_names(train), config)
        genes = required_genes([section.adata for section in sections], data, include)
    _, history = loop.finetune(
        sections,
        config,
        panel=panel,
        out=out,
        include=genes,
        cache_dir=cache,
        chunk=chunk,
        device=device,
    )
    losses = [row["loss"] for row in history if row["phase"] == "joint"]
    say(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} epochs; run is in {out}")


def share(
    run: Run,
    repo: Annotated[str, typer.Option(help="OWNER/NAME on the Hugging Face hub.")],
    scores: Annotated[
        Path | None, typer.Option(help="A metrics.json to quote in the model card.")
    ] = None,
    public: Annotated[bool, typer.Option(help="Visible to everybody.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the run, write its card, upload nothing.")
    ] = False,
) -> None:
    """Upload a run with its model card; its licence is that of the encoder it was tuned from."""
    from seal_lite.hub import prepare_upload, push_to_hub

    if dry_run:
        files = prepare_upload(run, scores=scores)
        n_bytes = sum(file.stat().st_size for file in files)
        for file in files:
            say(str(file))
        say(f"not uploaded: {len(files)} files, {n_bytes / 1e6:.1f} MB, would go to {repo}")
        return
    address = push_to_hub(run, repo, scores=scores, private=not public)
    say(f"shared: {address}")
