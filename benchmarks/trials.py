"""Which settings earn their place: every trial and every ablation, measured the same way.

    python book/trials.py HER2ST [--only ARM ...]    # results/trials.json

Every arm changes the full recipe, which has every part of the method; the default has those that
earn their place. It trains on each pair of the four sections, each pair with a seed of its own, and
is scored on the two others. Read one way this is the ablation: six trainings, six seeds, compared
with the full recipe run by run. Read the other way it is the cross-validation inside every outer
fold: of the two sections that a run scores, either is in turn the outer fold's test section and is
then not looked at (`votes`). A setting becomes the default only where every outer fold prefers it
by itself, so no fold's choice has seen its own test section. Every finished run is in the file at
once and not made again: the hours that all of it takes can be spent in parts. One process a core.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import inspect
import itertools
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import variants
from page import CLAIMS
from seal_lite import Config, InputError
from seal_lite.data.section import Section, load_sections
from seal_lite.encoders.embedding import embed_stages
from seal_lite.encoders.vision import build_encoder
from seal_lite.evaluation.retrieval import retrieval_scores
from seal_lite.evaluation.scores import decoder_scores, genes_to_score, probe_scores, score_sections
from seal_lite.evaluation.targets import TARGETS, section_targets
from seal_lite.io import write_atomic
from seal_lite.training.loop import finetune
from seal_lite.training.provenance import code_hash, provenance

ROOT = Path(__file__).parents[1]
RUNS, RESULTS = ROOT / "runs/trials", ROOT / "results"
SECTIONS = ("C2", "C3", "C4", "C5")
CODE = ("evaluate", "retrieval", "pairs", "train")  # what decides a run

REFERENCE = "full recipe"
FULL = Config(w_corr=0.5, gene_warmup_epochs=2)
DEFAULT = {k: v for k, v in vars(Config()).items() if v != getattr(FULL, k)}
FEWER = {"w_corr": 0.0, "smooth": 0.0, "gene_warmup_epochs": 0}

# name: (group, hypothesis, expected, changed settings[, a variant[, um of a second scale]])
ARMS = {
    REFERENCE: ("reference", "every part that the method has", "", {}),
    "default": (
        "loss",
        "without what makes no difference, deep or shallow, nothing is lost",
        "no change",
        DEFAULT,
    ),
    "three parts fewer": (
        "loss",
        "the three that make no difference alone make none together",
        "no change",
        FEWER,
    ),
    "no contrast": (
        "loss",
        "the contrast shapes the shared space only",
        "no change",
        {"w_clip": 0.0},
    ),
    "no gene -> gene": (
        "loss",
        "the gene encoder needs its reconstruction",
        "worse",
        {"w_gene": 0.0},
    ),
    "no image -> gene": (
        "loss",
        "the contrast alone teaches the encoder",
        "no change",
        {"w_image": 0.0},
    ),
    "no correlation": (
        "loss",
        "the mean squared error alone is enough",
        "no change",
        {"w_corr": 0.0},
    ),
    "no squared error": ("loss", "the correlation alone is enough", "no change", {"w_mse": 0.0}),
    "KL 1e-3": ("loss", "a prior on the gene embedding regularises it", "better", {"w_kl": 0.001}),
    "soft targets": (
        "loss",
        "look-alike neighbours are no negatives",
        "better",
        {"soft_targets": 0.5},
    ),
    "regression only": (
        "loss",
        "ST-Net: one loss, image to gene",
        "worse",
        {"w_clip": 0.0, "w_gene": 0.0, "w_corr": 0.0},
    ),
    "image -> gene only": (
        "loss",
        "without contrast and gene encoder something is lost",
        "worse",
        {"w_clip": 0.0, "w_gene": 0.0},
    ),
    "contrast and decoder only": (
        "loss",
        "what makes no difference alone makes none together",
        "no change",
        {"w_gene": 0.0, "w_corr": 0.0, "gene_warmup_epochs": 0},
    ),
    "contrast only": (
        "loss",
        "BLEEP, Loki: no reconstruction at all",
        "worse",
        {"w_gene": 0.0, "w_image": 0.0},
    ),
    "SigLIP": ("loss", "yes-or-no questions suit small batches", "better", {}, variants.siglip),
    "targets by expression": (
        "loss",
        "near-duplicates are no negatives",
        "better",
        {},
        variants.expression_targets,
    ),
    "near the base": (
        "loss",
        "a leash keeps what ImageNet taught",
        "better",
        {},
        variants.near_the_base,
    ),
    "no smoothing": (
        "genes",
        "a spot's own counts are the sharper target",
        "better",
        {"smooth": 0.0},
    ),
    "smoothing 0.8": ("genes", "neighbours remove noise", "better", {"smooth": 0.8}),
    "a quarter of the counts": (
        "genes",
        "fewer counts teach less",
        "worse",
        {},
        variants.quarter_of_counts,
    ),
    "three parts fewer, a quarter": (
        "genes",
        "with few counts smoothing does matter",
        "worse",
        FEWER,
        variants.quarter_of_counts,
    ),
    "default, a quarter": (
        "genes",
        "and the two other parts still do not",
        "no change",
        DEFAULT,
        variants.quarter_of_counts,
    ),
    "512 genes": ("genes", "more genes teach more", "better", {"n_genes": 512}),
    "released genes": (
        "genes",
        "seurat's dispersion finds genes as good",
        "no change",
        {"hvg": "seurat"},
    ),
    "training z-score": ("genes", "one scale for all sections", "no change", {"zscore": "train"}),
    "no augmentation": (
        "views",
        "turns and stains keep it from learning by heart",
        "worse",
        {"n_views": 1},
    ),
    "16 views": ("views", "twice the views, half the repeats", "better", {"n_views": 16}),
    "no stain jitter": ("views", "turns alone are enough", "worse", {"stain_jitter": 0.0}),
    "stain jitter 0.3": (
        "views",
        "stronger stains carry over better",
        "better",
        {"stain_jitter": 0.3},
    ),
    "no gene warm-up": (
        "schedule",
        "the gene encoder needs no start",
        "no change",
        {"gene_warmup_epochs": 0},
    ),
    "warm-up on 24 more sections": (
        "schedule",
        "profiles without pictures help too",
        "better",
        {},
        variants.warm_on_expression,
    ),
    "averaged weights": (
        "schedule",
        "the mean of the last epochs generalises better",
        "better",
        {},
        variants.averaged,
    ),
    "10 epochs": ("schedule", "half the time is enough", "no change", {"epochs": 10}),
    "40 epochs": ("schedule", "it has not converged", "better", {"epochs": 40}),
    "rank 2": (
        "encoder",
        "a small change is enough",
        "no change",
        {"lora_rank": 2, "lora_alpha": 4.0},
    ),
    "rank 8": (
        "encoder",
        "a small change is enough",
        "no change",
        {"lora_rank": 8, "lora_alpha": 16.0},
    ),
    "full finetuning": (
        "encoder",
        "low rank regularises",
        "worse",
        {"lora_rank": 0, "lr_lora": 0.003},
    ),
    "LoRA alone": (
        "encoder",
        "matrices of low rank are enough",
        "no change",
        {},
        variants.lora_alone,
    ),
    "LoRA dropout 0.15": ("encoder", "dropout regularises", "better", {"lora_dropout": 0.15}),
    "1 block": ("encoder", "the last block carries the meaning", "no change", {"tune_blocks": 1}),
    "2 blocks": ("encoder", "the last block carries the meaning", "no change", {"tune_blocks": 2}),
    "4 blocks": ("encoder", "early texture matters", "better", {"tune_blocks": 4}),
    "all blocks": ("encoder", "early texture matters", "better", {"tune_blocks": 5}),
    "112 um, 0.7 um/px": ("patch", "the spot itself is enough", "no change", {"patch_um": 112.0}),
    "112 um, 0.5 um/px": (
        "patch",
        "the paper's patch",
        "no change",
        {"patch_um": 112.0, "patch_px": 224},
    ),
    "224 um, 1.0 um/px": ("patch", "detail matters more than time", "better", {"patch_px": 224}),
    "centre-weighted pooling": (
        "patch",
        "the spot's own cells count most",
        "better",
        {},
        variants.centre_pooling,
    ),
    "1.0 um/px, 10 epochs": (
        "patch",
        "detail is worth half the epochs",
        "better",
        {"patch_px": 224, "epochs": 10},
    ),
    "448 um, 2.8 um/px": ("patch", "the neighbourhood tells more", "better", {"patch_um": 448.0}),
    "two scales": ("patch", "detail and neighbourhood together", "better", {}, None, 448.0),
}


def splits():
    """(training sections, test sections, seed) of every run of an arm."""
    for seed, train in enumerate(itertools.combinations(SECTIONS, 2)):
        yield train, tuple(s for s in SECTIONS if s not in train), seed


@functools.cache
def read(root, patch_um: float, patch_px: int) -> dict[str, Section]:
    """All sections by name, decoded once a process."""
    return {s.name: s for s in load_sections(root, SECTIONS, patch_um=patch_um, patch_px=patch_px)}


def measure(root, train_names, test_names, config: Config, variant=None, second_um=None) -> dict:
    """Finetune once; mean r by test section, of features, probe and target.

    The tuned embedding is read by both probes, by the model's decoder, and by retrieval as BLEEP
    and Loki predict: the expression of the training spots, weighted by how close their profiles lie
    to the image in the shared space. The frozen embedding stands beside it at every stage of the
    tail, and with the tuned one. `second_um` finetunes another encoder on patches of that size and
    reads both side by side, tuned with tuned and frozen with frozen. "recall@10" is that of a
    spot's profile for its own region within its section.
    """
    scales = [config, dataclasses.replace(config, patch_um=second_um)] if second_um else [config]
    n, caches = len(train_names), RUNS / "cache"
    loaded = [
        [read(root, c.patch_um, c.patch_px)[s] for s in (*train_names, *test_names)] for c in scales
    ]
    # A larger patch leaves the image at fewer spots: keep those that all scales have.
    common = [
        functools.reduce(np.intersect1d, [s.rows for s in same])
        for same in zip(*loaded, strict=True)
    ]
    loaded = [
        [
            Section(s.adata, rows, s.patches[np.isin(s.rows, rows)])
            for s, rows in zip(sections, common, strict=True)
        ]
        for sections in loaded
    ]
    genes = genes_to_score(root, loaded[0][:n])
    first, features, seconds = None, {}, 0.0
    for c, sections in zip(scales, loaded, strict=True):
        with variant(sections[:n]) if variant else contextlib.nullcontext():
            model, history = finetune(
                sections[:n], c, include=genes, cache_dir=caches, progress=False
            )
            tuned = embed_stages(model.encoder, sections, caches)[model.encoder.tap]
            frozen = build_encoder(c.backbone, tune_blocks=c.tune_blocks)
            stages = embed_stages(frozen, sections, caches)
        found = {"tuned": tuned, **{f"frozen {stage}": x for stage, x in stages.items()}}
        found["tuned + frozen"] = beside(tuned, stages[frozen.tap])
        features = {k: beside(features[k], x) if features else x for k, x in found.items()}
        first = first or (model, tuned)
        seconds += sum(h["seconds"] for h in history)
    (model, tuned), train, test = first, loaded[0][:n], loaded[0][n:]
    if second_um:
        features["tuned, first scale"] = tuned
    known = model.encode_genes(
        np.concatenate([model.panel.transform(s.adata)[s.rows] for s in train])
    )
    y = [section_targets(s.adata, genes) for s in train]
    near = np.exp(model.project_images(np.concatenate(tuned[n:])) @ known.T / config.temperature)
    near /= near.sum(1, keepdims=True)
    retrieved = {
        t: near @ np.concatenate([v[t][s.rows] for v, s in zip(y, train, strict=True)])
        for t in TARGETS
    }
    found = {}
    for name, x in features.items():
        scored = probe_scores(train, test, x[:n], x[n:], genes, seed=config.seed)
        found |= {(name, probe, t): r for (probe, t), r in scored.items()}
    scored = decoder_scores(model, test, tuned[n:], genes)
    found |= {("tuned", "decoder", t): r for t, r in scored.items()}
    scored = score_sections(retrieved, test, genes)
    found |= {("tuned", "retrieval", t): r for t, r in scored.items()}
    rows = {
        s.name: {
            "/".join(place): round(float(r[i].mean()), 4)
            for place, r in found.items()
            if place[-1] in CLAIMS
        }
        for i, s in enumerate(test)
    }
    for s, x in zip(test, tuned[n:], strict=True):
        rows[s.name]["recall@10"] = round(retrieval_scores(model, s, x)["recall@10"], 4)
    return {"seconds": round(seconds, 1), **rows}


def beside(one: list, other: list) -> list[np.ndarray]:
    """Two embeddings of each section side by side."""
    return [np.concatenate(pair, 1) for pair in zip(one, other, strict=True)]


def one(job):
    """A run. A setting that breaks is a finding too, and kept; any other error stops everything."""
    try:
        return measure(*job)
    except InputError as error:
        return {"failed": str(error)}


def _own_core(cores):
    """Give a worker a core of its own: libraries that ask then start one thread each."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get()})
    torch.set_num_threads(1)
    threadpool_limits(1)


