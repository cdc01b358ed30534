"""Slide-level tasks on a cohort of phantom patients: results/cohort.json.

    python benchmarks/cohort.py        # an hour on 2 cores, after make record-phantom

Frozen, shuffled, finetuned and oracle features of whole slides, with every seed's encoders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seal_lite import load_sections
from seal_lite.data.phantom import UM_PER_PX, cohort, oracle_features
from seal_lite.encoders.vision import VisionEncoder, build_encoder
from seal_lite.slides.bench import score_bags
from seal_lite.slides.embed import embed_slides, list_slides
from seal_lite.slides.places import TissueGrid
from seal_lite.slides.tasks import read_bags, read_slide_task
from seal_lite.training.provenance import provenance
from trained_encoders import PHANTOM, ROOT, RUNS, save_result, trained_folds

COHORT = {"patients": 60, "spots": 100, "seed": 0}


def cohort_folder() -> Path:
    """Return the cohort's folder, written if it is not there yet."""
    return cohort(ROOT / "data/cohort-record", **COHORT)


def measure() -> dict[str, Any]:
    """Return the scores of every task and their differences, by seed."""
    root = cohort_folder()
    slides = list_slides(root / "slides")
    folds = trained_folds("phantom")
    config = folds[0].config()
    size = {"patch_um": config.patch_um, "patch_px": config.patch_px}

    def embed(encoder: VisionEncoder, name: str) -> Path:
        folder = RUNS / "cohort" / name
        mostly_tissue = TissueGrid(min_tissue=0.5)
        embed_slides(encoder, slides, folder, um_per_px=UM_PER_PX, places=mostly_tissue, **size)
        return folder

    frozen_encoder = build_encoder(config.backbone, tune_blocks=config.tune_blocks)
    frozen = embed(frozen_encoder, "frozen")
    oracle = oracle_features(root, frozen, RUNS / "cohort/oracle", patch_um=config.patch_um)
    results = []
    for fold in folds:
        models = fold.models()
        features = {"frozen": frozen}
        for kind in ("shuffled", "tuned"):
            features[kind] = embed(models[kind].encoder, f"{kind}-{fold.seed}")
        features["oracle"] = oracle
        for folder in sorted((root / "tasks").iterdir()):
            task = read_slide_task(folder)
            bags = {name: read_bags(task, place) for name, place in features.items()}
            results.append({"seed": fold.seed, **score_bags(task, bags, seeds=1)})
            print(f"{task.name}, seed {fold.seed}", flush=True)
    train = load_sections(PHANTOM, folds[0].train, **size)
    about = provenance(train, config, seeds=len(folds))
    return {"provenance": about, "cohort": COHORT, "slides": len(slides), "results": results}


if __name__ == "__main__":
    save_result("cohort", measure())
