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
# # Slide level: one label for a whole slide
#
# **A mutation, a pathway's activity, a response: does an encoder that learnt expression predict
# them better from a slide?**
#
# Fifteen minutes to read, three to run.
#
# {% set cohort = load("cohort") %}
# On a phantom cohort of {{ cohort.results[0].samples }} patients,
# {{ slide_verdicts(cohort, "frozen") }}. A gain must also exceed shuffled pairs:
# {{ slide_verdicts(cohort, "shuffled") }}. The length of this training was chosen after a shorter
# one had been scored on the same patients, so the differences are optimistic
# ([results](cohort-results)). This chapter repeats the comparison on a smaller cohort, and an
# oracle shows which of its labels can be predicted at all.
#
# In a trial nobody labels patches. Each patient has one label and a {term}`bag` of some thousand
# patches. The encoder turns patches into embeddings. The rest is standard: pool the embeddings of a
# bag, and predict its label.

# %% tags=["hide-cell"]
# On Colab: install SEAL-lite, and keep the torch that Colab brings.
import importlib.util
import subprocess
import sys
from importlib.metadata import version

PACKAGE = "seal_lite[offline,slides]"
HOME = "git+https://github.com/seal-lite/seal-lite"
if importlib.util.find_spec("seal_lite") is None:
    kept = [f"{name}=={version(name)}" for name in ("torch", "torchvision")]
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, f"{PACKAGE} @ {HOME}", *kept], check=True)

# %% tags=["parameters"]
# What the encoder is finetuned on: the phantom; or any folder of sections.
DATASET = "auto"
# The cohort is a phantom, and drawn for this network.
BACKBONE = "tf_efficientnet_lite0"
# 0: 12 epochs.
EPOCHS = 0
# Everything tiny, to see that it runs.
SMOKE = False
# The section held out, with all of its patient's; empty: the last one.
TEST = ""
SEED = 0
PATIENTS = 40
# Array positions that a slide's tissue would cover.
SPOTS = 36
# Fits of each slide-level model.
SEEDS = 1

# %% tags=["hide-input"]
import json

import anndata as ad
import h5py
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import PatchCollection
from PIL import Image

from seal_lite import plots
from seal_lite.data.images import open_slide, tissue_mask
from seal_lite.data.pathways import activities, read_gmt
from seal_lite.data.phantom import UM_PER_PX, cohort, oracle_features
from seal_lite.encoders.vision import encoder_for
from seal_lite.evaluation.statistics import interval_text
from seal_lite.slides.bench import score_bags
from seal_lite.slides.embed import embed_slides, list_slides
from seal_lite.slides.places import MASK_UM, TissueGrid, grid
from seal_lite.slides.tasks import read_bags, read_slide_task
from seal_lite.studies.verdict import kind_of
from seal_lite.tutorial import begin, charts, finetuned, result_box

# %%
data = "phantom" if DATASET == "auto" else DATASET
here = begin(data, BACKBONE, EPOCHS, SMOKE, test=TEST, seed=SEED)
config = here.config
model, _ = finetuned(here)
if SMOKE:
    PATIENTS, SPOTS = 20, 16
root = f"data/cohort-{PATIENTS}x{SPOTS}"
COHORT = cohort(root, patients=PATIENTS, spots=SPOTS, seed=0)
slides = list_slides(COHORT / "slides")
print(f"{len(slides)} slides of {PATIENTS} patients")

# %% [markdown]
# ## From a slide to a bag
#
# Tissue is what is darker than the glass and has colour. A grid of patches covers it, as large in
# micrometres as the patches of the training. Patches that are mostly glass are left out.

