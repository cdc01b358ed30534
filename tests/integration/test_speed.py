"""Training and embedding keep close to the network's own speed, in bounded memory."""

import sys

import h5py
import numpy as np
import pytest


def test_loop_and_limit_are_timed_side_by_side(phantom_root):
    from throughput import run

    job = {"data": str(phantom_root), "sections": ["PA1"], "patch_px": 64, "batch_size": 16}
    result = run({**job, "tune_blocks": 1})
    for work in ("cached", "streamed", "embedding"):
        assert result[work]["limit"] > 0
        assert result[work]["share"] > 0.3
    # The frozen blocks are part of the streamed limit alone.
    assert result["streamed"]["limit"] < result["cached"]["limit"]


def test_a_slide_is_embedded_as_by_a_loop_as_tridents_and_both_are_timed(tmp_path):
    from slide_throughput import compare

    image = np.full((1000, 1400, 3), 235, np.uint8)  # 0.5 mm of glass with tissue on it
    image[:, 100:1300] = np.random.default_rng(0).integers(60, 200, (1000, 1200, 3))
    image[..., 1] //= 2
    result = compare(image, tmp_path, backbone="test_vit", workers=0, turns=2)
    with h5py.File(tmp_path / "ours-0/slide.h5") as ours, h5py.File(tmp_path / "loop-0.h5") as loop:
        assert len(ours["features"]) == result["patches"] > 4
        assert np.abs(ours["features"][:] - loop["features"][:]).max() < 1e-4
    assert result["ratio"] > 0.5
    assert result["ours"]["limit"] == result["loop"]["limit"] > 0


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_an_epoch_streams_shards_in_bounded_memory(phantom_root, tmp_path):
    """Of what more shards hold, a process that read them whole would hold all, too."""
    from processes import python

    epochs = {}
    for pairs, n_shards in ((6000, 2), (16_000, 4)):
        folder = tmp_path / str(pairs)
        python("scale.py", "write", folder, pairs, phantom_root)
        epochs[pairs] = python("scale.py", "train", folder)
        assert len(list(folder.glob("*.h5"))) == n_shards
        assert epochs[pairs]["pairs"] == pairs
    more = {key: epochs[16_000][key] - epochs[6000][key] for key in ("disk_bytes", "peak_bytes")}
    assert more["disk_bytes"] > 10_000 * 32 * 32 * 3
    assert more["peak_bytes"] < more["disk_bytes"] / 2


def test_our_probe_scores_as_the_published_loop_does():
    from bench import probing

    result = probing(samples=2, n=300, d=300, genes=3)
    assert result["largest_difference"] < 0.02  # LSQR stops a step apart
    assert min(result["seconds"].values()) > 0
