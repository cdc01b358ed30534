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
# # Finetune
#
# **How is an encoder that knows cats and cars taught what tissue expresses, on two processor cores,
# in about a minute?**
#
# Fifteen minutes to read, one or two to run.
#
# The idea of SEAL {cite:p}`hemker2026seal`: leave the vision encoder as it is, add a few trainable
# numbers to its last blocks, and train them so that a patch and the genes measured under it end up
# close together, while both can still be turned back into expression. The [method
# page](../method.md) has the whole picture; here it runs.

# %% tags=["hide-cell"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("seal_lite") is None:  # in Colab, whose own torch is kept
    home = "seal_lite[offline] @ git+https://github.com/seal-lite/seal-lite"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", home], check=True)

# %% tags=["parameters"]
DATASET = "phantom"  # made here on first use; or the path of a her2st folder
TEST = ""  # the section held out, with all of its patient's; empty: the last one
EPOCHS = 12
N_VIEWS = 4
SEED = 0

# %%
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import seal_charts as charts
from seal_lite import Config, plots
from seal_lite.encoders import build_encoder, embed
from seal_lite.evaluate import genes_to_score
from seal_lite.formats import patient_of
from seal_lite.genes import GenePanel
from seal_lite.model import SEAL
from seal_lite.sections import list_sections, load_sections
from seal_lite.train import Pairs, code_hash, finetune
from tissue_phantom import phantom

ROOT = Path(DATASET)
if DATASET == "phantom":
    ROOT = phantom("data/phantom", patients=3, sections_per_patient=1, spots=160, seed=0)
names = list_sections(ROOT)
TEST = TEST or names[-1]
train = load_sections(ROOT, [n for n in names if patient_of(n) != patient_of(TEST)] or names[:-1])
(test,) = load_sections(ROOT, [TEST])
print("training sections:", ", ".join(s.name for s in train), "| held out:", test.name)

# %% [markdown]
# ## An encoder is one row of a table
#
# The row says where the weights come from, which layers LoRA may adapt, and where the embedding is
# read: the *tap*. The default is a small EfficientNet {cite:p}`tan2019efficientnet` with ImageNet
# weights that come as a package, so nothing is fetched. Its fifth stage, averaged over the patch,
# tells more about tissue than its last layer, whose 1280 numbers were made for naming photographs.
# As it comes, an even earlier stage tells more still, about colour and texture. That is no reason
# to read it there: finetuning changes what the later one sees. But it is a rival that a gain has to
# beat, and so it stands among the [recorded results](../results.md).

# %%
config = Config(epochs=EPOCHS, n_views=N_VIEWS, seed=SEED)
adapter = {"rank": config.lora_rank, "alpha": config.lora_alpha, "dropout": config.lora_dropout}
encoder = build_encoder(config.backbone, tune_blocks=config.tune_blocks, seed=SEED, **adapter)
row = encoder.row
print(f"{row.arch}: {row.dim} numbers, read as the {row.embedding} of {encoder.tap}")
print("frozen prefix:", ", ".join(encoder.prefix_stages))
print("tuned tail:   ", ", ".join(encoder.tail_stages))

# %% [markdown]
# ## LoRA: a small change that starts at nothing
#
# A weight matrix $W$ stays as it is; beside it we train two thin ones {cite:p}`hu2021lora`,
#
# $$
# W' = W + \frac{\alpha}{r} B A, \qquad A \in \mathbb{R}^{r \times d_\text{in}}, \;
# B \in \mathbb{R}^{d_\text{out} \times r}, \; B = 0 \text{ at the start}.
# $$
#
# These are the layers it was put into, the $1 \times 1$ convolutions of the last three blocks
# before the tap. Their depthwise filters and normalisation are no matrices, and are tuned whole:

# %%
trainable = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
total = sum(p.numel() for p in encoder.parameters())
print(*encoder.adapted, sep="\n")
print(f"{len(encoder.adapted)} modules, {trainable:,} of {total:,} numbers are trained")

# %% [markdown]
# Because $B = 0$, and what is tuned whole starts as a copy, the adapted encoder is at first exactly
# the frozen one:

# %%
frozen = build_encoder(config.backbone, tune_blocks=0)
few = test.patches[:16]
no_op = float(np.abs(embed(encoder, few) - embed(frozen, few)).max())
print(f"largest difference of the embeddings before training: {no_op}")

# %% [markdown]
# ## The loss
#
# For a batch of $B$ pairs let $u_i$ be the projected image embedding and $v_j$ the gene embedding,
# both of length one. The contrast {cite:p}`radford2021clip` asks every image to find its own genes
# among those of the batch, and the other way round:
#
# $$
# \mathcal{L}_\text{clip} = -\frac{1}{2B} \sum_i \left[
# \log \frac{e^{u_i \cdot v_i / \tau}}{\sum_j e^{u_i \cdot v_j / \tau}}
# + \log \frac{e^{u_i \cdot v_i / \tau}}{\sum_j e^{u_j \cdot v_i / \tau}} \right],
# \qquad \tau = 0.1 .
# $$
#
# By guessing it would be $\log B$. Two reconstructions of expression, from the gene embedding and
# from the image embedding, keep both honest; each is the [reconstruction of the last
# chapter](03_panel_and_gene_encoder.ipynb):
#
# $$
# \mathcal{L} = \tfrac12\, \mathcal{L}_\text{clip} + \mathcal{L}_{\text{gene} \to \text{gene}}
# + \mathcal{L}_{\text{image} \to \text{gene}} .
# $$

