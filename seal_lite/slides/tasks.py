"""Slide-level tasks: molecular status, pathway activity, survival, from bags of patch features.

    TASK/config.yaml      task_col, sample_col, extra_cols, label_dict, metrics
    TASK/k=all.tsv        case_id, slide_id, the label, fold_0, fold_1, ...: train, test, or neither

A label is the name of a class, or its code: a key of label_dict. Patho-Bench publishes tasks in
this layout (Zhang et al., 2025). TRIDENT writes the features of a slide as FOLDER/<slide_id>.h5,
dataset "features" (n, d) or (1, n, d). All slides of a sample form one bag (early fusion).
"""

from __future__ import annotations

import logging
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from seal_lite.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES, VENDOR_SUFFIXES
from seal_lite.data.readers.common import UNKNOWN, read_table
from seal_lite.errors import InputError, reading
from seal_lite.io import open_h5, read_yaml, refuse_oversize
from seal_lite.paths import file_name, inside
from seal_lite.schema import Size, check, check_array

log = logging.getLogger(__name__)

FEATURE_BYTES = np.dtype(np.float32).itemsize  # of a feature in memory

Kind = Literal["classification", "regression", "survival"]
Fold = tuple[np.ndarray, np.ndarray]
ColumnName = Annotated[str, Size(1, 1000)]
N_FOLDS = 5  # of a task that has no fold columns
# A cell of a fold: Patho-Bench reserves some of the training samples as "val", which nothing uses.
HALVES = ("train", "val", "test")


@dataclass(frozen=True)
class SlideTask:
    """A label for each sample, the slides of each sample, and the folds.

    Samples keep the order of `slides`. A class that half of a fold lacks is named in the log.

    Parameters
    ----------
    name
        The name of the task's folder.
    kind
        "classification", "regression" or "survival".
    slides
        The slide names of each of the n samples: {sample: [slide_id, ...]}.
    y
        Labels: indices into `classes` (n,) int, values (n,), or days and event (n, 2).
    classes
        Names of the classes, sorted; empty unless `kind` is "classification".
    folds
        Indices of the training samples and of the test samples of each fold.
    """

    name: str
    kind: Kind
    slides: dict[str, list[str]]
    y: np.ndarray
    classes: list[str]
    folds: list[Fold]


class _TaskColumns(TypedDict):
    task_col: ColumnName
    sample_col: ColumnName


class TaskFields(_TaskColumns, total=False):
    """What of a task's `config.yaml` is used."""

    extra_cols: list[ColumnName] | None
    label_dict: dict[bool | int | str, bool | int | str] | None


@dataclass(frozen=True)
class _Columns:
    """The kind of a task, the names of its columns, and the names of its classes by their codes."""

    kind: Kind
    sample: str
    labels: list[str]
    folds: list[str]
    class_of: dict[str, str] = field(default_factory=dict)


def read_slide_task(folder: str | Path) -> SlideTask:
    """Read a task in Patho-Bench's layout (Zhang et al., 2025).

    A task whose `extra_cols` are one that ends in "_days" and one that ends in "_event" is a
    survival task. One with a `label_dict` is a classification, any other a regression. A task
    without fold columns is split into five folds by case.

    Parameters
    ----------
    folder
        Folder with config.yaml and k=all.tsv.

    Raises
    ------
    InputError
        Where a file, a column or a label is missing, a sample has two labels, a label or a cell of
        a fold is none that there can be, a case is in both halves of a fold, or one half cannot be
        used: it is empty, has fewer than two classes, or nothing can be learnt of it.
    """
    folder = Path(folder)
    path = folder / "k=all.tsv"
    table, columns = _read_table(folder)
    _check_table(path, table, columns)
    samples = table.drop_duplicates(columns.sample)
    y, classes = _read_labels(path, samples, columns)
    folds = _read_folds(path, samples, columns, y)
    case = samples.case_id.to_numpy()
    _check_folds(path, folds, case=case, y=y, kind=columns.kind, classes=classes)
    slides_of = table.groupby(columns.sample, sort=False).slide_id
    slides = {sample: list(names) for sample, names in slides_of}
    return SlideTask(folder.name, columns.kind, slides, y, classes, folds)


