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
# # The gene encoder
#
# **How do a hundred noisy numbers become an embedding that a picture could match, and how much of
# a profile survives in a patient who was never seen?**
#
# Ten minutes to read, under a minute to run.
#
# A picture of tissue cannot know that this spot caught two molecules of a gene and its neighbour
# three. It can know the *program*: tumour, stroma, a nest of lymphocytes. So the other half of every
# pair goes through a bottleneck, which keeps programs and has no room for luck.

# %% tags=["hide-cell"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("seal_lite") is None:  # in Colab, whose own torch is kept
    home = "seal_lite[offline] @ git+https://github.com/seal-lite/seal-lite"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", home], check=True)

# %% tags=["parameters"]
DATASET = "auto"  # the phantom, or on a GPU real tumours; or any folder of sections
SMOKE = False  # everything tiny, just to see that it runs
TEST = ""  # the section held out, with all of its patient's; empty: the last one
EPOCHS = 40  # of the gene encoder by itself

# %%
import json

import numpy as np
import torch

from seal_book import begin, charts
from seal_lite import losses
from seal_lite.evaluate import gene_classes
from seal_lite.genes import GenePanel
from seal_lite.model import GeneVAE
from seal_lite.targets import pearson

here = begin(DATASET, smoke=SMOKE, test=TEST)
ROOT, config, train, test, scored = here.root, here.config, here.train, here.test, here.genes
panel = GenePanel.from_config(train, config, include=scored)
z = panel.transform(test.adata)
print("training sections:", ", ".join(s.name for s in train), "| held out:", test.name)

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
# chapter](08_finetune.ipynb).
#
# ## What to remember
#
# - A bottleneck keeps what genes have in common and drops what is luck.
# - Outside training the gene embedding is the posterior mean, the same every time.
# - Programs shared by patients reconstruct on a new patient; noise does not.

# %% tags=["key-figures", "remove-cell"]
figures = {
    "panel": len(panel.genes),
    "repeat_difference": repeat_difference,
    "loss": [curve[0]["gene"], curve[-1]["gene"]],
    "reconstruction_r": {
        k: {name: float(v.mean()) for name, v in g.items()} for k, g in groups.items()
    },
}
print(json.dumps(figures))
