"""Kills, damaged files, crowds and hundreds of cycles: counted, for the tests and for the book.

    python tests/under_load.py OUT.json --kills 20 --mutants 10 --cycles 40

Each trial runs in a forked child, which has everything imported already and can be killed, or can
crash, without taking the count with it.
"""

import argparse
import functools
import hashlib
import http.server
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a forked child must not wait for its parent's threads

import h5py
import numpy as np
import psutil
import torch
from conftest import TINY
from made import make_truth, write_everything
from PIL import Image
from safetensors.numpy import load_file

from seal_lite import Config, InputError
from seal_lite.data import download, pathways
from seal_lite.data.images import open_slide
from seal_lite.data.phantom import phantom, write_pyramid
from seal_lite.data.section import load_sections
from seal_lite.data.shards import read_shards
from seal_lite.encoders.prefix_cache import PrefixCache
from seal_lite.encoders.vision import build_encoder
from seal_lite.evaluation import hest_bench
from seal_lite.evaluation.crossval import crossval
from seal_lite.evaluation.scores import probe_scores
from seal_lite.model.seal import SEAL
from seal_lite.slides import embed, tasks
from seal_lite.training.loop import finetune
from seal_lite.training.provenance import provenance

CODE = ("cache", "crossval", "fetch", "hest", "pathways", "shards", "slides", "train", "wsi")
CONFIG = replace(TINY, patch_px=32, n_views=2, epochs=4, gene_warmup_epochs=0)


def fork(function, *args) -> int:
    """Run `function` in a child: its exit status is 0, or 2 for an `InputError`, else 1."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        if not os.environ.get("LOUD"):
            os.dup2(null, 2)
        function(*args)
        status = 0
    except InputError:
        status = 2
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def ended(pid: int, seconds: float = 600.0):
    """How a child has ended, an exit status or minus a signal; None if it has not by then."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def kill(pid: int):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


# What is killed: a job writes into a folder; what has its final name there stays as it is (`kept`),
# and at the end `result` is what an undisturbed run has.


def files(pattern, out) -> dict:
    return {
        str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob(pattern)) if p.is_file()
    }


def tuned(out) -> dict:
    """A run's tensors and losses, without the times that it took."""
    tensors = {
        f"{file}:{k}": v.tobytes()
        for file in ("heads", "adapter/adapter_model")
        for k, v in load_file(out / f"run/{file}.safetensors").items()
    }
    lines = (out / "run/metrics.jsonl").read_text().splitlines()
    losses = [
        {k: v for k, v in json.loads(line).items() if k not in ("seconds", "pairs_per_s")}
        for line in lines
    ]
    return {
        **tensors,
        "losses": losses,
        **files("run/panel.json", out),
        **files("cache/*.npy", out),
    }


def jobs(root, sections, url):
    """{name: (function of a folder, pattern of what is never written twice, its result)}."""
    encoder = build_encoder(CONFIG.backbone, tune_blocks=1)
    pictures = sorted((root / "scans").iterdir())
    return {
        "finetune": (
            lambda out: finetune(
                sections[:1], CONFIG, out=out / "run", cache_dir=out / "cache", progress=False
            ),
            "cache/*.npy",
            tuned,
        ),
        "crossval": (
            lambda out: crossval(
                root, sections, replace(CONFIG, epochs=1), seeds=1, out=out, progress=False
            ),
            "folds/*.json",
            functools.partial(files, "*.[jc]s*[nv]"),
        ),
        "embed": (
            lambda out: embed.embed_slides(encoder, pictures, out, patch_um=64.0, patch_px=32),
            "*.h5",
            functools.partial(files, "*.h5"),
        ),
        "fetch": (
            lambda out: download.fetch_her2st(out, base_url=url, progress=False),
            "data/**/*.gz",
            functools.partial(files, "data/**/[!.]*"),
        ),
    }


