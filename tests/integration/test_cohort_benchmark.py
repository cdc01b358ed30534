"""benchmarks/cohort.py: its power calculation, and the whole of it at a tiny size."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from helpers import TINY

Z95 = 1.959964


def test_so_many_patients_show_the_gain_in_eight_of_ten_studies():
    from cohort import patients_needed

    # A gain of 0.1 with a standard error of 0.05 on 60 patients: sd 0.387, and by the normal
    # distribution (1.960 + 0.842)^2 (0.387 / 0.1)^2 = 118 patients. Student's t adds two.
    ci95 = [0.1 - Z95 * 0.05, 0.1 + Z95 * 0.05]
    needed = patients_needed(0.1, ci95, 60)
    assert needed == pytest.approx(118, abs=3)

    from seal_lite.evaluation.statistics import t_interval

    rng = np.random.default_rng(0)
    studies = 0.1 + 0.05 * 60**0.5 * rng.standard_normal((4000, needed))
    power = np.mean([t_interval(patients)[0] > 0 for patients in studies])
    assert power == pytest.approx(0.8, abs=0.03)


def test_half_the_gain_needs_four_times_as_many_patients_and_none_needs_no_number():
    from cohort import patients_needed

    whole = patients_needed(0.2, [0.0, 0.4], 60)
    half = patients_needed(0.1, [-0.1, 0.3], 60)
    assert half == pytest.approx(4 * whole, rel=0.03)
    assert patients_needed(0.0, [-0.2, 0.2], 60) is None
    assert patients_needed(-0.1, [-0.3, 0.1], 60) is None


def test_the_cohort_shows_every_gain_unless_it_would_be_too_large():
    from cohort import cohort_size

    assert cohort_size([19, 131, None], 200) == 132  # half of the patients are mutated
    assert cohort_size([19, 548], 200) == 200
    assert cohort_size([4], 200) == 20
    assert cohort_size([None], 200) == 200


def test_each_seed_has_the_rows_of_its_own_encoders():
    from cohort import of_seed

    names = ["frozen", "shuffled-0", "tuned-0", "shuffled-1", "tuned-1", "oracle"]
    scores = [{"features": name, "mean": i} for i, name in enumerate(names)]
    delta = [
        {"of": of, "minus": minus, "mean": (i, j)}
        for i, of in enumerate(names)
        for j, minus in enumerate(names[:i])
    ]
    row = of_seed({"task": "mutation", "scores": scores, "delta": delta}, 1)
    assert row["seed"] == 1 and row["task"] == "mutation"
    assert {r["features"]: r["mean"] for r in row["scores"]} == {
        "frozen": 0,
        "shuffled": 3,
        "tuned": 4,
        "oracle": 5,
    }
    gaps = {(r["of"], r["minus"]): r["mean"] for r in row["delta"]}
    assert gaps["tuned", "shuffled"] == (4, 3) and gaps["oracle", "tuned"] == (5, 4)
    assert len(gaps) == 6


def test_the_whole_benchmark_runs_and_resumes(tmp_path, monkeypatch):
    import cohort
    from seal_lite.data.phantom import slide_cohort
    from seal_lite.slides.mil import MODELS

    for module in (cohort, slide_cohort):
        monkeypatch.setattr(module, "UM_PER_PX", 2.0)  # slides of a sixteenth of the pixels
    monkeypatch.delitem(MODELS, "abmil")  # a hundred fits
    monkeypatch.setattr(cohort, "score_bags", functools.partial(cohort.score_bags, repeats=20))
    design = cohort.Design(
        config=dataclasses.replace(TINY, backbone="test_vit", patch_px=160),
        seeds=1,
        train_patients=2,
        train_spots=30,
        pilot_patients=20,
        most_patients=20,
        slide_spots=9,
    )
    benchmark = cohort.Benchmark(tmp_path, design)
    result = benchmark.measure()
    assert result["cohort"]["patients"] == result["power"]["patients"] == 20
    assert {row["task"] for row in result["power"]["rows"]} == set(cohort.MAIN_METRIC)
    assert result["slides"] == 25
    assert {row["task"] for row in result["results"]} == set(cohort.MAIN_METRIC)
    kinds = {row["features"] for row in result["results"][0]["scores"]}
    assert kinds == {"frozen", "shuffled", "tuned", "oracle"}
    assert result["seconds"] > 0

    for work in ("draw_cohort", "embed_with", "score_with"):  # a finished step is not run again
        monkeypatch.setattr(cohort.Benchmark, work, pytest.fail)
    monkeypatch.setattr(cohort, "finetune", pytest.fail)
    assert json.dumps(benchmark.measure(), default=float) == json.dumps(result, default=float)
