"""The command line: each command reads its input, checks it, and calls one function."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from tissue_phantom.cli import cohort, phantom

from .errors import InputError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="SEAL-lite: finetune a pathology encoder with spatial transcriptomics, "
                       "and measure honestly what that gained.")  # fmt: skip


def option(kind, text: str, *names: str):
    """The annotation of an option, short enough to stand beside its name."""
    return Annotated[kind, typer.Option(*names, help=text)]


Data = option(Path, "A folder of sections, in any format that is read.")
Every = option(str | None, "Names of sections; default every one.")
Run = option(Path, "A run folder that `finetune` wrote.")
Set = option(list[str] | None, "Override a setting: key=value.", "--set")
Json = option(Path, "Where to write the scores.", "--json")
AnyRun = option(Path | None, "A run folder that `finetune` wrote.")
Frozen = option(str | None, "Or a frozen encoder alone.")
Sections = option(str | None, "C2,C3,...; default: all with an image.")
Leak = option(bool, "Test on what has been seen; marks the result.")
Preset = option(str, "default, or paper (the released SEAL settings).")


def _names(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [t.strip() for t in text.split(",") if t.strip()]
    if not names:
        raise InputError(f"'{text}': names nothing; give a comma-separated list")
    return names


def _config(preset_name: str, overrides, **changes):
    from .config import preset

    given = [f"{k}={v}" for k, v in changes.items() if v is not None]
    return preset(preset_name).override([*(overrides or []), *given])


def _load(data, names, config):
    from .sections import load_sections

    return load_sections(data, names, patch_um=config.patch_um, patch_px=config.patch_px)


def _run_or_backbone(run, backbone):
    """(the finetuned model or None, its config)."""
    from .model import SEAL

    if (run is None) == (backbone is None):
        raise InputError("give either --run or --backbone")
    model = SEAL.from_pretrained(run) if run else None
    return model, model.config if model else _config("default", None, backbone=backbone)


def _write_json(path: Path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))
    typer.echo(f"wrote {path}")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="her2st, visium or hest")],
    out: option(Path, "Folder to download into; resumes."),
    sections: option(str | None, "C2,C3,..., names of 10x's, or ids of HEST-1k.") = None,
):  # fmt: skip
    """Download public data, each file verified against its recorded hash."""
    from . import fetch as known

    sources = {"her2st": known.fetch_her2st, "visium": known.fetch_visium, "hest": known.fetch_hest}
    if name not in sources:
        raise InputError(f"fetch {name}: unknown data set; use {', '.join(sources)}")
    sources[name](out, sections=_names(sections))
    typer.echo(f"{name} is in {out}")


@app.command()
def check(
    data: Data, out: option(Path, "The page to write (HTML)."), sections: Every = None,
    run: AnyRun = None, set_: Set = None,
):  # fmt: skip
    """Look at data before hours of training: pairs, scale, depth, pictures, what seems wrong."""
    from .check import check as look
    from .check import report

    config = _config("default", set_)
    model = _run_or_backbone(run, None)[0] if run else None
    said, found = look(data, config, names=_names(sections), panel=model and model.panel)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(report(said, found, config, title=f"Check of {data.resolve().name}"))
    for sentence in said:
        typer.echo(f"- {sentence}")
    pairs = sum(len(section.rows) for section, *_ in found.values())
    typer.echo(f"{pairs} pairs in {len(found)} sections; wrote {out}")


@app.command()
def encoders():
    """List the pretrained encoders that have a name here; any other timm model has its own."""
    from dataclasses import asdict

    import pandas as pd

    from .backbones import BACKBONES

    shown = ["name", "dim", "px", "um_per_px", "embedding", "licence", "gated", "card", "extra"]
    table = pd.DataFrame([asdict(row) for row in BACKBONES.values()])[shown]
    typer.echo(table.fillna("").to_string(index=False))
    typer.echo("or any timm model by its own name, hf-hub:OWNER/MODEL or local-dir:FOLDER")


@app.command()
def finetune(
    data: Data, train: option(str, "Training sections: C2,C3,C4."),
    out: option(Path, "Run folder; an interrupted run resumes."), backbone: str | None = None,
    epochs: int | None = None, seed: int | None = None,
    include: option(str | None, "Further genes that the panel must hold.") = None,
    cache: option(Path | None, "Folder for the prefix cache.") = None, preset: Preset = "default",
    set_: Set = None,
):  # fmt: skip
    """Finetune the encoder on pairs of expression and tissue."""
    config = _config(preset, set_, backbone=backbone, epochs=epochs, seed=seed)
    sections = _load(data, _names(train), config)
    from .evaluate import genes_to_score
    from .train import finetune as run

    wanted = [*genes_to_score(data, sections), *(_names(include) or ())]
    _, history = run(sections, config, out=out, include=wanted, cache_dir=cache)
    joint = [h["loss"] for h in history if h["phase"] == "joint"]
    typer.echo(f"loss {joint[0]:.3f} -> {joint[-1]:.3f} in {len(joint)} epochs; run is in {out}")


@app.command()
def probe(
    run: Run, data: Data, train: option(str, "Sections the probe is fitted on."),
    test: option(str, "Sections it is scored on."), json_file: Json,
):  # fmt: skip
    """Score a run against the frozen encoder and the controls on held-out sections."""
    from .crossval import deltas, score_rows, summary
    from .evaluate import fold_features, gene_classes, genes_to_score, score_models
    from .model import SEAL
    from .train import provenance

    model = SEAL.from_pretrained(run)
    if not (run / "provenance.json").is_file():
        raise InputError(f"{run}: no provenance.json, so its training sections are unknown")
    seen = json.loads((run / "provenance.json").read_text())["sections"]
    for a, b in ((_names(train), "--train"), (seen, "the run's training sections")):
        if both := sorted(set(a) & set(_names(test))):
            raise InputError(f"--test {','.join(both)}: also in {b}; test on sections never seen")
    config = model.config
    fit, held = _load(data, _names(train), config), _load(data, _names(test), config)
    wanted = genes_to_score(data, fit)
    genes = [g for g in wanted if g in model.panel.genes]
    if not genes:
        raise InputError(f"{run}: none of the genes to score is in its panel; finetune on --train")
    if len(genes) < len(wanted):
        typer.echo(f"{len(wanted) - len(genes)} of {len(wanted)} genes are not in the run's panel")
    models = {"tuned": model}
    features = fold_features(fit, held, genes, models, config)
    scores = score_models(data, fit, held, genes, models, features, seed=config.seed)
    folds = [{"test": test, "seed": config.seed, "scores": score_rows(scores, genes)}]
    classes, record = gene_classes(data), provenance([*fit, *held], config, run=str(run))
    result = {"data": data.name, "backbone": config.backbone, "provenance": record,
              "classes": classes, "folds": folds, "delta": deltas(folds, classes)}  # fmt: skip
    typer.echo(summary(result).round(3).to_string())
    _write_json(json_file, result)


@app.command()
def crossval(
    data: Data, out: option(Path, "Folder for folds and metrics.json; resumes."),
    groups: option(str, "Hold out a section, a patient, or a column of sections.tsv.") = "section",
    train_groups: option(int | None, "Train on so many groups; default all but one.") = None,
    seeds: int = 3, sections: Sections = None, backbone: str | None = None,
    epochs: int | None = None, preset: Preset = "default", set_: Set = None,
    allow_leakage: Leak = False,
):  # fmt: skip
    """Leave one group out: finetune and fit everything inside each fold, score on the rest."""
    from . import crossval as cv
    from . import leakage

    config = _config(preset, set_, backbone=backbone, epochs=epochs)
    loaded = _load(data, _names(sections), config)
    of = cv.groups_of(loaded, groups)
    if groups != "section":  # patients are held out inside such a group, too
        of = [f"{group}/{s.patient}" for group, s in zip(of, loaded, strict=True)]
    said = leakage.check(loaded, of, allow=allow_leakage)
    result = cv.crossval(data, loaded, config, by=groups, train_groups=train_groups, seeds=seeds,
                         leakage=said, out=out)  # fmt: skip
    typer.echo(cv.summary(result).round(3).to_string())
    for name, kind in (("delta", ""), ("delta_in", ", in distribution"),
                       ("delta_out", ", out of distribution"), ("delta_gap", ", gap")):  # fmt: skip
        for d in result.get(name, []):
            low, high = d["ci95"]
            genes = f" [{d['class']}]" if "class" in d else ""
            verdict = "" if low > 0 or high < 0 else "  (no difference)"
            typer.echo(f"{d['of']} - {d['minus']}, {d['probe']}, {d['target']}{genes}{kind}: "
                       f"{d['mean']:+.3f} [{low:+.3f}, {high:+.3f}]{verdict}")  # fmt: skip
    for sentence in said:
        typer.echo(f"leakage allowed: {sentence}")
    typer.echo(f"wrote {out / 'metrics.json'}")


@app.command()
def hest_bench(
    root: option(Path, "The folder that holds the tasks' folders."), json_file: Json,
    tasks: option(str | None, "IDC,PRAD,...; default every folder.") = None, run: AnyRun = None,
    backbone: Frozen = None, allow_leakage: Leak = False,
):  # fmt: skip
    """Score a run, or a frozen encoder, on HEST-bench's tasks as published, beside controls."""
    from . import hest
    from .backbones import backbone_row
    from .crossval import tidy
    from .evaluate import features
    from .train import provenance

    model, config = _run_or_backbone(run, backbone)
    models = {"tuned": model} if model else {}
    row = backbone_row(config.backbone)
    px = hest.pixels(config, row) if models else row.px
    seen = json.loads((run / "provenance.json").read_text())["sections"] if run else []
    names = _names(tasks) or sorted(p.parent.name for p in root.glob("*/splits"))
    if not names:
        raise InputError(f"{root}: holds no task; give the folder that hest-bench was unpacked to")
    tasks_ = [hest.read_task(root, name) for name in names]
    known = [hest.leaked(task, seen, allow=allow_leakage) for task in tasks_]  # before long work
    results = []
    for task, leaked in zip(tasks_, known, strict=True):
        samples = task.load(px=px)
        found = features(samples.values(), models, config)
        result = hest.bench(task, samples, config, *found)
        record = provenance(samples.values(), config, run=str(run), leaked=leaked)
        results.append({**result, "provenance": record})
        table = tidy(result).pivot_table("r", ["features", "probe"], "target", "mean")
        typer.echo(f"{task.name}\n{table.round(3).to_string(na_rep='')}")
    _write_json(json_file, results)


