"""HEST-bench with the encoders of the recorded cross-validations: results/hest.json.

    python benchmarks/hest.py HER2ST        # half an hour on 2 cores, after make record

Writes each fold as a task in HEST-bench's format, reads it back, and scores it as the benchmark
does. Of the phantom, `PHANTOM_SIZE` keeps the files small.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from seal_lite import load_sections
from seal_lite.data.patches import HEST_UM
from seal_lite.data.phantom import GroundTruth, write_task
from seal_lite.data.readers.hest import GENES_FILE
from seal_lite.evaluation.features import embed_all
from seal_lite.evaluation.hest_bench import read_hest_task, run_hest_bench
from seal_lite.evaluation.scores import genes_to_score
from seal_lite.evaluation.statistics import deltas, leave_one_out_ratio
from seal_lite.training.provenance import provenance
from trained_encoders import PHANTOM, RUNS, TrainedFold, save_result, trained_folds

TASKS = RUNS / "hest"
PHANTOM_SIZE = {"train": 8, "tests": 6, "seeds": 2}


def reduced(folds: list[TrainedFold]) -> list[TrainedFold]:
    """Return the phantom's folds with fewer training sections, tests and seeds.

    A patient of the phantom has one section: "PM1" is that of "PM".
    """
    train, tests, seeds = PHANTOM_SIZE.values()
    return [
        replace(fold, train=fold.train[:train], tests=[f"{name}1" for name in fold.tests[:tests]])
        for fold in folds
        if fold.seed < seeds
    ]


def measure(root: Path, name: str) -> dict[str, Any]:
    """Return HEST-bench's scores and ours on every fold and seed."""
    truth = GroundTruth.find(root)
    folds = trained_folds(name)
    if name == "phantom":
        folds = reduced(folds)
    scored = []
    for fold in folds:
        models = fold.models()
        config = fold.config()
        task_name = f"{name}-{'+'.join(fold.tests)}"
        if not (TASKS / task_name / GENES_FILE).exists():  # this file is written last
            names = [*fold.train, *fold.tests]
            sections = load_sections(root, names, patch_um=HEST_UM, patch_px=224)
            train = [section.adata for section in sections[: len(fold.train)]]
            splits = [(fold.train, [test]) for test in fold.tests]  # each is scored by itself
            genes = genes_to_score(train, truth)
            write_task(TASKS, task_name, sections, folds=splits, genes=genes)
        task = read_hest_task(TASKS / task_name)
        row = models["tuned"].encoder.row
        samples = task.load(px=row.px_at_scale(config, HEST_UM))
        features, layers = embed_all(samples.values(), models, config)
        result = run_hest_bench(task, samples, config, features=features, layers=layers)
        scored += [{**row, "seed": fold.seed} for row in result["folds"]]
        print(f"{task_name}, seed {fold.seed}", flush=True)
    classes = None if truth is None else truth.classes
    seeds = len({fold.seed for fold in folds})
    trainings = {tuple(fold.train) for fold in folds}
    return {
        "data": name,
        "backbone": config.backbone,
        "provenance": provenance(samples.values(), config, seeds=seeds),
        "folds": scored,
        "classes": classes,
        "delta": deltas(scored, classes, test_to_train=leave_one_out_ratio(len(trainings))),
    }


if __name__ == "__main__":
    roots = {"her2st": Path(sys.argv[1]), "phantom": PHANTOM}
    save_result("hest", {name: measure(root, name) for name, root in roots.items()})