def stamp_of(config: Config, variant, second_um) -> str:
    """A name for what a run was: its settings, the source of its variant, its second scale."""
    source = inspect.getsource(variant) if variant else ""
    return hashlib.sha256(repr([config.to_json(), source, second_um]).encode()).hexdigest()[:12]


def run(root, target: Path, only=None):
    """All arms and splits into `target`: {"provenance", "arms", "runs"}.

    A run that stands there already, with these settings, is not made again; the file is written
    after every run, so hours of work can be done in parts. Each run names the code that made it:
    the results page says where that is not the code at hand; `book/recheck.py` compares the two.
    """
    old = json.loads(target.read_text())["runs"] if target.exists() else []
    done = {(row["arm"], *row["train"], row["stamp"]): row for row in old}
    rows, jobs, now = [], {}, code_hash(CODE)
    for name, (_, _, _, changes, *rest) in ARMS.items():
        variant, second_um = [*rest, None, None][:2]
        for train, test, seed in splits():
            config = dataclasses.replace(FULL, seed=seed, **changes)
            stamp = stamp_of(config, variant, second_um)
            row = {"arm": name, "train": train, "seed": seed, "stamp": stamp, "code": now}
            if kept := done.get((name, *train, stamp)):
                rows.append(kept)
            elif not only or name in only:
                jobs[len(rows)] = (root, train, test, config, variant, second_um)
                rows.append(row)
    seeds = len(list(splits()))
    record = provenance(load_sections(root, SECTIONS), FULL, code=CODE, seeds=seeds)
    record["device"] = record["device"].replace(f"{torch.get_num_threads()} threads", "1 thread")
    arms = {
        k: dict(zip(("group", "thought", "expected", "changes"), arm, strict=False))
        for k, arm in ARMS.items()
    }
    cores = multiprocessing.Queue()
    for core in sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ():
        cores.put(core)
    pool = ProcessPoolExecutor(os.cpu_count(), initializer=_own_core, initargs=(cores,))
    with pool:
        for i, found in tqdm(zip(jobs, pool.map(one, jobs.values()), strict=True), total=len(jobs)):
            rows[i]["scores"] = found
            finished = [row for row in rows if "scores" in row]
            write_atomic(target, json.dumps({"provenance": record, "arms": arms, "runs": finished}))


def votes(result: dict, arm: str, key="tuned/tuned_ridge/pearson_residuals") -> dict[str, float]:
    """Mean inner gain of an arm over the full recipe, by outer test section, which is not looked
    at."""
    runs = {(row["arm"], *row["train"]): row["scores"] for row in result["runs"]}
    table: dict[str, list] = {}
    for (name, *place), mine in runs.items():
        base = runs[REFERENCE, *place]
        if name != arm or "failed" in mine or "failed" in base:
            continue
        one, two = (section for section in mine if section != "seconds")
        for scored, outer in ((one, two), (two, one)):
            table.setdefault(outer, []).append(mine[scored][key] - base[scored][key])
    return {outer: float(np.mean(v)) for outer, v in sorted(table.items())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root")
    parser.add_argument("--only", nargs="*", help="names of arms")
    a = parser.parse_args()
    run(a.root, RESULTS / "trials.json", a.only)
