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
# # Your own data
#
# **Your sections came from another instrument, in another folder layout, with another kind of
# image. What has to be true of them before an encoder can learn from them, and how do you see in a
# minute that it is not?**
#
# Ten minutes to read, two minutes to run.
#
# Put your sections into one folder. Nothing has to be converted: each is read by the reader of its
# own ecosystem and becomes the same thing, an AnnData with counts, places in pixels and a scale,
# beside an image that is read by region. What cannot be told from the files stands in one table.

# %% tags=["hide-cell"]
# On Colab: install SEAL-lite, and keep the torch that Colab brings.
import importlib.util
import subprocess
import sys
from importlib.metadata import version

PACKAGE = "seal_lite[data]"
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
SECTION = ""  # the section that is shown; empty: the last one
SEED = 0

# %%
import json
import logging
import shutil
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")  # other packages' own, about each other

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from seal_lite import plots
from seal_lite.data import leakage
from seal_lite.data.genes import depth
from seal_lite.data.images import open_image
from seal_lite.data.patches import thumbnail
from seal_lite.data.phantom import write_pyramid
from seal_lite.data.readers.catalogue import SOURCES
from seal_lite.data.report import TURNS, check_sections, orientations
from seal_lite.data.section import (
    MIN_COUNTS,
    Section,
    load_sections,
    read_counts,
)
from seal_lite.tutorial import begin

here = begin(DATASET, smoke=SMOKE)
logging.disable(logging.WARNING)
ROOT, names, config = here.root, here.names, here.config
SECTION = SECTION or names[-1]
(mine,) = here.load([SECTION])
um = mine.adata.uns["um_per_px"]
picture = np.asarray(open_image(mine.adata.uns["image_path"]))
rng = np.random.default_rng(SEED)

# %% [markdown]
# Here is one section twice. Every ring is a spot, the lighter the more molecules were counted. In
# one of the two the image was scanned mirrored: every patch would be paired with the expression of
# another place. Which one is wrong? The answer comes below, and the computer finds it, too.

