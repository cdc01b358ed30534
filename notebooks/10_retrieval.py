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
# # Retrieval: from genes to tissue and back
#
# **Does a query with genes find the right patches of a patient whom the model has never seen?**
#
# Fifteen minutes to read, two to run if the earlier chapters have run.
#
# {% set retrieval, real = load("retrieval"), load("her2st_figures").retrieval %}
# {% set gap = retrieval_gaps(retrieval)["genes to images, other patients"] %}
# On unseen patients of the phantom, a spot's profile reaches
# {{ percent(retrieval_means(retrieval).loc["genes to images, other patients", "tuned"].share) }} of
# the way from a random to the best possible answer in other patients. Minus the control trained on
# shuffled pairs that is {{ interval(gap) }}, {{ verdict(gap) }}. On a section of real tissue, a
# search for {{ real.genes | join(" and ") }} finds {{ found_by_chance(real) }}.

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
# 0: 12 epochs, or 20 on a GPU.
EPOCHS = 0
# Everything tiny, to see that it runs.
SMOKE = False
# The section held out, with all of its patient's; empty: the last one.
TEST = ""
SEED = 0
GENE_SETS = {
    "tumour": ["ERBB2", "GRB7", "EPCAM"],
    "stroma": ["COL1A1", "COL3A1", "DCN"],
    "fat": ["ADIPOQ", "PLIN1", "FABP4"],
    "lymphocytes": ["CD3E", "TRAC", "MS4A1"],
}
# Patches that a query retrieves.
TOP = 10
# Further patients, who took no part in training (phantom only).
PATIENTS = 5

# %% tags=["hide-input"]
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from seal_lite import plots
from seal_lite.data.phantom import phantom
from seal_lite.data.section import load_sections
from seal_lite.encoders.embedding import embed_patches
from seal_lite.evaluation.retrieval import (
    cross_modal,
    gene_set_profile,
    retrieval_scores,
    search,
    shared_space,
)
from seal_lite.evaluation.statistics import interval_text, mean_and_interval
from seal_lite.studies.verdict import kind_of
from seal_lite.tutorial import begin, charts, finetuned, result_box

# %%
here = begin(DATASET, BACKBONE, EPOCHS, SMOKE, test=TEST, seed=SEED)
config, test = here.config, here.test
models = {
    "tuned": finetuned(here)[0],
    "shuffled": finetuned(here, shuffle_pairs=True)[0],
}
model = models["tuned"]
embeddings = embed_patches(model.encoder, test.patches)
print(f"{len(embeddings)} patches of {test.name}, which was held out")

# %% [markdown]
# ## A set of genes as the query
#
# Finetuning puts patches and expression profiles into one space. So we can write a {term}`profile`
# by hand and search for the patches nearest to it. The genes of the query stand at $z = 3$, three
# standard deviations above their mean, and all other genes of the {term}`panel` at their mean. The
# gene encoder maps this profile to a unit vector $v$. The image side maps every patch to a unit
# vector $u_i$. The cosine $u_i \cdot v$ ranks the patches, as in {cite:t}`radford2021clip` with
# genes in the place of words.

# %%
sets = {}
for name, genes in GENE_SETS.items():
    in_panel = [gene for gene in genes if gene in model.panel.genes]
    if in_panel:
        sets[name] = in_panel
gallery = model.project_images(embeddings)  # a unit vector for each patch
hits, cosines = {}, {}
for name, genes in sets.items():
    query = model.encode_genes(gene_set_profile(model.panel, genes))
    (hits[name],), (cosines[name],) = search(query, gallery, top=TOP)

# %% [markdown]
# Here is the answer for the first set. The measured counts on the right check it; the search did
# not use them.

# %%
#| alt: A tissue section twice, with the ten retrieved patches framed and numbered, best first: on
#| the stained tissue, and on a map of the gene set's measured mean z. Below, the ten patches
#| enlarged, each with its cosine and its measured z.
first = next(iter(sets))
plots.retrieval(
    test,
    hits[first],
    cosines[first],
    genes=sets[first],
    panel=model.panel,
    patch_um=config.patch_um,
)

