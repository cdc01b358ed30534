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
# # The gene panel and its scale
#
# **Which genes should a model know, and what does "much of a gene" mean in a patient it has never
# seen?**
#
# Fifteen minutes to read, under a minute to run.
#
# Two sections never list the same genes in the same order. Some genes are missing from one of them,
# some never vary, and a count of three means something else where sequencing went deeper. Before a
# network can be fed, somebody must fix a vocabulary and a scale. That somebody is the `GenePanel`:
# fitted on *training sections only*, stored with the model, and applied to any other section by
# *name*.

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
TEST = (
    ""  # the section held out, with all of its patient's; empty: the last one
)

# %%
import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from seal_lite import InputError, plots
from seal_lite.data.genes import GenePanel, columns, depth, smooth
from seal_lite.data.variable_genes import THETA, pearson_residuals, select_genes
from seal_lite.evaluation.targets import pearson
from seal_lite.tutorial import begin

here = begin(DATASET, smoke=SMOKE, test=TEST)
config, train, test, scored = here.config, here.train, here.test, here.genes
sections = [*train, test]
print(
    "training sections:",
    ", ".join(s.name for s in train),
    "| held out:",
    test.name,
)

# %% [markdown]
# ## One gene, two patients
#
# Below is the gene whose mean differs most from section to section, in a patient of the training
# set (top) and in the patient who is held out (bottom). Each column has one colour scale for both.
# In the first two, one patient seems to have much of the gene everywhere and the other little. In
# the last, which is what the model is fed, each patient's own pattern is left.


# %%
def between(parts):
    """Share of each gene's variance that lies between the sections, (g,)."""
    mean, n = np.concatenate(parts).mean(0), sum(map(len, parts))
    apart = sum(len(p) * (p.mean(0) - mean) ** 2 for p in parts) / n
    return apart / np.maximum(np.concatenate(parts).var(0), 1e-12)


panel = GenePanel.from_config(train, config, include=scored)
logs = [panel.expression(s.adata)[0] for s in sections]
zs = [panel.transform(s.adata) for s in sections]
at = [panel.genes.index(g) for g in scored]
most = at[int(between([y[:, at] for y in logs]).argmax())]
gene = panel.genes[most]
raw = [
    columns(s.adata.layers["counts"], s.adata.var_names, [gene])[0][:, 0]
    for s in sections
]
far = int(
    np.abs(
        [y[:, most].mean() - logs[-1][:, most].mean() for y in logs]
    ).argmax()
)

# %%
#| alt: Two rows, one per patient, of four pictures each: the stained tissue, and maps of one gene
#| as counts, as log of counts per ten thousand, and as z-scores, with one colour scale per column.
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(2, 4, figsize=(8.5, 4.9))
    values = {
        "counts": raw,
        "log(1 + CP10k)": [y[:, most] for y in logs],
        "z": [z[:, most] for z in zs],
    }
    for row, i in zip(axes, (far, len(train)), strict=True):
        plots.tissue(row[0], sections[i], title=sections[i].name)
    for column, (name, v) in zip(axes[:, 1:].T, values.items(), strict=True):
        low, high = np.percentile(np.concatenate([v[far], v[-1]]), [2, 98])
        look = (
            {"limits": (low, high)}
            if name != "z"
            else {"limits": (-2, 2), "cmap": "PuOr_r"}
        )
        for ax, i in zip(column, (far, len(train)), strict=True):
            shown = plots.discs(ax, sections[i], v[i][sections[i].rows], **look)
        column[0].set_title(f"{gene}, {name}")
        plots.colour_bar(figure, shown, column, location="bottom", aspect=15)
plt.close(figure)
figure

# %% [markdown]
# The rest of this chapter takes these two decisions apart: which genes, and on which scale.

