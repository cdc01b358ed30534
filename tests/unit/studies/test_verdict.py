"""A verdict says what the interval says, as loudly for a loss as for a gain."""

import pytest

from seal_lite.studies.plan import Plan
from seal_lite.studies.verdict import checklist, difference_rows, verdict

TARGETS = ("pearson_residuals", "log1p_cp10k", "log1p_raw", "log1p_cp10k|depth")
PLAN = Plan("patient", "It speaks for new patients.", 4, None, 3, 8, {"all": 60.0}, 1.0, 1.0, 0.04)


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
        ((0.05, 0.02, 0.08), 2, "description", "Too few units"),
        ((0.05, None, None), 1, "description", "Too few units"),
    ],
)
def test_the_verdict_is_that_of_the_interval_over_units(interval, units, kind, headline):
    outcome = verdict(made_result(*interval, units=units), PLAN)
    assert outcome.kind == kind
    assert outcome.headline.startswith(headline)
    first, second = outcome.sentences
    assert "On held-out patients" in first and f"{interval[0]:+.3f}" in first
    assert ("no interval" if units == 1 else f"{units} units") in first
    assert "shuffled" in second


def test_both_probes_and_both_references_are_listed():
    rows = difference_rows(made_result(-0.01, -0.02, -0.001))
    assert [row["kind"] for row in rows] == ["worse"] * 4
    assert len({(row["minus"], row["probe"]) for row in rows}) == 4


def test_an_allowed_leak_stands_in_the_checklist():
    answers = dict(
        checklist(made_result(0, -1, 1), PLAN, leakage=["C2 and C3 are both of C"], allowed=True)
    )
    answer = answers["Samples on both sides of a split?"]
    assert answer == "C2 and C3 are both of C (allowed on the command line)"
