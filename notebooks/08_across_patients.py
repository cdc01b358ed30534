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
# # Retrieval across patients
#
# **A profile from one patient asks for tissue of another: does the shared space know what two
# patients have in common?**
#
# Ten minutes to read, a minute to run if the earlier chapters have run.
#
# In the chapter before, the answer lay in the slide that asked. Here it may not: every slide is
# searched from every other, in both directions, and the score has to change with the question.

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
ASKING = 5  # patients who neither trained nor are asked about elsewhere (phantom only)
TOP = 10

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import seal_charts as charts
from seal_lite import Config, plots
from seal_lite.encoders import embed
from seal_lite.evaluate import genes_to_score
from seal_lite.formats import patient_of
from seal_lite.retrieval import cross_modal, shared_space
from seal_lite.sections import list_sections, load_sections
from seal_lite.train import code_hash, finetune
from tissue_phantom import phantom

ROOT = Path(DATASET)
if DATASET == "phantom":
    ROOT = phantom("data/phantom", patients=3, sections_per_patient=1, spots=160, seed=0)
names = list_sections(ROOT)
TEST = TEST or names[-1]
train = load_sections(ROOT, [n for n in names if patient_of(n) != patient_of(TEST)] or names[:-1])
asked = load_sections(ROOT, [n for n in names if n not in [s.name for s in train]])
if DATASET == "phantom":  # more patients, of another seed, so that there is somebody to ask
    asked = load_sections(
        phantom("data/phantom-asked", patients=ASKING, sections_per_patient=2, spots=80, seed=5)
    )

config = Config(epochs=EPOCHS, n_views=N_VIEWS, seed=SEED)
setting = f"{ROOT.name}-without-{patient_of(TEST)}-{EPOCHS}x{N_VIEWS}-seed{SEED}-{code_hash()[:6]}"
spaces = {}
for name, shuffle in (("tuned", False), ("shuffled", True)):
    model, _ = finetune(
        train,
        config,
        out=Path("runs") / setting / name,
        include=genes_to_score(ROOT, train),
        shuffle_pairs=shuffle,
        cache_dir="runs/cache",
    )
    spaces[name] = shared_space(model, asked, [embed(model.encoder, s.patches) for s in asked])
patients = len({s.patient for s in asked})
print(f"{len(asked)} slides of {patients} patients, {len(spaces['tuned']['slide'])} regions")

# %% [markdown]
# ## Is a patient an island?
#
# First a look. Both kinds of points are in one space: left, where the pictures lie; right, where
# the profiles lie. If pictures of different patients formed islands, no profile of one could find
# tissue of another.

