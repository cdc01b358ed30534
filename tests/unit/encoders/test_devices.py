"""Where a network runs and in which precision: one rule, half precision tried on the CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import TINY

from seal_lite import InputError, encoders
from seal_lite.encoders import devices
from seal_lite.encoders.devices import resolve_device, resolve_precision
from seal_lite.encoders.prefix_cache import as_array, as_tensor

CARD = torch.device("cuda")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture
def card(monkeypatch):
    """Pretend that there is a card, with bf16 or without."""

    def pretend(*, bf16):
        monkeypatch.setattr(devices, "has_cuda", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        supported = lambda including_emulation=True: bf16 or including_emulation  # noqa: E731
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)

    return pretend


@pytest.fixture(params=["tiny_cnn", "tiny_vit"])
def build(request):
    def call(precision, **options):
        return encoders.build_encoder(
            request.param, tune_blocks=1, precision=precision, device="cpu", **options
        )

    return call


@pytest.fixture(scope="module")
def patches():
    return np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)


def test_auto_is_the_card_then_mps_then_the_cpu(card, monkeypatch):
    monkeypatch.setattr(devices, "has_cuda", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device() == torch.device("mps")
    card(bf16=True)
    assert resolve_device() == CARD
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["xpu", "meta", "vulkan"])
def test_what_torch_knows_and_nothing_here_runs_on_is_an_input_error(name):
    with pytest.raises(InputError, match=f"--device {name}: is unknown"):
        resolve_device(name)


def test_a_card_that_the_machine_lacks_is_an_input_error(card):
    card(bf16=True)
    assert resolve_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(InputError, match="--device cuda:7: the last card here is cuda:0"):
        resolve_device("cuda:7")


@pytest.mark.parametrize("name", ["gpu", "cuda", "cuda:1"])
def test_a_device_that_is_not_there_is_an_input_error(name, monkeypatch):
    monkeypatch.setattr(devices, "has_cuda", lambda: False)
    with pytest.raises(InputError, match=f"--device {name}.*use auto"):
        resolve_device(name)


@pytest.mark.parametrize(("bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_is_the_half_precision_that_the_card_has(card, bf16, expected):
    card(bf16=bf16)
    assert resolve_precision("auto", CARD) is expected
    assert resolve_precision("no", CARD) is torch.float32
    assert resolve_precision("auto", torch.device("cpu")) is torch.float32
    with pytest.raises(InputError, match="precision float16: is unknown; use auto, no, bf16, fp16"):
        resolve_precision("float16", CARD)


@pytest.mark.parametrize("precision", HALF)
def test_prefix_and_tail_compute_in_half_precision(build, patches, precision):
    encoder = build(precision)
    exact = build("no")
    (images,) = encoders.image_batches(patches)
    with torch.inference_mode():
        hidden = encoder.prefix(images)
        assert hidden.dtype is HALF[precision]
        embedding = encoder.tail(hidden)
        expected = exact(images)
    assert embedding.dtype is torch.float32
    difference = (embedding - expected).abs().max() / expected.abs().max()
    assert 0 < difference < 0.05


def test_tokens_enter_the_tuned_blocks_in_float32(patches):
    """As they do in a whole network, whose positions are float32; else each block rounds them."""
    encoder = encoders.build_encoder("tiny_vit", tune_blocks=2, precision="bf16", device="cpu")
    entering = []
    for stage in encoder.tail_stages[:2]:
        block = encoder.base.get_submodule(stage)
        block.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0].dtype))
    (images,) = encoders.image_batches(patches)
    with torch.inference_mode():
        encoder.tail(encoder.prefix(images))
    assert entering[-2:] == [torch.float32] * 2


@pytest.mark.parametrize("precision", HALF)
def test_embeddings_are_float32_whatever_computed_them(build, patches, precision):
    embedding = encoders.embed_patches(build(precision), patches)
    assert embedding.dtype == np.float32
    expected = encoders.embed_patches(build("no"), patches)
    assert 0 < np.abs(embedding - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [torch.float32, *HALF.values()])
def test_stored_activations_are_read_to_the_bit(dtype):
    hidden = torch.randn(3, 5).to(dtype)
    stored = as_array(hidden)
    assert stored.itemsize == hidden.element_size()
    assert torch.equal(as_tensor(stored), hidden)


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("precision", HALF)
def test_the_cache_holds_half_precision(build, sections, tmp_path, precision, folder):
    place = tmp_path if folder else None
    options = {"n_views": 2, "jitter": 0.1, "folder": place, "progress": False}
    caches = {p: encoders.PrefixCache(build(p), **options) for p in (precision, "no")}
    section = sections[0]
    half, full = (cache.activations(section) for cache in caches.values())
    assert half.nbytes * 2 == full.nbytes
    read = as_tensor(np.array(half)).float().numpy()
    np.testing.assert_allclose(read, full, atol=0.05 * np.abs(full).max())
    keys = {cache.key(section) for cache in caches.values()}
    assert len(keys) == 2  # neither reads the other's file


@pytest.mark.parametrize("cached", [True, False])
def test_a_streamed_batch_has_the_working_precision(sections, cached):
    from seal_lite.training.loader import Activations

    encoder = encoders.build_encoder("tiny_vit", tune_blocks=1, precision="bf16", device="cpu")
    config = replace(TINY, n_views=2)
    activations = Activations(encoder, sections, config, cached=cached, progress=False)
    places = (np.array([0, 1, 1]), np.array([3, 0, 5]), np.array([0, 1, 1]))
    hidden = activations.finish(activations.read(*places))
    assert hidden.dtype is torch.bfloat16
