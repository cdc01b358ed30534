"""A finetuned encoder for other software: one plain module, a model card, an upload."""

import json

import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects
from PIL import Image

from seal_lite import InputError

PX = {"tf_efficientnet_lite0": 96, "test_vit": 160}


@pytest.fixture(scope="module")
def torch():
    import torch

    return torch


@pytest.fixture(scope="module")
def hub():
    from seal_lite import hub

    return hub


def perturb_tuned(encoder, torch):
    """Change all trainable weights, so that LoRA, which starts as a no-op, has an effect."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))


@pytest.fixture(scope="module", params=PX)
def encoder(request, torch):
    from seal_lite.encoders.vision import build_encoder

    encoder = build_encoder(request.param, tune_blocks=2, rank=4, dropout=0.0)
    perturb_tuned(encoder, torch)
    return encoder


@pytest.fixture(scope="module")
def module(encoder, hub):
    return hub.merge_adapter(encoder)


@pytest.fixture(scope="module")
def images(encoder, torch):
    """Images (3, 3, px, px) in [0, 1]."""
    px = PX[encoder.row.name]
    return torch.rand(3, 3, px, px, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def normalised(encoder, images):
    return (images - encoder.mean) / encoder.std


@pytest.fixture(scope="module")
def frozen(encoder):
    """The encoder before it was tuned."""
    from seal_lite.encoders.vision import build_encoder

    return build_encoder(encoder.row.name)


def test_the_merged_module_gives_the_encoders_embeddings(
    torch, encoder, module, frozen, images, normalised
):
    with torch.inference_mode():
        embedding = module(normalised)
        torch.testing.assert_close(embedding, encoder(images), rtol=1e-5, atol=1e-5)
        assert (embedding - frozen(images)).abs().max() > 1e-3


def test_merging_leaves_the_encoder_itself_as_it_was(torch, hub, encoder, images):
    with torch.inference_mode():
        before = encoder(images)
        hub.merge_adapter(encoder)
        assert torch.equal(encoder(images), before)
    assert encoder.adapted


def test_the_merged_module_has_no_adapter_hooks_or_unused_layers(torch, encoder, module, frozen):
    names = [name for name, _ in module.named_parameters()]
    assert not any("lora_" in name or "original_module" in name for name in names)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert not any("forward" in vars(part) for part in module.modules())
    size = sum(parameter.numel() for parameter in module.parameters())
    frozen_size = sum(parameter.numel() for parameter in frozen.parameters())
    if encoder.row.feature_layer:
        assert size < 0.7 * frozen_size
        assert isinstance(module.net.conv_head, torch.nn.Identity)
    else:
        assert size == frozen_size


def test_the_merged_module_works_in_bfloat16(torch, hub, encoder, module, normalised):
    half_module = hub.merge_adapter(encoder).to(torch.bfloat16)
    with torch.inference_mode():
        full = module(normalised)
        half = half_module(normalised.to(torch.bfloat16)).float()
    assert torch.nn.functional.cosine_similarity(half, full).min() > 0.995


def test_tuned_blocks_without_lora_stay_tuned_in_the_module(torch, hub):
    from seal_lite.encoders.vision import build_encoder

    encoder = build_encoder("tf_efficientnet_lite0", tune_blocks=1, rank=0)
    perturb_tuned(encoder, torch)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        embedding = hub.merge_adapter(encoder)((images - encoder.mean) / encoder.std)
        torch.testing.assert_close(embedding, encoder(images), rtol=1e-5, atol=1e-5)


def test_a_run_becomes_module_transform_and_precision(torch, hub, trained, sections):
    """Of PIL images, the module gives the embeddings that the run's encoder gives of patches."""
    from seal_lite.encoders.embedding import embed_patches

    run, model, _ = trained
    module, transform, precision = hub.load_encoder(run)
    assert precision is torch.float32
    patches = sections[1].patches[:6]
    images = torch.stack([transform(Image.fromarray(patch)) for patch in patches])
    with torch.inference_mode():
        embeddings = module(images).numpy()
    own = embed_patches(model.encoder, patches)
    np.testing.assert_allclose(embeddings, own, rtol=1e-3, atol=1e-4)
    larger = transform(Image.fromarray(patches[0]).resize((200, 200)))
    assert larger.shape == (3, model.config.patch_px, model.config.patch_px)


