"""Slide-level tasks: molecular status, pathway activity, survival, from bags of patch features.

    TASK/config.yaml      task_col, sample_col, extra_cols, label_dict, metrics
    TASK/k=all.tsv        case_id, slide_id, the label, fold_0, fold_1, ...: train or test

as Patho-Bench publishes them (Zhang et al., 2025), and a slide's features in FOLDER/<slide_id>.h5
as TRIDENT writes them: features (n, d) or (1, n, d). A sample's slides are fused early: one bag.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from sklearn.model_selection import StratifiedGroupKFold

from seal_lite.errors import InputError, reading
from seal_lite.io import open_h5


@dataclass(frozen=True)
class SlideTask:
    """What is asked: `kind` is classification, regression or survival, `slides` the slide names of
    each sample.

    y: classes (n,) int of `classes`, or values (n,), or days and event (n, 2). folds: indices of
    the samples that train and of those that test. Samples are in the order of `slides`.
    """

    name: str
    kind: str
    slides: dict[str, list[str]]
    y: np.ndarray
    classes: list[str]
    folds: list[tuple[np.ndarray, np.ndarray]]


def read_slide_task(folder) -> SlideTask:
    """Read a task's folder; without fold columns its samples are dealt to five folds.

    The folder is one of Patho-Bench's (Zhang et al., 2025): config.yaml and k=all.tsv. Survival has
    extra columns <task>_days and <task>_event; a task with a label_dict is a classification, any
    other a regression. Raises `InputError` for anything missing, and for a case on both sides of a
    fold.
    """
    folder = Path(folder)
    path = folder / "k=all.tsv"
    with reading(folder, fault="is no task with config.yaml and k=all.tsv"):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        table = pd.read_csv(path, sep="\t", dtype=str)
        label, sample = config["task_col"], config["sample_col"]
    time = [
        c for end in ("_days", "_event") for c in config.get("extra_cols") or [] if c.endswith(end)
    ]
    kind = (
        "survival"
        if len(time) == 2
        else "classification"
        if config.get("label_dict")
        else "regression"
    )
    labels, folds = time if kind == "survival" else [label], [c for c in table if "fold_" in c]
    if lacking := {"case_id", "slide_id", sample, *labels} - set(table):
        raise InputError(f"{path}: column {min(lacking)} is missing; restore it")
    if (empty := table[["case_id", "slide_id", sample, *labels]].isna().any()).any():
        raise InputError(f"{path}: a {empty.idxmax()} is empty; fill it, or drop its row")
    for column in ["case_id", *labels, *folds]:
        if (values := table.groupby(sample)[column].nunique(dropna=False)).max() > 1:
            raise InputError(f"{path}: {sample} {values.idxmax()} has two {column}; correct it")
    rows, classes = table.drop_duplicates(sample), []
    if kind == "classification":
        classes = sorted(rows[label].unique())
        y = rows[label].map(classes.index).to_numpy()
    else:
        y = rows[labels].apply(pd.to_numeric, errors="coerce").to_numpy()
        if not np.isfinite(y).all():
            raise InputError(f"{path}: a {' or '.join(labels)} is no number; drop its row")
        y = y if kind == "survival" else y[:, 0]
    case = rows.case_id.to_numpy()
    if folds:
        split = [[np.flatnonzero(rows[f] == half) for half in ("train", "test")] for f in folds]
    else:
        dealer = StratifiedGroupKFold(5, shuffle=True, random_state=0)
        strata = y if kind == "classification" else np.zeros(len(y))
        split = list(dealer.split(strata, strata, case))
    for i, (train, test) in enumerate(split):
        if shared := set(case[train]) & set(case[test]):
            raise InputError(f"{path}: case {min(shared)} is on both sides of fold {i}; move it")
        if kind == "classification" and min(len(set(y[part])) for part in (train, test)) < 2:
            raise InputError(f"{path}: fold {i} trains or tests on one class; merge folds")
    slides = {k: list(v) for k, v in table.groupby(sample, sort=False).slide_id}
    return SlideTask(folder.name, kind, slides, y, classes, split)


def read_bags(task: SlideTask, folder) -> list[np.ndarray]:
    """Each sample's patch features (n, d): those of all its slides, one below another.

    A float32 array for each sample, in the task's order, from FOLDER/<slide_id>.h5. Raises
    `InputError` for a file that is absent or damaged, and for a sample without any patch.
    """

    def read(name):
        path = Path(folder) / f"{name}.h5"
        broken = reading(path, fault="holds no dataset features", remedy="embed it again")
        with broken, open_h5(path) as file:
            x = np.asarray(file["features"], np.float32)
        return x.reshape(-1, x.shape[-1])

    parts = [[read(name) for name in names] for names in task.slides.values()]
    with reading(folder, fault="holds features of several widths", remedy="embed all alike"):
        (_,) = {x.shape[1] for part in parts for x in part}
    bags = [np.concatenate(part) for part in parts]
    for name, bag in zip(task.slides, bags, strict=True):
        if not len(bag):
            raise InputError(f"{folder}: {name} has no region with tissue; drop it from the task")
    return bags
