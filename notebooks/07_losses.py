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
# # The losses, by hand
#
# **What do four pairs cost, and in which direction does each loss push?**
#
# The contrastive loss, *the contrast* for short, is largest where an image points to another spot's
# profile, and pushes the image away from that profile and towards its own. With z-scores a squared
# error of 1 means that nothing was predicted, and look-alikes in a batch give the contrast a floor
# above zero: two among four pairs leave $\ln 2 / 2 = 0.35$.
#
# Fifteen minutes to read, seconds to run. Every value is small enough to check by hand.
#
# The loss has up to four terms. The contrast asks which profile belongs to an image. Two
# reconstructions predict the profile, one from the gene embedding and one from the image embedding.
# The optional KL term keeps the gene embedding near a standard normal. We take small tensors,
# compute each loss by hand, and compare with the package.

# %% tags=["hide-cell"]
# On Colab: install SEAL-lite, and keep the torch that Colab brings.
import importlib.util
import subprocess
import sys
from importlib.metadata import version

PACKAGE = "seal_lite"
HOME = "git+https://github.com/seal-lite/seal-lite"
if importlib.util.find_spec("seal_lite") is None:
    kept = [f"{name}=={version(name)}" for name in ("torch", "torchvision")]
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, f"{PACKAGE} @ {HOME}", *kept], check=True)

# %% tags=["parameters"]
# Similarities are divided by it
TEMPERATURE = 0.1
# Of gradient descent on the toy
STEPS = 80

# %% tags=["hide-input"]
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from seal_lite import Config, plots, preset
from seal_lite.model import losses
from seal_lite.tutorial import frames, result_box

# %% [markdown]
# ## Four pairs in the plane
#
# Let an embedding have two dimensions. Divided by its length it is a point on a circle, so one
# angle describes it. Here are four images and their four profiles. Pairs 1 and 2 nearly match,
# pair 3 is off, and in pair 4 the image points to the profile of pair 2.

# %%
degrees = {
    "image": [10.0, 80.0, 165.0, 125.0],
    "gene": [-10.0, 95.0, 205.0, 300.0],
}


def on_circle(angles) -> torch.Tensor:
    """Angles in degrees -> unit vectors (b, 2)."""
    radians = torch.deg2rad(torch.as_tensor(angles))
    return torch.stack([radians.cos(), radians.sin()], 1)


image, gene = on_circle(degrees["image"]), on_circle(degrees["gene"])
cosines = image @ gene.T


# %% tags=["hide-input"]
def draw_circle(ax, image, gene, *, title):
    """Images as discs, genes as squares, a line between the two of a pair."""
    ax.add_patch(plt.Circle((0, 0), 1, fill=False, color=plots.GREY, lw=0.8))
    text = {"ha": "center", "va": "center"}
    for i, (u, v) in enumerate(zip(image.tolist(), gene.tolist(), strict=True)):
        ax.plot(*zip(u, v, strict=True), color=plots.COLOURS[i], lw=1, ls=":")
        for mark, point in (("o", u), ("s", v)):
            ax.plot(*point, mark, ms=15, color=plots.COLOURS[i])
            ax.text(
                *point, i + 1, color="white", fontsize=9, weight="bold", **text
            )
    key = "disc: image\nsquare: gene"
    ax.text(0.35, 0.35, key, color=plots.INK, **text)
    ax.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal", title=title)
    ax.axis("off")


def draw_matrix(ax, values, *, title, limits, cmap="viridis"):
    """A small matrix with its values; a row per image, a column per profile."""
    low, high = limits
    ax.imshow(values, cmap=cmap, vmin=low, vmax=high)
    for (i, j), value in np.ndenumerate(np.asarray(values)):
        is_dark = (value - low) / (high - low) < 0.55
        colour = "white" if is_dark else "black"
        text = {"ha": "center", "va": "center", "fontsize": 9, "color": colour}
        ax.text(j, i, f"{value:.2f}", **text)
    numbers = range(1, len(values) + 1)
    ax.set_xticks(range(len(values)), numbers)
    ax.set_yticks(range(len(values)), numbers)
    ax.set(title=title, xlabel="gene", ylabel="image")


