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
# # Meet a section
#
# **What does one tissue section of spatial transcriptomics hold, and what must we check before we
# train a network on it?**
#
# A section holds an image and a table of counts, and the array of spots gives the image's scale.
# The depth of sequencing varies from spot to spot, and raw counts vary with it, so the book scores
# targets that discount depth.
#
# Ten minutes to read, under a minute to run. You need a little Python; the chapter explains every
# term from biology where it first appears.
#
# Spatial transcriptomics lays a slice of tissue, a few micrometres thin, on a glass slide with an
# array of *spots*. A laboratory stains the slice with haematoxylin, which colours nuclei blue, and
# eosin, which colours the rest pink. The photograph of it is the *H&E image* that a pathologist
# reads. Then the tissue is dissolved, and its messenger RNA binds to the spot below it. A
# sequencer counts how many molecules each spot caught of each gene. The result is an image and a
# table of counts of the same tissue {cite:p}`andersson2021her2st`.

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
# "auto": the phantom, or on a GPU real tumours; or any folder of sections
DATASET = "auto"
# Everything tiny, just to see that it runs
SMOKE = False
# Empty: the last one
SECTION = ""

# %% [markdown]
# The default data set is a *phantom*: simulated tissue, written to disk in the format of the real
# data. It needs no download, and unlike a patient's tissue it has a known ground truth. With
# `DATASET = "her2st"` the same cells fetch and show real breast cancer. On a machine with a GPU,
# that is the default.

# %% tags=["hide-input"]
import json

import numpy as np
import pandas as pd

from seal_lite import InputError, plots
from seal_lite.data.genes import depth
from seal_lite.data.readers.legacy_st import patient_of
from seal_lite.data.registration import locate_spots
from seal_lite.evaluation.scores import genes_to_score
from seal_lite.evaluation.targets import (
    pearson,
    pearson_residuals,
    section_targets,
)
from seal_lite.tutorial import begin, charts, result_box

here = begin(DATASET, smoke=SMOKE)
names = here.names
listed = [f"{name} (patient {patient_of(name)})" for name in names]
print("sections:", ", ".join(listed))

# %% [markdown]
# ## Image and spots
#
# The circles are drawn to scale. A {term}`spot` of this array is 100 µm wide, room for a few dozen
# cells, and the centres of neighbouring spots lie 200 µm apart. Most of the tissue lies between
# spots and is never measured.

# %%
#| alt: The stained section, purple and pink, and beside it the same with a circle for every spot,
#| on a square grid.
(section,) = here.load([SECTION or names[-1]])
adata = section.adata
plots.overview(section)

# %% [markdown]
# One `AnnData` object holds everything we know of the section. It is a table with annotated rows
# (spots) and columns (genes):

# %%
adata

# %% [markdown]
# ## How large is a pixel?
#
# Image files rarely state their scale, and a network needs it: a patch of 112 µm shows other
# structures than one of 200 µm. The array itself serves as a ruler. Its spots lie $p = 200$ µm
# apart. Let $(c_i, r_i)$ be spot $i$'s position on the array and $\mathbf{x}_i$ its position in
# the image. We fit the grid to the pixels by least squares,
#
# $$
# \min_{A, \mathbf{t}} \sum_i
# \left\| A \begin{pmatrix} c_i \\ r_i \end{pmatrix} + \mathbf{t} - \mathbf{x}_i \right\|^2,
# \qquad
# \text{µm per pixel} = \frac{p}{\sqrt{\det A}} .
# $$
#
# The reader raises an error where the two axes disagree or where spots lie off the grid.

# %%
um_per_px = adata.uns["um_per_px"]
print(f"{um_per_px:.4f} µm per pixel; 224 µm are {224 / um_per_px:.0f} pixels")

# %% [markdown]
# ## How deep was it sequenced?
#
# A spot's {term}`depth` is the sum of its counts over all genes. It varies from spot to spot, and
# not at random: where cells are packed, there is more RNA to catch.

# %%
#| alt: The section, and a map of its spots coloured by the logarithm of their depth.
total_counts = depth(adata)
n_empty = adata.uns.get("spots_without_counts", 0)
print(f"{adata.n_obs} spots with counts, {n_empty} without: left out")
print(f"{adata.n_vars} genes")
print(
    f"depth: median {np.median(total_counts):,.0f}, "
    f"from {total_counts.min():,.0f} to {total_counts.max():,.0f}"
)
plots.gene_maps(
    section,
    np.log10(total_counts[section.rows])[:, None],
    ["depth"],
    label="log10 counts",
    columns=1,
)

# %% [markdown]
# ## A few genes
#
# A common first look divides the counts by the spot's depth, scales them to $10^4$, and takes
# $\log(1 + x)$. *ERBB2* (also called HER2) and *EPCAM* are genes of tumour and gland cells.
# *COL1A1* is a gene of the cells that make the fibres of stroma, *CD3E* of T cells, *PECAM1* of
# blood vessels, *ADIPOQ* of fat. Compare the maps with the tissue.

