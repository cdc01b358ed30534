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
# # What differs from the paper, and why
#
# **You have read the paper and the released code. Where does this book do something else, and what
# would go wrong if it did not?**
#
# Ten minutes to read, under a minute to run.
#
# SEAL {cite:p}`hemker2026seal` is a method, a set of weights, and code that uses them; the training
# loop was not released. What is not stated had to be decided, and some of what is stated we do
# otherwise on purpose. The [whole list](what-differs) is a table on the method's page. This chapter
# shows the differences that a reader could not guess from a table: each is a fault that is easy to
# make, drawn.

# %% tags=["hide-cell"]
# On Colab: install SEAL-lite, and keep the torch that Colab brings.
import importlib.util
import subprocess
import sys
from importlib.metadata import version

PACKAGE = "seal_lite"
HOME = "git+https://github.com/seal-lite/seal-lite"
if importlib.util.find_spec("seal_lite") is None:
    kept = [f"{name}=={version(name)}" for name in ("torch", "torchvision")]
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, f"{PACKAGE} @ {HOME}", *kept], check=True)

# %% tags=["parameters"]
DATASET = (
    "auto"  # the phantom, or on a GPU real tumours; or any folder of sections
)
SMOKE = False  # everything tiny, just to see that it runs
SEED = 0

# %%
import json

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import nn

from seal_lite import plots, preset
from seal_lite.data.genes import GenePanel, select_genes
from seal_lite.data.registration import disc_mean, neighbour_mean
from seal_lite.evaluation.targets import pearson
from seal_lite.model.gene_vae import GeneVAE
from seal_lite.tutorial import begin

here = begin(DATASET, smoke=SMOKE, seed=SEED)
config, train, test = here.config, here.train, here.test

# %% [markdown]
# ## Four neighbours of six
#
# Smoothing takes the mean of a spot's neighbours, found within $\sqrt 2$ in array coordinates. On a
# square array these are all eight. Visium's array is hexagonal and counts every *second* column, so
# the neighbours to the left and right are two columns away, and out of reach. The search also
# returns the spot itself. So half of the mean makes 0.6 of the spot's own counts and 0.1 of each of
# four.

# %%
#| alt: A hexagonal array around one spot. The neighbours within the square root of two in array
#| coordinates are four, above and below; the two at the left and right are missed.
spots = np.array(
    [(c, r) for r in range(-3, 4) for c in range(-6, 7) if (c + r) % 2 == 0]
)
obs = pd.DataFrame(
    {"array_col": spots[:, 0], "array_row": spots[:, 1]},
    index=[f"{c}x{r}" for c, r in spots],
)
hexagonal = ad.AnnData(
    sp.csr_matrix((len(spots), 1), dtype=np.float32), obs=obs
)
hexagonal.uns["grid"] = "hex"
centre = int(np.flatnonzero((spots == 0).all(1))[0])
ours = neighbour_mean(hexagonal)[centre].indices
disc = disc_mean(hexagonal)[centre].indices
within = disc[disc != centre]
um = spots * (50, 50 * 3**0.5)  # 100 um from spot to spot
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.5))
    for ax, found, said in (
        (axes[0], within, "within sqrt(2)"),
        (axes[1], ours, "ours"),
    ):
        ax.plot(*um.T, "o", ms=13, color="#dddddd")
        ax.plot(*um[found].T, "o", ms=13, color=plots.COLOURS[0])
        ax.plot(*um[centre], "o", ms=13, color=plots.COLOURS[1])
        ax.set(
            aspect="equal",
            title=f"{said}: {len(found)} neighbours",
            xticks=[],
            yticks=[],
        )
        ax.spines[:].set_visible(False)
        plots.scale_bar(ax)
plt.close(figure)
figure

# %% [markdown]
# ## Genes in the order in which they come
#
# A model whose 2,000 inputs are "the highly variable genes" needs to know which input is which. If
# every sample is given its own list in its own order, as in some code of this field, the vectors
# have the right length and the wrong meaning. Nothing fails. Here are two patients' lists, place by
# place:

