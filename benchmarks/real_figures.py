"""Draw a finetuned run on a real section that it never saw, and record the numbers beside it.

    python book/real_figures.py HER2ST RUN --section C2 --genes ERBB2,GRB7

HER2ST is a her2st root, RUN a folder of `seal-lite finetune` whose training sections do not include
the section. Writes book/figures/her2st_{maps,retrieval,loss}.png and results/her2st_figures.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np

from seal_lite import InputError, plots
from seal_lite.data.section import load_sections, read_counts
from seal_lite.encoders.embedding import embed_patches
from seal_lite.evaluation.retrieval import gene_set_profile, retrieval_scores, search
from seal_lite.evaluation.targets import noise_ceiling, pearson, section_targets, target_genes
from seal_lite.model.seal import SEAL
from seal_lite.training.provenance import code_hash
from seal_lite.tutorial import charts

ROOT = Path(__file__).parents[1]
TARGET = "pearson_residuals"
CODE = ["retrieval", "pairs", "train"]  # what decides the record
RULE = (
    "The genes are the {n} most variable ones of the training sections (variance of Pearson "
    "residuals, seen in at least a tenth of the spots)."
)


def draw(root: Path, run: Path, *, section: str, genes: list[str], top: int = 10, shown: int = 3):
    """Draw the three figures; returns what results/her2st_figures.json holds.

    Raises `InputError` where the run was trained on the section, or by other code than this.
    """
    provenance = json.loads((run / "provenance.json").read_text())
    if section in provenance["sections"]:
        raise InputError(f"--section {section}: {run} was trained on it; show one never seen")
    if provenance["code_sha256"] != code_hash(provenance["code"]):  # the record will name this code
        raise InputError(
            f"{run}: was finetuned by other code than this; remove it and finetune again"
        )
    model = SEAL.from_pretrained(run)
    config = model.config
    (held,) = load_sections(root, [section], patch_um=config.patch_um, patch_px=config.patch_px)
    embedding = embed_patches(model.encoder, held.patches)

    ranked = target_genes([read_counts(root, s) for s in provenance["sections"]])
    names = [g for g in ranked if g in model.panel.genes][:shown]
    at = [model.panel.genes.index(g) for g in names]
    measured = section_targets(held.adata, names)[TARGET][held.rows]
    predicted = model.predict_genes(embedding)[:, at]
    ceiling = noise_ceiling(held.adata, names, held.rows)[TARGET]
    save(charts.prediction_maps(held, measured, predicted, names), "maps")

    gallery = model.project_images(embedding)
    query = model.encode_genes(gene_set_profile(model.panel, genes))
    (hits,), (cosines,) = search(query, gallery, top=top)
    drawn = plots.retrieval(held, model.panel, genes, hits, cosines, patch_um=config.patch_um)
    save(drawn, "retrieval")
    asked = [model.panel.genes.index(g) for g in genes]
    z = model.panel.transform(held.adata)[held.rows][:, asked].mean(1)
    rng = np.random.default_rng(0)
    by_chance = [z[rng.choice(len(z), top, replace=False)].mean() for _ in range(4000)]

    lines = (run / "metrics.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    save(charts.loss_curves(history), "loss")
    joint = [h["loss"] for h in history if h["phase"] == "joint"]
    return {
        "section": section,
        "rule": RULE.format(n=len(names)),
        "genes": [
            {"gene": g, "r": round(float(a), 4), "ceiling": round(float(b), 4)}
            for g, a, b in zip(names, pearson(predicted, measured), ceiling, strict=True)
        ],
        "retrieval": {
            "genes": genes,
            "top": top,
            "z_hits": float(z[hits].mean()),
            "z_chance95": float(np.percentile(by_chance, 95)),
            "z_best": float(np.sort(z)[-top:].mean()),
            **retrieval_scores(model, held, embedding),
        },
        "loss": {"first": joint[0], "last": joint[-1]},
        "provenance": {**provenance, "code": CODE, "code_sha256": code_hash(CODE)},
    }


def save(figure, name: str):
    figure.savefig(ROOT / f"book/figures/her2st_{name}.png", dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--section", default="C2")
    parser.add_argument("--genes", type=lambda text: text.split(","), default=["ERBB2", "GRB7"])
    given = parser.parse_args()
    record = draw(given.root, given.run, section=given.section, genes=given.genes)
    out = ROOT / "results/her2st_figures.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {out.relative_to(ROOT)} and book/figures/her2st_*.png")
