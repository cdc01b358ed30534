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
# # Did it help? Gene prediction, before and after
#
# **Does the tuned encoder say more about a new patient's expression than the frozen one, and more
# than tuning on nonsense would?**
#
# Fifteen minutes to read, one or two to run.
#
# It is easy to show a gain. It is harder to show that the gain comes from what we say it comes
# from. So this chapter scores the held-out patient with everything that might explain a score away
# standing right beside it.

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
EPOCHS = 0  # 0: 12, or 20 on a GPU
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
from scipy.stats import binomtest

from seal_lite import plots
from seal_lite.data.registration import neighbour_mean
from seal_lite.evaluation.features import fold_features
from seal_lite.evaluation.morphology import morphology
from seal_lite.evaluation.probes import tuned_probe
from seal_lite.evaluation.scores import score_models, score_rows, tidy
from seal_lite.evaluation.targets import pearson, section_targets
from seal_lite.tutorial import begin, charts, finetuned

here = begin(DATASET, BACKBONE, EPOCHS, SMOKE, test=TEST, seed=SEED)
config, train, test, genes = here.config, here.train, here.test, here.genes
truth = here.truth  # None on real data
print(
    "training sections:",
    ", ".join(s.name for s in train),
    "| held out:",
    test.name,
)

# %% [markdown]
# ## Three maps of one gene
#
# Below, a gene in the held-out patient as it was measured, and three predictions of it by the same
# linear {term}`probe`: from the encoder as it came, from the finetuned one of the [last
# chapter](08_finetune.ipynb), and from a **control**. The control was finetuned in the same way, on
# the same images, genes, steps and seed, except that within each section the expression was dealt
# out to the wrong patches. Whatever it gains over the frozen encoder has nothing to do with what
# tissue expresses.

# %%
models = {
    name: finetuned(here, shuffle_pairs=shuffle)[0]
    for name, shuffle in (("tuned", False), ("shuffled", True))
}
features = fold_features(
    train, [test], genes, models=models, config=config, cache_dir="runs/cache"
)
target = "pearson_residuals"
y = [section_targets(s.adata, genes)[target][s.rows] for s in (*train, test)]
groups = np.concatenate([[s.name] * len(s.rows) for s in train])


def predict(name):
    """Probe B's prediction for the held-out patient from the features of that name."""
    *x, held = features[name]
    train_x, train_y = np.concatenate(x).astype(float), np.concatenate(y[:-1])
    return tuned_probe(train_x, train_y, held, groups=groups)


predicted = {name: predict(name) for name in ("frozen", "shuffled", "tuned")}

# %%
#| alt: Maps of the held-out section. Above, the stained tissue and one gene as measured, on the
#| phantom also without noise; below, the gene as predicted from the frozen encoder, from the
#| control and from the finetuned encoder, each with its correlation.
one = genes.index("ERBB2") if "ERBB2" in genes else int(np.argmax(y[-1].var(0)))
maps = {f"{genes[one]}, measured": y[-1][:, one]}
if truth is not None:
    maps["what was there"] = np.log1p(1e4 * truth.expected(test, genes)[:, one])
for name, said in (
    ("frozen", "frozen"),
    ("shuffled", "control"),
    ("tuned", "finetuned"),
):
    r = pearson(predicted[name], y[-1])[one]
    maps[f"{said}: r = {r:.2f}"] = predicted[name][:, one]
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(
        2, 3, figsize=(8.4, 5.6 * plots.aspect(test) + 1.6)
    )
    plots.tissue(axes[0, 0], test, title=test.name)
    places = [*axes[0, 1 : len(maps) - 2], *axes[1]]
    for ax, (name, values) in zip(places, maps.items(), strict=True):
        scaled = (values - values.mean()) / values.std()
        shown = plots.discs(ax, test, scaled, limits=(-2, 2), title=name)
    axes[0, 2].set_visible(truth is not None)
    bar = {"location": "bottom", "shrink": 0.5, "aspect": 30}
    plots.colour_bar(figure, shown, axes, label="expression (sd)", **bar)
plt.close(figure)
figure

# %% [markdown]
# All three look about right, the control included. An eye is easily pleased, and one gene is easily
# chosen. The rest of the chapter scores all of them, beside everything that might explain a score
# away.