# %%
#| alt: A tissue section twice, called A and B, with rings where the spots lie, coloured by depth.
#| In B the tissue is the mirror image of A's, and the rings are in the same places.
extent = (0, picture.shape[1] * um, picture.shape[0] * um, 0)
spots = mine.adata.obsm["spatial"] * um
with plt.rc_context(plots.STYLE):
    figure, panels = plt.subplots(1, 2, figsize=(8, 4.4))
    for ax, title, tissue in zip(
        panels, "AB", (picture[:, ::-1], picture), strict=True
    ):
        ax.imshow(tissue[::8, ::8], extent=extent, alpha=0.5)
        rings = ax.scatter(*spots.T, s=34, facecolors="none", lw=2.6)
        rings.set_edgecolors(
            plt.cm.viridis(pd.Series(depth(mine.adata)).rank(pct=True))
        )
        ax.set(title=title, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        plots.scale_bar(ax)
plt.close(figure)
figure

# %% [markdown]
# ## What is read
#
# A section is known by a file that no other format has. Its name is what the star stands for.

# %%
pd.set_option("display.max_colwidth", None)
table = {
    s.patterns[0]: s.reader.__doc__.split("\n")[0].rstrip(".") for s in SOURCES
}
pd.DataFrame(
    {"is read as": table.values()},
    pd.Index(table.keys(), name="in your folder"),
)

# %% [markdown]
# The image lies in the section's folder, or beside its file under the same name: JPEG, PNG, TIFF,
# pyramidal TIFF, SVS and whatever else tiffslide opens. Visium wants the full-resolution image that
# Space Ranger was given: the `tissue_hires_image.png` in its output is 2,000 pixels wide, for more
# than 6.5 mm of tissue, and a patch of 112 µm would be some thirty of them. Where that one alone is
# there, it is read at its own scale, and `check` names it.
#
# To try it without a data set of your own (the first is a breast cancer of 10x Genomics; the second
# needs access to HEST-1k on the hub):
#
# ```bash
# seal-lite fetch visium --out data/visium
# seal-lite fetch hest --sections TENX95 --out data/hest
# ```
#
# ## One section, three ways
#
# Let us write a section in two other formats, and read all three. First what most people have: an
# `.h5ad`, and a pyramidal TIFF of the same name.

# %%
FOLDER = Path("data/mine")
shutil.rmtree(FOLDER, ignore_errors=True)
FOLDER.mkdir(parents=True)
plain = ad.AnnData(
    mine.adata.layers["counts"],
    obs=mine.adata.obs[[]],
    var=mine.adata.var[[]],
    obsm={"spatial": mine.adata.obsm["spatial"]},
)
plain.write_h5ad(FOLDER / "tube.h5ad")
write_pyramid(FOLDER / "tube.tif", picture, um_per_px=um)

# %% [markdown]
# Then a SpatialData store, in which image, spots and table are elements of their own, and only a
# transformation says how the spots lie on the image.

# %%
import spatialdata as sd
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

image = Image2DModel.parse(
    picture.transpose(2, 0, 1),
    dims=("c", "y", "x"),
    scale_factors=[2, 2],
    transformations={"um": Scale([um, um], ("x", "y"))},
)
circles = ShapesModel.parse(
    spots, geometry=0, radius=50, transformations={"um": Identity()}
)
cells = plain.copy()
del cells.obsm["spatial"]
cells.obs = pd.DataFrame(
    {"spot": range(cells.n_obs), "region": "spots"}, index=cells.obs_names
)
cells.obs["region"] = cells.obs.region.astype("category")
cells.uns["um_per_px"] = um
parts = {
    "table": TableModel.parse(
        cells, region="spots", region_key="region", instance_key="spot"
    )
}
store = sd.SpatialData(
    images={"he": image}, shapes={"spots": circles}, tables=parts
)
store.write(FOLDER / "store.zarr")

cut = {"patch_um": config.patch_um, "patch_px": config.patch_px}
found = {s.name: s for s in load_sections(FOLDER, **cut)}
shown = [int(i) for i in rng.choice(len(mine.rows), 6, replace=False)]
gap = {
    name: float(np.abs(s.patches.astype(int) - mine.patches).mean())
    for name, s in found.items()
}
for name, s in found.items():
    same = (s.adata.layers["counts"] != mine.adata.layers["counts"]).nnz == 0
    about = (
        f"{s.adata.uns['um_per_px']:.3f} µm per px, {s.adata.uns['species']}"
    )
    print(
        f"{name}: {len(s.rows)} pairs, counts equal: {same}, {about}; "
        f"grey values {gap[name]:.2f} apart"
    )

# %%
#| alt: Three rows of the same six regions of tissue: from the picture as it was, from the
#| SpatialData store, and from the pyramidal TIFF.
rows = np.concatenate(
    [mine.patches[shown], *(found[n].patches[shown] for n in ("store", "tube"))]
)
kinds = {SECTION: "as it was", "store": "SpatialData", "tube": "h5ad, TIFF"}
titles = [
    f"{name}: {kinds[name]}" if not i else ""
    for name in kinds
    for i in range(len(shown))
]
plots.patches(rows, titles, patch_um=config.patch_um)

# %% [markdown]
# Three rows, the same six regions: read from a picture that is decoded whole, from the level of a
# pyramid that just has the detail, and from chunks on disk. The last two never hold the slide in
# memory; a slide of 24,576 x 24,576 pixels is read in less than 500 MB by a test of this book.
#
# ## Where is a micrometre?
#
# Everything physical hangs on one number, micrometres per pixel. Where the spots lie on an array,
# the array tells it: 200 µm from spot to spot on the legacy slides, 100 µm on Visium, in a hexagon.
# Otherwise the file says it, or the image, or you do, in `sections.tsv`. What two of them say must
# agree: after a factor of two (coordinates of the 20x level on the 40x image) an encoder learns,
# quietly, from the wrong places.

# %%
(FOLDER / "sections.tsv").write_text(
    f"section\tum_per_px\tpitch_um\ntube\t{2 * um}\t200\nstore\t\t\n"
)
try:
    read_counts(FOLDER, "tube")
except ValueError as error:
    refused = str(error).replace(f"{Path.cwd()}/", "")
print(refused)
(FOLDER / "sections.tsv").unlink()

# %% [markdown]
# `sections.tsv` also says what no file does. Its columns are `section` and any of `patient`,
# `organ`, `technology`, `stain`, `species` and more, by each of which a cross-validation can hold
# out; `image`, `um_per_px`, `pitch_um`, `pool_um` for what is said above and below; and `library`,
# which names one of several sections in an AnnData. Fill in `patient`. Without it every section
# counts as a patient of its own, and two sections of one tumour on both sides of a split make any
# score look good. The guard of `crossval` knows twins by their counts and pictures, but not
# cousins: see [how to fool yourself](15_fool_yourself.ipynb).
#
# ## Where there are no spots
#
# Xenium measures single transcripts, Visium HD small squares. Both are pooled into square
# *pseudo-spots*: 100 µm unless you say otherwise, which is what HEST-1k does as well. Small squares
# are many pairs of few counts, large ones few pairs of many. Here are transcripts of our section,
# strewn around its spots, in Xenium's layout: in micrometres of the instrument, with the H&E turned
# by a quarter and placed by the matrix that Xenium Explorer exports.

# %%
folder = FOLDER.with_name("xenium") / "cassette"
shutil.rmtree(folder.parent, ignore_errors=True)
folder.mkdir(parents=True)
counts = mine.adata.layers["counts"].tocoo()
spot, gene = (
    np.repeat(i, counts.data.astype(int)) for i in (counts.row, counts.col)
)
place = mine.adata.obsm["spatial"][spot] * um + rng.normal(
    0, 55, (len(spot), 2)
)
width = picture.shape[1] * um
transcripts = pd.DataFrame(
    {
        "x_location": place[:, 1],
        "y_location": width - place[:, 0],  # the instrument's own axes
        "feature_name": mine.adata.var_names.to_numpy()[gene],
        "qv": rng.uniform(15, 40, len(spot)),
    }
)
transcripts[transcripts.y_location > 0].to_parquet(
    folder / "transcripts.parquet"
)
pixel = 0.2125
(folder / "experiment.xenium").write_text(json.dumps({"pixel_size": pixel}))
align = np.array([[0, um, 0], [-um, 0, width], [0, 0, pixel]]) / pixel
np.savetxt(folder / "cassette_he_imagealignment.csv", align, delimiter=",")
write_pyramid(folder / "cassette_he_image.tif", picture, um_per_px=um)

pooled = {}
for size in (50, 100, 200):
    (folder.parent / "sections.tsv").write_text(
        f"section\tpool_um\ncassette\t{size}\n"
    )
    (pooled[size],) = load_sections(folder.parent, **cut)
    median = np.median(depth(pooled[size].adata))
    print(
        f"{size} µm: {len(pooled[size].rows)} pairs of {median:.0f} counts (median)"
    )

# %%
#| alt: The section, and beside it three maps of one gene's counts per area, in squares of 50, 100
#| and 200 µm.
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle

GENE = "ERBB2" if "ERBB2" in mine.adata.var_names else mine.adata.var_names[0]
with plt.rc_context(plots.STYLE):
    figure, panels = plt.subplots(1, 4, figsize=(8.5, 2.6))
    for ax in panels:
        ax.set(
            xticks=[],
            yticks=[],
            xlim=extent[:2],
            ylim=extent[2:],
            aspect="equal",
        )
        ax.spines[:].set_visible(False)
    panels[0].imshow(picture[::8, ::8], extent=extent)
    panels[0].set_title(SECTION)
    for ax, (size, s) in zip(panels[1:], pooled.items(), strict=True):
        at, value = (
            s.adata.obsm["spatial"] * um,
            s.adata[:, GENE].layers["counts"].toarray(),
        )
        squares = [
            Rectangle((x - size / 2, y - size / 2), size, size) for x, y in at
        ]
        shade = np.log1p(value.ravel() / size**2 * 1e4)
        ax.add_collection(
            PatchCollection(squares, array=shade, cmap="viridis", linewidths=0)
        )
        ax.set_title(f"{GENE}, {size} µm")
    for ax in panels:
        plots.scale_bar(ax)
plt.close(figure)
figure

# %% [markdown]
# Counts per area, each panel with its own colours. Squares of fewer than 100 counts are dropped, as
# spots are: they have no profile worth the name.
#
# ## Look before you train
#
# ```bash
# seal-lite check --data data/mine --out check.html
# ```
#
# reads every section as training would, fits nothing, and writes one page: which pairs there are
# and which were dropped and why, the scale, depth, pictures of the spots on the tissue, the least
# and the most sharp patches, and sentences on what should be looked at. Of our data it says:

# %%
said, _ = check_sections(ROOT, config)
said or "nothing odd"

# %% [markdown]
# Now the fault of the first picture, which no format check can find. In A, every spot still lies on
# the image, every patch still shows tissue. But tissue that stains darkly has more cells, and more
# cells have more transcripts: {term}`depth` follows the stain. So `check` also asks how well it
# would in the seven other orientations. What it says of A:

# %%
mirrored = FOLDER.with_name("mirrored")
shutil.rmtree(mirrored, ignore_errors=True)
mirrored.mkdir(parents=True)
plain.write_h5ad(mirrored / "tube.h5ad")
write_pyramid(mirrored / "tube.tif", picture[:, ::-1], um_per_px=um)
told, _ = check_sections(mirrored, config)
for sentence in told:
    print("-", sentence)

# %%
#| alt: The correlation of depth with darkness for the spots as they are and in seven other
#| orientations, in two series: for the image as it was, and for the mirrored one.
small, factor = thumbnail(mine.adata, um_per_px=16.0)
around = small, mine.adata.obsm["spatial"] / factor, depth(mine.adata)
right, wrong = orientations(*around), orientations(small[:, ::-1], *around[1:])
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(7, 3.4))
    y = np.arange(len(TURNS))
    ax.plot(
        [*wrong.values()],
        y,
        "s",
        mfc="none",
        color=plots.COLOURS[1],
        label="A, mirrored",
    )
    ax.plot(
        [*right.values()], y, "o", color=plots.COLOURS[0], label="B, as it was"
    )
    ax.axvline(0, color=plots.GREY, lw=0.8)
    ax.set(
        yticks=y,
        xlabel="r between depth and darkness",
        ylim=(len(y) - 0.5, -0.5),
    )
    ax.set_yticklabels([f"spots {name}" for name in TURNS])
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.close(figure)
figure