# %% [markdown]
# ## Is that more than chance?
#
# Patches of tumour are easy to find in a tumour. So we compare the retrieved patches with 4,000
# random draws of as many patches. The column *chance, 95%* is the mean $z$ that 95% of these draws
# stay below. Higher is better, up to the best possible draw.

# %%
#| alt: A row for each gene set. Dots are the measured mean z of single patches, bars their mean,
#| for the retrieved patches and for as many drawn at random.
z = test.expression(model.panel)  # (patches, panel genes)
rng = np.random.default_rng(SEED)
top = min(TOP, len(z))
measured, rows = {}, {}
for name, genes in sets.items():
    columns = [model.panel.genes.index(gene) for gene in genes]
    set_z = z[:, columns].mean(1)
    draws = [rng.choice(set_z, top, replace=False) for _ in range(4000)]
    measured[name] = {"retrieved": set_z[hits[name]], "at random": draws[0]}
    rows[name] = {
        "retrieved": set_z[hits[name]].mean(),
        "chance, 95%": np.percentile(np.mean(draws, axis=1), 95),
        "best possible": np.sort(set_z)[-top:].mean(),
    }
set_scores = pd.DataFrame(rows).T
charts.strips(measured, label="measured mean z of the gene set")

# %%
set_scores.round(2)

# %% [markdown]
# The book's [explorer](../explorer.md) runs such searches with the mouse.
#
# ## A whole profile as the query
#
# A gene set describes a kind of tissue, and a section has much of each kind. A harder query is the
# *whole* measured profile of a spot, which should find the spot's own patch among all $n$ patches.
# Recall@k is how often that patch is among the first $k$; by chance that is $k / n$. The control
# was finetuned on shuffled pairs, with the same heads and the same number of steps.

# %%
recalls = {}
for name, one in models.items():
    section_embeddings = embed_patches(one.encoder, test.patches)
    recalls[name] = retrieval_scores(one, test, section_embeddings)
n = recalls["tuned"]["n"]
table = pd.DataFrame(
    {
        f"recall@{k}": {
            **{name: scores[f"recall@{k}"] for name, scores in recalls.items()},
            "chance": recalls["tuned"][f"chance@{k}"],
        }
        for k in (1, 5, 10)
    }
)
median_ranks = {name: scores["median_rank"] for name, scores in recalls.items()}
table["median rank"] = pd.Series({**median_ranks, "chance": (n + 1) / 2})
names = {"tuned": "finetuned", "shuffled": "shuffled pairs"}
table.rename(index=names).round(3)

# %% [markdown]
# Two things limit recall. A kind of tissue has many patches that look alike, so no model can tell
# them apart. And a profile is smoothed over its neighbours, as in training, so part of the right
# answer is "somewhere around here" (exercise 2).
#
# ## Across patients
#
# Until now the query and the patches came from one section. Now every slide of further patients is
# searched from every other slide, and in both directions: a profile queries patches, and a patch
# queries profiles.

# %%
if here.root.name.startswith("phantom"):
    spots = 40 if SMOKE else 80
    root = phantom(
        f"data/phantom-asked-{PATIENTS}x{spots}",
        patients=PATIENTS,
        sections_per_patient=2,
        spots=spots,
        seed=5,
    )
    sections = load_sections(
        root, patch_um=config.patch_um, patch_px=config.patch_px
    )
    queries = [section.name for section in sections]
else:  # the model has seen the training slides, but not the one that queries
    sections, queries = [*here.train, test], [test.name]

spaces = {}
for name, one in models.items():
    parts = [embed_patches(one.encoder, s.patches) for s in sections]
    spaces[name] = shared_space(one, sections, parts)
patients = len({section.patient for section in sections})
print(f"{len(sections)} slides of {patients} patients; {len(queries)} query")

# %% [markdown]
# In another patient a query has no own patch, so recall is not defined. The score is instead the
# correlation of the query's expression with that of the ten retrieved spots, over the genes of the
# panel, with the query's own spot left out. Two bounds go with it. **Random** is the mean over the
# whole gallery, and **oracle** is the mean over the ten spots that correlate best.

