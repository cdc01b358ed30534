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
# # LoRA, from the matrix up
#
# **A pretrained network has millions of weights and we have hundreds of pairs. Which weights may
# change, and why is that enough?**
#
# LoRA freezes the weights and trains a change of low rank beside each matrix. The change starts at
# zero, can be merged into the weights after training, and is small only where the matrices are
# large.
#
# Fifteen minutes to read, under a minute to run.
#
# With so few pairs, a network whose weights all change freely can memorise the pairs, and a frozen
# network cannot adapt. LoRA {cite:p}`hu2021lora` lets every weight of a layer change, but only
# along a few directions. To see what that means, we first look at a matrix as an image.

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
# "auto": a small network, or on a GPU Phikon; or a name of `seal-lite encoders`
BACKBONE = "auto"
# 0: 12, or 20 on a GPU; a transformer on a CPU: 8
EPOCHS = 0
# Everything tiny, just to see that it runs
SMOKE = False
SEED = 0

# %% tags=["hide-input"]
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from seal_lite import plots
from seal_lite.encoders.embedding import embed_patches
from seal_lite.encoders.vision import encoder_for
from seal_lite.tutorial import begin, finetuned, frames, result_box

here = begin(DATASET, BACKBONE, EPOCHS, SMOKE, seed=SEED)
config, test = here.config, here.test
_ = torch.manual_seed(SEED)

# %% [markdown]
# ## What a low rank can express
#
# A patch of tissue in grey is a matrix. Its best approximation of rank $r$ is a sum of $r$ outer
# products of a column and a row, found by the singular value decomposition. Move the slider: a few
# products give stripes, and more of them add the layout and then the nuclei.

# %% tags=["hide-input"]
grey = test.patches[len(test.patches) // 2].mean(2)
U, S, V = np.linalg.svd(grey, full_matrices=False)
approximations = {}
for rank in (1, 2, 4, 8, 16, 32, 64):
    low = (U[:, :rank] * S[:rank]) @ V[:rank]
    n_values = rank * sum(grey.shape)
    titles = (
        f"the matrix: {grey.size:,} values",
        f"rank {rank}: {n_values:,} values",
    )
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.5))
        for ax, shown, title in zip(axes, (grey, low), titles, strict=True):
            extent = (0, config.patch_um, config.patch_um, 0)
            ax.imshow(shown, cmap="gray", vmin=0, vmax=255, extent=extent)
            ax.set(title=title, xticks=[], yticks=[])
            plots.scale_bar(ax)
    plt.close(figure)
    approximations[rank] = figure
frames.slider(
    approximations,
    label="rank",
    alt="A patch of tissue in grey, and beside it the same patch as a matrix of the given rank.",
)

# %% [markdown]
# A change $\Delta W$ of a weight matrix is a matrix too. LoRA assumes that the *change* a new task
# needs has a low rank, even where the weights themselves do not.
#
# ## The layer, by hand
#
# $$
# y = W x + \frac{\alpha}{r}\, B A\, x, \qquad W \in \mathbb R^{m \times n} \text{ frozen}, \quad
# A \in \mathbb R^{r \times n},\; B \in \mathbb R^{m \times r} \text{ trained}.
# $$
#
# The code has a line for each part of the formula:


# %%
class LoRALinear(nn.Module):
    """A frozen linear layer and a trained change of rank r beside it."""

    def __init__(self, layer: nn.Linear, r: int, alpha: float):
        super().__init__()
        self.layer, self.scale = layer.requires_grad_(False), alpha / r
        self.A = nn.Parameter(
            torch.randn(r, layer.in_features) / layer.in_features**0.5
        )
        self.B = nn.Parameter(torch.zeros(layer.out_features, r))

    def delta(self):
        return self.scale * self.B @ self.A

    def forward(self, x):
        return self.layer(x) + self.scale * (x @ self.A.T) @ self.B.T


layer = nn.Linear(64, 48, bias=False)
lora, x = LoRALinear(layer, r=4, alpha=8), torch.randn(10, 64)
start_gap = float((lora(x) - layer(x)).abs().max().detach())
print(f"before the first step the two layers differ by {start_gap}")

