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
# # The quick path
#
# **You have a folder of tissue sections. Is finetuning an encoder on them worth it, and how do you
# use the encoder?**
#
# Five minutes to read, a few to run on the phantom, and half an hour with real sections on a GPU.
#
# {% set phantom, her2st = load("phantom"), load("her2st") %}
# On new patients of a phantom, the mean $r$ of the finetuned encoder minus that of the frozen
# encoder's best layer is {{ main_difference(phantom, "frozen_best") }}. On new sections of one real
# tumour it is {{ main_difference(her2st, "frozen_best") }}. The 95% interval stands in square
# brackets, and the number of held-out units in round ones. On your own sections you have to measure
# it.
#
# Four calls do so: `check_sections` finds faults of the data, `crossval` finetunes with each
# unit held out and scores it beside its controls, `finetune` trains the final encoder, and
# `load_encoder` hands it to other tools. Here they run with few epochs, and the result at the end
# states what these few epochs gained. With the recipe's epochs and more seeds, one command does the
# same: `seal-lite study --data FOLDER --out runs/study`.

# %% tags=["hide-cell"]
# On Colab: install SEAL-lite, and keep the torch that Colab brings.
import importlib.util
import subprocess
import sys
from importlib.metadata import version

PACKAGE = "seal_lite[offline,data,encoders]"
HOME = "git+https://github.com/seal-lite/seal-lite"
if importlib.util.find_spec("seal_lite") is None:
    kept = [f"{name}=={version(name)}" for name in ("torch", "torchvision")]
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, f"{PACKAGE} @ {HOME}", *kept], check=True)

# %% tags=["parameters"]
# "auto": the phantom, or on a GPU two Visium sections of 10x Genomics, which
# are downloaded. Or any folder of sections.
DATASET = "auto"
# "auto": a small network, or on a GPU Phikon. Or one of `seal-lite encoders`.
BACKBONE = "auto"
# 0: 4.
EPOCHS = 0
# True makes everything tiny, to see that it runs.
SMOKE = False

# %% tags=["hide-input"]
import json
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import ListedColormap
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import StandardScaler

from seal_lite import SEAL, __version__, finetune, load_encoder, plots
from seal_lite.data.download import fetch_visium
from seal_lite.data.leakage import check_leakage
from seal_lite.data.phantom import GroundTruth
from seal_lite.data.report import check_sections
from seal_lite.data.section import load_sections
from seal_lite.encoders.embedding import embed_patches
from seal_lite.encoders.vision import encoder_for
from seal_lite.evaluation.crossval import crossval, folds_of, groups_of
from seal_lite.evaluation.scores import genes_to_score
from seal_lite.evaluation.statistics import (
    interval_text,
    leave_one_out_ratio,
    mean_and_interval,
)
from seal_lite.evaluation.targets import patch_targets, pearson
from seal_lite.hub import add_embedding
from seal_lite.io import read_json
from seal_lite.paths import file_name
from seal_lite.studies import figures
from seal_lite.studies.evidence import expression_domains
from seal_lite.studies.plan import choose_groups, smallest_gain
from seal_lite.studies.verdict import difference_row, difference_rows, kind_of
from seal_lite.tutorial import begin, charts, result_box

# %% [markdown]
# ## Data and settings
#
# A folder holds the sections as they come: Visium, Visium HD, Xenium, HEST-1k, SpatialData or any
# AnnData with an image. The training has fewer epochs and views than the recipe's; on a CPU the
# patches also have fewer pixels, and one block is tuned.

# %%
VISIUM = [f"V1_Breast_Cancer_Block_A_Section_{i}" for i in (1, 2)]
has_gpu = torch.cuda.is_available()
if DATASET == "auto" and has_gpu and not SMOKE:
    fetch_visium("data/visium", names=VISIUM)
    # Both are of one block of tissue, which their files do not state
    rows = [f"{name}\tblock A\n" for name in VISIUM]
    table = "".join(["section\tpatient\n", *rows])
    Path("data/visium/sections.tsv").write_text(table)
    DATASET = "data/visium"
here = begin(DATASET, BACKBONE, EPOCHS or 4, SMOKE)
config = replace(here.config, n_views=2)
if not has_gpu:
    config = replace(config, patch_px=112, tune_blocks=1)
size = f"{config.epochs}x{config.n_views}-{config.patch_px}px"
folder = f"quick-{here.root.name}-{config.backbone}-{size}-{__version__}"
OUT = Path("runs/quick_path") / file_name(folder)

# %% [markdown]
# ## Check
#
# A check reads every section as training would, and fits nothing. Its findings are sentences about
# what to look at: a scale that does not fit the spots, a mirrored image, shallow counts, few pairs.
# `seal-lite check --data FOLDER --out check.html` writes them with figures.

