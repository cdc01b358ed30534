"""Networks without a row: folders that timm or transformers has saved, and a user's own rows."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from seal_lite import encoders
from seal_lite.config import Config
from seal_lite.encoders import registry
from seal_lite.encoders.networks import described, loading
from seal_lite.errors import InputError

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 16,
    "image_size": 64,
}
MEAN = [0.7, 0.5, 0.6]
STD = [0.2, 0.3, 0.25]


def transformers_network(kind):
    """A tiny vision transformer of transformers, and the number of tokens before its patches."""
    import transformers

    if kind == "clip":
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.CLIPConfig(vision_config=TINY, text_config=text)
        return transformers.CLIPModel(config), 1
    if kind == "siglip":
        return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TINY)), 0
    if kind == "vit":
        return transformers.ViTModel(transformers.ViTConfig(**TINY)), 1
    if kind == "dinov2":
        return transformers.Dinov2Model(transformers.Dinov2Config(**TINY)), 1
    config = transformers.Dinov2WithRegistersConfig(**TINY, num_register_tokens=4)
    return transformers.Dinov2WithRegistersModel(config), 5


def save_normalisation(folder, mean=MEAN):
    settings = {"image_mean": mean, "image_std": STD, "image_processor_type": "BitImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


@pytest.fixture(params=["dinov2", "registers", "vit", "clip", "siglip"])
def saved(request, tmp_path):
    """(name, network, tokens before the patches) of a folder that transformers has saved."""
    torch.manual_seed(3)
    net, n_prefix = transformers_network(request.param)
    net.save_pretrained(tmp_path)
    save_normalisation(tmp_path)
    return f"local-dir:{tmp_path}", net.eval(), n_prefix


def test_a_folder_of_transformers_is_read_as_its_files_state(saved, patches, images):
    name, net, n_prefix = saved
    row = encoders.backbone_row(name)
    assert (row.prefix_tokens, row.dim, row.px, row.um_per_px) == (n_prefix, 32, 64, 0.5)
    net = getattr(net, "vision_model", net)
    normalised = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.inference_mode():
        tokens = net(normalised).last_hidden_state
    expected = tokens[:, 0] if n_prefix else tokens.mean(1)
    embeddings = encoders.embed_patches(encoders.build_encoder(name), patches)
    np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-5)
    random = encoders.build_encoder(name, pretrained=False, seed=1)
    assert np.abs(encoders.embed_patches(random, patches) - embeddings).max() > 1e-3


def test_relative_positions_are_those_of_the_vendor(tmp_path, patches, images):
    """transformers keeps their index for the process; one without data made rows NaN."""
    import transformers

    torch.manual_seed(3)
    config = transformers.BeitConfig(**TINY, use_relative_position_bias=True)
    net = transformers.BeitModel(config).eval()
    net.save_pretrained(tmp_path)
    save_normalisation(tmp_path)
    embeddings = encoders.embed_patches(encoders.build_encoder(f"local-dir:{tmp_path}"), patches)
    normalised = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.inference_mode():
        expected = net(normalised).last_hidden_state[:, 0]
    np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("px", [64, 96])
def test_positions_are_those_of_the_image_at_any_size(tmp_path, px):
    """A network with rotary positions hands them to every block, from the size of the image."""
    import transformers

    torch.manual_seed(3)
    net = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**TINY, num_register_tokens=4))
    net.save_pretrained(tmp_path)
    save_normalisation(tmp_path)
    encoder = encoders.build_encoder(f"local-dir:{tmp_path}", tune_blocks=2)
    assert not encoder.row.fixed and encoder.row.prefix_tokens == 5
    image = torch.rand(2, 3, px, px)
    with torch.inference_mode():
        every = encoder.every_layer(image)[encoder.feature_layer]
        torch.testing.assert_close(encoder(image), every, rtol=1e-5, atol=1e-5)


def test_another_network_in_the_same_folder_is_another_row(tmp_path):
    """A second crossval returned the scores of the first."""
    from seal_lite.encoders.networks.described import described_row
    from seal_lite.training.provenance import _backbone_sha256

    digests = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = transformers_network("vit")[0]
        net.save_pretrained(tmp_path)
        save_normalisation(tmp_path)
        described_row.cache_clear()  # as in another process
        digests.add(_backbone_sha256(encoders.backbone_row(f"local-dir:{tmp_path}")))
    assert len(digests) == 2


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"do_normalize": False}, ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
        ({"do_rescale": False}, "does not scale pixels by 1 / 255"),
        ({"rescale_factor": 1 / 127.5}, "does not scale pixels by 1 / 255"),
        ({"rescale_factor": 0.00392156862745098}, (tuple(MEAN), tuple(STD))),
        ({"image_std": [0.0, 1.0, 1.0]}, "image_std"),
    ],
)
def test_the_normalisation_is_the_processors(tmp_path, settings, expected):
    net, _ = transformers_network("vit")
    net.save_pretrained(tmp_path)
    save_normalisation(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            encoders.backbone_row(f"local-dir:{tmp_path}")
        return
    row = encoders.backbone_row(f"local-dir:{tmp_path}")
    assert (row.mean, row.std) == expected


def test_detection_tokens_behind_the_patches_need_a_row(tmp_path):
    import transformers

    config = transformers.YolosConfig(**TINY | {"image_size": [64, 64]}, num_detection_tokens=3)
    transformers.YolosModel(config).save_pretrained(tmp_path)
    save_normalisation(tmp_path)
    with pytest.raises(InputError, match="is no plain vision transformer"):
        encoders.backbone_row(f"local-dir:{tmp_path}")


def cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_its_last_blocks_are_tuned_in_all_linear_layers(saved):
    name, *_ = saved
    config = replace(encoders.config_for(name), tune_blocks=1, depth=1)
    encoder = encoders.encoder_for(config)
    (block,) = [stage for stage in encoder.tail_stages if stage != "output"]
    assert len(encoder.adapted) == 6  # q, k, v, the output, two of the MLP
    assert all(layer.startswith(f"{block}.") for layer in encoder.adapted)


@pytest.mark.parametrize("kind, fixed, px_step", [("dinov2", False, 16), ("vit", True, 1)])
def test_a_size_is_free_where_the_network_resamples_its_positions(tmp_path, kind, fixed, px_step):
    """DINOv2 of transformers always does, its ViT only when asked."""
    net, _ = transformers_network(kind)
    net.save_pretrained(tmp_path)
    save_normalisation(tmp_path)
    row = encoders.backbone_row(f"local-dir:{tmp_path}")
    assert (row.fixed, row.px_step) == (fixed, px_step)


def save_timm(folder, **options):
    torch.manual_seed(0)
    net = timm.create_model("test_vit", num_classes=0, **options)
    timm.models.save_for_hf(net, folder, model_args=options, safe_serialization=True)
    return f"local-dir:{folder}"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_encoder_is_built_where_gradients_are_off(tmp_path, mode):
    """The check that LoRA has an effect needs gradients."""
    name = save_timm(tmp_path)
    with mode():
        assert encoders.build_encoder(name, tune_blocks=1).adapted


def test_a_size_is_free_where_timm_says_so(tmp_path):
    name = save_timm(tmp_path, dynamic_img_size=True)
    row = encoders.backbone_row(name)
    row.check_px(96)
    with pytest.raises(InputError, match="multiples of 16 px, not 100; set patch_px=96"):
        row.check_px(100)
    encoder = encoders.build_encoder(name)
    patches = np.zeros((2, 96, 96, 3), np.uint8)
    assert encoders.embed_patches(encoder, patches).shape == (2, row.dim)


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


def remove_one_weight(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "fc1" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_settings(**changes):
    def change(folder):
        settings = json.loads((folder / "config.json").read_text()) | changes
        settings = {key: value for key, value in settings.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(settings))

    return change


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json; write it by timm"),
        (lambda folder: (folder / "config.json").write_text("["), "config.json: cannot be read"),
        (change_settings(architecture=None), "cannot be built .*; save it again"),
        (
            change_settings(model_args={"foo": 1}),
            "unexpected keyword argument 'foo'.*save it again",
        ),
        (change_settings(pretrained_cfg=None), "cannot be built .*; save it again"),
        (remove_weights, "cannot be built .*; save it again"),
        (remove_one_weight, r"Missing key.*mlp.fc1.*save it again"),
    ],
)
def test_a_damaged_folder_of_timm_is_an_input_error(tmp_path, damage, message):
    name = save_timm(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=f"^backbone {name}: .*{message}") as error:
        loading.load_backbone(encoders.backbone_row(name))
    assert "online" not in str(error.value)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "states the normalisation"),
        (
            lambda folder: (folder / "preprocessor_config.json").write_text("{}"),
            "image_mean is miss",
        ),
        (lambda folder: save_normalisation(folder, mean=[0.5]), "image_mean.*a list of 3"),
        (change_settings(model_type="convnext"), "is no plain vision transformer; give it a row"),
        (change_settings(model_type="bert"), "is no plain vision transformer; give it a row"),
        (change_settings(model_type="mine"), "cannot be built .*mine.*; save it again"),
        (remove_weights, "cannot be built .*; save it again"),
        (cut_weights, "cannot be built .SafetensorError.*; save it again"),
        (remove_one_weight, "of its weights are missing, the first .*fc1"),
    ],
)
def test_a_damaged_folder_of_transformers_is_an_input_error(tmp_path, damage, message):
    net, _ = transformers_network("dinov2")
    net.save_pretrained(tmp_path)
    save_normalisation(tmp_path)
    damage(tmp_path)
    name = f"local-dir:{tmp_path}"
    with pytest.raises(InputError, match=f"^backbone {name}: .*{message}"):
        loading.load_backbone(encoders.backbone_row(name))


class Response:
    """What the errors of huggingface_hub carry along."""

    headers: dict = {}
    status_code = 403
    request = None


@pytest.mark.parametrize(
    "kind, message",
    [
        (GatedRepoError, "accept its terms at https://huggingface.co/owner/gated, then"),
        (RepositoryNotFoundError, "check the name"),
        (RemoteEntryNotFoundError, "owner/gated: has no config.json; write it by timm"),
    ],
)
def test_a_repository_that_gives_no_configuration_is_an_input_error(monkeypatch, kind, message):
    def fail(*args, **options):
        raise kind("refused", response=Response())

    monkeypatch.setattr(described, "hf_hub_download", fail)
    with pytest.raises(InputError, match=f"^backbone hf-hub:owner/gated@v2: .*{message}"):
        encoders.backbone_row("hf-hub:owner/gated@v2")


def test_the_name_on_the_hub_has_no_revision():
    row = replace(encoders.backbone_row("test_vit"), source="hf-hub:owner/name@v2")
    assert row.hub_name == "owner/name"


def test_an_absent_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"{tmp_path}/none: no such folder; give the encoder's"):
        encoders.backbone_row("local-dir:none")


def test_a_relative_folder_is_another_one_elsewhere(tmp_path, monkeypatch):
    """Rows are kept by name."""
    for place, reads_any_size in (("a", False), ("b", True)):
        save_timm(tmp_path / place / "network", dynamic_img_size=reads_any_size)
        monkeypatch.chdir(tmp_path / place)
        assert encoders.backbone_row("local-dir:network").fixed == (not reads_any_size)


def test_a_folder_is_stored_as_an_absolute_path(tmp_path, monkeypatch):
    """A run is loaded from other folders, too."""
    save_timm(tmp_path / "network")
    monkeypatch.chdir(tmp_path)
    config = encoders.config_for("local-dir:network")
    assert config.backbone == f"local-dir:{tmp_path / 'network'}"
    for name in ("hf-hub:owner/name", Config.backbone):
        assert registry.absolute_name(name) == name


ROW = """
[mine]
loader = "timm.create_model"
source = "test_vit"
args = { num_classes = 0 }
dim = 64
px = 160
embedding = "class"
call = "forward_features"
lora = 'mlp\\.fc1'
lora_per_block = 1
"""


def test_rows_of_your_own_stand_beside_the_others(tmp_path, monkeypatch):
    file = tmp_path / "mine.toml"
    file.write_text(ROW)
    monkeypatch.setenv(registry.OWN_ROWS, str(file))
    rows = registry._read_own_rows()
    assert rows.keys() == {"mine"}
    monkeypatch.setitem(encoders.BACKBONES, "mine", rows["mine"])
    encoder = encoders.build_encoder("mine", tune_blocks=2)
    assert len(encoder.adapted) == 2


@pytest.mark.parametrize(
    "text, message",
    [
        (ROW.replace("[mine]", "[uni]"), "there is an encoder uni; give the row another name"),
        (ROW.replace("embedding", "embeding"), "embeding.*the keys of `Backbone`"),
        (ROW.replace("dim = 64", ""), "dim.*the keys of `Backbone`"),
        (ROW.replace("dim = 64", 'dim = "x"'), "mine.dim='x' must be a whole number"),
        (ROW.replace('"class"', '"clas"'), "mine.embedding='clas'"),
        (ROW + "std = [0.5, 0.5, 0.0]", "mine.std"),
        (ROW + "mean = [0.5, 0.5]", "mine.mean"),
        (ROW + 'recipe = "cnn"', "mine.recipe='cnn'"),
        (ROW.replace("'mlp\\.fc1'", "'('"), "cannot be read"),
        ("[mine", "cannot be read"),
    ],
)
def test_damaged_rows_of_your_own_are_an_input_error(tmp_path, monkeypatch, text, message):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    monkeypatch.setenv(registry.OWN_ROWS, str(file))
    with pytest.raises(InputError, match=rf"^{file}: .*{message}"):
        registry._read_own_rows()


def test_an_absent_file_of_rows_is_an_input_error(monkeypatch):
    monkeypatch.setenv(registry.OWN_ROWS, "none.toml")
    with pytest.raises(InputError, match="none.toml: cannot be read"):
        registry._read_own_rows()
