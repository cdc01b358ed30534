"""Slide-level tasks: read as published, scored honestly, wrong input named."""

from functools import partial

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from lifelines import CoxPHFitter
from lifelines.utils import concordance_index
from made import CASES as N
from made import NAMES, STATUS, write_slide_task
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from seal_lite import InputError
from seal_lite.slides.bench import measure, score_bags
from seal_lite.slides.mil import MODELS, abmil, cox_loss, mean_pool
from seal_lite.slides.tasks import read_bags, read_slide_task


@pytest.fixture
def task(tmp_path):
    """A function that writes a task with its features: `write_slide_task`."""
    return partial(write_slide_task, tmp_path)


def one(kind, y, predicted):
    """`measure` of one sample, without draws."""
    return {k: v[0] for k, v in measure(kind, y[None], predicted[None]).items()}


def test_a_task_is_read_and_slides_are_fused_early(task):
    root, features = task(STATUS, NAMES)
    found = read_slide_task(root)
    assert (found.kind, found.classes, len(found.slides)) == (
        "classification",
        ["mutant", "wildtype"],
        N,
    )
    assert found.slides["c3"] == ["c3_0", "c3_1"] and list(found.y[:4]) == [1, 1, 0, 0]
    train, test = found.folds[0]
    assert list(train) == list(range(1, N, 2)) and list(test) == list(range(0, N, 2))
    bags = read_bags(found, features)
    assert [len(b) for b in bags[:4]] == [10, 10, 10, 20]
    with h5py.File(features / "c3_1.h5") as file:
        np.testing.assert_array_equal(bags[3][10:], np.squeeze(file["features"][:]))


def test_without_folds_cases_are_dealt_and_never_split(task):
    root, _ = task(STATUS, NAMES, sample="slide_id", folds=False)
    found = read_slide_task(root)
    case = np.array([s.split("_")[0] for s in found.slides])
    assert len(found.folds) == 5 and len(found.slides) == N + N // 4
    for train, test in found.folds:
        assert not set(case[train]) & set(case[test]) and len(set(found.y[test])) == 2
    assert sorted(np.concatenate([test for _, test in found.folds])) == list(range(len(case)))


@pytest.mark.parametrize("model", list(MODELS))
def test_a_label_in_the_features_is_found_and_no_label_is_not(task, model):
    root, features = task(STATUS, NAMES, shift=6.0)
    found = read_slide_task(root)
    bags, (train, test) = read_bags(found, features), found.folds[0]

    def auc(y):
        p = MODELS[model]([bags[i] for i in train], y[train], [bags[i] for i in test], found.kind)
        assert p.shape == (len(test), 2)
        np.testing.assert_allclose(p.sum(1), 1, rtol=1e-6)
        return one(found.kind, y[test], p)["auc"]

    assert auc(found.y) > 0.95
    rng = np.random.default_rng(1)
    assert abs(np.mean([auc(rng.permutation(found.y)) for _ in range(6)]) - 0.5) < 0.2


def test_values_and_three_classes_are_learnt_too():
    rng = np.random.default_rng(0)
    y = rng.standard_normal(60)
    bags = [rng.standard_normal((8, 3)).astype("f4") + [v, 0, 0] for v in y]
    for model in (mean_pool, abmil):
        found = model(bags[:40], y[:40], bags[40:], "regression")
        assert one("regression", y[40:], found)["pearson"] > 0.8
    three = np.digitize(y, [-0.5, 0.5])
    found = abmil(bags[:40], three[:40], bags[40:], "classification")
    assert found.shape == (20, 3) and one("classification", three[40:], found)["auc"] > 0.75


def test_every_draw_is_measured_as_the_libraries_do():
    rng = np.random.default_rng(0)
    for classes in (2, 3):
        y = rng.integers(classes, size=(20, 25))
        p = rng.integers(1, 5, (20, 25, classes)) + np.eye(classes)[y]  # with ties
        p = p / p.sum(2, keepdims=True)
        found = measure("classification", y, p)
        for i in range(20):
            score = p[i][:, 1] if classes == 2 else p[i]
            auc = roc_auc_score(y[i], score, multi_class="ovr", average="macro")
            assert found["auc"][i] == pytest.approx(auc)
            balanced = balanced_accuracy_score(y[i], p[i].argmax(1))
            assert found["balanced_accuracy"][i] == pytest.approx(balanced)
    one_class = measure("classification", np.zeros((1, 5), int), np.full((1, 5, 2), 0.5))
    assert np.isnan([*one_class.values()]).all()
    y, p = rng.integers(6, size=(2, 20, 25)).astype(float)
    found = measure("regression", y, p)
    for i in range(20):
        assert found["pearson"][i] == pytest.approx(pearsonr(y[i], p[i]).statistic)
        assert found["spearman"][i] == pytest.approx(spearmanr(y[i], p[i]).statistic)


