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
# **A mutation, a pathway's activity, a response: can they be read from a slide, and does an encoder
# that learnt expression read them better?**
#
# Fifteen minutes to read, three to run.
#
# Nobody labels patches in a trial. There is one label for a patient and a {term}`bag` of some
# thousand patches. The encoder turns patches into numbers, and everything after it is standard:
# pool, and regress. If a finetuned encoder is a drop-in replacement, it must show here.

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
DATASET = "auto"  # what the encoder is finetuned on: the phantom; or any folder of sections
BACKBONE = (
    "tf_efficientnet_lite0"  # the cohort is a phantom, and drawn for this one
)
EPOCHS = 0  # 0: 12, or 20 on a GPU
SMOKE = False  # everything tiny, just to see that it runs
TEST = (
    ""  # the section held out, with all of its patient's; empty: the last one
)
SEED = 0
PATIENTS = 40
SPOTS = 36  # array positions that a slide's tissue would cover
SEEDS = 1

# %%
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
from seal_lite.encoders.vision import build_encoder
from seal_lite.slides.bench import score_bags
from seal_lite.slides.embed import embed_slides, list_slides
from seal_lite.slides.places import MASK_UM, TissueGrid, grid
from seal_lite.slides.tasks import read_bags, read_slide_task
from seal_lite.tutorial import begin, charts, finetuned

here = begin(DATASET, BACKBONE, EPOCHS, SMOKE, test=TEST, seed=SEED)
config = here.config
model, _ = finetuned(here)
if SMOKE:
    PATIENTS, SPOTS = 20, 16
COHORT = cohort(
    f"data/cohort-{PATIENTS}x{SPOTS}", patients=PATIENTS, spots=SPOTS, seed=0
)
slides = list_slides(COHORT / "slides")
print(f"{len(slides)} slides of {PATIENTS} patients")

# %% [markdown]
# ## From a slide to a bag
#
# Tissue is a piece of the thumbnail that is darker than the glass and has colour. A grid of
# regions, as large in micrometres as those of the training, covers it; what is mostly glass is
# left out.

