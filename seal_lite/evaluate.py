"""Score features on held-out sections: tuned, frozen, and the controls that keep both honest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from . import targets as tg
from .cache import PrefixCache
from .config import Config
from .encoders import build_encoder, clean_images, embed
from .errors import InputError
from .genes import columns
from .probe import PROBES, inner_scores


def colour_statistics(patches: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of R, G, B of each patch (n, 6): what stain alone tells."""
    flat = patches.reshape(len(patches), -1, 3).astype(np.float32)
    return np.concatenate([flat.mean(1), flat.std(1)], axis=1)


def read_truth(root, section, genes):
    """A phantom section's noise-free expected fractions (n, g) and the patches' regions (n,) str,
    or None for real data."""
    path = Path(root) / f"truth/{section.name}.npz"
    if not path.exists():
        return None
    with np.load(path) as truth:
        row = {b: i for i, b in enumerate(truth["barcodes"])}
        at = [row[b] for b in section.adata.obs_names[section.rows]]
        expected, _ = columns(truth["expected"][at], truth["genes"], genes)
        return expected.astype(float), truth["region"][at]


def gene_classes(root) -> dict[str, str] | None:
    """The phantom's declared genes and their class; None for real data."""
    path = Path(root) / "truth/genes.tsv"
    if not path.exists():
        return None
    classes = pd.read_csv(path, sep="\t", index_col="gene")["class"]
    return classes[classes != "housekeeping"].to_dict()


def genes_to_score(root, train) -> list[str]:
    """The phantom's declared genes; on real data 50 chosen on the training sections.

    root: the data's folder. train: `Section`s, for `targets.target_genes`. Returns names (g,).
    """
    return list(gene_classes(root) or tg.target_genes([s.adata for s in train]))


def refuse_lacking(test, genes):
    """An `InputError` where a test `Section` lacks a gene that is to be scored: r would be 0."""
    for s in test:
        if lost := [g for g in genes if g not in s.adata.var_names]:
            raise InputError(f"section {s.name}: lacks {lost[0]}, to score; add its counts")


def probe_scores(train, test, train_x, test_x, genes, *, seed=0) -> dict[tuple, np.ndarray]:
    """r {(probe, target): (test sections, g)} of features, fitted on `train`, scored on `test`.

    `train`, `test` are `Section`s, `train_x`, `test_x` lists of (n_i, d) aligned with their
    patches. Probes are "hest" (`probe.hest_probe`) and "tuned_ridge" (`probe.tuned_probe`), targets
    those of `targets.score`.
    """
    y = [{k: v[s.rows] for k, v in tg.section_targets(s.adata, genes).items()} for s in train]
    groups = np.concatenate([[s.name] * len(s.rows) for s in train])
    x = np.concatenate(train_x).astype(float)
    joined = {t: np.concatenate([part[t] for part in y]) for t in tg.TARGETS}
    out = {}
    for name, probe in PROBES.items():
        predicted = {t: probe(x, joined[t], groups, np.concatenate(test_x), seed=seed)
                     for t in tg.TARGETS}  # fmt: skip
        out |= {(name, t): r for t, r in score_sections(predicted, test, genes).items()}
    return out


def score_sections(predicted: dict, test, genes) -> dict[str, np.ndarray]:
    """r {target: (test sections, g)}: correlation within a section, never across.

    predicted: {target: (n, g)} of all patches of `test` (`Section`s), one section below another.
    Targets as `targets.score` has them.
    """
    scores, start = [], 0
    for s in test:
        part = slice(start, start := start + len(s.rows))
        measured = {k: v[s.rows] for k, v in tg.section_targets(s.adata, genes).items()}
        log_depth = np.log(tg.depth(s.adata)[s.rows])
        scores.append(tg.score({t: p[part] for t, p in predicted.items()}, measured, log_depth))
    return {t: np.stack([x[t] for x in scores]) for t in scores[0]}


def direct_scores(root, test, genes) -> dict[tuple, np.ndarray]:
    """What needs no features: the neighbours' mean, the noise ceiling, and the phantom's oracle.

    test: `Section`s. Returns r {(name, target): (test sections, g)}, names "neighbours", "ceiling"
    and, where `root` holds the phantom's truth, "oracle"; see `targets` for each.
    """
    ceiling = [tg.noise_ceiling(s.adata, genes, s.rows) for s in test]
    out = {("ceiling", t): np.stack([c[t] for c in ceiling]) for t in ceiling[0]}
    near = [tg.neighbour_prediction(s.adata, genes) for s in test]
    found = {"neighbours": [{t: v[s.rows] for t, v in n.items()}
                            for n, s in zip(near, test, strict=True)]}  # fmt: skip
    truth = [read_truth(root, s, genes) for s in test]
    if None not in truth:
        found["oracle"] = [tg.oracle_prediction(expected, tg.depth(s.adata)[s.rows])
                           for (expected, _), s in zip(truth, test, strict=True)]  # fmt: skip
    for name, parts in found.items():
        joined = {t: np.concatenate([part[t] for part in parts]) for t in tg.TARGETS}
        out |= {(name, t): r for t, r in score_sections(joined, test, genes).items()}
    return out


