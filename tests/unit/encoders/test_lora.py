"""LoRA: in the named layers of the tuned blocks, without effect at first, equal to peft's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer

from seal_lite import encoders
from seal_lite.errors import InputError

both_kinds = pytest.mark.parametrize("name", ["tiny_cnn", "tiny_vit"])
# The layers that LoRA adapts inside the last block, and the tensors that are tuned whole: three of
# a depthwise filter and its neighbours' normalisation, which are no matrices.
LAST_BLOCK = {
    "tiny_cnn": ("blocks.3", {"0.conv_pw", "0.conv_pwl"}, {"conv_dw", "bn1", "bn2", "bn3"}),
    "tiny_vit": ("blocks.5", {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}, set()),
}


@both_kinds
def test_lora_adapts_exactly_the_named_layers_of_the_last_block(name):
    block, layers, whole = LAST_BLOCK[name]
    encoder = encoders.build_encoder(name, tune_blocks=1)
    assert set(encoder.adapted) == {f"{block}.{layer}" for layer in layers}
    assert sum(isinstance(module, LoraLayer) for module in encoder.modules()) == len(layers)
    trainable = [
        parameter for parameter in encoder.named_parameters() if parameter[1].requires_grad
    ]
    assert all(f"{block}." in parameter for parameter, _ in trainable)
    tuned_whole = [parameter for parameter, _ in trainable if "lora_" not in parameter]
    assert len(trainable) - len(tuned_whole) == 2 * len(layers)
    assert {parameter.split(".modules_to_save")[0].split(".")[-1] for parameter in tuned_whole} == (
        whole
    )


@both_kinds
def test_more_tuned_blocks_have_more_layers(name):
    _, layers, _ = LAST_BLOCK[name]
    assert len(encoders.build_encoder(name, tune_blocks=2).adapted) > len(layers)


@both_kinds
def test_lora_starts_as_a_no_op_to_the_bit(name, patches):
    frozen = encoders.embed_patches(encoders.build_encoder(name), patches)
    tuned = encoders.embed_patches(encoders.build_encoder(name, tune_blocks=1), patches)
    np.testing.assert_array_equal(frozen, tuned)


def output_and_gradients(encoder, images):
    output = encoder(images)
    output.square().mean().backward()
    return [output, *(p.grad for p in encoder.parameters() if p.requires_grad)]


@pytest.fixture
def merged_and_peft(perturb_tuned):
    """Encoders with the same adapter: convolutions in one pass, and peft's own.

    With dropout, which is off in eval mode, convolutions run as peft runs them.
    """
    pair = []
    for dropout in (0.0, 0.5):
        encoder = encoders.build_encoder("tiny_cnn", tune_blocks=2, dropout=dropout)
        perturb_tuned(encoder)
        pair.append(encoder)
    return pair


def test_a_convolution_in_one_pass_is_pefts_own_in_value_and_gradient(merged_and_peft, images):
    """Without dropout, W x + s B A x is computed as (W + s B A) x."""
    merged, peft = merged_and_peft
    frozen = encoders.build_encoder("tiny_cnn")
    assert not torch.allclose(merged(images), frozen(images), rtol=1e-2)
    tensors = zip(
        output_and_gradients(merged, images), output_and_gradients(peft, images), strict=True
    )
    for one, other in tensors:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())


@torch.inference_mode()
def test_a_convolution_in_one_pass_obeys_pefts_switches(merged_and_peft, images):
    merged, _ = merged_and_peft
    embedding = merged(images)
    with merged.net.disable_adapter():
        torch.testing.assert_close(merged(images), encoders.build_encoder("tiny_cnn")(images))
    merged.net.merge_adapter()
    torch.testing.assert_close(merged(images), embedding, rtol=1e-3, atol=1e-5)


def test_lora_without_a_layer_to_adapt_is_an_input_error():
    row = replace(encoders.BACKBONES["tiny_vit"], lora="no_such_layer")
    with pytest.raises(InputError, match="LoRA finds no layer"):
        encoders.VisionEncoder(encoders.load_backbone(row), row, tune_blocks=1)


def test_another_number_of_layers_than_the_row_states_is_an_input_error():
    """As with a version of transformers that names the attention's layers otherwise."""
    row = replace(encoders.BACKBONES["tiny_vit"], lora=r"mlp\.fc[12]", extra="timm>=1")
    message = r"tiny_vit: LoRA finds 2 layers in blocks.4, not 4; install timm>=1"
    with pytest.raises(InputError, match=message):
        encoders.VisionEncoder(encoders.load_backbone(row), row, tune_blocks=2)


@both_kinds
def test_a_backward_pass_reaches_every_adapted_layer(name, images):
    encoder = encoders.build_encoder(name, tune_blocks=2)
    assert encoder.layers_without_gradient() == encoder.adapted
    encoder(images).sum().backward()
    assert encoder.layers_without_gradient() == []


@pytest.mark.parametrize("name", ["beit_tiny", "eva_tiny"])
def test_lora_that_no_gradient_reaches_is_an_input_error(name, monkeypatch):
    """BEiT and EVA use the weight of `qkv` without calling the layer."""
    import timm

    kinds = {"beit_tiny": "beit_base_patch16_224", "eva_tiny": "eva02_tiny_patch14_224"}
    create = timm.create_model
    small = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, **options: create(kinds[name], **{**options, **small, "pretrained": False}),
    )
    message = rf"{name}: no gradient reaches LoRA on 1 of \d layers, the first blocks.1.attn.qkv;"
    with pytest.raises(InputError, match=message):
        encoders.build_encoder(name, pretrained=False, tune_blocks=1)
    whole = encoders.build_encoder(name, pretrained=False, tune_blocks=1, rank=0)
    assert whole.adapted == []
    assert all(parameter.grad is None for parameter in whole.parameters())


@pytest.mark.parametrize("name", ["tiny_cnn", "tiny_vit"])
def test_embedding_merges_lora_meanwhile(name, patches, perturb_tuned, monkeypatch):
    """The same embeddings up to rounding; afterwards every weight is as before, to the bit."""
    encoder = encoders.build_encoder(name, tune_blocks=1, rank=2, dropout=0.0, device="cpu")
    perturb_tuned(encoder)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    (images,) = encoders.image_batches(patches)
    with torch.inference_mode():
        expected = encoder(images).numpy()
    layers = [module for module in encoder.modules() if isinstance(module, LoraLayer)]
    merged_meanwhile = []
    forward = encoders.VisionEncoder.forward

    def watched(self, batch):
        merged_meanwhile.append(all(layer.merged for layer in layers))
        return forward(self, batch)

    monkeypatch.setattr(encoders.VisionEncoder, "forward", watched)
    embedding = encoders.embed_patches(encoder, patches)
    np.testing.assert_allclose(embedding, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert merged_meanwhile == [True]
    assert not any(layer.merged for layer in layers)
    after = encoder.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_an_error_inside_brings_the_weights_back(perturb_tuned):
    encoder = encoders.build_encoder("tiny_vit", tune_blocks=1, rank=2, device="cpu")
    perturb_tuned(encoder)
    before = encoder.base_digest()
    with pytest.raises(RuntimeError, match="stop"), encoder.merged():
        raise RuntimeError("stop")
    assert encoder.base_digest() == before
