"""Genes are a stored, ordered vocabulary, fitted on training sections and matched by name."""

import logging

import numpy as np
import pytest
from conftest import make_adata
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from seal_lite.data.genes import GenePanel, columns, log_normalise, select_genes, smooth
from seal_lite.data.registration import neighbour_mean
from seal_lite.errors import InputError


def counts(n=36, g=12, *, seed=0, mean=6.0):
    rng = np.random.default_rng(seed)
    return rng.poisson(mean * rng.gamma(2, 0.5, (n, g)))


def hexagonal(side=7):
    """Visium's array: even columns in even rows, odd in odd ones."""
    place = [(c, r) for r in range(side) for c in range(2 * side) if (c + r) % 2 == 0]
    return np.array(place)


def test_visium_spots_have_six_neighbours():
    """Fault of released SEAL: radius sqrt(2) in array coordinates finds 4 of 6 on Visium."""
    place = hexagonal()
    weights = neighbour_mean(make_adata(np.ones((len(place), 1)), place=place, grid="hex"))
    physical = place * [0.5, np.sqrt(3) / 2]  # a row is sqrt(3)/2 pitches high
    near = cKDTree(physical).query_ball_point(physical, 1.01)
    found = [set(row.indices) | {i} for i, row in enumerate(weights)]
    assert found == [set(n) for n in near]
    assert max(len(f) for f in found) == 1 + 6
    released = cKDTree(place).query_ball_point(place, np.sqrt(2) + 1e-6)
    assert max(len(r) for r in released) == 1 + 4  # what the fault would find


def test_square_array_has_eight_neighbours():
    adata = make_adata(np.ones((25, 1)))
    place = adata.obs[["array_col", "array_row"]].to_numpy()
    found = [set(row.indices) | {i} for i, row in enumerate(neighbour_mean(adata))]
    assert found == [set(n) for n in cKDTree(place).query_ball_point(place, np.sqrt(2) + 1e-6)]
    assert max(len(f) for f in found) == 1 + 8


def _with_gaps(grid):
    """Some 30 spots with holes, an edge, and one spot (99, 99) without neighbours."""
    place = hexagonal(6) if grid == "hex" else make_adata(np.ones((36, 1))).obs.to_numpy()
    place = np.r_[place[np.random.default_rng(1).permutation(len(place))[:30]], [[99, 99]]]
    return make_adata(counts(len(place), 5), place=place.astype(int), grid=grid)


@pytest.mark.parametrize("grid, reach", [("square", 2), ("hex", 1)])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_smoothing_is_its_formula(grid, reach, share):
    adata = _with_gaps(grid)
    x = adata.layers["counts"].toarray().astype(float)
    place = adata.obs[["array_col", "array_row"]].to_numpy(float)
    if grid == "hex":
        place = place * [0.5, np.sqrt(3) / 2]
    apart = ((place[:, None] - place) ** 2).sum(-1)
    expected = x.copy()
    for i in range(len(x)):
        near = (apart[i] > 0) & (apart[i] < reach + 0.01)
        if near.any():
            expected[i] = (1 - share) * x[i] + share * x[near].mean(0)
    np.testing.assert_allclose(smooth(adata, share=share).toarray(), expected, rtol=1e-12)
    np.testing.assert_array_equal(expected[-1], x[-1])  # the lonely spot keeps its counts


@pytest.mark.parametrize("grid", ["square", "hex"])
def test_smoothing_conserves_a_constant_field(grid):
    adata = _with_gaps(grid)
    adata.layers["counts"] = make_adata(np.full(adata.shape, 3.0)).layers["counts"]
    np.testing.assert_allclose(smooth(adata, share=0.5).toarray(), 3.0, rtol=1e-12)


