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
# # Finetune
#
# **How is an encoder that knows cats and cars taught what tissue expresses, on two processor cores,
# in about a minute?**
#
# Fifteen minutes to read, two or three to run.
#
# The idea of SEAL {cite:p}`hemker2026seal`: leave the vision encoder as it is, add a few trainable
# numbers to its last blocks, and train them so that a {term}`patch` and the genes measured under it
# end up close together, while both can still be turned back into expression. The parts have had
# chapters of their own: [pairs](02_pairs.ipynb), [genes](05_gene_encoder.ipynb),
# [LoRA](06_lora.ipynb) and [losses](07_losses.ipynb). Here they run together.

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
TEST = (
    ""  # the section held out, with all of its patient's; empty: the last one
)
SEED = 0

# %%
import itertools
import json
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from seal_lite import Config, plots
from seal_lite.data.genes import GenePanel
from seal_lite.encoders.embedding import (
    embed_feature_layers,
    embed_patches,
    image_batches,
)
from seal_lite.encoders.vision import encoder_for
from seal_lite.model.losses import clip_loss, seal_loss
from seal_lite.model.seal import SEAL
from seal_lite.training.loader import Activations, Pairs
from seal_lite.training.loop import learning_rate, parameter_groups
from seal_lite.tutorial import begin, charts, finetuned
from seal_lite.tutorial.frames import slider

here = begin(DATASET, BACKBONE, EPOCHS, SMOKE, test=TEST, seed=SEED)
config, train, test = here.config, here.train, here.test
print(
    "training sections:",
    ", ".join(s.name for s in train),
    "| held out:",
    test.name,
)

# %% [markdown]
# ## The way of one pair
#
# Above, what happens to a picture: the frozen prefix turns the patch into maps of simple features,
# the tail with its LoRA turns those into an {term}`embedding`, and a projection takes it into the
# shared space. Below, the same spot's {term}`profile`, which the gene encoder takes into the same
# space. Training asks the two grids on the right to agree, number by number. Nothing has been
# trained yet, and they do not.

# %%
#| alt: Above, a patch, nine feature maps of the frozen prefix, the embedding and the shared space,
#| the last two as grids of coloured squares; below, the same spot's profile and its place in the
#| shared space. On the left the two places, number against number, with their cosine.
panel = GenePanel.from_config(train, config, include=here.genes)
z = panel.transform(test.adata)[test.rows]
covered = (test.patches.min(-1) < 220).mean((1, 2))
one = int(
    (np.abs(z).mean(1) * (covered >= np.median(covered))).argmax()
)  # marked, and all tissue


