"""Does this code, and this machine, still give what was recorded?

    python book/recheck.py HER2ST [--only NAME ...]    # results/recheck.json

A record takes hours, and the code that made it is known by its hash. Where the code has changed
since, two questions are asked apart. *The code*: the commit that made the record and the code at
hand each run the record's cross-validation on this machine, shortened to a few sections and two
epochs, and every score of every gene is compared; where no number was meant to change, all are
equal to the last digit. *The machine*: the first fold of her2st, and a run of the trials' full
recipe, are made again in full and compared with what was recorded, perhaps elsewhere: rounding
differs between processors, and training amplifies it.

Writes results/recheck.json, which the book quotes, after each part (those named, or all); what is
known of this code already is left out. `make recheck` runs it, on one thread like the records:
another number of threads adds in another order. Half an hour on a core.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd

from benches import SHIFTS
from page import load, rechecked
from seal_lite import Config
from seal_lite.crossval import folds_of, groups_of, run_fold
from seal_lite.evaluate import genes_to_score
from seal_lite.files import write_atomic
from seal_lite.sections import load_sections
from seal_lite.train import code_hash
from trials import CODE, FULL, REFERENCE, measure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
DATA = {"phantom": "phantom-record", **{f"shift_{name}": f"{name}-record" for name in SHIFTS}}
NAMES = ["her2st", *DATA, "machine", "trials"]
KEY = itemgetter("features", "probe", "target")


@contextlib.contextmanager
def checked_out(commit: str):
    """A folder with the repository as it was."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / commit
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", tree, commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", tree], check=True)


def short(record: dict, root) -> list[str]:
    """Options of a small cross-validation of the record's kind: three sections, or of a shift two
    of each group."""
    source = record["provenance"]
    names, by = source["sections"], source["groups"]
    if by in ("section", "patient"):
        return ["--groups", by, "--sections", ",".join(names[:3]), "--train-groups", "2"]
    members = pd.Series(names).groupby(groups_of(load_sections(root, names), by))
    return ["--groups", by, "--sections", ",".join(members.head(2))]


def shortened(code: Path, options: list[str], root) -> dict:
    """{(test, features, probe, target, gene): r} by the package in the folder `code`."""
    run = "import sys; from seal_lite.cli import main; sys.exit(main())"
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(
            [sys.executable, "-c", run, "crossval", "--data", Path(root).resolve(), "--out", out,
             *options, "--seeds", "1", "--epochs", "2", "--allow-leakage"],
            cwd=code, env={**os.environ, "PYTHONPATH": f"{code}{os.pathsep}{code / 'book'}"},
            check=True,
        )  # fmt: skip
        folds = json.loads((Path(out) / "metrics.json").read_text())["folds"]
    return {(fold["test"], *KEY(s), gene): r for fold in folds for s in fold["scores"]
            for gene, r in s["per_gene"].items()}  # fmt: skip


def recheck_code(record: dict, root) -> dict:
    """The largest difference between the record's own code and the code at hand, here and now."""
    source, options = record["provenance"], short(record, root)
    with checked_out(source["commit"]) as then:
        old, new = (shortened(code, options, root) for code in (then, ROOT))
    return {"code_sha256": code_hash(source["code"]), "commit": source["commit"],
            **gaps({key: (old[key], new[key]) for key in old})}  # fmt: skip


def recheck_machine(record: dict, root) -> dict:
    """Recompute the record's first fold and seed from the data under `root`."""
    fold, source = record["folds"][0], record["provenance"]
    config = dataclasses.replace(Config(), seed=fold["seed"])
    sections = load_sections(root, source["sections"])
    groups = groups_of(sections, source["groups"])
    train, tests = next(folds_of(sections, groups, source["train_groups"]))
    test = {fold["test"]: tests[fold["test"]]}
    genes = genes_to_score(root, train)
    with tempfile.TemporaryDirectory() as caches:  # both trainings share the prefix cache
        now = run_fold(root, train, test, genes, config, caches)[0]["scores"]
    new = {KEY(score): score["pcc"] for score in now}
    pairs = {KEY(old): (old["pcc"], new[KEY(old)]) for old in fold["scores"]}
    decoded = {key: pairs.pop(key) for key in [*pairs] if "decoder" in key}
    return {"code_sha256": code_hash(source["code"]), "test": fold["test"], "seed": fold["seed"],
            **gaps(pairs), "decoders": gaps(decoded)}  # fmt: skip


def recheck_trials(runs: list, root) -> dict:
    """Make the full recipe's first run again; the largest difference in r or recall."""
    first = next(run for run in runs if run["arm"] == REFERENCE)
    old = {s: scores for s, scores in first["scores"].items() if s != "seconds"}
    new = measure(root, first["train"], list(old), dataclasses.replace(FULL, seed=first["seed"]))
    pairs = {(s, k): (v, new[s][k]) for s, scores in old.items() for k, v in scores.items()}
    return {"code_sha256": code_hash(CODE), "test": "+".join(old), "seed": first["seed"],
            **gaps(pairs)}  # fmt: skip


def gaps(pairs: dict[tuple, tuple[float, float]]) -> dict:
    """How many were compared, the mean and the largest difference, and whose that is."""
    size = {key: abs(a - b) for key, (a, b) in pairs.items()}
    worst = max(size, key=size.get)
    return {"compared": len(size), "mean_difference": float(np.mean([*size.values()])),
            "largest_difference": size[worst], "largest_of": list(worst)}  # fmt: skip


def keep(name: str, made_by: str | None, code, make: Callable[[], dict]):
    """Put into results/recheck.json what `make` finds, unless this code is known to give it."""
    if code_hash(code) in (made_by, (rechecked(RESULTS, name) or {}).get("code_sha256")):
        return
    measured, file = make(), RESULTS / "recheck.json"
    write_atomic(file, json.dumps((load(file) or {}) | {name: measured}, indent=1))
    print(name, json.dumps(measured), flush=True)


def arguments(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("her2st", type=Path)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    return parser.parse_args(args)


if __name__ == "__main__":
    asked = arguments()
    roots = {"her2st": asked.her2st, **{name: ROOT / "data" / DATA[name] for name in DATA}}
    for name, root in roots.items():
        record = load(RESULTS / f"{name}.json")
        if name in asked.only and record and (root / "data").is_dir():
            made = record["provenance"]
            keep(name, made["code_sha256"], made["code"], partial(recheck_code, record, root))
    if "machine" in asked.only:
        record = load(RESULTS / "her2st.json")
        code = record["provenance"]["code"]
        keep("machine", None, code, partial(recheck_machine, record, asked.her2st))
    trials = load(RESULTS / "trials.json")["runs"]
    older = [run for run in trials if run["code"] != code_hash(CODE)]
    if older and "trials" in asked.only:
        keep("trials", None, CODE, partial(recheck_trials, older, asked.her2st))
