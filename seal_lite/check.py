"""Look at data before hours of training: what pairs there are, and what seems wrong with them."""

from __future__ import annotations

import base64
import importlib.resources
import io

import numpy as np
import pandas as pd
from jinja2 import Template
from scipy.ndimage import laplace
from tqdm import tqdm

from . import leakage, plots
from .config import Config
from .errors import InputError
from .images import PICTURES, open_slide
from .pairs import Section, extract_patches, thumbnail
from .sections import MIN_COUNTS, mixtures, read_section, sources
from .targets import depth, pearson
from .wsi import tissue_mask

LEAN = 500  # counts of a spot below which most genes of a panel are zeros
BARE = 0.5  # share of spots on bare glass that asks for an explanation
SOFT = 0.5  # of the other sections' sharpness
TURNED = 0.15  # by how much another orientation must fit better to be suspected
KEPT = "as they are"
TURNS = {  # what is done to the spots in their bounding box: swap axes, mirror x, mirror y
    KEPT: (0, 0, 0), "mirrored in x": (0, 1, 0), "mirrored in y": (0, 0, 1),
    "turned by half": (0, 1, 1), "swapped in x and y": (1, 0, 0), "turned a quarter": (1, 1, 0),
    "turned a quarter back": (1, 0, 1), "swapped in x and y, mirrored": (1, 1, 1)}  # fmt: skip


def check(root, config: Config, *, names=None, panel=None) -> tuple[list[str], dict]:
    """Read every section under `root`, or those in `names`; nothing is fitted. Returns sentences,
    each about something that a user should look at, and {name: (`Section`, facts, maps)} of those
    that can be read.

    facts: {str: value}, what the page's table shows. maps (n, 3): of each patch log10 depth, share
    of tissue, sharpness (standard deviation of the grey patch's Laplacian). `panel` is a
    `GenePanel` whose genes the sections should have. A section that cannot be read is one of the
    sentences; `InputError` is raised where there is no section at all.
    """
    said, found = [], {}
    for name in tqdm(names or sorted(sources(root)), "check"):
        try:
            adata = read_section(root, name)
            cut = extract_patches(adata, patch_um=config.patch_um, patch_px=config.patch_px)
        except InputError as error:
            said.append(str(error))
            continue
        section = Section(adata, *cut)
        maps = _maps(section)
        found[name] = section, _facts(section, maps), maps
        said += [f"{name}: {text}" for text in _doubts(section, maps, panel)]
    sections = [section for section, *_ in found.values()]
    said += mixtures(root, [s.adata for s in sections])
    said += leakage.found(sections, [s.patient for s in sections])
    sharp = {name: np.median(maps[:, 2]) for name, (*_, maps) in found.items()}
    for name, value in sharp.items():
        if (by := value / np.median([*sharp.values()])) < SOFT:
            said.append(f"{name}: is {by:.2f} times as sharp as the others; blurred or enlarged?")
    pairs = sum(len(s.rows) for s in sections)
    if pairs < config.batch_size:
        said.append(f"{pairs} pairs are fewer than a batch of {config.batch_size}; add sections")
    if len({s.patient for s in sections}) < 2:
        said.append("all sections are of one patient: a score will not speak for others")
    return said, found


def _maps(section) -> np.ndarray:
    sharp = [laplace(p.astype(np.float32).mean(-1)).std() for p in section.patches]
    tissue = (np.ptp(section.patches, axis=-1) > 25).mean((1, 2))  # glass has no colour
    return np.c_[np.log10(depth(section.adata)[section.rows]), tissue, sharp]


def _facts(section, maps) -> dict:
    about, n = section.adata.uns, section.adata.n_obs
    dropped = {"without counts": about["spots_without_counts"], "off the image": n - len(maps),
               f"under {MIN_COUNTS} counts": about["shallow_spots"]}  # fmt: skip
    low, high = 10 ** np.percentile(maps[:, 0], [5, 95])
    return {"spots": n, "pairs": len(maps), "um per px": f"{about['um_per_px']:.3f}",
            "dropped": ", ".join(f"{k} {why}" for why, k in dropped.items() if k) or "none",
            "pitch, um": f"{about['pitch_um']:.0f}", "counts a spot": f"{low:,.0f} to {high:,.0f}",
            "genes": section.adata.n_vars, "species": about["species"],
            "patient": section.patient}  # fmt: skip


