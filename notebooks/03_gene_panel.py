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
# **Which genes should a model know, and what does "much of a gene" mean in a new patient?**
#
# The panel holds the genes whose counts vary most beyond counting noise, chosen in the training
# sections alone. Each section is scaled by its own mean and standard deviation, which
# removes every difference in level between patients, technical or biological: on this scale exactly
# none of a gene's variance lies between sections.
#
# Fifteen minutes to read, under a minute to run.
#
# Two sections rarely list the same genes in the same order. Some genes are missing from one of
# them, some never vary, and a count of three means something else where sequencing was deeper. A
# network needs a fixed vocabulary and a fixed scale. The `GenePanel` provides both: it is fitted
# on *training sections only*, stored with the model, and applied to any other section by *name*.

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
# The section held out, with all of its patient's; empty: the last one
TEST = ""

# %% tags=["hide-input"]
import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from seal_lite import InputError, plots
from seal_lite.data.genes import GenePanel, columns, depth, smooth
from seal_lite.data.variable_genes import THETA, pearson_residuals, select_genes
from seal_lite.evaluation.targets import pearson
from seal_lite.tutorial import begin, result_box

here = begin(DATASET, smoke=SMOKE, test=TEST)
config, train, test, scored = here.config, here.train, here.test, here.genes
sections = [*train, test]
print("training sections:", ", ".join(section.name for section in train))
print("held out:", test.name)

# %% [markdown]
# ## One gene, two sections
#
# The *scored genes* are those on which probes are evaluated: on real tissue the 50 most variable
# genes of the training sections, on the phantom the genes of its three declared classes.
#
# Below is the scored gene whose mean differs most between sections, in a training section (top)
# and in the held-out section (bottom). Each column has one colour scale for both sections. Counts
# and their logarithms keep the difference in level between the two. The z-scores, which the model
# is trained on, keep only the pattern within each section.


# %% tags=["hide-input"]
def between(parts: list[np.ndarray]) -> np.ndarray:
    """Share of each gene's variance that lies between the sections, (g,)."""
    joined = np.concatenate(parts)
    mean = joined.mean(0)
    squares = sum(len(part) * (part.mean(0) - mean) ** 2 for part in parts)
    return squares / len(joined) / np.maximum(joined.var(0), 1e-12)


panel = GenePanel.from_config(train, config, include=scored)
logs = [panel.expression(section.adata)[0] for section in sections]
zs = [panel.transform(section.adata) for section in sections]
columns_scored = [panel.genes.index(gene) for gene in scored]
shares = between([values[:, columns_scored] for values in logs])
most = columns_scored[int(shares.argmax())]
gene = panel.genes[most]
raw = [
    columns(section.adata.layers["counts"], section.adata.var_names, [gene])[0]
    for section in sections
]
means = np.array([values[:, most].mean() for values in logs])
farthest = int(np.abs(means - means[-1]).argmax())

# %% tags=["hide-input"]
#| alt: Two rows, one per section, of four panels each: the stained tissue, and maps of one gene
#| as counts, as log of counts per ten thousand, and as z-scores, with one colour scale per column.
pair = (farthest, len(train))
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(2, 4, figsize=(8.5, 4.9))
    maps = {
        "counts": [values[:, 0] for values in raw],
        "log(1 + CP10k)": [values[:, most] for values in logs],
        "z": [values[:, most] for values in zs],
    }
    for row, i in zip(axes, pair, strict=True):
        role = "held out" if i == len(train) else "training"
        plots.tissue(row[0], sections[i], title=f"{sections[i].name}, {role}")
    for column, (name, values) in zip(axes[:, 1:].T, maps.items(), strict=True):
        both = np.concatenate([values[i] for i in pair])
        look = {"limits": tuple(np.percentile(both, [2, 98]))}
        if name == "z":
            look = {"limits": (-2, 2), "cmap": "PuOr_r"}
        for ax, i in zip(column, pair, strict=True):
            on_patches = values[i][sections[i].rows]
            shown = plots.discs(ax, sections[i], on_patches, **look)
        column[0].set_title(f"{gene}, {name}")
        plots.colour_bar(figure, shown, column, location="bottom", aspect=15)