# %%
findings, checks = check_sections(here.root, config)
for finding in findings or ["no finding"]:
    print("-", finding)
facts = pd.DataFrame({check.section.name: check.facts for check in checks}).T
del checks  # it holds all patches
facts

# %% [markdown]
# ## Finetune and score, one unit held out at a time
#
# Patients are held out where there are at least three, sections otherwise. Each fold chooses its
# genes, finetunes and fits its probes without the held-out unit. It also finetunes on shuffled
# pairs and searches the frozen encoder for its best layer: a gain has to be one over both.

# %%
sections = load_sections(
    here.root, patch_um=config.patch_um, patch_px=config.patch_px
)
by, reason = choose_groups(sections)
groups = groups_of(sections, by)
leakage = check_leakage(sections, groups, allow=True)
truth = GroundTruth.find(here.root)
result = crossval(
    sections,
    config,
    data_name=here.root.name,
    out=OUT / "crossval",
    truth=truth,
    by=by,
    seeds=1,
    leakage=leakage,
    progress=False,
)
print(reason)
rows = [
    {
        "finetuned minus": row["minus"],
        "probe": row["probe"],
        "mean r, 95% interval": interval_text(row),
        "verdict": row["kind"],
    }
    for row in difference_rows(result)
]
pd.DataFrame(rows).set_index("finetuned minus")

# %%
#| alt: Four differences with their intervals, finetuned minus the frozen encoder's best layer and
#| minus shuffled pairs, each by two probes, with a grey dot for every held-out unit.
figures.differences(result, by)

# %% [markdown]
# ## The embedding before and after
#
# A UMAP of one held-out section, from the frozen encoder and from the encoder that was finetuned
# without this section. Colours are the tissue regions where they are known, and otherwise clusters
# of the measured expression. A UMAP illustrates; it is not a score.


# %% tags=["hide-input"]
def held_out_encoder(section):
    """The run of the fold that held a section out."""
    for path in sorted(OUT.glob("crossval/runs/*/tuned/provenance.json")):
        if section.name not in read_json(path, "sections")["sections"]:
            return SEAL.from_pretrained(path.parent)
    raise ValueError(f"no fold held out {section.name}")


def labels_of(section, model):
    """The regions of the phantom, or clusters of measured expression."""
    if truth is not None:
        return truth.regions(section)
    z = model.panel.transform(section.adata)[section.rows]
    return np.array(expression_domains(z))


# %%
frozen = encoder_for(config)
folds = []
for _, held_out in folds_of(sections, groups):
    for section in [s for group in held_out.values() for s in group]:
        model = held_out_encoder(section)
        x = {
            "frozen": embed_patches(frozen, section.patches),
            "seal": embed_patches(model.encoder, section.patches),
        }
        folds.append((section, model, x, labels_of(section, model)))
section, model, x, labels = folds[-1]
kind_of_label = "region" if truth is not None else "expression cluster"
names = {"frozen": "frozen", "seal": "finetuned"}

# %% tags=["hide-input"]
#| alt: Two UMAPs of the patches of one held-out section, from the frozen and from the finetuned
#| encoder, coloured by tissue region or by cluster of expression.
import anndata as ad
import scanpy as sc

spots = section.adata.obs_names[section.rows]
joint = ad.AnnData(obs=pd.DataFrame({kind_of_label: labels}, index=spots))
for name, embedding in x.items():
    joint.obsm["scaled"] = StandardScaler().fit_transform(embedding)
    n_neighbors = min(15, joint.n_obs - 1)
    sc.pp.neighbors(joint, n_neighbors, use_rep="scaled", random_state=0)
    sc.tl.umap(joint, random_state=0, key_added=f"X_umap_{name}")
shown = sorted(set(labels), key=lambda name: (len(name), name))
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.6))
    for ax, (name, title) in zip(axes, names.items(), strict=True):
        sc.pl.embedding(
            joint,
            f"X_umap_{name}",
            color=kind_of_label,
            palette=charts.label_colours(shown),
            size=80,
            title=title,
            legend_loc="right margin" if ax is axes[-1] else None,
            ax=ax,
            show=False,
        )
        ax.set(xlabel="UMAP 1", ylabel="UMAP 2")
plt.close(figure)
figure

# %% [markdown]
# ## Spatial domains
#
# Clusters of the embedding are a common next step. K-means on 20 principal components finds as many
# clusters as there are labels, and the adjusted Rand index (ARI) compares them: 1 is a perfect
# match, 0 is chance. The ARI of each held-out section is one unit of the interval.


# %%
def domains(embedding, n):
    """Cluster embeddings (patches, dim) into n domains."""
    scaled = StandardScaler().fit_transform(embedding)
    n_components = min(20, *scaled.shape)
    components = PCA(n_components, random_state=0).fit_transform(scaled)
    return KMeans(n, n_init=10, random_state=0).fit_predict(components)