# %%
lists = (
    [select_genes([s.adata], 50) for s in train[:2]]
    if len(train) > 1
    else [select_genes([s.adata], 50) for s in (train[0], test)]
)
same_place = sum(a == b for a, b in zip(*lists, strict=True))
shared = len(set(lists[0]) & set(lists[1]))
print(f"of 50 genes {shared} are in both lists, {same_place} at the same place")
pd.DataFrame({f"list {i + 1}": names for i, names in enumerate(lists)}).head(8)

# %% [markdown]
# The `GenePanel` is fitted once, on training sections, stored with the model, and matched by name.
# Fitting it on the test slides as well would be a leak of its own.
#
# ## Which genes vary?
#
# `seurat`'s dispersion {cite:p}`satija2015seurat` was made for cells with thousands of counts. In
# shallow spots a lucky count is a large deviation from a small mean, so it leans to genes that are
# seldom seen. Pearson residuals {cite:p}`lause2021pearson` know how much luck to expect. Where all
# genes are well counted, as on the phantom, the two nearly agree.

# %%
#| alt: Two histograms of the mean count per spot of the selected genes, on a logarithmic axis:
#| those that Pearson residuals choose and those that the seurat flavour chooses.
n_genes = min(100, train[0].adata.n_vars // 3)
chosen = {
    flavor: select_genes([s.adata for s in train], n_genes, flavor=flavor)
    for flavor in ("pearson_residuals", "seurat")
}
mean = {}
for flavor, names in chosen.items():
    counts = [
        s.adata[:, [g for g in names if g in s.adata.var_names]].layers[
            "counts"
        ]
        for s in train
    ]
    mean[flavor] = np.concatenate(
        [np.asarray(c.mean(0)).ravel() for c in counts]
    )
bins = np.geomspace(
    max(1e-3, min(m[m > 0].min() for m in mean.values())),
    max(m.max() for m in mean.values()),
    24,
)
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(7, 3))
    for (flavor, m), colour in zip(mean.items(), plots.COLOURS, strict=False):
        ax.hist(
            m,
            bins=bins,
            histtype="step",
            lw=2,
            color=colour,
            label=flavor.replace("_", " "),
        )
    ax.set(xscale="log", xlabel="mean counts per spot", ylabel="genes")
    ax.legend()
plt.close(figure)
figure

# %% [markdown]
# ## Where to standardise
#
# The released decoders predict log counts; prediction and target are standardised inside the loss.
# Log counts are never negative, and the image decoder ends in a ReLU (the gene decoder does not).
# We hand z-scores over, so that every gene weighs the same from the start, and half of them are
# negative: ours end linearly. The two choices belong together. With z-scores *and* a ReLU,
# everything below the mean is predicted as the mean, whatever the network has learnt:

# %%
#| alt: Predicted against measured z-scores for a linear end and for an end in a ReLU, which is flat
#| at zero for all values below the mean.
panel = GenePanel.from_config(train, config, include=here.genes)
z = torch.from_numpy(panel.transform(test.adata)).flatten()
perfect = {"linear end": z, "ReLU at the end": nn.functional.relu(z)}
below = float((z < 0).float().mean())
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.2), sharey=True)
    for ax, (said, p) in zip(axes, perfect.items(), strict=True):
        mse = float((p - z).square().mean())
        ax.plot(
            z[:3000],
            p[:3000],
            "o",
            ms=2,
            alpha=0.3,
            mew=0,
            color=plots.COLOURS[0],
        )
        ax.set(
            xlabel="measured z",
            title=f"{said}: the best it can do, mse {mse:.2f}",
        )
    axes[0].set_ylabel("predicted z")
plt.close(figure)
figure

# %% [markdown]
# ## Sampled at inference
#
# A variational encoder draws its embedding at random, which training needs and nothing else. If it
# still draws when it is asked (an easy slip, and one that was made), the same profile has another
# embedding every time, and a search another answer. Outside training ours is the mean.

# %%
torch.manual_seed(SEED)
vae = GeneVAE(len(panel.genes), config.project, hidden=config.hidden)
x = torch.from_numpy(panel.transform(test.adata))
with torch.inference_mode():
    drawn_, again = (vae.train()(x)[0] for _ in range(2))
    mean_1, mean_2 = (vae.eval()(x)[0] for _ in range(2))
