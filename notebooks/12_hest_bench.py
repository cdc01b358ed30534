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
# # Evaluate like HEST-bench
#
# **What does the field's benchmark ask of an encoder, and what do its numbers tell?**
#
# Ten minutes to read, under a minute to run if the earlier chapters have run.
#
# HEST-bench {cite:p}`jaume2024hest` is where pathology encoders are compared on gene expression:
# per organ a folder of patches and counts, fifty genes, folds by patient, and a linear probe.
# Whoever has it downloaded scores a finetuned run on it with one command,
#
# ```sh
# seal-lite hest-bench --root data/hest-bench --tasks IDC,PRAD \
#   --run runs/mine --json scores.json
# ```
#
# and a frozen encoder with `--backbone NAME` in place of `--run`. Here we take the command apart on
# a task that we write ourselves, in the benchmark's own format.

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
import json

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from seal_lite import InputError, load_encoder, plots
from seal_lite.data.patches import HEST_UM, read_patches
from seal_lite.data.phantom import write_task
from seal_lite.data.section import load_sections
from seal_lite.evaluation.features import embed_all
from seal_lite.evaluation.hest_bench import (
    SEED as PCA_SEED,
)
from seal_lite.evaluation.hest_bench import (
    hest_px,
    pooled_scores,
    read_hest_task,
    run_hest_bench,
    seen_test_samples,
)
from seal_lite.evaluation.ridge import Ridge, Sums
from seal_lite.evaluation.scores import tidy
from seal_lite.evaluation.targets import pearson, section_targets
from seal_lite.tutorial import begin, charts, finetuned

here = begin(DATASET, BACKBONE, EPOCHS, SMOKE, test=TEST, seed=SEED)
config, train, genes = here.config, here.train, here.genes
train_names, test_name = [s.name for s in train], here.held_out
model, _ = finetuned(here)

# %% [markdown]
# This is what is asked, six times over. Given such a region, and nothing else, how many molecules
# of the gene were caught there?

# %%
#| alt: Six regions of tissue in a row, 112 µm wide, from the lowest to the highest count of one
#| gene. The count stands above each.
sections = load_sections(
    here.root, [*train_names, test_name], patch_um=HEST_UM, patch_px=224
)
gene = "ERBB2" if "ERBB2" in genes else genes[0]
counts = (
    sections[0].adata[sections[0].rows, gene].layers["counts"].toarray()[:, 0]
)
shown = np.argsort(counts, kind="stable")[
    np.linspace(0, len(counts) - 1, 6).astype(int)
]
titles = [f"{gene}: {count:.0f}" for count in counts[shown]]
plots.patches(sections[0].patches[shown], titles, patch_um=HEST_UM)

# %% [markdown]
# ## A task is a folder
#
# Regions of 112 µm at 224 pixels in HDF5 files, AnnData with the raw counts, lists of samples for
# each {term}`fold`, and the genes. `write_task` makes one of any sections:

# %%
folds = [(train_names, [test_name])]
folder = write_task(
    "data/hest-bench", "TINY", sections, folds=folds, genes=genes
)
for path in sorted(p for p in folder.rglob("*") if p.is_file()):
    print(
        f"{path.stat().st_size / 1e6:8.2f} MB  {path.relative_to(folder.parent)}"
    )

# %% [markdown]
# Reading goes by names: a patch and its counts belong together because they share a barcode, a
# gene is found wherever its column stands. A fold in which a sample both trains and tests is
# refused, and so is a run that was finetuned on a test sample. The latter is easy to do by
# accident: HEST-bench's samples are part of HEST-1k, on which encoders are finetuned.

# %%
task = read_hest_task(folder.parent, "TINY")
seen_test_samples(
    task, train_names
)  # the sections that the run has seen: none is tested on
print(
    f"{task.name}: {len(task.genes)} genes, fold 0 trains on {', '.join(task.folds[0][0])}"
)

# %% [markdown]
# ## How large is the region?
#
# Below, what the run saw of the same six spots when it was finetuned, and in frames what the
# benchmark shows of them. An encoder that is used to a nucleus of seven pixels should not meet one
# of twenty, so the benchmark's regions are resampled to the run's own scale: less tissue, equally
# large cells. (A vision transformer has a fixed input; to be scored here it is finetuned with
# `patch_um=112`.)

