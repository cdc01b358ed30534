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
# **How much time and disk does finetuning take, and what changes from three sections on two cores
# to seven hundred thousand pairs on a GPU?**
#
# Ten minutes to read, a minute to run.
#
# A training step runs the frozen blocks forward, and the tuned blocks forward and backward. By the
# count of operations, a cache of the frozen blocks saves more the fewer blocks are tuned. Reading
# pairs from disk changes no loss, and encoding a batch in parts lowers its memory for one more
# forward pass of the tuned blocks. No GPU was available for this book, so every time printed in it
# is a CPU's.

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
# "auto": the phantom, or on a GPU real tumours; or any folder of sections.
DATASET = "auto"
# "auto": a small network, or on a GPU Phikon; or one of `seal-lite encoders`.
BACKBONE = "auto"
# Everything tiny, just to see that it runs.
SMOKE = False
SEED = 0

# %% tags=["hide-input"]
import dataclasses
import itertools
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
from seal_lite.tutorial import begin, result_box

here = begin(DATASET, BACKBONE, smoke=SMOKE, seed=SEED)
config, train = here.config, here.train
device = "cuda" if torch.cuda.is_available() else "cpu"
n_threads = torch.get_num_threads()
threads = "1 thread" if n_threads == 1 else f"{n_threads} threads"
print(
    f"{sum(len(s.rows) for s in train)} training pairs, on {device}, {threads}"
)

# %% [markdown]
# ## Count before you train
#
# A multiplication and an addition are two operations. PyTorch counts them on tensors without
# values, so the count of a ViT-H needs neither its weights nor its memory. We count the frozen
# blocks forward and the tuned blocks forward. The backward pass of the tuned blocks takes about
# twice their forward pass: once for the gradient of their input and once for that of their weights.


# %%
def operations(function, *args) -> float:
    """Floating-point operations of one call."""
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return float(counter.get_total_flops())


def split(name: str, px: int, tune_blocks: int) -> dict:
    """Operations per image of a timm ViT, shared out evenly over its blocks."""
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=0, img_size=px)
        whole = operations(net, torch.empty(1, 3, px, px))
    share = tune_blocks / len(net.blocks)
    tokens = net.patch_embed.num_patches + net.num_prefix_tokens
    return {
        "frozen": (1 - share) * whole,
        "tuned": share * whole,
        "activation": (tokens, net.embed_dim),
    }


def faster_by_count(cost: dict) -> float:
    """How many times faster the cache makes a step, by the count."""
    return 1 + cost["frozen"] / (3 * cost["tuned"])


encoder = encoder_for(config, device="cpu")
image = torch.rand(1, 3, config.patch_px, config.patch_px)
hidden = encoder.prefix(image)
counted = {
    f"{config.backbone}, last {config.tune_blocks}": {
        "frozen": operations(encoder.prefix, image),
        "tuned": operations(encoder.tail, hidden),
        "activation": tuple(hidden.shape[1:]),
    }
}
VITS = {"vit_base_patch16_224": (1, 4, 12), "vit_huge_patch14_224": (1, 32)}
for name, blocks in VITS.items():
    for k in blocks:
        counted[f"{name}, last {k}"] = split(name, 224, k)

# %%
#| alt: Stacked bars for the default encoder, a ViT-B and a ViT-H, each with few or all blocks
#| tuned. They show which share of a training step's operations goes into the frozen blocks, the
#| tuned blocks forward and the tuned blocks backward.
parts = {
    "frozen, forward": [cost["frozen"] for cost in counted.values()],
    "tuned, forward": [cost["tuned"] for cost in counted.values()],
    "tuned, backward": [2 * cost["tuned"] for cost in counted.values()],
}
total = np.sum(list(parts.values()), axis=0)
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(8, 2.9))
    start = np.zeros(len(counted))
    for number, (label, values) in enumerate(parts.items()):
        share = values / total
        colour = plots.COLOURS[number]
        ax.barh(list(counted), share, left=start, color=colour, label=label)
        start += share
    for y, count in enumerate(total):
        ax.text(1.01, y, f"{count / 1e9:,.1f} GFLOP", va="center", fontsize=9)
    ax.set(xlabel="share of a step's operations", xlim=(0, 1))
    ax.invert_yaxis()
    figure.legend(loc="outside upper right", ncols=3)
plt.close(figure)
figure

# %% [markdown]
# ## What the cache can save
#
# The output of the frozen blocks depends on a view's pixels alone, so it can be computed once and
# read from disk afterwards. A step then costs $3 F_\text{tuned}$ in place of
# $F_\text{frozen} + 3 F_\text{tuned}$ operations. By this count the cache makes a step faster by
# the factor
#
# $$
# \frac{F_\text{frozen} + 3 F_\text{tuned}}{3 F_\text{tuned}}
# = 1 + \frac{F_\text{frozen}}{3 F_\text{tuned}} .
# $$
#
# The cache needs disk: pairs times views times the activations after the frozen blocks, four bytes
# each, or two in half precision.

