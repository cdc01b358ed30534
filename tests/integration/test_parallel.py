"""Two processes do what one process does: 2 x 64 pairs are 1 x 128.

They are started by `torchrun`, as `accelerate launch` does it for cards. For CPUs that would start
a single one.
"""

import json
import os
import subprocess
import sys

import parallel
import pytest

TESTS = os.path.dirname(os.path.dirname(parallel.__file__))
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ON_CPU = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


@pytest.fixture
def run_two(phantom_root, tmp_path):
    """Run a function of parallel.py in two processes; returns the folder they wrote into."""

    def run(what):
        path = os.pathsep.join([os.path.dirname(TESTS), TESTS])
        environment = {**os.environ, **ON_CPU, "PYTHONPATH": path}
        out = tmp_path / "two"
        command = [*LAUNCH, parallel.__file__, str(phantom_root), str(out), what]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert (out / "processes").read_text() == "2"
        return out

    return run


def test_two_processes_have_the_loss_and_the_gradients_of_one(run_two, phantom_root, tmp_path):
    """Negatives and statistics are those of the whole batch."""
    from safetensors.torch import load_file

    parallel.main(phantom_root, tmp_path / "one", "step")
    one = load_file(tmp_path / "one/step.safetensors")
    two = load_file(run_two("step") / "step.safetensors")
    assert one.keys() == two.keys()
    assert any("lora_A" in name for name in one)
    assert one.pop("loss").item() == pytest.approx(two.pop("loss").item(), abs=1e-5)
    largest = max(gradient.abs().max() for gradient in one.values())
    for name, gradient in one.items():
        assert (gradient - two[name]).abs().max() <= 1e-4 * largest, name


def test_processes_cache_together_or_not_at_all(run_two):
    """One that streams would set the pace, and the others' activations would be of no use."""
    folder = run_two("room")
    for process in (0, 1):
        stores = json.loads((folder / f"{process}.json").read_text())
        assert stores == {"first": False, "all": True}


def test_processes_fill_the_cache_together(run_two, phantom_root, tmp_path):
    """Each computes its own sections, and reads those of the other."""
    parallel.main(phantom_root, tmp_path / "one", "cache")
    one = json.loads((tmp_path / "one/0.json").read_text())
    assert len(one["computed"]) == 2
    folder = run_two("cache")
    for process in (0, 1):
        result = json.loads((folder / f"{process}.json").read_text())
        assert result["computed"] == [one["computed"][process]]
        assert result["sums"] == pytest.approx(one["sums"], rel=1e-6)


def read_losses(folder):
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.nightly
def test_two_processes_have_the_run_of_one(run_two, phantom_root, tmp_path):
    parallel.main(phantom_root, tmp_path / "one", "run")
    losses = read_losses(run_two("run"))
    assert losses == pytest.approx(read_losses(tmp_path / "one"), abs=1e-3)
