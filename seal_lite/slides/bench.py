"""Scores of bags of features on slide-level tasks."""

from __future__ import annotations

import math
from itertools import takewhile

import numpy as np
from scipy.stats import rankdata

from seal_lite.evaluation.targets import pearson
from seal_lite.slides.mil import MODELS
from seal_lite.slides.tasks import SlideTask


def measure(kind: str, y, predicted) -> dict[str, np.ndarray]:
    """What the kind is measured by, (r,) for r draws of test samples; nan where they are undefined.

    y (r, m), of survival (r, m, 2); predicted (r, m), of classes (r, m, classes). The AUC is the
    mean over classes of each against the rest, from ranks (Mann & Whitney, 1947). Keys: "auc" and
    "balanced_accuracy", "pearson" and "spearman", or "c_index".
    """
    if kind == "classification":
        own = y[..., None] == np.arange(predicted.shape[-1])
        n, right = own.sum(1), own & (predicted.argmax(-1) == y)[..., None]
        above = (rankdata(predicted, axis=1) * own).sum(1) - n * (n + 1) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            auc, recall = above / (n * (y.shape[1] - n)), right.sum(1) / n
        return {"auc": auc.mean(1), "balanced_accuracy": recall.mean(1)}
    if kind == "regression":
        ranks = (rankdata(v, axis=1) for v in (predicted, y))
        return {"pearson": pearson(predicted.T, y.T), "spearman": pearson(*(v.T for v in ranks))}
    from lifelines.utils import concordance_index

    def c_index(time, risk):
        try:
            return concordance_index(time[:, 0], -risk, time[:, 1])
        except ZeroDivisionError:  # no pair of these can be compared
            return math.nan

    return {"c_index": np.array([c_index(*draw) for draw in zip(y, predicted, strict=True)])}


def score_bags(task: SlideTask, features: dict, *, seeds: int = 3, repeats: int = 1000) -> dict:
    """Score bags of features (`features`: {name: `read_bags`}) with every model on every fold.

    Predictions are averaged over `seeds`. A score is the mean over folds; its 95% interval draws
    each fold's test samples again, the same ones for all features, so that differences are paired:
    of each features to all that are named before them.

    Returns {"task", "kind", "samples", "folds": how many, "scores": rows {"features", "model":
    "mean" or "abmil", "metric": `measure`'s, "mean", "ci95": [low, high]}, "delta": rows {"of",
    "minus", and the rest}}.
    """
    predicted = {}
    for name, bags in features.items():
        for model, fit in MODELS.items():
            predicted[name, model] = [
                np.mean(
                    [
                        fit(
                            [bags[i] for i in train],
                            task.y[train],
                            [bags[i] for i in test],
                            task.kind,
                            seed=seed,
                        )
                        for seed in range(seeds)
                    ],
                    axis=0,
                )
                for train, test in task.folds
            ]
    rng, found = np.random.default_rng(0), {}
    for fold, (_, test) in enumerate(task.folds):
        drawn = rng.integers(len(test), size=(repeats, len(test)))
        picks = np.vstack([np.arange(len(test)), drawn])  # the first is the sample itself
        for place, by_fold in predicted.items():
            scores = measure(task.kind, task.y[test][picks], by_fold[fold][picks])
            for metric, values in scores.items():
                found.setdefault((*place, metric), []).append(values)
    draws = {place: np.nanmean(by_fold, axis=0) for place, by_fold in found.items()}

    def row(values, **about):
        low, high = np.nanpercentile(values[1:], [2.5, 97.5])
        return {
            **about,
            "mean": round(float(values[0]), 4),
            "ci95": [round(float(low), 4), round(float(high), 4)],
        }

    scores = [row(v, features=n, model=m, metric=k) for (n, m, k), v in draws.items()]
    delta = [
        row(v - draws[other, m, k], of=n, minus=other, model=m, metric=k)
        for (n, m, k), v in draws.items()
        for other in takewhile(n.__ne__, features)
    ]
    return {
        "task": task.name,
        "kind": task.kind,
        "samples": len(task.y),
        "folds": len(task.folds),
        "scores": scores,
        "delta": delta,
    }