ari = {"frozen": [], "seal": []}
for _, _, embeddings, known in folds:
    for name, embedding in embeddings.items():
        clusters = domains(embedding, len(np.unique(known)))
        ari[name].append(adjusted_rand_score(known, clusters))
gains = np.subtract(ari["seal"], ari["frozen"])
ari_gain = mean_and_interval(
    gains, test_to_train=leave_one_out_ratio(len(gains))
)
pd.DataFrame(
    {names[name]: values for name, values in ari.items()},
    pd.Index([fold[0].name for fold in folds], name="held-out section"),
).round(3)

# %% tags=["hide-input"]
#| alt: One held-out section four times: the tissue, the known labels of its spots, and the clusters
#| of the frozen and of the finetuned embedding, each spot a disc in the colour of its label.


@plots.styled
def domain_maps():
    """The tissue, its labels, and the clusters of both embeddings."""
    maps = {kind_of_label: [shown.index(label) for label in labels]}
    for name, embedding in x.items():
        maps[f"clusters, {names[name]}"] = domains(embedding, len(shown))
    figure, axes = plt.subplots(1, 4, figsize=(8.5, 2.6))
    plots.tissue(axes[0], section, title=section.name)
    for ax, (title, values) in zip(axes[1:], maps.items(), strict=True):
        colours = ListedColormap(list(charts.label_colours(shown).values()))
        limits = (-0.5, len(shown) - 0.5)
        plots.discs(
            ax, section, values, cmap=colours, limits=limits, title=title
        )
    return figure


domain_maps()

# %% [markdown]
# The labels have the colours of the UMAP above. Colours of clusters are arbitrary: only their
# shapes can be compared.
#
# ## Which part of a patch the prediction rests on
#
# An occlusion map masks one square of a patch after the other with the patch's mean colour. It
# shows by how much the predicted expression of one gene falls. The gene is the one that the first
# fold predicts best on its held-out section. The map shows it on the last fold's section, where it
# was not chosen, in the patch with its highest measured value.


# %%
def measured_and_predicted(fold, names):
    """Pearson residuals and the model's prediction of a held-out section."""
    section, model, embeddings, _ = fold
    columns = [model.panel.genes.index(name) for name in names]
    predicted = model.predict_genes(embeddings["seal"])[:, columns]
    return patch_targets(section, names)["pearson_residuals"], predicted


scored = set(result["folds"][0]["scores"][0]["per_gene"])
shared = sorted(scored & set(folds[0][1].panel.genes) & set(model.panel.genes))
r_of = pearson(*measured_and_predicted(folds[0], shared))
gene = shared[int(np.nanargmax(r_of))]
measured, predicted = measured_and_predicted(folds[-1], [gene])
gene_r = float(pearson(measured, predicted)[0])
patch = section.patches[int(measured.argmax())]
column = model.panel.genes.index(gene)

n_squares = 8
edges = np.linspace(0, len(patch), n_squares + 1).astype(int)
masked = []
for top, bottom in zip(edges[:-1], edges[1:], strict=True):
    for left, right in zip(edges[:-1], edges[1:], strict=True):
        image = patch.copy()
        image[top:bottom, left:right] = patch.mean((0, 1)).astype(np.uint8)
        masked.append(image)
images = np.stack([patch, *masked])
z = model.predict_genes(embed_patches(model.encoder, images))[:, column]
drop = (z[0] - z[1:]).reshape(n_squares, n_squares)
print(
    f"{gene} on {section.name}: r = {gene_r:.2f}; predicted z of this patch "
    f"{z[0]:.2f}; the largest drop is {drop.max():.2f}"
)

# %% tags=["hide-input"]
#| alt: The patch, and beside it a grid of squares coloured by how much the prediction of the gene
#| falls or rises when the square is masked.


