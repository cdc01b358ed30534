"""A verdict says what the interval says, as loudly for a loss as for a gain."""

import re
from dataclasses import replace

import pytest

from seal_lite import Config
from seal_lite.studies.plan import Plan
from seal_lite.studies.verdict import checklist, difference_rows, methods, verdict

TARGETS = ("pearson_residuals", "log1p_cp10k", "log1p_raw", "log1p_cp10k|depth")
PLAN = Plan(
    by="patient",
    reason="It speaks for new patients.",
    units=4,
    train_groups=None,
    seeds=3,
    epochs=8,
    recipe_epochs=8,
    seconds={"cross-validation": 60.0},
    seconds_of_cache=0.0,
    memory_gb=1.0,
    disk_gb=1.0,
    smallest_gain=0.04,
)


def made_result(mean, low, high, *, units=4):
    interval = None if units == 1 else [low, high]
    rows = [
        {"of": "tuned", "minus": minus, "probe": probe, "target": "pearson_residuals"}
        | {"mean": mean, "ci95": interval, "units": units}
        for minus in ("frozen_best", "shuffled")
        for probe in ("tuned_ridge", "hest")
    ]
    r = {"tuned": 0.3 + mean, "frozen_best": 0.3}
    scores = [
        {"features": name, "probe": "tuned_ridge", "target": target, "per_gene": {"A": value}}
        for name, value in r.items()
        for target in TARGETS
    ]
    folds = [{"test": "P1", "seed": 0, "scores": scores}]
    origin = {"data_sha256": "d", "config_sha256": "c"}
    return {"delta": rows, "folds": folds, "classes": None, "provenance": origin}


@pytest.mark.parametrize(
    ("interval", "units", "kind", "headline"),
    [
        ((0.05, 0.02, 0.08), 4, "better", "Finetuning helped."),
        ((0.01, -0.02, 0.04), 4, "no difference", "Finetuning made no difference"),
        ((-0.05, -0.08, -0.02), 4, "worse", "Finetuning made the encoder worse."),
        ((0.05, 0.02, 0.08), 2, "description", "Too few patients"),
        ((0.05, None, None), 1, "description", "Too few patients"),
    ],
)
def test_the_verdict_is_that_of_the_interval_over_units(interval, units, kind, headline):
    outcome = verdict(made_result(*interval, units=units), PLAN)
    assert outcome.kind == kind
    assert outcome.headline.startswith(headline)
    first, second = outcome.sentences
    assert "On patients that training did not see" in first and f"{interval[0]:+.3f}" in first
    assert ("no interval" if units == 1 else f"{units} patients") in first
    assert "shuffled" in second


@pytest.mark.parametrize(
    ("frozen", "shuffled", "advice"),
    [
        ((0.05, 0.02, 0.08), (0.05, 0.02, 0.08), "Use the finetuned encoder"),
        ((0.05, 0.02, 0.08), (0.01, -0.02, 0.04), "Do not credit the gain to gene expression"),
        ((0.01, -0.02, 0.04), (0.05, 0.02, 0.08), "Keep the frozen.*gain of up to .0.040"),
        ((-0.05, -0.08, -0.02), (0.05, 0.02, 0.08), "Keep the frozen encoder"),
    ],
)
def test_the_advice_uses_the_finetuned_encoder_only_for_a_gain_of_true_pairs(
    frozen, shuffled, advice
):
    result = made_result(*frozen)
    rows = made_result(*shuffled)["delta"]
    result["delta"] = [row for row in result["delta"] if row["minus"] == "frozen_best"]
    result["delta"] += [row for row in rows if row["minus"] == "shuffled"]
    assert re.match(advice, verdict(result, PLAN).advice)


@pytest.mark.parametrize("sign", [1, -1])
def test_probes_that_disagree_are_named_in_the_headline(sign):
    """A gain by one probe is no verdict where the other one finds a loss."""
    low, mean, high = sorted([sign * 0.02, sign * 0.05, sign * 0.08])
    result = made_result(mean, low, high)
    for row in result["delta"]:
        if row["probe"] == "hest":
            row |= {"mean": -mean, "ci95": [-high, -low]}
    outcome = verdict(result, PLAN)
    assert outcome.kind == "mixed"
    assert "disagree" in outcome.headline
    assert f"HEST-bench) finds a difference of {-mean:+.3f}" in outcome.advice


def test_the_advice_states_that_time_has_shortened_the_training():
    result = made_result(0.05, 0.02, 0.08)
    short = replace(PLAN, epochs=4)
    assert "4 of the recipe's 8 epochs" in verdict(result, short).advice
    assert "epochs" not in verdict(result, PLAN).advice


def test_too_few_units_are_advised_to_become_more():
    outcome = verdict(made_result(0.05, 0.02, 0.08, units=2), PLAN)
    assert "at least 3: add patients" in outcome.advice


def test_both_probes_and_both_references_are_listed():
    rows = difference_rows(made_result(-0.01, -0.02, -0.001))
    assert [row["kind"] for row in rows] == ["worse"] * 4
    assert len({(row["minus"], row["probe"]) for row in rows}) == 4


def test_an_allowed_leak_stands_in_the_checklist():
    answers = dict(
        checklist(made_result(0, -1, 1), PLAN, leakage=["C2 and C3 are both of patient C"])
    )
    answer = answers["Is a sample on both sides of a split?"]
    assert "allowed on the command line: C2 and C3 are both of patient C." in answer


@pytest.mark.parametrize(
    ("blocks", "seeds", "words"),
    [(1, 1, ("in its last block,", "ran once,")), (3, 2, ("in its last 3 blocks,", "ran twice,"))],
)
def test_the_methods_paragraph_counts_as_one_would_write(blocks, seeds, words):
    result = made_result(0.05, 0.02, 0.08)
    result["provenance"] |= {"sections": ["A1", "B1"], "package": "1.2.3", "commit": "abc"}
    result["provenance"] |= {"versions": {"torch": "2"}, "device": "cpu"}
    config = Config(tune_blocks=blocks)
    text = methods(result, replace(PLAN, seeds=seeds), config, n_pairs=900)
    assert all(part in text for part in words)