# %%
#| alt: Left, a circle with four images and four gene profiles, those of a pair joined by a line.
#| Right, the four by four matrix of their cosines, its diagonal being the true pairs.
with plt.rc_context(plots.STYLE):
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8, 3.8), width_ratios=(1.3, 1)
    )
    draw_circle(left, image, gene, title="four pairs")
    title = "cosine of image and gene"
    draw_matrix(right, cosines, title=title, limits=(-1, 1))
plt.close(figure)
figure

# %% [markdown]
# ## The contrast, one row at a time
#
# Row 1 of the matrix holds the cosines of image 1 with each of the four profiles. Divide by the
# temperature $\tau$, exponentiate, divide by the sum. The row becomes a probability for each
# profile to be the image's own {cite:p}`radford2021clip`. The row's loss is minus the logarithm of
# the true profile's probability. By hand, for image 1:
#
# $$
# \ell_{1} = -\ln \frac{e^{\cos(u_1, v_1)/\tau}}
# {e^{\cos(u_1, v_1)/\tau} + e^{\cos(u_1, v_2)/\tau} + e^{\cos(u_1, v_3)/\tau}
# + e^{\cos(u_1, v_4)/\tau}} .
# $$

# %%
weights = [math.exp(c / TEMPERATURE) for c in cosines[0].tolist()]
share = weights[0] / sum(weights)
print("e^(cos / t):", ", ".join(f"{weight:.4g}" for weight in weights))
print(f"probability of the true profile: {share:.4f}")
print(f"loss of row 1: {-math.log(share):.4f}")

# %% [markdown]
# The loss is the mean over rows (which profile belongs to this image?), the mean over columns
# (which image belongs to this profile?), and the mean of the two:

# %%
logits = cosines / TEMPERATURE
by_rows = -logits.log_softmax(1).diagonal()
by_columns = -logits.log_softmax(0).diagonal()
by_hand = (by_rows.mean() + by_columns.mean()) / 2
package = losses.clip_loss(image, gene, temperature=TEMPERATURE)
clip_gap = float((by_hand - package).abs())
print(f"by hand {by_hand:.4f}, losses.clip_loss {package:.4f}")
print(f"a uniform guess costs ln 4 = {math.log(4):.4f}")
costs = {"image to genes": by_rows, "gene to images": by_columns}
costs = pd.DataFrame(costs, index=[1, 2, 3, 4]).rename_axis("pair")
costs.astype(float).round(3)

# %% [markdown]
# Pair 4, whose image points to another profile, costs most. A pair that is already right costs
# next to nothing and teaches next to nothing, so the worst confusions make up the loss. The value
# $e^{\ell}$ is easier to read: it is the number of equally likely candidates with the same loss.
#
# ## Temperature
#
# The cosines stay as they are; move the slider. The higher the temperature, the more alike the
# probabilities are, and the less the loss depends on the embeddings. At a low temperature a small
# lead becomes certainty, and a single mislabelled pair costs much.

# %% tags=["hide-input"]
by_temperature = {}
for t in (1.0, 0.5, 0.2, 0.1, 0.05, 0.02):
    loss = losses.clip_loss(image, gene, temperature=t)
    probabilities = (cosines / t).softmax(1)
    title = f"probabilities of each image, loss {loss:.2f}"
    with plt.rc_context(plots.STYLE):
        figure, ax = plt.subplots(figsize=(4.4, 3.9))
        draw_matrix(ax, probabilities, limits=(0, 1), title=title)
    plt.close(figure)
    by_temperature[f"{t:g}"] = figure
frames.slider(
    by_temperature,
    label="temperature",
    alt="Each image's probabilities over the four genes as a matrix, "
    "sharper at lower temperatures.",
)

# %% [markdown]
# ## In which direction does it push?
#
# The gradient with respect to an image's embedding has a simple form. With $p_{ij}$ the
# probabilities of image $i$, and leaving lengths aside,
#
# $$
# \frac{\partial \ell_i}{\partial u_i} = \frac1\tau \Bigl(\sum_j p_{ij} v_j - v_i\Bigr) .
# $$
#
# A step against the gradient moves the image away from the profiles it was mistaken for and
# towards its own. We check the formula against autograd, then let the images move.

