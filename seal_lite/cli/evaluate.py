"""Commands that score on held-out data: probe, crossval, hest-bench, retrieve, retrieval-bench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seal_lite.cli.options import (
    AllowLeakage,
    Backbone,
    Data,
    Device,
    Epochs,
    JsonFile,
    OptionalRun,
    Preset,
    Run,
    Sections,
    Seeds,
    Set,
    Top,
    TunedBackbone,
    build_config,
    check_output_file,
    check_output_folder,
    read_run_or_backbone,
    read_sections,
    say,
    say_table,
    split_names,
    split_optional,
    training_sections,
    write_json,
)
from seal_lite.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from seal_lite.data.phantom.truth import GroundTruth
    from seal_lite.data.section import Section
    from seal_lite.model.seal import SEAL


def probe(
    run: Run,
    data: Data,
    train: Annotated[str, typer.Option(help="Sections that the probe is fitted on.")],
    test: Annotated[str, typer.Option(help="Sections that it is scored on.")],
    json_file: JsonFile,
    device: Device = "auto",
) -> None:
    """Score a run against the frozen encoder and the controls on held-out sections."""
    from seal_lite.data.phantom.truth import GroundTruth
    from seal_lite.evaluation.scores import summary
    from seal_lite.evaluation.statistics import deltas
    from seal_lite.model.seal import SEAL
    from seal_lite.training.provenance import provenance

    model = SEAL.from_pretrained(run, device=device)
    config = model.config
    train_names = split_names(train)
    test_names = split_names(test)
    check_held_out(test_names, train_names, "--train")
    check_held_out(test_names, training_sections(run), "the run's training sections")
    truth = GroundTruth.find(data)
    train_sections = read_sections(data, train_names, config)
    test_sections = read_sections(data, test_names, config)
    if truth is not None:
        truth.check(test_sections)
    scores = score_run(model, train_sections, test_sections, truth=truth, run=run)
    folds = [{"test": test, "seed": config.seed, "scores": scores}]
    classes = None if truth is None else truth.classes
    result = {
        "data": data.name,
        "backbone": config.backbone,
        "provenance": provenance(
            [*train_sections, *test_sections], config, device=device, run=str(run)
        ),
        "classes": classes,
        "folds": folds,
        "delta": deltas(folds, classes),
    }
    say_table(summary(result).round(3))
    write_json(json_file, result)


def check_held_out(test: Sequence[str], seen: Sequence[str], place: str) -> None:
    """Raise an `InputError` where a test section is among those already seen."""
    overlap = sorted(set(test) & set(seen))
    if overlap:
        names = ",".join(overlap)
        raise InputError(f"--test {names}: also in {place}; test on sections never seen")


def score_run(
    model: SEAL,
    train: list[Section],
    test: list[Section],
    *,
    truth: GroundTruth | None,
    run: Path,
) -> list[dict]:
    """Return the score rows of a run, for those genes to score that are in its panel."""
    from seal_lite.data.readers.gene_names import gene_positions
    from seal_lite.evaluation.features import fold_features
    from seal_lite.evaluation.scores import (
        check_genes_present,
        genes_to_score,
        score_models,
        score_rows,
    )

    all_genes = genes_to_score([section.adata for section in train], truth)
    genes = list(gene_positions(all_genes, model.panel.genes))
    if not genes:
        raise InputError(f"{run}: none of the genes to score is in its panel; finetune on --train")
    check_genes_present(test, genes)
    n_missing = len(all_genes) - len(genes)
    if n_missing:
        say(f"{n_missing} of {len(all_genes)} genes are not in the run's panel")
    models = {"tuned": model}
    config = model.config
    features = fold_features(
        train, test, genes, models=models, config=config, device=model.encoder.device
    )
    scores = score_models(
        train, test, genes, models=models, features=features, truth=truth, seed=config.seed
    )
    return score_rows(scores, genes)


def crossval(  # noqa: PLR0913 (a command has as many options as it needs)
    data: Data,
    out: Annotated[
        Path,
        typer.Option(
            callback=check_output_folder, help="Folder for folds and metrics.json; resumes."
        ),
    ],
    groups: Annotated[
        str, typer.Option(help="Hold out a section, a patient, or a column of sections.tsv.")
    ] = "section",
    train_groups: Annotated[
        int | None, typer.Option(help="Number of groups that train; default: all but one.")
    ] = None,
    seeds: Seeds = 3,
    sections: Sections = None,
    backbone: TunedBackbone = None,
    epochs: Epochs = None,
    preset: Preset = "default",
    set_: Set = None,
    allow_leakage: AllowLeakage = False,
    device: Device = "auto",
) -> None:
    """Leave one group out: finetune and fit everything inside each fold, score on the rest."""
    from seal_lite.data.leakage import check_leakage
    from seal_lite.data.phantom.truth import GroundTruth
    from seal_lite.evaluation import crossval as evaluation
    from seal_lite.evaluation.scores import summary
    from seal_lite.evaluation.statistics import verdicts

    config = build_config(preset, set_, backbone=backbone, epochs=epochs)
    loaded = read_sections(data, split_optional(sections), config)
    units = evaluation.groups_of(loaded, groups)
    if groups != "section":  # patients are held out inside such a group, too
        pairs = zip(units, loaded, strict=True)
        units = [f"{unit}/{section.patient}" for unit, section in pairs]
    leakage = check_leakage(loaded, units, allow=allow_leakage)
    result = evaluation.crossval(
        loaded,
        config,
        data_name=data.name,
        out=out,
        truth=GroundTruth.find(data),
        by=groups,
        train_groups=train_groups,
        seeds=seeds,
        leakage=leakage,
        device=device,
    )
    say_table(summary(result).round(3))
    for verdict in verdicts(result):
        say(verdict)
    for message in leakage:
        say(f"leakage allowed: {message}")
    say(f"wrote {out / 'metrics.json'}")


def hest_bench(
    root: Annotated[Path, typer.Option(help="Folder that holds the tasks' folders.")],
    json_file: JsonFile,
    tasks: Annotated[str | None, typer.Option(help="IDC,PRAD,...; default: all folders.")] = None,
    run: OptionalRun = None,
    backbone: Backbone = None,
    allow_leakage: AllowLeakage = False,
    device: Device = "auto",
) -> None:
    """Score a run, or a frozen encoder, on HEST-bench's tasks as published, beside controls."""
    from seal_lite.data.patches import HEST_UM
    from seal_lite.encoders.registry import backbone_row
    from seal_lite.evaluation.features import embed_all
    from seal_lite.evaluation.hest_bench import (
        copied_test_samples,
        read_hest_task,
        run_hest_bench,
        seen_test_samples,
    )
    from seal_lite.training.provenance import provenance

    model, config = read_run_or_backbone(run, backbone, device=device)
    row = backbone_row(config.backbone)
    models = {} if model is None else {"tuned": model}
    px = row.px if model is None else row.px_at_scale(config, HEST_UM)
    seen = [] if run is None else training_sections(run)
    run_name = None if run is None else str(run)
    hest_tasks = [read_hest_task(root / name) for name in task_names(root, tasks)]
    leaked = []
    for task in hest_tasks:
        known = seen_test_samples(task, seen, allow=allow_leakage)
        copied = copied_test_samples(task, allow=allow_leakage)
        leaked.append(sorted({*known, *copied}))
    results = []
    for task, leaked_samples in zip(hest_tasks, leaked, strict=True):
        samples = task.load(px=px)
        features, layers = embed_all(samples.values(), models, config, device=device)
        result = run_hest_bench(task, samples, config, features=features, layers=layers)
        origin = provenance(
            samples.values(), config, device=device, run=run_name, leaked=leaked_samples
        )
        results.append({**result, "provenance": origin})
        print_task(task.name, result)
        write_json(json_file, results)  # after each task, so that a crash loses the last one only


