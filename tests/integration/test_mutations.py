"""Faults that would make a result worthless: for each, some unit test fails.

The fault is put into a copy of the package, whose unit tests then run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutation:
    """A fault: in `module`, `sound` becomes `faulty`; `tests` must notice."""

    name: str
    module: str
    sound: str
    faulty: str
    tests: str


MUTATIONS = (
    Mutation(
        "leak the test section into the panel",
        "evaluation/crossval.py",
        "            include=fold.genes,\n",
        "            panel=GenePanel.from_config(\n"
        "                [*fold.train, *fold.held_out], config, include=fold.genes\n"
        "            ),\n",
        "evaluation/test_crossval.py",
    ),
    Mutation(
        "train on shuffled pairs",
        "training/loader.py",
        "        if shuffle_pairs:\n",
        "        if True:\n",
        "training/test_loader.py",
    ),
    Mutation(
        "skip LoRA",
        "encoders/vision.py",
        "        mean = torch.tensor(row.mean)",
        "        self.requires_grad_(False)\n        mean = torch.tensor(row.mean)",
        "training/test_loop.py",
    ),
    Mutation(
        "drop the contrast",
        "model/losses.py",
        '        "clip": config.w_clip,\n',
        '        "clip": 0.0,\n',
        "model/test_losses.py training/test_loop.py",
    ),
    Mutation(
        "fit the scaler on test data",
        "evaluation/probes.py",
        "    return reduce.transform(test_x) @ weights\n",
        "    reduce.fit(np.concatenate([train_x, test_x]))\n"
        "    return reduce.transform(test_x) @ weights\n",
        "evaluation/test_probes.py",
    ),
    Mutation(
        "swap two genes",
        "data/genes.py",
        "    present = source >= 0\n",
        "    source[:2] = source[:2][::-1]\n    present = source >= 0\n",
        "data/test_genes.py training/test_loader.py",
    ),
)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_line_to_change_is_still_there(mutation):
    source = (REPOSITORY / "seal_lite" / mutation.module).read_text()
    assert source.count(mutation.sound) == 1


@pytest.mark.nightly
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_unit_test_notices(mutation, tmp_path):
    for folder in ("seal_lite", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=ignore)
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / file, tmp_path)
    untouched = run_unit_tests(tmp_path, mutation.tests)
    assert untouched.returncode == 0, untouched.stdout[-3000:]
    module = tmp_path / "seal_lite" / mutation.module
    module.write_text(module.read_text().replace(mutation.sound, mutation.faulty))
    run = run_unit_tests(tmp_path, mutation.tests)
    assert run.returncode == 1, run.stdout[-3000:]  # 1: tests ran, and some failed
    noticed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR "))]
    print(noticed[0])  # an error: a check of the package itself was faster than the test


def run_unit_tests(copy, names):
    """Run unit tests of a copy of the repository, up to the first failure."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            *(f"tests/unit/{name}" for name in names.split()),
        ],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "SEAL_HER2ST": str(copy / "absent")},
        capture_output=True,
        text=True,
    )
