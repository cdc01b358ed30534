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
# # The frozen baseline, and its honest score
#
# **How much does a network that has never seen a slide already say about expression, and which
# cheap explanations say as much?**
#
# Fifteen minutes to read, under a minute to run.
#
# Before anything is finetuned, somebody has to say what there is to beat. This is where most claims
# are won or lost: against a weak baseline every idea works. So we take the encoder as it comes,
# read it where it reads best, give it a fair probe, and put beside it everything that needs no
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
DATASET = (
    "auto"  # the phantom, or on a GPU real tumours; or any folder of sections
)
BACKBONE = "auto"  # a small network, or on a GPU Phikon; or a name of `seal-lite encoders`
SMOKE = False  # everything tiny, just to see that it runs
TEST = (
    ""  # the section held out, with all of its patient's; empty: the last one
)
SEED = 0

# %%
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
from seal_lite.tutorial import begin, charts

here = begin(DATASET, BACKBONE, smoke=SMOKE, test=TEST, seed=SEED)
config, train, test, genes = here.config, here.train, here.test, here.genes
print(
    "training sections:",
    ", ".join(s.name for s in train),
    "| held out:",
    test.name,
)

# %% [markdown]
# ## What it sees
#
# The default encoder has learnt to tell cats from cars. Its stages build on each other: early ones
# know colour and grain, later ones parts and arrangements. We average each stage over the patch,
# and of the hundred or so numbers that come out draw the one direction in which the section's
# patches differ most.