# %% tags=["hide-input"]
#| alt: A slide, and beside it its tissue in grey under a grid of square patches, framed where they
#| are kept.
slide = open_slide(slides[0], um_per_px=UM_PER_PX)
small = slide.thumbnail(MASK_UM / 2 / slide.um_per_px)
corners = grid(slide, patch_um=config.patch_um, min_tissue=0.5)
corners_um = corners * slide.um_per_px
side = slide.size[0] * slide.um_per_px
frame = {"fill": False, "ec": plots.COLOURS[0], "lw": 1.2}
with plt.rc_context(plots.STYLE):
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.5, 4.2), sharex=True, sharey=True
    )
    left.imshow(small, extent=(0, side, side, 0))
    mask = tissue_mask(slide.thumbnail(MASK_UM / slide.um_per_px))
    right.imshow(mask, extent=(0, side, side, 0), cmap="Greys", vmax=2)
    for corner in corners_um:
        edge = config.patch_um
        right.add_patch(plt.Rectangle(corner, edge, edge, **frame))
    left.set_title(slides[0].stem)
    right.set_title(f"{len(corners)} patches on tissue")
    for ax in (left, right):
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        plots.scale_bar(ax)
plt.close(figure)
figure

# %% [markdown]
# `embed_slides` writes one H5 file for each slide, with `features` and `coords`. TRIDENT
# {cite:p}`zhang2025pathobench` writes the same, so its files and ours can replace each other. On
# the command line this is `seal-lite embed --run RUN --slides DIR --out DIR`. There
# a patch with 5% tissue is kept, which selects as many patches as TRIDENT does. `--min-tissue 0.5`
# does what this chapter does, and `--coords DIR` takes the patches of TRIDENT's own files.
# `--frozen` embeds with the run's encoder before finetuning, read at the same block and in the same
# way, so that only the tuning differs.

# %%
encoders = {"frozen": encoder_for(config), "tuned": model.encoder}
folders = {}
for name, encoder in encoders.items():
    folders[name] = here.run(f"features-{COHORT.name}") / name
    embed_slides(
        encoder,
        slides,
        folders[name],
        patch_um=config.patch_um,
        patch_px=config.patch_px,
        um_per_px=UM_PER_PX,
        places=TissueGrid(min_tissue=0.5),
    )
folders["oracle"] = oracle_features(
    COHORT,
    folders["frozen"],
    folders["frozen"].parent / "oracle",
    patch_um=config.patch_um,
)
with h5py.File(folders["tuned"] / f"{slides[0].stem}.h5") as file:
    shapes = {name: values.shape for name, values in file.items()}
    attributes = dict(file["coords"].attrs)
print(shapes)
pd.Series(attributes, name="coords")

# %% [markdown]
# ## What the labels depend on
#
# Half of the patients carry a mutation. It coarsens the chromatin in a clone, a minority of the
# slide. Independently, the *arrangement* of nuclei differs from patient to patient over the whole
# slide. Response and survival follow both. The phantom's ground truth has the share of nuclei with
# coarse chromatin in each patch. These shares are the **oracle**: what an encoder could know at
# best.

# %% tags=["hide-input"]
#| alt: Two slides, one of a patient without and one with the mutation. Beside each, its patches
#| coloured by the share of their nuclei that have coarse chromatin.
labels = pd.read_csv(COHORT / "tasks/mutation/k=all.tsv", sep="\t")
status = labels.set_index("slide_id").mutation
examples = [status.index[status == code][0] for code in (0, 1)]
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(2, 2, figsize=(7.5, 7.2))
    for row, name in zip(axes, examples, strict=True):
        image = np.asarray(Image.open(COHORT / f"slides/{name}.jpg").reduce(8))
        side = image.shape[0] * 8 * UM_PER_PX
        row[0].imshow(image, extent=(0, side, side, 0))
        with h5py.File(folders["oracle"] / f"{name}.h5") as file:
            corners_um = file["coords"][:] * UM_PER_PX
            share = file["features"][:, 0]
        edge = config.patch_um
        squares = [plt.Rectangle(corner, edge, edge) for corner in corners_um]
        look = {"cmap": "viridis", "clim": (0, 1), "ec": "white", "lw": 0.5}
        collection = PatchCollection(squares, **look)
        collection.set_array(share)
        row[1].add_collection(collection)
        row[1].set(xlim=(0, side), ylim=(side, 0), aspect="equal")
        mutation = "with" if status[name] else "without"
        row[0].set_title(f"{name}, {mutation} the mutation")
        row[1].set_title("its patches")
        for ax in row:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            plots.scale_bar(ax)
    label = "share of coarse nuclei"
    figure.colorbar(collection, ax=axes[:, 1], shrink=0.5, label=label)