# %%
u = image[3:].clone().requires_grad_()
(row_loss,) = -(u @ gene.T / TEMPERATURE).log_softmax(1)[:, 3]
row_loss.backward()
probabilities = (image[3:] @ gene.T / TEMPERATURE).softmax(1)
formula = (probabilities @ gene - gene[3]) / TEMPERATURE
gradient_gap = float((u.grad - formula).abs().max())
print("autograd:", u.grad.numpy().round(3))
print("formula: ", formula.numpy().round(3))

# %%
angles = torch.tensor(degrees["image"], requires_grad=True)
optimizer = torch.optim.SGD([angles], lr=150.0)
moved, curve = {}, []
for step in range(STEPS + 1):
    now = on_circle(angles)
    loss = losses.clip_loss(now, gene, temperature=TEMPERATURE)
    curve.append(loss.item())
    if step % max(1, STEPS // 10) == 0:
        with plt.rc_context(plots.STYLE):
            figure, ax = plt.subplots(figsize=(4.6, 4.1))
            draw_circle(ax, now.detach(), gene, title=f"loss {loss:.2f}")
        plt.close(figure)
        moved[step] = figure
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
frames.slider(
    moved,
    label="step",
    alt="Four images move along a circle towards their own genes.",
)

# %% [markdown]
# ## Look-alikes: a loss that cannot reach zero
#
# Two neighbouring spots may look the same and express the same genes. Then no model can tell which
# is which, and the loss has a floor: with two such twins among the four, each of their rows and
# columns costs at least $\ln 2$. A lower training loss means that the noise was learnt. Soft
# targets {cite:p}`xie2023bleep` count a twin as partly right. The default does without
# (`soft_targets=0`); the [trials](../trials.md) measure what they are worth.
#
# Wrong pairs do not stop the contrast from falling either. In the [control on shuffled
# pairs](controls) each patch keeps one wrong profile through all views and epochs. The contrast
# then teaches the encoder to tell patches apart, whatever their view: *instance discrimination*.
# So a falling contrast alone does not show that expression was learnt.

# %%
twins = on_circle([0.0, 0.0, 120.0, 240.0])
floor = losses.clip_loss(twins, twins, temperature=0.02)
print(f"two twins of four, perfectly embedded: {floor:.4f}")
print(f"half of ln 2 = {math.log(2) / 2:.4f}")
soft = losses.clip_loss(twins, twins, temperature=0.02, soft=1.0)
target = (twins @ twins.T / 0.02).softmax(1)
entropy = torch.special.entr(target).sum(1).mean()
print(f"with soft targets: {soft:.4f}, the targets' entropy: {entropy:.4f}")

# %% [markdown]
# With soft targets the smallest loss is the entropy of the targets, and these embeddings reach it.
#
# ## The reconstruction: value or pattern?
#
# Below is one gene in six spots, as z-scores, with five predictions. The squared error compares
# the value in each spot. The correlation term compares the pattern over the batch, and ignores
# offset and scale:
#
# $$
# \text{mse} = \frac{1}{BG} \sum_{b,g} (\hat z_{bg} - z_{bg})^2 , \qquad
# \text{corr} = \frac1G \sum_g (1 - c_{gg})^2 .
# $$

# %% tags=["hide-input"]
#| alt: Six spots' z-scores of one gene as dots, and five predictions of them as lines: exact,
#| shifted up, halved, constant, reversed.
z = torch.tensor([-1.5, -0.9, -0.3, 0.3, 0.9, 1.5])[:, None]
z = z / z.std(0, False)
predictions = {
    "exact": z,
    "one too high": z + 1,
    "half as far": z / 2,
    "the mean": 0 * z,
    "reversed": -z,
}
mse = {name: losses.mse(p, z).item() for name, p in predictions.items()}
corr = {
    name: losses.correlation_loss(p, z).item()
    for name, p in predictions.items()
}
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(7, 3.2))
    for (name, prediction), colour in zip(
        predictions.items(), plots.COLOURS, strict=False
    ):
        label = f"{name}: mse {mse[name]:.2f}, corr {corr[name]:.2f}"
        ax.plot(range(1, 7), prediction[:, 0], "-", color=colour, label=label)
    ax.plot(range(1, 7), z[:, 0], "o", color=plots.INK, label="measured")
    ax.set(xlabel="spot", ylabel="z-score")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.close(figure)