# %% [markdown]
# It is a hint and no proof: where tissue is symmetric, or evenly stained, another orientation comes
# close. What is said has a margin of 0.15 in *r*.
#
# ## Then the loop, unchanged
#
# ```bash
# seal-lite finetune --data data/mine --train tube,store --out runs/mine --backbone uni
# seal-lite crossval --data data/mine --groups patient --seeds 3 --out runs/mine-cv
# ```
#
# Sections of several formats may stand in one folder, and train together if they measure the same
# genes: a panel names its genes, and a section that lacks more than a fifth of them is refused.
# Ensembl ids are translated by the file's own column of symbols, or by `genes.tsv` (id, symbol)
# beside `sections.tsv`; ids and symbols, or two species, never come together unnoticed.
#
# ## What to remember
#
# - One folder, any format; a table for what no file knows: patient, scale, species.
# - The spots' pitch and the image's scale must agree, and are made to.
# - Ten minutes with `check` are cheaper than a night of training on mirrored tissue.
#
# ## Exercises

# %% [markdown]
# **1.** Somebody writes half the true `um_per_px` into `sections.tsv`. What would a patch then
# show? Which checks can know, without an array and without a stated pitch?

# %% tags=["hide-cell", "solution"]
#| alt: Two rows of regions around the same spots: as they should be, and with half the true scale,
#| where each shows twice the width.
# A region would be twice as many pixels, so twice as wide as it is taken for. Nothing in the table
# contradicts the scale; only the image's own can, which is a doubt and no error. State the pitch.
table = FOLDER / "sections.tsv"
table.write_text(f"section\tum_per_px\ntube\t{um / 2}\nstore\t\n")
(halved,) = load_sections(FOLDER, ["tube"], **cut)
for sentence in check_sections(FOLDER, config, names=["tube"])[0]:
    print("-", sentence)