def test_log_normalise():
    x = counts()
    found = log_normalise(x).toarray()
    np.testing.assert_allclose(found, np.log1p(1e4 * x / x.sum(1, keepdims=True)), rtol=1e-12)
    np.testing.assert_allclose(np.expm1(found).sum(1), 1e4)
    assert np.isfinite(log_normalise(np.zeros((2, 3))).toarray()).all()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_columns_are_found_by_name(data):
    """Whatever the order, with extra columns, and with some absent."""
    have = data.draw(st.permutations([f"G{i}" for i in range(6)] + ["X", "Y"]))
    have = have[: data.draw(st.integers(1, len(have)))]
    wanted = data.draw(st.permutations([f"G{i}" for i in range(6)]))
    matrix = np.array([[hash(g) % 97 + 1, len(g)] for g in have], float).T
    values, present = columns(matrix, have, wanted)
    assert list(present) == [g in have for g in wanted]
    expected = [matrix[:, have.index(g)] if g in have else np.zeros(2) for g in wanted]
    np.testing.assert_array_equal(values, np.array(expected, np.float32).T)


@pytest.fixture(scope="module")
def panels():
    sections = [make_adata(counts(seed=s), name=f"T{s}") for s in (1, 2)]
    return {z: GenePanel.fit(sections, n_genes=8, zscore=z) for z in ("section", "train")}


@pytest.fixture
def panel(panels):
    return panels["section"]


