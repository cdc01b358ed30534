"""HEST-bench as published: its folders, its folds, its score (Jaume et al., NeurIPS 2024).

    ROOT/<TASK>/patches/<sample>.h5      img (n, px, px, 3) uint8, barcode (n, 1), coords (n, 2)
    ROOT/<TASK>/adata/<sample>.h5ad      counts of all genes
    ROOT/<TASK>/splits/train_<i>.csv     sample_id, patches_path, expr_path; test_<i>.csv beside it
    ROOT/<TASK>/var_50genes.json         {"genes": [...]}

A sample becomes a `Section`, so the probes and controls of every other evaluation read it too.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from seal_lite.config import Config
from seal_lite.data.genes import depth
from seal_lite.data.images import resized
from seal_lite.data.patches import HEST_UM as PATCH_UM
from seal_lite.data.patches import read_patches
from seal_lite.data.readers.common import raw_counts, read_h5ad, read_table
from seal_lite.data.readers.hest import GENES_FILE, SPLIT_COLUMNS
from seal_lite.data.section import Section
from seal_lite.errors import InputError, reading
from seal_lite.evaluation import targets as tg
from seal_lite.evaluation.features import best_stage
from seal_lite.evaluation.probes import hest_probe
from seal_lite.evaluation.ridge import Sums, hest_bench_ridge
from seal_lite.evaluation.scores import probe_scores, score_rows
from seal_lite.evaluation.statistics import deltas
from seal_lite.io import read_json

log = logging.getLogger(__name__)
SEED = 1  # of the benchmark's own PCA


@dataclass(frozen=True)
class HestTask:
    """A benchmark task of HEST-bench (Jaume et al., 2024), as `read_task` finds it.

    genes: those to predict (g,). folds: (training, test) sample names of each. files: {sample: (its
    patches, .h5, and its counts, .h5ad)}.
    """

    name: str
    genes: list[str]
    folds: list[tuple[list[str], list[str]]]
    files: dict[str, tuple[Path, Path]]

    def load(self, *, px: int = 224) -> dict[str, Section]:
        """All samples, {name: `Section`}, with patches (n, px, px, 3) resampled to `px` pixels.

        Raises `InputError` for a file that is damaged or does not fit the others.
        """
        bar = tqdm(self.files.items(), f"read {self.name}", leave=False)
        return {name: read_sample(name, *files, self.genes, px=px) for name, files in bar}


def read_hest_task(root, name: str) -> HestTask:
    """Read what a task is, and that its files are there.

    `root`/`name` holds splits/, patches/, adata/ and var_50genes.json, as HEST-bench publishes
    them. Raises `InputError` for anything missing or inconsistent, and for a sample in both halves
    of a fold.
    """
    folder = Path(root) / name
    if not (folder / "splits").is_dir():
        raise InputError(f"{folder}: has no folder splits; give the folder that holds the tasks")
    genes = read_json(folder / GENES_FILE, "genes", remedy="restore its list 'genes'")["genes"]
    folds, files = [], {}
    for i in count():
        halves = [folder / f"splits/{half}_{i}.csv" for half in ("train", "test")]
        if not any(half.exists() for half in halves):
            break
        how = {"needs": SPLIT_COLUMNS, "sep": ",", "dtype": str, "keep_default_na": False}
        tables = [read_table(half, **how)[SPLIT_COLUMNS] for half in halves]
        for table in tables:
            files |= {s: (folder / p, folder / e) for s, p, e in table.itertuples(index=False)}
        train, test = (list(table.sample_id) for table in tables)
        if shared := sorted(set(train) & set(test)):
            raise InputError(f"{halves[1]}: sample {shared[0]} also trains; take it out of a half")
        folds.append((train, test))
    if not folds:
        raise InputError(f"{folder / 'splits'}: has no train_0.csv and test_0.csv; restore them")
    if lost := [path for pair in files.values() for path in pair if not path.is_file()]:
        raise InputError(f"{lost[0]}: is missing, and {folder / 'splits'} names it; fetch it again")
    return HestTask(name, genes, folds, files)


def read_sample(name: str, patches: Path, expression: Path, genes, *, px: int = 224) -> Section:
    """A sample's patches, in their order, with the counts of the same barcodes, matched by name.

    Patches without any count are dropped and reported: they have no expression to predict. Raises
    `InputError` for a file that is damaged or does not fit the other.
    """
    images, barcodes, coords = read_patches(patches)
    with reading(expression):
        adata = read_h5ad(expression)
    for wanted, known, what in (
        (barcodes, adata.obs_names, "barcode"),
        (genes, adata.var_names, "gene"),
    ):
        if lacking := [w for w in wanted if w not in known]:
            raise InputError(f"{expression}: {what} {lacking[0]} is missing; pair the right files")
        if not known.is_unique:
            raise InputError(f"{expression}: a {what} stands there twice; keep one")
    adata = adata[barcodes].copy()
    adata.layers["counts"] = raw_counts(expression, adata)
    adata.obsm["spatial"] = coords.astype(float)
    adata.uns = {"section_id": name, "patient_id": name, "um_per_px": PATCH_UM / images.shape[1]}
    rows = np.flatnonzero(depth(adata) > 0)
    if len(rows) < len(barcodes):
        log.info("%s: %d patches without counts: dropped", name, len(barcodes) - len(rows))
    adata = adata[rows].copy()
    return Section(adata, np.arange(len(rows)), resample(images[rows], px))


def resample(images: np.ndarray, px: int) -> np.ndarray:
    """Images (n, h, w, 3) uint8 at `px` x `px` pixels, low-pass filtered where that is fewer."""
    if images.shape[1:3] == (px, px):
        return images
    return np.stack([resized(Image.fromarray(image), px) for image in images])


def hest_px(config: Config, row) -> int:
    """Pixels at which a run sees the benchmark's region as large as it saw its own in training.

    A transformer has one input size; `InputError` where that would be another scale.
    """
    px = round(PATCH_UM * config.patch_px / config.patch_um)
    if row.fixed and px != config.patch_px:
        said = f"{row.name}: reads {config.patch_px} px, and HEST-bench's {PATCH_UM:g} um would be"
        raise InputError(f"{said} {px} px; finetune with --set patch_um={PATCH_UM:g}")
    return px


def pooled_scores(train, test, train_x, test_x, genes) -> tuple[np.ndarray, float]:
    """HEST-bench's own number: r (g,) of log1p raw counts over all test patches together.

    train, test: `Section`s. train_x, test_x: features (n_i, d) of each. The probe is that of Jaume
    et al. (2024). Also the mean R^2 over genes, of the same probe with an intercept. (Without one,
    as published, predictions lie around 0 and counts do not: that R^2 says how far from 0 they
    are.)
    """
    y = [[tg.section_targets(s.adata, genes)["log1p_raw"] for s in part] for part in (train, test)]
    x, z = np.concatenate(test_x), np.concatenate(y[0])
    if len(z) < x.shape[1]:  # fewer patches than features: small, and sums do not know its rows
        predicted = hest_probe(np.concatenate(train_x), z, None, x, seed=SEED) + z.mean(0)
    else:
        sums = sum(Sums.of(a, b) for a, b in zip(train_x, y[0], strict=True))
        predicted = hest_bench_ridge(sums, x, seed=SEED)
    measured = np.concatenate(y[1])
    left = ((measured - predicted) ** 2).sum(0)
    spread = ((measured - measured.mean(0)) ** 2).sum(0)
    r2 = 1 - left[spread > 0] / spread[spread > 0]
    return tg.pearson(predicted, measured), float(r2.mean())


def seen_test_samples(task: HestTask, seen, *, allow: bool = False) -> list[str]:
    """The task's test samples among those that a run has `seen` (names) in training, sorted.

    Raises `InputError` where there are any, unless that is allowed.
    """
    found = sorted({s for _, test in task.folds for s in test} & set(seen))
    if found and not allow:
        said = f"{task.name}: the run was finetuned on test sample {found[0]}"
        raise InputError(f"{said}; leave it out, or say --allow-leakage, which marks the result")
    return found


def run_hest_bench(
    task: HestTask, samples: dict, config: Config, found: dict, stages: dict
) -> dict:
    """Score a task on its loaded samples: a result like `crossval`'s, one fold for each of its own.

    `found` and `stages` are what `evaluate.features` gives for the samples, in their order. Per
    fold and features: HEST-bench's number under target "hest_bench" (`pooled_scores`), its R^2, and
    both probes on all targets, within each test sample. Returns {"data", "backbone", "classes":
    None, "folds": [{"test": TASK/0 and so on, "seed", "r2": {features: R^2}, "scores"}], "delta"}.
    """
    names, folds = list(samples), []
    for i, halves in enumerate(task.folds):
        train, test = ([samples[s] for s in half] for half in halves)

        def halved(x, halves=halves):
            return [[x[names.index(s)] for s in half] for half in halves]

        split = {stage: halved(x) for stage, x in stages.items()}
        best = best_stage({k: a + b for k, (a, b) in split.items()}, train, task.genes)
        every = {k: halved(x) for k, x in found.items()} | {"frozen_best": split[best]}
        scores, r2 = {}, {}
        for name, (train_x, test_x) in every.items():
            r, r2[name] = pooled_scores(train, test, train_x, test_x, task.genes)
            scores[name, "hest", "hest_bench"] = r[None]
            part = probe_scores(train, test, train_x, test_x, task.genes, seed=config.seed)
            scores |= {(name, probe, t): v for (probe, t), v in part.items()}
        folds.append(
            {
                "test": f"{task.name}/{i}",
                "seed": config.seed,
                "r2": r2,
                "scores": score_rows(scores, task.genes),
            }
        )
    return {
        "data": task.name,
        "backbone": config.backbone,
        "classes": None,
        "folds": folds,
        "delta": deltas(folds),
    }
