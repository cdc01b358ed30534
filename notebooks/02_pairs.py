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
# # From image and counts to pairs
#
# **What exactly does the network see, and what is it asked to match?**
#
# Ten minutes to read, under a minute to run.
#
# A {term}`pair` is a square of tissue around a spot and the expression measured there. Making pairs
# looks like bookkeeping, and it is where studies quietly go wrong: a wrong scale, a shifted row, a
# patch that runs off the slide. So here every step is shown, and every step that cannot be done is
# refused or reported.

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
SMOKE = False  # everything tiny, just to see that it runs
SECTION = ""  # empty: the last one
N_VIEWS = 8  # of each patch: one clean, the others augmented

# %%
import json

import matplotlib.pyplot as plt
import numpy as np
import torch

from seal_lite import Config, InputError, plots
from seal_lite.data.genes import GenePanel, columns, log_normalise, smooth
from seal_lite.data.patches import extract_patches
from seal_lite.data.registration import neighbour_mean
from seal_lite.data.section import Section
from seal_lite.encoders.views import make_views, view_parameters
from seal_lite.encoders.vision import encoder_for
from seal_lite.evaluation.targets import pearson, section_targets, target_genes
from seal_lite.training.loader import Activations, Pairs
from seal_lite.tutorial import begin

here = begin(DATASET, smoke=SMOKE)
(section,) = here.load([SECTION or here.names[-1]])
adata = section.adata

# %% [markdown]
# ## One pair
#
# Left, the square on the section; in the middle, what the network is shown of it; right, what it is
# asked to match: the spot's expression, here the twelve genes that vary most in this section, as
# [Pearson residuals](01_meet_a_section.ipynb).

# %%
#| alt: The stained section with a square marked on it, that square enlarged, and a bar for each of
#| twelve genes, to the right of zero where the spot has more of the gene than its depth predicts
#| and to the left where it has less.
variable = target_genes([adata], 12)
profiles = section_targets(adata, variable)["pearson_residuals"][section.rows]
one = int(profiles.max(1).argmax())
x, y = (adata.obsm["spatial"] * adata.uns["um_per_px"])[
    section.rows[one]
] - Config.patch_um / 2
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(
        1, 3, figsize=(8.4, 3.2), width_ratios=(1.2, 1, 0.8)
    )
    plots.tissue(axes[0], section, um_per_px=4.0, title=section.name)
    square = {"fill": False, "color": plots.INK, "lw": 2}
    axes[0].add_patch(
        plt.Rectangle((x, y), Config.patch_um, Config.patch_um, **square)
    )
    axes[1].imshow(
        section.patches[one], extent=(0, Config.patch_um, Config.patch_um, 0)
    )
    axes[1].set(xticks=[], yticks=[], title="its patch")
    plots.scale_bar(axes[1])
    order = np.argsort(profiles[one])
    values = profiles[one][order]
    colours = np.where(values > 0, "#E08214", "#8073AC")
    axes[2].barh(np.array(variable)[order], values, color=colours)
    axes[2].axvline(0, color=plots.GREY, lw=0.8)
    axes[2].set(title="its expression")
    axes[2].tick_params(axis="y", length=0)
    axes[2].spines["left"].set_visible(False)
plt.close(figure)
figure

# %% [markdown]
# ## A patch is a length, not a number of pixels
#
# We cut $224 \times 224$ µm around each spot's centre: the spot, which is 100 µm wide, and what
# lies around it, as a spot's neighbourhood tells much about its expression. Resampled to
# $160 \times 160$ pixels this is 1.4 µm per pixel, which suits the small default network. Most
# pathology encoders were trained at 0.5 µm per pixel; for those, say `patch_um=112, patch_px=224`.
# How many pixels a patch has in the original image follows from the section's own scale. Here are
# patches in which one gene stands out most.