# %%
#| alt: Regions of tissue as wide as those of the finetuning, around the same spots. In the middle
#| of each, a frame of 112 µm.
px = hest_px(config, model.encoder.row)
samples = task.load(px=px)
print(f"{HEST_UM:g} µm are {px} px, at {HEST_UM / px:.2f} µm per pixel")
ours = {k: i for i, k in enumerate(train[0].keys)}
same = [ours[sections[0].keys[i]] for i in shown if sections[0].keys[i] in ours]
figure = plots.patches(
    train[0].patches[same],
    [f"{config.patch_um:g} µm"] * len(same),
    patch_um=config.patch_um,
)
corner = (config.patch_um - HEST_UM) / 2
for ax in figure.axes[: len(same)]:
    ax.add_patch(
        Rectangle((corner, corner), HEST_UM, HEST_UM, fill=False, lw=2)
    )
figure

# %% [markdown]
# ## The published number
#
# Upstream standardises the embeddings, keeps up to 256 principal components ($p$ of them), and fits
# a ridge with $\alpha = 100 / (p\,G)$ and without intercept to the $\log(1 + x)$ of $G$ genes' raw
# counts. The score is the mean over genes of Pearson's $r$ over all test patches. In scikit-learn's
# words:

# %%
found, stages = embed_all(samples.values(), {"tuned": model}, config)
place = {name: i for i, name in enumerate(samples)}
y = [section_targets(s.adata, genes)["log1p_raw"] for s in samples.values()]


def halves(values):
    """Training samples' rows stacked, and the test samples'."""
    return [
        np.concatenate([values[place[s]] for s in half])
        for half in task.folds[0]
    ]


(x, x_test), (z, z_test) = halves(found["tuned"]), halves(y)
alpha = 100 / (min(256, *x.shape) * z.shape[1])


def upstream(x, z):
    """HEST-bench's predictions for the test samples."""
    scaler, pca = (
        StandardScaler(),
        PCA(min(256, *x.shape), random_state=PCA_SEED),
    )
    components = pca.fit_transform(scaler.fit_transform(x))
    ridge = SklearnRidge(alpha=alpha, solver="lsqr", fit_intercept=False).fit(
        components, z
    )
    return ridge.predict(pca.transform(scaler.transform(x_test)))


predicted = upstream(x, z)
train_part, test_part = ([samples[s] for s in half] for half in task.folds[0])
train_x, test_x = (
    [found["tuned"][place[s]] for s in half] for half in task.folds[0]
)
r, r2 = pooled_scores(
    train_part, test_part, genes, train_x=train_x, test_x=test_x
)
gap = float(np.abs(r - pearson(predicted, z_test)).max())
print(
    f"mean r {r.mean():.3f}; largest difference of a gene's r to scikit-learn's: {gap:.1e}"
)

# %% [markdown]
# Ours comes from sums over the samples, so that all folds of a task need one pass over its patches.
# Where does the small difference come from? The solver, LSQR, is told to stop at a tolerance of
# $10^{-4}$, long before it has converged, and rounding decides at which step. Fitted to the same
# training patches in another order, scikit-learn differs from itself by as much:

# %%
order = np.random.default_rng(0).permutation(len(x))
again = pearson(upstream(x[order], z[order]), z_test)
shaken = float(np.abs(again - pearson(predicted, z_test)).max())
print(f"largest difference of scikit-learn's to its own: {shaken:.1e}")

# %% [markdown]
# Upstream also reports an $R^2$. It is computed from the same predictions, which, without an
# intercept, lie around 0, while log counts lie around 2. So it says how far counts are from zero,
# whatever the encoder; with the intercept it says what one expects of an $R^2$:

# %%
spread, left = (
    ((z_test - z_test.mean(0)) ** 2).sum(0),
    ((z_test - predicted) ** 2).sum(0),
)
varies = (
    spread > 0
)  # of a gene that nobody counted in the test patches there is no R2
without = float((1 - left[varies] / spread[varies]).mean())
print(f"mean R2 without intercept {without:.1f}, with intercept {r2:.2f}")