# %% [markdown]
# At the start $B = 0$, so the layer is unchanged and training begins at the pretrained network.
# Only *one* of the two factors may be zero. The gradients of the first step show why:

# %%
target = torch.randn(10, 48)
(lora(x) - target).square().mean().backward()
print(f"largest gradient of A: {lora.A.grad.abs().max():.2g}")
print(f"largest gradient of B: {lora.B.grad.abs().max():.2g}")

# %% [markdown]
# The gradient $\partial \mathcal L / \partial A$ has $B$ as a factor and is zero. The gradient
# $\partial \mathcal L / \partial B$ has $A$ as a factor and is not. So $B$ moves first, then both
# do. If $A$ were zero as well, neither would ever move.
#
# ## How much rank does a task need?
#
# Let the best change be a matrix of rank 4 with noise added. We train LoRA layers of several ranks
# on it. The smallest error that any matrix of rank $r$ can have is known (Eckart and Young): drop
# the singular values after the $r$-th.

# %%
#| alt: Left, the error that is left after training against LoRA's rank, with the smallest possible
#| error. Right, the singular values of the change that is fitted, four of them large.
W = layer.weight.detach()
signal = torch.randn(48, 4) @ torch.randn(4, 64) / 8
wanted = signal + 0.05 * torch.randn(48, 64)
singular = torch.linalg.svdvals(wanted)


def fit(r: int, steps: int = 100 if SMOKE else 400) -> LoRALinear:
    """A LoRA layer trained towards W + wanted by gradient descent."""
    torch.manual_seed(SEED)
    net = LoRALinear(layer, r=r, alpha=2 * r)
    optimizer = torch.optim.Adam([net.A, net.B], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        (net.delta() - wanted).square().sum().backward()
        optimizer.step()
    return net


ranks = (1, 2, 3, 4, 6, 8, 16)
trained = [fit(r) for r in ranks]
left = [float((net.delta() - wanted).detach().norm()) for net in trained]
least = [float(singular[r:].norm()) for r in ranks]
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    blue, orange = plots.COLOURS[:2]
    axes[0].plot(ranks, left, "o-", color=blue, label="LoRA, trained")
    axes[0].plot(ranks, least, "x", color=orange, label="smallest possible")
    axes[0].set(
        xlabel="rank", ylabel="error left (norm)", ylim=(0, None), xticks=ranks
    )
    axes[0].legend()
    axes[1].plot(range(1, len(singular) + 1), singular, "o", ms=4, color=blue)
    axes[1].set(
        xlabel="index of the singular value",
        ylabel="singular value of the change",
        ylim=(0, None),
    )
plt.close(figure)
figure

# %% [markdown]
# Up to rank 4 each further rank fits signal. Beyond it, a higher rank fits the noise. Rank is
# capacity.
#
# ## In a network
#
# In a transformer, LoRA adapts the linear layers of attention and MLP. In the default EfficientNet
# it adapts the $1 \times 1$ convolutions, which multiply the channels by the same matrix at every
# position. A depthwise filter is no matrix but nine or twenty-five weights a channel, and is tuned
# whole. peft {cite:p}`mangrulkar2022peft` inserts the layers by name:

# %%
encoder = encoder_for(config)


def adapted(encoder) -> dict:
    """The encoder's LoRA layers by their name in the network."""
    return {
        name.removeprefix("net.base_model.model."): module
        for name, module in encoder.named_modules()
        if isinstance(module, LoraLayer)
    }


rows = []
for name, module in adapted(encoder).items():
    m, n = module.weight.shape[:2]
    r = module.r["default"]
    rows.append((name, m, n, r, m * n, r * (m + n)))
table = pd.DataFrame(
    rows, columns=["layer", "m", "n", "r", "m n", "r (m + n)"]
).set_index("layer")
table

# %% [markdown]
# The last two columns compare the sizes of a matrix and of its change. At rank 32 LoRA is *not*
# small in narrow layers: in the narrowest of the default network, with 24 channels, the two
# factors have more weights than the matrix. In a ViT-H, with matrices of 1280 by 3840, rank 8 is
# less than one percent. The [trials](../trials.md) measure the rank.
#
# In peft a pattern that matches no layer raises no error; training then changes the heads alone.
# So `encoder_for` counts the layers and raises an error where the number is wrong:

# %%
print(f"{len(encoder.adapted)} matrices named")
print(f"{len(rows)} LoRA layers inserted")
assert len(rows) == len(encoder.adapted) > 0

# %% [markdown]
# ## What did finetuning change?
#
# The next chapters share one finetuned run; this cell trains it where it is absent. We decompose
# its changes $\Delta W$ as we did with the matrix of rank 4 above. The question is how many of the
# available directions the training used.

# %% tags=["hide-input"]
#| alt: A line for every adapted layer of the finetuned encoder: the singular values of its change,
#| divided by the largest, against their index, coloured by the kind of layer.
model, _ = finetuned(here)
layers = adapted(model.encoder)
weights = {name: layer.weight.detach().cpu() for name, layer in layers.items()}
deltas = {
    name: layer.get_delta_weight("default").detach().cpu().flatten(1)
    for name, layer in layers.items()
}
spectra = {name: torch.linalg.svdvals(delta) for name, delta in deltas.items()}
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(7, 3.4))
    kind_of_layer = {name: name.rpartition(".")[2] for name in spectra}
    kinds = list(dict.fromkeys(kind_of_layer.values()))
    for name, spectrum in spectra.items():
        shown = (spectrum / spectrum[0])[: config.lora_rank]
        colour = plots.COLOURS[kinds.index(kind_of_layer[name])]
        ax.plot(range(1, len(shown) + 1), shown, color=colour, lw=1, alpha=0.8)
    for kind, colour in zip(kinds, plots.COLOURS, strict=False):
        ax.plot([], [], color=colour, label=f"{kind} layers")
    ax.set(
        xlabel="index of the singular value",
        ylabel="relative size",
        ylim=(0, 1.02),
    )
    ax.legend()
