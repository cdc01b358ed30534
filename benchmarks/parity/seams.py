"""Our largest difference to other people's software, seam by seam; each function measures one."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
import torch
from anndata import AnnData
from PIL import Image
from sklearn.metrics import roc_auc_score

from parity import formulas
from seal_lite import SEAL, Config, Section, finetune, load_encoder, load_sections, preset
from seal_lite.data.genes import GenePanel, smoothing
from seal_lite.data.images import open_slide
from seal_lite.data.patches import HEST_UM
from seal_lite.data.phantom import phantom
from seal_lite.data.registration import ARRAY
from seal_lite.encoders.embedding import embed_patches
from seal_lite.evaluation.hest_bench import resample
from seal_lite.evaluation.retrieval import PREDICTORS, predict_by_retrieval
from seal_lite.model.losses import seal_loss
from seal_lite.slides.bench import measure
from seal_lite.slides.embed import embed_slides

PX = 224  # of the patches that are given: 224 um on the slide, 112 um as HEST-bench has them
TISSUE = slice(128, 128 + 3 * PX)


@dataclass(frozen=True)
class Run:
    """A run on a small phantom, and what its seams are given."""

    folder: Path
    model: SEAL
    sections: list[Section]
    slide: Path  # 1 um per px, lossless
    corners: list[tuple[int, int]]
    images: np.ndarray  # (n, PX, PX, 3) uint8, the slide's at the corners

    @classmethod
    def train(cls, folder: Path) -> Run:
        """Finetune the default encoder for an epoch, all in a folder."""
        root = phantom(folder / "phantom", patients=2, sections_per_patient=1, spots=60, seed=0)
        config = Config(epochs=1, n_views=1, batch_size=16)
        sections = load_sections(root, patch_um=config.patch_um, patch_px=config.patch_px)
        model, _ = finetune(sections, config, out=folder / "run", progress=False)
        pink = np.array([170, 90, 140], np.uint8)
        texture = pink + np.random.default_rng(0).integers(0, 50, (56, 56, 3), np.uint8)
        pixels = np.full((1024, 1024, 3), 245, np.uint8)
        pixels[TISSUE, TISSUE] = texture.repeat(12, 0).repeat(12, 1)
        slide = folder / "slide.tif"
        tifffile.imwrite(
            slide,
            pixels,
            tile=(256, 256),
            compression="deflate",
            resolution=(1e4, 1e4),
            resolutionunit="CENTIMETER",
        )
        edges = range(TISSUE.start, TISSUE.stop, PX)
        corners = [(x, y) for y in edges for x in edges]
        images = np.stack([pixels[y : y + PX, x : x + PX] for x, y in corners])
        return cls(folder / "run", model, sections, slide, corners, images)

    def embedded(self, corners: Any) -> np.ndarray:
        """Return what `embed` writes of the slide's patches at these corners."""
        slide, px = open_slide(self.slide), self.model.config.patch_px
        read = np.stack([slide.read(x, y, edge=PX, px=px) for x, y in corners])
        return embed_patches(self.model.encoder, read)

    def given(self, images: np.ndarray, **options: Any) -> np.ndarray:
        """Return what module and transform of `load_encoder` make of PIL images."""
        module, transform, _ = load_encoder(self.folder, device="cpu", **options)
        read = torch.stack([transform(Image.fromarray(image)) for image in images])
        with torch.inference_mode():
            return module(read).numpy()


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference, over the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def transform(run: Run) -> float:
    """Compare a ready patch of 224 px with `embed`, which reads it from a slide."""
    return relative(run.given(run.images), run.embedded(run.corners))


def hest_transform(run: Run) -> float:
    """Compare HEST-bench's patch with the same tissue at the scale of a run of 224 um."""
    encoder = run.model.encoder
    px = encoder.row.px_at_scale(run.model.config, HEST_UM)
    seen = resample(run.images, px)
    return relative(run.given(run.images, patch_um=HEST_UM), embed_patches(encoder, seen))


def retrieval(name: str, run: Run) -> float:
    """Compare prediction by retrieval with the peer's formula."""
    model, train = run.model, run.sections
    x = np.concatenate([section.expression(model.panel) for section in train])
    spots = model.encode_genes(x)
    images = model.project_images(embed_patches(model.encoder, train[0].patches))
    expected = getattr(formulas, name.lower())(images.astype(float) @ spots.T.astype(float), x)
    return relative(predict_by_retrieval(images, spots, x, **PREDICTORS[name]), expected)


