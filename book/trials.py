"""Which settings earn their place: every trial and every ablation, measured the same way.

    python book/trials.py inner HER2ST [--seeds 1]   # selection: results/trials.json
    python book/trials.py outer HER2ST [--seeds 5]   # report:    results/ablation.json

`inner` is the cross-validation inside every outer fold's training sections: it trains on each pair
of sections and scores on the two others, one of which is in turn the outer fold's test section and
is then not looked at. A setting becomes the default only where every outer fold prefers it by
itself, so no fold's choice has seen its own test section. `outer` leaves one section out, as the
recorded results do. Runs are kept in runs/trials/ and not made again; one process a core.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import variants

from seal_lite import Config
from seal_lite.encoders import build_encoder
from seal_lite.evaluate import _score_sections as score_sections
from seal_lite.evaluate import decoder_scores, embed_clean, embed_taps, genes_to_score, probe_scores
from seal_lite.sections import load_sections
from seal_lite.targets import TARGETS, section_targets
from seal_lite.train import code_hash, finetune, provenance

ROOT = Path(__file__).parents[1]
RUNS, RESULTS = ROOT / "runs/trials", ROOT / "results"
SECTIONS = ("C2", "C3", "C4", "C5")
SCORES = ("pearson_residuals", "log1p_cp10k|depth")

# name: (group, what was thought, settings that differ from the default[, a variant])
ARMS = {
    "default": ("default", "the configuration that all others are compared with", {}),
    "no contrast": ("loss", "the contrast shapes the shared space only", {"w_clip": 0.0}),
    "no gene -> gene": ("loss", "the gene encoder needs its reconstruction", {"w_gene": 0.0}),
    "no image -> gene": ("loss", "the contrast alone teaches the encoder", {"w_image": 0.0}),
    "no correlation": ("loss", "the mean squared error alone is enough", {"w_corr": 0.0}),
    "no squared error": ("loss", "the correlation alone is enough", {"w_mse": 0.0}),
    "KL 1e-3": ("loss", "a prior on the gene embedding regularises it", {"w_kl": 1e-3}),
    "soft targets": ("loss", "look-alike neighbours are no negatives", {"soft_targets": 0.5}),
    "regression only": ("loss", "ST-Net: one loss, image to gene",
                        {"w_clip": 0.0, "w_gene": 0.0, "w_corr": 0.0}),
    "contrast only": ("loss", "BLEEP, Loki: no reconstruction at all",
                      {"w_gene": 0.0, "w_image": 0.0}),
    "SigLIP": ("loss", "yes-or-no questions suit small batches", {}, variants.siglip),
    "targets by expression": ("loss", "near-duplicates are no negatives", {},
                              variants.expression_targets),
    "near the base": ("loss", "a leash keeps what ImageNet taught", {}, variants.near_the_base),
    "no smoothing": ("genes", "a spot's own counts are the sharper target", {"smooth": 0.0}),
    "smoothing 0.8": ("genes", "neighbours remove noise", {"smooth": 0.8}),
    "512 genes": ("genes", "more genes teach more", {"n_genes": 512}),
    "released genes": ("genes", "seurat's dispersion finds genes as good", {"hvg": "seurat"}),
    "training z-score": ("genes", "one scale for all sections", {"zscore": "train"}),
    "no augmentation": ("views", "turns and stains keep it from learning by heart",
                        {"n_views": 1}),
    "16 views": ("views", "twice the views, half the repeats", {"n_views": 16}),
    "stain jitter 0.3": ("views", "stronger stains carry over better", {"stain_jitter": 0.3}),
    "no gene warm-up": ("schedule", "the gene encoder needs no start", {"gene_warmup_epochs": 0}),
    "warm-up on 24 more sections": ("schedule", "profiles without pictures help the gene encoder",
                                    {}, variants.warm_on_expression),
    "averaged weights": ("schedule", "the mean of the last epochs generalises better", {},
                         variants.averaged),
    "10 epochs": ("schedule", "half the time is enough", {"epochs": 10}),
    "40 epochs": ("schedule", "it has not converged", {"epochs": 40}),
    "rank 2": ("encoder", "a small change is enough", {"lora_rank": 2, "lora_alpha": 4.0}),
    "rank 8": ("encoder", "a small change is enough", {"lora_rank": 8, "lora_alpha": 16.0}),
    "full finetuning": ("encoder", "low rank regularises", {"lora_rank": 0, "lr_lora": 3e-3}),
    "LoRA dropout 0.15": ("encoder", "dropout regularises", {"lora_dropout": 0.15}),
    "1 block": ("encoder", "the last block carries the meaning", {"tune_blocks": 1}),
    "2 blocks": ("encoder", "the last block carries the meaning", {"tune_blocks": 2}),
    "4 blocks": ("encoder", "early texture matters", {"tune_blocks": 4}),
    "all blocks": ("encoder", "early texture matters", {"tune_blocks": 5}),
    "112 um, 0.7 um/px": ("patch", "the spot itself is enough", {"patch_um": 112.0}),
    "112 um, 0.5 um/px": ("patch", "the paper's patch", {"patch_um": 112.0, "patch_px": 224}),
    "224 um, 1.0 um/px": ("patch", "detail matters more than time", {"patch_px": 224}),
}  # fmt: skip


def splits(mode: str):
    """(training sections, test sections) of every run."""
    size = 2 if mode == "inner" else 3
    for train in itertools.combinations(SECTIONS, size):
        yield train, tuple(s for s in SECTIONS if s not in train)


def measure(root, train_names, test_names, config: Config, variant=None, *, beside=False) -> dict:
    """Finetune once; mean r by test section, of features, probe and target.

    The tuned embedding is read by both probes, by the model's decoder, and by retrieval as BLEEP
    and Loki predict: the expression of the training spots, weighted by how close their profiles lie
    to the image in the shared space. `beside` adds the frozen embedding at every stage of the tail
    and tuned and frozen side by side.
    """
    options = {"patch_um": config.patch_um, "patch_px": config.patch_px}
    train, test = (load_sections(root, names, **options) for names in (train_names, test_names))
    both, genes, caches = [*train, *test], genes_to_score(root, train), RUNS / "cache"
    with variant(train) if variant else contextlib.nullcontext():
        model, history = finetune(train, config, include=genes, cache_dir=caches, progress=False)
    tuned = embed_clean(model.encoder, both, config, caches)
    features = {"tuned": tuned}
    if beside:
        frozen = build_encoder(config.backbone, tune_blocks=config.tune_blocks)
        stages = embed_taps(frozen, both, config, caches)
        features |= {f"frozen {stage}": x for stage, x in stages.items()}
        pairs = zip(tuned, stages[frozen.row.tap], strict=True)
        features["tuned + frozen"] = [np.concatenate(pair, 1) for pair in pairs]
    known = model.encode_genes(np.concatenate([model.panel.transform(s.adata)[s.rows]
                                               for s in train]))  # fmt: skip
    y = {t: np.concatenate([section_targets(s.adata, genes)[t][s.rows] for s in train])
         for t in TARGETS}  # fmt: skip
    out = {"seconds": sum(h["seconds"] for h in history)}
    for i, section in enumerate(test, start=len(train)):
        found = {}
        for name, x in features.items():
            scored = probe_scores(train, [section], x[: len(train)], [x[i]], genes,
                                  seed=config.seed)  # fmt: skip
            found |= {(name, probe, t): r for (probe, t), r in scored.items()}
        scored = decoder_scores(model, [section], [tuned[i]], genes)
        found |= {("tuned", "decoder", t): r for t, r in scored.items()}
        near = np.exp(model.project_images(tuned[i]) @ known.T / config.temperature)
        near /= near.sum(1, keepdims=True)
        scored = score_sections({t: near @ v for t, v in y.items()}, [section], genes)
        found |= {("tuned", "retrieval", t): r for t, r in scored.items()}
        out[section.name] = {
            "/".join(place): round(float(r.mean()), 4)
            for place, r in found.items() if place[-1] in SCORES
        }  # fmt: skip
    return out


def one(job):
    """A run, unless it is on disk."""
    root, path, train, test, config, variant, beside = job
    if not path.exists():
        try:
            found = measure(root, train, test, config, variant, beside=beside)
        except Exception as error:  # a setting that breaks is a finding too
            found = {"failed": f"{type(error).__name__}: {error}"}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def run(mode: str, root, seeds: int, only=None) -> dict:
    """All arms, splits and seeds; {"arms": {name: {...}}, "runs": [...]}."""
    jobs, rows = [], []
    for seed, (name, (group, _, changes, *variant)) in itertools.product(
        range(seeds), ARMS.items()
    ):
        if only and name not in only:
            continue
        config = dataclasses.replace(Config(seed=seed), **changes)
        variant = variant[0] if variant else None
        what = config.to_json() + code_hash() + getattr(variant, "__name__", "")
        stamp = hashlib.sha256(what.encode()).hexdigest()[:12]
        for train, test in splits(mode):
            path = RUNS / f"{'+'.join(train)}-{stamp}.json"
            jobs.append((root, path, train, test, config, variant, group in ("default", "patch")))
            rows.append({"arm": name, "train": train, "seed": seed})
    # One thread each, as many runs at once as there are cores.
    with ProcessPoolExecutor(initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for i, (row, found) in enumerate(zip(rows, pool.map(one, jobs), strict=True), start=1):
            row |= {"scores": found}
            print(f"{i}/{len(jobs)} {row['arm']}, seed {row['seed']}", flush=True)
    record = provenance(load_sections(root, SECTIONS), Config(), seeds=seeds, mode=mode)
    arms = {k: {"group": g, "thought": w, "changes": c} for k, (g, w, c, *_) in ARMS.items()}
    return {"provenance": record, "arms": arms, "runs": rows}


def votes(result: dict, arm: str, key="tuned/tuned_ridge/pearson_residuals") -> dict[str, float]:
    """Mean inner gain of an arm over the default, by outer test section, which is not looked at."""
    runs = {(row["arm"], *row["train"], row["seed"]): row["scores"] for row in result["runs"]}
    table: dict[str, list] = {}
    for (name, *place), mine in runs.items():
        base = runs["default", *place]
        if name != arm or "failed" in mine or "failed" in base:
            continue
        one, two = (section for section in mine if section != "seconds")
        for scored, outer in ((one, two), (two, one)):
            table.setdefault(outer, []).append(mine[scored][key] - base[scored][key])
    return {outer: float(np.mean(v)) for outer, v in sorted(table.items())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=("inner", "outer"))
    parser.add_argument("root")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--only", nargs="*", help="names of arms")
    a = parser.parse_args()
    found = run(a.mode, a.root, a.seeds or (1 if a.mode == "inner" else 5), a.only)
    target = RESULTS / ("trials.json" if a.mode == "inner" else "ablation.json")
    target.write_text(json.dumps(found))
    if a.mode == "inner":
        for arm in dict.fromkeys(r["arm"] for r in found["runs"]):
            print(arm, {k: round(v, 4) for k, v in votes(found, arm).items()})
