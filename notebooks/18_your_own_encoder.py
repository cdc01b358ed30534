# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own encoder, shared on the Hub
#
# **You have an encoder that you trust. What does it take to tune it on expression, to use the
# result in your other tools, and to give it to somebody else?**
#
# Fifteen minutes to read, two minutes to run if the earlier chapters have run.
#
# A name is enough to begin, and one plain `torch.nn.Module` with a transform is what comes out: the
# two things that every library in the field asks for. Nothing of this package is needed there. This
# chapter goes the whole way: which encoders, how to tune yours, the module, scanpy, squidpy and
# lazyslide, and the Hub and back.

# %% tags=["hide-cell"]
# On Colab: install SEAL-lite, and keep the torch that Colab brings.
import importlib.util
import subprocess
import sys
from importlib.metadata import version

PACKAGE = "seal_lite[offline,encoders,elsewhere]"
HOME = "git+https://github.com/seal-lite/seal-lite"
if importlib.util.find_spec("seal_lite") is None:
    kept = [f"{name}=={version(name)}" for name in ("torch", "torchvision")]
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, f"{PACKAGE} @ {HOME}", *kept], check=True)

# %% tags=["parameters"]
DATASET = (
    "auto"  # the phantom, or on a GPU real tumours; or any folder of sections
)
BACKBONE = "auto"  # a small network, or on a GPU Phikon; or a name of `seal-lite encoders`
EPOCHS = 0  # 0: 12, or 20 on a GPU
SMOKE = False  # everything tiny, just to see that it runs
TEST = (
    ""  # the section held out, with all of its patient's; empty: the last one
)
SEED = 0

# %%
import importlib.resources
import json
import logging
import shutil
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")  # other packages' own, about each other

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
import squidpy as sq
import torch
from huggingface_hub.utils import filter_repo_objects
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.metrics import adjusted_rand_score

from seal_lite import InputError, load_encoder, plots
from seal_lite.data.images import open_image
from seal_lite.data.patches import extract_patches
from seal_lite.data.phantom import write_pyramid
from seal_lite.encoders.embedding import embed_patches
from seal_lite.encoders.registry import BACKBONES, backbone_row, load_backbone
from seal_lite.encoders.vision import VisionEncoder, build_encoder
from seal_lite.hub import add_embedding, model_card
from seal_lite.model.storage import SHARED_FILES
from seal_lite.tutorial import begin, finetuned

here = begin(DATASET, BACKBONE, EPOCHS, SMOKE, test=TEST, seed=SEED)
logging.disable(logging.WARNING)
ROOT, config, test = here.root, here.config, here.test

# %% [markdown]
# Here are four networks without any weights, on the meta device. Each bar is a block, as tall as
# its share of the weights. Grey is frozen and runs once; orange is tuned.

# %%
#| alt: Bars for the blocks of four networks, two transformers and two convolutional ones, as tall
#| as the weights of each. The last one to three blocks are orange, the others grey.
SHOWN = {"uni": 2, "h_optimus_0": 2, "resnet50": 1, "tf_efficientnet_lite0": 3}


def million_weights(block):
    weights = block.named_parameters()
    return (
        sum(
            p.numel()
            for n, p in weights
            if "lora_" not in n and "modules_to" not in n
        )
        / 1e6
    )


with plt.rc_context(plots.STYLE):
    figure, panels = plt.subplots(2, 2, figsize=(8, 4.6))
    for ax, (name, k) in zip(panels.flat, SHOWN.items(), strict=True):
        row = BACKBONES[name]
        with torch.device("meta"):
            encoder = VisionEncoder(
                load_backbone(row, pretrained=False), row, tune_blocks=k
            )
        blocks = [
            b
            for b in encoder.prefix_stages + encoder.tail_stages
            if b != "output"
        ]
        size = [million_weights(encoder.base.get_submodule(b)) for b in blocks]
        tuned = [b in encoder.tail_stages for b in blocks]
        colours = [plots.COLOURS[1] if t else plots.GREY for t in tuned]
        ax.bar(range(len(blocks)), size, color=colours)
        ax.set(
            title=f"{name}: {len(encoder.adapted)} layers adapted",
            xlabel="block",
        )
        ax.set(ylabel="million weights", ylim=(0, max(size) * 1.15))
        ax.xaxis.get_major_locator().set_params(integer=True)
plt.close(figure)
figure

