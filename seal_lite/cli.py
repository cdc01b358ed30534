"""The command line: each command reads its input, checks it, and calls one function."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import seal_lite as sl  # its modules are imported when they are used: --help takes no second
from tissue_phantom.cli import cohort, phantom

from .errors import InputError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False,
                  help="SEAL-lite: finetune a pathology encoder with spatial transcriptomics, "
                       "and measure honestly what that gained.")  # fmt: skip


def option(kind, text: str, *names: str, **how):
    """The annotation of an option, short enough to stand beside its name."""
    return Annotated[kind, typer.Option(*names, help=text, **how)]


def output(text: str, *names: str, folder: bool = True):
    """A place to write to: that it can be is found out before any work."""

    def check(path: Path):
        there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        if not os.access(there, os.W_OK) or (not there.is_dir() if folder else path.is_dir()):
            raise InputError(f"{path}: cannot be written there; choose another place")
        return path

    return option(Path, text, *names, callback=check)


Data = option(Path, "A folder of sections, in any format that is read.")
Run = option(Path, "A run folder that `finetune` wrote.")
Set = option(list[str] | None, "Override a setting: key=value.", "--set")
Json = output("Where to write the scores.", "--json", folder=False)
AnyRun = option(Path | None, "A run folder that `finetune` wrote.")
Frozen = option(str | None, "Or a frozen encoder alone.")
Include = option(str | None, "Further genes that the panel must hold.")
Sections = option(str | None, "C2,C3,...; default: all that can be used.")
Seeds = option(int, "So many runs of each fold.", min=1)
Top = option(int, "So many regions are retrieved.", min=1)
Leak = option(bool, "Test on what has been seen; marks the result.")
Preset = option(str, "default, or paper (the released SEAL settings).")


def _names(text: str | None) -> list[str] | None:
    names = text and [t.strip() for t in text.split(",") if t.strip()]
    if text is not None and not names:
        raise InputError(f"'{text}': names nothing; give a comma-separated list")
    return names


def _config(preset_name: str, overrides, **changes):
    given = [f"{k}={v}" for k, v in changes.items() if v is not None]
    return sl.preset(preset_name).override([*(overrides or []), *given])


def _load(data, names, config):
    return sl.load_sections(data, names, patch_um=config.patch_um, patch_px=config.patch_px)


def _run_or_backbone(run, backbone):
    """(the finetuned model or None, its config)."""
    if (run is None) == (backbone is None):
        raise InputError("give either --run or --backbone")
    model = sl.SEAL.from_pretrained(run) if run else None
    return model, model.config if model else _config("default", None, backbone=backbone)


def _seen(run: Path) -> list[str]:
    """Names of the sections that a run was trained on."""
    return sl.files.read_json(run / "provenance.json", "sections")["sections"]


def _write_json(path: Path, value):
    sl.files.write_atomic(path, json.dumps(value, indent=1))
    typer.echo(f"wrote {path}")


def fetch(
    name: Annotated[str, typer.Argument(help="her2st, visium or hest")],
    out: output("Folder to download into; resumes."),
    sections: option(str | None, "C2,C3,..., 10x's names, or HEST-1k's ids.") = None):  # fmt: skip
    """Download public data, each file verified against its recorded hash."""
    if name not in ("her2st", "visium", "hest"):
        raise InputError(f"fetch {name}: unknown data set; use her2st, visium or hest")
    getattr(sl.fetch, f"fetch_{name}")(out, sections=_names(sections))
    typer.echo(f"{name} is in {out}")


def check(
    data: Data, out: output("The page to write (HTML).", folder=False), sections: Sections = None,
    run: AnyRun = None, set_: Set = None):  # fmt: skip
    """Look at data before hours of training: pairs, scale, depth, pictures, what seems wrong."""
    config = _config("default", set_)
    model = _run_or_backbone(run, None)[0] if run else None
    said, found = sl.check.check(data, config, names=_names(sections), panel=model and model.panel)
    page = sl.check.report(said, found, config, title=f"Check of {data.resolve().name}")
    sl.files.write_atomic(out, page)
    pairs, lines = sum(len(s.rows) for s, *_ in found.values()), [f"- {text}" for text in said]
    typer.echo("\n".join([*lines, f"{pairs} pairs in {len(found)} sections; wrote {out}"]))


def encoders():
    """List the pretrained encoders that have a name here; any other timm model has its own."""
    import pandas as pd

    shown = ["name", "dim", "px", "um_per_px", "embedding", "licence", "gated", "card", "extra"]
    table = pd.DataFrame([vars(row) for row in sl.backbones.BACKBONES.values()])[shown]
    typer.echo(table.fillna("").to_string(index=False))
    typer.echo("or any timm model by its own name, hf-hub:OWNER/MODEL or local-dir:FOLDER")


def shard(
    data: Data, train: option(str, "Training sections, to which the panel is fitted: C2,C3."),
    out: output("Folder of shards, which `finetune` takes as data; resumes."),
    include: Include = None, preset: Preset = "default", set_: Set = None):  # fmt: skip
    """Write pairs to disk, a file for each section: to train on more than memory holds."""
    config = _config(preset, set_)
    made = sl.shards.shard_sections(data, _names(train), config, out, include=_names(include) or ())
    typer.echo(f"{len(made)} shards are in {out}")


def finetune(
    data: Data, out: output("Run folder; an interrupted run resumes."),
    train: option(str | None, "Training sections: C2,C3,C4; default, of shards: all.") = None,
    backbone: str | None = None, epochs: int | None = None, seed: int | None = None,
    include: Include = None, cache: option(Path | None, "Folder for the prefix cache.") = None,
    chunk: option(int, "Images at a time in a step: less memory, same result. 0: all.", min=0) = 0,
    preset: Preset = "default", set_: Set = None):  # fmt: skip
    """Finetune the encoder on pairs of expression and tissue, or on shards of them."""
    config = _config(preset, set_, backbone=backbone, epochs=epochs, seed=seed)
    if sl.shards.holds_shards(data):
        if include:
            raise InputError(f"--include: {data} has its panel; give it to `shard`")
        (sections, panel), wanted = sl.shards.read_shards(data, config, names=_names(train)), ()
    elif train is None:
        raise InputError("--train: name the sections that train; the others stay unseen")
    else:
        sections, panel = _load(data, _names(train), config), None
        wanted = [*sl.evaluate.genes_to_score(data, sections), *(_names(include) or ())]
    _, history = sl.finetune(sections, config, panel=panel, out=out, include=wanted,
                             cache_dir=cache, chunk=chunk)  # fmt: skip
    joint = [h["loss"] for h in history if h["phase"] == "joint"]
    typer.echo(f"loss {joint[0]:.3f} -> {joint[-1]:.3f} in {len(joint)} epochs; run is in {out}")


def probe(
    run: Run, data: Data, train: option(str, "Sections the probe is fitted on."),
    test: option(str, "Sections it is scored on."), json_file: Json):  # fmt: skip
    """Score a run against the frozen encoder and the controls on held-out sections."""
    model = sl.SEAL.from_pretrained(run)
    for a, b in ((_names(train), "--train"), (_seen(run), "the run's training sections")):
        if both := sorted(set(a) & set(_names(test))):
            raise InputError(f"--test {','.join(both)}: also in {b}; test on sections never seen")
    config = model.config
    fit, held = _load(data, _names(train), config), _load(data, _names(test), config)
    wanted = sl.evaluate.genes_to_score(data, fit)
    genes = [g for g in wanted if g in model.panel.genes]
    if not genes:
        raise InputError(f"{run}: none of the genes to score is in its panel; finetune on --train")
    sl.evaluate.refuse_lacking(held, genes)
    if len(genes) < len(wanted):
        typer.echo(f"{len(wanted) - len(genes)} of {len(wanted)} genes are not in the run's panel")
    models = {"tuned": model}
    found = sl.evaluate.fold_features(fit, held, genes, models, config)
    scores = sl.evaluate.score_models(data, fit, held, genes, models, found, seed=config.seed)
    folds = [{"test": test, "seed": config.seed, "scores": sl.crossval.score_rows(scores, genes)}]
    classes = sl.evaluate.gene_classes(data)
    record = sl.train.provenance([*fit, *held], config, run=str(run))
    result = {"data": data.name, "backbone": config.backbone, "provenance": record,
              "classes": classes, "folds": folds,
              "delta": sl.crossval.deltas(folds, classes)}  # fmt: skip
    typer.echo(sl.crossval.summary(result).round(3).to_string())
    _write_json(json_file, result)


def crossval(
    data: Data, out: output("Folder for folds and metrics.json; resumes."),
    groups: option(str, "Hold out a section, a patient, or a column of sections.tsv.") = "section",
    train_groups: option(int | None, "Train on so many groups; default all but one.") = None,
    seeds: Seeds = 3, sections: Sections = None, backbone: str | None = None,
    epochs: int | None = None, preset: Preset = "default", set_: Set = None,
    allow_leakage: Leak = False):  # fmt: skip
    """Leave one group out: finetune and fit everything inside each fold, score on the rest."""
    config = _config(preset, set_, backbone=backbone, epochs=epochs)
    loaded = _load(data, _names(sections), config)
    of = sl.crossval.groups_of(loaded, groups)
    if groups != "section":  # patients are held out inside such a group, too
        of = [f"{group}/{s.patient}" for group, s in zip(of, loaded, strict=True)]
    said = sl.leakage.check(loaded, of, allow=allow_leakage)
    result = sl.crossval.crossval(data, loaded, config, by=groups, train_groups=train_groups,
                                  seeds=seeds, leakage=said, out=out)  # fmt: skip
    typer.echo(sl.crossval.summary(result).round(3).to_string())
    lines = [*sl.crossval.verdicts(result), *(f"leakage allowed: {s}" for s in said)]
    typer.echo("\n".join([*lines, f"wrote {out / 'metrics.json'}"]))


def hest_bench(
    root: option(Path, "The folder that holds the tasks' folders."), json_file: Json,
    tasks: option(str | None, "IDC,PRAD,...; default every folder.") = None, run: AnyRun = None,
    backbone: Frozen = None, allow_leakage: Leak = False):  # fmt: skip
    """Score a run, or a frozen encoder, on HEST-bench's tasks as published, beside controls."""
    model, config = _run_or_backbone(run, backbone)
    models = {"tuned": model} if model else {}
    row = sl.backbones.backbone_row(config.backbone)
    px = sl.hest.pixels(config, row) if models else row.px
    seen = _seen(run) if run else []
    names = _names(tasks) or sorted(p.parent.name for p in root.glob("*/splits"))
    if not names:
        raise InputError(f"{root}: holds no task; give the folder that hest-bench was unpacked to")
    tasks_ = [sl.hest.read_task(root, name) for name in names]
    known = [sl.hest.leaked(task, seen, allow=allow_leakage) for task in tasks_]  # before long work
    results = []
    for task, leaked in zip(tasks_, known, strict=True):
        samples = task.load(px=px)
        found = sl.evaluate.features(samples.values(), models, config)
        result = sl.hest.bench(task, samples, config, *found)
        record = sl.train.provenance(samples.values(), config, run=str(run), leaked=leaked)
        results.append({**result, "provenance": record})
        table = sl.crossval.tidy(result).pivot_table("r", ["features", "probe"], "target", "mean")
        typer.echo(f"{task.name}\n{table.round(3).to_string(na_rep='')}")
        _write_json(json_file, results)  # what is done is not lost with what comes