def decoder_scores(model, test, test_x, genes) -> dict[str, np.ndarray]:
    """r (test sections, g) of the model's own image -> gene decoder, by target (r ignores its
    scale).

    model: a `SEAL` whose panel has all `genes`. test: `Section`s. test_x: (n_i, dim) of each.
    """
    at = [model.panel.genes.index(g) for g in genes]
    predicted = model.predict_genes(np.concatenate(test_x))[:, at]
    return score_sections({t: predicted for t in tg.TARGETS}, test, genes)


def features(sections, models: dict, config: Config, *, caches=None) -> tuple[dict, dict]:
    """All embeddings that an evaluation compares: {features: list of (n, d) by section}.

    `models` are finetuned `SEAL`s by name ("tuned", "shuffled"), or none. Beside them stand the
    frozen encoder at the same tap, a random-init one, colour statistics and log depth: "frozen",
    "random_init", "colour" (d = 6), "log_depth" (d = 1). Also returns {stage: the same of the
    frozen encoder}, for `best_stage`. `caches` is the folder of the prefix cache, if there is one.
    """
    found = {name: embed_stages(m.encoder, sections, caches)[m.encoder.tap]
             for name, m in models.items()}  # fmt: skip
    # LoRA starts as a no-op; the seed matters to random weights only.
    frozen = build_encoder(config.backbone, tune_blocks=config.tune_blocks, seed=config.seed)
    stages = embed_stages(frozen, sections, caches)
    found["frozen"] = stages[frozen.tap]
    random = build_encoder(config.backbone, pretrained=False, seed=config.seed)
    found["random_init"] = [embed(random, s.patches) for s in sections]
    found["colour"] = [colour_statistics(s.patches) for s in sections]
    found["log_depth"] = [np.log(tg.depth(s.adata)[s.rows])[:, None] for s in sections]
    return found, stages


def fold_features(train, test, genes, models: dict, config: Config, *, caches=None) -> dict:
    """`features` of a fold, training sections first, with the frozen encoder's `best_stage`.

    Returns {features: list of (n_i, d) by section}; that stage is "frozen_best".
    """
    found, stages = features([*train, *test], models, config, caches=caches)
    return found | {"frozen_best": stages[best_stage(stages, train, genes)]}


def score_models(root, train, test, genes, models: dict, features: dict, *, seed=0) -> dict:
    """All features, probes and targets: {(features, probe, target): r (test sections, g)}.

    Beside the `features` of `fold_features`, under both probes, stand the models' own decoders
    (probe "decoder") and, with probe "none", all of `direct_scores`.
    """
    scores, n = {}, len(train)
    for name, x in features.items():
        found = probe_scores(train, test, x[:n], x[n:], genes, seed=seed)
        scores |= {(name, probe, t): r for (probe, t), r in found.items()}
    for name, model in models.items():
        found = decoder_scores(model, test, features[name][n:], genes)
        scores |= {(name, "decoder", t): r for t, r in found.items()}
    found = direct_scores(root, test, genes)
    return scores | {(name, "none", t): r for (name, t), r in found.items()}


def best_stage(stages: dict, train, genes) -> str:
    """The stage whose frozen embedding predicts Pearson residuals best inside `train`.

    `stages`: {stage: list of (n_i, d), training sections first}. Best is the highest of
    `inner_scores`. Shallow stages often tell more about tissue than the one where finetuning pays,
    so a gain must also be one over these.
    """
    y = [tg.section_targets(s.adata, genes)["pearson_residuals"][s.rows] for s in train]
    groups = np.concatenate([[s.name] * len(s.rows) for s in train])

    def inner(stage):
        x = np.concatenate(stages[stage][: len(train)]).astype(float)
        return inner_scores(x, np.concatenate(y), groups).max()

    return max(stages, key=inner)


@torch.inference_mode()
def embed_stages(encoder, sections, caches=None) -> dict[str, list[np.ndarray]]:
    """Embeddings (n, width) per section of the patches as they are, at every stage from the end of
    the prefix to the tap; `caches` is the folder of the prefix cache, if there is one."""
    device, found = next(encoder.parameters()).device, {}
    cache = caches and PrefixCache(encoder, n_views=1, jitter=0.0, folder=caches)
    encoder.eval()
    for s in sections:
        if cache is None:
            hidden = (encoder.prefix(x.to(device)) for x in clean_images(s.patches))
        else:
            (stored,) = cache.activations(s)
            parts = (stored[i : i + 64].copy() for i in range(0, len(stored), 64))
            hidden = (torch.from_numpy(part).to(device) for part in parts)
        taps = [encoder.taps(h) for h in hidden]
        for stage in taps[0]:
            joined = torch.cat([t[stage] for t in taps]).float().cpu().numpy()
            found.setdefault(stage, []).append(joined)
    return found
