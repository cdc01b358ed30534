"""The paper's other evaluations, on encoders that the recorded cross-validations finetuned.

    python book/tasks.py HER2ST

HEST-bench in its own format, retrieval across slides and patients, and slide-level tasks on a
cohort. The encoders are those of runs/record/her2st and runs/record/phantom (`make record`), every
seed of them (HEST-bench: see `PHANTOM`); none is finetuned here, and none has seen what it is
scored on. Writes results/hest.json, retrieval.json and cohort.json, which the results page shows;
what is there and belongs to the code at hand is not measured again. `make tasks` runs it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from seal_lite import Config
from seal_lite.data.patches import HEST_UM
from seal_lite.data.pathways import read_gmt
from seal_lite.data.phantom import UM_PER_PX, cohort, oracle_features, phantom, write_task
from seal_lite.data.phantom.truth import gene_classes
from seal_lite.data.section import load_sections
from seal_lite.encoders.embedding import embed_patches
from seal_lite.encoders.vision import build_encoder
from seal_lite.evaluation.features import embed_all
from seal_lite.evaluation.hest_bench import GENES, hest_px, read_hest_task, run_hest_bench
from seal_lite.evaluation.retrieval import cross_modal, gene_set_scores, shared_space
from seal_lite.evaluation.scores import genes_to_score
from seal_lite.evaluation.statistics import deltas
from seal_lite.model.seal import SEAL
from seal_lite.slides.bench import score_bags
from seal_lite.slides.embed import embed_slides, list_slides
from seal_lite.slides.tasks import read_bags, read_slide_task
from seal_lite.training.provenance import code_hash, provenance

ROOT = Path(__file__).parents[1]
RESULTS, RECORDS = ROOT / "results", ROOT / "runs/record"
COHORT = {"patients": 60, "spots": 100, "seed": 0}
ASKED = {"patients": 8, "sections_per_patient": 2, "spots": 150, "seed": 5}  # no record's patients
PHANTOM = {"train": 8, "tests": 6, "seeds": 2}  # of the record's: HEST-bench's files are large


def kept(name: str) -> list[tuple[list[str], list[str], int, dict]]:
    """The record's encoders: (training sections, test groups, seed, {"tuned", "shuffled": run})."""
    found = []
    for path in sorted((RECORDS / name / "runs").glob("*/shuffled/provenance.json")):
        seen, folder = json.loads(path.read_text()), path.parents[1]
        tests, _, seed = folder.name.rpartition("-")
        if "finished" in seen:
            runs = {kind: folder / kind for kind in ("tuned", "shuffled")}
            found.append((seen["sections"], tests.split("+"), int(seed), runs))
    if not found:
        raise SystemExit(f"{RECORDS / name}/runs: holds no finished encoders; run make record")
    return found


def models_of(runs: dict) -> dict:
    return {kind: SEAL.from_pretrained(run) for kind, run in runs.items()}


def config_of(encoders: list) -> Config:
    """The settings of a record's encoders, which differ in the seed alone."""
    *_, runs = encoders[0]
    return Config.from_json(runs["tuned"] / "config.json")


def hest_scores(root, name: str) -> dict:
    """HEST-bench on every fold of a record: written as a task, read back, scored with each seed."""
    folds = []
    for train, tests, seed, runs in kept(name):
        if name == "phantom":  # whose patients have a section each
            if seed >= PHANTOM["seeds"]:
                continue
            train, tests = train[: PHANTOM["train"]], [f"{t}1" for t in tests[: PHANTOM["tests"]]]
        models = models_of(runs)
        config = dataclasses.replace(models["tuned"].config, seed=seed)
        task_name = f"{name}-{'+'.join(tests)}"
        if not (RECORDS / "hest" / task_name / GENES).exists():  # it is written last
            loaded = load_sections(root, [*train, *tests], patch_um=HEST_UM, patch_px=224)
            genes = genes_to_score(root, loaded[: len(train)])
            write_task(RECORDS / "hest", task_name, loaded, [(train, tests)], genes)
        task = read_hest_task(RECORDS / "hest", task_name)
        samples = task.load(px=hest_px(config, models["tuned"].encoder.row))
        result = run_hest_bench(task, samples, config, *embed_all(samples.values(), models, config))
        folds += [{**f, "test": task_name, "seed": seed} for f in result["folds"]]
        print(f"hest-bench: {task_name}, seed {seed}", flush=True)
    code, seeds = ("hest", "pairs", "train"), len({f["seed"] for f in folds})
    record = provenance(samples.values(), config, code=code, seeds=seeds)
    classes = gene_classes(root)
    return {
        "data": name,
        "backbone": config.backbone,
        "provenance": record,
        "folds": folds,
        "classes": classes,
        "delta": deltas(folds, classes),
    }