def retrieve(
    run: Run, data: Data, section: option(str, "Section to search."),
    genes: option(str, "Gene set to ask for: ERBB2,GRB7."),
    out: output("Picture to write (PNG).", folder=False), top: Top = 10):  # fmt: skip
    """Find the tissue regions that look like a gene set, and draw them."""
    model, asked = sl.SEAL.from_pretrained(run), _names(genes)
    profile = sl.retrieval.gene_set_profile(model.panel, asked)
    (loaded,) = _load(data, [section], model.config)
    e = sl.encoders.embed(model.encoder, loaded.patches)
    asks, gallery = model.encode_genes(profile), model.project_images(e)
    (hits,), (cosines,) = sl.retrieval.search(asks, gallery, top=top)
    scores = sl.retrieval.retrieval_scores(model, loaded, e)
    figure = sl.plots.retrieval(loaded, model.panel, asked, hits, cosines,
                                patch_um=model.config.patch_um)  # fmt: skip
    with sl.files.appearing(out) as part:
        figure.savefig(part, dpi=150, bbox_inches="tight", format=out.suffix[1:] or "png")
    for k in (1, 5, 10):
        typer.echo(f"recall@{k} {scores[f'recall@{k}']:.3f} (chance {scores[f'chance@{k}']:.3f})")
    typer.echo(f"wrote {out}")


