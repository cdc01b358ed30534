"""The page of promises quotes the tests' own table and a record, or says that there is none."""

import json
import re
import sys

from conftest import REPOSITORY
from test_faults import FAULTS, WORLD

from seal_lite.training.provenance import code_hash

sys.path.insert(0, str(REPOSITORY / "book"))
import promises

CODE = ["train"]
RECORD = {
    "kills": {name: {"kills": 5, "runs": 2, "seconds": 1.5} for name in promises.JOBS},
    "crowd": {"processes": 8, "slides": 4},
    "mutants": {"run/config.json": {"read": 3, "refused": 37}},
    "cycles": {
        "cycles": 500,
        "mb": [900.0, 901.0],
        "mb_per_100_cycles": -0.125,
        "open_files": [6, 6],
    },
    "provenance": {
        "sections": ["PA1"],
        "data_sha256": "d" * 64,
        "config_sha256": "c" * 64,
        "code": CODE,
        "code_sha256": code_hash(CODE),
        "commit": "abc",
        "seed": 0,
        "device": "cpu",
        "versions": {"torch": "2"},
    },
}


def test_the_catalogue_is_that_of_the_tests():
    found = promises.catalogue()
    assert [n for names in found.values() for n in names] == [row[0] for row in FAULTS + WORLD]
    assert f"**{len(FAULTS) + len(WORLD)} faults**" in promises.faults()
    assert all(len(names) > 2 for names in found.values())


def test_counts_are_those_of_the_record(tmp_path):
    file = tmp_path / "promises.json"
    file.write_text(json.dumps(RECORD))
    machine = {
        "test": "C2",
        "compared": 5,
        "mean_difference": 0.001,
        "largest_difference": 0.0123,
        "decoders": {"largest_difference": 0.049},
    }
    again = {"machine": machine, "a": {"commit": "abc", "largest_difference": 0.0002}}
    (tmp_path / "recheck.json").write_text(json.dumps(again))
    parts = promises.chapter(file)
    assert "**20 kills**" in parts["kills"] and "8 processes" in parts["kills"]
    assert "**40 damaged files**: 37 were refused" in parts["mutants"]
    assert "**500 times**" in parts["cycles"] and "−0.12 MB" in parts["cycles"]
    assert "6 open files" in parts["cycles"] and "0.012 at most" in parts["same"]
    assert "1 records and by this book's differ by at most 0.0002" in parts["same"]
    assert "Stale" not in parts["source"] and "abc" in parts["source"]
    file.write_text(
        json.dumps({**RECORD, "provenance": {**RECORD["provenance"], "code_sha256": "other"}})
    )
    assert "`make promises` brings it up to date" in promises.chapter(file)["source"]


def test_without_a_record_the_page_says_what_writes_it(tmp_path):
    parts = promises.chapter(tmp_path / "promises.json")
    assert all("`make promises` writes it" in parts[name] for name in promises.PARTS)
    text = (REPOSITORY / "book/promises.md").read_text()
    assert set(re.findall(r"promises/(\w+)\.md", text)) == set(parts)