def task_names(root: Path, tasks: str | None) -> list[str]:
    """Return the names that `--tasks` lists, or those of all tasks in the folder."""
    if tasks is None:
        names = sorted(path.parent.name for path in root.glob("*/splits"))
        if not names:
            remedy = "give the folder that hest-bench was unpacked to"
            raise InputError(f"{root}: holds no task; {remedy}")
        return names
    names = split_names(tasks)
    for name in names:
        if name != Path(name).name or name == "..":
            raise InputError(f"--tasks {name}: is a path; give the name of a folder in {root}")
    return names


def print_task(name: str, result: dict[str, Any]) -> None:
    """Print the mean r of a task: one row per features and probe, one column per target."""
    from seal_lite.evaluation.scores import tidy

    table = tidy(result).pivot_table("r", ["features", "probe"], "target", "mean")
    say(name)
    say_table(table.round(3), na_rep="")


def retrieve(
    run: Run,
    data: Data,
    section: Annotated[str, typer.Option(help="Section to search.")],
    genes: Annotated[str, typer.Option(help="Gene set of the query: ERBB2,GRB7.")],
    out: Annotated[Path, typer.Option(callback=check_output_file, help="Figure to write (PNG).")],
    top: Top = 10,
    device: Device = "auto",
) -> None:
    """Find the patches of a section that match a gene set, and draw them."""
    from seal_lite import plots
    from seal_lite.data.readers.gene_names import spelled
    from seal_lite.encoders.embedding import embed_patches
    from seal_lite.evaluation.retrieval import gene_set_profile, retrieval_scores, search
    from seal_lite.model.seal import SEAL

    model = SEAL.from_pretrained(run, device=device)
    named = split_names(genes)
    profile = gene_set_profile(model.panel, named)
    gene_set = list(spelled(named, model.panel.genes).values())
    (loaded,) = read_sections(data, [section], model.config)
    embeddings = embed_patches(model.encoder, loaded.patches)
    query = model.encode_genes(profile)
    gallery = model.project_images(embeddings)
    (hits,), (cosines,) = search(query, gallery, top=top)
    scores = retrieval_scores(model, loaded, embeddings)
    figure = plots.retrieval(
        loaded,
        hits,
        cosines,
        genes=gene_set,
        panel=model.panel,
        patch_um=model.config.patch_um,
    )
    save_figure(figure, out)
    for n in (1, 5, 10):
        say(f"recall@{n} {scores[f'recall@{n}']:.3f} (chance {scores[f'chance@{n}']:.3f})")
    say(f"wrote {out}")


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure in the format that the file's suffix names, or as PNG."""
    from seal_lite.io import atomic_file

    image_format = file.suffix[1:] or "png"
    with atomic_file(file) as part:
        figure.savefig(part, dpi=150, bbox_inches="tight", format=image_format)


