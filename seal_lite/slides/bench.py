"""Scores of bags of features on slide-level tasks."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import rankdata

from seal_lite.evaluation.targets import pearson
from seal_lite.slides.mil import MODELS, Bags

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from seal_lite.slides.tasks import Kind, SlideTask


def measure(y: np.ndarray, predicted: np.ndarray, *, kind: Kind) -> dict[str, np.ndarray]:
    """Return the metrics of r draws of m test samples, each (r,); nan where one is undefined.

    Parameters
    ----------
    y
        Labels (r, m), or days and event (r, m, 2).
    predicted
        Values or log hazards (r, m), or probabilities (r, m, classes), NaN for a class that the
        training samples lack.
    kind
        "classification", "regression" or "survival".

    Returns
    -------
    dict of np.ndarray
        Of a classification "auc" (each class against the rest) and "balanced_accuracy", means over
        the classes that a draw holds and the training samples do, nan below two of them; of a
        regression "pearson" and "spearman"; of survival "c_index".

    Notes
    -----
    The AUC is computed from ranks (Mann & Whitney, 1947).
    """
    if kind == "classification":
        return _classification_metrics(y, predicted)
    if kind == "regression":
        ranks = rankdata(predicted, axis=1)
        ranks_y = rankdata(y, axis=1)
        return {"pearson": pearson(predicted.T, y.T), "spearman": pearson(ranks.T, ranks_y.T)}
    draws = zip(y, predicted, strict=True)
    return {"c_index": np.array([_concordance(time, risk) for time, risk in draws])}


def _classification_metrics(y: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Return AUC and balanced accuracy (r,) from y (r, m) and predicted (r, m, classes)."""
    n_samples = y.shape[1]
    is_class = y[..., None] == np.arange(predicted.shape[-1])  # (r, m, classes)
    n_class = is_class.sum(1)  # (r, classes)
    is_trained = ~np.isnan(predicted).any(axis=1)  # (r, classes)
    is_right = (np.nanargmax(predicted, axis=-1) == y)[..., None]
    n_right = (is_class & is_right).sum(1)
    ranks = rankdata(predicted, axis=1)
    n_above = (ranks * is_class).sum(1) - n_class * (n_class + 1) / 2  # pairs in the right order
    with np.errstate(invalid="ignore", divide="ignore"):
        auc = n_above / (n_class * (n_samples - n_class))
        recall = n_right / n_class
    counts = is_trained & (n_class > 0)
    return {"auc": _mean_over(counts, auc), "balanced_accuracy": _mean_over(counts, recall)}


def _mean_over(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the mean (r,) of the values (r, classes) that count; nan below two of them."""
    n = counts.sum(1)
    total = np.where(counts, values, 0.0).sum(1)
    return np.where(n < 2, np.nan, total / np.maximum(n, 1))


def _concordance(time: np.ndarray, risk: np.ndarray) -> float:
    """Return the concordance index of log hazards (m,), given days and event (m, 2)."""
    from lifelines.utils import concordance_index

    try:
        return concordance_index(time[:, 0], -risk, time[:, 1])
    except ZeroDivisionError:  # no pair of these samples can be compared
        return math.nan


def score_bags(
    task: SlideTask,
    features: dict[str, Bags],
    *,
    seeds: int = 3,
    repeats: int = 1000,
    device: str | torch.device = "auto",
) -> dict[str, Any]:
    """Score bags of features with every model on every fold of a task.

    A prediction is the mean over seeds, a score the mean over folds.

    Parameters
    ----------
    task
        The task, with n samples.
    features
        The bags of each kind of features, as `read_bags` returns them.
    seeds
        Number of times that each model is fitted.
    repeats
        Number of bootstrap draws of the test samples.
    device
        Where networks run; "auto" as in `resolve_device`.

    Returns
    -------
    dict
        "task", "kind", "samples" and "folds" (numbers), and two lists of rows. "scores" has the
        keys "features", "model" ("mean" or "abmil"), "metric", "mean" and "ci95" ([low, high]).
        "delta" has "of" and "minus" in the place of "features": the difference of each kind of
        features to every kind before it.

    Notes
    -----
    The 95% interval is a percentile bootstrap: each fold's test samples are drawn with
    replacement, the same ones for all features, so that differences are paired.
    """
    predicted = {}
    for name, bags in features.items():
        for model, fit in MODELS.items():
            fit_there = partial(fit, device=device)
            predicted[name, model] = _predict_folds(fit_there, task, bags, seeds=seeds)
    draws = _score_draws(task, predicted, repeats=repeats)
    names = list(features)
    scores = []
    delta = []
    for (name, model, metric), values in draws.items():
        scores.append({"features": name, "model": model, "metric": metric, **_interval(values)})
        for other in names[: names.index(name)]:
            gap = _interval(values - draws[other, model, metric])
            delta.append({"of": name, "minus": other, "model": model, "metric": metric, **gap})
    return {
        "task": task.name,
        "kind": task.kind,
        "samples": len(task.y),
        "folds": len(task.folds),
        "scores": scores,
        "delta": delta,
    }


def _predict_folds(
    fit: Callable[..., np.ndarray], task: SlideTask, bags: Bags, *, seeds: int
) -> list[np.ndarray]:
    """Return the predictions for the test samples of each fold, averaged over seeds.

    A class that a fold's training samples lack has the probability NaN: a model is fitted to the
    classes that it sees, and its columns are then put in the places of these.
    """
    predicted = []
    for train, test in task.folds:
        train_bags = [bags[i] for i in train]
        test_bags = [bags[i] for i in test]
        y = task.y[train]
        is_classification = task.kind == "classification"
        if is_classification:
            trained, y = np.unique(y, return_inverse=True)
        of_seeds = [
            fit(train_bags, y, test_bags, kind=task.kind, seed=seed) for seed in range(seeds)
        ]
        mean = np.mean(of_seeds, axis=0)
        if is_classification:
            aligned = np.full((len(test), len(task.classes)), np.nan)
            aligned[:, trained] = mean
            mean = aligned
        predicted.append(mean)
    return predicted


def _score_draws(
    task: SlideTask, predicted: dict[tuple[str, str], list[np.ndarray]], *, repeats: int
) -> dict[tuple[str, str, str], np.ndarray]:
    """Return the mean over folds of each metric, (1 + repeats,); the first is of the samples.

    `predicted` has the keys (features, model), the result (features, model, metric).
    """
    rng = np.random.default_rng(0)
    by_fold: dict[tuple[str, str, str], list[np.ndarray]] = {}
    for fold, (_, test) in enumerate(task.folds):
        drawn = rng.integers(len(test), size=(repeats, len(test)))
        picks = np.vstack([np.arange(len(test)), drawn])  # (1 + repeats, m)
        y = task.y[test][picks]
        for (name, model), predictions in predicted.items():
            metrics = measure(y, predictions[fold][picks], kind=task.kind)
            for metric, values in metrics.items():
                by_fold.setdefault((name, model, metric), []).append(values)
    return {key: np.nanmean(values, axis=0) for key, values in by_fold.items()}


def _interval(values: np.ndarray) -> dict[str, Any]:
    """Return the score and its 95% interval, to four digits."""
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return {
        "mean": round(float(values[0]), 4),
        "ci95": [round(float(low), 4), round(float(high), 4)],
    }
