"""Kills, damaged files, crowds and hundreds of cycles: counted, for the tests and for the book.

python tests/integration/under_load.py OUT.json --kills 20 --mutants 10 --cycles 40
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: see forks.py
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import psutil
import torch
from forks import fork, wait
from kills import CONFIG, kill_repeatedly, make_jobs, serve, share_a_folder
from made import make_truth, write_everything
from mutants import read_mutants
from PIL import Image

from seal_lite.data.phantom import phantom, write_pyramid
from seal_lite.data.section import load_sections
from seal_lite.evaluation.scores import probe_scores
from seal_lite.training.loop import finetune
from seal_lite.training.provenance import provenance

JOBS = ("finetune", "crossval", "embed", "fetch")


def write_scans(folder: Path) -> None:
    """Four slides of one scene, shifted."""
    folder.mkdir()
    image = make_truth().image
    for i in range(4):
        write_pyramid(folder / f"{i}.tif", np.roll(image, 50 * i, axis=1), um_per_px=2.0)


def write_good_data(good: Path, root: Path, sections: list, run: Path) -> None:
    """Data of every kind, with those that only `mutants.READERS` read."""
    finetune(sections[:1], CONFIG, out=run, progress=False)
    good.mkdir()
    write_everything(good, root, sections, run)
    table = "section\tpatient\tum_per_px\nPA1\tA\t1\nPB1\tB\t1\n"
    (good / "legacy/sections.tsv").write_text(table)
    Image.fromarray(make_truth().image).save(good / "slides/p.png")


def repeat_cycles(sections: list, cycles: int) -> dict:
    """Finetune and probe again and again in this process: memory and open files, ten times."""
    process = psutil.Process()
    genes = [gene for gene in ("ERBB2", "COL1A1") if gene in sections[0].adata.var_names]
    config = replace(CONFIG, epochs=1)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(cycles):
        finetune(sections[:1], replace(config, seed=i), progress=False)
        x = [rng.standard_normal((len(section.rows), 8)) for section in sections]
        probe_scores(sections[:1], sections[1:], genes, train_x=x[:1], test_x=x[1:])
        if (i + 1) % max(1, cycles // 10) == 0:
            rows.append((i + 1, process.memory_info().rss / 1e6, process.num_fds()))
    n, mb, open_files = np.array(rows).T
    is_late = n > cycles // 4  # by then the allocator has what it needs
    slope, _ = np.polyfit(n[is_late], mb[is_late], 1)
    return {
        "cycles": cycles,
        "mb": [round(float(value), 1) for value in mb],
        "mb_per_100_cycles": round(float(slope) * 100, 3),
        "open_files": [int(value) for value in open_files],
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, help="JSON file for the counts")
    parser.add_argument("--kills", type=int, default=0, help="of all jobs together")
    parser.add_argument("--jobs", default=",".join(JOBS), help="what is killed")
    parser.add_argument("--processes", type=int, default=8, help="that share a folder")
    parser.add_argument("--mutants", type=int, default=0, help="of each file")
    parser.add_argument("--cycles", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(1)
    started = time.monotonic()
    counts: dict = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = phantom(
            folder / "phantom", patients=2, sections_per_patient=1, spots=40, um_per_px=1.0
        )
        sections = load_sections(root, patch_px=CONFIG.patch_px)
        write_scans(root / "scans")
        if options.kills:
            rng = np.random.default_rng(options.seed)
            jobs = make_jobs(root, sections, serve(folder / "upstream"))
            names = options.jobs.split(",")
            n_kills = -(-options.kills // len(names))  # of each, rounded up
            counts["kills"] = {
                name: kill_repeatedly(jobs[name], folder / name, n_kills=n_kills, rng=rng)
                for name in names
            }
            counts["crowd"] = share_a_folder(
                root, sections, folder / "crowd", n_processes=options.processes
            )
        if options.mutants:
            good = folder / "good"  # written by a child: a fork would lose the threads it needs
            assert wait(fork(write_good_data, good, root, sections, folder / "run")) == 0
            rng = np.random.default_rng([options.seed, 1])
            keep = options.out.with_suffix(".failed")
            counts["mutants"] = read_mutants(good, options.mutants, rng, keep)
        if options.cycles:
            counts["cycles"] = repeat_cycles(sections, options.cycles)
        counts["provenance"] = provenance(sections, CONFIG, seed=options.seed)
    counts["seconds"] = round(time.monotonic() - started)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(counts, indent=1))


if __name__ == "__main__":
    main()
