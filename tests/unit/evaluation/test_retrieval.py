"""Exact search, and recall with chance beside it."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from seal_lite.errors import InputError
from seal_lite.evaluation import retrieval
from seal_lite.evaluation.retrieval import (
    cross_modal,
    gene_set_profile,
    gene_set_scores,
    predict_by_retrieval,
    prediction_scores,
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


# Prediction


@pytest.fixture
def spots():
    """Embeddings of images (5, d) and spots (80, d) of any length, and expression (80, 7)."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((5, 6)) * rng.uniform(0.1, 9, (5, 1)) + 1
    profiles = rng.standard_normal((80, 6)) * rng.uniform(0.1, 9, (80, 1)) + 1
    return images, profiles, rng.standard_normal((80, 7))


def cosine(one, other):
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


@pytest.mark.parametrize("top", [1, 3, 50])
def test_bleep_is_the_plain_mean_of_the_top_spots(spots, top):
    images, profiles, expression = spots
    predicted = predict_by_retrieval(images, profiles, expression, top=top)
    for image, row in zip(images, predicted, strict=True):
        cosines = np.array([cosine(image, profile) for profile in profiles])
        nearest = np.argsort(cosines)[-top:]
        np.testing.assert_allclose(row, expression[nearest].mean(0), rtol=1e-10)


def test_fifty_spots_are_the_default_and_fewer_are_all(spots):
    images, profiles, expression = spots
    default = predict_by_retrieval(images, profiles, expression)
    np.testing.assert_array_equal(
        default, predict_by_retrieval(images, profiles, expression, top=50)
    )
    few = predict_by_retrieval(images, profiles[:20], expression[:20])
    np.testing.assert_allclose(few, np.tile(expression[:20].mean(0), (5, 1)))


@pytest.mark.parametrize("top", [None, 4, 80])
def test_loki_weights_by_cosine_over_the_sum_of_cosines(spots, top):
    images, profiles, expression = spots
    options = {"top": top, "weights": "cosine"}
    predicted = predict_by_retrieval(images, profiles, expression, **options)
    for image, row in zip(images, predicted, strict=True):
        weight = np.array([cosine(image, profile) for profile in profiles])
        if top is not None:
            weight[np.argsort(weight)[:-top]] = 0
        expected = (weight[:, None] * expression).sum(0) / weight.sum()
        np.testing.assert_allclose(row, expected, rtol=1e-8)


def test_the_softmax_of_cosines_is_that_of_the_contrast(spots):
    images, profiles, expression = spots
    options = {"top": None, "weights": "softmax", "temperature": 0.02}
    predicted = predict_by_retrieval(images, profiles, expression, **options)
    for image, row in zip(images, predicted, strict=True):
        logits = [cosine(image, profile) / 0.02 for profile in profiles]
        weight = np.exp(logits)
        np.testing.assert_allclose(row, weight @ expression / weight.sum(), rtol=1e-8)
    coldest = predict_by_retrieval(images, profiles, expression, **options | {"temperature": 1e-6})
    nearest = predict_by_retrieval(images, profiles, expression, top=1)
    np.testing.assert_allclose(coldest, nearest)


@pytest.mark.parametrize("at_once", [1, 160])
def test_images_are_predicted_in_parts_of_bounded_size(spots, monkeypatch, at_once):
    images, profiles, expression = spots
    whole = predict_by_retrieval(images, profiles, expression)
    largest = []
    weigh = retrieval._weigh

    def watched(cosines, *options):
        largest.append(cosines.size)
        return weigh(cosines, *options)

    monkeypatch.setattr(retrieval, "_weigh", watched)
    monkeypatch.setattr(retrieval, "COSINES_AT_ONCE", at_once)
    np.testing.assert_allclose(predict_by_retrieval(images, profiles, expression), whole)
    assert max(largest) == max(at_once, len(profiles))  # at least one image


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda i, s, x: (i[:, :3], s, x), {}, "3 and 6 dimensions; embed both with one model"),
        (lambda i, s, x: (i, s, x[:9]), {}, "80 spots, 9 rows of expression"),
        (lambda i, s, x: (i, s[:0], x[:0]), {}, "top=50 of 0 spots"),
        (lambda i, s, x: (i, s, x), {"top": 0}, "top=0 of 80 spots"),
        (lambda i, s, x: (i, s, x), {"weights": "nearest"}, "'nearest' is unknown"),
        (lambda i, s, x: (i, s, x), {"temperature": 0.0}, "temperature=0.0; give a number above 0"),
        (lambda i, s, x: (0 * i, s, x), {"weights": "cosine"}, "cosines sum to 0"),
    ],
)
def test_what_cannot_be_predicted_is_an_input_error(spots, change, options, message):
    with pytest.raises(InputError, match=message):
        predict_by_retrieval(*change(*spots), **options)