def strip(ax, values, title):
    """A vector as a grid, twice as high as wide, in its own standard deviations."""
    wide = int(np.ceil(np.sqrt(len(values) / 2)))
    grid = np.full(-(-len(values) // wide) * wide, np.nan)
    grid[: len(values)] = (values - values.mean()) / values.std()
    ax.imshow(grid.reshape(-1, wide), cmap="PuOr_r", vmin=-2.5, vmax=2.5)
    ax.set_title(title)


def mosaic(ax, hidden, title):
    """The nine feature maps that vary most, each on its own scale."""
    maps = hidden[0].numpy()
    if maps.ndim == 2:  # a transformer's tokens
        n = int(len(maps) ** 0.5)
        maps = maps[-n * n :].T.reshape(-1, n, n)
    maps = maps[np.argsort(-maps.std((1, 2)))[:9]]
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    tiles = np.pad(
        (maps - low) / (high - low),
        ((0, 0), (1, 1), (1, 1)),
        constant_values=np.nan,
    )
    n = tiles.shape[1]
    ax.imshow(tiles.reshape(3, 3, n, n).swapaxes(1, 2).reshape(3 * n, 3 * n))
    ax.set_title(title)


def way_of_a_pair(model):
    """The held-out pair `one`, step by step through a model."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        hidden = model.encoder.prefix(
            next(image_batches(test.patches[one : one + 1])).to(device)
        )
        e = model.encoder.tail(hidden).cpu()
    u, v = model.project_images(e)[0], model.encode_genes(z[one : one + 1])[0]
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(
            2, 4, figsize=(8.4, 5), width_ratios=(1.5, 1.5, 1, 1)
        )
        axes[0, 0].imshow(
            test.patches[one], extent=(0, config.patch_um, config.patch_um, 0)
        )
        axes[0, 0].set_title("a patch")
        mosaic(axes[0, 1], hidden.cpu(), "prefix, frozen")
        strip(axes[0, 2], e[0].numpy(), f"tail, LoRA:\n{e.shape[1]} numbers")
        strip(axes[0, 3], u, f"projection:\n{len(u)} numbers")
        strip(axes[1, 2], z[one], f"profile:\n{z.shape[1]} genes")
        strip(axes[1, 3], v, f"gene encoder:\n{len(v)} numbers")
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        plots.scale_bar(axes[0, 0])
        for ax in axes[1, :2]:
            ax.remove()
        ax = figure.add_subplot(axes[1, 0].get_gridspec()[1, :2])
        ax.plot(u, v, "o", ms=4, mew=0, alpha=0.7)
        reach = 1.1 * max(np.abs(u).max(), np.abs(v).max())
        ax.plot([-reach, reach], [-reach, reach], color=plots.GREY, lw=0.8)
        ax.set(
            xlim=(-reach, reach),
            ylim=(-reach, reach),
            xticks=[],
            yticks=[],
            aspect="equal",
        )
        ax.set(xlabel="the image's numbers", ylabel="the genes' numbers")
        ax.set_title(f"in the shared space: cosine {u @ v:+.2f}")
    plt.close(figure)
    return figure


way_of_a_pair(SEAL.build(panel, config).eval())

# %% [markdown]
# ## What is trained
#
# An encoder is one row of a table. The row says where the weights come from, which layers LoRA may
# adapt, and where the embedding is read: the {term}`feature layer`. The default is a small
# EfficientNet {cite:p}`tan2019efficientnet` with ImageNet weights that come as a package, so
# nothing is fetched.
# Its fifth stage, averaged over the patch, tells more about tissue than its last layer, whose 1280
# numbers were made for naming photographs. As it comes, an even earlier stage [tells more
# still](04_frozen_baseline.ipynb), about colour and texture. That is no reason to read it there:
# finetuning changes what the later one sees. But it is a rival that a gain has to beat, and so it
# stands among the [recorded results](../results.md).

# %%
encoder = encoder_for(config)
row = encoder.row
trainable = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
total = sum(p.numel() for p in encoder.parameters())
print(
    f"{row.arch}: {row.dim} numbers, read as the {row.embedding} of {encoder.feature_layer}"
)
print("frozen prefix:", ", ".join(encoder.prefix_stages))
print("tuned tail:   ", ", ".join(encoder.tail_stages))
print(
    f"LoRA in {len(encoder.adapted)} modules, {trainable:,} of {total:,} numbers are trained"
)

# %% [markdown]
# {term}`LoRA` puts two thin matrices beside each $1 \times 1$ convolution of the tail. The
# depthwise filters and the normalisation between them are no matrices, and are tuned whole. All of
# it [starts at nothing](06_lora.ipynb), so the adapted encoder is at first exactly the frozen one:

# %%
frozen = encoder_for(replace(config, tune_blocks=0))
few = test.patches[:16]
no_op = float(
    np.abs(embed_patches(encoder, few) - embed_patches(frozen, few)).max()
)
print(f"largest difference of the embeddings before training: {no_op}")

# %% [markdown]
# Everything is trained for one sum of [three losses](07_losses.ipynb): the contrast, which asks
# each image for its own genes and each profile for its own image among those of a batch, and two
# reconstructions of expression, from the gene embedding and from the image's, which keep both
# honest:
#
# $$
# \mathcal{L} = \tfrac12\, \mathcal{L}_\text{clip} + \mathcal{L}_{\text{gene} \to \text{gene}}
# + \mathcal{L}_{\text{image} \to \text{gene}} .
# $$

# %% [markdown]
# ## Compute what cannot change only once
#
# Only the last blocks adapt. Everything before them is a fixed function of the pixels of a view, so
# we compute it once per view and keep it. That must not change the training, only its speed. Both
# loops, step by step in turn, on the same views:

# %%
two_views = Config(n_views=2, seed=config.seed)
timed = SEAL.build(panel, two_views)
loops = {}
for name, cached in (("plain", False), ("cached", True)):
    started = time.perf_counter()
    activations = Activations(timed.encoder, train, two_views, cached=cached)
    pairs = Pairs(train, panel, two_views, activations)
    loops[name] = itertools.chain.from_iterable(map(pairs.epoch, range(4)))
    print(
        f"{name:6} loop made ready in {time.perf_counter() - started:4.0f} s, once"
    )
seconds, found = {name: [] for name in loops}, {name: [] for name in loops}
for step in range(4):
    for name, batches in loops.items():
        started = time.perf_counter()
        torch.manual_seed(step)  # the same dropout in both
        timed.train()
        hidden, x = next(batches)
        loss = seal_loss(timed(hidden, x), two_views)["loss"]
        timed.zero_grad()
        loss.backward()
        seconds[name].append(time.perf_counter() - started)
        found[name].append(loss.item())
# The first step warms up and is not counted.
rate = {
    name: two_views.batch_size / np.mean(s[1:]) for name, s in seconds.items()
}
loss_gap = float(np.abs(np.subtract(found["plain"], found["cached"])).max())
for name in rate:
    print(f"{name:6} loop: {rate[name]:6.1f} pairs/s")
print(f"largest difference of the two losses: {loss_gap:.1e}")

# %% [markdown]
# ## The loop, line by line
#
# This is all that `finetune` does, but for checkpoints, mixed precision and the log. Before the
# first epoch and after each, it also looks at the held-out patient, from whom nothing is learned.

# %%
device = "cuda" if torch.cuda.is_available() else "cpu"
feature_layer = encoder.feature_layer


def held_out(model):
    """The held-out patches and their profiles in the shared space, two (n, d) of unit vectors."""
    layers = embed_feature_layers(model.encoder, [test], cache_dir="runs/cache")
    e = layers[feature_layer][0]
    return model.project_images(e), model.encode_genes(z)


model = SEAL.build(panel, config).to(device)
activations = Activations(model.encoder, train, config, cache_dir="runs/cache")
pairs = Pairs(train, panel, config, activations)
optimizer = torch.optim.AdamW(parameter_groups(model, config))
steps = config.epochs * (len(pairs) // config.batch_size)
schedule = torch.optim.lr_scheduler.LambdaLR(
    optimizer,
    lambda step: learning_rate(step, steps=steps, warmup=config.warmup),
)
seen, by_hand = {0: held_out(model)}, []
for epoch in range(min(8, config.epochs - 1)):
    torch.manual_seed(
        hash((config.seed, epoch)) % 2**63
    )  # dropout, as `finetune` draws it
    model.train()
    losses = []
    for hidden, x in pairs.epoch(epoch):
        outputs = model(hidden.to(device), x.to(device))
        loss = seal_loss(outputs, config)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    by_hand.append(np.mean(losses))
    seen[epoch + 1] = held_out(model)
print("loss by epoch:", *(f"{loss:.3f}" for loss in by_hand))

# %% [markdown]
# ## The same, as one call
#
# All sections of the held-out patient stay out, including the fitting of the gene panel. Called
# again with the same arguments, `finetune` returns the finished run; interrupted, it resumes to the
# same result. A folder with a run of other data or settings is refused. `finetuned(here)` fills in
# this book's arguments.

# %%
#| alt: The training loss and its three terms, a line each, by epoch.
RUN = here.run("tuned")
model, history = finetuned(here)
loop_gap = max(
    abs(a - h["loss"]) for a, h in zip(by_hand, history, strict=False)
)
print(
    f"largest difference to the loop above, in {len(by_hand)} epochs: {loop_gap:.1e}"
)
charts.loss_curves(history)

# %% [markdown]
# ## The shared space, epoch by epoch
#
# Drag the slider; the last step is the finished run. Each disc is a patch of the held-out patient,
# each square the profile of a spot, and a line joins the two of a pair. All epochs are drawn in one
# projection, the two principal axes of the last. Right, the cosines: of every image with its own
# genes, and with those of other spots. Short lines, and two humps that part, are what the contrast
# asks for.

# %%
seen[config.epochs] = held_out(model)
if here.truth is not None:
    kind, named = here.truth.regions(test), "region"
else:
    level = z[:, panel.genes.index(here.genes[0])]
    kind = np.array(["low", "middle", "high"])[
        np.digitize(level, np.quantile(level, [1 / 3, 2 / 3]))
    ]
    named = here.genes[0]
kinds, counts = np.unique(kind, return_counts=True)
colours = dict(zip(kinds[np.argsort(-counts)], plots.COLOURS, strict=False))
both = np.concatenate(seen[config.epochs])
axes_2d = np.linalg.svd(both - both.mean(0), full_matrices=False)[2][:2].T
flat = {
    k: [(side - both.mean(0)) @ axes_2d for side in sides]
    for k, sides in seen.items()
}
reach = 1.05 * max(np.abs(p).max() for sides in flat.values() for p in sides)
own, bins = np.eye(len(z), dtype=bool), np.linspace(-1, 1, 41)
cosines = {epoch: image @ gene.T for epoch, (image, gene) in seen.items()}
tallest = max(
    np.histogram(c[own], bins, density=True)[0].max() for c in cosines.values()
)


def space(epoch):
    """The shared space after an epoch, and the cosines in it."""
    image, gene = flat[epoch]
    with plt.rc_context(plots.STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(8, 4.6), width_ratios=(1.4, 1)
        )
        for name, colour in colours.items():
            at = kind == name
            left.plot(
                *np.stack([image[at], gene[at]]).transpose(2, 0, 1),
                color=colour,
                lw=0.5,
                alpha=0.4,
            )
            left.plot(*image[at].T, "o", ms=4, mew=0, color=colour, label=name)
            left.plot(*gene[at].T, "s", ms=3.5, mew=0, color=colour)
        left.set(
            xlim=(-reach, reach),
            ylim=(-reach, reach),
            xticks=[],
            yticks=[],
            aspect="equal",
        )
        left.set_title(f"epoch {epoch}")
        left.spines[:].set_visible(False)
        for which, name, colour in (
            (~own, "other spots", plots.GREY),
            (own, "own", plots.INK),
        ):
            part = cosines[epoch][which]
            look = {
                "color": colour,
                "label": f"{name}: mean {part.mean():+.2f}",
            }
            right.hist(part, bins, density=True, histtype="step", lw=2, **look)
        right.set(
            xlabel="cosine of image and genes",
            ylim=(0, 1.3 * tallest),
            yticks=[],
        )
        right.spines["left"].set_visible(False)
        right.legend(loc="upper left", fontsize=9)
        figure.legend(
            *left.get_legend_handles_labels(),
            loc="outside lower center",
            title=named,
            ncols=min(6, len(colours)),
        )
    plt.close(figure)
    return figure


slider(
    {epoch: space(epoch) for epoch in seen},
    label="epoch",
    alt="Left, the shared space in two dimensions: a disc for every held-out patch, a square for "
    f"every profile, coloured by {named}, a line joining those of a pair. Right, histograms of the "
    "cosine of an image with its own profile and with those of other spots.",
)

# %% [markdown]
# And the pair of the opening picture, after training:

# %%
#| alt: The same picture as at the top, of the same held-out pair, with the trained model.
way_of_a_pair(model)

# %% [markdown]
# Every epoch left a line in the run's log:

# %%
log = pd.DataFrame(history).set_index("epoch")
log[["clip", "gene", "image", "loss", "lr_lora", "pairs_per_s"]].round(4).iloc[
    ::2
]

# %% [markdown]
# A falling loss says that the training pairs were learned. It does not say that anything carries
# over to another patient; a network can learn 300 pairs by heart. The [next
# chapter](09_did_it_help.ipynb) measures that.

# %% [markdown]
# ## Why these settings?
#
# Each setting below was changed, alone, and everything measured again on real tissue: the encoder
# finetuned on every pair of four sections, probe B on the other two, Pearson residuals. What is
# changed is the full recipe: the default, and three parts of SEAL that it does without because they
# gain nothing. An interval around zero means that the setting does not matter there. (In Colab the
# table stays empty; it stands on the book's [page of recorded results](../results.md) too.)
#
# {% include "changed_settings.md" %}

# %% [markdown]
# ## What a run leaves behind
#
# A folder with everything needed to use the model and to doubt it: settings, panel, the adapter in
# peft's own format, the heads, the log, and where it all came from.

# %%
files = sorted(p for p in RUN.rglob("*") if p.is_file())
for p in files:
    print(f"{p.stat().st_size / 1024:9,.1f} kB  {p.relative_to(RUN)}")

# %%
provenance = json.loads((RUN / "provenance.json").read_text())
{
    k: v
    for k, v in provenance.items()
    if k in ("sections", "seed", "data_sha256", "device")
}

# %% [markdown]
# Loading it gives the same embeddings, to the last bit:

# %%
loaded = SEAL.from_pretrained(RUN)
reload = float(
    np.abs(
        embed_patches(loaded.encoder, few) - embed_patches(model.encoder, few)
    ).max()
)
moved = float(
    np.abs(
        embed_patches(model.encoder, few) - embed_patches(frozen, few)
    ).mean()
)
print(f"largest difference after loading: {reload}")
print(f"mean change of an embedding's numbers by training: {moved:.3f}")

# %% [markdown]
# ## What does the encoder look at now?
#
# Take a patch of the held-out patient and ask for its nearest neighbours among the section's other
# patches, by the frozen embedding and by the tuned one. Neither has seen this patient.

# %%
#| alt: Two rows of six patches of the held-out patient: a query and its five nearest by the frozen
#| embedding, and the same by the tuned one, with their cosines.
rows, titles = [], []
for name, net in (("frozen", frozen), ("tuned", model.encoder)):
    e = embed_patches(net, test.patches)
    e = (e - e.mean(0)) / e.std(0)
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    query = len(e) // 2
    near = np.argsort(-(e @ e[query]))[:6]
    rows += list(near)
    titles += [
        f"{name}: query" if i == query else f"cosine {e[i] @ e[query]:.2f}"
        for i in near
    ]
plots.patches(test.patches[rows], titles, patch_um=config.patch_um)

# %% [markdown]
# Pictures like these are easy to like and prove nothing; treat them as a check that nothing is
# broken.
#
# ## What to remember
#
# - The base weights never change; LoRA begins as a no-op and trains a small part of the numbers.
# - What cannot change is computed once. The losses are the same, the pairs per second are not.
# - A run folder says what it was made of, and loads to the same embeddings.
# - A falling training loss is no evidence. Held-out patients are.

# %% [markdown]
# ## Exercises
#
# **1.** The run's contrast is that of batches of 64. What would the same model's be on the held-out
# patient with batches of 4, 16 and 64? Which number would you compare between two papers?

# %% tags=["hide-cell", "solution"]
u, v = (torch.from_numpy(side) for side in seen[config.epochs])
order = torch.randperm(len(u), generator=torch.Generator().manual_seed(0))
for size in (4, 16, 64):
    parts = [p for p in order.split(size) if len(p) == size]
    batches = [
        clip_loss(u[p], v[p], temperature=config.temperature) for p in parts
    ]
    mean = torch.stack(batches).mean().item()
    print(
        f"{size:3} pairs a batch: contrast {mean:.2f}, guessing {np.log(size):.2f}"
    )
# The same embeddings, and the loss grows with the batch, since there are more to be mistaken for.
# So contrasts compare at one batch size only. A rank in a gallery of stated size says more.

# %% [markdown]
# **2.** The control that the next chapter leans on was trained on shuffled pairs: within each
# section, every patch got the genes of another spot. Predict which of the three losses fall
# nevertheless, and what the held-out pairs' cosines look like.

# %% tags=["hide-cell", "solution"]
wrong, log_wrong = finetuned(here, shuffle_pairs=True)
for name, net, lines in (
    ("true", model, history),
    ("shuffled", wrong, log_wrong),
):
    terms = ", ".join(
        f"{k} {lines[0][k]:.2f} to {lines[-1][k]:.2f}"
        for k in ("clip", "gene", "image")
    )
    u, v = held_out(net)
    near, far = ((u @ v.T)[which].mean() for which in (own, ~own))
    print(f"{name} pairs: {terms}")
    print(
        f"    held out: cosine {near:+.2f} with the own profile, {far:+.2f} with others"
    )
# All three fall, the contrast nearly as far: a few hundred wrong pairs can be learned by heart,
# too. But a held-out image is no nearer to its own genes than to any others. That, and not the
# loss, tells whether the pairs had something to teach.

# %% [markdown]
# **3.** When does the cache pay? Compare the number of times that a patch runs through the prefix,
# with it and without. Then say how large it is, for this run and for the 700,000 pairs of SEAL.

# %% tags=["hide-cell", "solution"]
print(
    f"prefix runs a patch: {config.n_views} with the cache, {config.epochs} without"
)
one_view = 4 * next(pairs.epoch(0))[0][0].numel()  # bytes, in float32
for name, n in (("this run", len(pairs)), ("SEAL", 700_000)):
    print(f"{name}: {one_view * config.n_views * n / 1e9:,.1f} GB")
# It pays where there are more epochs than views, whatever the network, and as long as it fits the
# disk. Many pairs need few epochs: then the plain loop is both smaller and faster.

# %% [markdown]
# ## Further reading
#
# - {cite:p}`hemker2026seal`: the same loop on hundreds of thousands of pairs and large encoders.
# - {cite:p}`zhai2022lit` ask how much of a contrastive model should be tuned at all, and how much
#   locked.
# - {cite:p}`liang2022gap` explain why images and their partners stay apart in a shared space.

# %% tags=["key-figures", "remove-cell"]
contrast = [h["clip"] for h in history if "clip" in h]
figures = {
    "lora_modules": len(encoder.adapted),
    "trainable_share": trainable / total,
    "no_op_difference": no_op,
    "loss_gap": loss_gap,
    "loop_gap": loop_gap,
    "cosines": {
        k: [float(c[own].mean()), float(c[~own].mean())]
        for k, c in cosines.items()
    },
    "shuffled": [float(near), float(far)],
    "pairs_per_s": rate,
    "log_batch": float(np.log(config.batch_size)),
    "clip": [contrast[0], contrast[-1]],
    "reload_difference": reload,
    "moved": moved,
    "torch": torch.__version__,
}
print(json.dumps(figures))
