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
# # The frozen baseline
#
# **How well does an encoder that has never seen a slide predict expression, and how well do cheap
# explanations do?**
#
# Fifteen minutes to read, under a minute to run.
#
# {% set phantom = load("phantom") %}
# {% set r = summary(phantom)["pearson_residuals"] %}
# Over {{ held_out(phantom) | length }} held-out patients of a phantom, the mean $r$ is
# {{ number(r["frozen_best", "tuned_ridge"], ".2f") }} for the frozen encoder at its best layer,
# {{ number(r["random_init", "tuned_ridge"], ".2f") }} for the same network with random weights, and
# {{ number(r["colour", "tuned_ridge"], ".2f") }} for the patch's colour ([results](../results.md)).
# The baseline to beat is the frozen encoder at its best layer, with a penalty chosen inside the
# training sections.
#
# Against a weak baseline every method looks good. So we take the encoder as it is, read it at its
# best layer, and choose the probe's penalty for it. Beside it we score everything that needs no
# encoder.

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
# "auto": the phantom, or on a GPU real tumours; or any folder of sections
DATASET = "auto"
# "auto": a small network, or on a GPU Phikon; or a name of `seal-lite encoders`
BACKBONE = "auto"
# Everything tiny, just to see that it runs
SMOKE = False
# The section held out, with all of its patient's; empty: the last one
TEST = ""
SEED = 0

# %% tags=["hide-input"]
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from seal_lite import plots
from seal_lite.encoders.vision import build_encoder
from seal_lite.evaluation.features import embed_all
from seal_lite.evaluation.probes import ALPHAS, inner_scores
from seal_lite.evaluation.ridge import Ridge, Sums
from seal_lite.evaluation.scores import score_models, score_rows
from seal_lite.evaluation.targets import pearson, section_targets
from seal_lite.tutorial import begin, charts, result_box

here = begin(DATASET, BACKBONE, smoke=SMOKE, test=TEST, seed=SEED)
config, train, test, genes = here.config, here.train, here.test, here.genes
print("training sections:", ", ".join(section.name for section in train))
print("held out:", test.name)

# %% [markdown]
# ## What the encoder sees
#
# The default encoder was trained to classify photographs. Its layers build on each other: early
# layers respond to colour and grain, later ones to parts and arrangements. We average each layer
# over the patch, which gives an embedding of about a hundred dimensions; a transformer's has many
# more. The maps below show its first principal component, the direction in which the section's
# patches differ most.

