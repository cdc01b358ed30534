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
# **How does a profile of a hundred noisy genes become an embedding that an image can match, and
# how much of it survives in a new patient?**
#
# A variational autoencoder compresses the profile to an embedding. On one held-out section of the
# phantom it is worse than the baseline: a few principal components reconstruct the profiles better
# and keep their neighbours better. But they cannot be trained together with the image encoder. The
# Result box has both scores, without an interval.
#
# Fifteen minutes to read, under a minute to run.
#
# An image of tissue cannot show that this spot caught two molecules of a gene and its neighbour
# three. It can show the *program*: tumour, stroma, a nest of lymphocytes. So the second half of
# every {term}`pair` is not the {term}`profile` itself but an {term}`embedding` of it, from a
# network that must describe the profile by few directions.

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
# "auto": the phantom, or on a GPU real tumours; or any folder of sections
DATASET = "auto"
# Everything tiny, just to see that it runs
SMOKE = False
# The section held out, with all of its patient's; empty: the last one
TEST = ""
# Of the gene encoder by itself
EPOCHS = 40

# %% tags=["hide-input"]
import copy
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import ListedColormap
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from scipy.spatial.distance import squareform
from sklearn.neighbors import NearestNeighbors

from seal_lite import plots
from seal_lite.data.genes import GenePanel
from seal_lite.evaluation.targets import pearson
from seal_lite.model import losses
from seal_lite.model.gene_vae import GeneVAE
from seal_lite.tutorial import begin, charts, result_box

here = begin(DATASET, smoke=SMOKE, test=TEST)
config, train, test, scored = here.config, here.train, here.test, here.genes
truth = here.truth
panel = GenePanel.from_config(train, config, include=scored)
x = np.concatenate([panel.transform(section.adata) for section in train])
z = panel.transform(test.adata)
print("training sections:", ", ".join(section.name for section in train))
print("held out:", test.name)

# %% [markdown]
# ## Genes vary together in programs
#
# Cells of one kind express their genes together, so the genes of a panel rise and fall in groups.
# On the left is the correlation of every gene with every other over the training spots, with
# similar genes sorted side by side. Each group of five or more is named after its most typical
# gene. On the right is the variance along each principal component. The grey line shows the same
# after each gene was shuffled over the spots by itself, which leaves chance alone. The components
# above it are what the genes have *in common*.

# %% tags=["hide-input"]
#| alt: Left, a square matrix of the genes' correlations, sorted so that groups form blocks on its
#| diagonal, each named after a gene. Right, the share of variance of each principal component, as
#| measured and for shuffled genes.
correlation = np.corrcoef(x.T)
tree = linkage(squareform(1 - correlation, checks=False), "average")
order, group = leaves_list(tree), fcluster(tree, 0.75, "distance")
centred = x - x.mean(0)
_, singular, components = np.linalg.svd(centred, full_matrices=False)
rng = np.random.default_rng(0)
shuffled = [rng.permuted(centred, axis=0) for _ in range(5)]
chance = np.mean(
    [np.linalg.svd(part, compute_uv=False) for part in shuffled], 0
)
# The first component that chance would exceed
n_common = int(np.argmin(singular > chance))
typical_genes = {}
for members in (np.flatnonzero(group == g) for g in np.unique(group)):
    if len(members) >= 5:
        within = correlation[np.ix_(members, members)].mean(0)
        middle = np.flatnonzero(np.isin(order, members)).mean()
        typical_genes[middle] = panel.genes[members[within.argmax()]]
with plt.rc_context(plots.STYLE):
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.4, 4.2), width_ratios=(1.35, 1)
    )
    ordered = correlation[np.ix_(order, order)]
    shown = left.imshow(ordered, cmap="PuOr_r", vmin=-1, vmax=1)
    left.set_yticks(
        list(typical_genes), list(typical_genes.values()), fontsize=8
    )
    left.set(xticks=[], title=f"correlation of {len(panel.genes)} genes")
    left.spines[:].set_visible(False)
    plots.colour_bar(figure, shown, left)
    for values, name, colour in (
        (singular, "measured", plots.COLOURS[0]),
        (chance, "shuffled", "gray"),
    ):
        share = (values**2 / (values**2).sum())[:30]
        at_component = np.arange(len(share)) + 1
        right.plot(at_component, share, "o-", ms=3, color=colour, label=name)
    right.set(
        xlabel="principal component",
        ylabel="share of the variance",
        ylim=(0, None),
    )
    right.set_title(f"{n_common} components above chance")
    right.legend()
