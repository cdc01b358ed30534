"""Every speed that the book claims, each beside what it is compared with, in one run.

    python book/bench.py HER2ST

Writes results/bench.json, which the results page shows. `make bench` runs it.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from seal_lite import Config
from seal_lite.genes import GenePanel
from seal_lite.model import SEAL
from seal_lite.retrieval import search
from seal_lite.ridge import Sums, hest_bench_ridge
from seal_lite.sections import load_sections
from seal_lite.targets import pearson
from seal_lite.train import Pairs, provenance

RESULTS = Path(__file__).parents[1] / "results"
CODE = ("retrieval", "ridge", "pairs", "train")


def throughput(sections, config: Config, *, steps: int = 6) -> dict:
    """Time `steps` training steps of both loops, in turn, step by step.

    Returns pairs_per_s of each, their ratio, the largest difference of the two losses (same
    weights, same views), and the seconds that filling the cache took.
    """
    panel = GenePanel.from_config(sections, config)
    model = SEAL.build(panel, config)
    started = time.perf_counter()
    loops = {"cached": Pairs(sections, panel, config, model.encoder, cached=True)}
    cache_seconds = time.perf_counter() - started
    loops["plain"] = Pairs(sections, panel, config, model.encoder, cached=False)
    seconds, losses = dict.fromkeys(loops, 0.0), {k: [] for k in loops}
    batches = {k: itertools.chain.from_iterable(map(p.epoch, itertools.count()))
               for k, p in loops.items()}  # fmt: skip
    for step in range(steps + 1):  # the first step warms up and is not counted
        for name, batch in batches.items():
            started = time.perf_counter()
            torch.manual_seed(step)  # the same dropout in both
            model.train()
            terms = model(*next(batch))
            model.zero_grad()
            terms["loss"].backward()
            seconds[name] += (time.perf_counter() - started) * (step > 0)
            losses[name].append(terms["loss"].item())
    rate = {k: steps * config.batch_size / s for k, s in seconds.items()}
    gap = max(abs(a - b) for a, b in zip(losses["plain"], losses["cached"], strict=True))
    return {
        "pairs_per_s": rate,
        "ratio": rate["cached"] / rate["plain"],
        "largest_loss_difference": gap,
        "cache_seconds": cache_seconds,
        "pairs": len(loops["plain"].keys),
        "threads": torch.get_num_threads(),
    }


def probing(*, samples=8, n=2500, d=1024, genes=50, seed=0) -> dict:
    """All folds of a benchmark task, one sample held out at a time: the upstream loop, which fits
    every fold anew and correlates gene by gene, and ours, which reads each sample once.

    Random features with a falling spectrum, of the size of HEST-bench's tasks with UNI's features.
    """
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((d, d)) * (np.arange(1, d + 1) ** -0.7)[:, None]
    weights = rng.standard_normal((d, genes)) / d**0.5
    x = [rng.standard_normal((n, d)) @ mix + 3 for _ in range(samples)]
    y = [np.log1p(rng.poisson(np.exp(1 + (v - 3) @ weights / np.std(v)))) for v in x]

    def upstream(fold):
        train = np.concatenate([v for i, v in enumerate(x) if i != fold])
        scaler, pca = StandardScaler(), PCA(256, random_state=1)
        train = pca.fit_transform(scaler.fit_transform(train))
        ridge = SklearnRidge(alpha=100 / (256 * genes), solver="lsqr", fit_intercept=False,
                             max_iter=1000)  # fmt: skip
        ridge.fit(train, np.concatenate([v for i, v in enumerate(y) if i != fold]))
        predicted = ridge.predict(pca.transform(scaler.transform(x[fold])))
        return [pearsonr(predicted[:, g], y[fold][:, g])[0] for g in range(genes)]

    def ours(fold):
        others = sum(sums[:fold] + sums[fold + 1 :])
        return pearson(hest_bench_ridge(others, x[fold]), y[fold])

    started = time.perf_counter()
    theirs = np.array([upstream(fold) for fold in range(samples)])
    middle = time.perf_counter()
    sums = [Sums.of(a, b) for a, b in zip(x, y, strict=True)]
    mine = np.array([ours(fold) for fold in range(samples)])
    seconds = {"upstream": middle - started, "ours": time.perf_counter() - middle}
    return {"seconds": seconds, "ratio": seconds["upstream"] / seconds["ours"],
            "largest_difference": float(np.abs(theirs - mine).max()),
            "samples": samples, "patches": n, "features": d, "genes": genes}  # fmt: skip


def searching(*, n=1_000_000, d=512, queries=100, top=10, repeats=3, seed=0) -> dict:
    """The `top` nearest of n x d unit vectors: faiss's flat index, and ours on a memory map."""
    import faiss

    rng, folder = np.random.default_rng(seed), Path("runs")
    folder.mkdir(exist_ok=True)
    file = folder / "gallery.npy"
    gallery = np.lib.format.open_memmap(file, "w+", np.float32, (n, d))
    for i in range(0, n, 50_000):
        part = rng.standard_normal((50_000, d), dtype=np.float32)[: n - i]
        gallery[i : i + 50_000] = part / np.linalg.norm(part, axis=1, keepdims=True)
    asked = np.array(gallery[:: n // queries][:queries])
    asked += 0.05 * rng.standard_normal(asked.shape, dtype=np.float32)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    index = faiss.IndexFlatIP(d)
    index.add(np.asarray(gallery))
    gallery = np.load(file, mmap_mode="r")
    seconds = {"faiss": [], "ours": []}
    for _ in range(repeats):
        started = time.perf_counter()
        theirs = index.search(asked, top)[1]
        middle = time.perf_counter()
        mine = search(asked, gallery, top=top)[0]
        seconds["faiss"].append(middle - started)
        seconds["ours"].append(time.perf_counter() - middle)
    file.unlink()
    best = {k: min(v) for k, v in seconds.items()}
    return {"seconds": best, "ratio": best["faiss"] / best["ours"],
            "agree": float((theirs == mine).mean()), "gallery": n, "features": d,
            "queries": queries, "top": top}  # fmt: skip


if __name__ == "__main__":
    found = load_sections(sys.argv[1], ["C2", "C3"])
    threads = {"threads": torch.get_num_threads()}
    result = {**throughput(found, Config()), "probing": probing() | threads,
              "searching": searching() | threads,
              "provenance": provenance(found, Config(), code=CODE)}  # fmt: skip
    (RESULTS / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
