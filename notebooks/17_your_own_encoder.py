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
# **You have an encoder that you trust. What does it take to finetune it on expression, to use the
# result in your other tools, and to share it?**
#
# Fifteen minutes to read, two minutes to run if the earlier chapters have run.
#
# A name is enough to finetune an encoder of timm, or a vision transformer of transformers. The
# result is a plain `torch.nn.Module` with a transform, which other libraries take as they are.
# Exported to ONNX, or shared and loaded again, it computes the same embeddings up to rounding. This
# chapter shows each step, with scanpy, squidpy and lazyslide as the other tools.

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
# "auto": the phantom, or on a GPU real tumours; or any folder of sections.
DATASET = "auto"
# "auto": a small network, or on a GPU Phikon; or one of `seal-lite encoders`.
BACKBONE = "auto"
# 0: 12, or 20 on a GPU.
EPOCHS = 0
# Everything tiny, just to see that it runs.
SMOKE = False
# The held-out section, with all of its patient's; empty: the last one.
TEST = ""
SEED = 0

# %% tags=["hide-input"]
import importlib.resources
import json
import logging
import shutil
import warnings
from pathlib import Path

# Other packages warn about each other.
warnings.filterwarnings("ignore")

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
import pandas as pd
import scanpy as sc
import squidpy as sq
import torch
from huggingface_hub.utils import filter_repo_objects
from lazyslide import pp, tl
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.metrics import adjusted_rand_score
from wsidata import open_wsi

from seal_lite import InputError, load_encoder, plots
from seal_lite.data.images import open_image, resized
from seal_lite.data.patches import extract_patches
from seal_lite.data.phantom import write_pyramid
from seal_lite.encoders import BACKBONES, backbone_row, load_backbone
from seal_lite.encoders.embedding import embed_patches
from seal_lite.encoders.vision import VisionEncoder, build_encoder, encoder_for
from seal_lite.hub import add_embedding, model_card
from seal_lite.model.storage import SHARED_FILES
from seal_lite.tutorial import begin, charts, finetuned, result_box

here = begin(DATASET, BACKBONE, EPOCHS, SMOKE, test=TEST, seed=SEED)
logging.disable(logging.WARNING)
ROOT, config, test = here.root, here.config, here.test

# %% [markdown]
# Here are four networks without their weights. Each bar is a block, as tall as its number of
# weights. Grey blocks are frozen, and orange ones are tuned.

# %%
#| alt: Bars for the blocks of four networks, two transformers and two convolutional ones, as tall
#| as the weights of each. The last one to three blocks are orange, the others grey.
SHOWN = {"uni": 2, "h_optimus_0": 2, "resnet50": 1, "tf_efficientnet_lite0": 3}


def million_weights(block: torch.nn.Module) -> float:
    """Weights of a block without its adapter, in millions."""
    sizes = [
        weight.numel()
        for name, weight in block.named_parameters()
        if "lora_" not in name and "modules_to" not in name
    ]
    return sum(sizes) / 1e6


with plt.rc_context(plots.STYLE):
    figure, panels = plt.subplots(2, 2, figsize=(8, 4.6))
    for ax, (name, tuned_blocks) in zip(
        panels.flat, SHOWN.items(), strict=True
    ):
        row = BACKBONES[name]
        with torch.device("meta"):
            base = load_backbone(row, pretrained=False)
            encoder = VisionEncoder(base, row, tune_blocks=tuned_blocks)
        blocks = encoder.prefix_stages + encoder.tail_stages
        blocks = [block for block in blocks if block != "output"]
        sizes = [
            million_weights(encoder.base.get_submodule(block))
            for block in blocks
        ]
        is_tuned = [block in encoder.tail_stages for block in blocks]
        colours = [plots.COLOURS[1] if t else plots.GREY for t in is_tuned]
        ax.bar(range(len(blocks)), sizes, color=colours)
        ax.set(title=f"{name}: {len(encoder.adapted)} layers adapted")
        ax.set(xlabel="block", ylabel="million weights")
        ax.set_ylim(0, max(sizes) * 1.15)
        ax.xaxis.get_major_locator().set_params(integer=True)
