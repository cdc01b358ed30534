# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Use it elsewhere
#
# **A finetuned encoder is worth something where your other tools are. Which encoders can be tuned,
# and what do scanpy, squidpy, lazyslide, HEST-bench or ONNX need to take the result?**
#
# Ten minutes to read, two minutes to run if the earlier chapters have run.
#
# Nothing of this package is needed there. The adapter is merged into the weights, and what is left
# is one plain `torch.nn.Module` with a transform: the two things that every library in the field
# asks for.

# %% tags=["hide-cell"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("seal_lite") is None:  # in Colab, whose own torch is kept
    home = "seal_lite[offline,elsewhere] @ git+https://github.com/seal-lite/seal-lite"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", home], check=True)

# %% tags=["parameters"]
DATASET = "phantom"  # made here on first use; or the path of a her2st folder
TEST = ""  # the section held out, with all of its patient's; empty: the last one
EPOCHS = 12
N_VIEWS = 4
SEED = 0

# %%
import json
import logging
import shutil
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")  # other packages' own, about each other
logging.disable(logging.WARNING)

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
import squidpy as sq
import torch
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.metrics import adjusted_rand_score

from seal_lite import Config, load_encoder, plots
from seal_lite.backbones import BACKBONES, load_backbone
from seal_lite.encoders import VisionEncoder, build_encoder, embed
from seal_lite.evaluate import genes_to_score, read_truth
from seal_lite.formats import patient_of
from seal_lite.images import open_image
from seal_lite.sections import list_sections, load_sections
from seal_lite.share import add_embedding, model_card
from seal_lite.train import code_hash, finetune
from tissue_phantom import phantom

ROOT = Path(DATASET)
if DATASET == "phantom":
    ROOT = phantom("data/phantom", patients=3, sections_per_patient=1, spots=160, seed=0)
names = list_sections(ROOT)
TEST = TEST or names[-1]
train = load_sections(ROOT, [n for n in names if patient_of(n) != patient_of(TEST)] or names[:-1])
(test,) = load_sections(ROOT, [TEST])

# %% [markdown]
# ## Any encoder is cut the same way
#
# Finetuning needs to know three things of a network: where its blocks are, which of their layers
# are matrices that LoRA can adapt, and where an embedding is read. Blocks are found, not listed:
# they are the siblings of one class that hold most of the weights, whether transformer blocks in a
# list or stages called `layer1` to `layer4`. Then the network's own forward pass is cut by two
# hooks. One stops it before the first tuned block: that is the frozen prefix, computed once. The
# other feeds the stored activations back in at that block, while the blocks before it pass on what
# they get: that is the tail, which trains. No line of this knows what kind of network it is.
#
# Here are four networks without any weights, on the meta device. Each bar is a block, as tall as
# its share of the weights.

# %%
SHOWN = {"uni": 2, "h_optimus_0": 2, "resnet50": 1, "tf_efficientnet_lite0": 3}


def million_weights(block):
    weights = block.named_parameters()
    return sum(p.numel() for n, p in weights if "lora_" not in n and "modules_to" not in n) / 1e6


with plt.rc_context(plots.STYLE):
    figure, panels = plt.subplots(2, 2, figsize=(8.5, 4.4))
    for ax, (name, k) in zip(panels.flat, SHOWN.items(), strict=True):
        row = BACKBONES[name]
        with torch.device("meta"):
            encoder = VisionEncoder(load_backbone(row, pretrained=False), row, tune_blocks=k)
        blocks = [b for b in encoder.prefix_stages + encoder.tail_stages if b != "output"]
        size = [million_weights(encoder.base.get_submodule(b)) for b in blocks]
        tuned = [b in encoder.tail_stages for b in blocks]
        colours = [plots.COLOURS[1] if t else plots.GREY for t in tuned]
        ax.bar(range(len(blocks)), size, color=colours)
        ax.set(title=f"{name}: {len(encoder.adapted)} layers adapted", xlabel="block")
        ax.set(ylabel="million weights", ylim=(0, max(size) * 1.15))
        ax.xaxis.get_major_locator().set_params(integer=True)
plt.close(figure)
figure

# %% [markdown]
# Grey is frozen and runs once; orange is tuned. Of EfficientNet-Lite0 only what lies before its tap
# is drawn, because only that is run.
#
# Below is the table of encoders that have a name here (`seal-lite encoders`). A name is all that
# `--backbone` needs; any other model of timm, on the hub (`hf-hub:OWNER/MODEL`) or in a folder of
# yours (`local-dir:FOLDER`), needs no row at all. A gated one needs its terms accepted and
# `hf auth login` once. The licence of an encoder is also that of whatever is tuned from it.

