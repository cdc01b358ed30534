"""A run folder is read strictly or not at all, and gives back every output to the bit."""

import json
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from seal_lite import SEAL, Config, InputError
from seal_lite.encoders.registry import config_for

HEADS = "heads.safetensors"
ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a finished run's folder."""
    return shutil.copytree(trained[0], tmp_path / "copy")


def rewrite(path, change):
    """Change a JSON file's content, or a safetensors file's tensors, in place."""
    from safetensors.torch import load_file, save_file

    if path.suffix == ".json":
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)


def rename_a_tensor(tensors):
    tensors["odd.name"] = tensors.pop(next(iter(tensors)))


def drop_a_tensor(tensors):
    tensors.pop(next(iter(tensors)))


def drop_a_gene(panel):
    for key in ("genes", "mean", "std"):
        panel[key] = panel[key][:-1]


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def change_config(**changes):
    return lambda run: rewrite(run / "config.json", lambda settings: settings.update(changes))


def change_base(run):
    rewrite(run / "base.json", lambda base: base.update(sha256="0" * 64))


HEADS_DIFFER = f"{HEADS}: tensor .* does not fit this model"
ADAPTER_DIFFERS = "adapter_model.safetensors: tensor .* does not fit this model"
DAMAGE = {  # what is done to the run, and what the error says
    "heads: renamed tensor": (lambda run: rewrite(run / HEADS, rename_a_tensor), HEADS_DIFFER),
    "heads: lacking tensor": (lambda run: rewrite(run / HEADS, drop_a_tensor), HEADS_DIFFER),
    "heads: truncated": (lambda run: truncate(run / HEADS), f"{HEADS}: cannot be read"),
    "heads: absent": (lambda run: (run / HEADS).unlink(), f"{HEADS}: cannot be read"),
    "adapter: renamed tensor": (
        lambda run: rewrite(run / ADAPTER, rename_a_tensor),
        ADAPTER_DIFFERS,
    ),
    "adapter: lacking tensor": (lambda run: rewrite(run / ADAPTER, drop_a_tensor), ADAPTER_DIFFERS),
    "adapter: absent": (
        lambda run: shutil.rmtree(run / "adapter"),
        "adapter_model.safetensors: cannot be read",
    ),
    "panel: a gene fewer": (lambda run: rewrite(run / "panel.json", drop_a_gene), HEADS_DIFFER),
    "panel: absent": (lambda run: (run / "panel.json").unlink(), "panel.json: cannot be read"),
    "config: another width": (change_config(hidden=[32, 8]), HEADS_DIFFER),
    "config: another LoRA rank": (
        change_config(lora_rank=4),
        "adapter_config.json: r is 32, but 4",
    ),
    "config: another backbone": (
        change_config(backbone="test_vit", patch_px=160),
        "base.json: the run was tuned from tf_efficientnet_lite0, but config.json names test_vit",
    ),
    "config: unknown key": (change_config(colour="blue"), "config.json: .*colour"),
    "config: truncated": (lambda run: truncate(run / "config.json"), "config.json: cannot be read"),
    "base: other weights": (change_base, "base.json: .* has other weights"),
    "base: absent": (lambda run: (run / "base.json").unlink(), "base.json: cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_refused(run, damage):
    """Fault of released SEAL: strict=False drops what does not fit and goes on with noise.

    Each damage is found by itself, without the checksums, which a run of an older version lacks.
    """
    (run / "checksums.json").unlink()
    do_damage, message = DAMAGE[damage]
    do_damage(run)
    with pytest.raises(InputError, match=f"{re.escape(str(run))}.*{message}"):
        SEAL.from_pretrained(run)


def test_a_loaded_run_reproduces_every_output_to_the_bit(trained, sections):
    from seal_lite.encoders.embedding import embed_patches

    run, model, _ = trained
    loaded = SEAL.from_pretrained(run)
    section = sections[1]
    e = embed_patches(model.encoder, section.patches)
    x = section.expression(model.panel)
    np.testing.assert_array_equal(embed_patches(loaded.encoder, section.patches), e)
    np.testing.assert_array_equal(section.expression(loaded.panel), x)
    np.testing.assert_array_equal(loaded.encode_genes(x), model.encode_genes(x))
    np.testing.assert_array_equal(loaded.project_images(e), model.project_images(e))
    np.testing.assert_array_equal(loaded.predict_genes(e), model.predict_genes(e))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_files_of_a_run_are_as_readable_as_the_user_wants(trained, tmp_path, umask, mode):
    _, model, _ = trained
    before = os.umask(umask)
    try:
        model.save_pretrained(tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.*")}
    assert len(modes) > 5
    assert set(modes.values()) == {mode}, modes


def test_a_run_of_an_older_version_loads(run, tiny):
    """It lacks a setting and a file that have come since, and has infinity as a word."""
    (run / "checksums.json").unlink()
    rewrite(run / "config.json", lambda settings: settings.pop("n_flows"))
    change_config(grad_clip=float("inf"))(run)
    assert "Infinity" in (run / "config.json").read_text()
    assert SEAL.from_pretrained(run).config == replace(tiny, grad_clip=float("inf"))


def test_a_run_without_lora_keeps_its_tuned_blocks(sections, tiny, tmp_path):
    import torch
    from safetensors.torch import load_file

    from seal_lite.data.genes import GenePanel

    config = replace(tiny, lora_rank=0)
    model = SEAL.build(GenePanel.from_config(sections[:1], config), config)
    tuned = [p for p in model.encoder.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in tuned:
            p.add_(0.1)
    model.save_pretrained(tmp_path / "run")
    loaded = SEAL.from_pretrained(tmp_path / "run")
    same = loaded.state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in model.state_dict().items())
    assert not (tmp_path / "run/adapter").exists()
    assert not any(name.startswith("encoder") for name in load_file(tmp_path / "run" / HEADS))
    blocks = load_file(tmp_path / "run/blocks.safetensors")
    assert len(blocks) == len(tuned) > 0
    assert all(name.startswith("blocks.4.") for name in blocks)
    (tmp_path / "run/blocks.safetensors").unlink()
    with pytest.raises(InputError, match="blocks.safetensors"):
        SEAL.from_pretrained(tmp_path / "run")


def test_tensors_of_another_shape_are_refused_with_their_source(trained):
    _, model, _ = trained
    tensors = model.trainable()
    tensors["image_decoder.0.bias"] = tensors["image_decoder.0.bias"][:-1]
    with pytest.raises(InputError, match="checkpoint: tensor image_decoder.0.bias does not fit"):
        model.load_trainable(tensors, source="checkpoint")


def test_a_run_on_the_hub_is_fetched_by_its_name(monkeypatch, run):
    """Only the files that a run consists of are fetched."""
    requests = {}

    def snapshot(repository, allow_patterns):
        requests[repository] = allow_patterns
        return str(run)

    monkeypatch.setattr("seal_lite.model.storage.snapshot_download", snapshot)
    loaded = SEAL.from_pretrained("hf-hub:somebody/tuned-uni")
    assert list(requests) == ["somebody/tuned-uni"]
    assert not any(p.endswith((".pt", ".bin", ".pkl")) for p in requests["somebody/tuned-uni"])
    assert loaded.config == Config.from_json(run / "config.json")


def test_a_run_that_the_hub_does_not_have_is_an_error(monkeypatch):
    def refuse(*args, **options):
        raise OSError("no such repository")

    monkeypatch.setattr("seal_lite.model.storage.snapshot_download", refuse)
    with pytest.raises(InputError, match="hf-hub:no/thing: cannot be fetched"):
        SEAL.from_pretrained("hf-hub:no/thing")


@pytest.fixture
def run_of_local_folder(trained, tmp_path):
    """A run whose network is in a local folder."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=0)
    timm.models.save_for_hf(network, tmp_path / "network", safe_serialization=True)
    _, model, _ = trained
    backbone = f"local-dir:{tmp_path / 'network'}"
    config = replace(config_for(backbone), hidden=(8,), project=8, tune_blocks=1)
    SEAL.build(model.panel, config, device="cpu").save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_a_run_may_have_its_network_in_a_local_folder(run_of_local_folder):
    loaded = SEAL.from_pretrained(run_of_local_folder)
    assert loaded.config.backbone.startswith("local-dir:")


@pytest.mark.parametrize("scheme", ["local-dir", "LOCAL-DIR", " local-dir", "file"])
def test_a_run_on_the_hub_does_not_choose_a_local_folder(run_of_local_folder, monkeypatch, scheme):
    """timm takes its sources in any case."""
    path = run_of_local_folder / "config.json"
    path.write_text(path.read_text().replace("local-dir", scheme))
    folder = str(run_of_local_folder)
    monkeypatch.setattr("seal_lite.model.storage.snapshot_download", lambda *_, **__: folder)
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("the folder is read"))
    with pytest.raises(InputError, match="hf-hub:me/run: its config.json names backbone="):
        SEAL.from_pretrained("hf-hub:me/run")