plt.close(figure)
figure

# %% [markdown]
# EfficientNet-Lite0 is drawn up to its {term}`feature layer`, because only that part is run.
#
# ## Which encoders
#
# These encoders have a name here (`seal-lite encoders` prints the same table). For a gated one,
# accept its terms and run `hf auth login` once. The licence of an encoder also holds for whatever
# is finetuned from it. *dim* is the number of dimensions of the embedding, *px* the edge of the
# input in pixels, and *embedding* what is read: the class token, the mean of the patch tokens,
# both, or the network's own output.

# %% tags=["hide-input"]
columns = ["dim", "px", "um_per_px", "embedding", "licence", "gated"]
table = pd.DataFrame([vars(row) for row in BACKBONES.values()])
table = table.set_index("name").drop("test_vit")[columns]
shown = table.assign(gated=np.where(table.gated, "yes", "no"))
shown.rename(columns={"um_per_px": "µm per px"}).fillna("not stated")

# %% [markdown]
# ## How to finetune yours
#
# **A model of timm** needs no preparation. It may be one of timm's own, on the Hub, or in a folder
# that `timm.models.save_for_hf` has written.
#
# **A plain vision transformer of transformers** needs none either, on the Hub or in a folder that
# `save_pretrained` has written. `preprocessor_config.json` must state how its images are
# normalised; the model's image processor writes that file:
#
# ```sh
# seal-lite finetune --data DIR --train S1,S2 --out runs/one \
#   --backbone convnext_tiny
# seal-lite finetune --data DIR --train S1,S2 --out runs/two \
#   --backbone hf-hub:OWNER/MODEL
# seal-lite finetune --data DIR --train S1,S2 --out runs/three \
#   --backbone local-dir:FOLDER
# ```
#
# Finetuning needs to know three things about a network: where its blocks are, which of their layers
# {term}`LoRA` can adapt, and where an embedding is read. SEAL-lite finds the blocks itself. They
# are the siblings of one class that hold most of the weights, such as transformer blocks in a list
# or stages called `layer1` to `layer4`. Two hooks then split the network's own forward pass. One
# stops it before the first tuned block: these frozen blocks are computed once. The other hook feeds
# the stored activations into the first tuned block, while the frozen blocks return their input.
# The hooks do not depend on the kind of network.
#
# **A row of your own** serves the other cases: a network of another package, an embedding that timm
# does not pool, a layer that {term}`LoRA` must leave out, or another resolution. A row states facts
# and holds no code. Write it into a file, and name that file in the environment variable
# `SEAL_LITE_BACKBONES`; `seal-lite encoders` then lists it. The rows of this package are in
# `seal_lite/encoders/backbones.toml`. This is the row of Phikon {cite:p}`filiot2023phikon`, which
# comes from `transformers`:

# %%
package = importlib.resources.files("seal_lite.encoders")
rows = package.joinpath("backbones.toml").read_text()
print("[phikon]" + rows.partition("[phikon]")[2].partition("\n\n")[0])

# %% [markdown]
# `loader` is the dotted name of any function, so it may name your own class. `lora` matches the
# layers to adapt by their name inside a block. `um_per_px` is the resolution of the encoder's
# training. Anyone may download Phikon's weights, but its licence is non-commercial.
#
# ## One plain module
#
# We take the run of the earlier chapters, or finetune it now.

# %%
RUN = here.run("tuned")
model, _ = finetuned(here)
module, transform, precision = load_encoder(RUN, device="cpu")
images = torch.stack([transform(Image.fromarray(p)) for p in test.patches])
with torch.inference_mode():
    embeddings = torch.cat([module(part) for part in images.split(32)]).numpy()