# %% [markdown]
# ## Which genes? Variance that counting does not explain
#
# A gene that is the same everywhere tells nothing about where we are, so the panel takes the genes
# that vary most. But counts always vary, and the more the larger they are. If a gene's share of the
# transcripts were the same in every {term}`spot`, its counts would be Poisson: their variance would
# equal their mean $\mu$. Beyond that there is a spread between replicates that is no tissue either,
# which a negative binomial describes:
#
# $$
# \operatorname{Var}(x) = \mu + \frac{\mu^2}{\theta}, \qquad \theta = 100 .
# $$
#
# A {term}`Pearson residual` is what a count has beyond its mean, in units of the root of this
# variance. So a gene that counting explains has residuals of variance 1, whatever its mean, and the
# panel takes those with the largest {cite:p}`lause2021pearson`. Released SEAL takes another rule,
# scanpy's `seurat` {cite:p}`satija2015seurat,wolf2018scanpy`: the variance over the mean of
# depth-normalised counts, compared among genes of a like mean. Both are below, each with as many
# genes.

# %%
#| alt: Two scatter plots of all genes against their mean count, both axes logarithmic. Left, the
#| variance of the counts, with lines for what counting alone gives; right, the variance of the
#| Pearson residuals, with a line at 1. Colours say which rule chose a gene.
adatas = [s.adata for s in train]
n = config.n_genes
choice = {
    f: select_genes(adatas, n, flavor=f)
    for f in ("pearson_residuals", "seurat")
}
names = np.array(sorted(set.intersection(*(set(a.var_names) for a in adatas))))
counts = [
    columns(a.layers["counts"], a.var_names, names)[0].astype(float)
    for a in adatas
]
seen = np.sum([c.sum(0) for c in counts], 0) >= 3
mean, variance = (
    np.mean([f(c, 0) for c in counts], 0) for f in (np.mean, np.var)
)
residual = [
    pearson_residuals(c, depth(a), c.sum(0) / depth(a).sum())
    for c, a in zip(counts, adatas, strict=True)
]
residual = np.mean([r.var(0) for r in residual], 0)
by_residuals, by_seurat = (np.isin(names, choice[f]) for f in choice)

with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 4))
    kinds = {
        "neither": (~by_residuals & ~by_seurat, "#bbbbbb"),
        "both": (by_residuals & by_seurat, plots.COLOURS[0]),
        "Pearson residuals alone": (
            by_residuals & ~by_seurat,
            plots.COLOURS[2],
        ),
        "seurat alone": (by_seurat & ~by_residuals, plots.COLOURS[1]),
    }
    for ax, y, label in zip(
        axes, (variance, residual), ("counts", "residuals"), strict=True
    ):
        for kind, (which, colour) in kinds.items():
            at = which & seen
            look = {"color": colour, "label": f"{kind}: {at.sum()}"}
            ax.plot(mean[at], y[at], "o", ms=4, mew=0, alpha=0.8, **look)
        ax.set(xscale="log", yscale="log", xlabel="mean count in a spot")
        ax.set_ylabel(f"variance of the {label}")
    line = np.geomspace(mean[seen].min(), mean.max(), 50)
    axes[0].plot(line, line, "--", color=plots.GREY, lw=1)
    axes[0].plot(line, line + line**2 / THETA, color=plots.GREY, lw=1)
    axes[1].axhline(1, ls="--", color=plots.GREY, lw=1)
    for i in np.argsort(-np.where(seen, residual, 0))[:1]:
        place = {"xytext": (5, 2), "textcoords": "offset points", "fontsize": 8}
        axes[1].annotate(names[i], (mean[i], residual[i]), **place)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
plt.close(figure)
figure

# %% [markdown]
# Left, the counts: everything lies above both lines (dashed: Poisson, solid: with $\theta$),
# because the {term}`depth` differs from spot to spot and moves all genes at once. Right, the
# residuals, from which depth is discounted: most genes fall on a band, and the ones that tell
# tissues apart stick out above it, loud and faint alike. Both rules find those. They differ in what
# they fill up with: Pearson residuals with loud genes, `seurat` with faint ones, which are the
# noisier.

