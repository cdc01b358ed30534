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
# **How does an encoder that was trained on photographs learn what tissue expresses, on two
# processor cores?**
#
# SEAL freezes most of the encoder and trains LoRA layers in its last blocks, a gene encoder and
# two decoders with one loss. On the phantom, images of a held-out patient then lie nearer to their
# own profiles than to others; after training on shuffled pairs they hardly do. Probe B predicts
# expression from both encoders. On new patients of a larger phantom, the mean $r$ of finetuned
# minus shuffled pairs is {{ main_difference(load("phantom"), "shuffled") }}. On new sections of one
# real tumour it is {{ main_difference(load("her2st"), "shuffled") }}. The 95% interval stands in
# square brackets, and the number of held-out units in round ones.
#
# Fifteen minutes to read, two or three to run.
#
# The idea of SEAL {cite:p}`hemker2026seal` is to bring a {term}`patch` and the genes measured
# under it close together in a shared space, while both can still be decoded to expression. The
# parts have had chapters of their own: [pairs](02_pairs.ipynb), [genes](05_gene_encoder.ipynb),
# [LoRA](06_lora.ipynb) and [losses](07_losses.ipynb). Here they train together.

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
# The section held out, with all of its patient's; empty: the last one
TEST = ""
SEED = 0

# %% tags=["hide-input"]
import itertools
import json
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from seal_lite import plots
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
from seal_lite.tutorial import begin, charts, finetuned, result_box
from seal_lite.tutorial.frames import slider

here = begin(DATASET, BACKBONE, EPOCHS, SMOKE, test=TEST, seed=SEED)
config, train, test = here.config, here.train, here.test
print("training sections:", ", ".join(section.name for section in train))
print("held out:", test.name)

# %% [markdown]
# ## One pair, step by step
#
# The upper row shows the image. The frozen blocks turn the patch into maps of simple features. The
# tuned blocks with their LoRA turn those into an {term}`embedding`, and a projection takes it into
# the shared space. The lower row shows the same spot's {term}`profile`, which the gene encoder
# takes into the same space. Training makes the two grids on the right agree, dimension by
# dimension. At the lower left each dot is one dimension, and the title gives the cosine of the
# two. Nothing has been trained yet.

# %% tags=["hide-input"]
#| alt: Above, a patch, nine feature maps of the frozen blocks, the embedding and the shared space,
#| the last two as grids of coloured squares; below, the same spot's profile and its embedding in
#| the shared space. At the lower left, the two embeddings dimension against dimension, with their
#| cosine.
panel = GenePanel.from_config(train, config, include=here.genes)
z = panel.transform(test.adata)[test.rows]
# A spot with a marked profile, among those whose patch is mostly tissue
is_tissue = (test.patches.min(-1) < 220).mean((1, 2))
marked = np.abs(z).mean(1) * (is_tissue >= np.median(is_tissue))
one = int(marked.argmax())