# %%
#| alt: Six patches of tissue, each from the spot in which one gene stands out most.
shown = ["ERBB2", "COL1A1", "CD3E", "MS4A1", "PECAM1", "ADIPOQ"]
shown = [g for g in shown if g in adata.var_names]
residuals = section_targets(adata, shown)["pearson_residuals"][section.rows]
best = residuals.argmax(0)
plots.patches(
    section.patches[best],
    [f"most {g}" for g in shown],
    patch_um=Config.patch_um,
)

# %% [markdown]
# ## What cannot be cut
#
# Asking for detail that the scanner never recorded is an error; nobody should train on pixels that
# were made up by interpolation.

# %%
try:
    extract_patches(adata, patch_um=20, patch_px=160)
except InputError as error:
    print(error)

# %% [markdown]
# A region that leaves the image is dropped, and the drop is reported. With 224 µm that is rare;
# with 900 µm it is not:

# %%
#| alt: The section, and the same with a circle for every spot; spots near the edge, whose wide
#| region would leave the image, have bold orange rings.
wide = Section(adata, *extract_patches(adata, patch_um=900, patch_px=160))
plots.overview(wide)

# %% [markdown]
# The bold rings have counts but no patch. They still serve as neighbours in what follows, but they
# form no pair. The opposite happens too: spots on the spot list without any counts.

# %%
print(
    f"{section.name}: {len(section.rows)} pairs; "
    f"listed spots without counts: {adata.uns['spots_without_counts']}, "
    f"spots without a patch: {adata.n_obs - len(section.rows)}"
)

# %% [markdown]
# ## Smoothing over neighbours
#
# A spot's count of a gene is often 0, 1 or 2: mostly luck. Its neighbours are noisy in their own
# right, but *independently* so, and tissue changes slowly. So the expression of spot $i$ takes a
# share $s$ from the mean of its (up to eight) neighbours $N(i)$ on the array,
#
# $$
# \tilde{x}_i = (1 - s)\, x_i + \frac{s}{|N(i)|} \sum_{j \in N(i)} x_j ,
# \qquad
# y_i = \log\!\left(1 + 10^4\, \frac{\tilde{x}_i}{\sum_g \tilde{x}_{ig}}\right),
# $$
#
# as in SEAL {cite:p}`hemker2026seal`, which takes $s = \tfrac12$. Half is drawn below, because it
# can be seen; the default is $s = 0.2$. How much it helps depends on how few the counts are: on
# these sections nothing, on the same sections with a [quarter of their counts](../trials.md) it
# does. Scored expression is never smoothed.

# %%
#| alt: The section, and maps of three genes in two rows, as measured and smoothed over neighbours.
trio = [g for g in ("ERBB2", "CD3E", "ADIPOQ") if g in adata.var_names]
before, _ = columns(
    log_normalise(adata.layers["counts"]), adata.var_names, trio
)
after, _ = columns(
    log_normalise(smooth(adata, share=0.5)), adata.var_names, trio
)
plots.gene_maps(
    section,
    np.c_[before, after][section.rows],
    [f"{g}: as measured" for g in trio] + [f"{g}: smoothed" for g in trio],
    label="log(1 + counts per 10,000)",
)

# %% [markdown]
# The formula, written out for one spot, agrees with the code:

# %%
spot = 40
counts, weights = adata.layers["counts"].toarray(), neighbour_mean(adata)
neighbours = weights[spot].indices
by_hand = 0.5 * counts[spot] + 0.5 * counts[neighbours].mean(0)
difference = np.abs(by_hand - smooth(adata, share=0.5)[spot].toarray()).max()
print(f"{len(neighbours)} neighbours, largest difference {difference:.1e}")

# %% [markdown]
# ## Augmented views, in optical density
#
# The stain of every laboratory has its own shade, and a nucleus has no upright direction. So each
# patch is seen in several *views*: turned and mirrored (the 8 symmetries of the square), and with
# its stains made stronger or weaker. The second is done where stains add up. Light passing through
# dye is attenuated exponentially (Beer-Lambert), so with intensity $I$ the *optical density* is
#
# $$
# \mathrm{OD} = -\log I = S^{\top} c ,
# $$
#
# with the absorbances of haematoxylin, eosin and a rest in the rows of $S$
# {cite:p}`ruifrok2001stains` and their amounts $c$. We unmix, scale each amount by $e^{\sigma
# \varepsilon}$ with $\varepsilon \sim \mathcal{N}(0, 1)$ and $\sigma = 0.15$, and mix again: a $3
# \times 3$ matrix per view. View 0 is always the patch itself.

