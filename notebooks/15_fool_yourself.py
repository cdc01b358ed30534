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
# # How to fool yourself
#
# **Which habits make an encoder look better than it is, and by how much?**
#
# Ten minutes to read, under a minute to run.
#
# None of these is rare, and none needs bad intentions. Each was measured on the same four sections
# of one real breast tumour, with the same frozen encoder: what you get, and what you get when you
# do it right. (In Colab the table stays empty; it is part of the book.)
#
# {% include "pitfalls.md" %}
#
# Below, three of them happen before your eyes.

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
DATASET = (
    "auto"  # the phantom, or on a GPU real tumours; or any folder of sections
)
BACKBONE = "auto"  # a small network, or on a GPU Phikon; or a name of `seal-lite encoders`
SMOKE = False  # everything tiny, just to see that it runs
TEST = (
    ""  # the section held out, with all of its patient's; empty: the last one
)
IDEAS = 200  # worthless ones, to try on the same test section
SEED = 0

# %%
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
from seal_lite.evaluation.targets import pearson, section_targets
from seal_lite.tutorial import begin, charts

here = begin(DATASET, BACKBONE, smoke=SMOKE, test=TEST, seed=SEED)
config, train, test, genes = here.config, here.train, here.test, here.genes
if here.truth is None:
    classes = dict.fromkeys(genes, "measured")
else:
    classes = here.truth.classes
encoder = build_encoder(
    config.backbone, tune_blocks=config.tune_blocks, seed=SEED
)
image = {
    s.name: embed_patches(encoder, s.patches).astype(float)
    for s in [*train, test]
}
measured = {
    s.name: section_targets(s.adata, genes)["pearson_residuals"][s.rows]
    for s in [*train, test]
}
print(
    "training sections:",
    ", ".join(s.name for s in train),
    "| held out:",
    test.name,
)

# %% [markdown]
# ## Random spots: a model that has seen no image
#
# Deal the spots of a section at random into five parts, predict each from the other four, and
# report the mean. It is called cross-validation, so it must be right. Our model is the mean of the
# eight nearest training spots. It is given coordinates and nothing else, and on the phantom we look
# at a gene that *cannot be seen at all*.

# %%
#| alt: Four maps of the held-out section for one gene: measured; predicted from the nearest spots
#| with spots dealt at random; predicted from the image with spots dealt at random; and predicted
#| from the image with the whole section held out.
unseen = next((g for g in genes if classes[g] == "invisible"), genes[0])
at = genes.index(unseen)
place = test.adata.obsm["spatial"][test.rows] * test.adata.uns["um_per_px"]
y, x = measured[test.name], image[test.name]
dealt = {"nearest spots": np.empty_like(y), "image": np.empty_like(y)}
for fit, held in KFold(5, shuffle=True, random_state=SEED).split(x):
    dealt["nearest spots"][held] = (
        KNeighborsRegressor(8).fit(place[fit], y[fit]).predict(place[held])
    )
    dealt["image"][held] = tuned_probe(
        x[fit], y[fit], x[held], groups=np.zeros(len(fit))
    )
names = np.concatenate([[s.name] * len(s.rows) for s in train])
away = tuned_probe(
    np.concatenate([image[s.name] for s in train]),
    np.concatenate([measured[s.name] for s in train]),
    x,
    groups=names,
)
shown = {
    f"{unseen}, measured": y[:, at],
    "nearest spots, dealt": dealt["nearest spots"][:, at],
    "image, dealt": dealt["image"][:, at],
    "image, held out": away[:, at],
}
values = np.stack([(v - v.mean()) / v.std() for v in shown.values()], 1)
titles = [
    n
    if i == 0
    else f"{n}: r = {pearson(values[:, i : i + 1], values[:, :1])[0]:.2f}"
    for i, n in enumerate(shown)
]
plots.gene_maps(test, values, titles, label="expression (sd)", columns=2)

# %%
rows = {
    kind: {
        name: pearson(predicted, y)[[classes[g] == kind for g in genes]]
        for name, predicted in (
            ("nearest spots, dealt", dealt["nearest spots"]),
            ("image, dealt", dealt["image"]),
            ("image, section held out", away),
        )
    }
    for kind in dict.fromkeys(classes[g] for g in genes)
}
pd.DataFrame(
    {k: {n: r.mean() for n, r in v.items()} for k, v in rows.items()}
).round(2)