table.unlink()
at = {
    barcode: i for i, barcode in enumerate(halved.adata.obs_names[halved.rows])
}
both = [
    (i, at[b]) for i, b in enumerate(mine.adata.obs_names[mine.rows]) if b in at
][::30][:4]
a, b = np.transpose(both)
titles = [f"{config.patch_um:g} µm"] * len(a) + [
    f"said to be {config.patch_um:g} µm"
] * len(b)
plots.patches(
    np.concatenate([mine.patches[a], halved.patches[b]]),
    titles,
    patch_um=config.patch_um,
    columns=len(a),
)

# %% [markdown]
# **2.** How large should pseudo-spots be? Suppose 300 genes at 5 transcripts a cell, and cells 14
# µm wide. How many counts do you expect in squares of 50, 100 and 200 µm, and which would be
# dropped? Then check the rule behind it, that counts grow with the area, on the squares above.

# %% tags=["hide-cell", "solution"]
# Counts grow with the area, the number of pairs falls with it. Where rule and measurement part,
# squares at the rim lie half beside the tissue, or were dropped and do not enter the median.
per_area = np.median(depth(pooled[200].adata)) / 200**2
for size, s in pooled.items():
    expected = 5 * size**2 / 14**2
    kept = "kept" if expected >= MIN_COUNTS else "dropped"
    print(
        f"{size} µm: {expected:.0f} counts expected, {kept}; here, by the rule "
        f"{per_area * size**2:,.0f}, measured {np.median(depth(s.adata)):,.0f}"
    )

