"""What a study holds out, how long it takes, and what so many units can show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from scipy import stats

from seal_lite.config import AtLeastOne
from seal_lite.errors import InputError
from seal_lite.evaluation.crossval import groups_of
from seal_lite.evaluation.statistics import leave_one_out_ratio
from seal_lite.schema import Number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seal_lite.config import Config
    from seal_lite.data.section import Section
    from seal_lite.studies.speed import Speed

STEPS = ("cross-validation", "final training", "report")
ENOUGH_UNITS = 3  # below, a study describes and gives no verdict
MOST_FOLDS = 8  # with more groups, one training serves all that are held out
TRAINING_SHARE = 2 / 3  # of the groups, where one training serves all
SEEDS = (3, 2, 1)
PLURALS = {"patient": "patients", "section": "sections"}
LEAST_EPOCHS = 0.25  # of the recipe's, where the time is short
# Standard deviation over units of the gain in mean r. Our own records: .009 over sections of one
# tumour, .014 over patients of the phantom.
TYPICAL_SD = 0.015
# Weights and the optimizer's two moments, twice while a checkpoint is replaced.
CHECKPOINT_COPIES = 6
PASSES_A_FOLD = 2  # how often a fold embeds all patches: tuned and shuffled
PASSES_ONCE = 3  # for all folds: every frozen layer, random weights, and the frozen blocks


@dataclass(frozen=True)
class Plan:
    """What a study does, and what it costs.

    Parameters
    ----------
    by
        "patient" or "section": what is held out together.
    reason
        Why, and what a score then speaks for: one sentence.
    units
        Number of groups that are held out.
    train_groups
        None where each group is held out once; else the number of groups that train once for all.
    seeds
        Number of trainings of each fold.
    epochs, recipe_epochs
        Number of joint epochs of each training, and of the recipe: the time may allow fewer.
    seconds
        Expected time of each step.
    seconds_of_cache
        The part of the cross-validation's time that only its first fold takes: frozen activations
        and embeddings, which the others read.
    memory_gb, disk_gb
        Expected peak of the process's memory, and of what stands in the output folder.
    smallest_gain
        The smallest gain in mean r that this many units show in 8 of 10 studies, if units differ as
        in our records; None for a single unit.
    """

    by: str
    reason: str
    units: AtLeastOne
    train_groups: AtLeastOne | None
    seeds: AtLeastOne
    epochs: AtLeastOne
    recipe_epochs: AtLeastOne
    seconds: dict[str, Annotated[float, Number(above=0)]]
    seconds_of_cache: Annotated[float, Number(at_least=0)]
    memory_gb: float
    disk_gb: float
    smallest_gain: float | None

    @property
    def total_seconds(self) -> float:
        """Expected time of the whole study."""
        return sum(self.seconds.values())

    @property
    def folds(self) -> int:
        """Number of folds; each seed counts."""
        return self.seeds * (self.units if self.train_groups is None else 1)

    @property
    def seconds_of_fold(self) -> float:
        """Expected time of a fold that is not the first."""
        return (self.seconds["cross-validation"] - self.seconds_of_cache) / self.folds

    def sentences(self) -> list[str]:
        """Return the plan in words, one sentence an entry."""
        steps = ", ".join(f"{name} {duration(s)}" for name, s in self.seconds.items())
        return [
            f"{self.design()} {self.reason}",
            f"Each training runs {self.epochs} epochs, {times(self.seeds)} on true pairs and "
            f"{times(self.seeds)} on shuffled pairs, the control.{self.shortening()}",
            f"The study takes about {duration(self.total_seconds)}: {steps}.",
            f"It needs up to {self.memory_gb:.1f} GB of memory and {self.disk_gb:.1f} GB of disk.",
            self.power(),
        ]

    def design(self) -> str:
        """Return in one sentence what trains and what is held out."""
        names = plural(self.by)
        if self.train_groups is None:
            return f"Each of the {self.units} {names} is held out once, and the others train."
        return f"The first {self.train_groups} {names} train, and {self.units} are held out."

    def shortening(self) -> str:
        """Return what the time has cut as a sentence after a blank, or "" for nothing."""
        if self.epochs == self.recipe_epochs:
            return ""
        epochs = f"{self.epochs} of the recipe's {self.recipe_epochs} epochs"
        return f" The time allows {epochs}, so the result is that of a shorter training."

    def power(self) -> str:
        """Return in words what so many units can show."""
        if self.smallest_gain is None:
            return f"One {self.by} has no interval, so the report gives no verdict."
        sentence = (
            f"With {self.units} {plural(self.by)}, a gain of {self.smallest_gain:.3f} in mean "
            f"correlation would show in 8 of 10 studies, if the gain varies between them as in our "
            f"own data (standard deviation {TYPICAL_SD})."
        )
        if self.units < ENOUGH_UNITS:
            return f"{sentence} A verdict takes {ENOUGH_UNITS}, so the report gives none."
        return f"{sentence} A smaller gain may be missed."


def plural(by: str) -> str:
    """Return the plural of what is held out."""
    return PLURALS[by]


def times(n: int) -> str:
    """Return a number of times in words."""
    return {1: "once", 2: "twice"}.get(n, f"{n} times")


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
        "patient" or "section"; None chooses: patients where there are at least `ENOUGH_UNITS`, else
        sections.

    Returns
    -------
    by : str
        "patient" or "section".
    reason : str
        One sentence, with what a score then speaks for.

    Raises
    ------
    InputError
        Where nothing can be held out.
    """
    if by not in (None, *PLURALS):
        remedy = f"`seal-lite crossval --groups {by}` compares such groups"
        raise InputError(f"--groups {by}: a study holds out patient or section; {remedy}")
    if len(sections) < 2:
        name = sections[0].name
        raise InputError(f"--data: {name} is the only section, so none can be held out; add one")
    n_patients = len({section.patient for section in sections})
    if by is None:
        by = "patient" if n_patients >= ENOUGH_UNITS else "section"
    groups = groups_of(sections, by)  # raises where all sections are one group
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

    Fewer seeds come first, then one training for all held-out groups where enough of those remain
    for a verdict, then fewer epochs.

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
    n_training = round(TRAINING_SHARE * len(pairs))
    if len(pairs) - n_training >= ENOUGH_UNITS:
        designs.append(n_training)
    sizes = [(design, seeds, config.epochs) for design in designs for seeds in SEEDS]
    least_epochs = math.ceil(LEAST_EPOCHS * config.epochs)
    fewer_epochs = range(config.epochs - 1, least_epochs - 1, -1)
    sizes += [(designs[-1], SEEDS[-1], epochs) for epochs in fewer_epochs]
    for design, seeds, epochs in sizes:
        plan = work.plan(design, seeds, epochs, by=by, reason=reason)
        if hours is None or plan.total_seconds <= hours * 3600:
            return plan
    message = f"--hours {hours:g}: the shortest study takes about {duration(plan.total_seconds)}"
    raise InputError(f"{message}; give more, or take --preset small or fewer --sections")


