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
# # Scale and cost
#
# **How long will it take, how much disk will it want, and what changes from three sections and two
# cores to seven hundred thousand pairs and a graphics card?**
#
# Ten minutes to read, a minute to run.
#
# Nearly everything about the cost of finetuning follows from one split: what is *frozen* is
# computed forwards, once if you like; what is *tuned* is computed forwards and backwards in every
# step. So count before you train.

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
SMOKE = False  # everything tiny, just to see that it runs
SEED = 0

# %%
import dataclasses
import json
import shutil
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from seal_lite import plots
from seal_lite.data.genes import GenePanel
from seal_lite.data.shards import read_shards, write_shards
from seal_lite.encoders.vision import encoder_for
from seal_lite.model.losses import seal_loss
from seal_lite.model.seal import SEAL
from seal_lite.training.loader import Activations, Pairs
from seal_lite.tutorial import begin

here = begin(DATASET, BACKBONE, smoke=SMOKE, seed=SEED)
config, train = here.config, here.train
device = "cuda" if torch.cuda.is_available() else "cpu"
print(
    f"{sum(len(s.rows) for s in train)} training pairs, on {device}, "
    f"{torch.get_num_threads()} threads"
)

# %% [markdown]
# ## Count before you train
#
# A multiplication and an addition are two operations. PyTorch counts them for us, on tensors
# without values, so that even a ViT-H costs nothing to look at. Forwards through the prefix,
# forwards through the tail, and backwards through the tail, which is about twice its way forwards:
# once for what comes in and once for the weights.


# %%
def operations(function, *args) -> float:
    """Floating-point operations of one call."""
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return float(counter.get_total_flops())


def split(name: str, px: int, tune_blocks: int) -> dict:
    """Operations per image of a plain timm ViT's prefix and tail, by its share of blocks."""
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=0, img_size=px)
        whole = operations(net, torch.empty(1, 3, px, px))
    share = tune_blocks / len(net.blocks)
    tokens = net.patch_embed.num_patches + net.num_prefix_tokens
    return {
        "prefix": (1 - share) * whole,
        "tail": share * whole,
        "activation": (tokens, net.embed_dim),
    }


encoder = encoder_for(config)
image = torch.rand(1, 3, config.patch_px, config.patch_px)
hidden = encoder.prefix(image)
counted = {
    f"{config.backbone}, last {config.tune_blocks}": {
        "prefix": operations(encoder.prefix, image),
        "tail": operations(encoder.tail, hidden),
        "activation": tuple(hidden.shape[1:]),
    }
}
for name, blocks in (
    ("vit_base_patch16_224", (1, 4, 12)),
    ("vit_huge_patch14_224", (1, 32)),
):
    for k in blocks:
        counted[f"{name}, last {k}"] = split(name, 224, k)

# %%
#| alt: For the default encoder, a ViT-B and a ViT-H with few or all blocks tuned: the share of a
#| training step's operations that goes into the frozen prefix, the tuned tail forwards and the
#| tuned tail backwards, as stacked bars.
parts = {
    "prefix, forwards": [c["prefix"] for c in counted.values()],
    "tail, forwards": [c["tail"] for c in counted.values()],
    "tail, backwards": [2 * c["tail"] for c in counted.values()],
}
total = np.sum(list(parts.values()), axis=0)
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(8, 2.9))
    start = np.zeros(len(counted))
    for (said, values), colour in zip(
        parts.items(), plots.COLOURS, strict=False
    ):
        ax.barh(
            list(counted), values / total, left=start, color=colour, label=said
        )
        start += values / total
    for y, t in enumerate(total):
        ax.text(1.01, y, f"{t / 1e9:,.1f} GFLOP", va="center", fontsize=9)
    ax.set(xlabel="share of a step", xlim=(0, 1))
    ax.invert_yaxis()
    figure.legend(loc="outside upper right", ncols=3)
plt.close(figure)
figure