# %%
median_count = {
    f: float(np.median(mean[np.isin(names, g)])) for f, g in choice.items()
}
for f, value in median_count.items():
    print(f"{f}: half of its genes have a mean count above {value:.1f}")

# %% [markdown]
# The {term}`panel` holds the genes that we want to score and, beside them, the most variable genes
# of the training sections, in a fixed order:

# %%
print(f"{len(panel.genes)} genes, of which {len(scored)} are scored")
pd.DataFrame({"mean": panel.mean, "sd": panel.std}, index=panel.genes).head(
    8
).round(2)

# %% [markdown]
# ## Which scale? What each step removes
#
# Let $x_{ig}$ be the count of gene $g$ in spot $i$, a little [smoothed](02_pairs.ipynb) over the
# neighbours, and $n_i = \sum_g x_{ig}$ the spot's depth. Three steps lead to what the model is fed:
#
# $$
# c_{ig} = 10^4\, \frac{x_{ig}}{n_i}, \qquad
# y_{ig} = \log(1 + c_{ig}), \qquad
# z_{ig} = \frac{y_{ig} - \bar{y}_g}{s_g}, \; |z_{ig}| \le 5 .
# $$
#
# - **Counts per 10,000** (CP10k) remove how much a spot yielded. Two spots of the same cells, one
#   caught well and one badly, get the same number on average. What is left is a *share*: if one
#   gene takes more of it, all others take less.
# - **The logarithm** makes equal *ratios* equal distances: from 1 to 2 is as far as from 100 to
#   200. Without it a few loud genes hold much of the variance, and a squared error would ask for
#   little else. The 1 keeps zero at zero.
# - **The z-score** gives every gene mean 0 and standard deviation 1. A faint gene now counts as
#   much as a loud one. Mean $\bar{y}_g$ and deviation $s_g$ are *the section's own*: that takes
#   away what shifts a whole patient, be it the reagents or the person, and needs neither image nor
#   label of the new section. The alternative, `zscore="train"`, keeps the training sections' mean
#   and deviation and with them every such shift.
#
# The same gene through the steps, one curve per section, its mean dotted:


# %%
#| alt: Five histograms of one gene, after each step, with an outline and a dotted mean per section.
#| After the last step the means of all sections are the same.
def steps(adata):
    """The panel's genes after each step, {step: (n, genes)}."""
    smoothed = smooth(adata, share=panel.share)
    x, _ = columns(smoothed, adata.var_names, panel.genes)
    c = 1e4 * x / np.asarray(smoothed.sum(1))
    z = {
        f"z, {own} scale": replace(panel, zscore=which).transform(adata)
        for own, which in (("training's", "train"), ("own", "section"))
    }
    return {"counts": x, "CP10k": c, "log(1 + CP10k)": np.log1p(c)} | z


found = [steps(s.adata) for s in sections]
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(2, 3, figsize=(8.4, 4.4))
    for ax, step in zip(axes.flat, found[0], strict=False):
        v = [f[step][:, most] for f in found]
        bins = np.linspace(*np.percentile(np.concatenate(v), [0, 99.5]), 18)
        for section, part, colour in zip(
            sections, v, plots.COLOURS, strict=False
        ):
            last = section is test
            label = f"{section.name}, held out" if last else section.name
            look = {"color": colour, "lw": 2.4 if last else 1.5, "label": label}
            ax.hist(part, bins, density=True, histtype="step", **look)
            ax.axvline(part.mean(), color=colour, lw=1, ls=":")
        ax.set(title=step, yticks=[])
        ax.spines["left"].set_visible(False)
    axes[1, 2].axis("off")
    handles, labels = ax.get_legend_handles_labels()
    axes[1, 2].legend(handles, labels, loc="center", title=gene)
