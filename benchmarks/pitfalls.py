"""Evaluation pitfalls, each beside the way around it, on real tissue: results/pitfalls.json.

    python benchmarks/pitfalls.py HER2ST        # a minute on 2 cores

Frozen features of four sections, each held out once. The finetuned ones are in results/her2st.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.model_selection import KFold
from sklearn.neighbors import KNeighborsRegressor

from seal_lite import Config, load_sections
from seal_lite.data.genes import depth
from seal_lite.encoders.embedding import embed_patches
from seal_lite.encoders.vision import build_encoder
from seal_lite.evaluation.features import section_names
from seal_lite.evaluation.probes import Probe, hest_probe, tuned_probe
from seal_lite.evaluation.targets import patch_targets, pearson, target_genes
from seal_lite.training.provenance import provenance

if TYPE_CHECKING:
    from seal_lite import Section

RESULT = Path(__file__).parents[1] / "results/pitfalls.json"
SECTIONS = ("C2", "C3", "C4", "C5")
RESIDUALS, RAW = "pearson_residuals", "log1p_raw"
APART_UM = 1e6  # between sections on one map: a spot's neighbours are its own section's


def nearest_spots(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, **_: Any
) -> np.ndarray:
    """Predict the mean of the 8 training spots that lie nearest: no image at all."""
    return KNeighborsRegressor(8).fit(train_x, train_y).predict(test_x)


class Evaluation:
    """Scores of features (n, d) of the spots of all sections, one section below another."""

    def __init__(self, sections: list[Section]) -> None:
        self.sections = sections
        self.names = section_names(sections)

    def targets(self, gene_sections: list[Section], target: str) -> np.ndarray:
        """Return the target (n, g) of the genes that vary most in some of the sections."""
        genes = target_genes([section.adata for section in gene_sections])
        parts = [patch_targets(section, genes)[target] for section in self.sections]
        return np.concatenate(parts)

    def section_held_out(
        self, x: np.ndarray, probe: Probe, target: str, *, genes_of_test: bool = False
    ) -> list[float]:
        """Return mean r of each section, predicted from the others.

        The genes are chosen on those others, or, with `genes_of_test`, on the test section.
        """
        scores = []
        for name in SECTIONS:
            test = self.names == name
            chosen = [s for s in self.sections if (s.name == name) == genes_of_test]
            y = self.targets(chosen, target)
            predicted = probe(x[~test], y[~test], x[test], groups=self.names[~test])
            scores.append(float(pearson(predicted, y[test]).mean()))
        return scores

    def spots_split_at_random(self, x: np.ndarray, probe: Probe, target: str) -> list[float]:
        """Return mean r within each section, with spots split at random into five parts."""
        y = self.targets(self.sections, target)
        predicted = np.empty_like(y)
        for train, test in KFold(5, shuffle=True, random_state=0).split(x):
            predicted[test] = probe(x[train], y[train], x[test], groups=self.names[train])
        parts = [self.names == name for name in SECTIONS]
        return [float(pearson(predicted[part], y[part]).mean()) for part in parts]


def measure(root: str) -> dict[str, Any]:
    """Return the scores of each pitfall ("wrong") and of the way around it ("right")."""
    sections = load_sections(root, SECTIONS)
    evaluation = Evaluation(sections)
    encoder = build_encoder(Config.backbone)
    image = np.concatenate([embed_patches(encoder, section.patches) for section in sections])
    log_depth = np.concatenate([np.log(depth(s.adata)[s.rows])[:, None] for s in sections])
    places = []
    for i, section in enumerate(sections):
        adata = section.adata
        places.append(adata.obsm["spatial"][section.rows] * adata.uns["um_per_px"] + APART_UM * i)
    place = np.concatenate(places)

    held_out = evaluation.section_held_out
    at_random = evaluation.spots_split_at_random
    image_held_out = held_out(image, tuned_probe, RESIDUALS)
    genes_of_test = held_out(image, tuned_probe, RESIDUALS, genes_of_test=True)
    traps = {  # what misleads and its scores, the way around it and its scores
        "raw counts": (
            ("log depth alone, raw counts", held_out(log_depth, tuned_probe, RAW)),
            ("Pearson residuals", held_out(log_depth, tuned_probe, RESIDUALS)),
        ),
        "random spots": (
            ("spots split at random", at_random(image, tuned_probe, RESIDUALS)),
            ("a section held out", image_held_out),
        ),
        "no image at all": (
            ("8 nearest spots, split at random", at_random(place, nearest_spots, RESIDUALS)),
            ("a section held out", held_out(place, nearest_spots, RESIDUALS)),
        ),
        "genes of the test section": (
            ("chosen where they are tested", genes_of_test),
            ("chosen where the probe is fitted", image_held_out),
        ),
        "a probe without penalty": (
            ("HEST-bench's ridge", held_out(image, hest_probe, RESIDUALS)),
            ("penalty chosen inside training", image_held_out),
        ),
    }
    keys = ("trap", "wrong", "wrong_r", "right", "right_r")
    rows = [
        dict(zip(keys, (trap, *sides[0], *sides[1]), strict=True)) for trap, sides in traps.items()
    ]
    return {"provenance": provenance(sections, Config()), "rows": rows}


if __name__ == "__main__":
    RESULT.write_text(json.dumps(measure(sys.argv[1]), indent=1))