def _doubts(section, maps, panel):
    """What is odd about one section, in sentences without its name."""
    um, path = (section.adata.uns[k] for k in ("um_per_px", "image_path"))
    counts = depth(section.adata)
    if (median := np.median(counts)) < LEAN:
        yield f"half of its spots have under {median:.0f} counts; most genes will be noise"
    if panel and (lost := [g for g in panel.genes if g not in section.adata.var_names]):
        yield f"lacks {len(lost)} of the panel's {len(panel.genes)} genes, as {lost[0]}"
    if path.endswith(".h5"):  # HEST's patches: there is no whole image to look at
        return
    # A picture says no scale of its own, and would be decoded whole to be asked.
    own = None if path.lower().endswith(PICTURES) else open_slide(path).um_per_px
    if own and not 0.9 < own / um < 1.1:
        yield f"its image says {own:.3f} um per px, its spots {um:.3f}; which is right?"
    image, factor = thumbnail(section.adata, um_per_px=16.0)
    at = section.adata.obsm["spatial"] / factor
    if (bare := 1 - _look(tissue_mask(image), at).mean()) > BARE:
        yield f"{bare:.0%} of its spots lie on bare glass; is the image this section's?"
    fits = orientations(image, at, counts)
    best = max(fits, key=fits.get)
    if fits[best] > fits[KEPT] + TURNED:
        r = f"r {fits[best]:.2f}, and {fits[KEPT]:.2f} {KEPT}"
        yield f"counts follow the stain better {best} ({r}); is the image turned or mirrored?"


def orientations(image, at, counts) -> dict[str, float]:
    """r between depth and darkness for the spots as they are, and turned and mirrored.

    image (h, w, 3) of the section, at (n, 2) the spots' x, y in its px, counts (n,) of each.
    Returns {what was done, as in `TURNS`: r}.
    """
    low, size = at.min(0), np.ptp(at, axis=0)
    unit, dark, found = (at - low) / size, 255.0 - image.mean(-1), {}
    for name, (swapped, *mirrored) in TURNS.items():
        place = np.where(mirrored, 1 - unit, unit)[:, :: -1 if swapped else 1] * size + low
        found[name] = float(pearson(_look(dark, place)[:, None], np.log1p(counts)[:, None])[0])
    return found


def _look(picture, at) -> np.ndarray:
    """Values of a picture (h, w) at points x, y in its px."""
    x, y = np.clip(at.astype(int), 0, np.array(picture.shape[::-1]) - 1).T
    return picture[y, x]


def report(said: list[str], found: dict, config: Config, *, title: str) -> str:
    """`check`'s findings as one self-contained HTML page: sentences, a table, and pictures.

    Pictures are JPEG inside the page, with scale bars in um; nothing is loaded from elsewhere.
    """
    pictures = []
    for name, (section, _, maps) in found.items():
        few = np.argsort(maps[:, 2])[[0, 1, 2, -3, -2, -1]] if len(maps) > 5 else np.arange(0)
        values = [f"{v:.0f}" for v in maps[few, 2]]
        units = "log10 counts", "share of tissue", "sharpness"
        drawn = {
            "where its spots lie": plots.overview(section),
            "its patches": plots.gene_maps(section, maps, units, label="as its title says"),
            "its least and its most sharp patches": plots.patches(
                section.patches[few], values, patch_um=config.patch_um)}  # fmt: skip
        for what, figure in drawn.items():
            figure.savefig(data := io.BytesIO(), format="jpg", dpi=110, bbox_inches="tight")
            pictures.append((f"{name}: {what}", base64.b64encode(data.getvalue()).decode()))
    page = importlib.resources.files(__package__).joinpath("check.html").read_text()
    table = pd.DataFrame({name: facts for name, (_, facts, _) in found.items()}).T.to_html(border=0)
    return Template(page, autoescape=True).render(title=title, said=said, table=table,
                                                  pictures=pictures)  # fmt: skip