# %% [markdown]
# ## The score
#
# For every set of features the same linear probes are fitted on the training sections and asked to
# predict the held-out one; the score is Pearson's $r$ between prediction and measurement over the
# section's spots, gene by gene. Probe A is HEST-bench's {cite:p}`jaume2024hest`: standardise, up
# to 256 principal components ($p$; our embedding has 112 numbers), ridge with
# $\alpha = 100 / (p\, G)$ for $G$ genes. With few spots that is hardly any regularisation, so
# probe B chooses its $\alpha$ by leaving out training sections. The finetuned models also have a
# decoder of their own.
#
# The target is the Pearson residual, from which depth is discounted
# ([why](01_meet_a_section.ipynb)). Beside the encoders stand:
#
# - six **colour** numbers of the patch, the **log depth** of the spot, and the encoder with
#   **random weights**: cheap explanations;
# - the mean of the **8 neighbours'** measurements: what space alone tells, if one could measure
#   there;
# - the **noise ceiling**, a bound on what any prediction could reach on such noisy counts,
#   estimated by splitting them in two; and on the phantom the **oracle**, the true expectation.

# %%
#| alt: A row for every kind of features, from the finetuned encoder down to the oracle, and on each
#| a mark per probe at its mean correlation over genes.
scores = score_models(
    train,
    [test],
    genes,
    models=models,
    features=features,
    truth=truth,
    seed=SEED,
)
classes = None if truth is None else truth.classes
result = {
    "classes": classes,
    "folds": [
        {"test": test.name, "seed": SEED, "scores": score_rows(scores, genes)}
    ],
}
scores = {
    place: r[0] for place, r in scores.items()
}  # of the one section held out
charts.scores(result)

# %% [markdown]
# ## By class of gene
#
# The phantom's declared classes turn one average into a test of honesty: the invisible genes follow
# a state that was never drawn, so any score on them beyond noise would be a leak. (They all follow
# the *same* state, so they err together: chance moves all of them at once, up or down.)

# %%
table = tidy(result).query("target == 'pearson_residuals'")
order = [k for k in charts.LABELS if k in set(table.features)]
by_class = table.pivot_table(
    "r", ["features", "probe"], "class", "mean"
).assign(all=table.groupby(["features", "probe"]).r.mean())
by_class.reindex(order, level="features").round(3)

# %% [markdown]
# Three things to look for. The invisible genes: encoders should find nothing there, and the
# *neighbours* may well find something, because a state that changes smoothly over tissue can be
# guessed from next door without any image. A model that is given coordinates, or patches that
# overlap those it was trained on, can therefore seem to see the invisible; ours is given neither.
# The subtle genes: they are where an encoder made for photographs has something to learn. And the
# last two rows: the ceiling lies above the oracle, because splitting counts in two reveals the
# noise of counting but not what made both halves vary together.

# %% [markdown]
# ## The differences that count
#
# The same genes, paired, all with probe B: after finetuning against before, against the frozen
# encoder [read where it reads best](04_frozen_baseline.ipynb), and against the control. Each dot is
# a gene; above the line finetuning wins.

# %%
#| alt: Three scatter plots of the genes' correlations with a diagonal, coloured by class: finetuned
#| against frozen, against the frozen encoder's best layer, and against the control.
probe = "tuned_ridge"
tuned = scores["tuned", probe, target]
label = np.array([(classes or {}).get(g, "all genes") for g in genes])
kinds = list(dict.fromkeys(label))
rivals = {
    "frozen": scores["frozen", probe, target],
    "best frozen stage": scores["frozen_best", probe, target],
    "control": scores["shuffled", probe, target],
}
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.3), sharey=True)
    ends = [
        min(-0.3, tuned.min(), *(x.min() for x in rivals.values())) - 0.05,
        1,
    ]
    for ax, (name, x) in zip(axes, rivals.items(), strict=True):
        ax.plot(ends, ends, color=plots.GREY, lw=0.8)
        for kind, colour in zip(kinds, plots.COLOURS, strict=False):
            at = label == kind
            ax.plot(
                x[at],
                tuned[at],
                "o",
                ms=5,
                mew=0,
                alpha=0.7,
                color=colour,
                label=kind,
            )
        ax.set(xlabel=f"r, {name}", xlim=ends, ylim=ends, aspect="equal")
    axes[0].set_ylabel("r, finetuned")
    axes[0].legend(loc="upper left", fontsize=9)
plt.close(figure)
figure

# %% [markdown]
# The same as differences, with their means:

# %%
#| alt: A row for every class of genes, with three series of dots, one dot per gene, finetuned minus
#| frozen, minus the best frozen stage and minus the control, and a bar at each mean.
differences = {
    kind: {
        f"minus {name}": (tuned - x)[label == kind]
        for name, x in rivals.items()
    }
    for kind in kinds
}
charts.strips(
    differences, label="finetuned minus rival: difference in r, per gene"
)

