"""What must hold of any input, not of one: arrays, splits, losses, search, patches."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from helpers import make_adata
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seal_lite.data.genes import GenePanel, smooth
from seal_lite.data.images import open_slide
from seal_lite.data.registration import neighbour_mean
from seal_lite.errors import InputError

seeds = st.integers(0, 10**6)
many = settings(max_examples=40, deadline=None)


@st.composite
def arrays(draw):
    """A square or a hexagonal grid, and columns and rows (n, 2) of spots on it, each once."""
    grid = draw(st.sampled_from(["square", "hex"]))
    position = st.tuples(st.integers(0, 9), st.integers(0, 9))
    positions = draw(st.sets(position, min_size=2, max_size=40))
    array = np.array(sorted(positions))
    if grid == "hex":  # every second column, shifted by one in every other row
        array[:, 0] = 2 * array[:, 0] + array[:, 1] % 2
    return grid, array


def are_neighbours(grid, a, b) -> bool:
    col, row = abs(a - b)
    if grid == "hex":
        return (col, row) in ((2, 0), (1, 1))
    return max(col, row) == 1


@given(arrays())
@many
def test_neighbours_are_those_of_the_array_however_sparse(grid_and_array):
    """A fault of released SEAL: its radius finds 4 of a hexagon's 6 neighbours."""
    grid, array = grid_and_array
    adata = make_adata(np.ones((len(array), 2)), place=array, grid=grid)
    is_neighbour = np.array([[are_neighbours(grid, a, b) for b in array] for a in array], float)
    degree = is_neighbour.sum(1, keepdims=True)
    expected = is_neighbour / np.maximum(degree, 1)
    np.testing.assert_allclose(neighbour_mean(adata).toarray(), expected, atol=1e-12)


@given(arrays(), st.floats(0, 1), seeds)
@many
def test_smoothing_stays_between_the_lowest_and_the_highest_count(grid_and_array, share, seed):
    """A spot without a neighbour keeps its counts; a share of 0 keeps those of all."""
    grid, array = grid_and_array
    counts = np.random.default_rng(seed).poisson(3, (len(array), 3)).astype(float)
    adata = make_adata(counts, place=array, grid=grid)
    smoothed = smooth(adata, share=share).toarray()
    assert (smoothed >= counts.min(0) - 1e-9).all()
    assert (smoothed <= counts.max(0) + 1e-9).all()
    is_lonely = neighbour_mean(adata).sum(1).A1 == 0
    np.testing.assert_allclose(smoothed[is_lonely], counts[is_lonely])
    np.testing.assert_allclose(smooth(adata, share=0).toarray(), counts)


@given(st.permutations(range(8)), st.integers(0, 7), seeds)
@many
def test_a_panel_reads_genes_by_name(order, lost, seed):
    counts = np.random.default_rng(seed).poisson(20, (16, 8)) + 1
    names = [f"G{i}" for i in range(8)]
    panel = GenePanel(tuple(names), np.zeros(8), np.ones(8), share=0.2, zscore="section", clip=5.0)

    def section_of(columns):
        return make_adata(counts[:, columns], genes=[names[i] for i in columns])

    whole = panel.transform(section_of(list(range(8))))
    assert (np.abs(whole) <= 5).all()
    np.testing.assert_array_equal(panel.transform(section_of(list(order))), whole)
    kept = [i for i in range(8) if i != lost]
    values, is_present = panel.expression(section_of(kept))
    assert not values[:, lost].any()
    assert np.flatnonzero(is_present).tolist() == kept


@dataclass
class Named:
    name: str
    patient: str


@given(st.lists(st.integers(0, 5), min_size=4, max_size=20))
@many
def test_no_patient_crosses_a_split_by_patients(patients):
    from seal_lite.evaluation.crossval import folds_of

    sections = [Named(f"S{i}", f"P{patient}") for i, patient in enumerate(patients)]
    by_patient = [section.patient for section in sections]
    folds = list(folds_of(sections, by_patient))
    assert len(folds) == len(set(by_patient))
    for train, tests in folds:
        held_out = [section for part in tests.values() for section in part]
        assert sorted(s.name for s in [*train, *held_out]) == sorted(s.name for s in sections)
        assert not {s.patient for s in train} & {s.patient for s in held_out}


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=4, max_size=20))
@many
def test_no_patient_crosses_a_split_by_groups(patients_and_groups):
    from seal_lite.evaluation.crossval import shift_folds

    groups = [f"g{group}" for _, group in patients_and_groups]
    sections = [
        Named(f"S{i}", f"P{patient}g{group}")  # a patient belongs to one group
        for i, (patient, group) in enumerate(patients_and_groups)
    ]
    try:
        folds = list(shift_folds(sections, groups))
    except InputError as error:  # a group of one patient cannot be held out in distribution
        assert "has one patient" in str(error)
        return
    for train, tests in folds:
        held_out = [section for part in tests.values() for section in part]
        assert not {s.patient for s in train} & {s.patient for s in held_out}
        assert len({s.name for s in [*train, *held_out]}) == len(sections)


