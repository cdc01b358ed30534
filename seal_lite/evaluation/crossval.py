"""Leave-one-group-out evaluation in which everything is fitted inside the fold.

Every claim is a paired difference: the tuned encoder minus the frozen one, and minus one finetuned
in the same way on shuffled pairs, which shares all that finetuning does except the pairing.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias, TypedDict

from seal_lite.config import Seed
from seal_lite.data.genes import GenePanel
from seal_lite.errors import InputError
from seal_lite.evaluation.features import fold_features
from seal_lite.evaluation.morphology import morphology
from seal_lite.evaluation.scores import (
    READERS,
    check_genes_present,
    genes_to_score,
    score_models,
    score_rows,
    tidy,
)
from seal_lite.evaluation.statistics import IN_PREFIX, differences
from seal_lite.io import write_atomic
from seal_lite.locks import exclusive_folder
from seal_lite.model.seal import SEAL
from seal_lite.paths import file_names
from seal_lite.schema import Number, Size, read
from seal_lite.training.loader import check_pairs
from seal_lite.training.loop import finetune
from seal_lite.training.provenance import provenance
from seal_lite.training.run import claim_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    import torch

    from seal_lite.config import Config
    from seal_lite.data.phantom.truth import GroundTruth
    from seal_lite.data.section import Section

    # Training sections, and the held-out sections by group.
    Split: TypeAlias = tuple[list[Section], dict[str, list[Section]]]
    # Takes the number of finished folds, that of all folds, and the seconds of the last one.
    AfterFold: TypeAlias = Callable[[int, int, float], None]

log = logging.getLogger(__name__)
FOLD_REMEDY = "remove it: the fold runs again"
Correlation = Annotated[float, Number(at_least=-1, at_most=1, undefined=True)]


class ScoreRow(TypedDict):
    """A row of a fold's scores."""

    features: str
    probe: str
    target: str
    pcc: Correlation
    per_gene: dict[str, Correlation]


class FoldResult(TypedDict):
    """What is kept of a held-out group."""

    test: str
    seed: Seed
    scores: Annotated[list[ScoreRow], Size(1)]
    morphology: dict[str, dict[str, Annotated[float, Number(at_least=0, undefined=True)]]]


@dataclass(frozen=True)
class Fold:
    """What one fold trains on and scores.

    Parameters
    ----------
    train
        The sections that train.
    tests
        The held-out sections by group; each group is scored by itself.
    genes
        The genes to score, chosen without the held-out sections.
    """

    train: list[Section]
    tests: dict[str, list[Section]]
    genes: list[str]

    @property
    def name(self) -> str:
        """The held-out groups, joined."""
        return "+".join(self.tests)

    @property
    def held_out(self) -> list[Section]:
        """The held-out sections of all groups, one group after another."""
        return [section for sections in self.tests.values() for section in sections]


def groups_of(sections: Sequence[Section], by: str) -> list[str]:
    """Return the group of each section that is held out together.

    Parameters
    ----------
    sections
        The sections.
    by
        "section", "patient", or a column of sections.tsv.

    Raises
    ------
    InputError
        Where a section has no such label, and where there is only one group.
    """
    groups = []
    for section in sections:
        group = section.label(by)
        if group is None:
            message = f"--groups {by}: section {section.name} has no {by}"
            remedy = f"fill a column {by} in sections.tsv, or use section or patient"
            raise InputError(f"{message}; {remedy}")
        groups.append(group)
    if len(set(groups)) < 2:
        message = f"--groups {by}: all sections belong to '{groups[0]}', so none can be held out"
        raise InputError(f"{message}; add data or group otherwise")
    return groups