# %% [markdown]
# The invisible gene is "predicted", by a rule that knows only where a spot lies. A linear probe
# gains little from random spots, as it cannot remember places. Whatever can remember gains a lot,
# and a finetuned network can: its patches overlap those that it trained on.
#
# ## The best of two hundred ideas
#
# An idea that is worth nothing: keep half of the embedding's numbers, chosen at random. Two hundred
# such ideas, each scored on the same test section. Then the winner is scored on tissue that nobody
# looked at: we let half of the test section be the looked-at part.

# %%
#| alt: Two histograms of the scores of two hundred random subsets of features: on the part of the
#| test section that was looked at, where a line marks the winner at the right end, and on the part
#| that nobody looked at, where another line marks the same winner.
rng = np.random.default_rng(SEED)
left = place[:, 0] < np.median(place[:, 0])  # the part that is looked at
joined = np.concatenate([image[s.name] for s in train])
targets = np.concatenate([measured[s.name] for s in train])


def score(features):
    """Mean r of a fixed ridge on some of the embedding's numbers: looked at, not looked at."""
    fitted = Ridge.fit(Sums.of(joined[:, features], targets))
    predicted = fitted.predict(x[:, features], alpha=300.0)
    return pearson(predicted[left], y[left]).mean(), pearson(
        predicted[~left], y[~left]
    ).mean()