# %% [markdown]
# ## Upstream's own call
#
# HEST-bench's `benchmark` takes an encoder, its transform and a precision, as `load_encoder`
# returns them, and its own settings as keywords. Two things have to be said. Its images show 112 µm
# (`patch_um`), of which the transform then makes the run's scale. And it keeps 256 principal
# components, more than a small network has dimensions (`latent_dim`):
#
# ```python
# from hest.bench import benchmark
#
# encoder, transform, precision = load_encoder("runs/mine", patch_um=112)
# benchmark(encoder, transform, precision, latent_dim=min(256, encoder.row.dim))
# ```
#
# A run of 224 µm on a convolutional network sees the 112 µm in half as many pixels. On a
# transformer of fixed input it cannot: `load_encoder` then says so, and such a run is finetuned
# with `patch_um=112` to be scored there. This is what `benchmark` does with the four, and its
# embeddings are those from above:


# %%
def benchmark(encoder, enc_transf, precision, cli_args=None, **settings):
    """Upstream's embedding of a task's images, and the components that its ridge reads."""
    batch = torch.stack(
        [enc_transf(Image.fromarray(image)) for image in settings["images"]]
    )
    with (
        torch.inference_mode(),
        torch.autocast("cpu", precision, precision != torch.float32),
    ):
        embeddings = encoder.eval()(batch.float()).float().numpy()
    pca = PCA(settings.get("latent_dim", 256), random_state=PCA_SEED)
    return embeddings, pca.fit_transform(
        StandardScaler().fit_transform(embeddings)
    )


encoder, transform, precision = load_encoder(
    here.run("tuned"), patch_um=HEST_UM, device="cpu"
)
ready = read_patches(folder / f"patches/{test_name}.h5")
row_of = {barcode: i for i, barcode in enumerate(ready.barcodes)}
images = ready.images[
    [row_of[barcode] for barcode in samples[test_name].adata.obs_names]
]
latent_dim = min(
    256, encoder.row.dim, len(images)
)  # nor can there be more than images
embeddings, components = benchmark(
    encoder, transform, precision, images=images, latent_dim=latent_dim
)
own = found["tuned"][place[test_name]]
upstream_gap = float(np.abs(embeddings - own).max() / np.abs(own).max())
print(f"{len(images)} images, {components.shape[1]} components")
print(
    f"largest difference to the embeddings from above: {upstream_gap:.1e} of the largest value"
)

# %% [markdown]
# ## How much of it is the probe?
#
# With $\alpha$ near zero the ridge is hardly one: on few spots it fits noise in every direction
# that the embedding offers. One decomposition gives the predictions for every $\alpha$, so we can
# look:

# %%
#| alt: Mean r over genes against the penalty of the ridge, for the finetuned and for the frozen
#| encoder. A vertical line marks the benchmark's own penalty.
alphas = np.logspace(-3, 6, 40)
curves, ridges = {}, {}
for name in ("tuned", "frozen"):
    a, b = halves(found[name])
    ridges[name] = Ridge.fit(Sums.of(a, z))
    curves[name] = [
        pearson(ridges[name].predict(b, alpha=k), z_test).mean() for k in alphas
    ]
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(7.5, 3.6))
    for (name, curve), colour in zip(
        curves.items(), plots.COLOURS, strict=False
    ):
        ax.plot(alphas, curve, color=colour, lw=2, label=charts.LABELS[name])
    ax.axvline(alpha, color=plots.GREY, lw=1)
    ax.text(
        alpha * 1.3,
        max(curves["tuned"]),
        "HEST-bench's",
        color=plots.GREY,
        va="top",
    )
    ax.set(
        xscale="log",
        xlabel="penalty of the ridge",
        ylabel="mean r, log1p raw counts",
    )
    ax.legend()
plt.close(figure)
figure

# %% [markdown]
# The penalty was chosen for wide embeddings and thousands of patches. It moves the score by more
# than many encoders differ by, and it moves narrow and wide embeddings differently. That is why
# every table of ours has a second probe, whose penalty is chosen inside the training samples.
#
# ## The same task, with everything beside it
#
# What the command prints: the published number in the first column, then both probes on targets
# from which depth is discounted, within each test sample. In the first column a single number, the
# log depth of the spot, is hard to beat: raw counts are mostly depth.