plt.close(figure)
figure

# %% [markdown]
# ## A variational autoencoder
#
# The gene encoder maps $z \in \mathbb{R}^G$ to a distribution over embeddings, and a decoder maps
# back {cite:p}`kingma2013vae`:
#
# $$
# q(e \mid z) = \mathcal{N}\big(\mu(z), \operatorname{diag} \sigma^2(z)\big),
# \qquad
# \hat{z} = \operatorname{decoder}(e), \quad e \sim q(e \mid z).
# $$
#
# Encoder and decoder have two hidden layers each. In training $e$ is *drawn*, so the decoder sees
# a small cloud around each profile rather than a point, which moves similar profiles close
# together. The loss is the squared error of the reconstruction over the $B$ spots of a batch,
#
# $$
# \mathcal{L}_\text{gene} = \frac{1}{BG} \sum_{b,g} (\hat{z}_{bg} - z_{bg})^2 .
# $$
#
# Released SEAL {cite:p}`hemker2026seal` adds a term for the pattern over the batch; the trials
# measure [what it is worth](earned). The [chapter on losses](07_losses.ipynb) explains that term,
# and the KL term of a usual variational autoencoder, which has weight 0 here. In `finetune` the
# gene encoder trains beside the image encoder. By itself the loop has ten lines:


# %%
#| alt: The training loss of the gene encoder by epoch.
def fit(latent: int = config.project, w_kl: float = 0.0):
    """A gene encoder trained on the training spots, and its loss by epoch."""
    torch.manual_seed(0)
    profiles = torch.from_numpy(x)
    size = {"hidden": config.hidden, "dropout": config.head_dropout}
    vae = GeneVAE(len(panel.genes), latent, **size)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=config.lr_heads)
    curve = []
    for epoch in range(EPOCHS):
        vae.train()
        batches = torch.randperm(len(profiles)).split(config.batch_size)
        for batch in batches[:-1]:
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
# ## Deterministic outside training
#
# The embedding is drawn in training only. Outside it, the embedding is the mean $\mu(z)$, so the
# same profile always has the same embedding. Retrieval and tests need that to be reproducible.

# %%
held_out = torch.from_numpy(z)
with torch.inference_mode():
    embedding, reconstruction, _ = vae(held_out)
    repeated, _, _ = vae(held_out)
    fitted = vae(torch.from_numpy(x))[1]
repeat_difference = (embedding - repeated).abs().max().item()
print(f"two passes differ by {repeat_difference}")

# %% [markdown]
# ## The map of profiles
#
# On the left are the held-out section's profiles, embedded and projected to the two principal axes
# of the embedding. On the right are their spots on the tissue, in the same colours. On the phantom
# a colour is a region of the tissue, which the encoder was not trained on; on real data it is the
# level of one gene.

# %% tags=["hide-input"]
#| alt: Left, a scatter plot of the held-out spots' embeddings, coloured by region. Right, the
#| section's spots in the same colours.
if truth is not None:
    kind = truth.regions(test)
else:
    level = z[test.rows, 0]
    levels = [f"{word} {panel.genes[0]}" for word in ("low", "middle", "high")]
    thirds = np.quantile(level, [1 / 3, 2 / 3])
    kind = np.array(levels)[np.digitize(level, thirds)]