# %%
#| alt: The held-out section's tissue, and the first principal component of the frozen embedding at
#| an early, a middle and the last stage as maps over it.
encoder = build_encoder(
    config.backbone, tune_blocks=config.tune_blocks, seed=SEED
)
found, stages = embed_all(
    [*train, test], {}, config
)  # of every rival, and of every stage
first = {}
for name in dict.fromkeys(
    [[*stages][0], [*stages][len(stages) // 2], encoder.feature_layer]
):
    parts = stages[name]
    e = (parts[-1] - parts[-1].mean(0)) / parts[-1].std(0).clip(1e-6)
    pca = PCA(1, random_state=0).fit(e)
    sign = np.sign(
        np.corrcoef(pca.transform(e)[:, 0], test.patches.mean((1, 2, 3)))[0, 1]
    )
    first[f"{name}: {parts[-1].shape[1]} numbers"] = (
        sign * pca.transform(e)[:, 0]
    )
values = np.stack(list(first.values()), 1)
plots.gene_maps(
    test, values / values.std(0), list(first), label="first component (sd)"
)

# %% [markdown]
# Nobody told it about tumour or stroma, and the regions of the tissue are there. An embedding like
# this is what we start from.
#
# ## A probe: the least that can be asked
#
# A {term}`probe` is a ridge regression from embedding to expression, fitted on the training
# sections and scored on the one held out, by Pearson's $r$ over its spots, gene by gene. A linear
# map cannot do much by itself, so what it finds was in the embedding. One number remains to be
# chosen, the penalty $\alpha$, and it matters more than the choice between two good encoders:

# %%
#| alt: Mean correlation against the ridge penalty on a logarithmic axis, one curve measured inside
#| the training sections and one on the held-out section; two vertical lines mark what HEST-bench's
#| formula and the training sections would choose.
target = "pearson_residuals"
y = [section_targets(s.adata, genes)[target][s.rows] for s in [*train, test]]
groups = np.concatenate([[s.name] * len(s.rows) for s in train])
x = [part.astype(float) for part in stages[encoder.feature_layer]]
inside = inner_scores(np.concatenate(x[:-1]), np.concatenate(y[:-1]), groups)
fitted = Ridge.fit(Sums.of(np.concatenate(x[:-1]), np.concatenate(y[:-1])))
outside = [
    pearson(fitted.predict(x[-1], alpha=a), y[-1]).mean() for a in ALPHAS
]
hest_alpha = 100 / (min(256, x[0].shape[1]) * len(genes))
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(7, 3.4))
    ax.semilogx(
        ALPHAS,
        inside,
        "o-",
        ms=4,
        color=plots.COLOURS[0],
        label="inside the training",
    )
    ax.semilogx(
        ALPHAS, outside, "s-", ms=4, color=plots.COLOURS[1], label="held out"
    )
    for alpha, said, colour in (
        (hest_alpha, "HEST-bench's", plots.GREY),
        (ALPHAS[inside.argmax()], "chosen inside", plots.COLOURS[0]),
    ):
        ax.axvline(alpha, color=colour, lw=1, ls="--")
        ax.text(
            alpha,
            ax.get_ylim()[0],
            f" {said}",
            color=plots.INK,
            fontsize=9,
            va="bottom",
        )
    ax.set(xlabel="penalty alpha", ylabel="mean r over genes")
    ax.legend(loc="upper left")
plt.close(figure)
figure

# %% [markdown]
# The orange curve may be looked at and never chosen from: whoever picks $\alpha$ at its top has
# fitted the test section. Probe B takes the top of the blue one. Probe A is HEST-bench's, whose
# formula puts the penalty far to the left; the benchmark has thousands of patches, we have
# hundreds.
#
# ## Where to read it
#
# The same holds for the stage. Finetuning is read at the feature layer, the last block that it
# adapts. As the network comes, an earlier stage may say more. The baseline that a finetuned encoder
# has to beat is the frozen one *at its best*, and best is decided inside the training sections.

# %%
#| alt: For each stage of the frozen encoder, the mean correlation inside the training sections and
#| on the held-out section, as dots in rows.
rows, ridges = {}, {}
for name, parts in stages.items():
    joined = np.concatenate([p.astype(float) for p in parts[:-1]])
    inner = inner_scores(joined, np.concatenate(y[:-1]), groups)
    ridges[name] = ridge = Ridge.fit(Sums.of(joined, np.concatenate(y[:-1])))
    held = pearson(
        ridge.predict(parts[-1].astype(float), alpha=ALPHAS[inner.argmax()]),
        y[-1],
    )
    rows[name] = {
        "inside the training": [inner.max()],
        "held out": [held.mean()],
    }
# As `best_feature_layer` chooses:
chosen = max(rows, key=lambda name: rows[name]["inside the training"])
print(
    f"finetuning is read at {encoder.feature_layer}; the training sections would choose {chosen}"
)
charts.strips(rows, label="mean r over genes, Pearson residuals, probe B")

# %% [markdown]
# ## The company a score keeps
#
# Now the score, between two kinds of company. Below it the cheap explanations: six numbers of
# **colour**, the **log depth** of the spot (not even an image), the same network with **random
# weights**. Above it what nobody can beat: the **noise ceiling**, which counts allow to a perfect
# predictor, and on the phantom the **oracle**, which is the truth. The mean of the **8 neighbours'
# measurements** says what space alone is worth where one may measure.

# %%
#| alt: Mean correlation of the frozen encoder, its best layer, random weights, colour, log depth,
#| neighbours, ceiling and oracle as dots in rows, for both probes.
found["frozen_best"] = stages[chosen]
scores = score_models(
    train, [test], genes, models={}, features=found, truth=here.truth, seed=SEED
)
result = {
    "folds": [
        {"test": test.name, "seed": SEED, "scores": score_rows(scores, genes)}
    ]
}
charts.scores(result)

# %% [markdown]
# Random weights are not nothing: averages of random filters tell how dark, how pink and how grainy
# a patch is, and much of expression follows that. What pretraining adds is the distance between
# these two rows, not the distance to zero.
#
# ## One gene at a time
#
# A mean hides who is predictable. Here is every gene beside its own ceiling. On the phantom the
# rows are the classes of genes: what follows cell types is found, what follows the texture of
# nuclei hardly, and the invisible stay at zero however well they are measured.

# %%
#| alt: Per class of gene, one dot per gene: the frozen encoder's correlation at its best layer, and
#| the noise ceiling of the same genes.
if here.truth is None:
    classes = dict.fromkeys(genes, "measured")
else:
    classes = here.truth.classes
kinds = list(dict.fromkeys(classes[g] for g in genes))
reached = scores["frozen_best", "tuned_ridge", target][0]
ceiling = scores["ceiling", "none", target][0]
member = {k: np.array([classes[g] == k for g in genes]) for k in kinds}
charts.strips(
    {
        k: {"frozen_best": reached[of], "ceiling": ceiling[of]}
        for k, of in member.items()
    },
    label="r per gene, Pearson residuals, probe B",
)

# %% [markdown]
# ## And the targets that flatter
#
# The same embeddings, the same probe, four targets. In the column of raw counts look first at log
# depth, which has seen no image, and then at everything else.

# %%
names = ["frozen", "frozen_best", "random_init", "colour", "log_depth"]
targets = ["pearson_residuals", "log1p_cp10k|depth", "log1p_cp10k", "log1p_raw"]
table = pd.DataFrame(
    {
        t: {f: scores[f, "tuned_ridge", t][0].mean() for f in names}
        for t in targets
    }
)
table.rename(
    index=lambda k: charts.LABELS[k].replace("\n", " "), columns=charts.LABELS
).round(3)

# %% [markdown]
# That is the score to beat, and the ways in which it could be beaten without learning anything. The
# next chapters build the rest: an [encoder of genes](05_gene_encoder.ipynb), [a way to adapt the
# network](06_lora.ipynb), and [losses](07_losses.ipynb) that join the two.
#
# ## What to remember
#
# - The baseline is the frozen encoder at its best layer, under a probe whose penalty was chosen
#   inside the training sections.
# - Colour, log depth and random weights stand beside every score. They are not straw men.
# - A ceiling tells how much of an $r$ there was to win, gene by gene.
# - Whatever is chosen on the test section, a penalty or a stage, is fitted to it.
#
# ## Exercises
#
# **1.** With $n$ spots, how large an $r$ does chance give? Shuffle the held-out spots a few hundred
# times, look at the spread of a gene's $r$, and compare it with $1/\sqrt n$.

# %% tags=["hide-cell", "solution"]
# The spread is that of 1 / sqrt(n). It is the smallest honest error bar of one gene: spots that are
# neighbours are alike, so the true one is larger.
rng = np.random.default_rng(SEED)
predicted = fitted.predict(x[-1], alpha=ALPHAS[inside.argmax()])
n = len(predicted)
null = np.array(
    [pearson(predicted[rng.permutation(n)], y[-1]) for _ in range(300)]
)
null_sd = float(null.std())
print(
    f"n = {n}: sd of r by chance {null_sd:.3f}, 1 / sqrt(n) = {1 / np.sqrt(n):.3f}"
)

# %% [markdown]
# **2.** How much would you gain by choosing $\alpha$ *and* the stage on the held-out section?
# Nobody would call that training.

# %% tags=["hide-cell", "solution"]
# Whatever the difference is, it is free of merit. With many settings to pick from it grows.
best = {}
for name, parts in stages.items():
    tried = (
        ridges[name].predict(parts[-1].astype(float), alpha=a) for a in ALPHAS
    )
    best[name] = max(pearson(p, y[-1]).mean() for p in tried)
peeked, honest = max(best.values()), rows[chosen]["held out"][0]
print(f"chosen inside: {honest:.3f}; chosen on the test section: {peeked:.3f}")

# %% [markdown]
# **3.** Add log depth to the frozen embedding. Does the score rise on raw counts? On Pearson
# residuals? Predict both before you look.

# %% tags=["hide-cell", "solution"]
# Raw counts are mostly depth, so one more number helps where the image had only guessed at it. From
# Pearson residuals depth is discounted, and there is little left for it to say.
for t in ("log1p_raw", "pearson_residuals"):
    targets_ = [
        section_targets(s.adata, genes)[t][s.rows] for s in [*train, test]
    ]
    said = {}
    for name, parts in (
        ("embedding", x),
        (
            "with log depth",
            [np.c_[a, d] for a, d in zip(x, found["log_depth"], strict=True)],
        ),
    ):
        inner = inner_scores(
            np.concatenate(parts[:-1]), np.concatenate(targets_[:-1]), groups
        )
        ridge = Ridge.fit(
            Sums.of(np.concatenate(parts[:-1]), np.concatenate(targets_[:-1]))
        )
        r = pearson(
            ridge.predict(parts[-1], alpha=ALPHAS[inner.argmax()]), targets_[-1]
        )
        said[name] = round(float(r.mean()), 3)
    print(charts.LABELS[t], said)

# %% [markdown]
# ## Further reading
#
# - {cite:p}`jaume2024hest`: probe A, and what pathology encoders reach with it.
# - {cite:p}`lause2021pearson`: the residuals that discount depth.
# - {cite:p}`tan2019efficientnet`: the family of the default encoder.

# %% tags=["key-figures", "remove-cell"]
print(
    json.dumps(
        {
            "r": {
                f: float(scores[f, "tuned_ridge", target][0].mean())
                for f in names
            },
            "raw": {
                f: float(scores[f, "tuned_ridge", "log1p_raw"][0].mean())
                for f in names
            },
            "ceiling": float(ceiling.mean()),
            "by_class": {
                k: float(reached[of].mean()) for k, of in member.items()
            },
            "null_sd": null_sd,
            "spots": n,
            "honest": float(honest),
            "peeked": float(peeked),
            "best_stage": chosen,
        }
    )
)
