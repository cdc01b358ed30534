"""HEST-bench as published: its folders, its folds, its score (Jaume et al., NeurIPS 2024).

    ROOT/<TASK>/patches/<sample>.h5      img (n, px, px, 3) uint8, barcode (n, 1), coords (n, 2)
    ROOT/<TASK>/adata/<sample>.h5ad      counts of all genes
    ROOT/<TASK>/splits/train_<i>.csv     sample_id, patches_path, expr_path; test_<i>.csv beside it
    ROOT/<TASK>/var_50genes.json         {"genes": [...]}

A sample becomes a `Section`, so the probes and controls of every other evaluation apply to it too.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from PIL import Image
from tqdm import tqdm

from seal_lite.data.genes import depth
from seal_lite.data.images import resized
from seal_lite.data.patches import HEST_UM, read_patches
from seal_lite.data.readers.common import counted_genes, make_spots, read_h5ad, read_table
from seal_lite.data.readers.hest import GENES_FILE, SPLIT_COLUMNS
from seal_lite.data.section import Section
from seal_lite.errors import InputError, reading
from seal_lite.evaluation.features import best_feature_layer
from seal_lite.evaluation.probes import hest_probe
from seal_lite.evaluation.ridge import Sums, hest_bench_ridge
from seal_lite.evaluation.scores import ScoreKey, probe_scores, score_rows
from seal_lite.evaluation.statistics import deltas
from seal_lite.evaluation.targets import pearson, section_targets
from seal_lite.io import sha256
from seal_lite.paths import inside
from seal_lite.schema import Names, read
from seal_lite.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import pandas as pd

    from seal_lite.config import Config
    from seal_lite.evaluation.features import Features

log = logging.getLogger(__name__)
SEED = 1  # of the benchmark's own PCA


class GeneList(TypedDict):
    """The file of the genes to predict."""

    genes: Names


@dataclass(frozen=True)
class HestTask:
    """A task of HEST-bench (Jaume et al., 2024), as `read_hest_task` reads it.

    Parameters
    ----------
    name
        Name of the task.
    genes
        The genes to predict (g,).
    folds
        Names of the training and of the test samples of each fold.
    files
        By sample, its patches (.h5) and its counts (.h5ad).
    """

    name: str
    genes: list[str]
    folds: list[tuple[list[str], list[str]]]
    files: dict[str, tuple[Path, Path]]

    def load(self, *, px: int = 224, progress: bool = True) -> dict[str, Section]:
        """Read all samples.

        Parameters
        ----------
        px
            Width to which the patches are resampled: (n, px, px, 3).
        progress
            Show a progress bar.

        Raises
        ------
        InputError
            For a file that is damaged or does not fit the others.
        """
        samples = {}
        title = printable(f"read {self.name}")
        for name in tqdm(self.files, title, disable=not progress, leave=False):
            patches, expression = self.files[name]
            samples[name] = read_sample(name, patches, expression, genes=self.genes, px=px)
        return samples


def read_hest_task(folder: str | Path) -> HestTask:
    """Read what a task is, and check that its files exist.

    Parameters
    ----------
    folder
        Folder of the task, with splits/, patches/, adata/ and var_50genes.json, as HEST-bench
        publishes them. Its name is that of the task.

    Raises
    ------
    InputError
        For anything missing or inconsistent, for a sample in both halves of a fold, for a sample
        with two pairs of files or a file of two samples, and where a split names a file outside of
        the folder.
    """
    folder = Path(folder)
    splits = folder / "splits"
    if not splits.is_dir():
        raise InputError(f"{folder}: has no folder splits; give the folder of a task")
    genes = read(folder / GENES_FILE, GeneList, remedy="restore its list 'genes'")["genes"]
    folds = []
    files: dict[str, tuple[Path, Path]] = {}
    for i in count():
        halves = [splits / f"{half}_{i}.csv" for half in ("train", "test")]
        if not any(half.exists() for half in halves):
            break
        tables = [_read_split(half) for half in halves]
        for half, table in zip(halves, tables, strict=True):
            for sample, *named in table.itertuples(index=False):
                patches, expression = (inside(folder, path, table=half) for path in named)
                pair = files.setdefault(sample, (patches, expression))
                if pair != (patches, expression):
                    fault = f"sample {sample} has other files than in another fold"
                    raise InputError(f"{half}: {fault}; name the same files in all")
        train, test = (list(table.sample_id) for table in tables)
        shared = sorted(set(train) & set(test))
        if shared:
            raise InputError(f"{halves[1]}: sample {shared[0]} also trains; take it out of a half")
        folds.append((train, test))
    if not folds:
        raise InputError(f"{splits}: has no train_0.csv and test_0.csv; restore them")
    _check_files(files, splits)
    _check_owners(files, splits)
    return HestTask(folder.name, genes, folds, files)


def _check_files(files: Mapping[str, tuple[Path, Path]], splits: Path) -> None:
    """Raise `InputError` where a file that the splits name is missing."""
    for paths in files.values():
        for path in paths:
            if not path.is_file():
                raise InputError(f"{path}: is missing, and {splits} names it; fetch it again")


def _check_owners(files: Mapping[str, tuple[Path, Path]], splits: Path) -> None:
    """Raise `InputError` where a file is that of two samples."""
    owners: dict[Path, str] = {}
    for sample, paths in files.items():
        for path in paths:
            owner = owners.setdefault(path, sample)
            if owner != sample:
                fault = f"is the file of samples {owner} and {sample} in {splits}"
                raise InputError(f"{path}: {fault}; name each sample's own file")


def _read_split(path: Path) -> pd.DataFrame:
    """Read the samples of half a fold."""
    table = read_table(path, needs=SPLIT_COLUMNS, sep=",", dtype=str, keep_default_na=False)
    if table.empty:
        raise InputError(f"{path}: has no sample; restore it")
    is_repeated = table.sample_id.duplicated()
    if is_repeated.any():
        twice = table.sample_id[is_repeated].iloc[0]
        raise InputError(f"{path}: sample {twice} is there twice; keep one")
    return table[SPLIT_COLUMNS]


def read_sample(
    name: str, patches: Path, expression: Path, *, genes: Sequence[str], px: int = 224
) -> Section:
    """Read a sample's patches, in their order, with the counts of the same barcodes.

    Barcodes and genes are matched by name. Patches without any count are dropped and reported: they
    have no expression to predict.

    Parameters
    ----------
    name
        Name of the sample.
    patches, expression
        Its files.
    genes
        The genes that its counts must have.
    px
        Width to which the patches are resampled: (n, px, px, 3).

    Raises
    ------
    InputError
        For a file that is damaged or does not fit the other.
    """
    images, barcodes, coords = read_patches(patches)
    with reading(expression):
        adata = read_h5ad(expression)
    _check_names(expression, barcodes, adata.obs_names, kind="barcode")
    counts, counted = counted_genes(expression, adata[barcodes])
    _check_names(expression, genes, counted.index, kind="gene")
    adata = make_spots(
        counts,
        obs=adata.obs.loc[barcodes],
        genes=counted,
        xy=coords,
        uns={"section_id": name, "patient_id": name, "um_per_px": HEST_UM / images.shape[1]},
    )
    rows = np.flatnonzero(depth(adata) > 0)
    if len(rows) < len(barcodes):
        log.info("%s: %d patches without counts: dropped", name, len(barcodes) - len(rows))
    adata = adata[rows].copy()
    return Section(adata, np.arange(len(rows)), resample(images[rows], px))


def _check_names(path: Path, needed: Sequence[str], names: pd.Index, *, kind: str) -> None:
    """Raise `InputError` where a needed name is missing, or any name is there twice."""
    missing = [name for name in needed if name not in names]
    if missing:
        raise InputError(f"{path}: {kind} {missing[0]} is missing; pair the right files")
    if not names.is_unique:
        raise InputError(f"{path}: a {kind} is there twice; keep one")


def resample(images: np.ndarray, px: int) -> np.ndarray:
    """Return images (n, h, w, 3) uint8 at (n, px, px, 3), low-pass filtered where that is fewer."""
    if images.shape[1:3] == (px, px):
        return images
    return np.stack([resized(Image.fromarray(image), px) for image in images])


def pooled_scores(
    train: Sequence[Section],
    test: Sequence[Section],
    genes: Sequence[str],
    *,
    train_x: Sequence[np.ndarray],
    test_x: Sequence[np.ndarray],
) -> tuple[np.ndarray, float]:
    """Return HEST-bench's own score: over all test patches together.

    Parameters
    ----------
    train, test
        Training and test samples.
    genes
        Names of g genes.
    train_x, test_x
        Features (n_i, d) of each of these samples.

    Returns
    -------
    r : np.ndarray
        Correlation (g,) with log1p raw counts.
    r2 : float
        Mean R^2 over the genes that vary.

    Notes
    -----
    The probe is that of Jaume et al. (2024), with an intercept. r does not depend on it. Without
    one, as published, predictions lie around 0 and counts do not, so R^2 would only measure how far
    counts are from 0.
    """
    train_y = [section_targets(s.adata, genes)["log1p_raw"] for s in train]
    measured = np.concatenate([section_targets(s.adata, genes)["log1p_raw"] for s in test])
    x = np.concatenate(test_x)
    y = np.concatenate(train_y)
    if len(y) < x.shape[1]:  # PCA of fewer patches than features needs the rows, not the sums
        predicted = hest_probe(np.concatenate(train_x), y, x, seed=SEED) + y.mean(0)
    else:
        sums = [
            Sums.of(features, targets) for features, targets in zip(train_x, train_y, strict=True)
        ]
        predicted = hest_bench_ridge(Sums.total(sums), x, seed=SEED)
    residual = ((measured - predicted) ** 2).sum(0)
    spread = ((measured - measured.mean(0)) ** 2).sum(0)
    varies = spread > 0
    r2 = 1 - residual[varies] / spread[varies]
    return pearson(predicted, measured), float(r2.mean())


def seen_test_samples(task: HestTask, seen: Collection[str], *, allow: bool = False) -> list[str]:
    """Return the task's test samples that a run has seen in training.

    Parameters
    ----------
    task
        The task.
    seen
        Names of the sections that the run was finetuned on.
    allow
        Return such samples instead of raising.

    Returns
    -------
    list of str
        Their names, sorted.

    Raises
    ------
    InputError
        Where there are any and ``allow`` is False.
    """
    test_samples = {sample for _, test in task.folds for sample in test}
    leaked = sorted(test_samples & set(seen))
    if leaked and not allow:
        message = f"{task.name}: the run was finetuned on test sample {leaked[0]}"
        raise InputError(f"{message}; leave it out, or set --allow-leakage, which marks the result")
    return leaked


def copied_test_samples(task: HestTask, *, allow: bool = False) -> list[str]:
    """Return the task's test samples that train in the same fold under another name.

    Parameters
    ----------
    task
        The task.
    allow
        Return such samples instead of raising.

    Returns
    -------
    list of str
        Names of the test samples of which a training sample has the same patches or counts, to the
        byte; sorted.

    Raises
    ------
    InputError
        Where there are any and ``allow`` is False.
    """
    digests = _digests(task.files)
    copies: dict[str, str] = {}
    for train, test in task.folds:
        trained = {digest: sample for sample in train for digest in digests[sample]}
        for sample in test:
            for digest in digests[sample] & set(trained):
                copies[sample] = trained[digest]
    copied = sorted(copies)
    if copied and not allow:
        pair = f"test sample {copied[0]} has the same file as training sample {copies[copied[0]]}"
        remedy = "leave one out, or set --allow-leakage, which marks the result"
        raise InputError(f"{task.name}: {pair}; {remedy}")
    return copied


def _digests(files: Mapping[str, tuple[Path, Path]]) -> dict[str, set[str]]:
    """Return the SHA-256 of those files of each sample that have the size of another's."""
    sizes = Counter(path.stat().st_size for paths in files.values() for path in paths)
    return {
        sample: {sha256(path) for path in paths if sizes[path.stat().st_size] > 1}
        for sample, paths in files.items()
    }


