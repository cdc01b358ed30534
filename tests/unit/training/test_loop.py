"""One loop: reproducible, resumable to the bit, and every part of the method trains something."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import TINY

from seal_lite import SEAL, InputError, finetune
from seal_lite.model.losses import seal_loss
from seal_lite.training.callbacks import Callback
from seal_lite.training.loop import learning_rate, parameter_groups

SHORT = replace(TINY, epochs=1, gene_warmup_epochs=0, n_views=1)  # 4 steps
TERMS = ("loss", "clip", "gene", "image", "kl")


def terms(history):
    """The loss terms of every epoch, without its time."""
    return [{name: epoch[name] for name in TERMS if name in epoch} for epoch in history]


def same_bits(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def largest_change(model, start, part):
    """The most that a weight whose name begins with `part` has moved."""
    before = start.state_dict()
    after = model.state_dict()
    changes = [(after[k] - before[k]).abs().max().item() for k in after if k.startswith(part)]
    return max(changes)


@pytest.fixture(scope="module")
def fresh(trained):
    """The model of `trained` before its first step."""
    return SEAL.build(trained[1].panel, TINY)


def test_history_names_its_terms_and_phases(trained):
    _, _, history = trained
    assert [epoch["phase"] for epoch in history] == ["genes", "joint", "joint"]
    assert {"gene", "kl", "loss"} <= set(history[0])
    assert "clip" not in history[0]
    assert set(TERMS) <= set(history[1])
    assert history[-1]["loss"] < history[1]["loss"]
    assert history[-1]["lr_lora"] == pytest.approx(0, abs=1e-12)


def test_training_moves_the_embedding_and_leaves_the_base(trained, sections):
    from seal_lite.encoders.embedding import embed_patches
    from seal_lite.encoders.vision import build_encoder

    _, model, _ = trained
    frozen = build_encoder(TINY.backbone)
    base = frozen.base.state_dict()
    for name, tensor in model.encoder.base.state_dict().items():
        if "lora_" not in name and "modules_to_save" not in name:
            plain = name.replace("base_layer.", "").replace("original_module.", "")
            assert torch.equal(tensor, base[plain]), name
    patches = sections[1].patches[:8]
    moved = embed_patches(model.encoder, patches) - embed_patches(frozen, patches)
    assert np.abs(moved).max() > 1e-3


def test_every_matrix_of_lora_has_learned(trained, fresh):
    """B is zero at first; A of a layer moves once its B is not."""
    _, model, _ = trained
    start = dict(fresh.named_parameters())
    lora = {name: p for name, p in model.named_parameters() if "lora_" in name}
    assert len(lora) == 12  # A and B of the six layers of one block
    for name, p in lora.items():
        assert p.requires_grad
        assert (p - start[name]).abs().max() > 1e-3, name


def test_the_contrast_trains_the_projection(trained, fresh):
    """Nothing else does: without it the projection has no gradient."""
    assert largest_change(trained[1], fresh, "project.") > 1e-3


@pytest.mark.parametrize("term", ["clip", "gene", "image"])
def test_leaving_a_term_out_is_another_training(sections, trained, fresh, term):
    """The loss that is minimised holds every term of the method."""
    panel = trained[1].panel
    config = replace(SHORT, w_clip=0.0, w_gene=0.0, w_image=0.0, weight_decay=0.0)
    config = replace(config, **{f"w_{term}": 1.0})
    model, _ = finetune(sections[:1], config, panel=panel, progress=False)
    trains = {
        "clip": ("encoder.", "project.", "genes.mu."),
        "gene": ("genes.mu.", "genes.decoder."),
        "image": ("encoder.", "image_decoder."),
    }
    for part in ("encoder.", "project.", "genes.mu.", "genes.decoder.", "image_decoder."):
        moved = largest_change(model, fresh, part)
        if part in trains[term]:
            assert moved > 1e-4, part
        else:
            assert moved == 0, part


def test_pairs_are_true_unless_shuffled(sections, trained):
    """Which profile stands beside which patch in the loss, told by the patches' activations."""
    section = sections[0]
    _, model, _ = trained
    panel = model.panel
    batches = []

    def record(outputs, config):
        batches.append((outputs.hidden.clone(), outputs.expression.clone()))
        return seal_loss(outputs, config)

    true_profiles = torch.from_numpy(section.expression(panel))  # (n, genes)
    images = torch.from_numpy(section.patches).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        patches = model.encoder.prefix(images).flatten(1)  # (n, activations)
    shares = {}
    for shuffled in (False, True):
        batches.clear()
        finetune(
            sections[:1],
            SHORT,
            panel=panel,
            shuffle_pairs=shuffled,
            loss=record,
            progress=False,
        )
        hidden = torch.cat([h for h, _ in batches]).flatten(1)
        x = torch.cat([x for _, x in batches])
        spot = torch.cdist(hidden, patches).argmin(1)  # whose patch each row is
        assert len(spot.unique()) == len(spot) == 64
        shares[shuffled] = (x == true_profiles[spot]).all(1).float().mean().item()
    assert shares[False] == 1
    assert shares[True] < 0.2