def retrieval_bench(
    run: Run, data: Data, json_file: Json, sections: Sections = None,
    gmt: option(Path | None, "Gene sets to ask for (GMT).") = None, top: Top = 10):  # fmt: skip
    """Genes to images and back, within a slide, across slides and across patients."""
    import pandas as pd

    model = sl.SEAL.from_pretrained(run)
    net = sl.pathways.read_gmt(gmt) if gmt else pd.DataFrame(columns=["source", "target"])
    sets = net[net.target.isin(model.panel.genes)].groupby("source").target.apply(list)
    if gmt and sets.empty:
        raise InputError(f"{gmt}: none of its genes is in the run's panel; give symbols")
    loaded = _load(data, _names(sections), model.config)
    images = [sl.encoders.embed(model.encoder, s.patches) for s in loaded]
    space = sl.retrieval.shared_space(model, loaded, images)
    result = {"slides": sl.retrieval.cross_modal(space, top=top)}
    if gmt:
        result["sets"] = sl.retrieval.gene_set_scores(model, space, sets.to_dict(), top=top)
    table = pd.DataFrame(result["slides"]).drop(columns="slide")
    means = table.groupby(["direction", "scope"], sort=False).mean()
    typer.echo(means.round(3).to_string(na_rep=""))
    code = ("retrieval", "pairs", "train")
    record = sl.train.provenance(loaded, model.config, code=code, run=str(run))
    _write_json(json_file, {**result, "provenance": record})


