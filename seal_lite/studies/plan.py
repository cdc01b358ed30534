"""What a study holds out, how long it takes, and what so many units can show."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy import stats

from seal_lite.errors import InputError
from seal_lite.evaluation.crossval import groups_of
from seal_lite.evaluation.statistics import leave_one_out_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seal_lite.config import Config
    from seal_lite.data.section import Section
    from seal_lite.studies.speed import Speed

log = logging.getLogger(__name__)
ENOUGH_UNITS = 3  # below, a study describes and gives no verdict
MOST_FOLDS = 8  # with more groups, one training serves all that are held out
TRAINING_SHARE = 2 / 3  # of the groups, where one training serves all
SEEDS = (3, 2, 1)
LEAST_EPOCHS = 0.25  # of the recipe's, where the time is short
# Standard deviation over units of the gain in mean r. Our own records: .009 over sections of one
# tumour, .014 over patients of the phantom.
TYPICAL_SD = 0.015
# How often a fold embeds all patches: tuned, shuffled, random weights, and the frozen layers twice.
PASSES_A_FOLD = 5


@dataclass(frozen=True)
class Plan:
    """What a study does, and what it costs.

    Parameters
    ----------
    by
        "patient", "section", or a column of sections.tsv: what is held out together.
    reason
        Why, and what a score then speaks for: one sentence.
    units
        Number of groups that are held out.
    train_groups
        None where each group is held out once; else the number of groups that train once for all.
    seeds
        Number of trainings of each fold.
    epochs
        Number of joint epochs of each training.
    seconds
        Expected time of each step.
    memory_gb, disk_gb
        Expected peak of the process's memory, and of what stands in the output folder.
    smallest_gain
        The smallest gain in mean r that this many units show in 8 of 10 studies, if units differ as
        in our records; None for a single unit.
    """

    by: str
    reason: str
    units: int
    train_groups: int | None
    seeds: int
    epochs: int
    seconds: dict[str, float]
    memory_gb: float
    disk_gb: float
    smallest_gain: float | None

    @property
    def total_seconds(self) -> float:
        """Expected time of the whole study."""
        return sum(self.seconds.values())

    def to_json(self) -> str:
        """Return the plan as JSON, which `from_json` reads."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Return the plan that `to_json` wrote."""
        return cls(**json.loads(text))

    def sentences(self) -> list[str]:
        """Return the plan in words, one sentence an entry."""
        if self.train_groups is None:
            design = f"each of {self.units} is held out once"
        else:
            design = f"{self.train_groups} train once, and the {self.units} others are held out"
        steps = ", ".join(f"{name} {duration(s)}" for name, s in self.seconds.items())
        return [
            f"Held out together: {self.by}; {design}. {self.reason}",
            f"{self.seeds} trainings a fold of {self.epochs} epochs, each beside its control.",
            f"About {duration(self.total_seconds)} in all: {steps}.",
            f"Memory up to {self.memory_gb:.1f} GB, disk up to {self.disk_gb:.1f} GB.",
            self.power(),
        ]

    def power(self) -> str:
        """Return in words what so many units can show."""
        if self.smallest_gain is None:
            return "One unit has no interval: the report describes, and gives no verdict."
        gain = f"a gain of {self.smallest_gain:.3f} in mean r"
        sentence = f"With {self.units} units, {gain} would show in 8 of 10 studies like this one"
        if self.units < ENOUGH_UNITS:
            return f"{sentence}: too few for a verdict, so the report describes."
        return f"{sentence}; a smaller one may be missed."


def plural(by: str) -> str:
    """Return the plural of what is held out."""
    return {"patient": "patients", "section": "sections"}.get(by, f"groups of one {by}")