# %% [markdown]
# ## What the cache can save
#
# The prefix is a fixed function of a view's pixels, so it can be computed once and read from disk
# afterwards. Then a step costs $3 F_\text{tail}$ in place of $F_\text{prefix} + 3 F_\text{tail}$,
# and the cache can win at most
#
# $$
# \frac{F_\text{prefix} + 3 F_\text{tail}}{3 F_\text{tail}}
# = 1 + \frac{F_\text{prefix}}{3 F_\text{tail}} .
# $$
#
# For that it wants disk: pairs, times views, times the activations at the cut, in 4 bytes each.

# %%
rows = {}
for name, c in counted.items():
    size = 4 * float(np.prod(c["activation"]))
    rows[name] = {
        "at most faster by": 1 + c["prefix"] / (3 * c["tail"]),
        "kB a view": size / 1e3,
        "1,000 pairs, 8 views (GB)": 8e3 * size / 1e9,
        "700,000 pairs, 8 views (GB)": 700e3 * 8 * size / 1e9,
    }
saving = pd.DataFrame(rows).T
saving.round(2)

# %% [markdown]
# One block of a ViT-H tuned: ten times faster at best. Three of the default's five stages tuned:
# the tail is most of the network, and the bound is close to 1. What the cache saves there beyond
# the count is the making of views, which is work for the processor too. And nobody keeps terabytes
# of activations: at 700,000 pairs the cache is the wrong tool, and the plain loop is the right one.
#
# ## Count against clock
#
# Operations are not seconds: a depthwise convolution has few of both kinds and still waits for
# memory. So measure what a step takes, with one block tuned and with three.

# %%
panel = GenePanel.from_config(train, config, include=here.genes)


def pairs_per_second(
    settings, *, cached: bool, steps: int = 2 if SMOKE else 5
) -> float:
    """Training steps on the clock, their median; the first warms up and is not counted."""
    torch.manual_seed(SEED)
    model = SEAL.build(panel, settings).to(device)
    activations = Activations(
        model.encoder, train, settings, cached=cached, progress=False
    )
    pairs = Pairs(train, panel, settings, activations)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-3
    )
    model.train()
    clock = []
    batches = pairs.epoch(0)
    for number, (h, x) in enumerate(batches):
        if number == steps:
            break
        loss = seal_loss(model(h.to(device), x.to(device)), settings)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # waits for a graphics card to have done it
        clock.append(time.perf_counter())
    return settings.batch_size / float(np.median(np.diff(clock)))


speeds = {}
for k in (1, 3):
    settings = dataclasses.replace(
        config, tune_blocks=k, n_views=1, batch_size=32
    )
    speeds[k] = {
        name: pairs_per_second(settings, cached=name == "cached")
        for name in ("plain", "cached")
    }
table = pd.DataFrame(speeds).T.rename_axis("blocks tuned")
table["faster by"] = table.cached / table.plain
table["at most, by count"] = [
    1 + operations(e.prefix, image) / (3 * operations(e.tail, e.prefix(image)))
    for e in (
        encoder_for(dataclasses.replace(config, tune_blocks=k)) for k in (1, 3)
    )
]
table.round(1)

# %% [markdown]
# ## More pairs than memory holds
#
# A step does not know how many pairs there are, so time should grow in proportion and memory not at
# all. Images in memory would spoil that. So they can be written to disk once, a file for each
# section, with expression beside them as sparse rows:
#
# ```bash
# seal-lite shard --data DATA --train S1,S2,S3 --out data/shards
# seal-lite finetune --data data/shards --out runs/large
# ```
#
# A row of such a file is read by one seek, so an epoch is a full shuffle, as it is in memory, and
# so is its loss, to the last bit:

# %%
settings = dataclasses.replace(config, tune_blocks=1, n_views=1, batch_size=32)
FOLDER = Path("data/shards") / here.root.name
shutil.rmtree(FOLDER, ignore_errors=True)
for path in write_shards(train, FOLDER, panel=panel, config=settings):
    print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB")
model = SEAL.build(panel, settings).to(device)
ways = {"memory": train, "shards": read_shards(FOLDER, settings)[0]}
batches = {}
for name, s in ways.items():
    activations = Activations(model.encoder, s, settings, cached=False)
    batches[name] = next(Pairs(s, panel, settings, activations).epoch(0))
