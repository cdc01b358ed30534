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
# # How to fool yourself: evaluation pitfalls
#
# **Which evaluation pitfalls make an encoder look better than it is, and by how much?**
#
# Ten minutes to read, under a minute to run.
#
# {% set worst = largest_pitfall(load("pitfalls")) %}
# The largest pitfall measured on real tissue is *{{ worst.trap }}*. With {{ worst.wrong }}, the
# mean $r$ is {{ number(worst.wrong_mean) }}; with {{ worst.right }}, it is
# {{ number(worst.right_mean) }}. The table has every pitfall, measured on the same four sections of
# one breast tumour. The values are means over these sections, without an interval. A probe without
# penalty lowers the score; its danger is that it can reverse a comparison.
#
# {% include "pitfalls.md" %}
#
# Three of them are measured below, on one held-out section.

# %% tags=["hide-cell"]
# On Colab: install SEAL-lite, and keep the torch that Colab brings.
import importlib.util
import subprocess
import sys
from importlib.metadata import version

PACKAGE = "seal_lite[offline,encoders]"
HOME = "git+https://github.com/seal-lite/seal-lite"
if importlib.util.find_spec("seal_lite") is None:
    kept = [f"{name}=={version(name)}" for name in ("torch", "torchvision")]
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, f"{PACKAGE} @ {HOME}", *kept], check=True)

# %% tags=["parameters"]
# The phantom, or on a GPU real tumours; or any folder of sections.
DATASET = "auto"
# A small network, or on a GPU Phikon; or a name of `seal-lite encoders`.
BACKBONE = "auto"
# Everything tiny, to see that it runs.
SMOKE = False
# The section held out, with all of its patient's; empty: the last one.
TEST = ""
# Variants without merit, to try on the same test section.
VARIANTS = 200
SEED = 0

# %% tags=["hide-input"]
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.model_selection import KFold
from sklearn.neighbors import KNeighborsRegressor

from seal_lite import plots
from seal_lite.data.genes import depth
from seal_lite.encoders.embedding import embed_patches
from seal_lite.encoders.vision import build_encoder
from seal_lite.evaluation.probes import tuned_probe
from seal_lite.evaluation.ridge import Ridge, Sums
from seal_lite.evaluation.targets import (
    noise_ceiling,
    pearson,
    section_targets,
)
from seal_lite.tutorial import begin, charts, result_box

# %%
here = begin(DATASET, BACKBONE, smoke=SMOKE, test=TEST, seed=SEED)
config, train, test, genes = here.config, here.train, here.test, here.genes
if here.truth is None:
    classes = dict.fromkeys(genes, "measured")
else:
    classes = here.truth.classes
encoder = build_encoder(
    config.backbone, tune_blocks=config.tune_blocks, seed=SEED
)
sections = [*train, test]
image = {
    s.name: embed_patches(encoder, s.patches).astype(float) for s in sections
}
measured = {
    s.name: section_targets(s.adata, genes)["pearson_residuals"][s.rows]
    for s in sections
}
train_names = ", ".join(section.name for section in train)
print(f"training sections: {train_names} | held out: {test.name}")

# %% [markdown]
# ## Random spots: a model that reads no image
#
# Split the spots of one section at random into five parts, predict each part from the other four,
# and report the mean. This is a cross-validation, but the parts are not independent: a spot's
# neighbours stand in the other parts. The first model below predicts the mean of the eight nearest
# training spots. It reads coordinates and no image. The map shows a gene that, on the phantom,
# *nothing in the image depends on*.

# %%
x, y = image[test.name], measured[test.name]
place = test.adata.obsm["spatial"][test.rows] * test.adata.uns["um_per_px"]
nearest, random_spots = np.empty_like(y), np.empty_like(y)
for fit, held in KFold(5, shuffle=True, random_state=SEED).split(x):
    neighbours = KNeighborsRegressor(8).fit(place[fit], y[fit])
    nearest[held] = neighbours.predict(place[held])
    one_group = np.zeros(len(fit))
    random_spots[held] = tuned_probe(x[fit], y[fit], x[held], groups=one_group)

