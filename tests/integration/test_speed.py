"""What makes training and embedding fast changes no result: the loops of benchmarks/steps.py."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

JOB = {"sections": ["PA1"], "px": 64, "um": 224.0, "batch": 16, "steps": 2, "blocks": 1}
TUTORIAL = ["cache", "cut", "merged", "layout"]  # what is off in the loop that tutorials show


@pytest.fixture
def run(phantom_root, monkeypatch):
    """Run steps with something switched off; returns what steps.py prints."""
    import steps
    from seal_lite.encoders import vision

    assert set(steps.OFF) == {*TUTORIAL, "allocator"}  # which is set once, on import
    monkeypatch.setattr(vision, "channels_last", vision.channels_last)  # put back afterwards

    def run(off, **job):
        job = {**steps.DEFAULTS, **JOB, "data": str(phantom_root), **job, "off": off}
        return steps.run(SimpleNamespace(**job))

    return run


@pytest.mark.parametrize(
    "feature_layer", ["blocks.4", pytest.param("blocks.6", marks=pytest.mark.nightly)]
)
def test_three_steps_have_the_losses_of_the_tutorials_loop(run, feature_layer):
    fast = run([], feature_layer=feature_layer)
    slow = run(TUTORIAL, feature_layer=feature_layer)
    assert len(set(fast["losses"])) == 3
    np.testing.assert_allclose(fast["losses"], slow["losses"], atol=1e-4)


def test_an_embedding_is_that_of_the_whole_network(run):
    job = {"feature_layer": "blocks.4", "blocks": 0, "embedding": True}
    fast = run([], **job)
    slow = run(["layout", "cut"], **job)
    assert fast["sum"] == pytest.approx(slow["sum"], rel=1e-4)


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