plt.close(figure)
figure

# %% [markdown]
# And over all genes of the panel, three things that should not decide what a network learns:

# %%
log_depth = [np.log(depth(s.adata)) for s in sections]
rows = {}
for step in found[0]:
    v = [f[step] for f in found]
    r = [
        pearson(np.repeat(d[:, None], y.shape[1], 1), y)
        for d, y in zip(log_depth, v, strict=True)
    ]
    var = np.sort(np.mean([y.var(0) for y in v], 0))
    rows[step] = {
        "mean r with log depth": np.mean(r),
        "variance in the five loudest genes": var[-5:].sum() / var.sum(),
        "variance between sections": between(v).mean(),
    }
table = pd.DataFrame(rows).T
table.round(3)

# %% [markdown]
# Read it column by column. Dividing by depth ends most of the correlation with it: some remains, or
# turns negative, as dense tissue is also *other* tissue ([why depth is a
# trap](01_meet_a_section.ipynb)). The logarithm and the z-score spread the variance over the genes.
# And what lies between the sections, neither division nor logarithm touches; only a section's own
# scale removes it.
#
# It removes all of it, though, and not all of it is a nuisance. The maps at the top differ because
# the two patients' tissue does. After the z-score a patient with little tumour has as much of the
# gene on average as one with a lot: the model learns *where* in a section, and never *how much* in
# the patient. With a handful of patients that is a fair price, since nobody could tell the two
# apart; exercise 2 shows what it costs.
#
# ## Applied by name
#
# `transform` does all this to any section. A gene that the section lacks is reported and stands at
# its mean, 0; it is not taken for a count of zero.

# %%
z = panel.transform(test.adata)
lacking = [g for g in panel.genes if g not in test.adata.var_names]
print(
    f"{z.shape[0]} spots, {z.shape[1]} genes; lacking: {', '.join(lacking) or 'none'}"
)

# %% [markdown]
# The order of the section's columns cannot matter. Shuffle them and compare:

# %%
rng = np.random.default_rng(0)
mixed = test.adata[:, rng.permutation(test.adata.n_vars)].copy()
order_difference = float(np.abs(panel.transform(mixed) - z).max())
print(f"largest difference {order_difference:.1e}")

# %% [markdown]
# And a section of another species, or with other identifiers, is refused rather than filled with
# zeros:

# %%
foreign = test.adata.copy()
foreign.var_names = [f"ENSMUSG{i:011d}" for i in range(foreign.n_vars)]
refused = ""
try:
    panel.transform(foreign)
except InputError as error:
    refused = str(error)
print(refused)

# %% [markdown]
# Expression is ready. Before a network learns from it, the next chapter asks what a network that
# has learnt nothing about tissue [knows already](04_frozen_baseline.ipynb).
#
# ## What to remember
#
# - The panel is fitted on training sections only, and applied by name.
# - Counts vary by counting alone, the more the louder the gene; what counts is the variance beyond.
# - Depth, loudness and the patient are three nuisances, and there is a step against each.
# - A section's own scale keeps where a gene is high, and forgets how much the patient has.

# %% [markdown]
# ## Exercises
#
# **1.** In the right panel of the second figure the band of genes without tissue rises with their
# mean, from 1 upwards. The phantom's replicates spread more than Pearson residuals assume: its
# counts have $\theta = 10$, the residuals take 100. Derive the variance that a gene without any
# tissue in it then has, and lay it over the band. Does it explain it?

