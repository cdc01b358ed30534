"""How much of the phantom's gene classes a frozen encoder reads: results/subtlety.json.

    python benchmarks/subtlety.py        # minutes on 2 cores

Draws 11 patients at the phantom's contrasts and at earlier ones, fits probe B on eight of them, as
many pairs as the recorded cross-validation trains on, and scores it on three, at every stage of the
frozen default backbone. The patients are none of that cross-validation's, and nothing is finetuned:
this is how the two contrasts in seal_lite/data/phantom/tissue.py were chosen.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

from seal_lite import Config, load_sections
from seal_lite.data.phantom import GroundTruth, phantom, render, tissue
from seal_lite.encoders.embedding import embed_feature_layers
from seal_lite.encoders.vision import build_encoder
from seal_lite.evaluation.scores import direct_scores, genes_to_score, probe_scores
from seal_lite.training.provenance import provenance

RUNS = Path(__file__).parents[1] / "runs"
RESULT = Path(__file__).parents[1] / "results/subtlety.json"
TARGET = "pearson_residuals"
BEFORE = (1.0, 0.27), (0.4, 0.18)  # contrast and pull of earlier phantoms
TRAIN, TEST, SPOTS = 8, 3, 300  # patients, and spots of each
SEED = 1  # that of the cross-validation is 0


def score_programs(root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return r on the test patients, {program: {"oracle", "frozen": {stage}}}, and provenance."""
    sections = load_sections(root)
    train, test = sections[:TRAIN], sections[TRAIN:]
    truth = GroundTruth.find(root)
    genes = genes_to_score([section.adata for section in train], truth)
    table = pd.read_csv(root / "truth/genes.tsv", sep="\t", index_col="gene").loc[genes]
    program_of = table["program"].where(table["class"] != "visible", "visible").to_numpy()
    config = Config()
    encoder = build_encoder(config.backbone, tune_blocks=config.tune_blocks)
    oracle = direct_scores(test, genes, truth=truth)["oracle", TARGET].mean(0)
    frozen = {}
    for stage, x in embed_feature_layers(encoder, sections).items():
        scores = probe_scores(train, test, genes, train_x=x[:TRAIN], test_x=x[TRAIN:])
        frozen[stage] = scores["tuned_ridge", TARGET].mean(0)
    programs = {}
    for program in np.unique(program_of):
        genes_of = program_of == program
        stages = {stage: round(float(r[genes_of].mean()), 3) for stage, r in frozen.items()}
        best_possible = round(float(oracle[genes_of].mean()), 3)
        programs[program] = {"oracle": best_possible, "frozen": stages}
    return programs, provenance(sections, config)


def measure() -> dict[str, Any]:
    """Return what is read of the phantom as it was drawn before, and as it is drawn now."""
    RUNS.mkdir(exist_ok=True)
    rows = []
    for contrast, pull in (*BEFORE, (tissue.CHROMATIN, tissue.GROUP_PULL)):
        with (
            tempfile.TemporaryDirectory(dir=RUNS) as folder,
            mock.patch.object(render, "CHROMATIN", contrast),
            mock.patch.object(tissue, "GROUP_PULL", pull),
        ):
            size = {"patients": TRAIN + TEST, "sections_per_patient": 1, "spots": SPOTS}
            root = phantom(f"{folder}/phantom", seed=SEED, **size)
            programs, about = score_programs(root)
        rows.append({"chromatin": contrast, "pull": pull, "programs": programs})
    return {"provenance": about, "rows": rows}


if __name__ == "__main__":
    RESULT.write_text(json.dumps(measure(), indent=1))
