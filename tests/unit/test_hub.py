"""The finetuned encoder elsewhere: one plain module, in other people's software, and on the hub."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import seal_lite
from seal_lite import InputError, hub
from seal_lite.data.phantom import write_pyramid
from seal_lite.encoders.embedding import embed_patches
from seal_lite.encoders.vision import build_encoder
from seal_lite.model.seal import SEAL

KINDS = {"tf_efficientnet_lite0": 96, "test_vit": 160}


def stirred(name):
    """An encoder whose adapter does something."""
    encoder = build_encoder(name, tune_blocks=2, rank=4, dropout=0.0)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in encoder.parameters():
            if p.requires_grad:
                p.add_(0.02 * torch.randn_like(p))
    return encoder


@pytest.fixture(scope="module", params=KINDS)
def pair(request):
    """(encoder, its plain module, images in [0, 1], normalised ones)."""
    encoder = stirred(request.param)
    x = torch.rand(3, 3, KINDS[request.param], KINDS[request.param])
    return encoder, hub.merged(encoder), x, (x - encoder.mean) / encoder.std


@torch.inference_mode()
def test_merging_changes_nothing_but_the_module(pair):
    encoder, module, x, normal = pair
    torch.testing.assert_close(module(normal), encoder(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder(x), encoder(x.clone()), rtol=0, atol=0)  # itself unchanged
    frozen = build_encoder(encoder.row.name)
    assert module(normal).shape == frozen(x).shape
    assert (module(normal) - frozen(x)).abs().max() > 1e-3
    names = [name for name, _ in module.named_parameters()]
    assert not any("lora_" in name or "original_module" in name for name in names)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    size = sum(p.numel() for p in module.parameters())
    assert size <= sum(p.numel() for p in frozen.parameters())
    if encoder.row.tap:  # what lies behind it is gone
        assert size < 0.7 * sum(p.numel() for p in frozen.parameters())
        assert isinstance(module.net.conv_head, nn.Identity)


@torch.inference_mode()
def test_the_module_works_in_bfloat16(pair):
    _, module, _, normal = pair
    full = module(normal)
    half = hub.merged(pair[0]).to(torch.bfloat16)(normal.to(torch.bfloat16)).float()
    assert nn.functional.cosine_similarity(half, full).min() > 0.995


@torch.inference_mode()
def test_the_module_is_compiled_and_exported(pair, tmp_path):
    """As one graph, for any batch size, without a line of Python left to run."""
    _, module, _, normal = pair
    expected, two = module(normal), module(normal[:2])
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(normal), expected, rtol=1e-4, atol=1e-4)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (normal,), dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(normal[:2]), two, rtol=1e-4, atol=1e-4)
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = tmp_path / "module.onnx"
    torch.onnx.export(module, (normal,), file, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(file)
    (found,) = session.run(None, {session.get_inputs()[0].name: normal[:2].numpy()})
    np.testing.assert_allclose(found, two.numpy(), rtol=1e-4, atol=1e-4)


def test_a_run_becomes_module_transform_and_precision(trained, sections):
    """What the run's own encoder says of its patches, the module says of the same as PIL images."""
    run, model, _ = trained
    module, transform, precision = seal_lite.load_encoder(run)
    assert isinstance(module, nn.Module) and precision is torch.float32
    patches = sections[1].patches[:6]
    x = torch.stack([transform(Image.fromarray(p)) for p in patches])
    with torch.inference_mode():
        found = module(x).numpy()
    np.testing.assert_allclose(found, embed_patches(model.encoder, patches), rtol=1e-3, atol=1e-4)
    larger = transform(Image.fromarray(patches[0]).resize((200, 200)))
    assert larger.shape == (3, model.config.patch_px, model.config.patch_px)
    with pytest.raises(InputError, match="config.json: cannot be read"):
        seal_lite.load_encoder(run.parent)
    with pytest.raises(AttributeError, match="No seal_lite attribute load_decoder"):
        seal_lite.load_decoder  # noqa: B018