cosine = {
    "sampled": nn.functional.cosine_similarity(drawn_, again).mean().item(),
    "the mean": nn.functional.cosine_similarity(mean_1, mean_2).mean().item(),
}
print(
    {k: round(v, 4) for k, v in cosine.items()},
    "cosine of a profile with itself",
)

# %% [markdown]
# (The encoder here is untrained. A trained one is less noisy; it is not deterministic.)
#
# ## The preset
#
# `--preset paper` selects every released setting at once, and computes by the release's formulas:
# `smooth_over` and `as_released` are the neighbours, the log counts, the ReLU and the flows from
# above. It reproduces no *scores*: the encoder is another, and so are the data. Where the two
# differ:

# %%
default, paper = preset("default"), preset("paper")
differ = {
    k: (getattr(default, k), getattr(paper, k))
    for k in vars(default)
    if getattr(default, k) != getattr(paper, k)
}
pd.DataFrame(differ, index=["default", "paper"]).T.astype(str)

# %% [markdown]
# What each of the default's values is worth was [measured](../trials.md), alone and on real tissue.
# Most of them are worth nothing that could be told from luck, and are kept because they are simple.
#
# ## What to remember
#
# - The training loop, the splits and the evaluation are ours; architecture and losses are SEAL's.
# - A vector of the right length is not yet the right vector. Match by name.
# - The `paper` preset reproduces the release's settings and formulas, not its scores.
# - Loading is strict: a tensor too many or too few is an error, never a warning.
#
# ## Exercises
#
# **1.** How much does it matter that two of six neighbours are missed? Smooth a random field on a
# hexagonal array, by half, with four and with six neighbours and compare the variance of the noise
# that is left. What does the spot's own place in the mean change?

# %% tags=["hide-cell", "solution"]
# With half of the value from k neighbours the variance is 1/4 + 1/(4 k): little is lost in the
# middle. What is lost is symmetry: the map is smoothed up and down and not sideways. With the spot
# in the mean it is 0.6^2 + 4 x 0.1^2 = 0.4: that costs more than the two neighbours.
rng = np.random.default_rng(SEED)
noise = rng.standard_normal((20000, 7))
left = {
    k: float((0.5 * noise[:, 0] + 0.5 * noise[:, 1 : k + 1].mean(1)).var())
    for k in (4, 6)
}
print(
    {k: round(v, 3) for k, v in left.items()},
    "formula:",
    {k: 0.25 + 0.25 / k for k in (4, 6)},
)

# %% [markdown]
# **2.** Give one section's genes in another order to a model that does not match names: how well do
# the two profiles of a spot agree?

# %% tags=["hide-cell", "solution"]
# By place the profile is noise; by name nothing has changed.
values = panel.transform(test.adata)
order = rng.permutation(values.shape[1])
by_place = float(pearson(values.T, values[:, order].T).mean())
mixed = test.adata[:, rng.permutation(test.adata.n_vars)].copy()
by_name = float(pearson(values.T, panel.transform(mixed).T).mean())
print(f"by place r = {by_place:.2f}, by name r = {by_name:.2f}")

# %% [markdown]
# **3.** What does a ReLU at the end cost in *correlation*, if the rest is perfect?

# %% tags=["hide-cell", "solution"]
# Not much: the order of the upper half survives. That is why the fault can hide behind an r.
r_relu = pearson(
    perfect["ReLU at the end"].numpy()[:, None], z.numpy()[:, None]
)[0]
print(
    f"{below:.0%} of the z-scores are negative; r of the perfect ReLU prediction: {r_relu:.2f}"
)

# %% [markdown]
# ## Further reading
#
# - {cite:p}`hemker2026seal`: the paper.
# - {cite:p}`xie2023bleep` and {cite:p}`chen2025loki`: its relatives, which share some of the traps.
# - {cite:p}`moses2022museum`: what spatial assays measure, and how differently.

# %% tags=["key-figures", "remove-cell"]
print(
    json.dumps(
        {
            "neighbours": [len(within), len(ours)],
            "same_place": [same_place, shared],
            "mean_counts": {k: float(np.median(v)) for k, v in mean.items()},
            "below": below,
            "cosine": cosine,
            "left": left,
            "by_place": by_place,
            "by_name": by_name,
            "differ": len(differ),
        }
    )
)