plt.close(figure)
figure

# %% [markdown]
# The rest of this chapter explains the two choices behind the last column: which genes, and which
# scale.

# %% [markdown]
# ## Which genes? Variance beyond counting noise
#
# A gene that is the same everywhere does not distinguish one place from another, so the panel
# takes the genes that vary most. But all counts vary, and larger counts vary more. If a gene's
# share of the transcripts were the same in every {term}`spot`, its counts would be Poisson: their
# variance would equal their mean $\mu$. Replicates spread more than that without any difference in
# tissue, which a negative binomial describes:
#
# $$
# \operatorname{Var}(x) = \mu + \frac{\mu^2}{\theta}, \qquad \theta = 100 .
# $$
#
# A {term}`Pearson residual` is a count minus its mean, in units of the root of this variance. A
# gene that this model explains has residuals of variance 1, whatever its mean. The panel takes the
# genes with the largest residual variance {cite:p}`lause2021pearson`. Released SEAL takes another
# rule, scanpy's `seurat` {cite:p}`satija2015seurat,wolf2018scanpy`: the variance over the mean of
# depth-normalised counts, compared among genes of similar mean. Below, each rule chooses the same
# number of genes.

# %% tags=["hide-input"]
#| alt: Two scatter plots of all genes against their mean count, both axes logarithmic. Left, the
#| variance of the counts, with lines for what counting alone gives; right, the variance of the
#| Pearson residuals, with a line at 1. Colours say which rule chose a gene.
adatas = [section.adata for section in train]
rules = ("pearson_residuals", "seurat")
choice = {
    rule: select_genes(adatas, config.n_genes, flavor=rule) for rule in rules
}
names = np.array(sorted(set.intersection(*(set(a.var_names) for a in adatas))))
counts = [
    columns(a.layers["counts"], a.var_names, names)[0].astype(float)
    for a in adatas
]
is_counted = np.sum([c.sum(0) for c in counts], 0) >= 3
mean = np.mean([c.mean(0) for c in counts], 0)
variance = np.mean([c.var(0) for c in counts], 0)
residual_variances = []
for c, adata in zip(counts, adatas, strict=True):
    n = depth(adata)
    residual_variances.append(
        pearson_residuals(c, n, c.sum(0) / n.sum()).var(0)
    )
residual_variance = np.mean(residual_variances, 0)
by_residuals, by_seurat = (np.isin(names, choice[rule]) for rule in rules)

with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 4))
    only_residuals = by_residuals & ~by_seurat
    only_seurat = by_seurat & ~by_residuals
    kinds = {
        "neither": (~by_residuals & ~by_seurat, "#bbbbbb"),
        "both": (by_residuals & by_seurat, plots.COLOURS[0]),
        "Pearson residuals alone": (only_residuals, plots.COLOURS[2]),
        "seurat alone": (only_seurat, plots.COLOURS[1]),
    }
    for ax, values, label in zip(
        axes,
        (variance, residual_variance),
        ("counts", "residuals"),
        strict=True,
    ):
        for kind, (is_kind, colour) in kinds.items():
            shown = is_kind & is_counted
            look = {"color": colour, "label": f"{kind}: {shown.sum()}"}
            ax.plot(
                mean[shown], values[shown], "o", ms=4, mew=0, alpha=0.8, **look
            )
        ax.set(xscale="log", yscale="log", xlabel="mean count in a spot")
        ax.set_ylabel(f"variance of the {label}")
    line = np.geomspace(mean[is_counted].min(), mean.max(), 50)
    axes[0].plot(line, line, "--", color=plots.GREY, lw=1)
    axes[0].plot(line, line + line**2 / THETA, color=plots.GREY, lw=1)
    axes[1].axhline(1, ls="--", color=plots.GREY, lw=1)
    top = int(np.where(is_counted, residual_variance, 0).argmax())
    axes[1].annotate(
        names[top],
        (mean[top], residual_variance[top]),
        xytext=(5, 2),
        textcoords="offset points",
        fontsize=8,
    )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
plt.close(figure)
figure

