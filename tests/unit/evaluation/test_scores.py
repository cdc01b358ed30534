"""Scores: each gene is compared with itself, within its section, by what training fitted."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.decomposition import PCA
from tiny_sections import make_patterned_section, pattern_shares

from parity.formulas import bleep, loki
from seal_lite.errors import InputError
from seal_lite.evaluation.ridge import Ridge
from seal_lite.evaluation.scores import (
    check_genes_present,
    decoder_scores,
    direct_scores,
    genes_to_score,
    probe_scores,
    retrieved_scores,
    score_rows,
    score_sections,
    summary,
    tidy,
)
from seal_lite.evaluation.targets import PARTIAL, TARGETS, patch_targets

GENES = ["G4", "G0", "G2", "G1", "G3"]  # in another order than the sections have them


@pytest.fixture(scope="module")
def train():
    return [make_patterned_section("A1", seed=0)]


@pytest.fixture(scope="module")
def held_out():
    return [make_patterned_section("B1", seed=1), make_patterned_section("C1", seed=2)]


def measured_counts(sections, genes=GENES):
    """Features that are the measurement itself: log1p counts (n, g) of each section."""
    return [patch_targets(section, genes)["log1p_raw"] for section in sections]


def test_a_probe_predicts_each_gene_from_its_own_measurement(train, held_out):
    """With the measurements as features every gene scores 1, but only against itself."""
    train_x, test_x = measured_counts(train), measured_counts(held_out)
    scores = probe_scores(train, held_out, GENES, train_x=train_x, test_x=test_x)
    for probe in ("hest", "tuned_ridge"):
        assert scores[probe, "log1p_raw"].shape == (2, 5)
        assert scores[probe, "log1p_raw"].min() > 0.99


def test_one_decomposition_of_the_features_serves_all_targets(held_out, monkeypatch):
    """Probe A decomposes them once; probe B once, and once for each group it leaves out."""
    fitted = {"ridge": 0, "pca": 0}

    def count(place, name, key):
        original = getattr(place, name)

        def counting(*args, **options):
            fitted[key] += 1
            return original(*args, **options)

        monkeypatch.setattr(place, name, counting)

    count(Ridge, "fit", "ridge")
    count(PCA, "fit_transform", "pca")
    x = measured_counts(held_out)
    probe_scores(held_out, held_out, GENES, train_x=x, test_x=x)
    assert fitted == {"ridge": 1 + len(held_out), "pca": 1}


def test_features_without_any_relation_score_nothing(train, held_out):
    rng = np.random.default_rng(0)
    train_x = [rng.standard_normal((len(s.rows), 20)) for s in train]
    test_x = [rng.standard_normal((len(s.rows), 20)) for s in held_out]
    scores = probe_scores(train, held_out, GENES, train_x=train_x, test_x=test_x)
    for r in scores.values():
        assert abs(r.mean()) < 0.25


def test_a_decoder_predicts_each_gene_from_its_own_measurement(held_out):
    panel = ["G1", "OTHER", "G3", "G0", "G4", "G2"]
    model = SimpleNamespace(panel=SimpleNamespace(genes=tuple(panel)), predict_genes=lambda x: x)
    test_x = measured_counts(held_out, panel)
    scores = decoder_scores(model, held_out, GENES, test_x=test_x)
    np.testing.assert_allclose(scores["log1p_raw"], 1.0)


@pytest.mark.parametrize(("name", "formula"), [("BLEEP", bleep), ("Loki", loki)])
def test_held_out_images_take_the_targets_of_training_spots(train, held_out, name, formula):
    """Spots are embedded by the gene encoder, images by the image encoder's projection."""
    train = [*train, make_patterned_section("D1", seed=3)]
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((len(GENES), 4))

    def embed(counts):
        moved = counts @ matrix + 9.0  # all cosines are positive
        return moved / np.linalg.norm(moved, axis=1, keepdims=True)

    model = SimpleNamespace(
        panel=SimpleNamespace(genes=tuple(GENES)),
        encode_genes=embed,
        project_images=embed,
    )
    train_x, test_x = measured_counts(train), measured_counts(held_out)
    for section, x in zip(train, train_x, strict=True):
        section.expression = lambda panel, x=x: x
    scores = retrieved_scores(model, train, held_out, GENES, test_x=test_x)
    assert {key for key, _ in scores} == {"BLEEP", "Loki"}
    cosines = embed(np.concatenate(test_x)) @ embed(np.concatenate(train_x)).T
    for target in TARGETS:
        y = np.concatenate([patch_targets(section, GENES)[target] for section in train])
        expected = score_sections(dict.fromkeys(TARGETS, formula(cosines, y)), held_out, GENES)
        np.testing.assert_allclose(scores[name, target], expected[target], atol=1e-6)
        assert np.abs(scores[name, target]).mean() > 0.1