# %% tags=["hide-input"]
#| alt: The held-out section's tissue, and the first principal component of the frozen embedding at
#| an early, a middle and the last layer as maps over it.
encoder = build_encoder(
    config.backbone, tune_blocks=config.tune_blocks, seed=SEED
)
# Features of every baseline, and of every layer of the frozen encoder
features, layers = embed_all([*train, test], {}, config)
names = list(layers)
# Where a recipe shortens the network, its last layer is named so
as_tuned = f"{encoder.feature_layer} as tuned"
own = as_tuned if as_tuned in layers else encoder.feature_layer
shown = dict.fromkeys([names[0], names[len(names) // 2], own])
brightness = test.patches.mean((1, 2, 3))
maps = {}
for name in shown:
    embedding = layers[name][-1]
    spread = embedding.std(0).clip(1e-6)
    standardised = (embedding - embedding.mean(0)) / spread
    component = PCA(1, random_state=0).fit_transform(standardised)[:, 0]
    # A component's sign is arbitrary: high where the patch is bright.
    sign = np.sign(np.corrcoef(component, brightness)[0, 1])
    title = f"{name}: {embedding.shape[1]} dimensions"
    maps[title] = sign * component / component.std()
plots.gene_maps(
    test,
    np.stack(list(maps.values()), 1),
    list(maps),
    label="first component (sd)",
)

# %% [markdown]
# No label of tumour or stroma went into these maps, so any region that they show comes from the
# image alone.
#
# ## A probe: ridge regression
#
# A {term}`probe` is a ridge regression from the embedding to expression. It is fitted on the
# training sections and scored on the held-out one, by Pearson's $r$ over the spots, gene by gene.
# A linear map can only use what the embedding already contains. With the embeddings $X$ and the
# targets $Y$, both centred, it solves
#
# $$
# \min_{W} \; \| Y - X W \|^2 + \alpha\, \| W \|^2 .
# $$
#
# The penalty $\alpha$ shrinks the weights. If it is too small, the probe fits the noise of a few
# hundred spots; if it is too large, it predicts the mean everywhere. It must be chosen, and the
# choice must not see the held-out section. `inner_scores` leaves out one training section after
# another and scores every $\alpha$ on the section left out. With the default encoder:

# %%
target = "pearson_residuals"
sections = [*train, test]
targets = [section_targets(s.adata, genes)[target][s.rows] for s in sections]
y_train, y_test = np.concatenate(targets[:-1]), targets[-1]
groups = np.concatenate([[s.name] * len(s.rows) for s in train])
embeddings = [part.astype(float) for part in layers[own]]
x_train, x_test = np.concatenate(embeddings[:-1]), embeddings[-1]

inside = inner_scores(x_train, y_train, groups)
ridge = Ridge.fit(Sums.of(x_train, y_train))
held_out = [
    pearson(ridge.predict(x_test, alpha=alpha), y_test).mean()
    for alpha in ALPHAS
]
chosen_alpha = ALPHAS[inside.argmax()]
n_components = min(256, x_train.shape[1])
hest_alpha = 100 / (n_components * len(genes))
print(f"chosen inside the training sections: alpha = {chosen_alpha:g}")
print(f"HEST-bench's formula: alpha = {hest_alpha:.2g}")

# %% tags=["hide-input"]
#| alt: Mean correlation against the ridge penalty on a logarithmic axis, one curve measured inside
#| the training sections and one on the held-out section; two vertical lines mark what HEST-bench's
#| formula and the training sections choose.
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(7, 3.4))
    blue, orange = plots.COLOURS[:2]
    dots = {"ms": 4}
    ax.semilogx(
        ALPHAS, inside, "o-", color=blue, label="inside the training", **dots
    )
    ax.semilogx(ALPHAS, held_out, "s-", color=orange, label="held out", **dots)
    lines = {"HEST-bench's": hest_alpha, "chosen inside": chosen_alpha}
    for (name, alpha), colour in zip(
        lines.items(), (plots.GREY, blue), strict=True
    ):
        ax.axvline(alpha, color=colour, lw=1, ls="--")
        ax.text(
            alpha,
            ax.get_ylim()[0],
            f" {name}",
            color=plots.INK,
            fontsize=9,
            va="bottom",
        )
    ax.set(xlabel="penalty alpha", ylabel="mean r over genes")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 0.1))
plt.close(figure)
figure

# %% [markdown]
# The blue curve is measured inside the training sections, and probe B takes the $\alpha$ at its
# top. The orange curve is measured on the held-out section. Choosing $\alpha$ at its top would fit
# the test section. Probe A is HEST-bench's: its formula divides 100 by the number of components
# and of genes. That suits the benchmark's thousands of patches and hardly regularises a few
# hundred.
#
# ## Which layer to read
#
# The choice of a layer has the same problem. A finetuned encoder is read at the feature layer, the
# last block that finetuning adapts. In the frozen encoder an earlier layer may predict better. So
# the baseline is the frozen encoder *at its best layer*, and the training sections choose that
# layer.

# %%
#| alt: For each layer of the frozen encoder, the mean correlation inside the training sections and
#| on the held-out section, as dots in rows.
rows, ridges = {}, {}
for name, parts in layers.items():
    x = np.concatenate(parts[:-1]).astype(float)
    scores_inside = inner_scores(x, y_train, groups)
    ridges[name] = Ridge.fit(Sums.of(x, y_train))
    alpha = ALPHAS[scores_inside.argmax()]
    predicted = ridges[name].predict(parts[-1].astype(float), alpha=alpha)
    rows[name] = {
        "inside the training": [scores_inside.max()],
        "held out": [pearson(predicted, y_test).mean()],
    }
# As `best_feature_layer` chooses:
chosen = max(rows, key=lambda name: rows[name]["inside the training"])
print(f"finetuned encoders are read at {own}")
print(f"the training sections choose {chosen}")
charts.strips(rows, label="mean r over genes, Pearson residuals, probe B")