# %% [markdown]
# Of EfficientNet-Lite0 only what lies before its {term}`feature layer` is drawn, because only that
# is run.
#
# ## Which encoders
#
# These have a name here (`seal-lite encoders` prints the same). A gated one needs its terms
# accepted and `hf auth login` once. The licence of an encoder is also the licence of whatever is
# tuned from it.

# %%
columns = ["dim", "px", "um_per_px", "embedding", "licence", "gated"]
table = pd.DataFrame([vars(row) for row in BACKBONES.values()]).set_index(
    "name"
)
table = table.drop("test_vit")[columns]
table.fillna("")

# %% [markdown]
# ## How to tune yours
#
# **A name of timm** needs no preparation at all, whether it is one of timm's own, on the hub, or in
# a folder of yours with its `config.json`:
#
# ```sh
# seal-lite finetune --data DIR --train S1,S2 --out runs/mine --backbone convnext_tiny
# seal-lite finetune --data DIR --train S1,S2 --out runs/mine --backbone hf-hub:OWNER/MODEL
# seal-lite finetune --data DIR --train S1,S2 --out runs/mine --backbone local-dir:FOLDER
# ```
#
# Finetuning needs to know three things of a network: where its blocks are, which of their layers
# are matrices that {term}`LoRA` can adapt, and where an embedding is read. Blocks are found, not
# listed: they are the siblings of one class that hold most of the weights, whether transformer
# blocks in a list or stages called `layer1` to `layer4`. Then the network's own forward pass is cut
# by two hooks. One stops it before the first tuned block: that is the frozen prefix, computed once.
# The other feeds the stored activations back in at that block, while the blocks before it pass on
# what they get: that is the tail, which trains. No line of this knows what kind of network it is.
#
# **A row of `seal_lite/encoders/backbones.toml`** is for the rest: a network that timm does not
# have, an embedding that is not what timm pools, or a resolution that is known. It holds facts, no
# code. As an example the row of Phikon {cite:p}`filiot2023phikon`, which comes from `transformers`:

# %%
rows = (
    importlib.resources.files("seal_lite.encoders")
    .joinpath("backbones.toml")
    .read_text()
)
print("[phikon]" + rows.partition("[phikon]")[2].partition("\n\n")[0])

# %% [markdown]
# `loader` is any function by its dotted name, so your own class may stand there. `lora` matches the
# layers to adapt by their name inside a block. `um_per_px` is the resolution of its training.
#
# ## One plain module
#
# We take the run of the chapters before (or make it now).

# %%
RUN = here.run("tuned")
model, _ = finetuned(here)
module, transform, precision = load_encoder(RUN)
images = torch.stack([transform(Image.fromarray(p)) for p in test.patches])
with torch.inference_mode():
    found = module(images).numpy()
own = embed_patches(model.encoder, test.patches)
merge_gap = float(np.abs(found - own).max() / np.abs(own).max())
megabytes = sum(f.stat().st_size for f in RUN.rglob("*") if f.is_file()) / 1e6
print(
    f"module: {sum(p.numel() for p in module.parameters()):,} weights, {precision}"
)
print(
    f"largest difference to the run's own encoder: {merge_gap:.1e} of the largest value"
)
print(f"the run's folder: {megabytes:.1f} MB")

# %% [markdown]
# `module` has no adapter, no hooks and nothing behind the feature layer: the same function as
# before, in one forward pass. It works in bfloat16, compiles, and exports:

# %%
OUT = Path("runs/elsewhere")
shutil.rmtree(OUT, ignore_errors=True)
OUT.mkdir(parents=True)
file = OUT / "seal.onnx"
batch = torch.export.Dim("batch")
torch.onnx.export(
    module,
    (images[:4],),
    file,
    dynamo=True,
    verbose=False,
    external_data=False,
    dynamic_shapes=({0: batch},),
)
import onnxruntime

session = onnxruntime.InferenceSession(file)
(exported,) = session.run(
    None, {session.get_inputs()[0].name: images[:32].numpy()}
)
onnx_gap = float(np.abs(exported - found[:32]).max() / np.abs(found).max())
print(
    f"ONNX: {file.stat().st_size / 1e6:.1f} MB, largest difference {onnx_gap:.1e}"
)

# %% [markdown]
# TRIDENT takes the three as they are. HEST-bench shows 112 µm, which the transform has to know, and
# keeps 256 principal components, more than a small network has dimensions:
#
# ```python
# from hest.bench import benchmark
# seen = load_encoder("runs/mine", patch_um=112)
# benchmark(*seen, latent_dim=min(256, seen[0].row.dim))
#
# from trident.patch_encoder_models import CustomInferenceEncoder
# CustomInferenceEncoder("seal", module, transform, precision)
# ```
#
# One thing no contract carries: the region's size. The transform makes the same number of pixels of
# whatever it is given. Cut regions of the size that the encoder has seen, or say with `patch_um`
# how large they are:

# %%
print(
    f"{config.patch_um:g} µm, which become {config.patch_px} x {config.patch_px} pixels"
)

# %% [markdown]
# ## Your other tools
#
# ### scanpy and squidpy
#
# Under `obsm["X_seal"]` the embedding is where single-cell tools look for one. Neighbours, Leiden
# clusters and their plot on the tissue are theirs. Beside it the same for the frozen encoder, and,
# on the phantom, the tissue regions that were drawn.

# %%
#| alt: The section's spots, coloured by the tissue regions that were drawn where these are known,
#| and by the Leiden clusters of the frozen and of the finetuned encoder.
frozen = build_encoder(config.backbone, tune_blocks=config.tune_blocks)
regions = None if here.truth is None else here.truth.regions(test)
adata, agreement = None, {}
for name, encoder in (("frozen", frozen), ("tuned", model.encoder)):
    adata = add_embedding(test, encoder) if adata is None else adata
    x = embed_patches(encoder, test.patches)
    adata.obsm["X_seal"] = (x - x.mean(0)) / x.std(0).clip(1e-6)
    sc.pp.neighbors(adata, use_rep="X_seal", n_neighbors=12)
    sc.tl.leiden(
        adata, key_added=name, resolution=0.6, flavor="igraph", n_iterations=2
    )
    if regions is not None:
        agreement[name] = float(adjusted_rand_score(regions, adata.obs[name]))
if regions is not None:
    adata.obs["drawn"] = pd.Categorical(regions)
shown = [c for c in ("drawn", "frozen", "tuned") if c in adata.obs]
adata.obsm["spatial"] = (
    adata.obsm["spatial"] * adata.uns["um_per_px"]
)  # um, as the axes say
adata.uns["spatial"] = {test.name: {}}
for c in shown:
    k = adata.obs[c].cat.categories
    adata.uns[f"{c}_colors"] = [
        plots.COLOURS[i % len(plots.COLOURS)] for i in range(len(k))
    ]
titles = {
    "drawn": "regions, as drawn",
    "frozen": "clusters, frozen",
    "tuned": "clusters, tuned",
}
with plt.rc_context(plots.STYLE):
    figure, panels = plt.subplots(1, len(shown), figsize=(8, 3.4))
    for ax, c in zip(np.atleast_1d(panels), shown, strict=True):
        sq.pl.spatial_scatter(
            adata,
            shape=None,
            library_id=test.name,
            color=c,
            size=40,
            ax=ax,
            title=titles[c],
            fig=figure,
            legend_loc=None,
        )
        ax.set(xlabel="", ylabel="", xticks=[], yticks=[], aspect="equal")
        ax.spines[:].set_visible(False)
        plots.scale_bar(ax)
    if regions is not None:
        names = zip(
            adata.obs.drawn.cat.categories,
            adata.uns["drawn_colors"],
            strict=True,
        )
        marks = [
            Line2D([], [], ls="", marker="o", color=c, label=name)
            for name, c in names
        ]
        figure.legend(
            handles=marks,
            loc="outside lower left",
            ncols=len(marks),
            columnspacing=1,
            title="regions",
            alignment="left",
        )
plt.close(figure)
figure

# %%
if agreement:
    print(
        "adjusted Rand index of the clusters with the regions drawn:",
        {k: round(v, 3) for k, v in agreement.items()},
    )

# %% [markdown]
# The regions are the visible part of the tissue, and a frozen encoder sees them, too. Clusters of
# a tuned one follow expression as well, which runs across the regions: agreement with them is no
# measure of its worth. The scores of [chapter 9](09_did_it_help.ipynb) are.
#
# ### lazyslide
#
# A whole slide, the way lazyslide does it: find the tissue, cut it into tiles, run a model over
# them. The slide is the held-out section's picture, written as a pyramidal TIFF. Tiles have the
# size that the encoder knows.

# %%
from lazyslide import pp, tl
from wsidata import open_wsi

