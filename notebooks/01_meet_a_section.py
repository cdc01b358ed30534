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
SECTION = ""  # empty: the last one

# %% [markdown]
# The default is a *phantom*: tissue that a program grew, drew and measured, written to disk in
# exactly the form of the real data. It stands in for a download, and it has what no patient's
# tissue has: we know the truth. Say `DATASET = "her2st"`, and the same cells fetch and show real
# breast cancer; on a machine with a GPU they do so by themselves.

# %%
import json

import numpy as np
import pandas as pd

from seal_lite import InputError, plots
from seal_lite.data import registration
from seal_lite.data.genes import depth
from seal_lite.data.readers.legacy_st import patient_of
from seal_lite.evaluation.scores import genes_to_score
from seal_lite.evaluation.targets import (
    pearson,
    pearson_residuals,
    section_targets,
)
from seal_lite.tutorial import begin, charts

ROOT = (here := begin(DATASET, smoke=SMOKE)).root
names = here.names
print("sections:", ", ".join(f"{n} (patient {patient_of(n)})" for n in names))

# %% [markdown]
# ## Image and spots
#
# The circles are drawn to scale: a {term}`spot` is 100 µm wide, room for a few dozen cells, and the
# next one begins 100 µm further on. Most of the tissue is never measured.

# %%
#| alt: The stained section, purple and pink, and beside it the same with a circle for every spot,
#| on a square grid.
(section,) = here.load([SECTION or names[-1]])
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
# The sum over all genes of a spot is its {term}`depth`. It varies a lot, and not at random: where
# cells are packed there is more RNA to catch.

