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
# # From genes to tissue
#
# **Ask for genes, get regions: does the shared space find the right places in a patient it has
# never seen?**
#
# Ten minutes to read, under a minute to run if the earlier chapters have run.
#
# After finetuning, patches and expression profiles live in one space. So we can write down a
# profile, "much *ERBB2*, everything else as usual", and ask which regions of a slide lie nearest.
# No gene is measured on the slide for that; the measured counts only check the answer.

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
GENE_SETS = {
    "tumour": ["ERBB2", "GRB7", "EPCAM"],
    "stroma": ["COL1A1", "COL3A1", "DCN"],
    "fat": ["ADIPOQ", "PLIN1", "FABP4"],
    "lymphocytes": ["CD3E", "TRAC", "MS4A1"],
}
TOP = 10

# %%
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from seal_lite import plots
from seal_lite.encoders.embedding import embed_patches
from seal_lite.evaluation.retrieval import (
    gene_set_profile,
    retrieval_scores,
    search,
)
from seal_lite.tutorial import begin, charts, finetuned

here = begin(DATASET, BACKBONE, EPOCHS, SMOKE, test=TEST, seed=SEED)
config, train, test = here.config, here.train, here.test
models = {
    name: finetuned(here, shuffle_pairs=shuffle)[0]
    for name, shuffle in (("tuned", False), ("shuffled", True))
}
model = models["tuned"]
embeddings = embed_patches(model.encoder, test.patches)
print(f"{len(embeddings)} regions of {test.name}, a patient that was held out")

# %% [markdown]
# The answer first. We ask the held-out slide for the genes that the picture names, and get ten
# regions. Left, where they lie; right, what was measured there, which the query did not know;
# below, what they look like.

# %%
#| alt: A tissue section twice, with the ten regions that were found framed and numbered, best
#| first: on the stained tissue, and on a map of the gene set's measured mean z. Below, the ten
#| regions enlarged, each with its cosine and its measured z.
sets = {
    k: [g for g in genes if g in model.panel.genes]
    for k, genes in GENE_SETS.items()
}
sets = {k: genes for k, genes in sets.items() if genes}
gallery = model.project_images(embeddings)
answers = {
    name: search(
        model.encode_genes(gene_set_profile(model.panel, genes)),
        gallery,
        top=TOP,
    )
    for name, genes in sets.items()
}
first = next(iter(sets))
(hits,), (cosines,) = answers[first]
plots.retrieval(
    test,
    hits,
    cosines,
    genes=sets[first],
    panel=model.panel,
    patch_um=config.patch_um,
)

# %% [markdown]
# ## The query
#
# A {term}`profile` has a place for every gene of the {term}`panel`. The genes we ask for stand at
# $z = 3$, three standard deviations above their mean, all others at their mean. The gene encoder
# maps it to a unit vector $v$, the image side maps every region to a unit vector $u_i$, and regions
# are ranked by the cosine $u_i \cdot v$. That is all that `search` does: one product of matrices
# and a sort, {cite:p}`radford2021clip`'s recipe with genes in the place of words.
#
# The book's [interactive page](../explorer.md) lets you ask such questions with the mouse.
#
# ## Does it find the others, too?

# %%
#| alt: The same for the last of the gene sets. The tissue with the ten regions that were found, the
#| map of the set's measured mean z, and the regions enlarged.
last = list(sets)[-1]
(hits,), (cosines,) = answers[last]
plots.retrieval(
    test,
    hits,
    cosines,
    genes=sets[last],
    panel=model.panel,
    patch_um=config.patch_um,
)

# %% [markdown]
# ## Expression of what was found
#
# For every set: the measured $z$ of the regions found, and of as many drawn at random.

# %%
#| alt: A row for each gene set. Dots are the measured mean z of single regions, bars their mean,
#| for the regions found and for as many drawn at random.
z = model.panel.transform(test.adata)[test.rows]
rng = np.random.default_rng(SEED)
found = {}
for name, genes in sets.items():
    of_set = z[:, [model.panel.genes.index(g) for g in genes]].mean(1)
    found[name] = {
        f"top {TOP} found": of_set[answers[name][0][0]],
        f"{TOP} at random": of_set[
            rng.choice(len(of_set), min(TOP, len(of_set)), replace=False)
        ],
    }
charts.strips(
    found, label="measured mean z of the gene set, smoothed as in training"
)

# %%
pd.DataFrame(
    {k: {name: v.mean() for name, v in g.items()} for k, g in found.items()}
).round(2)

# %% [markdown]
# ## A harder question: the very spot
#
# A gene set describes a kind of tissue, and there is much of each kind. Harder: take the *whole*
# measured profile of a spot and ask for its own region among all $n$ regions of the section. How
# often is it among the first 1, 5, 10? By chance that is $k / n$. The median rank of the right
# region tells the rest. The model trained on shuffled pairs is the control: it has the same heads
# and the same number of steps, but never learned which genes belong to which tissue.

