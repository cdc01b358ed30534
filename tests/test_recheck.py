"""Whether two versions of the code give the same is itself measured right."""

import contextlib
import json
from pathlib import Path

import pytest

from seal_lite.train import code_hash

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def recheck(book):
    return book("recheck")


def test_the_largest_difference_and_whose_it_is(recheck):
    found = recheck.gaps({("tuned", "r"): (0.5, 0.4), ("frozen", "r"): (0.2, 0.5)})
    assert found["compared"] == 2 and found["largest_of"] == ["frozen", "r"]
    assert found["largest_difference"] == pytest.approx(0.3)
    assert found["mean_difference"] == pytest.approx(0.2)


def test_all_parts_are_asked_unless_some_are_named(recheck, capsys):
    assert recheck.arguments(["folder"]).only == recheck.NAMES
    assert recheck.arguments(["folder", "--only", "trials", "her2st"]).only == ["trials", "her2st"]
    with pytest.raises(SystemExit):
        recheck.arguments(["folder", "--only", "nothing"])
    assert "invalid choice: 'nothing'" in capsys.readouterr().err


def test_what_is_known_of_this_code_is_not_measured_again(recheck, tmp_path, monkeypatch):
    monkeypatch.setattr(recheck, "RESULTS", tmp_path)
    other = {"code_sha256": "other"}
    (tmp_path / "recheck.json").write_text(json.dumps({"a": other, "b": other}))
    now, code = code_hash(["config"]), ["config"]
    recheck.keep("a", now, code, pytest.fail)  # the record itself is of this code
    recheck.keep("a", None, code, lambda: {"code_sha256": now})
    recheck.keep("a", None, code, pytest.fail)
    found = json.loads((tmp_path / "recheck.json").read_text())
    assert found == {"a": {"code_sha256": now}, "b": other}


PACKAGE = """
import json, sys
from pathlib import Path

def main():
    asked = dict(zip(sys.argv[2::2], sys.argv[3::2]))
    assert sys.argv[1] == "crossval" and asked["--sections"] == "PA1,PB1,PC1", sys.argv
    scores = [{"features": "tuned", "probe": "p", "target": "t", "per_gene": {"G": 0.5, "H": %s}}]
    folds = [{"test": "PC", "scores": scores}]
    (Path(asked["--out"]) / "metrics.json").write_text(json.dumps({"folds": folds}))
"""


@pytest.mark.parametrize("then, now", [(0.25, 0.25), (0.25, 0.5)])
def test_each_version_of_the_code_runs_by_itself(recheck, tmp_path, monkeypatch, then, now):
    for name, r in (("then", then), ("now", now)):
        package = tmp_path / name / "seal_lite"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "cli.py").write_text(PACKAGE % r)
    there = contextlib.nullcontext(tmp_path / "then")
    monkeypatch.setattr(recheck, "checked_out", lambda commit: there)
    monkeypatch.setattr(recheck, "ROOT", tmp_path / "now")
    record = {"provenance": {"sections": ["PA1", "PB1", "PC1", "PD1"], "groups": "patient",
                             "code": ["config"], "commit": "abc"}}  # fmt: skip
    found = recheck.recheck_code(record, tmp_path)
    assert found["largest_difference"] == now - then and found["compared"] == 2
    assert found["commit"] == "abc" and found["code_sha256"] == code_hash(["config"])
    if now != then:
        assert found["largest_of"] == ["PC", "tuned", "p", "t", "H"]


@pytest.mark.parametrize("by, options", [
    ("patient", "--groups patient --sections PA1,PA2,PB1 --train-groups 2"),
    ("site", "--groups site --sections PA1,PA2,PC1,PD1"),
])  # fmt: skip
def test_a_short_run_is_of_the_records_kind(recheck, monkeypatch, by, options):
    names = ["PA1", "PA2", "PB1", "PC1", "PD1"]
    monkeypatch.setattr(recheck, "load_sections", lambda root, names: names)
    monkeypatch.setattr(recheck, "groups_of", lambda sections, by: [*"xxxyy"])
    record = {"provenance": {"sections": names, "groups": by}}
    assert " ".join(recheck.short(record, "root")) == options


def test_a_commit_is_checked_out_beside_and_removed(recheck):
    with recheck.checked_out("HEAD") as tree:
        assert (tree / "seal_lite/train.py").exists() and tree != REPOSITORY
    assert not tree.exists()
