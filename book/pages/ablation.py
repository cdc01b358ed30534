"""What the pages show of results/trials.json, one setting changed at a time, and of settings."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pages.evaluations import Result, Rows
from seal_lite import Config, preset
from seal_lite.evaluation.statistics import excludes_zero, mean_and_interval

FULL_RECIPE = "full recipe"
PREFERRED = "every fold prefers it"
MAIN = "tuned/tuned_ridge/pearson_residuals"
COLUMNS = {  # column of the table: key of a score
    "residuals, B": MAIN,
    "given depth, B": "tuned/tuned_ridge/log1p_cp10k|depth",
    "residuals, A": "tuned/hest/pearson_residuals",
    "recall@10": "recall@10",
}


def arms_of(record: Result) -> list[str]:
    """Return the names of the arms that were run, in order."""
    return list(dict.fromkeys(run["arm"] for run in record["runs"]))


def changed_arms(record: Result) -> list[str]:
    """Return the arms behind the first, the reference, but for those whose runs failed."""
    return [arm for arm in arms_of(record)[1:] if not arm_scores(record, arm, MAIN).empty]


def arm_scores(record: Result, arm: str, key: str) -> pd.Series:
    """Return an arm's scores under `key` by (training sections, test section), without failures."""
    values = {
        ("+".join(run["train"]), section): row[key]
        for run in record["runs"]
        if run["arm"] == arm and "failed" not in run["scores"]
        for section, row in run["scores"].items()
        if section != "seconds" and key in row
    }
    return pd.Series(values, dtype=float)


def gaps(record: Result, arm: str, key: str, *, minus: tuple[str, str] | None = None) -> pd.Series:
    """Return paired differences to another (arm, key), by default the first arm's `key`."""
    other = arm_scores(record, *(minus or (arms_of(record)[0], key)))
    return (arm_scores(record, arm, key) - other).dropna()


def difference(
    record: Result, arm: str, key: str, *, minus: tuple[str, str] | None = None
) -> dict[str, Any]:
    """Return the mean of `gaps` and its interval; a unit is a training.

    Each trains on two sections and is scored on the two others, so trainings share sections.
    """
    by_training = gaps(record, arm, key, minus=minus).groupby(level=0).mean()
    return mean_and_interval(by_training.to_numpy(), test_to_train=1.0)


def best_frozen(record: Result, arm: str, probe: str, *, as_loaded: bool = False) -> str:
    """Return the key of the frozen layer with the best mean over an arm's runs.

    It is chosen on the sections that it is scored on, which favours the frozen encoder. With
    `as_loaded`, layers that are read as the recipe reads them do not count.
    """
    run = next(run for run in record["runs"] if run["arm"] == arm)
    row = next(row for row in run["scores"].values() if isinstance(row, dict))
    ending = f"/{probe}/pearson_residuals"
    keys = [key for key in row if key.startswith("frozen ") and key.endswith(ending)]
    if as_loaded:
        keys = [key for key in keys if "as tuned" not in key]
    return max(keys, key=lambda key: arm_scores(record, arm, key).mean())


def gain_over_frozen(record: Result, arm: str, probe: str, *, of: str = "") -> dict[str, Any]:
    """Return `difference` of an arm's tuned encoder to the best frozen layer of the arm `of`."""
    measured = of or arm
    best = best_frozen(record, measured, probe)
    key = f"tuned/{probe}/pearson_residuals"
    return difference(record, arm, key, minus=(measured, best))


def beside(trials: Result, references: Sequence[str], more: Result) -> Result:
    """Return the runs of another list of trials behind those of their references.

    Both lists train on the same pairs of sections, each with the same seed.
    """
    runs = [run for run in trials["runs"] if run["arm"] in references]
    return {"runs": [*runs, *more["runs"]]}


def votes(record: Result, arm: str) -> dict[str, float]:
    """Return the gain over the full recipe that each outer fold sees: {its test section: mean}.

    Of the two sections that a run scores, either is in turn the outer fold's test section: the
    fold then sees the score of the other one alone.
    """
    seen: dict[str, list[float]] = {}
    for _, gap in gaps(record, arm, MAIN).groupby(level=0):
        (_, first), (_, second) = gap.index
        seen.setdefault(first, []).append(gap.iloc[1])
        seen.setdefault(second, []).append(gap.iloc[0])
    return {section: float(np.mean(values)) for section, values in sorted(seen.items())}


def seconds_a_run(record: Result, arm: str) -> float:
    """Return the mean duration of an arm's trainings, without failures."""
    runs = [run["scores"] for run in record["runs"] if run["arm"] == arm]
    return float(np.mean([run["seconds"] for run in runs if "failed" not in run]))


