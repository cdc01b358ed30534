"""What must hold of any input, not of one: arrays, splits, losses, search, patches."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import make_adata
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seal_lite.data.genes import GenePanel, smooth
from seal_lite.data.images import open_slide
from seal_lite.data.registration import neighbour_mean
from seal_lite.errors import InputError
from seal_lite.evaluation.crossval import folds_of, shift_folds
from seal_lite.evaluation.retrieval import recall, search
from seal_lite.model.losses import clip_loss, correlation_loss, gene_loss, kl_loss

seeds = st.integers(0, 10**6)
many = settings(max_examples=40, deadline=None)


@st.composite
def arrays(draw):
    """Some places, each once, of a square or a hexagonal array."""
    grid = draw(st.sampled_from(["square", "hex"]))
    place = draw(st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=40))
    place = np.array(sorted(place))
    if grid == "hex":  # every second column, shifted by one in every other row
        place[:, 0] = 2 * place[:, 0] + place[:, 1] % 2
    return grid, place


def neighbours(grid, a, b) -> bool:
    col, row = abs(a - b)
    if grid == "hex":
        return (col, row) in ((2, 0), (1, 1))
    return max(col, row) == 1


@given(arrays())
@many
def test_neighbours_are_those_of_the_array_however_sparse(array):
    """A fault of released SEAL: its radius finds 4 of a hexagon's 6 neighbours."""
    grid, place = array
    found = neighbour_mean(make_adata(np.ones((len(place), 2)), place=place, grid=grid)).toarray()
    expected = np.array([[neighbours(grid, a, b) for b in place] for a in place], float)
    degree = expected.sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected / np.maximum(degree, 1), atol=1e-12)


@given(arrays(), st.floats(0, 1), seeds)
@many
def test_smoothing_makes_no_counts_and_loses_none_it_should_keep(array, share, seed):
    """A gene's values stay between its lowest and highest; without a neighbour they stay as is."""
    grid, place = array
    counts = np.random.default_rng(seed).poisson(3, (len(place), 3)).astype(float)
    adata = make_adata(counts, place=place, grid=grid)
    found = smooth(adata, share=share).toarray()
    assert (found >= counts.min(0) - 1e-9).all() and (found <= counts.max(0) + 1e-9).all()
    lonely = neighbour_mean(adata).sum(1).A1 == 0
    np.testing.assert_allclose(found[lonely], counts[lonely])
    np.testing.assert_allclose(smooth(adata, share=0).toarray(), counts)


@given(st.permutations(range(8)), st.integers(0, 7), seeds)
@many
def test_a_panel_reads_genes_by_name_in_any_order_and_the_first_of_doubles(order, lost, seed):
    counts = np.random.default_rng(seed).poisson(20, (16, 8)) + 1
    names = [f"G{i}" for i in range(8)]
    panel = GenePanel(tuple(names), np.zeros(8), np.ones(8), share=0.2, zscore="section", clip=5.0)
    whole = panel.transform(make_adata(counts, genes=names))
    moved = make_adata(counts[:, list(order)], genes=[names[i] for i in order])
    np.testing.assert_array_equal(panel.transform(moved), whole)
    assert (np.abs(whole) <= 5).all()
    kept = [i for i in range(8) if i != lost]
    without = panel.expression(make_adata(counts[:, kept], genes=[names[i] for i in kept]))
    assert not without[0][:, lost].any() and list(without[1]) == [i != lost for i in range(8)]


@dataclass
class Named:
    name: str
    patient: str


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=4, max_size=20))
@many
def test_no_group_and_no_patient_crosses_a_split(of):
    sections = [Named(f"S{i}", f"P{p}") for i, (p, _) in enumerate(of)]
    by_patient = [s.patient for s in sections]
    folds = list(folds_of(sections, by_patient))
    assert len(folds) == len(set(by_patient))
    for train, tests in folds:
        held = [s for part in tests.values() for s in part]
        assert sorted(s.name for s in [*train, *held]) == sorted(s.name for s in sections)
        assert not {s.patient for s in train} & {s.patient for s in held}
    groups = [f"g{g}" for _, g in of]
    whose = [f"{s.patient}{g}" for s, g in zip(sections, groups, strict=True)]  # a patient, a group
    sections = [Named(s.name, p) for s, p in zip(sections, whose, strict=True)]
    try:
        folds = list(shift_folds(sections, groups))
    except InputError as error:  # a group of one patient cannot be held out in distribution
        assert "has one patient" in str(error)
        return
    for train, tests in folds:
        held = [s for part in tests.values() for s in part]
        assert not {s.patient for s in train} & {s.patient for s in held}
        assert len({s.name for s in [*train, *held]}) == len(sections)