# %%
summary = pd.DataFrame(
    {
        k: {name: d.mean() for name, d in v.items()}
        for k, v in differences.items()
    }
)
spread = pd.DataFrame(
    {
        k: {name: d.std() for name, d in v.items()}
        for k, v in differences.items()
    }
)
(
    summary.round(3).astype(str)
    + " (sd over genes "
    + spread.round(2).astype(str)
    + ")"
)

# %%
n = len(test.rows)
print(
    f"With {n} spots, r of a single gene is uncertain by about {1 / np.sqrt(n):.2f} (1/sqrt n)."
)
for kind, row in summary.items():
    for name, value in row.items():
        word = "within" if abs(value) < 1 / np.sqrt(n) else "beyond"
        print(f"{kind}, finetuned {name}: {value:+.3f}, {word} that")

# %% [markdown]
# The fewer the training patients, the less there is to learn what is subtle from: with two of them,
# as here, an early stage of the frozen encoder may well be ahead.
#
# Read all of this with care. It is **one fold and one seed**: one patient left out, one random
# start, and genes that share all their spots and so all their luck. From that no confidence
# interval follows, and a mean difference smaller than the uncertainty of a single gene is not a
# finding, whichever sign it has. Nor is every larger one: of the invisible genes nothing can be
# seen, so whatever *their* difference is, it is luck, and as they share one state it is one throw
# of the dice. The intervals are on the page of [recorded results](../results.md), over all folds
# and several seeds, on the phantom and on real tissue.
#
# ## Where it errs
#
# Three genes on the held-out patient, predicted by probe B from the tuned embedding: on the phantom
# one of each class. Look where the errors lie, not only how large they are.

# %%
#| alt: A row for each of three genes: the tissue, the gene as measured, as predicted from the
#| finetuned encoder, and the error, orange where the prediction is too high and purple where too
#| low.
first = [genes.index(g) for g in ("ERBB2", "MKI67", "ISG15") if g in genes]
shown = first if len(first) == 3 else list(np.argsort(-tuned)[:3])
charts.prediction_maps(
    test,
    y[-1][:, shown],
    predicted["tuned"][:, shown],
    genes=[f"{genes[i]} ({label[i]})" for i in shown],
)

# %% [markdown]
# ## The other targets
#
# Raw and depth-normalised $\log(1 + x)$ are reported because the literature uses them. Note where
# log depth, a single number that no image was needed for, stands in each column.

# %%
overall = tidy(result).query("probe in ['tuned_ridge', 'none']")
overall = overall.pivot_table("r", "features", "target", "mean").reindex(order)
overall[
    ["pearson_residuals", "log1p_cp10k", "log1p_cp10k|depth", "log1p_raw"]
].rename(
    index=lambda k: charts.LABELS[k].replace("\n", " "), columns=charts.LABELS
).round(3)

# %% [markdown]
# ## Is the tissue still in it?
#
# An encoder that has learnt to speak of genes may have forgotten what it saw. Two checks on the
# held-out patient, before and after. The **effective rank** {cite:p}`roy2007effective` counts the
# directions that the embedding uses: a collapse would show there first. And where the regions are
# known, as on the phantom, a logistic regression names the region of every spot; the score is the
# mean share named right, region by region.

# %%
kept = pd.DataFrame(morphology(train, [test], features, truth=truth)).T
kept.index = [charts.LABELS[k].replace("\n", " ") for k in kept.index]
kept.rename(columns=lambda name: name.replace("_", " ")).round(2)

# %% [markdown]
# ## What to remember
#
# - A gain over the frozen encoder counts only as far as shuffled pairs do not give it too.
# - Two probes, because a probe can flatter; controls, because colour, depth and space explain much.
# - The ceiling and the oracle say how much there was to win.
# - What was there before is worth a look, too: regions still named, directions still used.
# - One fold and one seed are an illustration. The [recorded results](../results.md) are the
#   evidence.
#
# [Next](10_retrieval.ipynb): what the shared space is good for besides prediction.

# %% [markdown]
# ## Exercises
#
# **1.** The uncertainty of $1/\sqrt n$ supposes that spots are independent. Make maps that know
# nothing but are as smooth as a prediction: noise, averaged a few times with its neighbours. How
# far from 0 do their correlations with the measured genes scatter?

# %% tags=["hide-cell", "solution"]
rng = np.random.default_rng(0)
near = neighbour_mean(test.adata)
noise = rng.standard_normal((test.adata.n_obs, 300))