# %% [markdown]
# On the left, the lines show the variance that counting gives: dashed for Poisson, solid with
# $\theta$. The counts vary more than that, because the {term}`depth` differs from spot to spot and
# moves all genes together. On the right, the residuals discount depth, and the genes that
# distinguish tissues stand out above the dashed line. Both rules choose many of the same genes.
# The medians below show which rule fills the panel with lower-expressed genes, whose counts are
# noisier:

# %%
median_count = {}
for rule, genes in choice.items():
    median_count[rule] = float(np.median(mean[np.isin(names, genes)]))
    name = rule.replace("_", " ")
    print(f"{name}: median of the genes' mean counts {median_count[rule]:.1f}")

# %% [markdown]
# The {term}`panel` holds the scored genes and, beside them, the most variable genes of the
# training sections, in a fixed order:

# %%
print(f"{len(panel.genes)} genes, of which {len(scored)} are scored")
scale = pd.DataFrame({"mean": panel.mean, "sd": panel.std}, index=panel.genes)
scale.head(8).round(2)

# %% [markdown]
# ## Which scale? What each step removes
#
# Let $x_{ig}$ be the count of gene $g$ in spot $i$, a little [smoothed](02_pairs.ipynb) over the
# neighbours, and $n_i = \sum_g x_{ig}$ the spot's depth. Three steps lead to the model's input:
#
# $$
# c_{ig} = 10^4\, \frac{x_{ig}}{n_i}, \qquad
# y_{ig} = \log(1 + c_{ig}), \qquad
# z_{ig} = \frac{y_{ig} - \bar{y}_g}{s_g}, \; |z_{ig}| \le 5 .
# $$
#
# - **Counts per 10,000** (CP10k) remove the depth. Two spots of the same cells, one caught well
#   and one badly, have the same value on average. The value is a *share*: if one gene takes more
#   of it, all others take less.
# - **The logarithm** makes equal *ratios* equal distances: from 1 to 2 is as far as from 100 to
#   200. Without it a few high-expressed genes hold much of the variance, and a squared error would
#   mostly fit those. The 1 keeps zero at zero.
# - **The z-score** gives every gene mean 0 and standard deviation 1, so that a low-expressed gene
#   counts as much as a high-expressed one. Mean $\bar{y}_g$ and deviation $s_g$ are *the section's
#   own*. That removes every shift of a whole section, technical or biological, and needs no label
#   of the new section. The alternative, `zscore="train"`, keeps the training sections' mean and
#   deviation, and with them every such shift.
#
# Below, the same gene after each step, one curve per section, with a dotted line at its mean:


# %% tags=["hide-input"]
#| alt: Five histograms of one gene, after each step, with an outline and a dotted mean per section.
#| After the last step the means of all sections are the same.
def steps(adata) -> dict[str, np.ndarray]:
    """The panel's genes after each step, {step: (n, genes)}."""
    smoothed = smooth(adata, share=panel.share)
    counts, _ = columns(smoothed, adata.var_names, panel.genes)
    cp10k = 1e4 * counts / np.asarray(smoothed.sum(1))
    by_training = replace(panel, zscore="train").transform(adata)
    by_section = replace(panel, zscore="section").transform(adata)
    return {
        "counts": counts,
        "CP10k": cp10k,
        "log(1 + CP10k)": np.log1p(cp10k),
        "z, training's scale": by_training,
        "z, own scale": by_section,
    }


