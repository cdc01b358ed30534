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
from pathlib import Path

from seal_lite.config import Config
from seal_lite.data.genes import GenePanel
from seal_lite.errors import InputError
from seal_lite.evaluation.features import fold_features
from seal_lite.evaluation.morphology import morphology
from seal_lite.evaluation.scores import (
    check_genes_present,
    genes_to_score,
    score_models,
    score_rows,
    tidy,
)
from seal_lite.evaluation.statistics import deltas
from seal_lite.io import exclusive_folder, read_json, write_atomic
from seal_lite.model.seal import SEAL
from seal_lite.training.loader import check_batch_size
from seal_lite.training.loop import finetune
from seal_lite.training.provenance import provenance
from seal_lite.training.run import claim_folder

log = logging.getLogger(__name__)
IN = "not "  # "not B": held out beside group B, from the distribution that trains


def groups_of(sections, by: str) -> list[str]:
    """The held-out unit of each section: itself, its patient, or a column of sections.tsv.

    Raises `InputError` where it is not known of one, and where there is only one group.
    """
    groups = [s.label(by) for s in sections]
    if None in groups:
        name = sections[groups.index(None)].name
        remedy = f"fill a column {by} in sections.tsv, or use section or patient"
        raise InputError(f"--groups {by}: not known of section {name}; {remedy}")
    if len(set(groups)) < 2:
        said = f"--groups {by}: all sections belong to '{groups[0]}', so nothing can be held out"
        raise InputError(f"{said}; add data or group otherwise")
    return groups


def folds_of(sections, groups: list[str], train_groups: int | None = None):
    """Yield each fold: its training sections, and {group held out: its sections}.

    sections: `Section`s. groups: of each the group that is held out together. Every group is held
    out once. With `train_groups` there is one fold: the first so many groups train, and each of the
    others is scored by itself, which costs no training. Raises `InputError` where none is left.
    """
    members: dict[str, list] = {}
    for section, group in zip(sections, groups, strict=True):
        members.setdefault(group, []).append(section)
    names = list(members)
    if train_groups is not None and not 1 <= train_groups < len(names):
        said = f"--train-groups {train_groups}: there are {len(names)} groups"
        raise InputError(f"{said}; leave some to test")
    for held in [[n] for n in names] if train_groups is None else [names[train_groups:]]:
        train = [s for n in names if n not in held for s in members[n]]
        yield train, {n: members[n] for n in held}


def shift_folds(sections, groups: list[str]):
    """Yield the folds of a shift: train, {"B": out of distribution, "not B": in distribution}.

    Each group (organ, technology, stain, ...) is out of distribution once. So that there is a score
    in distribution beside it, a quarter of the patients of every other group, rounded up, is held
    out too. Arguments as in `folds_of`. Raises `InputError` where such a group has one patient.
    """
    of = list(zip(sections, groups, strict=True))
    for out in dict.fromkeys(groups):
        inside = set()
        for group in dict.fromkeys(g for g in groups if g != out):
            patients = list(dict.fromkeys(s.patient for s, g in of if g == group))
            if len(patients) < 2:
                said = f"group {group}: has one patient, so none can be held out in distribution"
                raise InputError(f"{said}; add patients, or leave its sections out")
            inside |= set(patients[-math.ceil(len(patients) / 4) :])
        rest = [s for s, g in of if g != out]
        test = {
            out: [s for s, g in of if g == out],
            IN + out: [s for s in rest if s.patient in inside],
        }
        yield [s for s in rest if s.patient not in inside], test


