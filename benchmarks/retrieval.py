"""Retrieval within and across patients that no encoder has seen: results/retrieval.json.

    python benchmarks/retrieval.py        # minutes on 2 cores, after make record-phantom

Slides of eight phantom patients query each other, and so do sets of genes, with every seed's
finetuned encoder and its control on shuffled pairs.
"""

from __future__ import annotations

from typing import Any

from seal_lite import load_sections
from seal_lite.data.pathways import read_gmt
from seal_lite.data.phantom import cohort, phantom
from seal_lite.encoders.embedding import embed_patches
from seal_lite.evaluation.retrieval import cross_modal, gene_set_scores, shared_space
from seal_lite.training.provenance import provenance
from trained_encoders import ROOT, save_result, trained_folds

QUERIED = {"patients": 8, "sections_per_patient": 2, "spots": 150, "seed": 5}


def measure() -> dict[str, Any]:
    """Return the scores of every query and of every gene set, by model and seed."""
    root = phantom(ROOT / "data/phantom-asked-record", **QUERIED)
    smallest = cohort(ROOT / "data/cohort-programs", patients=20, spots=9)  # all have these sets
    programs = read_gmt(smallest / "programs.gmt")
    folds = trained_folds("phantom")
    config = folds[0].config()
    sections = load_sections(root, patch_um=config.patch_um, patch_px=config.patch_px)
    rows = []
    sets = []
    for fold in folds:
        for kind, model in fold.models().items():
            embeddings = [embed_patches(model.encoder, section.patches) for section in sections]
            space = shared_space(model, sections, embeddings)
            in_panel = programs[programs.target.isin(model.panel.genes)]
            queries = in_panel.groupby("source").target.apply(list).to_dict()
            place = {"model": kind, "seed": fold.seed}
            rows += [place | row for row in cross_modal(space)]
            sets += [place | row for row in gene_set_scores(model, space, queries)]
            print(f"{kind}, seed {fold.seed}", flush=True)
    about = provenance(sections, config, seeds=len(folds))
    return {"provenance": about, "rows": rows, "sets": sets}


if __name__ == "__main__":
    save_result("retrieval", measure())
