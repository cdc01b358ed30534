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
# **What do four pairs cost, and which way does each loss push?**
#
# Fifteen minutes to read, seconds to run. Bring a pencil: every number is small enough to check.
#
# Three questions are put to the network at once. *Which of these profiles belongs to this
# picture?* (the contrast). *What was the profile?* asked of the gene embedding and of the image
# embedding (two reconstructions). And, if you want it, *is the gene embedding spread like a
# standard normal?* (KL). We take tensors that fit on a page, compute each by hand, and compare
# with the package.

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
TEMPERATURE = 0.1  # similarities are divided by it
STEPS = 80  # of gradient descent on the toy

# %%
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from seal_lite import Config, plots, preset
from seal_lite.model import losses
from seal_lite.tutorial import frames

# %% [markdown]
# ## Four pairs in the plane
#
# Let an embedding have two numbers. Divided by its length it is a point on a circle, so one angle
# says it all. Here are four pictures and their four profiles. Pairs 1 and 2 nearly match, pair 3
# is off, and in pair 4 the picture points at the profile of pair 2.

# %%
degrees = {
    "image": [10.0, 80.0, 165.0, 125.0],
    "gene": [-10.0, 95.0, 205.0, 300.0],
}


def on_circle(angles):
    """Angles in degrees -> unit vectors (b, 2)."""
    radians = torch.deg2rad(torch.as_tensor(angles))
    return torch.stack([radians.cos(), radians.sin()], 1)


image, gene = (on_circle(degrees[side]) for side in ("image", "gene"))


def draw_circle(ax, image, gene, *, title):
    """Images as discs, genes as squares, a line between the two of a pair."""
    ax.add_patch(plt.Circle((0, 0), 1, fill=False, color=plots.GREY, lw=0.8))
    for i, (u, v) in enumerate(zip(image.tolist(), gene.tolist(), strict=True)):
        ax.plot(*zip(u, v, strict=True), color=plots.COLOURS[i], lw=1, ls=":")
        for mark, at in (("o", u), ("s", v)):
            ax.plot(*at, mark, ms=15, color=plots.COLOURS[i])
            ax.text(
                *at,
                i + 1,
                color="white",
                ha="center",
                va="center",
                fontsize=9,
                weight="bold",
            )
    ax.text(
        0.35,
        0.35,
        "disc: image\nsquare: gene",
        ha="center",
        va="center",
        color=plots.INK,
    )
    ax.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal", title=title)
    ax.axis("off")


def draw_matrix(ax, values, *, title, limits, cmap="viridis"):
    """A small matrix with its numbers written in; a row per picture, a column per profile."""
    ax.imshow(values, cmap=cmap, vmin=limits[0], vmax=limits[1])
    for (i, j), v in np.ndenumerate(np.asarray(values)):
        light = (v - limits[0]) / (limits[1] - limits[0]) < 0.55
        ax.text(
            j,
            i,
            f"{v:.2f}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if light else "black",
        )
    names = range(1, len(values) + 1)
    ax.set(
        xticks=range(len(values)),
        yticks=range(len(values)),
        title=title,
        xlabel="gene",
        ylabel="image",
    )
    ax.set_xticklabels(names)
    ax.set_yticklabels(names)


# %%
#| alt: Left, a circle with four images and four gene profiles, those of a pair joined by a line.
#| Right, the four by four matrix of their cosines, its diagonal being the true pairs.
cosines = image @ gene.T
with plt.rc_context(plots.STYLE):
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8, 3.8), width_ratios=(1.3, 1)
    )
    draw_circle(left, image, gene, title="four pairs")
    draw_matrix(
        right, cosines, title="cosine of image and gene", limits=(-1, 1)
    )
plt.close(figure)
figure

