"""Exact search, and recall with chance beside it."""

from types import SimpleNamespace

import numpy as np
import pytest

from seal_lite.encoders.embedding import embed_patches
from seal_lite.errors import InputError
from seal_lite.evaluation.retrieval import (
    cross_modal,
    gene_set_profile,
    gene_set_scores,
    recall,
    retrieval_scores,
    search,
    shared_space,
)


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


def test_search_goes_through_the_gallery_in_parts(monkeypatch):
    queries, gallery = unit(4).astype("f4"), unit(50, seed=1).astype("f4")
    whole = search(queries, gallery, top=7)
    monkeypatch.setattr(retrieval, "CHUNK", 8)
    np.testing.assert_array_equal(search(queries, gallery, top=7)[0], whole[0])


def test_equal_regions_come_in_their_order():
    gallery = np.repeat(unit(2), 3, axis=0)
    hits, _ = search(gallery[3:4], gallery, top=6)
    assert list(hits[0]) == [3, 4, 5, 0, 1, 2]


def test_recall_is_brute_force():
    queries, gallery = unit(60), unit(60, seed=1)
    rank = [1 + sum(q @ g > q @ gallery[i] for g in gallery) for i, q in enumerate(queries)]
    found = recall(queries @ gallery.T, range(60), at=(1, 7))
    assert found["recall@1"] == np.mean([r <= 1 for r in rank])
    assert found["recall@7"] == np.mean([r <= 7 for r in rank])
    assert found["median_rank"] == np.median(rank) and found["n"] == 60
    assert found["chance@7"] == 7 / 60
    assert recall(queries[:3] @ gallery[:3].T, range(3))["chance@5"] == 1.0


def test_recall_of_the_identity_is_one_and_of_a_collapse_is_chance():
    """Ties share the middle rank: an encoder that maps all to one point must not look perfect."""
    x, own = unit(41), np.arange(41)
    assert recall(x @ x.T, own)["recall@1"] == 1.0 and recall(x @ x.T, own)["median_rank"] == 1
    collapsed = recall(np.ones((41, 41)), own)
    assert collapsed["recall@10"] == 0.0 and collapsed["median_rank"] == 21


@pytest.fixture
def space():
    """Two patients, the first with two slides, and embeddings that follow expression loosely."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((60, 9)).astype("f4")
    near = [z + 0.5 * rng.standard_normal(z.shape) for _ in range(2)]
    genes, images = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in near)
    slide, patient = np.repeat(["A1", "A2", "B1"], 20), np.repeat(["A", "B"], [40, 20])
    return {"genes": genes, "images": images, "expression": z, "slide": slide, "patient": patient}


def test_cross_modal_is_brute_force(space):
    rows = {(r["slide"], r["direction"], r["scope"]): r for r in cross_modal(space, top=5)}
    assert {k[2] for k in rows if k[0] == "A2"} == {
        "slide",
        "other slides",
        "other patients",
        "all",
    }
    assert {k[2] for k in rows if k[0] == "B1"} == {"slide", "other patients", "all"}
    r = np.corrcoef(space["expression"])
    galleries = {
        "slide": range(20, 40),
        "other slides": range(20),
        "other patients": range(40, 60),
        "all": range(60),
    }
    for scope, gallery in galleries.items():
        row = rows["A2", "images to genes", scope]
        found, best, chance = [], [], []
        for q in range(20, 40):
            others = [i for i in gallery if i != q]
            close = sorted(others, key=lambda i: -space["images"][q] @ space["genes"][i])  # noqa: B023
            found += [r[q, i] for i in close[:5]]
            best += sorted(r[q, others])[-5:]
            chance += list(r[q, others])
        expected = (np.mean(found), np.mean(chance), np.mean(best))
        assert (row["found"], row["random"], row["oracle"]) == pytest.approx(expected, abs=1e-5)
    own = np.arange(20)
    alone = recall(space["images"][20:40] @ space["genes"][20:40].T, own)
    assert rows["A2", "images to genes", "slide"].items() >= alone.items()
    assert "recall@1" not in rows["A2", "images to genes", "other slides"]
    assert rows["A2", "genes to images", "all"]["n"] == 60


def test_gene_sets_ask_every_slide(trained, sections):
    _, model, _ = trained
    embeddings = [embed_patches(model.encoder, s.patches) for s in sections]
    space = shared_space(model, sections, embeddings)
    sets = {"two": list(model.panel.genes[:2]), "one": [model.panel.genes[4]]}
    rows = gene_set_scores(model, space, sets, top=5)
    assert [(r["set"], r["slide"]) for r in rows] == [(s, n) for s in sets for n in ("PA1", "PB1")]
    for row in rows:
        assert row["random"] <= row["oracle"] and row["found"] <= row["oracle"]
        assert abs(row["random"]) < 0.3  # z-scored within the slide


def test_gene_set_profile():
    panel = SimpleNamespace(genes=("A", "B", "C"))
    np.testing.assert_array_equal(gene_set_profile(panel, ["C", "A"], z=2.0), [[2.0, 0.0, 2.0]])
    with pytest.raises(InputError, match="D"):
        gene_set_profile(panel, ["A", "D"])


def test_model_is_asked_with_the_spots_own_profiles(trained, sections):
    _, model, _ = trained
    section = sections[1]
    e = embed_patches(model.encoder, section.patches)
    own = model.encode_genes(model.panel.transform(section.adata)[section.rows])
    expected = recall(own @ model.project_images(e).T, range(len(own)))
    assert retrieval_scores(model, section, e) == expected
