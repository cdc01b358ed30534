"""Genes are a stored, ordered vocabulary, fitted on training sections and matched by name."""

import json
import logging

import numpy as np
import pytest
from helpers import make_adata
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from seal_lite.config import Config
from seal_lite.data.genes import GenePanel, columns, depth, log_normalise, select_genes, smooth
from seal_lite.data.registration import MAX_NEIGHBOURS, neighbour_mean
from seal_lite.errors import InputError

N_GENES = 12
NAMES = [f"G{i}" for i in range(N_GENES)]


def draw_counts(n=36, n_genes=N_GENES, *, seed=0, mean=6.0):
    """Overdispersed counts (n, n_genes)."""
    rng = np.random.default_rng(seed)
    return rng.poisson(mean * rng.gamma(2, 0.5, (n, n_genes)))


def without_genes(counts, missing, *, name="X1"):
    """A section that lacks some of G0, G1, ..."""
    kept = [i for i, gene in enumerate(NAMES) if gene not in missing]
    return make_adata(counts[:, kept], genes=[NAMES[i] for i in kept], name=name)


def hexagonal(side=7):
    """Visium's array: even columns in even rows, odd in odd ones."""
    positions = [(x, y) for y in range(side) for x in range(2 * side) if (x + y) % 2 == 0]
    return np.array(positions)


def in_pitches(positions, grid):
    """Array positions (n, 2) in units of the distance between neighbours along a row."""
    if grid == "hex":
        return positions * [0.5, np.sqrt(3) / 2]
    return positions


def spots_within(positions, radius):
    """The indices of the spots within a radius of each, itself among them."""
    return [set(near) for near in cKDTree(positions).query_ball_point(positions, radius)]


def neighbours_and_self(adata):
    """The indices of the neighbours of each spot, itself among them."""
    return [set(row.indices) | {i} for i, row in enumerate(neighbour_mean(adata))]


def test_depth_is_the_sum_of_a_spots_counts():
    counts = draw_counts()
    np.testing.assert_array_equal(depth(make_adata(counts)), counts.sum(1))


def test_visium_spots_have_six_neighbours():
    """Fault of released SEAL: radius sqrt(2) in array coordinates finds 4 of 6 on Visium."""
    positions = hexagonal()
    adata = make_adata(np.ones((len(positions), 1)), place=positions, grid="hex")
    neighbours = neighbours_and_self(adata)
    assert neighbours == spots_within(in_pitches(positions, "hex"), 1.01)
    assert max(map(len, neighbours)) == 1 + 6
    released = spots_within(positions, np.sqrt(2) + 1e-6)
    assert max(map(len, released)) == 1 + 4  # what the fault would find


def test_square_array_has_eight_neighbours():
    adata = make_adata(np.ones((25, 1)))
    positions = adata.obs[["array_col", "array_row"]].to_numpy()
    neighbours = neighbours_and_self(adata)
    assert neighbours == spots_within(positions, np.sqrt(2) + 1e-6)
    assert max(map(len, neighbours)) == 1 + 8


def test_cells_that_crowd_together_have_a_bounded_number_of_neighbours():
    """In a clump each of n cells is near to all: n^2 pairs would fill the memory."""
    rng = np.random.default_rng(0)
    clump = rng.normal(0, 1e-3, (200, 2))
    adata = make_adata(np.ones((700, 1)), grid="free")
    adata.obsm["spatial"] = np.concatenate([clump, rng.uniform(10, 100, (500, 2))])
    weights = neighbour_mean(adata)
    assert np.diff(weights.indptr).max() <= MAX_NEIGHBOURS + 1
    distances = cKDTree(clump).query(clump[0], k=MAX_NEIGHBOURS + 1)[1]
    assert set(weights[0].indices) == set(distances) - {0}
    np.testing.assert_allclose(weights[:200].sum(1), 1.0)


def test_spots_at_one_place_are_neighbours():
    adata = make_adata(np.ones((4, 1)), grid="free")
    adata.obsm["spatial"] = np.zeros((4, 2))
    assert neighbours_and_self(adata) == [{0, 1, 2, 3}] * 4