def test_slides_are_predicted_from_the_others_alone():
    """Embeddings hold the expression, so spots of other slides predict it; own ones are out."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((360, 4))
    embedding = np.c_[z, np.full(len(z), 2.0)]  # cosines are positive, as after training
    space = {
        "genes": embedding,
        "images": embedding + 0.01 * rng.standard_normal(embedding.shape),
        "expression": z,
        "slide": np.repeat(["A1", "A2", "B1"], 120),
        "patient": np.repeat(["A", "A", "B"], 120),
    }
    rows = prediction_scores(space)
    keys = [(row["slide"], row["scope"], row["as"]) for row in rows]
    scopes = [("A1", "other slides"), ("A1", "other patients"), ("A2", "other slides")]
    scopes += [("A2", "other patients"), ("B1", "other patients")]
    assert keys == [(*scope, name) for scope in scopes for name in ("BLEEP", "Loki")]
    for row in rows:
        own = space["slide"] == row["slide"]
        patient = space["patient"] == row["slide"][0]
        gallery = (patient & ~own) if row["scope"] == "other slides" else ~patient
        options = {"top": None, "weights": "cosine"} if row["as"] == "Loki" else {}
        images, spots = space["images"][own], embedding[gallery]
        predicted = predict_by_retrieval(images, spots, z[gallery], **options)
        r = [np.corrcoef(predicted[:, g], z[own][:, g])[0, 1] for g in range(4)]
        assert row["r"] == pytest.approx(np.mean(r), abs=1e-6)
        assert row["r"] > 0.3
    one_slide = {name: values[:120] for name, values in space.items()}
    assert prediction_scores(one_slide) == []


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


def test_equal_values_are_taken_in_their_order():
    values = np.random.default_rng(0).integers(0, 6, (200, 40)).astype(float)
    for top in (1, 7, 40):
        expected = np.argsort(-values, axis=1, kind="stable")[:, :top]
        np.testing.assert_array_equal(retrieval._highest(values, top), expected)


def test_in_a_gallery_smaller_than_top_all_others_are_retrieved(space):
    small = {key: values[::10] for key, values in space.items()}  # two of each slide
    rows = [row for row in cross_modal(small, top=5) if row["scope"] == "slide"]
    assert rows
    for row in rows:
        assert row["found"] == row["oracle"] == pytest.approx(row["random"], abs=1e-6)


@pytest.mark.parametrize("at_once", [1, 7 * 60])
def test_queries_in_parts_give_what_all_at_once_give(space, monkeypatch, at_once):
    whole = cross_modal(space)
    monkeypatch.setattr(retrieval, "COSINES_AT_ONCE", at_once)
    for row, expected in zip(cross_modal(space), whole, strict=True):
        assert row == pytest.approx(expected, abs=1e-6)


def test_similarities_of_all_queries_are_never_in_memory_at_once(monkeypatch):
    n = 3000
    embeddings = unit_vectors(n).astype("f4")
    space = {
        "genes": embeddings,
        "images": embeddings,
        "expression": embeddings,
        "slide": np.repeat(["A1", "B1"], n // 2),
        "patient": np.repeat(["A", "B"], n // 2),
    }
    monkeypatch.setattr(retrieval, "COSINES_AT_ONCE", 2**16)
    tracemalloc.start()
    rows = cross_modal(space)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {row["recall@1"] for row in rows if row["scope"] == "all"} == {1.0}
    of_a_slide = n // 2 * n * 4  # bytes of its queries' similarities to all
    assert peak < of_a_slide / 4


def test_recall_in_a_section_is_computed_in_parts_too(monkeypatch):
    n = 3000
    z = unit_vectors(n).astype("f4")
    space = {"genes": z, "images": z}
    monkeypatch.setattr(retrieval, "shared_space", lambda *_: space)
    monkeypatch.setattr(retrieval, "COSINES_AT_ONCE", 2**16)
    tracemalloc.start()
    scores = retrieval_scores(None, None, z)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (scores["recall@1"], scores["median_rank"], scores["n"]) == (1.0, 1.0, n)
    assert peak < n * n * 4 / 4


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
