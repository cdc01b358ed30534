"""Commands that score a run on held-out sections."""

from __future__ import annotations

from pathlib import Path

import typer

from seal_lite.cli.options import (
    AnyRun,
    Data,
    Frozen,
    Json,
    Leak,
    Preset,
    Run,
    Sections,
    Seeds,
    Set,
    Top,
    _config,
    _load,
    _names,
    _run_or_backbone,
    _seen,
    _write_json,
    option,
    output,
)
from seal_lite.errors import InputError


def probe(
    run: Run,
    data: Data,
    train: option(str, "Sections the probe is fitted on."),
    test: option(str, "Sections it is scored on."),
    json_file: Json,
):
    """Score a run against the frozen encoder and the controls on held-out sections."""
    from seal_lite.data.phantom.truth import GroundTruth
    from seal_lite.evaluation.features import fold_features
    from seal_lite.evaluation.scores import (
        check_genes_present,
        genes_to_score,
        score_models,
        score_rows,
        summary,
    )
    from seal_lite.evaluation.statistics import deltas
    from seal_lite.model.seal import SEAL
    from seal_lite.training.provenance import provenance

    model, truth = SEAL.from_pretrained(run), GroundTruth.find(data)
    for a, b in ((_names(train), "--train"), (_seen(run), "the run's training sections")):
        if both := sorted(set(a) & set(_names(test))):
            raise InputError(f"--test {','.join(both)}: also in {b}; test on sections never seen")
    config = model.config
    fit, held = _load(data, _names(train), config), _load(data, _names(test), config)
    wanted = genes_to_score([s.adata for s in fit], truth)
    genes = [g for g in wanted if g in model.panel.genes]
    if not genes:
        raise InputError(f"{run}: none of the genes to score is in its panel; finetune on --train")
    check_genes_present(held, genes)
    if len(genes) < len(wanted):
        typer.echo(f"{len(wanted) - len(genes)} of {len(wanted)} genes are not in the run's panel")
    models = {"tuned": model}
    found = fold_features(fit, held, genes, models, config)
    scores = score_models(fit, held, genes, models, found, truth=truth, seed=config.seed)
    folds = [{"test": test, "seed": config.seed, "scores": score_rows(scores, genes)}]
    classes = truth and truth.classes
    record = provenance([*fit, *held], config, run=str(run))
    result = {
        "data": data.name,
        "backbone": config.backbone,
        "provenance": record,
        "classes": classes,
        "folds": folds,
        "delta": deltas(folds, classes),
    }
    typer.echo(summary(result).round(3).to_string())
    _write_json(json_file, result)


def crossval(
    data: Data,
    out: output("Folder for folds and metrics.json; resumes."),
    groups: option(str, "Hold out a section, a patient, or a column of sections.tsv.") = "section",
    train_groups: option(int | None, "Train on so many groups; default all but one.") = None,
    seeds: Seeds = 3,
    sections: Sections = None,
    backbone: str | None = None,
    epochs: int | None = None,
    preset: Preset = "default",
    set_: Set = None,
    allow_leakage: Leak = False,
):
    """Leave one group out: finetune and fit everything inside each fold, score on the rest."""
    from seal_lite.data.leakage import check_leakage
    from seal_lite.data.phantom.truth import GroundTruth
    from seal_lite.evaluation.crossval import crossval, groups_of
    from seal_lite.evaluation.scores import summary
    from seal_lite.evaluation.statistics import verdicts

    config = _config(preset, set_, backbone=backbone, epochs=epochs)
    loaded = _load(data, _names(sections), config)
    of = groups_of(loaded, groups)
    if groups != "section":  # patients are held out inside such a group, too
        of = [f"{group}/{s.patient}" for group, s in zip(of, loaded, strict=True)]
    said = check_leakage(loaded, of, allow=allow_leakage)
    result = crossval(
        loaded,
        config,
        data=data.name,
        truth=GroundTruth.find(data),
        by=groups,
        train_groups=train_groups,
        seeds=seeds,
        leakage=said,
        out=out,
    )
    typer.echo(summary(result).round(3).to_string())
    lines = [*verdicts(result), *(f"leakage allowed: {s}" for s in said)]
    typer.echo("\n".join([*lines, f"wrote {out / 'metrics.json'}"]))


