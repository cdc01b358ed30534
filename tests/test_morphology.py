"""What is left of the tissue in an embedding."""

import numpy as np
import pytest

from seal_lite.morphology import effective_rank, morphology, region_accuracy


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
