"""Where other people's software meets ours: the largest difference at every seam.

    make parity        # minutes on one core: prints the table, writes results/parity.json

Peers' conventions are the formulas of `formulas.py`, or the peer itself where it is installed. A
seam whose peer is not installed keeps what was measured where it was.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from parity import seams
from seal_lite.training.provenance import provenance

RESULT = Path(__file__).parents[2] / "results/parity.json"
SEAMS: dict[str, Callable[[seams.Run], float | None]] = {
    "`load_encoder`'s transform": seams.transform,
    "HEST-bench's patches": seams.hest_transform,
    "smoothing of `--preset paper`": seams.released_smoothing,
    "loss of `--preset paper`": seams.released_loss,
    "BLEEP's prediction": partial(seams.retrieval, "BLEEP"),
    "Loki's prediction": partial(seams.retrieval, "Loki"),
    "TRIDENT's coordinates": seams.trident_coordinates,
    "AUC without a class": seams.absent_class,
    "lazyslide's model": seams.lazyslide,
    "slide2vec's encoder": seams.slide2vec,
}


def main() -> None:
    """Measure every seam, print it, and write the results file."""
    stored = json.loads(RESULT.read_text())["after"] if RESULT.exists() else {}
    after: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = seams.Run.train(Path(folder))
        for name, measure in SEAMS.items():
            try:
                after[name] = measure(run)
            except ImportError as error:
                print(f"{name}: {error.name} is not installed")
                after[name] = stored.get(name)
            print(f"{name:32} {after[name]}", flush=True)
        about = provenance(run.sections, run.model.config)
    RESULT.write_text(json.dumps({"after": after, "provenance": about}, indent=1) + "\n")


if __name__ == "__main__":
    main()
