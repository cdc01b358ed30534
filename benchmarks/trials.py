"""Which settings earn their place, measured on real tissue: results/trials.json.

    python benchmarks/trials.py HER2ST [--only ARM ...]        # hours on 2 cores
    python benchmarks/trials.py HER2ST --arms transformer_trials

trials.tsv lists the arms. Each changes the settings of the first, which for the default encoder has
every part of the method. It trains on each pair of the four sections with a seed of its own, and is
scored on the two others. The file is written after every run, and a finished run is not repeated.
One process runs on each core. transformer_trials.tsv does the same for a transformer.

Read one way this is the ablation: six trainings, compared with the full recipe run by run. Read the
other way it is the cross-validation inside every outer fold: of the two sections that a run scores,
either is in turn the fold's test section, and the fold does not see its score.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from seal_lite import SEAL, Config, InputError, Section, finetune, load_sections
from seal_lite.data.genes import GenePanel
from seal_lite.encoders.embedding import embed_feature_layers
from seal_lite.evaluation.features import frozen_layers
from seal_lite.evaluation.retrieval import retrieval_scores
from seal_lite.evaluation.scores import (
    decoder_scores,
    genes_to_score,
    probe_scores,
    retrieved_scores,
)
from seal_lite.io import write_atomic
from seal_lite.training.provenance import provenance
from variants import VARIANTS

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "runs/trials/cache"
SECTIONS = ("C2", "C3", "C4", "C5")
FULL_RECIPE = Config(w_corr=0.5, gene_warmup_epochs=2)
SEES = {"backbone", "patch_um", "patch_px"}  # what decides the frozen layers
CLAIMS = ("pearson_residuals", "log1p_cp10k|depth")  # the targets that discount depth

Arm = dict[str, Any]
Features = dict[str, list[np.ndarray]]  # by name, (n, d) of each section


class Job(NamedTuple):
    """One training: the sections, and what is done with them."""

    root: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    config: Config
    variant: str  # of `VARIANTS`; empty for the method itself
    second_um: float | None  # edge of a second, larger patch, um
    frozen: bool  # whether the frozen layers are scored, too; most arms share those of the first

    def stamp(self) -> str:
        """Return what names the work in the results file, so that a changed arm runs again."""
        work = [self.config.to_json(), self.variant, self.second_um]
        return hashlib.sha256(repr(work).encode()).hexdigest()[:12]


def read_arms(path: Path) -> tuple[Config, dict[str, Arm]]:
    """Return the settings of the first arm, and by name what the arms change, parsed."""
    table = pd.read_csv(path, sep="\t", index_col="arm", keep_default_na=False, dtype=str)
    arms = table.to_dict("index")
    first = next(iter(arms.values()))
    base = FULL_RECIPE.override(first["settings"].split())
    for arm in arms.values():
        assignments = arm.pop("settings").split()
        config = base.override(assignments)
        names = [assignment.partition("=")[0] for assignment in assignments]
        arm["changes"] = {name: getattr(config, name) for name in names}
        arm["second_um"] = float(arm["second_um"]) if arm["second_um"] else None
    return base, arms


def splits() -> Iterator[tuple[tuple[str, ...], tuple[str, ...], int]]:
    """Yield training sections, test sections and seed of every run of an arm."""
    for seed, train in enumerate(itertools.combinations(SECTIONS, 2)):
        yield train, tuple(name for name in SECTIONS if name not in train), seed


@functools.cache
def read_sections(root: str, patch_um: float, patch_px: int) -> dict[str, Section]:
    """Return all sections by name, decoded once a process."""
    sections = load_sections(root, SECTIONS, patch_um=patch_um, patch_px=patch_px)
    return {section.name: section for section in sections}


def keep_common_spots(scales: list[list[Section]]) -> list[list[Section]]:
    """Keep the spots whose patch lies on the image at every scale; larger ones miss some."""
    kept: list[list[Section]] = [[] for _ in scales]
    for views in zip(*scales, strict=True):  # one section, at every scale
        rows = functools.reduce(np.intersect1d, [section.rows for section in views])
        for sections, section in zip(kept, views, strict=True):
            patches = section.patches[np.isin(section.rows, rows)]
            sections.append(Section(section.adata, rows, patches))
    return kept


def side_by_side(one: list[np.ndarray], other: list[np.ndarray]) -> list[np.ndarray]:
    """Return two features of each section as one."""
    return [np.concatenate(pair, axis=1) for pair in zip(one, other, strict=True)]


def train(
    sections: list[Section], genes: list[str], config: Config, job: Job
) -> tuple[SEAL, Features, float]:
    """Finetune on the job's training sections and embed all: model, features and seconds."""
    training = sections[: len(job.train)]
    panel = GenePanel.from_config(training, config, include=genes)
    arguments = {"sections": training, "config": config, "panel": panel, "include": genes}
    if job.variant:
        arguments |= VARIANTS[job.variant](training, panel, config)
    trainer = arguments.pop("trainer", finetune)
    model, history = trainer(**arguments, cache_dir=CACHE, progress=False)
    tuned_layers = embed_feature_layers(model.encoder, sections, cache_dir=CACHE)
    features = {"tuned": tuned_layers[model.encoder.feature_layer]}
    if job.frozen:
        own, layers = frozen_layers(sections, config, cache_dir=CACHE)
        features |= {f"frozen {layer}": x for layer, x in layers.items()}
        features["tuned + frozen"] = side_by_side(features["tuned"], layers[own])
    return model, features, sum(epoch["seconds"] for epoch in history)