def section_with_gaps(grid):
    """Thirty spots with holes and an edge, and last (99, 99), which has no neighbours."""
    if grid == "hex":
        positions = hexagonal(6)
    else:
        positions = make_adata(np.ones((36, 1))).obs.to_numpy()
    kept = np.random.default_rng(1).permutation(len(positions))[:30]
    positions = np.vstack([positions[kept], [[99, 99]]]).astype(int)
    return make_adata(draw_counts(len(positions), 5), place=positions, grid=grid)


@pytest.mark.parametrize("grid, reach_squared", [("square", 2), ("hex", 1)])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_smoothing_is_its_formula(grid, reach_squared, share):
    adata = section_with_gaps(grid)
    x = adata.layers["counts"].toarray().astype(float)
    positions = in_pitches(adata.obs[["array_col", "array_row"]].to_numpy(float), grid)
    distance_squared = ((positions[:, None] - positions) ** 2).sum(-1)
    expected = x.copy()
    for i in range(len(x)):
        is_near = (distance_squared[i] > 0) & (distance_squared[i] < reach_squared + 0.01)
        if is_near.any():
            expected[i] = (1 - share) * x[i] + share * x[is_near].mean(0)
    np.testing.assert_allclose(smooth(adata, share=share).toarray(), expected, rtol=1e-12)
    np.testing.assert_array_equal(expected[-1], x[-1])  # a spot without neighbours keeps its counts


@pytest.mark.parametrize("grid", ["square", "hex"])
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_the_papers_smoothing_is_the_released_formula(grid, share):
    """x' = (1 - s) x + s mean of all spots within sqrt(2) in array coordinates, itself included."""
    adata = section_with_gaps(grid)
    x = adata.layers["counts"].toarray().astype(float)
    positions = adata.obs[["array_row", "array_col"]].to_numpy()
    expected = np.empty_like(x)
    for i, position in enumerate(positions):
        is_near = ((positions - position) ** 2).sum(1) <= 2
        expected[i] = (1 - share) * x[i] + share * x[is_near].mean(0)
    smoothed = smooth(adata, share=share, over="disc").toarray()
    np.testing.assert_allclose(smoothed, expected, rtol=1e-12)
    assert np.abs(smoothed - smooth(adata, share=share).toarray()).max() > 0.1


def test_inside_a_hexagon_the_paper_takes_six_tenths_of_the_spot_and_four_neighbours():
    positions = hexagonal(5)
    centre = int(np.flatnonzero((positions == [4, 2]).all(1))[0])
    adata = make_adata(np.eye(len(positions)), place=positions, grid="hex")
    weights = smooth(adata, share=0.5, over="disc").toarray()[centre]
    assert weights[centre] == pytest.approx(0.6)
    assert sorted(weights[weights > 0]) == pytest.approx([0.1] * 4 + [0.6])


def test_a_panel_smooths_as_its_config_says_also_from_its_file(tmp_path):
    adata = section_with_gaps("hex")
    config = Config(n_genes=5, smooth=0.5, smooth_over="disc", zscore="train")
    fitted = GenePanel.from_adatas([adata], config)
    expected = log_normalise(smooth(adata, share=0.5, over="disc"))
    values, _ = columns(expected, adata.var_names, fitted.genes)
    fitted.save(tmp_path / "panel.json")
    for panel in (fitted, GenePanel.load(tmp_path / "panel.json")):
        np.testing.assert_array_equal(panel.expression(adata)[0], values)
    np.testing.assert_allclose(fitted.mean, values.mean(0), rtol=1e-5)


def test_a_panel_older_than_the_choice_smooths_over_the_ring(tmp_path):
    adata = section_with_gaps("hex")
    fitted = GenePanel.from_adatas([adata], Config(n_genes=5, smooth=0.5))
    fitted.save(tmp_path / "panel.json")
    fields = json.loads((tmp_path / "panel.json").read_text())
    del fields["over"]
    (tmp_path / "panel.json").write_text(json.dumps(fields))
    loaded = GenePanel.load(tmp_path / "panel.json")
    np.testing.assert_array_equal(loaded.expression(adata)[0], fitted.expression(adata)[0])


@pytest.mark.parametrize("grid", ["square", "hex"])
def test_smoothing_conserves_a_constant_field(grid):
    adata = section_with_gaps(grid)
    adata.layers["counts"] = make_adata(np.full(adata.shape, 3.0)).layers["counts"]
    np.testing.assert_allclose(smooth(adata, share=0.5).toarray(), 3.0, rtol=1e-12)