@given(seeds, st.integers(2, 30), st.floats(0.02, 2.0), st.sampled_from([0.0, 0.3, 1.0]))
@many
def test_clip_loss_ignores_sides_order_and_length(seed, b, temperature, soft):
    import torch

    from seal_lite.model.losses import clip_loss

    rng = torch.Generator().manual_seed(seed)
    image, gene = (torch.randn(b, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    loss = clip_loss(image, gene, temperature=temperature, soft=soft)
    order = torch.randperm(b, generator=rng)
    swapped = clip_loss(gene, image, temperature=temperature, soft=soft)
    torch.testing.assert_close(swapped, loss)
    moved = clip_loss(7 * image[order], gene[order] / 3, temperature=temperature, soft=soft)
    torch.testing.assert_close(moved, loss)
    assert 0 <= loss <= np.log(b) + 2 / temperature + 1e-9


@given(seeds, st.integers(2, 20), st.integers(1, 9))
@many
def test_losses_of_the_vae_are_never_negative_and_0_where_nothing_is_wrong(seed, b, d):
    import torch

    from seal_lite.model.losses import correlation_loss, gene_loss, kl_loss

    rng = torch.Generator().manual_seed(seed)
    z, other = (torch.randn(b, d, generator=rng, dtype=torch.float64) for _ in range(2))
    order = torch.randperm(b, generator=rng)
    for loss in (partial(gene_loss, w_mse=1.0, w_corr=0.5), kl_loss):
        assert loss(z, other) >= 0
        torch.testing.assert_close(loss(z[order], other[order]), loss(z, other))
    assert 0 <= correlation_loss(z, other) <= 4 + 1e-9
    assert gene_loss(z, z, w_mse=1.0, w_corr=0.0) == 0
    assert kl_loss(torch.zeros_like(z), torch.zeros_like(z)) == 0


@given(seeds, st.integers(1, 40), st.integers(1, 12), st.integers(1, 9))
@many
def test_search_is_brute_force_and_recall_grows(seed, n, q, top):
    from seal_lite.evaluation.retrieval import recall, search

    rng = np.random.default_rng(seed)
    queries, gallery = (rng.standard_normal((k, 5)).astype(np.float32) for k in (q, n))
    indices, similarities = search(queries, gallery, top=top)
    all_pairs = queries @ gallery.T
    expected = np.argsort(-all_pairs, axis=1, kind="stable")[:, :top]
    for ranking in (expected, indices):
        ranked = np.take_along_axis(all_pairs, ranking, 1)
        np.testing.assert_allclose(ranked, similarities, rtol=1e-5, atol=1e-6)  # float32 sums
    scores = recall(all_pairs, rng.integers(n, size=q), ranks=(1, 5, n))
    assert 0 <= scores["recall@1"] <= scores["recall@5"] <= scores[f"recall@{n}"] == 1


@pytest.fixture(scope="module")
def ramp(tmp_path_factory):
    """An image whose R and G tell x and y, 4 px a step."""
    path = tmp_path_factory.mktemp("ramp") / "ramp.png"
    y, x = np.indices((800, 800))
    image = np.stack([x // 4, y // 4, np.zeros_like(x)], -1).astype(np.uint8)
    Image.fromarray(image).save(path)
    return open_slide(path)


@given(st.floats(0.2, 3.0), st.floats(40, 300), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_a_patch_of_so_many_um_shows_so_many_um(ramp, um_per_px, patch_um, right, down):
    """From um to px and back: where a patch is, and how wide, can be read from its colours."""
    edge = min(patch_um / um_per_px, 700.0)
    x = right * (800 - edge)
    y = down * (800 - edge)
    shown = ramp.read(x, y, edge=edge, px=32).astype(float)
    centre = shown.mean((0, 1))[:2] * 4 + 2
    np.testing.assert_allclose(centre, [x + edge / 2, y + edge / 2], atol=4)
    width = (shown[:, -1, 0] - shown[:, 0, 0]).mean() * 4 * 32 / 31
    assert width == pytest.approx(edge, abs=8)