class HestDataset(torch.utils.data.Dataset):
    """HEST-bench's contract: `benchmark(encoder, transform, precision)` hands the transform PIL
    images of a sample, and the encoder their batches under autocast at that precision."""

    def __init__(self, images, transform):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.images[i]))


class CustomInferenceEncoder(nn.Module):
    """TRIDENT's contract for an encoder of one's own: its documented constructor and attributes."""

    def __init__(self, enc_name, model, transforms, precision):
        super().__init__()
        self.enc_name, self.model, self.eval_transforms = enc_name, model, transforms
        self.precision = precision

    def forward(self, x):
        return self.model(x)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_hest_bench_and_trident_take_it_as_it_is(trained, sections, precision):
    run, model, _ = trained
    module, transform, given = seal_lite.load_encoder(run, precision=precision)
    encoder = CustomInferenceEncoder("seal", module, transform, given)
    loader = torch.utils.data.DataLoader(
        HestDataset(sections[1].patches[:9], encoder.eval_transforms), batch_size=4
    )
    with (
        torch.inference_mode(),
        torch.autocast("cpu", encoder.precision, enabled=precision != torch.float32),
    ):
        found = torch.cat([encoder(x.to(encoder.precision)) for x in loader]).float()
    assert found.shape == (9, model.encoder.row.dim)
    own = torch.from_numpy(embed_patches(model.encoder, sections[1].patches[:9]))
    assert nn.functional.cosine_similarity(found, own).min() > 0.99


def test_scanpy_and_squidpy_take_the_embedding(trained, sections):
    sc, sq = pytest.importorskip("scanpy"), pytest.importorskip("squidpy")
    _, model, _ = trained
    adata = hub.add_embedding(sections[1], model.encoder)
    assert adata.obsm["X_seal"].shape == (len(sections[1].rows), model.encoder.row.dim)
    assert "X_seal" not in sections[1].adata.obsm
    sc.pp.neighbors(adata, use_rep="X_seal", n_neighbors=8)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, resolution=0.5)
    assert 1 < adata.obs.leiden.nunique() < 20
    sq.gr.spatial_neighbors(adata, coord_type="grid", n_neighs=4)
    sq.gr.nhood_enrichment(adata, cluster_key="leiden", show_progress_bar=False, n_perms=20)
    import matplotlib.pyplot as plt

    sq.pl.spatial_scatter(adata, shape=None, color="leiden", size=5)
    assert plt.gcf().axes and plt.gcf().axes[0].collections
    plt.close("all")


