"""Batches of pairs: full shuffles, cached, streamed, from disk, in chunks, by several processes."""

import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import parallel
import pytest
import torch
from conftest import REPOSITORY, TINY
from safetensors.torch import load_file

from seal_lite.data.genes import GenePanel
from seal_lite.data.shards import Shard, read_shards, write_shards
from seal_lite.encoders.vision import build_encoder
from seal_lite.errors import InputError
from seal_lite.model.seal import SEAL
from seal_lite.training.loader import Pairs
from seal_lite.training.loop import finetune


@pytest.fixture(scope="module")
def panel(sections):
    return GenePanel.fit([s.adata for s in sections], n_genes=TINY.n_genes)


def pairs(sections, panel, config=TINY, **options):
    encoder = build_encoder(config.backbone, tune_blocks=1)
    options = {"cached": False, "progress": False, **options}
    return Pairs(sections, panel, config, encoder, **options)


def test_an_epoch_visits_every_pair_once_with_views_at_random(sections, panel):
    p = pairs(sections, panel, replace(TINY, batch_size=4))
    p.batch = lambda index, views: (index, views)
    index, views = (np.concatenate(part) for part in zip(*p.epoch(3), strict=True))
    n = sum(len(s.rows) for s in sections)
    assert len(index) == len(set(index)) == n // 4 * 4  # only an incomplete batch is left out
    assert set(views) == {0, 1, 2}
    other = np.concatenate([i for i, _ in p.epoch(4)])
    assert (other != index).any() and len(p) == n


def expression(pairs):
    """Of all pairs, in their order."""
    pairs._hidden = lambda *_: None
    return pairs.batch(np.arange(len(pairs)), None)[1]


def test_pairs_belong_together_and_shuffled_ones_do_not(sections, panel):
    """Row i of the expression is patch i's; shuffling keeps each section's set of profiles."""
    true, broken = (expression(pairs(sections, panel, shuffle_pairs=s)) for s in (False, True))
    start = 0
    for s in sections:
        part = slice(start, start := start + len(s.rows))
        expected = panel.transform(s.adata)[s.rows]
        np.testing.assert_array_equal(true[part], expected)
        moved = (broken[part] != true[part]).any(1).float().mean()
        assert moved > 0.9  # one or two may stay by chance
        order = [np.lexsort(np.asarray(t).T) for t in (true[part], broken[part])]
        np.testing.assert_array_equal(true[part][order[0]], broken[part][order[1]])
    again = expression(pairs(sections, panel, shuffle_pairs=True))
    other = expression(pairs(sections, panel, replace(TINY, seed=5), shuffle_pairs=True))
    assert torch.equal(again, broken) and not torch.equal(other, broken)


def test_too_few_pairs_are_refused(sections, tiny):
    with pytest.raises(InputError, match="batch_size=500"):
        finetune(sections, replace(tiny, batch_size=500), progress=False)


def test_parts_of_a_batch_make_up_the_batch(sections, panel):
    whole = list(pairs(sections, panel).epoch(0))
    parts = [list(pairs(sections, panel, share=(i, 4)).epoch(0)) for i in range(4)]
    assert len(whole) > 1
    for batch, *of in zip(whole, *parts, strict=True):
        assert torch.equal(batch[1], torch.cat([x for _, x in of]))
        torch.testing.assert_close(batch[0], torch.cat([hidden for hidden, _ in of]))
    with pytest.raises(InputError, match="batch_size=16: is no multiple of 3 processes"):
        pairs(sections, panel, share=(0, 3))


