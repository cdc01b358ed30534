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
# # Retrieval across patients
#
# **A profile from one patient asks for tissue of another: does the shared space know what two
# patients have in common?**
#
# Ten minutes to read, a minute to run if the earlier chapters have run.
#
# In [the chapter before](10_retrieval.ipynb), the answer lay in the slide that asked. Here it may
# not: every slide is searched from every other, in both directions, and the score has to change
# with the question.

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
ASKING = 5  # patients who neither trained nor are asked about elsewhere (phantom only)
TOP = 10

# %%
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from seal_lite import plots
from seal_lite.data.phantom import phantom
from seal_lite.data.section import load_sections
from seal_lite.encoders.embedding import embed_patches
from seal_lite.evaluation.retrieval import cross_modal, shared_space
from seal_lite.tutorial import begin, charts, finetuned

here = begin(DATASET, BACKBONE, EPOCHS, SMOKE, test=TEST, seed=SEED)
config = here.config
if here.root.name.startswith(
    "phantom"
):  # more patients, of another seed, to ask and be asked
    size = {
        "patients": ASKING,
        "sections_per_patient": 2,
        "spots": 40 if SMOKE else 80,
        "seed": 5,
    }
    root = phantom(
        f"data/phantom-asked-{size['patients']}x{size['spots']}", **size
    )
    asked = load_sections(
        root, patch_um=config.patch_um, patch_px=config.patch_px
    )
    asking = [s.name for s in asked]
else:  # the model has seen whom it is asked about, but not the patient who asks
    asked, asking = [*here.train, here.test], [here.test.name]

spaces = {}
for name, shuffle in (("tuned", False), ("shuffled", True)):
    model, _ = finetuned(here, shuffle_pairs=shuffle)
    spaces[name] = shared_space(
        model, asked, [embed_patches(model.encoder, s.patches) for s in asked]
    )
patients = len({s.patient for s in asked})
n = len(spaces["tuned"]["slide"])
print(
    f"{len(asked)} slides of {patients} patients, {n} regions; {len(asking)} of the slides ask"
)

# %% [markdown]
# ## Is a patient an island?
#
# First a look. Both kinds of points are in one space: left, where the pictures lie; right, where
# the profiles lie. If pictures of different patients formed islands, no profile of one could find
# tissue of another.

