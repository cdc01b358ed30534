"""Scores of slide-level tasks: metrics as the libraries have them, differences paired."""

from functools import partial

import numpy as np
import pytest
from made import CASES, NAMES, STATUS

DRAWS = 10
SAMPLES = 25


@pytest.fixture(scope="module")
def measure():
    from seal_lite.slides.bench import measure

    return measure


@pytest.mark.parametrize("classes", [2, 3])
def test_classifications_are_measured_as_by_scikit_learn(measure, classes):
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    rng = np.random.default_rng(0)
    y = rng.integers(classes, size=(DRAWS, SAMPLES))
    scores = rng.integers(1, 5, (DRAWS, SAMPLES, classes)) + np.eye(classes)[y]  # with ties
    predicted = scores / scores.sum(2, keepdims=True)
    metrics = measure(y, predicted, kind="classification")
    for i in range(DRAWS):
        positive = predicted[i][:, 1] if classes == 2 else predicted[i]
        auc = roc_auc_score(y[i], positive, multi_class="ovr", average="macro")
        balanced = balanced_accuracy_score(y[i], predicted[i].argmax(1))
        assert metrics["auc"][i] == pytest.approx(auc)
        assert metrics["balanced_accuracy"][i] == pytest.approx(balanced)


def test_a_draw_of_one_class_has_no_score(measure):
    metrics = measure(np.zeros((1, 5), int), np.full((1, 5, 2), 0.5), kind="classification")
    assert np.isnan(metrics["auc"]).all()
    assert np.isnan(metrics["balanced_accuracy"]).all()


def test_regressions_are_measured_as_by_scipy(measure):
    from scipy.stats import pearsonr, spearmanr

    rng = np.random.default_rng(0)
    y, predicted = rng.integers(6, size=(2, DRAWS, SAMPLES)).astype(float)
    metrics = measure(y, predicted, kind="regression")
    for i in range(DRAWS):
        assert metrics["pearson"][i] == pytest.approx(pearsonr(y[i], predicted[i]).statistic)
        assert metrics["spearman"][i] == pytest.approx(spearmanr(y[i], predicted[i]).statistic)


def test_survival_is_measured_as_by_lifelines(measure):
    from lifelines.utils import concordance_index

    rng = np.random.default_rng(0)
    days = rng.exponential(10, (DRAWS, SAMPLES))
    event = rng.random((DRAWS, SAMPLES)) < 0.5
    risk = rng.standard_normal((DRAWS, SAMPLES))
    metrics = measure(np.stack([days, event], -1), risk, kind="survival")
    for i in range(DRAWS):
        assert metrics["c_index"][i] == concordance_index(days[i], -risk[i], event[i])
    nobody_died = np.stack([days, np.zeros_like(days)], -1)
    assert np.isnan(measure(nobody_died, risk, kind="survival")["c_index"]).all()


def separable_task(absent_in):
    """Three classes, each at its own place; the first fold's train or test half lacks one."""
    from seal_lite.slides.tasks import SlideTask

    y = np.tile([0, 1, 2], 12)
    half = np.arange(len(y)) % 2 == 0
    train, test = np.flatnonzero(half), np.flatnonzero(~half)
    halves = {"train": train, "test": test}
    lacking, absent = absent_in
    halves[lacking] = halves[lacking][y[halves[lacking]] != absent]
    slides = {f"c{i}": [f"c{i}"] for i in range(len(y))}
    folds = [(halves["train"], halves["test"])]
    task = SlideTask("t", "classification", slides, y, ["a", "b", "c"], folds)
    rng = np.random.default_rng(0)
    bags = [8 * np.eye(3)[k] + rng.standard_normal((6, 3)) for k in y]
    return task, [bag.astype("f4") for bag in bags]


@pytest.mark.parametrize("model", ["mean", "abmil"])
@pytest.mark.parametrize("absent", [0, 1, 2])
@pytest.mark.parametrize("half", ["train", "test"])
def test_a_class_that_a_half_lacks_leaves_the_scores_of_the_others(half, absent, model):
    """Columns of probabilities keep their classes. The data separate all, so r is 1."""
    from sklearn.metrics import roc_auc_score

    from seal_lite.slides import bench
    from seal_lite.slides.mil import MODELS, abmil

    task, bags = separable_task((half, absent))
    fit = partial(abmil, epochs=20) if model == "abmil" else MODELS[model]
    (predicted,) = bench._predict_folds(fit, task, bags, seeds=1)
    ((_, test),) = task.folds
    y = task.y[test]
    assert np.isnan(predicted[:, absent]).all() == (half == "train")
    metrics = bench.measure(y[None], predicted[None], kind="classification")
    others = [k for k in range(3) if k != absent]
    aucs = [roc_auc_score(y == k, predicted[:, k]) for k in others]
    recalls = [(np.nanargmax(predicted[y == k], axis=1) == k).mean() for k in others]
    assert metrics["auc"][0] == pytest.approx(np.mean(aucs))
    assert metrics["balanced_accuracy"][0] == pytest.approx(np.mean(recalls))
    if model == "mean":
        assert metrics["balanced_accuracy"][0] == 1
    if half == "test":
        assert metrics["auc"][0] > 0.9


def test_a_class_with_one_training_sample_is_still_predicted():
    from seal_lite.slides.mil import mean_pool

    y = np.array([0] * 6 + [1] * 6 + [2])
    bags = [10 * np.eye(3)[k][None].astype("f4") for k in y]
    predicted = mean_pool(bags, y, bags, kind="classification")
    np.testing.assert_array_equal(predicted.argmax(1), y)


@pytest.fixture
def result(write_task, monkeypatch):
    from seal_lite.slides.bench import score_bags
    from seal_lite.slides.mil import MODELS, abmil
    from seal_lite.slides.tasks import read_bags, read_slide_task

    monkeypatch.setitem(MODELS, "abmil", partial(abmil, epochs=5))
    folder, features = write_task(STATUS, NAMES, shift=3.0)
    task = read_slide_task(folder)
    bags = read_bags(task, features)
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal(bag.shape).astype("f4") for bag in bags]
    return score_bags(task, {"frozen": noise, "tuned": bags, "same": noise}, seeds=1, repeats=100)


def test_differences_are_paired_and_better_features_win(result):
    assert (result["samples"], result["folds"], result["kind"]) == (CASES, 2, "classification")
    pairs = dict.fromkeys((row["of"], row["minus"]) for row in result["delta"])
    assert list(pairs) == [("tuned", "frozen"), ("same", "frozen"), ("same", "tuned")]
    scores = {(row["features"], row["model"], row["metric"]): row for row in result["scores"]}
    to_frozen = [row for row in result["delta"] if row["minus"] == "frozen"]
    for row in to_frozen:
        score = scores[row["of"], row["model"], row["metric"]]
        reference = scores["frozen", row["model"], row["metric"]]
        assert row["mean"] == pytest.approx(score["mean"] - reference["mean"], abs=2e-4)
        low, high = score["ci95"]
        assert low <= score["mean"] <= high
        if row["of"] == "same":  # the same features, the same draws
            assert row["ci95"] == [0, 0]
    (win,) = (
        row
        for row in to_frozen
        if (row["of"], row["model"], row["metric"]) == ("tuned", "mean", "auc")
    )
    assert win["ci95"][0] > 0
