"""Scores of features and models on held-out sections.

Every score is a correlation within a test section, never across sections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from seal_lite.data.genes import depth
from seal_lite.data.readers.gene_names import gene_positions, spelled
from seal_lite.errors import InputError
from seal_lite.evaluation.features import section_names
from seal_lite.evaluation.probes import PROBES
from seal_lite.evaluation.retrieval import PREDICTORS, predict_by_retrieval
from seal_lite.evaluation.targets import (
    PARTIAL,
    TARGETS,
    neighbour_prediction,
    noise_ceiling,
    oracle_prediction,
    patch_targets,
    rows_of,
    score,
    spot_targets,
    stack_targets,
    target_genes,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from seal_lite.data.phantom.truth import GroundTruth
    from seal_lite.data.section import Section
    from seal_lite.evaluation.features import Features
    from seal_lite.model.seal import SEAL


# All that `score_models` scores with: what reads features, the models' own, and no probe.
READERS = (*PROBES, "decoder", *PREDICTORS, "none")


class ScoreKey(NamedTuple):
    """What a score is of: which features, which probe, which target."""

    features: str
    probe: str
    target: str


def genes_to_score(adatas: Sequence[AnnData], truth: GroundTruth | None = None) -> list[str]:
    """Return the genes to score: the phantom's declared ones, or 50 chosen on training sections.

    Parameters
    ----------
    adatas
        The training sections.
    truth
        The phantom's ground truth; None for real data.

    Returns
    -------
    list of str
        Names of the genes (g,).
    """
    if truth is not None:
        return list(truth.classes)
    return target_genes(adatas)


def check_genes_present(test: Sequence[Section], genes: Sequence[str]) -> None:
    """Raise `InputError` where a test section lacks a gene to score, whose r would be 0."""
    for section in test:
        present = spelled(genes, section.adata.var_names)
        missing = [gene for gene in genes if gene not in present]
        if missing:
            message = f"section {section.name}: gene {missing[0]}, to be scored, is missing"
            raise InputError(f"{message}; add its counts")


def probe_scores(
    train: Sequence[Section],
    test: Sequence[Section],
    genes: Sequence[str],
    *,
    train_x: Sequence[np.ndarray],
    test_x: Sequence[np.ndarray],
    seed: int = 0,
) -> dict[tuple[str, str], np.ndarray]:
    """Return the scores of features under every probe, fitted on ``train``.

    Parameters
    ----------
    train, test
        The sections that train and those held out.
    genes
        Names of g genes.
    train_x, test_x
        Features (n_i, d) of the patches of each of these sections.
    seed
        Of the probes.

    Returns
    -------
    dict
        By (probe, target), r (test sections, g). Probes are those of `probes.PROBES`, targets those
        of `targets.score`.
    """
    x = np.concatenate(train_x).astype(float)
    y = _targets_side_by_side(train, genes)
    held_out_x = np.concatenate(test_x)
    groups = section_names(train)
    n_targets = len(TARGETS)
    scores = {}
    for name, probe in PROBES.items():
        predicted = probe(x, y, held_out_x, groups=groups, seed=seed, n_targets=n_targets)
        for target, r in score_sections(_by_target(predicted), test, genes).items():
            scores[name, target] = r
    return scores


def _targets_side_by_side(sections: Sequence[Section], genes: Sequence[str]) -> np.ndarray:
    """Return the `TARGETS` (n, targets x g) of all patches of the sections."""
    y = stack_targets([patch_targets(section, genes) for section in sections])
    return np.hstack([y[target] for target in TARGETS])


def _by_target(side_by_side: np.ndarray) -> dict[str, np.ndarray]:
    """Return what `_targets_side_by_side` joined, (n, g) by target."""
    parts = np.hsplit(side_by_side, len(TARGETS))
    return dict(zip(TARGETS, parts, strict=True))


def score_sections(
    predicted: Mapping[str, np.ndarray], test: Sequence[Section], genes: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return the correlation of predictions with measurements within each test section.

    Parameters
    ----------
    predicted
        By target, (n, g) of all patches of ``test``, one section after another.
    test
        The held-out sections.
    genes
        Names of the g predicted genes.

    Returns
    -------
    dict
        By target of `targets.score`, r (test sections, g).
    """
    section_scores = []
    start = 0
    for section in test:
        stop = start + len(section.rows)
        section_predicted = rows_of(predicted, slice(start, stop))
        measured = patch_targets(section, genes)
        log_depth = np.log(depth(section.adata)[section.rows])
        section_scores.append(score(section_predicted, measured, log_depth))
        start = stop
    return _stack_sections(section_scores)