def measure(job: Job) -> dict[str, Any]:
    """Finetune once; return the seconds, and by test section the mean r of every reading.

    A reading is "features/probe/target". Features are the tuned embedding and, where the job asks
    for them, the frozen ones at every layer, and both side by side. Both probes read them; the
    model's decoder and retrieval read the tuned one. A second scale has an encoder of its own,
    whose features stand beside the first one's. "recall@10" is that of a spot's profile for its own
    patch within its section.
    """
    scales = [job.config]
    if job.second_um:
        scales.append(dataclasses.replace(job.config, patch_um=job.second_um))
    by_name = [read_sections(job.root, c.patch_um, c.patch_px) for c in scales]
    names = [*job.train, *job.test]
    loaded = keep_common_spots([[sections[name] for name in names] for sections in by_name])
    n = len(job.train)
    training, test = loaded[0][:n], loaded[0][n:]
    genes = genes_to_score([section.adata for section in training])
    runs = [train(sections, genes, c, job) for sections, c in zip(loaded, scales, strict=True)]
    model, features, _ = runs[0]
    tuned = features["tuned"]
    if job.second_um:
        features = {name: side_by_side(x, runs[1][1][name]) for name, x in features.items()}
        features["tuned, first scale"] = tuned

    scores: dict[tuple[str, str, str], np.ndarray] = {}  # r (test sections, g)
    for name, x in features.items():
        sides = {"train_x": x[:n], "test_x": x[n:], "seed": job.config.seed}
        for (probe, target), r in probe_scores(training, test, genes, **sides).items():
            scores[name, probe, target] = r
    for target, r in decoder_scores(model, test, genes, test_x=tuned[n:]).items():
        scores["tuned", "decoder", target] = r
    of_contrast = {"top": None, "weights": "softmax", "temperature": model.config.temperature}
    predictors = {"retrieval": of_contrast}
    sides = {"test_x": tuned[n:], "predictors": predictors}
    for (probe, target), r in retrieved_scores(model, training, test, genes, **sides).items():
        scores["tuned", probe, target] = r

    result: dict[str, Any] = {"seconds": round(sum(seconds for *_, seconds in runs), 1)}
    for i, section in enumerate(test):
        claims = {key: r[i].mean() for key, r in scores.items() if key[-1] in CLAIMS}
        row = {"/".join(key): round(float(mean), 4) for key, mean in claims.items()}
        recall = retrieval_scores(model, section, tuned[n + i])["recall@10"]
        result[section.name] = {**row, "recall@10": round(recall, 4)}
    return result


def run_job(job: Job) -> dict[str, Any]:
    """Measure; a setting that breaks is a result too, while any other error stops everything."""
    try:
        return measure(job)
    except InputError as error:
        return {"failed": str(error)}


def use_one_core(cores: multiprocessing.Queue) -> None:
    """Give a worker a core of its own: libraries that look then start one thread each."""
    os.sched_setaffinity(0, {cores.get()})
    torch.set_num_threads(1)
    threadpool_limits(1)


def main(root: str, name: str, only: list[str] | None) -> None:
    """Measure those arms of NAME.tsv that are not in results/NAME.json yet."""
    base, arms = read_arms(Path(__file__).with_name(f"{name}.tsv"))
    path = ROOT / f"results/{name}.json"
    about = provenance(load_sections(root, SECTIONS), base, seeds=len(list(splits())))
    about["device"] = about["device"].replace(f"{torch.get_num_threads()} threads", "1 thread")
    version = {"package": about["package"], "commit": about["commit"]}
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    finished = {(run["arm"], *run["train"], run["stamp"]): run for run in runs}
    rows = []
    jobs = {}
    for (name, arm), (training, test, seed) in itertools.product(arms.items(), splits()):
        config = dataclasses.replace(base, seed=seed, **arm["changes"])
        is_first = arm is next(iter(arms.values()))
        frozen = is_first or bool(arm["second_um"] or SEES & arm["changes"].keys())
        job = Job(root, training, test, config, arm["variant"], arm["second_um"], frozen)
        key = (name, *training, job.stamp())
        if key in finished:
            rows.append(finished[key])
        elif not only or name in only:
            jobs[len(rows)] = job
            row = {"arm": name, "train": training, "seed": seed, "stamp": job.stamp()}
            rows.append({**row, **version})
    cores: multiprocessing.Queue = multiprocessing.Queue()
    usable = os.sched_getaffinity(0)
    for core in usable:
        cores.put(core)
    with ProcessPoolExecutor(len(usable), initializer=use_one_core, initargs=(cores,)) as pool:
        results = pool.map(run_job, jobs.values())
        for i, scores in tqdm(zip(jobs, results, strict=True), total=len(jobs)):
            rows[i]["scores"] = scores
            _write(path, about, arms, rows)
    _write(path, about, arms, rows)


def _write(path: Path, about: dict[str, Any], arms: dict[str, Arm], rows: list[dict]) -> None:
    """Write the arms of today's list, and the runs that are finished."""
    runs = [row for row in rows if "scores" in row]
    shown = {name: arm | {"changes": _finite(arm["changes"])} for name, arm in arms.items()}
    result = {"provenance": about, "arms": shown, "runs": runs}
    write_atomic(path, json.dumps(result, allow_nan=False))


def _finite(changes: dict[str, Any]) -> dict[str, Any]:
    """Return settings with text for an infinite value, which JSON does not have."""
    return {name: "inf" if value == math.inf else value for name, value in changes.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", metavar="HER2ST")
    parser.add_argument("--arms", default="trials", help="trials, or transformer_trials")
    parser.add_argument("--only", nargs="*", metavar="ARM", help="names of arms")
    options = parser.parse_args()
    main(options.root, options.arms, options.only)
