"""Commands that train, and share what was trained."""

from __future__ import annotations

from pathlib import Path

import typer

from seal_lite.cli.options import (
    Data,
    Include,
    Preset,
    Run,
    Set,
    _config,
    _load,
    _names,
    option,
    output,
)
from seal_lite.errors import InputError


def finetune(
    data: Data,
    out: output("Run folder; an interrupted run resumes."),
    train: option(str | None, "Training sections: C2,C3,C4; default, of shards: all.") = None,
    backbone: str | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    include: Include = None,
    cache: option(Path | None, "Folder for the prefix cache.") = None,
    chunk: option(int, "Images at a time in a step: less memory, same result. 0: all.", min=0) = 0,
    preset: Preset = "default",
    set_: Set = None,
):
    """Finetune the encoder on pairs of expression and tissue, or on shards of them."""
    from seal_lite.data.phantom.truth import GroundTruth
    from seal_lite.data.shards import holds_shards, read_shards
    from seal_lite.evaluation.scores import genes_to_score
    from seal_lite.training.loop import finetune

    config = _config(preset, set_, backbone=backbone, epochs=epochs, seed=seed)
    if holds_shards(data):
        if include:
            raise InputError(f"--include: {data} has its panel; give it to `shard`")
        (sections, panel), wanted = read_shards(data, config, names=_names(train)), ()
    elif train is None:
        raise InputError("--train: name the sections that train; the others stay unseen")
    else:
        sections, panel = _load(data, _names(train), config), None
        wanted = [
            *genes_to_score([s.adata for s in sections], GroundTruth.find(data)),
            *(_names(include) or ()),
        ]
    _, history = finetune(
        sections, config, panel=panel, out=out, include=wanted, cache_dir=cache, chunk=chunk
    )
    joint = [h["loss"] for h in history if h["phase"] == "joint"]
    typer.echo(f"loss {joint[0]:.3f} -> {joint[-1]:.3f} in {len(joint)} epochs; run is in {out}")


def share(
    run: Run,
    repo: option(str, "OWNER/NAME on the Hugging Face hub."),
    scores: option(Path | None, "A metrics.json to quote in the model card.") = None,
    public: option(bool, "Visible to everybody.") = False,
):
    """Upload a run with its model card: its licence is that of the encoder it was tuned from."""
    from seal_lite.hub import push_to_hub

    typer.echo(f"shared: {push_to_hub(run, repo, scores=scores, private=not public)}")
