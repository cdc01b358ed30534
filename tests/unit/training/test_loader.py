"""Batches of pairs: full shuffles, cached, streamed, from disk, shared by processes."""

import errno
import logging
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import TINY

from seal_lite import InputError, finetune


@pytest.fixture(scope="module")
def panel(sections):
    from seal_lite.data.genes import GenePanel

    return GenePanel.fit([section.adata for section in sections], n_genes=TINY.n_genes)


@pytest.fixture(scope="module")
def encoder():
    from seal_lite.encoders.vision import build_encoder

    return build_encoder(TINY.backbone, tune_blocks=1)


class Echo:
    """Activations that say which patch and view was read."""

    device = torch.device("cpu")

    def read(self, sections, rows, views):
        return torch.from_numpy(np.stack([sections, rows, views], axis=1))

    def finish(self, read):
        return read


@pytest.fixture
def make_pairs(sections, panel):
    """Pairs whose activations are (section, row, view) of each patch."""
    from seal_lite.training.loader import Pairs

    def call(config=TINY, **options):
        return Pairs(sections, panel, config, Echo(), **options)

    return call


@pytest.fixture
def make_activations(sections, encoder):
    from seal_lite.training.loader import Activations

    def call(**options):
        return Activations(encoder, sections, TINY, progress=False, **options)

    return call


def all_expression(pairs):
    """The profile beside every patch (n, genes), in the order of the sections."""
    n = len(pairs)
    _, x = pairs.batch(np.arange(n), np.zeros(n, int))
    return x


def test_an_epoch_visits_every_pair_once_with_views_at_random(make_pairs, sections):
    pairs = make_pairs(replace(TINY, batch_size=4))
    visited = torch.cat([hidden for hidden, _ in pairs.epoch(3)]).tolist()
    n = sum(len(section.rows) for section in sections)
    patches = {(section, row) for section, row, _ in visited}
    assert len(pairs) == n
    assert len(patches) == len(visited) == pairs.steps * 4 == n // 4 * 4
    assert {view for *_, view in visited} == {0, 1, 2}
    other = torch.cat([hidden for hidden, _ in pairs.epoch(4)]).tolist()
    assert other != visited
    again = torch.cat([hidden for hidden, _ in pairs.epoch(3)]).tolist()
    assert again == visited


def test_patch_and_profile_of_a_pair_are_of_one_spot(make_pairs, sections, panel):
    """Unless asked for, nothing breaks the pairing, in any batch."""
    expected = [panel.transform(section.adata)[section.rows] for section in sections]
    for hidden, x in make_pairs().epoch(0):
        for (section, row, _), profile in zip(hidden.tolist(), x, strict=True):
            np.testing.assert_array_equal(profile, expected[section][row])


def test_a_column_of_expression_is_the_gene_of_that_name(make_pairs, sections, panel):
    """That gene's counts rank the spots as the column does, better than any other gene's."""
    from scipy.stats import spearmanr

    n = len(sections[0].rows)
    x = all_expression(make_pairs())[:n]  # of the first section
    counts = sections[0].adata[sections[0].rows, list(panel.genes)].layers["counts"].toarray()
    varies = counts.std(0) > 0
    share = counts[:, varies] / counts.sum(1, keepdims=True)
    g = share.shape[1]
    ranks = spearmanr(x[:, varies], share).statistic[:g, g:]  # (genes, genes)
    assert ranks.argmax(1).tolist() == list(range(g))
    assert g > 30


def test_shuffled_pairs_break_the_pairing_and_keep_each_sections_profiles(make_pairs, sections):
    true = all_expression(make_pairs())
    shuffled = all_expression(make_pairs(shuffle_pairs=True))
    start = 0
    for section in sections:
        part = slice(start, start + len(section.rows))
        start = part.stop
        moved = (shuffled[part] != true[part]).any(1).float().mean()
        assert moved > 0.9  # one or two may stay by chance
        assert sorted(shuffled[part].tolist()) == sorted(true[part].tolist())
    again = all_expression(make_pairs(shuffle_pairs=True))
    other = all_expression(make_pairs(replace(TINY, seed=5), shuffle_pairs=True))
    assert torch.equal(again, shuffled)
    assert not torch.equal(other, shuffled)


def test_partners_can_be_drawn_anew_in_every_epoch_within_each_section(make_pairs, sections):
    pairs = make_pairs(shuffle_pairs="every epoch")
    true = make_pairs()
    drawn = []
    for number in (0, 1, 0):
        list(pairs.epoch(number))
        drawn.append([partner.copy() for partner in pairs.partner])
    first, second, again = drawn
    for section, one, other, same in zip(sections, first, second, again, strict=True):
        assert sorted(one) == sorted(other) == list(range(len(section.rows)))
        assert (one != other).mean() > 0.8
        assert (one == same).all()  # the epoch's number decides: an interrupted run resumes
    shuffled_patches = [patches for patches, _ in pairs.epoch(0)]
    true_patches = [patches for patches, _ in true.epoch(0)]
    assert all(map(torch.equal, shuffled_patches, true_patches))


def test_a_warmup_epoch_visits_the_profiles_of_the_pairs_in_their_order(make_pairs):
    pairs = make_pairs()
    for (_, x), (nothing, same) in zip(pairs.epoch(0), pairs.expression_epoch(0), strict=True):
        assert nothing is None
        assert torch.equal(x, same)
    assert pairs.steps == pairs.expression_steps