def duration(seconds: float) -> str:
    """Return a time in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def choose_groups(sections: Sequence[Section], by: str | None = None) -> tuple[str, str]:
    """Return what is held out together, and why.

    Parameters
    ----------
    sections
        All sections of the study.
    by
        "patient", "section" or a column of sections.tsv; None chooses: patients where there are at
        least `ENOUGH_UNITS`, else sections.

    Returns
    -------
    by : str
        As given, or chosen.
    reason : str
        One sentence, with what a score then speaks for.

    Raises
    ------
    InputError
        Where nothing can be held out.
    """
    if len(sections) < 2:
        name = sections[0].name
        raise InputError(f"--data: {name} is the only section, so none can be held out; add one")
    n_patients = len({section.patient for section in sections})
    if by is None:
        by = "patient" if n_patients >= ENOUGH_UNITS else "section"
    groups = groups_of(sections, by)  # raises where it does not divide the sections
    groups_of_patient: dict[str, set[str]] = {}
    for section, group in zip(sections, groups, strict=True):
        groups_of_patient.setdefault(section.patient, set()).add(group)
    is_split = any(len(of_patient) > 1 for of_patient in groups_of_patient.values())
    if not is_split:
        return by, "No patient is on both sides, so a score speaks for new patients."
    patients = "1 patient" if n_patients == 1 else f"{n_patients} patients"
    claim = f"The sections are of {patients}, so a score speaks for new {plural(by)}"
    return by, f"{claim} of patients already seen, not for new patients."


def make_plan(
    sections: Sequence[Section],
    config: Config,
    *,
    speed: Speed,
    by: str,
    reason: str,
    hours: float | None = None,
) -> Plan:
    """Return the most thorough plan that fits into the time.

    Fewer seeds come first, then one training for all held-out groups, then fewer epochs.

    Parameters
    ----------
    sections
        All sections of the study.
    config
        The recipe.
    speed
        Of this machine with this recipe.
    by, reason
        From `choose_groups`.
    hours
        How long the study may take; None for as long as the first plan needs.

    Raises
    ------
    InputError
        Where the shortest plan takes longer.
    """
    pairs: dict[str, int] = {}
    for section, group in zip(sections, groups_of(sections, by), strict=True):
        pairs[group] = pairs.get(group, 0) + len(section.rows)
    work = _Work(pairs, config, speed)
    can_leave_one_out = len(pairs) <= MOST_FOLDS
    designs: list[int | None] = [None] if can_leave_one_out else []
    if len(pairs) > ENOUGH_UNITS:
        designs.append(round(TRAINING_SHARE * len(pairs)))
    plans = [
        work.plan(design, seeds, by=by, reason=reason) for design in designs for seeds in SEEDS
    ]
    if hours is None:
        return plans[0]
    limit = hours * 3600
    for plan in plans:
        if plan.total_seconds <= limit:
            return plan
    return _with_fewer_epochs(plans[-1], config, limit)


def _with_fewer_epochs(plan: Plan, config: Config, limit: float) -> Plan:
    """Return the plan with as many epochs as fit into the limit in seconds."""
    trainings = ("cross-validation", "final training")
    fixed = sum(s for name, s in plan.seconds.items() if name not in trainings)
    share = (limit - fixed) / max(plan.total_seconds - fixed, 1e-9)
    if share < LEAST_EPOCHS:
        least = fixed + LEAST_EPOCHS * (plan.total_seconds - fixed)
        message = f"--hours {limit / 3600:g}: the shortest study takes about {duration(least)}"
        raise InputError(f"{message}; give more, or take --preset small or fewer --sections")
    epochs = max(1, math.floor(share * config.epochs))
    seconds = {name: s * share if name in trainings else s for name, s in plan.seconds.items()}
    return dataclasses.replace(plan, epochs=epochs, seconds=seconds)


@dataclass(frozen=True)
class _Work:
    """What there is to do: the number of pairs of each group, the recipe, and the speed."""

    pairs: dict[str, int]
    config: Config
    speed: Speed

    def plan(self, train_groups: int | None, seeds: int, *, by: str, reason: str) -> Plan:
        """Return the plan of a design; without `train_groups` each group is held out once."""
        total = sum(self.pairs.values())
        if train_groups is None:
            training_pairs = [total - n for n in self.pairs.values()]
            units = len(self.pairs)
            ratio = leave_one_out_ratio(units)
        else:
            training_pairs = [sum(list(self.pairs.values())[:train_groups])]
            units = len(self.pairs) - train_groups
            ratio = 0.0
        n_trainings = 2 * seeds * len(training_pairs) + 1
        n_views = self.config.n_views * total
        disk = self.speed.cache_bytes * n_views + self.speed.run_bytes * n_trainings
        return Plan(
            by=by,
            reason=reason,
            units=units,
            train_groups=train_groups,
            seeds=seeds,
            epochs=self.config.epochs,
            seconds=self._seconds(training_pairs, seeds),
            memory_gb=self.speed.memory_bytes / 1e9,
            disk_gb=disk / 1e9,
            smallest_gain=smallest_gain(units, test_to_train=ratio),
        )

    def _seconds(self, training_pairs: list[int], seeds: int) -> dict[str, float]:
        """Return the time of each step, given the training pairs of each fold."""
        speed = self.speed
        total = sum(self.pairs.values())
        n_folds = len(training_pairs)
        epochs = self.config.epochs + self.config.gene_warmup_epochs
        trainings = 2 * seeds * epochs * sum(training_pairs) / speed.training_pairs
        cache = self.config.n_views * total / speed.cached_patches
        embedding_passes = seeds * n_folds * PASSES_A_FOLD
        embeddings = embedding_passes * total / speed.embedded_patches
        probes = seeds * n_folds * total * speed.seconds_a_probed_pair
        return {
            "cross-validation": trainings + cache + embeddings + probes,
            "final training": epochs * total / speed.training_pairs + cache,
            "report": speed.seconds_of_report + 3 * total / speed.embedded_patches,
        }


def smallest_gain(
    units: int, *, test_to_train: float = 0.0, sd: float = TYPICAL_SD
) -> float | None:
    """Return the gain that `statistics.t_interval` tells from 0 in 8 of 10 studies.

    Parameters
    ----------
    units
        Number of held-out units.
    test_to_train
        As in `statistics.t_interval`.
    sd
        Standard deviation of the gain over units, in mean r.

    Returns
    -------
    float or None
        In mean r; None for one unit.
    """
    if units < 2:
        return None
    df = units - 1
    standard_error = sd * math.sqrt(1 / units + test_to_train)
    return float((stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df)) * standard_error)