# %%
#| alt: The section, and maps of six genes, each with its own colour scale.
wanted = ["ERBB2", "EPCAM", "COL1A1", "CD3E", "PECAM1", "ADIPOQ"]
shown = [gene for gene in wanted if gene in adata.var_names]
values = section_targets(adata, shown)["log1p_cp10k"][section.rows]
plots.gene_maps(section, values, shown, label="log(1 + counts per 10,000)")

# %% [markdown]
# ## The phantom's ground truth
#
# The phantom stores the value that every count would have without noise. Its genes belong to three
# declared classes:
#
# - **visible** genes follow the type of the cells, which any eye can see;
# - **subtle** genes follow the texture of chromatin or the arrangement of nuclei, which the image
#   shows only finely;
# - **invisible** genes follow a state that the image does *not show at all*. No method can predict
#   them from the image, so a score above chance on them reveals an error.
#
# Below is one gene of each class: the measurement, and the ground truth. Real data have no ground
# truth and show one gene as measured.

# %% tags=["hide-input"]
#| alt: The section, and maps of one gene of each class as measured. On the phantom a second row
#| shows the same genes without noise.
genes = genes_to_score([adata], here.truth)
if here.truth is None:
    classes = dict.fromkeys(genes, "measured")
else:
    classes = here.truth.classes
first_of_class = {classes[gene]: gene for gene in reversed(genes)}
one_each = list(first_of_class.values())[::-1]
chosen = [genes.index(gene) for gene in one_each]
measured = section_targets(adata, genes)["log1p_cp10k"][section.rows]
columns = measured[:, chosen]
titles = [f"{gene}: measured" for gene in one_each]
if here.truth is not None:
    expected = here.truth.expected(section, genes)
    columns = np.c_[columns, np.log1p(1e4 * expected[:, chosen])]
    titles += [f"{gene}: {classes[gene]}, truth" for gene in one_each]
plots.gene_maps(section, columns, titles, label="log(1 + counts per 10,000)")

# %% [markdown]
# ## Why depth misleads
#
# Depth follows the density of tissue, and density is the easiest property to see in an image. A
# model that has only learnt *dark means many cells* can therefore "predict" every target that
# depends on depth. We measure that dependence as the correlation of log depth with each gene, for
# three targets:
#
# - raw counts, $\log(1 + x)$, as benchmarks commonly use {cite:p}`jaume2024hest`;
# - counts per 10,000, $\log(1 + 10^4 x / n)$, with $n$ the spot's depth;
# - analytic Pearson residuals {cite:p}`lause2021pearson`. With $\mu = n \cdot$ (the gene's share
#   of the section's counts) and $\theta = 100$, they are
#
# $$
# r = \frac{x - \mu}{\sqrt{\mu + \mu^2 / \theta}} .
# $$

# %%
#| alt: Three rows of dots, one dot per gene: its correlation with log depth as Pearson residual, as
#| log of counts per ten thousand, and as log of raw counts. A bar marks each row's mean.
log_depth = np.log(total_counts[section.rows])[:, None]
log_depths = np.repeat(log_depth, len(genes), 1)
with_depth = {
    name: pearson(log_depths, values[section.rows])
    for name, values in section_targets(adata, genes).items()
}
charts.strips(
    {
        charts.LABELS[name]: {"one dot per gene": r}
        for name, r in with_depth.items()
    },
    label="correlation with log depth",
)

# %%
by_target = {charts.LABELS[name]: r for name, r in with_depth.items()}
table = pd.DataFrame(
    {
        "mean r": {name: r.mean() for name, r in by_target.items()},
        "mean |r|": {name: np.abs(r).mean() for name, r in by_target.items()},
    }
)
table.round(3)

# %% [markdown]
# Raw counts grow with depth by construction. The other two targets account for depth, and what
# remains has two sources: chance, and tissue, because a region rich in RNA is also a different
# *kind* of region. No normalisation can remove that second link. Division leaves the zeros of
# rare genes tied to depth (exercise 3), so the main target is Pearson residuals even where CP10k
# has the smaller mean.
#
# The book therefore takes three precautions. The main target is Pearson residuals, which measure
# how surprising a count is at its depth. The target normalised by depth is also scored as a
# partial correlation, given log depth. And log depth itself is scored as a predictor, beside every
# encoder. The [method page](../method.md) has the details.
#
# ## Result

# %% tags=["hide-input"]
largest = table["mean |r|"].idxmax()
smallest = table["mean |r|"].idxmin()
by_name = ", ".join(f"{name} {r:+.2f}" for name, r in table["mean r"].items())
result_box(
    f"On section {section.name} ({len(section.rows)} spots, {len(genes)} "
    f"genes), the mean correlation with log depth is: {by_name}.",
    f"By mean |r|, {largest} depend most on depth "
    f"({table['mean |r|'].max():.2f}) and {smallest} least "
    f"({table['mean |r|'].min():.2f}).",
    "A score on a target that depends on depth can be reached without any "
    "knowledge of expression.",
    "This is one section: a description without an interval.",
)