@app.command()
def retrieve(
    run: Run, data: Data, section: option(str, "Section to search."),
    genes: option(str, "Gene set to ask for: ERBB2,GRB7."),
    out: option(Path, "Picture to write (PNG)."), top: int = 10,
):  # fmt: skip
    """Find the tissue regions that look like a gene set, and draw them."""
    from . import plots
    from .encoders import embed
    from .model import SEAL
    from .retrieval import gene_set_profile, retrieval_scores, search

    model, asked = SEAL.from_pretrained(run), _names(genes)
    profile = gene_set_profile(model.panel, asked)
    (loaded,) = _load(data, [section], model.config)
    e = embed(model.encoder, loaded.patches)
    (hits,), (cosines,) = search(model.encode_genes(profile), model.project_images(e), top=top)
    scores = retrieval_scores(model, loaded, e)
    figure = plots.retrieval(loaded, model.panel, asked, hits, cosines,
                             patch_um=model.config.patch_um)  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150, bbox_inches="tight")
    for k in (1, 5, 10):
        typer.echo(f"recall@{k} {scores[f'recall@{k}']:.3f} (chance {scores[f'chance@{k}']:.3f})")
    typer.echo(f"wrote {out}")


@app.command()
def retrieval_bench(
    run: Run, data: Data, json_file: Json, sections: Sections = None,
    gmt: option(Path | None, "Gene sets to ask for (GMT).") = None, top: int = 10,
):  # fmt: skip
    """Genes to images and back, within a slide, across slides and across patients."""
    import pandas as pd

    from .encoders import embed
    from .model import SEAL
    from .retrieval import cross_modal, gene_set_scores, shared_space
    from .train import provenance

    model = SEAL.from_pretrained(run)
    loaded = _load(data, _names(sections), model.config)
    space = shared_space(model, loaded, [embed(model.encoder, s.patches) for s in loaded])
    result = {"slides": cross_modal(space, top=top)}
    if gmt:
        from .pathways import read_gmt

        net = read_gmt(gmt)
        sets = net[net.target.isin(model.panel.genes)].groupby("source").target.apply(list)
        result["sets"] = gene_set_scores(model, space, sets.to_dict(), top=top)
    table = pd.DataFrame(result["slides"]).drop(columns="slide")
    means = table.groupby(["direction", "scope"], sort=False).mean()
    typer.echo(means.round(3).to_string(na_rep=""))
    record = provenance(loaded, model.config, code=("retrieval", "pairs", "train"), run=str(run))
    _write_json(json_file, {**result, "provenance": record})