# %%
result = run_hest_bench(task, samples, config, features=found, layers=stages)
table = tidy(result).pivot_table("r", ["features", "probe"], "target", "mean")
columns = ["hest_bench", "pearson_residuals", "log1p_cp10k|depth"]
order = [k for k in charts.LABELS if k in set(tidy(result).features)]
shown = (
    table[columns]
    .reindex(order, level="features")
    .rename(columns=charts.LABELS)
)
shown.round(3).astype(object).fillna("")

# %%
#| alt: A row for each kind of features, the finetuned ones first. Dots and bars show their mean r
#| over genes on the benchmark's target.
charts.scores(result, target="hest_bench")

# %% [markdown]
# One fold, one seed and a phantom: this shows the way, not the worth. On real tissue the worth is
# on the page of [recorded results](../results.md).
#
# ## What to remember
#
# - A benchmark task is a folder; barcodes and genes are matched by name, and what trained is never
#   tested.
# - The published number is *r* of raw counts under a ridge with next to no penalty: compare it with
#   others' numbers, and with what log depth alone reaches.
# - Its $R^2$ has no intercept and no meaning.
# - Resample to the scale that the encoder knows. Micrometres per pixel are part of a model.
#
# ## Exercises

# %% [markdown]
# **1.** Predict the published $R^2$ from ours. Without an intercept a prediction of gene $g$ is
# lower by about the training mean $\bar{y}_g$. What does that take off an $R^2$ whose denominator
# is the variance $s_g^2$ of the test patches?

# %% tags=["hide-cell", "solution"]
# The residuals grow by the mean, so R2 falls by about its square over the variance, whatever the
# encoder. What is left of the difference is twice the mean times the mean residual over the
# variance: a test sample that is deeper than expected adds to it.
loss = (z.mean(0)[varies] ** 2 / z_test.var(0)[varies]).mean()
print(
    f"with intercept {r2:.2f}; minus mean^2 / variance {loss:.1f}: {r2 - loss:.1f}"
)
print(f"without, as computed above: {without:.1f}")

# %% [markdown]
# **2.** A ridge on standardised features with singular values $s_j$ spends
# $\sum_j s_j^2 / (s_j^2 + \alpha)$ degrees of freedom. How many are spent at the benchmark's
# $\alpha$, out of how many directions? And at the $\alpha$ where the curve above is highest?

# %% tags=["hide-cell", "solution"]
# At the benchmark's penalty all but all of them: no direction is held back, however noisy. The best
# penalty here leaves a fraction. (It was read off the test patches, which no probe of ours does.)
for name, ridge in ridges.items():
    best = alphas[int(np.argmax(curves[name]))]
    for what, k in (("HEST-bench's", alpha), ("the best", best)):
        free = (ridge.spread**2 / (ridge.spread**2 + k)).sum()
        print(
            f"{name}, {what} penalty {k:.3g}: {free:.1f} of {len(ridge.spread)} directions"
        )

# %% [markdown]
# **3.** Break both safeguards. Claim that the run was finetuned on the test sample; and write a
# task whose test sample also trains. Which of the two could a benchmark know by itself?

# %% tags=["hide-cell", "solution"]
# Only the second stands in the task's own files. What an encoder was trained on has to come from
# whoever trained it; a run of ours says it in its provenance.json, and most downloads do not.
leak = [([test_name], [test_name])]
leaky = write_task(
    "data/hest-bench", "LEAKY", sections, folds=leak, genes=genes
)
for break_in, *given in (
    (seen_test_samples, task, [test_name]),
    (read_hest_task, leaky.parent, "LEAKY"),
):
    try:
        break_in(*given)
    except InputError as error:
        print(str(error).removeprefix(f"{leaky}/"))

# %% [markdown]
# ## Further reading
#
# - {cite:p}`jaume2024hest` is the benchmark, and the collection that it is cut from.
# - {cite:p}`paige1982lsqr` is LSQR, and says what its tolerances mean.
# - {cite:p}`hastie2009elements`, section 3.4, derives the degrees of freedom of a ridge.

# %% tags=["key-figures", "remove-cell"]
first = {f: v for (f, p), v in table["hest_bench"].items() if p == "hest"}
print(
    json.dumps(
        {
            "px": px,
            "gap": gap,
            "shaken": shaken,
            "upstream_gap": upstream_gap,
            "r2": {"without": without, "with": r2},
            "hest_bench": first,
            "swing": {k: float(np.ptp(v)) for k, v in curves.items()},
        }
    )
)