regions, number = np.unique(kind, return_inverse=True)
colours = charts.label_colours(regions)
flat = embedding.numpy()[test.rows]
flat = flat - flat.mean(0)
flat = flat @ np.linalg.svd(flat, full_matrices=False)[2][:2].T
with plt.rc_context(plots.STYLE):
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 4.2))
    for name, colour in colours.items():
        look = {"ms": 5, "mew": 0, "alpha": 0.8, "color": colour}
        left.plot(*flat[kind == name].T, "o", label=name, **look)
    left.set(xticks=[], yticks=[])
    left.set_title(f"{config.project} dimensions, projected to two")
    plots.discs(
        right,
        test,
        number,
        cmap=ListedColormap(list(colours.values())),
        limits=(-0.5, len(regions) - 0.5),
        title=test.name,
    )
    figure.legend(loc="outside lower center", ncols=min(6, len(regions)))
plt.close(figure)
figure

# %% [markdown]
# ## Reconstruction of a new section
#
# The encoder embeds the held-out section's profiles, and the decoder reconstructs them. Each panel
# shows standard deviations; errors in orange are too high, in purple too low.

# %%
#| alt: A row for each of three genes: the tissue, the gene as measured, as reconstructed, and the
#| error.
three = [g for g in ("ERBB2", "COL1A1", "CD3E") if g in panel.genes]
three = three or list(scored[:3])
columns = [panel.genes.index(gene) for gene in three]
charts.prediction_maps(
    test,
    z[test.rows][:, columns],
    reconstruction.numpy()[test.rows][:, columns],
    genes=three,
)

# %%
#| alt: A row for every class of genes, two series of dots, one dot per gene: its correlation
#| between profile and reconstruction on the training sections and on the held-out one. Bars mark
#| the means.
classes = dict.fromkeys(scored, "scored") if truth is None else truth.classes
r = {
    "training sections": pearson(fitted.numpy(), x),
    "held-out section": pearson(reconstruction.numpy(), z),
}
members = {
    kind: [panel.genes.index(gene) for gene in scored if classes[gene] == kind]
    for kind in dict.fromkeys(classes.values())
}
other = [i for i, gene in enumerate(panel.genes) if gene not in classes]
members["all others"] = other
groups = {
    kind: {name: values[indices] for name, values in r.items()}
    for kind, indices in members.items()
    if indices
}
charts.strips(groups, label="r between profile and reconstruction, per gene")

# %% [markdown]
# The distance between the two colours is what does not carry over to a new section. Genes that
# share a program can be reconstructed from each other. A gene that mostly carries its own counting
# noise cannot: the network can memorise the noise of the training spots, and not that of a new
# section.
#
# ## Is it better than principal components?
#
# An embedding as wide as the panel could keep everything, including the noise. The phantom knows
# the expectation without noise, so we can measure how near a reconstruction comes to *that*. The
# baseline beside the gene encoder is principal component analysis: $k$ components of the training
# profiles, and back.

# %% tags=["hide-input"]
#| alt: Curves of the correlation of reconstructions from k principal components with the held-out
#| profiles and, on the phantom, with the truth, against k on a logarithmic axis, with horizontal
#| lines for the gene encoder and for the profile as measured.
columns = [panel.genes.index(gene) for gene in scored]
expected = None
if truth is not None:
    expected = np.log1p(1e4 * truth.expected(test, scored))


def scores_of(reconstructed: np.ndarray) -> dict[str, float]:
    """Mean r of a reconstruction (n, genes) with the profile and, where known, the truth."""
    means = {
        "profile": pearson(reconstructed[:, columns], z[:, columns]).mean()
    }
    if expected is not None:
        on_patches = reconstructed[test.rows][:, columns]
        means["truth"] = pearson(on_patches, expected).mean()
    return {name: float(value) for name, value in means.items()}


def by_components(k: int) -> np.ndarray:
    """The held-out profiles from their first k principal components, (n, genes)."""
    axes = components[:k]
    return (z - x.mean(0)) @ axes.T @ axes + x.mean(0)