# %%
#| alt: The section, and a map of its spots coloured by the logarithm of their depth.
total_counts = depth(adata)
print(
    f"{adata.n_obs} spots, {adata.n_vars} genes; depth: median {np.median(total_counts):,.0f}, "
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
# Divide the counts by the spot's depth, scale to $10^4$, and take $\log(1 + x)$: a common first
# look. *ERBB2* (also called HER2) and *EPCAM* belong to tumour and gland cells, *COL1A1* to the
# fibre-making cells of stroma, *CD3E* to T cells, *PECAM1* to blood vessels, *ADIPOQ* to fat. Hold
# the maps against the tissue.

# %%
#| alt: The section, and maps of six genes, each with its own colour scale.
wanted = ["ERBB2", "EPCAM", "COL1A1", "CD3E", "PECAM1", "ADIPOQ"]
shown = [g for g in wanted if g in adata.var_names]
values = section_targets(adata, shown)["log1p_cp10k"][section.rows]
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
#| alt: The section, and maps of one gene of each class as measured. On the phantom a second row
#| shows the same genes without noise.
genes = genes_to_score([adata], here.truth)
if here.truth is None:
    classes = dict.fromkeys(genes, "measured")
else:
    classes = here.truth.classes
one_each = list({classes[g]: g for g in reversed(genes)}.values())[::-1]
at = [genes.index(g) for g in one_each]
measured = section_targets(adata, genes)["log1p_cp10k"][section.rows]
columns, titles = measured[:, at], [f"{g}: measured" for g in one_each]
if here.truth is not None:
    expected = here.truth.expected(section, genes)
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
#| alt: Three rows of dots, one dot per gene: its correlation with log depth as Pearson residual, as
#| log of counts per ten thousand, and as log of raw counts. A bar marks each row's mean.
log_depth = np.log(total_counts[section.rows])[:, None]
leak = {
    name: pearson(np.repeat(log_depth, len(genes), 1), y[section.rows])
    for name, y in section_targets(adata, genes).items()
}
charts.strips(
    {charts.LABELS[name]: {"one dot per gene": r} for name, r in leak.items()},
    label="correlation with log depth",
)

# %%
table = pd.DataFrame(
    {charts.LABELS[n]: r for n, r in leak.items()}, index=genes
)
table.agg(["mean", lambda r: r.abs().mean()]).set_axis(
    ["mean r", "mean |r|"]
).round(3)

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
#
# [Next](02_pairs.ipynb): what a network is shown of all this, and what it is asked to match.

# %% [markdown]
# ## Exercises
#
# **1.** What share of the tissue lies under a spot? Guess from the first figure, then derive it for
# this array and for Visium, whose spots of 55 µm lie 100 µm apart on a hexagonal grid.

# %% tags=["hide-cell", "solution"]
spot, pitch = adata.uns["spot_um"], adata.uns["pitch_um"]
square = (
    np.pi * (spot / 2) ** 2 / pitch**2
)  # each spot has a square of pitch x pitch to itself
hexagon = (
    np.pi * (55 / 2) ** 2 / (np.sqrt(3) / 2 * 100**2)
)  # and a hexagon's area on Visium
# Neither array measures most of the tissue. What lies between the spots has an image and no counts:
# it can be embedded and predicted, but a prediction there cannot be checked.
print(
    f"spots of {spot:g} µm on a square grid of {pitch:g} µm: {square:.0%}; Visium: {hexagon:.0%}"
)

# %% [markdown]
# **2.** Break the ruler. `um_per_px` compares where the spots lie on the array and in the image.
# Which of these faults will it refuse: x and y swapped, the image mirrored, one axis stretched by a
# tenth, both stretched by a tenth, all spots shifted by 300 px?

# %% tags=["hide-cell", "solution"]
right = np.asarray(adata.obsm["spatial"])
faults = {
    "as it is": right,
    "swapped": right[:, ::-1],
    "mirrored": right * (-1, 1) + (right[:, 0].max(), 0),
    "one axis stretched": right * (1.1, 1),
    "both stretched": right * 1.1,
    "shifted": right + 300,
}
for name, places in faults.items():
    wrong = adata.copy()
    wrong.obsm["spatial"] = places
    try:
        print(
            f"{name}: {registration.um_per_px(wrong, step_um=(pitch, pitch)):.4f} µm per pixel"
        )
    except InputError as error:
        print(f"{name}: refused ({str(error).partition(': ')[2]})")
# A shift leaves the grid a grid, so nothing in the coordinates can tell; a common stretch is taken
# for another scale. Only the image knows better, which is why one looks at a section first, and why
# `seal-lite check` compares the stain under the spots with their depth.

# %% [markdown]
# **3.** Take a gene that tells nothing: the same share of the transcripts in every spot, with
# Poisson noise and no tissue. Which of the three targets will correlate with log depth, when the
# gene is common, and when it is rare?

# %% tags=["hide-cell", "solution"]
rng = np.random.default_rng(0)
rows = {}
for share in (1e-2, 1e-3, 1e-4):
    fake = rng.poisson(share * total_counts[:, None], (len(total_counts), 300))
    made = {
        "pearson_residuals": pearson_residuals(
            fake, total_counts, np.full(300, share)
        ),
        "log1p_cp10k": np.log1p(1e4 * fake / total_counts[:, None]),
        "log1p_raw": np.log1p(fake),
    }
    ln = np.repeat(np.log(total_counts)[:, None], 300, 1)
    rows[f"{share * np.median(total_counts):.1f} counts a spot"] = {
        charts.LABELS[k]: pearson(ln, v).mean() for k, v in made.items()
    }
# Raw counts always do. Dividing by depth helps where counts are many; a rare gene is more often 0
# in a shallow spot than in a deep one, and no division turns a 0 into anything else. The residual
# knows how many counts to expect and is silent on both.
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# ## Further reading
#
# - {cite:p}`stahl2016st`, the paper that laid the first tissue on such an array.
# - {cite:p}`moses2022museum` sort the many ways of measuring expression in place, and who uses
#   them.
# - {cite:p}`lause2021pearson` on what counting noise does to a normalisation.

# %% tags=["key-figures", "remove-cell"]
print(
    json.dumps(
        {
            "um_per_px": um_per_px,
            "spots": adata.n_obs,
            "genes": adata.n_vars,
            "mean_r_with_log_depth": {
                name: float(r.mean()) for name, r in leak.items()
            },
        }
    )
)