# %%
columns = ["dim", "px", "um_per_px", "embedding", "licence", "gated"]
table = pd.DataFrame([vars(row) for row in BACKBONES.values()]).set_index("name")[columns]
table.drop("test_vit").fillna("")

# %% [markdown]
# ## One plain module
#
# We take the run of the chapters before (or make it now).

# %%
config = Config(epochs=EPOCHS, n_views=N_VIEWS, seed=SEED)
setting = f"{ROOT.name}-without-{patient_of(TEST)}-{EPOCHS}x{N_VIEWS}-seed{SEED}-{code_hash()[:6]}"
RUN = Path("runs") / setting / "tuned"
model, _ = finetune(
    train, config, out=RUN, include=genes_to_score(ROOT, train), cache_dir="runs/cache"
)
module, transform, precision = load_encoder(RUN)
images = torch.stack([transform(Image.fromarray(p)) for p in test.patches])
with torch.inference_mode():
    found = module(images).numpy()
own = embed(model.encoder, test.patches)
merge_gap = float(np.abs(found - own).max() / np.abs(own).max())
megabytes = sum(f.stat().st_size for f in RUN.rglob("*") if f.is_file()) / 1e6
print(f"module: {sum(p.numel() for p in module.parameters()):,} weights, {precision}")
print(f"largest difference to the run's own encoder: {merge_gap:.1e} of the largest value")
print(f"the run's folder: {megabytes:.1f} MB")

# %% [markdown]
# `module` has no adapter, no hooks and nothing behind the tap: the same function as before, in one
# forward pass. It works in bfloat16, compiles, and exports:

# %%
file = Path("runs") / "seal.onnx"
batch = torch.export.Dim("batch")
torch.onnx.export(module, (images[:4],), file, dynamo=True, verbose=False, external_data=False,
                  dynamic_shapes=({0: batch},))  # fmt: skip
import onnxruntime

session = onnxruntime.InferenceSession(file)
(exported,) = session.run(None, {session.get_inputs()[0].name: images[:32].numpy()})
onnx_gap = float(np.abs(exported - found[:32]).max() / np.abs(found).max())
print(f"ONNX: {file.stat().st_size / 1e6:.1f} MB, largest difference {onnx_gap:.1e}")

# %% [markdown]
# HEST-bench and TRIDENT take the three as they are:
#
# ```python
# from hest.bench import benchmark
# benchmark(module, transform, precision)
#
# from trident.patch_encoder_models import CustomInferenceEncoder
# CustomInferenceEncoder("seal", module, transform, precision)
# ```
#
# One thing no contract carries: the region's size. The transform makes
# {math}`160 \times 160` pixels of whatever it is given, and the encoder has seen 224 µm there. Cut
# regions of that size.
#
# ## In scanpy and squidpy
#
# Under `obsm["X_seal"]` the embedding is where single-cell tools look for one. Neighbours, Leiden
# clusters and their plot on the tissue are theirs. Beside it the same for the frozen encoder, and,
# on the phantom, the tissue regions that were drawn.

# %%
frozen = build_encoder(config.backbone, tune_blocks=config.tune_blocks)
truth = read_truth(ROOT, test, genes_to_score(ROOT, train))
adata, agreement = None, {}
for name, encoder in (("frozen", frozen), ("tuned", model.encoder)):
    adata = add_embedding(test, encoder) if adata is None else adata
    x = embed(encoder, test.patches)
    adata.obsm["X_seal"] = (x - x.mean(0)) / x.std(0).clip(1e-6)
    sc.pp.neighbors(adata, use_rep="X_seal", n_neighbors=12)
    sc.tl.leiden(adata, key_added=name, resolution=0.6, flavor="igraph", n_iterations=2)
    if truth is not None:
        agreement[name] = float(adjusted_rand_score(truth[1], adata.obs[name]))
if truth is not None:
    adata.obs["drawn"] = pd.Categorical(truth[1])
shown = [c for c in ("drawn", "frozen", "tuned") if c in adata.obs]
adata.obsm["spatial"] = adata.obsm["spatial"] * adata.uns["um_per_px"]  # um, as the axes say
adata.uns["spatial"] = {TEST: {}}
for c in shown:
    k = adata.obs[c].cat.categories
    adata.uns[f"{c}_colors"] = [plots.COLOURS[i % len(plots.COLOURS)] for i in range(len(k))]
