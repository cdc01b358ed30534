"""A run's folder: all that a result needs, one run's alone, whatever version wrote it."""

import ast
import importlib
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY

from seal_lite import Config, InputError, finetune
from seal_lite.data.genes import GenePanel
from seal_lite.model.losses import seal_loss
from seal_lite.training.callbacks import Callback
from seal_lite.training.loop import _loss_name


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a finished run's folder."""
    return shutil.copytree(trained[0], tmp_path / "run")


def edit_provenance(run, **changes):
    path = run / "provenance.json"
    record = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(record))


def test_run_folder_holds_all_that_a_result_needs(trained):
    from safetensors.torch import load_file

    run, _, history = trained
    files = {str(path.relative_to(run)) for path in contents(run)}
    needed = {
        "config.json",
        "panel.json",
        "base.json",
        "heads.safetensors",
        "metrics.jsonl",
        "provenance.json",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    assert needed <= files
    assert not any(name.endswith((".pt", ".part", ".bin", ".pkl")) for name in files)
    assert Config.from_json(run / "config.json") == TINY
    adapter = json.loads((run / "adapter/adapter_config.json").read_text())
    assert (adapter["peft_type"], adapter["r"], adapter["lora_alpha"]) == ("LORA", 32, 64.0)
    tensors = load_file(run / "adapter/adapter_model.safetensors")
    assert sum("lora_" in name for name in tensors) == 12  # A and B of six layers
    assert all(re.search(r"lora_|\.conv_dw\.|\.bn\d\.", name) for name in tensors)
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert epochs == history


@pytest.mark.parametrize("n, words", [(1, "1 thread)"), (4, "4 threads)")])
def test_a_device_has_the_threads_in_use(n, words, monkeypatch):
    from seal_lite.training import provenance

    monkeypatch.setattr(provenance.torch, "get_num_threads", lambda: n)
    assert provenance._name_of(torch.device("cpu")).endswith(words)


def test_a_device_is_the_one_that_was_used(sections, monkeypatch):
    """A run on the CPU of a machine with a card did not use the card."""
    from seal_lite.encoders import devices
    from seal_lite.training.provenance import provenance

    monkeypatch.setattr(devices, "has_cuda", lambda: True)
    about = provenance(sections, TINY, device="cpu")
    assert about["device"].startswith("cpu (")


@pytest.mark.parametrize("module", ["evaluation.crossval", "studies.run", "cli.evaluate"])
def test_every_result_names_the_device_it_was_given(module):
    """`auto` would name the card of a machine on which `--device cpu` was asked for."""
    source = Path(importlib.import_module(f"seal_lite.{module}").__file__).read_text()
    calls = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "provenance"
    ]
    assert calls
    for call in calls:
        assert "device" in {keyword.arg for keyword in call.keywords}, call.lineno


def test_provenance_says_what_a_result_was_computed_from(trained):
    import seal_lite

    record = json.loads((trained[0] / "provenance.json").read_text())
    assert record["sections"] == ["PA1"]
    assert record["seed"] == 0
    assert record["package"] == seal_lite.__version__
    assert record["versions"]["torch"] == torch.__version__
    for key in ("data_sha256", "config_sha256", "backbone_sha256", "panel_sha256"):
        assert re.fullmatch("[0-9a-f]{64}", record[key]), key
    for key in ("commit", "device", "finished"):
        assert record[key], key
    assert "loss" not in record  # the method's own


def test_a_folder_is_claimed_by_any_version_of_the_package(run, sections):
    """Version, commit, libraries and machine say where a result is from, not what it is."""
    edit_provenance(run, package="0.0.1", commit="abc", versions={"torch": "2.4"}, device="cpu")
    before = contents(run)
    finetune(sections[:1], TINY, out=run, progress=False)
    assert contents(run) == before


def own_loss(outputs, config):
    return seal_loss(outputs, config)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("config_sha256", {"config": replace(TINY, lr_lora=1e-3)}),
        ("shuffle_pairs", {"shuffle_pairs": True}),
        ("loss", {"loss": own_loss}),
        ("callbacks", {"callbacks": [Callback()]}),
        ("extra_expression_sha256", {"extra_expression": np.zeros((3, 40), np.float32)}),
    ],
)
def test_a_folder_of_another_run_is_refused_and_left_alone(trained, sections, key, change):
    run, model, _ = trained
    before = contents(run)
    options = {"config": TINY, "panel": model.panel, "progress": False, **change}
    with pytest.raises(InputError, match=rf"{run}: holds other work \({key}\)"):
        finetune(sections[:1], out=run, **options)
    assert contents(run) == before


def test_a_folder_of_other_data_or_genes_is_refused(trained, sections):
    run, model, _ = trained
    with pytest.raises(InputError, match=r"other work \(sections\)"):
        finetune(sections[1:], TINY, out=run, progress=False)
    absent = next(g for g in sections[0].adata.var_names if g not in model.panel.genes)
    clipped = replace(model.panel, clip=1.0)
    for other in ({"include": [absent]}, {"panel": clipped}):
        with pytest.raises(InputError, match=r"other work \(panel_sha256\)"):
            finetune(sections[:1], TINY, out=run, progress=False, **other)


def test_a_panel_is_the_same_after_rounding_and_reading(trained):
    run, model, _ = trained
    panel = model.panel
    rounded = replace(panel, mean=panel.mean * (1 + 1e-12))
    assert GenePanel.load(run / "panel.json").digest == rounded.digest == panel.digest
    assert replace(panel, mean=panel.mean * 1.1).digest != panel.digest


def test_a_loss_is_told_from_itself_with_other_arguments():
    names = {_loss_name(partial(own_loss, config=value)) for value in (1, 2)}
    assert len(names) == 2
    assert _loss_name(partial(own_loss)) == "own_loss()"


def test_a_folder_with_other_files_is_refused_and_left_alone(sections, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not of this work"):
        finetune(sections[:1], TINY, out=tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_folder_that_is_removed_ends_the_run_after_that_epoch(sections, tmp_path, is_replaced):
    """Hours later there would be a run without its beginning."""

    class Remove(Callback):
        epochs = 0

        def on_epoch_end(self, model, history):
            self.epochs += 1
            shutil.rmtree(out)
            if is_replaced:
                out.mkdir()

    out = tmp_path / "run"
    remove = Remove()
    with pytest.raises(InputError, match="run: was removed while this run wrote there"):
        finetune(sections[:1], TINY, out=out, callbacks=[remove], progress=False)
    assert remove.epochs == 1
    assert not out.exists() or not list(out.iterdir())


def test_a_damaged_checkpoint_is_an_error_that_names_it(sections, tmp_path):
    class Stop(Callback):
        def on_fit_start(self, model):
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        finetune(sections[:1], TINY, out=out, callbacks=[Stop()], progress=False)
    (out / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="checkpoint.pt: cannot be read .+ remove it"):
        finetune(sections[:1], TINY, out=out, callbacks=[Stop()], progress=False)


def test_the_backbones_hash_is_that_of_what_its_row_sets():
    """A field that a later version adds, and leaves at its default, changes nothing."""
    from dataclasses import dataclass

    from seal_lite.encoders.networks.row import Backbone
    from seal_lite.training import provenance

    @dataclass(frozen=True)
    class Later(Backbone):
        polish: bool = False

    row = Backbone(name="a", loader="b", source="c", dim=3, px=160)
    settings = {"name": "a", "loader": "b", "source": "c", "dim": 3, "px": 160}
    hash_of = provenance._backbone_sha256
    assert hash_of(Later(**settings)) == hash_of(row)
    assert hash_of(replace(row, px=161)) != hash_of(row)