# %% [markdown]
# ## The contrast, one row at a time
#
# Row 1 of the matrix holds what image 1 has in common with each of the four profiles. Divide by the
# temperature $\tau$, exponentiate, divide by the sum: the row becomes a guess, in probabilities, at
# which profile is its own {cite:p}`radford2021clip`. The row's loss is minus the logarithm of what
# was given to the true one. By hand, for image 1:
#
# $$
# \ell_{1} = -\ln \frac{e^{\cos(u_1, v_1)/\tau}}
# {e^{\cos(u_1, v_1)/\tau} + e^{\cos(u_1, v_2)/\tau} + e^{\cos(u_1, v_3)/\tau}
# + e^{\cos(u_1, v_4)/\tau}} .
# $$

# %%
weights = [math.exp(c / TEMPERATURE) for c in cosines[0].tolist()]
print("e^(cos / t):", ", ".join(f"{w:.4g}" for w in weights))
print(f"share of the true one: {weights[0] / sum(weights):.4f}")
print(f"loss of row 1: {-math.log(weights[0] / sum(weights)):.4f}")

# %% [markdown]
# The whole loss is the mean over rows (which profile belongs to this picture?) and over columns
# (which picture belongs to this profile?), and the mean of these two:

# %%
logits = cosines / TEMPERATURE
by_rows = -logits.log_softmax(1).diagonal()
by_columns = -logits.log_softmax(0).diagonal()
by_hand = (by_rows.mean() + by_columns.mean()) / 2
package = losses.clip_loss(image, gene, temperature=TEMPERATURE)
clip_gap = float((by_hand - package).abs())
print(
    f"by hand {by_hand:.4f}, losses.clip_loss {package:.4f}, guessing ln 4 = {math.log(4):.4f}"
)
pd.DataFrame(
    {"image asks": by_rows, "gene asks": by_columns}, index=[1, 2, 3, 4]
).round(3)

# %% [markdown]
# Pair 4 pays nearly everything. That is the contrast's character: what is right already costs
# nothing and teaches nothing, and the loss is made by the worst confusions. $e^{\ell}$ reads well:
# it is the number of equally likely candidates that the model still hesitates between.
#
# ## Temperature: how strict is the question?
#
# The cosines stay as they are. Move the slider: a high temperature asks for nothing, so nothing is
# learnt; a low one makes a small lead into certainty, and one mislabelled pair into a disaster.

# %%
scale = {}
for t in (1.0, 0.5, 0.2, 0.1, 0.05, 0.02):
    with plt.rc_context(plots.STYLE):
        figure, ax = plt.subplots(figsize=(4.4, 3.9))
        loss = losses.clip_loss(image, gene, temperature=t)
        draw_matrix(
            ax,
            (cosines / t).softmax(1),
            limits=(0, 1),
            title=f"what each image guesses, loss {loss:.2f}",
        )
    plt.close(figure)
    scale[f"{t:g}"] = figure
frames.slider(
    scale,
    label="temperature",
    alt="Each image's guess over the four genes as a matrix "
    "of probabilities, sharper at lower temperatures.",
)

# %% [markdown]
# ## Which way does it push?
#
# The gradient with respect to an image's embedding has a plain meaning. With $p_{ij}$ the guess of
# image $i$, and leaving lengths aside,
#
# $$
# \frac{\partial \ell_i}{\partial u_i} = \frac1\tau \Bigl(\sum_j p_{ij} v_j - v_i\Bigr) :
# $$
#
# away from what it was mistaken for, towards its own. Check it against autograd, then let the
# pictures move.

# %%
u = image[3:].clone().requires_grad_()
(row_loss,) = -(u @ gene.T / TEMPERATURE).log_softmax(1)[:, 3]
row_loss.backward()
guess = (image[3:] @ gene.T / TEMPERATURE).softmax(1)
formula = (guess @ gene - gene[3]) / TEMPERATURE
gradient_gap = float((u.grad - formula).abs().max())
print(
    "autograd:", u.grad.numpy().round(3), " formula:", formula.numpy().round(3)
)

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
# Two neighbouring spots may have the same look and the same genes. Asked which is which, nobody can
# do better than one half, and the loss has a floor: with two twins among the four, each of their
# rows and columns costs at least $\ln 2$. Pushing beyond it means to learn the noise. Soft targets
# {cite:p}`xie2023bleep` give part of the mark for a twin. The default does without
# (`soft_targets=0`): what that is worth is [measured](../trials.md).

