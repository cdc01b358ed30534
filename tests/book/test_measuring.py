"""Every results file has a command, and every command a time."""

import json
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "results"
COMMAND = re.compile(r'command = "([^"]+)"')


@pytest.fixture(scope="module")
def commands():
    from pages import commands

    return commands


def test_every_results_file_is_measured_by_one_command_with_a_time(commands):
    paths = [path for cost in commands.COMMANDS.values() for path in cost.paths(RESULTS)]
    assert sorted(paths) == sorted(RESULTS.rglob("*.json"))
    for command, cost in commands.COMMANDS.items():
        assert cost.time and cost.source, command


def test_every_command_exists_and_every_page_names_one_of_them(commands):
    makefile = (REPOSITORY / "Makefile").read_text()
    for command in commands.COMMANDS:
        program, name, *_ = command.split()
        if program == "make":
            assert re.search(rf"^[\w\s\\-]*\b{re.escape(name)}\b.*:", makefile, re.M), command
        else:
            assert (REPOSITORY / name).exists(), command
    pages = [*(REPOSITORY / "book").glob("*.md"), *(REPOSITORY / "book/includes").glob("*.md")]
    named = {name for page in pages for name in COMMAND.findall(page.read_text())}
    prefixes = {"make record-"}  # a name follows
    assert "make parity" in named
    assert named - prefixes <= set(commands.COMMANDS)


def test_seconds_of_a_file_replace_the_documented_time(commands, tmp_path):
    command = "python benchmarks/cohort.py"
    (tmp_path / "cohort.json").write_text("{}")
    assert "about an hour" in commands.command_time(command, results=tmp_path)
    (tmp_path / "cohort.json").write_text(json.dumps({"seconds": 3000}))
    assert commands.command_time(command, results=tmp_path).startswith("50 min of steps")


def test_the_seconds_of_all_trainings_are_added_up(commands, tmp_path):
    runs = [{"scores": {"seconds": 3600}}, {"scores": {"failed": "it broke"}}]
    for name in ("trials", "control_trials"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"runs": runs}))
    assert commands.command_time("make trials", results=tmp_path).startswith("2.0 h of trainings")


def test_what_takes_longer_than_a_night_on_two_cores_is_named(commands, tmp_path):
    def time_of(hours):
        runs = [{"scores": {"seconds": 3600}}] * hours
        (tmp_path / "trials.json").write_text(json.dumps({"runs": runs}))
        return commands.command_time("make trials", results=tmp_path)

    assert "longer than a night" not in time_of(2 * commands.NIGHT_HOURS)
    assert "longer than a night" in time_of(2 * commands.NIGHT_HOURS + 1)


def test_data_that_one_must_fetch_are_named_beside_the_command(commands):
    text = commands.command_sentences("make pitfalls", results=RESULTS)
    assert "seal-lite fetch her2st" in text