own = embed_patches(model.encoder, test.patches)
merge_gap = float(np.abs(embeddings - own).max() / np.abs(own).max())
weights = sum(p.numel() for p in module.parameters())
megabytes = sum(f.stat().st_size for f in RUN.rglob("*") if f.is_file()) / 1e6
print(f"module: {weights:,} weights, {precision}")
print(f"largest difference to the run's own encoder: {merge_gap:.2g}")
print(f"the run's folder: {megabytes:.1f} MB")

# %% [markdown]
# Differences are in units of the largest value of an embedding. `module` has no adapter, no hooks
# and no layer that would run behind the feature layer. It computes the same function in one forward
# pass, and can be exported:

# %%
OUT = Path("runs/elsewhere")
shutil.rmtree(OUT, ignore_errors=True)
OUT.mkdir(parents=True)
file = OUT / "seal.onnx"
torch.onnx.export(
    module,
    (images[:4],),
    file,
    dynamo=True,
    verbose=False,
    external_data=False,
    dynamic_shapes=({0: torch.export.Dim("batch")},),
)
session = onnxruntime.InferenceSession(file)
inputs = {session.get_inputs()[0].name: images[:32].numpy()}
(exported,) = session.run(None, inputs)
onnx_gap = float(np.abs(exported - embeddings[:32]).max())
onnx_gap /= float(np.abs(embeddings).max())
print(f"ONNX: {file.stat().st_size / 1e6:.1f} MB")
print(f"largest difference: {onnx_gap:.2g}")

# %% [markdown]
# TRIDENT takes module, transform and precision as they are. HEST-bench shows patches of 112 µm,
# which the transform must know. By default it keeps 256 principal components, more than a small
# network has dimensions:
#
# ```python
# from hest.bench import benchmark
# encoder = load_encoder("runs/mine", patch_um=112)
# benchmark(*encoder, latent_dim=min(256, encoder[0].row.dim))
#
# from trident.patch_encoder_models import CustomInferenceEncoder
# CustomInferenceEncoder("seal", module, transform, precision)
# ```
#
# These tools do not pass the physical size of a patch on. The transform resamples any patch to the
# same number of pixels. So cut patches of the size that the encoder was trained on, or state their
# size with `patch_um`:

# %%
print(f"{config.patch_um:g} µm, resampled to {config.patch_px} px a side")

# %% [markdown]
# ## Your other tools
#
# ### scanpy and squidpy
#
# `add_embedding` writes the embedding to `obsm["X_seal"]`, where single-cell tools read one. scanpy
# finds neighbours and Leiden clusters, and squidpy plots them on the tissue. We do the same with
# the frozen encoder. On the phantom we also show the tissue regions that were drawn. The legend
# names their colours; the colours of clusters are arbitrary.

# %%
frozen = encoder_for(config)
adata = add_embedding(test, model.encoder)
for name, encoder in (("frozen", frozen), ("tuned", model.encoder)):
    x = embed_patches(encoder, test.patches)
    adata.obsm["X_seal"] = (x - x.mean(0)) / x.std(0).clip(1e-6)
    sc.pp.neighbors(adata, use_rep="X_seal", n_neighbors=12)
    sc.tl.leiden(
        adata, key_added=name, resolution=0.6, flavor="igraph", n_iterations=2
    )

agreement = {}
if here.truth is not None:
    adata.obs["drawn"] = pd.Categorical(here.truth.regions(test))
    for name in ("frozen", "tuned"):
        index = adjusted_rand_score(adata.obs.drawn, adata.obs[name])
        agreement[name] = float(index)
        print(
            f"adjusted Rand index, drawn and {charts.LABELS[name]}: {index:.3f}"
        )