def _read_table(folder: Path) -> tuple[pd.DataFrame, _Columns]:
    """Read config.yaml and k=all.tsv, all values as text."""
    for name in ("config.yaml", "k=all.tsv"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: is no task, for it has no {name}; restore that file")
    settings = folder / "config.yaml"
    fault = "is no task with config.yaml and k=all.tsv"
    config = check(read_yaml(settings), TaskFields, path=settings)
    with reading(folder, fault=fault, remedy="correct them"):
        table = _read_text(folder / "k=all.tsv", config)
        label = config["task_col"]
        sample = config["sample_col"]
        extra = config.get("extra_cols") or []
        days = [column for column in extra if column.endswith("_days")]
        event = [column for column in extra if column.endswith("_event")]
    folds = [column for column in table if "fold_" in column]
    if len(days) == len(event) == 1:
        return table, _Columns("survival", sample, days + event, folds)
    class_of = {str(code): str(name) for code, name in (config.get("label_dict") or {}).items()}
    kind: Kind = "classification" if class_of else "regression"
    return table, _Columns(kind, sample, [label], folds, class_of)


def _read_text(path: Path, config: TaskFields) -> pd.DataFrame:
    """Read a table as text; a cell that is empty, or says that it is, is NaN.

    A class of the label_dict may have any name, also NA.
    """
    table = read_table(path, remedy="correct it", dtype=str, keep_default_na=False)
    table = table.apply(lambda column: column.str.strip())
    is_unknown = table.apply(lambda column: column.str.lower().isin(UNKNOWN))
    classes = config.get("label_dict") or {}
    names = [str(name) for pair in classes.items() for name in pair]
    label = config["task_col"]
    if label in table:
        is_unknown[label] &= ~table[label].isin(names) | (table[label] == "")
    return table.mask(is_unknown)


def _check_table(path: Path, table: pd.DataFrame, columns: _Columns) -> None:
    """Check that columns exist, that none has gaps, and that a sample's rows agree."""
    needed = ["case_id", "slide_id", columns.sample, *columns.labels]
    missing = set(needed) - set(table)
    if missing:
        raise InputError(f"{path}: column {min(missing)} is missing; restore it")
    if table.empty:
        raise InputError(f"{path}: has no rows; restore them")
    has_gap = table[needed].isna().any()
    if has_gap.any():
        column = has_gap.idxmax()
        row = int(table[column].isna().argmax()) + 2  # the header is row 1
        raise InputError(
            f"{path}: the {column} of row {row} is empty or unknown; fill it, or drop its row"
        )
    for column in ["case_id", *columns.labels, *columns.folds]:
        n_values = table.groupby(columns.sample)[column].nunique(dropna=False)
        if n_values.max() > 1:
            sample = f"{columns.sample} {n_values.idxmax()}"
            raise InputError(f"{path}: {sample} has two values of {column}; keep one")


def _read_labels(
    path: Path, samples: pd.DataFrame, columns: _Columns
) -> tuple[np.ndarray, list[str]]:
    """Return y as in `SlideTask`, and the names of the classes."""
    if columns.kind == "classification":
        return _read_classes(path, samples, columns)
    values = samples[columns.labels].apply(pd.to_numeric, errors="coerce").astype(float)
    with np.errstate(over="ignore"):
        is_number = np.isfinite(values.astype(np.float32))  # as networks read it
    for column in columns.labels:
        _check_cells(path, samples, columns, column, is_number[column], "a number")
    if columns.kind == "regression":
        return values.to_numpy()[:, 0], []
    days, event = columns.labels
    _check_cells(path, samples, columns, days, values[days] >= 0, "at least 0")
    _check_cells(path, samples, columns, event, values[event].isin((0, 1)), "0 or 1")
    return values.to_numpy(), []


def _read_classes(
    path: Path, samples: pd.DataFrame, columns: _Columns
) -> tuple[np.ndarray, list[str]]:
    """Return the index of each sample's class (n,), and the names of the classes.

    Labels are codes, or all of them are names.
    """
    (column,) = columns.labels
    labels = samples[column]
    names = set(columns.class_of.values())
    is_code = labels.isin(list(columns.class_of))
    is_name = labels.isin(list(names))
    if is_code.sum() >= is_name.sum():
        _check_cells(path, samples, columns, column, is_code, "a code of label_dict")
        labels = labels.map(columns.class_of)
    else:
        _check_cells(path, samples, columns, column, is_name, "a name of label_dict")
    classes = sorted(labels.unique())
    return labels.map(classes.index).to_numpy(), classes


def _check_cells(
    path: Path,
    samples: pd.DataFrame,
    columns: _Columns,
    column: str,
    is_right: pd.Series,
    expected: str,
) -> None:
    """Raise an `InputError` that names the first sample whose cell of a column is not right."""
    wrong = samples[~is_right]
    if wrong.empty:
        return
    first = wrong.iloc[0]
    sample = f"{columns.sample} {first[columns.sample]}"
    fault = f"the {column} of {sample} is {reprlib.repr(first[column])}, must be {expected}"
    raise InputError(f"{path}: {fault}; correct it, or drop its row")


def _read_folds(path: Path, samples: pd.DataFrame, columns: _Columns, y: np.ndarray) -> list[Fold]:
    """Return the folds of the table, or else five folds by case, stratified by class."""
    folds = []
    for column in columns.folds:
        is_known = samples[column].isin(HALVES) | samples[column].isna()
        expected = f"{', '.join(HALVES)} or empty"
        _check_cells(path, samples, columns, column, is_known, expected)
        train = np.flatnonzero(samples[column] == "train")
        test = np.flatnonzero(samples[column] == "test")
        folds.append((train, test))
    if folds:
        return folds
    strata = y if columns.kind == "classification" else np.zeros(len(y))
    splitter = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=0)
    remedy = "add columns fold_0, fold_1, ..."
    with reading(path, fault=f"cannot be split into {N_FOLDS} folds", remedy=remedy):
        return list(splitter.split(strata, strata, samples.case_id))