def whole(out):
    """Everything that has its final name can be read."""
    for path in (p for p in out.rglob("*") if p.is_file() and not p.name.startswith(".")):
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".h5":
            h5py.File(path).close()
        elif path.suffix == ".npy":
            np.load(path, mmap_mode="r")


def killed(job, kept: str, result, where: Path, wanted: int, rng) -> dict:
    """Kill a job at `wanted` random moments of its work, always starting it again."""
    started = time.monotonic()
    assert ended(fork(job, where / "undisturbed")) == 0
    seconds, reference = time.monotonic() - started, result(where / "undisturbed")
    assert reference
    kills = runs = 0
    while kills < wanted:
        out, seen, runs = where / f"{runs}", {}, runs + 1
        while True:
            pid = fork(job, out)
            status = ended(pid, rng.uniform(0, seconds)) if kills < wanted else ended(pid)
            if status is not None:
                assert status == 0, status
                break
            kill(pid)
            kills += 1
            if out.exists():
                whole(out)
                seen |= {p: p.stat().st_mtime_ns for p in out.glob(kept)}
        assert result(out) == reference
        assert all(p.stat().st_mtime_ns == t for p, t in seen.items()), "done work was done again"
        assert not list(out.rglob("*.part"))
        shutil.rmtree(out)
    return {"kills": kills, "runs": runs, "seconds": round(seconds, 2)}


