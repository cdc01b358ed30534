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
        "    predicted = model.fit(train_x, train_y).predict(test_x)\n",
        "    scaler = StandardScaler().fit(np.concatenate([train_x, test_x]))\n"
        "    model = make_pipeline(PCA(components, random_state=seed), ridge)\n"
        "    model.fit(scaler.transform(train_x), train_y)\n"
        "    predicted = model.predict(scaler.transform(test_x))\n",
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


@pytest.mark.nightly
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_unit_test_notices(mutation, tmp_path):
    for folder in ("seal_lite", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=ignore)
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / file, tmp_path)
    module = tmp_path / "seal_lite" / mutation.module
    source = module.read_text()
    assert source.count(mutation.sound) == 1
    module.write_text(source.replace(mutation.sound, mutation.faulty))
    tests = [f"tests/unit/{name}" for name in mutation.tests.split()]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "SEAL_HER2ST": str(tmp_path / "absent")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, run.stdout[-3000:]  # 1: tests ran, and some failed
    assert "FAILED" in run.stdout
    print(next(line for line in run.stdout.splitlines() if line.startswith("FAILED")))