def parts_by_worth(record: Result) -> dict[str, list[str]]:
    """Return what leaving each part out does: {"lower", "higher" or "same": parts}."""
    parts: dict[str, list[str]] = {"lower": [], "higher": [], "same": []}
    for arm in arms_of(record):
        if not arm.startswith("no ") or arm_scores(record, arm, MAIN).empty:
            continue
        rows = {name: difference(record, arm, key) for name, key in COLUMNS.items()}
        clear = {name: row["mean"] for name, row in rows.items() if excludes_zero(row)}
        lower = [name for name, mean in clear.items() if mean < 0]
        higher = [name for name, mean in clear.items() if mean > 0]
        part = arm.removeprefix("no ")
        if lower:
            parts["lower"].append(f"{part} ({', '.join(lower)})")
        elif higher:
            parts["higher"].append(f"{part} ({', '.join(higher)})")
        else:
            parts["same"].append(part)
    return parts


def readers(record: Result, arm: str) -> list[tuple[str, str]]:
    """Return the (features, probe) by which an arm's encoders were read, but for probe A."""
    runs = [run["scores"] for run in record["runs"] if run["arm"] == arm]
    rows = [row for run in runs for row in run.values() if isinstance(row, dict)]
    places = dict.fromkeys(tuple(key.split("/")[:2]) for row in rows for key in row if "/" in key)
    return [(features, probe) for features, probe in places if probe != "hest"]


def decision(gains: list[float]) -> str:
    """Return what follows from the gains that the outer folds see."""
    if min(gains) > 0:
        return PREFERRED
    if max(gains) <= 0:
        return "no fold prefers it"
    return "the folds disagree"


def trial_counts(record: Result) -> str:
    """Return in words how many trials make a difference, and which every fold prefers."""
    arms = changed_arms(record)
    gaps_of = {arm: difference(record, arm, MAIN) for arm in arms}
    better = [arm for arm, row in gaps_of.items() if excludes_zero(row) and row["mean"] > 0]
    worse = [arm for arm, row in gaps_of.items() if excludes_zero(row) and row["mean"] < 0]
    prefers = [arm for arm in arms if decision(list(votes(record, arm).values())) == PREFERRED]
    same = len(arms) - len(better) - len(worse)
    agreement = "The outer folds agree on none."
    if prefers:
        agreement = f"Every outer fold prefers {' and '.join(prefers)}."
    return (
        f"Under probe B, {same} of {len(arms)} trials make no difference, {_named(better)} are "
        f"better and {_named(worse)} worse. {agreement}"
    )


def _named(arms: list[str]) -> str:
    """Return the number of arms, and their names in brackets where there are any."""
    return f"{len(arms)} ({', '.join(arms)})" if arms else "0"


def changed_settings(record: Result) -> list[tuple[str, dict[str, Any]]]:
    """Return (changed settings, difference) of one setting, or two that belong together."""
    order = [field.name for field in dataclasses.fields(Config)]
    rows = []
    listed: list[dict] = []
    for arm in arms_of(record):
        changes = record["arms"][arm].get("changes", {})
        if len(changes) not in (1, 2) or changes in listed or arm_scores(record, arm, MAIN).empty:
            continue  # listed: this arm differs in something beside the settings
        listed.append(changes)
        text = ", ".join(f"`{name}` = {shown(value)}" for name, value in changes.items())
        rows.append((order.index(next(iter(changes))), text, difference(record, arm, MAIN)))
    return [(text, row) for _, text, row in sorted(rows, key=lambda row: row[0])]


def ablation_points(record: Result) -> Rows:
    """Return every arm's difference in the main score, for a forest plot."""
    return [
        {"row": arm, "series": record["arms"][arm]["group"], **difference(record, arm, MAIN)}
        for arm in changed_arms(record)
    ]


def settings() -> list[tuple[str, ...]]:
    """Return every setting's (group, name, default, paper, meaning), read from `Config`'s lines."""
    default, paper = preset("default"), preset("paper")
    rows = []
    group = ""
    for line in inspect.getsource(Config).splitlines():
        heading = re.fullmatch(r"    # (.+)", line)
        field = re.match(r"    (\w+): [^=]+ = [^#]+(?:  # (.+))?$", line)
        if heading:
            group = heading[1].partition(":")[0]
        elif field:
            name, meaning = field.groups(default="")
            values = [shown(getattr(config, name)) for config in (default, paper)]
            rows.append((group, name, *values, meaning.replace("|", r"\|")))
            group = ""
    return rows


def shown(value: Any) -> str:
    """Return a setting's value as the book prints it."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return "none" if value == float("inf") else f"{value:g}"
    return str(value)
