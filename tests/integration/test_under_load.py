"""Kills at any moment, damaged files, crowds, and many cycles: what under_load.py counts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seal_lite.errors import InputError
from seal_lite.io import atomic_file
from seal_lite.locks import exclusive_folder

SCRIPT = Path(__file__).with_name("under_load.py")
SHORT = "--kills 3 --jobs finetune,embed,fetch --processes 3 --mutants 1 --cycles 8 --seed 1"
LONG = "--kills 60 --mutants 10 --cycles 300 --seed 2"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(SHORT, id="short"),
        pytest.param(LONG, id="long", marks=pytest.mark.nightly),
    ],
)
def load(request, tmp_path_factory):
    """The options of a run of the script, and its counts; it fails where a promise is broken."""
    out = tmp_path_factory.mktemp("load") / "counts.json"
    command = [sys.executable, str(SCRIPT), str(out), *request.param.split()]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return request.param, json.loads(out.read_text())


def test_whatever_is_killed_resumes_to_the_same_result(load):
    options, counts = load
    jobs = {"finetune", "embed", "fetch"}
    if options == LONG:
        jobs |= {"crossval"}
    assert counts["kills"].keys() == jobs
    for name, job in counts["kills"].items():
        assert job["kills"] >= 1, name
        assert job["kept"] > 0, f"{name}: no kill came after work that had been done"


def test_processes_share_a_folder_and_a_cache(load):
    options, counts = load
    assert counts["crowd"] == {"processes": 8 if options == LONG else 3, "slides": 4}


def test_damaged_files_are_read_or_refused_and_nothing_else(load):
    _, counts = load
    assert len(counts["mutants"]) >= 25
    for path, ends in counts["mutants"].items():
        assert ends.keys() == {"read", "refused"}, path
    n_refused = sum(ends["refused"] for ends in counts["mutants"].values())
    assert n_refused > len(counts["mutants"]) / 4  # the damage is damage


def test_memory_and_open_files_stay_flat(load):
    """An encoder has 18 MB. A few cycles tell whether each keeps one, hundreds whether any grow."""
    options, counts = load
    files = counts["cycles"]["open_files"]
    assert max(files) == min(files)
    assert counts["cycles"]["mb_per_100_cycles"] < (5 if options == LONG else 900)


def test_a_second_run_in_a_folder_is_refused(sections, tiny, tmp_path):
    from seal_lite.evaluation.crossval import crossval
    from seal_lite.training.loop import finetune

    run = tmp_path / "run"
    folds = tmp_path / "folds"
    with exclusive_folder(run), exclusive_folder(folds):
        with pytest.raises(InputError, match="run: another run .* wait"):
            finetune(sections[:1], tiny, out=run, progress=False)
        with pytest.raises(InputError, match="folds: another run .* wait"):
            crossval(sections, tiny, data_name="phantom", out=folds, seeds=1, progress=False)
    assert list(run.iterdir()) == []
    assert list(folds.iterdir()) == []
    with exclusive_folder(run):  # and again, after the first has ended
        pass


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    file = tmp_path / "new/file"
    with pytest.raises(KeyboardInterrupt), atomic_file(file) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert list(file.parent.iterdir()) == []
    file.write_text("old")
    with pytest.raises(OSError), atomic_file(file) as part:
        part.write_text("new")
        raise OSError
    assert file.read_text() == "old"
    with atomic_file(file) as part:
        part.write_text("new")
    assert file.read_text() == "new"
    assert list(file.parent.iterdir()) == [file]