@pytest.mark.parametrize("side", [40, 64, 97, 224])
def test_the_transform_resamples_as_embed_and_training_do_to_the_bit(
    torch, hub, trained, tmp_path, side
):
    """Embed reads a patch from a slide; the transform is given the same one, not yet resampled."""
    from seal_lite.data.images import open_slide
    from seal_lite.encoders.embedding import embed_patches

    run, model, _ = trained
    module, transform, _ = hub.load_encoder(run)
    px = model.config.patch_px
    pixels = np.random.default_rng(side).integers(0, 256, (300, 300, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "slide.png")
    slide = open_slide(tmp_path / "slide.png", um_per_px=0.5)
    read = slide.read(30, 50, edge=side, px=px)
    given = pixels[50 : 50 + side, 30 : 30 + side]
    expected = (torch.from_numpy(read.copy()).permute(2, 0, 1).float() / 255).sub(
        torch.tensor(model.encoder.row.mean)[:, None, None]
    ) / torch.tensor(model.encoder.row.std)[:, None, None]
    for image in (Image.fromarray(given), given, Image.fromarray(given).convert("RGBA")):
        assert torch.equal(transform(image), expected)
    with torch.inference_mode():
        embedding = module(transform(Image.fromarray(given))[None]).numpy()
    own = embed_patches(model.encoder, read[None])
    np.testing.assert_allclose(embedding, own, rtol=1e-4, atol=1e-5)


def test_the_transform_survives_a_worker_process(hub, trained):
    """A data set sends it there pickled."""
    import pickle

    run, model, _ = trained
    _, transform, _ = hub.load_encoder(run)
    image = Image.new("RGB", (50, 50), (200, 100, 150))
    sent = pickle.loads(pickle.dumps(transform))
    np.testing.assert_array_equal(sent(image), transform(image))


@pytest.mark.parametrize("patch_um, px", [(224.0, 64), (112.0, 32), (448.0, 128)])
def test_images_of_another_size_are_resampled_to_the_runs_scale(hub, trained, patch_um, px):
    """The run has 224 um at 64 px."""
    from seal_lite.data.images import resized

    run, model, _ = trained
    assert (model.config.patch_um, model.config.patch_px) == (224.0, 64)
    _, transform, _ = hub.load_encoder(run, patch_um=patch_um)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8))
    row = model.encoder.row
    expected = (resized(image, px) / 255 - row.mean) / row.std
    np.testing.assert_allclose(transform(image).permute(1, 2, 0), expected, atol=1e-5)


def test_a_size_that_the_network_does_not_read_is_refused(hub, trained, monkeypatch):
    from dataclasses import replace

    run, model, _ = trained
    fixed = replace(model.encoder.row, fixed=True, px=64)
    monkeypatch.setattr(model.encoder, "row", fixed)
    monkeypatch.setattr(hub.SEAL, "from_pretrained", lambda *_, **__: model)
    message = "112 um are 32 px at 3.5 um per px, which it does not read; give patches of 224 um"
    with pytest.raises(InputError, match=message):
        hub.load_encoder(run, patch_um=112.0)
    hub.load_encoder(run)  # at its own size it is read


def upstream_benchmark(encoder, enc_transf, precision, cli_args=None, **kwargs):
    """What HEST's `benchmark` does with its arguments: transform, embed, scale, PCA.

    Its data are PIL images, and `latent_dim` has the default 256.
    """
    import torch
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    images = torch.stack([enc_transf(Image.fromarray(image)) for image in kwargs["images"]])
    with torch.inference_mode(), torch.autocast("cpu", dtype=precision, enabled=False):
        embeddings = encoder(images.float()).numpy()
    pca = PCA(n_components=kwargs.get("latent_dim", 256), random_state=1)
    return embeddings, make_pipeline(StandardScaler(), pca).fit_transform(embeddings)