def retrieval_bench(
    run: Run,
    data: Data,
    json_file: JsonFile,
    sections: Sections = None,
    gmt: Annotated[Path | None, typer.Option(help="Gene sets of the queries (GMT).")] = None,
    top: Top = 10,
    device: Device = "auto",
) -> None:
    """Score retrieval from genes to images and back: in a slide, across slides and patients."""
    import pandas as pd

    from seal_lite.encoders.embedding import embed_patches
    from seal_lite.evaluation.retrieval import (
        cross_modal,
        gene_set_scores,
        prediction_scores,
        shared_space,
    )
    from seal_lite.model.seal import SEAL
    from seal_lite.training.provenance import provenance

    model = SEAL.from_pretrained(run, device=device)
    gene_sets = None if gmt is None else read_gene_sets(gmt, model.panel.genes)
    loaded = read_sections(data, split_optional(sections), model.config)
    embeddings = [embed_patches(model.encoder, section.patches) for section in loaded]
    space = shared_space(model, loaded, embeddings)
    result: dict[str, Any] = {
        "slides": cross_modal(space, top=top),
        "predictions": prediction_scores(space),
    }
    if gene_sets is not None:
        result["sets"] = gene_set_scores(model, space, gene_sets, top=top)
    rows = pd.DataFrame(result["slides"]).drop(columns="slide")
    means = rows.groupby(["direction", "scope"], sort=False).mean()
    say_table(means.round(3), na_rep="")
    if result["predictions"]:
        predictions = pd.DataFrame(result["predictions"])
        means = predictions.pivot_table("r", "scope", "as", sort=False)
        typer.echo("\nmean r of expression predicted from other slides")
        say_table(means.round(3))
    result["provenance"] = provenance(loaded, model.config, device=device, run=str(run))
    write_json(json_file, result)


def read_gene_sets(gmt: Path, panel_genes: Sequence[str]) -> dict[str, list[str]]:
    """Return the genes of each set of a GMT file that are in the panel."""
    from seal_lite.data.pathways import read_gmt
    from seal_lite.data.readers.gene_names import spelled

    rows = read_gmt(gmt)
    in_panel = rows[rows.target.isin(spelled(rows.target, panel_genes))]
    if in_panel.empty:
        raise InputError(f"{gmt}: none of its genes is in the run's panel; give symbols")
    return in_panel.groupby("source").target.apply(list).to_dict()