def serve(root: Path):
    """A slow upstream of her2st in this process: its url."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            time.sleep(0.05)
            super().do_GET()

        def log_message(self, *args):
            pass

    rows = ["path\tgit_blob_sha1\tbytes"]
    for i in range(12):
        path, content = f"data/ST-cnts/A{i}.tsv.gz", bytes([i]) * 200_000
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        rows.append(f"{path}\t{blob.hexdigest()}\t{len(content)}")
    download.MANIFEST = root / "manifest.tsv"
    download.MANIFEST.write_text("\n".join(rows) + "\n")
    handler = functools.partial(Handler, directory=root)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


# What is damaged: a reader of each file, given the folder of good data and the file's path in it.


def section(folder, name="S1", **size):
    """Counts, coordinates and patches: all that is read of a section."""
    return lambda root: load_sections(root / folder, [name], **size)


def shards(root):
    return read_shards(root / "shards", Config.from_json(root / "shards/config.json"))


SMALL = {"patch_um": 64.0, "patch_px": 32}
READERS = {  # file: what reads it
    "legacy/data/ST-cnts/PA1.tsv.gz": section("legacy", "PA1", patch_px=32),
    "legacy/data/ST-spotfiles/PA1_selection.tsv": section("legacy", "PA1", patch_px=32),
    "legacy/data/ST-imgs/PA/PA1/HE_PA1.jpg": section("legacy", "PA1", patch_px=32),
    "legacy/sections.tsv": section("legacy", "PA1", patch_px=32),
    "h5ad/S1.h5ad": section("h5ad", **SMALL),
    "h5ad/S1.tif": section("h5ad", **SMALL),
    "visium/S1/filtered_feature_bc_matrix.h5": section("visium", **SMALL),
    "visium/S1/spatial/tissue_positions.csv": section("visium", **SMALL),
    "visium/S1/spatial/scalefactors_json.json": section("visium", **SMALL),
    "xenium/S1/transcripts.parquet": section("xenium", **SMALL),
    "xenium/S1/experiment.xenium": section("xenium", **SMALL),
    "xenium/S1/S1_he_imagealignment.csv": section("xenium", **SMALL),
    "zarr/S1.zarr/images/he/zarr.json": section("zarr", **SMALL),
    "hest/metadata/S1.json": section("hest", **SMALL),
    "ready/patches/S1.h5": section("ready", **SMALL),
    "bench/TINY/var_50genes.json": lambda root: hest_bench.read_hest_task(root / "bench", "TINY"),
    "bench/TINY/splits/train_0.csv": lambda root: hest_bench.read_hest_task(root / "bench", "TINY"),
    "task/k=all.tsv": lambda root: tasks.read_slide_task(root / "task"),
    "task/config.yaml": lambda root: tasks.read_slide_task(root / "task"),
    "features/c6_0.h5": lambda root: tasks.read_bags(
        tasks.read_slide_task(root / "task"), root / "features"
    ),
    "slides/p.png": lambda root: open_slide(root / "slides/p.png").read(0, 0, 64, 32),
    "sets.gmt": lambda root: pathways.read_gmt(root / "sets.gmt"),
    "run/config.json": lambda root: SEAL.from_pretrained(root / "run"),
    "run/panel.json": lambda root: SEAL.from_pretrained(root / "run"),
    "run/base.json": lambda root: SEAL.from_pretrained(root / "run"),
    "run/heads.safetensors": lambda root: SEAL.from_pretrained(root / "run"),
    "run/adapter/adapter_model.safetensors": lambda root: SEAL.from_pretrained(root / "run"),
    "shards/PA1.h5": shards,
}


def mutant(content: bytes, rng) -> bytes:
    """The file with one thing wrong: bits, zeros, a piece gone or there twice, an early end."""
    at, n = int(rng.integers(len(content))), int(rng.integers(1, 1 + max(1, len(content) // 4)))
    kind = rng.integers(6)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + content[at + n :]
    if kind == 2:
        return content[:at] + content[at : at + n] + content[at:]
    if kind == 3:
        return content[:at] + bytes(min(n, len(content) - at)) + content[at + n :]
    out = bytearray(content)
    for i in rng.integers(len(out), size=1 if kind == 4 else 20):
        out[i] = rng.integers(256)
    return bytes(out)


def bounded(reader, root):
    """Run a reader with little memory, and with warnings that say nothing."""
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30,) * 2)
    warnings.simplefilter("ignore")
    reader(root)


def prepare(good, root, sections, run):
    """Write good data of every kind."""
    finetune(sections[:1], CONFIG, out=run, progress=False)
    good.mkdir()
    write_everything(good, root, sections, run)
    about = "section\tpatient\tum_per_px\nPA1\tA\t1\nPB1\tB\t1\n"
    (good / "legacy/sections.tsv").write_text(about)
    Image.fromarray(make_truth().image).save(good / "slides/p.png")


def fuzzed(root: Path, each: int, rng, keep: Path) -> dict:
    """Read `each` mutants of every file: how many were read, and how many refused. Others fail."""
    found = {}
    for path, reader in READERS.items():
        good, counts = (root / path).read_bytes(), {"read": 0, "refused": 0}
        assert ended(fork(bounded, reader, root), 120) == 0, path
        for i in range(each):
            (root / path).write_bytes(mutant(good, rng))
            pid = fork(bounded, reader, root)
            status = ended(pid, 120)
            if status not in (0, 2):
                keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(root / path, keep / f"{i}-{Path(path).name}")
                print(f"{path}: mutant {i} ended with {status}", file=sys.stderr)
                if status is None:
                    kill(pid)
            kind = {0: "read", 2: "refused"}.get(status, f"ended with {status}")
            counts[kind] = counts.get(kind, 0) + 1
        (root / path).write_bytes(good)
        found[path] = counts
        print(path, counts, flush=True)
    if bad := [path for path, counts in found.items() if counts.keys() != {"read", "refused"}]:
        sys.exit(f"{', '.join(bad)}: neither read nor refused; see {keep}")
    return found


def crowd(root, sections, where: Path, n: int = 8) -> dict:
    """`n` processes embed into one folder, and as many share one prefix cache."""
    encoder, pictures = (
        build_encoder(CONFIG.backbone, tune_blocks=1),
        sorted((root / "scans").iterdir()),
    )
    log = where / "log"

    def embed(out):
        original = embed._write_features

        def counted(encoder, slide, file, *args):
            with log.open("a") as said:
                said.write(f"{file.name}\n")
            original(encoder, slide, file, *args)

        embed._write_features = counted
        embed.embed_slides(encoder, pictures, out, patch_um=64.0, patch_px=32)

    def cache(out):
        prefix = PrefixCache(encoder, n_views=2, jitter=0.1, folder=out, progress=False)
        for s in sections:
            prefix.activations(s)

    where.mkdir(parents=True, exist_ok=True)
    assert ended(fork(embed, where / "alone")) == 0 == ended(fork(cache, where / "cache-alone"))
    log.write_text("")
    for job, name in ((embed, "together"), (cache, "cache")):
        pids = [fork(job, where / name) for _ in range(n)]
        assert [ended(pid) for pid in pids] == [0] * n
    assert files("*.h5", where / "together") == files("*.h5", where / "alone")
    assert files("*.npy", where / "cache") == files("*.npy", where / "cache-alone")
    written = log.read_text().split()
    assert len(written) == len(pictures), "a slide was embedded twice"
    return {"processes": n, "slides": len(pictures)}


def cycled(sections, cycles: int) -> dict:
    """Finetune and probe again and again in this process: memory and open files, at intervals."""
    me, rows = psutil.Process(), []
    genes = [g for g in ("ERBB2", "COL1A1") if g in sections[0].adata.var_names]
    config = replace(CONFIG, epochs=1)
    rng = np.random.default_rng(0)
    for i in range(cycles):
        finetune(sections[:1], replace(config, seed=i), progress=False)
        x = [rng.standard_normal((len(s.rows), 8)) for s in sections]
        probe_scores(sections[:1], sections[1:], x[:1], x[1:], genes)
        if (i + 1) % 10 == 0:
            rows.append((i + 1, me.memory_info().rss / 1e6, me.num_fds()))
    n, mb, handles = np.array(rows).T
    late = n > cycles // 4  # the allocator has what it wants
    slope = np.polyfit(n[late], mb[late], 1)[0] * 100
    return {
        "cycles": cycles,
        "mb": [round(float(v), 1) for v in mb],
        "mb_per_100_cycles": round(float(slope), 3),
        "open_files": [int(v) for v in handles],
    }


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("out", type=Path)
    for name in ("kills", "mutants", "cycles"):
        ask.add_argument(f"--{name}", type=int, default=0)
    ask.add_argument("--seed", type=int, default=0)
    asked = ask.parse_args()
    torch.set_num_threads(1)
    rng, found, started = np.random.default_rng(asked.seed), {}, time.monotonic()
    with tempfile.TemporaryDirectory() as where:
        where = Path(where)
        root = phantom(
            where / "phantom",
            patients=2,
            sections_per_patient=1,
            spots=40,
            um_per_px=1.0,
            workers=1,
            progress=False,
        )
        sections = load_sections(root, patch_px=CONFIG.patch_px)
        (root / "scans").mkdir()
        for i in range(4):
            write_pyramid(
                root / f"scans/{i}.tif", np.roll(make_truth().image, 50 * i, 1), um_per_px=2.0
            )
        if asked.kills:
            each = -(-asked.kills // 4)
            found["kills"] = {}
            for name, job in jobs(root, sections, serve(where / "upstream")).items():
                found["kills"][name] = killed(*job, where / name, each, rng)
            found["crowd"] = crowd(root, sections, where / "crowd")
        if asked.mutants:
            good = where / "good"  # a child writes it: a fork would lose the threads that it needs
            assert ended(fork(prepare, good, root, sections, where / "run")) == 0
            again = np.random.default_rng([asked.seed, 1])  # kills drew from the other at will
            found["mutants"] = fuzzed(good, asked.mutants, again, asked.out.with_suffix(".failed"))
        if asked.cycles:
            found["cycles"] = cycled(sections, asked.cycles)
        found["provenance"] = provenance(sections, CONFIG, code=CODE, seed=asked.seed)
    found["seconds"] = round(time.monotonic() - started)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