figure

# %% [markdown]
# With z-scores, a prediction that is always the mean has **an mse of 1: it predicts nothing**.
# Compare training curves with that value. If half of the variance is noise, predicting half as far
# has the smallest mse, and the correlation term does not penalise it. Scores are correlations, so
# the correlation term seems the better loss. The default leaves it out: in the [trials](earned)
# that changes *r* by {{ interval(difference(load("trials"), "no correlation", MAIN)) }}.
#
# ## KL: how far from a standard normal
#
# The gene encoder gives a mean and a variance for each dimension of the embedding. The divergence
# from $\mathcal N(0, 1)$ has a closed form. Means away from 0 and variances away from 1 both add
# to it.
#
# $$
# \mathrm{KL} = \tfrac12 \sum_d \bigl(\mu_d^2 + \sigma_d^2 - 1 - \ln \sigma_d^2 \bigr)
# $$

# %%
mu, sigma = 1.0, 0.5
log_variance = torch.tensor([[2 * math.log(sigma)]])
closed = losses.kl_loss(torch.tensor([[mu]]), log_variance).item()
grid = torch.linspace(-6, 8, 20001)
log_q = torch.distributions.Normal(mu, sigma).log_prob(grid)
log_p = torch.distributions.Normal(0.0, 1.0).log_prob(grid)
integral = torch.trapezoid(log_q.exp() * (log_q - log_p), grid).item()
kl_gap = abs(closed - integral)
print(f"formula {closed:.4f}, integral {integral:.4f}")

# %% [markdown]
# Its weight is 0 in released SEAL and here. Retrieval needs only the mean, and a pull to the
# origin competes with the contrast.
#
# ## All together
#
# $$
# \mathcal L = w_\text{clip} \mathcal L_\text{clip} + w_\text{gene} \mathcal L_{\text{gene} \to
# \text{gene}} + w_\text{image} \mathcal L_{\text{image} \to \text{gene}} + w_\text{kl} \mathrm{KL}
# $$

# %%
names = ["temperature", "w_clip", "w_gene", "w_image"]
names += ["w_mse", "w_corr", "w_kl"]
presets = ("default", "paper")
values = {name: [getattr(preset(p), name) for p in presets] for name in names}
pd.DataFrame(values, index=presets)

# %% [markdown]
# The two reconstructions ask for expression. Only the contrast asks what distinguishes a spot from
# the others of its batch. In the [next chapter](08_finetune.ipynb) they train together.
#
# ## Result

# %% tags=["hide-input"]
cost = (by_rows + by_columns) / 2
worst = int(cost.argmax())
largest_gap = max(clip_gap, gradient_gap, kl_gap)
costs_more = package.item() > math.log(4)
result_box(
    f"At temperature {TEMPERATURE:g} the four pairs cost {package:.2f}, "
    f"{'more' if costs_more else 'less'} than a uniform guess "
    f"({math.log(4):.2f}); pair {worst + 1} alone makes up "
    f"{cost[worst] / cost.sum():.0%} of it.",
    f"Moving the images for {STEPS} steps takes the loss from {curve[0]:.2f} to "
    f"{curve[-1]:.2f}.",
    f"Two look-alikes among four leave {floor:.3f} at best.",
    "The losses by hand and those of the package differ by at most "
    f"{largest_gap:.1g}.",
    "These are exact values of a toy, without an interval.",
)

# %% [markdown]
# ## What to remember
#
# - Similarities are *divided* by the temperature, and a uniform guess costs $\ln B$.
# - $e^{\text{loss}}$ is a number of equally likely candidates.
# - Twins in a batch give the contrast a floor.
# - With z-scores, an mse of 1 predicts nothing.
#
# ## Exercises
#
# **1.** An encoder has collapsed: it gives every patch the same embedding. What is the contrast of
# a batch of 64, by columns and by rows, and what is the image's mse then?