def _stack_sections(section_scores: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Scores (g,) of each section by target -> r (sections, g) by target."""
    return {target: np.stack([r[target] for r in section_scores]) for target in section_scores[0]}


def direct_scores(
    test: Sequence[Section], genes: Sequence[str], *, truth: GroundTruth | None = None
) -> dict[tuple[str, str], np.ndarray]:
    """Return the scores of what needs no features.

    Parameters
    ----------
    test
        The held-out sections.
    genes
        Names of g genes.
    truth
        The phantom's ground truth; None for real data.

    Returns
    -------
    dict
        By (name, target), r (test sections, g). Names are "ceiling" (`targets.noise_ceiling`),
        "neighbours" (`targets.neighbour_prediction`) and, with ``truth``, "oracle"
        (`targets.oracle_prediction`).
    """
    scores = {}
    ceilings = [noise_ceiling(s.adata, genes, s.rows) for s in test]
    for target, r in _stack_sections(ceilings).items():
        scores["ceiling", target] = r
    of_neighbours = []
    for section in test:
        targets = spot_targets(section, genes)
        means = neighbour_prediction(section.adata, genes, targets=targets)
        of_neighbours.append(rows_of(means, section.rows))
    predictions = {"neighbours": of_neighbours}
    if truth is not None:
        predictions["oracle"] = [
            oracle_prediction(truth.expected(s, genes), depth(s.adata)[s.rows]) for s in test
        ]
    for name, section_predictions in predictions.items():
        predicted = stack_targets(section_predictions)
        for target, r in score_sections(predicted, test, genes).items():
            scores[name, target] = r
    return scores


def decoder_scores(
    model: SEAL, test: Sequence[Section], genes: Sequence[str], *, test_x: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the scores of the model's own image -> gene decoder.

    Parameters
    ----------
    model
        A finetuned model whose panel has all ``genes``.
    test
        The held-out sections.
    genes
        Names of g genes.
    test_x
        The model's image embeddings (n_i, dim) of each section.

    Returns
    -------
    dict
        By target, r (test sections, g). The decoder predicts z-scores, whatever the target is: the
        correlation does not depend on scale.
    """
    columns = list(gene_positions(genes, model.panel.genes).values())
    predicted = model.predict_genes(np.concatenate(test_x))[:, columns]
    return score_sections(dict.fromkeys(TARGETS, predicted), test, genes)


def retrieved_scores(
    model: SEAL,
    train: Sequence[Section],
    test: Sequence[Section],
    genes: Sequence[str],
    *,
    test_x: Sequence[np.ndarray],
    predictors: Mapping[str, Mapping[str, Any]] = PREDICTORS,
) -> dict[tuple[str, str], np.ndarray]:
    """Return the scores of the training spots that lie closest in the shared space.

    Parameters
    ----------
    model
        A finetuned model.
    train, test
        The sections that train and those held out.
    genes
        Names of g genes.
    test_x
        The model's image embeddings (n_i, dim) of each held-out section.
    predictors
        By name, options of `retrieval.predict_by_retrieval`.

    Returns
    -------
    dict
        By (predictor, target), r (test sections, g).
    """
    profiles = np.concatenate([section.expression(model.panel) for section in train])
    spots = model.encode_genes(profiles)
    images = model.project_images(np.concatenate(test_x))
    y = _targets_side_by_side(train, genes)
    scores = {}
    for name, options in predictors.items():
        predicted = predict_by_retrieval(images, spots, y, **options)
        for target, r in score_sections(_by_target(predicted), test, genes).items():
            scores[name, target] = r
    return scores


def score_models(
    train: Sequence[Section],
    test: Sequence[Section],
    genes: Sequence[str],
    *,
    models: Mapping[str, SEAL],
    features: Features,
    truth: GroundTruth | None = None,
    seed: int = 0,
) -> dict[ScoreKey, np.ndarray]:
    """Return the scores of all features under all probes, of the models' own, and of references.

    Parameters
    ----------
    train, test
        The sections that train and those held out.
    genes
        Names of g genes.
    models
        Finetuned models by name; each name is one of ``features``.
    features
        As `features.fold_features` returns them, training sections first.
    truth
        The phantom's ground truth; None for real data.
    seed
        Of the probes.

    Returns
    -------
    dict
        By key, r (test sections, g). The models' decoders have the probe "decoder", and prediction
        by retrieval those of `retrieval.PREDICTORS`; all of `direct_scores` have the probe "none".
    """
    n_train = len(train)
    scores = {}
    for name, x in features.items():
        of_probes = probe_scores(
            train, test, genes, train_x=x[:n_train], test_x=x[n_train:], seed=seed
        )
        for (probe, target), r in of_probes.items():
            scores[ScoreKey(name, probe, target)] = r
    for name, model in models.items():
        test_x = features[name][n_train:]
        for target, r in decoder_scores(model, test, genes, test_x=test_x).items():
            scores[ScoreKey(name, "decoder", target)] = r
        of_retrieval = retrieved_scores(model, train, test, genes, test_x=test_x)
        for (predictor, target), r in of_retrieval.items():
            scores[ScoreKey(name, predictor, target)] = r
    for (name, target), r in direct_scores(test, genes, truth=truth).items():
        scores[ScoreKey(name, "none", target)] = r
    return scores


def score_rows(scores: Mapping[ScoreKey, np.ndarray], genes: Sequence[str]) -> list[dict]:
    """Return the list "scores" of metrics.json: means over the test sections.

    Parameters
    ----------
    scores
        By key, r (test sections, g).
    genes
        Names of the g genes.

    Returns
    -------
    list of dict
        For each key {"features", "probe", "target", "pcc": mean r, "per_gene": {gene: r}}.
    """
    rows = []
    for (features, probe, target), r in scores.items():
        mean_r = np.mean(r, axis=0)
        per_gene = {gene: round(float(v), 4) for gene, v in zip(genes, mean_r, strict=True)}
        row = {
            "features": features,
            "probe": probe,
            "target": target,
            "pcc": round(float(np.mean(r)), 4),
            "per_gene": per_gene,
        }
        rows.append(row)
    return rows


def tidy(result: Mapping) -> pd.DataFrame:
    """Return one row per fold, seed, features, probe, target and gene.

    Parameters
    ----------
    result
        A result as `crossval.crossval` returns it.

    Returns
    -------
    pd.DataFrame
        Columns test, seed, features, probe, target, gene, class, r. The class of a gene without a
        declared one is "hvg".
    """
    classes = result["classes"] or {}
    rows = []
    for fold in result["folds"]:
        for scores in fold["scores"]:
            for gene, r in scores["per_gene"].items():
                row = {
                    "test": fold["test"],
                    "seed": fold["seed"],
                    "features": scores["features"],
                    "probe": scores["probe"],
                    "target": scores["target"],
                    "gene": gene,
                    "class": classes.get(gene, "hvg"),
                    "r": r,
                }
                rows.append(row)
    return pd.DataFrame(rows)


def summary(result: Mapping) -> pd.DataFrame:
    """Return the mean r over folds, seeds and genes.

    Parameters
    ----------
    result
        A result as `crossval.crossval` returns it.

    Returns
    -------
    pd.DataFrame
        One row per features and probe, one column per target.
    """
    table = tidy(result).pivot_table("r", ["features", "probe"], "target", "mean")
    residuals, normalised, raw = TARGETS
    return table[[residuals, normalised, PARTIAL, raw]]