# %%
rows = {}
for name, cost in counted.items():
    view_bytes = 4 * float(np.prod(cost["activation"]))
    rows[name] = {
        "faster by count": faster_by_count(cost),
        "kB a view": view_bytes / 1e3,
        "1,000 pairs, 8 views (GB)": 8e3 * view_bytes / 1e9,
        "700,000 pairs, 8 views (GB)": 700e3 * 8 * view_bytes / 1e9,
    }
saving = pd.DataFrame(rows).T
saving.map("{:,.2f}".format)

# %%
huge = saving.loc["vit_huge_patch14_224, last 1"]
own = saving.iloc[0]
print(
    f"ViT-H, last block tuned: {huge.iloc[0]:.1f} times faster by count, and "
    f"{huge.iloc[3] / 1e3:,.1f} TB at 700,000 pairs"
)
print(f"{saving.index[0]}: {own.iloc[0]:.2f} times faster by count")

# %% [markdown]
# A network with one tuned block of many gains most, because most of its step is frozen. At 700,000
# pairs the cache needs the disk of the last column, and the plain loop needs none.
#
# ## Count and clock
#
# Operations are not seconds. A depthwise convolution has few operations and still waits for memory.
# The cache also saves the making of views, which the count leaves out. So we time training steps
# with one and with three tuned blocks.

# %%
panel = GenePanel.from_config(train, config, include=here.genes)


def pairs_per_second(settings, *, cached: bool, steps: int) -> float:
    """Pairs per second of a training step: the median, without the first."""
    torch.manual_seed(SEED)
    model = SEAL.build(panel, settings).to(device)
    activations = Activations(
        model.encoder, train, settings, cached=cached, progress=False
    )
    pairs = Pairs(train, panel, settings, activations)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    model.train()
    clock = []
    for h, x in itertools.islice(pairs.epoch(0), steps):
        loss = seal_loss(model(h.to(device), x.to(device)), settings)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # a GPU computes in the background: wait for it
        clock.append(time.perf_counter())
    return settings.batch_size / float(np.median(np.diff(clock)))


STEPS = 3 if SMOKE else 6
speeds, by_count = {}, {}
for k in (1, 3):
    settings = dataclasses.replace(
        config, tune_blocks=k, n_views=1, batch_size=32
    )
    speeds[k] = {
        name: pairs_per_second(settings, cached=name == "cached", steps=STEPS)
        for name in ("plain", "cached")
    }
    network = encoder_for(settings, device="cpu")
    by_count[k] = faster_by_count(
        {
            "frozen": operations(network.prefix, image),
            "tuned": operations(network.tail, network.prefix(image)),
        }
    )
table = pd.DataFrame(speeds).T.rename_axis("blocks tuned")
table["faster measured"] = table.cached / table.plain
table["faster by count"] = pd.Series(by_count)
table.map("{:.1f}".format)

# %% [markdown]
# The columns `plain` and `cached` are pairs per second on this machine.
#
# ## More pairs than memory holds
#
# A step does not depend on the number of pairs, so the time of an epoch grows with it and memory
# need not. Images in memory would grow, too. They can be written to disk once, one file for each
# section, beside the expression as sparse rows:
#
# ```bash
# seal-lite shard --data DATA --train S1,S2,S3 --out data/shards
# seal-lite finetune --data data/shards --out runs/from-shards
# ```
#
# A row of such a file is one read, so an epoch is a full shuffle, as it is in memory. We compare
# the loss of the first batch:

# %%
settings = dataclasses.replace(config, tune_blocks=1, n_views=1, batch_size=32)
FOLDER = Path("data/shards") / here.root.name
shutil.rmtree(FOLDER, ignore_errors=True)
for path in write_shards(train, FOLDER, panel=panel, config=settings):
    print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB")
model = SEAL.build(panel, settings).to(device)
sources = {"memory": train, "shards": read_shards(FOLDER, settings)[0]}
batches, losses = {}, {}
for name, sections in sources.items():
    activations = Activations(model.encoder, sections, settings, cached=False)
    h, x = next(Pairs(sections, panel, settings, activations).epoch(0))
    batches[name] = h, x
    torch.manual_seed(SEED)
    output = model(h.to(device), x.to(device))
    losses[name] = seal_loss(output, settings)["loss"].item()
for name, loss in losses.items():
    print(f"loss of the first batch from {name}: {loss:.9f}")

# %% [markdown]
# ## A batch larger than the GPU's memory
#
# A contrastive loss compares each pair with all others of the batch, and the activations of a large
# batch need memory. But the loss itself reads only the embeddings, which are small. `chunk`
# therefore encodes some images at a time and keeps their embeddings alone. The backward pass
# computes each part once more, now with its activations {cite:p}`chen2016checkpointing`. The
# gradient is that of the whole batch, at the cost of one more forward pass of the tuned blocks
# {cite:p}`gao2021gradcache`.