width = joined.shape[1]
ideas = [rng.permutation(width)[: width // 2] for _ in range(IDEAS)]
seen, fresh = np.array([score(idea) for idea in ideas]).T
winner = seen.argmax()
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
    for ax, values, said in (
        (axes[0], seen, "looked at"),
        (axes[1], fresh, "not looked at"),
    ):
        ax.hist(values, bins=24, color="#b9b9b9")
        ax.axvline(
            values.mean(), color=plots.COLOURS[0], lw=2, label="the mean idea"
        )
        ax.axvline(
            values[winner], color=plots.COLOURS[1], lw=2, label="the winner"
        )
        ax.set(xlabel="mean r over genes", title=said)
    axes[0].set_ylabel("ideas")
    axes[1].legend()
plt.close(figure)
figure

# %%
gain = {
    "where it was chosen": seen[winner] - seen.mean(),
    "where nobody looked": fresh[winner] - fresh.mean(),
}
print(f"the best of {IDEAS} ideas, above the mean idea:")
print(", ".join(f"{k} {v:+.3f}" for k, v in gain.items()))

# %% [markdown]
# What is left where nobody looked is what happens to suit this patient. What is gone was luck. This
# is what a search over settings does, one honest run at a time. The remedy is not to stop
# searching but to search *inside* the training data and to look at the test once. Whatever we tried
# and did [not keep](../trials.md) is written down as well: the best of twenty tries looks like a
# finding.
#
# ## Depth, again
#
# Take the number that needs no image and give it to raw counts:

# %%
#| alt: Per target, one dot per gene: the correlation reached by log depth alone on the held-out
#| section, for raw counts and for Pearson residuals.
deep = {s.name: np.log(depth(s.adata)[s.rows])[:, None] for s in [*train, test]}
alone = {}
for target in ("log1p_raw", "log1p_cp10k", "pearson_residuals"):
    t = {
        s.name: section_targets(s.adata, genes)[target][s.rows]
        for s in [*train, test]
    }
    fit_on = [
        np.concatenate([part[s.name] for s in train]) for part in (deep, t)
    ]
    found = tuned_probe(*fit_on, deep[test.name], groups=names)
    alone[charts.LABELS[target]] = {
        "log depth alone": pearson(found, t[test.name])
    }
charts.strips(alone, label="r on the held-out section, per gene")

# %% [markdown]
# ## The list
#
# **Raw counts.** A spot over dense tissue yields more molecules of every gene. Pearson residuals
# discount the total, and so does a partial correlation given log depth. Whatever is scored on raw
# counts needs the total beside it.
#
# **Random spots.** Hold out a section, better a patient, best a hospital.
#
# **Genes chosen where they are tested.** Highly variable genes of the test section are those that
# are well measured there. Choose genes, scales and components on training sections.
#
# **A probe without penalty.** With hundreds of patches it punishes encoders of many dimensions, and
# a comparison of encoders becomes one of widths ([how far](12_hest_bench.ipynb)).
#
# **Finetuned against frozen.** Training on anything moves an encoder towards tissue, or away from
# it. Shuffle the pairs and train again: what is left of the gain was learnt from the pairing. And
# read the frozen encoder [at its best layer](04_frozen_baseline.ipynb).
#
# **One seed, one fold.** A lucky start is worth about as much as most ideas. Every table of ours
# has seeds, folds and an interval; a difference inside it is called none.
#
# ## What to remember
#
# - Hold out what you want to generalise to.
# - Put the cheap explanation beside the score: library size, colour, position, random weights.
# - Search inside the training data. The test section can be looked at once.
# - `seal-lite crossval` refuses a split that leaks, and marks a result for which you overruled it.
#
# ## Exercises
#
# **1.** Spots are not independent: tissue is smooth. Compare two ways to find out how large an $r$
# chance gives: shuffle the spots of the prediction, or *shift* the whole predicted map over the
# array by a few spots, which keeps it smooth.

# %% tags=["hide-cell", "solution"]
# The shifted maps spread more: a smooth map that means nothing still correlates by luck. An error
# bar from shuffled spots, or from 1 / sqrt(n), is too small.
grid = test.adata.obs[["array_col", "array_row"]].to_numpy(int)[test.rows]
index = {tuple(p): i for i, p in enumerate(grid)}
shuffled = [pearson(away[rng.permutation(len(away))], y) for _ in range(100)]
shifted = []
for dc in range(-6, 7):
    for dr in range(-6, 7):
        pairs = [
            (i, index[c + dc, r + dr])
            for (c, r), i in index.items()
            if (c + dc, r + dr) in index
        ]
        if max(abs(dc), abs(dr)) >= 3 and len(pairs) > len(index) / 3:
            i, j = np.array(pairs).T
            shifted.append(pearson(away[i], y[j]))
null = {"shuffled": float(np.std(shuffled)), "shifted": float(np.std(shifted))}
print(
    {k: round(v, 3) for k, v in null.items()},
    f"1 / sqrt(n) = {len(y) ** -0.5:.3f}",
)

# %% [markdown]
# **2.** How does the luck of the best idea grow with the number of ideas? Draw it for 1, 3, 10, ...
# from the two hundred above.

# %% tags=["hide-cell", "solution"]
# It grows as the root of the logarithm: fast at first, and a few tries are enough.
for k in (1, 3, 10, 30, 100):
    best = np.mean(
        [rng.choice(seen, k, replace=False).max() for _ in range(300)]
    )
    print(f"best of {k:3d}: {best - seen.mean():+.4f} above the mean idea")

# %% [markdown]
# **3.** Choose the genes on the test section instead of the training sections: the ten whose
# ceiling is highest there, against the ten whose inner score is highest in training. What is
# gained?

# %% tags=["hide-cell", "solution"]
# The first ten look better and nobody will ever see why. The model is the same.
from seal_lite.evaluation.targets import noise_ceiling

r = pearson(away, y)
bound = noise_ceiling(test.adata, genes, test.rows)["pearson_residuals"]
inner = np.mean(
    [
        pearson(
            tuned_probe(
                image[a.name],
                measured[a.name],
                image[b.name],
                groups=np.zeros(len(a.rows)),
            ),
            measured[b.name],
        )
        for a in train
        for b in train
        if a is not b
    ]
    or [r],
    axis=0,
)
picked = {
    "all genes": r.mean(),
    "ten chosen in training": r[np.argsort(-inner)[:10]].mean(),
    "ten best measured in the test": r[np.argsort(-bound)[:10]].mean(),
    "ten best predicted in the test": np.sort(r)[-10:].mean(),
}
print({k: round(float(v), 3) for k, v in picked.items()})

# %% [markdown]
# ## Further reading
#
# - {cite:p}`ahlmann2023transformations`: what transformations of counts do to depth.
# - {cite:p}`lause2021pearson`: the residuals used here.
# - {cite:p}`jaume2024hest`: folds by patient, as a benchmark should have them.

# %% tags=["key-figures", "remove-cell"]
print(
    json.dumps(
        {
            "by_class": {
                k: {n: float(r.mean()) for n, r in v.items()}
                for k, v in rows.items()
            },
            "gain": {k: float(v) for k, v in gain.items()},
            "log_depth": {
                k: float(v["log depth alone"].mean()) for k, v in alone.items()
            },
            "null": null,
            "picked": {k: float(v) for k, v in picked.items()},
        }
    )
)
