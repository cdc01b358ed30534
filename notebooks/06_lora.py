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
# **A pretrained network has millions of weights and we have hundreds of pairs. Which few numbers
# may change, and why is that enough?**
#
# Fifteen minutes to read, under a minute to run.
#
# With so few pairs, a network whose weights all move learns the pairs by heart. One that does not
# move at all learns nothing. LoRA {cite:p}`hu2021lora` lets every weight of a layer move, but not
# each by itself: only along a handful of directions. To see what that means, look at a matrix as a
# picture.

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
BACKBONE = "auto"  # a small network, or on a GPU Phikon; or a name of `seal-lite encoders`
EPOCHS = 0  # 0: 12, or 20 on a GPU
SMOKE = False  # everything tiny, just to see that it runs
SEED = 0

# %%
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
from seal_lite.tutorial import begin, finetuned, frames

here = begin(DATASET, BACKBONE, EPOCHS, SMOKE, seed=SEED)
config, test = here.config, here.test
_ = torch.manual_seed(SEED)

# %% [markdown]
# ## What a low rank can say
#
# A patch of tissue in grey is a matrix. Its best approximation of rank $r$ is a sum of $r$ outer
# products, a column times a row each, found by the singular value decomposition. Move the slider.
# Two or three products give stripes, eight the layout, a few dozen the nuclei.

# %%
grey = test.patches[len(test.patches) // 2].mean(2)
U, S, V = np.linalg.svd(grey, full_matrices=False)
approximations = {}
for rank in (1, 2, 4, 8, 16, 32, 64):
    low = (U[:, :rank] * S[:rank]) @ V[:rank]
    numbers = rank * sum(grey.shape)
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.5))
        for ax, shown, said in (
            (axes[0], grey, f"the matrix: {grey.size:,} numbers"),
            (axes[1], low, f"rank {rank}: {numbers:,} numbers"),
        ):
            ax.imshow(
                shown,
                cmap="gray",
                vmin=0,
                vmax=255,
                extent=(0, config.patch_um, config.patch_um, 0),
            )
            ax.set(title=said, xticks=[], yticks=[])
            plots.scale_bar(ax)
    plt.close(figure)
    approximations[rank] = figure
frames.slider(
    approximations,
    label="rank",
    alt="A patch of tissue in grey, and beside it the same patch as a matrix of the given rank.",
)

# %% [markdown]
# A change $\Delta W$ of a weight matrix is such a picture too. LoRA's bet: the *change* that a new
# task needs has a low rank, even where the weights themselves have not.
#
# ## The layer, by hand
#
# $$
# y = W x + \frac{\alpha}{r}\, B A\, x, \qquad W \in \mathbb R^{m \times n} \text{ frozen}, \quad
# A \in \mathbb R^{r \times n},\; B \in \mathbb R^{m \times r} \text{ trained}.
# $$
#
# In code that is less than the formula's own length:


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
# $B = 0$ at the start, so nothing has changed yet: training begins at the pretrained network and
# not at a damaged one. But why is only *one* of the two zero? Look at the gradients of the first
# step:

# %%
target = torch.randn(10, 48)
(lora(x) - target).square().mean().backward()
print(
    f"gradient of A: {lora.A.grad.abs().max():.2e}, of B: {lora.B.grad.abs().max():.2e}"
)

# %% [markdown]
# $\partial \mathcal L / \partial A$ has $B$ as a factor and is zero; $\partial \mathcal L /
# \partial B$ has $A$ as a factor and is not. So $B$ moves first, then both do. Were $A$ zero as
# well, neither would ever move.
#
# ## How much rank does a task need?
#
# Let the right answer be $W + \Delta$ with $\Delta$ of rank 4, seen through noise. We train LoRA
# layers of several ranks on it. The best that any matrix of rank $r$ could do is known
# (Eckart and Young): cut the singular values after the $r$-th.