# %%
def kept_megabytes(function, *args, **options) -> float:
    """MB that a forward pass keeps for the backward pass."""
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(*args, **options)
    return sum(sizes) / 1e6


h, x = (tensor.to(device) for tensor in batches["memory"])


def batch_loss(chunk: int) -> torch.Tensor:
    """The loss of the first batch, encoded `chunk` images at a time."""
    return seal_loss(model(h, x, chunk=chunk), settings)["loss"]


def largest_gradient(chunk: int) -> float:
    """The largest gradient of the tuned weights."""
    torch.manual_seed(SEED)
    model.zero_grad()
    batch_loss(chunk).backward()
    weights = model.encoder.parameters()
    gradients = [p.grad.abs().max() for p in weights if p.grad is not None]
    return max(gradients).item()


CHUNKS = (32, 16, 8, 4)
# In parts, nothing of the tuned blocks is kept: this is what the heads keep.
heads = kept_megabytes(batch_loss, 4)
part = {k: kept_megabytes(model.encoder.tail, h[:k]) for k in CHUNKS}
gradients = {k: largest_gradient(k) for k in CHUNKS}
for k, gradient in gradients.items():
    print(f"{k:2d} images at a time: largest gradient {gradient:.6f}")

# %%
#| alt: Stacked bars of the memory that a step needs with 32, 16, 8 and 4 images at a time. What the
#| heads keep of the whole batch is the same; what the tuned blocks keep of a part is smaller.
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
        label="the tuned blocks, of one part",
    )
    ax.invert_yaxis()
    ax.set(xlabel="MB kept for the backward pass, at most")
    ax.legend(loc="lower right")
plt.close(figure)
figure

# %% [markdown]
# Here the tuned block is one block of the default network, which is small. The blocks of a ViT-H
# keep more, and the heads keep the same.
#
# ## Several GPUs
#
# ```bash
# accelerate launch --num_processes 8 $(which seal-lite) finetune \
#   --data data/shards --out runs/large
# ```
#
# Every process encodes its part of the batch. The embeddings are then gathered with their
# gradients, and each process computes the loss of the whole batch. So every pair has all other
# pairs as negatives, and BatchNorm in the gene encoder sees the whole batch. A test compares two
# processes of 64 pairs with one of 128, and allows their losses to differ by $10^{-5}$.
# `batch_size` is the batch of all processes together. Between the GPUs travel only embeddings and
# the gradients of what is trained.
#
# ## What was measured
#
# {% include "speed.md" %}

# %% [markdown]
# ## What to expect on a GPU
#
# No GPU was available for this book, so the hours below are *extrapolated*. They are for the
# paper's scale, 700,000 pairs for ten epochs without a cache. We divide the operations by 40% of
# the peak rate in half precision on the GPU's data sheet, and leave the time of loading out. Use
# them to decide whether to wait or to rent; `make bench-gpu` measures your own GPU.

# %%
minutes = 700 * 20 / speeds[3]["cached"] / 60
print(
    f"This machine: 700 pairs, 20 epochs, last 3 blocks of {config.backbone}: "
    f"{minutes:.0f} min, from the rate above"
)
PEAK = {"T4": 65e12, "A100": 312e12, "H100": 989e12, "8 x H100": 8 * 989e12}
EFFICIENCY = 0.4
hours = {}
for name, cost in counted.items():
    if name.startswith("vit"):
        work = 700e3 * 10 * (cost["frozen"] + 3 * cost["tuned"])
        hours[name] = {
            gpu: work / (EFFICIENCY * rate) / 3600 for gpu, rate in PEAK.items()
        }
estimate = pd.DataFrame(hours).T.rename_axis("hours, extrapolated")
estimate.map("{:,.2f}".format)

# %% [markdown]
# Does the model fit? A T4 has 16 GB and no bfloat16, so `precision="auto"` trains in fp16 there. We
# assume that a block keeps about 20 values per token and dimension for the backward pass, of two
# bytes each, and that a weight takes four bytes. From that follows how many images a step may hold.
# This is *derived* and not measured:

# %%
GPU_BYTES = 0.8 * 16e9
BYTES_KEPT = 20 * 2
WEIGHTS = {"vit_base_patch16_224": 86e6, "vit_huge_patch14_224": 632e6}
fit = {}
for name, cost in counted.items():
    network, _, last = name.partition(", last ")
    if network in WEIGHTS:
        image_bytes = (
            float(np.prod(cost["activation"])) * BYTES_KEPT * int(last)
        )
        free = GPU_BYTES - 4 * WEIGHTS[network]
        fit[name] = int(free / image_bytes)