def crossval(
    sections,
    config: Config,
    *,
    data: str,
    truth=None,
    by="section",
    train_groups=None,
    seeds=3,
    out,
    leakage=(),
    progress=True,
) -> dict:
    """Run every fold and seed; returns and writes `out/metrics.json`, and `out/per_gene.csv`.

    Each group `by` "section" or "patient" is held out in turn (or see `folds_of`); by a column of
    sections.tsv, it is also compared with its like in distribution (`shift_folds`, `shifted`). A
    finished fold is kept in `out/folds/` and not run again; its encoders stay in `out/runs/`. A
    folder with other data or settings is refused (`InputError`). The prefix cache is shared by all
    folds: it holds nothing fitted. What `leakage.found` says and was allowed marks the result.

    data: the data's name. truth: the phantom's. Returns {"data", "backbone",
    "provenance": `train.provenance`, "classes": {gene: class} or None, "folds": what `run_fold`
    returned for all, "delta": `deltas`}; of a shift "delta_in", "delta_out" and "delta_gap" instead
    of "delta"; where there is any, "leakage".
    """
    out, groups, shift = Path(out), groups_of(sections, by), by not in ("section", "patient")
    if shift and train_groups is not None:
        raise InputError(f"--train-groups: does not go with --groups {by}; leave it out")
    record = provenance(sections, config, groups=by, train_groups=train_groups, seeds=seeds)
    classes, caches, folds = truth and truth.classes, out / "cache", []
    split = shift_folds(sections, groups) if shift else folds_of(sections, groups, train_groups)
    split = [
        (train, tests, genes_to_score([s.adata for s in train], truth)) for train, tests in split
    ]
    for train, tests, genes in split:  # all input has proved good before anything is written
        check_batch_size(train, config)
        check_genes_present(sum(tests.values(), []), genes)
    SEAL.build(GenePanel.from_config(split[0][0], config, include=split[0][2]), config)
    claim_folder(out, record, same=("groups", "train_groups"))
    with exclusive_folder(out):
        write_atomic(out / "provenance.json", json.dumps(record, indent=1))
        for train, tests, genes in split:
            name = "+".join(tests)
            for seed in range(seeds):
                path = out / f"folds/{name}-{seed}.json"
                if not path.exists():
                    log.info("fold: test %s, seed %d", name, seed)
                    c = dataclasses.replace(config, seed=seed)
                    found = run_fold(
                        train,
                        tests,
                        genes,
                        c,
                        caches,
                        truth=truth,
                        progress=progress,
                        runs=out / f"runs/{name}-{seed}",
                    )
                    write_atomic(path, json.dumps(found))
                folds += read_json(path, remedy="remove it: the fold runs again")
        shutil.rmtree(caches, ignore_errors=True)  # gigabytes that the results no longer need
        result = {
            "data": data,
            "backbone": config.backbone,
            "provenance": record,
            "classes": classes,
            "folds": folds,
        }
        if shift:
            result |= {f"delta_{k}": deltas(part, classes) for k, part in shifted(folds).items()}
        else:
            result["delta"] = deltas(folds, classes)
        if leakage:
            result["leakage"] = list(leakage)
        write_atomic(out / "metrics.json", json.dumps(result))
        tidy(result).to_csv(out / "per_gene.csv", index=False)
    return result


def shifted(folds: list[dict]) -> dict[str, list[dict]]:
    """The folds of a shift in distribution ("in"), out of it ("out"), and their "gap": in - out.

    All three are named after the group that was out of distribution, so that each is a list of
    folds like any other, and a difference of gaps is a paired difference too.
    """
    out = {(f["test"], f["seed"]): f for f in folds if not f["test"].startswith(IN)}
    inside = {(f["test"].removeprefix(IN), f["seed"]): f for f in folds if f["test"].startswith(IN)}
    gap = [
        {
            "test": test,
            "seed": seed,
            "scores": [
                {**a, "per_gene": {g: a["per_gene"][g] - b["per_gene"][g] for g in a["per_gene"]}}
                for a, b in zip(inside[test, seed]["scores"], f["scores"], strict=True)
            ],
        }
        for (test, seed), f in out.items()
    ]
    named = [{**f, "test": test} for (test, _), f in inside.items()]
    return {"in": named, "out": list(out.values()), "gap": gap}


def run_fold(
    train, tests: dict, genes, config: Config, caches, *, truth=None, runs=None, progress=True
):
    """Finetune on true and on shuffled pairs, then score everything on the held-out sections.

    `train` and the lists in `tests`, by group, are `Section`s; `genes` are those to score, `caches`
    is the folder of the prefix cache. With `runs` both encoders are kept, in runs/tuned and
    runs/shuffled, and not finetuned again. Returns for each group {"test": its name, "seed",
    "scores": `score_rows`, "morphology": `morphology.morphology`}.
    """
    models = {
        name: finetune(
            train,
            config,
            include=genes,
            shuffle_pairs=shuffle,
            cache_dir=caches,
            out=runs and runs / name,
            progress=progress,
        )[0]
        for name, shuffle in (("tuned", False), ("shuffled", True))
    }
    held = [s for test in tests.values() for s in test]
    features = fold_features(train, held, genes, models, config, caches=caches)
    scores = score_models(train, held, genes, models, features, truth=truth, seed=config.seed)
    found, start = [], 0
    for name, test in tests.items():
        part, start = slice(start, start + len(test)), start + len(test)
        mine = {f: [*x[: len(train)], *x[len(train) :][part]] for f, x in features.items()}
        rows = score_rows({place: r[part] for place, r in scores.items()}, genes)
        found.append(
            {
                "test": name,
                "seed": config.seed,
                "scores": rows,
                "morphology": morphology(train, test, mine, truth=truth),
            }
        )
    return found