# %%
recalls = {"tuned": retrieval_scores(model, test, embeddings)}
control = models["shuffled"]
recalls["shuffled"] = retrieval_scores(
    control, test, embed_patches(control.encoder, test.patches)
)
n, at = recalls["tuned"]["n"], (1, 5, 10)
table = pd.DataFrame(
    {
        name: {f"recall@{k}": r[f"recall@{k}"] for k in at}
        | {"median rank": r["median_rank"]}
        for name, r in recalls.items()
    }
)
table["chance"] = [recalls["tuned"][f"chance@{k}"] for k in at] + [(n + 1) / 2]
table.round(3)

# %% [markdown]
# The expression a spot is asked for with includes its neighbours' (it is smoothed as in training),
# so part of the right answer is "somewhere around here". And a kind of tissue with many look-alike
# regions cannot be told apart by anyone: a recall well above chance and far below one is what an
# honest shared space looks like on a single section.
#
# ## What to remember
#
# - A gene set becomes a point in the shared space; the nearest regions are the answer.
# - The measured counts check the answer; they are not used to find it.
# - Compare with chance and with a model trained on shuffled pairs, not with zero.
# - Pictures persuade; ranks over all spots count.
#
# ## Exercises

# %% [markdown]
# **1.** The genes asked for stand at $z = 3$. Would other regions be found at $z = 1$, or at $z =
# 6$? Think first of a gene encoder that is a matrix and nothing else. Then count how many of the
# regions stay.

# %% tags=["hide-cell", "solution"]
# A matrix alone would keep the direction of the query, and so the ranking. The gene encoder has
# biases and bends, so the strength of a question is part of the question.
stay = {}
for name, genes in sets.items():
    stay[name] = {}
    for strength in (1.0, 6.0):
        query = model.encode_genes(
            gene_set_profile(model.panel, genes, z=strength)
        )
        again = search(query, gallery, top=TOP)[0][0]
        stay[name][f"z = {strength:g}"] = len(
            set(again) & set(answers[name][0][0])
        )
pd.DataFrame(stay).rename_axis(f"of {TOP} at z = 3")

# %% [markdown]
# **2.** Ask for tissue that *lacks* the genes: put them at $z = -3$. For which set do you expect
# the measured $z$ of what is found to fall furthest below the section's mean, which is 0? Spots
# without fat are many; are spots far below the mean of fat genes?

# %% tags=["hide-cell", "solution"]
# A set that few spots express has its mean near its floor: nothing lies far below. A set that is
# spread evenly can be asked for in both directions.
rows = {}
for name, genes in sets.items():
    of_set = z[:, [model.panel.genes.index(g) for g in genes]].mean(1)
    query = model.encode_genes(gene_set_profile(model.panel, genes, z=-3.0))
    lacking = search(query, gallery, top=TOP)[0][0]
    rows[name] = {
        "asked at +3": of_set[answers[name][0][0]].mean(),
        "asked at -3": of_set[lacking].mean(),
        "lowest measured": of_set.min(),
    }
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# **3.** How much of a hit is "somewhere around here"? Let every spot ask with its whole profile, as
# above, and measure how far the region that comes first lies from the spot that asked. What would
# the median be if the answer were any region?

# %% tags=["hide-cell", "solution"]
#| alt: Two histograms of distances in micrometres, of the first answer from the spot that asked and
#| of any two regions of the section from each other, with their medians in the legend.
# Nearer than chance, and mostly not next door: tissue repeats itself across a section, and a wrong
# answer of the right kind is counted as wrong. Where it is next door, smoothing has helped it.
place = test.adata.obsm["spatial"][test.rows] * test.adata.uns["um_per_px"]
nearest = search(model.encode_genes(z), gallery, top=1)[0][:, 0]
far = {
    "first answer": np.linalg.norm(place - place[nearest], axis=1),
    "any region": np.linalg.norm(place[:, None] - place, axis=2).ravel(),
}
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(7, 2.8))
    bins = np.arange(
        0, far["any region"].max() + 300, 300
    )  # the first: itself and neighbours
    for (name, values), colour in zip(far.items(), plots.COLOURS, strict=False):
        ax.hist(
            values,
            bins,
            density=True,
            histtype="step",
            lw=2,
            color=colour,
            label=f"{name}: median {np.median(values):,.0f} µm",
        )
    ax.set(
        xlabel="distance from the spot that asked, µm",
        ylabel="share of answers",
        yticks=[],
    )
    ax.legend()
plt.close(figure)
figure

# %% [markdown]
# ## Further reading
#
# - {cite:p}`radford2021clip` made one space of pictures and words, and asked it in the same way.
# - {cite:p}`xie2023bleep` retrieves in the other direction: a patch asks for profiles, and the mean
#   of the 50 nearest is its predicted expression.
# - {cite:p}`chen2025loki` aligns slides and transcriptomes at a larger scale; it predicts from all
#   profiles, weighted by their cosines. `predict_by_retrieval` does either.

# %% tags=["key-figures", "remove-cell"]
print(
    json.dumps(
        {
            "recall": recalls,
            "z_of_hits": {
                k: {name: float(v.mean()) for name, v in g.items()}
                for k, g in found.items()
            },
        }
    )
)