plt.close(figure)
figure

# %% [markdown]
# No pathologist labels a pathway's activity. It is computed from expression: here from the
# patients' bulk counts, by decoupler's linear model {cite:p}`badia2022decoupler` on a file of gene
# sets. With a network, `decoupler.op.progeny()` or `.hallmark()` can replace the file.

# %%
bulk = ad.read_h5ad(COHORT / "expression.h5ad")
activity = activities(bulk, read_gmt(COHORT / "programs.gmt"))
activity.iloc[:4].round(2)

# %% [markdown]
# ## Score
#
# A task is a folder in the format of Patho-Bench {cite:p}`zhang2025pathobench`. All slides of a
# patient are one bag. We fit two models to the bags. One takes the **mean** patch and fits a
# logistic regression, a ridge or a Cox model with a tuned penalty. The other is attention-based MIL
# (**ABMIL**, {cite:p}`ilse2018abmil`), which learns how to weight the patches. A score is the mean
# over five folds. Its interval is a bootstrap over the test patients, with the same draws for all
# features, so that differences are paired.

# %%
results = {}
for name in ("mutation", "activity", "response", "survival"):
    task = read_slide_task(COHORT / "tasks" / name)
    bags = {k: read_bags(task, folder) for k, folder in folders.items()}
    results[name] = score_bags(task, bags, seeds=SEEDS, repeats=300)

# %%
metrics = {
    "mutation": ("auc", "AUC"),
    "activity": ("pearson", "r"),
    "response": ("auc", "AUC"),
    "survival": ("c_index", "C-index"),
}


def rows_of(kind):
    """The rows of "scores" or "delta" in the main metric of each task."""
    rows = []
    for name, result in results.items():
        metric, label = metrics[name]
        of_metric = [row for row in result[kind] if row["metric"] == metric]
        rows += [{"task": f"{name}, {label}", **row} for row in of_metric]
    return pd.DataFrame(rows)


table = rows_of("scores")
order = list(dict.fromkeys(table.task))
means = table.pivot(index=["task", "model"], columns="features", values="mean")
titles = {"mean": "mean patch", "abmil": "ABMIL"}
means = means.loc[order, list(folders)].rename(titles, level="model")
means.rename(columns=charts.LABELS).round(3)

# %% tags=["hide-input"]
#| alt: Scores of four tasks with their intervals, for the mean patch and for ABMIL, in the colours
#| of frozen, finetuned and oracle features. Short grey lines mark chance.
chance = [0.0 if task.endswith(", r") else 0.5 for task in order]
places = np.arange(len(order))
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(
        1, 2, figsize=(8.5, 3.6), sharey=True, sharex=True
    )
    for ax, (model_name, title) in zip(axes, titles.items(), strict=True):
        for i, (name, colour) in enumerate(
            zip(folders, plots.COLOURS, strict=False)
        ):
            part = table[
                (table.model == model_name) & (table.features == name)
            ].set_index("task")
            y = places + 0.22 * (i - 1)
            low, high = np.array([part.ci95[task] for task in order]).T
            ax.hlines(y, low, high, color=colour, lw=1.8)
            label = charts.LABELS[name]
            look = {"color": colour, "ms": 6, "label": label}
            ax.plot(part["mean"][order], y, "o", **look)
        ax.set_yticks(places, order)
        limits = (len(order) - 0.5, -0.5)
        ax.set(title=title, xlabel="score, 95% interval", ylim=limits)
        ends = (places - 0.4, places + 0.4)
        ax.vlines(chance, *ends, color=plots.GREY, lw=0.8)
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.close(figure)
figure