def slide(side=2048):
    """Pink tissue with nuclei on white glass."""
    rng = np.random.default_rng(0)
    image = np.full((side, side, 3), 245, np.uint8)
    image[side // 4 : -side // 4, side // 4 : -side // 4] = (225, 160, 190)
    for y, x in rng.integers(side // 4 + 8, 3 * side // 4 - 8, (1500, 2)):
        image[y - 4 : y + 4, x - 4 : x + 4] = (90, 60, 130)
    return image


def test_lazyslide_extracts_features_with_it(trained, tmp_path):
    """Their tissue, tiles and loop, our module and transform: the same numbers as our own."""
    zs = pytest.importorskip("lazyslide")
    wsidata = pytest.importorskip("wsidata")
    run, model, _ = trained
    module, transform, _ = seal_lite.load_encoder(run)
    image = slide()
    write_pyramid(tmp_path / "slide.tif", image, um_per_px=0.5)
    wsi = wsidata.open_wsi(str(tmp_path / "slide.tif"), store=str(tmp_path / "slide.zarr"))
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, 128, mpp=0.5, slide_mpp=0.5)
    zs.tl.feature_extraction(wsi, module, transform=transform, model_name="seal", pbar=False)
    table = wsi.tables["seal_tiles"]
    found = np.asarray(table.X)
    assert found.shape == (len(wsi.shapes["tiles"]), model.encoder.row.dim) and len(found) > 20
    for tile, row in zip(wsi.shapes["tiles"].geometry[:5], found, strict=False):
        x, y = (round(v) for v in tile.bounds[:2])
        patch = Image.fromarray(image[y : y + 128, x : x + 128])
        with torch.inference_mode():
            own = module(transform(patch)[None])[0].numpy()
        np.testing.assert_allclose(row, own, rtol=1e-3, atol=1e-3)


@pytest.fixture
def scores(tmp_path):
    delta = {
        "of": "tuned",
        "minus": "shuffled",
        "probe": "tuned_ridge",
        "target": "pearson_residuals",
        "mean": 0.0712,
        "ci95": [0.05, 0.09],
    }
    (tmp_path / "metrics.json").write_text(json.dumps({"delta": [delta]}))
    return tmp_path / "metrics.json"


def test_the_model_card_says_what_a_user_must_know(trained, scores):
    run, model, _ = trained
    card = hub.model_card(run, scores=scores)
    record = json.loads((run / "provenance.json").read_text())
    assert card.data.license_name == "Apache-2.0" and card.data.library_name == "seal_lite"
    for said in (
        "PA1",
        record["data_sha256"],
        record["commit"],
        "224 µm",
        "+0.071 [+0.050, +0.090]",
        "tf_efficientnet_lite0",
    ):
        assert said in card.text, said
    assert "None were given" in hub.model_card(run).text
    other = scores.with_name("hest.json")
    other.write_text("[]")
    with pytest.raises(InputError, match="hest.json: holds no differences"):
        hub.model_card(run, scores=other)
    with pytest.raises(InputError, match="none.json: cannot be read"):
        hub.model_card(run, scores=scores.with_name("none.json"))


def test_a_gated_encoders_licence_goes_with_its_run(trained, tmp_path, monkeypatch):
    run, model, _ = trained
    settings = json.loads((run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"backbone": "uni"}))
    (tmp_path / "provenance.json").write_text((run / "provenance.json").read_text())
    data = hub.model_card(tmp_path).data
    assert data.license_name == "CC-BY-NC-ND-4.0" and data.base_model == "MahmoodLab/uni"


def test_a_run_is_uploaded_whole_and_small(trained, monkeypatch):
    run, _, _ = trained
    said = {}

    class Hub:
        def __init__(self, token=None):
            said["token"] = token

        def create_repo(self, repo, *, private, exist_ok):
            said.update(repo=repo, private=private)

        def upload_folder(self, *, repo_id, folder_path, allow_patterns):
            from huggingface_hub.utils import filter_repo_objects

            files = [str(p.relative_to(folder_path)) for p in run.rglob("*") if p.is_file()]
            said["files"] = sorted(filter_repo_objects(files, allow_patterns=allow_patterns))

    monkeypatch.setattr(share, "HfApi", Hub)
    assert hub.push_to_hub(run, "me/tuned") == "https://huggingface.co/me/tuned"
    needed = {
        "config.json",
        "panel.json",
        "base.json",
        "heads.safetensors",
        "README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    assert needed <= set(said["files"]) and said["private"] and said["repo"] == "me/tuned"
    assert sum((run / f).stat().st_size for f in said["files"]) < 8e6

    def refuse(*_, **__):
        raise OSError("401")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(InputError, match="me/tuned: cannot be written .OSError.*; .*`hf auth"):
        hub.push_to_hub(run, "me/tuned")


def test_full_finetuning_is_merged_too(sections, tiny):
    """Without LoRA there is no adapter to merge: the module is the tuned network itself."""
    from seal_lite.data.genes import GenePanel

    panel = GenePanel.fit([s.adata for s in sections], n_genes=tiny.n_genes)
    model = SEAL.build(panel, replace(tiny, lora_rank=0)).eval()
    x = torch.rand(2, 3, 64, 64)
    encoder = model.encoder
    with torch.inference_mode():
        found = hub.merged(encoder)((x - encoder.mean) / encoder.std)
        torch.testing.assert_close(found, encoder(x), rtol=1e-5, atol=1e-5)
