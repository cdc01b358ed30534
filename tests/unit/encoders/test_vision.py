"""An encoder's two halves are its network, wherever the cut lies; only tuned blocks change."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from seal_lite import encoders
from seal_lite.errors import InputError

both_kinds = pytest.mark.parametrize("name", ["tiny_cnn", "tiny_vit"])
# Networks without a row, as small as their options allow.
OTHER_NETWORKS = {
    "test_byobnet": {},
    "test_convnext": {},
    "test_maxvit": {"img_size": 128},
    "test_resnet": {},
    "test_vit3": {"img_size": 64},
    "eva02_tiny_patch14_224": {"img_size": 56, "embed_dim": 48, "depth": 3, "num_heads": 3},
    "vit_small_patch16_dinov3": {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {  # feature maps (b, h, w, width)
        "img_size": 64,
        "window_size": 4,
        "embed_dim": 16,
        "depths": (1, 1, 2, 1),
        "num_heads": (1, 2, 2, 4),
    },
}


def normalise(images, row):
    return (images - torch.tensor(row.mean).view(3, 1, 1)) / torch.tensor(row.std).view(3, 1, 1)


@both_kinds
@pytest.mark.parametrize("tune_blocks", [0, 1, 3])
@torch.inference_mode()
def test_prefix_then_tail_is_the_networks_own_forward(name, tune_blocks, images):
    encoder = encoders.build_encoder(name, tune_blocks=tune_blocks)
    row = encoder.row
    net = encoders.load_backbone(row)
    outputs = []
    layer = net.get_submodule(row.feature_layer or "norm")
    layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    net.forward_features(normalise(images, row))
    expected = outputs[0].mean((2, 3)) if name == "tiny_cnn" else outputs[0][:, 0]
    assert expected.shape == (len(images), row.dim)
    torch.testing.assert_close(encoder(images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OTHER_NETWORKS)
@torch.inference_mode()
def test_a_network_without_a_row_is_cut_at_any_block(name):
    """Prefix then tail is timm's own pooled output."""
    import timm

    if name not in timm.list_models():
        pytest.skip(f"this timm has no {name}")
    options = OTHER_NETWORKS[name]
    px = options.get("img_size", 64)
    row = replace(encoders.backbone_row(name), px=px, args={"num_classes": 0, **options})
    images = torch.rand(2, 3, px, px)
    net = encoders.load_backbone(row)
    expected = net(normalise(images, row))
    n_blocks = len(encoders.find_blocks(net))
    for tune_blocks in {0, 1, 2, n_blocks}:
        encoder = encoders.VisionEncoder(
            encoders.load_backbone(row), row, tune_blocks=tune_blocks
        ).eval()
        assert bool(encoder.adapted) == (tune_blocks > 0)
        assert len(encoder.tail_stages) == (tune_blocks + 1 if tune_blocks else 0)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-4)


def test_a_network_that_cannot_be_cut_is_an_input_error():
    """Between a DenseNet's blocks lie layers that need what the block adds."""
    with pytest.raises(InputError, match="densenet121.*do not follow one another"):
        encoders.build_encoder("densenet121", pretrained=False, tune_blocks=1)


@both_kinds
def test_more_tuned_blocks_than_there_are_is_an_input_error(name):
    with pytest.raises(InputError, match="tune_blocks=99"):
        encoders.build_encoder(name, tune_blocks=99)


@both_kinds
@torch.inference_mode()
def test_feature_layers_are_the_embeddings_of_networks_cut_there(name, images):
    encoder = encoders.build_encoder(name, tune_blocks=2)
    layers = encoder.feature_layers(encoder.prefix(images))
    assert list(layers) == [encoder.prefix_stages[-1], *encoder.tail_stages]
    torch.testing.assert_close(layers[encoder.feature_layer], encoder(images))
    earlier = replace(encoder.row, feature_layer=encoder.prefix_stages[-1])
    cut_there = encoders.VisionEncoder(encoders.load_backbone(earlier), earlier)
    torch.testing.assert_close(layers[earlier.feature_layer], cut_there(images))


@both_kinds
@torch.inference_mode()
def test_every_layer_is_the_embedding_of_a_network_cut_there(name, images):
    encoder = encoders.build_encoder(name, tune_blocks=2)
    layers = encoder.every_layer(images)
    assert list(layers) == [*encoder.prefix_stages, *encoder.tail_stages]
    torch.testing.assert_close(layers[encoder.feature_layer], encoder(images))
    first = replace(encoder.row, feature_layer=encoder.prefix_stages[0])
    cut_there = encoders.VisionEncoder(encoders.load_backbone(first), first)
    torch.testing.assert_close(layers[first.feature_layer], cut_there(images))


@torch.inference_mode()
def test_without_its_last_blocks_a_transformer_ends_in_its_own_norm(images):
    encoder = encoders.build_encoder("tiny_vit", tune_blocks=2, depth=0.5)
    assert encoder.prefix_stages == ["blocks.0"]
    assert encoder.tail_stages == ["blocks.1", "blocks.2", "output"]
    net = encoders.load_backbone(encoder.row)
    tokens = net.patch_embed(normalise(images, encoder.row))
    tokens = net.norm_pre(net._pos_embed(tokens))
    for block in net.blocks[:3]:  # of 6
        tokens = block(tokens)
    torch.testing.assert_close(encoder(images), net.norm(tokens)[:, 0])


def test_without_its_last_blocks_a_network_is_read_at_the_last_that_is_left(images):
    encoder = encoders.build_encoder("tiny_cnn", depth=0.5)
    assert encoder.feature_layer == "blocks.1"
    whole = encoders.build_encoder("tiny_cnn").every_layer(images)
    torch.testing.assert_close(encoder(images), whole["blocks.1"])


