"""Kills at any moment, damaged files, crowds, and hundreds of cycles: see under_load.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seal_lite.errors import InputError
from seal_lite.evaluation.crossval import crossval
from seal_lite.io import atomic_file, exclusive_folder
from seal_lite.training.loop import finetune

SCRIPT = Path(__file__).with_name("under_load.py")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a short run of the script has counted; it fails where a promise is broken."""
    out = tmp_path_factory.mktemp("load") / "found.json"
    asked = ["--kills", "20", "--mutants", "2", "--cycles", "40", "--seed", "1"]
    ran = subprocess.run([sys.executable, SCRIPT, out, *asked], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(out.read_text())


def test_whatever_is_killed_goes_on_to_the_same_result(found):
    assert found["kills"].keys() == {"finetune", "crossval", "embed", "fetch"}
    assert sum(job["kills"] for job in found["kills"].values()) >= 20


def test_processes_share_a_folder_and_a_cache(found):
    assert found["crowd"] == {"processes": 8, "slides": 4}


def test_damaged_files_are_read_or_refused_and_nothing_else(found):
    assert len(found["mutants"]) >= 25
    for path, counts in found["mutants"].items():
        assert counts.keys() == {"read", "refused"}, path
    assert sum(c["refused"] for c in found["mutants"].values()) >= 15  # the damage is damage


def test_memory_and_open_files_stay_flat(found):
    files = found["cycles"]["open_files"]
    assert max(files) == min(files)
    assert found["cycles"]["mb_per_100_cycles"] < 20  # 40 cycles: the recorded 500 tell more


def test_a_second_run_in_a_folder_is_refused(sections, tiny, tmp_path):
    run, cv = tmp_path / "run", tmp_path / "cv"
    with exclusive_folder(run), exclusive_folder(cv):
        with pytest.raises(InputError, match="run: another run writes there; wait, or choose"):
            finetune(sections[:1], tiny, out=run, progress=False)
        with pytest.raises(InputError, match="cv: another run writes there"):
            crossval("phantom", sections, tiny, seeds=1, out=cv, progress=False)
    assert not [*run.iterdir(), *cv.iterdir()]
    with exclusive_folder(run):  # and again, after the first has ended
        pass


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    file = tmp_path / "new/file"
    with pytest.raises(KeyboardInterrupt), atomic_file(file) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert not [*file.parent.iterdir()]
    file.write_text("old")
    with pytest.raises(OSError), atomic_file(file) as part:
        part.write_text("new")
        raise OSError
    assert file.read_text() == "old"
    with atomic_file(file) as part:
        part.write_text("new")
    assert file.read_text() == "new" and [*file.parent.iterdir()] == [file]