@given(seeds, st.integers(2, 30), st.floats(0.02, 2.0), st.sampled_from([0.0, 0.3, 1.0]))
@many
def test_the_contrast_knows_no_side_no_order_and_no_length(seed, b, temperature, soft):
    rng = torch.Generator().manual_seed(seed)
    image, gene = (torch.randn(b, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    loss = clip_loss(image, gene, temperature=temperature, soft=soft)
    order = torch.randperm(b, generator=rng)
    for other in (
        clip_loss(gene, image, temperature=temperature, soft=soft),
        clip_loss(7 * image[order], gene[order] / 3, temperature=temperature, soft=soft),
    ):
        torch.testing.assert_close(other, loss)
    assert 0 <= loss <= np.log(b) + 2 / temperature + 1e-9


@given(seeds, st.integers(2, 20), st.integers(1, 9))
@many
def test_the_vaes_losses_are_never_negative_and_nothing_where_nothing_is_wrong(seed, b, d):
    rng = torch.Generator().manual_seed(seed)
    z, other = (torch.randn(b, d, generator=rng, dtype=torch.float64) for _ in range(2))
    order = torch.randperm(b, generator=rng)
    for loss in (
        lambda p, q: gene_loss(p, q, w_mse=1.0, w_corr=0.5),
        lambda p, q: kl_loss(p, q),
    ):
        assert loss(z, other) >= 0
        torch.testing.assert_close(loss(z[order], other[order]), loss(z, other))
    assert 0 <= correlation_loss(z, other) <= 4 + 1e-9
    assert gene_loss(z, z, w_mse=1.0, w_corr=0.0) == 0
    assert kl_loss(torch.zeros_like(z), torch.zeros_like(z)) == 0


@given(seeds, st.integers(1, 40), st.integers(1, 12), st.integers(1, 9))
@many
def test_search_is_brute_force_and_recall_grows(seed, n, q, top):
    rng = np.random.default_rng(seed)
    queries, gallery = (rng.standard_normal((k, 5)).astype(np.float32) for k in (q, n))
    at, cosine = search(queries, gallery, top=top)
    similar = queries @ gallery.T
    expected = np.argsort(-similar, axis=1, kind="stable")[:, :top]
    np.testing.assert_allclose(np.take_along_axis(similar, expected, 1), cosine, rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(similar, at, 1), cosine, rtol=1e-5)
    scores = recall(similar, rng.integers(n, size=q), at=(1, 5, n))
    assert 0 <= scores["recall@1"] <= scores["recall@5"] <= scores[f"recall@{n}"] == 1


@pytest.fixture(scope="module")
def ramp(tmp_path_factory):
    """A picture whose R and G tell x and y, 4 px a step."""
    file = tmp_path_factory.mktemp("ramp") / "ramp.png"
    y, x = np.indices((800, 800))
    Image.fromarray(np.stack([x // 4, y // 4, 0 * x], -1).astype(np.uint8)).save(file)
    return open_slide(file)


@given(st.floats(0.2, 3.0), st.floats(40, 300), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_a_region_of_so_many_um_shows_so_many_um(ramp, um_per_px, patch_um, right, down):
    """From um to px and back: where it is cut, and how wide it is, can be read from its colours."""
    edge = min(patch_um / um_per_px, 700.0)
    x, y = right * (800 - edge), down * (800 - edge)
    shown = ramp.read(x, y, edge, 32).astype(float)
    centre = shown.mean((0, 1))[:2] * 4 + 2
    np.testing.assert_allclose(centre, [x + edge / 2, y + edge / 2], atol=4)
    width = (shown[:, -1, 0] - shown[:, 0, 0]).mean() * 4 * 32 / 31
    assert width == pytest.approx(edge, abs=8)
