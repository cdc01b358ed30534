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
# # Slide level: one label for a whole slide
#
# **A mutation, a pathway's activity, a response: can they be read from a slide, and does an encoder
# that learnt expression read them better?**
#
# Fifteen minutes to read, three to run.
#
# Nobody labels patches in a trial. There is one label for a patient and a bag of some thousand
# patches. The encoder turns patches into numbers, and everything after it is standard: pool, and
# regress. If a finetuned encoder is a drop-in replacement, it must show here.

# %% tags=["hide-cell"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("torchmil") is None:  # in Colab, whose own torch is kept
    home = "seal_lite[offline,slides] @ git+https://github.com/seal-lite/seal-lite"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", home], check=True)

# %% tags=["parameters"]
DATASET = "phantom"
TEST = ""
EPOCHS = 12
N_VIEWS = 4
SEED = 0
PATIENTS = 40
SPOTS = 36  # array positions that a slide's tissue would cover
SEEDS = 1

# %%
import json
from pathlib import Path

import anndata as ad
import h5py
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import PatchCollection
from PIL import Image

import seal_charts as charts
from seal_lite import Config, plots
from seal_lite.encoders import build_encoder
from seal_lite.evaluate import genes_to_score
from seal_lite.formats import patient_of
from seal_lite.images import open_slide
from seal_lite.pathways import activities, read_gmt
from seal_lite.sections import list_sections, load_sections
from seal_lite.slides import evaluate, read_bags, read_task
from seal_lite.train import code_hash, finetune
from seal_lite.wsi import MASK_UM, embed_slides, grid, list_slides, tissue_mask
from tissue_phantom import UM_PER_PX, cohort, oracle_features, phantom

ROOT = Path(DATASET)
if DATASET == "phantom":
    ROOT = phantom("data/phantom", patients=3, sections_per_patient=1, spots=160, seed=0)
names = list_sections(ROOT)
TEST = TEST or names[-1]
train = load_sections(ROOT, [n for n in names if patient_of(n) != patient_of(TEST)] or names[:-1])
config = Config(epochs=EPOCHS, n_views=N_VIEWS, seed=SEED)
setting = f"{ROOT.name}-without-{patient_of(TEST)}-{EPOCHS}x{N_VIEWS}-seed{SEED}-{code_hash()[:6]}"
model, _ = finetune(
    train,
    config,
    out=Path("runs") / setting / "tuned",
    include=genes_to_score(ROOT, train),
    cache_dir="runs/cache",
)
COHORT = cohort(f"data/cohort-{PATIENTS}x{SPOTS}", patients=PATIENTS, spots=SPOTS, seed=0)
slides = list_slides(COHORT / "slides")
print(f"{len(slides)} slides of {PATIENTS} patients")

# %% [markdown]
# ## From a slide to a bag
#
# Tissue is what has colour: the saturation of a thumbnail, cut at Otsu's threshold
# {cite:p}`otsu1979`. A grid of regions, as large in micrometres as those of the training, covers
# it; what is mostly glass is left out.