# %%
space = spaces["tuned"]
both = np.concatenate([space["images"], space["genes"]])
_, _, axes = np.linalg.svd(both - both.mean(0), full_matrices=False)
flat = (both - both.mean(0)) @ axes[:2].T
with plt.rc_context(plots.STYLE):
    figure, panels = plt.subplots(1, 2, figsize=(8.5, 4.0), sharex=True, sharey=True)
    for ax, (title, part) in zip(
        panels, (("pictures", flat[: len(flat) // 2]), ("profiles", flat[len(flat) // 2 :])),
        strict=True,
    ):  # fmt: skip
        for patient, colour in zip(dict.fromkeys(space["patient"]), plots.COLOURS, strict=False):
            here = space["patient"] == patient
            ax.scatter(*part[here].T, s=9, color=colour, alpha=0.6, lw=0, label=patient)
        ax.set(title=title, xlabel="first axis", ylabel="second axis" if ax is panels[0] else "")
    panels[1].legend(title="patient", loc="center left", bbox_to_anchor=(1, 0.5))
plt.close(figure)
figure

# %% [markdown]
# ## Two scores, because there are two questions
#
# *Did it find the very spot?* That is recall: the share of queries whose own pair is among the
# nearest $k$. It can only be asked where the own pair is in the gallery: within the slide, or among
# all slides.
#
# *Did it find tissue that expresses the same?* In another patient there is no own pair, and even
# within a slide the neighbour of a spot is nearly as good an answer as the spot. So we correlate
# the query's expression with that of what was retrieved, over the genes of the panel, and put it
# between two marks: **random**, the mean over the whole gallery, and **oracle**, the best that any
# retrieval could have chosen. The own pair is left out of this score.

# %%
rows = {name: pd.DataFrame(cross_modal(space, top=TOP)) for name, space in spaces.items()}
order = ["slide", "other slides", "other patients", "all"]
order = [scope for scope in order if scope in set(rows["tuned"].scope)]
table = (
    pd.concat(rows, names=["model"])
    .groupby(["direction", "scope", "model"], sort=False)[["random", "found", "oracle"]]
    .mean()
    .unstack("model")
)
shown = table["found"].assign(random=table["random", "tuned"], oracle=table["oracle", "tuned"])
shown[["random", "shuffled", "tuned", "oracle"]].round(3)

# %%
with plt.rc_context(plots.STYLE):
    figure, panels = plt.subplots(1, 2, figsize=(8.5, 3.2), sharey=True)
    for ax, direction in zip(panels, ("genes to images", "images to genes"), strict=True):
        for name, colour, at in (("tuned", plots.COLOURS[0], -0.12),
                                 ("shuffled", plots.COLOURS[1], 0.12)):  # fmt: skip
            asks = rows[name][rows[name].direction == direction]
            for i, scope in enumerate(order):
                part = asks[asks.scope == scope]
                share = (part.found - part.random) / (part.oracle - part.random)
                dots = {"ms": 4, "mew": 0, "alpha": 0.5, "color": colour}
                ax.plot(share, np.full(len(share), i + at), "o", **dots)
                ax.plot([share.mean()] * 2, [i + at - 0.1, i + at + 0.1], lw=3.5, color=colour,
                        label=None if i else charts.LABELS[name])  # fmt: skip
        ax.set_yticks(range(len(order)), order)
        ax.set(title=direction, xlabel="share of the way from random to oracle",
               ylim=(len(order) - 0.5, -0.5))  # fmt: skip
        ax.axvline(0, color=plots.GREY, lw=0.8)
    panels[0].legend(loc="lower right")
plt.close(figure)
figure

# %% [markdown]
# A dot is a slide that asks, the bar their mean. Zero is a random answer. What the model finetuned
# on shuffled pairs reaches was not learnt from the pairing: it is the control here as everywhere.
#
# ## The very spot, among ever more

# %%
spot = rows["tuned"].query("scope in ['slide', 'all']")
columns = ["recall@1", "chance@1", "recall@10", "chance@10", "median_rank", "n"]
spot.groupby(["direction", "scope"], sort=False)[columns].mean().round(3)

# %% [markdown]
# Chance falls with the size of the gallery, and so does recall. Neither number alone says anything;
# the ratio does.
#
# ## From the command line
#
# ```sh
# seal-lite retrieval-bench --run RUN --data DATA --gmt SETS.gmt --json scores.json
# ```
#
# It prints the table above, and with a file of gene sets asks every slide for each of them. The
# search is exact, and goes through a gallery that lies on disk part by part.
#
# ## What to remember
#
# - Say what the gallery is. Within a slide, across slides and across patients are three questions.
# - Recall needs the own pair; across patients there is none, so correlate expression instead.
# - A correlation needs its two ends: what random answers get, and what the best would.

# %% tags=["key-figures", "remove-cell"]
means = {name: r.groupby(["direction", "scope"])[["found", "random", "oracle"]].mean()
         for name, r in rows.items()}  # fmt: skip
print(
    json.dumps(
        {
            "scopes": sorted(set(rows["tuned"].scope)),
            "regions": len(space["slide"]),
            "across": {
                name: m.loc[("genes to images", "other patients")].to_dict()
                for name, m in means.items()
            }
            if "other patients" in set(rows["tuned"].scope)
            else None,
            "recall": spot.groupby("scope")[["recall@10", "chance@10"]].mean().to_dict("index"),
        }
    )
)