plt.close(figure)
figure

# %%
energy = {
    name: spectrum.square().cumsum(0) / spectrum.square().sum()
    for name, spectrum in spectra.items()
}
directions = {
    name: int((share < 0.9).sum()) + 1 for name, share in energy.items()
}
fewest, most = min(directions.values()), max(directions.values())
print(
    f"directions that hold 90% of a layer's squared change: {fewest} to {most}"
)
relative = {
    name: float(deltas[name].norm() / weights[name].norm()) for name in layers
}
smallest, largest = min(relative.values()), max(relative.values())
print(f"size of the change over the weights': {smallest:.2f} to {largest:.2f}")

# %% [markdown]
# ## Merging
#
# The sum $W + \tfrac{\alpha}{r} B A$ is one matrix of the old size. So the merged encoder is as
# fast as the pretrained one and needs no peft [where it is used](17_your_own_encoder.ipynb). The
# adapter alone is a small file that can be shared without the base weights, whose licence may
# forbid sharing.

# %%
few = test.patches[:8]
before = embed_patches(model.encoder, few)
for module in layers.values():
    module.merge()
after = embed_patches(model.encoder, few)
merge_gap = float(np.abs(after - before).max() / np.abs(before).max())
print(
    f"merging changes the embeddings by at most {merge_gap:.1g} of the largest "
    "value"
)

# %% [markdown]
# The next chapter explains [what the encoder is trained on](07_losses.ipynb).
#
# ## Result

# %% tags=["hide-input"]
trainable = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
total = sum(p.numel() for p in encoder.parameters())
n_larger = int((table["r (m + n)"] >= table["m n"]).sum())
result_box(
    f"LoRA adapts {len(rows)} matrices of {config.backbone}: {trainable:,} of "
    f"{total:,} parameters are trained ({trainable / total:.1%}). The count "
    "includes layers behind the feature layer, where there are any.",
    f"In {n_larger} of the {len(rows)} layers the two factors are at least as "
    "large as the matrix itself.",
    f"After finetuning, {fewest} to {most} of {config.lora_rank} directions hold "
    f"90% of a layer's squared change, which is {smallest:.0%} to {largest:.0%} "
    "as large as the weights.",
    f"Merging changes the embeddings by at most {merge_gap:.1g} of the largest "
    "value.",
    "This describes one run; it is no comparison of encoders.",
)