def test_hest_bench_runs_with_upstreams_signature(hub, trained):
    """Given patches of 224 px and 112 um, the embeddings are ours at the run's scale."""
    from seal_lite.encoders.embedding import embed_patches
    from seal_lite.evaluation.hest_bench import resample

    run, model, _ = trained
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (120, 28, 28, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    encoder = hub.load_encoder(run, patch_um=112.0)
    module, *_ = encoder
    latent_dim = min(256, module.row.dim)
    embeddings, components = upstream_benchmark(*encoder, images=images, latent_dim=latent_dim)
    assert components.shape == (120, 112)
    px = model.encoder.row.px_at_scale(model.config, 112.0)
    own = embed_patches(model.encoder, resample(images, px))
    np.testing.assert_allclose(embeddings, own, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="n_components=256"):
        upstream_benchmark(*encoder, images=images)


def test_a_folder_that_is_no_run_is_an_input_error(hub, tmp_path):
    with pytest.raises(InputError, match="config.json: cannot be read"):
        hub.load_encoder(tmp_path)


def test_hest_bench_takes_module_transform_and_precision_as_they_are(torch, hub, trained, sections):
    """``benchmark(encoder, transform, precision)`` transforms PIL images in a data set and runs the
    encoder on their batches under autocast at that precision."""
    from seal_lite.encoders.embedding import embed_patches

    run, model, _ = trained
    module, transform, precision = hub.load_encoder(run, precision="bf16")
    patches = sections[1].patches[:9]
    samples = [transform(Image.fromarray(patch)) for patch in patches]
    loader = torch.utils.data.DataLoader(samples, batch_size=4)
    assert precision is torch.bfloat16
    with torch.inference_mode(), torch.autocast("cpu", precision):
        embeddings = torch.cat([module(batch.to(precision)) for batch in loader]).float()
    assert embeddings.shape == (9, model.encoder.row.dim)
    own = torch.from_numpy(embed_patches(model.encoder, patches))
    assert torch.nn.functional.cosine_similarity(embeddings, own).min() > 0.99


def test_embeddings_are_added_to_a_copy_of_the_spots_with_a_patch(hub, trained, sections):
    from seal_lite.encoders.embedding import embed_patches

    _, model, _ = trained
    section = sections[1]
    adata = hub.add_embedding(section, model.encoder, key_added="X_tuned")
    assert list(adata.obs_names) == list(section.adata.obs_names[section.rows])
    own = embed_patches(model.encoder, section.patches)
    np.testing.assert_array_equal(adata.obsm["X_tuned"], own)
    assert "X_tuned" not in section.adata.obsm


@pytest.fixture
def metrics(tmp_path):
    """A metrics.json with one difference."""
    difference = {
        "of": "tuned",
        "minus": "shuffled",
        "probe": "tuned_ridge",
        "target": "pearson_residuals",
        "mean": 0.0712,
        "ci95": [0.05, 0.09],
    }
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"delta": [difference]}))
    return path


@pytest.mark.parametrize(
    "fact",
    ["PA1", "224 µm", "+0.071 [+0.050, +0.090]", "tf_efficientnet_lite0", "Apache-2.0"],
)
def test_the_model_card_states_data_scale_scores_encoder_and_licence(hub, trained, metrics, fact):
    run, _, _ = trained
    card = hub.model_card(run, scores=metrics)
    assert fact in card.text
    assert card.data.library_name == "seal_lite"


def test_the_model_card_states_the_width_of_what_is_loaded(hub, trained, tmp_path):
    """A transformer's recipe reads two vectors side by side, twice the width of its row."""
    from dataclasses import replace

    from seal_lite import SEAL, load_encoder
    from seal_lite.encoders import config_for

    _, model, _ = trained
    config = replace(config_for("test_vit"), hidden=(8,), project=8, tune_blocks=1, lora_rank=2)
    run = tmp_path / "run"
    SEAL.build(model.panel, config, device="cpu").save_pretrained(run)
    (run / "provenance.json").write_text((trained[0] / "provenance.json").read_text())
    module, *_ = load_encoder(run, device="cpu")
    card = hub.model_card(run).text
    assert f"# {module.row.dim} dimensions" in card and module.row.dim == 128
    assert "read after 75% of the encoder's blocks" in card
    assert "class token beside the mean of the patch tokens" in card
    assert "with LoRA" in card and "[test_vit]()" not in card


def test_the_card_of_blocks_tuned_as_a_whole_asks_to_check_the_licence(hub, trained, tmp_path):
    run, _, _ = trained
    settings = json.loads((run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "lora_rank": 0}))
    (tmp_path / "provenance.json").write_text((run / "provenance.json").read_text())
    card = hub.model_card(tmp_path).text
    assert "as a whole, without LoRA" in card and "check that the licence allows it" in card
    assert "lora" not in hub.model_card(tmp_path).data.tags


def test_the_card_of_a_convolutional_network_says_what_is_read(hub, trained):
    text = hub.model_card(trained[0]).text
    assert "The embedding is the mean of the feature map of blocks." in text
    assert "token" not in text.partition("```python")[0]


