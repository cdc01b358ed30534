"""The table of encoders: every row's network, every way of loading, every way it can fail."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import save_file

from seal_lite import Config
from seal_lite.encoders.embedding import embed_patches, image_batches
from seal_lite.encoders.registry import BACKBONES, Backbone, backbone_row, load_backbone
from seal_lite.encoders.vision import VisionEncoder, build_encoder, find_blocks
from seal_lite.errors import InputError
from seal_lite.model.seal import SEAL
from seal_lite.training.loop import finetune

ASKED = """conch conch_v1_5 uni uni2_h virchow virchow2 prov_gigapath h_optimus_0 h_optimus_1
h0_mini phikon phikon_v2 hibou_l kaiko_vits8 kaiko_vitb8 lunit_vits8 musk omiclip resnet50
tf_efficientnet_lite0""".split()
# Of each network that can be built here: its blocks, and LoRA's layers in the last of them.
BUILT = {
    "uni": (24, 4),
    "uni2_h": (24, 4),
    "virchow": (32, 4),
    "virchow2": (32, 4),
    "prov_gigapath": (40, 4),
    "h_optimus_0": (40, 4),
    "h_optimus_1": (40, 4),
    "h0_mini": (12, 4),
    "kaiko_vits8": (12, 4),
    "kaiko_vitb8": (12, 4),
    "lunit_vits8": (12, 4),
    "resnet50": (4, 9),
    "tf_efficientnet_lite0": (7, 6),
    "phikon": (12, 6),
    "phikon_v2": (24, 6),
}
HUB_CONFIGS = {  # what transformers finds on the hub
    "phikon": transformers.ViTConfig(hidden_size=768, num_hidden_layers=12),
    "phikon_v2": transformers.Dinov2Config(
        hidden_size=1024,
        num_hidden_layers=24,
        patch_size=16,
        num_attention_heads=16,
        image_size=224,
    ),
}


def test_every_encoder_asked_for_has_a_full_row():
    assert set(ASKED) <= set(BACKBONES)
    for name in ASKED:
        row = BACKBONES[name]
        assert row.dim > 0 and len(row.mean) == len(row.std) == 3 and row.px % 32 == 0
        assert row.embedding in ("class", "mean", "class+mean", "output")
        assert row.lora != ".*" and row.licence != "unknown" and row.card.startswith("https://")
        assert (row.um_per_px is None) == (name == "tf_efficientnet_lite0")


@pytest.mark.parametrize("name", BUILT)
def test_rows_fit_their_architectures(name):
    """Built without weights: dimension, resolution, blocks, and what LoRA adapts in the last."""
    row, (blocks, adapted) = BACKBONES[name], BUILT[name]
    with torch.device("meta"):
        if name in HUB_CONFIGS:
            net = transformers.AutoModel.from_config(HUB_CONFIGS[name], **row.args)
        else:
            net = load_backbone(row, pretrained=False)
        assert len(find_blocks(net)) == blocks
        encoder = VisionEncoder(net, row, tune_blocks=1).eval().to("meta")
        assert encoder(torch.rand(2, 3, row.px, row.px)).shape == (2, row.dim)
    last = encoder.tail_stages[0]
    assert len(encoder.adapted) == adapted
    assert all(layer.startswith(f"{last}.") for layer in encoder.adapted)


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "test_convnext",
        "test_byobnet",
        "test_vit3",
        "test_maxvit",
        "swin_s3_tiny_224",
        "vit_small_patch16_dinov3",
        "eva02_tiny_patch14_224",
    ],
)
@torch.inference_mode()
def test_any_network_is_cut_at_any_block_without_a_row(monkeypatch, name):
    """Prefix then tail is timm's own pooled output, wherever the cut lies."""
    if name not in timm.list_models():
        pytest.skip(f"this timm has no {name}")
    row = backbone_row(name)
    x = torch.rand(2, 3, row.px, row.px)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (row.mean, row.std))
    net = load_backbone(row, pretrained=False)
    expected = net((x - mean) / std)
    assert expected.shape[1] == row.dim
    for k in (0, 1, 2, len(find_blocks(net))):
        encoder = VisionEncoder(load_backbone(row, pretrained=False), row, tune_blocks=k).eval()
        assert bool(encoder.adapted) == (k > 0)
        torch.testing.assert_close(encoder(x), expected, rtol=1e-4, atol=1e-4)


def test_a_network_that_cannot_be_cut_is_refused():
    """Between a DenseNet's blocks lie layers that need what the block adds."""
    with pytest.raises(InputError, match="densenet121.*do not follow one another"):
        build_encoder("densenet121", pretrained=False, tune_blocks=1)


def tiny_timm(folder):
    """A timm checkpoint as the hub has it: config.json and model.safetensors."""
    net = timm.create_model("test_vit", num_classes=0)
    save_file(net.state_dict(), folder / "model.safetensors")
    cfg = {"num_classes": 0, "input_size": [3, 160, 160], "mean": [0.4] * 3, "std": [0.3] * 3}
    config = {
        "architecture": "test_vit",
        "num_classes": 0,
        "pretrained_cfg": cfg,
        "model_args": {"img_size": 160},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return net, f"local-dir:{folder}", None


def tiny_transformers(folder):
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, patch_size=16, image_size=64
    )
    net = transformers.AutoModel.from_config(config)
    net.save_pretrained(folder)
    row = replace(BACKBONES["phikon_v2"], source=str(folder), dim=32, px=64)
    return net, "tiny", row


