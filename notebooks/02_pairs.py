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
# **What exactly does the network see, and what is it trained to match?**
#
# The network sees augmented views of a patch around each spot, and is trained to match the spot's
# expression, lightly smoothed over its neighbours. A patch has a fixed size in µm, and a patch
# that cannot be cut raises an error or is reported as dropped. By default a patch is 224 µm wide
# and resampled to 160 pixels, and a fifth of a spot's expression comes from its neighbours.
#
# Ten minutes to read, under a minute to run.
#
# A {term}`pair` is a square of tissue around a spot and the expression measured there. Errors in
# this step stay silent: a wrong scale, a shifted row, a patch that runs off the slide. This
# chapter therefore shows every step, and a check for each.

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
# "auto": the phantom, or on a GPU real tumours; or any folder of sections
DATASET = "auto"
# Everything tiny, just to see that it runs
SMOKE = False
# Empty: the last one
SECTION = ""
# Of each patch: one clean, the others augmented
N_VIEWS = 8

# %% tags=["hide-input"]
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
from seal_lite.tutorial import begin, result_box

here = begin(DATASET, Config.backbone, smoke=SMOKE)
(section,) = here.load([SECTION or here.names[-1]])
adata = section.adata

# %% [markdown]
# ## One pair
#
# On the left is the patch's place on the section, in the middle the patch that the network sees.
# On the right is the spot's expression: the twelve genes that vary most in this section, as
# [Pearson residuals](01_meet_a_section.ipynb). Training matches a smoothed, log-normalised z-score
# of the same counts (below).

