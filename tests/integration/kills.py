"""Jobs that are killed at random moments, and processes that share a folder."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from forks import fork, kill, wait
from helpers import TINY
from safetensors.numpy import load_file

from seal_lite.data import download
from seal_lite.encoders.prefix_cache import PrefixCache
from seal_lite.encoders.vision import build_encoder
from seal_lite.evaluation.crossval import crossval
from seal_lite.slides import embed
from seal_lite.training.loop import finetune

CONFIG = replace(TINY, patch_px=32, n_views=2, epochs=4, gene_warmup_epochs=0)
TIMES = ("seconds", "pairs_per_s")  # of an epoch, which no two runs have alike


@dataclass(frozen=True)
class Job:
    """What is killed.

    run: writes into a folder. kept: pattern of the files that are never written again once they
    have their final name. result: of a folder, what an undisturbed run has, too.
    """

    run: Callable[[Path], object]
    kept: str
    result: Callable[[Path], dict]


def read_files(pattern: str, folder: Path) -> dict[str, bytes]:
    """The files of a pattern, to the byte."""
    paths = sorted(path for path in folder.glob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def read_run(folder: Path) -> dict:
    """A run's tensors and losses, and the cache, without the times that they took."""
    tensors = {}
    for name in ("heads", "adapter/adapter_model"):
        for key, tensor in load_file(folder / f"run/{name}.safetensors").items():
            tensors[f"{name}:{key}"] = tensor.tobytes()
    losses = []
    for line in (folder / "run/metrics.jsonl").read_text().splitlines():
        epoch = json.loads(line)
        losses.append({key: value for key, value in epoch.items() if key not in TIMES})
    files = read_files("run/panel.json", folder) | read_files("cache/*.npy", folder)
    return {**tensors, **files, "losses": losses}


def read_crossval(folder: Path) -> dict:
    """The scores and where they come from, without the commit, which may change meanwhile."""
    metrics = json.loads((folder / "metrics.json").read_text())
    provenance = json.loads((folder / "provenance.json").read_text())
    for origin in (metrics["provenance"], provenance):
        del origin["commit"]
    table = (folder / "per_gene.csv").read_bytes()
    return {"metrics": metrics, "provenance": provenance, "per_gene": table}


def make_jobs(root: Path, sections: list, url: str) -> dict[str, Job]:
    """The jobs by name: on sections, on the slides in ROOT/scans, and on a mirror of her2st."""
    encoder = build_encoder(CONFIG.backbone, tune_blocks=1)
    scans = sorted((root / "scans").iterdir())

    def run_finetune(out: Path):
        finetune(sections[:1], CONFIG, out=out / "run", cache_dir=out / "cache", progress=False)

    def run_crossval(out: Path):
        config = replace(CONFIG, epochs=1)
        crossval(sections, config, data_name="phantom", out=out, seeds=1, progress=False)

    def run_embed(out: Path):
        embed.embed_slides(encoder, scans, out, patch_um=64.0, patch_px=32)

    def run_fetch(out: Path):
        download.fetch_her2st(out, base_url=url, progress=False)

    files = functools.partial
    return {
        "finetune": Job(run_finetune, "cache/*.npy", read_run),
        "crossval": Job(run_crossval, "folds/*.json", read_crossval),
        "embed": Job(run_embed, "*.h5", files(read_files, "*.h5")),
        "fetch": Job(run_fetch, "data/**/*.gz", files(read_files, "data/**/[!.]*")),
    }