def folds_of(
    sections: Sequence[Section], groups: Sequence[str], train_groups: int | None = None
) -> Iterator[Split]:
    """Yield each fold of leaving one group out.

    Parameters
    ----------
    sections
        The sections.
    groups
        The group of each section that is held out together.
    train_groups
        None holds every group out once. A number gives a single fold: the first so many groups
        train, and each of the others is scored by itself, which costs no training.

    Yields
    ------
    tuple
        The training sections, and the held-out sections by group.

    Raises
    ------
    InputError
        Where ``train_groups`` leaves no group to train or none to test.
    """
    members: dict[str, list[Section]] = {}
    for section, group in zip(sections, groups, strict=True):
        members.setdefault(group, []).append(section)
    names = list(members)
    if train_groups is None:
        held_out_groups = [[name] for name in names]
    elif 1 <= train_groups < len(names):
        held_out_groups = [names[train_groups:]]
    else:
        message = f"--train-groups {train_groups}: there are {len(names)} groups"
        raise InputError(f"{message}; train on at least one and leave some to test")
    for held_out in held_out_groups:
        train = [s for name in names if name not in held_out for s in members[name]]
        yield train, {name: members[name] for name in held_out}


def shift_folds(sections: Sequence[Section], groups: Sequence[str]) -> Iterator[Split]:
    """Yield the folds of a shift: each group is out of distribution once.

    So that there is a score in distribution beside it, a quarter of the patients of every other
    group, rounded up, is held out too.

    Parameters
    ----------
    sections
        The sections.
    groups
        The group of each section: its organ, technology, stain and so on.

    Yields
    ------
    tuple
        The training sections, and {"B": the sections of group B, "not B": those held out in
        distribution}.

    Raises
    ------
    InputError
        Where a group in distribution has one patient only.
    """
    labelled = list(zip(sections, groups, strict=True))
    for out_group in dict.fromkeys(groups):
        out_of_distribution = [s for s, group in labelled if group == out_group]
        others = [(s, group) for s, group in labelled if group != out_group]
        held_out_patients: set[str] = set()
        for group in dict.fromkeys(group for _, group in others):
            patients = list(dict.fromkeys(s.patient for s, g in others if g == group))
            if len(patients) < 2:
                message = f"group {group}: has one patient, so none can be held out in distribution"
                raise InputError(f"{message}; add patients, or leave its sections out")
            held_out_patients.update(patients[-math.ceil(len(patients) / 4) :])
        train = [s for s, _ in others if s.patient not in held_out_patients]
        in_distribution = [s for s, _ in others if s.patient in held_out_patients]
        yield train, {out_group: out_of_distribution, IN_PREFIX + out_group: in_distribution}