# %%
scores = pd.concat(
    {
        name: pd.DataFrame(cross_modal(space, top=TOP))
        for name, space in spaces.items()
    },
    names=["model", None],
).query("slide in @queries")
scores["share"] = (scores.found - scores.random) / (
    scores.oracle - scores.random
)
means = scores.groupby(["direction", "scope", "model"], sort=False)[
    ["random", "found", "oracle"]
].mean()
by_model = means.unstack("model")
answers = by_model["found"].rename(columns=names)
answers.insert(0, "random", by_model["random", "tuned"])
answers["oracle"] = by_model["oracle", "tuned"]
answers.round(3) + 0.0  # no minus zero

# %% tags=["hide-input"]
#| alt: For each direction and each gallery, the share of the way from a random answer to the best
#| one. A dot for each slide that queries and a bar for their mean, of the finetuned model and of
#| the one finetuned on shuffled pairs.
scopes = ["slide", "other slides", "other patients", "all"]
scopes = [scope for scope in scopes if scope in set(scores.scope)]
directions = ("genes to images", "images to genes")
offsets = {"tuned": -0.12, "shuffled": 0.12}
dots = {"ms": 4, "mew": 0, "alpha": 0.5}
with plt.rc_context(plots.STYLE):
    figure, panels = plt.subplots(1, 2, figsize=(8.5, 3.6), sharey=True)
    for ax, direction in zip(panels, directions, strict=True):
        of_direction = scores[scores.direction == direction]
        for (name, offset), colour in zip(
            offsets.items(), plots.COLOURS, strict=False
        ):
            of_model = of_direction.loc[name]
            for i, scope in enumerate(scopes):
                share = of_model.share[of_model.scope == scope]
                y = i + offset
                ax.plot(share, [y] * len(share), "o", color=colour, **dots)
                ends = [y - 0.1, y + 0.1]
                ax.plot([share.mean()] * 2, ends, lw=3.5, color=colour)
        ax.set_yticks(range(len(scopes)), scopes)
        label = "share of the way from random to oracle"
        limits = (len(scopes) - 0.5, -0.5)
        ax.set(title=direction, xlabel=label, ylim=limits)
        ax.axvline(0, color=plots.GREY, lw=0.8)
    charts.legend(figure, list(offsets))
plt.close(figure)
figure

# %% [markdown]
# A dot is a slide that queries, and the bar is their mean. Zero is a random answer, one the best
# possible answer. What the control reaches was not learnt from the pairs.
#
# Recall needs the own patch in the gallery: within the slide, or among all slides. Chance falls as
# the gallery grows, so read recall beside it.

# %%
columns = ["recall@1", "chance@1", "recall@10", "chance@10", "median_rank", "n"]
own_spot = scores.loc["tuned"].query("scope in ['slide', 'all']")
own_spot = own_spot.groupby(["direction", "scope"], sort=False)[columns].mean()
own_spot.rename(columns={"median_rank": "median rank"}).round(3)

# %% [markdown]
# One command prints these tables. With a file of gene sets it also searches every slide for each
# set. The search is exact, and it reads a gallery on disk part by part.
#
# ```sh
# seal-lite retrieval-bench --run RUN --data DATA --gmt SETS.gmt --json scores.json
# ```
#
# ## Result

