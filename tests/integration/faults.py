"""How a fault is tested: good data, one thing damaged, one line on stderr, exit code 2.

A table of faults has a row for each: its name; what is done to the data, a function of the folder
in which they lie, or options added to the command, or both; words of the error message. Nothing
may have been written, and no long work begun.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import pytest

Damage = Callable[[Path], object]

SMALL = "--set hidden=32,16 --set project=16 --set batch_size=16 --set n_views=2"
LITE = f"{SMALL} --set patch_px=64 --set n_genes=40"
FEW_SPOTS = f"{SMALL} --set patch_um=64 --set patch_px=32"
COMMANDS = {  # each works on the good data: see test_cli.py
    "finetune": f"finetune --data legacy --train PA1 --out out --epochs 1 {LITE}",
    "crossval": f"crossval --data legacy --seeds 1 --out out --epochs 1 {LITE}",
    "shard": f"shard --data legacy --train PA1 --out out {LITE}",
    "shards": f"finetune --data shards --out out --epochs 1 {LITE}",
    "check": "check --data legacy --out out",
    "probe": "probe --run run --data legacy --train PA1 --test PB1 --json out",
    "retrieve": "retrieve --run run --data legacy --section PB1 --genes ERBB2 --out out",
    "sets": "retrieval-bench --run run --data legacy --gmt sets.gmt --json out",
    "bench": "hest-bench --root bench --run run --allow-leakage --json out",
    "embed": "embed --slides slides --backbone tf_efficientnet_lite0 --out out",
    "slides": "slide-bench --task task --features a=features --seeds 1 --json out",
    "h5ad": f"finetune --data h5ad --train S1 --out out --epochs 1 {FEW_SPOTS}",
    "visium": f"finetune --data visium --train S1 --out out --epochs 1 {FEW_SPOTS}",
    "xenium": f"finetune --data xenium --train S1 --out out --epochs 1 {FEW_SPOTS}",
    "zarr": f"finetune --data zarr --train S1 --out out --epochs 1 {FEW_SPOTS}",
    "hest": f"finetune --data hest --train S1 --out out --epochs 1 {FEW_SPOTS}",
    "ready": f"finetune --data ready --train S1 --out out --epochs 1 {FEW_SPOTS}",
}


@dataclass(frozen=True)
class Fault:
    """A row of a table of faults."""

    name: str
    command: str
    damage: Damage | None
    options: str
    message: str


def fault_table(command: str, *rows: tuple) -> list[Fault]:
    """The faults of one command, each (name, damage or options or both, message)."""
    faults = []
    for name, wrong, message in rows:
        if isinstance(wrong, str):
            damage, options = None, wrong
        elif callable(wrong):
            damage, options = wrong, ""
        else:
            damage, options = wrong
        faults.append(Fault(name, command, damage, options, message))
    return faults


def each_fault(faults: list[Fault]) -> pytest.MarkDecorator:
    """Run a test for each fault, under its name; no two may have the same."""
    names = [fault.name for fault in faults]
    assert len(set(names)) == len(names)
    return pytest.mark.parametrize("fault", faults, ids=names)


def prepare(good: Path, folder: Path, command: str, options: str = "") -> list[str]:
    """Copy what a command reads, and the run, from the good data; return its arguments."""
    arguments = [*COMMANDS[command].split(), *options.split()]
    names = {"run"}
    for argument in arguments:
        name, _, value = argument.partition("=")
        names.add(value or name)
    for name in names & set(os.listdir(good)):
        if (good / name).is_dir():
            shutil.copytree(good / name, folder / name)
        else:
            shutil.copy(good / name, folder / name)
    return arguments


def contents(folder: Path) -> dict[Path, bytes | None]:
    """All that is in a folder, to the byte."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def forbid_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every training, embedding and fit of a bag fail the test.

    An encoder may run on one image: that is how its weights are verified when they are loaded.
    """
    from seal_lite.encoders.vision import VisionEncoder
    from seal_lite.model.seal import SEAL
    from seal_lite.slides import bench

    def fail(*_, **__):
        pytest.fail("long work has begun")

    def forbid_batches(name: str):
        original = getattr(VisionEncoder, name)

        def run(encoder, images):
            return original(encoder, images) if len(images) == 1 else fail()

        monkeypatch.setattr(VisionEncoder, name, run)

    forbid_batches("prefix")
    forbid_batches("forward")
    monkeypatch.setattr(SEAL, "forward", fail)
    monkeypatch.setattr(SEAL, "forward_genes", fail)
    monkeypatch.setattr(bench, "score_bags", fail)


def check_fault(cli, good: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault):
    """One line, exit code 2, nothing written, no long work begun."""
    monkeypatch.chdir(folder)
    arguments = prepare(good, folder, fault.command, fault.options)
    if fault.damage is not None:
        fault.damage(folder)
    before = contents(folder)
    forbid_long_work(monkeypatch)
    code, output, error = cli(*arguments)
    line = error_line(error)
    assert fault.message in line
    assert len(line) < 500
    assert (code, output.strip()) == (2, "")
    assert contents(folder) == before


def error_line(error: str) -> str:
    """The one line of stderr that is the error message."""
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("seal-lite: ")]
    assert len(lines) == 1, error
    return lines[0]


# ------------------------------------------------------- what is done to good data: functions that
# return a function of the folder in which the data lie


def remove(path: str) -> Damage:
    """The file or folder is gone."""

    def damage(root: Path):
        if (root / path).is_dir():
            shutil.rmtree(root / path)
        else:
            (root / path).unlink()

    return damage


def truncate(path: str, share: float = 0.6) -> Damage:
    """The file ends early."""
    return lambda root: os.truncate(root / path, int(share * (root / path).stat().st_size))


def write(path: str, text: str) -> Damage:
    """The file holds another text."""
    return lambda root: (root / path).write_text(text)


def edit(path: str, change: Callable[[str], str]) -> Damage:
    """The file's text is changed."""

    def damage(root: Path):
        file = root / path
        file.write_text(change(file.read_text()))

    return damage