@app.command()
def embed(
    slides: option(Path, "Folder of slides (SVS, TIFF, ...) or pictures."),
    out: option(Path, "Folder for <slide>.h5; what is there is kept."), run: AnyRun = None,
    backbone: Frozen = None,
    um_per_px: option(float | None, "Of pictures that do not say it themselves.") = None,
    patch_um: option(float | None, "Default: as in training.") = None,
):  # fmt: skip
    """Write every slide's features as TRIDENT does: tissue, a grid of regions, H5."""
    from .backbones import backbone_row
    from .encoders import build_encoder
    from .wsi import embed_slides, list_slides

    model, config = _run_or_backbone(run, backbone)
    encoder = model.encoder if model else build_encoder(config.backbone)
    scale = config.patch_um / (config.patch_px if model else backbone_row(config.backbone).px)
    um = patch_um or config.patch_um
    files = embed_slides(encoder, list_slides(slides), out, patch_um=um,
                         patch_px=round(um / scale), um_per_px=um_per_px)  # fmt: skip
    typer.echo(f"features of {len(files)} slides are in {out}")


@app.command()
def share(
    run: Run, repo: option(str, "OWNER/NAME on the Hugging Face hub."),
    scores: option(Path | None, "A metrics.json to quote in the model card.") = None,
    public: option(bool, "Visible to everybody.") = False,
):  # fmt: skip
    """Upload a run with its model card: its licence is that of the encoder it was tuned from."""
    from .share import push_to_hub

    typer.echo(f"shared: {push_to_hub(run, repo, scores=scores, private=not public)}")


@app.command()
def slide_bench(
    task: option(Path, "A Patho-Bench task: config.yaml, k=all.tsv."),
    features: option(list[str], "NAME=FOLDER of feature files, repeated."), json_file: Json,
    seeds: int = 3,
):  # fmt: skip
    """Score bags of features on a slide-level task, each against all that are named before it."""
    import pandas as pd

    from .slides import evaluate, read_bags, read_task

    asked, given = read_task(task), (text.partition("=")[::2] for text in features)
    result = evaluate(asked, {k: read_bags(asked, v) for k, v in given}, seeds=seeds)
    for part in ("scores", "delta"):
        typer.echo(pd.DataFrame(result[part]).to_string(index=False))
    _write_json(json_file, result)


for command in (phantom, cohort):  # what the book and the tests are run on
    app.command()(command)


def main():
    """Entry point: an `InputError` is one sentence on stderr and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        app()
    except (InputError, ModuleNotFoundError) as error:
        lacks = isinstance(error, ModuleNotFoundError)
        remedy = "pip install 'seal_lite[data,slides]'"
        text = f"{error.name} is not installed; {remedy}" if lacks else error
        typer.secho(f"seal-lite: {text}", fg="red", err=True)
        sys.exit(2)
