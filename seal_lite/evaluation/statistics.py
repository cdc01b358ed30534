"""Paired differences with their intervals.

The unit is what was held out: a patient or a section. Its genes and seeds are averaged first, since
they share its tissue. With 4 units an interval is wide, and with 1 there is none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

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


def differences(result: Mapping[str, Any]) -> dict[str, list[dict]]:
    """Return all paired differences of a cross-validation, from its folds alone.

    Parameters
    ----------
    result
        As `crossval.crossval` returns it: "folds", "classes" and, in "provenance", "groups" and
        "train_groups".

    Returns
    -------
    dict
        "delta" (`deltas`). A shift has "delta_in", "delta_out" and "delta_gap" (`shifted`).
    """
    origin = result["provenance"]
    classes = result["classes"]
    if origin["groups"] in ("section", "patient"):
        parts = {"": result["folds"]}
    else:
        parts = {f"_{kind}": folds for kind, folds in shifted(result["folds"]).items()}
    shares_training = origin["train_groups"] is not None  # one training serves every unit
    rows = {}
    for kind, folds in parts.items():
        n_units = len({fold["test"] for fold in folds})
        ratio = 0.0 if shares_training else leave_one_out_ratio(n_units)
        rows[f"delta{kind}"] = deltas(folds, classes, test_to_train=ratio)
    return rows


def leave_one_out_ratio(n_units: int) -> float:
    """Return the size of a test part over that of a training part where each unit is left out."""
    return 1 / (n_units - 1) if n_units > 1 else 0.0


def deltas(
    folds: Sequence[Mapping],
    classes: Mapping[str, str] | None = None,
    *,
    test_to_train: float = 0.0,
) -> list[dict]:
    """Return the paired differences of `DELTAS` for every probe and target.

    Parameters
    ----------
    folds
        As in the result of `crossval.crossval`. Those of one "test" are one unit.
    classes
        The class of each gene, on a phantom.
    test_to_train
        As in `t_interval`.

    Returns
    -------
    list of dict
        Rows {"of", "minus", "probe", "target", "mean": mean difference of r over the units, "ci95":
        `t_interval`, "units": their number}. With ``classes`` each class also has a row of its own,
        under "class".
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
                units = values.groupby("test", sort=False).mean().to_numpy()
                row = heading | mean_and_interval(units, test_to_train=test_to_train)
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


def mean_and_interval(units: Sequence[float], *, test_to_train: float = 0.0) -> dict[str, Any]:
    """Return {"mean", "ci95": `t_interval`, "units": their number}, to four digits."""
    interval = t_interval(units, test_to_train=test_to_train)
    return {
        "mean": round(float(np.mean(units)), 4),
        "ci95": None if interval is None else [round(end, 4) for end in interval],
        "units": len(units),
    }


def t_interval(units: Sequence[float], *, test_to_train: float = 0.0) -> list[float] | None:
    """Return the 95% interval of a mean over units, by Student's t.

    Parameters
    ----------
    units
        One value a unit: a held-out patient or section, or a training.
    test_to_train
        Size of a test part over that of a training part, where every unit has a training of its own
        and trainings share data. Their scores then rise and fall together, which the spread of the
        units does not show. The variance of the mean grows from s^2 / n to s^2 (1 / n + ratio): the
        corrected resampled t of Nadeau and Bengio (2003). 0 where one training serves all units.
        The interval is then about new patients and this training.

    Returns
    -------
    list of float or None
        [low, high]; None for a single unit, which has no spread.
    """
    values = np.asarray(units, dtype=float)
    n = len(values)
    if n < 2:
        return None
    standard_error = values.std(ddof=1) * math.sqrt(1 / n + test_to_train)
    reach = stats.t.ppf(0.975, df=n - 1) * standard_error
    return [float(values.mean() - reach), float(values.mean() + reach)]


def excludes_zero(row: Mapping[str, Any]) -> bool:
    """Return whether a row's interval leaves 0 out; without an interval nothing is left out."""
    if row["ci95"] is None:
        return False
    low, high = row["ci95"]
    return low > 0 or high < 0


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
            genes = f" [{delta['class']}]" if "class" in delta else ""
            name = f"{delta['of']} - {delta['minus']}, {delta['probe']}, {delta['target']}{genes}"
            is_null = delta["ci95"] is not None and not excludes_zero(delta)
            outcome = " (no difference)" if is_null else ""
            lines.append(f"{name}{suffix}: {interval_text(delta)}{outcome}")
    return lines


def interval_text(row: Mapping[str, Any]) -> str:
    """Return a row's mean, interval and number of units."""
    mean = f"{row['mean']:+.3f}"
    if row["ci95"] is None:
        return f"{mean} (one unit: no interval)"
    low, high = row["ci95"]
    return f"{mean} [{low:+.3f}, {high:+.3f}], {row['units']} units"
