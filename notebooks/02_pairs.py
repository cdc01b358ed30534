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
# # From image and counts to pairs
#
# **What exactly does the network see, and what is it asked to match?**
#
# Ten minutes to read, under a minute to run.
#
# A *pair* is a square of tissue around a spot and the expression measured there. Making pairs looks
# like bookkeeping, and it is where studies quietly go wrong: a wrong scale, a shifted row, a patch
# that runs off the slide. So here every step is shown, and every step that cannot be done is
# refused or reported.

# %% tags=["hide-cell"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("seal_lite") is None:  # in Colab, whose own torch is kept
    home = "seal_lite[offline] @ git+https://github.com/seal-lite/seal-lite"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", home], check=True)

# %% tags=["parameters"]
DATASET = "phantom"  # made here on first use; or the path of a her2st folder
SECTION = ""  # empty: the last one
N_VIEWS = 8  # of each patch: one clean, the others augmented

# %%
import json
import logging
from pathlib import Path

import numpy as np

from seal_lite import Config, InputError, plots
from seal_lite.encoders import build_encoder
from seal_lite.genes import GenePanel, columns, log_normalise, neighbour_mean, smooth
from seal_lite.pairs import Section, extract_patches
from seal_lite.sections import list_sections, load_sections
from seal_lite.targets import section_targets
from seal_lite.train import Pairs
from seal_lite.views import make_views, view_parameters
from tissue_phantom import phantom

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
logging.getLogger("matplotlib").setLevel(logging.WARNING)

ROOT = Path(DATASET)
if DATASET == "phantom":
    ROOT = phantom("data/phantom", patients=3, sections_per_patient=1, spots=160, seed=0)
(section,) = load_sections(ROOT, [SECTION or list_sections(ROOT)[-1]])
adata = section.adata

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
shown = ["ERBB2", "COL1A1", "CD3E", "MS4A1", "PECAM1", "ADIPOQ"]
shown = [g for g in shown if g in adata.var_names]
residuals = section_targets(adata, shown)["pearson_residuals"][section.rows]
best = residuals.argmax(0)
plots.patches(section.patches[best], [f"most {g}" for g in shown], patch_um=Config.patch_um)

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
trio = [g for g in ("ERBB2", "CD3E", "ADIPOQ") if g in adata.var_names]
before, _ = columns(log_normalise(adata.layers["counts"]), adata.var_names, trio)
after, _ = columns(log_normalise(smooth(adata, share=0.5)), adata.var_names, trio)
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
# part of the network once per view and keep it ([finetune](04_finetune.ipynb)), and to resume a run
# to the same result.
#
# ## A batch of pairs
#
# Put together: `Pairs` takes sections and a gene panel ([next
# chapter](03_panel_and_gene_encoder.ipynb)) and deals out batches in an order that depends on the
# seed and the epoch alone.

# %%
panel = GenePanel.from_config([section], config)
encoder = build_encoder(config.backbone, tune_blocks=config.tune_blocks)
pairs = Pairs([section], panel, config, encoder, cached=False)
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

# %% tags=["key-figures", "remove-cell"]
clean = make_views(section.patches[:4], section.keys[:4], np.zeros(4, int), jitter=0.15)
print(
    json.dumps(
        {
            "pairs": len(section.rows),
            "patch_px_in_image": Config.patch_um / adata.uns["um_per_px"],
            "dropped_at_900_um": adata.n_obs - len(wide.rows),
            "smoothing_difference": float(difference),
            "view_0_difference": float(
                np.abs(clean.permute(0, 2, 3, 1).numpy() * 255 - section.patches[:4]).max()
            ),
            "batch": [list(hidden.shape), list(expression.shape)],
        }
    )
)