sizes = [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= len(components)]
rows = {k: scores_of(by_components(k)) for k in sizes}
by_encoder, as_measured = scores_of(reconstruction.numpy()), scores_of(z)
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(7, 3.8))
    for name, colour in zip(by_encoder, plots.COLOURS, strict=False):
        curve_of = [row[name] for row in rows.values()]
        label = f"components, r with the {name}"
        ax.plot(sizes, curve_of, "o-", ms=5, color=colour, label=label)
        look = {"color": colour, "ls": "--", "lw": 1.2}
        ax.axhline(by_encoder[name], label=f"gene encoder, {name}", **look)
    if "truth" in as_measured:
        level = as_measured["truth"]
        ax.axhline(level, color=plots.INK, ls=":", label="as measured, truth")
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, sizes)
    ax.set(
        xlabel="number k of components",
        ylabel="mean r, scored genes",
        ylim=(None, 1.02),
    )
    ax.legend(loc="lower right")
plt.close(figure)
figure

# %%
n_best = max(rows, key=lambda k: rows[k].get("truth", rows[k]["profile"]))
table = pd.DataFrame(
    {
        "as measured": as_measured,
        f"gene encoder, {config.project} dimensions": by_encoder,
        f"components, as many as above chance: {n_common}": scores_of(
            by_components(n_common)
        ),
        f"components, the best number: {n_best}": rows[n_best],
    }
)
table.T.round(3)

# %% [markdown]
# More components come nearer to the measured profile, noise included. Nearest to the ground truth
# is an intermediate number where the components that are left out hold mostly noise. The best
# number was chosen on the held-out section. The number above chance was not, so the comparison
# with the gene encoder uses that one.
#
# An embedding also defines neighbours. Here is the share of a spot's ten nearest neighbours that
# are also its neighbours in the reference: the phantom's ground truth, or on real data the
# measured profiles of the scored genes.


# %%
def neighbours_of(points: np.ndarray, k: int = 10) -> np.ndarray:
    """The k nearest other points of every point, (n, k)."""
    return NearestNeighbors(n_neighbors=k).fit(points).kneighbors()[1]


def shared_neighbours(points: np.ndarray, reference: np.ndarray) -> float:
    """Share of the neighbours that are also neighbours in the reference."""
    pairs = zip(neighbours_of(points), neighbours_of(reference), strict=True)
    return float(
        np.mean([np.isin(ours, theirs).mean() for ours, theirs in pairs])
    )


reference = z[test.rows][:, columns]
if expected is not None:
    reference = (expected - expected.mean(0)) / expected.std(0)
projected = (z - x.mean(0)) @ components[:n_common].T
neighbours = {
    "measured profile": shared_neighbours(z[test.rows], reference),
    "gene encoder": shared_neighbours(embedding.numpy()[test.rows], reference),
    f"{n_common} components": shared_neighbours(
        projected[test.rows], reference
    ),
}
pd.Series(neighbours, name="share of neighbours kept").round(3).to_frame()

# %% [markdown]
# The gene encoder is there for another reason than reconstruction. It trains *together* with the
# image encoder, and the contrast then teaches it which directions an image can show. So far no
# image has been used. The [LoRA chapter](06_lora.ipynb) and the [chapter on
# losses](07_losses.ipynb) provide the two missing parts, and [finetuning](08_finetune.ipynb)
# trains everything together.
#
# ## Result

# %% tags=["hide-input"]
measure = "truth" if truth is not None else "profile"
what = "the ground truth" if truth is not None else "the measured profile"
by_pca = scores_of(by_components(n_common))[measure]


def verdict(encoder: float, pca: float) -> str:
    """Say in words how the gene encoder compares with the components."""
    if round(encoder, 2) == round(pca, 2):
        return "no difference"
    return f"the gene encoder is {'better' if encoder > pca else 'worse'}"


in_encoder = neighbours["gene encoder"]
in_pca = neighbours[f"{n_common} components"]
if by_encoder[measure] > by_pca and in_encoder > in_pca:
    consequence = "Here the gene encoder also compresses better than PCA."
else:
    consequence = (
        "So the reason for a gene encoder is not compression: unlike PCA, it "
        "can be trained together with the image encoder."
    )