@dataclass(frozen=True)
class _Work:
    """What there is to do: the number of pairs of each group, the recipe, and the speed."""

    pairs: dict[str, int]
    config: Config
    speed: Speed

    def plan(
        self, train_groups: int | None, seeds: int, epochs: int, *, by: str, reason: str
    ) -> Plan:
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
        cache = self.speed.cache_bytes * n_views  # on disk, and mapped into memory
        disk = cache + self.speed.run_bytes * (n_trainings + CHECKPOINT_COPIES)
        return Plan(
            by=by,
            reason=reason,
            units=units,
            train_groups=train_groups,
            seeds=seeds,
            epochs=epochs,
            recipe_epochs=self.config.epochs,
            seconds=self._seconds(training_pairs, seeds, epochs),
            seconds_of_cache=self._seconds_of_cache,
            memory_gb=(self.speed.memory_bytes + cache) / 1e9,
            disk_gb=disk / 1e9,
            smallest_gain=smallest_gain(units, test_to_train=ratio),
        )

    @property
    def _seconds_of_cache(self) -> float:
        """Time of what all folds share."""
        total = sum(self.pairs.values())
        activations = self.config.n_views * total / self.speed.cached_patches
        return activations + PASSES_ONCE * total / self.speed.embedded_patches

    def _seconds(self, training_pairs: list[int], seeds: int, epochs: int) -> dict[str, float]:
        """Return the time of each step, given the training pairs of each fold."""
        speed = self.speed
        total = sum(self.pairs.values())
        n_folds = seeds * len(training_pairs)
        all_epochs = epochs + self.config.gene_warmup_epochs
        trainings = 2 * seeds * all_epochs * sum(training_pairs) / speed.training_pairs
        embeddings = n_folds * PASSES_A_FOLD * total / speed.embedded_patches
        probes = n_folds * total * speed.seconds_a_probed_pair
        return {
            "cross-validation": trainings + self._seconds_of_cache + embeddings + probes,
            "final training": all_epochs * total / speed.training_pairs,
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
