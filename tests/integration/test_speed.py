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
        assert result[work]["rate"] > 0
        assert result[work]["limit"] > 0
    # The frozen blocks are part of the streamed limit alone.
    assert result["streamed"]["limit"] < result["cached"]["limit"]


def test_a_slide_is_embedded_as_by_a_loop_as_tridents_and_both_are_timed(tmp_path):
    from slide_throughput import compare

    image = np.full((1000, 1400, 3), 235, np.uint8)  # 0.5 mm of glass with tissue on it
    image[:, 100:1300] = np.random.default_rng(0).integers(60, 200, (1000, 1200, 3))
    image[..., 1] //= 2
    result = compare(image, tmp_path, backbone="test_vit", workers=0, rounds=1)
    with h5py.File(tmp_path / "ours-0/slide.h5") as ours, h5py.File(tmp_path / "loop-0.h5") as loop:
        assert len(ours["features"]) == result["patches"] > 4
        assert np.abs(ours["features"][:] - loop["features"][:]).max() < 1e-4
    assert result["ratio"] == pytest.approx(result["ours"]["rate"] / result["loop"]["rate"])
    assert result["ours"]["limit"] == result["loop"]["limit"] > 0


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_an_epoch_streams_shards_in_bounded_memory(phantom_root, tmp_path):
    from bench import python

    folder = tmp_path / "shards"
    python("scale.py", "write", folder, 6000, phantom_root)
    epoch = python("scale.py", "train", folder)
    assert len(list(folder.glob("*.h5"))) == 2
    assert epoch["pairs"] == 6000
    assert epoch["disk_bytes"] > 6000 * 32 * 32 * 3
    assert epoch["peak_bytes"] < 4 * 2**30