def hest_bench(
    root: option(Path, "The folder that holds the tasks' folders."),
    json_file: Json,
    tasks: option(str | None, "IDC,PRAD,...; default every folder.") = None,
    run: AnyRun = None,
    backbone: Frozen = None,
    allow_leakage: Leak = False,
):
    """Score a run, or a frozen encoder, on HEST-bench's tasks as published, beside controls."""
    from seal_lite.encoders.registry import backbone_row
    from seal_lite.evaluation.features import embed_all
    from seal_lite.evaluation.hest_bench import (
        hest_px,
        read_hest_task,
        run_hest_bench,
        seen_test_samples,
    )
    from seal_lite.evaluation.scores import tidy
    from seal_lite.training.provenance import provenance

    model, config = _run_or_backbone(run, backbone)
    models = {"tuned": model} if model else {}
    row = backbone_row(config.backbone)
    px = hest_px(config, row) if models else row.px
    seen = _seen(run) if run else []
    names = _names(tasks) or sorted(p.parent.name for p in root.glob("*/splits"))
    if not names:
        raise InputError(f"{root}: holds no task; give the folder that hest-bench was unpacked to")
    tasks_ = [read_hest_task(root, name) for name in names]
    known = [
        seen_test_samples(task, seen, allow=allow_leakage) for task in tasks_
    ]  # before long work
    results = []
    for task, leaked in zip(tasks_, known, strict=True):
        samples = task.load(px=px)
        found = embed_all(samples.values(), models, config)
        result = run_hest_bench(task, samples, config, *found)
        record = provenance(samples.values(), config, run=str(run), leaked=leaked)
        results.append({**result, "provenance": record})
        table = tidy(result).pivot_table("r", ["features", "probe"], "target", "mean")
        typer.echo(f"{task.name}\n{table.round(3).to_string(na_rep='')}")
        _write_json(json_file, results)  # what is done is not lost with what comes


def retrieve(
    run: Run,
    data: Data,
    section: option(str, "Section to search."),
    genes: option(str, "Gene set to ask for: ERBB2,GRB7."),
    out: output("Picture to write (PNG).", folder=False),
    top: Top = 10,
):
    """Find the tissue regions that look like a gene set, and draw them."""
    from seal_lite import plots
    from seal_lite.encoders.embedding import embed_patches
    from seal_lite.evaluation.retrieval import gene_set_profile, retrieval_scores, search
    from seal_lite.io import atomic_file
    from seal_lite.model.seal import SEAL

    model, asked = SEAL.from_pretrained(run), _names(genes)
    profile = gene_set_profile(model.panel, asked)
    (loaded,) = _load(data, [section], model.config)
    e = embed_patches(model.encoder, loaded.patches)
    asks, gallery = model.encode_genes(profile), model.project_images(e)
    (hits,), (cosines,) = search(asks, gallery, top=top)
    scores = retrieval_scores(model, loaded, e)
    figure = plots.retrieval(
        loaded, model.panel, asked, hits, cosines, patch_um=model.config.patch_um
    )
    with atomic_file(out) as part:
        figure.savefig(part, dpi=150, bbox_inches="tight", format=out.suffix[1:] or "png")
    for k in (1, 5, 10):
        typer.echo(f"recall@{k} {scores[f'recall@{k}']:.3f} (chance {scores[f'chance@{k}']:.3f})")
    typer.echo(f"wrote {out}")


def retrieval_bench(
    run: Run,
    data: Data,
    json_file: Json,
    sections: Sections = None,
    gmt: option(Path | None, "Gene sets to ask for (GMT).") = None,
    top: Top = 10,
):
    """Genes to images and back, within a slide, across slides and across patients."""
    import pandas as pd

    from seal_lite.data.pathways import read_gmt
    from seal_lite.encoders.embedding import embed_patches
    from seal_lite.evaluation.retrieval import cross_modal, gene_set_scores, shared_space
    from seal_lite.model.seal import SEAL
    from seal_lite.training.provenance import provenance

    model = SEAL.from_pretrained(run)
    net = read_gmt(gmt) if gmt else pd.DataFrame(columns=["source", "target"])
    sets = net[net.target.isin(model.panel.genes)].groupby("source").target.apply(list)
    if gmt and sets.empty:
        raise InputError(f"{gmt}: none of its genes is in the run's panel; give symbols")
    loaded = _load(data, _names(sections), model.config)
    images = [embed_patches(model.encoder, s.patches) for s in loaded]
    space = shared_space(model, loaded, images)
    result = {"slides": cross_modal(space, top=top)}
    if gmt:
        result["sets"] = gene_set_scores(model, space, sets.to_dict(), top=top)
    table = pd.DataFrame(result["slides"]).drop(columns="slide")
    means = table.groupby(["direction", "scope"], sort=False).mean()
    typer.echo(means.round(3).to_string(na_rep=""))
    record = provenance(loaded, model.config, run=str(run))
    _write_json(json_file, {**result, "provenance": record})
