"""Exact search, and recall with chance beside it."""

from types import SimpleNamespace

import numpy as np
import pytest

from seal_lite.errors import InputError
from seal_lite.evaluation import retrieval
from seal_lite.evaluation.retrieval import (
    cross_modal,
    gene_set_profile,
    gene_set_scores,
    recall,
    retrieval_scores,
    search,
    shared_space,
)


def unit_vectors(n, d=6, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# Search


def test_search_is_brute_force():
    queries, gallery = unit_vectors(4), unit_vectors(50, seed=1)
    hits, cosines = search(queries, gallery, top=7)
    ranked = np.argsort(-queries @ gallery.T, axis=1)
    np.testing.assert_array_equal(hits, ranked[:, :7])
    expected = np.take_along_axis(queries @ gallery.T, ranked[:, :7], axis=1)
    np.testing.assert_allclose(cosines, expected)
    assert search(queries, gallery, top=99)[0].shape == (4, 50)


def test_search_goes_through_the_gallery_in_parts(monkeypatch):
    queries = unit_vectors(4).astype("f4")
    gallery = unit_vectors(50, seed=1).astype("f4")
    whole, _ = search(queries, gallery, top=7)
    monkeypatch.setattr(retrieval, "CHUNK", 8)
    parts, _ = search(queries, gallery, top=7)
    np.testing.assert_array_equal(parts, whole)


def test_equal_rows_keep_the_order_of_the_gallery(monkeypatch):
    gallery = np.repeat(unit_vectors(2), 3, axis=0)
    for chunk in (6, 2):
        monkeypatch.setattr(retrieval, "CHUNK", chunk)
        hits, _ = search(gallery[3:4], gallery, top=6)
        assert list(hits[0]) == [3, 4, 5, 0, 1, 2]


# Recall


def test_recall_is_brute_force():
    queries, gallery = unit_vectors(60), unit_vectors(60, seed=1)
    similarity = queries @ gallery.T
    rank = np.array([1 + (row > row[i]).sum() for i, row in enumerate(similarity)])
    scores = recall(similarity, range(60), ranks=(1, 7))
    assert scores["recall@1"] == (rank <= 1).mean()
    assert scores["recall@7"] == (rank <= 7).mean()
    assert scores["median_rank"] == np.median(rank)
    assert scores["chance@7"] == 7 / 60
    assert scores["n"] == 60
    assert recall(similarity[:3, :3], range(3))["chance@5"] == 1.0


def test_recall_of_the_identity_is_one_and_of_a_collapse_is_chance():
    """Ties share the middle rank: an encoder that maps all to one point must not look perfect."""
    x = unit_vectors(41)
    identity = recall(x @ x.T, np.arange(41))
    assert identity["recall@1"] == 1.0
    assert identity["median_rank"] == 1
    collapsed = recall(np.ones((41, 41)), np.arange(41))
    assert collapsed["recall@10"] == 0.0
    assert collapsed["median_rank"] == 21


# Slides and patients


@pytest.fixture
def space():
    """Two patients, the first with two slides, and embeddings that follow expression loosely."""
    rng = np.random.default_rng(0)
    expression = rng.standard_normal((60, 9)).astype("f4")

    def embed():
        x = expression + 0.5 * rng.standard_normal(expression.shape)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    return {
        "genes": embed(),
        "images": embed(),
        "expression": expression,
        "slide": np.repeat(["A1", "A2", "B1"], 20),
        "patient": np.repeat(["A", "B"], [40, 20]),
    }


def test_each_slide_queries_the_scopes_that_exist(space):
    rows = cross_modal(space)
    scopes = {name: {r["scope"] for r in rows if r["slide"] == name} for name in ("A2", "B1")}
    assert scopes["A2"] == {"slide", "other slides", "other patients", "all"}
    assert scopes["B1"] == {"slide", "other patients", "all"}
    alone = {key: values[:20] for key, values in space.items()}
    assert {row["scope"] for row in cross_modal(alone)} == {"slide"}


@pytest.mark.parametrize(
    "scope, gallery",
    [
        ("slide", range(20, 40)),
        ("other slides", range(20)),
        ("other patients", range(40, 60)),
        ("all", range(60)),
    ],
)
def test_cross_modal_is_brute_force(space, scope, gallery):
    """Images of slide A2 query gene profiles; the own pair is left out."""
    r = np.corrcoef(space["expression"])
    similarity = space["images"] @ space["genes"].T
    retrieved, best, chance = [], [], []
    for query in range(20, 40):
        others = np.array([i for i in gallery if i != query])
        nearest = others[np.argsort(-similarity[query, others])]
        retrieved += list(r[query, nearest[:5]])
        best += sorted(r[query, others])[-5:]
        chance += list(r[query, others])
    rows = {(r["slide"], r["direction"], r["scope"]): r for r in cross_modal(space, top=5)}
    row = rows["A2", "images to genes", scope]
    expected = (np.mean(retrieved), np.mean(chance), np.mean(best))
    assert (row["found"], row["random"], row["oracle"]) == pytest.approx(expected, abs=1e-5)


def test_recall_stands_where_the_own_pair_is_in_the_gallery(space):
    rows = {(r["slide"], r["direction"], r["scope"]): r for r in cross_modal(space)}
    alone = recall(space["images"][20:40] @ space["genes"][20:40].T, np.arange(20))
    assert rows["A2", "images to genes", "slide"].items() >= alone.items()
    queries = space["genes"][20:40] @ space["images"].T
    assert rows["A2", "genes to images", "all"].items() >= recall(queries, range(20, 40)).items()
    assert "recall@1" not in rows["A2", "images to genes", "other slides"]


# Gene sets and models


def test_a_profile_raises_the_genes_of_the_set():
    panel = SimpleNamespace(genes=("A", "B", "C"))
    np.testing.assert_array_equal(gene_set_profile(panel, ["C", "A"], z=2.0), [[2.0, 0.0, 2.0]])
    with pytest.raises(InputError, match="D"):
        gene_set_profile(panel, ["A", "D"])


def test_a_gene_set_finds_the_patches_that_express_it(space):
    """A model whose shared space is expression itself finds the set's highest patches."""
    panel = SimpleNamespace(genes=tuple("ABCDEFGHI"))
    model = SimpleNamespace(panel=panel, encode_genes=lambda z: z / np.linalg.norm(z))
    space["images"] = space["expression"]
    rows = gene_set_scores(model, space, {"first": ["A"], "pair": ["I", "C"]}, top=5)
    assert [(r["set"], r["slide"]) for r in rows] == [
        (name, slide) for name in ("first", "pair") for slide in ("A1", "A2", "B1")
    ]
    for row in rows:
        assert row["found"] == pytest.approx(row["oracle"], abs=1e-6)
    pair = space["expression"][40:, [8, 2]].mean(1)
    assert rows[-1]["random"] == pytest.approx(pair.mean(), abs=1e-6)
    assert rows[-1]["oracle"] == pytest.approx(np.sort(pair)[-5:].mean(), abs=1e-6)


def test_a_model_is_queried_with_the_spots_own_profiles(trained, sections):
    from seal_lite.encoders.embedding import embed_patches

    _, model, _ = trained
    embeddings = [embed_patches(model.encoder, section.patches) for section in sections]
    space = shared_space(model, sections, embeddings)
    sizes = [len(section.rows) for section in sections]
    assert list(space["slide"]) == ["PA1"] * sizes[0] + ["PB1"] * sizes[1]
    assert list(space["patient"]) == ["PA"] * sizes[0] + ["PB"] * sizes[1]
    section = sections[1]
    own = model.encode_genes(model.panel.transform(section.adata)[section.rows])
    expected = recall(own @ model.project_images(embeddings[1]).T, range(len(own)))
    assert retrieval_scores(model, section, embeddings[1]) == expected
    np.testing.assert_allclose(space["genes"][sizes[0] :], own, rtol=1e-5, atol=1e-6)
