"""Models of bags: they learn a label that is in the features, and none that is not."""

import tracemalloc
from functools import partial

import numpy as np
import pytest

N_TRAIN = 40


@pytest.fixture(params=["mean", "abmil"])
def model(request):
    from seal_lite.slides.mil import MODELS

    fit = MODELS[request.param]
    return partial(fit, epochs=40) if request.param == "abmil" else fit


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(0).standard_normal(60)


@pytest.fixture(scope="module")
def bags(values):
    """Bags of 8 patches whose first feature is around the value."""
    rng = np.random.default_rng(1)
    return [
        rng.standard_normal((8, 3)).astype("f4") + np.float32([value, 0, 0]) for value in values
    ]


def fit_and_measure(model, bags, y, kind, **options):
    """The metrics of a model on the last bags, trained on the first `N_TRAIN`."""
    from seal_lite.slides.bench import measure

    train, test = slice(N_TRAIN), slice(N_TRAIN, None)
    predicted = model(bags[train], y[train], bags[test], kind=kind, **options)
    metrics = measure(y[test][None], predicted[None], kind=kind)
    return {name: values.item() for name, values in metrics.items()}


def test_a_value_in_the_features_is_learnt(model, bags, values):
    assert fit_and_measure(model, bags, values, "regression")["pearson"] > 0.8


@pytest.mark.parametrize("thresholds", [[0.0], [-0.5, 0.5]], ids=["two classes", "three classes"])
def test_classes_in_the_features_are_learnt(model, thresholds, bags, values):
    y = np.digitize(values, thresholds)
    assert fit_and_measure(model, bags, y, "classification")["auc"] > 0.75


def test_probabilities_of_classes_sum_to_one(model, bags, values):
    y = np.digitize(values, [-0.5, 0.5])
    predicted = model(bags[:N_TRAIN], y[:N_TRAIN], bags[N_TRAIN:], kind="classification")
    assert predicted.shape == (20, 3)
    np.testing.assert_allclose(predicted.sum(1), 1, rtol=1e-6)


def test_shuffled_labels_are_not_predicted(model, bags):
    rng = np.random.default_rng(2)
    half = np.arange(60) % 2
    aucs = []
    for _ in range(4):
        metrics = fit_and_measure(model, bags, rng.permutation(half), "classification")
        aucs.append(metrics["auc"])
    assert abs(np.mean(aucs) - 0.5) < 0.2


def test_a_hazard_in_the_features_is_learnt(model, bags, values):
    rng = np.random.default_rng(3)
    death = rng.exponential(100 * np.exp(-2 * values))
    censored = rng.uniform(50, 400, 60)
    y = np.column_stack([np.minimum(death, censored), death <= censored])
    assert fit_and_measure(model, bags, y, "survival")["c_index"] > 0.7


def test_a_seed_gives_the_same_bits_and_another_does_not(bags, values):
    from seal_lite.slides.mil import abmil

    first = fit_and_measure(abmil, bags, values, "regression", seed=1, epochs=5)
    again = fit_and_measure(abmil, bags, values, "regression", seed=1, epochs=5)
    other = fit_and_measure(abmil, bags, values, "regression", seed=2, epochs=5)
    assert first == again != other


def test_patches_are_scaled_by_those_of_all_training_bags():
    from sklearn.preprocessing import StandardScaler

    from seal_lite.slides.mil import PatchScale

    rng = np.random.default_rng(4)
    bags = [rng.normal(9, 2, (n, 5)).astype("f4") for n in (1, 30, 400)]
    expected = StandardScaler().fit(np.concatenate(bags)).transform(bags[1])
    np.testing.assert_allclose(PatchScale.of(bags).standardise(bags[1]), expected, atol=1e-6)


def test_the_patches_of_all_bags_are_never_copied_at_once():
    """300 slides of 10,000 patches are 18 GB a copy."""
    from seal_lite.slides.mil import abmil

    rng = np.random.default_rng(5)
    bags = [rng.standard_normal((2000, 32), np.float32) for _ in range(40)]
    y = rng.standard_normal(40)
    abmil(bags[:2], y[:2], bags[:1], kind="regression", epochs=1)  # imports
    tracemalloc.start()
    abmil(bags, y, bags[:2], kind="regression", epochs=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < sum(bag.nbytes for bag in bags) / 2


def test_cox_loss_is_the_partial_likelihood_of_lifelines():
    import pandas as pd
    import torch
    from lifelines import CoxPHFitter

    from seal_lite.slides.mil import cox_loss

    rng = np.random.default_rng(0)
    x = rng.standard_normal(30)
    days = rng.permutation(30) + 1.0
    event = rng.random(30) < 0.7
    frame = pd.DataFrame({"x": x, "days": days, "event": event})
    fitted = CoxPHFitter().fit(frame, "days", "event")
    risk = torch.from_numpy(x * fitted.params_["x"])
    loss = cox_loss(risk, torch.from_numpy(np.column_stack([days, event])))
    assert loss.item() * event.sum() == pytest.approx(-fitted.log_likelihood_, rel=1e-6)
