"""Features that need no network, and the choice of the frozen encoder's best layer."""

import numpy as np
import pytest
from tiny_sections import make_patterned_section

from seal_lite.config import Config
from seal_lite.evaluation import features
from seal_lite.evaluation.features import best_feature_layer, colour_statistics, fold_features
from seal_lite.evaluation.targets import patch_targets

GENES = ["G0", "G1", "G2", "G3", "G4"]


def test_colour_statistics_are_mean_and_standard_deviation_of_each_channel():
    patches = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    pixels = patches.reshape(3, 64, 3).astype(float)
    expected = np.c_[pixels.mean(1), pixels.std(1)]
    np.testing.assert_allclose(colour_statistics(patches), expected, rtol=1e-5)


@pytest.fixture
def sections():
    return [make_patterned_section(name, seed=i) for i, name in enumerate(("A1", "B1", "C1"))]


@pytest.fixture
def layers(sections):
    """A layer that is best on A1 and B1, and one that is best on C1 and on all three together."""
    rng = np.random.default_rng(0)
    perfect = [patch_targets(s, GENES)["pearson_residuals"] for s in sections]
    noise = [rng.standard_normal(x.shape) for x in perfect]
    return {
        "good on test": [x + 2 * z for x, z in zip(perfect[:2], noise[:2], strict=True)]
        + perfect[2:],
        "good in training": perfect[:2] + noise[2:],
    }


def test_the_best_layer_is_chosen_inside_training(sections, layers):
    assert best_feature_layer(layers, sections[:2], GENES) == "good in training"
    assert best_feature_layer(layers, sections, GENES) == "good on test"


def test_a_fold_takes_the_layer_that_is_best_in_its_training(sections, layers, monkeypatch):
    def embed(embedded_sections, models, config, **_):
        assert embedded_sections == sections
        return {"frozen": layers["good on test"]}, layers

    monkeypatch.setattr(features, "embed_all", embed)
    fold = fold_features(sections[:2], sections[2:], GENES, models={}, config=Config())
    assert set(fold) == {"frozen", "frozen_best"}
    assert fold["frozen_best"] is layers["good in training"]
