"""What is left of the tissue in an embedding."""

from types import SimpleNamespace

import numpy as np
import pytest
from tiny_sections import make_section

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


def test_region_accuracy_is_balanced_and_chance_on_noise():
    rng = np.random.default_rng(0)
    regions = np.repeat(["tumour", "stroma"], [180, 20])
    x = rng.standard_normal((200, 6))
    x[:, 0] += 8 * (regions == "tumour")
    assert region_accuracy(x, regions, test_x=x, test_regions=regions) == 1.0
    train_x, test_x = rng.standard_normal((2, 200, 6))
    accuracy = region_accuracy(train_x, regions, test_x=test_x, test_regions=regions)
    assert accuracy == pytest.approx(0.5, abs=0.1)


def test_morphology_scores_test_sections_with_their_own_regions():
    """Regions that the embedding holds are read with an accuracy of 1 on the held-out section."""
    sections = [make_section("A1", seed=0), make_section("B1", seed=1)]
    rng = np.random.default_rng(0)
    regions = {s.name: rng.permutation(np.repeat(["tumour", "stroma"], 8)) for s in sections}
    truth = SimpleNamespace(regions=lambda section: regions[section.name])
    informative = [5.0 * (regions[s.name] == "tumour")[:, None] for s in sections]
    noise = [rng.standard_normal((16, 4)) for _ in sections]
    features = {
        "informative": [x + 0.1 * z for x, z in zip(informative, noise, strict=True)],
        "noise": noise,
    }
    kept = morphology(sections[:1], sections[1:], features, truth=truth)
    assert set(kept["noise"]) == {"effective_rank", "region_accuracy"}  # one patient: no index
    assert kept["informative"]["region_accuracy"] == 1.0
    assert kept["noise"]["region_accuracy"] < 0.9
    assert kept["noise"]["effective_rank"] == effective_rank(noise[1])
    without_truth = morphology(sections[:1], sections[1:], features)
    assert set(without_truth["noise"]) == {"effective_rank"}


def test_robustness_index_tells_biology_from_the_source():
    rng = np.random.default_rng(0)
    biology = np.repeat(["tumour", "stroma"], 100)
    source = np.tile(["A", "B"], 100)
    codes = {label: 9.0 * rng.standard_normal(8) for label in ("tumour", "stroma", "A", "B")}

    def embed(labels):
        return np.stack([codes[label] for label in labels]) + rng.standard_normal((200, 8))

    assert robustness_index(embed(biology), biology, source) == 1.0
    assert robustness_index(embed(source), biology, source) == 0.0
    noise = robustness_index(rng.standard_normal((200, 8)), biology, source)
    assert noise == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("classes, k", [(2, 20), (3, 20), (2, 5)])
def test_robustness_index_is_the_share_of_neighbours_with_the_same_biology_only(classes, k):
    """Of balanced classes it is SO / (SO + OS), as PathoROB defines it, over all rows."""
    rng = np.random.default_rng(0)
    biology = np.repeat(np.arange(classes), 80)
    source = np.tile(["A ", "A"], 40 * classes)  # names that differ by a blank are two
    x = rng.standard_normal((len(biology), 8))
    x[:, 0] += 2.0 * biology
    x[:, 1] += 1.5 * (source == "A")
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = unit @ unit.T - 9.0 * np.eye(len(x))
    nearest = np.argsort(-cosines, axis=1)[:, :k]
    same_biology = biology[nearest] == biology[:, None]
    same_source = source[nearest] == source[:, None]
    so = (same_biology & ~same_source).sum()
    os = (~same_biology & same_source).sum()
    index = robustness_index(x, biology, source, k=k)
    assert 0.2 < index < 0.8
    assert index == pytest.approx(so / (so + os), abs=1e-12)


def test_robustness_index_of_rows_whose_neighbours_share_all_is_none():
    biology = np.repeat(["tumour", "stroma"], 40)
    source = np.tile(["A", "B"], 40)
    corners = {"tumour": 1.0, "stroma": -1.0, "A": 1.0, "B": -1.0}
    x = np.array([[corners[b], corners[s]] for b, s in zip(biology, source, strict=True)])
    assert np.isnan(robustness_index(x, biology, source, k=5))


def test_robustness_index_does_not_see_how_common_a_class_is():
    """Noise that is mostly tumour has mostly tumour for neighbours, which is no biology."""
    rng = np.random.default_rng(0)
    biology = np.where(rng.random(2000) < 0.9, "tumour", "stroma")
    source = np.where(rng.random(2000) < 0.5, "A", "B")
    noise = rng.standard_normal((2000, 8))
    assert robustness_index(noise, biology, source) == pytest.approx(0.5, abs=0.05)
    assert np.isnan(robustness_index(noise, biology, biology))
