"""Memory and time of training against the number of pairs, streamed from shards on disk.

    python benchmarks/scale.py                            # all sizes: results/scale.json
    python benchmarks/scale.py write FOLDER PAIRS DATA    # pairs of 32 px, drawn from DATA's
    python benchmarks/scale.py train FOLDER               # an epoch on them, as one line of JSON

The first runs the other two, each in a process of its own, whose peak memory counts. Patches are
small and repeat. The loop does not know: it reads, augments, encodes and learns as from 700,000
different spots.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from processes import python
from seal_lite import Config, Section, finetune, load_sections
from seal_lite.data.genes import GenePanel
from seal_lite.data.phantom import phantom
from seal_lite.data.shards import read_shards, write_shards
from seal_lite.training.provenance import provenance

CONFIG = Config(patch_px=32, n_views=4, tune_blocks=1, batch_size=256, epochs=1)
SHARD_PAIRS = 5000
SIZES = (7_000, 70_000, 700_000)  # pairs
RESULT = Path(__file__).parents[1] / "results/scale.json"


def peak_bytes() -> int:
    """Return the most memory that this process has held, as Linux reports it.

    The maximum of `getrusage` outlives `exec`, so that it may be the parent's.
    """
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return 1024 * int(kilobytes)


def drawn_sections(sections: list[Section], panel: GenePanel, pairs: int) -> Iterator[Any]:
    """Yield stand-ins of sections with `pairs` pairs in all, drawn from those of the sections."""
    patches = np.concatenate([section.patches for section in sections])
    x = np.concatenate([section.expression(panel) for section in sections])
    for number, start in enumerate(range(0, pairs, SHARD_PAIRS)):
        n = min(SHARD_PAIRS, pairs - start)
        rows = np.random.default_rng(number).integers(len(x), size=n)
        profiles = x[rows]
        yield SimpleNamespace(
            name=f"S{number:04}",
            keys=[f"S{number:04}/{i}" for i in range(n)],
            patches=patches[rows],
            digest=hashlib.sha256(f"{number} {n}".encode()).hexdigest(),
            expression=lambda panel, profiles=profiles: profiles,
        )


def write(folder: str, pairs: int, root: str) -> None:
    """Write shards with so many pairs, drawn from the sections under `root`."""
    sections = load_sections(root, patch_px=CONFIG.patch_px)
    panel = GenePanel.from_config(sections, CONFIG)
    write_shards(drawn_sections(sections, panel, pairs), folder, panel=panel, config=CONFIG)


def train(folder: str) -> dict[str, Any]:
    """Train an epoch; return its seconds, the process's peak and the shards' size in bytes."""
    shards, panel = read_shards(folder, CONFIG)
    _, (epoch,) = finetune(shards, CONFIG, panel=panel, cached=False, progress=False)
    disk_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    pairs = sum(len(shard.rows) for shard in shards)
    about = {"peak_bytes": peak_bytes(), "disk_bytes": disk_bytes}
    return {"pairs": pairs, "seconds": epoch["seconds"], **about}


def main() -> None:
    """Measure every size on patches of the chapters' phantom, and write the results file."""
    root = phantom("data/phantom", patients=3, sections_per_patient=1, spots=160, seed=0)
    epochs = []
    for pairs in SIZES:
        folder = Path("runs/scale") / str(pairs)
        python("scale.py", "write", folder, pairs, root)
        epochs.append(python("scale.py", "train", folder))
        print(epochs[-1], flush=True)
        shutil.rmtree(folder)
    sections = load_sections(root, patch_px=CONFIG.patch_px)
    result = {"epochs": epochs, "provenance": provenance(sections, CONFIG)}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", folder, pairs, root]:
            write(folder, int(pairs), root)
        case ["train", folder]:
            print(json.dumps(train(folder)))
        case _:
            main()
