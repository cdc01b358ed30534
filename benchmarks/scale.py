"""Memory and time of training against the number of pairs, streamed from shards on disk.

    python book/scale.py write FOLDER PAIRS DATA    pairs of 32 px: DATA's patches, drawn again
    python book/scale.py train FOLDER               an epoch on them; prints one line of JSON

`bench.py` runs both, each in a process of its own, because peak memory is the process's. Patches
are small and few of them are different, which the loop does not know: it reads, augments, encodes
and learns as it would from 700,000 spots.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from seal_lite import Config
from seal_lite.data.genes import GenePanel
from seal_lite.data.section import load_sections
from seal_lite.data.shards import read_shards, write_shards
from seal_lite.training.loop import finetune
from steps import peak_bytes

CONFIG = Config(patch_px=32, n_views=4, tune_blocks=1, batch_size=256, epochs=1)
EACH = 5000  # pairs of a shard


def drawn(sections, panel, pairs: int):
    """Yield stand-ins of `Section`s, all in all `pairs` pairs of patch and expression."""
    patches = np.concatenate([s.patches for s in sections])
    z = np.concatenate([s.expression(panel) for s in sections])
    for number, first in enumerate(range(0, pairs, EACH)):
        n = min(EACH, pairs - first)
        pick = np.random.default_rng(number).integers(len(z), size=n)
        name = f"S{number:04}"
        yield SimpleNamespace(
            name=name,
            rows=range(n),
            keys=[f"{name}/{i}" for i in range(n)],
            patches=patches[pick],
            digest=hashlib.sha256(f"{number} {n}".encode()).hexdigest(),
            expression=lambda panel, pick=pick: z[pick],
        )


def write(folder, pairs: int, root):
    """Shards with so many pairs, of the sections under `root`."""
    sections = load_sections(root, patch_px=CONFIG.patch_px)
    panel = GenePanel.from_config(sections, CONFIG)
    write_shards(drawn(sections, panel, pairs), panel, CONFIG, folder)


def train(folder) -> dict:
    """An epoch; {"pairs", "seconds" of the epoch, "peak_bytes" of the process, "disk_bytes"}."""
    shards, panel = read_shards(folder, CONFIG)
    _, (epoch,) = finetune(shards, CONFIG, panel=panel, cached=False, progress=False)
    return {
        "pairs": sum(len(s.rows) for s in shards),
        "seconds": epoch["seconds"],
        "peak_bytes": peak_bytes(),
        "disk_bytes": sum(p.stat().st_size for p in Path(folder).iterdir()),
    }


if __name__ == "__main__":
    command, folder, *rest = sys.argv[1:]
    if command == "write":
        write(folder, int(rest[0]), rest[1])
    else:
        print(json.dumps(train(folder)))