def embed(
    slides: option(Path, "Folder of slides (SVS, TIFF, ...) or pictures."),
    out: output("Folder for <slide>.h5, kept."), run: AnyRun = None, backbone: Frozen = None,
    um_per_px: option(float | None, "Of pictures that do not say it themselves.", min=1e-3) = None,
    patch_um: option(float | None, "Default: as in training.", min=1.0) = None):  # fmt: skip
    """Write every slide's features as TRIDENT does: tissue, a grid of regions, H5."""
    model, config = _run_or_backbone(run, backbone)
    encoder = model.encoder if model else sl.encoders.build_encoder(config.backbone)
    um = patch_um or config.patch_um
    px = round(um * (config.patch_px if model else encoder.row.px) / config.patch_um)
    files = sl.wsi.embed_slides(encoder, sl.wsi.list_slides(slides), out, patch_um=um, patch_px=px,
                                um_per_px=um_per_px)  # fmt: skip
    typer.echo(f"features of {len(files)} slides are in {out}")


def share(
    run: Run, repo: option(str, "OWNER/NAME on the Hugging Face hub."),
    scores: option(Path | None, "A metrics.json to quote in the model card.") = None,
    public: option(bool, "Visible to everybody.") = False):  # fmt: skip
    """Upload a run with its model card: its licence is that of the encoder it was tuned from."""
    typer.echo(f"shared: {sl.share.push_to_hub(run, repo, scores=scores, private=not public)}")


def slide_bench(
    task: option(Path, "A Patho-Bench task: config.yaml, k=all.tsv."),
    features: option(list[str], "NAME=FOLDER of feature files, repeated."), json_file: Json,
    seeds: Seeds = 3):  # fmt: skip
    """Score bags of features on a slide-level task, each against all that are named before it."""
    import pandas as pd

    asked, given = sl.slides.read_task(task), [text.partition("=")[::2] for text in features]
    if bare := [name for name, folder in given if not (name and folder)]:
        raise InputError(f"--features {bare[0]}: give NAME=FOLDER")
    bags = {name: sl.slides.read_bags(asked, folder) for name, folder in given}
    result = sl.slides.evaluate(asked, bags, seeds=seeds)
    for part in ("scores", "delta"):
        typer.echo(pd.DataFrame(result[part]).to_string(index=False))
    _write_json(json_file, result)


for command in (fetch, check, shard, finetune, probe, crossval, hest_bench, retrieve,
                retrieval_bench, embed, slide_bench, encoders, share, phantom, cohort):  # fmt: skip
    app.command()(command)


def main():
    """Entry point: an `InputError` is one sentence on stderr and exit code 2."""
    first = os.environ.get("RANK", "0") == "0"  # of several processes one speaks
    sys.stdout = sys.stdout if first else open(os.devnull, "w")
    level = logging.INFO if first else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False) or 0)
    except InputError as error:
        said = str(error)
    except ModuleNotFoundError as error:
        said = f"{error.name} is not installed; pip install 'seal_lite[data,slides]'"
    except typer.BadParameter.__base__ as error:  # click's, of which typer may have its own copy
        said = f"{error.format_message()} See seal-lite --help"
    except OSError as error:  # a full disk, a folder without permission
        if not error.errno:
            raise
        said = f"{error.filename or 'cannot be written'}: {error.strerror}; write elsewhere"
    typer.secho(f"seal-lite: {' '.join(said.split())}", fg="red", err=True)
    sys.exit(2)