# %% tags=["hide-cell", "solution"]
# Columns: all images are alike to a profile, a uniform guess: ln 64. Rows: every image makes the
# same guess, right once in 64. That costs ln 64 if the guess is uniform, and more otherwise. The
# decoder sees a constant and can at best predict each gene's mean: an mse of 1. The two values
# together identify a collapse.
torch.manual_seed(0)
batch = F.normalize(torch.randn(64, 8), dim=1)
alike = F.normalize(torch.ones(64, 8), dim=1)
guesses = alike @ batch.T / TEMPERATURE
collapsed = [-guesses.log_softmax(d).diagonal().mean().item() for d in (0, 1)]
noise = torch.randn(64, 20)
noise = (noise - noise.mean(0)) / noise.std(0, False)
mse_of_mean = losses.mse(torch.zeros_like(noise), noise).item()
print(f"columns {collapsed[0]:.4f}, rows {collapsed[1]:.4f}")
print(f"ln 64 = {math.log(64):.4f}; mse of the mean: {mse_of_mean:.4f}")

# %% [markdown]
# **2.** Some code *multiplies* by a "temperature" (CLIP's `logit_scale`). Give such code the 0.1
# that was meant for division, and look at the loss of our four pairs and at the probabilities of
# image 1. Would you notice while training?

# %% tags=["hide-cell", "solution"]
# Multiplying by 0.1 is dividing by 10: every guess is nearly uniform, and the loss stays near ln B
# whatever the encoder does. The curve looks like a hard problem, not like a bug.
wrong = losses.clip_loss(image, gene, temperature=1 / TEMPERATURE)
perfect = losses.clip_loss(gene, gene, temperature=1 / TEMPERATURE)
print(f"these pairs {wrong:.3f}, perfect pairs {perfect:.3f}")
print(f"a uniform guess {math.log(4):.3f}")
probabilities = (cosines[0] * TEMPERATURE).softmax(0)
print("probabilities of image 1:", probabilities.numpy().round(3))

# %% [markdown]
# **3.** Released SEAL writes its gene loss as $0.1\,(L_b + 5 L_m)$ with $L_m$ the mse and $L_b =
# 0.05 \sum_g (1 - c_{gg})^2$, over 2,000 genes. Which `w_mse` and `w_corr` give the same here?

# %% tags=["hide-cell", "solution"]
# 0.1 * 5 = 0.5 for the mse; 0.1 * 0.05 * 2000 = 10 for a mean over genes instead of a sum.
paper = preset("paper")
z2, p2 = torch.randn(32, 2000), torch.randn(32, 2000)
standard = [(m - m.mean(0)) / m.std(0, False) for m in (z2, p2)]
c = (standard[0] * standard[1]).mean(0)
released = 0.1 * (0.05 * (1 - c).square().sum() + 5 * (p2 - z2).square().mean())
ours = losses.gene_loss(p2, z2, w_mse=paper.w_mse, w_corr=paper.w_corr)
released_gap = float((released - ours).abs() / released)
print(f"w_mse {paper.w_mse}, w_corr {paper.w_corr}: {ours:.3f}")
print(f"released formula: {released:.3f}")

# %% [markdown]
# **4.** A batch has 64 pairs, and every spot has one twin among the others. What is the contrast's
# floor? What share of the rows ranks its own pair first?

# %% tags=["hide-cell", "solution"]
# Each of the 64 rows chooses between two equals: ln 2. On average half of the rows are right.
half = F.normalize(torch.randn(32, 16), dim=1)
pairs = torch.cat([half, half])
lowest = losses.clip_loss(pairs, pairs, temperature=0.005)
print(f"{lowest:.4f} against ln 2 = {math.log(2):.4f}")

# %% [markdown]
# ## Further reading
#
# - {cite:p}`radford2021clip` use the contrast at scale, with a learnt temperature.
# - {cite:p}`zbontar2021barlow` introduced the correlation term, with an off-diagonal part.
# - {cite:p}`xie2023bleep` contrast patches and expression with soft targets.
# - {cite:p}`kingma2013vae` introduced the variational autoencoder and its KL term.

# %% tags=["key-figures", "remove-cell"]
print(
    json.dumps(
        {
            "clip_gap": clip_gap,
            "gradient_gap": gradient_gap,
            "kl_gap": kl_gap,
            "released_gap": released_gap,
            "floor": float(floor),
            "collapsed": collapsed,
            "steps": [curve[0], curve[-1]],
            "mse_of_the_mean": mse["the mean"],
            "default_temperature": Config.temperature,
        }
    )
)