def serve(root: Path) -> str:
    """Serve a slow upstream of her2st from a thread of this process; returns its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):  # noqa: N802 (the library's name)
            time.sleep(0.05)
            super().do_GET()

        def log_message(self, *args):
            pass

    rows = ["path\tgit_blob_sha1\tbytes"]
    for i in range(12):
        path = f"data/ST-cnts/A{i}.tsv.gz"
        content = bytes([i]) * 200_000
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
        header = b"blob %d\0" % len(content)
        sha1 = hashlib.sha1(header + content, usedforsecurity=False).hexdigest()
        rows.append(f"{path}\t{sha1}\t{len(content)}")
    download.MANIFEST = root / "manifest.tsv"
    download.MANIFEST.write_text("\n".join(rows) + "\n")
    handler = functools.partial(Handler, directory=root)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


def check_readable(folder: Path) -> None:
    """Everything that has its final name can be read."""
    for path in folder.rglob("*"):
        if not path.is_file() or path.name.startswith("."):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".h5":
            h5py.File(path).close()
        elif path.suffix == ".npy":
            np.load(path, mmap_mode="r")


def kill_repeatedly(job: Job, folder: Path, *, n_kills: int, rng: np.random.Generator) -> dict:
    """Kill a job at random moments of its work, always starting it again.

    Every run must end with the undisturbed result, and what is done must not be done again. Until
    a kill has found some of that, each comes after the first file that is kept.
    """
    started = time.monotonic()
    assert wait(fork(job.run, folder / "undisturbed")) == 0
    seconds = time.monotonic() - started
    reference = job.result(folder / "undisturbed")
    assert reference
    assert any((folder / "undisturbed").glob(job.kept))
    kills = 0
    runs = 0
    kept = 0
    while kills < n_kills:
        out = folder / str(runs)
        runs += 1
        kills_here, kept_here = _kill_until_done(
            job, out, seconds, n_kills=n_kills - kills, await_kept=kept == 0, rng=rng
        )
        kills += kills_here
        kept += kept_here
        assert job.result(out) == reference
        assert not list(out.rglob("*.part"))
        shutil.rmtree(out)
    return {"kills": kills, "runs": runs, "kept": kept, "seconds": round(seconds, 2)}


def _kill_until_done(
    job: Job,
    out: Path,
    seconds: float,
    *,
    n_kills: int,
    await_kept: bool,
    rng: np.random.Generator,
) -> tuple[int, int]:
    """Start a job until it ends, killing it at most `n_kills` times.

    With `await_kept` the moments of a kill begin when there is a file that is kept. Returns how
    often it was killed, and how many files the kills found that must not be written again.
    """
    kills = 0
    written: dict[Path, int] = {}
    while True:
        pid = fork(job.run, out)
        if kills == n_kills:
            assert wait(pid) == 0  # None if it hangs
            break
        started = time.monotonic()
        status = _wait_for_kept(job, out, pid) if await_kept else None
        if status is None:
            left = max(0.0, seconds - (time.monotonic() - started))
            status = wait(pid, rng.uniform(0, left))
        if status is not None:
            assert status == 0, status
            break
        kill(pid)
        kills += 1
        if out.exists():
            check_readable(out)
            written |= {path: path.stat().st_mtime_ns for path in out.glob(job.kept)}
    for path, time_ns in written.items():
        assert path.stat().st_mtime_ns == time_ns, f"{path} was written again"
    return kills, len(written)


def _wait_for_kept(job: Job, out: Path, pid: int) -> int | None:
    """Wait until a job has a file that is kept; returns as `wait` if it ends before."""
    while not any(out.glob(job.kept)):
        status = wait(pid, 0.005)
        if status is not None:
            return status
    return None


def share_a_folder(root: Path, sections: list, folder: Path, *, n_processes: int) -> dict:
    """Several processes embed into one folder, and as many share one prefix cache."""
    encoder = build_encoder(CONFIG.backbone, tune_blocks=1)
    scans = sorted((root / "scans").iterdir())
    log = folder / "log"

    def run_embed(out: Path):
        write_features = embed.write_features

        def write_and_log(encoder, slide, file, **size):
            with log.open("a") as lines:
                lines.write(f"{file.name}\n")
            write_features(encoder, slide, file, **size)

        embed.write_features = write_and_log
        embed.embed_slides(encoder, scans, out, patch_um=64.0, patch_px=32)

    def run_cache(out: Path):
        cache = PrefixCache(encoder, n_views=2, jitter=0.1, folder=out, progress=False)
        for section in sections:
            cache.activations(section)

    folder.mkdir(parents=True, exist_ok=True)
    assert wait(fork(run_embed, folder / "alone")) == 0
    assert wait(fork(run_cache, folder / "cache-alone")) == 0
    log.write_text("")
    for job, name in ((run_embed, "together"), (run_cache, "cache")):
        pids = [fork(job, folder / name) for _ in range(n_processes)]
        assert [wait(pid) for pid in pids] == [0] * n_processes
    assert read_files("*.h5", folder / "together") == read_files("*.h5", folder / "alone")
    assert read_files("*.npy", folder / "cache") == read_files("*.npy", folder / "cache-alone")
    assert len(log.read_text().split()) == len(scans), "a slide was embedded twice"
    return {"processes": n_processes, "slides": len(scans)}
