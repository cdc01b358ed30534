"""Two processes do what one process does: 2 x 64 pairs are 1 x 128.

They are started by `torchrun`, as `accelerate launch` does it for GPUs. For CPUs that would start
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


SHORT = ("step", "room", "cache")


def run_two(phantom_root, out, *names):
    """Run jobs of parallel.py in two processes, each into a folder of its name in `out`."""
    path = os.pathsep.join([os.path.dirname(TESTS), TESTS])
    environment = {**os.environ, **ON_CPU, "PYTHONPATH": path}
    command = [*LAUNCH, parallel.__file__, str(phantom_root), str(out), *names]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (out / "processes").read_text() == "2"


@pytest.fixture(scope="module")
def two(phantom_root, tmp_path_factory):
    """The folder into which two processes have written what the short jobs write."""
    out = tmp_path_factory.mktemp("two")
    run_two(phantom_root, out, *SHORT)
    return out


@pytest.fixture(scope="module")
def one(phantom_root, tmp_path_factory):
    """The folder into which this process has written the same."""
    out = tmp_path_factory.mktemp("one")
    parallel.main(phantom_root, out, SHORT)
    return out


def test_two_processes_have_the_loss_and_the_gradients_of_one(one, two):
    """Negatives and statistics are those of the whole batch."""
    from safetensors.torch import load_file

    of_one = load_file(one / "step/step.safetensors")
    of_two = load_file(two / "step/step.safetensors")
    assert of_one.keys() == of_two.keys()
    assert any("lora_A" in name for name in of_one)
    assert of_one.pop("loss").item() == pytest.approx(of_two.pop("loss").item(), abs=1e-5)
    largest = max(gradient.abs().max() for gradient in of_one.values())
    for name, gradient in of_one.items():
        assert (gradient - of_two[name]).abs().max() <= 1e-4 * largest, name


def test_processes_cache_together_or_not_at_all(two):
    """One that streams would set the pace, and the others' activations would be of no use."""
    for process in (0, 1):
        stores = json.loads((two / f"room/{process}.json").read_text())
        assert stores == {"first": False, "all": True}


def test_processes_fill_the_cache_together(one, two):
    """Each computes its own sections, and reads those of the other."""
    alone = json.loads((one / "cache/0.json").read_text())
    assert len(alone["computed"]) == 2
    for process in (0, 1):
        result = json.loads((two / f"cache/{process}.json").read_text())
        assert result["computed"] == [alone["computed"][process]]
        assert result["sums"] == pytest.approx(alone["sums"], rel=1e-6)


def read_losses(folder):
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.nightly
def test_two_processes_have_the_run_of_one(phantom_root, tmp_path):
    parallel.main(phantom_root, tmp_path / "one", ["run"])
    run_two(phantom_root, tmp_path / "two", "run")
    losses = read_losses(tmp_path / "two")
    assert losses == pytest.approx(read_losses(tmp_path / "one"), abs=1e-3)
