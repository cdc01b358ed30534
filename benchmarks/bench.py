"""Speeds that the book states, beside what they are compared with: results/bench.json.

    python benchmarks/bench.py HER2ST        # minutes on 2 cores

What depends on the process runs in one of its own: `throughput.py`, `slide_throughput.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from processes import python
from seal_lite import Config, load_sections
from seal_lite.data.phantom import phantom
from seal_lite.evaluation.ridge import Sums, hest_bench_ridge
from seal_lite.evaluation.targets import pearson
from seal_lite.training.provenance import provenance
from throughput import seconds_of

RESULT = Path(__file__).parents[1] / "results/bench.json"
SECTIONS = ["C2", "C3"]
TRANSFORMER = "dinov2_s14"
SETTINGS: dict[str, dict[str, Any]] = {
    "CNN, the default: 160 px, 3 stages": {},
    "CNN, 224 px, 1 stage": {"patch_px": 224, "tune_blocks": 1},
    "transformer, small: 140 px, 5 blocks": {"backbone": TRANSFORMER, "preset": "small"},
}
SLIDE_TURNS = {Config.backbone: 3, TRANSFORMER: 1}  # the latter's take five minutes

Result = dict[str, Any]


def spread(values: list[Any]) -> float:
    """Return the largest difference between runs, of any step's value."""
    return float(np.ptp(values, axis=0).max())


def throughput(data: str) -> dict[str, Result]:
    """Return what `throughput.py` measures of every setting."""
    results = {}
    for name, setting in SETTINGS.items():
        job = {"data": data, "sections": SECTIONS, **setting}
        results[name] = python("throughput.py", json.dumps(job))
        print(name, results[name], flush=True)
    return results


def chapters_phantom() -> Path:
    """Return the folder of the chapters' phantom."""
    return phantom("data/phantom", patients=3, sections_per_patient=1, spots=160, seed=0)


def slides() -> list[Result]:
    """Return what `slide_throughput.py` measures on a slide of the chapters' phantom."""
    root = chapters_phantom()
    results = []
    for backbone, turns in SLIDE_TURNS.items():
        results.append(python("slide_throughput.py", root, backbone, turns))
        print("slides", results[-1], flush=True)
    return results


def probing(*, samples: int = 8, n: int = 2500, d: int = 1024, genes: int = 50) -> Result:
    """Return seconds of a benchmark task in which each sample is held out once.

    The published loop fits every fold anew and correlates gene by gene; ours reads each sample
    once. The features are random, with a falling spectrum and the size of HEST-bench's tasks.
    """
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((d, d)) * (np.arange(1, d + 1) ** -0.7)[:, None]
    weights = rng.standard_normal((d, genes)) / d**0.5
    x = [rng.standard_normal((n, d)) @ mix + 3 for _ in range(samples)]  # of each (n, d)
    y = [np.log1p(rng.poisson(np.exp(1 + (v - 3) @ weights / np.std(v)))) for v in x]

    def published_fold(fold: int) -> list[float]:
        train_x = np.concatenate(x[:fold] + x[fold + 1 :])
        train_y = np.concatenate(y[:fold] + y[fold + 1 :])
        scaler, pca = StandardScaler(), PCA(256, random_state=1)
        reduced = pca.fit_transform(scaler.fit_transform(train_x))
        options = {"solver": "lsqr", "fit_intercept": False, "max_iter": 1000}
        ridge = Ridge(alpha=100 / (256 * genes), **options).fit(reduced, train_y)
        predicted = ridge.predict(pca.transform(scaler.transform(x[fold])))
        return [pearsonr(predicted[:, g], y[fold][:, g])[0] for g in range(genes)]

    def our_folds() -> list[np.ndarray]:
        sums = [Sums.of(a, b) for a, b in zip(x, y, strict=True)]
        train = [Sums.total(sums[:fold] + sums[fold + 1 :]) for fold in range(samples)]
        return [pearson(hest_bench_ridge(s, x[i]), y[i]) for i, s in enumerate(train)]

    cpu = torch.device("cpu")
    published_r: list[list[float]] = []
    published = seconds_of(lambda: published_r.extend(map(published_fold, range(samples))), cpu)
    our_r: list[np.ndarray] = []
    ours = seconds_of(lambda: our_r.extend(our_folds()), cpu)
    return {
        "seconds": {"upstream": published, "ours": ours},
        "ratio": published / ours,
        "largest_difference": spread([published_r, our_r]),
        **{"samples": samples, "patches": n, "features": d, "genes": genes},
        "threads": torch.get_num_threads(),
    }


def main(data: str) -> None:
    """Measure everything and write the results file."""
    result = {
        "throughput": throughput(data),
        "slides": slides(),
        "probing": probing(),
        "provenance": provenance(load_sections(data, SECTIONS), Config()),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