# %% [markdown]
# ## Baselines and bounds
#
# A score needs references on both sides. Below it stand the cheap explanations. **Colour** is six
# values, the mean and standard deviation of red, green and blue. **Log depth** is not even an
# image. **Random weights** are the same network before any training. Above it stand the bounds.
# The **noise ceiling** is what the counts allow a perfect predictor, and on the phantom the
# **oracle** is the ground truth. The mean of the **8 neighbours' measurements** shows what space
# alone predicts where one may measure.

# %%
#| alt: Mean correlation of the frozen encoder, its best layer, random weights, colour, log depth,
#| neighbours, ceiling and oracle as dots in rows, for both probes.
features["frozen_best"] = layers[chosen]
scores = score_models(
    train,
    [test],
    genes,
    models={},
    features=features,
    truth=here.truth,
    seed=SEED,
)
fold = {"test": test.name, "seed": SEED, "scores": score_rows(scores, genes)}
charts.scores({"folds": [fold]})

# %% [markdown]
# Random weights do not score zero: averages of random filters measure how dark, how pink and how
# grainy a patch is, and expression follows that in part. So pretraining is worth the distance
# between these two rows, not the distance to zero.
#
# ## One gene at a time
#
# A mean hides which genes are predictable. The figure shows every gene beside its own noise
# ceiling. On the phantom the rows are the classes of genes, visible, subtle and invisible.
# Invisible genes have a ceiling far above zero, since they are well measured, but the image does
# not show them.

# %% tags=["hide-input"]
#| alt: Per class of gene, one dot per gene: the frozen encoder's correlation at its best layer, and
#| the noise ceiling of the same genes.
if here.truth is None:
    classes = dict.fromkeys(genes, "measured")
else:
    classes = here.truth.classes
kinds = list(dict.fromkeys(classes[gene] for gene in genes))
members = {
    kind: np.array([classes[gene] == kind for gene in genes]) for kind in kinds
}
reached = scores["frozen_best", "tuned_ridge", target][0]
ceiling = scores["ceiling", "none", target][0]
charts.strips(
    {
        kind: {"frozen_best": reached[is_in], "ceiling": ceiling[is_in]}
        for kind, is_in in members.items()
    },
    label="r per gene, Pearson residuals, probe B",
)

# %% [markdown]
# ## Targets that depend on depth
#
# The table has the same embeddings and the same probe for four targets. Values are mean *r* over
# genes; the second column is the partial correlation given log depth. Compare log depth, which
# sees no image, with the encoders in the column of raw counts.

# %%
names = ["frozen", "frozen_best", "random_init", "colour", "log_depth"]
targets_shown = [
    "pearson_residuals",
    "log1p_cp10k|depth",
    "log1p_cp10k",
    "log1p_raw",
]
means = {
    t: {name: scores[name, "tuned_ridge", t][0].mean() for name in names}
    for t in targets_shown
}
labels = {name: charts.LABELS[name].replace("\n", " ") for name in names}
table = pd.DataFrame(means).rename(index=labels, columns=charts.LABELS)
table.round(3)

# %% [markdown]
# ## Result

# %% tags=["hide-input"]
r = {name: scores[name, "tuned_ridge", target][0].mean() for name in names}
raw = {
    name: scores[name, "tuned_ridge", "log1p_raw"][0].mean() for name in names
}
cheap = max(("random_init", "colour", "log_depth"), key=r.get)
word = "higher than" if r["frozen_best"] > r[cheap] else "no higher than"
best_on_raw = max(raw, key=raw.get)
by_class = ", ".join(
    f"{kind} {reached[is_in].mean():.2f}" for kind, is_in in members.items()
)
result_box(
    f"On the held-out section {test.name} ({len(y_test)} spots, {len(genes)} "
    f"genes), the frozen encoder at its best layer ({chosen}) reaches a mean r "
    f"of {r['frozen_best']:.2f}, with a noise ceiling of {ceiling.mean():.2f}.",
    f"It is {word} the best cheap explanation, "
    f"{labels[cheap]} ({r[cheap]:.2f}).",
    f"By class of genes, the mean r is: {by_class}.",
    f"On raw counts log depth alone reaches {raw['log_depth']:.2f}, and the best "
    f"of the five is {labels[best_on_raw]} ({raw[best_on_raw]:.2f}).",
    "This is one held-out section: a description without an interval.",
)

