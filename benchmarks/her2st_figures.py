"""Draw a finetuned run on a real section that it never saw: results/her2st_figures.json.

    python benchmarks/her2st_figures.py HER2ST RUN        # a minute

HER2ST is the folder of her2st, RUN that of `seal-lite finetune` on sections other than `SECTION`.
Also writes book/figures/her2st_{maps,retrieval,loss}.png. `make record-figures` finetunes first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from seal_lite import SEAL, Section, load_sections, plots
from seal_lite.data.section import load_counts
from seal_lite.encoders.embedding import embed_patches
from seal_lite.evaluation.retrieval import gene_set_profile, retrieval_scores, search
from seal_lite.evaluation.targets import noise_ceiling, patch_targets, pearson, target_genes
from seal_lite.tutorial import charts

ROOT = Path(__file__).parents[1]
TARGET = "pearson_residuals"
SECTION = "C2"
GENE_SET = ["ERBB2", "GRB7"]
TOP = 10  # patches retrieved
SHOWN = 3  # genes drawn
RULE = (
    "The genes are the {n} most variable ones of the training sections (variance of Pearson "
    "residuals, seen in at least a tenth of the spots)."
)


def draw_maps(
    model: SEAL, section: Section, embeddings: np.ndarray, ranked: list[str]
) -> list[dict[str, Any]]:
    """Draw measured and predicted expression of the first genes; return r and ceiling of each."""
    genes = [gene for gene in ranked if gene in model.panel.genes][:SHOWN]
    columns = [model.panel.genes.index(gene) for gene in genes]
    measured = patch_targets(section, genes)[TARGET]
    predicted = model.predict_genes(embeddings)[:, columns]
    ceiling = noise_ceiling(section.adata, genes, section.rows)[TARGET]
    save(charts.prediction_maps(section, measured, predicted, genes=genes), "maps")
    scores = zip(genes, pearson(predicted, measured), ceiling, strict=True)
    return [
        {"gene": gene, "r": round(float(r), 4), "ceiling": round(float(limit), 4)}
        for gene, r, limit in scores
    ]


def draw_retrieval(model: SEAL, section: Section, embeddings: np.ndarray) -> dict[str, Any]:
    """Draw the patches that the gene set retrieves; return what was measured in them."""
    query = model.encode_genes(gene_set_profile(model.panel, GENE_SET))
    (hits,), (cosines,) = search(query, model.project_images(embeddings), top=TOP)
    look = {"genes": GENE_SET, "panel": model.panel, "patch_um": model.config.patch_um}
    save(plots.retrieval(section, hits, cosines, **look), "retrieval")
    columns = [model.panel.genes.index(gene) for gene in GENE_SET]
    z = section.expression(model.panel)[:, columns].mean(1)
    rng = np.random.default_rng(0)
    by_chance = [z[rng.choice(len(z), TOP, replace=False)].mean() for _ in range(4000)]
    return {
        "genes": GENE_SET,
        "top": TOP,
        "z_hits": float(z[hits].mean()),
        "z_chance95": float(np.percentile(by_chance, 95)),
        "z_best": float(np.sort(z)[-TOP:].mean()),
        **retrieval_scores(model, section, embeddings),
    }


def draw_loss(run: Path) -> dict[str, float]:
    """Draw the loss of a run; return the first and the last weighted sum."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    save(charts.loss_curves(history), "loss")
    losses = [epoch["loss"] for epoch in history if epoch["phase"] == "joint"]
    return {"first": losses[0], "last": losses[-1]}


def save(figure: Figure, name: str) -> None:
    """Save a figure where the book looks for it."""
    figure.savefig(ROOT / f"book/figures/her2st_{name}.png", dpi=120, bbox_inches="tight")


def measure(root: Path, run: Path) -> dict[str, Any]:
    """Draw the three figures; return what results/her2st_figures.json holds."""
    provenance = json.loads((run / "provenance.json").read_text())
    if SECTION in provenance["sections"]:
        raise SystemExit(f"{run}: was trained on {SECTION}; finetune on other sections")
    model = SEAL.from_pretrained(run)
    size = {"patch_um": model.config.patch_um, "patch_px": model.config.patch_px}
    (section,) = load_sections(root, [SECTION], **size)
    embeddings = embed_patches(model.encoder, section.patches)
    ranked = target_genes(load_counts(root, provenance["sections"]))
    scores = draw_maps(model, section, embeddings, ranked)
    return {
        "section": SECTION,
        "rule": RULE.format(n=len(scores)),
        "genes": scores,
        "retrieval": draw_retrieval(model, section, embeddings),
        "loss": draw_loss(run),
        "provenance": provenance,
    }


if __name__ == "__main__":
    result = measure(Path(sys.argv[1]), Path(sys.argv[2]))
    (ROOT / "results/her2st_figures.json").write_text(json.dumps(result, indent=1) + "\n")
