"""How to fool yourself, measured: each trap beside the way around it, on real tissue.

    python book/fooled.py HER2ST

Frozen features throughout, four sections, each held out once; the finetuned ones are in
results/her2st.json. Writes results/fooled.json, of which `results.py` makes the chapter's table.
`make fooled` runs it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from sklearn.model_selection import KFold
from sklearn.neighbors import KNeighborsRegressor

from page import CLAIMS, drawn, load, missing, r, source, stale
from seal_lite import Config
from seal_lite.data.genes import depth
from seal_lite.data.section import load_sections
from seal_lite.encoders.embedding import embed_stages
from seal_lite.encoders.vision import build_encoder
from seal_lite.evaluation.probes import hest_probe, tuned_probe
from seal_lite.evaluation.targets import pearson, section_targets, target_genes
from seal_lite.training.provenance import provenance
from seal_lite.tutorial import charts
from settings import table

RESULTS = Path(__file__).parents[1] / "results"
SECTIONS = ("C2", "C3", "C4", "C5")
RESIDUALS, RAW = "pearson_residuals", "log1p_raw"


def nearest(x, y, groups, x_test):
    """The mean of the 8 training spots that lie nearest: no image at all."""
    return KNeighborsRegressor(8).fit(x, y).predict(x_test)


def measure(root) -> dict:
    sections = load_sections(root, SECTIONS)
    names = np.concatenate([[s.name] * len(s.rows) for s in sections])
    frozen = build_encoder(Config.backbone)
    (tap,) = embed_stages(frozen, sections).values()
    image, log_depth = (
        np.concatenate(tap),
        np.concatenate([np.log(depth(s.adata)[s.rows])[:, None] for s in sections]),
    )
    # Sections lie far apart on this map, so that a spot's neighbours are its own section's.
    place = np.concatenate(
        [
            s.adata.obsm["spatial"][s.rows] * s.adata.uns["um_per_px"] + 1e6 * i
            for i, s in enumerate(sections)
        ]
    )

    def targets(genes, target):
        return np.concatenate([section_targets(s.adata, genes)[target][s.rows] for s in sections])

    def scored(predicted, y):
        """Mean r over genes within each section."""
        return [float(pearson(predicted[names == s], y[names == s]).mean()) for s in SECTIONS]

    def held_out(x, probe, target, *, chosen_on_test=False):
        """A section at a time is predicted from the others, whose genes are chosen on them."""
        found = []
        for s in SECTIONS:
            test = names == s
            wanted = [v.adata for v in sections if (v.name == s) == chosen_on_test]
            y = targets(target_genes(wanted), target)
            found.append(
                float(pearson(probe(x[~test], y[~test], names[~test], x[test]), y[test]).mean())
            )
        return found

    def dealt(x, probe, target):
        """Spots are dealt at random to five parts, each predicted from the others."""
        y = targets(target_genes([s.adata for s in sections]), target)
        predicted = np.empty_like(y)
        for train, test in KFold(5, shuffle=True, random_state=0).split(x):
            predicted[test] = probe(x[train], y[train], names[train], x[test])
        return scored(predicted, y)

    image_held = held_out(image, tuned_probe, RESIDUALS)
    rows = [
        (
            "raw counts",
            "library size alone, raw counts",
            held_out(log_depth, tuned_probe, RAW),
            "Pearson residuals",
            held_out(log_depth, tuned_probe, RESIDUALS),
        ),
        (
            "random spots",
            "spots dealt at random",
            dealt(image, tuned_probe, RESIDUALS),
            "a section held out",
            image_held,
        ),
        (
            "no image at all",
            "8 nearest spots, dealt at random",
            dealt(place, nearest, RESIDUALS),
            "a section held out",
            held_out(place, nearest, RESIDUALS),
        ),
        (
            "genes of the test section",
            "chosen where they are tested",
            held_out(image, tuned_probe, RESIDUALS, chosen_on_test=True),
            "chosen where the probe is fitted",
            image_held,
        ),
        (
            "a probe without penalty",
            "HEST-bench's ridge",
            held_out(image, hest_probe, RESIDUALS),
            "penalty chosen inside training",
            image_held,
        ),
    ]
    keys = ("trap", "wrong", "wrong_r", "right", "right_r")
    return {
        "provenance": provenance(sections, Config()),
        "rows": [dict(zip(keys, row, strict=True)) for row in rows],
    }


def chapter(results: Path, out: Path) -> str:
    """Every trap beside the way around it, for its chapter, and what finetuning gains over either
    frozen rival (her2st's record)."""
    record, her2st = load(results / "fooled.json"), load(results / "her2st.json")
    if record is None or her2st is None:
        return missing(results / "fooled.json", "make fooled")
    rows = [
        (
            row["trap"],
            row["wrong"],
            r(np.mean(row["wrong_r"])),
            row["right"],
            r(np.mean(row["right_r"])),
        )
        for row in record["rows"]
    ]
    gain = {
        d["minus"]: r(d["mean"])
        for d in her2st["delta"]
        if d["probe"] == "tuned_ridge" and d["target"] == CLAIMS[0]
    }
    rows.append(
        (
            "finetuned against frozen",
            "minus frozen, where it is read",
            gain["frozen"],
            "minus frozen at its best stage",
            gain["frozen_best"],
        )
    )
    groups = {
        row["trap"]: {"the trap": row["wrong_r"], "the way around it": row["right_r"]}
        for row in record["rows"]
    }
    picture = charts.strips(groups, label="mean r over genes, a dot per section")
    return (
        stale(record["provenance"], command="make fooled")
        + drawn(
            picture,
            out,
            "figures/results_fooled.png",
            "Mean *r* with each trap, and without it. Dots: the four sections.",
            "Mean correlation with and without each of five mistakes",
        )
        + "\n"
        + table(["trap", "what you get by", "*r*", "what you get by", "*r*"], rows)
        + source(record["provenance"])
    )


if __name__ == "__main__":
    (RESULTS / "fooled.json").write_text(json.dumps(measure(sys.argv[1]), indent=1))