train_x = np.concatenate([image[s.name] for s in train])
train_y = np.concatenate([measured[s.name] for s in train])
groups = np.concatenate([[s.name] * len(s.rows) for s in train])
held_out = tuned_probe(train_x, train_y, x, groups=groups)
predictions = {
    "nearest spots, random split": nearest,
    "image, random split": random_spots,
    "image, section held out": held_out,
}

# %% tags=["hide-input"]
#| alt: Four maps of the held-out section for one gene: measured; predicted from the nearest spots
#| with a random split of the spots; predicted from the image with a random split; and predicted
#| from the image with the whole section held out.
unseen = next((g for g in genes if classes[g] == "invisible"), genes[0])
column = genes.index(unseen)
maps = {f"{unseen}, measured": y[:, column]}
for name, predicted in predictions.items():
    r = pearson(predicted, y)[column]
    maps[f"{name}: r = {r:.2f}"] = predicted[:, column]
scaled = [(values - values.mean()) / values.std() for values in maps.values()]
plots.gene_maps(
    test, np.stack(scaled, 1), list(maps), label="expression (sd)", columns=2
)

# %%
kinds = list(dict.fromkeys(classes[g] for g in genes))
by_class = {}
for kind in kinds:
    of_kind = [classes[g] == kind for g in genes]
    by_class[kind] = {
        name: pearson(predicted, y)[of_kind].mean()
        for name, predicted in predictions.items()
    }
table = pd.DataFrame(by_class)
split_gain = (
    table.loc["image, random split"] - table.loc["image, section held out"]
)
table.loc["image, gain of the random split"] = split_gain
table.round(2)

# %% [markdown]
# Nearest spots predict any gene that varies smoothly over the tissue, whether or not an image shows
# it. The last row is what the probe on the image gains by the random split, for the same features:
# its training spots then share the stain, the batch and the patient with the test spots, and their
# patches overlap. A finetuned network can memorise more than a linear probe; this chapter does not
# measure that.
#
# ## The best of many variants
#
# A variant without merit: keep half of the embedding's dimensions, chosen at random. The next cell
# scores `VARIANTS` of them on one half of the test section and picks the best. The other half of
# the section, which played no part in the choice, then shows what the choice is worth.

# %%
rng = np.random.default_rng(SEED)
is_left = place[:, 0] < np.median(place[:, 0])  # the half for choosing


def score(dimensions):
    """Mean r of a fixed ridge on some dimensions, for each half."""
    fitted = Ridge.fit(Sums.of(train_x[:, dimensions], train_y))
    predicted = fitted.predict(x[:, dimensions], alpha=300.0)
    chosen_on = pearson(predicted[is_left], y[is_left]).mean()
    untouched = pearson(predicted[~is_left], y[~is_left]).mean()
    return chosen_on, untouched