picture, um = (
    np.asarray(open_image(test.adata.uns["image_path"])),
    test.adata.uns["um_per_px"],
)
write_pyramid(OUT / "slide.tif", picture, um_per_px=um)
wsi = open_wsi(str(OUT / "slide.tif"), store=str(OUT / "slide.zarr"))
pp.find_tissues(wsi)
tile = round(config.patch_um / um)
pp.tile_tissues(wsi, tile, mpp=um, slide_mpp=um)
tl.feature_extraction(
    wsi, module, transform=transform, model_name="seal", pbar=False
)
features, corners = (
    np.asarray(wsi.tables["seal_tiles"].X),
    wsi.shapes["tiles"].bounds,
)
print(
    f"{len(features)} tiles of {tile * um:.0f} µm, {features.shape[1]} numbers each"
)

# %%
#| alt: The slide, and the slide again under square tiles, whose colours stand for the first three
#| axes of their embeddings.
centred = (features - features.mean(0)) / features.std(0).clip(1e-6)
_, _, axes = np.linalg.svd(centred, full_matrices=False)
colour = (centred @ axes[:3].T).argsort(0).argsort(0) / (len(centred) - 1)
with plt.rc_context(plots.STYLE):
    figure, panels = plt.subplots(1, 2, figsize=(8.5, 4.2))
    size = np.array(picture.shape[:2]) * um
    for ax, title in zip(
        panels, ("the slide", "tiles, coloured by three axes"), strict=True
    ):
        ax.imshow(picture[::8, ::8], extent=(0, size[1], size[0], 0))
        ax.set(title=title, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        plots.scale_bar(ax)
    for (x, y, *_), c in zip(corners.to_numpy() * um, colour, strict=True):
        edge = config.patch_um
        panels[1].add_patch(
            Rectangle((x, y), edge, edge, color=c, alpha=0.85, lw=0)
        )
plt.close(figure)
figure

# %% [markdown]
# Tiles of one colour are alike to the encoder: the first three axes of their embeddings are shown
# as red, green and blue, by rank.
#
# ### By its name
#
# An adapter makes a run one of the models that a tool knows. It brings module and transform, so
# that nothing is left to pass on but the run's folder, or `hf-hub:OWNER/NAME`:
#
# ```python
# import seal_lite.integrations.lazyslide
# tl.feature_extraction(wsi, "seal", model_path=RUN)
#
# from seal_lite.integrations import trident
# trident.register(RUN)
# encoder_factory("seal")  # of trident.patch_encoder_models
# ```
#
# slide2vec finds the adapter itself. It knows the runs that the environment variable
# `SEAL_LITE_RUNS=runs/c5:hf-hub:OWNER/NAME` lists as `seal:c5` and `seal:NAME`, with their scale.
#
# ## Share it on the Hub, and take it back
#
# ```sh
# seal-lite share --run RUN --repo OWNER/NAME --scores runs/cv/metrics.json
# ```
#
# uploads a run, privately unless you say `--public`, and `load_encoder("hf-hub:OWNER/NAME")` takes
# it back anywhere. What travels is what somebody else needs and no more: settings, panel, adapter,
# heads, and the SHA-256 of the weights it was tuned from. Those weights stay where their licence
# keeps them. To see that it suffices, we carry just these files to another folder, with the same
# filter that the upload uses, and load from there.

# %%
shared = OUT / "shared"
files = [str(f.relative_to(RUN)) for f in RUN.rglob("*") if f.is_file()]
for name in (
    sent := sorted(filter_repo_objects(files, allow_patterns=SHARED_FILES))
):
    (shared / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(RUN / name, shared / name)
returned, *_ = load_encoder(shared)
with torch.inference_mode():
    return_gap = float(np.abs(returned(images[:16]).numpy() - found[:16]).max())
sent_mb = sum((shared / name).stat().st_size for name in sent) / 1e6
print(
    f"{', '.join(sent)}: {sent_mb:.1f} MB; largest difference when it is back: {return_gap:g}"
)

# %% [markdown]
# With it goes a model card {cite:p}`mitchell2019cards`, made from what the run recorded about
# itself; of a `metrics.json` it quotes the differences and their intervals. Fill in what no program
# can know: whose tissue it was, and what it should not be used for.

# %%
print(model_card(RUN).text)

# %% [markdown]
# ## What to remember
#
# - Blocks are found and the network's own forward pass is cut: a new encoder is a name, or a row of
#   facts.
# - Elsewhere an encoder is a module and a transform. Say the region's size with it: nothing else
#   does.
# - What is shared is small, and names by hash what it was tuned from. It has that encoder's
#   licence.
#
# ## Exercises

# %% [markdown]
# **1.** Below are four tiny networks of timm with random weights: a transformer, which has a row,
# and three that have none. In each the last block is tuned. Before you look: where would you cut a
# ResNet, what is left of an image there, and does prefix and tail in a row give what timm itself
# gives?

# %% tags=["hide-cell", "solution"]
# A ResNet is cut between two of its stages, where an image is a small map of features. The cut
# changes nothing, since LoRA starts as nothing: any difference is rounding.
cuts = {}
for name in ("test_vit", "test_resnet", "test_convnext", "test_efficientnet"):
    row = backbone_row(name)
    encoder = build_encoder(name, pretrained=False, tune_blocks=1)
    x = torch.rand(
        2, 3, row.px, row.px, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        hidden = encoder.prefix(x)
        plain = load_backbone(row, pretrained=False)(
            (x - encoder.mean) / encoder.std
        )
        gap = float(
            (encoder.tail(hidden) - plain).abs().max() / plain.abs().max()
        )
    cuts[name] = {
        "blocks": len(encoder.prefix_stages + encoder.tail_stages) - 1,
        "at the cut": tuple(hidden.shape[1:]),
        "layers adapted": len(encoder.adapted),
        "numbers": row.dim,
        "difference to timm": gap,
    }
pd.DataFrame(cuts).T

# %% [markdown]
# **2.** A hospital wants to give a tuned encoder to a company. From how many of the table's
# encoders may it be tuned? And how many are left if the weights must not be gated?

# %% tags=["hide-cell", "solution"]
# A minority: most pathology encoders are for research only, and what is tuned from them is, too. A
# licence in this table is a pointer; read the card before you rely on it.
open_ones = table.licence.str.contains("Apache|BSD|MIT")
print(
    f"{open_ones.sum()} of {len(table)} allow it: {', '.join(table.index[open_ones])}"
)
print(f"not gated: {', '.join(table.index[open_ones & ~table.gated])}")

# %% [markdown]
# **3.** A colleague cuts regions of the wrong size, half or twice the width. The transform takes
# them without a word. If you look for each such region's nearest neighbour among the right ones,
# how often is it the region around the same spot?

# %% tags=["hide-cell", "solution"]
# The centre of the region is still the same tissue, and yet most embeddings are nearer to another
# spot's. Nothing fails, no shape differs: only a written size can prevent it.
scale = found.std(0).clip(1e-6)
for factor in (0.5, 2.0):
    rows, patches = extract_patches(
        test.adata, patch_um=config.patch_um * factor, patch_px=config.patch_px
    )
    some = np.flatnonzero(np.isin(rows, test.rows))[::3]
    x = embed_patches(model.encoder, patches[some])
    nearest = np.linalg.norm((x[:, None] - found) / scale, axis=2).argmin(1)
    share = (test.rows[nearest] == rows[some]).mean()
    print(
        f"{config.patch_um * factor:g} µm: {share:.0%} of {len(some)} are nearest to themselves, "
        f"by chance {1 / len(found):.1%}"
    )

# %% [markdown]
# **4.** Break the safeguard: pretend that the shared run was tuned from other weights, as happens
# when a hub replaces a file under the same name. What would have gone wrong without the check?

# %% tags=["hide-cell", "solution"]
# An adapter is a correction to certain weights. On others it would load, run and return embeddings
# of the right shape, which mean nothing.
other = OUT / "other"
shutil.copytree(shared, other)
base = json.loads((other / "base.json").read_text())
(other / "base.json").write_text(json.dumps(base | {"sha256": "0" * 64}))
try:
    load_encoder(other)
except InputError as error:
    print(error)

# %% [markdown]
# ## Further reading
#
# - {cite:p}`wightman2019timm` is timm: a thousand networks, each by a name.
# - {cite:p}`chen2024uni` is UNI, and what an encoder trained on a hundred million regions is tested
#   for.
# - {cite:p}`wolf2018scanpy` and {cite:p}`palla2022squidpy` are where embeddings become clusters and
#   neighbourhoods.
# - {cite:p}`mitchell2019cards` asks what a model card should say.

# %% tags=["key-figures", "remove-cell"]
print(
    json.dumps(
        {
            "encoders": len(table),
            "merge_gap": merge_gap,
            "onnx_gap": onnx_gap,
            "return_gap": return_gap,
            "cut_gap": max(cut["difference to timm"] for cut in cuts.values()),
            "sent": sent,
            "megabytes": megabytes,
            "agreement": agreement,
            "clusters": {
                c: int(adata.obs[c].nunique()) for c in ("frozen", "tuned")
            },
            "tiles": len(features),
        }
    )
)
