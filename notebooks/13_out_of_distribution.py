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
# # Out of distribution
#
# **At another hospital the stain and the scanner differ. How much of the score is lost there, and
# does finetuning make an encoder more robust?**
#
# Ten minutes to read, two to run.
#
# {% set stain, regions = load("shift_stain"), load("shift_regions") %}
# {% set batch = load("shift_batch") %}
# In the measured results, {{ count_clear_gaps([stain, regions, batch], "tuned") }} for the
# finetuned encoder; each has two folds. Its mean $r$ is {{ shift_text(stain, "tuned") }} where the
# stain differs, {{ shift_text(regions, "tuned") }} where the tissue is composed differently, and
# {{ shift_text(batch, "tuned") }} where the assay differs. Two folds a shift cannot tell whether
# finetuning makes the encoder more robust. This chapter measures the first shift:
# two sites of a phantom differ in the stain and in nothing else.

# %% tags=["hide-cell"]
# On Colab: install SEAL-lite, and keep the torch that Colab brings.
import importlib.util
import subprocess
import sys
from importlib.metadata import version

PACKAGE = "seal_lite[offline]"
HOME = "git+https://github.com/seal-lite/seal-lite"
if importlib.util.find_spec("seal_lite") is None:
    kept = [f"{name}=={version(name)}" for name in ("torch", "torchvision")]
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, f"{PACKAGE} @ {HOME}", *kept], check=True)

# %% tags=["parameters"]
# A phantom with two sites; or a folder whose sections.tsv has a column SHIFT.
DATASET = "auto"
# What the second site does differently; or "regions", "batch".
SHIFT = "stain"
# Or a name of `seal-lite encoders`.
BACKBONE = "tf_efficientnet_lite0"
EPOCHS = 6
# Everything tiny, to see that it runs.
SMOKE = False
PATIENTS = 8
SPOTS = 60
SEEDS = 1

# %% tags=["hide-input"]
import json
import logging

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from seal_lite import __version__, plots
from seal_lite.data.phantom import phantom
from seal_lite.encoders.embedding import embed_patches
from seal_lite.encoders.vision import encoder_for
from seal_lite.evaluation.crossval import crossval, groups_of, shift_folds
from seal_lite.evaluation.morphology import robustness_index
from seal_lite.evaluation.scores import genes_to_score, probe_scores, tidy
from seal_lite.evaluation.statistics import (
    excludes_zero,
    interval_text,
    leave_one_out_ratio,
    mean_and_interval,
    shifted,
)
from seal_lite.model.seal import SEAL
from seal_lite.tutorial import begin, charts, result_box

logging.disable(logging.INFO)  # a line for every section and fold

# %%
if SMOKE:
    PATIENTS, SPOTS, EPOCHS = 4, 80, 1
if DATASET == "auto":
    DATASET = phantom(
        f"data/{SHIFT}-{PATIENTS}x{SPOTS}",
        patients=PATIENTS,
        spots=SPOTS,
        seed=3,
        sections_per_patient=1,
        shift=SHIFT,
    )
here = begin(DATASET, BACKBONE, EPOCHS, SMOKE)
ROOT, config, sections = here.root, here.config, here.load(here.names)
groups = groups_of(sections, SHIFT)
pd.Series(groups, name=SHIFT).value_counts().to_frame("sections")