def retrieval_scores() -> dict:
    """Slides of patients that no encoder has seen ask each other; also sets of genes."""
    root = phantom(ROOT / "data/phantom-asked-record", **ASKED)
    gmt = read_gmt(cohort_folder() / "programs.gmt")
    encoders, rows, sets = kept("phantom"), [], []
    config = config_of(encoders)
    asked = load_sections(root, patch_um=config.patch_um, patch_px=config.patch_px)
    for _, _, seed, runs in encoders:
        for kind, model in models_of(runs).items():
            space = shared_space(
                model, asked, [embed_patches(model.encoder, s.patches) for s in asked]
            )
            rows += [{"model": kind, "seed": seed, **row} for row in cross_modal(space)]
            known = gmt[gmt.target.isin(model.panel.genes)]
            asks = known.groupby("source").target.apply(list).to_dict()
            found = gene_set_scores(model, space, asks)
            sets += [{"model": kind, "seed": seed, **row} for row in found]
            print(f"retrieval: {kind}, seed {seed}", flush=True)
    code, seeds = ("retrieval", "pairs", "train"), len(encoders)
    record = provenance(asked, config, code=code, seeds=seeds)
    return {"provenance": record, "rows": rows, "sets": sets}


def cohort_folder() -> Path:
    return cohort(ROOT / "data/cohort-record", **COHORT)


def cohort_scores() -> dict:
    """Every slide-level task of the cohort, with frozen, shuffled, tuned and oracle embed_all."""
    root = cohort_folder()
    slides = list_slides(root / "slides")
    base, results = RECORDS / "cohort", []
    encoders = kept("phantom")
    config = config_of(encoders)

    def embedded(encoder, name):
        embed_slides(
            encoder,
            slides,
            base / name,
            patch_um=config.patch_um,
            patch_px=config.patch_px,
            um_per_px=UM_PER_PX,
        )
        return base / name

    untuned = build_encoder(config.backbone, tune_blocks=config.tune_blocks)
    frozen = embedded(untuned, "frozen")
    oracle = oracle_features(root, frozen, base / "oracle", patch_um=config.patch_um)
    for _, _, seed, runs in encoders:
        models = models_of(runs)
        folders = {"frozen": frozen}
        for kind in ("shuffled", "tuned"):
            folders[kind] = embedded(models[kind].encoder, f"{kind}-{seed}")
        folders["oracle"] = oracle
        for folder in sorted((root / "tasks").iterdir()):
            task = read_slide_task(folder)
            bags = {name: read_bags(task, place) for name, place in folders.items()}
            results.append({"seed": seed, **score_bags(task, bags, seeds=1)})
            print(f"slide level: {task.name}, seed {seed}", flush=True)
    train, *_ = encoders[0]
    seen = load_sections(
        ROOT / "data/phantom-record", train, patch_um=config.patch_um, patch_px=config.patch_px
    )
    code, seeds = ("slides", "wsi", "pairs", "train"), len(encoders)
    record = provenance(seen, config, code=code, seeds=seeds)
    return {"provenance": record, "cohort": COHORT, "slides": len(slides), "results": results}


def measure(name: str, make):
    """Write results/<name>.json unless the record there is of the code at hand."""
    path = RESULTS / f"{name}.json"
    if path.exists():
        records = json.loads(path.read_text())
        p = (records.get("phantom") or records)["provenance"]
        if p["code_sha256"] == code_hash(p["code"]):
            return
    path.write_text(json.dumps(make(), default=float) + "\n")


if __name__ == "__main__":
    roots = {"her2st": sys.argv[1], "phantom": ROOT / "data/phantom-record"}
    measure("retrieval", retrieval_scores)
    measure("cohort", cohort_scores)
    measure("hest", lambda: {name: hest_scores(root, name) for name, root in roots.items()})