def tiny_open_clip(folder):
    open_clip = pytest.importorskip("open_clip")
    config = json.loads(json.dumps(open_clip.get_model_config("coca_ViT-L-14")))
    config |= {"embed_dim": 32}
    config["vision_cfg"] |= {"image_size": 64, "layers": 3, "width": 64, "patch_size": 16}
    config["text_cfg"] |= {"layers": 2, "width": 64, "heads": 2}
    config["multimodal_cfg"] |= {"layers": 2, "width": 64, "heads": 2}
    (folder / "tiny_coca.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny_coca.json")
    net = open_clip.create_model("tiny_coca")
    save_file(net.state_dict(), folder / "omiclip.safetensors")
    args = {"pretrained": str(folder / "omiclip.safetensors")}
    row = replace(BACKBONES["omiclip"], source="tiny_coca", args=args, dim=32, px=64)
    return net.visual, "tiny", row


def tiny_vendor(folder):
    """A package of its own with a loader that gives (model, transform), and blocks in tuples."""
    (folder / "tiny_vendor.py").write_text(
        """
import torch
from safetensors.torch import load_file, save_file

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = torch.nn.Linear(16, 16)

    def forward(self, x, mask=None):
        return x + torch.tanh(self.q_proj(x)), None

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 16, 16)
        self.layers = torch.nn.ModuleList(Block() for _ in range(3))

    def encode_image(self, image, normalize=True):
        x = self.stem(image).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x, _ = layer(x, mask=None)
        x = x.mean(1)
        return (x / x.norm(dim=1, keepdim=True) if normalize else x), None

def create(size):
    assert size == 16
    return Net(), "a transform"

def fill(model, path):
    model.load_state_dict(load_file(path), strict=True)
"""
    )
    import tiny_vendor as vendor

    net, _ = vendor.create(16)
    save_file(net.state_dict(), folder / "vendor.safetensors")
    row = Backbone(
        "tiny",
        "tiny_vendor.create",
        "",
        16,
        {"size": 16},
        fill="tiny_vendor.fill",
        px=64,
        fill_args={"path": str(folder / "vendor.safetensors")},
        call="encode_image",
        call_args={"normalize": False},
        lora="q_proj",
        tuple_blocks=True,
    )
    return net, "tiny", row


@pytest.mark.parametrize("kind", [tiny_timm, tiny_transformers, tiny_open_clip, tiny_vendor])
def test_every_kind_is_loaded_finetuned_saved_and_loaded_again(
    kind, tmp_path, monkeypatch, sections
):
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(3)
    net, name, row = kind(tmp_path)
    if row is not None:
        monkeypatch.setitem(BACKBONES, name, replace(row, name=name))
    row = backbone_row(name)
    px = row.px
    patches = np.random.default_rng(0).integers(0, 256, (4, px, px, 3), dtype=np.uint8)
    plain = build_encoder(name)
    (x,) = image_batches(patches)
    x = (x - torch.tensor(row.mean).view(3, 1, 1)) / torch.tensor(row.std).view(3, 1, 1)
    with torch.inference_mode():
        out = getattr(net.eval(), row.call)(x, **row.call_args)
        out = getattr(out, "last_hidden_state", out)
        out = out[0] if isinstance(out, tuple) else out
        out = out if out.ndim == 2 else out[:, 0]
    np.testing.assert_allclose(embed_patches(plain, patches), out, rtol=1e-4, atol=1e-5)

    small = [replace(s, patches=np.resize(s.patches, (len(s.rows), px, px, 3))) for s in sections]
    config = Config(
        backbone=name,
        patch_px=px,
        n_genes=16,
        n_views=1,
        epochs=1,
        batch_size=8,
        hidden=(16, 8),
        project=8,
        tune_blocks=2,
        lora_rank=4,
    )
    model, _ = finetune(small, config, out=tmp_path / "run", progress=False)
    tuned = embed_patches(model.encoder, patches)
    assert np.abs(tuned - embed_patches(plain, patches)).max() > 1e-4
    again = SEAL.from_pretrained(tmp_path / "run")
    np.testing.assert_array_equal(embed_patches(again.encoder, patches), tuned)

    random = build_encoder(name, pretrained=False, seed=1)
    assert np.abs(embed_patches(random, patches) - embed_patches(plain, patches)).max() > 1e-3


class Response:
    """What huggingface_hub's errors carry along."""

    headers, status_code, request = {}, 403, None


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (
            GatedRepoError("gated", response=Response()),
            "accept its terms at https://.*hf auth login",
        ),
        (
            RepositoryNotFoundError("none", response=Response()),
            "check the name, or `hf auth login`",
        ),
        (LocalEntryNotFoundError("offline"), "go online"),
        (RuntimeError("size mismatch for norm"), "cannot be built .size mismatch for norm"),
        (ModuleNotFoundError("no", name="conch.x"), "conch.x is not installed; pip install"),
    ],
)
def test_what_keeps_a_network_from_loading_is_one_sentence(monkeypatch, error, remedy):
    def fail(*_, **__):
        try:
            raise error
        except OSError as cause:  # as transformers wraps them
            raise OSError("see above") from cause

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(InputError, match=f"backbone uni: .*{remedy}") as found:
        load_backbone(BACKBONES["uni"])
    assert "\n" not in str(found.value)


def test_an_absent_package_names_how_to_install_it():
    assert "conch" not in sys.modules
    with pytest.raises(InputError, match="conch is not installed; pip install git.https"):
        load_backbone(BACKBONES["conch"])


def test_lora_that_finds_nothing_says_so():
    row = replace(BACKBONES["test_vit"], lora="no_such_layer")
    with pytest.raises(InputError, match="LoRA finds no layer"):
        VisionEncoder(load_backbone(row), row, tune_blocks=1)