# %%
twins = on_circle([0.0, 0.0, 120.0, 240.0])
floor = losses.clip_loss(twins, twins, temperature=0.02)
print(
    f"two twins of four, perfectly embedded: {floor:.4f}; half of ln 2 = {math.log(2) / 2:.4f}"
)
soft = losses.clip_loss(twins, twins, temperature=0.02, soft=1.0)
target = (twins @ twins.T / 0.02).softmax(1)
entropy = torch.special.entr(target).sum(1).mean()
print(
    f"with soft targets: {soft:.4f}, of which {entropy:.4f} is asked for: nothing left to learn"
)

# %% [markdown]
# ## The reconstruction: value or pattern?
#
# One gene in six spots, as z-scores, and five ways to predict it. The squared error asks for the
# right value in each spot. The correlation term asks for the right pattern over the batch, and does
# not care for offset or scale:
#
# $$
# \text{mse} = \frac{1}{BG} \sum_{b,g} (\hat z_{bg} - z_{bg})^2 , \qquad
# \text{corr} = \frac1G \sum_g (1 - c_{gg})^2 .
# $$

# %%
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
cost = pd.DataFrame(
    {
        name: {
            "mse": losses.mse(p, z).item(),
            "corr": losses.correlation_loss(p, z).item(),
        }
        for name, p in predictions.items()
    }
).T
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(7, 3.2))
    for (name, p), colour in zip(
        predictions.items(), plots.COLOURS, strict=False
    ):
        said = (
            f"{name}: mse {cost.mse[name]:.2f}, corr {cost['corr'][name]:.2f}"
        )
        ax.plot(range(1, 7), p[:, 0], "-", color=colour, label=said)
    ax.plot(range(1, 7), z[:, 0], "o", color=plots.INK, label="measured")
    ax.set(xlabel="spot", ylabel="z-score")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.close(figure)
figure

# %% [markdown]
# A prediction that is always the mean costs 1 in both: with z-scores, **an mse of 1 is knowing
# nothing**. That is a good number to hold against a training curve. Predicting half as far is what
# mse itself recommends when half of the variance is noise, and corr forgives it. As predictions are
# scored by correlation, corr seems the better loss. On real tissue it [made no
# difference](earned), so the default leaves it out.
#
# ## KL: how far from a standard normal
#
# The gene encoder gives a mean and a variance for each number of the embedding. The divergence from
# $\mathcal N(0, 1)$ has a closed form, and you can see both of its parts: means away from 0 and
# variances away from 1 cost.
#
# $$
# \mathrm{KL} = \tfrac12 \sum_d \bigl(\mu_d^2 + \sigma_d^2 - 1 - \ln \sigma_d^2 \bigr)
# $$

# %%
mu, sigma = 1.0, 0.5
closed = losses.kl_loss(
    torch.tensor([[mu]]), torch.tensor([[2 * math.log(sigma)]])
).item()
grid = torch.linspace(-6, 8, 20001)
q, p = (
    torch.distributions.Normal(mu, sigma),
    torch.distributions.Normal(0.0, 1.0),
)
integral = torch.trapezoid(
    q.log_prob(grid).exp() * (q.log_prob(grid) - p.log_prob(grid)), grid
)
kl_gap = abs(closed - integral.item())
print(f"formula {closed:.4f}, integral {integral:.4f}")

# %% [markdown]
# Its weight is 0 in released SEAL and here: retrieval needs the mean only, and a pull to the
# origin competes with the contrast.
#
# ## All together
#
# $$
# \mathcal L = w_\text{clip} \mathcal L_\text{clip} + w_\text{gene} \mathcal L_{\text{gene} \to
# \text{gene}} + w_\text{image} \mathcal L_{\text{image} \to \text{gene}} + w_\text{kl} \mathrm{KL}
# $$

# %%
names = [
    "temperature",
    "w_clip",
    "w_gene",
    "w_image",
    "w_mse",
    "w_corr",
    "w_kl",
]
pd.DataFrame(
    {n: [getattr(preset(p), n) for p in ("default", "paper")] for n in names},
    index=["default", "paper"],
)

