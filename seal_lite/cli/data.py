"""Commands about data: fetch, check, shard, encoders, phantom, cohort."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seal_lite.cli.options import (
    Data,
    Include,
    Preset,
    Sections,
    Set,
    TunedBackbone,
    build_config,
    check_output_file,
    check_output_folder,
    required_genes,
    say,
    say_table,
    split_names,
    split_optional,
)
from seal_lite.errors import InputError

if TYPE_CHECKING:
    from seal_lite.config import Config
    from seal_lite.data.genes import GenePanel

DATASETS = ("her2st", "visium", "hest")
DataSeed = Annotated[int, typer.Option(help="Another number gives other data.")]
NO_SECTION = 2  # exit code of a check that finds no section to train on
BACKBONE_COLUMNS = [
    "name",
    "dim",
    "px",
    "um_per_px",
    "embedding",
    "recipe",
    "licence",
    "gated",
    "card",
    "extra",
]


def fetch(
    name: Annotated[str, typer.Argument(help="her2st, visium or hest")],
    out: Annotated[
        Path, typer.Option(callback=check_output_folder, help="Folder to download into; resumes.")
    ],
    sections: Annotated[
        str | None, typer.Option(help="C2,C3,..., 10x's names, or HEST-1k's ids.")
    ] = None,
) -> None:
    """Download public data; every file is verified against its recorded hash."""
    if name not in DATASETS:
        raise InputError(f"fetch {name}: unknown data set; use her2st, visium or hest")
    from seal_lite.data import download

    names = split_optional(sections)
    if name == "her2st":
        download.fetch_her2st(out, names=names)
    elif name == "visium":
        download.fetch_visium(out, names=names)
    else:
        download.fetch_hest(out, names=names)
    say(f"{name} is in {out}")


def check(
    data: Data,
    out: Annotated[
        Path, typer.Option(callback=check_output_file, help="The page to write (HTML).")
    ],
    sections: Sections = None,
    run: Annotated[
        Path | None, typer.Option(help="Run folder: look for its genes, cut patches of its size.")
    ] = None,
    backbone: TunedBackbone = None,
    set_: Set = None,
) -> None:
    """Report on data before training: pairs, scale, depth, images, and what seems wrong."""
    from seal_lite.data.report import check_page, check_sections
    from seal_lite.io import write_atomic

    panel: GenePanel | None = None
    if run is None:
        config = build_config(overrides=set_, backbone=backbone)
    elif backbone is not None:
        raise InputError("--backbone: a run has its own; leave it out, or --run")
    else:
        config, panel = read_settings(run)
        config = config.override(set_ or [])
    names = split_optional(sections)
    messages, checks = check_sections(data, config, names=names, panel=panel)
    title = f"Check of {data.resolve().name}"
    write_atomic(out, check_page(messages, checks, patch_um=config.patch_um, title=title))
    for message in messages:
        say(f"- {message}")
    n_pairs = sum(len(section_check.section.rows) for section_check in checks)
    say(f"{n_pairs} pairs in {len(checks)} sections; wrote {out}")
    if not checks:
        raise typer.Exit(NO_SECTION)


def read_settings(run: Path) -> tuple[Config, GenePanel]:
    """Return the config and the gene panel of a run, without its network."""
    from seal_lite.config import Config
    from seal_lite.data.genes import GenePanel
    from seal_lite.model import storage

    folder = storage.local_folder(run, files=storage.SETTINGS_FILES)
    storage.check_checksums(folder)
    config = Config.from_json(folder / "config.json")
    return config, GenePanel.load(folder / "panel.json")


def shard(
    data: Data,
    train: Annotated[str, typer.Option(help="Training sections, which fit the panel: C2,C3.")],
    out: Annotated[
        Path,
        typer.Option(
            callback=check_output_folder,
            help="Folder of shards, which `finetune` takes as data; resumes.",
        ),
    ],
    include: Include = None,
    backbone: TunedBackbone = None,
    preset: Preset = "default",
    set_: Set = None,
) -> None:
    """Write pairs to disk, one file a section, to train on more than memory holds."""
    from seal_lite.data.section import load_counts
    from seal_lite.data.shards import shard_sections

    config = build_config(preset, set_, backbone=backbone)
    adatas = load_counts(data, split_names(train))
    genes = required_genes(adatas, data, include)
    shards = shard_sections(adatas, config, out, include=genes)
    say(f"{len(shards)} shards are in {out}")


def encoders() -> None:
    """List the pretrained encoders that have a short name; any other timm model has its own."""
    import pandas as pd

    from seal_lite.config import RECIPES
    from seal_lite.encoders.registry import BACKBONES

    table = pd.DataFrame([vars(row) for row in BACKBONES.values()])
    say_table(table[BACKBONE_COLUMNS].fillna(""), index=False)
    for family, settings in RECIPES.items():
        changes = " ".join(f"{name}={value}" for name, value in settings.items())
        say(f"recipe {family}: {changes or 'the defaults'}")
    say("or any timm model by its own name, hf-hub:OWNER/MODEL or local-dir:FOLDER")


def cache(
    action: Annotated[str, typer.Argument(help="show or clear")] = "show",
    folder: Annotated[
        Path | None, typer.Option(help="Folder of a prefix cache; default: that of --cache auto.")
    ] = None,
) -> None:
    """Show what a prefix cache holds, or clear it; what is needed again is computed again."""
    from seal_lite.cache import GB, cache_folder, cache_limit, cache_size, cached_files, clear_cache

    if action not in ("show", "clear"):
        raise InputError(f"cache {action}: unknown; use show or clear")
    folder = folder or cache_folder()
    if action == "clear":
        say(f"{folder}: {clear_cache(folder) / GB:.3g} GB are free again")
    limit = cache_limit(folder)
    at_most = "" if limit is None else f" of at most {limit / GB:.3g}"
    size = cache_size(folder) / GB
    say(f"{folder}: holds {size:.3g}{at_most} GB in {len(cached_files(folder))} files")


def phantom(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    patients: Annotated[int, typer.Option(help="Number of patients.")] = 4,
    sections_per_patient: Annotated[int, typer.Option(help="Number of sections of each.")] = 2,
    spots: Annotated[int, typer.Option(help="Number of spots on each section's tissue.")] = 300,
    seed: DataSeed = 0,
    shift: Annotated[
        str | None, typer.Option(help="stain, regions or batch: half of the patients differ.")
    ] = None,
) -> None:
    """Write a tissue phantom with ground truth, in the layout of real data."""
    from seal_lite.data import phantom as tissue

    tissue.phantom(
        out,
        patients=patients,
        sections_per_patient=sections_per_patient,
        spots=spots,
        seed=seed,
        shift=shift,
    )
    say(f"phantom is in {out}")


def cohort(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    patients: Annotated[int, typer.Option(help="Number of patients: even, 20 or more.")] = 60,
    spots: Annotated[int, typer.Option(help="Size of a slide, as spots on its tissue.")] = 100,
    seed: DataSeed = 0,
) -> None:
    """Write a cohort of phantom patients: slides, expression, and slide-level tasks."""
    from seal_lite.data import phantom as tissue

    folder = tissue.cohort(out, patients=patients, spots=spots, seed=seed)
    say(f"cohort is in {folder}")
