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
# # Meet a section
#
# **What does one tissue section of spatial transcriptomics hold, and what should we be wary of
# before we teach a network anything?**
#
# Ten minutes to read, under a minute to run. You need nothing but a little Python; every term from
# biology is explained where it first appears.
#
# A slice of tissue a few micrometres thin is laid on a glass slide that carries a grid of *spots*.
# It is stained with haematoxylin (nuclei turn blue) and eosin (the rest turns pink) and
# photographed: that is the *H&E image*, what a pathologist looks at. Then the tissue is dissolved,
# its messenger RNA sticks to the spot below it, and a sequencer counts, for every spot and every
# gene, how many molecules it caught. An image and a table of counts, about the same tissue
# {cite:p}`andersson2021her2st`.

# %% tags=["hide-cell"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("seal_lite") is None:  # in Colab, whose own torch is kept
    home = "seal_lite[offline] @ git+https://github.com/seal-lite/seal-lite"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", home], check=True)

# %% tags=["parameters"]
DATASET = "phantom"  # made here on first use; or the path of a her2st folder
SECTION = ""  # empty: the last one

# %% [markdown]
# The default is a *phantom*: tissue that a program grew, drew and measured, written to disk in
# exactly the form of the real data. It stands in for a download, and it has what no patient's
# tissue has: we know the truth. Point `DATASET` to a folder that `seal-lite fetch her2st` filled,
# and the same cells show real breast cancer.

# %%
import json
from pathlib import Path

import numpy as np
import pandas as pd

import seal_charts as charts
from seal_lite import plots, targets
from seal_lite.evaluate import gene_classes, genes_to_score, read_truth
from seal_lite.formats import patient_of
from seal_lite.sections import list_sections, load_sections
from tissue_phantom import phantom

ROOT = Path(DATASET)
if DATASET == "phantom":
    ROOT = phantom("data/phantom", patients=3, sections_per_patient=1, spots=160, seed=0)

names = list_sections(ROOT)
print("sections:", ", ".join(f"{n} (patient {patient_of(n)})" for n in names))

# %% [markdown]
# ## Image and spots
#
# The circles are drawn to scale: a spot is 100 µm wide, room for a few dozen cells, and the next
# one begins 100 µm further on. Half of the tissue is never measured.

# %%
(section,) = load_sections(ROOT, [SECTION or names[-1]])
adata = section.adata
plots.overview(section)

# %% [markdown]
# Everything we know of the section sits in one `AnnData` object, a table with annotated rows
# (spots) and columns (genes):

# %%
adata

# %% [markdown]
# ## How large is a pixel?
#
# Files rarely say, and the answer matters: a network that sees 112 µm in one data set and 200 µm in
# the next compares apples with orchards. But the array itself is a ruler. Its spots lie $p = 200$
# µm apart, so if $(c_i, r_i)$ is a spot's place on the array and $\mathbf{x}_i$ its place in the
# image, we fit the grid to the pixels by least squares,
#
# $$
# \min_{A, \mathbf{t}} \sum_i
# \left\| A \begin{pmatrix} c_i \\ r_i \end{pmatrix} + \mathbf{t} - \mathbf{x}_i \right\|^2,
# \qquad
# \text{µm per pixel} = \frac{p}{\sqrt{\det A}},
# $$
#
# and refuse a section whose two axes disagree or whose spots lie off the grid.

# %%
um_per_px = adata.uns["um_per_px"]
print(f"{um_per_px:.4f} µm per pixel; 224 µm are {224 / um_per_px:.0f} pixels")

# %% [markdown]
# ## How deep was it sequenced?
#
# The sum over all genes of a spot is its *depth*. It varies a lot, and not at random: where cells
# are packed there is more RNA to catch.

# %%
depth = targets.depth(adata)
print(
    f"{adata.n_obs} spots, {adata.n_vars} genes; depth: median {np.median(depth):,.0f}, "
    f"from {depth.min():,.0f} to {depth.max():,.0f}"
)
plots.gene_maps(
    section, np.log10(depth[section.rows])[:, None], ["depth"], label="log10 counts", columns=1
)

# %% [markdown]
# ## A few genes
#
# Divide the counts by the spot's depth, scale to $10^4$, and take $\log(1 + x)$: a common first
# look. *ERBB2* (also called HER2) and *EPCAM* belong to tumour and gland cells, *COL1A1* to the
# fibre-making cells of stroma, *CD3E* to T cells, *PECAM1* to blood vessels, *ADIPOQ* to fat. Hold
# the maps against the tissue.

