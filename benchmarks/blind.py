"""The defaults on sections that no setting was chosen on: results/blind.json.

    python benchmarks/blind.py HER2ST        # hours on 2 cores; a finished training is kept

Each encoder is finetuned with its own recipe on C2 to C5, the sections that the settings were
chosen on, with five seeds. C6 is another section of their patient, B4 one of another patient.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from seal_lite import Config, Section, load_sections
from seal_lite.encoders.registry import config_for
from seal_lite.errors import InputError
from seal_lite.evaluation.crossval import Fold, run_fold
from seal_lite.evaluation.scores import genes_to_score
from seal_lite.training.provenance import provenance
from trained_encoders import ROOT, save_result

RECIPES = {"tf_efficientnet_lite0": "default", "dinov2_s14": "small"}  # backbone: preset
TRAIN = ("C2", "C3", "C4", "C5")
TESTS = {"C6": "unseen section of the training patient", "B4": "unseen patient"}
SEEDS = 5


def read(root: Path, config: Config) -> tuple[list[Section], list[Section]]:
    """Return the training and the test sections, or exit with what is missing."""
    scale = {"patch_um": config.patch_um, "patch_px": config.patch_px}
    train = load_sections(root, TRAIN, **scale)
    try:
        return train, load_sections(root, list(TESTS), **scale)
    except InputError as error:
        names = ",".join(TESTS)
        fetch = f"seal-lite fetch her2st --sections {names} --out {root}"
        raise SystemExit(f"{error}\nThe blind sections are not here: {fetch}") from error


def measure(root: Path, backbone: str) -> dict[str, Any]:
    """Finetune with every seed and score both sections, tuned, shuffled and frozen."""
    config = config_for(backbone, RECIPES[backbone])
    train, tests = read(root, config)
    genes = genes_to_score([section.adata for section in train])
    fold = Fold(train, {section.name: [section] for section in tests}, genes)
    folds = []
    for seed in range(SEEDS):
        folds += run_fold(
            fold,
            dataclasses.replace(config, seed=seed),
            cache_dir=ROOT / "runs/blind/cache",
            runs=ROOT / f"runs/blind/{backbone}-{seed}",
        )
    return {
        "data": "her2st",
        "backbone": backbone,
        "config": RECIPES[backbone],
        "provenance": provenance(train, config, seeds=SEEDS),
        "train": list(TRAIN),
        "test": TESTS,
        "seeds": list(range(SEEDS)),
        "folds": folds,
    }


if __name__ == "__main__":
    her2st = Path(sys.argv[1])
    save_result("blind", {backbone: measure(her2st, backbone) for backbone in RECIPES})
