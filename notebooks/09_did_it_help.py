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
# # Gene prediction, before and after
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
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("seal_lite") is None:  # in Colab, whose own torch is kept
    home = "seal_lite[offline,encoders] @ git+https://github.com/seal-lite/seal-lite"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", home], check=True)

# %% tags=["parameters"]
DATASET = "auto"  # the phantom, or on a GPU real tumours; or any folder of sections
BACKBONE = "auto"  # a small network, or on a GPU Phikon; or a name of `seal-lite encoders`
EPOCHS = 0  # 0: 12, or 20 on a GPU
SMOKE = False  # everything tiny, just to see that it runs
TEST = ""  # the section held out, with all of its patient's; empty: the last one
SEED = 0

# %%
import json

import numpy as np
import pandas as pd

from seal_book import begin, charts
from seal_lite.crossval import score_rows, tidy
from seal_lite.evaluate import fold_features, gene_classes, score_models
from seal_lite.morphology import morphology
from seal_lite.probe import tuned_probe
from seal_lite.targets import section_targets

here = begin(DATASET, BACKBONE, EPOCHS, SMOKE, test=TEST, seed=SEED)
ROOT, config, train, test, genes = here.root, here.config, here.train, here.test, here.genes
print("training sections:", ", ".join(s.name for s in train), "| held out:", test.name)

# %% [markdown]
# ## Two models: one finetuned on pairs, one on shuffled pairs
#
# The first is the run of the [last chapter](08_finetune.ipynb). The second is the same in every
# way, the same images, genes, steps and seed, except that within each section the expression was
# dealt out to the wrong patches. Whatever the second gains over the frozen encoder has nothing to
# do with what tissue expresses.

# %%
models = {
    name: here.finetuned(shuffle_pairs=shuffle)[0]
    for name, shuffle in (("tuned", False), ("shuffled", True))
}

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
features = fold_features(train, [test], genes, models, config, caches="runs/cache")
scores = score_models(ROOT, train, [test], genes, models, features, seed=SEED)
classes = gene_classes(ROOT)
result = {
    "classes": classes,
    "folds": [{"test": test.name, "seed": SEED, "scores": score_rows(scores, genes)}],
}
scores = {place: r[0] for place, r in scores.items()}  # of the one section held out
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
by_class = table.pivot_table("r", ["features", "probe"], "class", "mean").assign(
    all=table.groupby(["features", "probe"]).r.mean()
)
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
# The same genes, paired: tuned minus frozen, and tuned minus shuffled, both with probe B. Each dot
# is a gene.

# %%
probe, target = "tuned_ridge", "pearson_residuals"
tuned, frozen, shuffled = (scores[n, probe, target] for n in ("tuned", "frozen", "shuffled"))
label = np.array([(classes or {}).get(g, "all genes") for g in genes])
differences = {
    kind: {
        "tuned minus frozen": (tuned - frozen)[label == kind],
        "tuned minus shuffled": (tuned - shuffled)[label == kind],
    }
    for kind in dict.fromkeys(label)
}
charts.strips(differences, label="difference in r, per gene (probe B, Pearson residuals)")

# %%
summary = pd.DataFrame(
    {k: {name: d.mean() for name, d in v.items()} for k, v in differences.items()}
)
spread = pd.DataFrame({k: {name: d.std() for name, d in v.items()} for k, v in differences.items()})
summary.round(3).astype(str) + " (sd over genes " + spread.round(2).astype(str) + ")"

# %%
n = len(test.rows)
print(f"With {n} spots, r of a single gene is uncertain by about {1 / np.sqrt(n):.2f} (1/sqrt n).")
for kind, row in summary.items():
    for name, value in row.items():
        word = "within" if abs(value) < 1 / np.sqrt(n) else "beyond"
        print(f"{kind}, {name}: {value:+.3f}, {word} that")

# %% [markdown]
# Read this with care. It is **one fold and one seed**: one patient left out, one random start, and
# genes that share all their spots and so all their luck. From that no confidence interval follows,
# and a mean difference smaller than the uncertainty of a single gene is not a finding, whichever
# sign it has. The intervals are on the page of [recorded results](../results.md), over all folds
# and several seeds, on the phantom and on real tissue.
#
# ## See it
#
# Three genes on the held-out patient, predicted by probe B from the tuned embedding: on the phantom
# one of each class. Look where the errors lie, not only how large they are.

# %%
both = [*train, test]
y = [section_targets(s.adata, genes)[target][s.rows] for s in both]
groups = np.concatenate([[s.name] * len(s.rows) for s in train])


def predict(name):
    """Probe B's prediction for the held-out patient from the features of that name."""
    *x, held = features[name]
    return tuned_probe(np.concatenate(x).astype(float), np.concatenate(y[:-1]), groups, held)


predicted = predict("tuned")
kinds = list(dict.fromkeys(label))
first = [genes.index(g) for g in ("ERBB2", "MKI67", "ISG15") if g in genes]
shown = first if len(first) == 3 else list(np.argsort(-tuned)[:3])
charts.prediction_maps(
    test, y[-1][:, shown], predicted[:, shown], [f"{genes[i]} ({label[i]})" for i in shown]
)

# %% [markdown]
# ## And with the frozen encoder?
#
# The same three genes, the same probe, before finetuning:

# %%
before = predict("frozen")
charts.prediction_maps(
    test, y[-1][:, shown], before[:, shown], [f"{genes[i]} ({label[i]})" for i in shown]
)

# %% [markdown]
# ## The other targets
#
# Raw and depth-normalised $\log(1 + x)$ are reported because the literature uses them. Note where
# log depth, a single number that no image was needed for, stands in each column.

# %%
overall = tidy(result).query("probe in ['tuned_ridge', 'none']")
overall = overall.pivot_table("r", "features", "target", "mean").reindex(order)
overall[["pearson_residuals", "log1p_cp10k", "log1p_cp10k|depth", "log1p_raw"]].rename(
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
kept = pd.DataFrame(morphology(ROOT, train, [test], features)).T
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
                        ("oracle", "none"),
                        ("neighbours", "none"),
                        ("ceiling", "none"),
                    )
                    if (f, p, target) in scores
                }
                for k in kinds
            },
            "kept": kept.loc[["finetuned", "frozen ImageNet"]].to_dict("list"),
            "log_depth_r": {
                t: float(scores["log_depth", probe, t].mean())
                for t in ("pearson_residuals", "log1p_cp10k", "log1p_raw")
            },
        }
    )
)