# %%
#| alt: The section's spots, coloured by the tissue regions that were drawn where these are known,
#| and by the Leiden clusters of the frozen and of the finetuned encoder.
TITLES = {
    "drawn": "regions, as drawn",
    "frozen": "clusters, frozen",
    "tuned": "clusters, finetuned",
}
shown = [name for name in TITLES if name in adata.obs]
adata.obsm["spatial"] = adata.obsm["spatial"] * adata.uns["um_per_px"]
adata.uns["spatial"] = {test.name: {}}
for name in shown:
    colours = charts.label_colours(adata.obs[name].cat.categories)
    adata.uns[f"{name}_colors"] = list(colours.values())
with plt.rc_context(plots.STYLE):
    figure, panels = plt.subplots(1, len(shown), figsize=(8, 3.4))
    for ax, name in zip(np.atleast_1d(panels), shown, strict=True):
        sq.pl.spatial_scatter(
            adata,
            shape=None,
            library_id=test.name,
            color=name,
            size=40,
            ax=ax,
            title=TITLES[name],
            fig=figure,
            legend_loc=None,
        )
        ax.set(xlabel="", ylabel="", xticks=[], yticks=[], aspect="equal")
        ax.spines[:].set_visible(False)
        plots.scale_bar(ax)
    if here.truth is not None:
        regions = adata.obs.drawn.cat.categories
        marks = [
            Line2D([], [], ls="", marker="o", color=colour, label=region)
            for region, colour in zip(
                regions, adata.uns["drawn_colors"], strict=True
            )
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

# %% [markdown]
# The regions are the visible part of the tissue, which a frozen encoder can separate as well. Their
# agreement with clusters does not measure what finetuning taught; the scores of [chapter
# 9](09_did_it_help.ipynb) do.
#
# ### lazyslide
#
# lazyslide processes a whole slide: it finds the tissue, splits it into tiles and runs a model over
# them. Here the slide is the held-out section's image, written as a pyramidal TIFF. The tiles have
# the size of the encoder's patches.

# %%
image = np.asarray(open_image(test.adata.uns["image_path"]))
um = test.adata.uns["um_per_px"]
write_pyramid(OUT / "slide.tif", image, um_per_px=um)
wsi = open_wsi(str(OUT / "slide.tif"), store=str(OUT / "slide.zarr"))
pp.find_tissues(wsi)
tile_px = round(config.patch_um / um)
pp.tile_tissues(wsi, tile_px, mpp=um, slide_mpp=um)
tl.feature_extraction(
    wsi, module, transform=transform, model_name="seal", pbar=False
)
features = np.asarray(wsi.tables["seal_tiles"].X)
corners = wsi.shapes["tiles"].bounds.to_numpy()[:, :2] * um
print(f"{len(features)} tiles of {tile_px * um:.0f} µm")
print(f"{features.shape[1]} dimensions each")

# %%
#| alt: The slide, and the slide again under square tiles, whose colours stand for the first three
#| axes of their embeddings.
centred = (features - features.mean(0)) / features.std(0).clip(1e-6)
_, _, axes = np.linalg.svd(centred, full_matrices=False)
ranks = (centred @ axes[:3].T).argsort(0).argsort(0)
colours = ranks / (len(centred) - 1)
height, width = np.array(image.shape[:2]) * um
with plt.rc_context(plots.STYLE):
    figure, panels = plt.subplots(1, 2, figsize=(8.5, 4.2))
    titles = ("the slide", "tiles, coloured by three axes")
    for ax, title in zip(panels, titles, strict=True):
        ax.imshow(image[::8, ::8], extent=(0, width, height, 0))
        ax.set(title=title, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        plots.scale_bar(ax)
    edge = config.patch_um
    for corner, colour in zip(corners, colours, strict=True):
        panels[1].add_patch(
            Rectangle(corner, edge, edge, color=colour, alpha=0.85, lw=0)
        )
plt.close(figure)
figure

# %% [markdown]
# The ranks of the first three axes of the embeddings are drawn as red, green and blue. Tiles of
# similar colour are similar to the encoder.
#
# ### By name
#
# An integration makes a run one of the models that a tool knows by name. It brings module and
# transform, so that you pass only the run's folder or `hf-hub:OWNER/NAME`:
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
# slide2vec finds the integration itself. It knows the runs that the environment variable
# `SEAL_LITE_RUNS=runs/c5:hf-hub:OWNER/NAME` lists as `seal:c5` and `seal:NAME`, with their scale.
#
# ## Share it on the Hub and load it again
#
# ```sh
# seal-lite share --run RUN --repo OWNER/NAME --scores runs/cv/metrics.json
# ```
#
# uploads a run (log in once by `hf auth login`), privately unless you add `--public`.
# `load_encoder("hf-hub:OWNER/NAME")` loads it anywhere. The upload holds settings, panel, adapter,
# heads and the SHA-256 of the weights that it was finetuned from. It does not pass those weights
# on. (With `lora_rank=0` it holds the tuned blocks, so check that the licence allows it.) For a run
# of an encoder in a local folder, `share` raises an error, because nobody else could load it. Here
# we copy the files to another folder, with the filter of the upload, and load the encoder from
# there.

# %%
shared = OUT / "shared"
files = [str(f.relative_to(RUN)) for f in RUN.rglob("*") if f.is_file()]
sent = sorted(filter_repo_objects(files, allow_patterns=SHARED_FILES))
for name in sent:
    (shared / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(RUN / name, shared / name)
returned, *_ = load_encoder(shared, device="cpu")
with torch.inference_mode():
    again = returned(images[:16]).numpy()
return_gap = float(np.abs(again - embeddings[:16]).max())
sent_mb = sum((shared / name).stat().st_size for name in sent) / 1e6
print(f"{sent_mb:.1f} MB: {', '.join(sent)}")
print(f"largest difference after loading: {return_gap:g}")

# %% [markdown]
# The upload also holds a model card {cite:p}`mitchell2019cards`, made from the run's own files. It
# quotes the differences and intervals of a `metrics.json`. Fill in what no program can know: whose
# tissue it was, and what the encoder should not be used for.

# %%
print(model_card(RUN).text)

# %% [markdown]
# ## Result

# %% tags=["hide-input"]
if agreement:
    higher = (
        "finetuned" if agreement["tuned"] > agreement["frozen"] else "frozen"
    )
    clusters = (
        "Leiden clusters agree with the drawn regions with an adjusted Rand "
        f"index of {agreement['frozen']:.2f} (frozen) and "
        f"{agreement['tuned']:.2f} (finetuned): higher for the {higher} encoder "
        "on this one section, a description without an interval."
    )
else:
    clusters = "Real tissue has no drawn regions to compare clusters with."
result_box(
    f"On the {len(images)} patches of one held-out section, the plain module's "
    f"embeddings differ from the run's by at most {merge_gap:.1g} of the "
    f"largest value, those of its ONNX export by {onnx_gap:.1g}, and those of "
    f"the shared copy by {return_gap:g}.",
    f"The shared copy takes {sent_mb:.1f} MB, without the weights that it was "
    "finetuned from.",
    clusters,
)

# %% [markdown]
# ## What to remember
#
# - SEAL-lite finds an encoder's blocks and splits its own forward pass. So a new encoder needs only
#   a name, or a row that states facts about it.
# - For other tools an encoder is a module and a transform. State the physical size of a patch with
#   them.
# - A shared run is small, and names by hash the weights that it was finetuned from. Their licence
#   holds for it.
#
# ## Exercises

# %% [markdown]
# **1.** Below are four tiny networks of timm with random weights: a transformer, which has a row,
# and three that have none. In each the last block is tuned. Where would you split a ResNet, what
# shape has an image there, and do frozen and tuned blocks in sequence give what timm itself gives?

# %% tags=["hide-cell", "solution"]
# A ResNet is split between two of its stages, where an image is a small map of
# features. LoRA starts at zero, so any difference to timm is rounding.
splits = {}
for name in ("test_vit", "test_resnet", "test_convnext", "test_efficientnet"):
    row = backbone_row(name)
    encoder = build_encoder(name, pretrained=False, tune_blocks=1, device="cpu")
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, row.px, row.px, generator=generator)
    network = load_backbone(row, pretrained=False)
    with torch.inference_mode():
        hidden = encoder.prefix(x)
        ours = encoder.tail(hidden)
        theirs = network((x - encoder.mean) / encoder.std)
    gap = float((ours - theirs).abs().max() / theirs.abs().max())
    splits[name] = {
        "blocks": len(encoder.prefix_stages + encoder.tail_stages) - 1,
        "shape at the split": tuple(hidden.shape[1:]),
        "layers adapted": len(encoder.adapted),
        "dimensions": row.dim,
        "difference to timm": gap,
    }
pd.DataFrame(splits).T

# %% [markdown]
# **2.** A hospital wants to give a finetuned encoder to a company. From how many of the table's
# encoders may it be finetuned? How many are left if the weights must not be gated?

# %% tags=["hide-cell", "solution"]
# What is finetuned from an encoder for research is for research only, too. The
# table points to licences; read the encoder's card before you rely on one.
is_permissive = table.licence.str.contains("Apache|BSD|MIT")
is_free = is_permissive & ~table.gated
print(f"{is_permissive.sum()} of {len(table)}:")
print(", ".join(table.index[is_permissive]))
print(f"{is_free.sum()} of them not gated:")
print(", ".join(table.index[is_free]))

# %% [markdown]
# **3.** A colleague cuts patches of half or twice the width. The transform accepts them. Among the
# patches of the right size, how often is such a patch's nearest neighbour the one around the same
# spot?

# %% tags=["hide-cell", "solution"]
# The shapes do not differ, so no error is raised. Compare the shares with
# chance, and with 100%: the centre of each patch shows the same tissue.
scale = embeddings.std(0).clip(1e-6)
for factor in (0.5, 2.0):
    width_um = config.patch_um * factor
    # A narrow patch has few pixels of its own, and is enlarged
    px = round(config.patch_px * min(factor, 1))
    rows, patches = extract_patches(test.adata, patch_um=width_um, patch_px=px)
    some = np.flatnonzero(np.isin(rows, test.rows))[::3]
    cut = [
        resized(Image.fromarray(patch), config.patch_px)
        for patch in patches[some]
    ]
    x = embed_patches(model.encoder, np.stack(cut))
    distances = np.linalg.norm((x[:, None] - embeddings) / scale, axis=2)
    nearest = distances.argmin(1)
    share = (test.rows[nearest] == rows[some]).mean()
    print(f"{width_um:g} µm: {share:.0%} of {len(some)} find their own spot")
print(f"chance: {1 / len(embeddings):.1%}")

# %% [markdown]
# **4.** Pretend that the shared run was finetuned from other weights, as happens when a hub
# replaces a file under the same name. What does loading do, and what would go wrong without the
# check?

# %% tags=["hide-cell", "solution"]
# An adapter is a correction to certain weights. On others it would load and
# return embeddings of the right shape that mean nothing.
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
# - {cite:t}`wightman2019timm`: timm, a library of networks by name.
# - {cite:t}`chen2024uni` present UNI, and the tasks on which a pathology encoder is evaluated.
# - {cite:t}`wolf2018scanpy` and {cite:t}`palla2022squidpy` present scanpy and squidpy.
# - {cite:t}`mitchell2019cards` propose what a model card should state.

# %% tags=["key-figures", "remove-cell"]
figures = {
    "encoders": len(table),
    "merge_gap": merge_gap,
    "onnx_gap": onnx_gap,
    "return_gap": return_gap,
    "cut_gap": max(row["difference to timm"] for row in splits.values()),
    "sent": sent,
    "megabytes": megabytes,
    "agreement": agreement,
    "clusters": {
        name: int(adata.obs[name].nunique()) for name in ("frozen", "tuned")
    },
    "tiles": len(features),
}
print(json.dumps(figures))