def test_at_least_two_blocks_are_left():
    stages = encoders.build_encoder("tiny_vit", depth=0.0).prefix_stages
    assert stages == ["blocks.0", "blocks.1", "output"]


def test_blocks_that_are_no_list_cannot_be_left_out():
    with pytest.raises(InputError, match=r"depth=0\.5.*no list; set depth=1"):
        encoders.build_encoder("test_resnet", pretrained=False, depth=0.5)


@pytest.mark.parametrize("pooling", ["class", "mean", "class+mean"])
@torch.inference_mode()
def test_tokens_are_pooled_as_asked(pooling, images):
    encoder = encoders.build_encoder("tiny_vit", pooling=pooling)
    net = encoders.load_backbone(encoder.row)
    tokens = net.forward_features(normalise(images, encoder.row))
    parts = {"class": tokens[:, 0], "mean": tokens[:, 1:].mean(1)}
    expected = torch.cat([parts[part] for part in pooling.split("+")], 1)
    torch.testing.assert_close(encoder(images), expected)
    assert encoder.row.dim == expected.shape[1]


@torch.inference_mode()
def test_a_network_of_timm_that_pools_by_itself_can_be_pooled_otherwise():
    encoder = encoders.build_encoder("test_vit3", pretrained=False, pooling="mean")
    images = torch.rand(2, 3, encoder.row.px, encoder.row.px)
    net = encoders.load_backbone(encoders.backbone_row("test_vit3"), pretrained=False)
    tokens = net.forward_features(normalise(images, encoder.row))
    expected = tokens[:, encoder.row.prefix_tokens :].mean(1)
    torch.testing.assert_close(encoder(images), expected)


@pytest.mark.parametrize(
    ("name", "pooling", "remedy"),
    [("conch", "mean", "pooling=own"), ("tiny_cnn", "class", "pooling=mean")],
)
def test_a_pooling_that_a_network_does_not_have_is_an_input_error(name, pooling, remedy):
    with pytest.raises(InputError, match=remedy):
        encoders.backbone_row(name).pooled(pooling)


@pytest.mark.parametrize("rule", ["class", "mean", "class+mean"])
@torch.inference_mode()
def test_tokens_are_pooled_by_the_rows_rule(rule, images):
    row = replace(encoders.BACKBONES["tiny_vit"], embedding=rule)
    net = encoders.load_backbone(row)
    tokens = net.forward_features(normalise(images, row))
    assert tokens.shape[1] == 16 + net.num_prefix_tokens  # 4 x 4 patches of 16 px
    class_token = tokens[:, 0]
    mean = tokens[:, net.num_prefix_tokens :].mean(1)
    expected = {
        "class": class_token,
        "mean": mean,
        "class+mean": torch.cat([class_token, mean], 1),
    }
    embedding = encoders.VisionEncoder(net, row)(images)
    torch.testing.assert_close(embedding, expected[rule], rtol=1e-5, atol=1e-5)


@both_kinds
def test_an_embedding_is_deterministic_and_independent_of_its_batch(name):
    patches = np.random.default_rng(0).integers(0, 256, (37, 64, 64, 3), np.uint8)
    encoder = encoders.build_encoder(name, tune_blocks=1)
    encoder.train()  # dropout must not reach an embedding
    embeddings = encoders.embed_patches(encoder, patches)
    np.testing.assert_array_equal(encoders.embed_patches(encoder, patches), embeddings)
    order = np.random.default_rng(1).permutation(37)
    for batch_size in (1, 5, 37):
        shuffled = encoders.embed_patches(encoder, patches[order], batch_size=batch_size)
        gap = np.abs(shuffled - embeddings[order]).max()
        assert gap <= 1e-5 * np.abs(embeddings).max(), batch_size


def test_training_mode_reaches_the_dropout_of_lora_alone():
    encoder = encoders.build_encoder("tiny_cnn", tune_blocks=1).train()
    in_training = {name for name, module in encoder.net.named_modules() if module.training}
    assert in_training
    assert all(".lora_dropout" in name for name in in_training)
    encoder.eval()
    assert not any(module.training for module in encoder.modules())


def test_rank_0_trains_every_weight_of_the_last_blocks_and_nothing_else():
    encoder = encoders.build_encoder("tiny_cnn", tune_blocks=2, rank=0)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    last_blocks = ("net.blocks.2.", "net.blocks.3.")
    inside = {name for name, _ in encoder.named_parameters() if name.startswith(last_blocks)}
    assert trained == inside
    assert encoder.adapted == []


@both_kinds
def test_random_weights_are_reproducible_and_leave_the_callers_randomness(name, patches):
    state = torch.random.get_rng_state()
    first, again, other = (
        encoders.embed_patches(
            encoders.build_encoder(name, pretrained=False, seed=seed, tune_blocks=1), patches
        )
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_digest_of_the_base_follows_frozen_weights_and_not_the_adapter(perturb_tuned):
    encoder = encoders.build_encoder("tiny_cnn", tune_blocks=1)
    digest = encoders.build_encoder("tiny_cnn").base_digest()
    assert encoder.base_digest() == digest
    perturb_tuned(encoder)
    assert encoder.base_digest() == digest
    encoder.base.blocks[3][0].conv_pw.base_layer.weight.data[0, 0] += 1e-6
    assert encoder.base_digest() != digest


def test_without_lora_the_digest_of_the_base_leaves_tuned_blocks_out(perturb_tuned):
    encoder = encoders.build_encoder("tiny_cnn", tune_blocks=1, rank=0)
    digest = encoder.base_digest()
    perturb_tuned(encoder)
    assert encoder.base_digest() == digest
    encoder.base.blocks[2][0].conv_exp.weight.data[0, 0] += 1e-6
    assert encoder.base_digest() != digest