# %% [markdown]
# Three of the four terms speak of expression, and only one of what distinguishes a spot from its
# neighbours. In the [next chapter](08_finetune.ipynb) they train together.
#
# ## What to remember
#
# - Similarities are *divided* by the temperature; a guess costs $\ln B$.
# - $e^{\text{loss}}$ is the number of candidates that the model still hesitates between.
# - Twins in a batch put a floor under the contrast.
# - With z-scores, an mse of 1 is knowing nothing.
#
# ## Exercises
#
# **1.** An encoder has collapsed: it gives every patch the same embedding. What is the contrast of
# a batch of 64, by columns and by rows, and what does the image's mse tell then?

# %% tags=["hide-cell", "solution"]
# Columns: to a profile all pictures are alike, a uniform guess: ln 64. Rows: every picture makes
# the same guess, right once in 64: ln 64 if it is uniform, more the surer it is. So at best ln 64,
# and the gene encoder is pushed to make it so. The decoder sees a constant and can at best predict
# each gene's mean: an mse of 1. Both numbers together are the mark of a collapse.
torch.manual_seed(0)
batch, alike = (
    F.normalize(torch.randn(64, 8), dim=1),
    F.normalize(torch.ones(64, 8), dim=1),
)
guesses = alike @ batch.T / TEMPERATURE
collapsed = [-guesses.log_softmax(d).diagonal().mean().item() for d in (0, 1)]
noise = torch.randn(64, 20)
noise = (noise - noise.mean(0)) / noise.std(0, False)
print(
    "columns, rows:", np.round(collapsed, 4), "ln 64:", round(math.log(64), 4)
)
print(
    "mse of the mean:",
    round(losses.mse(torch.zeros_like(noise), noise).item(), 4),
)

# %% [markdown]
# **2.** Some code *multiplies* by a "temperature" (CLIP's `logit_scale`). Take such code, give it
# the 0.1 that was meant for division, and look at the loss of our four pairs and at the guess of
# image 1. Would you notice while training?

# %% tags=["hide-cell", "solution"]
# Multiplying by 0.1 is dividing by 10: every guess is nearly uniform and the loss stays at ln B
# whatever the encoder does. The curve looks like a hard problem, not like a bug.
wrong = losses.clip_loss(image, gene, temperature=1 / TEMPERATURE)
perfect = losses.clip_loss(gene, gene, temperature=1 / TEMPERATURE)
print(
    f"these pairs {wrong:.3f}, perfect pairs {perfect:.3f}, guessing {math.log(4):.3f}"
)
print(
    "guess of image 1:", (cosines[0] * TEMPERATURE).softmax(0).numpy().round(3)
)

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
print(
    f"w_mse {paper.w_mse}, w_corr {paper.w_corr}: {ours:.3f}, released formula {released:.3f}"
)

# %% [markdown]
# **4.** A batch has 64 pairs; every spot has one twin among the others. Where is the contrast's
# floor? And the share of rows that name their own pair first?

# %% tags=["hide-cell", "solution"]
# Each of the 64 asks between two equals: ln 2. Half of the rows are right, by luck.
half = F.normalize(torch.randn(32, 16), dim=1)
pairs = torch.cat([half, half])
lowest = losses.clip_loss(pairs, pairs, temperature=0.005)
print(f"{lowest:.4f} against ln 2 = {math.log(2):.4f}")

# %% [markdown]
# ## Further reading
#
# - {cite:p}`radford2021clip`: the contrast, at scale, with a learnt temperature.
# - {cite:p}`zbontar2021barlow`: where the correlation term comes from, with its off-diagonal part.
# - {cite:p}`xie2023bleep`: contrast between patches and expression, with soft targets.
# - {cite:p}`kingma2013vae`: the variational autoencoder and its KL.

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
            "mse_of_the_mean": float(cost.mse["the mean"]),
            "default_temperature": Config.temperature,
        }
    )
)
