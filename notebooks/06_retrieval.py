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
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("seal_lite") is None:  # in Colab, whose own torch is kept
    home = "seal_lite[offline] @ git+https://github.com/seal-lite/seal-lite"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", home], check=True)

# %% tags=["parameters"]
DATASET = "phantom"  # made here on first use; or the path of a her2st folder
TEST = ""  # the section held out, with all of its patient's; empty: the last one
EPOCHS = 12
N_VIEWS = 4
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
from pathlib import Path

import numpy as np
import pandas as pd

import seal_charts as charts
from seal_lite import Config, plots
from seal_lite.encoders import embed
from seal_lite.evaluate import genes_to_score
from seal_lite.formats import patient_of
from seal_lite.retrieval import gene_set_profile, retrieval_scores, search
from seal_lite.sections import list_sections, load_sections
from seal_lite.train import code_hash, finetune
from tissue_phantom import phantom

ROOT = Path(DATASET)
if DATASET == "phantom":
    ROOT = phantom("data/phantom", patients=3, sections_per_patient=1, spots=160, seed=0)
names = list_sections(ROOT)
TEST = TEST or names[-1]
train = load_sections(ROOT, [n for n in names if patient_of(n) != patient_of(TEST)] or names[:-1])
(test,) = load_sections(ROOT, [TEST])

config = Config(epochs=EPOCHS, n_views=N_VIEWS, seed=SEED)
setting = f"{ROOT.name}-without-{patient_of(TEST)}-{EPOCHS}x{N_VIEWS}-seed{SEED}-{code_hash()[:6]}"
models = {
    name: finetune(
        train,
        config,
        out=Path("runs") / setting / name,
        include=genes_to_score(ROOT, train),
        shuffle_pairs=shuffle,
        cache_dir="runs/cache",
    )[0]
    for name, shuffle in (("tuned", False), ("shuffled", True))
}
model = models["tuned"]
embeddings = embed(model.encoder, test.patches)
print(f"{len(embeddings)} regions of {test.name}, a patient that was held out")

# %% [markdown]
# ## The query
#
# A profile has a place for every gene of the panel. The genes we ask for stand at $z = 3$, three
# standard deviations above their mean, all others at their mean. The gene encoder maps it to a unit
# vector $v$, the image side maps every region to a unit vector $u_i$, and regions are ranked by the
# cosine $u_i \cdot v$.

# %%
sets = {k: [g for g in genes if g in model.panel.genes] for k, genes in GENE_SETS.items()}
sets = {k: genes for k, genes in sets.items() if genes}
gallery = model.project_images(embeddings)
answers = {
    name: search(model.encode_genes(gene_set_profile(model.panel, genes)), gallery, top=TOP)
    for name, genes in sets.items()
}
first = next(iter(sets))
(hits,), (cosines,) = answers[first]
plots.retrieval(test, model.panel, sets[first], hits, cosines, patch_um=model.config.patch_um)

# %% [markdown]
# Left, where the regions lie that the query found; right, what was measured there, which the query
# did not know. Below, the regions themselves.
#
# ## Does it find the others, too?

# %%
last = list(sets)[-1]
(hits,), (cosines,) = answers[last]
plots.retrieval(test, model.panel, sets[last], hits, cosines, patch_um=model.config.patch_um)

# %% [markdown]
# ## Expression of what was found
#
# For every set: the measured $z$ of the regions found, and of as many drawn at random.

# %%
z = model.panel.transform(test.adata)[test.rows]
rng = np.random.default_rng(SEED)
found = {}
for name, genes in sets.items():
    of_set = z[:, [model.panel.genes.index(g) for g in genes]].mean(1)
    found[name] = {
        f"top {TOP} found": of_set[answers[name][0][0]],
        f"{TOP} at random": of_set[rng.choice(len(of_set), TOP, replace=False)],
    }
charts.strips(found, label="measured mean z of the gene set, smoothed as in training")

# %%
pd.DataFrame({k: {name: v.mean() for name, v in g.items()} for k, g in found.items()}).round(2)

# %% [markdown]
# ## A harder question: the very spot
#
# A gene set describes a kind of tissue, and there is much of each kind. Harder: take the *whole*
# measured profile of a spot and ask for its own region among all regions of the section. How often
# is it among the first 1, 5, 10? By chance that is $k / n$. The median rank of the right region
# tells the rest. The model trained on shuffled pairs is the control: it has the same heads and the
# same number of steps, but never learned which genes belong to which tissue.

# %%
recalls = {"tuned": retrieval_scores(model, test, embeddings)}
control = models["shuffled"]
recalls["shuffled"] = retrieval_scores(control, test, embed(control.encoder, test.patches))
n = recalls["tuned"]["n"]
table = pd.DataFrame(
    {
        **{
            name: {
                **{f"recall@{k}": r[f"recall@{k}"] for k in (1, 5, 10)},
                "median rank": r["median_rank"],
            }
            for name, r in recalls.items()
        },
        "chance": {
            **{f"recall@{k}": recalls["tuned"][f"chance@{k}"] for k in (1, 5, 10)},
            "median rank": (n + 1) / 2,
        },
    }
)
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

# %% tags=["key-figures", "remove-cell"]
print(
    json.dumps(
        {
            "recall": recalls,
            "z_of_hits": {
                k: {name: float(v.mean()) for name, v in g.items()} for k, g in found.items()
            },
        }
    )
)