# %% tags=["hide-input"]
is_above = set_scores["retrieved"] > set_scores["chance, 95%"]
by_outcome = {"exceeds": is_above, "does not exceed": ~is_above}
outcomes = [
    f"{words} 95% of random draws for {', '.join(set_scores.index[chosen])}"
    for words, chosen in by_outcome.items()
    if chosen.any()
]
tuned, shuffled = recalls["tuned"], recalls["shuffled"]
sentences = [
    f"Gene sets as queries on {test.name}, one held-out section: the measured "
    f"mean z of the {top} retrieved patches {'; it '.join(outcomes)}.",
    f"Whole profiles as queries: recall@10 is {tuned['recall@10']:.3f} with "
    f"the finetuned model, {shuffled['recall@10']:.3f} with the control, and "
    f"{tuned['chance@10']:.3f} by chance (n = {n}). One section describes and "
    "supports no verdict.",
]
if here.root.name.startswith("phantom"):
    across = scores.query(
        "direction == 'genes to images' and scope == 'other patients'"
    )
    by_slide = across.reset_index("model").pivot(
        index="slide", columns="model", values="share"
    )
    patient_of = {section.name: section.patient for section in sections}
    gap = by_slide["tuned"] - by_slide["shuffled"]
    by_patient = gap.groupby(gap.index.map(patient_of)).mean()
    gap_row = mean_and_interval(by_patient.to_numpy())
    shares = by_slide.mean().round(2) + 0.0
    sentences.append(
        f"In other patients the finetuned model reaches {shares['tuned']:.2f} "
        f"of the way from random to oracle, and the control "
        f"{shares['shuffled']:.2f}: a difference of {interval_text(gap_row)} "
        f"(patients), {kind_of(gap_row)}."
    )
result_box(*sentences)

# %% [markdown]
# {% set real = load("her2st_figures").retrieval %}
# On one held-out section of a real tumour, a whole profile finds its own patch among the first ten
# for {{ percent(real["recall@10"], 1) }} of {{ real.n }} spots, by chance for
# {{ percent(real["chance@10"], 1) }}. A search for {{ real.genes | join(" and ") }} finds
# {{ found_by_chance(real) }}: the measured $z$ of its {{ real.top }} patches is
# {{ number(real.z_hits, "+.2f") }}, 95% of random draws lie below
# {{ number(real.z_chance95, "+.2f") }}, and the best possible draw is at
# {{ number(real.z_best, "+.2f") }}. [The results](../results.md) have more patients and seeds.
#
# ## What to remember
#
# - A gene set becomes a point in the shared space, and its nearest patches are the answer.
# - Measured counts check the answer. Compare it with random patches and with shuffled pairs.
# - Name the gallery. Within a slide, across slides and across patients are three questions.
# - Recall needs the own patch in the gallery. Across patients, correlate expression instead, and
#   report what a random and the best possible answer reach.
#
# ## Exercises

# %% [markdown]
# **1.** The genes of a query stand at $z = 3$. Would other patches be retrieved at $z = 1$, or at
# $z = 6$? Think first of a gene encoder that is only a matrix. Then count how many patches stay.

# %% tags=["hide-cell", "solution"]
# A matrix alone keeps the direction of the query, and so the ranking. The gene encoder has biases
# and nonlinearities, so the strength of a query can change the answer.
stay = {}
for name, genes in sets.items():
    stay[name] = {}
    for strength in (1.0, 6.0):
        profile = gene_set_profile(model.panel, genes, z=strength)
        query = model.encode_genes(profile)
        again = search(query, gallery, top=TOP)[0][0]
        stay[name][f"z = {strength:g}"] = len(set(again) & set(hits[name]))
pd.DataFrame(stay).rename_axis(f"of {TOP} at z = 3")

# %% [markdown]
# **2.** How much of a hit is "somewhere around here"? Let every spot query with its whole profile,
# and measure how far its first answer lies from the spot. What is the median for any two patches?

# %% tags=["hide-cell", "solution"]
#| alt: Two histograms of distances in micrometres, of the first answer from the spot that queries
#| and of any two patches of the section from each other, with their medians in the legend.
# Compare the two medians. The first bin holds the spot itself and its neighbours, where smoothing
# helps. Tissue repeats itself across a section, so a distant answer can still be of the right kind.
place = test.adata.obsm["spatial"][test.rows] * test.adata.uns["um_per_px"]
nearest = search(model.encode_genes(z), gallery, top=1)[0][:, 0]
distances = {
    "first answer": np.linalg.norm(place - place[nearest], axis=1),
    "any patch": np.linalg.norm(place[:, None] - place, axis=2).ravel(),
}
bins = np.arange(0, distances["any patch"].max() + 300, 300)
style = {"density": True, "histtype": "step", "lw": 2}
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(7, 2.8))
    for (name, values), colour in zip(
        distances.items(), plots.COLOURS, strict=False
    ):
        label = f"{name}: median {np.median(values):,.0f} µm"
        ax.hist(values, bins, color=colour, label=label, **style)
    ax.set(xlabel="distance from the spot that queries, µm", yticks=[])
    ax.set_ylabel("share of answers")
    ax.legend()