result_box(
    f"On the held-out section {test.name} ({len(z)} spots, {len(scored)} scored "
    f"genes), the mean r of reconstruction and {what} is "
    f"{by_encoder[measure]:.2f} for the gene encoder and {by_pca:.2f} for "
    f"{n_common} principal components: {verdict(by_encoder[measure], by_pca)}.",
    f"Of ten nearest neighbours the gene encoder keeps {in_encoder:.0%} and the "
    f"components keep {in_pca:.0%}: {verdict(in_encoder, in_pca)}.",
    consequence,
    "This is one held-out section: a description without an interval.",
)

# %% [markdown]
# ## What to remember
#
# - Genes vary together in programs, so a few components hold what they have in common.
# - What genes have in common carries over to a new patient; a gene's own counting noise does not.
# - Principal components are the baseline of a gene encoder, and their number is chosen without the
#   held-out section.
# - Outside training the gene embedding is the posterior mean, the same every time.

# %% [markdown]
# ## Exercises
#
# **1.** Forget `vae.eval()`. What happens to the embedding of a single spot when it is embedded
# twice, and when it is embedded among other spots than before?

# %% tags=["hide-cell", "solution"]
# A copy, because BatchNorm's running means move in training mode
forgot = copy.deepcopy(vae).train()
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
# The draw moves the embedding a little. BatchNorm in training mode takes mean and spread from the
# batch, so a spot's embedding also depends on the other spots of its batch. No error is raised, and
# every result is a little wrong.

# %% [markdown]
# **2.** A usual VAE adds $w_\text{KL} \, \mathrm{KL}(q \,\|\, \mathcal{N}(0, 1))$, which pulls
# every embedding towards the same cloud. Our default weight is 0. What does a small weight do to
# scored genes, other genes and the truth, and what does a large one do?


# %% tags=["hide-cell", "solution"]
def described(vae: GeneVAE) -> str:
    """The reconstruction's mean r in words, for other genes and for the scored ones."""
    with torch.inference_mode():
        reconstructed = vae(held_out)[1].numpy()
    means = {}
    if other:
        means["other genes"] = pearson(
            reconstructed[:, other], z[:, other]
        ).mean()
    for name, value in scores_of(reconstructed).items():
        means[f"scored genes, {name}"] = value
    return ", ".join(f"{name} {value:.2f}" for name, value in means.items())


for w_kl in (0.001, 0.01, 0.1):
    trained, _ = fit(w_kl=w_kl)
    print(f"weight {w_kl}: r of {described(trained)}")
# A small weight acts like a narrower embedding: the genes that are mostly noise are dropped first.
# If the weight is too large, the embedding is the same cloud for every spot, and the reconstruction
# is constant (posterior collapse).

# %% [markdown]
# **3.** Predict the r with the truth for a gene encoder of 2, 8 and 32 dimensions from the
# components above, then train them.

# %% tags=["hide-cell", "solution"]
for latent in (2, 8, 32):
    values = rows[latent].items()
    plain = ", ".join(f"{name} {value:.2f}" for name, value in values)
    trained, _ = fit(latent=latent)
    print(f"{latent} dimensions: r of {described(trained)}")
    print(f"{latent} components: scored genes, {plain}")
# The number of dimensions that is needed is a property of the tissue more than of the network. With
# very few, a network can be ahead, because its directions can bend.

# %% [markdown]
# ## Further reading
#
# - {cite:p}`kingma2013vae` introduced the sampled embedding and the KL term.
# - {cite:p}`lopez2018scvi` model the counts themselves instead of normalised expression.
# - {cite:p}`hemker2026seal` put planar flows {cite:p}`rezende2015flows` behind the Gaussian;
#   `n_flows` does so here.

# %% tags=["key-figures", "remove-cell"]
figures = {
    "panel": len(panel.genes),
    "components_above_chance": n_common,
    "components": rows,
    "encoder": by_encoder,
    "measured": as_measured,
    "neighbours": {"encoder": in_encoder, "pca": in_pca},
    "pca": by_pca,
    "repeat_difference": repeat_difference,
    "loss": [curve[0]["gene"], curve[-1]["gene"]],
    "reconstruction_r": {
        k: {name: float(v.mean()) for name, v in g.items()}
        for k, g in groups.items()
    },
}
print(json.dumps(figures))
