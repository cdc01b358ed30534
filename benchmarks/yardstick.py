"""Is `subtle` subtle? How much of the phantom's declared classes a frozen encoder already reads.

    python book/yardstick.py

Draws 11 patients at the phantom's contrasts and at those of its earlier formats, fits probe B on
eight of them, as many pairs as the recorded cross-validation trains on, and scores it on three, at
every stage of the frozen default backbone. The patients are none of the record's, and finetuning
has no part in it: this is how the two contrasts in `book/tissue_phantom/tissue.py` were chosen.
Writes results/yardstick.json, which the results page quotes. `make yardstick` runs it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd

from seal_lite import Config
from seal_lite.data.phantom import phantom, render, tissue
from seal_lite.data.section import load_sections
from seal_lite.encoders.embedding import embed_stages
from seal_lite.encoders.vision import build_encoder
from seal_lite.evaluation.scores import direct_scores, genes_to_score, probe_scores
from seal_lite.training.provenance import provenance

RESULTS = Path(__file__).parents[1] / "results"
TARGET = "pearson_residuals"
BEFORE = (1.0, 0.27), (0.4, 0.18)  # what formats 1 and 2 drew
TRAIN, JUDGE, SPOTS, SEED = 8, 3, 300, 1  # patients, spots of each; the record's seed is 0


def shares(root) -> tuple[dict, list]:
    """{program: (oracle's r, {stage: frozen r})} on the last patients, and the sections."""
    sections = load_sections(root)
    train, test = sections[:TRAIN], sections[TRAIN:]
    genes = genes_to_score(root, train)
    about = pd.read_csv(Path(root) / "truth/genes.tsv", sep="\t", index_col="gene").loc[genes]
    program = about.program.where(about["class"] != "visible", "visible").to_numpy()
    config = Config()
    frozen = build_encoder(config.backbone, tune_blocks=config.tune_blocks)
    oracle = direct_scores(root, test, genes)["oracle", TARGET].mean(0)
    found = {p: (oracle[program == p].mean(), {}) for p in np.unique(program)}
    for stage, x in embed_stages(frozen, sections).items():
        scored = probe_scores(train, test, x[:TRAIN], x[TRAIN:], genes)
        scored = scored["tuned_ridge", TARGET].mean(0)
        for p in found:
            found[p][1][stage] = scored[program == p].mean()
    return found, sections


def measure() -> dict:
    """The record: what was drawn before and what is drawn now, with what is read of it."""
    rows = []
    for contrast, pull in (*BEFORE, (tissue.CHROMATIN, tissue.GROUP_PULL)):
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.object(render, "CHROMATIN", contrast),
            mock.patch.object(tissue, "GROUP_PULL", pull),
        ):
            render._stamps.cache_clear()
            root = phantom(
                f"{folder}/phantom",
                patients=TRAIN + JUDGE,
                sections_per_patient=1,
                spots=SPOTS,
                seed=SEED,
            )
            found, sections = shares(root)
        render._stamps.cache_clear()
        programs = {
            p: {"oracle": round(best, 3), "frozen": {k: round(r, 3) for k, r in stages.items()}}
            for p, (best, stages) in found.items()
        }
        rows.append({"chromatin": contrast, "pull": pull, "programs": programs})
    return {"provenance": provenance(sections, Config()), "rows": rows}


if __name__ == "__main__":
    (RESULTS / "yardstick.json").write_text(json.dumps(measure(), indent=1))
