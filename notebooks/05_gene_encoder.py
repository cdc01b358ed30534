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
# # The gene encoder
#
# **How do a hundred noisy numbers become an embedding that a picture could match, and how much of
# a profile survives in a patient who was never seen?**
#
# Fifteen minutes to read, under a minute to run.
#
# A picture of tissue cannot know that this spot caught two molecules of a gene and its neighbour
# three. It can know the *program*: tumour, stroma, a nest of lymphocytes. The other half of every
# {term}`pair` is therefore not the {term}`profile` itself but an {term}`embedding` of it, made by a
# network that has to say much with few directions.

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
DATASET = (
    "auto"  # the phantom, or on a GPU real tumours; or any folder of sections
)
SMOKE = False  # everything tiny, just to see that it runs
TEST = (
    ""  # the section held out, with all of its patient's; empty: the last one
)
EPOCHS = 40  # of the gene encoder by itself

# %%
import copy
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import ListedColormap
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from scipy.spatial.distance import squareform

from seal_lite import plots
from seal_lite.data.genes import GenePanel
from seal_lite.evaluation.targets import pearson
from seal_lite.model import losses
from seal_lite.model.gene_vae import GeneVAE
from seal_lite.tutorial import begin, charts

here = begin(DATASET, smoke=SMOKE, test=TEST)
ROOT, config, train, test, scored = (
    here.root,
    here.config,
    here.train,
    here.test,
    here.genes,
)
panel = GenePanel.from_config(train, config, include=scored)
x = np.concatenate([panel.transform(s.adata) for s in train])
z = panel.transform(test.adata)
print(
    "training sections:",
    ", ".join(s.name for s in train),
    "| held out:",
    test.name,
)

# %% [markdown]
# ## A hundred genes, a handful of programs
#
# Cells of a kind express their genes together, so the genes of a panel rise and fall in groups.
# Left, the correlation of every gene with every other over the training spots, the genes sorted so
# that those alike stand together; each group of five or more is named after its most typical gene.
# Right, the variance along each principal component, and the same after every gene was shuffled
# over the spots by itself, which leaves nothing but chance. The components above that line are what
# the genes have *in common*.

# %%
#| alt: Left, a square matrix of the genes' correlations, sorted so that groups form blocks on its
#| diagonal, each named after a gene. Right, the share of variance of each principal component, as
#| measured and for shuffled genes.
correlation = np.corrcoef(x.T)
tree = linkage(squareform(1 - correlation, checks=False), "average")
order, group = leaves_list(tree), fcluster(tree, 0.75, "distance")
centred = x - x.mean(0)
_, spread, axes_of_x = np.linalg.svd(centred, full_matrices=False)
rng = np.random.default_rng(0)
shuffled = [rng.permuted(centred, axis=0) for _ in range(5)]
chance = np.mean(
    [np.linalg.svd(part, compute_uv=False) for part in shuffled], 0
)
common = int(
    np.argmin(spread > chance)
)  # the first component that chance would exceed
with plt.rc_context(plots.STYLE):
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.4, 4.2), width_ratios=(1.35, 1)
    )
    shown = left.imshow(
        correlation[np.ix_(order, order)], cmap="PuOr_r", vmin=-1, vmax=1
    )
    ticks = {}
    for members in (np.flatnonzero(group == g) for g in np.unique(group)):
        if len(members) >= 5:
            typical = members[
                correlation[np.ix_(members, members)].mean(0).argmax()
            ]
            ticks[np.isin(order, members).nonzero()[0].mean()] = panel.genes[
                typical
            ]
    left.set_yticks(list(ticks), list(ticks.values()), fontsize=8)
    left.set(xticks=[], title=f"correlation of {len(panel.genes)} genes")
    left.spines[:].set_visible(False)
    plots.colour_bar(figure, shown, left)
    for values, name, colour in (
        (spread, "measured", plots.COLOURS[0]),
        (chance, "shuffled", "gray"),
    ):
        share = (values**2 / (values**2).sum())[:30]
        right.plot(
            np.arange(len(share)) + 1,
            share,
            "o-",
            ms=3,
            color=colour,
            label=name,
        )
    right.set(
        xlabel="principal component",
        ylabel="share of the variance",
        ylim=(0, None),
    )
    right.set_title(f"{common} components above chance")
    right.legend()