def replace(path: str, old: str, new: str, count: int = -1) -> Damage:
    """A text in the file is another."""
    return edit(path, lambda text: text.replace(old, new, count))


def edit_json(path: str, key: str, value) -> Damage:
    """A key of a JSON file's dictionary has another value."""
    return edit(path, lambda text: json.dumps({**json.loads(text), key: value}))


def copy(path: str, other: str) -> Damage:
    """The file, or folder, is there under another name, too."""

    def damage(root: Path):
        if (root / path).is_dir():
            shutil.copytree(root / path, root / other)
        else:
            shutil.copy(root / path, root / other)

    return damage


def make_folder(path: str) -> Damage:
    """A folder is there."""
    return lambda root: (root / path).mkdir()


def edit_h5(path: str, change: Callable[[h5py.File], object]) -> Damage:
    """The HDF5 file is changed."""

    def damage(root: Path):
        with h5py.File(root / path, "a") as file:
            change(file)

    return damage


def declare_terabytes(path: str, dataset: str) -> Damage:
    """A dataset of the HDF5 file declares 4 TB and holds nothing: a bomb."""

    def change(file: h5py.File):
        del file[dataset]
        file.create_dataset(dataset, (2**40,), "f4", chunks=(2**20,))

    return edit_h5(path, change)


def point_elsewhere(group: str) -> Callable[[h5py.File], object]:
    """An index of a sparse matrix lies outside it."""

    def change(file: h5py.File):
        file[group]["indices"][0] = 10**6

    return change


def all_of(*damages: Damage) -> Damage:
    """Several things are damaged."""
    return lambda root: [damage(root) for damage in damages]


def copy_pa1_to_pb1(root: Path) -> None:
    """PB1 is PA1 under another name, as it happens with real data, which have no ground truth."""
    data = root / "legacy/data"
    shutil.copy(data / "ST-cnts/PA1.tsv.gz", data / "ST-cnts/PB1.tsv.gz")
    spots = data / "ST-spotfiles"
    shutil.copy(spots / "PA1_selection.tsv", spots / "PB1_selection.tsv")
    shutil.rmtree(root / "legacy/truth")
