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

import numpy as np
import pandas as pd

from . import targets as tg
from .batches import refuse_batches
from .config import Config
from .errors import InputError
from .evaluate import fold_features, gene_classes, genes_to_score, refuse_lacking, score_models
from .files import alone, read_json, write_atomic
from .genes import GenePanel
from .model import SEAL
from .morphology import morphology
from .train import claimed, finetune, provenance

log = logging.getLogger(__name__)
IN = "not "  # "not B": held out beside group B, from the distribution that trains
DELTAS = (("tuned", "frozen"), ("tuned", "frozen_best"), ("tuned", "shuffled"))


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
        test = {out: [s for s, g in of if g == out],
                IN + out: [s for s in rest if s.patient in inside]}  # fmt: skip
        yield [s for s in rest if s.patient not in inside], test


def crossval(root, sections, config: Config, *, by="section", train_groups=None, seeds=3, out,
             leakage=(), progress=True) -> dict:  # fmt: skip
    """Run every fold and seed; returns and writes `out/metrics.json`, and `out/per_gene.csv`.

    Each group `by` "section" or "patient" is held out in turn (or see `folds_of`); by a column of
    sections.tsv, it is also compared with its like in distribution (`shift_folds`, `shifted`). A
    finished fold is kept in `out/folds/` and not run again; its encoders stay in `out/runs/`. A
    folder with other data or settings is refused (`InputError`). The prefix cache is shared by all
    folds: it holds nothing fitted. What `leakage.found` says and was allowed marks the result.

    root: the data's folder, for its name and the phantom's truth. Returns {"data", "backbone",
    "provenance": `train.provenance`, "classes": {gene: class} or None, "folds": what `run_fold`
    returned for all, "delta": `deltas`}; of a shift "delta_in", "delta_out" and "delta_gap" instead
    of "delta"; where there is any, "leakage".
    """
    out, groups, shift = Path(out), groups_of(sections, by), by not in ("section", "patient")
    if shift and train_groups is not None:
        raise InputError(f"--train-groups: does not go with --groups {by}; leave it out")
    record = provenance(sections, config, groups=by, train_groups=train_groups, seeds=seeds)
    classes, caches, folds = gene_classes(root), out / "cache", []
    split = shift_folds(sections, groups) if shift else folds_of(sections, groups, train_groups)
    split = [(train, tests, genes_to_score(root, train)) for train, tests in split]
    for train, tests, genes in split:  # all input has proved good before anything is written
        refuse_batches(train, config)
        refuse_lacking(sum(tests.values(), []), genes)
    SEAL.build(GenePanel.from_config(split[0][0], config, include=split[0][2]), config)
    claimed(out, record, same=("groups", "train_groups", "code_sha256"))
    with alone(out):
        write_atomic(out / "provenance.json", json.dumps(record, indent=1))
        for train, tests, genes in split:
            name = "+".join(tests)
            for seed in range(seeds):
                path = out / f"folds/{name}-{seed}.json"
                if not path.exists():
                    log.info("fold: test %s, seed %d", name, seed)
                    c = dataclasses.replace(config, seed=seed)
                    found = run_fold(root, train, tests, genes, c, caches, progress=progress,
                                     runs=out / f"runs/{name}-{seed}")  # fmt: skip
                    write_atomic(path, json.dumps(found))
                folds += read_json(path, remedy="remove it: the fold runs again")
        shutil.rmtree(caches, ignore_errors=True)  # gigabytes that the results no longer need
        result = {"data": Path(root).name, "backbone": config.backbone, "provenance": record,
                  "classes": classes, "folds": folds}  # fmt: skip
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
        {"test": test, "seed": seed, "scores": [
            {**a, "per_gene": {g: a["per_gene"][g] - b["per_gene"][g] for g in a["per_gene"]}}
            for a, b in zip(inside[test, seed]["scores"], f["scores"], strict=True)]}
        for (test, seed), f in out.items()]  # fmt: skip
    named = [{**f, "test": test} for (test, _), f in inside.items()]
    return {"in": named, "out": list(out.values()), "gap": gap}


def run_fold(root, train, tests: dict, genes, config: Config, caches, *, runs=None, progress=True):
    """Finetune on true and on shuffled pairs, then score everything on the held-out sections.

    `train` and the lists in `tests`, by group, are `Section`s; `genes` are those to score, `caches`
    is the folder of the prefix cache. With `runs` both encoders are kept, in runs/tuned and
    runs/shuffled, and not finetuned again. Returns for each group {"test": its name, "seed",
    "scores": `score_rows`, "morphology": `morphology.morphology`}.
    """
    models = {
        name: finetune(train, config, include=genes, shuffle_pairs=shuffle, cache_dir=caches,
                       out=runs and runs / name, progress=progress)[0]
        for name, shuffle in (("tuned", False), ("shuffled", True))}  # fmt: skip
    held = [s for test in tests.values() for s in test]
    features = fold_features(train, held, genes, models, config, caches=caches)
    scores = score_models(root, train, held, genes, models, features, seed=config.seed)
    found, start = [], 0
    for name, test in tests.items():
        part, start = slice(start, start + len(test)), start + len(test)
        mine = {f: [*x[: len(train)], *x[len(train) :][part]] for f, x in features.items()}
        rows = score_rows({place: r[part] for place, r in scores.items()}, genes)
        found.append({"test": name, "seed": config.seed, "scores": rows,
                      "morphology": morphology(root, train, test, mine)})  # fmt: skip
    return found


