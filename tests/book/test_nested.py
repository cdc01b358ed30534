"""The nested estimate: what an outer fold chooses does not depend on its test section."""

from __future__ import annotations

import itertools

import pytest

from pages import nested

CHOICES = ("first", "good")


def make_trials(r):
    """Trials of two arms; `r` maps (arm, training, section) to a score, frozen layers to .2, .3."""
    runs = []
    for arm, train in itertools.product(CHOICES, itertools.combinations(nested.SECTIONS, 2)):
        scores = {"seconds": 1.0}
        for section in nested.SECTIONS:
            if section not in train:
                values = {"tuned": r(arm, train, section), "frozen a": 0.2, "frozen b": 0.3}
                ending = f"tuned_ridge/{nested.TARGET}"
                scores[section] = {f"{name}/{ending}": value for name, value in values.items()}
        runs.append({"arm": arm, "train": list(train), "scores": scores})
    arms = {arm: {"changes": {}} for arm in CHOICES}
    return {"arms": arms, "runs": runs}


def folds(trials):
    return nested.nested_folds(trials, fixed="first", probe="tuned_ridge")


def test_a_fold_chooses_what_is_best_on_the_other_sections():
    trials = make_trials(lambda arm, train, section: 0.5 if arm == "good" else 0.4)
    assert [(fold.arm, fold.layer) for fold in folds(trials)] == [("good", "frozen b")] * 4
    row = nested.nested_difference(folds(trials), "chosen", "fixed")
    assert row == {"mean": 0.1, "ci95": [0.1, 0.1], "units": 4}
    assert nested.nested_difference(folds(trials), "chosen", "frozen")["mean"] == 0.2


@pytest.mark.parametrize("test", nested.SECTIONS)
def test_the_test_section_has_no_say(test):
    """An arm that is best on one section alone is not chosen there, but elsewhere."""

    def r(arm, train, section):
        return 0.9 if arm == "good" and section == test else 0.4 - 0.1 * (arm == "good")

    chosen = {fold.test: fold.arm for fold in folds(make_trials(r))}
    assert chosen[test] == "first"
    others = set(nested.SECTIONS) - {test}
    assert {chosen[section] for section in others} == {"good"}


def test_the_frozen_encoder_chooses_among_the_patches_of_all_arms():
    """Where an arm's patches suit the frozen encoder best, they are what finetuning is held to."""
    trials = make_trials(lambda arm, train, section: 0.5)
    trials["arms"]["good"]["changes"] = {"patch_um": 224.0}
    key = f"frozen a/tuned_ridge/{nested.TARGET}"
    for run in trials["runs"]:
        for section in set(nested.SECTIONS) - set(run["train"]):
            if run["arm"] == "good":
                run["scores"][section][key] = 0.45
    chosen = folds(trials)
    assert [(fold.frozen_arm, fold.layer) for fold in chosen] == [("good", "frozen a")] * 4
    assert nested.nested_difference(chosen, "chosen", "frozen")["mean"] == 0.05


def test_arms_with_another_encoder_and_controls_take_no_part():
    trials = make_trials(lambda arm, train, section: 0.5 if arm == "good" else 0.4)
    for changes in ({"changes": {"backbone": "x"}}, {"changes": {}, "variant": "shuffled"}):
        trials["arms"]["good"] = changes
        assert nested.complete_arms(trials) == {"first"}
    trials["arms"]["good"] = {"changes": {}}
    del trials["runs"][-1]  # not every pair of sections
    assert nested.complete_arms(trials) == {"first"}