# %%
slide = open_slide(slides[0], UM_PER_PX)
small = slide.thumbnail(MASK_UM / 2 / slide.um_per_px)
corners = grid(slide, patch_um=config.patch_um) * slide.um_per_px
with plt.rc_context(plots.STYLE):
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 4.2), sharex=True, sharey=True)
    side = slide.size[0] * slide.um_per_px
    left.imshow(small, extent=(0, side, side, 0))
    mask = tissue_mask(slide.thumbnail(MASK_UM / slide.um_per_px))
    right.imshow(mask, extent=(0, side, side, 0), cmap="Greys", vmax=2)
    for x, y in corners:
        right.add_patch(plt.Rectangle((x, y), config.patch_um, config.patch_um, fill=False,
                                      ec=plots.COLOURS[0], lw=1.2))  # fmt: skip
    for ax, title in ((left, slides[0].stem), (right, f"{len(corners)} regions on tissue")):
        ax.set(title=title, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.plot([60, 560], [side - 60] * 2, color="black", lw=3)
    left.text(60, side - 90, "500 µm", va="bottom")
plt.close(figure)
figure

# %% [markdown]
# `embed_slides` writes one H5 file a slide with `features` and `coords`, as TRIDENT
# {cite:p}`zhang2025pathobench` does, so that its files and ours can take each other's place. On the
# command line: `seal-lite embed --run RUN --slides DIR --out DIR`.

# %%
encoders = {"frozen": build_encoder(config.backbone), "tuned": model.encoder}
folders = {}
for name, encoder in encoders.items():
    folders[name] = Path("runs") / setting / f"features-{COHORT.name}" / name
    embed_slides(encoder, slides, folders[name], patch_um=config.patch_um,
                 patch_px=config.patch_px, um_per_px=UM_PER_PX)  # fmt: skip
folders["oracle"] = oracle_features(
    COHORT, folders["frozen"], folders["frozen"].parent / "oracle", patch_um=config.patch_um
)
with h5py.File(folders["tuned"] / f"{slides[0].stem}.h5") as file:
    print({k: v.shape for k, v in file.items()}, dict(file["coords"].attrs))

# %% [markdown]
# ## What the labels are made of
#
# Half of the patients carry a mutation. It coarsens the chromatin in a clone, a minority of the
# slide. Independently, the *arrangement* of nuclei differs from patient to patient over the whole
# slide. Response and survival follow both. For the phantom we know, region by region, which share
# of the cells has coarse chromatin. That is the **oracle**: what an encoder could know at best.

# %%
status = pd.read_csv(COHORT / "tasks/mutation/k=all.tsv", sep="\t").set_index("slide_id").mutation
shown = [status.index[status == kind][0] for kind in ("wildtype", "mutant")]
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(2, 2, figsize=(7.5, 7.2))
    for row, name in zip(axes, shown, strict=True):
        image = np.asarray(Image.open(COHORT / f"slides/{name}.jpg").reduce(8))
        side = image.shape[0] * 8 * UM_PER_PX
        row[0].imshow(image, extent=(0, side, side, 0))
        with h5py.File(folders["oracle"] / f"{name}.h5") as file:
            corner = file["coords"][:] * UM_PER_PX
            share = file["features"][:, 0]
        regions = [plt.Rectangle(c, config.patch_um, config.patch_um) for c in corner]
        squares = PatchCollection(regions, cmap="viridis", clim=(0, 1), ec="white", lw=0.5)
        squares.set_array(share)
        row[1].add_collection(squares)
        row[1].set(xlim=(0, side), ylim=(side, 0), aspect="equal")
        for ax, title in zip(
            row, (f"{name}, {status[name]}", "share of coarse nuclei"), strict=True
        ):
            ax.set(title=title, xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            ax.plot([60, 560], [side - 60] * 2, color="black", lw=3)
        row[0].text(60, side - 90, "500 µm", va="bottom")
    figure.colorbar(squares, ax=axes[:, 1], shrink=0.5)
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
    task = read_task(COHORT / "tasks" / name)
    bags = {k: read_bags(task, folder) for k, folder in folders.items()}
    results[name] = evaluate(task, bags, seeds=SEEDS, repeats=300)
first = {"mutation": "auc", "activity": "pearson", "response": "auc", "survival": "c_index"}
table = pd.DataFrame(
    [{"task": f"{name}, {first[name]}", **s} for name, r in results.items() for s in r["scores"]
     if s["metric"] == first[name]]
)  # fmt: skip
order = list(dict.fromkeys(table.task))
table.pivot(index=["task", "model"], columns="features", values="mean").loc[order].round(3)

# %%
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), sharey=True, sharex=True)
    for ax, model_name in zip(axes, ("mean", "abmil"), strict=True):
        for i, (features, colour) in enumerate(zip(folders, plots.COLOURS, strict=False)):
            part = table.query("model == @model_name and features == @features").set_index("task")
            y = np.arange(len(order)) + 0.22 * (i - 1)
            low, high = np.array([part.ci95[t] for t in order]).T
            ax.hlines(y, low, high, color=colour, lw=1.8)
            ax.plot([part["mean"][t] for t in order], y, "o", color=colour, ms=6,
                    label=charts.LABELS.get(features, features))  # fmt: skip
        ax.set_yticks(range(len(order)), order)
        ax.set(title={"mean": "mean patch", "abmil": "ABMIL"}[model_name], xlabel="score, 95% CI",
               ylim=(len(order) - 0.5, -0.5))  # fmt: skip
        chance = [0.0 if task.endswith("pearson") else 0.5 for task in order]
        ax.vlines(chance, np.arange(len(order)) - 0.4, np.arange(len(order)) + 0.4,
                  color=plots.GREY, lw=0.8)  # fmt: skip
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.close(figure)
figure

# %% [markdown]
# The grey line is chance. And the differences to the frozen encoder, which are what counts:

# %%
pd.DataFrame(
    [{"task": name, **d} for name, r in results.items() for d in r["delta"]
     if d["metric"] == first[name] and d["of"] == "tuned"]
)[["task", "model", "metric", "mean", "ci95"]]  # fmt: skip

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

# %% tags=["key-figures", "remove-cell"]
best = table.groupby(["task", "features"])["mean"].max().unstack()
print(
    json.dumps(
        {
            "slides": len(slides),
            "best": best.to_dict("index"),
            "regions": len(corners),
            "activity_sets": list(activity),
        }
    )
)