def test_references_predict_each_gene_from_its_own_expectation(held_out):
    """The genes follow different patterns over the tissue, which oracle and neighbours know."""

    def expected(section, genes):
        return pattern_shares()[:, [int(gene[1:]) for gene in genes]]

    truth = SimpleNamespace(expected=expected)
    scores = direct_scores(held_out, GENES, truth=truth)
    assert {name for name, _ in scores} == {"ceiling", "neighbours", "oracle"}
    for target in (*TARGETS, PARTIAL):
        assert scores["oracle", target].min() > 0.9
    # A pattern of one period over six spots is smoother than its neighbours' mean.
    assert scores["neighbours", "pearson_residuals"].min() > 0.4
    assert {name for name, _ in direct_scores(held_out, GENES)} == {"ceiling", "neighbours"}


def test_the_ceiling_of_a_rare_gene_is_its_own(held_out):
    genes = ["G3", "G6", "G0"]  # G6 has half a count per spot
    ceiling = direct_scores(held_out, genes)["ceiling", "pearson_residuals"]
    assert ceiling[:, [0, 2]].min() > 0.9
    assert ceiling[:, 1].max() < 0.6


def test_held_out_sections_do_not_change_one_anothers_scores(train, held_out):
    """Whatever is fitted on features, a scaler included, is fitted on training sections alone."""
    rng = np.random.default_rng(0)
    train_x, near_x = (
        [x + rng.standard_normal(x.shape) for x in measured_counts(sections)]
        for sections in (train, held_out[:1])
    )
    far_x = [100 + 50 * rng.standard_normal(near_x[0].shape)]
    alone = probe_scores(train, held_out[:1], GENES, train_x=train_x, test_x=near_x)
    both = probe_scores(train, held_out, GENES, train_x=train_x, test_x=near_x + far_x)
    for key, r in alone.items():
        np.testing.assert_allclose(both[key][:1], r, rtol=1e-6)


def test_a_correlation_is_within_a_section_never_across(held_out):
    """A prediction that only tells the sections apart scores nothing."""
    levels = [np.full((len(s.rows), 5), float(i)) for i, s in enumerate(held_out)]
    predicted = dict.fromkeys(TARGETS, np.concatenate(levels))
    for r in score_sections(predicted, held_out, GENES).values():
        np.testing.assert_array_equal(r, 0.0)


def test_genes_to_score_are_declared_or_chosen_on_the_given_sections(train):
    adatas = [section.adata for section in train]
    truth = SimpleNamespace(classes={"G5": "visible", "G1": "invisible"})
    assert genes_to_score(adatas, truth) == ["G5", "G1"]
    assert set(genes_to_score(adatas)) == {f"G{i}" for i in range(7)}


def test_a_gene_that_a_test_section_lacks_is_named(held_out):
    check_genes_present(held_out, GENES)
    with pytest.raises(InputError, match="section B1: gene NONE.* is missing"):
        check_genes_present(held_out, ["G1", "NONE"])


def test_rows_and_table_name_every_gene():
    r = np.array([[0.1, 0.2, 0.3], [0.3, 0.4, -0.3]])  # (sections, genes)
    scores = {("colour", "hest", target): r for target in (*TARGETS, PARTIAL)}
    rows = score_rows(scores, ["a", "b", "c"])
    assert rows[0] == {
        "features": "colour",
        "probe": "hest",
        "target": TARGETS[0],
        "pcc": 0.1667,
        "per_gene": {"a": 0.2, "b": 0.3, "c": 0.0},
    }
    fold = {"test": "A", "seed": 0, "scores": rows}
    result = {"classes": {"a": "visible"}, "folds": [fold]}
    table = tidy(result)
    assert list(table) == ["test", "seed", "features", "probe", "target", "gene", "class", "r"]
    first = table[table.target == TARGETS[0]]
    assert dict(zip(first.gene, first.r, strict=True)) == {"a": 0.2, "b": 0.3, "c": 0.0}
    assert list(first["class"]) == ["visible", "hvg", "hvg"]
    means = summary(result)
    assert list(means) == [TARGETS[0], TARGETS[1], PARTIAL, TARGETS[2]]
    assert means.loc[("colour", "hest"), TARGETS[0]] == pytest.approx(0.5 / 3)
