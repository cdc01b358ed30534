"""The encoders that the recorded cross-validations finetuned, for the benchmarks that score them.

`make record-her2st` and `make record-phantom` keep them in runs/record/her2st and
runs/record/phantom. None has seen what these benchmarks score it on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seal_lite import SEAL, Config

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs/record"
PHANTOM = ROOT / "data/phantom-record"


@dataclass(frozen=True)
class TrainedFold:
    """One fold's finetuned encoder and its control on shuffled pairs, with one seed."""

    folder: Path
    train: list[str]  # names of the training sections
    tests: list[str]  # names of the groups held out
    seed: int

    def models(self) -> dict[str, SEAL]:
        """Return the models "tuned" and "shuffled"."""
        return {kind: SEAL.from_pretrained(self.folder / kind) for kind in ("tuned", "shuffled")}

    def config(self) -> Config:
        """Return the settings, which differ between folds in the seed alone."""
        return Config.from_json(self.folder / "tuned/config.json")


def trained_folds(name: str) -> list[TrainedFold]:
    """Return the finished folds of a cross-validation, "her2st" or "phantom"."""
    folds = []
    for path in sorted((RUNS / name / "runs").glob("*/shuffled/provenance.json")):
        provenance = json.loads(path.read_text())
        folder = path.parents[1]
        tests, _, seed = folder.name.rpartition("-")
        if "finished" in provenance:
            fold = TrainedFold(folder, provenance["sections"], tests.split("+"), int(seed))
            folds.append(fold)
    if not folds:
        raise SystemExit(f"{RUNS / name}/runs: no finished encoders; run make record-{name}")
    return folds


def save_result(name: str, result: dict[str, Any]) -> None:
    """Write results/NAME.json."""
    path = ROOT / f"results/{name}.json"
    path.write_text(json.dumps(result, default=float) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")