first = {}
for name, (h, x) in batches.items():
    torch.manual_seed(SEED)
    first[name] = seal_loss(model(h, x.to(device)), settings)["loss"].item()
print("loss of the first batch:", first)

# %% [markdown]
# ## A batch larger than the card
#
# A contrast wants many negatives, and a batch's activations want memory. But the loss needs only
# the embeddings, which are small. So compute them some images at a time and keep nothing else; on
# the backward pass compute each part again, this time with its activations
# {cite:p}`chen2016checkpointing`. The gradient is that of the whole batch, for one more forward
# pass of the tail {cite:p}`gao2021gradcache`. That is `chunk`:


# %%
def held(function, *args, **options) -> float:
    """MB that a forward pass keeps for the backward pass."""
    size = 0

    def pack(tensor):
        nonlocal size
        size += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(*args, **options)
    return size / 1e6


def step_loss(chunk: int) -> torch.Tensor:
    """The loss of the first batch, with so many images at a time."""
    return seal_loss(model(h, x.to(device), chunk=chunk), settings)["loss"]


def largest_gradient(chunk: int) -> float:
    """Of all LoRA matrices, after a step with so many images at a time."""
    torch.manual_seed(SEED)
    model.zero_grad()
    step_loss(chunk).backward()
    return max(
        p.grad.abs().max().item()
        for p in model.encoder.parameters()
        if p.grad is not None
    )


h, x = batches["memory"]
heads = held(step_loss, 4)  # of the tail nothing is kept
part = {
    chunk: held(model.encoder.tail, h[:chunk].to(device))
    for chunk in (32, 16, 8, 4)
}
gradients = {chunk: largest_gradient(chunk) for chunk in part}
print("largest gradient:", {k: round(v, 6) for k, v in gradients.items()})

# %%
#| alt: Stacked bars of the memory that a step needs with 32, 16, 8 and 4 images at a time: what the
#| heads keep of the whole batch stays, what the tail keeps of one part halves each time.
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(8, 2.4))
    names = [f"{chunk} at a time" for chunk in part]
    names[0] = f"all {settings.batch_size} at once"
    ax.barh(
        names,
        heads,
        color=plots.COLOURS[0],
        label="the heads, of the whole batch",
    )
    ax.barh(
        names,
        list(part.values()),
        left=heads,
        color=plots.COLOURS[1],
        label="the tail, of one part",
    )
    ax.invert_yaxis()
    ax.set(xlabel="MB kept for the backward pass, at most")
    ax.legend(loc="lower right")
plt.close(figure)
figure

# %% [markdown]
# The tail here is one stage of a small network. Of a ViT-H it is gigabytes, and the heads are the
# same.
#
# ## Several cards
#
# ```bash
# accelerate launch --num_processes 8 $(which seal-lite) finetune \
#   --data data/shards --out runs/large
# ```
#
# Every process encodes its part of the batch; then embeddings are gathered, with their gradients,
# and each computes the same loss of the whole batch. So all pairs are negatives of all, BatchNorm
# in the gene encoder sees the batch and not a part of it, and two processes with 64 pairs each do
# what one does with 128: a test holds them to a loss within $10^{-5}$. `batch_size` is the batch of
# all together. Of the pairs' traffic only embeddings and the gradients of LoRA go between the
# cards, a few megabytes a step.
#
# ## What was measured
#
# {% include "speed.md" %}

# %% [markdown]
# ## What to expect elsewhere
#
# The small network here, from the clock above. And the paper's own scale, 700,000 pairs for ten
# epochs, *extrapolated* and not measured: a card's peak rate in half precision from its data sheet,
# of which a well-fed training step may reach forty percent; no loading, no cache. No GPU was at
# hand when this was written. It is for deciding whether to wait or to rent.

# %%
minutes = 700 * 20 / speeds[3]["cached"] / 60
print(
    f"here, {config.backbone}, 700 pairs, 20 epochs, last 3 stages: {minutes:.0f} min"
)
PEAK = {
    "Colab T4": 65e12,
    "one A100": 312e12,
    "one H100": 989e12,
    "eight H100": 8 * 989e12,
}
hours = {
    name: {
        card: 700e3 * 10 * (c["prefix"] + 3 * c["tail"]) / (0.4 * rate) / 3600
        for card, rate in PEAK.items()
    }
    for name, c in counted.items()
    if name.startswith("vit")
}
pd.DataFrame(hours).T.rename_axis("hours, extrapolated").round(2)