def run_hest_bench(
    task: HestTask,
    samples: Mapping[str, Section],
    config: Config,
    *,
    features: Features,
    layers: Features,
) -> dict:
    """Score a task with its own folds.

    Parameters
    ----------
    task
        The task.
    samples
        Its loaded samples by name.
    config
        Settings of the run; its seed is that of the probes.
    features, layers
        As `features.embed_all` returns them for the samples, in their order.

    Returns
    -------
    dict
        A result like that of `crossval.crossval`: "data", "backbone", "classes" (None), "folds"
        (each {"test": TASK/0 and so on, "seed", "r2": {features: R^2}, "scores"}) and "delta". Per
        fold and features, "scores" has HEST-bench's own score under the target "hest_bench"
        (`pooled_scores`), and both probes on all targets within each test sample.
    """
    row_of = {name: i for i, name in enumerate(samples)}
    folds = []
    for i, (train_names, test_names) in enumerate(task.folds):
        train = [samples[name] for name in train_names]
        test = [samples[name] for name in test_names]
        order = [row_of[name] for name in (*train_names, *test_names)]
        fold_layers = _reorder(layers, order)
        fold_features = _reorder(features, order)
        best_layer = best_feature_layer(fold_layers, train, task.genes)
        fold_features["frozen_best"] = fold_layers[best_layer]
        scores, r2 = _score_fold(train, test, task.genes, features=fold_features, seed=config.seed)
        folds.append(
            {
                "test": f"{task.name}/{i}",
                "seed": config.seed,
                "r2": r2,
                "scores": score_rows(scores, task.genes),
            }
        )
    ratios = [len(test_names) / len(train_names) for train_names, test_names in task.folds]
    return {
        "data": task.name,
        "backbone": config.backbone,
        "classes": None,
        "folds": folds,
        "delta": deltas(folds, test_to_train=float(np.mean(ratios))),
    }


def _reorder(features: Features, order: Sequence[int]) -> Features:
    """Return the features of the sections with these indices, in this order."""
    return {name: [x[i] for i in order] for name, x in features.items()}


def _score_fold(
    train: Sequence[Section],
    test: Sequence[Section],
    genes: Sequence[str],
    *,
    features: Features,
    seed: int,
) -> tuple[dict[ScoreKey, np.ndarray], dict[str, float]]:
    """Scores of every kind of features, and the R^2 of HEST-bench's own probe."""
    n_train = len(train)
    scores = {}
    r2 = {}
    for name, x in features.items():
        train_x, test_x = x[:n_train], x[n_train:]
        r, r2[name] = pooled_scores(train, test, genes, train_x=train_x, test_x=test_x)
        scores[ScoreKey(name, "hest", "hest_bench")] = r[None]
        within = probe_scores(train, test, genes, train_x=train_x, test_x=test_x, seed=seed)
        for (probe, target), section_r in within.items():
            scores[ScoreKey(name, probe, target)] = section_r
    return scores, r2