# %%
#| alt: A slide, and beside it its tissue in grey under a grid of square regions, framed where they
#| are kept.
slide = open_slide(slides[0], um_per_px=UM_PER_PX)
small = slide.thumbnail(MASK_UM / 2 / slide.um_per_px)
corners = (
    grid(slide, patch_um=config.patch_um, min_tissue=0.5) * slide.um_per_px
)
with plt.rc_context(plots.STYLE):
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.5, 4.2), sharex=True, sharey=True
    )
    side = slide.size[0] * slide.um_per_px
    left.imshow(small, extent=(0, side, side, 0))
    mask = tissue_mask(slide.thumbnail(MASK_UM / slide.um_per_px))
    right.imshow(mask, extent=(0, side, side, 0), cmap="Greys", vmax=2)
    for x, y in corners:
        right.add_patch(
            plt.Rectangle(
                (x, y),
                config.patch_um,
                config.patch_um,
                fill=False,
                ec=plots.COLOURS[0],
                lw=1.2,
            )
        )
    for ax, title in (
        (left, slides[0].stem),
        (right, f"{len(corners)} regions on tissue"),
    ):
        ax.set(title=title, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        plots.scale_bar(ax)
plt.close(figure)
figure

# %% [markdown]
# `embed_slides` writes one H5 file a slide with `features` and `coords`, as TRIDENT
# {cite:p}`zhang2025pathobench` does, so that its files and ours can take each other's place. On the
# command line: `seal-lite embed --run RUN --slides DIR --out DIR`. There nearly any tissue is
# enough for a region, as for TRIDENT (`--min-tissue 0.5` does what this chapter does), and
# `--coords DIR` takes the regions of TRIDENT's own files.

# %%
encoders = {"frozen": build_encoder(config.backbone), "tuned": model.encoder}
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
    print({k: v.shape for k, v in file.items()})
    print(
        {
            k: v if isinstance(v, str) else v.item()
            for k, v in file["coords"].attrs.items()
        }
    )

# %% [markdown]
# ## What the labels are made of
#
# Half of the patients carry a mutation. It coarsens the chromatin in a clone, a minority of the
# slide. Independently, the *arrangement* of nuclei differs from patient to patient over the whole
# slide. Response and survival follow both. For the phantom we know, region by region, which share
# of the cells has coarse chromatin. That is the **oracle**: what an encoder could know at best.

# %%
#| alt: Two slides, one of a patient without and one with the mutation. Beside each, its regions
#| coloured by the share of their nuclei that have coarse chromatin.
status = (
    pd.read_csv(COHORT / "tasks/mutation/k=all.tsv", sep="\t")
    .set_index("slide_id")
    .mutation
)
shown = [status.index[status == code][0] for code in (0, 1)]  # wildtype, mutant
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(2, 2, figsize=(7.5, 7.2))
    for row, name in zip(axes, shown, strict=True):
        image = np.asarray(Image.open(COHORT / f"slides/{name}.jpg").reduce(8))
        side = image.shape[0] * 8 * UM_PER_PX
        row[0].imshow(image, extent=(0, side, side, 0))
        with h5py.File(folders["oracle"] / f"{name}.h5") as file:
            corner = file["coords"][:] * UM_PER_PX
            share = file["features"][:, 0]
        regions = [
            plt.Rectangle(c, config.patch_um, config.patch_um) for c in corner
        ]
        squares = PatchCollection(
            regions, cmap="viridis", clim=(0, 1), ec="white", lw=0.5
        )
        squares.set_array(share)
        row[1].add_collection(squares)
        row[1].set(xlim=(0, side), ylim=(side, 0), aspect="equal")
        for ax, title in zip(
            row, (f"{name}, {status[name]}", "its regions"), strict=True
        ):
            ax.set(title=title, xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            plots.scale_bar(ax)
    figure.colorbar(
        squares, ax=axes[:, 1], shrink=0.5, label="share of coarse nuclei"
    )
plt.close(figure)
figure

# %% [markdown]
# A pathway's activity is no label that a pathologist gives. It comes from expression: here from the
# patients' bulk counts, by decoupler's linear model {cite:p}`badia2022decoupler` on a file of gene
# sets. With a network, `decoupler.op.progeny()` or `.hallmark()` takes the file's place.

# %%
bulk = ad.read_h5ad(COHORT / "expression.h5ad")
activity = activities(bulk, read_gmt(COHORT / "programs.gmt"))
activity.iloc[:4].round(2)

# %% [markdown]
# ## Score
#
# A task is a folder as Patho-Bench {cite:p}`zhang2025pathobench` publishes them. All slides of a
# patient are one bag. Two models read it: the **mean** patch with a tuned logistic regression,
# ridge or Cox model, and attention-based MIL (**ABMIL**, {cite:p}`ilse2018abmil`), which learns
# where to look. A score is the mean over five folds; the interval draws the test patients again,
# the same for all features, so that differences are paired.

# %%
results = {}
for name in ("mutation", "activity", "response", "survival"):
    task = read_slide_task(COHORT / "tasks" / name)
    bags = {k: read_bags(task, folder) for k, folder in folders.items()}
    results[name] = score_bags(task, bags, seeds=SEEDS, repeats=300)
first = {
    "mutation": "auc",
    "activity": "pearson",
    "response": "auc",
    "survival": "c_index",
}
words = {"auc": "AUC", "pearson": "r", "c_index": "C-index"}
table = pd.DataFrame(
    [
        {"task": f"{name}, {words[first[name]]}", **s}
        for name, r in results.items()
        for s in r["scores"]
        if s["metric"] == first[name]
    ]
)
order = list(dict.fromkeys(table.task))
table.pivot(index=["task", "model"], columns="features", values="mean").loc[
    order
].round(3)

# %%
#| alt: Scores of four tasks with their intervals, for the mean patch and for ABMIL, in the colours
#| of frozen, finetuned and oracle features. Short grey lines mark chance.
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(
        1, 2, figsize=(8.5, 3.6), sharey=True, sharex=True
    )
    for ax, model_name in zip(axes, ("mean", "abmil"), strict=True):
        for i, (features, colour) in enumerate(
            zip(folders, plots.COLOURS, strict=False)
        ):
            part = table.query(
                "model == @model_name and features == @features"
            ).set_index("task")
            y = np.arange(len(order)) + 0.22 * (i - 1)
            low, high = np.array([part.ci95[t] for t in order]).T
            ax.hlines(y, low, high, color=colour, lw=1.8)
            ax.plot(
                [part["mean"][t] for t in order],
                y,
                "o",
                color=colour,
                ms=6,
                label=charts.LABELS.get(features, features),
            )
        ax.set_yticks(range(len(order)), order)
        ax.set(
            title={"mean": "mean patch", "abmil": "ABMIL"}[model_name],
            xlabel="score, 95% CI",
            ylim=(len(order) - 0.5, -0.5),
        )
        chance = [0.0 if task.endswith(", r") else 0.5 for task in order]
        ax.vlines(
            chance,
            np.arange(len(order)) - 0.4,
            np.arange(len(order)) + 0.4,
            color=plots.GREY,
            lw=0.8,
        )
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.close(figure)
figure

# %% [markdown]
# The grey line is chance. And the differences to the frozen encoder, which are what counts:

# %%
pd.DataFrame(
    [
        {"task": name, **d}
        for name, r in results.items()
        for d in r["delta"]
        if d["metric"] == first[name] and d["of"] == "tuned"
    ]
)[["task", "model", "metric", "mean", "ci95"]]

# %% [markdown]
# With this many patients an interval is wide, and most differences are no difference. A larger
# cohort and an encoder finetuned on more are among the [recorded results](../results.md).
#
# ## What to remember
#
# - The unit is the patient. Fuse a patient's slides, and never let them cross a fold.
# - Draw test patients again for the interval, the same for both encoders.
# - An oracle says whether a task can be solved at all with so many patients. Where it fails, no
#   encoder is to blame.
#
# ## Exercises

# %% [markdown]
# **1.** Some patients have two slides. Suppose that somebody deals *slides* to the folds, not
# patients. Describe each slide by three numbers: the median colour of its bare glass. For how many
# of these slides is the nearest of all others the patient's second one? And by the mean patch?

# %% tags=["hide-cell", "solution"]
# Stain and scanner are the patient's, and the glass shows them without any tissue. Whoever reads
# them copies the label from the twin in training: even labels dealt at random would be "predicted".
patient = np.array([path.stem.partition("_")[0] for path in slides])
described = {"glass": []} | {kind: [] for kind in encoders}
for path in slides:
    slide = open_slide(path, um_per_px=UM_PER_PX)
    small = slide.thumbnail(MASK_UM / UM_PER_PX)
    described["glass"].append(np.median(small[~tissue_mask(small)], axis=0))
    for kind in encoders:
        with h5py.File(folders[kind] / f"{path.stem}.h5") as file:
            described[kind].append(file["features"][:].mean(0))
twins = np.array([(patient == p).sum() > 1 for p in patient])
copied = {}
for kind, x in described.items():
    x = (np.array(x) - np.mean(x, 0)) / np.std(x, 0)
    far = np.linalg.norm(x[:, None] - x, axis=2) + np.diag(
        np.full(len(x), np.inf)
    )
    copied[kind] = own = float(
        (patient[far.argmin(1)] == patient)[twins].mean()
    )
    print(
        f"{kind}: the nearest slide is the patient's own for {own:.0%} of {twins.sum()}, so "
        f"{own + (1 - own) / 2:.0%} of random labels are right"
    )

# %% [markdown]
# **2.** The mutation shows in a clone, a minority of a slide's regions. Take the oracle's share of
# coarse nuclei and pool it by the mean, by the 80% quantile, and by the maximum. Which separates
# mutants best? No model needs to be trained for that: an AUC asks for an order only.

# %% tags=["hide-cell", "solution"]
# The mean dilutes the clone with the rest of the slide; the maximum listens to one region, and
# every slide has an odd one. What is best lies between, and attention has to learn where.
task = read_slide_task(COHORT / "tasks/mutation")
mutant = task.y == task.classes.index("mutant")
share = [bag[:, 0] for bag in read_bags(task, folders["oracle"])]
pools = {
    "mean": np.mean,
    "80% quantile": lambda v: np.quantile(v, 0.8),
    "maximum": np.max,
}
separates = {}
for name, pool in pools.items():
    pooled = np.array([pool(v) for v in share])
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
# The width falls with the root of the number of patients, so tenfold precision costs a hundredfold
# cohort. A paired difference needs fewer, as both encoders err on the same patients.
def half_width(patients, a=0.75):
    m = n = patients / 2
    q1, q2 = a / (2 - a), 2 * a**2 / (1 + a)
    variance = (a * (1 - a) + (m - 1) * (q1 - a**2) + (n - 1) * (q2 - a**2)) / (
        m * n
    )
    return 1.96 * variance**0.5


enough = next(k for k in range(10, 10**5, 2) if half_width(k) < 0.03)
print(
    f"{PATIENTS} patients: 0.75 +- {half_width(PATIENTS):.2f}; for +- 0.03: {enough:,} patients"
)

# %% [markdown]
# ## Further reading
#
# - {cite:p}`campanella2019clinical` trained on slide labels alone, at the scale of a hospital.
# - {cite:p}`ilse2018abmil` is ABMIL, with what its attention does and does not tell.
# - {cite:p}`zhang2025pathobench` lays out the tasks and files that are read here.

# %% tags=["key-figures", "remove-cell"]
best = table.groupby(["task", "features"])["mean"].max().unstack()
print(
    json.dumps(
        {
            "slides": len(slides),
            "best": best.to_dict("index"),
            "regions": len(corners),
            "activity_sets": list(activity),
            "copied": copied,
            "separates": separates,
        }
    )
)
