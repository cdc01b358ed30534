"""Training and embedding keep close to the network's own speed, in bounded memory."""

import sys

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
