"""One loop: reproducible, resumable to the bit, the same with and without the cache."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file

from seal_lite import Config, preset
from seal_lite.encoders.embedding import embed_patches
from seal_lite.encoders.vision import build_encoder
from seal_lite.errors import InputError
from seal_lite.model.seal import SEAL
from seal_lite.training.loader import Pairs
from seal_lite.training.loop import finetune, learning_rate
from seal_lite.training.provenance import code_hash


def weights(model):
    return {k: v for k, v in model.state_dict().items()}


def same_bits(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def losses(history):
    return [{k: h[k] for k in ("loss", "gene", "kl", "clip", "image") if k in h} for h in history]


def test_run_folder_holds_all_that_a_result_needs(trained, sections, tiny):
    run, model, history = trained
    files = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
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
    assert needed <= files and not any(f.endswith((".pt", ".part", ".bin", ".pkl")) for f in files)
    assert Config.from_json(run / "config.json") == tiny
    adapter = json.loads((run / "adapter/adapter_config.json").read_text())
    assert (adapter["peft_type"], adapter["r"], adapter["lora_alpha"]) == ("LORA", 32, 64.0)
    kept = load_file(run / "adapter/adapter_model.safetensors")
    assert sum("lora_" in k for k in kept) == 12  # A and B of six
    assert all(re.search(r"lora_|\.conv_dw\.|\.bn\d\.", k) for k in kept)
    record = json.loads((run / "provenance.json").read_text())
    assert record["sections"] == ["PA1"] and record["seed"] == 0 and record["finished"]
    for key in ("data_sha256", "config_sha256", "code_sha256", "commit", "versions", "device"):
        assert record[key], key
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert logged == history


def test_history_names_its_terms_and_phases(trained):
    _, _, history = trained
    assert [h["phase"] for h in history] == ["genes", "joint", "joint"]
    assert {"gene", "kl", "loss"} <= set(history[0]) and "clip" not in history[0]
    for h in history[1:]:
        expected = TINY.w_clip * h["clip"] + TINY.w_gene * h["gene"] + TINY.w_image * h["image"]
        assert h["loss"] == pytest.approx(expected, rel=1e-5)
    assert history[-1]["loss"] < history[1]["loss"]
    assert history[-1]["lr_lora"] == pytest.approx(0, abs=1e-12)


def test_training_moves_the_embedding_and_leaves_the_base(trained, sections):
    _, model, _ = trained
    frozen = build_encoder(TINY.backbone)
    base = frozen.base.state_dict()
    for name, tensor in model.encoder.base.state_dict().items():
        if "lora_" not in name and "modules_to_save" not in name:
            plain = name.replace("base_layer.", "").replace("original_module.", "")
            assert torch.equal(tensor, base[plain]), name
    moved = embed_patches(model.encoder, sections[1].patches) - embed_patches(
        frozen, sections[1].patches
    )
    assert np.abs(moved).max() > 1e-3


def test_finished_run_is_loaded_not_repeated(trained, sections, tiny, monkeypatch):
    run, model, history = trained
    monkeypatch.setattr(SEAL, "forward", lambda *_: pytest.fail("trained again"))
    again, told = finetune(sections[:1], tiny, out=run, progress=False)
    assert told == history and same_bits(again, model)


def test_other_settings_data_or_genes_are_refused_and_nothing_is_written(
    trained, sections, tiny, tmp_path
):
    run = trained[0]
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    absent = next(g for g in sections[0].adata.var_names if g not in trained[1].panel.genes)
    for change in (
        {"config": replace(tiny, lr_lora=1e-3)},
        {"sections": sections[1:]},
        {"shuffle_pairs": True},
        {"include": [absent]},
    ):
        call = {"sections": sections[:1], "config": tiny, "progress": False, **change}
        with pytest.raises(InputError, match=str(run)):
            finetune(call.pop("sections"), call.pop("config"), out=run, **call)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not of this work"):
        finetune(sections[:1], tiny, out=tmp_path, progress=False)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("batch", [0, 3, 9], ids=["at once", "in the warm-up", "in an epoch"])
def test_interrupted_run_resumes_to_the_same_bits(
    trained, sections, tiny, tmp_path, monkeypatch, batch
):
    """Broken off in the middle of an epoch; 4 batches an epoch. Also: one seed, one result."""
    _, model, history = trained
    epochs, seen = Pairs.epoch, iter(range(10**6))

    def broken(self, number):
        for pair in epochs(self, number):
            if next(seen) == batch:
                raise KeyboardInterrupt
            yield pair

    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Pairs, "epoch", broken)
        finetune(sections[:1], tiny, out=out, progress=False)
    assert (out / "checkpoint.pt").exists() == (batch > 4)
    with pytest.raises(InputError, match="that `finetune` finished"):
        SEAL.from_pretrained(out)  # an unfinished run is none
    torch.rand(3), np.random.rand(3)  # whatever else the process drew
    resumed, told = finetune(sections[:1], tiny, out=out, progress=False)
    assert losses(told) == losses(history) and same_bits(resumed, model)
    assert not (out / "checkpoint.pt").exists()


def test_another_seed_is_another_result(trained, sections, tiny):
    _, history = finetune(sections[:1], replace(tiny, seed=1, epochs=1), progress=False)
    assert losses(history)[0] != losses(trained[2])[0]


def test_cached_and_plain_loop_give_the_same_losses(trained, sections, tiny):
    _, plain = finetune(sections[:1], tiny, cached=False, progress=False)
    for one, other in zip(losses(trained[2]), losses(plain), strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_learning_rate_rises_and_falls():
    rate = [learning_rate(s, steps=100, warmup=0.1) for s in range(100)]
    np.testing.assert_allclose(rate[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(
        rate[10:], [0.5 * (1 + math.cos(math.pi * k / 90)) for k in range(90)]
    )
    assert learning_rate(100, steps=100, warmup=0.1) == pytest.approx(0, abs=1e-12)
    assert learning_rate(-1, steps=100, warmup=0.1) == 1.0  # the gene encoder's own epochs
    assert learning_rate(0, steps=100, warmup=0.0) == 1.0


def test_two_parameter_groups_with_their_own_rates(sections, tiny, monkeypatch):
    made, real = [], torch.optim.AdamW

    def record(groups, **options):
        made.append(([(len(g["params"]), g["lr"]) for g in groups], options))
        return real(groups, **options)

    monkeypatch.setattr(torch.optim, "AdamW", record)
    config = replace(tiny, epochs=1, gene_warmup_epochs=0, n_views=1)
    model, _ = finetune(sections[:1], config, progress=False)
    ((adapter, heads), options) = made[0]
    assert adapter == (12 + 21, tiny.lr_lora) and options["weight_decay"] == tiny.weight_decay
    named = [n for n, _ in model.named_parameters() if not n.startswith("encoder.")]
    assert heads == (len(named), tiny.lr_heads)


@pytest.mark.filterwarnings("ignore")
def test_diverging_loss_is_an_error_not_a_result(sections, tiny, tmp_path):
    wild = replace(tiny, lr_lora=1e30, lr_heads=1e30, n_views=1)
    with pytest.raises(InputError, match="lr_lora"):
        finetune(sections[:1], wild, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run/heads.safetensors").exists()


def test_code_hash_sees_what_results_hang_on(tmp_path, monkeypatch):
    """A result's code is what it imports: comments, and modules that only call or draw, are not."""
    monkeypatch.setattr(train, "__file__", str(tmp_path / "train.py"))
    first = {
        "pairs": "x = 0",
        "crossval": "from . import loop as f\nfrom .parts import g",
        "other": "import numpy",
        "parts": "from . import crossval",
        "cli": "x = 1",
        "loop": 'def f():\n    """Doc."""\n    return 1\n',
    }

    def hash_of(**changes):
        for name, source in {**first, **changes}.items():
            (tmp_path / f"{name}.py").write_text(source)
        return code_hash()

    same = hash_of()
    assert code_hash(("pairs", "crossval", "other")) != same == code_hash(("parts", "pairs"))
    assert hash_of(cli="x = 2") == same
    assert hash_of(loop='def f():\n    """Other."""\n    # why\n    return 1\n') == same
    assert hash_of(loop='def f():\n    """Doc."""\n    return 2\n') != same
    assert hash_of(parts="from . import crossval\nx = 1") != same


def test_config_is_parsed_by_type_and_checked(tmp_path):
    changes = "epochs=3 lr_lora=1e-3 hidden=64,32 learn_temperature=true backbone=test_vit clip=inf"
    changed = Config().override(changes.split())
    assert (changed.epochs, changed.lr_lora, changed.hidden) == (3, 1e-3, (64, 32))
    assert changed.learn_temperature is True and changed.clip == math.inf
    (tmp_path / "config.json").write_text(changed.to_json())
    assert Config.from_json(tmp_path / "config.json") == changed
    for bad in (
        "epoch=3",
        "epochs=three",
        "learn_temperature=maybe",
        "temperature=0",
        "epochs=-1",
        "batch_size=1",
        "zscore=never",
        "hvg=best",
        "precision=fp8",
    ):
        with pytest.raises(InputError, match=bad.split("=")[0]):
            Config().override([bad])
    with pytest.raises(InputError, match="quick"):
        preset("quick")