plt.close(figure)
figure

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
# Encoder and decoder have two hidden layers each. In training $e$ is *drawn*, so the decoder sees a
# small cloud around each profile rather than a point, which pushes profiles that are alike close
# together. The loss is the squared error of the reconstruction over the $B$ spots of a batch,
#
# $$
# \mathcal{L}_\text{gene} = \frac{1}{BG} \sum_{b,g} (\hat{z}_{bg} - z_{bg})^2 .
# $$
#
# Released SEAL {cite:p}`hemker2026seal` adds a term for the pattern over the batch; with $z$-scored
# genes leaving it out [made no difference](earned). Both, and the KL term that usually belongs to
# such a model and by default carries no weight here, have their place in the [chapter on
# losses](07_losses.ipynb). In `finetune` the gene encoder learns beside the image encoder. By
# itself the loop is ten lines:


# %%
#| alt: The training loss of the gene encoder by epoch.
def fit(latent=config.project, w_kl=0.0):
    """A gene encoder trained on the training spots, and its loss by epoch."""
    torch.manual_seed(0)
    profiles = torch.from_numpy(x)
    size = {"hidden": config.hidden, "dropout": config.head_dropout}
    vae = GeneVAE(len(panel.genes), latent, **size)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=config.lr_heads)
    curve = []
    for epoch in range(EPOCHS):
        vae.train()
        for batch in torch.randperm(len(profiles)).split(config.batch_size)[
            :-1
        ]:
            _, reconstruction, kl = vae(profiles[batch])
            error = losses.mse(reconstruction, profiles[batch])
            optimizer.zero_grad()
            (error + w_kl * kl).backward()
            optimizer.step()
        curve.append({"epoch": epoch, "phase": "genes", "gene": error.item()})
    return vae.eval(), curve


vae, curve = fit()
charts.loss_curves(curve)

# %% [markdown]
# ## Deterministic when it counts
#
# Sampling is for training. Outside it the embedding is the mean $\mu(z)$, so the same profile
# always has the same embedding: without that, neither retrieval nor a test could be repeated.

# %%
held_out = torch.from_numpy(z)
with torch.inference_mode():
    embedding, reconstruction, _ = vae(held_out)
    again, _, _ = vae(held_out)
    fitted = vae(torch.from_numpy(x))[1]
repeat_difference = (embedding - again).abs().max().item()
print(f"two passes differ by {repeat_difference}")

# %% [markdown]
# ## The map of profiles
#
# What does the embedding keep together? Left, the held-out patient's profiles, embedded and laid
# flat along the two principal axes of the embedding. Right, the spots where they were measured, in
# the same colours: on the phantom those of the tissue's regions, which the encoder was never told.

# %%
#| alt: Left, a scatter plot of the held-out spots' embeddings, coloured by region. Right, the
#| section's spots in the same colours.
truth = here.truth
if truth is not None:
    kind = truth.regions(test)
else:
    level = z[test.rows, 0]
    kind = np.array(
        [f"{word} {panel.genes[0]}" for word in ("low", "middle", "high")]
    )
    kind = kind[np.digitize(level, np.quantile(level, [1 / 3, 2 / 3]))]
regions, number = np.unique(kind, return_inverse=True)
common_first = np.argsort(-np.bincount(number))
flat = embedding.numpy()[test.rows]
flat = flat - flat.mean(0)
flat = flat @ np.linalg.svd(flat, full_matrices=False)[2][:2].T
with plt.rc_context(plots.STYLE):
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 4.2))
    for name, colour in zip(regions[common_first], plots.COLOURS, strict=False):
        left.plot(
            *flat[kind == name].T,
            "o",
            ms=5,
            mew=0,
            alpha=0.8,
            color=colour,
            label=name,
        )
    left.set(xticks=[], yticks=[], title=f"{config.project} numbers, laid flat")
    cmap = ListedColormap(plots.COLOURS[: len(regions)])
    limits = (-0.5, len(regions) - 0.5)
    plots.discs(
        right,
        test,
        np.argsort(common_first)[number],
        cmap=cmap,
        limits=limits,
        title=test.name,
    )
    figure.legend(loc="outside lower center", ncols=min(6, len(regions)))
plt.close(figure)
figure

# %% [markdown]
# ## Does it carry over to a patient it has never seen?
#
# The held-out section's profiles, embedded and decoded again. Each panel shows standard deviations;
# errors in orange are too high, in purple too low.

