"""Does this code still give what was recorded? Recompute one fold of each record and compare.

    python book/recheck.py HER2ST [her2st|phantom|trials ...]

A record takes hours and the code it was made by is known by its hash. When the code has changed
since, this measures whether the numbers have: the first fold and seed, mean r over genes of every
feature, probe and target; of the trials, a run of the full recipe, every score. (A single gene of
an encoder that was trained again moves with the rounding of another machine.) Records of the
present code, those rechecked with it, and those whose data are not here, are left out. Writes
results/recheck.json, which the results page quotes, after each record (those named, or all).
`make recheck` runs it, on one thread like the records: another number of threads adds in another
order. Real tissue takes a quarter of an hour, the phantom an hour and a half.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from functools import partial
from operator import itemgetter
from pathlib import Path

from seal_lite import Config
from seal_lite.crossval import folds_of, groups_of, run_fold
from seal_lite.evaluate import genes_to_score
from seal_lite.files import write_atomic
from seal_lite.sections import load_sections
from seal_lite.train import code_hash
from trials import CODE, FULL, REFERENCE, measure

RESULTS = Path(__file__).parents[1] / "results"
NAMES = ["her2st", "phantom", "trials"]


def recheck(record: dict, root) -> dict:
    """Recompute the record's first fold from the data under `root`; the largest difference in r."""
    fold, source = record["folds"][0], record["provenance"]
    config = dataclasses.replace(Config(), seed=fold["seed"])
    sections = load_sections(root, source["sections"])
    groups = groups_of(sections, source["groups"])
    train, tests = next(folds_of(sections, groups, source["train_groups"]))
    test = {fold["test"]: tests[fold["test"]]}
    genes = genes_to_score(root, train)
    with tempfile.TemporaryDirectory() as caches:  # both trainings share the prefix cache
        now = run_fold(root, train, test, genes, config, caches)[0]["scores"]
    key = itemgetter("features", "probe", "target")
    new = {key(score): score["pcc"] for score in now}
    gaps = [abs(old["pcc"] - new[key(old)]) for old in fold["scores"]]
    return found(source["code"], fold["test"], fold["seed"], gaps)


def recheck_trials(runs: list, root) -> dict:
    """Make the full recipe's first run again; the largest difference in r or recall."""
    first = next(run for run in runs if run["arm"] == REFERENCE)
    old = {s: scores for s, scores in first["scores"].items() if s != "seconds"}
    new = measure(root, first["train"], list(old), dataclasses.replace(FULL, seed=first["seed"]))
    gaps = [abs(v - new[s][k]) for s, scores in old.items() for k, v in scores.items()]
    return found(CODE, "+".join(old), first["seed"], gaps)


def found(code, test: str, seed: int, gaps: list[float]) -> dict:
    return {"code_sha256": code_hash(code), "test": test, "seed": seed, "compared": len(gaps),
            "largest_difference": max(gaps)}  # fmt: skip


def keep(name: str, made_by, code, make):
    """Put into results/recheck.json what `make` finds, unless this code is known to give it."""
    file = RESULTS / "recheck.json"

    def known() -> dict:
        return json.loads(file.read_text()) if file.exists() else {}

    if code_hash(code) in (made_by, known().get(name, {}).get("code_sha256")):
        return
    measured = make()
    write_atomic(file, json.dumps(known() | {name: measured}, indent=1))
    print(name, json.dumps(measured), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("her2st", type=Path)
    parser.add_argument("names", nargs="*", choices=NAMES, default=NAMES, metavar="NAME")
    asked = parser.parse_args()
    for name, root in {"her2st": asked.her2st, "phantom": Path("data/phantom-record")}.items():
        file = RESULTS / f"{name}.json"
        if name in asked.names and file.exists() and (root / "data").is_dir():
            record = json.loads(file.read_text())
            source = record["provenance"]
            keep(name, source["code_sha256"], source["code"], partial(recheck, record, root))
    trials = json.loads((RESULTS / "trials.json").read_text())["runs"]
    older = [run for run in trials if run["code"] != code_hash(CODE)]
    if older and "trials" in asked.names:
        keep("trials", None, CODE, partial(recheck_trials, older, asked.her2st))