# %% [markdown]
# The grey lines mark chance. The comparison that counts is the paired difference to the frozen
# encoder, here read at its feature layer and not at its best layer. Its verdict follows the
# interval: no difference where it contains 0. Where the frozen encoder scores below chance, the
# difference is larger than the finetuned encoder's gain over chance.

# %%
delta = rows_of("delta")
delta = delta[(delta.of == "tuned") & (delta.minus == "frozen")]
delta["units"] = PATIENTS
rows = delta.to_dict("records")
delta["verdict"] = [kind_of(row) for row in rows]
delta["finetuned minus frozen"] = [interval_text(row) for row in rows]
columns = ["task", "model", "finetuned minus frozen", "verdict"]
delta[columns].replace({"model": titles}).set_index(["task", "model"])

# %% [markdown]
# ## Result


# %% tags=["hide-input"]
def difference_text(row):
    """Task, model, mean and interval of a difference."""
    return f"{row.task} ({titles[row.model]}) {interval_text(row)}"


counts = delta.verdict.value_counts()
by_verdict = {
    kind: [difference_text(row) for _, row in rows.iterrows()]
    for kind, rows in delta.groupby("verdict")
}
clear = [
    f"{kind.capitalize()}: {'; '.join(by_verdict[kind])}."
    for kind in ("better", "worse")
    if kind in by_verdict
]
oracle = table[table.features == "oracle"]
chance_of = dict(zip(order, chance, strict=True))
n_unclear = sum(
    low <= chance_of[task]
    for task, (low, _) in zip(oracle.task, oracle.ci95, strict=True)
)
result_box(
    f"On {PATIENTS} patients, finetuned minus frozen is better in "
    f"{counts.get('better', 0)}, worse in {counts.get('worse', 0)}, and no "
    f"difference in {counts.get('no difference', 0)} of {len(delta)} "
    "comparisons.",
    *clear,
    f"In {n_unclear} of {len(oracle)} scores even the oracle's interval includes "
    "chance: with so few patients, these scores cannot compare encoders.",
    "The intervals draw test patients again for one finetuned encoder. They do "
    f"not cover another finetuning, and of {len(delta)} intervals one may "
    "exclude 0 by chance.",
)

# %% [markdown]
# {% set cohort = load("cohort") %}
# A larger cohort has {{ cohort.results[0].samples }} patients, and encoders of
# {{ cohort.results | map(attribute="seed") | unique | list | length }} finetuning seeds on more
# sections. There, {{ slide_verdicts(cohort, "frozen") }}; and
# {{ slide_verdicts(cohort, "shuffled") }}. [The results](../results.md) have every score.
#
# {{ power_sentences(cohort) }}
#
# ## What to remember
#
# - The unit is the patient. Fuse a patient's slides, and never let them cross a fold.
# - Draw test patients again for the interval, the same for both encoders.
# - An oracle shows whether a task can be solved with so many patients. Where it fails, the task
#   cannot compare encoders.
#
# ## Exercises

# %% [markdown]
# **1.** Some patients have two slides. Suppose that somebody splits *slides* into folds, not
# patients. Describe each slide by the median colour of its bare glass. For how many of these slides
# is the nearest of all others the patient's second one? And by the mean embedding?

# %% tags=["hide-cell", "solution"]
# Slides of one patient share stain and scanner, and the glass shows both without any tissue. A
# model that reads them copies the label of the patient's other slide in training. So it would
# "predict" even random labels.
patient = np.array([path.stem.partition("_")[0] for path in slides])
described = {"glass": []} | {kind: [] for kind in encoders}
for path in slides:
    slide = open_slide(path, um_per_px=UM_PER_PX)
    small = slide.thumbnail(MASK_UM / UM_PER_PX)
    described["glass"].append(np.median(small[~tissue_mask(small)], axis=0))
    for kind in encoders:
        with h5py.File(folders[kind] / f"{path.stem}.h5") as file:
            described[kind].append(file["features"][:].mean(0))