def test_log_normalisation_scales_each_spot_to_ten_thousand_counts():
    x = draw_counts()
    normalised = log_normalise(x).toarray()
    np.testing.assert_allclose(normalised, np.log1p(1e4 * x / x.sum(1, keepdims=True)), rtol=1e-12)
    np.testing.assert_allclose(np.expm1(normalised).sum(1), 1e4)
    assert np.isfinite(log_normalise(np.zeros((2, 3))).toarray()).all()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_columns_are_matched_by_name(data):
    """Whatever the order, with extra columns, and with some absent."""
    genes = [f"G{i}" for i in range(6)]
    names = data.draw(st.permutations([*genes, "X", "Y"]))
    names = names[: data.draw(st.integers(1, len(names)))]
    requested = data.draw(st.permutations(genes))
    value_of = {name: [i + 1, 10 * i + 7] for i, name in enumerate(names)}
    matrix = np.array([value_of[name] for name in names], float).T
    values, present = columns(matrix, names, requested)
    assert list(present) == [gene in names for gene in requested]
    expected = np.array([value_of.get(gene, [0, 0]) for gene in requested], np.float32).T
    np.testing.assert_array_equal(values, expected)


@pytest.fixture(scope="module")
def panels():
    """Panels of eight genes by whose statistics they z-score with."""
    adatas = [make_adata(draw_counts(seed=seed), name=f"T{seed}") for seed in (1, 2)]
    return {z: GenePanel.fit(adatas, n_genes=8, zscore=z) for z in ("section", "train")}


@pytest.fixture
def panel(panels):
    return panels["section"]