def _check_folds(
    path: Path,
    folds: list[Fold],
    *,
    case: np.ndarray,
    y: np.ndarray,
    kind: Kind,
    classes: list[str],
) -> None:
    """Check that each fold has two halves without a common case, and trains on what can be learnt.

    Of a classification two classes are in both halves, of survival an event trains, and of a
    regression two values do.
    A class that one half lacks is named in the log.
    """
    for i, (train, test) in enumerate(folds):
        shared = set(case[train]) & set(case[test])
        if shared:
            raise InputError(f"{path}: case {min(shared)} is on both sides of fold {i}; move it")
        if not len(test):
            raise InputError(f"{path}: fold {i} tests no sample; correct its column")
        fault = _fault_of_training(y[train], kind)
        if fault:
            raise InputError(f"{path}: fold {i} trains on {fault}; merge folds, or correct it")
        if kind != "classification":
            continue
        trained, tested = set(y[train]), set(y[test])
        n_both = len(trained & tested)
        if n_both < 2:
            message = f"{path}: fold {i} trains and tests on one class or none in common"
            raise InputError(f"{message}; merge folds")
        for half, absent in (("trains", tested - trained), ("tests", trained - tested)):
            for k in sorted(absent):
                rest = f"its scores are means over the other {n_both} classes"
                log.warning("%s: fold %d %s no %s; %s", path, i, half, classes[k], rest)


def _fault_of_training(y: np.ndarray, kind: Kind) -> str:
    """Return why nothing can be learnt of training samples with these labels; "" where it can."""
    if not len(y):
        return "no sample"
    if kind == "regression" and np.ptp(y) == 0:
        return "one value only"
    if kind == "survival" and not y[:, 1].any():
        return "no event"
    return ""


def read_bags(task: SlideTask, folder: str | Path) -> list[np.ndarray]:
    """Read the bag of each sample: the patch features of all its slides, stacked.

    Parameters
    ----------
    task
        The task whose slides are read, in the order of its samples.
    folder
        Folder with <slide_id>.h5 of each slide.

    Returns
    -------
    list of np.ndarray
        A bag (patches, d) float32 for each sample, each with its own number of patches.

    Raises
    ------
    InputError
        Where a file is missing or damaged, widths d differ, or a sample has no patch.
    """
    folder = Path(folder)
    bags = []
    widths: set[int] = set()
    for sample, slides in task.slides.items():
        parts = [_read_features(_features_path(folder, slide)) for slide in slides]
        parts = [x for x in parts if len(x)]
        if not parts:
            raise InputError(f"{folder}: {sample} has no patch on tissue; drop it from the task")
        widths.update(x.shape[1] for x in parts)
        if len(widths) > 1:
            text = " and ".join(str(width) for width in sorted(widths))
            raise InputError(f"{folder}: holds features of several widths, {text}; embed all alike")
        bags.append(np.concatenate(parts))
    return bags


def _features_path(folder: Path, slide: str) -> Path:
    """Return the file of a slide, whose name in the task may have the suffix of an image."""
    names = [slide]
    if Path(slide).suffix.lower() in (*IMAGE_SUFFIXES, *VENDOR_SUFFIXES, *UNREAD_SUFFIXES):
        names.append(Path(slide).stem)
    for name in (*names, file_name(names[-1])):
        path = inside(folder, f"{name}.h5", table="slide_id")
        if path.is_file():
            return path
    raise InputError(
        f"{folder}: has no {slide}.h5; embed that slide there, or correct its slide_id"
    )


def _read_features(path: Path) -> np.ndarray:
    """Return the features (n, d) float32 of one slide."""
    broken = reading(path, fault="holds no dataset features", remedy="embed it again")
    with broken, open_h5(path) as file:
        stored = file["features"]
        if not stored.size:  # TRIDENT may write (0,) for a slide without tissue
            log.warning("%s: holds no patches: no tissue was found on the slide", path)
            return np.zeros((0, 0), np.float32)
        is_stacked = len(stored.shape) == 3  # (1, n, d), as TRIDENT has written it, too
        shape = (1, None, None) if is_stacked else (None, None)
        check_array(path, "features", stored, shape=shape, remedy="embed it again")
        refuse_oversize(path, FEATURE_BYTES * stored.size)
        x = np.asarray(stored, np.float32)
        x = x.reshape(-1, x.shape[-1])
    if not np.isfinite(x).all():
        raise InputError(f"{path}: a feature is NaN or infinite; embed the slide again")
    return x