@plots.styled
def occlusion_map():
    """The patch, and the drop of the prediction for each masked square."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.5, 3))
    extent = (0, config.patch_um, config.patch_um, 0)
    left.imshow(patch, extent=extent)
    left.set_title("the patch")
    reach = max(float(np.abs(drop).max()), 1e-6)
    shown = right.imshow(
        drop, extent=extent, cmap="PuOr_r", vmin=-reach, vmax=reach
    )
    right.set_title(f"drop of {gene} when masked")
    figure.colorbar(shown, ax=right, label="drop in predicted z")
    for ax in (left, right):
        ax.set(xticks=[], yticks=[])
        plots.scale_bar(ax)
    return figure


occlusion_map()

# %% [markdown]
# The map explains this prediction of this encoder. It is no evidence about biology, least of all
# where the gene's *r* is low.
#
# ## Use the encoder
#
# The final encoder trains on all sections. It is a plain module with its transform, and
# `add_embedding` writes `obsm["X_seal"]` for scanpy and squidpy.

# %%
genes = genes_to_score([s.adata for s in sections], truth)
finetune(sections, config, out=OUT / "encoder", include=genes, progress=False)

module, transform, precision = load_encoder(OUT / "encoder")
device = next(module.parameters()).device
with torch.inference_mode():
    embedding = module(transform(patch)[None].to(device, precision)).cpu()

final = SEAL.from_pretrained(OUT / "encoder")
adata = add_embedding(section, final.encoder)
adata.write_h5ad(OUT / f"{file_name(section.name)}.h5ad")
print("one patch:", tuple(embedding.shape))
print("obsm['X_seal']:", adata.obsm["X_seal"].shape)

# %% [markdown]
# `seal-lite embed --run RUN --slides FOLDER --out OUT` embeds whole slides as TRIDENT does, and
# `seal-lite share` puts the run on the Hugging Face hub with its model card
# ([your own encoder](17_your_own_encoder.ipynb)).
#
# ## What to choose
#
# Each row has its evidence from the [results files](../results.md). Differences are in mean *r* on
# Pearson residuals of real tissue, unless the row names another score. They have a 95% interval,
# and round brackets hold the units: four held-out sections (4), or six trainings that share these
# four sections (6).
#
# {% include "decision_guide.md" %}
#
# ## Result

# %% tags=["hide-input"]
to_frozen = difference_row(result, "frozen_best")
to_shuffled = difference_row(result, "shuffled")
n_pairs = sum(len(s.rows) for s in sections)
where = "the phantom" if truth is not None else here.root.name
result_box(
    f"On {where} ({n_pairs} pairs, {by} held out, {config.epochs} epochs), the "
    "difference in mean r to the frozen encoder's best layer is "
    f"{interval_text(to_frozen)}: {kind_of(to_frozen)}.",
    f"To shuffled pairs it is {interval_text(to_shuffled)}: "
    f"{kind_of(to_shuffled)}.",
    f"The ARI of the embedding's clusters and the {kind_of_label} labels changes "
    f"by {interval_text(ari_gain)}: {kind_of(ari_gain)}.",
    "Fewer than three units are a description without a verdict, and three "
    "show large differences only.",
)

# %% [markdown]
# The results files have more folds and the recipe's epochs.
#
# **Phantom, new patients.** {{ claim_sentences(load("phantom")) }}
#
# **Real tissue, new sections of one tumour.** {{ claim_sentences(load("her2st")) }}
#
# ## What to remember
#
# - Check the data before training: minutes here save a night on mirrored tissue.
# - A gain has to be one over the frozen encoder's best layer *and* over shuffled pairs.
# - The number of held-out units limits what a study can show, not the number of patches.
#
# ## Exercises

# %% [markdown]
# **1.** Suppose finetuning gains 0.02 in mean *r*, and units differ as in the results files. How
# many patients must be held out to see it, if each is left out in turn?

# %% tags=["hide-cell", "solution"]
# `smallest_gain` is the gain that shows in 8 of 10 studies of so many units.
for units in (3, 4, 6, 8, 12, 16):
    ratio = leave_one_out_ratio(units)
    print(f"{units} units: {smallest_gain(units, test_to_train=ratio):.3f}")

# %% [markdown]
# **2.** Does the occlusion map depend on the colour of the mask? Mask with white and compare.

# %% tags=["hide-cell", "solution"]
# A high correlation says that the map shows the patch rather than the mask.
white = images.copy()
changed = (images != patch).any(-1)
white[changed] = 255
z_white = model.predict_genes(embed_patches(model.encoder, white))[:, column]
drop_white = z_white[0] - z_white[1:]
mask_r = float(np.corrcoef(drop.ravel(), drop_white)[0, 1])
print(f"correlation of the two maps: {mask_r:.2f}")

# %% [markdown]
# ## Further reading
#
# - [Your own data](16_your_own_data.ipynb) for formats, scales and `sections.tsv`.
# - [Troubleshooting](../troubleshooting.md) and the [reporting checklist](../checklist.md).
# - {cite:p}`hemker2026seal` for the method at full scale.

# %% tags=["key-figures", "remove-cell"]
print(
    json.dumps(
        {
            "units": to_frozen["units"],
            "gain": to_frozen["mean"],
            "kind": kind_of(to_frozen),
            "ari": ari,
            "gene": [gene, gene_r],
            "drop": [float(drop.min()), float(drop.max())],
            "embedding": list(embedding.shape),
            "obsm": list(adata.obsm["X_seal"].shape),
            "mask_r": mask_r,
        }
    )
)
