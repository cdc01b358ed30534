"""Paired differences with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from seal_lite.evaluation.scores import tidy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DELTAS = (("tuned", "frozen"), ("tuned", "frozen_best"), ("tuned", "shuffled"))
IN_PREFIX = "not "  # "not B": held out beside group B, from the distribution that trains
# Where a result holds differences, and how a verdict on them ends.
VERDICT_SUFFIX = {
    "delta": "",
    "delta_in": ", in distribution",
    "delta_out": ", out of distribution",
    "delta_gap": ", gap",
}


def deltas(folds: Sequence[Mapping], classes: Mapping[str, str] | None = None) -> list[dict]:
    """Return the paired differences of `DELTAS` for every probe and target.

    Parameters
    ----------
    folds
        As in the result of `crossval.crossval`.
    classes
        The class of each gene, on a phantom.

    Returns
    -------
    list of dict
        Rows {"of", "minus", "probe", "target", "mean": mean difference of r, "ci95": [low, high] of
        `bootstrap_ci`}. With ``classes`` each class also has a row of its own, under "class".
    """
    table = tidy({"folds": folds, "classes": classes})
    rows = []
    for minuend, subtrahend in DELTAS:
        pair = table[table.features.isin([minuend, subtrahend])]
        for (probe, target), scores in pair.groupby(["probe", "target"], sort=False):
            if set(scores.features) != {minuend, subtrahend}:
                continue
            r = scores.set_index(["features", "test", "seed", "class", "gene"]).r
            difference = r[minuend] - r[subtrahend]
            heading = {"of": minuend, "minus": subtrahend, "probe": probe, "target": target}
            for gene_class, values in _by_class(difference, classes):
                row = heading | _mean_and_interval(values)
                if gene_class is not None:
                    row["class"] = gene_class
                rows.append(row)
    return rows


def _by_class(
    difference: pd.Series, classes: Mapping[str, str] | None
) -> Iterator[tuple[str | None, pd.Series]]:
    """Yield (None, all differences), then each class of genes with its differences."""
    yield None, difference.droplevel("class")
    if classes is None:
        return
    scored_classes = set(difference.index.get_level_values("class"))
    for gene_class in sorted(scored_classes & set(classes.values())):
        yield gene_class, difference.xs(gene_class, level="class")


def _mean_and_interval(difference: pd.Series) -> dict:
    """Mean over folds of differences by (test, seed, gene), and its interval."""
    by_fold = difference.groupby("test", sort=False)
    folds = [values.unstack("gene").to_numpy() for _, values in by_fold]  # each (seeds, genes)
    mean = float(np.mean([values.mean() for values in folds]))
    return {"mean": round(mean, 4), "ci95": [round(v, 4) for v in bootstrap_ci(folds)]}


def shifted(folds: Sequence[Mapping]) -> dict[str, list[dict]]:
    """Return the folds of a shift in distribution, out of it, and their gap.

    All three are named after the group that was out of distribution. So each is a list of folds
    like any other, and a difference of gaps is a paired difference too.

    Parameters
    ----------
    folds
        As `crossval.run_fold` returns them for `crossval.shift_folds`.

    Returns
    -------
    dict
        Folds under "in", "out" and "gap": r in distribution minus r out of it, gene by gene.
    """
    inside = []
    outside = []
    for fold in folds:
        if fold["test"].startswith(IN_PREFIX):
            inside.append({**fold, "test": fold["test"].removeprefix(IN_PREFIX)})
        else:
            outside.append(dict(fold))
    inside_of = {(fold["test"], fold["seed"]): fold for fold in inside}
    gaps = []
    for fold in outside:
        test, seed = fold["test"], fold["seed"]
        pairs = zip(inside_of[test, seed]["scores"], fold["scores"], strict=True)
        scores = [_gap(in_row, out_row) for in_row, out_row in pairs]
        gaps.append({"test": test, "seed": seed, "scores": scores})
    return {"in": inside, "out": outside, "gap": gaps}


def _gap(in_row: Mapping, out_row: Mapping) -> dict:
    """Return a row of scores whose r are those in distribution minus those out of it."""
    r_out = out_row["per_gene"]
    per_gene = {gene: r_in - r_out[gene] for gene, r_in in in_row["per_gene"].items()}
    return {**in_row, "per_gene": per_gene}


def verdicts(result: Mapping) -> list[str]:
    """Return every difference of a result of `crossval.crossval` as a line of text."""
    lines = []
    for key, suffix in VERDICT_SUFFIX.items():
        for delta in result.get(key, []):
            low, high = delta["ci95"]
            genes = f" [{delta['class']}]" if "class" in delta else ""
            excludes_zero = low > 0 or high < 0
            verdict = "" if excludes_zero else "  (no difference)"
            lines.append(
                f"{delta['of']} - {delta['minus']}, {delta['probe']}, {delta['target']}{genes}"
                f"{suffix}: {delta['mean']:+.3f} [{low:+.3f}, {high:+.3f}]{verdict}"
            )
    return lines


def bootstrap_ci(folds: Sequence[np.ndarray], *, repeats: int = 4000, seed: int = 0) -> list[float]:
    """Return the 95% percentile interval of the mean over folds, seeds and genes.

    The bootstrap is clustered by fold: it draws folds with replacement, then seeds and genes inside
    each drawn fold. Genes of one fold share its sections and are far from independent.

    Parameters
    ----------
    folds
        For each fold a table (seeds, genes).
    repeats
        Number of bootstrap samples.
    seed
        Draws the samples.

    Returns
    -------
    list of float
        [low, high].
    """
    rng = np.random.default_rng(seed)
    fold_means = np.empty((repeats, len(folds)))
    for i, table in enumerate(folds):
        n_seeds, n_genes = table.shape
        seeds = rng.integers(n_seeds, size=(repeats, n_seeds, 1))
        genes = rng.integers(n_genes, size=(repeats, 1, n_genes))
        fold_means[:, i] = table[seeds, genes].mean((1, 2))
    drawn = rng.integers(len(folds), size=(repeats, len(folds)))
    means = np.take_along_axis(fold_means, drawn, axis=1).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return [float(low), float(high)]
