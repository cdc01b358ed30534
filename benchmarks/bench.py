"""Every speed that the book claims, each beside what it is compared with, in one run.

    python book/bench.py HER2ST

Writes results/bench.json, which the results page and the chapter on cost show. `make bench` runs
it. What depends on the process (its allocator, its peak memory) runs in one of its own: see
`steps.py` and `scale.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from seal_lite import Config, load_sections
from seal_lite.data.phantom import phantom
from seal_lite.evaluation.retrieval import search
from seal_lite.evaluation.ridge import Sums, hest_bench_ridge
from seal_lite.evaluation.targets import pearson
from seal_lite.training.provenance import provenance
from seal_lite.tutorial.begin import PHANTOM
from steps import OFF

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
CODE = ("retrieval", "ridge", "pairs", "train", "shards")
SECTIONS = ["C2", "C3"]
SIZE = {"um": 224.0, "batch": 64, "steps": 3}
SETTINGS = {  # what is read at how many px, and tuned from which block on
    "the default: 160 px, 3 stages": {"px": 160, "blocks": 3, "tap": "blocks.4"},
    "224 px, 1 stage": {"px": 224, "blocks": 1, "tap": "blocks.4"},
    "224 px, the network's last stage": {"px": 224, "blocks": 1, "tap": "blocks.6"},
}
LOOPS = {"tutorial": [*OFF], "streamed": ["cache"], "cached": []}
SIZES = (7_000, 70_000, 700_000)  # pairs
ROUNDS = 2  # of which the better counts: whatever else runs can only slow one down


def python(script: str, *args) -> dict | None:
    """The last line that a script of this folder prints, from a process of its own."""
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    command = [sys.executable, HERE / script, *map(str, args)]
    done = subprocess.run(
        command,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else None


def best(jobs: dict[str, dict]) -> dict[str, dict]:
    """Every job of `steps.py`, in turn and in `ROUNDS`; of each the fastest."""
    found = {}
    for _ in range(ROUNDS):
        for name, job in jobs.items():
            found.setdefault(name, []).append(python("steps.py", json.dumps(job)))
            print(name, round(found[name][-1]["rate"], 1), flush=True)
    return {name: max(runs, key=lambda run: run["rate"]) for name, runs in found.items()}


def job(data, **more) -> dict:
    """What `steps.py` is asked for: everything on, unless `more` says otherwise."""
    return {"data": str(data), "sections": SECTIONS, **SIZE, "off": [], **more}


def training(data) -> dict:
    """{setting: {"rates": pairs per second of each loop, "ratio": cached to tutorial, "gap": the
    largest difference of their losses, "cache_seconds", "pairs", "threads"}}."""
    result = {}
    for name, setting in SETTINGS.items():
        runs = best({loop: job(data, **setting, off=off) for loop, off in LOOPS.items()})
        rates, losses = ({k: run[what] for k, run in runs.items()} for what in ("rate", "losses"))
        result[name] = {
            "rates": rates,
            "ratio": rates["cached"] / rates["tutorial"],
            "gap": float(np.ptp([*losses.values()], axis=0).max()),
            **{k: runs["cached"][k] for k in ("cache_seconds", "pairs", "threads")},
        }
    return result


def parts(data) -> dict:
    """Pairs per second of the last of `SETTINGS` with each part of what makes it fast switched off,
    and with half precision, and one thread, which are not the default."""
    *_, setting = SETTINGS.values()
    jobs = {name: job(data, **setting, off=[name]) for name in OFF if name != "cut"}  # with cache
    jobs |= {
        "all on": job(data, **setting),
        "bf16": job(data, **setting, precision="bf16"),
        "one thread": job(data, **setting, threads=1),
    }
    return {name: run["rate"] for name, run in best(jobs).items()}


def chunks(data) -> dict:
    """Peak bytes of a process whose batch has 320 pairs, whole and 32 at a time."""
    setting, *_ = SETTINGS.values()
    setting = {**setting, "batch": 320, "steps": 1, "off": ["cache"]}
    runs = {
        chunk: python("steps.py", json.dumps(job(data, **setting, chunk=chunk)))
        for chunk in (0, 32)
    }
    losses = [run["losses"] for run in runs.values()]
    return {
        "batch": 320,
        "chunk": 32,
        "gap": float(np.ptp(losses, axis=0).max()),
        "peak_bytes": {"whole": runs[0]["peak_bytes"], "chunks": runs[32]["peak_bytes"]},
        "rates": {"whole": runs[0]["rate"], "chunks": runs[32]["rate"]},
    }


def embedding(data) -> dict:
    """Patches per second, and their ratio, of `encoders.embed` and of the tutorials' loop."""
    setting = {"px": 224, "blocks": 0, "tap": "blocks.4", "embedding": True}
    runs = best(
        {
            "tutorial": job(data, **setting, off=["layout", "allocator", "cut"]),
            "ours": job(data, **setting),
        }
    )
    rates = {name: run["rate"] for name, run in runs.items()}
    gap = abs(runs["tutorial"]["sum"] / runs["ours"]["sum"] - 1)
    return {"rates": rates, "ratio": rates["ours"] / rates["tutorial"], "gap": gap}


def start_up() -> dict[str, float]:
    """Seconds until the package is imported, and until the command line has said what it can."""
    asked = {
        "import": [sys.executable, "-c", "import seal_lite"],
        "help": [Path(sys.executable).with_name("seal-lite"), "--help"],
    }
    seconds = {}
    for name, command in asked.items():
        clock = []
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            clock.append(time.perf_counter() - started)
        seconds[name] = min(clock)
    return seconds


def scaling() -> list[dict]:
    """`scale.train`'s numbers for each of `SIZES`, from patches of the book's phantom."""
    found, root = [], phantom("data/phantom", **PHANTOM)
    for pairs in SIZES:
        folder = Path("runs/scale") / str(pairs)
        python("scale.py", "write", folder, pairs, root)
        found.append(python("scale.py", "train", folder))
        print(found[-1], flush=True)
        shutil.rmtree(folder)
    return found


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
        ridge = SklearnRidge(
            alpha=100 / (256 * genes), solver="lsqr", fit_intercept=False, max_iter=1000
        )
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
    return {
        "seconds": seconds,
        "ratio": seconds["upstream"] / seconds["ours"],
        "largest_difference": float(np.abs(theirs - mine).max()),
        "samples": samples,
        "patches": n,
        "features": d,
        "genes": genes,
    }


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
    return {
        "seconds": best,
        "ratio": best["faiss"] / best["ours"],
        "agree": float((theirs == mine).mean()),
        "gallery": n,
        "features": d,
        "queries": queries,
        "top": top,
    }


if __name__ == "__main__":
    her2st = Path(sys.argv[1])
    threads = {"threads": torch.get_num_threads()}
    result = {
        "training": training(her2st),
        "parts": parts(her2st),
        "chunks": chunks(her2st),
        "embedding": embedding(her2st),
        "start_up": start_up(),
        "scale": scaling(),
        "probing": probing() | threads,
        "searching": searching() | threads,
        "provenance": provenance(load_sections(her2st, SECTIONS), Config(), code=CODE),
    }
    (RESULTS / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