def score_rows(scores: dict, genes) -> list[dict]:
    """The "scores" list of metrics.json: the mean over test sections of r (test sections, g).

    A row each {"features", "probe", "target", "pcc": mean r, "per_gene": {gene: r}}.
    """
    return [
        {"features": f, "probe": p, "target": t, "pcc": round(float(np.mean(r)), 4),
         "per_gene": {g: round(float(v), 4) for g, v in zip(genes, np.mean(r, 0), strict=True)}}
        for (f, p, t), r in scores.items()]  # fmt: skip


def tidy(result: dict) -> pd.DataFrame:
    """One row per fold, seed, features, probe, target and gene, with r and the gene's class.

    `result` as `crossval` returns it. Columns: test, seed, features, probe, target, gene, class, r.
    """
    classes = result["classes"] or {}
    return pd.DataFrame([
        {"test": f["test"], "seed": f["seed"], "features": s["features"], "probe": s["probe"],
         "target": s["target"], "gene": g, "class": classes.get(g, "hvg"), "r": r}
        for f in result["folds"] for s in f["scores"] for g, r in s["per_gene"].items()
    ])  # fmt: skip


def deltas(folds: list[dict], classes=None) -> list[dict]:
    """The paired differences of `DELTAS` with their 95% CI, for every probe and target.

    Those are "tuned" minus "frozen", "frozen_best" and "shuffled". `folds` as in `crossval`'s
    result, classes: {gene: class} or None. Returns rows {"of", "minus", "probe", "target", "mean":
    mean difference of r, "ci95": [low, high] of `bootstrap_ci`}. With gene classes (the phantom)
    each class is also given by itself, under "class".
    """
    long, out = tidy({"folds": folds, "classes": classes}), []
    for of, minus in DELTAS:
        both = long[long.features.isin([of, minus])]
        for (probe, target), part in both.groupby(["probe", "target"], sort=False):
            r = part.set_index(["features", "test", "seed", "class", "gene"]).r
            if not {of, minus} <= set(part.features):
                continue
            gap = r[of] - r[minus]
            for name in [None, *sorted(set((classes or {}).values()) & set(part["class"]))]:
                mine = gap.droplevel("class") if name is None else gap.xs(name, level="class")
                table = [g.unstack("gene").to_numpy() for _, g in mine.groupby("test", sort=False)]
                row = {"of": of, "minus": minus, "probe": probe, "target": target,
                       "mean": round(float(np.mean([t.mean() for t in table])), 4),
                       "ci95": [round(v, 4) for v in bootstrap_ci(table)]}  # fmt: skip
                out.append(row | ({"class": name} if name else {}))
    return out


def verdicts(result: dict) -> list[str]:
    """Every difference of a `crossval` result with its interval, as a sentence each."""
    said = []
    for name, kind in (("delta", ""), ("delta_in", ", in distribution"),
                       ("delta_out", ", out of distribution"), ("delta_gap", ", gap")):  # fmt: skip
        for d in result.get(name, []):
            low, high = d["ci95"]
            genes = f" [{d['class']}]" if "class" in d else ""
            verdict = "" if low > 0 or high < 0 else "  (no difference)"
            said.append(f"{d['of']} - {d['minus']}, {d['probe']}, {d['target']}{genes}{kind}: "
                        f"{d['mean']:+.3f} [{low:+.3f}, {high:+.3f}]{verdict}")  # fmt: skip
    return said


def bootstrap_ci(table: list[np.ndarray], *, repeats: int = 4000, seed: int = 0) -> list[float]:
    """95% percentile interval of the mean over folds, seeds and genes, clustered by fold.

    Folds are drawn with replacement, then seeds and genes inside each drawn fold, because genes of
    one fold share its sections and are far from independent. `table`: a (seeds, genes) per fold.
    Returns [low, high].
    """
    rng = np.random.default_rng(seed)
    draws = np.empty((repeats, len(table)))
    for i, t in enumerate(table):
        rows = rng.integers(t.shape[0], size=(repeats, t.shape[0], 1))
        cols = rng.integers(t.shape[1], size=(repeats, 1, t.shape[1]))
        draws[:, i] = t[rows, cols].mean((1, 2))
    picked = rng.integers(len(table), size=(repeats, len(table)))
    means = np.take_along_axis(draws, picked, axis=1).mean(1)
    return [float(v) for v in np.percentile(means, [2.5, 97.5])]


def summary(result: dict) -> pd.DataFrame:
    """Mean r over folds, seeds and genes: one row per features and probe, one column per target.

    `result` as `crossval` returns it.
    """
    table = tidy(result).pivot_table("r", ["features", "probe"], "target", "mean")
    return table[[*tg.TARGETS[:2], tg.PARTIAL, *tg.TARGETS[2:]]]
