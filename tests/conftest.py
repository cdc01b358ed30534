"""Fixtures that the tests share: a tiny phantom, its sections, and a run on them.

Heavy packages are imported inside fixtures, so that collecting the tests takes seconds.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from helpers import TINY

from seal_lite import Config

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def tiny() -> Config:
    return TINY


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory):
    """Two patients with one section each (PA1, PB1), 70 spots, 1 um per px."""
    from seal_lite.data.phantom import phantom

    return phantom(
        tmp_path_factory.mktemp("tiny") / "phantom",
        patients=2,
        sections_per_patient=1,
        spots=70,
        um_per_px=1.0,
    )


@pytest.fixture(scope="session")
def ground_truth(phantom_root):
    """What the phantom's counts would be without noise."""
    from seal_lite.data.phantom.truth import GroundTruth

    return GroundTruth.find(phantom_root)


@pytest.fixture(scope="session")
def sections(phantom_root):
    from seal_lite import load_sections

    return load_sections(phantom_root, patch_px=TINY.patch_px)


@pytest.fixture(scope="session")
def trained(sections, tmp_path_factory):
    """(run folder, model, history) of a finished run on PA1."""
    from seal_lite import finetune

    out = tmp_path_factory.mktemp("trained") / "run"
    return out, *finetune(sections[:1], TINY, out=out, progress=False)


@pytest.fixture(scope="session")
def truth():
    """The Visium-like section that `made` writes in every format."""
    from made import make_truth

    return make_truth()


@pytest.fixture(scope="session")
def her2st():
    """The real data; tests that need it are skipped where it is not."""
    root = Path(os.environ.get("SEAL_HER2ST", REPOSITORY.parent / "shared/her2st"))
    if not (root / "data/ST-cnts").is_dir():
        pytest.skip(f"her2st is not in {root}; set SEAL_HER2ST to where `fetch` wrote it")
    return root


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium; Playwright allows one at a time in a process."""
    from browser import chromium

    with chromium() as running:
        yield running


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run `seal-lite ARGS`; returns (exit code, stdout, stderr)."""
    from seal_lite.cli import main

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["seal-lite", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, *capsys.readouterr()

    return call