# %%
#| alt: Left, the error that is left after training against LoRA's rank, with the best possible
#| error; it falls up to rank four and then stays. Right, the singular values of the change that is
#| looked for, four of them large.
W = layer.weight.detach()
signal = torch.randn(48, 4) @ torch.randn(4, 64) / 8
wanted = signal + 0.05 * torch.randn(48, 64)
values = torch.linalg.svdvals(wanted)


def fit(r: int, steps: int = 100 if SMOKE else 400) -> nn.Module:
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
left = [
    float((fit(r).delta() - wanted).square().sum().sqrt().detach())
    for r in ranks
]
least = [float(values[r:].square().sum().sqrt()) for r in ranks]
with plt.rc_context(plots.STYLE):
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    axes[0].plot(
        ranks, left, "o-", color=plots.COLOURS[0], label="LoRA, trained"
    )
    axes[0].plot(
        ranks, least, "x", color=plots.COLOURS[1], label="best possible"
    )
    axes[0].set(
        xlabel="rank", ylabel="error left (norm)", ylim=(0, None), xticks=ranks
    )
    axes[0].legend()
    axes[1].plot(
        range(1, len(values) + 1), values, "o", ms=4, color=plots.COLOURS[0]
    )
    axes[1].set(
        xlabel="number of the singular value",
        ylabel="singular value of the change",
        ylim=(0, None),
    )
plt.close(figure)
figure

# %% [markdown]
# Rank 4 is enough, and more does no harm here, except that it begins to fit the noise. That is the
# trade: rank is capacity.
#
# ## In a network
#
# Which matrices? In a transformer, the linear layers of attention and MLP. In the default
# EfficientNet, the $1 \times 1$ convolutions: at every position they multiply the same matrix with
# the channels there. A depthwise filter is nine or twenty-five numbers a channel and no matrix; it
# is tuned whole. peft {cite:p}`mangrulkar2022peft` puts the layers in, by name:

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
# Read the last two columns against each other. At rank 32 and a few hundred channels LoRA is *not*
# small: in the narrowest layers its two factors hold as many numbers as the matrix, or more. In a
# ViT-H, with matrices of 1280 by 3840, rank 8 is less than one percent. The rank of the default was
# [chosen by measurement](../trials.md), not by thrift.
#
# A name that matches nothing raises no error in peft by itself: you train the heads on a frozen
# network and wonder. So `encoder_for` counts what it hit, and refuses to go on if the number is
# wrong:

# %%
print(f"{len(encoder.adapted)} matrices named, {len(rows)} LoRA layers found")
assert len(rows) == len(encoder.adapted) > 0

# %% [markdown]
# ## What did finetuning do with it?
#
# The run that the coming chapters share has been trained (or is now). Its changes $\Delta W$ can be
# taken apart like the toy's: how many directions did it use of the 32 that it was given?

# %%
#| alt: A line for every adapted layer of the finetuned encoder: the singular values of its change,
#| divided by the largest, against their number, coloured by the kind of layer.
model, _ = finetuned(here)
layers = adapted(model.encoder)
deltas = {
    name: layer.get_delta_weight("default").flatten(1)
    for name, layer in layers.items()
}
spectra = {
    name: torch.linalg.svdvals(delta.detach()) for name, delta in deltas.items()
}
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(7, 3.4))
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in spectra))
    for name, spectrum in spectra.items():
        shown = (spectrum / spectrum[0])[: config.lora_rank]
        colour = plots.COLOURS[kinds.index(name.rpartition(".")[2])]
        ax.plot(range(1, len(shown) + 1), shown, color=colour, lw=1, alpha=0.8)
    for kind, colour in zip(kinds, plots.COLOURS, strict=False):
        ax.plot([], [], color=colour, label=f"{kind} layers")
    ax.set(
        xlabel="number of the singular value",
        ylabel="relative size",
        ylim=(0, 1.02),
    )
    ax.legend()
plt.close(figure)
figure

