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
# # The gene panel and the gene encoder
#
# **Which genes, in which order, on which scale; and how do a few hundred numbers become an
# embedding?**
#
# Ten minutes to read, under a minute to run.
#
# Two sections never list the same genes in the same order, and some genes are missing from one of
# them. Before a network can be fed, somebody must fix a vocabulary. That somebody is the
# `GenePanel`: fitted on *training sections only*, stored with the model, and applied to any other
# section by *name*.

# %% tags=["hide-cell"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("seal_lite") is None:  # in Colab, whose own torch is kept
    home = "seal_lite[offline] @ git+https://github.com/seal-lite/seal-lite"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", home], check=True)

# %% tags=["parameters"]
DATASET = "phantom"  # made here on first use; or the path of a her2st folder
TEST = ""  # the section held out; empty: the last one
EPOCHS = 40  # of the gene encoder by itself

# %%
import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import seal_charts as charts
from seal_lite import Config, InputError, losses
from seal_lite.evaluate import gene_classes, genes_to_score
from seal_lite.formats import patient_of
from seal_lite.genes import GenePanel
from seal_lite.model import GeneVAE
from seal_lite.sections import list_sections, load_sections
from seal_lite.targets import pearson
from tissue_phantom import phantom

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
logging.getLogger("matplotlib").setLevel(logging.WARNING)

ROOT = Path(DATASET)
if DATASET == "phantom":
    ROOT = phantom("data/phantom", patients=3, sections_per_patient=1, spots=160, seed=0)
names = list_sections(ROOT)
TEST = TEST or names[-1]
train = load_sections(ROOT, [n for n in names if patient_of(n) != patient_of(TEST)] or names[:-1])
(test,) = load_sections(ROOT, [TEST])
print("training sections:", ", ".join(s.name for s in train), "| held out:", test.name)

# %% [markdown]
# ## Fit on training sections, apply by name
#
# The panel holds the genes we want to score and, beside them, the most variable genes of the
# training sections. Variability is judged on Pearson residuals {cite:p}`lause2021pearson`: on
# log-normalised counts the "most variable" genes of shallow data are often the rarest ones.

# %%
config = Config()
scored = genes_to_score(ROOT, train)
panel = GenePanel.from_config(train, config, include=scored)
print(f"{len(panel.genes)} genes")
pd.DataFrame({"mean": panel.mean, "sd": panel.std}, index=panel.genes).head(8).round(2)

# %% [markdown]
# `transform` smooths, normalises, finds each gene by its name, and puts it on a common scale: $z =
# (y - \bar{y}) / s$, clipped at $\pm 5$. Mean and standard deviation are the section's own, which
# removes the patient's batch effect and needs neither image nor labels. A gene that the section
# lacks is reported and stands at its mean, 0.

# %%
z = panel.transform(test.adata)
z.shape

# %% [markdown]
# The order of the section's columns cannot matter. Shuffle them and compare:

# %%
rng = np.random.default_rng(0)
mixed = test.adata[:, rng.permutation(test.adata.n_vars)].copy()
order_difference = float(np.abs(panel.transform(mixed) - z).max())
print(f"largest difference {order_difference:.1e}")

# %% [markdown]
# And a section of another species, or with other identifiers, is refused rather than filled with
# zeros:

# %%
foreign = test.adata.copy()
foreign.var_names = [f"ENSMUSG{i:011d}" for i in range(foreign.n_vars)]
try:
    panel.transform(foreign)
except InputError as error:
    print(error)

# %% [markdown]
# ## A variational autoencoder
#
# The gene encoder turns $z \in \mathbb{R}^G$ into a distribution over embeddings and back
# {cite:p}`kingma2013vae`:
#
# $$
# q(e \mid z) = \mathcal{N}\big(\mu(z), \operatorname{diag} \sigma^2(z)\big),
# \qquad
# \hat{z} = \operatorname{decoder}(e), \quad e \sim q(e \mid z).
# $$
#
# Its loss is a reconstruction with two halves in SEAL {cite:p}`hemker2026seal`: the squared error
# asks for the right value in every spot, and the correlation term, the diagonal part of Barlow
# Twins {cite:p}`zbontar2021barlow`, asks for the right *pattern* over the $B$ spots of a batch,
# gene by gene, so that a faint gene counts as much as a loud one:
#
# $$
# \mathcal{L}_\text{gene} = \frac{1}{BG} \sum_{b,g} (\hat{z}_{bg} - z_{bg})^2
# + w_\text{corr} \cdot \frac1G \sum_g (1 - c_{gg})^2,
# \qquad c_{gg} = \operatorname{corr}_b(\hat{z}_{bg}, z_{bg}).
# $$
#
# Of the two the first is enough. With $z$-scored genes every gene has the same variance, and
# leaving the second out [made no difference](earned): $w_\text{corr} = 0$ by default. In `finetune`
# the gene encoder learns beside the image encoder. By itself the loop is ten lines:

# %%
torch.manual_seed(0)
x = torch.from_numpy(np.concatenate([panel.transform(s.adata) for s in train]))
vae = GeneVAE(len(panel.genes), config.project, hidden=config.hidden, dropout=config.head_dropout)
optimizer = torch.optim.AdamW(vae.parameters(), lr=config.lr_heads)
curve = []
for epoch in range(EPOCHS):
    vae.train()
    for batch in torch.randperm(len(x)).split(config.batch_size)[:-1]:
        _, reconstruction, _ = vae(x[batch])
        loss = losses.gene_loss(reconstruction, x[batch], w_mse=config.w_mse, w_corr=config.w_corr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    curve.append({"epoch": epoch, "phase": "genes", "gene": loss.item()})
charts.loss_curves(curve)

# %% [markdown]
# ## Deterministic when it counts
#
# Sampling is for training. Outside it the embedding is the mean $\mu(z)$, so the same profile
# always has the same embedding: without that, neither retrieval nor a test could be repeated.

# %%
vae.eval()
held_out = torch.from_numpy(z)
with torch.inference_mode():
    embedding, reconstruction, _ = vae(held_out)
    again, _, _ = vae(held_out)
    fitted = vae(x)[1]
repeat_difference = (embedding - again).abs().max().item()
print(f"two passes differ by {repeat_difference}")

# %% [markdown]
# ## Does it carry over to a patient it has never seen?
#
# Reconstruction on the held-out section, through a bottleneck of 128 numbers. Each panel shows
# standard deviations; errors in orange are too high, in purple too low.

# %%
classes = gene_classes(ROOT) or dict.fromkeys(scored, "scored")
three = [g for g in ("ERBB2", "COL1A1", "CD3E") if g in panel.genes][:3] or list(scored[:3])
at = [panel.genes.index(g) for g in three]
charts.prediction_maps(test, z[test.rows][:, at], reconstruction.numpy()[test.rows][:, at], three)

# %%
r = {"training sections": pearson(fitted.numpy(), x.numpy())}
r["held-out section"] = pearson(reconstruction.numpy(), z)
kinds = list(dict.fromkeys(classes.values()))
groups = {
    kind: {
        name: values[[panel.genes.index(g) for g in scored if classes[g] == kind]]
        for name, values in r.items()
    }
    for kind in kinds
}
other = [i for i, g in enumerate(panel.genes) if g not in classes]
groups["all others"] = {name: values[other] for name, values in r.items()}
charts.strips(groups, label="r between profile and reconstruction, per gene")

# %% [markdown]
# The scored genes move together in programs, and a program survives the bottleneck in a new
# patient. The others mostly carry counting noise of their own; noise of the training spots can be
# learned by heart, noise of a new section cannot be foreseen, and the gap between the two colours
# shows it. This is no failure of the encoder: an embedding that forgets noise is the one we want
# images to match.
#
# Note what has *not* been used so far: the image. A reconstruction from genes to genes tells how
# much an embedding holds, not how much of it can be seen. That is the [next
# chapter](04_finetune.ipynb).
#
# ## What to remember
#
# - The panel is fitted on training sections, stored with its names, and matched by name.
# - Missing genes are reported; too many are an error.
# - Outside training the gene embedding is the posterior mean, the same every time.
# - Programs shared by patients reconstruct on a new patient; noise does not.

# %% tags=["key-figures", "remove-cell"]
figures = {
    "panel": len(panel.genes),
    "order_difference": order_difference,
    "repeat_difference": repeat_difference,
    "loss": [curve[0]["gene"], curve[-1]["gene"]],
    "reconstruction_r": {
        k: {name: float(v.mean()) for name, v in g.items()} for k, g in groups.items()
    },
}
print(json.dumps(figures))
