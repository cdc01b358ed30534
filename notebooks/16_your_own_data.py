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
# image. What must be true of them before an encoder can learn from them, and how do you see in a
# minute that it is not?**
#
# Ten minutes to read, two minutes to run.
#
# Put your sections into one folder. You need not convert them: a reader for each format makes
# every section an AnnData with counts, positions in pixels and a scale, beside an image. What the
# files do not state goes into one table. Below, three formats of one section give the same pairs.
# `seal-lite check` compares eight orientations of the image, and reports another one if its *r*
# between depth and darkness is higher by more than 0.15.

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
# "auto": the phantom, or on a GPU real tumours; or any folder of sections.
DATASET = "auto"
# Everything tiny, just to see that it runs.
SMOKE = False
# The section that is shown; empty: the last one.
SECTION = ""
SEED = 0

# %% tags=["hide-input"]
import json
import logging
import shutil
import warnings
from pathlib import Path

# Other packages warn about each other.
warnings.filterwarnings("ignore")

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import spatialdata as sd
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

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
from seal_lite.tutorial import begin, result_box

here = begin(DATASET, smoke=SMOKE)
logging.disable(logging.WARNING)
ROOT, names, config = here.root, here.names, here.config
SECTION = SECTION or names[-1]
(mine,) = here.load([SECTION])
um = mine.adata.uns["um_per_px"]
image = np.asarray(open_image(mine.adata.uns["image_path"]))
spots = mine.adata.obsm["spatial"] * um
rng = np.random.default_rng(SEED)

# %% [markdown]
# Here is one section twice. Every ring is a spot, and it is lighter the more transcripts were
# counted there. In A or in B the image was mirrored, so every patch would be paired with the
# expression of another place. Which one is wrong? The answer stands below.