plt.close(figure)
figure

# %% [markdown]
# **3.** The score across patients is the mean correlation with the ten nearest spots. What does it
# become when ten is raised to the whole gallery? What does the oracle become? Predict, then draw.

# %% tags=["hide-cell", "solution"]
#| alt: Three curves over the number of answers that are kept, from one to the whole gallery: the
#| mean correlation with the query of the retrieved spots, of the best choice, and of a random one.
# Both become "random", because the whole gallery is no choice. Report a score at the number of
# answers that somebody would look at.
space = spaces["tuned"]
own = space["slide"] == queries[0]
others = space["patient"] != space["patient"][own][0]
unit = space["expression"] - space["expression"].mean(1, keepdims=True)
unit /= np.linalg.norm(unit, axis=1, keepdims=True)
correlation = unit[own] @ unit[others].T
similarity = space["genes"][own] @ space["images"][others].T
by_similarity = np.argsort(-similarity, 1)
ranked = {
    "retrieved": np.take_along_axis(correlation, by_similarity, 1),
    "oracle": -np.sort(-correlation, 1),
}
tops = np.arange(1, others.sum() + 1)
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(7, 3))
    for (name, values), colour in zip(
        ranked.items(), plots.COLOURS, strict=False
    ):
        kept = values.mean(0).cumsum() / tops
        ax.plot(tops, kept, color=colour, lw=2, label=name)
    ax.axhline(correlation.mean(), color=plots.GREY, lw=1, label="random")
    ax.set(xscale="log", xlabel="answers that are kept")
    ax.set_ylabel("mean r with the query")
    ax.legend()
plt.close(figure)
figure

# %% [markdown]
# **4.** Each patient's patches have a mean of their own: stain, thickness, scanner. Subtract it,
# from the patches and from the profiles, and make unit vectors again. Do you expect retrieval in
# other patients to gain? What would you lose in a cohort where one patient has only tumour?

# %% tags=["hide-cell", "solution"]
# A patient's mean is part stain and part biology, and the subtraction cannot separate them. Where
# every patient has mixed tissue, little of it is biology. In a patient with only tumour, the
# subtraction removes "tumour".
centred = dict(space)
for kind in ("images", "genes"):
    vectors = space[kind].copy()
    for patient in set(space["patient"]):
        of_patient = space["patient"] == patient
        vectors[of_patient] -= vectors[of_patient].mean(0)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    centred[kind] = vectors / lengths
again = pd.DataFrame(cross_modal(centred, top=TOP)).query("slide in @queries")
compared = {"as it is": scores.loc["tuned"], "centred by patient": again}
in_others = {
    name: rows[rows.scope == "other patients"].groupby("direction").found.mean()
    for name, rows in compared.items()
}
pd.DataFrame(in_others).round(3)

# %% [markdown]
# ## Further reading
#
# - {cite:p}`radford2021clip` put images and words into one space, and searched it in the same way.
# - {cite:p}`xie2023bleep` predicts expression by retrieval: a patch queries profiles, and the mean
#   of the 50 nearest is the prediction. {cite:p}`chen2025loki` weights all profiles by their
#   cosines. `predict_by_retrieval` does either.
# - {cite:p}`liang2022gap` explains why the points of two encoders lie in two cones, and how the
#   temperature of the contrast matters.
# - {cite:p}`johnson2019faiss` is the tool for galleries where an exact search becomes too slow.

# %% tags=["key-figures", "remove-cell"]
across = None
if "other patients" in scopes:
    of_direction = means.xs("genes to images", level="direction")
    across = of_direction.xs("other patients", level="scope").to_dict("index")
figures = {
    "recall": recalls,
    "sets": set_scores.to_dict("index"),
    "across": across,
}
print(json.dumps(figures))