width = train_x.shape[1]
variants = [rng.permutation(width)[: width // 2] for _ in range(VARIANTS)]
chosen_on, untouched = np.array([score(variant) for variant in variants]).T
best = chosen_on.argmax()

# %% tags=["hide-input"]
#| alt: Two histograms of the scores of random subsets of dimensions: on the half of the section on
#| which the best was chosen, where a line marks it at the right end, and on the untouched half,
#| where another line marks the same subset.
halves = {"half for choosing": chosen_on, "untouched half": untouched}
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
    for ax, (title, values) in zip(axes, halves.items(), strict=True):
        mean_colour, best_colour = plots.COLOURS[:2]
        ax.hist(values, bins=24, color="#b9b9b9")
        ax.axvline(values.mean(), color=mean_colour, lw=2, label="mean variant")
        ax.axvline(values[best], color=best_colour, lw=2, label="best variant")
        ax.set(xlabel="mean r over genes", title=title)
    axes[0].set_ylabel("variants")
    axes[1].legend()
plt.close(figure)
figure

# %%
gain = {
    "half for choosing": chosen_on[best] - chosen_on.mean(),
    "untouched half": untouched[best] - untouched.mean(),
}
print(f"best of {VARIANTS} variants, minus the mean variant:")
print(", ".join(f"{name} {value:+.3f}" for name, value in gain.items()))

# %% [markdown]
# The gain on the untouched half is what this variant does for this patient; the rest was chance. A
# search over settings that looks at the test section does the same, one run at a time. So search
# *inside* the training data, and look at the test section once. Report what was tried and [not
# kept](../trials.md), because the best of twenty tries looks like a finding.
#
# ## Depth, again
#
# Log depth is one value per spot, and it needs no image. Here is what it predicts alone:

# %%
#| alt: Per target, one dot per gene: the correlation reached by log depth alone on the held-out
#| section, for raw counts, normalised counts and Pearson residuals.
log_depth = {s.name: np.log(depth(s.adata)[s.rows])[:, None] for s in sections}
alone = {}
for target in ("log1p_raw", "log1p_cp10k", "pearson_residuals"):
    values = [section_targets(s.adata, genes)[target][s.rows] for s in sections]
    predicted = tuned_probe(
        np.concatenate([log_depth[s.name] for s in train]),
        np.concatenate(values[:-1]),
        log_depth[test.name],
        groups=groups,
    )
    r = pearson(predicted, values[-1])
    alone[charts.LABELS[target]] = {"log depth alone": r}
charts.strips(alone, label="r on the held-out section, per gene")

# %% [markdown]
# ## The list
#
# **Raw counts.** A spot over dense tissue yields more molecules of every gene. Pearson residuals
# discount the total, and so does a partial correlation given log depth. Report log depth beside
# every score on raw counts.
#
# **Random spots.** Hold out a section, better a patient, best a hospital.
#
# **Genes chosen where they are tested.** Highly variable genes of the test section are those that
# are well measured there. Choose genes, scales and components on training sections.
#
# **A probe without penalty.** With few patches the penalty decides a large part of the score ([how
# far](04_frozen_baseline.ipynb)). Choose it inside the training sections.
#
# **Finetuned against frozen.** Any training changes an encoder. Shuffle the pairs and train again;
# what remains of the gain was learnt from the pairs. And read the frozen encoder [at its best
# layer](04_frozen_baseline.ipynb).
#
# **One seed, one fold.** Another seed or another fold gives another score. Report seeds, folds and
# an interval, and call a difference inside it no difference.
#
# ## Result

# %% tags=["hide-input"]
kind = classes[unseen]
row = by_class[kind]
raw, residual = (
    alone[charts.LABELS[target]]["log depth alone"].mean()
    for target in ("log1p_raw", "pearson_residuals")
)
gains = ", ".join(f"{name} {value:+.2f}" for name, value in split_gain.items())
result_box(
    f"On {test.name}, one held-out section with {len(y)} spots, the random "
    f"split lets coordinates alone reach r = "
    f"{row['nearest spots, random split']:.2f} on {kind} genes; the image "
    f"reaches {row['image, section held out']:.2f} when the section is held "
    "out.",
    f"For the image itself the random split changes r by class: {gains}.",
    f"The best of {VARIANTS} random subsets of dimensions gains "
    f"{gain['half for choosing']:+.3f} where it was chosen and "
    f"{gain['untouched half']:+.3f} on the untouched half.",
    f"Log depth alone reaches {raw:.2f} on raw counts and {residual:.2f} on "
    "Pearson residuals.",
    "One section describes; the table at the top has four.",
)

# %% [markdown]
# ## What to remember
#
# - Hold out what you want to generalise to.
# - Put the cheap explanation beside the score: depth, colour, position, random weights.
# - Search inside the training data, and look at the test section once.
# - `seal-lite crossval` raises an error for a split that leaks, and marks a result for which you
#   allowed it.
#
# ## Exercises
#
# **1.** Spots are not independent, because tissue is smooth. Compare two ways to find how large an
# $r$ chance gives: shuffle the spots of the prediction, or *shift* the whole predicted map over the
# array by a few spots, which keeps it smooth.

# %% tags=["hide-cell", "solution"]
# Compare the two spreads. A shifted map keeps its smoothness, so it correlates more by chance than
# shuffled spots suggest. Where it does, 1 / sqrt(n) is too small an error bar as well.
grid = test.adata.obs[["array_col", "array_row"]].to_numpy(int)[test.rows]
index = {tuple(position): i for i, position in enumerate(grid)}
n = len(y)
shuffled = [pearson(held_out[rng.permutation(n)], y) for _ in range(100)]
offsets = [
    (columns, rows)
    for columns in range(-6, 7)
    for rows in range(-6, 7)
    if max(abs(columns), abs(rows)) >= 3
]
shifted = []
for columns, rows in offsets:
    moved = {
        i: index.get((column + columns, row + rows))
        for (column, row), i in index.items()
    }
    pairs = [(i, j) for i, j in moved.items() if j is not None]
    if len(pairs) > len(index) / 3:
        here_rows, there_rows = np.array(pairs).T
        shifted.append(pearson(held_out[here_rows], y[there_rows]))
null = {"shuffled": float(np.std(shuffled)), "shifted": float(np.std(shifted))}
for name, spread in null.items():
    print(f"sd of r by chance, {name}: {spread:.3f}")
print(f"1 / sqrt(n): {n**-0.5:.3f}")

# %% [markdown]
# **2.** How does the gain of the best variant grow with the number of variants? Estimate it for 1,
# 3, 10, ... from the scores above.

# %% tags=["hide-cell", "solution"]
# For normal scores it grows about as the root of the logarithm of their number: fast at first, so
# that a few tries already gain.
for k in (1, 3, 10, 30, 100):
    if k > len(chosen_on):
        break
    highest = [
        rng.choice(chosen_on, k, replace=False).max() for _ in range(300)
    ]
    above = np.mean(highest) - chosen_on.mean()
    print(f"best of {k:3d}: {above:+.4f} above the mean variant")

# %% [markdown]
# **3.** Choose ten genes in three ways: by their inner score in training, by their noise ceiling in
# the test section, and by their score in the test section. How far apart are the three mean scores?

# %% tags=["hide-cell", "solution"]
# The model is the same in every row. Only the first choice is one that a report may make.
r = pearson(held_out, y)
ceiling = noise_ceiling(test.adata, genes, test.rows)["pearson_residuals"]
inner = []
for fit_section in train:
    for scored in train:
        if scored is not fit_section:
            predicted = tuned_probe(
                image[fit_section.name],
                measured[fit_section.name],
                image[scored.name],
                groups=np.zeros(len(fit_section.rows)),
            )
            inner.append(pearson(predicted, measured[scored.name]))
inner_mean = np.mean(inner, axis=0) if inner else r
picked = {
    "all genes": r.mean(),
    "ten chosen in training": r[np.argsort(-inner_mean)[:10]].mean(),
    "ten best measured in the test": r[np.argsort(-ceiling)[:10]].mean(),
    "ten best predicted in the test": np.sort(r)[-10:].mean(),
}
pd.Series(picked, name="mean r").round(3).to_frame()

# %% [markdown]
# ## Further reading
#
# - {cite:p}`ahlmann2023transformations`: what transformations of counts do to depth.
# - {cite:p}`lause2021pearson`: the residuals used here.
# - {cite:p}`jaume2024hest`: folds by patient, as a benchmark should have them.

# %% tags=["key-figures", "remove-cell"]
figures = {
    "by_class": by_class,
    "gain": gain,
    "log_depth": {
        name: float(values["log depth alone"].mean())
        for name, values in alone.items()
    },
    "null": null,
    "picked": picked,
}
print(json.dumps(figures, default=float))