def test_a_warmup_epoch_visits_profiles_without_an_image_too(make_pairs, panel):
    n_extra = 30 + len(make_pairs()) % 2  # no incomplete batch
    extra = 1000.0 + np.arange(n_extra)[:, None] * np.ones(len(panel.genes))
    pairs = make_pairs(replace(TINY, batch_size=2), extra_expression=extra)
    visited = torch.cat([x for _, x in pairs.expression_epoch(0)])
    without_image = sorted(visited[visited[:, 0] >= 1000, 0].tolist())
    assert len(visited) == len(pairs) + n_extra == 2 * pairs.expression_steps
    assert without_image == [1000.0 + i for i in range(n_extra)]
    assert all((x < 1000).all() for _, x in pairs.epoch(0))


def test_profiles_of_other_genes_are_refused(sections, panel, tmp_path):
    extra = np.zeros((5, 7))
    options = {"panel": panel, "extra_expression": extra, "out": tmp_path / "run"}
    with pytest.raises(InputError, match=r"extra_expression: has shape \(5, 7\); give \(m, 40\)"):
        finetune(sections, TINY, progress=False, **options)
    assert not (tmp_path / "run").exists()


def test_too_few_pairs_are_refused(sections, tiny):
    with pytest.raises(InputError, match="batch_size=500"):
        finetune(sections, replace(tiny, batch_size=500), progress=False)


def test_parts_of_a_batch_make_up_the_batch(make_pairs):
    whole = list(make_pairs().epoch(0))
    parts = [list(make_pairs(share=(i, 4)).epoch(0)) for i in range(4)]
    assert len(whole) > 1
    for i, (hidden, x) in enumerate(whole):
        assert torch.equal(hidden, torch.cat([part[i][0] for part in parts]))
        assert torch.equal(x, torch.cat([part[i][1] for part in parts]))
    with pytest.raises(InputError, match="batch_size=16: is no multiple of 3 processes"):
        make_pairs(share=(0, 3))


def test_stored_and_computed_activations_are_the_same(make_activations):
    places = np.array([0, 1, 1, 0]), np.array([3, 0, 9, 3]), np.array([0, 2, 1, 1])
    cached = make_activations()
    streamed = make_activations(cached=False, chunk=3)
    stored = cached.finish(cached.read(*places))
    computed = streamed.finish(streamed.read(*places))
    torch.testing.assert_close(computed, stored, rtol=1e-4, atol=1e-4)
    assert not torch.equal(stored[0], stored[3])  # two views of one patch


def test_where_the_cache_has_no_room_activations_are_computed(
    make_activations, sections, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("seal_lite.encoders.prefix_cache.ROOM", 0.0)
    with caplog.at_level(logging.INFO):
        activations = make_activations(cache_dir=tmp_path)
    assert activations.stored is None
    assert not list(tmp_path.iterdir())
    (message,) = (m for m in caplog.messages if m.startswith("prefix cache"))
    n = sum(len(section.rows) for section in sections)
    size = TINY.n_views * n * 4 * 80 * 4 * 4  # float32, 80 maps of 64 px / 16
    assert re.match(rf"prefix cache: {size / 1e6:.1f} MB in {tmp_path}, .+ free: too", message)


def test_where_the_disk_proves_too_small_activations_are_computed(
    make_activations, tmp_path, monkeypatch, caplog
):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    places = np.array([0, 1]), np.array([3, 0]), np.array([0, 1])
    streamed = make_activations(cache_dir=tmp_path)
    assert streamed.stored is None
    assert len([text for text in caplog.messages if "No space left" in text]) == 1
    stored = make_activations()
    computed = streamed.finish(streamed.read(*places))
    expected = stored.finish(stored.read(*places))
    torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-4)


def test_a_cache_that_is_there_needs_no_room(make_activations, tmp_path, monkeypatch):
    written = make_activations(cache_dir=tmp_path).stored
    monkeypatch.setattr("seal_lite.encoders.prefix_cache.ROOM", 0.0)
    again = make_activations(cache_dir=tmp_path).stored
    for one, other in zip(written, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_damaged_cache_is_computed_again(make_activations, tmp_path, caplog):
    """A flipped bit among thousands: the file's name says what it must hold."""
    written = [np.array(array) for array in make_activations(cache_dir=tmp_path).stored]
    damaged, *_ = sorted(tmp_path.glob("*.npy"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    again = make_activations(cache_dir=tmp_path).stored
    assert [m for m in caplog.messages if "damaged" in m and damaged.name in m]
    for one, other in zip(written, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_training_from_shards_is_training_from_memory(trained, sections, tiny, tmp_path):
    """A full shuffle of what is on disk gives the same losses, to the bit."""
    from seal_lite.data.shards import read_shards, write_shards

    _, model, history = trained
    write_shards(sections[:1], tmp_path, panel=model.panel, config=tiny)
    shards, panel = read_shards(tmp_path, tiny)
    _, from_disk = finetune(shards, tiny, panel=panel, progress=False)
    assert [epoch["loss"] for epoch in from_disk] == [epoch["loss"] for epoch in history]