has_twin = np.array([(patient == p).sum() > 1 for p in patient])
copied = {}
for kind, vectors in described.items():
    scaled = (np.array(vectors) - np.mean(vectors, 0)) / np.std(vectors, 0)
    distance = np.linalg.norm(scaled[:, None] - scaled, axis=2)
    np.fill_diagonal(distance, np.inf)
    is_own = patient[distance.argmin(1)] == patient
    copied[kind] = own = float(is_own[has_twin].mean())
    print(
        f"{kind}: the nearest slide is the patient's own for {own:.0%} of "
        f"{has_twin.sum()}: {own + (1 - own) / 2:.0%} of random labels right"
    )

# %% [markdown]
# **2.** The mutation shows in a clone, a minority of a slide's patches. Take the oracle's share of
# coarse nuclei and pool it by the mean, by the 80% quantile, and by the maximum. Which separates
# mutants best? No model is needed: an AUC depends on an order only.

# %% tags=["hide-cell", "solution"]
# The mean dilutes the clone with the rest of the slide. The maximum reads a single patch, and any
# slide may have an odd one. Exercise 3 shows how far two AUCs of so few patients differ by chance.
task = read_slide_task(COHORT / "tasks/mutation")
mutant = task.y == task.classes.index("mutant")
share = [bag[:, 0] for bag in read_bags(task, folders["oracle"])]
pools = {
    "mean": np.mean,
    "80% quantile": lambda values: np.quantile(values, 0.8),
    "maximum": np.max,
}
separates = {}
for name, pool in pools.items():
    pooled = np.array([pool(values) for values in share])
    separates[name] = float((pooled[mutant][:, None] > pooled[~mutant]).mean())
pd.Series(separates, name="AUC").round(3)

# %% [markdown]
# **3.** Hanley and McNeil {cite:p}`hanley1982auc` give the variance of an AUC $A$ from $m$ patients
# with and $n$ without the label as
#
# $$
# \frac{A(1 - A) + (m - 1)(Q_1 - A^2) + (n - 1)(Q_2 - A^2)}{m\,n},
# \qquad Q_1 = \frac{A}{2 - A},\quad Q_2 = \frac{2A^2}{1 + A}.
# $$
#
# How wide is a 95% interval around $A = 0.75$ with this cohort? How many patients would it take to
# know the AUC to within 0.03?


# %% tags=["hide-cell", "solution"]
# The width falls with the root of the number of patients, so tenfold precision needs a hundredfold
# cohort. A paired difference needs fewer, where both encoders err on the same patients.
def half_width(patients, a=0.75):
    m = n = patients / 2
    q1, q2 = a / (2 - a), 2 * a**2 / (1 + a)
    spread = a * (1 - a) + (m - 1) * (q1 - a**2) + (n - 1) * (q2 - a**2)
    return 1.96 * (spread / (m * n)) ** 0.5


enough = next(k for k in range(10, 10**5, 2) if half_width(k) < 0.03)
print(f"{PATIENTS} patients: 0.75 +- {half_width(PATIENTS):.2f}")
print(f"for +- 0.03: {enough:,} patients")

# %% [markdown]
# ## Further reading
#
# - {cite:p}`campanella2019clinical` trained on slide labels alone, at the scale of a hospital.
# - {cite:p}`ilse2018abmil` is ABMIL, and discusses what its attention shows.
# - {cite:p}`zhang2025pathobench` lays out the tasks and files that are read here.

# %% tags=["key-figures", "remove-cell"]
best = table.groupby(["task", "features"])["mean"].max().unstack()
figures = {
    "best": best.to_dict("index"),
    "verdicts": delta[["mean", "ci95", "verdict"]].to_dict("records"),
    "copied": copied,
    "separates": separates,
}
print(json.dumps(figures))
