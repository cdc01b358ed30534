"""No public path mixes devices: what runs a network, on a pretended card and on a real one.

Under `FakeTensorMode` a tensor has shape, type and device, and no values. An operation on tensors
of two devices raises, as it does on a machine with a card. So these tests see a missing `.to`, and
no wrong value. `pytest -m gpu` runs the same tests, and a training, on a real card.
"""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TINY
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from seal_lite.encoders import embed_feature_layers, embed_patches
from seal_lite.encoders.devices import resolve_precision

pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available")  # by autocast
CARD = torch.device("cuda", 0)
TO_ARRAY = torch.Tensor.numpy
NETWORKS = {TINY.backbone: TINY, "test_vit": replace(TINY, backbone="test_vit", patch_px=160)}


@pytest.fixture(scope="module")
def panel(sections):
    from seal_lite.data.genes import GenePanel

    return GenePanel.fit([section.adata for section in sections], n_genes=TINY.n_genes)


@pytest.fixture(params=["pretended", pytest.param("real", marks=pytest.mark.gpu)])
def card(request, monkeypatch):
    """A card: a real one, or one where a module that moves there loses its values."""
    if request.param == "real":
        if not torch.cuda.is_available():
            pytest.skip("this machine has no card")
        yield
        return
    from seal_lite import io
    from seal_lite.encoders import devices, prefix_cache, vision
    from seal_lite.evaluation import features

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode:
            image = torch.empty(1, 3, 4, 4, device="cuda")
            image.contiguous(memory_format=torch.channels_last)
    except RuntimeError:
        pytest.skip(f"torch {torch.__version__} needs a driver to pretend a card")
    build_encoder = vision.build_encoder

    def build(name, *, device="auto", **options):
        with unset_fake_temporarily():  # weights are read as ever
            encoder = build_encoder(name, device="cpu", **options)
        return encoder.to(devices.resolve_device(device))

    for module in (features, vision):
        monkeypatch.setattr(module, "build_encoder", build)
    # What depends on values, or on a card.
    monkeypatch.setattr(devices, "synchronize", lambda _: None)
    monkeypatch.setattr(prefix_cache, "hash_tensors", lambda *_, **__: "0" * 64)
    monkeypatch.setattr(devices, "has_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.random, "fork_rng", lambda **_: nullcontext())
    monkeypatch.setattr(torch.nn.Module, "to", move)
    monkeypatch.setattr(torch.Tensor, "numpy", to_array)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda pixels: fake(mode, pixels))
    monkeypatch.setattr(io, "ThreadPoolExecutor", AtOnce)  # the mode is no friend of threads
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    with mode:
        yield


def move(module, device="cpu", dtype=None):
    """Replace a module's tensors by fake ones on the device; of another type as well."""
    if isinstance(device, torch.dtype):
        return module
    if torch.device(device).type == "cpu":
        return module
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                fake = torch.empty(value.shape, dtype=value.dtype, device=device)
                part._parameters[name] = torch.nn.Parameter(fake, value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=device)
    return module


class AtOnce(nullcontext):
    """An executor that does its work when it is given."""

    def __enter__(self):
        return self

    def submit(self, function, *arguments):
        value = function(*arguments)
        return SimpleNamespace(result=lambda: value)


def fake(mode, tensor):
    """Return a fake of what was read; `.to` does not make one in inference mode."""
    return tensor if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor)


def to_array(tensor, **options):
    """Return zeros of a fake tensor's shape; only one on the CPU becomes an array."""
    if not isinstance(tensor, FakeTensor):
        return TO_ARRAY(tensor, **options)
    assert tensor.device.type == "cpu", "an array is made of a tensor on the card"
    return np.zeros(tuple(tensor.shape), np.float32)


@pytest.fixture
def model(panel, card):
    from seal_lite import SEAL

    return SEAL.build(panel, TINY)


def test_a_mixed_operation_is_seen(model):
    images = torch.zeros(2, 3, 64, 64)
    with pytest.raises(RuntimeError, match=r"device|cuda"):
        model.encoder.prefix(images)
    hidden = model.encoder.prefix(images.to(CARD))
    with pytest.raises(RuntimeError, match=r"device|cuda"):
        model.encoder.tail(hidden.cpu())


def test_a_built_model_is_on_the_card_and_computes_as_that_does(model):
    assert {tensor.device for tensor in model.state_dict().values()} == {CARD}
    hidden = model.encoder.prefix(torch.zeros(2, 3, 64, 64, device=CARD))
    assert (hidden.device, hidden.dtype) == (CARD, resolve_precision("auto", CARD))


@pytest.mark.parametrize("has_bf16", [True, False])
@pytest.mark.parametrize("backbone", NETWORKS)
def test_any_network_and_precision_stays_on_the_card(
    panel, sections, card, monkeypatch, backbone, has_bf16
):
    """Of a transformer, and on a card like the T4, which has no bf16."""
    from seal_lite import SEAL

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    model = SEAL.build(panel, NETWORKS[backbone])
    px = model.encoder.row.px
    images = torch.zeros(2, 3, px, px, device=CARD)
    assert model.encoder.prefix(images).dtype == (torch.bfloat16 if has_bf16 else torch.float16)
    for layer in model.encoder.every_layer(images).values():
        assert (layer.device, layer.dtype) == (CARD, torch.float32)
    e = model.encoder(images)
    assert (e.device, e.dtype) == (CARD, torch.float32)
    patches = np.zeros((5, px, px, 3), np.uint8)
    assert embed_patches(model.encoder, patches).shape == (5, model.encoder.row.dim)


