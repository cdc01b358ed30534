"""Every field and every byte of a run: what is damaged is named, and never becomes a result."""

import copy
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import TINY
from safetensors.torch import load_file, save_file

from seal_lite import SEAL, InputError, finetune, load_encoder
from seal_lite.encoders import BACKBONES
from seal_lite.training import loop
from seal_lite.training.callbacks import Callback
from seal_lite.training.loop import parameter_groups
from seal_lite.training.run import load_checkpoint, load_finished

CONFIG = replace(TINY, backbone="tiny_cnn")
JSON_FILES = ("config.json", "panel.json", "base.json", "adapter/adapter_config.json")
TENSOR_FILES = ("heads.safetensors", "adapter/adapter_model.safetensors")
DROPPED = object()
OTHERS = [
    DROPPED,
    None,
    True,
    -1,
    -0.5,
    0,
    7,
    10**12,
    10**400,
    1e300,
    math.nan,
    math.inf,
    "",
    "text",
    "../../x",
    "\x1b[2J",
    [],
    [[]],
    {},
    {"a": 1},
]


@pytest.fixture(scope="module", autouse=True)
def tiny_row():
    """A network of random weights that is built in no time."""
    lite = BACKBONES["tf_efficientnet_lite0"]
    tiny = replace(
        lite,
        name="tiny_cnn",
        source="test_efficientnet",
        arch="test_efficientnet",
        args={"num_classes": 0},
        state="",
        feature_layer="blocks.3",
        dim=48,
        px=64,
        fingerprint=None,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny_cnn", tiny)
        yield


@pytest.fixture(scope="module")
def finished(sections, tiny_row, tmp_path_factory):
    """(run folder, model, history) of a finished run."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, *finetune(sections[:1], CONFIG, out=out, device="cpu", progress=False)


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


@pytest.fixture
def old_run(run):
    """A run of a version that wrote no checksums."""
    (run / "checksums.json").unlink()
    return run


# ---------------------------------------------------------------------------- one thing damaged


def places(content, prefix=()):
    """Paths of all fields below a content; of a list, its ends."""
    yield prefix
    if isinstance(content, dict):
        keys = list(content)
    elif isinstance(content, list) and content:
        keys = [0, len(content) - 1]
    else:
        keys = []
    for key in dict.fromkeys(keys):
        yield from places(content[key], (*prefix, key))


def replaced(content, place, value):
    """Return a copy with another value at a place, or without it."""
    if not place:
        return value
    changed = copy.deepcopy(content)
    parent = changed
    for key in place[:-1]:
        parent = parent[key]
    if value is DROPPED:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    return changed


def at(content, place):
    for key in place:
        content = content[key]
    return content


def variants(content):
    """Every field dropped and of another value; every list doubled, shortened and lengthened."""
    for place in places(content):
        own = at(content, place)
        others = list(OTHERS)
        if isinstance(own, list) and own:
            others += [own * 2, own[:-1], [*own, own[0]], [own[0]] * len(own), own[::-1]]
        for other in others:
            if place or other is not DROPPED:
                yield place, replaced(content, place, other)


def check_outcome(load, name, place):
    """The load is refused by an error that names the file, or its result; None if refused."""
    try:
        return load()
    except InputError as error:
        message = str(error)
        assert name.rpartition("/")[2] in message, (place, message)
        assert len(message) < 700, (place, message)
        assert "\x1b" not in message, (place, message)
        return None


def outputs(model):
    """What a model makes of a fixed image and profile."""
    image = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    profile = np.linspace(-2, 2, len(model.panel.genes), dtype=np.float32)[None]
    with torch.inference_mode():
        e = model.encoder(image).numpy()
    return np.concatenate([e[0], model.predict_genes(e)[0], model.encode_genes(profile)[0]])


@pytest.mark.parametrize("name", JSON_FILES)
def test_a_field_of_a_run_is_refused_by_name_or_harmless(old_run, name):
    """Without checksums: no other error, no absurd size, no output that is no number."""
    path = old_run / name
    content = json.loads(path.read_text())
    if name == "adapter/adapter_config.json":  # of peft's many fields, those that are read
        content = {key: content[key] for key in ("peft_type", "r", "lora_alpha", "bias")}
    own = outputs(SEAL.from_pretrained(old_run))
    n_refused = 0
    for place, changed in variants(content):
        path.write_text(json.dumps(changed))
        model = check_outcome(lambda: SEAL.from_pretrained(old_run), name, place)
        n_refused += model is None
        if model is not None:
            loaded = outputs(model)
            assert np.isfinite(loaded).all(), place
            is_another_model = name == "panel.json" or place == (
                "as_released",
            )  # with equal shapes
            assert is_another_model or np.array_equal(loaded, own), (place, changed)
    assert n_refused > 10


@pytest.mark.parametrize("name", ["provenance.json", "metrics.jsonl"])
def test_a_field_of_a_finished_run_is_refused_by_name_or_harmless(old_run, name):
    """It is found by what `finetune` does before it returns a finished run."""
    record = json.loads((old_run / "provenance.json").read_text())

    def load():
        try:
            loop.claim_folder(old_run, record, same=loop.SAME_RUN)
        except InputError as error:
            raise InputError(str(error).replace("holds other work", f"{name}: other")) from error
        return load_finished(old_run, device="cpu")

    path = old_run / name
    _, history = load()
    if name == "provenance.json":
        texts = [(p, json.dumps(v)) for p, v in variants(json.loads(path.read_text()))]
    else:
        texts = [(p, "\n".join(map(json.dumps, v))) for p, v in variants(history) if p]
        texts += [((), "\n".join(map(json.dumps, v))) for v in ([], history[1:], history * 2)]
    for place, text in texts:
        path.write_text(text)
        result = check_outcome(load, name, place)
        if result is not None:
            assert len(result[1]) == len(history), place
            assert all(math.isfinite(epoch["loss"]) for epoch in result[1]), place


def spoilt(tensor, kind):
    if kind == "NaN":
        return torch.full_like(tensor, math.nan)
    if kind == "infinite":
        return torch.full_like(tensor, -math.inf)
    if kind == "a row more":
        return torch.cat([tensor.reshape(-1), tensor.reshape(-1)[:1]])
    return tensor.to(kind)


@pytest.mark.parametrize("kind", ["NaN", "infinite", "a row more", torch.int32, torch.bool])
@pytest.mark.parametrize("name", TENSOR_FILES)
def test_a_tensor_is_refused_by_its_name(old_run, name, kind):
    tensors = load_file(old_run / name)
    keys = [key for key, tensor in tensors.items() if tensor.is_floating_point()]
    for key in keys if kind == "NaN" else keys[:2]:
        save_file({**tensors, key: spoilt(tensors[key], kind)}, old_run / name)
        with pytest.raises(InputError, match=f"{name.rpartition('/')[2]}: tensor .*{key} "):
            SEAL.from_pretrained(old_run)


def test_a_negative_variance_is_refused(old_run):
    path = old_run / "heads.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith("running_var"))
    save_file({**tensors, key: -tensors[key]}, path)
    with pytest.raises(InputError, match=f"{key} has negative variances"):
        SEAL.from_pretrained(old_run)


def test_widths_that_the_file_does_not_have_are_refused_before_there_is_memory(
    old_run, monkeypatch
):
    path = old_run / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "hidden": [16_384] * 16}))

    def allocate(*_):
        pytest.fail("a model of 16 GB is built")

    monkeypatch.setattr(SEAL, "_on", allocate)
    with pytest.raises(InputError, match="heads.safetensors: tensor .* does not fit this model"):
        SEAL.from_pretrained(old_run)


FILES = (*JSON_FILES, *TENSOR_FILES, "checksums.json", "metrics.jsonl", "provenance.json")


@pytest.mark.parametrize("name", FILES)
def test_any_byte_of_a_run_is_refused_by_name_or_harmless(run, name):
    """A bit flipped, a part cut off, overwritten, nothing left, the file gone."""

    def load():
        model, history = load_finished(run, device="cpu")
        claimed = loop.claim_folder(run, record)
        return outputs(model), history, model.config, claimed

    record = json.loads((run / "provenance.json").read_text())
    own = load()
    path = run / name
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", content[: len(content) // 2], content[:-1], b"\x80\x04" + content, b"\0" * 99]
    for position in [0, len(content) - 1, *rng.integers(len(content), size=20)]:
        flipped = content[position] ^ (1 << int(rng.integers(8)))
        damaged.append(content[:position] + bytes([flipped]) + content[position + 1 :])
    for i, changed in enumerate(damaged):
        path.write_bytes(changed)
        result = check_outcome(load, name, i)
        if result is not None and name != "provenance.json":
            np.testing.assert_array_equal(result[0], own[0])
            assert result[1:3] == own[1:3], i
    path.unlink()
    if name not in ("checksums.json", "adapter/adapter_config.json", "provenance.json"):
        assert check_outcome(load, name, "gone") is None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", {"patch_um": 100.0}),
        ("config.json", {"clip": 3.0}),
        ("panel.json", {"share": 0.3}),
        ("adapter/adapter_config.json", {"bias": "all"}),
    ],
)
def test_a_value_that_could_be_right_is_not_that_of_the_checksums(run, name, change):
    path = run / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=f"{name}: is not as it was written"):
        load_encoder(run, device="cpu")
    (run / "checksums.json").unlink()  # as the message advises
    load_encoder(run, device="cpu")


def test_the_adapter_has_the_scale_of_the_settings(old_run):
    path = old_run / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 32.0}))
    with pytest.raises(InputError, match="adapter_config.json: lora_alpha is 64.0, but 32.0 in"):
        SEAL.from_pretrained(old_run)


# ---------------------------------------------------------------------------- checkpoints


class StopError(Exception):
    pass


class StopAfter(Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_epoch_end(self, model, history):
        if len(history) > self.epochs:
            raise StopError


@pytest.fixture(scope="module")
def interrupted(sections, tiny_row, tmp_path_factory):
    """The folder of a run with a checkpoint after the first joint epoch."""
    out = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.raises(StopError):
        finetune(sections[:1], CONFIG, out=out, callbacks=[StopAfter(2)], progress=False)
    return out


@pytest.fixture
def resume(interrupted, finished, tmp_path):
    """Write a state as the checkpoint and load it; returns the history."""
    path = shutil.copytree(interrupted, tmp_path / "resumed") / "checkpoint.pt"
    model = copy.deepcopy(finished[1])
    optimizer = torch.optim.AdamW(parameter_groups(model, CONFIG))
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def call(state):
        if isinstance(state, bytes):
            path.write_bytes(state)
        else:
            torch.save(state, path)
        return load_checkpoint(path.parent, model, optimizer, scaler)

    return call


@pytest.fixture
def state(interrupted):
    return torch.load(interrupted / "checkpoint.pt", weights_only=True)


def test_a_field_of_a_checkpoint_is_refused_by_name_or_harmless(resume, state):
    history = resume(state)
    assert len(history) == 2
    del state["sha256"]
    kept = sorted(state["optimizer"]["state"])[:1]
    state["optimizer"]["state"] = {i: state["optimizer"]["state"][i] for i in kept}
    names = [name for name in state["model"] if "bias" in name][:1]
    n_refused = 0
    for place in places(state):
        others = [value for value in OTHERS if place or value is not DROPPED]
        own = at(state, place)
        if isinstance(own, torch.Tensor):
            if place[0] == "model" and place[1] not in names:
                continue
            others = [None, 3.0, "x", own.to(torch.complex64), own.flatten()[:-1], own * math.nan]
            others += [own.to_sparse(), -own.abs() - 1] if place[-1] == "exp_avg_sq" else []
        for other in others:
            changed = replaced(state, place, other)
            result = check_outcome(lambda changed=changed: resume(changed), "checkpoint.pt", place)
            n_refused += result is None
            if result is not None:
                assert len(result) <= CONFIG.epochs + CONFIG.gene_warmup_epochs, place
                assert [epoch["epoch"] for epoch in result] == [0, 1][: len(result)], place
    assert n_refused > 100


def test_any_byte_of_a_checkpoint_is_refused_by_name_or_harmless(resume, interrupted):
    content = (interrupted / "checkpoint.pt").read_bytes()
    history = resume(content)
    rng = np.random.default_rng(0)
    for position in [0, *rng.integers(len(content), size=30)]:
        changed = bytearray(content)
        changed[position] ^= 1 << int(rng.integers(8))
        result = check_outcome(lambda changed=changed: resume(bytes(changed)), "checkpoint.pt", 0)
        assert result in (None, history)
    assert check_outcome(lambda: resume(content[:-500]), "checkpoint.pt", "cut") is None


def test_a_value_of_a_checkpoint_that_could_be_right_is_not_that_of_its_hash(resume, state):
    state["history"][0]["loss"] += 1
    with pytest.raises(InputError, match="checkpoint.pt: is not as it was written; remove it"):
        resume(state)


def test_a_checkpoint_of_an_older_version_resumes(resume, state):
    """It has no hash, and the state of a scheduler."""
    del state["sha256"]
    state["scheduler"] = {"last_epoch": 10**9, "step": 5}
    assert len(resume(state)) == 2


def test_a_pickle_is_no_checkpoint(resume, tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    with pytest.raises(InputError, match="checkpoint.pt: cannot be read"):
        resume({"model": Attack()})
    assert not (tmp_path / "owned").exists()