def test_where_the_cache_has_no_room_pairs_are_streamed_to_the_same_losses(
    trained, sections, tiny, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(cache, "ROOM", 0.0)
    with caplog.at_level(logging.INFO):
        _, history = finetune(sections[:1], tiny, cache_dir=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
    (said,) = (m for m in caplog.messages if m.startswith("prefix cache"))
    size = tiny.n_views * len(sections[0].rows) * 4 * 80 * 4 * 4  # float32, 80 maps of 64 px / 16
    assert re.match(rf"prefix cache: {size / 1e9:.3g} GB in {tmp_path} with .+ free: too l", said)
    for one, other in zip(trained[2], history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)


def test_a_cache_that_is_there_needs_no_room(sections, panel, tmp_path, monkeypatch):
    first = pairs(sections, panel, cached=True, cache_dir=tmp_path)
    monkeypatch.setattr(cache, "ROOM", 0.0)
    again = pairs(sections, panel, cached=True, cache_dir=tmp_path)
    for one, other in zip(first.cache, again.cache, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_damaged_cache_is_made_anew(sections, panel, tmp_path, caplog):
    """A flipped bit among thousands: its name says what the file must hold."""
    first = [np.array(a) for a in pairs(sections, panel, cached=True, cache_dir=tmp_path).cache]
    hurt, *_ = sorted(tmp_path.glob("*.npy"))
    content = bytearray(hurt.read_bytes())
    content[len(content) // 2] ^= 1
    hurt.write_bytes(content)
    again = pairs(sections, panel, cached=True, cache_dir=tmp_path).cache
    assert [m for m in caplog.messages if "damaged" in m and hurt.name in m]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def shards(sections, panel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(iter(sections), panel, TINY, folder)
    return folder


def test_shards_hold_what_sections_hold(sections, panel, shards):
    found, known = read_shards(shards, TINY)
    assert known.genes == panel.genes and [s.name for s in found] == [s.name for s in sections]
    for shard, section in zip(found, sections, strict=True):
        assert shard.digest == section.digest and len(shard.rows) == len(section.rows)
        assert [shard.key(i) for i in shard.rows] == section.keys
        rows, expected = shard.expression(panel), section.expression(panel)
        np.testing.assert_array_equal([rows[i] for i in shard.rows], expected)  # to the bit
        np.testing.assert_array_equal(shard.patches[:], section.patches)
        stored = (expected > expected.min(0)).sum()  # sparse: what is lowest is not stored
        assert len(rows.data) == stored < expected.size


def test_training_from_shards_is_training_from_memory(
    trained, panel, sections, tiny, shards, tmp_path
):
    """A full shuffle of what is on disk: the same losses, to the bit, streamed or not."""
    own = trained[1].panel
    write_shards(sections[:1], own, tiny, tmp_path)
    found, known = read_shards(tmp_path, tiny)
    _, history = finetune(found, tiny, panel=known, progress=False)
    assert [h["loss"] for h in history] == [h["loss"] for h in trained[2]]
    _, streamed = finetune(found, tiny, panel=known, cached=False, progress=False)
    for one, other in zip(streamed, trained[2], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)


def test_shards_are_kept_and_never_mixed(sections, panel, shards, tmp_path):
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in shards.iterdir()}
    assert len(write_shards(sections, panel, TINY, shards)) == 2
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in shards.iterdir()} == before
    other = GenePanel.fit([s.adata for s in sections], n_genes=9)
    pixels = sections[0].patches.copy()
    pixels[0, 0, 0, 0] ^= 1
    for call, said in (
        ((sections, other, TINY), "another gene panel"),
        ((sections, panel, replace(TINY, smooth=0.5)), "smooth=0.2, not smooth=0.5"),
        (([replace(sections[0], patches=pixels)], panel, TINY), "PA1.h5: holds other data"),
    ):
        with pytest.raises(InputError, match=said):
            write_shards(*call, shards)
    with pytest.raises(InputError, match="no shard of section 'PZ9'"):
        read_shards(shards, TINY, names=["PZ9"])
    with pytest.raises(InputError, match="holds no shards"):
        read_shards(tmp_path, TINY)
    (tmp_path / "X1.h5").write_bytes(before[shards / "PA1.h5"][1][:5000])
    with pytest.raises(InputError, match="X1.h5: is no shard"):
        Shard(tmp_path / "X1.h5")


def step(folder):
    found = load_file(folder / "step.safetensors")
    return found.pop("loss"), found


@pytest.fixture(scope="module")
def alone(phantom_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "out"
    parallel.main(phantom_root, out)
    return out


def same(one, other):
    """Loss to 1e-5, gradients to 1e-4 of the largest, and the same run."""
    (loss, gradients), (theirs, others) = step(one), step(other)
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert gradients.keys() == others.keys()
    assert any("lora_A" in n for n in gradients)
    largest = max(g.abs().max() for g in gradients.values())
    for name, gradient in gradients.items():
        assert (gradient - others[name]).abs().max() <= 1e-4 * largest, name
    runs = [(p / "run/metrics.jsonl").read_text().splitlines() for p in (one, other)]
    for a, b in zip(*(map(json.loads, lines) for lines in runs), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-3)


def test_two_processes_do_what_one_does(phantom_root, alone, tmp_path):
    """2 x 64 pairs are 1 x 128: the contrast's negatives and all statistics are the batch's."""
    here = {
        **os.environ,
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}:{REPOSITORY / 'book'}",
        "OMP_NUM_THREADS": "1",
    }
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    done = subprocess.run(
        [*launch, parallel.__file__, phantom_root, tmp_path / "out", "0"],
        env=here,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    same(tmp_path / "out", alone)


@pytest.mark.parametrize("chunk", [16, 50])
def test_a_batch_in_chunks_is_the_whole_batch(phantom_root, alone, tmp_path, chunk):
    parallel.main(phantom_root, tmp_path / "out", chunk)
    same(tmp_path / "out", alone)


def test_chunks_bound_what_a_step_holds(sections, panel):
    """The most values that are kept for the backward pass: those of one chunk."""
    model = SEAL.build(panel, replace(TINY, batch_size=64))
    hidden = torch.randn(64, 80, 4, 4)
    x = torch.randn(64, len(panel.genes))
    held = {}
    for chunk in (0, 8):
        kept = 0

        def pack(t):
            nonlocal kept
            kept += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(hidden, x, chunk=chunk)
        held[chunk] = kept
    assert held[8] < held[0] / 2