def test_a_finished_run_is_loaded_not_repeated(trained, sections, tiny, monkeypatch):
    run, model, history = trained
    monkeypatch.setattr(SEAL, "forward", lambda *_: pytest.fail("trained again"))
    again, same_history = finetune(sections[:1], tiny, out=run, progress=False)
    assert same_history == history
    assert same_bits(again, model)


class Interrupt(Callback):
    """Break the run off after so many steps; None never does."""

    def __init__(self, steps):
        self.left = steps

    def on_fit_start(self, model):
        self.count(0)

    def on_step_end(self, model, terms):
        self.count(1)

    def count(self, steps):
        if self.left is not None:
            self.left -= steps
            if self.left == 0:
                raise KeyboardInterrupt


@pytest.mark.parametrize("steps", [0, 3, 9], ids=["at once", "in the warm-up", "in an epoch"])
def test_an_interrupted_run_resumes_to_the_same_bits(trained, sections, tiny, tmp_path, steps):
    """4 batches an epoch. Also: one seed, one result."""
    _, model, history = trained
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        finetune(sections[:1], tiny, out=out, callbacks=[Interrupt(steps)], progress=False)
    assert (out / "checkpoint.pt").exists() == (steps > 4)
    with pytest.raises(InputError, match="that `finetune` finished"):
        SEAL.from_pretrained(out)
    torch.rand(3)  # whatever else the process draws
    resumed, whole_history = finetune(
        sections[:1], tiny, out=out, callbacks=[Interrupt(None)], progress=False
    )
    assert terms(whole_history) == terms(history)
    assert same_bits(resumed, model)
    assert not (out / "checkpoint.pt").exists()


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")  # fp16 skips steps that overflow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_resumes_to_the_same_bits(sections, tmp_path, precision):
    """One process trains in float32, then in half precision. fp16 also resumes its loss scale."""
    config = replace(SHORT, epochs=2)
    _, full_history = finetune(sections[:1], config, progress=False)
    config = replace(config, precision=precision)
    whole, history = finetune(sections[:1], config, device="cpu", progress=False)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        finetune(sections[:1], config, out=out, callbacks=[Interrupt(5)], progress=False)
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert ("scale" in state["scaler"]) == (precision == "fp16")
    resumed, again = finetune(sections[:1], config, out=out, callbacks=[Interrupt(None)])
    assert terms(again) == terms(history)
    assert same_bits(resumed, whole)
    for half, full in zip(terms(history), terms(full_history), strict=True):
        assert half != full
        assert half["loss"] == pytest.approx(full["loss"], rel=0.2)