def test_a_run_of_your_own_row_is_not_shared(hub, trained, tmp_path, monkeypatch):
    from dataclasses import replace

    from seal_lite.encoders import BACKBONES

    monkeypatch.setitem(BACKBONES, "mine", replace(BACKBONES["test_vit"], name="mine"))
    settings = json.loads((trained[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "backbone": "mine"}))
    with pytest.raises(InputError, match="mine is a row of your own, which others do not have"):
        hub.prepare_upload(tmp_path)


def test_a_run_of_a_local_folder_is_not_shared(hub, trained, tmp_path):
    """Nobody else could load it."""
    run, _, _ = trained
    settings = json.loads((run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "backbone": "local-dir:/a"}))
    with pytest.raises(InputError, match="To share a run, finetune hf-hub:OWNER/NAME"):
        hub.prepare_upload(tmp_path)


def test_the_model_card_states_the_provenance(hub, trained):
    run, _, _ = trained
    card = hub.model_card(run)
    provenance = json.loads((run / "provenance.json").read_text())
    for key in ("data_sha256", "config_sha256", "commit", "package"):
        assert provenance[key] in card.text, key
    assert "No scores were given" in card.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "it is .., but must be an object"),
        ("{}", "delta is missing"),
        ('{"delta": [{"of": 3}]}', r"delta.0..ci95 is missing"),
        (None, "cannot be read"),
    ],
)
def test_a_card_of_other_scores_is_an_input_error(hub, trained, tmp_path, content, message):
    run, _, _ = trained
    path = tmp_path / "hest.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=f"hest.json: {message}"):
        hub.model_card(run, scores=path)


def test_the_card_of_a_gated_encoder_has_its_licence(hub, trained, tmp_path):
    run, _, _ = trained
    settings = json.loads((run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "backbone": "uni"}))
    (tmp_path / "provenance.json").write_text((run / "provenance.json").read_text())
    metadata = hub.model_card(tmp_path).data
    assert metadata.license_name == "CC-BY-NC-ND-4.0"
    assert metadata.base_model == "MahmoodLab/uni"


class FakeHub:
    """Stands in for `huggingface_hub.HfApi`; keeps what it is asked to do."""

    requests: dict = {}

    def __init__(self, token=None):
        pass

    def create_repo(self, repo, *, private, exist_ok):
        self.requests.update(repo=repo, private=private)

    def upload_folder(self, *, repo_id, folder_path, allow_patterns):
        self.requests.update(folder=folder_path, patterns=allow_patterns)


def test_a_run_is_uploaded_whole_small_and_privately(hub, trained, monkeypatch):
    run, _, _ = trained
    monkeypatch.setattr(FakeHub, "requests", {})
    monkeypatch.setattr(hub, "HfApi", FakeHub)
    assert hub.push_to_hub(run, "me/tuned") == "https://huggingface.co/me/tuned"
    requests = FakeHub.requests
    assert (requests["repo"], requests["private"]) == ("me/tuned", True)
    files = [str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()]
    uploaded = set(filter_repo_objects(files, allow_patterns=requests["patterns"]))
    assert {str(path.relative_to(run)) for path in hub.prepare_upload(run)} == uploaded
    needed = {
        "config.json",
        "panel.json",
        "base.json",
        "heads.safetensors",
        "README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    assert needed <= uploaded
    assert sum((run / file).stat().st_size for file in uploaded) < 8e6


@pytest.mark.parametrize("refused", ["create_repo", "upload_folder"])
def test_a_refused_upload_is_an_input_error_with_the_remedy(hub, trained, monkeypatch, refused):
    def refuse(*_, **__):
        raise OSError("401")

    run, _, _ = trained
    monkeypatch.setattr(hub, "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, refused, refuse)
    with pytest.raises(InputError, match="me/tuned: cannot be written .OSError.*; .*`hf auth"):
        hub.push_to_hub(run, "me/tuned")


def test_a_damaged_run_is_not_uploaded(hub, trained, tmp_path, monkeypatch):
    import shutil

    run, _, _ = trained
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/heads.safetensors").unlink()
    monkeypatch.setattr(hub, "HfApi", lambda **_: pytest.fail("the hub was asked"))
    with pytest.raises(InputError, match="heads.safetensors"):
        hub.push_to_hub(tmp_path / "run", "me/tuned")