@pytest.mark.parametrize("backbone", NETWORKS)
def test_what_other_tools_get_is_on_one_device(panel, card, monkeypatch, backbone):
    """Its normalisation is made anew, and belongs where the network is."""
    from seal_lite import SEAL, hub, load_encoder

    model = SEAL.build(panel, NETWORKS[backbone])
    monkeypatch.setattr(SEAL, "from_pretrained", lambda run, device: model)
    monkeypatch.setattr(hub, "copy", SimpleNamespace(deepcopy=lambda net: net))  # of no fake
    module, _, _ = load_encoder("a run", precision="no")
    assert module.device == CARD
    assert {tensor.device for tensor in module.state_dict().values()} == {CARD}
    px = module.row.px
    assert module(torch.zeros(2, 3, px, px, device=CARD)).device == CARD


def test_patches_are_embedded(model, sections):
    patches = sections[0].patches
    assert embed_patches(model.encoder, patches).shape == (len(patches), model.encoder.row.dim)


@pytest.mark.parametrize("cached", [True, False])
def test_every_feature_layer_is_embedded(model, sections, cached, tmp_path):
    folder = tmp_path if cached else None
    layers = embed_feature_layers(model.encoder, sections, cache_dir=folder)
    assert [len(layer) for layer in layers.values()] == [len(sections)] * len(layers)


@pytest.mark.parametrize("cached", [True, False])
def test_a_batch_is_read_and_its_loss_computed(model, panel, sections, cached):
    from seal_lite.model.losses import seal_loss, warmup_loss
    from seal_lite.training.loader import Activations, Pairs

    activations = Activations(model.encoder, sections, TINY, cached=cached, progress=False)
    pairs = Pairs(sections, panel, TINY, activations)
    hidden, x = next(pairs.epoch(0))
    assert (hidden.device, x.device) == (CARD, CARD)
    loss = seal_loss(model(hidden, x, chunk=8), TINY)["loss"]
    assert loss.device == CARD
    if not isinstance(loss, FakeTensor):  # a pretended card has no backward pass
        loss.backward()
    _, x = next(pairs.expression_epoch(0))
    assert warmup_loss(model.forward_genes(x), TINY)["loss"].device == CARD


def test_the_heads_take_arrays_and_give_arrays(model, panel):
    e = np.zeros((4, model.encoder.row.dim), np.float32)
    x = np.zeros((4, len(panel.genes)), np.float32)
    for array in (model.encode_genes(x), model.project_images(e), model.predict_genes(e)):
        assert isinstance(array, np.ndarray)
        assert len(array) == 4


def test_the_controls_of_an_evaluation_are_embedded(model, sections):
    from seal_lite.evaluation.features import embed_all

    features, layers = embed_all(sections, {"tuned": model}, TINY)
    assert {"tuned", "frozen", "random_init"} <= set(features)
    assert len(layers) == 5  # every block up to the feature layer


def test_sections_get_their_embedding(model, sections):
    from seal_lite.hub import add_embedding

    adata = add_embedding(sections[0], model.encoder)
    assert adata.obsm["X_seal"].shape[1] == model.encoder.row.dim


def test_slides_are_embedded(model, tmp_path):
    from seal_lite.data.images import Slide
    from seal_lite.slides import embed, places

    pixels = np.zeros((640, 640, 3), np.uint8)
    slide = Slide(
        path=Path("slide.tif"),
        size=(640, 640),
        um_per_px=1.0,
        levels=(1.0,),
        region=lambda level, box: pixels[box[1] : box[3], box[0] : box[2]],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "grid", lambda slide, **_: np.zeros((3, 2), int))
        origin = embed.Origin("0" * 64, patch_um=64.0, patch_px=64, places="three")
        embed.write_features(model.encoder, slide, tmp_path / "s.h5", origin=origin)
    assert (tmp_path / "s.h5").exists()


@pytest.mark.parametrize("kind", ["classification", "regression", "survival"])
def test_attention_over_bags_is_fitted(card, kind, monkeypatch):
    from torchmil.models import ABMIL

    from seal_lite.slides.mil import abmil

    if isinstance(torch.zeros(1), FakeTensor):
        monkeypatch.setattr(torch.Tensor, "backward", lambda _: None)  # it has no backward pass
    devices = set()
    forward = ABMIL.forward

    def noted(model, x, mask=None):
        devices.add(x.device)
        return forward(model, x, mask)

    monkeypatch.setattr(ABMIL, "forward", noted)
    bags = [np.ones((n, 3), np.float32) for n in (2, 5, 4, 3)]
    y = {
        "classification": np.array([0, 1, 0, 1]),
        "regression": np.arange(4.0),
        "survival": np.array([[5, 1], [6, 0], [7, 1], [8, 1.0]]),
    }
    predicted = abmil(bags, y[kind], bags[:2], kind=kind, epochs=1)
    assert predicted.shape[0] == 2
    assert devices == {CARD}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no card")
@pytest.mark.parametrize("precision", ["no", "auto", "fp16"])
def test_a_card_trains_as_the_cpu_does(sections, tmp_path, precision):
    from seal_lite import SEAL, finetune

    same_masks = replace(TINY, head_dropout=0.0)  # a card draws others than the CPU
    _, expected = finetune(sections[:1], same_masks, device="cpu", progress=False)
    config = replace(same_masks, precision=precision)
    out = tmp_path / "run"
    model, history = finetune(sections[:1], config, out=out, progress=False)
    assert model.encoder.device == CARD
    losses = [epoch["loss"] for epoch in history]
    assert losses == pytest.approx([epoch["loss"] for epoch in expected], rel=0.03)
    patches = sections[1].patches
    on_cpu = embed_patches(SEAL.from_pretrained(out, device="cpu").encoder, patches)
    on_card = embed_patches(SEAL.from_pretrained(out).encoder, patches)
    np.testing.assert_allclose(on_card, on_cpu, atol=0.05 * np.abs(on_cpu).max())