# %%
#| alt: A tissue section twice, called A and B, with rings where the spots lie, coloured by depth.
#| In B the tissue is the mirror image of A's, and the rings are in the same places.
extent = (0, image.shape[1] * um, image.shape[0] * um, 0)
shades = plt.cm.viridis(pd.Series(depth(mine.adata)).rank(pct=True))
with plt.rc_context(plots.STYLE):
    figure, panels = plt.subplots(1, 2, figsize=(8, 4.4))
    versions = {"A": image[:, ::-1], "B": image}
    for ax, (title, tissue) in zip(panels, versions.items(), strict=True):
        ax.imshow(tissue[::8, ::8], extent=extent, alpha=0.5)
        rings = ax.scatter(*spots.T, s=34, facecolors="none", lw=2.6)
        rings.set_edgecolors(shades)
        ax.set(title=title, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        plots.scale_bar(ax)
plt.close(figure)
figure

# %% [markdown]
# ## Which formats are read
#
# A file that no other format has identifies the format of a section. In the table, the section's
# name stands where the star is.

# %% tags=["hide-input"]
pd.set_option("display.max_colwidth", None)
formats = {}
for source in SOURCES:
    summary = source.reader.__doc__.split("\n")[0].rstrip(".")
    formats[source.patterns[0]] = summary.replace("`", "")
index = pd.Index(formats.keys(), name="in your folder")
pd.DataFrame({"what the reader does": formats.values()}, index)

# %% [markdown]
# The image lies in the section's folder, or beside its file under the same name. JPEG, PNG, TIFF,
# pyramidal TIFF, SVS and every other format of tiffslide can be read. For Visium, give the
# full-resolution image that Space Ranger was given. The `tissue_hires_image.png` in its output is
# 2,000 pixels wide and shows more than 6.5 mm of tissue, so that a patch of 112 µm would have about
# thirty pixels a side. Where only that image is present, it is read at its own scale, and `check`
# names it.
#
# Two commands fetch a data set to try. The first is a breast cancer of 10x Genomics; the second
# needs access to HEST-1k on the Hub:
#
# ```bash
# seal-lite fetch visium --out data/visium
# seal-lite fetch hest --sections TENX95 --out data/hest
# ```
#
# ## One section in three formats
#
# We write a section in two other formats and read all three. First an `.h5ad` with a pyramidal TIFF
# of the same name.

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
write_pyramid(FOLDER / "tube.tif", image, um_per_px=um)

# %% [markdown]
# Then a SpatialData store, in which image, spots and table are separate elements. A transformation
# states where the spots lie on the image.

# %%
he_image = Image2DModel.parse(
    image.transpose(2, 0, 1),
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
table = TableModel.parse(
    cells, region="spots", region_key="region", instance_key="spot"
)
store = sd.SpatialData(
    images={"he": he_image}, shapes={"spots": circles}, tables={"table": table}
)
store.write(FOLDER / "store.zarr")

# %% [markdown]
# One call reads both. We compare their counts and patches with the original's.

# %%
size = {"patch_um": config.patch_um, "patch_px": config.patch_px}
read = {section.name: section for section in load_sections(FOLDER, **size)}
gap, same = {}, {}
for name, section in read.items():
    counts = section.adata.layers["counts"]
    same[name] = (counts != mine.adata.layers["counts"]).nnz == 0
    difference = section.patches.astype(int) - mine.patches
    gap[name] = float(np.abs(difference).mean())
    scale = section.adata.uns["um_per_px"]
    print(f"{name}: {len(section.rows)} pairs, {scale:.3f} µm per px")
    print(f"  equal counts: {same[name]}")
    print(f"  mean difference of patches: {gap[name]:.2f} of 255 grey levels")

# %%
#| alt: Three rows of the same six patches of tissue: from the original image, from the SpatialData
#| store, and from the pyramidal TIFF.
shown = [int(i) for i in rng.choice(len(mine.rows), 6, replace=False)]
kinds = {SECTION: "original", "store": "SpatialData", "tube": "h5ad, TIFF"}
sources = {SECTION: mine, "store": read["store"], "tube": read["tube"]}
rows = np.concatenate([source.patches[shown] for source in sources.values()])
titles = []
for name, kind in kinds.items():
    titles += [f"{name}: {kind}"] + [""] * (len(shown) - 1)
plots.patches(rows, titles, patch_um=config.patch_um)

# %% [markdown]
# The rows show the same six patches. The first were read from an image that is decoded whole. The
# others were read from chunks on disk, in the level of a pyramid that has the detail, so the slide
# never lies in memory. A test of this book reads a slide of 24,576 x 24,576 pixels in less than 500
# MB.
#
# ## The scale: micrometres per pixel
#
# Every physical length depends on one value, micrometres per pixel. Where spots lie on an array,
# their pitch gives it: 200 µm from spot to spot on the legacy arrays, 100 µm on Visium's hexagonal
# grid. Otherwise the file states it, or the image, or you in `sections.tsv`. Two statements must
# agree. If they differ by a factor of two, as coordinates of the 20x level on the 40x image do,
# each patch shows the wrong place, and training would raise no error.

# %%
wrong_table = f"section\tum_per_px\tpitch_um\ntube\t{2 * um}\t200\nstore\t\t\n"
(FOLDER / "sections.tsv").write_text(wrong_table)
try:
    read_counts(FOLDER, "tube")
except ValueError as error:
    message = str(error).replace(f"{Path.cwd()}/", "")
print(message)
(FOLDER / "sections.tsv").unlink()

# %% [markdown]
# `sections.tsv` also states what no file does. Its columns are `section` and any of `patient`,
# `organ`, `technology`, `stain`, `species` and more; a cross-validation can hold out by each of
# them. `image`, `um_per_px`, `pitch_um` and `pool_um` are the settings of this chapter, and
# `library` names one of several sections in an AnnData. Fill in `patient`. Without it every section
# counts as a patient of its own, and two sections of one tumour on both sides of a split raise any
# score. `crossval` recognises twins by their counts and images, but not other parts of the same
# tissue: see [evaluation pitfalls](14_fool_yourself.ipynb).
#
# ## Assays without spots
#
# Xenium measures single transcripts, and Visium HD small squares. Both are pooled into square
# *pseudo-spots* of 100 µm, as in HEST-1k, unless you state another size. Small squares give many
# pairs of few counts, and large ones few pairs of many. Here we spread the transcripts of our
# section around its spots and write them in Xenium's layout: in the instrument's micrometres, with
# the H&E turned by a quarter and placed by the matrix that Xenium Explorer exports.

# %% tags=["hide-input"]
folder = FOLDER.with_name("xenium") / "cassette"
shutil.rmtree(folder.parent, ignore_errors=True)
folder.mkdir(parents=True)
counts = mine.adata.layers["counts"].tocoo()
copies = counts.data.astype(int)
spot = np.repeat(counts.row, copies)
gene = np.repeat(counts.col, copies)
positions = spots[spot] + rng.normal(0, 55, (len(spot), 2))
width = image.shape[1] * um
transcripts = pd.DataFrame(
    {
        "x_location": positions[:, 1],
        "y_location": width - positions[:, 0],  # the instrument's own axes
        "feature_name": mine.adata.var_names.to_numpy()[gene],
        "qv": rng.uniform(15, 40, len(spot)),
    }
)
transcripts = transcripts[transcripts.y_location > 0]
transcripts.to_parquet(folder / "transcripts.parquet")
pixel = 0.2125
(folder / "experiment.xenium").write_text(json.dumps({"pixel_size": pixel}))
align = np.array([[0, um, 0], [-um, 0, width], [0, 0, pixel]]) / pixel
np.savetxt(folder / "cassette_he_imagealignment.csv", align, delimiter=",")
write_pyramid(folder / "cassette_he_image.tif", image, um_per_px=um)

# %%
pooled = {}
for edge in (50, 100, 200):
    settings = f"section\tpool_um\ncassette\t{edge}\n"
    (folder.parent / "sections.tsv").write_text(settings)
    (section,) = load_sections(folder.parent, **size)
    median = np.median(depth(section.adata))
    print(f"{edge} µm: {len(section.rows)} pairs, median {median:.0f} counts")
    pooled[edge] = section

# %%
#| alt: The section, and beside it three maps of one gene's counts per area, in squares of 50, 100
#| and 200 µm.
GENE = "ERBB2" if "ERBB2" in mine.adata.var_names else mine.adata.var_names[0]
with plt.rc_context(plots.STYLE):
    figure, panels = plt.subplots(1, 4, figsize=(8.5, 2.6))
    panels[0].imshow(image[::8, ::8], extent=extent)
    panels[0].set_title(SECTION)
    for ax, (edge, section) in zip(panels[1:], pooled.items(), strict=True):
        centres = section.adata.obsm["spatial"] * um
        values = section.adata[:, GENE].layers["counts"].toarray().ravel()
        corners = centres - edge / 2
        squares = [Rectangle(corner, edge, edge) for corner in corners]
        shade = np.log1p(values / edge**2 * 1e4)
        ax.add_collection(
            PatchCollection(squares, array=shade, cmap="viridis", linewidths=0)
        )
        ax.set_title(f"{GENE}, {edge} µm")
    for ax in panels:
        ax.set(xticks=[], yticks=[], aspect="equal")
        ax.set(xlim=extent[:2], ylim=extent[2:])
        ax.spines[:].set_visible(False)
        plots.scale_bar(ax)
plt.close(figure)
figure

# %% [markdown]
# The maps show the logarithm of the counts per area, and each has its own colour scale. A square of
# fewer than 100 counts is dropped, as a spot is.
#
# ## Check before you train
#
# ```bash
# seal-lite check --data data/mine --out check.html
# ```
#
# reads every section as training would, fits nothing, and writes one page. The page shows which
# pairs there are, which were dropped and why, the scale, the depth, the spots on the tissue, and
# the least and the most sharp patches. It lists what you should look at. For our data it lists:

# %%
notes, _ = check_sections(ROOT, config)
print("\n".join(notes) or "no finding")

# %% [markdown]
# Now the fault of the first figure, which no check of a format can find. A is the mirrored one.
# Every spot of A still lies on the image, so reading raises no error. But tissue that stains darkly
# has more cells, and more cells have more transcripts, so {term}`depth` follows the stain. `check`
# therefore correlates depth with darkness for the spots as they are and in the seven other
# orientations of a square. For A it prints:

# %%
mirrored = FOLDER.with_name("mirrored")
shutil.rmtree(mirrored, ignore_errors=True)
mirrored.mkdir(parents=True)
plain.write_h5ad(mirrored / "tube.h5ad")
write_pyramid(mirrored / "tube.tif", image[:, ::-1], um_per_px=um)
notes_mirrored, _ = check_sections(mirrored, config)
for note in notes_mirrored:
    print("-", note)

# %%
#| alt: The correlation of depth with darkness for the spots as they are and in seven other
#| orientations, in two series: for the original image, and for the mirrored one.
small, factor = thumbnail(mine.adata, um_per_px=16.0)
positions = mine.adata.obsm["spatial"] / factor
totals = depth(mine.adata)
right = orientations(small, positions, totals)
wrong = orientations(small[:, ::-1], positions, totals)
with plt.rc_context(plots.STYLE):
    figure, ax = plt.subplots(figsize=(7, 3.4))
    y = np.arange(len(TURNS))
    hollow = {"mfc": "none", "color": plots.COLOURS[1]}
    ax.plot([*wrong.values()], y, "s", label="A, mirrored", **hollow)
    filled = {"color": plots.COLOURS[0]}
    ax.plot([*right.values()], y, "o", label="B, original", **filled)
    ax.axvline(0, color=plots.GREY, lw=0.8)
    ax.set(yticks=y, ylim=(len(y) - 0.5, -0.5))
    ax.set_xlabel("r between depth and darkness")
    ax.set_yticklabels([f"spots {name}" for name in TURNS])
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.close(figure)
figure

# %% [markdown]
# This is a hint and no proof. Where tissue is symmetric or evenly stained, another orientation
# comes close. `check` therefore reports another orientation only where its *r* is higher by more
# than 0.15.
#
# ## Train as before
#
# With your own sections in `DIR`:
#
# ```bash
# seal-lite finetune --data DIR --train S1,S2,S3 --out runs/mine
# seal-lite crossval --data DIR --groups patient --seeds 3 --out runs/mine-cv
# ```
#
# The copies above are twins of one section. `crossval` rejects them, because the same counts would
# train and test.
#
# Sections of several formats may lie in one folder, and train together if they measure the same
# genes. A panel names its genes, and a section that lacks more than a fifth of them raises an
# error. Ensembl ids are translated by the file's own column of symbols, or by `genes.tsv` (id,
# symbol) beside `sections.tsv`. Mixing ids with symbols, or two species, raises an error.
#
# ## Result

# %% tags=["hide-input"]
best_right = max(right, key=right.get)
best_wrong = max(wrong, key=wrong.get)
is_found = any(best_wrong in note for note in notes_mirrored)
equal = "equal" if all(same.values()) else "different"
result_box(
    f"One section ({len(mine.rows)} pairs) in two other formats gave "
    f"{len(read['tube'].rows)} pairs (h5ad, TIFF) and "
    f"{len(read['store'].rows)} pairs (SpatialData) with {equal} counts. "
    f"Their patches differ from the original's by {gap['tube']:.2f} and "
    f"{gap['store']:.2f} of 255 grey levels on average.",
    f"Depth follows darkness best with the spots {best_right} on the original "
    f"image (r = {right[best_right]:+.2f}), and with the spots {best_wrong} on "
    f"the mirrored one (r = {wrong[best_wrong]:+.2f}; as they are: "
    f"{wrong['as they are']:+.2f}). `seal-lite check` "
    f"{'reports' if is_found else 'does not report'} the mirrored image.",
    "This is one section: a description without an interval.",
)

# %% [markdown]
# ## What to remember
#
# - One folder takes any format, and one table states what no file does: patient, scale, species.
# - The pitch of the spots and the scale of the image must agree; if they do not, reading raises an
#   error.
# - `check` fits nothing, and finds faults that training would not report.
#
# ## Exercises

# %% [markdown]
# **1.** Somebody writes half the true `um_per_px` into `sections.tsv`. What does a patch then show?
# Which check can notice it, where neither an array nor a stated pitch gives the scale?

# %% tags=["hide-cell", "solution"]
#| alt: Two rows of patches around the same spots: at half the true scale, where each shows twice
#| the width, and at the true scale.
# A patch takes twice as many pixels, so it shows twice its stated width. No
# column of the table contradicts the scale. Only the scale that the image
# states can, and `check` reports that. State the pitch.
wrong_table = f"section\tum_per_px\ntube\t{um / 2}\nstore\t\n"
(FOLDER / "sections.tsv").write_text(wrong_table)
(halved,) = load_sections(FOLDER, ["tube"], **size)
for note in check_sections(FOLDER, config, names=["tube"])[0]:
    print("-", note)
(FOLDER / "sections.tsv").unlink()
ours = mine.adata.obs_names[mine.rows]
theirs = halved.adata.obs_names[halved.rows]
both = ours.intersection(theirs, sort=False)[::30][:4]
pairs = [
    halved.patches[theirs.get_indexer(both)],
    mine.patches[ours.get_indexer(both)],
]
width = config.patch_um
titles = [f"stated {width:g} µm, true {2 * width:g} µm"] * len(both)
titles += [f"stated and true {width:g} µm"] * len(both)
plots.patches(np.concatenate(pairs), titles, patch_um=width, columns=len(both))

# %% [markdown]
# **2.** How large should pseudo-spots be? Suppose 300 genes at 5 transcripts a cell in all, and
# cells 14 µm wide. How many counts do you expect in squares of 50, 100 and 200 µm, and which
# squares would be dropped? Then check the rule behind it, that counts grow with the area, on the
# squares above.

# %% tags=["hide-cell", "solution"]
# Squares at the edge of the tissue lie partly beside it, and squares of few
# counts are dropped: there the measured median departs from the rule.
per_area = np.median(depth(pooled[200].adata)) / 200**2
for edge, section in pooled.items():
    expected = 5 * edge**2 / 14**2
    kept = "kept" if expected >= MIN_COUNTS else "dropped"
    measured = np.median(depth(section.adata))
    print(f"{edge} µm: {expected:.0f} counts expected, {kept}")
    print(f"  here: {per_area * edge**2:,.0f} by the rule, {measured:,.0f}")

# %% [markdown]
# **3.** You receive the same tumour under a second name. What reveals it if the counts are the
# same? If half of the transcripts were removed at random? If it is another part of the same tissue,
# and there is no image?


# %% tags=["hide-cell", "solution"]
# Twins are recognised by their counts or images, whatever their names. Another
# part of the same tissue is recognised only if a table names the patient.
def under_another_name(counts, rows=slice(None)) -> Section:
    """The section under another name, without its image."""
    other = mine.adata[rows].copy()
    other.layers["counts"] = type(mine.adata.layers["counts"])(counts[rows])
    other.uns["section_id"] = "second"
    other.uns["patient_id"] = "another"
    other.uns["image_path"] = None
    return Section(other, np.arange(other.n_obs), mine.patches[:0])


counts = mine.adata.layers["counts"].toarray()
is_left = spots[:, 0] < np.median(spots[:, 0])
thinned = rng.binomial(counts.astype(int), 0.5).astype(np.float32)
left = Section(mine.adata[is_left].copy(), mine.rows[:0], mine.patches[:0])
cases = {
    "the same counts": (mine, under_another_name(counts)),
    "half of the transcripts": (mine, under_another_name(thinned)),
    "another part": (left, under_another_name(counts, ~is_left)),
}
twins = {}
for case, pair in cases.items():
    twins[case] = leakage.find_leakage(pair, ["A", "B"])
    print(f"{case}: {'; '.join(twins[case]) or 'no leakage reported'}")

# %% [markdown]
# ## Further reading
#
# - {cite:t}`marconato2025spatialdata` present SpatialData, in which images, spots and tables keep
#   their coordinate systems.
# - {cite:t}`palla2022squidpy` present squidpy, for other analyses of the same counts.
# - {cite:t}`jaume2024hest` brought more than a thousand sections from many sources into one form,
#   and report what that took.

# %% tags=["key-figures", "remove-cell"]
figures = {
    "gap": gap,
    "refused": message,
    "pooled": {edge: len(section.rows) for edge, section in pooled.items()},
    "notes": notes,
    "notes_mirrored": notes_mirrored,
    "r": {"right": right, "wrong": wrong},
    "twins": [len(lines) for lines in twins.values()],
}
print(json.dumps(figures))