def released_smoothing(run: Run) -> float:
    """Compare the paper preset's smoothing of a hexagonal array with the release's."""
    rows, columns = np.mgrid[:6, :6]
    array = np.column_stack([(2 * columns + rows % 2).ravel(), rows.ravel()])
    adata = AnnData(np.zeros((len(array), 1), np.float32), uns={"grid": "hex"})
    for name, values in zip(ARRAY, array.T, strict=True):
        adata.obs[name] = values
    config = preset("paper")
    ours = smoothing(adata, share=config.smooth, over=config.smooth_over).toarray()
    return float(np.abs(ours - formulas.released_smoothing(array)).max())


def released_loss(run: Run) -> float:
    """Compare the paper preset's terms of the loss with the release's, each over its value."""
    config = replace(preset("paper"), hidden=(32, 16), batch_size=12, patch_px=64)
    panel = GenePanel.from_config(run.sections, config)
    share = len(panel.genes) / config.n_genes  # its weight is that of a sum over all genes
    config = replace(config, w_corr=config.w_corr * share)
    model = SEAL.build(panel, config, device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(12, len(panel.genes), generator=generator)
    log_counts = (model.panel_mean + model.panel_std * z).clamp(min=0)
    with torch.no_grad():
        hidden = model.encoder.prefix(torch.rand(12, 3, 64, 64, generator=generator))
        outputs = model(hidden, (log_counts - model.panel_mean) / model.panel_std)
        ours = seal_loss(outputs, config)
    theirs = formulas.released_outputs(model, hidden, log_counts)
    return max(abs(float(ours[k] / theirs[k]) - 1) for k in ("clip", "gene", "image"))


def trident_coordinates(run: Run) -> float:
    """Compare the edge that TRIDENT's tools compute from our file with the patch's, in px."""
    folder = run.slide.parent / "features"
    embed_slides(run.model.encoder, [run.slide], folder, patch_um=float(PX), patch_px=160)
    with h5py.File(folder / "slide.h5") as h5:
        read = h5["coords"].attrs
        ratio = read["level0_magnification"] / read["target_magnification"]
        return abs(round(read["patch_size"] * ratio) - PX)


def absent_class(run: Run) -> float:
    """Compare the AUC of a fold whose training part lacks a class with scikit-learn's."""
    rng = np.random.default_rng(0)
    y = np.tile([0, 1, 2], 20)
    probabilities = np.eye(3)[y] + 0.8 * rng.random((60, 3))
    probabilities[:, 1] = np.nan
    theirs = np.mean([roc_auc_score(y == k, probabilities[:, k]) for k in (0, 2)])
    ours = measure(y[None], probabilities[None], kind="classification")["auc"]
    return abs(float(ours[0] - theirs))


def slide2vec(run: Run) -> float:
    """Compare the tile encoder that slide2vec makes of `seal:run` with `embed`."""
    from slide2vec.encoders.registry import encoder_registry

    from seal_lite.integrations.slide2vec import register_runs

    os.environ["SEAL_LITE_RUNS"] = str(run.folder)
    register_runs()
    encoder = encoder_registry.require("seal:run")(output_variant=None)
    read = torch.stack([encoder.get_transform()(Image.fromarray(image)) for image in run.images])
    with torch.inference_mode():
        features = encoder.encode_tiles(read).numpy()
    return relative(features, run.embedded(run.corners))


def lazyslide(run: Run) -> float:
    """Compare lazyslide's features by the model's name, on its own tiles, with `embed`."""
    import lazyslide as zs
    from wsidata import open_wsi

    import seal_lite.integrations.lazyslide  # noqa: F401 (registers the model)

    wsi = open_wsi(str(run.slide), store=str(run.slide.with_suffix(".zarr")))
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, PX, mpp=1.0, slide_mpp=1.0)
    zs.tl.feature_extraction(wsi, "seal", model_path=run.folder, device="cpu", pbar=False)
    corners = wsi.shapes["tiles"].bounds[["minx", "miny"]].to_numpy()
    return relative(np.asarray(wsi.tables["seal_tiles"].X), run.embedded(corners))