# %% tags=["hide-cell", "solution"]
#| alt: The variance of Pearson residuals against the mean count, both logarithmic: all genes as
#| dots, the scored ones in colour, and a line that rises from 1.
theta = 10
rising = (1 + mean / theta) / (
    1 + mean / THETA
)  # (mu + mu^2/10) / (mu + mu^2/100)
tissue = np.isin(names, scored)
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(6, 3.4))
    ax.plot(
        mean[seen & ~tissue],
        residual[seen & ~tissue],
        "o",
        ms=4,
        mew=0,
        color="#aaaaaa",
    )
    ax.plot(
        mean[tissue], residual[tissue], "o", ms=4, mew=0, label="scored genes"
    )
    line = np.sort(mean[seen])
    ax.plot(
        line,
        (1 + line / theta) / (1 + line / THETA),
        color=plots.COLOURS[1],
        label="no tissue, $\\theta = 10$",
    )
    ax.set(xscale="log", yscale="log", xlabel="mean count in a spot")
    ax.set_ylabel("variance of the residuals")
    ax.legend(loc="lower right")
plt.close(figure)
# It does: the ratio of band and line is near 1. So the loud genes that fill up the panel are noise
# of a kind that the rule does not know, and a panel larger than the tissue's own genes is padding.
print(
    f"band over line, median: {np.median((residual / rising)[seen & ~tissue]):.2f}"
)
figure

# %% [markdown]
# **2.** Cut the held-out section down to the half of its spots that have most of a gene, as if the
# biopsy had missed the rest. Predict that half's mean z of the gene before and after the cut, on
# the section's own scale and on the training sections'.

# %% tags=["hide-cell", "solution"]
g = panel.genes.index("ERBB2" if "ERBB2" in panel.genes else gene)
high = np.flatnonzero(z[:, g] > np.median(z[:, g]))
half = test.adata[high].copy()
for which in ("section", "train"):
    scale = replace(panel, zscore=which)
    before, after = (
        scale.transform(test.adata)[high, g].mean(),
        scale.transform(half)[:, g].mean(),
    )
    print(
        f"{panel.genes[g]}, scale of the {which}: {before:+.2f}, after the cut {after:+.2f}"
    )
# On its own scale any section has mean 0, whatever is in it: the same spots, another z. The
# training scale keeps the level. Prefer it where sections differ in what they hold more than in how
# they were measured, and never compare levels of patients by a section's own z.

# %% [markdown]
# **3.** How shallow may sequencing be before the choice of genes fails? Thin the training counts to
# a tenth and to a thirtieth, and choose again with both rules. Which finds more of the scored
# genes?

# %% tags=["hide-cell", "solution"]


def thinned(adata, share):
    """The section as if only that share of its transcripts had been caught."""
    adata = adata.copy()
    x = adata.layers["counts"].copy()
    x.data = rng.binomial(x.data.astype(int), share).astype(np.float32)
    adata.layers["counts"] = x
    return adata


for share in (1, 1 / 10, 1 / 30):
    shallow = [thinned(a, share) for a in adatas]
    kept = {
        f: set(select_genes(shallow, n, flavor=f)) & set(scored) for f in choice
    }
    counted = ", ".join(f"{f} {len(k)}" for f, k in kept.items())
    print(
        f"{share:5.1%} of the counts: of {len(scored)} scored genes, {counted}"
    )
# Both lose genes as counts become few, `seurat` more of them. (Where the scored genes were
# themselves chosen by Pearson residuals, as on real tissue, that comparison is not fair.)

# %% [markdown]
# ## Further reading
#
# - {cite:p}`lause2021pearson` derive the residuals in two pages and show what they choose.
# - {cite:p}`ahlmann2023transformations` compare a dozen normalisations; the plain logarithm does
#   well.
# - {cite:p}`satija2015seurat`, whence the other rule comes, placed single cells in an embryo by a
#   few dozen genes.

# %% tags=["key-figures", "remove-cell"]
figures = {
    "panel": len(panel.genes),
    "scored": len(scored),
    "order_difference": order_difference,
    "refused": refused,
    "median_count": median_count,
    "steps": table.T.to_dict(),
    "z": [
        float(z.mean(0).max()),
        float(z.std(0).min()),
        float(np.abs(z).max()),
    ],
}
print(json.dumps(figures))