with plt.rc_context({**plots.STYLE, "figure.constrained_layout.use": True}):
    figure, panels = plt.subplots(1, len(shown), figsize=(8.5, 3.4))
    for ax, c in zip(np.atleast_1d(panels), shown, strict=True):
        sq.pl.spatial_scatter(
            adata, shape=None, library_id=TEST, color=c, size=30, ax=ax, title=c, fig=figure,
            legend_loc="right margin" if c == "drawn" else None, legend_fontsize=7,
        )  # fmt: skip
        ax.set(xlabel="", ylabel="", xticks=[], yticks=[], aspect="equal")
        plots.scale_bar(ax)
plt.close(figure)
figure

# %%
if agreement:
    print("adjusted Rand index of the clusters with the regions drawn:",
          {k: round(v, 3) for k, v in agreement.items()})  # fmt: skip

# %% [markdown]
# The regions are the visible part of the tissue, and a frozen encoder sees them, too. Clusters of
# a tuned one follow expression as well, which runs across the regions: agreement with them is no
# measure of its worth. The scores of [chapter 5](05_gene_prediction) are.
#
# ## In lazyslide
#
# A whole slide, the way lazyslide does it: find the tissue, cut it into tiles, run a model over
# them. The slide is the held-out section's picture, written as a pyramidal TIFF. Tiles have the
# size that the encoder knows.

# %%
import tifffile
from lazyslide import pp, tl
from wsidata import open_wsi

folder = Path("runs/elsewhere")
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir(parents=True)
picture, um = np.asarray(open_image(test.adata.uns["image_path"])), test.adata.uns["um_per_px"]
with tifffile.TiffWriter(folder / "slide.tif") as tiff:
    for level in range(4):
        per_cm = 1e4 / (um * 2**level)
        tiff.write(picture[:: 2**level, :: 2**level], tile=(256, 256), photometric="rgb",
                   compression="zlib", subifds=3 * (level == 0), subfiletype=int(level > 0),
                   resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")  # fmt: skip
wsi = open_wsi(str(folder / "slide.tif"), store=str(folder / "slide.zarr"))
pp.find_tissues(wsi)
tile = round(config.patch_um / um)
pp.tile_tissues(wsi, tile, mpp=um, slide_mpp=um)
tl.feature_extraction(wsi, module, transform=transform, model_name="seal", pbar=False)
features, corners = np.asarray(wsi.tables["seal_tiles"].X), wsi.shapes["tiles"].bounds
print(f"{len(features)} tiles of {tile * um:.0f} um, {features.shape[1]} numbers each")

# %%
centred = (features - features.mean(0)) / features.std(0).clip(1e-6)
_, _, axes = np.linalg.svd(centred, full_matrices=False)
colour = (centred @ axes[:3].T).argsort(0).argsort(0) / (len(centred) - 1)
with plt.rc_context(plots.STYLE):
    figure, panels = plt.subplots(1, 2, figsize=(8.5, 4.2))
    size = np.array(picture.shape[:2]) * um
    for ax, title in zip(panels, ("the slide", "tiles, coloured by three axes"), strict=True):
        ax.imshow(picture[::8, ::8], extent=(0, size[1], size[0], 0))
        ax.set(title=title, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        plots.scale_bar(ax)
    for (x, y, *_), c in zip(corners.to_numpy() * um, colour, strict=True):
        edge = config.patch_um
        panels[1].add_patch(Rectangle((x, y), edge, edge, color=c, alpha=0.85, lw=0))
plt.close(figure)
figure

# %% [markdown]
# Tiles of one colour are alike to the encoder: the first three axes of their embeddings are shown
# as red, green and blue, by rank.
#
# ## To the hub
#
# A run's folder is all that somebody else needs: settings, panel, adapter, heads, and the SHA-256
# of the weights it was tuned from. Loading it where the base has other weights is refused. Here is
# the card that goes with it; `seal-lite share --run RUN --repo OWNER/NAME` uploads both, and
# `load_encoder("hf-hub:OWNER/NAME")` takes them back.

# %%
print(model_card(RUN).text)

# %% [markdown]
# ## What to remember
#
# - Blocks are found and the network's own forward pass is cut: a new encoder is a row of facts.
# - Elsewhere an encoder is a module and a transform. Say the region's size with it: nothing else
#   does.
# - What is tuned from a gated encoder has that encoder's licence.

# %% tags=["key-figures", "remove-cell"]
print(
    json.dumps(
        {
            "encoders": len(table) - 1,
            "merge_gap": merge_gap,
            "onnx_gap": onnx_gap,
            "megabytes": megabytes,
            "agreement": agreement,
            "clusters": {c: int(adata.obs[c].nunique()) for c in ("frozen", "tuned")},
            "tiles": len(features),
        }
    )
)