# %% [markdown]
# And does it fit? A T4 has 16 GB and no bfloat16, so `precision="auto"` trains in fp16 there. A
# block keeps about 20 numbers per token and channel for the backward pass, two bytes each; weights
# take four. From that follows, *derived* and not measured, how many images a step may hold:

# %%
FREE, KEPT = (
    0.8 * 16e9,
    20 * 2,
)  # bytes of the card; bytes per token and channel of a block
WEIGHTS = {"vit_base_patch16_224": 86e6, "vit_huge_patch14_224": 632e6}
fit = {}
for name, c in counted.items():
    net, _, last = name.partition(", last ")
    if net in WEIGHTS:
        bytes_each = float(np.prod(c["activation"])) * KEPT * int(last)
        fit[name] = int((FREE - 4 * WEIGHTS[net]) / bytes_each)
pd.Series(fit, name="images at a time on a T4").to_frame()

# %% [markdown]
# Where that is below the batch, `--chunk` of that size makes it fit.

# %% [markdown]
# ## What to remember
#
# - A step costs the frozen part once and the tuned part three times.
# - The cache is worth as much as the frozen part is large. It pays with disk.
# - Count first, then measure; where the two disagree, memory is the reason.
# - Time is proportional to pairs, disk to views, and memory to neither.
# - A batch is one batch, whether in memory, on disk, in chunks or on several cards.
#
# ## Exercises
#
# **1.** What is the cache worth if all blocks are tuned, and what if none is (an embedding is made,
# nothing trained)?

# %% tags=["hide-cell", "solution"]
# All tuned: there is no prefix, the bound is 1. None tuned: everything is prefix, the bound has no
# limit: embeddings are computed once and that is all. Between the two it falls fast.
for k in (1, 2, 4, 8, 12):
    c = split("vit_base_patch16_224", 224, k)
    print(
        f"ViT-B, last {k:2d} tuned: at most {1 + c['prefix'] / (3 * c['tail']):.2f} times faster"
    )

# %% [markdown]
# **2.** You have 50 GB of disk and want ViT-B with its last block tuned, on 20,000 pairs. How many
# views fit into the cache? How many in half precision?

# %% tags=["hide-cell", "solution"]
# Half precision doubles the views, and the activations' last digits are far below the noise.
view = float(np.prod(counted["vit_base_patch16_224, last 1"]["activation"]))
fits = {
    kind: int(50e9 // (20_000 * width * view))
    for kind, width in (("fp32", 4), ("fp16", 2))
}
print(fits)

# %% [markdown]
# **3.** Batch 384 as in the paper: how much memory do the activations of a ViT-H's *tuned* blocks
# take, if a block keeps about 20 numbers per token and channel for the backward pass?

# %% tags=["hide-cell", "solution"]
# One block is harmless; all 32 do not fit on one card. That is when `chunk` is needed.
tokens, width = counted["vit_huge_patch14_224, last 1"]["activation"]
for k in (1, 4, 32):
    print(
        f"last {k:2d} blocks: {384 * tokens * width * 20 * k * 2 / 1e9:,.0f} GB in half precision"
    )

# %% [markdown]
# ## Further reading
#
# - {cite:p}`hemker2026seal`: the scale at which SEAL was trained.
# - {cite:p}`mangrulkar2022peft`: what adapters save in memory.
# - {cite:p}`wightman2019timm`: networks, and their counts.

# %% tags=["key-figures", "remove-cell"]
print(
    json.dumps(
        {
            "bound": {
                k: float(v) for k, v in saving["at most faster by"].items()
            },
            "pairs_per_s": speeds,
            "losses": first,
            "kept": {
                str(k): (heads + v, gradients[k]) for k, v in part.items()
            },
            "fit": fit,
            "views": fits,
        }
    )
)