# %% tags=["hide-input"]
#| alt: The stained section with a square marked on it, that square enlarged, and a bar for each of
#| twelve genes, to the right of zero where the spot has more of the gene than its depth predicts
#| and to the left where it has less.
variable = target_genes([adata], 12)
profiles = section_targets(adata, variable)["pearson_residuals"][section.rows]
one = int(profiles.max(1).argmax())
centres_um = adata.obsm["spatial"] * adata.uns["um_per_px"]
left, top = centres_um[section.rows[one]] - Config.patch_um / 2
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(
        1, 3, figsize=(8.4, 3.2), width_ratios=(1.2, 1, 0.8)
    )
    plots.tissue(axes[0], section, um_per_px=4.0, title=section.name)
    square = {"fill": False, "color": plots.INK, "lw": 2}
    axes[0].add_patch(
        plt.Rectangle((left, top), Config.patch_um, Config.patch_um, **square)
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
    axes[2].set(title="its expression", xlabel="Pearson residual")
    axes[2].tick_params(axis="y", length=0)
    axes[2].spines["left"].set_visible(False)
plt.close(figure)
figure

# %% [markdown]
# ## A patch has a size in µm
#
# We cut $224 \times 224$ µm around each spot's centre: the spot, which is 100 µm wide, and the
# tissue around it. We resample the patch to $160 \times 160$ pixels, which is 1.4 µm per pixel.
# Most pathology encoders were trained at 0.5 µm per pixel; for those, set `patch_um=112,
# patch_px=224`. The section's own scale gives the patch's size in pixels of the original image.
# Below are the patches in which each of six genes is highest.

# %%
#| alt: Six patches of tissue, each from the spot in which one gene stands out most.
shown = ["ERBB2", "COL1A1", "CD3E", "MS4A1", "PECAM1", "ADIPOQ"]
shown = [gene for gene in shown if gene in adata.var_names]
residuals = section_targets(adata, shown)["pearson_residuals"][section.rows]
best = residuals.argmax(0)
plots.patches(
    section.patches[best],
    [f"most {gene}" for gene in shown],
    patch_um=Config.patch_um,
)

# %% [markdown]
# ## What cannot be cut
#
# A request for more detail than the scanner resolved raises an error, because interpolation would
# invent the pixels.

# %%
try:
    extract_patches(adata, patch_um=20, patch_px=160)
except InputError as error:
    print(error)

# %% [markdown]
# A patch that leaves the image is dropped, and the drop is reported. Patches of 224 µm rarely
# leave it. Patches of 900 µm often do:

# %%
#| alt: The section, and the same with a circle for every spot; spots near the edge, whose wide
#| region would leave the image, have bold orange rings.
wide = Section(adata, *extract_patches(adata, patch_um=900, patch_px=160))
n_dropped_wide = adata.n_obs - len(wide.rows)
print(f"{n_dropped_wide} of {adata.n_obs} patches leave the image: dropped")
plots.overview(wide)

# %% [markdown]
# Spots with bold orange rings have counts but no patch. They still serve as neighbours in the next
# step, but they form no pair. The opposite also happens: the spot list names spots without any
# counts.

# %%
print(f"{section.name}: {len(section.rows)} pairs")
print("listed spots without counts:", adata.uns["spots_without_counts"])
print("spots without a patch:", adata.n_obs - len(section.rows))

# %% [markdown]
# ## Smoothing over neighbours
#
# A spot's count of a gene is often 0, 1 or 2, and much of that is counting noise. The noise of
# neighbouring spots is *independent*, while tissue changes slowly. So the expression of spot $i$
# takes a share $s$ from the mean of its (up to eight) neighbours $N(i)$ on the array,
#
# $$
# \tilde{x}_i = (1 - s)\, x_i + \frac{s}{|N(i)|} \sum_{j \in N(i)} x_j ,
# \qquad
# y_i = \log\!\left(1 + 10^4\, \frac{\tilde{x}_i}{\sum_g \tilde{x}_{ig}}\right),
# $$
#
# as in SEAL {cite:p}`hemker2026seal`, which takes $s = \tfrac12$. The default here is $s = 0.2$;
# the figure draws one half, so that the effect is visible. The [trials](../trials.md) measure what
# smoothing is worth, at full and at a quarter of the counts. Scored expression is never smoothed.

# %%
#| alt: The section, and maps of three genes in two rows, as measured and smoothed over neighbours.
trio = [gene for gene in ("ERBB2", "CD3E", "ADIPOQ") if gene in adata.var_names]
before, _ = columns(
    log_normalise(adata.layers["counts"]), adata.var_names, trio
)
after, _ = columns(
    log_normalise(smooth(adata, share=0.5)), adata.var_names, trio
)
titles = [f"{gene}: as measured" for gene in trio]
titles += [f"{gene}: smoothed" for gene in trio]
plots.gene_maps(
    section,
    np.c_[before, after][section.rows],
    titles,
    label="log(1 + counts per 10,000)",
)

# %% [markdown]
# The formula, written out for one spot, agrees with the package:

# %%
spot = min(40, adata.n_obs - 1)
counts, weights = adata.layers["counts"].toarray(), neighbour_mean(adata)
neighbours = weights[spot].indices
by_hand = 0.5 * counts[spot] + 0.5 * counts[neighbours].mean(0)
difference = np.abs(by_hand - smooth(adata, share=0.5)[spot].toarray()).max()
print(f"{len(neighbours)} neighbours, largest difference {difference:.2g}")

# %% [markdown]
# ## Augmented views, in optical density
#
# The stain of every laboratory has its own shade, and a nucleus has no upright direction. So each
# patch is seen in several *views*: turned and mirrored (the 8 symmetries of the square), and with
# stronger or weaker stains. The stains change in optical density, because there they add up. Dye
# attenuates light exponentially (Beer-Lambert), so with intensity $I$ the *optical density* is
#
# $$
# \mathrm{OD} = -\log I = S^{\top} c .
# $$
#
# The rows of $S$ are the absorbances of haematoxylin, eosin and a rest
# {cite:p}`ruifrok2001stains`, and $c$ holds their amounts. We unmix, scale each amount by
# $e^{\sigma \varepsilon}$ with $\varepsilon \sim \mathcal{N}(0, 1)$ and $\sigma = 0.15$, and mix
# again: a $3 \times 3$ matrix per view. View 0 is always the patch itself.

# %%
#| alt: Eight views of each of two patches: turned, mirrored, and with stronger or weaker stains.
config = Config(n_views=N_VIEWS)
two, views = [int(best[0]), int(best[1])], np.arange(N_VIEWS)
images, titles = [], []
for i in two:
    keys = [section.keys[i]] * N_VIEWS
    patch = section.patches[[i] * N_VIEWS]
    images += list(make_views(patch, keys, views, jitter=config.stain_jitter))
    turns, stains = view_parameters(keys, views, jitter=config.stain_jitter)
    titles += [
        f"view {view}: H {np.exp(h):.2f}, E {np.exp(e):.2f}"
        for view, (h, e, _) in zip(views, stains, strict=True)
    ]
drawn = [image.permute(1, 2, 0).numpy() for image in images]
plots.patches(drawn, titles, patch_um=config.patch_um, columns=4)

# %% [markdown]
# The titles give the factors on haematoxylin (H) and eosin (E). A view depends on the patch's name
# and the view's index, and on nothing else. So the frozen part of the network can be computed once
# per view and stored ([finetune](08_finetune.ipynb)), and an interrupted run resumes to the same
# result.
#
# ## A batch of pairs
#
# `Pairs` takes sections and a gene {term}`panel` ([next chapter](03_gene_panel.ipynb)) and yields
# batches in an order that depends on the seed and the epoch alone.

# %%
panel = GenePanel.from_config([section], config)
encoder = encoder_for(config)
activations = Activations(encoder, [section], config, cached=False)
pairs = Pairs([section], panel, config, activations)
hidden, expression = next(pairs.epoch(0))
print("activations before the tuned blocks:", tuple(hidden.shape))
print("z-scored expression:               ", tuple(expression.shape))

# %% [markdown]
# ## Result

# %% tags=["hide-input"]
n_without_patch = adata.n_obs - len(section.rows)
patch_px = Config.patch_um / adata.uns["um_per_px"]
result_box(
    f"Section {section.name} gives {len(section.rows)} pairs of a patch "
    f"({Config.patch_um:g} µm, {patch_px:.0f} px in the image) and a profile of "
    f"{expression.shape[1]} genes.",
    f"At {Config.patch_um:g} µm, {n_without_patch} of {adata.n_obs} spots lose "
    f"their patch at the edge of the image; at 900 µm, {n_dropped_wide} do.",
    "Smoothing by hand and by the package differ by at most "
    f"{difference:.1g} counts.",
    "These are counts of one section, so they have no interval.",
)

# %% [markdown]
# ## What to remember
#
# - A patch has a size in µm; the section's scale gives its size in pixels.
# - A patch that cannot be cut raises an error or is reported as dropped. No pixel is invented.
# - Expression is smoothed over neighbours for training, and never for scoring.
# - Augmentation changes optical density, where stains add up. A view depends on its patch's name
#   and its index alone.

# %% [markdown]
# ## Exercises
#
# **1.** Spots lie 200 µm apart and patches are 224 µm wide, so neighbouring patches overlap. What
# share of a patch's area do the patches of its eight neighbours also show? Derive it, then compare
# with this section, for 112, 224 and 448 µm. What follows for a test on spots drawn at random?

# %% tags=["hide-cell", "solution"]
places = (adata.obsm["spatial"] * adata.uns["um_per_px"])[section.rows]
pitch = adata.uns["pitch_um"]
overlap = {}
for um in (112, 224, 448):
    # Edge of the square that no neighbour reaches
    alone = np.clip(2 * pitch - um, 0, um)
    derived = 1 - (alone / um) ** 2
    grid = (np.arange(24) + 0.5) / 24 * um - um / 2
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    shares = []
    for i, centre in enumerate(places):
        others = np.delete(places, i, 0)
        is_near = (np.abs(others - centre) < um).all(1)
        distances = np.abs(centre + points - others[is_near][:, None])
        is_covered = (distances < um / 2).all(2).any(0)
        shares.append(is_covered.mean())
    overlap[um] = float(np.mean(shares))
    print(
        f"{um} µm: {derived:.0%} among eight neighbours, "
        f"{overlap[um]:.0%} on this section"
    )
# Spots at the edge have fewer neighbours, so the section's share cannot exceed the derived one. A
# random split of spots puts most neighbours of a test spot into training, so the network is
# trained on part of the test patches. That is why this book holds out whole patients, or whole
# sections where all are of one patient.

# %% [markdown]
# **2.** Suppose that tissue did not change at all between neighbours, and that each count's noise
# had variance $\sigma^2$. Which share $s$ leaves the least noise in $\tilde{x}_i$, and how much?
# Then look for the share that brings the profiles nearest to the phantom's ground truth, with all
# counts and with a tenth of them. Why do the shares differ?

# %% tags=["hide-cell", "solution"]
s = np.linspace(0, 1, 901)
noise = (1 - s) ** 2 + s**2 / 8
print(
    f"unchanging tissue: s = {s[noise.argmin()]:.3f} "
    f"leaves {noise.min():.3f} of the noise's variance"
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
            smoothed = log_normalise(smooth(counts_of, share=share))
            values, _ = columns(smoothed, adata.var_names, variable)
            r[share] = pearson(values[section.rows], expected).mean()
        top = max(r, key=r.get)
        print(
            f"{name}: r with the truth {r[0]:.3f} unsmoothed, "
            f"best {r[top]:.3f} at {top:.2g}"
        )
# Real tissue changes, so a neighbour adds its own expression along with its independent noise. The
# fewer the counts, the more noise there is to average out. A score on smoothed expression would
# reward a prediction for being smooth, so scores never use it.

# %% [markdown]
# **3.** A view should change what does not matter and keep what does. Take the embeddings of the
# network before any finetuning. Compare the distance between two views of a patch with the
# distance between two different patches, while the stains' jitter $\sigma$ grows. Predict the
# ratio at $\sigma = 0$ first.

# %% tags=["hide-cell", "solution"]
some = np.arange(0, len(section.rows), 6)
keys = [section.keys[i] for i in some]


def embedded(view: int, jitter: float) -> np.ndarray:
    """Embed one view of some patches, (n, d)."""
    indices = np.full(len(some), view)
    views = make_views(
        section.patches[some],
        keys,
        indices,
        jitter=jitter,
        device=encoder.device,
    )
    with torch.inference_mode():
        return encoder(views).cpu().numpy()


clean = embedded(0, 0)
sd = clean.std(0)
n_others = len(some) * (len(some) - 1)
distances = np.linalg.norm((clean[:, None] - clean) / sd, axis=2)
between_patches = distances.sum() / n_others
for jitter in (0, 0.15, 0.3, 0.6, 1.2):
    moved = np.linalg.norm((embedded(1, jitter) - clean) / sd, axis=1).mean()
    share = moved / between_patches
    print(f"jitter {jitter:4}: {share:.2f} of the distance between patches")
# At jitter 0 the patch is only turned or mirrored, and its embedding still moves: a network for
# photographs distinguishes up from down. At a ratio of 1, two views would differ as much as two
# patches. A network that must match such views would have to embed all patches alike.

# %% [markdown]
# ## Further reading
#
# - {cite:p}`ruifrok2001stains` separate a stain into its dyes.
# - {cite:p}`tellez2019augmentation` measure which augmentations help on slides of other
#   laboratories.
# - {cite:p}`hemker2026seal` introduced these patches, the smoothing and the pairs; [the
#   method](what-differs) lists the differences.

# %% tags=["key-figures", "remove-cell"]
same = make_views(
    section.patches[:4], section.keys[:4], np.zeros(4, int), jitter=0.15
)
print(
    json.dumps(
        {
            "pairs": len(section.rows),
            "patch_px_in_image": Config.patch_um / adata.uns["um_per_px"],
            "dropped_at_900_um": n_dropped_wide,
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