# %%
#| alt: A row for each of three genes: the tissue, the gene as measured, as reconstructed, and the
#| error.
classes = dict.fromkeys(scored, "scored") if truth is None else truth.classes
three = [g for g in ("ERBB2", "COL1A1", "CD3E") if g in panel.genes][
    :3
] or list(scored[:3])
at = [panel.genes.index(g) for g in three]
charts.prediction_maps(
    test,
    z[test.rows][:, at],
    reconstruction.numpy()[test.rows][:, at],
    genes=three,
)

# %%
#| alt: A row for every class of genes, two series of dots, one dot per gene: its correlation
#| between profile and reconstruction on the training sections and on the held-out one. Bars mark
#| the means.
r = {"training sections": pearson(fitted.numpy(), x)}
r["held-out section"] = pearson(reconstruction.numpy(), z)
kinds = list(dict.fromkeys(classes.values()))
groups = {
    kind: {
        name: values[
            [panel.genes.index(g) for g in scored if classes[g] == kind]
        ]
        for name, values in r.items()
    }
    for kind in kinds
}
other = [i for i, g in enumerate(panel.genes) if g not in classes]
groups["all others"] = {name: values[other] for name, values in r.items()}
charts.strips(groups, label="r between profile and reconstruction, per gene")

# %% [markdown]
# The scored genes move together in programs, and a program survives the way through the embedding
# in a new patient. The others mostly carry counting noise of their own. Noise of the training spots
# can be learned by heart, noise of a new section cannot be foreseen, and the gap between the two
# colours shows it.
#
# ## How much should it keep?
#
# An embedding as wide as the panel could keep everything, noise included. Is that good? The phantom
# knows the expectation without noise, so we can ask how near a reconstruction comes to *that*.
# Beside the gene encoder stands the plainest rival: $k$ principal components of the training
# profiles, and back.

# %%
#| alt: Curves of the correlation of reconstructions from k principal components with the held-out
#| profiles and, on the phantom, with the truth, against k on a logarithmic axis, with horizontal
#| lines for the gene encoder and for the profile as measured.
at = [panel.genes.index(g) for g in scored]
expected = (
    None if truth is None else np.log1p(1e4 * truth.expected(test, scored))
)


def held_up(made):
    """Mean r of a reconstruction (n, genes) with the profile and, where it is known, the truth."""
    found = {"profile": pearson(made[:, at], z[:, at]).mean()}
    if expected is not None:
        found["truth"] = pearson(made[test.rows][:, at], expected).mean()
    return {name: float(value) for name, value in found.items()}


rows = {}
for k in [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= len(axes_of_x)]:
    axes = axes_of_x[:k]
    rows[k] = held_up((z - x.mean(0)) @ axes.T @ axes + x.mean(0))
by_encoder, as_measured = held_up(reconstruction.numpy()), held_up(z)
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(7, 3.8))
    for name, colour in zip(by_encoder, plots.COLOURS, strict=False):
        look = {"color": colour, "label": f"components, r with the {name}"}
        ax.plot(
            list(rows), [row[name] for row in rows.values()], "o-", ms=5, **look
        )
        ax.axhline(
            by_encoder[name],
            color=colour,
            ls="--",
            lw=1.2,
            label=f"gene encoder, {name}",
        )
    if "truth" in as_measured:
        ax.axhline(
            as_measured["truth"],
            color=plots.INK,
            ls=":",
            label="as measured, truth",
        )
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(rows), list(rows))
    ax.set(
        xlabel="number k of components",
        ylabel="mean r, scored genes",
        ylim=(None, 1.02),
    )
    ax.legend(loc="lower right")
plt.close(figure)
figure

# %%
best = max(rows, key=lambda k: rows[k].get("truth", rows[k]["profile"]))
said = {
    "as measured": as_measured,
    f"gene encoder, {config.project} numbers": by_encoder,
    f"components, the best number: {best}": rows[best],
}
pd.DataFrame(said).T.round(3)