# %%
energy = {
    n: s.square().cumsum(0) / s.square().sum() for n, s in spectra.items()
}
half = {n: int((e < 0.9).sum()) + 1 for n, e in energy.items()}
print(
    "directions that hold 90% of a layer's change, in square:",
    f"{min(half.values())} to {max(half.values())} of {config.lora_rank}",
)
relative = {
    name: float(deltas[name].norm() / layers[name].weight.norm())
    for name in layers
}
print(
    f"size of the change, relative to the weights: {min(relative.values()):.2f} to "
    f"{max(relative.values()):.2f}"
)

# %% [markdown]
# ## Merge, and it is gone
#
# Nothing of this has to be carried along. $W + \tfrac{\alpha}{r} B A$ is one matrix of the old
# size: the finetuned encoder is as fast as it was and needs no peft [where it is
# used](18_your_own_encoder.ipynb). And the adapter by itself is a small file, to be sent around
# without the base weights, which may not be ours to send.

# %%
few = test.patches[:8]
before = embed_patches(model.encoder, few)
for module in layers.values():
    module.merge()
after = embed_patches(model.encoder, few)
merge_gap = float(np.abs(after - before).max() / np.abs(before).max())
print(
    f"merged and not, the embeddings differ by {merge_gap:.1e} of the largest"
)

# %% [markdown]
# Now the last missing piece: [what to train it on](07_losses.ipynb).
#
# ## What to remember
#
# - LoRA trains a change of low rank beside a frozen matrix; it starts at exactly nothing.
# - Rank is capacity, and small only where matrices are large.
# - Count the layers that a pattern hit. A pattern that hits none trains nothing, silently.
# - Merged, the adapter costs nothing at inference.
#
# ## Exercises
#
# **1.** At which rank do the two factors hold as many numbers as the matrix itself? Compute it for
# the layers above, and for the $768 \times 2304$ of a ViT-B's attention.

# %% tags=["hide-cell", "solution"]
# r (m + n) = m n, so r = m n / (m + n): a third to a half of the smaller side at usual shapes.
even = table["m n"] / (table["m"] + table["n"])
print(
    f"here from {even.min():.0f} to {even.max():.0f}; ViT-B: {768 * 2304 / (768 + 2304):.0f}"
)

# %% [markdown]
# **2.** Start with $A = 0$ *and* $B = 0$ and train a few steps. What happens, and what if $A = 0$
# and $B$ is random?

# %% tags=["hide-cell", "solution"]
# With both at zero all gradients are zero, for ever: a saddle. With B random and A zero the layer
# is a no-op at first and trains just as well: the two conventions mirror each other.
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
print({name: round(size, 3) for name, size in after_steps.items()})

# %% [markdown]
# **3.** Why $\alpha / r$ and not $\alpha$? Let two adapters of rank 4 and 64 take one step of Adam
# from the start, with $\alpha = 8$ for both, with and without the division. How large is the
# change?

# %% tags=["hide-cell", "solution"]
# After a step of Adam all of B's entries are about the learning rate, so B A sums r terms and grows
# with the rank, between its root and the rank itself. Divided by r the step no longer grows, it
# shrinks a little: dividing by the root of r would keep it more nearly the same (rsLoRA).
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
# - {cite:p}`hu2021lora`: the idea, and that the change of a language model has a low rank.
# - {cite:p}`kalajdzievski2023rslora`: why the root of the rank scales better.
# - {cite:p}`mangrulkar2022peft`: the library that puts it into any network.
# - {cite:p}`dosovitskiy2020vit`: the transformer whose matrices it usually adapts.

# %% tags=["key-figures", "remove-cell"]
print(
    json.dumps(
        {
            "start_gap": start_gap,
            "layers": len(rows),
            "error_over_best": [
                a / b for a, b in zip(left, least, strict=True)
            ],
            "ninety_percent": [min(half.values()), max(half.values())],
            "rank": config.lora_rank,
            "relative_change": [min(relative.values()), max(relative.values())],
            "merge_gap": merge_gap,
            "zero_start": after_steps,
        }
    )
)
