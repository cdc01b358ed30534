"""What a study holds out, whether it fits into the time, and what so many units can show."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from helpers import TINY

from seal_lite.data.section import Section
from seal_lite.errors import InputError
from seal_lite.schema import read
from seal_lite.studies.plan import Plan, choose_groups, make_plan, smallest_gain
from seal_lite.studies.speed import Speed

SPEED = Speed(
    training_pairs=100.0,
    cached_patches=200.0,
    embedded_patches=400.0,
    seconds_a_probed_pair=0.01,
    cache_bytes=1e6,
    run_bytes=1e7,
    memory_bytes=2e9,
    seconds_of_report=10.0,
)


class Named(Section):
    """A section with a name and a patient, and nothing to read."""

    def __init__(self, name, patient, n=100):
        object.__setattr__(self, "named", (name, patient))
        object.__setattr__(self, "rows", np.arange(n))

    name = property(lambda self: self.named[0])
    patient = property(lambda self: self.named[1])

    def label(self, column):
        return {"section": self.name, "patient": self.patient}.get(column)


def sections_of(*patients):
    return [Named(f"S{i}", patient) for i, patient in enumerate(patients)]


def planned(sections, *, by="section", **options):
    return make_plan(sections, TINY, speed=SPEED, by=by, reason="", **options)


@pytest.mark.parametrize(
    ("patients", "by", "claim"),
    [
        ("ABC", "patient", "speaks for new patients"),
        ("AABBCC", "patient", "speaks for new patients"),
        ("AB", "section", "speaks for new patients"),
        ("AAAA", "section", "of 1 patient, so a score speaks for new sections"),
        ("AABB", "section", "of 2 patients, so a score speaks for new sections"),
    ],
)
def test_patients_are_held_out_where_there_are_enough(patients, by, claim):
    chosen, reason = choose_groups(sections_of(*patients))
    assert chosen == by
    assert claim in reason


def test_only_patients_and_sections_are_held_out():
    with pytest.raises(InputError, match="--groups site: .* patient or section.*crossval"):
        choose_groups(sections_of(*"ABC"), "site")


def test_one_section_cannot_be_studied():
    with pytest.raises(InputError, match="S0 is the only section.*add one"):
        choose_groups(sections_of("A"))


def test_a_plan_leaves_one_out_and_counts_its_work():
    plan = planned(sections_of(*"AAAA"))
    assert (plan.units, plan.train_groups, plan.seeds) == (4, None, 3)
    epochs = TINY.epochs + TINY.gene_warmup_epochs
    trainings = 2 * 3 * 4 * epochs * 300 / 100  # tuned and shuffled, seeds, folds
    assert plan.seconds["cross-validation"] > trainings
    assert plan.seconds["final training"] == epochs * 400 / 100  # it reads the folds' cache
    assert plan.folds == 12
    assert plan.seconds_of_cache > 400 * TINY.n_views / 200
    total = plan.seconds_of_cache + 12 * plan.seconds_of_fold
    assert total == pytest.approx(plan.seconds["cross-validation"])
    assert plan.disk_gb > 400 * TINY.n_views * 1e6 / 1e9


def test_of_many_groups_one_training_serves_all_that_are_held_out():
    plan = planned(sections_of(*"ABCDEFGHIJKL"), by="patient")
    assert (plan.train_groups, plan.units) == (8, 4)


def test_less_time_means_fewer_seeds_then_one_training_for_all():
    sections = sections_of(*"ABCDEFGH")
    full = planned(sections, by="patient").total_seconds
    chosen = []
    for share in np.arange(1.0, 0.2, -0.01):
        plan = planned(sections, by="patient", hours=share * full / 3600 + 1e-9)
        assert plan.total_seconds <= share * full * 1.001
        design = (plan.seeds, plan.train_groups)
        if design not in chosen:
            chosen.append(design)
    assert chosen[:3] == [(3, None), (2, None), (1, None)]
    assert {train_groups for _, train_groups in chosen[3:]} == {5}


def test_short_time_does_not_cost_the_units_of_a_verdict():
    """Three of four patients training once would leave one to test: epochs are cut before that."""
    config = replace(TINY, epochs=20)
    options = {"speed": SPEED, "by": "patient", "reason": ""}
    sections = sections_of(*"ABCD")
    full = make_plan(sections, config, **options)
    short = make_plan(sections, config, **options, hours=0.2 * full.total_seconds / 3600)
    assert (short.units, short.seeds) == (4, 1)
    assert short.epochs < 20
    cut = f"{short.epochs} of the recipe's 20 epochs"
    assert cut in " ".join(short.sentences())
    assert "of the recipe's" not in " ".join(full.sentences())


def test_epochs_are_cut_last_and_not_below_a_quarter():
    config = replace(TINY, epochs=8)
    sections = sections_of(*"AB")

    def plan(hours):
        return make_plan(sections, config, speed=SPEED, by="section", reason="", hours=hours)

    shorter = plan(0.3 * plan(1).total_seconds / 3600)
    assert shorter.seeds == 1
    assert 2 <= shorter.epochs < 8
    with pytest.raises(InputError, match=r"--hours .* shortest study takes about .*--preset small"):
        plan(0.0001)


def test_fewer_epochs_shorten_the_trainings_only():
    config = replace(TINY, epochs=8)
    sections = sections_of(*"AB")
    options = {"speed": SPEED, "by": "section", "reason": ""}
    full = make_plan(sections, config, **options)
    short = make_plan(sections, config, **options, hours=0.3 * full.total_seconds / 3600)
    assert short.epochs < full.epochs and short.seconds_of_cache == full.seconds_of_cache
    assert short.total_seconds <= 0.3 * full.total_seconds


def test_a_plan_survives_json_and_says_what_it_costs(tmp_path):
    plan = planned(sections_of(*"AAAA"))
    (tmp_path / "plan.json").write_text(json.dumps(asdict(plan)))
    assert read(tmp_path / "plan.json", Plan) == plan
    text = " ".join(plan.sentences())
    assert "Each of the 4 sections is held out once" in text and "GB" in text
    assert f"a gain of {plan.smallest_gain:.3f}" in text


def test_more_units_show_smaller_gains_and_one_shows_none():
    gains = [smallest_gain(n, test_to_train=1 / (n - 1)) for n in (2, 4, 8, 16)]
    assert gains == sorted(gains, reverse=True)
    assert smallest_gain(1) is None


def test_the_smallest_gain_shows_in_eight_of_ten_studies():
    from seal_lite.evaluation.statistics import t_interval

    rng = np.random.default_rng(0)
    gain = smallest_gain(6, sd=0.02)
    studies = gain + 0.02 * rng.standard_normal((4000, 6))
    power = np.mean([t_interval(units)[0] > 0 for units in studies])
    assert 0.77 <= power <= 0.83