# %% [markdown]
# ## Why these settings?
#
# Each setting below was changed, alone, and everything measured again on real tissue: the encoder
# finetuned on every pair of four sections, probe B on the other two, Pearson residuals. What is
# changed is the full recipe: the default, and three parts of SEAL that it does without because they
# gain nothing. An interval around zero means that the setting does not matter there. (In Colab the
# table stays empty; it stands on the book's [page of recorded results](../results.md) too.)
#
# ```{include} ../defaults.md
# ```

# %% [markdown]
# ## Compute what cannot change only once
#
# Only the last blocks adapt. Everything before them is a fixed function of the pixels of a view, so
# we compute it once per view and keep it. That must not change the training, only its speed. Both
# loops, step by step in turn, on the same views:

# %%
two_views = Config(n_views=2, seed=SEED)
panel = GenePanel.from_config(train, two_views)
timed = SEAL.build(panel, two_views)
loops = {}
for name, cached in (("plain", False), ("cached", True)):
    started = time.perf_counter()
    loops[name] = Pairs(train, panel, two_views, timed.encoder, cached=cached).epoch(0)
    print(f"{name:6} loop made ready in {time.perf_counter() - started:4.0f} s, once")
seconds, losses = {name: [] for name in loops}, {name: [] for name in loops}
for step in range(4):
    for name, batches in loops.items():
        started = time.perf_counter()
        torch.manual_seed(step)  # the same dropout in both
        timed.train()
        loss = timed(*next(batches))["loss"]
        timed.zero_grad()
        loss.backward()
        seconds[name].append(time.perf_counter() - started)
        losses[name].append(loss.item())
# The first step warms up and is not counted.
rate = {name: two_views.batch_size / np.mean(s[1:]) for name, s in seconds.items()}
loss_gap = float(np.abs(np.subtract(losses["plain"], losses["cached"])).max())
for name in rate:
    print(f"{name:6} loop: {rate[name]:6.1f} pairs/s")
print(f"largest difference of the two losses: {loss_gap:.1e}")

# %% [markdown]
# ## Train
#
# All sections of the held-out patient stay out, including the fitting of the gene panel. Called
# again with the same arguments, `finetune` returns the finished run; interrupted, it resumes to the
# same result. The folder's name ends in a hash of the code, so a run of older code is never taken
# for a new one.

# %%
setting = f"{ROOT.name}-without-{patient_of(TEST)}-{EPOCHS}x{N_VIEWS}-seed{SEED}-{code_hash()[:6]}"
RUN = Path("runs") / setting / "tuned"
genes = genes_to_score(ROOT, train)
model, history = finetune(train, config, out=RUN, include=genes, cache_dir="runs/cache")
charts.loss_curves(history)

# %% [markdown]
# Every epoch left a line in the run's log:

# %%
log = pd.DataFrame(history).set_index("epoch")
log[["clip", "gene", "image", "loss", "lr_lora", "pairs_per_s"]].round(4).iloc[::2]

# %% [markdown]
# A falling loss says that the training pairs were learned. It does not say that anything carries
# over to another patient; a network can learn 300 pairs by heart. The [next
# chapter](05_gene_prediction.ipynb) measures that.
#
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
{k: v for k, v in provenance.items() if k in ("sections", "seed", "data_sha256", "device")}

# %% [markdown]
# Loading it gives the same embeddings, to the last bit:

# %%
loaded = SEAL.from_pretrained(RUN)
reload = float(np.abs(embed(loaded.encoder, few) - embed(model.encoder, few)).max())
moved = float(np.abs(embed(model.encoder, few) - embed(frozen, few)).mean())
print(f"largest difference after loading: {reload}")
print(f"mean change of an embedding's numbers by training: {moved:.3f}")

# %% [markdown]
# ## What does the encoder look at now?
#
# Take a patch of the held-out patient and ask for its nearest neighbours among the section's other
# patches, by the frozen embedding and by the tuned one. Neither has seen this patient.

# %%
rows, titles = [], []
for name, net in (("frozen", frozen), ("tuned", model.encoder)):
    e = embed(net, test.patches)
    e = (e - e.mean(0)) / e.std(0)
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    query = len(e) // 2
    near = np.argsort(-(e @ e[query]))[:6]
    rows += list(near)
    titles += [f"{name}: query" if i == query else f"cosine {e[i] @ e[query]:.2f}" for i in near]
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

# %% tags=["key-figures", "remove-cell"]
contrast = [h["clip"] for h in history if "clip" in h]
figures = {
    "lora_modules": len(encoder.adapted),
    "trainable_share": trainable / total,
    "no_op_difference": no_op,
    "loss_gap": loss_gap,
    "pairs_per_s": rate,
    "log_batch": float(np.log(config.batch_size)),
    "clip": [contrast[0], contrast[-1]],
    "reload_difference": reload,
    "moved": moved,
    "torch": torch.__version__,
}
print(json.dumps(figures))