def draw_grid(ax, values: np.ndarray, title: str) -> None:
    """A vector as a grid, twice as high as wide, in its own standard deviations."""
    width = int(np.ceil(np.sqrt(len(values) / 2)))
    grid = np.full(-(-len(values) // width) * width, np.nan)
    grid[: len(values)] = (values - values.mean()) / values.std()
    ax.imshow(grid.reshape(-1, width), cmap="PuOr_r", vmin=-2.5, vmax=2.5)
    ax.set_title(title)


def draw_maps(ax, hidden: torch.Tensor, title: str) -> None:
    """The nine feature maps that vary most, each on its own scale."""
    maps = hidden[0].float().cpu().numpy()
    if maps.ndim == 2:  # a transformer's tokens
        n = int(len(maps) ** 0.5)
        maps = maps[-n * n :].T.reshape(-1, n, n)
    maps = maps[np.argsort(-maps.std((1, 2)))[:9]]
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    border = ((0, 0), (1, 1), (1, 1))
    tiles = np.pad((maps - low) / (high - low), border, constant_values=np.nan)
    n = tiles.shape[1]
    ax.imshow(tiles.reshape(3, 3, n, n).swapaxes(1, 2).reshape(3 * n, 3 * n))
    ax.set_title(title)


def draw_agreement(ax, u: np.ndarray, v: np.ndarray) -> None:
    """The two embeddings of a pair, dimension against dimension."""
    ax.plot(u, v, "o", ms=4, mew=0, alpha=0.7)
    reach = 1.1 * max(np.abs(u).max(), np.abs(v).max())
    ax.plot([-reach, reach], [-reach, reach], color=plots.GREY, lw=0.8)
    limits = (-reach, reach)
    ax.set(xlim=limits, ylim=limits, xticks=[], yticks=[], aspect="equal")
    ax.set(xlabel="image embedding", ylabel="gene embedding")
    ax.set_title(f"in the shared space: cosine {u @ v:+.2f}")


def draw_pair(model: SEAL):
    """The held-out pair `one`, step by step through a model."""
    device = next(model.parameters()).device
    patch = next(image_batches(test.patches[one : one + 1]))
    with torch.inference_mode():
        hidden = model.encoder.prefix(patch.to(device))
        embedding = model.encoder.tail(hidden).cpu().numpy()
    u = model.project_images(embedding)[0]
    v = model.encode_genes(z[one : one + 1])[0]
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(
            2, 4, figsize=(8.4, 5), width_ratios=(1.5, 1.5, 1, 1)
        )
        extent = (0, config.patch_um, config.patch_um, 0)
        axes[0, 0].imshow(test.patches[one], extent=extent)
        axes[0, 0].set_title("a patch")
        draw_maps(axes[0, 1], hidden, "frozen blocks")
        n = embedding.shape[1]
        draw_grid(axes[0, 2], embedding[0], f"tuned blocks:\n{n} dimensions")
        draw_grid(axes[0, 3], u, f"projection:\n{len(u)} dimensions")
        draw_grid(axes[1, 2], z[one], f"profile:\n{z.shape[1]} genes")
        draw_grid(axes[1, 3], v, f"gene encoder:\n{len(v)} dimensions")
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        plots.scale_bar(axes[0, 0])
        for ax in axes[1, :2]:
            ax.remove()
        lower_left = axes[1, 0].get_gridspec()[1, :2]
        draw_agreement(figure.add_subplot(lower_left), u, v)
    plt.close(figure)
    return figure


draw_pair(SEAL.build(panel, config).eval())

# %% [markdown]
# ## What is trained
#
# An encoder is one row of a table. The row states where the weights come from, which layers LoRA
# may adapt, and where the embedding is read: the {term}`feature layer`. The default is a small
# EfficientNet {cite:p}`tan2019efficientnet` whose ImageNet weights come as a package, so nothing
# is downloaded. Its feature layer is the fifth group of blocks, averaged over the patch; the
# layers behind it were trained to name photographs. In the frozen network an earlier layer can
# [predict more](04_frozen_baseline.ipynb). So the frozen encoder at its best layer is the baseline
# that a gain is measured against.

# %%
encoder = encoder_for(config)
row = encoder.row
trainable = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
total = sum(p.numel() for p in encoder.parameters())
print(f"{row.arch or row.name}: the {row.embedding} of {encoder.feature_layer}")
print("frozen blocks:", ", ".join(encoder.prefix_stages))
print("tuned blocks: ", ", ".join(encoder.tail_stages))
print(f"LoRA in {len(encoder.adapted)} layers")
print(f"{trainable:,} of {total:,} parameters are trained")

# %% [markdown]
# {term}`LoRA` puts two thin matrices beside each matrix of the tuned blocks. In the default
# network those are the $1 \times 1$ convolutions; the depthwise filters and the normalisation
# between them are tuned whole. All changes [start at zero](06_lora.ipynb), so before training the
# adapted encoder equals the frozen one:

# %%
# float32 on a GPU, too, where half precision rounds the two unlike
exact = replace(config, precision="no")
frozen = encoder_for(replace(exact, tune_blocks=0))
few = test.patches[:16]
before_training = embed_patches(encoder_for(exact), few)
no_op_difference = before_training - embed_patches(frozen, few)
no_op = float(np.abs(no_op_difference).max())
print(f"largest difference of the embeddings before training: {no_op}")

# %% [markdown]
# The loss is a sum of [three terms](07_losses.ipynb). The contrast matches each image with its own
# profile among those of a batch, and each profile with its own image. Two reconstructions, from
# the gene embedding and from the image embedding, tie the shared space to expression:
#
# $$
# \mathcal{L} = \tfrac12\, \mathcal{L}_\text{clip} + \mathcal{L}_{\text{gene} \to \text{gene}}
# + \mathcal{L}_{\text{image} \to \text{gene}} .
# $$

# %% [markdown]
# ## The prefix cache
#
# Only the last blocks change. The blocks before them are a fixed function of a view's pixels, so
# we compute them once per view and store the result. That must change the speed of training and
# not its losses. We run both loops in turn, step by step, on the same views:

# %%
device = "cuda" if torch.cuda.is_available() else "cpu"
two_views = replace(exact, n_views=2)
timed = SEAL.build(panel, two_views).to(device)
loops = {}
for name, cached in (("plain", False), ("cached", True)):
    started = time.perf_counter()
    activations = Activations(
        timed.encoder, train[:1], two_views, cached=cached
    )
    pairs = Pairs(train[:1], panel, two_views, activations)
    epochs = map(pairs.epoch, itertools.count())
    loops[name] = itertools.chain.from_iterable(epochs)
    print(f"{name} loop ready in {time.perf_counter() - started:.0f} s, once")
seconds = {name: [] for name in loops}
loss_of = {name: [] for name in loops}
for step in range(4):
    for name, batches in loops.items():
        started = time.perf_counter()
        torch.manual_seed(step)  # the same dropout in both
        timed.train()
        hidden, x = next(batches)
        outputs = timed(hidden.to(device), x.to(device))
        loss = seal_loss(outputs, two_views)["loss"]
        timed.zero_grad()
        loss.backward()
        loss_of[name].append(loss.item())
        seconds[name].append(time.perf_counter() - started)
# The first step warms up and is not counted.
rate = {
    name: two_views.batch_size / np.mean(values[1:])
    for name, values in seconds.items()
}
loss_difference = np.subtract(loss_of["plain"], loss_of["cached"])
loss_gap = float(np.abs(loss_difference).max())
for name in rate:
    print(f"{name} loop: {rate[name]:.1f} pairs/s")
print(f"largest difference of the two losses: {loss_gap:.2g}")

# %% [markdown]
# ## The loop, line by line
#
# This is all that `finetune` does, apart from checkpoints, mixed precision and the log. Before the
# first epoch and after each, we also embed the held-out section, from which nothing is learnt. The
# first half of the epochs is enough to compare the losses with those of the next section.

# %%
CACHE = "runs/cache"


def embed_held_out(model: SEAL) -> tuple[np.ndarray, np.ndarray]:
    """Held-out patches and profiles, as unit vectors (n, d) of the shared space."""
    layers = embed_feature_layers(model.encoder, [test], cache_dir=CACHE)
    embedding = layers[model.encoder.feature_layer][0]
    return model.project_images(embedding), model.encode_genes(z)


# Half precision would need scaled gradients
model = SEAL.build(panel, exact).to(device)
activations = Activations(model.encoder, train, config, cache_dir=CACHE)
pairs = Pairs(train, panel, config, activations)
optimizer = torch.optim.AdamW(parameter_groups(model, config))
steps = config.epochs * (len(pairs) // config.batch_size)
schedule = torch.optim.lr_scheduler.LambdaLR(
    optimizer,
    lambda step: learning_rate(step, steps=steps, warmup=config.warmup),
)
shared_space, by_hand = {0: embed_held_out(model)}, []
for epoch in range(min(8, config.epochs // 2)):
    # Dropout, as `finetune` draws it
    torch.manual_seed(hash((config.seed, epoch)) % 2**63)
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
    shared_space[epoch + 1] = embed_held_out(model)
print("loss by epoch:", *(f"{loss:.3f}" for loss in by_hand))

# %% [markdown]
# ## The same, as one call
#
# No section of the held-out patient enters training, nor the fit of the gene panel. Called again
# with the same arguments, `finetune` returns the finished run. An interrupted run resumes to the
# same result. A folder that holds a run of other data or settings raises an error.
# `finetuned(here)` fills in this book's arguments.

# %%
#| alt: The training loss and its three terms, a line each, by epoch.
RUN = here.run("tuned")
model, history = finetuned(here)
pairs_of_losses = zip(by_hand, history, strict=False)
loop_gap = max(abs(loss - epoch["loss"]) for loss, epoch in pairs_of_losses)
print(f"largest difference to the loop above: {loop_gap:.2g}")
charts.loss_curves(history)

# %% [markdown]
# ## The shared space, epoch by epoch
#
# Drag the slider; the last step is the finished run. Each disc is a held-out patch, each square
# the profile of a spot, and a line joins the two of a pair. All epochs are drawn in one
# projection, the two principal axes of the last. The histograms show the cosines of every image
# with its own profile and with those of other spots. The contrast asks for short lines, and for
# two histograms that separate.

# %% tags=["hide-input"]
shared_space[config.epochs] = embed_held_out(model)
if here.truth is not None:
    kind, named = here.truth.regions(test), "region"
else:
    named = here.genes[0]
    level = z[:, panel.genes.index(named)]
    thirds = np.quantile(level, [1 / 3, 2 / 3])
    kind = np.array(["low", "middle", "high"])[np.digitize(level, thirds)]
colours = charts.label_colours(np.unique(kind))
last = np.concatenate(shared_space[config.epochs])
centre = last.mean(0)
axes_2d = np.linalg.svd(last - centre, full_matrices=False)[2][:2].T
flat = {
    epoch: [(side - centre) @ axes_2d for side in sides]
    for epoch, sides in shared_space.items()
}
reach = 1.05 * max(np.abs(p).max() for sides in flat.values() for p in sides)
own, bins = np.eye(len(z), dtype=bool), np.linspace(-1, 1, 41)
cosines = {
    epoch: image @ gene.T for epoch, (image, gene) in shared_space.items()
}
tallest = max(
    np.histogram(c[own], bins, density=True)[0].max() for c in cosines.values()
)


def draw_space(ax, epoch: int) -> None:
    """Pairs in two dimensions: discs and squares, joined by lines."""
    image, gene = flat[epoch]
    for name, colour in colours.items():
        members = kind == name
        joined = np.stack([image[members], gene[members]]).transpose(2, 0, 1)
        ax.plot(*joined, color=colour, lw=0.5, alpha=0.4)
        look = {"mew": 0, "color": colour}
        ax.plot(*image[members].T, "o", ms=4, label=name, **look)
        ax.plot(*gene[members].T, "s", ms=3.5, **look)
    limits = (-reach, reach)
    ax.set(xlim=limits, ylim=limits, xticks=[], yticks=[], aspect="equal")
    ax.set_title(f"epoch {epoch}")
    ax.spines[:].set_visible(False)


def draw_cosines(ax, epoch: int) -> None:
    """Histograms of the cosines with the own profile and with others."""
    for which, name, colour in (
        (~own, "other spots", plots.GREY),
        (own, "own", plots.INK),
    ):
        part = cosines[epoch][which]
        label = f"{name}: mean {part.mean():+.2f}"
        look = {"density": True, "histtype": "step", "lw": 2}
        ax.hist(part, bins, color=colour, label=label, **look)
    ax.set(xlabel="cosine of image and genes")
    ax.set(ylim=(0, 1.3 * tallest), yticks=[])
    ax.spines["left"].set_visible(False)
    ax.legend(loc="upper left", fontsize=9)


def draw_epoch(epoch: int):
    """The shared space after an epoch, and the cosines in it."""
    with plt.rc_context(plots.STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(8, 4.6), width_ratios=(1.4, 1)
        )
        draw_space(left, epoch)
        draw_cosines(right, epoch)
        figure.legend(
            *left.get_legend_handles_labels(),
            loc="outside lower center",
            title=named,
            ncols=min(6, len(colours)),
        )
    plt.close(figure)
    return figure


slider(
    {epoch: draw_epoch(epoch) for epoch in shared_space},
    label="epoch",
    alt="Left, the shared space in two dimensions: a disc for every held-out patch, a square for "
    f"every profile, coloured by {named}, a line joining those of a pair. Right, histograms of the "
    "cosine of an image with its own profile and with those of other spots.",
)

# %% [markdown]
# Here is the pair of the first figure after training:

# %%
#| alt: The same figure as at the top, of the same held-out pair, with the trained model.
draw_pair(model)

# %% [markdown]
# The run's log has one line per epoch; the table shows every second one:

# %%
log = pd.DataFrame(history).set_index("epoch")
names = {
    **charts.LOSS_TERMS,
    "lr_lora": "learning rate of LoRA",
    "pairs_per_s": "pairs a second",
}
digits = {**dict.fromkeys(names, 3), "lr_lora": 4, "pairs_per_s": 1}
log[list(names)].round(digits).rename(columns=names).iloc[::2]

# %% [markdown]
# A falling loss shows that the training pairs were learnt. It does not show that anything carries
# over to another patient, because a network can memorise a few hundred pairs. The [next
# chapter](09_did_it_help.ipynb) measures that.

# %% [markdown]
# ## Why these settings?
#
# The table changes one setting at a time, or two that belong together, and measures the result on
# real tissue: finetuned on every pair of four sections, read by probe B on the other two, scored
# on Pearson residuals. The reference of each difference is the full recipe. It has two parts that
# the default leaves out, the correlation term and the gene encoder's warm-up, so `w_corr` = 0 with
# `gene_warmup_epochs` = 0 is the default. An interval that contains zero shows no difference; in
# brackets is the number of trainings. The [trials](../trials.md) list every change.
#
# {% include "changed_settings.md" %}

# %% [markdown]
# ## What a run leaves behind
#
# A run is a folder with everything needed to use the model and to check it: settings, panel, the
# adapter in peft's format, the heads, the log, and the provenance.

# %%
files = sorted(path for path in RUN.rglob("*") if path.is_file())
sizes = [path.stat().st_size / 1024 for path in files]
index = pd.Index([str(path.relative_to(RUN)) for path in files], name="file")
pd.DataFrame({"kB": sizes}, index=index).round(1)

# %%
provenance = json.loads((RUN / "provenance.json").read_text())
{name: provenance[name] for name in ("sections", "seed", "device")}

# %% [markdown]
# The loaded model gives the same embeddings, to the last bit:

# %%
loaded = SEAL.from_pretrained(RUN)
tuned_few = embed_patches(model.encoder, few)
reload_difference = embed_patches(loaded.encoder, few) - tuned_few
reload = float(np.abs(reload_difference).max())
moved = float(np.abs(tuned_few - embed_patches(frozen, few)).mean())
print(f"largest difference after loading: {reload}")
print(f"mean change of an embedding's dimensions by training: {moved:.3f}")

# %% [markdown]
# ## Nearest patches
#
# Take one held-out patch and find its nearest neighbours among the section's other patches, by the
# frozen and by the tuned embedding. Neither encoder was trained on this section.

# %%
#| alt: Two rows of six held-out patches: a query and its five nearest by the frozen embedding, and
#| the same by the tuned one, with their cosines.
rows, titles = [], []
query = len(test.patches) // 2
for name, net in (("frozen", frozen), ("tuned", model.encoder)):
    embedding = embed_patches(net, test.patches)
    standardised = (embedding - embedding.mean(0)) / embedding.std(0)
    unit = standardised / np.linalg.norm(standardised, axis=1, keepdims=True)
    cosine = unit @ unit[query]
    cosine[query] = np.inf  # the query itself comes first
    nearest = np.argsort(-cosine)[:6]
    rows += list(nearest)
    titles += [f"{name}: query"] + [
        f"cosine {cosine[i]:.2f}" for i in nearest[1:]
    ]
plots.patches(test.patches[rows], titles, patch_um=config.patch_um)

# %% [markdown]
# Six patches prove nothing about an encoder. Use such a figure to check that nothing is broken.
#
# ## Result

# %% tags=["hide-input"]
control, control_history = finetuned(here, shuffle_pairs=True)


def mean_cosines(model: SEAL) -> tuple[float, float]:
    """The mean held-out cosine with the own profile, and with others."""
    image, gene = embed_held_out(model)
    cosine = image @ gene.T
    return float(cosine[own].mean()), float(cosine[~own].mean())


own_tuned, others_tuned = mean_cosines(model)
own_control, others_control = mean_cosines(control)
gap, control_gap = own_tuned - others_tuned, own_control - others_control
nearer = "nearer to" if gap > 0 else "no nearer to"
than_control = "more than" if gap > control_gap else "no more than"
result_box(
    f"On the held-out section {test.name} ({len(z)} spots), images lie {nearer} "
    f"their own profiles than other profiles: mean cosine {own_tuned:+.2f} "
    f"against {others_tuned:+.2f}.",
    f"The difference of {gap:+.2f} is {than_control} that after training on "
    f"shuffled pairs ({control_gap:+.2f}).",
    f"{trainable:,} of the encoder's {total:,} parameters were trained "
    f"({trainable / total:.1%}). The count includes layers behind the feature "
    "layer, where there are any.",
    "This is one held-out section and one seed: a description without an "
    "interval.",
)

# %% [markdown]
# {% set many = load("phantom") %}{% set row = select(many.delta, of="tuned", minus="shuffled",
# probe="tuned_ridge", target="pearson_residuals")[0] %}{% set real = select(load("her2st").delta,
# of="tuned", minus="shuffled", probe="tuned_ridge", target="pearson_residuals")[0] %}The evidence
# comes from many held-out units. In mean *r* of expression predicted by probe B, finetuned minus
# shuffled pairs is {{ interval(row) }} over held-out phantom patients, {{ verdict(row) }}, and {{
# interval(real) }} over held-out sections of one real tumour, {{ verdict(real) }}
# ([results](../results.md)).
#
# ## What to remember
#
# - The base matrices never change. LoRA starts at zero and trains two thin matrices beside each.
# - The frozen blocks are computed once per view. The losses are the same.
# - A run folder states its data and settings, and loads to the same embeddings.
# - A falling training loss is no evidence of learning expression. Held-out patients and the
#   control are.

# %% [markdown]
# ## Exercises
#
# **1.** The run's contrast is that of batches of the configured size. What is the same model's
# contrast on the held-out section with batches of 4, 16 and 64? Which value would you compare
# between two papers?

# %% tags=["hide-cell", "solution"]
image, gene = (torch.from_numpy(s) for s in shared_space[config.epochs])
order = torch.randperm(len(image), generator=torch.Generator().manual_seed(0))
for size in (4, 16, 64):
    parts = [part for part in order.split(size) if len(part) == size]
    contrasts = [
        clip_loss(image[part], gene[part], temperature=config.temperature)
        for part in parts
    ]
    mean = torch.stack(contrasts).mean().item()
    print(
        f"{size:3} pairs a batch: {mean:.2f}, uniform guess {np.log(size):.2f}"
    )
# The same embeddings have a higher loss in a larger batch, because it holds more profiles to
# confuse. So contrasts compare at one batch size only. A rank in a gallery of stated size is
# clearer.

# %% [markdown]
# **2.** The control was trained on shuffled pairs: within each section, every patch got the genes
# of a random spot. Which of the three losses fall nevertheless, and what do the held-out pairs'
# cosines look like?

# %% tags=["hide-cell", "solution"]
gaps = {"true": gap, "shuffled": control_gap}
for name, lines in (("true", history), ("shuffled", control_history)):
    terms = ", ".join(
        f"{term} {lines[0][term]:.2f} to {lines[-1][term]:.2f}"
        for term in ("clip", "gene", "image")
    )
    print(
        f"{name} pairs: {terms}; own minus others, held out {gaps[name]:+.2f}"
    )
# Each patch keeps one wrong profile through all views and epochs. So the contrast teaches the
# encoder to tell patches apart, and its loss falls; a few hundred wrong pairs can also be
# memorised. Only the held-out cosines show whether the pairs taught how images and genes belong
# together.

# %% [markdown]
# **3.** When does the cache pay? Compare how often a patch runs through the frozen blocks, with
# the cache and without. Then compute the cache's size, for this run and for the 700,000 pairs of
# SEAL.

# %% tags=["hide-cell", "solution"]
print(f"runs a patch, with the cache: {config.n_views}")
print(f"runs a patch, without it: {config.epochs}")
hidden, _ = next(pairs.epoch(0))
bytes_a_view = 4 * hidden[0].numel()  # in float32
for name, n in (("this run", len(pairs)), ("SEAL", 700_000)):
    print(f"{name}: {bytes_a_view * config.n_views * n / 1e9:,.1f} GB")
# It pays where there are more epochs than views, whatever the network, and as long as it fits the
# disk. Many pairs need few epochs; then the plain loop is both smaller and faster.

# %% [markdown]
# ## Further reading
#
# - {cite:p}`hemker2026seal` run the same loop on hundreds of thousands of pairs with large
#   encoders.
# - {cite:p}`zhai2022lit` measure how much of a contrastive model should be tuned, and how much
#   frozen.
# - {cite:p}`liang2022gap` explain why images and their partners stay apart in a shared space.

# %% tags=["key-figures", "remove-cell"]
contrast = [epoch["clip"] for epoch in history if "clip" in epoch]
figures = {
    "lora_modules": len(encoder.adapted),
    "trainable_share": trainable / total,
    "no_op_difference": no_op,
    "loss_gap": loss_gap,
    "loop_gap": loop_gap,
    "cosines": {
        epoch: [float(c[own].mean()), float(c[~own].mean())]
        for epoch, c in cosines.items()
    },
    "shuffled": [own_control, others_control],
    "pairs_per_s": rate,
    "log_batch": float(np.log(config.batch_size)),
    "clip": [contrast[0], contrast[-1]],
    "reload_difference": reload,
    "moved": moved,
    "torch": torch.__version__,
}
print(json.dumps(figures))
