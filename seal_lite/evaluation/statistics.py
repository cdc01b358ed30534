"""Paired differences with their intervals."""

from __future__ import annotations

import numpy as np

from seal_lite.evaluation.scores import tidy

DELTAS = (("tuned", "frozen"), ("tuned", "frozen_best"), ("tuned", "shuffled"))


def deltas(folds: list[dict], classes=None) -> list[dict]:
    """The paired differences of `DELTAS` with their 95% CI, for every probe and target.

    Those are "tuned" minus "frozen", "frozen_best" and "shuffled". `folds` as in `crossval`'s
    result, classes: {gene: class} or None. Returns rows {"of", "minus", "probe", "target", "mean":
    mean difference of r, "ci95": [low, high] of `bootstrap_ci`}. With gene classes (the phantom)
    each class is also given by itself, under "class".
    """
    long, out = tidy({"folds": folds, "classes": classes}), []
    for of, minus in DELTAS:
        both = long[long.features.isin([of, minus])]
        for (probe, target), part in both.groupby(["probe", "target"], sort=False):
            r = part.set_index(["features", "test", "seed", "class", "gene"]).r
            if not {of, minus} <= set(part.features):
                continue
            gap = r[of] - r[minus]
            for name in [None, *sorted(set((classes or {}).values()) & set(part["class"]))]:
                mine = gap.droplevel("class") if name is None else gap.xs(name, level="class")
                table = [g.unstack("gene").to_numpy() for _, g in mine.groupby("test", sort=False)]
                row = {
                    "of": of,
                    "minus": minus,
                    "probe": probe,
                    "target": target,
                    "mean": round(float(np.mean([t.mean() for t in table])), 4),
                    "ci95": [round(v, 4) for v in bootstrap_ci(table)],
                }
                out.append(row | ({"class": name} if name else {}))
    return out


def verdicts(result: dict) -> list[str]:
    """Every difference of a `crossval` result with its interval, as a sentence each."""
    said = []
    for name, kind in (
        ("delta", ""),
        ("delta_in", ", in distribution"),
        ("delta_out", ", out of distribution"),
        ("delta_gap", ", gap"),
    ):
        for d in result.get(name, []):
            low, high = d["ci95"]
            genes = f" [{d['class']}]" if "class" in d else ""
            verdict = "" if low > 0 or high < 0 else "  (no difference)"
            said.append(
                f"{d['of']} - {d['minus']}, {d['probe']}, {d['target']}{genes}{kind}: "
                f"{d['mean']:+.3f} [{low:+.3f}, {high:+.3f}]{verdict}"
            )
    return said


def bootstrap_ci(table: list[np.ndarray], *, repeats: int = 4000, seed: int = 0) -> list[float]:
    """95% percentile interval of the mean over folds, seeds and genes, clustered by fold.

    Folds are drawn with replacement, then seeds and genes inside each drawn fold, because genes of
    one fold share its sections and are far from independent. `table`: a (seeds, genes) per fold.
    Returns [low, high].
    """
    rng = np.random.default_rng(seed)
    draws = np.empty((repeats, len(table)))
    for i, t in enumerate(table):
        rows = rng.integers(t.shape[0], size=(repeats, t.shape[0], 1))
        cols = rng.integers(t.shape[1], size=(repeats, 1, t.shape[1]))
        draws[:, i] = t[rows, cols].mean((1, 2))
    picked = rng.integers(len(table), size=(repeats, len(table)))
    means = np.take_along_axis(draws, picked, axis=1).mean(1)
    return [float(v) for v in np.percentile(means, [2.5, 97.5])]