@pytest.mark.parametrize("zscore", ["section", "train"])
@given(order=st.permutations(range(N_GENES)), n_extra=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_gene_order_and_unexpressed_extra_genes_do_not_matter(panels, zscore, order, n_extra):
    """Fault of released SEAL: genes are matched by their position, with no stored vocabulary."""
    fitted = panels[zscore]
    counts = draw_counts(seed=3)
    extra = np.zeros((len(counts), n_extra))
    names = [f"G{i}" for i in order] + [f"EXTRA{i}" for i in range(n_extra)]
    reordered = make_adata(np.hstack([counts[:, list(order)], extra]), genes=names)
    np.testing.assert_array_equal(fitted.transform(reordered), fitted.transform(make_adata(counts)))


def test_panel_is_an_ordered_list_with_the_training_mean_and_sd():
    adatas = [make_adata(draw_counts(seed=seed), name=f"T{seed}") for seed in (1, 2)]
    fitted = GenePanel.fit(
        adatas, n_genes=5, include=["G7", "G0"], share=0.3, zscore="train", clip=np.inf
    )
    assert fitted.genes[:2] == ("G7", "G0")
    assert 5 <= len(fitted.genes) <= 7
    assert len(set(fitted.genes)) == len(fitted.genes)
    x = np.concatenate([log_normalise(smooth(adata, share=0.3)).toarray() for adata in adatas])
    x = x[:, [NAMES.index(gene) for gene in fitted.genes]]
    np.testing.assert_allclose(fitted.mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(fitted.std, x.std(0), rtol=1e-4)
    z = np.concatenate([fitted.transform(adata) for adata in adatas])
    np.testing.assert_allclose(z, (x - x.mean(0)) / x.std(0), atol=2e-5)


def test_section_scale_removes_a_batch_effect_and_training_scale_keeps_it():
    counts = draw_counts(n=49, mean=50.0)
    patient_factor = np.where(np.arange(N_GENES) < 6, 1, 8)  # half the genes are up
    shifted = make_adata(counts * patient_factor)
    by_section, by_training = (
        GenePanel.fit([make_adata(counts)], n_genes=N_GENES, zscore=z) for z in ("section", "train")
    )
    z = by_section.transform(shifted)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(z.std(0), 1, atol=1e-3)
    assert np.abs(by_training.transform(shifted).mean(0)).min() > 0.5


def test_outliers_are_clipped():
    counts = draw_counts(n=100, seed=4)
    counts[:, 6] = np.arange(100) == 0  # one spot of a hundred: sqrt(99) standard deviations
    fitted = GenePanel.fit([make_adata(counts)], n_genes=2, include=["G6"], share=0.0, clip=5.0)
    assert fitted.genes[0] == "G6"
    z = fitted.transform(make_adata(counts))
    assert z[0, 0] == z.max() == 5.0
    assert z.min() >= -5.0


def test_missing_genes_are_the_mean_and_reported(panel, caplog):
    section = without_genes(draw_counts(seed=5), [panel.genes[2]])  # 1 of 8 is 12.5%
    with caplog.at_level(logging.INFO):
        z = panel.transform(section)
    assert (z[:, 2] == 0).all()
    assert z.std(0)[[0, 1, 3]].min() > 0.5
    assert "1 panel genes missing" in caplog.text


def test_more_than_a_fifth_missing_is_an_error(panel):
    section = without_genes(draw_counts(), panel.genes[:2], name="T9")
    with pytest.raises(InputError, match="T9: 2 of the panel's 8 genes"):
        panel.transform(section)
    by_id = make_adata(draw_counts(), genes=[f"ENSG{i}" for i in range(N_GENES)])
    with pytest.raises(InputError, match="8 of the panel's 8"):
        panel.transform(by_id)


def test_a_gene_absent_from_one_training_section_is_scaled_by_the_others():
    """Absent is not zero: upstream's gene lists differ from section to section."""
    complete = make_adata(draw_counts(seed=1, mean=40.0))
    lacking = without_genes(draw_counts(seed=2, mean=40.0), ["G3"], name="T2")
    fitted = GenePanel.fit(
        [complete, lacking], n_genes=4, include=["G3"], share=0.0, zscore="train"
    )
    x = log_normalise(complete.layers["counts"]).toarray()[:, 3]
    assert fitted.mean[0] == pytest.approx(x.mean(), rel=1e-4)
    assert fitted.std[0] == pytest.approx(x.std(), rel=1e-3)


def test_an_unknown_included_gene_is_an_error():
    with pytest.raises(InputError, match="NOPE"):
        GenePanel.fit([make_adata(draw_counts())], include=["NOPE"])


@pytest.mark.parametrize("clip", [5.0, np.inf])
def test_a_panel_survives_its_file(tmp_path, clip):
    path = tmp_path / "panel.json"
    fitted = GenePanel.fit(
        [make_adata(draw_counts())], n_genes=6, zscore="train", share=0.3, clip=clip
    )
    fitted.save(path)
    assert "Infinity" not in path.read_text()  # which is no JSON
    loaded = GenePanel.load(path)
    assert (loaded.genes, loaded.share, loaded.clip) == (fitted.genes, 0.3, clip)
    other = make_adata(draw_counts(seed=7))
    np.testing.assert_array_equal(loaded.transform(other), fitted.transform(other))


@pytest.mark.parametrize("flavor", ["pearson_residuals", "seurat"])
def test_variable_genes_are_selected_among_those_that_all_sections_share(flavor):
    def section(seed, extra):
        rng = np.random.default_rng(seed)
        counts = rng.poisson(10, (60, 302)).astype(float)
        counts[:, :3] = rng.poisson(10 * rng.gamma(1, 1, (60, 3)))
        # More variable still, but a control probe, and in one section only.
        counts[:, 300:] = rng.poisson(10 * rng.gamma(0.5, 2, (60, 2)))
        return make_adata(counts, genes=[*(f"G{i}" for i in range(300)), "BLANK_1", extra])

    selected = select_genes([section(1, "ONLY1"), section(2, "ONLY2")], 3, flavor=flavor)
    assert {"BLANK_1", "ONLY1", "ONLY2"}.isdisjoint(selected)
    if flavor == "pearson_residuals":  # seurat's are relative to genes of a similar mean
        assert set(selected) == {"G0", "G1", "G2"}


def test_sections_without_a_common_gene_are_an_error():
    adatas = [make_adata(draw_counts()), make_adata(draw_counts(), genes=list("ABCDEFGHIJKL"))]
    with pytest.raises(InputError, match="no usable gene"):
        select_genes(adatas, 3)


def test_rare_genes_are_left_out_where_asked():
    counts = np.random.default_rng(0).poisson(20.0, (100, N_GENES))
    counts[:, 4] = 0
    counts[:5, 4] = 30  # by far the most variable, and in 5% of the spots
    adata = make_adata(counts)
    assert select_genes([adata], 1) == ["G4"]
    assert "G4" not in select_genes([adata], N_GENES, min_spots=0.1)