# %% [markdown]
# The more components, the nearer to the profile. But to the truth, some are nearer than all: what a
# narrow way drops is mostly noise, and a profile squeezed through it comes out *better* than it was
# measured. On the phantom the rival even wins: from a few hundred spots a network with a million
# numbers learns some of their noise by heart, and a few straight axes cannot.
#
# So the gene encoder is not there because it reconstructs best. It is there because it can be
# trained *together* with the image encoder, and because the contrast then tells it which directions
# an image can see at all. Note that no image has been used so far: how much an embedding holds is
# one question, how much of it can be seen another. Next come the two parts that this takes, [an
# encoder that can learn](06_lora.ipynb) and [the losses](07_losses.ipynb); then all is [trained
# together](08_finetune.ipynb).
#
# ## What to remember
#
# - Genes move in programs: a hundred of them, a handful of directions above chance.
# - What genes have in common survives a new patient; a gene's own counting noise does not.
# - Squeezing can bring a profile nearer to the truth than it was measured.
# - Outside training the gene embedding is the posterior mean, the same every time.

# %% [markdown]
# ## Exercises
#
# **1.** Forget `vae.eval()`. Predict what happens to the embedding of a single spot when it is
# embedded twice, and when it is embedded among other spots than before.

# %% tags=["hide-cell", "solution"]
forgot = copy.deepcopy(
    vae
).train()  # a copy: BatchNorm's running means move in training mode
with torch.no_grad():
    first, second = forgot.encode(held_out)[0][0], forgot.encode(held_out)[0][0]
    torch.manual_seed(1)
    among_all = forgot.encode(held_out)[0][0]
    torch.manual_seed(1)
    among_few = forgot.encode(held_out[:8])[0][0]
size = embedding[0].norm()
print(
    f"embedded twice: {(first - second).norm() / size:.1%} of its length apart"
)
print(
    f"among 8 spots instead of {len(z)}: {(among_all - among_few).norm() / size:.0%}"
)
# The draw is the smaller part. BatchNorm in training mode takes mean and spread from the batch, so
# a spot's embedding depends on who else is embedded: on a batch of one kind of tissue it is
# another. Nothing fails, and every result is a little wrong.

# %% [markdown]
# **2.** A usual VAE adds $w_\text{KL} \, \mathrm{KL}(q \,\|\, \mathcal{N}(0, 1))$, which pulls
# every embedding towards the same cloud. Our default weight is 0. What does a little of it do to
# scored genes, other genes and the truth, and what does much of it?

# %% tags=["hide-cell", "solution"]


def judged(vae):
    with torch.inference_mode():
        made = vae(held_out)[1].numpy()
    noise = pearson(made[:, other], z[:, other]).mean() if other else np.nan
    scores = {"other genes": noise} | {
        f"scored, {k}": v for k, v in held_up(made).items()
    }
    return ", ".join(f"{k} {v:.2f}" for k, v in scores.items())


for w_kl in (0.001, 0.01, 0.1):
    print(f"weight {w_kl}: r of {judged(fit(w_kl=w_kl)[0])}")
# A little acts as a narrower way: other genes, which are noise, are given up first. Too much, and
# the embedding is the same cloud for every spot: nothing survives (posterior collapse).

# %% [markdown]
# **3.** And a narrow gene encoder? Predict the r with the truth for 2, 8 and 32 numbers, from the
# components above, then train them.

# %% tags=["hide-cell", "solution"]
for latent in (2, 8, 32):
    plain = ", ".join(
        f"{name} {value:.2f}" for name, value in rows[latent].items()
    )
    print(f"{latent} numbers: r of {judged(fit(latent=latent)[0])}")
    print(f"{latent} components: scored, {plain}")
# Both need about as many directions: that number is the tissue's, not the network's. With few of
# them a network may be ahead, as its directions can bend; with more it falls behind.

# %% [markdown]
# ## Further reading
#
# - {cite:p}`kingma2013vae`, where the sampled embedding and the KL term come from.
# - {cite:p}`lopez2018scvi` model the counts themselves, instead of normalised expression.
# - {cite:p}`hemker2026seal` put planar flows {cite:p}`rezende2015flows` behind the Gaussian;
#   `n_flows` does so here.

# %% tags=["key-figures", "remove-cell"]
figures = {
    "panel": len(panel.genes),
    "components_above_chance": common,
    "components": rows,
    "encoder": by_encoder,
    "measured": as_measured,
    "repeat_difference": repeat_difference,
    "loss": [curve[0]["gene"], curve[-1]["gene"]],
    "reconstruction_r": {
        k: {name: float(v.mean()) for name, v in g.items()}
        for k, g in groups.items()
    },
}
print(json.dumps(figures))