# %% [markdown]
# ## What to remember
#
# - LoRA trains a change of low rank beside a frozen matrix, and the change starts at exactly zero.
# - Rank is capacity. The change is small only where the matrices are large.
# - Count the layers that a pattern matched. A pattern that matches none raises no error in peft.
# - Once merged, the adapter costs nothing at inference.
#
# ## Exercises
#
# **1.** At which rank do the two factors have as many weights as the matrix itself? Compute it for
# the layers above, and for the $768 \times 2304$ of a ViT-B's attention.

# %% tags=["hide-cell", "solution"]
# r (m + n) = m n, so r = m n / (m + n): between half of the smaller side, for a square matrix, and
# all of it, for a very wide one.
even = table["m n"] / (table["m"] + table["n"])
print(f"here: {even.min():.0f} to {even.max():.0f}")
print(f"ViT-B: {768 * 2304 / (768 + 2304):.0f}")

# %% [markdown]
# **2.** Start with $A = 0$ *and* $B = 0$ and train a few steps. What happens? What happens if $A =
# 0$ and $B$ is random?

# %% tags=["hide-cell", "solution"]
# With both at zero all gradients stay zero: a saddle point. With B random and A zero the layer is
# unchanged at first, and A receives a gradient: the two conventions mirror each other.
after_steps = {}
for name, b_start in (("both zero", 0.0), ("only A zero", 1.0)):
    torch.manual_seed(SEED)
    net = LoRALinear(layer, r=4, alpha=8)
    net.A.data.zero_()
    net.B.data.copy_(b_start * torch.randn_like(net.B))
    optimizer = torch.optim.Adam([net.A, net.B], lr=0.02)
    for _ in range(50):
        optimizer.zero_grad()
        (net.delta() - wanted).square().sum().backward()
        optimizer.step()
    after_steps[name] = float(net.delta().norm().detach())
for name, size in after_steps.items():
    print(f"{name}: size of the change {size:.3g}")

# %% [markdown]
# **3.** Why $\alpha / r$ and not $\alpha$? Let two adapters of rank 4 and 64 take one step of Adam
# from the start, with $\alpha = 8$ for both, with and without the division. How large is the
# change?

# %% tags=["hide-cell", "solution"]
# After a step of Adam all of B's entries are about the learning rate, so B A sums r terms and grows
# with the rank, between its square root and the rank itself. Dividing by r therefore makes the step
# smaller at a high rank; rsLoRA divides by the square root of r instead.
sizes = {}
for r in (4, 64):
    torch.manual_seed(SEED)
    net = LoRALinear(layer, r=r, alpha=8)
    optimizer = torch.optim.Adam([net.A, net.B], lr=0.02)
    (net(x) - target).square().mean().backward()
    optimizer.step()
    change = (net.B @ net.A).norm().item()
    sizes[r] = {"alpha": 8 * change, "alpha / r": 8 / r * change}
print(pd.DataFrame(sizes).round(3))

# %% [markdown]
# ## Further reading
#
# - {cite:p}`hu2021lora` introduced LoRA, and show that the change of a language model has a low
#   rank.
# - {cite:p}`kalajdzievski2023rslora` explain why the root of the rank scales better.
# - {cite:p}`mangrulkar2022peft` wrote the library that inserts it into any network.
# - {cite:p}`dosovitskiy2020vit` introduced the transformer whose matrices it usually adapts.

# %% tags=["key-figures", "remove-cell"]
print(
    json.dumps(
        {
            "start_gap": start_gap,
            "layers": len(rows),
            "error_over_best": [
                a / b for a, b in zip(left, least, strict=True)
            ],
            "ninety_percent": [fewest, most],
            "rank": config.lora_rank,
            "relative_change": [smallest, largest],
            "merge_gap": merge_gap,
            "zero_start": after_steps,
        }
    )
)