@pytest.mark.parametrize("zscore", ["section", "train"])
@given(order=st.permutations(range(12)), extra=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_gene_order_and_unexpressed_extra_genes_do_not_matter(panels, zscore, order, extra):
    """Fault of released SEAL: genes are matched by their position, with no stored vocabulary."""
    fitted, x = panels[zscore], counts(seed=3)
    other = np.c_[x[:, list(order)], np.zeros((len(x), extra))]
    names = [f"G{i}" for i in order] + [f"EXTRA{i}" for i in range(extra)]
    np.testing.assert_array_equal(
        fitted.transform(make_adata(other, genes=names)), fitted.transform(make_adata(x))
    )


def test_panel_is_an_ordered_list_with_the_training_mean_and_sd():
    sections = [make_adata(counts(seed=s), name=f"T{s}") for s in (1, 2)]
    fitted = GenePanel.fit(
        sections, n_genes=5, include=["G7", "G0"], share=0.3, zscore="train", clip=np.inf
    )
    assert fitted.genes[:2] == ("G7", "G0") and 5 <= len(fitted.genes) <= 7
    assert len(set(fitted.genes)) == len(fitted.genes)
    x = np.concatenate([log_normalise(smooth(s, share=0.3)).toarray() for s in sections])
    x = x[:, [int(g[1:]) for g in fitted.genes]]
    np.testing.assert_allclose(fitted.mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(fitted.std, x.std(0), rtol=1e-4)
    z = np.concatenate([fitted.transform(s) for s in sections])
    np.testing.assert_allclose(z, (x - x.mean(0)) / x.std(0), atol=2e-5)


def test_section_scale_removes_a_batch_effect_and_training_scale_keeps_it():
    x = counts(n=49, mean=50.0)
    shifted = x * np.where(np.arange(12) < 6, 1, 8)  # a patient in which half the genes are up
    by = {z: GenePanel.fit([make_adata(x)], n_genes=12, zscore=z) for z in ("section", "train")}
    z = by["section"].transform(make_adata(shifted))
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(z.std(0), 1, atol=1e-3)
    assert np.abs(by["train"].transform(make_adata(shifted)).mean(0)).min() > 0.5


def test_outliers_are_clipped():
    x = counts(n=100, seed=4)
    x[:, 6] = np.arange(100) == 0  # one spot of a hundred: sqrt(99) standard deviations
    fitted = GenePanel.fit([make_adata(x)], n_genes=2, include=["G6"], share=0.0, clip=5.0)
    assert fitted.genes[0] == "G6"
    z = fitted.transform(make_adata(x))
    assert z[0, 0] == z.max() == 5.0 and z.min() >= -5.0


def test_missing_genes_are_the_mean_and_reported(panel, caplog):
    x, lost = counts(seed=5), panel.genes[2]
    keep = [i for i in range(12) if f"G{i}" != lost]  # 1 of 8 is 12.5%
    with caplog.at_level(logging.INFO):
        z = panel.transform(make_adata(x[:, keep], genes=[f"G{i}" for i in keep]))
    assert (z[:, 2] == 0).all() and z.std(0)[[0, 1, 3]].min() > 0.5
    assert "1 panel genes missing" in caplog.text


def test_more_than_a_fifth_missing_is_refused(panel):
    lost = panel.genes[:2]  # 2 of 8
    keep = [i for i in range(12) if f"G{i}" not in lost]
    adata = make_adata(counts()[:, keep], genes=[f"G{i}" for i in keep], name="T9")
    with pytest.raises(InputError, match="T9: 2 of the panel's 8 genes"):
        panel.transform(adata)
    with pytest.raises(InputError, match="8 of the panel's 8"):
        panel.transform(make_adata(counts(), genes=[f"ENSG{i}" for i in range(12)]))


def test_a_gene_absent_from_one_training_section_is_scaled_by_the_others():
    """Absent is not zero: upstream's gene lists differ from section to section."""
    one, two = counts(seed=1, mean=40.0), counts(seed=2, mean=40.0)
    keep = [i for i in range(12) if i != 3]
    lacking = make_adata(two[:, keep], genes=[f"G{i}" for i in keep], name="T2")
    fitted = GenePanel.fit(
        [make_adata(one), lacking], n_genes=4, include=["G3"], share=0.0, zscore="train"
    )
    x = log_normalise(make_adata(one).layers["counts"]).toarray()[:, 3]
    assert fitted.mean[0] == pytest.approx(x.mean(), rel=1e-4)
    assert fitted.std[0] == pytest.approx(x.std(), rel=1e-3)


def test_unknown_included_gene_is_refused():
    with pytest.raises(InputError, match="NOPE"):
        GenePanel.fit([make_adata(counts())], include=["NOPE"])


@pytest.mark.parametrize("clip", [5.0, np.inf])
def test_panel_survives_its_file(tmp_path, clip):
    fitted = GenePanel.fit([make_adata(counts())], n_genes=6, zscore="train", share=0.3, clip=clip)
    fitted.save(tmp_path / "panel.json")
    again, adata = GenePanel.load(tmp_path / "panel.json"), make_adata(counts(seed=7))
    assert (again.genes, again.share, again.clip) == (fitted.genes, 0.3, clip)
    np.testing.assert_array_equal(again.transform(adata), fitted.transform(adata))


@pytest.mark.parametrize("flavor", ["pearson_residuals", "seurat"])
def test_the_genes_that_vary_are_chosen_from_those_that_all_sections_share(flavor):
    def section(seed, extra):
        rng = np.random.default_rng(seed)
        x = rng.poisson(10, (60, 302)).astype(float)
        x[:, :3] = rng.poisson(10 * rng.gamma(1, 1, (60, 3)))
        x[:, 300:] = rng.poisson(10 * rng.gamma(0.5, 2, (60, 2)))  # more variable still, but ...
        return make_adata(x, genes=[*(f"G{i}" for i in range(300)), "BLANK_1", extra])

    chosen = select_genes([section(1, "ONLY1"), section(2, "ONLY2")], 3, flavor=flavor)
    assert {"BLANK_1", "ONLY1", "ONLY2"}.isdisjoint(chosen)  # ... no gene, or not in both
    if flavor == "pearson_residuals":  # seurat's are relative to genes of a similar mean
        assert set(chosen) == {"G0", "G1", "G2"}
    with pytest.raises(InputError, match="no usable gene"):
        select_genes([make_adata(counts()), make_adata(counts(), genes=list("ABCDEFGHIJKL"))], 3)


def test_rare_genes_are_no_targets():
    x = np.random.default_rng(0).poisson(20.0, (100, 12))
    x[:, 4] = 0
    x[:5, 4] = 30  # by far the most variable, and in 5% of the spots
    assert select_genes([make_adata(x)], 1) == ["G4"]
    assert "G4" not in select_genes([make_adata(x)], 12, min_spots=0.1)