def test_a_checkpoint_is_read_onto_the_cpu_wherever_it_was_written(
    sections, tiny, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        finetune(sections[:1], tiny, out=out, callbacks=[Interrupt(5)], progress=False)
    load = torch.load
    places = {}

    def note_place(path, **options):
        places[path] = options.get("map_location")
        return load(path, **options)

    monkeypatch.setattr(torch, "load", note_place)
    finetune(sections[:1], tiny, out=out, callbacks=[Interrupt(None)], progress=False)
    assert places[out / "checkpoint.pt"] == "cpu"


class Watched(torch.Tensor):
    """A loss term that notes when its value, or one computed from it, is read."""

    ways = frozenset({"item", "tolist", "cpu", "numpy", "__float__", "__bool__"})
    reads: list[str] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func.__name__ in cls.ways:
            cls.reads.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.parametrize("read", [torch.Tensor.item, torch.Tensor.cpu, float, bool])
def test_a_watched_term_notes_its_reads(monkeypatch, read):
    monkeypatch.setattr(Watched, "reads", [])
    term = torch.ones(()).as_subclass(Watched)
    read(term)
    read(torch.isfinite(term))
    assert len(Watched.reads) == 2


def test_no_step_waits_for_its_loss(sections, monkeypatch):
    """To read it would stop the stream of work that a card computes."""
    reads_so_far = []

    def watched_loss(outputs, config):
        terms = seal_loss(outputs, config)
        return {name: term.as_subclass(Watched) for name, term in terms.items()}

    class Steps(Callback):
        def on_step_end(self, model, terms):
            assert all(isinstance(term, Watched) for term in terms.values())
            reads_so_far.append(list(Watched.reads))

    monkeypatch.setattr(Watched, "reads", [])
    finetune(sections[:1], SHORT, loss=watched_loss, callbacks=[Steps()], progress=False)
    assert reads_so_far == [[]] * 4
    assert "tolist" in Watched.reads  # of all steps, when the epoch has ended


def test_another_seed_is_another_result(trained, sections):
    _, history = finetune(sections[:1], replace(TINY, seed=1, epochs=1), progress=False)
    assert terms(history)[0] != terms(trained[2])[0]


def test_streamed_activations_in_chunks_give_the_losses_of_the_cache(trained, sections, tiny):
    _, streamed = finetune(sections[:1], tiny, cached=False, chunk=5, progress=False)
    for one, other in zip(terms(trained[2]), terms(streamed), strict=True):
        assert one == pytest.approx(other, abs=2e-3)  # rounding, after 12 steps


def test_learning_rate_rises_and_falls():
    rate = [learning_rate(step, steps=100, warmup=0.1) for step in range(100)]
    np.testing.assert_allclose(rate[:10], np.arange(1, 11) / 10)
    cosine = [0.5 * (1 + math.cos(math.pi * k / 90)) for k in range(90)]
    np.testing.assert_allclose(rate[10:], cosine)
    assert learning_rate(100, steps=100, warmup=0.1) == pytest.approx(0, abs=1e-12)
    assert learning_rate(-1, steps=100, warmup=0.1) == 1.0  # the gene encoder's own epochs
    assert learning_rate(0, steps=100, warmup=0.0) == 1.0


@pytest.mark.parametrize("setting", ["lr_lora", "lr_heads"])
def test_encoder_and_heads_have_their_own_learning_rates(sections, trained, fresh, setting):
    config = replace(SHORT, **{setting: 0.0})
    model, _ = finetune(sections[:1], config, panel=trained[1].panel, progress=False)
    moved = {
        "lr_lora": [largest_change(model, fresh, "encoder.")],
        "lr_heads": [largest_change(model, fresh, part) for part in ("project.", "image_decoder.")],
    }
    assert moved.pop(setting) == [0.0] * (1 if setting == "lr_lora" else 2)
    (others,) = moved.values()
    assert min(others) > 1e-4


def test_only_weights_decay(fresh):
    config = replace(SHORT, weight_decay=0.3)
    names = {parameter: name for name, parameter in fresh.named_parameters()}
    decay = {}
    for group in parameter_groups(fresh, config):
        for parameter in group["params"]:
            decay[names[parameter]] = group["weight_decay"]
    assert set(decay) == {name for name, p in fresh.named_parameters() if p.requires_grad}
    spared = {name for name, value in decay.items() if value == 0}
    assert spared
    for name, parameter in fresh.named_parameters():
        if parameter.requires_grad:
            is_weight = parameter.ndim > 1
            assert decay[name] == (0.3 if is_weight else 0.0), name
    assert any(name.endswith("bias") for name in spared)


def test_patches_of_another_size_than_the_settings_are_refused(sections, tmp_path):
    """The run would state a size that it has not seen, and embed patches of that size."""
    larger = replace(SHORT, patch_px=96)
    with pytest.raises(InputError, match="PA1: has patches of 64 px; load it with .*patch_px=96"):
        finetune(sections, larger, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_diverging_loss_is_an_error_not_a_result(sections, tmp_path):
    wild = replace(SHORT, lr_lora=1e9, lr_heads=1e9)
    with pytest.raises(InputError, match="lr_lora"):
        finetune(sections[:1], wild, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run/heads.safetensors").exists()


def test_another_loss_is_minimised_and_logged(sections, trained, fresh):
    """One that holds nothing but the size of the image decoder's prediction."""

    def size(outputs, config):
        square = outputs.image_reconstruction.square().mean()
        return {"size": square.sqrt(), "loss": square}

    config = replace(SHORT, epochs=3, weight_decay=0.0)
    model, history = finetune(
        sections[:1], config, panel=trained[1].panel, loss=size, progress=False
    )
    assert history[-1]["size"] < history[0]["size"]
    assert "clip" not in history[0]
    assert largest_change(model, fresh, "project.") == 0
    assert largest_change(model, fresh, "image_decoder.") > 1e-4


class Log(Callback):
    """Note what is called, and set a bias after the last epoch."""

    def __init__(self):
        self.calls = []

    def on_fit_start(self, model):
        self.calls.append("start")

    def on_step_end(self, model, terms):
        self.calls.append("step")
        assert math.isfinite(terms["loss"])

    def on_epoch_end(self, model, history):
        self.calls.append(history[-1]["phase"])
        with torch.no_grad():
            model.image_decoder[-1].bias.fill_(len(history))


def test_callbacks_see_every_step_and_may_change_the_model(sections, tmp_path):
    log = Log()
    config = replace(SHORT, gene_warmup_epochs=1)
    out = tmp_path / "run"
    finetune(sections[:1], config, out=out, callbacks=[log], progress=False)
    assert log.calls == ["start", *["step"] * 4, "genes", *["step"] * 4, "joint"]
    assert (SEAL.from_pretrained(out).image_decoder[-1].bias == 2).all()


def test_profiles_without_an_image_train_the_warmup_and_leave_the_schedule(sections, trained):
    """The rate of the joint epochs falls to 0, however many steps the warm-up has."""
    panel = trained[1].panel
    extra = sections[1].expression(panel)
    log = Log()
    _, history = finetune(
        sections[:1], TINY, panel=panel, extra_expression=extra, callbacks=[log], progress=False
    )
    n_profiles = len(sections[0].rows) + len(sections[1].rows)
    warmup_steps = log.calls.index("genes") - 1
    assert warmup_steps == n_profiles // TINY.batch_size == 8
    assert terms(history)[0] != terms(trained[2])[0]
    assert history[0]["lr_lora"] == pytest.approx(TINY.lr_lora)
    assert history[-1]["lr_lora"] == pytest.approx(0, abs=1e-12)


def test_lora_that_no_gradient_reaches_is_an_input_error(sections, trained, monkeypatch):
    """BEiT uses the weight of `qkv` without calling the layer, which its row does not know."""
    from seal_lite.encoders import BACKBONES

    args = {"num_classes": 0, "img_size": TINY.patch_px, "embed_dim": 48, "num_heads": 3}
    beit = replace(
        BACKBONES["test_vit"],
        name="tiny_beit",
        source="beit_base_patch16_224",
        args={**args, "depth": 2},
        dim=48,
        px=TINY.patch_px,
    )
    monkeypatch.setitem(BACKBONES, "tiny_beit", beit)
    config = replace(SHORT, backbone="tiny_beit", tune_blocks=1)
    with pytest.raises(InputError, match="LoRA on 1 of 4 layers, the first blocks.1.attn.qkv"):
        finetune(sections, config, panel=trained[1].panel, progress=False)