pd.Series(fit, name="images at a time on a T4").to_frame()

# %% [markdown]
# Where this is less than the batch, `--chunk` of that size makes the batch fit.
#
# ## Result

# %% tags=["hide-input"]
ratios = {k: speed["cached"] / speed["plain"] for k, speed in speeds.items()}
kinds = {k: "faster" if ratio > 1 else "slower" for k, ratio in ratios.items()}
same_loss = losses["memory"] == losses["shards"]
equal = "the same loss as" if same_loss else "another loss than"
result_box(
    f"On this machine ({device}, {threads}), training "
    f"steps of {config.backbone} with the cache ran {ratios[1]:.1f} times as "
    f"fast with one tuned block ({kinds[1]}) and {ratios[3]:.1f} times as fast "
    f"with three ({kinds[3]}). The counts of operations give "
    f"{by_count[1]:.1f} and {by_count[3]:.1f}.",
    f"The first batch from disk has {equal} the same batch from memory.",
    f"Encoding {CHUNKS[-1]} images at a time keeps {heads + part[4]:.0f} MB for "
    f"the backward pass, in place of {heads + part[32]:.0f} MB.",
    f"Rates are the median of {STEPS - 1} steps on one machine: a description "
    "without an interval.",
)

# %% [markdown]
# {% set scale = load("scale").epochs %}
# On the machine of the tables above, an epoch of {{ number(scale[-1].pairs, ",") }} pairs took
# {{ number(scale[-1].seconds, ".0f") }} s from disk, with small patches of 32 px and one tuned
# block; larger patches take longer. From {{ number(scale[0].pairs, ",") }} pairs
# to that, the time per pair went from {{ number(1000 * scale[0].seconds / scale[0].pairs, ".2f") }}
# to {{ number(1000 * scale[-1].seconds / scale[-1].pairs, ".2f") }} ms and peak memory from
# {{ number(scale[0].peak_bytes / 1e9, ".2f") }} to {{ number(scale[-1].peak_bytes / 1e9, ".2f") }}
# GB.

# %% [markdown]
# ## What to remember
#
# - A step costs the frozen blocks one forward pass, and the tuned blocks about three.
# - The cache saves the frozen blocks' share of a step, and takes disk for every pair and view.
# - Count first, then measure: waiting for memory and making views take time that no count shows.
# - A batch has one loss, whether it comes from memory or disk, in parts or from several GPUs.
#
# ## Exercises
#
# **1.** What can the cache save if all blocks are tuned? What can it save if none is, because
# embeddings are computed and nothing is trained?

# %% tags=["hide-cell", "solution"]
# All tuned: nothing is frozen, and the factor is 1. None tuned: everything is
# frozen, and the factor has no limit, because embeddings are computed once.
for k in (1, 2, 4, 8, 12):
    cost = split("vit_base_patch16_224", 224, k)
    print(f"ViT-B, last {k:2d} tuned: {faster_by_count(cost):.2f} times faster")

# %% [markdown]
# **2.** You have 50 GB of disk and want ViT-B with its last block tuned, on 20,000 pairs. How many
# views fit into the cache? How many in half precision?

# %% tags=["hide-cell", "solution"]
# Half precision takes two bytes in place of four, so twice as many views fit.
view = float(np.prod(counted["vit_base_patch16_224, last 1"]["activation"]))
fits = {}
for kind, width in (("fp32", 4), ("fp16", 2)):
    fits[kind] = int(50e9 // (20_000 * width * view))
    print(f"{kind}: {fits[kind]} views")

# %% [markdown]
# **3.** The paper's batch is 384. How much memory do the activations of a ViT-H's *tuned* blocks
# take, if a block keeps about 20 values per token and dimension for the backward pass?

# %% tags=["hide-cell", "solution"]
# Compare with your GPU's memory: where a row exceeds it, `chunk` is needed.
tokens, width = counted["vit_huge_patch14_224, last 1"]["activation"]
for k in (1, 4, 32):
    gigabytes = 384 * tokens * width * BYTES_KEPT * k / 1e9
    print(f"last {k:2d} blocks: {gigabytes:,.0f} GB in half precision")

# %% [markdown]
# ## Further reading
#
# - {cite:t}`hemker2026seal` trained SEAL at the scale of this chapter's extrapolation.
# - {cite:t}`mangrulkar2022peft`: the adapter library that SEAL-lite uses.
# - {cite:t}`wightman2019timm`: timm, whose networks are counted here.

# %% tags=["key-figures", "remove-cell"]
figures = {
    "by_count": saving["faster by count"].to_dict(),
    "pairs_per_s": speeds,
    "losses": losses,
    "kept": {k: (heads + part[k], gradients[k]) for k in CHUNKS},
    "fit": fit,
    "views": fits,
}
print(json.dumps(figures))