by_section = [steps(section.adata) for section in sections]
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(2, 3, figsize=(8.4, 4.4))
    for ax, step in zip(axes.flat, by_section[0], strict=False):
        values = [after[step][:, most] for after in by_section]
        low, high = np.percentile(np.concatenate(values), [0, 99.5])
        bins = np.linspace(low, high, 18)
        for section, part, colour in zip(
            sections, values, plots.COLOURS, strict=False
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
# Over all genes of the panel, the table shows three properties that should not decide what a
# network learns: the correlation with depth, the variance that five genes hold, and the variance
# between sections.

# %%
log_depth = [np.log(depth(section.adata)) for section in sections]
rows = {}
for step in by_section[0]:
    values = [after[step] for after in by_section]
    r = [
        pearson(np.repeat(d[:, None], y.shape[1], 1), y)
        for d, y in zip(log_depth, values, strict=True)
    ]
    gene_variance = np.sort(np.mean([y.var(0) for y in values], 0))
    rows[step] = {
        "mean r with log depth": np.mean(r),
        "variance in the five most variable genes": (
            gene_variance[-5:].sum() / gene_variance.sum()
        ),
        "variance between sections": between(values).mean(),
    }
table = pd.DataFrame(rows).T
table.round(3)

# %% [markdown]
# Each step acts on one column. Division by depth acts on the correlation with depth; a correlation
# can remain, because dense tissue is also *different* tissue ([why depth
# misleads](01_meet_a_section.ipynb)). The logarithm and the z-score spread the variance over the
# genes. Only a section's own scale removes the variance between sections.
#
# That also removes biology. The maps at the top can differ because the patients' tissue differs.
# After the z-score, a patient with little tumour has as much of the gene on average as a patient
# with much. So the model learns *where* in a section a gene is high, and never *how much* the
# patient has. A handful of patients cannot separate a technical shift from a biological one;
# exercise 2 shows the cost.
#
# ## Applied by name
#
# `transform` applies all three steps to any section. A gene that the section lacks is reported and
# set to its mean, 0, not to a count of zero.

# %%
z = panel.transform(test.adata)
lacking = [g for g in panel.genes if g not in test.adata.var_names]
print(f"{z.shape[0]} spots, {z.shape[1]} genes")
print("lacking:", ", ".join(lacking) or "none")

# %% [markdown]
# The order of the section's columns does not matter. We shuffle them and compare:

# %%
rng = np.random.default_rng(0)
mixed = test.adata[:, rng.permutation(test.adata.n_vars)].copy()
order_difference = float(np.abs(panel.transform(mixed) - z).max())
print(f"largest difference {order_difference:.2g}")

# %% [markdown]
# A section of another species, or with other identifiers, raises an error:

# %%
foreign = test.adata.copy()
foreign.var_names = [f"ENSMUSG{i:011d}" for i in range(foreign.n_vars)]
message = ""
try:
    panel.transform(foreign)
except InputError as error:
    message = str(error)
print(message)

# %% [markdown]
# ## Result

# %% tags=["hide-input"]
depth_r = table["mean r with log depth"]
between_sections = table["variance between sections"]
lower = min(median_count, key=median_count.get)
shared = len(set(choice["pearson_residuals"]) & set(choice["seurat"]))
result_box(
    f"Over {len(panel.genes)} genes and {len(sections)} sections, the mean "
    f"correlation with log depth goes from {depth_r['counts']:+.2f} in counts to "
    f"{depth_r['CP10k']:+.2f} in counts per 10,000.",
    f"The variance between sections is {between_sections['log(1 + CP10k)']:.2f} "
    "of the whole after the logarithm and "
    f"{between_sections['z, own scale']:.2f} on each section's own scale.",
    f"Of {config.n_genes} genes, the two rules share {shared}; {lower} chooses "
    "the lower-expressed ones, by the median of their mean counts "
    f"({median_count[lower]:.1f} against {max(median_count.values()):.1f}).",
    "These values describe the sections of one split and have no interval.",
)

# %% [markdown]
# Expression is ready. Before a network learns from it, the next chapter asks what the frozen
# encoder [predicts already](04_frozen_baseline.ipynb).
#
# ## What to remember
#
# - The panel is fitted on training sections only, and applied by name.
# - Larger counts vary more by counting alone. The panel takes the genes with variance beyond that.
# - Depth, high expression and the patient's level are three nuisances, and one step removes each.
# - A section's own scale keeps where a gene is high, and drops how much the patient has.

# %% [markdown]
# ## Exercises
#
# **1.** In the right panel of the second figure, the unscored genes form a band that rises with
# the mean, from 1 upwards. The phantom's replicates spread more than Pearson residuals assume: its
# counts have $\theta = 10$, the residuals take 100. Derive the variance that a gene without any
# tissue in it then has, and draw it over the band. Does it explain the band?

# %% tags=["hide-cell", "solution"]
#| alt: The variance of Pearson residuals against the mean count, both logarithmic: all genes as
#| dots, the scored ones in colour, and a line that rises from 1.
theta = 10
# (mu + mu^2 / 10) / (mu + mu^2 / 100)
derived = (1 + mean / theta) / (1 + mean / THETA)
tissue = np.isin(names, scored)
unscored = is_counted & ~tissue
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(6, 3.4))
    dots = {"ms": 4, "mew": 0}
    ax.plot(
        mean[unscored],
        residual_variance[unscored],
        "o",
        color="#aaaaaa",
        label="other genes",
        **dots,
    )
    ax.plot(
        mean[tissue],
        residual_variance[tissue],
        "o",
        label="scored genes",
        **dots,
    )
    line = np.sort(mean[is_counted])
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
# On the phantom a ratio near 1 says that the line explains the band. The high-expressed genes that
# fill up the panel then hold a noise that the rule does not know. On real tissue no value of theta
# is known, and the ratio only describes the data.
ratio = np.median((residual_variance / derived)[unscored])
print(f"band over line, median: {ratio:.2f}")
figure