def crossval(  # noqa: PLR0913 (an entry point)
    sections: Sequence[Section],
    config: Config,
    *,
    data_name: str,
    out: str | Path,
    truth: GroundTruth | None = None,
    by: str = "section",
    train_groups: int | None = None,
    seeds: int = 3,
    leakage: Sequence[str] = (),
    cache_dir: str | Path | None = None,
    after_fold: AfterFold | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> dict:
    """Run every fold and seed, and write ``out/metrics.json`` and ``out/per_gene.csv``.

    A finished fold is kept in ``out/folds/`` and not run again; its encoders stay in ``out/runs/``.
    All folds share one prefix cache: it holds nothing fitted.

    Parameters
    ----------
    sections
        All sections.
    config
        Settings of the finetuning. Its seed is replaced by 0, 1, ... ``seeds`` - 1.
    data_name
        Name of the data, which the result quotes.
    out
        Folder of the results.
    truth
        The phantom's ground truth; None for real data.
    by
        "section" or "patient" holds out each group in turn (`folds_of`). A column of sections.tsv
        also compares each group with held-out sections in distribution (`shift_folds`).
    train_groups
        As in `folds_of`.
    seeds
        Number of finetunings of each fold.
    leakage
        Findings of `leakage.check_leakage` that were allowed; they mark the result.
    cache_dir
        Folder of the prefix cache, which stays, as `cache_folder` takes it; None takes one in
        ``out`` and removes it.
    after_fold
        Called after every fold and seed that was run, not read, as ``after_fold(finished, all,
        seconds)``. Each seed counts as a fold.
    device
        Where the networks run (`resolve_device`).
    progress
        Show progress bars.

    Returns
    -------
    dict
        "data", "backbone", "provenance", "classes" ({gene: class} or None), "folds" (what
        `run_fold` returned for all) and the `statistics.differences`: "delta", or "delta_in",
        "delta_out" and "delta_gap" of a shift. "leakage" where there is any.

    Raises
    ------
    InputError
        Where the groups cannot be held out, a held-out section lacks a gene, the settings do not
        fit, or ``out`` holds results of other data or settings, or finished folds of an older
        version beside unfinished ones. All input is checked before anything is written.
    """
    out = Path(out)
    groups = groups_of(sections, by)
    is_shift = by not in ("section", "patient")
    if is_shift and train_groups is not None:
        raise InputError(f"--train-groups: does not go with --groups {by}; leave it out")
    origin = provenance(
        sections, config, device=device, groups=by, train_groups=train_groups, seeds=seeds
    )
    splits = shift_folds(sections, groups) if is_shift else folds_of(sections, groups, train_groups)
    folds = []
    for train, tests in splits:
        genes = genes_to_score([s.adata for s in train], truth)
        folds.append(Fold(train, tests, genes))
    _check_folds(folds, config, device=device)
    if truth is not None:
        truth.check(sections)
    claim_folder(out, origin, same=("groups", "train_groups"))
    files = _fold_files(folds, seeds, out)
    with exclusive_folder(out):
        _check_readers(files.values())
        write_atomic(out / "provenance.json", json.dumps(origin, indent=1))
        results = []
        jobs = [(fold, seed) for fold in folds for seed in range(seeds)]
        for number, (fold, seed) in enumerate(jobs, start=1):
            path = files[fold.name, seed]
            is_new = not path.exists()
            if is_new:
                log.info("fold %d of %d: test %s, seed %d", number, len(jobs), fold.name, seed)
            started = time.perf_counter()
            results += _resume_fold(
                fold,
                dataclasses.replace(config, seed=seed),
                path,
                truth=truth,
                cache_dir=cache_dir,
                device=device,
                progress=progress,
            )
            if is_new and after_fold is not None:
                after_fold(number, len(jobs), time.perf_counter() - started)
        if cache_dir is None:
            shutil.rmtree(out / "cache", ignore_errors=True)  # gigabytes that no result needs
        result: dict = {
            "data": data_name,
            "backbone": config.backbone,
            "provenance": origin,
            "classes": None if truth is None else truth.classes,
            "folds": results,
        }
        result |= differences(result)
        if leakage:
            result["leakage"] = list(leakage)
        write_atomic(out / "metrics.json", json.dumps(result))
        tidy(result).to_csv(out / "per_gene.csv", index=False)
    return result


def _check_folds(folds: Sequence[Fold], config: Config, *, device: str | torch.device) -> None:
    """Raise `InputError` where a fold cannot be run, before any work is done."""
    for fold in folds:
        check_pairs(fold.train, config)
        check_genes_present(fold.held_out, fold.genes)
    first = folds[0]
    panel = GenePanel.from_config(first.train, config, include=first.genes)
    SEAL.build(panel, config, device=device)


def _fold_files(folds: Sequence[Fold], seeds: int, out: Path) -> dict[tuple[str, int], Path]:
    """Return the file of results of each fold and seed, by the fold's name and the seed."""
    keys = [(fold.name, seed) for fold in folds for seed in range(seeds)]
    names = file_names([f"{name}-{seed}" for name, seed in keys])
    return {key: out / f"folds/{name}.json" for key, name in zip(keys, names, strict=True)}


def _check_readers(paths: Collection[Path]) -> None:
    """Raise `InputError` where finished folds lack scores that the unfinished ones would have.

    Means over folds would then be of different folds. Results that are all of an older version are
    read as they are.
    """
    finished = [path for path in paths if path.exists()]
    if len(finished) == len(paths):
        return
    for path in finished:
        results = read(path, list[FoldResult], remedy=FOLD_REMEDY)
        readers = {row["probe"] for result in results for row in result["scores"]}
        missing = [reader for reader in READERS if reader not in readers]
        if missing:
            raise InputError(
                f"{path}: an older version wrote it, without the scores of {', '.join(missing)}; "
                f"remove {path.parent}: its folds are scored again, without training again"
            )


def _resume_fold(
    fold: Fold,
    config: Config,
    path: Path,
    *,
    truth: GroundTruth | None,
    cache_dir: str | Path | None = None,
    device: str | torch.device,
    progress: bool,
) -> list[dict]:
    """Read the results of a fold with the config's seed; run it first where it is not finished."""
    out = path.parents[1]
    if not path.exists():
        results = run_fold(
            fold,
            config,
            cache_dir=cache_dir or out / "cache",
            runs=out / "runs" / path.stem,
            truth=truth,
            device=device,
            progress=progress,
        )
        write_atomic(path, json.dumps(results))
    return _read_fold(path, fold, config.seed)


def _read_fold(path: Path, fold: Fold, seed: int) -> list[dict]:
    """Return the stored results of a fold.

    Raises
    ------
    InputError
        The file is damaged, or its results are of other groups, of other genes or of another seed.
    """
    results = read(path, list[FoldResult], remedy=FOLD_REMEDY)
    stated = [(result["test"], result["seed"]) for result in results]
    if stated != [(group, seed) for group in fold.tests]:
        raise InputError(
            f"{path}: is of other groups, or of another seed than {seed}; {FOLD_REMEDY}"
        )
    for result in results:
        for row in result["scores"]:
            if set(row["per_gene"]) != set(fold.genes):
                raise InputError(f"{path}: scores other genes than this fold; {FOLD_REMEDY}")
    return results


def run_fold(
    fold: Fold,
    config: Config,
    *,
    cache_dir: str | Path | None = None,
    runs: Path | None = None,
    truth: GroundTruth | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> list[dict]:
    """Finetune on true and on shuffled pairs, then score everything on the held-out sections.

    Parameters
    ----------
    fold
        What trains, what is held out, and the genes to score.
    config
        Settings of the finetuning.
    cache_dir
        Folder of the prefix cache, as `cache_folder` takes it; None runs without one on disk.
    runs
        Folder that keeps both encoders, in "tuned" and "shuffled"; finished ones are not finetuned
        again. None keeps none.
    truth
        The phantom's ground truth; None for real data.
    device
        Where the networks run (`resolve_device`).
    progress
        Show progress bars.

    Returns
    -------
    list of dict
        For each held-out group {"test": its name, "seed", "scores": `scores.score_rows`,
        "morphology": `morphology.morphology`}.
    """
    models = {}
    for name, shuffle_pairs in (("tuned", False), ("shuffled", True)):
        models[name], _ = finetune(
            fold.train,
            config,
            include=fold.genes,
            shuffle_pairs=shuffle_pairs,
            cache_dir=cache_dir,
            out=None if runs is None else runs / name,
            device=device,
            progress=progress,
        )
    train, held_out, genes = fold.train, fold.held_out, fold.genes
    features = fold_features(
        train,
        held_out,
        genes,
        models=models,
        config=config,
        cache_dir=cache_dir,
        device=device,
        progress=progress,
    )
    scores = score_models(
        train, held_out, genes, models=models, features=features, truth=truth, seed=config.seed
    )
    results = []
    start = 0
    for group, test in fold.tests.items():
        stop = start + len(test)
        group_scores = {key: per_section[start:stop] for key, per_section in scores.items()}
        group_features = {
            name: x[: len(train)] + x[len(train) :][start:stop] for name, x in features.items()
        }
        results.append(
            {
                "test": group,
                "seed": config.seed,
                "scores": score_rows(group_scores, genes),
                "morphology": morphology(train, test, group_features, truth=truth),
            }
        )
        start = stop
    return results
