"""Other people's software runs a finetuned encoder: torch's compilers, ONNX, TRIDENT, scverse."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def torch():
    import torch

    return torch


@pytest.fixture(scope="module", params=["tf_efficientnet_lite0", "test_vit"])
def module(request):
    """A plain module for normalised images of 160 px."""
    from seal_lite.encoders.vision import build_encoder
    from seal_lite.hub import merge_adapter

    return merge_adapter(build_encoder(request.param, tune_blocks=2, rank=4, dropout=0.0))


@pytest.fixture(scope="module")
def images(torch):
    return torch.randn(3, 3, 160, 160, generator=torch.Generator().manual_seed(0))


def test_the_module_compiles_to_one_graph(torch, module, images):
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(images), module(images), rtol=1e-4, atol=1e-4)


def test_the_module_is_exported_to_onnx_for_any_batch_size(torch, module, images, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    shapes = ({0: torch.export.Dim("batch")},)
    with torch.inference_mode():
        expected = module(images[:2])
        program = torch.export.export(module, (images,), dynamic_shapes=shapes)
        torch.testing.assert_close(program.module()(images[:2]), expected, rtol=1e-4, atol=1e-4)
        file = tmp_path / "module.onnx"
        torch.onnx.export(
            module, (images,), file, dynamo=True, dynamic_shapes=shapes, verbose=False
        )
    session = onnxruntime.InferenceSession(file)
    (embeddings,) = session.run(None, {session.get_inputs()[0].name: images[:2].numpy()})
    np.testing.assert_allclose(embeddings, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_trident_takes_module_transform_and_precision(torch, trained, sections):
    """A custom encoder of TRIDENT has these attributes, and calls its model under autocast."""
    from seal_lite import load_encoder
    from seal_lite.encoders.embedding import embed_patches

    class CustomInferenceEncoder(torch.nn.Module):
        def __init__(self, enc_name, model, transforms, precision):
            super().__init__()
            self.enc_name = enc_name
            self.model = model
            self.eval_transforms = transforms
            self.precision = precision

        def forward(self, x):
            return self.model(x)

    run, model, _ = trained
    encoder = CustomInferenceEncoder("seal", *load_encoder(run, precision="bf16"))
    patches = sections[1].patches[:9]
    images = torch.stack([encoder.eval_transforms(Image.fromarray(patch)) for patch in patches])
    with torch.inference_mode(), torch.autocast("cpu", encoder.precision):
        embeddings = encoder(images.to(encoder.precision)).float()
    own = torch.from_numpy(embed_patches(model.encoder, patches))
    assert torch.nn.functional.cosine_similarity(embeddings, own).min() > 0.99


def test_scanpy_and_squidpy_take_the_embedding(trained, sections):
    sc = pytest.importorskip("scanpy")
    sq = pytest.importorskip("squidpy")
    import matplotlib.pyplot as plt

    from seal_lite.hub import add_embedding

    _, model, _ = trained
    adata = add_embedding(sections[1], model.encoder)
    sc.pp.neighbors(adata, use_rep="X_seal", n_neighbors=8)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, resolution=0.5)
    assert 1 < adata.obs.leiden.nunique() < 20
    sq.gr.spatial_neighbors(adata, coord_type="grid", n_neighs=4)
    sq.gr.nhood_enrichment(adata, cluster_key="leiden", show_progress_bar=False, n_perms=20)
    sq.pl.spatial_scatter(adata, shape=None, color="leiden", size=5)
    assert plt.gcf().axes[0].collections
    plt.close("all")


def slide_image(side=2048):
    """Pink tissue with dark nuclei on white glass."""
    rng = np.random.default_rng(0)
    image = np.full((side, side, 3), 245, np.uint8)
    image[side // 4 : -side // 4, side // 4 : -side // 4] = (225, 160, 190)
    for y, x in rng.integers(side // 4 + 8, 3 * side // 4 - 8, (1500, 2)):
        image[y - 4 : y + 4, x - 4 : x + 4] = (90, 60, 130)
    return image


def test_lazyslide_extracts_the_same_features(torch, trained, tmp_path):
    """With its own tissue detection, tiles and loop; with our module and transform."""
    zs = pytest.importorskip("lazyslide")
    wsidata = pytest.importorskip("wsidata")
    from seal_lite import load_encoder
    from seal_lite.data.phantom import write_pyramid

    run, model, _ = trained
    module, transform, _ = load_encoder(run)
    image = slide_image()
    write_pyramid(tmp_path / "slide.tif", image, um_per_px=0.5)
    wsi = wsidata.open_wsi(str(tmp_path / "slide.tif"), store=str(tmp_path / "slide.zarr"))
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, 128, mpp=0.5, slide_mpp=0.5)
    zs.tl.feature_extraction(wsi, module, transform=transform, model_name="seal", pbar=False)
    features = np.asarray(wsi.tables["seal_tiles"].X)
    tiles = wsi.shapes["tiles"].geometry
    assert features.shape == (len(tiles), model.encoder.row.dim)
    assert len(features) > 20
    for tile, feature in zip(tiles[:5], features, strict=False):
        x, y = (round(corner) for corner in tile.bounds[:2])
        patch = Image.fromarray(image[y : y + 128, x : x + 128])
        with torch.inference_mode():
            own = module(transform(patch)[None])[0].numpy()
        np.testing.assert_allclose(feature, own, rtol=1e-3, atol=1e-3)