# %% [markdown]
# **3.** The same tumour comes to you under a second name. What gives it away, if the counts are the
# same? If half of the molecules were drawn anew? If it is another part of the same tissue, and the
# image is not there?


# %% tags=["hide-cell", "solution"]
# Twins are recognised whatever they are called, because their counts or pictures are. A cousin,
# another part of the same tissue, is recognised only if a table says whose it is.
def second(counts, rows=slice(None), image=None):
    other = mine.adata[rows].copy()
    other.layers["counts"] = type(mine.adata.layers["counts"])(counts[rows])
    other.uns |= {
        "section_id": "second",
        "patient_id": "another",
        "image_path": image,
    }
    return Section(other, np.arange(other.n_obs), mine.patches[:0])


counts, left = (
    mine.adata.layers["counts"].toarray(),
    spots[:, 0] < np.median(spots[:, 0]),
)
thinned = rng.binomial(counts.astype(int), 0.5).astype(np.float32)
first = Section(mine.adata[left].copy(), mine.rows[:0], mine.patches[:0])
twins = {}
for what, pair in {
    "the same counts": (mine, second(counts)),
    "half of the molecules": (mine, second(thinned)),
    "another part": (first, second(counts, ~left)),
}.items():
    twins[what] = leakage.find_leakage(pair, ["A", "B"])
    print(f"{what}: {'; '.join(twins[what]) or 'nothing is found'}")

# %% [markdown]
# ## Further reading
#
# - {cite:p}`marconato2025spatialdata` is SpatialData, in which images, spots and tables keep their
#   coordinate systems.
# - {cite:p}`palla2022squidpy` for what to do with the counts beside learning from them.
# - {cite:p}`jaume2024hest` brought more than a thousand sections from many sources into one form,
#   and tells what that took.

# %% tags=["key-figures", "remove-cell"]
print(
    json.dumps(
        {
            "gap": gap,
            "refused": refused,
            "pooled": {size: len(s.rows) for size, s in pooled.items()},
            "said": said,
            "told": told,
            "r": {"right": right, "wrong": wrong},
            "twins": [len(said) for said in twins.values()],
        }
    )
)
