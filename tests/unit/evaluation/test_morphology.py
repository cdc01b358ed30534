"""What is left of the tissue in an embedding."""

import numpy as np
import pytest

from seal_lite.evaluation.morphology import (
    effective_rank,
    morphology,
    region_accuracy,
    robustness_index,
)


def test_effective_rank_counts_directions():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((50, 50)))[0]
    for rank in (1, 5, 20):
        flat = np.linalg.qr(rng.standard_normal((400, rank)))[0]
        x = (flat - flat.mean(0)) @ basis[:rank]
        assert effective_rank(7.0 * x + 3.0) == pytest.approx(rank, rel=0.02)
    decaying = rng.standard_normal((400, 50)) * 0.5 ** np.arange(50)
    assert 2 < effective_rank(decaying) < 5


def test_region_accuracy_is_balanced_and_reads_only_what_is_there():
    rng = np.random.default_rng(0)
    regions = np.repeat(["tumour", "stroma"], [180, 20])
    x = rng.standard_normal((200, 6))
    x[:, 0] += 8 * (regions == "tumour")
    assert region_accuracy(x, regions, x, regions) == 1.0
    noise = rng.standard_normal((2, 200, 6))
    assert region_accuracy(noise[0], regions, noise[1], regions) == pytest.approx(0.5, abs=0.1)


def test_morphology_has_regions_on_the_phantom_only(phantom_root, sections):
    x = {"colour": [s.patches.reshape(len(s.rows), -1)[:, ::997].astype(float) for s in sections]}
    found = morphology(phantom_root, sections[:1], sections[1:], x)["colour"]
    assert set(found) == {"effective_rank", "region_accuracy"} and 1 < found["effective_rank"]
    assert set(morphology("elsewhere", sections[:1], sections[1:], x)["colour"]) == {
        "effective_rank"
    }


def test_robustness_index_tells_biology_from_the_slide():
    rng = np.random.default_rng(0)
    biology, source = np.repeat(["tumour", "stroma"], 100), np.tile(["A", "B"], 100)
    codes = {kind: 9.0 * rng.standard_normal(8) for kind in ("tumour", "stroma", "A", "B")}

    def rows(labels):
        return np.stack([codes[label] for label in labels]) + rng.standard_normal((200, 8))

    assert robustness_index(rows(biology), biology, source) == 1.0
    assert robustness_index(rows(source), biology, source) == 0.0
    noise = robustness_index(rng.standard_normal((200, 8)), biology, source)
    assert noise == pytest.approx(0.5, abs=0.05)


def test_robustness_index_does_not_see_how_common_a_class_is():
    """Noise that is mostly tumour has mostly tumour for neighbours, which is no biology."""
    rng = np.random.default_rng(0)
    biology = np.where(rng.random(2000) < 0.9, "tumour", "stroma")
    source = np.where(rng.random(2000) < 0.5, "A", "B")
    found = robustness_index(rng.standard_normal((2000, 8)), biology, source)
    assert found == pytest.approx(0.5, abs=0.05)
    assert np.isnan(robustness_index(rng.standard_normal((2000, 8)), biology, biology))
