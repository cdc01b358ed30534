"""The commands that measure the files of results/: how long each takes, and what it needs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from seal_lite.studies.plan import duration

NIGHT_HOURS = 10
CORES = 2  # of the machine that a night is meant for
HER2ST = "her2st, fetched: `seal-lite fetch her2st --out DIR`"
PHANTOM_RUNS = "the encoders of `make record-phantom`"


@dataclass(frozen=True)
class Command:
    """A command and what it costs.

    Parameters
    ----------
    files
        What it measures: files of results/ without their suffix. "*" stands for anything.
    time
        How long it takes, in words. Where the files hold seconds, those are stated instead.
    source
        Where `time` is known from.
    timed
        What the files' seconds are the time of; "" where they hold none.
    processes
        How many run at once on two cores.
    needs
        What must be there before it.
    exceeds_night
        Whether `time` is longer than a night on two cores.
    """

    files: tuple[str, ...]
    time: str
    source: str
    timed: str = ""
    processes: int = 1
    needs: str = ""
    exceeds_night: bool = False

    def paths(self, results: Path) -> list[Path]:
        """Return the files that are there."""
        return [path for name in self.files for path in sorted(results.glob(f"{name}.json"))]

    def seconds(self, results: Path) -> float:
        """Return the seconds that its files hold, added up; 0 where they hold none."""
        return sum(seconds_of(path) for path in self.paths(results)) if self.timed else 0.0


COHORT = Command(
    ("cohort",),
    time="about an hour",
    source="measured",
    timed="steps, added up, of which one runs on each core",
    processes=CORES,
)
COMMANDS = {
    "make record-her2st": Command(
        ("her2st",),
        time="under 2 h on one core",
        source="measured, beside other work: 24 trainings and 12 evaluations",
        needs=HER2ST,
    ),
    "make record-phantom": Command(
        ("phantom",), time="7.5 h on one core", source="a fold took 90 minutes, and it has five"
    ),
    "make record-her2st_transformer": Command(
        ("her2st_transformer",), time="45 min on one core", source="measured", needs=HER2ST
    ),
    "make record-phantom_transformer": Command(
        ("phantom_transformer",), time="2.5 h on one core", source="measured beside other work"
    ),
    "make record-phantom_transformer  # at commit df80fb1": Command(
        ("phantom_transformer_fewer",), time="42 min on one core", source="measured"
    ),
    "make record-mob": Command(
        ("mob",),
        time="1.2 h on one core",
        source="measured beside other work",
        needs="four sections of Ståhl et al. (2016) in one folder, which no command here fetches",
    ),
    "make record-shifts": Command(
        ("shift_*",), time="about an hour for all three shifts", source="documented"
    ),
    "make record-figures": Command(
        ("her2st_figures",),
        time="minutes",
        source="estimated: one training on three sections",
        needs=HER2ST,
    ),
    "make trials": Command(
        ("*trials",),
        time="hours",
        source="documented",
        timed="trainings, added up, of which one runs on each core",
        processes=CORES,
        needs=HER2ST,
    ),
    "make blind": Command(
        ("blind", "blind/*"),
        time="about 2 h on one core",
        source="estimated: 20 trainings at the speed of the trials and of the transformer's record",
        needs=f"sections C6 and B4 beside C2 to C5 of {HER2ST}",
    ),
    "python benchmarks/hest.py HER2ST": Command(
        ("hest",),
        time="half an hour",
        source="documented",
        needs=f"{HER2ST}; {PHANTOM_RUNS} and of `make record-her2st`",
    ),
    "python benchmarks/retrieval.py": Command(
        ("retrieval",), time="minutes", source="documented", needs=PHANTOM_RUNS
    ),
    "python benchmarks/cohort.py": COHORT,
    "python benchmarks/cohort.py  # at commit 704739c": replace(COHORT, files=("cohort_short",)),
    "make bench": Command(
        ("bench",),
        time="18 min on two cores",
        source="measured",
        needs=HER2ST,
    ),
    "make scale": Command(
        ("scale",), time="a quarter of an hour", source="estimated: its epochs take 9 minutes"
    ),
    "make pitfalls": Command(("pitfalls",), time="a minute", source="documented", needs=HER2ST),
    "make subtlety": Command(("subtlety",), time="minutes", source="documented"),
    "make parity": Command(("parity",), time="minutes", source="documented"),
    "make promises": Command(
        ("promises",), time="a quarter of an hour", source="documented", timed="work"
    ),
}


def seconds_of(path: Path) -> float:
    """Return the seconds that a results file holds: its own, or those of its trainings."""
    result = json.loads(path.read_text())
    if "seconds" in result:
        return float(result["seconds"])
    return sum(float(run["scores"].get("seconds", 0)) for run in result.get("runs", []))


def command_time(command: str, *, results: Path) -> str:
    """Return in words how long a command takes, and where that is known from."""
    cost = COMMANDS[command]
    seconds = cost.seconds(results)
    if seconds:
        time = f"{duration(seconds)} of {cost.timed} (measured)"
        hours = seconds / cost.processes / 3600
        is_long = hours > NIGHT_HOURS
    else:
        time = f"{cost.time} ({cost.source})"
        is_long = cost.exceeds_night
    return f"{time}: longer than a night on two cores" if is_long else time


def command_sentences(command: str, *, results: Path) -> str:
    """Return in words how long a command takes and what it needs."""
    needs = COMMANDS[command].needs
    sentence = f"It takes {command_time(command, results=results)}."
    return f"{sentence} It needs {needs}." if needs else sentence
