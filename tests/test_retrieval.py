"""Exact search, and recall with chance beside it."""

from types import SimpleNamespace

import numpy as np
import pytest

from seal_lite.encoders import embed
from seal_lite.errors import InputError
from seal_lite.retrieval import gene_set_profile, recall, retrieval_scores, search


def unit(n, d=6, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_search_is_brute_force():
    queries, gallery = unit(4), unit(50, seed=1)
    hits, cosines = search(queries, gallery, top=7)
    for q, at, cosine in zip(queries, hits, cosines, strict=True):
        ranked = sorted(range(50), key=lambda i: -float(q @ gallery[i]))
        assert list(at) == ranked[:7]
        np.testing.assert_allclose(cosine, gallery[at] @ q)
    assert search(queries, gallery, top=99)[0].shape == (4, 50)


def test_equal_regions_come_in_their_order():
    gallery = np.repeat(unit(2), 3, axis=0)
    hits, _ = search(gallery[3:4], gallery, top=4)
    assert list(hits[0]) == [3, 4, 5, 0]


def test_recall_is_brute_force():
    queries, gallery = unit(60), unit(60, seed=1)
    rank = [1 + sum(q @ g > q @ gallery[i] for g in gallery) for i, q in enumerate(queries)]
    found = recall(queries, gallery, at=(1, 7))
    assert found["recall@1"] == np.mean([r <= 1 for r in rank])
    assert found["recall@7"] == np.mean([r <= 7 for r in rank])
    assert found["median_rank"] == np.median(rank) and found["n"] == 60
    assert found["chance@7"] == 7 / 60 and recall(queries[:3], gallery[:3])["chance@5"] == 1.0


def test_recall_of_the_identity_is_one_and_of_a_collapse_is_chance():
    """Ties share the middle rank: an encoder that maps all to one point must not look perfect."""
    x = unit(41)
    assert recall(x, x)["recall@1"] == 1.0 and recall(x, x)["median_rank"] == 1
    collapsed = recall(np.repeat(x[:1], 41, 0), np.repeat(x[:1], 41, 0))
    assert collapsed["recall@10"] == 0.0 and collapsed["median_rank"] == 21


def test_gene_set_profile():
    panel = SimpleNamespace(genes=("A", "B", "C"))
    np.testing.assert_array_equal(gene_set_profile(panel, ["C", "A"], z=2.0), [[2.0, 0.0, 2.0]])
    with pytest.raises(InputError, match="D"):
        gene_set_profile(panel, ["A", "D"])


def test_model_is_asked_with_the_spots_own_profiles(trained, sections):
    _, model, _ = trained
    section = sections[1]
    e = embed(model.encoder, section.patches)
    own = model.encode_genes(model.panel.transform(section.adata)[section.rows])
    assert retrieval_scores(model, section, e) == recall(own, model.project_images(e))