# %% tags=["hide-input"]
#| alt: Patches of tissue of two sites, a row each and a column for each of up to four patients. The
#| rows differ in the shade of the stain, or in what else the second site does differently.
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(2, 4, figsize=(8, 4.6))
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for row, group in zip(axes, dict.fromkeys(groups), strict=False):
        labelled = zip(sections, groups, strict=True)
        of_group = [section for section, g in labelled if g == group]
        for ax, section in zip(row, of_group, strict=False):
            patch = section.patches[len(section.patches) // 2]
            ax.imshow(patch, extent=(0, config.patch_um, config.patch_um, 0))
            ax.set_title(section.name)
        plots.scale_bar(row[0])
        row[0].set_ylabel(group)
plt.close(figure)
figure

# %% [markdown]
# A table beside the data, `sections.tsv`, has the site of each section. Any column of it can be
# held out: `organ`, `technology`, `stain`, or one of your own.
#
# ## Two test sets for one training
#
# Holding out a site is not enough, because its patients may be difficult. So a quarter of the
# training site's patients is held out too. They are new, but from the known distribution. Each site
# is out of distribution once, so a site of difficult patients lowers the score of one fold and not
# of both. The patients on the two sides are still not the same, and with few of them the gap also
# holds their differences.

# %%
for train, tests in shift_folds(sections, groups):
    print(f"train on {len(train)}: {', '.join(s.name for s in train)}")
    for name, part in tests.items():
        side = "in" if name.startswith("not") else "out of"
        names = ", ".join(section.name for section in part)
        print(f"  {side} distribution, {name}: {names}")

# %%
size = f"{BACKBONE.replace('/', '-')}-{config.epochs}x{config.n_views}-{SEEDS}"
out = f"runs/{ROOT.name}-by-{SHIFT}-{size}-{__version__}"
result = crossval(
    sections,
    config,
    data_name=ROOT.name,
    truth=here.truth,
    by=SHIFT,
    seeds=SEEDS,
    out=out,
    progress=False,
)

# %% [markdown]
# ## In, out, and the gap
#
# The gap is the score in distribution minus the score out of it. A positive gap is a loss at the
# new site.

# %%
wanted = ["tuned", "shuffled", "frozen", "frozen_best", "random_init", "colour"]
parts = {}
for name, folds in shifted(result["folds"]).items():
    table = tidy({**result, "folds": folds})
    chosen = table.query(
        "probe == 'tuned_ridge' and target == 'pearson_residuals'"
    )
    by_fold = chosen.groupby(["features", "test"]).r.mean().unstack("test")
    parts[name] = by_fold.loc[wanted]
means = pd.DataFrame({name: part.mean(axis=1) for name, part in parts.items()})
labels = {name: charts.LABELS[name].replace("\n", " ") for name in wanted}
means.rename(index=labels).round(3)

# %%
#| alt: A row for each kind of features. A dot per fold and a bar for their mean, in distribution
#| and out of it.
dots = {
    name: {
        "in distribution": list(parts["in"].loc[name]),
        "out of distribution": list(parts["out"].loc[name]),
    }
    for name in wanted
}
charts.strips(
    dots, label="mean r over genes, Pearson residuals, a dot per fold"
)

# %% [markdown]
# The gap is paired, gene by gene and fold by fold. So the difference of two gaps has an interval
# too. A positive difference means that the finetuned encoder loses more than the other.

# %%
rows = [
    row
    for row in result["delta_gap"]
    if row["probe"] == "tuned_ridge"
    and row["target"] == "pearson_residuals"
    and "class" not in row
]
differences = {
    f"{labels[row['of']]} minus {labels[row['minus']]}": interval_text(row)
    for row in rows
}
pd.Series(differences, name="difference of gaps").to_frame()

# %% [markdown]
# ## Do neighbours share biology, or the slide?
#
# A score needs a probe. The *robustness index* {cite:p}`komen2026pathorob` needs none. Among the
# nearest neighbours of a patch it counts those with the same biology from another source (SO) and
# those with other biology from the same source (OS). The index is SO / (SO + OS). It is one where
# only biology counts, and zero where only the source does. Here the biology is the region, which
# the phantom's ground truth has, and the source is the patient.

# %%
#| alt: A row for each kind of features. A dot per fold and a bar for their mean robustness index.
outside = shifted(result["folds"])["out"]
robustness = {}
for name in wanted:
    values = [
        fold["morphology"][name].get("robustness_index", np.nan)
        for fold in outside
    ]
    robustness[name] = [value for value in values if np.isfinite(value)]
charts.strips(
    {name: {"": values} for name, values in robustness.items()},
    label="robustness index on the unseen site",
)

# %% [markdown]
# A fold without a value has too few spots of one region in two patients. The index does not say how
# much biology an encoder holds: an encoder without any information is not at zero (exercise 2). So
# compare each row with that of random weights.
#
# ## Result

# %% tags=["hide-input"]
ratio = leave_one_out_ratio(parts["gap"].shape[1])
gap_rows = {
    name: mean_and_interval(gaps.to_numpy(), test_to_train=ratio)
    for name, gaps in parts["gap"].iterrows()
}


def gap_text(name):
    """The gap of an encoder, each fold's, and whether its interval excludes 0."""
    row = gap_rows[name]
    folds = " and ".join(f"{gap:+.3f}" for gap in parts["gap"].loc[name])
    kind = "a loss" if row["mean"] > 0 else "a gain"
    outcome = (
        f"{kind} at the new site" if excludes_zero(row) else "no clear gap"
    )
    return f"{labels[name]} {interval_text(row)} (folds {folds}): {outcome}"


to_best = next(row for row in rows if row["minus"] == "frozen_best")
result_box(
    f"Shift: {SHIFT}, {len(sections)} sections, {parts['gap'].shape[1]} folds. "
    f"The finetuned encoder's mean r is {means['in']['tuned']:.3f} in "
    f"distribution and {means['out']['tuned']:.3f} out of it.",
    f"Gap of {gap_text('tuned')}. Gap of {gap_text('frozen_best')}.",
    "Difference of these two gaps, finetuned minus frozen at its best layer: "
    f"{interval_text(to_best)}.",
    f"An interval over {to_best['units']} folds is wide, so this describes and "
    "gives no verdict on robustness.",
)

# %% [markdown]
# Larger runs, also of two folds each, compare the frozen encoder at its best layer. Its mean $r$ is
# {{ shift_text(load("shift_stain"), "frozen_best") }} for the stain,
# {{ shift_text(load("shift_regions"), "frozen_best") }} for the regions, and
# {{ shift_text(load("shift_batch"), "frozen_best") }} for the assay. The gap is in minus out: a
# negative one is a higher score at the new site. [The results](../results.md) have the differences
# of the gaps.
#
# ## What to remember
#
# - A score at a new site needs the score on new patients of the old site beside it.
# - Let every group be out of distribution once, and hold out many patients on both sides.
# - Compare gaps, not only scores: a better encoder can still lose more at a new site.
#
# ## Exercises

# %% [markdown]
# **1.** Can a gap be closed without training? Match the colours: in optical density, shift and
# scale each channel of an unseen section so that its mean and standard deviation are those of the
# training sections {cite:p}`reinhard2001colour`. Predict how that changes the scores of the
# finetuned and of the frozen encoder. How does doubling the stain change them?


# %% tags=["hide-cell", "solution"]
# The finetuned encoder met other stains in the views of its training, so one expects it to move
# less. Matching can also cost something: a section rich in nuclei is bluer for a reason, and the
# matching makes it as pale as the others. The last two columns are changes.
def density(patches):
    return -np.log((patches.reshape(-1, 3) + 1.0) / 256)


def coloured(density, like):
    values = np.clip(256 * np.exp(-density) - 1, 0, 255)
    return values.astype(np.uint8).reshape(like.shape)


known, tests = next(iter(shift_folds(sections, groups)))
unseen = next(iter(tests.values()))[:2]
genes = genes_to_score([s.adata for s in known], here.truth)
goal = density(np.concatenate([s.patches[::4] for s in known]))
changed = {
    "as it is": [s.patches for s in unseen],
    "colours matched": [],
    "twice the stain": [],
}
for patches in changed["as it is"]:
    d = density(patches)
    matched = (d - d.mean(0)) / d.std(0) * goal.std(0) + goal.mean(0)
    changed["colours matched"].append(coloured(matched, patches))
    changed["twice the stain"].append(coloured(2 * d, patches))
fold_run = f"{out}/runs/{'+'.join(tests)}-0/tuned"
encoders = {
    "finetuned": SEAL.from_pretrained(fold_run).encoder,
    "frozen": encoder_for(config),
}
recoloured = {}
for name, encoder in encoders.items():
    train_x = [embed_patches(encoder, s.patches) for s in known]
    recoloured[name] = {}
    for what, images in changed.items():
        test_x = [embed_patches(encoder, patches) for patches in images]
        scores = probe_scores(
            known, unseen, genes, train_x=train_x, test_x=test_x
        )
        r = scores["tuned_ridge", "pearson_residuals"].mean()
        recoloured[name][what] = r
table = pd.DataFrame(recoloured).T
for what in ("colours matched", "twice the stain"):
    table[f"{what}, change"] = table[what] - table["as it is"]
table.round(3)

# %% [markdown]
# **2.** What robustness index has an embedding without any information? Derive it for $b$ kinds of
# tissue, each equally common in each of $s$ sources, then try random vectors. Is one half chance?

# %% tags=["hide-cell", "solution"]
# Of random neighbours, s - 1 cells are of the same tissue elsewhere and b - 1 of other tissue here:
# chance is (s - 1) / (s + b - 2). One half is chance only where s = b. State both with an index.
rng = np.random.default_rng(0)
for b, s in ((2, 4), (4, 4), (6, 4), (6, 12)):
    biology, source = (np.repeat(v, 30) for v in np.divmod(np.arange(b * s), s))
    vectors = rng.standard_normal((len(source), 64))
    by_chance = robustness_index(vectors, biology, source)
    derived = (s - 1) / (s + b - 2)
    print(f"{b} tissues, {s} sources: {by_chance:.2f}, derived {derived:.2f}")

# %% [markdown]
# **3.** Each gap has an error. Suppose that somebody adds the errors of two gaps in squares. By how
# much does that overestimate the standard deviation of their difference, over genes?

# %% tags=["hide-cell", "solution"]
# A gene that is hard at the new site tends to be hard for both encoders, so their gaps correlate,
# and part of the error cancels in the paired difference.
gaps = {}
for name in ("tuned", "frozen"):
    chosen = (name, "tuned_ridge", "pearson_residuals")
    per_gene = [
        list(row["per_gene"].values())
        for fold in shifted(result["folds"])["gap"]
        for row in fold["scores"]
        if (row["features"], row["probe"], row["target"]) == chosen
    ]
    gaps[name] = np.concatenate(per_gene)
added = np.hypot(gaps["tuned"].std(), gaps["frozen"].std())
paired = (gaps["tuned"] - gaps["frozen"]).std()
r = np.corrcoef(gaps["tuned"], gaps["frozen"])[0, 1]
print(f"sd over genes: {added:.3f} if added, {paired:.3f} paired")
print(f"correlation of the gaps: {r:.2f}")

# %% [markdown]
# ## Further reading
#
# - {cite:p}`komen2026pathorob` measures how much of the neighbourhoods in pathology encoders is the
#   hospital.
# - {cite:p}`howard2021site` finds a hospital's signature in slides, and scores that rested on it.
# - {cite:p}`tellez2019augmentation` compares matching stains with augmenting them. The views of
#   [chapter 2](02_pairs.ipynb) augment.

# %% tags=["key-figures", "remove-cell"]
figures = {
    "means": means.to_dict("index"),
    "gap_rows": gap_rows,
    "recoloured": recoloured,
}
print(json.dumps(figures))