# %%
#| alt: Two scatter plots of the same plane, of pictures and of profiles in the shared space. Each
#| point is a region or a spot, coloured by its patient.
space = spaces["tuned"]
both = np.concatenate([space["images"], space["genes"]])
_, _, axes = np.linalg.svd(both - both.mean(0), full_matrices=False)
flat = (both - both.mean(0)) @ axes[:2].T
with plt.rc_context(plots.STYLE):
    figure, panels = plt.subplots(
        1, 2, figsize=(8.5, 4.0), sharex=True, sharey=True
    )
    for ax, (title, part) in zip(
        panels,
        (
            ("pictures", flat[: len(flat) // 2]),
            ("profiles", flat[len(flat) // 2 :]),
        ),
        strict=True,
    ):
        for patient, colour in zip(
            dict.fromkeys(space["patient"]), plots.COLOURS, strict=False
        ):
            mine = space["patient"] == patient
            ax.scatter(
                *part[mine].T, s=9, color=colour, alpha=0.6, lw=0, label=patient
            )
        ax.set(
            title=title,
            xlabel="first axis",
            ylabel="second axis" if ax is panels[0] else "",
        )
        ax.locator_params(nbins=5)
    panels[1].legend(
        title="patient",
        markerscale=2,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
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
rows = {
    name: pd.DataFrame(cross_modal(space, top=TOP)).query("slide in @asking")
    for name, space in spaces.items()
}
order = ["slide", "other slides", "other patients", "all"]
order = [scope for scope in order if scope in set(rows["tuned"].scope)]
table = (
    pd.concat(rows, names=["model"])
    .groupby(["direction", "scope", "model"], sort=False)[
        ["random", "found", "oracle"]
    ]
    .mean()
    .unstack("model")
)
shown = table["found"].assign(
    random=table["random", "tuned"], oracle=table["oracle", "tuned"]
)
shown[["random", "shuffled", "tuned", "oracle"]].round(3)

# %%
#| alt: For each direction and each gallery, the share of the way from a random answer to the best
#| one. A dot for each slide that asks and a bar for their mean, of the finetuned model and of the
#| one finetuned on shuffled pairs.
with plt.rc_context(plots.STYLE):
    figure, panels = plt.subplots(1, 2, figsize=(8.5, 3.6), sharey=True)
    for ax, direction in zip(
        panels, ("genes to images", "images to genes"), strict=True
    ):
        for name, colour, at in (
            ("tuned", plots.COLOURS[0], -0.12),
            ("shuffled", plots.COLOURS[1], 0.12),
        ):
            asks = rows[name][rows[name].direction == direction]
            for i, scope in enumerate(order):
                part = asks[asks.scope == scope]
                share = (part.found - part.random) / (part.oracle - part.random)
                dots = {"ms": 4, "mew": 0, "alpha": 0.5, "color": colour}
                ax.plot(share, np.full(len(share), i + at), "o", **dots)
                ax.plot(
                    [share.mean()] * 2,
                    [i + at - 0.1, i + at + 0.1],
                    lw=3.5,
                    color=colour,
                )
        ax.set_yticks(range(len(order)), order)
        ax.set(
            title=direction,
            xlabel="share of the way from random to oracle",
            ylim=(len(order) - 0.5, -0.5),
        )
        ax.axvline(0, color=plots.GREY, lw=0.8)
    charts.legend(figure, list(rows))
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
#
# ## Exercises

# %% [markdown]
# **1.** "found" is the mean correlation with the `top` nearest of the gallery. What does it become
# when `top` is raised until it is the gallery? What does "oracle" become? Say it, then draw it.

# %% tags=["hide-cell", "solution"]
#| alt: Three curves over the number of answers that are kept, from one to the whole gallery: the
#| mean correlation with the query of what was found, of the best choice, and of a random one.
# Both fall to "random": whoever returns everything has chosen nothing. A score is read at the
# number of answers that somebody would look at.
mine = space["slide"] == asking[0]
other = space["patient"] != space["patient"][mine][0]
z = space["expression"] - space["expression"].mean(1, keepdims=True)
z /= np.linalg.norm(z, axis=1, keepdims=True)
alike, near = (
    z[mine] @ z[other].T,
    space["genes"][mine] @ space["images"][other].T,
)
ranked = {
    "found": np.take_along_axis(alike, np.argsort(-near, 1), 1),
    "oracle": -np.sort(-alike, 1),
}
tops = np.arange(1, other.sum() + 1)
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(7, 3))
    for (name, values), colour in zip(
        ranked.items(), plots.COLOURS, strict=False
    ):
        ax.plot(
            tops, values.mean(0).cumsum() / tops, color=colour, lw=2, label=name
        )
    ax.axhline(alike.mean(), color=plots.GREY, lw=1, label="random")
    ax.set(
        xscale="log",
        xlabel="top: answers that are kept",
        ylabel="mean r with the query",
    )
    ax.legend()
plt.close(figure)
figure

# %% [markdown]
# **2.** Break the safeguard: leave the own pair in the score. How much does "found" gain within the
# slide if only the first answer is kept, and how much among all slides?

# %% tags=["hide-cell", "solution"]
# The own pair correlates at 1 with the query, so the gain follows recall@1. It would be credit for
# something that recall measures already, and it cannot be had in another patient.
rows_of = np.arange(len(space["slide"]))
for name, gallery in (
    ("the slide", mine),
    ("all slides", np.ones(len(mine), bool)),
):
    near = space["genes"][mine] @ space["images"][gallery].T
    alike, own = (
        z[mine] @ z[gallery].T,
        rows_of[gallery] == rows_of[mine][:, None],
    )
    with_own = np.take_along_axis(alike, near.argmax(1)[:, None], 1).mean()
    near[own] = -np.inf
    without = np.take_along_axis(alike, near.argmax(1)[:, None], 1).mean()
    print(f"{name}: {without:.3f} without the own pair, {with_own:.3f} with it")

# %% [markdown]
# **3.** Each patient's pictures have a mean of their own: stain, thickness, scanner. Subtract it,
# from the pictures and from the profiles, and make unit vectors again. Do you expect retrieval in
# other patients to gain? What would you lose in a cohort where one patient has tumour only?

# %% tags=["hide-cell", "solution"]
# What a patient's mean holds is part stain and part biology, and the subtraction cannot tell them
# apart. With mixed tissue in every patient little of it is biology; with tumour alone, "tumour"
# would be what is subtracted.
centred = dict(space)
for kind in ("images", "genes"):
    v = space[kind].copy()
    for patient in set(space["patient"]):
        v[space["patient"] == patient] -= v[space["patient"] == patient].mean(0)
    centred[kind] = v / np.linalg.norm(v, axis=1, keepdims=True)
again = pd.DataFrame(cross_modal(centred, top=TOP)).query("slide in @asking")
tables = {"as it is": rows["tuned"], "centred by patient": again}
pd.DataFrame(
    {
        k: t.query("scope == 'other patients'")
        .groupby("direction")
        .found.mean()
        for k, t in tables.items()
    }
).round(3)

# %% [markdown]
# ## Further reading
#
# - {cite:p}`liang2022gap` explains why two encoders' points lie in two cones, as in the first
#   picture, and what the contrast's temperature has to do with it.
# - {cite:p}`xie2023bleep` predicts expression by retrieval from other patients' spots.
# - {cite:p}`johnson2019faiss` is where to go when an exact search becomes too slow.

# %% tags=["key-figures", "remove-cell"]
means = {
    name: r.groupby(["direction", "scope"])[
        ["found", "random", "oracle"]
    ].mean()
    for name, r in rows.items()
}
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
            "recall": spot.groupby("scope")[["recall@10", "chance@10"]]
            .mean()
            .to_dict("index"),
        }
    )
)