# %% [markdown]
# The next chapters build what finetuning needs: an [encoder of genes](05_gene_encoder.ipynb), [a
# way to adapt the network](06_lora.ipynb), and [losses](07_losses.ipynb) that join the two.
#
# ## What to remember
#
# - The baseline is the frozen encoder at its best layer, under a probe whose penalty was chosen
#   inside the training sections.
# - Colour, log depth and random weights stand beside every score.
# - A noise ceiling shows how large an $r$ each gene's counts allow.
# - A penalty or a layer that was chosen on the test section is fitted to it.
#
# ## Exercises
#
# **1.** With $n$ spots, how large an $r$ does chance give? Shuffle the held-out spots a few
# hundred times, take the spread of a gene's $r$, and compare it with $1/\sqrt n$.

# %% tags=["hide-cell", "solution"]
# The spread is near 1 / sqrt(n). It is a lower bound for the error bar of one gene: neighbouring
# spots are alike, so the true one is larger.
rng = np.random.default_rng(SEED)
predicted = ridge.predict(x_test, alpha=chosen_alpha)
n = len(predicted)
null = np.array(
    [pearson(predicted[rng.permutation(n)], y_test) for _ in range(300)]
)
null_sd = float(null.std())
print(f"n = {n}: sd of r by chance {null_sd:.3f}")
print(f"1 / sqrt(n) = {1 / np.sqrt(n):.3f}")

# %% [markdown]
# **2.** How much would the score rise if you chose $\alpha$ *and* the layer on the held-out
# section?

# %% tags=["hide-cell", "solution"]
# The difference is not a gain: it comes from fitting the test section. It grows with the number of
# settings to choose from.
best_on_test = {}
for name, parts in layers.items():
    x = parts[-1].astype(float)
    predictions = [ridges[name].predict(x, alpha=alpha) for alpha in ALPHAS]
    best_on_test[name] = max(pearson(p, y_test).mean() for p in predictions)
chosen_on_test = max(best_on_test.values())
chosen_inside = rows[chosen]["held out"][0]
print(f"chosen inside the training sections: {chosen_inside:.3f}")
print(f"chosen on the test section: {chosen_on_test:.3f}")

# %% [markdown]
# **3.** Add log depth to the frozen embedding. Does the score rise on raw counts? On Pearson
# residuals? Predict both before you look.

# %% tags=["hide-cell", "solution"]
# Raw counts depend on depth, and the image shows depth only in part. Pearson residuals discount
# depth, so little of it is left to add.
depths = features["log_depth"]
with_depth = [np.c_[e, d] for e, d in zip(embeddings, depths, strict=True)]
for name in ("log1p_raw", "pearson_residuals"):
    values = [section_targets(s.adata, genes)[name][s.rows] for s in sections]
    y = np.concatenate(values[:-1])
    r_of = {}
    for label, parts in (("embedding", embeddings), ("with depth", with_depth)):
        x = np.concatenate(parts[:-1])
        alpha = ALPHAS[inner_scores(x, y, groups).argmax()]
        predicted = Ridge.fit(Sums.of(x, y)).predict(parts[-1], alpha=alpha)
        r_of[label] = round(float(pearson(predicted, values[-1]).mean()), 3)
    print(charts.LABELS[name], r_of)

# %% [markdown]
# ## Further reading
#
# - {cite:p}`jaume2024hest` introduced probe A, and report what pathology encoders reach with it.
# - {cite:p}`lause2021pearson` derive the residuals that discount depth.
# - {cite:p}`tan2019efficientnet` describe the family of the default encoder.

# %% tags=["key-figures", "remove-cell"]
figures = {
    "r": {name: float(value) for name, value in r.items()},
    "raw": {name: float(value) for name, value in raw.items()},
    "ceiling": float(ceiling.mean()),
    "by_class": {
        kind: float(reached[is_in].mean()) for kind, is_in in members.items()
    },
    "null_sd": null_sd,
    "spots": n,
    "chosen_inside": float(chosen_inside),
    "chosen_on_test": float(chosen_on_test),
    "best_layer": chosen,
}
print(json.dumps(figures))