# %%
wanted = ["ERBB2", "EPCAM", "COL1A1", "CD3E", "PECAM1", "ADIPOQ"]
shown = [g for g in wanted if g in adata.var_names]
values = targets.section_targets(adata, shown)["log1p_cp10k"][section.rows]
plots.gene_maps(section, values, shown, label="log(1 + counts per 10,000)")

# %% [markdown]
# ## The truth, for once
#
# The phantom stores what every count would be without noise. Its genes come in three declared
# classes:
#
# - **visible**: they follow the type of the cells, which any eye can see;
# - **subtle**: they follow the texture of chromatin or the arrangement of nuclei, which is drawn,
#   but finely;
# - **invisible**: they follow a state that is *not drawn at all*. Nobody can predict them from the
#   image, and a method that seems to is fooling us.
#
# Below, one gene of each class: what was measured, and what was there.

# %%
genes = genes_to_score(ROOT, [section])
classes = gene_classes(ROOT) or dict.fromkeys(genes, "measured")
truth = read_truth(ROOT, section, genes)
one_each = list({classes[g]: g for g in reversed(genes)}.values())[::-1]
at = [genes.index(g) for g in one_each]
measured = targets.section_targets(adata, genes)["log1p_cp10k"][section.rows]
columns, titles = measured[:, at], [f"{g}: measured" for g in one_each]
if truth is not None:
    expected, region = truth
    columns = np.c_[columns, np.log1p(1e4 * expected[:, at])]
    titles += [f"{g}: {classes[g]}, truth" for g in one_each]
plots.gene_maps(section, columns, titles, label="log(1 + counts per 10,000)")

# %% [markdown]
# ## Why depth is a trap
#
# Depth follows tissue density, and density is the easiest thing to see in an image. So any target
# that leaks depth can be "predicted" by a model that has understood nothing but *dark means many
# cells*. How much does each target leak? Take the correlation of log depth with each gene:
#
# - raw counts, $\log(1 + x)$, as benchmarks commonly use {cite:p}`jaume2024hest`;
# - counts per 10,000, $\log(1 + 10^4 x / n)$, with $n$ the spot's depth;
# - analytic Pearson residuals {cite:p}`lause2021pearson`: with $\mu = n \cdot$ (the gene's share of
#   the section's counts) and $\theta = 100$,
#
# $$
# r = \frac{x - \mu}{\sqrt{\mu + \mu^2 / \theta}} .
# $$

# %%
log_depth = np.log(depth[section.rows])[:, None]
leak = {
    name: targets.pearson(np.repeat(log_depth, len(genes), 1), y[section.rows])
    for name, y in targets.section_targets(adata, genes).items()
}
charts.strips(
    {charts.LABELS[name]: {"one dot per gene": r} for name, r in leak.items()},
    label="correlation with log depth",
)

# %%
table = pd.DataFrame({charts.LABELS[n]: r for n, r in leak.items()}, index=genes)
table.agg(["mean", lambda r: r.abs().mean()]).set_axis(["mean r", "mean |r|"]).round(3)

# %% [markdown]
# Raw counts mostly tell how deep a spot was sequenced. The other two targets divide by depth, and
# what is left scatters around zero: partly chance, partly tissue, because a region rich in RNA is
# also a *kind* of region. No normalisation can make that link vanish, and the [recorded
# results](../results.md) say how strong it is in a real tumour. Hence three precautions. The main
# target are Pearson residuals, which measure how surprising a count is at its depth. The
# depth-normalised target is also scored as a partial correlation, given log depth. And log depth by
# itself is a control that stands beside every score. The [method page](../method.md) has the
# details.
#
# ## What to remember
#
# - A section is an image and a table of counts, tied together by the places of its spots.
# - Microns per pixel come from the array's pitch, never from a guess.
# - Depth is visible. A score on a target that leaks depth proves nothing by itself.
# - The phantom knows the truth, so a claim can be checked against what could possibly be seen.

# %% tags=["key-figures", "remove-cell"]
print(
    json.dumps(
        {
            "um_per_px": um_per_px,
            "spots": adata.n_obs,
            "genes": adata.n_vars,
            "mean_r_with_log_depth": {name: float(r.mean()) for name, r in leak.items()},
        }
    )
)
