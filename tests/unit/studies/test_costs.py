"""A study measures its steps over all calls, and expects the rest from what it has measured."""

import json
import logging

import pytest
from helpers import TINY

from seal_lite.errors import InputError
from seal_lite.studies.costs import Costs, folder_gb
from seal_lite.studies.plan import Plan

PLAN = Plan(
    by="patient",
    reason="",
    units=3,
    train_groups=None,
    seeds=2,
    epochs=TINY.epochs,
    recipe_epochs=TINY.epochs,
    seconds={"cross-validation": 70.0, "final training": 20.0, "report": 10.0},
    seconds_of_cache=10.0,
    memory_gb=2.0,
    disk_gb=1.0,
    smallest_gain=0.04,
)


def finish_fold(costs, seconds):
    costs.after_fold(len(costs.measured["folds"]) + 1, PLAN.folds, seconds)


def test_before_the_first_fold_the_plan_is_expected(tmp_path):
    assert Costs(tmp_path, PLAN).seconds_left() == PLAN.total_seconds


@pytest.mark.parametrize("slowness", [0.5, 1, 3])
def test_the_rest_is_expected_in_proportion_to_the_measured_folds(tmp_path, slowness):
    """The first fold fills the cache, which the others read."""
    costs = Costs(tmp_path, PLAN)
    costs.current = "cross-validation"
    finish_fold(costs, slowness * 20)
    assert costs.seconds_left() == pytest.approx(slowness * (5 * 10 + 30))
    finish_fold(costs, slowness * 10)
    assert costs.seconds_left() == pytest.approx(slowness * (4 * 10 + 30))


def test_progress_names_the_folds_done_and_the_time_left(tmp_path, caplog):
    costs = Costs(tmp_path, PLAN)
    with caplog.at_level(logging.INFO), costs.step("cross-validation"):
        finish_fold(costs, 20)
    assert "step 1 of 3: cross-validation; about 2 min left" in caplog.text
    assert "fold 1 of 6 took 20 s; about 80 s of the study left" in caplog.text


def test_calls_add_up_and_a_finished_step_costs_nothing_more(tmp_path):
    interrupted = Costs(tmp_path, PLAN)
    with pytest.raises(KeyboardInterrupt), interrupted.step("cross-validation"):
        finish_fold(interrupted, 20)
        raise KeyboardInterrupt
    resumed = Costs(tmp_path, PLAN)
    assert resumed.measured["folds"] == [20]
    with resumed.step("cross-validation"):
        finish_fold(resumed, 10)
    assert resumed.measured["folds"] == [20, 10]
    before = (tmp_path / "costs.json").read_text()
    again = Costs(tmp_path, PLAN)
    with again.step("cross-validation"):
        pass
    assert (tmp_path / "costs.json").read_text() == before
    assert again.seconds_left() == 30 * 10 / 10


def test_planned_and_actual_costs_stand_side_by_side(tmp_path):
    (tmp_path / "big").write_bytes(bytes(10**6))
    costs = Costs(tmp_path, PLAN)
    with costs.step("report"):
        pass
    rows = {row["what"]: row for row in costs.rows()}
    assert rows["report"] == {"what": "report", "planned": "10 s", "actual": "0 s"}
    assert rows["in all"] == {"what": "in all", "planned": "2 min", "actual": "0 s"}
    assert list(rows)[-2:] == ["memory, highest", "disk, highest"]
    assert costs.measured["memory_gb"] > 0.05
    assert 0.001 <= folder_gb(tmp_path) < 0.002


def test_damaged_costs_are_named_with_the_remedy(tmp_path):
    (tmp_path / "costs.json").write_text(json.dumps({"seconds": 3}))
    with pytest.raises(InputError, match=r"costs\.json.*remove it"):
        Costs(tmp_path, PLAN)