def test_survival_is_learnt_and_measured_by_concordance():
    rng = np.random.default_rng(0)
    risk = rng.standard_normal(80)
    days, end = rng.exponential(100 * np.exp(-2 * risk)), rng.uniform(50, 400, 80)
    y = np.c_[np.minimum(days, end), days <= end]
    bags = [rng.standard_normal((6, 3)).astype("f4") * 0.3 + [r, 0, 0] for r in risk]
    for model in (mean_pool, abmil):
        found = model(bags[:60], y[:60], bags[60:], "survival")
        c = one("survival", y[60:], found)["c_index"]
        assert c == concordance_index(y[60:, 0], -found, y[60:, 1]) and c > 0.7


def test_cox_loss_is_that_of_lifelines():
    rng = np.random.default_rng(0)
    x, days, event = rng.standard_normal(30), rng.permutation(30) + 1.0, rng.random(30) < 0.7
    frame = pd.DataFrame({"x": x, "days": days, "event": event})
    fitted = CoxPHFitter().fit(frame, "days", "event")
    risk = torch.from_numpy(x * fitted.params_["x"])
    ours = cox_loss(risk, torch.from_numpy(np.c_[days, event].astype(float)))
    assert ours.item() * event.sum() == pytest.approx(-fitted.log_likelihood_, rel=1e-6)


def test_differences_are_paired_and_better_features_win(task):
    root, features = task(STATUS, NAMES, shift=3.0)
    found = read_slide_task(root)
    bags = read_bags(found, features)
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal(b.shape).astype("f4") for b in bags]
    result = score_bags(
        found, {"frozen": noise, "tuned": bags, "same": noise}, seeds=1, repeats=200
    )
    assert (result["samples"], result["folds"], result["kind"]) == (N, 2, "classification")
    pairs = [("tuned", "frozen"), ("same", "frozen"), ("same", "tuned")]
    assert list(dict.fromkeys((d["of"], d["minus"]) for d in result["delta"])) == pairs
    delta = {
        (d["of"], d["model"], d["metric"]): d for d in result["delta"] if d["minus"] == "frozen"
    }
    assert delta["tuned", "mean", "auc"]["ci95"][0] > 0
    assert delta["same", "abmil", "auc"]["ci95"] == [0, 0]  # the same draws for both
    scores = {(s["features"], s["model"], s["metric"]): s for s in result["scores"]}
    for (of, model, metric), d in delta.items():
        gap = scores[of, model, metric]["mean"] - scores["frozen", model, metric]["mean"]
        assert d["mean"] == pytest.approx(gap, abs=2e-4)
        low, high = scores[of, model, metric]["ci95"]
        assert low <= scores[of, model, metric]["mean"] <= high


FAULTS = {
    "no label": ("k=all.tsv", lambda t: t.replace("status", "other"), "column status is missing"),
    "two labels": ("k=all.tsv", lambda t: t.replace("c3_1\tmutant", "c3_1\twild"), "c3 has two"),
    "one class": ("k=all.tsv", lambda t: t.replace("wildtype", "mutant"), "fold 0 .* one class"),
    "no table": ("k=all.tsv", None, "is no task"),
    "no sample column": ("config.yaml", lambda t: t.replace("sample_col", "x"), "sample_col"),
    "no number": (
        "config.yaml",
        lambda t: t.split("label_dict")[0] + t[t.index("sample_col") :],
        "no number",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_task_is_one_sentence(task, fault):
    root, _ = task(STATUS, NAMES)
    file, damage, said = FAULTS[fault]
    if damage is None:
        (root / file).unlink()
    else:
        (root / file).write_text(damage((root / file).read_text()))
    with pytest.raises(InputError, match=said):
        read_slide_task(root)


def test_a_case_on_both_sides_and_lost_features_are_named(task):
    root, features = task(STATUS, NAMES, sample="slide_id")
    text = (root / "k=all.tsv").read_text().splitlines()
    row = next(i for i, line in enumerate(text) if "c3_1" in line)
    text[row] = text[row].replace("train\ttest", "test\ttrain")
    (root / "k=all.tsv").write_text("\n".join(text))
    with pytest.raises(InputError, match="case c3 is on both sides of fold 0"):
        read_slide_task(root)
    root, features = task(STATUS, NAMES)
    (features / "c7_0.h5").unlink()
    with pytest.raises(InputError, match="c7_0.h5"):
        read_bags(read_slide_task(root), features)