# %% [markdown]
# **2.** Cut the held-out section down to the half of its spots that have most of a gene, as if the
# biopsy had missed the rest. Predict that half's mean z of the gene before and after the cut, on
# the section's own scale and on the training sections'.

# %% tags=["hide-cell", "solution"]
g = panel.genes.index("ERBB2" if "ERBB2" in panel.genes else gene)
high = np.flatnonzero(z[:, g] > np.median(z[:, g]))
half = test.adata[high].copy()
for rule in ("section", "train"):
    scaled = replace(panel, zscore=rule)
    before = scaled.transform(test.adata)[high, g].mean()
    after = scaled.transform(half)[:, g].mean()
    print(
        f"{panel.genes[g]}, zscore={rule!r}: {before:+.2f}, "
        f"after the cut {round(after, 2) + 0.0:.2f}"
    )
# On its own scale any section has mean 0, whatever it holds: the same spots get another z. The
# training scale keeps the level. Prefer it where sections differ more in their tissue than in
# their measurement, and never compare levels of patients by a section's own z.

# %% [markdown]
# **3.** How shallow may sequencing be before the choice of genes fails? Thin the training counts
# to a tenth and to a thirtieth, and choose again with both rules. Which rule finds more of the
# scored genes?


# %% tags=["hide-cell", "solution"]
def thinned(adata, share: float):
    """The section as if only that share of its transcripts had been caught."""
    adata = adata.copy()
    counts = adata.layers["counts"].copy()
    caught = rng.binomial(counts.data.astype(int), share)
    counts.data = caught.astype(np.float32)
    adata.layers["counts"] = counts
    return adata


for share in (1, 1 / 10, 1 / 30):
    shallow = [thinned(adata, share) for adata in adatas]
    counted = []
    for rule in rules:
        genes = select_genes(shallow, config.n_genes, flavor=rule)
        name = rule.replace("_", " ")
        counted.append(f"{name} {len(set(genes) & set(scored))}")
    print(f"{share:5.1%} of the counts: {', '.join(counted)} of {len(scored)}")
# On real tissue Pearson residuals have chosen the scored genes themselves, so the comparison is
# fair on the phantom only.

# %% [markdown]
# ## Further reading
#
# - {cite:p}`lause2021pearson` derive the residuals in two pages and show what they choose.
# - {cite:p}`ahlmann2023transformations` compare a dozen normalisations; the plain logarithm does
#   well.
# - {cite:p}`satija2015seurat` introduced the other rule. They placed single cells in an embryo by
#   a few dozen genes.

# %% tags=["key-figures", "remove-cell"]
figures = {
    "panel": len(panel.genes),
    "scored": len(scored),
    "order_difference": order_difference,
    "error": message,
    "median_count": median_count,
    "steps": table.T.to_dict(),
    "z": [
        float(z.mean(0).max()),
        float(z.std(0).min()),
        float(np.abs(z).max()),
    ],
}
print(json.dumps(figures))