# %% [markdown]
# In the four sections of a real tumour on the [results page](../results.md), log depth alone
# predicts raw counts with *r* = {{ number(summary(load("her2st"))["log1p_raw"]["log_depth",
# "tuned_ridge"], ".2f") }} and Pearson residuals with *r* = {{
# number(summary(load("her2st"))["pearson_residuals"]["log_depth", "tuned_ridge"], ".2f") }}.
#
# ## What to remember
#
# - A section is an image and a table of counts, linked by the positions of the spots.
# - The scale in µm per pixel comes from the pitch of the array, never from a guess.
# - Depth is visible. A score on a target that depends on depth proves nothing by itself.
# - The phantom has a ground truth, so a claim can be checked against what the image shows.
#
# The [next chapter](02_pairs.ipynb) shows what a network sees of a section, and what it is trained
# to match.

# %% [markdown]
# ## Exercises
#
# **1.** What share of the tissue lies under a spot? Estimate it from the first figure, then derive
# it for this array. Do the same for Visium, whose spots of 55 µm lie 100 µm apart on a hexagonal
# grid.

# %% tags=["hide-cell", "solution"]
spot, pitch = adata.uns["spot_um"], adata.uns["pitch_um"]
# On a square grid each spot has a square of pitch x pitch to itself.
square = np.pi * (spot / 2) ** 2 / pitch**2
# On Visium's hexagonal grid it has a hexagon.
hexagon = np.pi * (55 / 2) ** 2 / (np.sqrt(3) / 2 * 100**2)
print(f"spots of {spot:g} µm on a square grid of {pitch:g} µm: {square:.0%}")
print(f"Visium: {hexagon:.0%}")
# Tissue between the spots has an image and no counts. An encoder can embed it and predict its
# expression, but nothing can check that prediction.

# %% [markdown]
# **2.** Damage the ruler. `locate_spots` compares the spots' positions on the array and in the
# image. For which of these faults will it raise an error: x and y swapped, the image mirrored, one
# axis stretched by a tenth, both stretched by a tenth, all spots shifted by 300 px?

# %% tags=["hide-cell", "solution"]
right = np.asarray(adata.obsm["spatial"])
faults = {
    "as measured": right,
    "swapped": right[:, ::-1],
    "mirrored": right * (-1, 1) + (right[:, 0].max(), 0),
    "one axis stretched": right * (1.1, 1),
    "both stretched": right * 1.1,
    "shifted": right + 300,
}
array = {"step_um": (pitch, pitch), "upright": True}
for name, positions in faults.items():
    wrong = adata.copy()
    wrong.obsm["spatial"] = positions
    try:
        layout = locate_spots(wrong, array, path="section", image=None)
        print(f"{name}: {layout.um_per_px:.4f} µm per pixel")
    except InputError as error:
        print(f"{name}: error, {str(error).partition(': ')[2]}")
# A shifted grid is still a grid, so no check of the coordinates can notice it. A common stretch
# looks like another scale. Only the image can reveal these faults. So look at a section first;
# `seal-lite check` also compares the stain under the spots with their depth.

# %% [markdown]
# **3.** Take a gene that carries no information: every spot has the same share of its transcripts,
# with Poisson noise. Which of the three targets will correlate with log depth if the gene is
# common, and which if it is rare?

# %% tags=["hide-cell", "solution"]
rng = np.random.default_rng(0)
n_fake = 300
log_depths = np.repeat(np.log(total_counts)[:, None], n_fake, 1)
rows = {}
for share in (1e-2, 1e-3, 1e-4):
    expected_counts = share * total_counts[:, None]
    fake = rng.poisson(expected_counts, (len(total_counts), n_fake))
    shares = np.full(n_fake, share)
    targets = {
        "pearson_residuals": pearson_residuals(fake, total_counts, shares),
        "log1p_cp10k": np.log1p(1e4 * fake / total_counts[:, None]),
        "log1p_raw": np.log1p(fake),
    }
    rows[f"{share * np.median(total_counts):.1f} counts a spot"] = {
        charts.LABELS[name]: pearson(log_depths, values).mean()
        for name, values in targets.items()
    }
# Raw counts always do. Division by depth helps where counts are many. A rare gene is 0 more often
# in a shallow spot than in a deep one, and division leaves a 0 at 0. The Pearson residual
# subtracts the expected count, so it depends on depth at no abundance.
pd.DataFrame(rows).T.round(2) + 0.0  # which leaves no minus before a 0

# %% [markdown]
# ## Further reading
#
# - {cite:p}`stahl2016st` introduced arrays of spots for whole tissue sections.
# - {cite:p}`moses2022museum` review the methods of spatial transcriptomics and their users.
# - {cite:p}`lause2021pearson` explain what counting noise does to a normalisation.

# %% tags=["key-figures", "remove-cell"]
print(
    json.dumps(
        {
            "um_per_px": um_per_px,
            "spots": adata.n_obs,
            "genes": adata.n_vars,
            "mean_r_with_log_depth": {
                name: float(r.mean()) for name, r in with_depth.items()
            },
        }
    )
)
