"""Scores of features and models on held-out sections."""

from __future__ import annotations

import numpy as np
import pandas as pd

from seal_lite.data.genes import depth
from seal_lite.data.phantom.truth import GroundTruth
from seal_lite.errors import InputError
from seal_lite.evaluation import targets as tg
from seal_lite.evaluation.probes import PROBES


def genes_to_score(adatas, truth: GroundTruth | None = None) -> list[str]:
    """The phantom's declared genes; on real data 50 chosen on the training sections.

    adatas: those of the training sections. truth: the phantom's. Returns names (g,).
    """
    return tg.target_genes(adatas) if truth is None else list(truth.classes)


def check_genes_present(test, genes):
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
        predicted = {
            t: probe(x, joined[t], groups, np.concatenate(test_x), seed=seed) for t in tg.TARGETS
        }
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
        log_depth = np.log(depth(s.adata)[s.rows])
        scores.append(tg.score({t: p[part] for t, p in predicted.items()}, measured, log_depth))
    return {t: np.stack([x[t] for x in scores]) for t in scores[0]}


def direct_scores(test, genes, *, truth=None) -> dict[tuple, np.ndarray]:
    """What needs no features: the neighbours' mean, the noise ceiling, and the phantom's oracle.

    test: `Section`s. Returns r {(name, target): (test sections, g)}, names "neighbours", "ceiling"
    and, with the phantom's `truth`, "oracle"; see `targets` for each.
    """
    ceiling = [tg.noise_ceiling(s.adata, genes, s.rows) for s in test]
    out = {("ceiling", t): np.stack([c[t] for c in ceiling]) for t in ceiling[0]}
    near = [tg.neighbour_prediction(s.adata, genes) for s in test]
    found = {
        "neighbours": [
            {t: v[s.rows] for t, v in n.items()} for n, s in zip(near, test, strict=True)
        ]
    }
    if truth is not None:
        found["oracle"] = [
            tg.oracle_prediction(truth.expected(s, genes), depth(s.adata)[s.rows]) for s in test
        ]
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


def score_models(train, test, genes, models: dict, features: dict, *, truth=None, seed=0) -> dict:
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
    found = direct_scores(test, genes, truth=truth)
    return scores | {(name, "none", t): r for (name, t), r in found.items()}


def score_rows(scores: dict, genes) -> list[dict]:
    """The "scores" list of metrics.json: the mean over test sections of r (test sections, g).

    A row each {"features", "probe", "target", "pcc": mean r, "per_gene": {gene: r}}.
    """
    return [
        {
            "features": f,
            "probe": p,
            "target": t,
            "pcc": round(float(np.mean(r)), 4),
            "per_gene": {g: round(float(v), 4) for g, v in zip(genes, np.mean(r, 0), strict=True)},
        }
        for (f, p, t), r in scores.items()
    ]


def tidy(result: dict) -> pd.DataFrame:
    """One row per fold, seed, features, probe, target and gene, with r and the gene's class.

    `result` as `crossval` returns it. Columns: test, seed, features, probe, target, gene, class, r.
    """
    classes = result["classes"] or {}
    return pd.DataFrame(
        [
            {
                "test": f["test"],
                "seed": f["seed"],
                "features": s["features"],
                "probe": s["probe"],
                "target": s["target"],
                "gene": g,
                "class": classes.get(g, "hvg"),
                "r": r,
            }
            for f in result["folds"]
            for s in f["scores"]
            for g, r in s["per_gene"].items()
        ]
    )


def summary(result: dict) -> pd.DataFrame:
    """Mean r over folds, seeds and genes: one row per features and probe, one column per target.

    `result` as `crossval` returns it.
    """
    table = tidy(result).pivot_table("r", ["features", "probe"], "target", "mean")
    return table[[*tg.TARGETS[:2], tg.PARTIAL, *tg.TARGETS[2:]]]