def beside(maps):
    """Mean correlation of maps (n, k) with the mean of their neighbours: how smooth they are."""
    whole = np.zeros((test.adata.n_obs, maps.shape[1]))
    whole[test.rows] = maps
    return pearson(maps, (near @ whole)[test.rows]).mean()


print(
    f"r with the neighbours' mean: the tuned prediction {beside(predicted['tuned']):.2f}"
)
for times in range(5):
    smooth = noise[test.rows]
    by_chance = [
        pearson(np.repeat(gene[:, None], 300, 1), smooth).std()
        for gene in y[-1].T
    ]
    print(
        f"noise averaged {times} times: {beside(smooth):.2f}, chance {np.mean(by_chance):.3f}"
    )
    noise = (noise + near @ noise) / 2
print(f"1/sqrt n: {1 / np.sqrt(n):.3f}")
# The smoother both maps are, the fewer independent places there are in them, and the further chance
# reaches. Where a map is as smooth as the prediction, 1/sqrt n is too small an uncertainty.

# %% [markdown]
# **2.** Why within a section, and never across? Take a model that knows the patient and nothing
# else: it predicts each section's own mean for every spot. What is its $r$ over the spots of all
# sections together, for $\log(1 + \text{CP10k})$ and for Pearson residuals?

# %% tags=["hide-cell", "solution"]
for name in ("log1p_cp10k", "pearson_residuals"):
    parts = [
        section_targets(s.adata, genes)[name][s.rows] for s in (*train, test)
    ]
    level = [np.broadcast_to(part.mean(0), part.shape) for part in parts]
    pooled = pearson(np.concatenate(level), np.concatenate(parts)).mean()
    within = np.mean(
        [pearson(a, b).mean() for a, b in zip(level, parts, strict=True)]
    )
    print(
        f"{charts.LABELS[name]}: all sections together {pooled:.2f}, within a section {within:.2f}"
    )
# Pooled, the model earns a fine r for telling three slides apart, which any stain does. Residuals
# are centred in each section, so there it earns nearly nothing. Ask how an r was pooled before you
# compare.

# %% [markdown]
# **3.** A sign test asks how often one encoder wins, gene by gene, and what chance would give.
# Predict its p-value for finetuned against control on the *invisible* genes alone, of which nothing
# can be seen. Which assumption fails?

# %% tags=["hide-cell", "solution"]
sign_test = {}
for kind in kinds:
    won = int((tuned > rivals["control"])[label == kind].sum())
    of = int((label == kind).sum())
    strength = np.linalg.eigvalsh(np.corrcoef(y[-1][:, label == kind].T))
    independent = strength.sum() ** 2 / (strength**2).sum()
    sign_test[kind] = {
        "won": won,
        "of": of,
        "p": binomtest(won, of).pvalue,
        "as good as": independent,
    }
# The test counts genes as if each were a throw of its own. Genes of one program are not: the last
# column says as how many independent genes they are good, from the eigenvalues of their
# correlations. With so few throws no such p means anything, and the invisible genes, where the
# truth is known, show how small it can be for nothing.
pd.DataFrame(sign_test).T.round(4)

# %% [markdown]
# ## Further reading
#
# - {cite:p}`jaume2024hest` set the benchmark, and the probe A, that most encoders are scored with.
# - {cite:p}`alain2016probes` on what a linear probe can and cannot tell.
# - {cite:p}`kapoor2023leakage` count the ways in which a test set leaks, over seventeen fields.

# %% tags=["key-figures", "remove-cell"]
print(
    json.dumps(
        {
            "spots": n,
            "r": {
                f"{f}/{p}": float(np.mean(v))
                for (f, p, t), v in scores.items()
                if t == "pearson_residuals"
            },
            "by_class": {
                k: {
                    f: float(scores[f, p, target][label == k].mean())
                    for f, p in (
                        ("tuned", probe),
                        ("frozen", probe),
                        ("shuffled", probe),
                        ("frozen_best", probe),
                        ("oracle", "none"),
                        ("neighbours", "none"),
                        ("ceiling", "none"),
                    )
                    if (f, p, target) in scores
                }
                for k in kinds
            },
            "kept": kept.loc[["finetuned", "frozen"]].to_dict("list"),
            "sign_test": sign_test,
            "log_depth_r": {
                t: float(scores["log_depth", probe, t].mean())
                for t in ("pearson_residuals", "log1p_cp10k", "log1p_raw")
            },
        }
    )
)
