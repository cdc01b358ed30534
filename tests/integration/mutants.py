"""Files with one random fault each, and what reads them."""

from __future__ import annotations

import importlib
import resource
import shutil
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from forks import REFUSED, fork, kill, wait

from seal_lite import Config
from seal_lite.data.images import open_slide
from seal_lite.data.pathways import read_gmt
from seal_lite.data.section import load_sections
from seal_lite.data.shards import read_shards
from seal_lite.evaluation.hest_bench import read_hest_task
from seal_lite.model.seal import SEAL
from seal_lite.slides.tasks import read_bags, read_slide_task

# Readers import these when they need them. Here they are imported once, for all children.
for package in ("anndata", "decoupler", "scanpy", "spatialdata", "squidpy", "tiffslide"):
    importlib.import_module(package)

Reader = Callable[[Path], object]  # of the folder of good data

MEMORY = 12 * 2**30
TIMEOUT = 120.0  # seconds


def read_section(root: Path, *, folder: str, name: str = "S1", patch_um: float = 64.0):
    """Counts, coordinates and patches: all that is read of a section."""
    return load_sections(root / folder, [name], patch_um=patch_um, patch_px=32)


def read_all_shards(root: Path):
    return read_shards(root / "shards", Config.from_json(root / "shards/config.json"))


def read_task_and_bags(root: Path):
    return read_bags(read_slide_task(root / "task"), root / "features")


def read_patch(root: Path):
    return open_slide(root / "slides/p.png").read(0, 0, edge=64, px=32)


def read_run(root: Path):
    return SEAL.from_pretrained(root / "run")


def read_task(root: Path):
    return read_slide_task(root / "task")


def read_tiny_task(root: Path):
    return read_hest_task(root / "bench/TINY")


def read_gene_sets(root: Path):
    return read_gmt(root / "sets.gmt")


LEGACY = partial(read_section, folder="legacy", name="PA1", patch_um=224.0)
H5AD = partial(read_section, folder="h5ad")
VISIUM = partial(read_section, folder="visium")
XENIUM = partial(read_section, folder="xenium")
ZARR = partial(read_section, folder="zarr")
HEST = partial(read_section, folder="hest")
READY = partial(read_section, folder="ready")

READERS: dict[str, Reader] = {  # by file
    "legacy/data/ST-cnts/PA1.tsv.gz": LEGACY,
    "legacy/data/ST-spotfiles/PA1_selection.tsv": LEGACY,
    "legacy/data/ST-imgs/PA/PA1/HE_PA1.jpg": LEGACY,
    "legacy/sections.tsv": LEGACY,
    "h5ad/S1.h5ad": H5AD,
    "h5ad/S1.tif": H5AD,
    "visium/S1/filtered_feature_bc_matrix.h5": VISIUM,
    "visium/S1/spatial/tissue_positions.csv": VISIUM,
    "visium/S1/spatial/scalefactors_json.json": VISIUM,
    "xenium/S1/transcripts.parquet": XENIUM,
    "xenium/S1/experiment.xenium": XENIUM,
    "xenium/S1/S1_he_imagealignment.csv": XENIUM,
    "zarr/S1.zarr/images/he/zarr.json": ZARR,
    "hest/metadata/S1.json": HEST,
    "ready/patches/S1.h5": READY,
    "bench/TINY/var_50genes.json": read_tiny_task,
    "bench/TINY/splits/train_0.csv": read_tiny_task,
    "task/k=all.tsv": read_task,
    "task/config.yaml": read_task,
    "features/c6_0.h5": read_task_and_bags,
    "slides/p.png": read_patch,
    "sets.gmt": read_gene_sets,
    "run/config.json": read_run,
    "run/panel.json": read_run,
    "run/base.json": read_run,
    "run/heads.safetensors": read_run,
    "run/adapter/adapter_model.safetensors": read_run,
    "shards/PA1.h5": read_all_shards,
}


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """The file with one thing wrong: an early end, a piece gone, twice or zero, wrong bytes."""
    start = int(rng.integers(len(content)))
    longest = max(1, len(content) // 4)
    stop = start + int(rng.integers(1, 1 + longest))
    before, piece, after = content[:start], content[start:stop], content[stop:]
    kind = rng.integers(6)
    if kind == 0:
        return before
    if kind == 1:
        return before + after
    if kind == 2:
        return before + piece + piece + after
    if kind == 3:
        return before + bytes(len(piece)) + after
    n_wrong = 1 if kind == 4 else 20
    mutant = bytearray(content)
    for i in rng.integers(len(content), size=n_wrong):
        mutant[i] = rng.integers(256)
    return bytes(mutant)


def read_in_bounds(reader: Reader, root: Path) -> None:
    """Run a reader with limited memory, and without warnings."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    reader(root)


def read_mutants(root: Path, n_mutants: int, rng: np.random.Generator, keep: Path) -> dict:
    """Read mutants of every file of `READERS`; returns how many were read, and how many refused.

    Any other end is an error: the process stops, and the mutant is in `keep`.
    """
    counts = {}
    for path, reader in READERS.items():
        file = root / path
        good = file.read_bytes()
        assert wait(fork(read_in_bounds, reader, root), TIMEOUT) == 0, path
        counts[path] = {"read": 0, "refused": 0}
        for i in range(n_mutants):
            file.write_bytes(mutate(good, rng))
            end = _read_one(reader, root)
            if end not in counts[path]:
                keep.mkdir(parents=True, exist_ok=True)
                mutant = keep / f"{i}-{file.name}"
                shutil.copy(file, mutant)
                sys.exit(f"{path}: mutant {i} was neither read nor refused ({end}); see {mutant}")
            counts[path][end] += 1
        file.write_bytes(good)
        print(path, counts[path], flush=True)
    return counts


def _read_one(reader: Reader, root: Path) -> str:
    """How reading ends: "read", "refused", or otherwise."""
    pid = fork(read_in_bounds, reader, root)
    status = wait(pid, TIMEOUT)
    if status is None:
        kill(pid)
        return f"still running after {TIMEOUT:g} s"
    return {0: "read", REFUSED: "refused"}.get(status, f"status {status}")
