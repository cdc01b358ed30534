"""Slide-level tasks: molecular status, pathway activity, survival, from bags of patch features.

    TASK/config.yaml      task_col, sample_col, extra_cols, label_dict, metrics
    TASK/k=all.tsv        case_id, slide_id, the label, fold_0, fold_1, ...: train or test

as Patho-Bench publishes them (Zhang et al., 2025), and a slide's features in FOLDER/<slide_id>.h5
as TRIDENT writes them: features (n, d) or (1, n, d). A sample's slides are fused early: one bag.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .errors import InputError, reading
from .files import open_h5
from .targets import pearson


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


def read_task(folder) -> SlideTask:
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
    time = [c for end in ("_days", "_event") for c in config.get("extra_cols") or []
            if c.endswith(end)]  # fmt: skip
    kind = ("survival" if len(time) == 2 else
            "classification" if config.get("label_dict") else "regression")  # fmt: skip
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


def mean_pool(bags, y, test_bags, kind: str, *, seed: int = 0) -> np.ndarray:
    """The mean patch of a bag, then logistic regression, ridge or a Cox model (lifelines), the
    first two with their penalty chosen inside training; returns (m, classes) probabilities or (m,).

    bags, test_bags: lists of n and of m arrays (patches, d), each with its own number of patches. y
    and `kind` as in `SlideTask`. The (m,) are values, or log hazards of survival, where the penalty
    is fixed (0.1, on at most 8 principal components).
    """
    x, x_test = (np.stack([b.mean(0) for b in part]) for part in (bags, test_bags))
    if kind == "classification":
        inner = StratifiedKFold(max(2, min(5, np.bincount(y).min())), shuffle=True,
                                random_state=seed)  # fmt: skip
        logistic = LogisticRegression(class_weight="balanced", max_iter=5000)
        model = make_pipeline(StandardScaler(), logistic)
        penalties = {"logisticregression__C": np.logspace(-4, 1, 6)}
        model = GridSearchCV(model, penalties, cv=inner, scoring="neg_log_loss")
        return model.fit(x, y).predict_proba(x_test)
    if kind == "regression":
        model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13)))
        return model.fit(x, y).predict(x_test)
    from lifelines import CoxPHFitter

    few = make_pipeline(StandardScaler(), PCA(min(8, len(x) // 8, x.shape[1]))).fit(x)
    table = pd.DataFrame(few.transform(x)).assign(days=y[:, 0], event=y[:, 1])
    fitted = CoxPHFitter(penalizer=0.1).fit(table, "days", "event")
    return np.log(fitted.predict_partial_hazard(pd.DataFrame(few.transform(x_test))).to_numpy())


def abmil(bags, y, test_bags, kind: str, *, epochs=100, size=512, batch=16, seed=0) -> np.ndarray:
    """Attention-based MIL (Ilse et al., 2018; torchmil's), one model a class or one in all.

    Each step sees `batch` bags, of each at most `size` patches at random; a test bag is seen whole.
    Nothing is chosen: the settings are the same for all features. Arguments and result as for
    `mean_pool`, but a regression's values are in standard deviations of y from its mean.
    """
    from torchmil.models import ABMIL

    scaler = StandardScaler().fit(np.concatenate(bags))
    bags, test_bags = ([torch.from_numpy(scaler.transform(b).astype(np.float32)) for b in part]
                       for part in (bags, test_bags))  # fmt: skip
    if kind == "classification":  # of two classes one logit
        targets, criterion = np.eye(y.max() + 1)[y], torch.nn.BCEWithLogitsLoss()
        targets = targets[:, 1:] if targets.shape[1] == 2 else targets
    elif kind == "regression":
        targets, criterion = ((y - y.mean()) / y.std())[:, None], torch.nn.MSELoss()
    else:
        targets, criterion = y[:, None], cox_loss
    found, rng = [], np.random.default_rng(seed)
    for column in np.moveaxis(targets, 1, 0):
        torch.manual_seed(seed)
        model = ABMIL(in_shape=(bags[0].shape[1],), att_dim=64, gated=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)
        for _ in range(epochs * math.ceil(len(bags) / batch)):
            some = rng.choice(len(bags), min(batch, len(bags)), replace=False)
            parts = [bags[i][rng.permutation(len(bags[i]))[:size]] for i in some]
            x = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
            mask = torch.arange(x.shape[1]) < torch.tensor([len(p) for p in parts])[:, None]
            out = model(x, mask.float()).flatten()
            loss = criterion(out, torch.from_numpy(column[some]).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            found.append([model(b[None]).item() for b in test_bags])
    if kind != "classification":
        return np.array(found[0])
    chance = 1 / (1 + np.exp(-np.array(found).T))
    return np.c_[1 - chance, chance] if chance.shape[1] == 1 else chance / chance.sum(1)[:, None]


def cox_loss(risk, time):
    """Negative partial log-likelihood (Cox, 1972) of log hazards (b,), days and event (b, 2); of
    tied days each sees all (Breslow). A scalar, per event."""
    days, event = time.T
    later = torch.where(days[None] >= days[:, None], risk[None], -torch.inf)
    return -(event * (risk - later.logsumexp(1))).sum() / event.sum().clamp(min=1)


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


MODELS = {"mean": mean_pool, "abmil": abmil}


def evaluate(task: SlideTask, features: dict, *, seeds: int = 3, repeats: int = 1000) -> dict:
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
                np.mean([fit([bags[i] for i in train], task.y[train], [bags[i] for i in test],
                             task.kind, seed=seed) for seed in range(seeds)], axis=0)
                for train, test in task.folds]  # fmt: skip
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
        return {**about, "mean": round(float(values[0]), 4),
                "ci95": [round(float(low), 4), round(float(high), 4)]}  # fmt: skip

    scores = [row(v, features=n, model=m, metric=k) for (n, m, k), v in draws.items()]
    delta = [row(v - draws[other, m, k], of=n, minus=other, model=m, metric=k)
             for (n, m, k), v in draws.items()
             for other in takewhile(n.__ne__, features)]  # fmt: skip
    return {"task": task.name, "kind": task.kind, "samples": len(task.y),
            "folds": len(task.folds), "scores": scores, "delta": delta}  # fmt: skip