# %%
#| alt: Eight views of each of two patches: turned, mirrored, and with stronger or weaker stains.
config = Config(n_views=N_VIEWS)
two, numbers = [int(best[0]), int(best[1])], np.arange(N_VIEWS)
images, titles = [], []
for i in two:
    keys = [section.keys[i]] * N_VIEWS
    patch = section.patches[[i] * N_VIEWS]
    images += list(make_views(patch, keys, numbers, jitter=config.stain_jitter))
    turns, stains = view_parameters(keys, numbers, jitter=config.stain_jitter)
    titles += [
        f"view {v}: H {np.exp(h):.2f}, E {np.exp(e):.2f}"
        for v, (h, e, _) in zip(numbers, stains, strict=True)
    ]
drawn = [x.permute(1, 2, 0).numpy() for x in images]
plots.patches(drawn, titles, patch_um=config.patch_um, columns=4)

# %% [markdown]
# The numbers are the factors on haematoxylin and eosin. A view is a fixed function of the patch's
# name and the view's number, nothing else. That is what makes it possible to compute the frozen
# part of the network once per view and keep it ([finetune](08_finetune.ipynb)), and to resume a run
# to the same result.
#
# ## A batch of pairs
#
# Put together: `Pairs` takes sections and a gene {term}`panel` ([next
# chapter](03_gene_panel.ipynb)) and deals out batches in an order that depends on the seed and the
# epoch alone.

# %%
panel = GenePanel.from_config([section], config)
encoder = encoder_for(config)
activations = Activations(encoder, [section], config, cached=False)
pairs = Pairs([section], panel, config, activations)
hidden, expression = next(pairs.epoch(0))
print("activations before the tuned blocks:", tuple(hidden.shape))
print("z-scored expression:               ", tuple(expression.shape))

# %% [markdown]
# ## What to remember
#
# - A patch is given in micrometres; its pixels follow from the section's scale.
# - What cannot be cut is refused or reported, never invented.
# - Expression is smoothed over neighbours for training, and never for scoring.
# - Augmentation happens in optical density, where stains add up, and is a fixed function of the
#   view.

# %% [markdown]
# ## Exercises
#
# **1.** Spots lie 200 µm apart and patches are 224 µm wide, so neighbours overlap. Which share of a
# patch's area do the patches of its eight neighbours show, too? Derive it, then compare with this
# section, for 112, 224 and 448 µm. What does it mean for a test on spots drawn at random?

# %% tags=["hide-cell", "solution"]
places = (adata.obsm["spatial"] * adata.uns["um_per_px"])[section.rows]
pitch = adata.uns["pitch_um"]
overlap = {}
for um in (112, 224, 448):
    alone = np.clip(2 * pitch - um, 0, um)  # edge of what no neighbour reaches
    inside = 1 - (alone / um) ** 2
    grid = (np.arange(24) + 0.5) / 24 * um - um / 2
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    covered = []
    for i, centre in enumerate(places):
        others = np.delete(places, i, 0)
        others = others[(np.abs(others - centre) < um).all(1)]
        covered.append(
            (np.abs(centre + points - others[:, None]) < um / 2)
            .all(2)
            .any(0)
            .mean()
        )
    overlap[um] = float(np.mean(covered))
    print(
        f"{um} µm: {inside:.0%} among eight neighbours, {overlap[um]:.0%} on this section"
    )
# Less on the section, as spots at its edge have fewer neighbours. A random split of spots puts most
# neighbours of a test spot into training: part of what is to be predicted was trained on, and at
# 448 µm nearly all of it. So this book holds out whole patients.

