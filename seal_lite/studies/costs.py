"""What a study has cost so far, and how long the rest of it takes."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypedDict

import psutil

from seal_lite.io import write_atomic
from seal_lite.schema import read
from seal_lite.studies.plan import duration

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from seal_lite.studies.plan import Plan

log = logging.getLogger(__name__)
COSTS = "costs.json"


class Measured(TypedDict):
    """What the steps of a study have taken: the content of costs.json."""

    seconds: dict[str, float]  # of each step, over all calls
    folds: list[float]  # seconds of each fold; the first one also fills the cache
    finished: list[str]  # names of steps
    memory_gb: float  # highest of the process
    disk_gb: float  # highest of the output folder


class Costs:
    """Measures the steps of a study, and says how long the rest takes.

    What a finished step or fold has cost is kept in the output folder, so that a study which was
    interrupted adds up all its calls. Work that an interruption has lost is not counted.

    Parameters
    ----------
    out
        The study's output folder.
    plan
        Its plan, with the expected time of each step.
    """

    def __init__(self, out: Path, plan: Plan) -> None:
        self.out = out
        self.plan = plan
        self.current = ""
        self.measured = Measured(seconds={}, folds=[], finished=[], memory_gb=0.0, disk_gb=0.0)
        if (out / COSTS).exists():
            self.measured = read(
                out / COSTS, Measured, remedy="remove it: costs are measured again"
            )
        self._last_mark = 0.0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a step of the plan; one that was finished by an earlier call costs nothing."""
        names = list(self.plan.seconds)
        number = names.index(name) + 1
        self.current = name
        self._last_mark = time.perf_counter()
        if name in self.measured["finished"]:
            yield
            return
        left = duration(self.seconds_left())
        log.info("step %d of %d: %s; about %s left", number, len(names), name, left)
        yield
        self.measure()
        self.measured["finished"].append(name)
        self._save()

    def after_fold(self, finished: int, n_folds: int, seconds: float) -> None:
        """Report a finished fold (`crossval.AfterFold`)."""
        self.measured["folds"].append(seconds)
        self.measure()
        self._save()
        words = duration(seconds), duration(self.seconds_left())
        log.info("fold %d of %d took %s; about %s of the study left", finished, n_folds, *words)

    def seconds_left(self) -> float:
        """Return the expected time of what is left: the plan's, in proportion to measured folds.

        Of several measured folds the first one does not count, because it also fills the cache.
        """
        plan = self.plan
        finished = self.measured["finished"]
        folds = self.measured["folds"]
        expected = plan.seconds_of_fold
        if not folds:
            slowness = 1.0
        elif len(folds) == 1:
            slowness = folds[0] / (plan.seconds_of_cache + expected)
        else:
            slowness = sum(folds[1:]) / (len(folds) - 1) / expected
        seconds = {name: s for name, s in plan.seconds.items() if name not in finished}
        if "cross-validation" in seconds:
            cache = 0.0 if folds else plan.seconds_of_cache
            seconds["cross-validation"] = cache + (plan.folds - len(folds)) * expected
        return slowness * sum(seconds.values())

    def rows(self) -> list[dict[str, str]]:
        """Return planned and actual costs in words: {"what", "planned", "actual"} each."""
        plan, measured = self.plan, self.measured
        rows = [
            _row(name, duration(seconds), duration(measured["seconds"].get(name, 0.0)))
            for name, seconds in plan.seconds.items()
        ]
        total = sum(measured["seconds"].values())
        rows.append(_row("in all", duration(plan.total_seconds), duration(total)))
        sizes = {
            "memory, highest": (plan.memory_gb, measured["memory_gb"]),
            "disk, highest": (plan.disk_gb, measured["disk_gb"]),
        }
        for name, (planned, actual) in sizes.items():
            rows.append(_row(name, f"{planned:.1f} GB", f"{actual:.1f} GB"))
        return rows

    def measure(self) -> None:
        """Add the time since the last measurement to the current step; note memory and disk."""
        measured = self.measured
        if self.current in measured["finished"]:
            return
        now = time.perf_counter()
        before = measured["seconds"].get(self.current, 0.0)
        measured["seconds"][self.current] = before + now - self._last_mark
        self._last_mark = now
        measured["memory_gb"] = max(measured["memory_gb"], peak_memory_gb())
        measured["disk_gb"] = max(measured["disk_gb"], folder_gb(self.out))

    def _save(self) -> None:
        write_atomic(self.out / COSTS, json.dumps(self.measured, indent=1))


def _row(what: str, planned: str, actual: str) -> dict[str, str]:
    """Return a row of `Costs.rows`."""
    return {"what": what, "planned": planned, "actual": actual}


def peak_memory_gb() -> float:
    """Return the highest memory of this process so far."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 1e9
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return peak * unit / 1e9


def folder_gb(folder: Path) -> float:
    """Return the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9