# %% [markdown]
# **2.** Suppose tissue did not change at all between neighbours, and each count's noise had
# variance $\sigma^2$. Which share $s$ leaves the least noise in $\tilde{x}_i$, and how much? Then
# look for the share that brings the profiles nearest to the phantom's truth, with all counts and
# with a tenth of them. Why is it smaller?

# %% tags=["hide-cell", "solution"]
s = np.linspace(0, 1, 901)
noise = (1 - s) ** 2 + s**2 / 8
print(
    f"still tissue: s = {s[noise.argmin()]:.3f} leaves {noise.min():.3f} of the noise's variance"
)
few = adata.copy()
few.layers["counts"] = adata.layers["counts"].copy()
caught = np.random.default_rng(0).binomial(
    adata.layers["counts"].data.astype(int), 0.1
)
few.layers["counts"].data = caught.astype(np.float32)
if here.truth is not None:
    expected = np.log1p(1e4 * here.truth.expected(section, variable))
    for name, counts_of in (("all counts", adata), ("a tenth", few)):
        r = {}
        for share in (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 8 / 9):
            y, _ = columns(
                log_normalise(smooth(counts_of, share=share)),
                adata.var_names,
                variable,
            )
            r[share] = pearson(y[section.rows], expected).mean()
        top = max(r, key=r.get)
        print(
            f"{name}: r with the truth {r[0]:.3f} unsmoothed, best {r[top]:.3f} at {top}"
        )
# Tissue does change: a neighbour brings its own expression along with its independent noise. The
# fewer the counts, the more noise there is to lose, and the more smoothing pays. A score on
# smoothed expression would reward a prediction for being smooth, so scores never use it.

# %% [markdown]
# **3.** A view should change what does not matter and keep what does. Compare, in the embedding of
# the network before any finetuning, the distance between two views of a patch with that between two
# different patches, while the stains' jitter $\sigma$ grows. Predict where $\sigma = 0$ begins.

# %% tags=["hide-cell", "solution"]
some = np.arange(0, len(section.rows), 6)
keys = [section.keys[i] for i in some]


def embedded(view, jitter):
    views = make_views(
        section.patches[some], keys, np.full(len(some), view), jitter=jitter
    )
    with torch.inference_mode():
        return encoder(views).numpy()


clean = embedded(0, 0)
sd = clean.std(0)
apart = np.linalg.norm((clean[:, None] - clean) / sd, axis=2).sum() / (
    len(some) * (len(some) - 1)
)
for jitter in (0, 0.15, 0.3, 0.6, 1.2):
    moved = np.linalg.norm((embedded(1, jitter) - clean) / sd, axis=1).mean()
    print(
        f"jitter {jitter:4}: {moved / apart:.2f} of the distance between patches"
    )
# Turning a patch alone moves it far: a network for photographs knows up from down. The default's
# stains add little to that. Towards 1 two views would be no more alike than two patches, and a
# network that must call them the same has to call everything the same.

# %% [markdown]
# ## Further reading
#
# - {cite:p}`ruifrok2001stains` take a stain apart into its dyes.
# - {cite:p}`tellez2019augmentation` measure which augmentations help on slides of other
#   laboratories.
# - {cite:p}`hemker2026seal`, whose patches, smoothing and pairs these are, with the differences in
#   [the method](what-differs).

# %% tags=["key-figures", "remove-cell"]
same = make_views(
    section.patches[:4], section.keys[:4], np.zeros(4, int), jitter=0.15
)
print(
    json.dumps(
        {
            "pairs": len(section.rows),
            "patch_px_in_image": Config.patch_um / adata.uns["um_per_px"],
            "dropped_at_900_um": adata.n_obs - len(wide.rows),
            "overlap": overlap,
            "smoothing_difference": float(difference),
            "view_0_difference": float(
                np.abs(
                    same.permute(0, 2, 3, 1).numpy() * 255 - section.patches[:4]
                ).max()
            ),
            "batch": [list(hidden.shape), list(expression.shape)],
        }
    )
)
