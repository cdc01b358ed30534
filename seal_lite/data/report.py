"""Look at data before hours of training: what pairs there are, and what seems wrong with them."""

from __future__ import annotations

import base64
import importlib.resources
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jinja2 import Template
from scipy.ndimage import laplace
from tqdm import tqdm

from seal_lite import plots
from seal_lite.config import Config
from seal_lite.data.genes import GenePanel, depth
from seal_lite.data.images import PLAIN_SUFFIXES, open_slide, slides_kept_open, tissue_mask
from seal_lite.data.leakage import Fingerprint, correlation, describe_overlaps
from seal_lite.data.patches import READY_SUFFIX, extract_patches, states_scale
from seal_lite.data.readers.catalogue import find_sections, list_sections
from seal_lite.data.readers.gene_names import spelled
from seal_lite.data.readers.visium import is_small_image
from seal_lite.data.section import MIN_COUNTS, Section, mixtures, read_counts
from seal_lite.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOW_DEPTH = 500  # median counts of a spot below which most genes of a panel are zeros
MAX_ON_GLASS = 0.5  # share of spots on bare glass above which the section is named
MIN_SHARPNESS = 0.5  # of the median section's
MIN_R_GAIN = 0.15  # by how much another orientation must fit better to be named
MIN_ORIENTED = 20  # spots; by chance, fewer fit another orientation as well
TISSUE_COLOUR = 25  # range over R, G, B above which a pixel is tissue: glass has no colour
THUMBNAIL_UM_PER_PX = 16.0
DRAWN_UM_PER_PX = (plots.OVERVIEW_UM_PER_PX, plots.TISSUE_UM_PER_PX)
N_EXTREMES = 3  # how many of the sharpest, and of the least sharp, patches the page shows

AS_THEY_ARE = "as they are"
# What is done to the spots in their bounding box: swap axes, mirror x, mirror y.
TURNS = {
    AS_THEY_ARE: (0, 0, 0),
    "mirrored in x": (0, 1, 0),
    "mirrored in y": (0, 0, 1),
    "turned by half": (0, 1, 1),
    "swapped in x and y": (1, 0, 0),
    "turned a quarter": (1, 1, 0),
    "turned a quarter back": (1, 0, 1),
    "swapped in x and y, mirrored": (1, 1, 1),
}


@dataclass(frozen=True)
class SectionCheck:
    """What `check_sections` measures of a section.

    Parameters
    ----------
    section
        A section with n patches.
    facts
        The section's row in the page's table.
    maps
        Of each patch log10 depth, share of tissue and sharpness (standard deviation of the grey
        patch's Laplacian), (n, 3) float64.
    fingerprint
        By which the section is compared with the others.
    """

    section: Section
    facts: dict[str, object]
    maps: np.ndarray
    fingerprint: Fingerprint

    @property
    def sharpness(self) -> np.ndarray:
        """Of each patch, (n,)."""
        return self.maps[:, 2]


def check_sections(
    root: str | Path,
    config: Config,
    *,
    names: Sequence[str] | None = None,
    panel: GenePanel | None = None,
    progress: bool = True,
) -> tuple[list[str], list[SectionCheck]]:
    """Read sections and describe what a user should look at; nothing is fitted.

    Parameters
    ----------
    root
        A folder of sections.
    config
        Settings of the patches and the batch.
    names
        Names of sections; None for all under ``root``.
    panel
        A panel whose genes the sections should have.
    progress
        Show a progress bar.

    Returns
    -------
    messages
        One sentence for each doubt, among them the sections that cannot be read.
    checks
        One for each section that can be read.

    Raises
    ------
    InputError
        Where there is no section at all.
    """
    messages, _, checks = _check_each(root, config, names=names, panel=panel, progress=progress)
    return messages, checks


def check_usable(
    root: str | Path,
    config: Config,
    *,
    names: Sequence[str] | None = None,
    progress: bool = True,
) -> tuple[list[str], list[SectionCheck]]:
    """Return what `check_sections` does, of sections that can all be trained on together.

    Parameters
    ----------
    root, config
        As in `check_sections`.
    names
        Names of sections; None for all under ``root`` that have an image.
    progress
        Show a progress bar.

    Raises
    ------
    InputError
        Where a section is damaged or named twice, or sections do not go together. One message lists
        all that has to be mended.
    """
    with_image = list_sections(root)
    wanted = with_image if names is None else list(names)
    if len(set(wanted)) < len(wanted):
        raise InputError(f"sections {','.join(wanted)}: one is named twice; name each once")
    messages, faults, checks = _check_each(root, config, names=names, progress=progress)
    to_mend = [faults[name] for name in wanted if name in faults]
    to_mend += mixtures(root, [check.section.adata for check in checks])
    if not checks and not to_mend:
        to_mend = list(faults.values())
    if to_mend:
        message = "cannot be trained on; mend the following, or name other sections by --sections"
        raise InputError(f"{root}: {message}: {'; '.join(to_mend)}")
    return messages, checks


def _check_each(
    root: str | Path,
    config: Config,
    *,
    names: Sequence[str] | None,
    panel: GenePanel | None = None,
    progress: bool,
) -> tuple[list[str], dict[str, str], list[SectionCheck]]:
    """Return all messages, those of unreadable sections by name, and the checks of the others."""
    messages = []
    faults = {}
    checks = []
    if names is None:
        names = sorted(find_sections(root))
    for name in tqdm(names, "check", disable=not progress):
        try:
            with slides_kept_open():
                check = _check_section(root, name, config)
                doubts = _doubts_about_section(check, panel)
        except InputError as error:
            faults[name] = str(error)
            messages.append(faults[name])
            continue
        checks.append(check)
        messages += [f"{name}: {doubt}" for doubt in doubts]
    if checks:
        messages += _doubts_about_all(root, checks, config)
    return messages, faults, checks


def _check_section(root: str | Path, name: str, config: Config) -> SectionCheck:
    """Read a section and measure it."""
    adata = read_counts(root, name)
    rows, patches = extract_patches(adata, patch_um=config.patch_um, patch_px=config.patch_px)
    section = Section(adata, rows, patches)
    maps = _measure_patches(section)
    if _has_whole_image(section):
        for um_per_px in DRAWN_UM_PER_PX:
            section.thumbnail(um_per_px=um_per_px)
    return SectionCheck(section, _facts(section, maps), maps, Fingerprint.of_section(section))


def _has_whole_image(section: Section) -> bool:
    """Return whether there is more of the section's image than HEST's ready patches."""
    return not section.adata.uns["image_path"].endswith(READY_SUFFIX)


def _measure_patches(section: Section) -> np.ndarray:
    """Return log10 depth, share of tissue and sharpness of each patch, (n, 3)."""
    sharpness = [laplace(patch.astype(np.float32).mean(-1)).std() for patch in section.patches]
    is_tissue = np.ptp(section.patches, axis=-1) > TISSUE_COLOUR
    log_depth = np.log10(depth(section.adata)[section.rows])
    return np.column_stack([log_depth, is_tissue.mean((1, 2)), sharpness])


def _facts(section: Section, maps: np.ndarray) -> dict[str, object]:
    """Return the section's row in the page's table."""
    adata = section.adata
    metadata = adata.uns
    n_dropped = {
        "without counts": metadata["spots_without_counts"],
        "without a position": metadata["spots_without_position"],
        "off the image": adata.n_obs - len(maps),
        f"under {MIN_COUNTS} counts": metadata["shallow_spots"],
    }
    dropped = ", ".join(f"{n} {reason}" for reason, n in n_dropped.items() if n)
    low, high = 10 ** np.percentile(maps[:, 0], [5, 95])
    return {
        "spots": adata.n_obs,
        "pairs": len(maps),
        "um per px": f"{metadata['um_per_px']:.3f}",
        "dropped": dropped or "none",
        "pitch, um": f"{metadata['pitch_um']:.0f}",
        "counts a spot, 5% to 95%": f"{low:,.0f} to {high:,.0f}",
        "genes": adata.n_vars,
        "species": metadata["species"],
        "patient": section.patient,
    }


def _doubts_about_section(check: SectionCheck, panel: GenePanel | None) -> list[str]:
    """Return what is odd about one section, in sentences without its name."""
    section = check.section
    doubts: list[str | None] = [_doubt_depth(section), _doubt_genes(section, panel)]
    if _has_whole_image(section):
        image, px_per_px = section.thumbnail(um_per_px=THUMBNAIL_UM_PER_PX)
        coords = section.adata.obsm["spatial"] / px_per_px
        doubts.append(_doubt_size(section))
        doubts += _image_notes(section)
        doubts.append(_doubt_scale(section))
        doubts.append(_doubt_glass(image, coords))
        doubts.append(_doubt_orientation(image, coords, depth(section.adata)))
    doubts += section.adata.uns.get("notes", [])
    return [doubt for doubt in doubts if doubt is not None]


def _doubt_depth(section: Section) -> str | None:
    """Name a section with too few counts a spot."""
    median = np.median(depth(section.adata))
    if median >= LOW_DEPTH:
        return None
    return f"half of its spots have under {median:.0f} counts; most genes will be noise"


def _doubt_genes(section: Section, panel: GenePanel | None) -> str | None:
    """Name a section that lacks genes of the panel."""
    if panel is None:
        return None
    present = spelled(panel.genes, section.adata.var_names)
    missing = [gene for gene in panel.genes if gene not in present]
    if not missing:
        return None
    return f"lacks {len(missing)} of the panel's {len(panel.genes)} genes, as {missing[0]}"


def _doubt_size(section: Section) -> str | None:
    """Name a section whose image is one that Space Ranger has made smaller."""
    path = Path(section.adata.uns["image_path"])
    if not is_small_image(path):
        return None
    um_per_px = section.adata.uns["um_per_px"]
    return f"its image is {path.name}, {um_per_px:.1f} um per px; the full image shows more"


def _image_notes(section: Section) -> list[str]:
    """Name what of a slide is not used, or implausible."""
    path = Path(section.adata.uns["image_path"])
    if path.suffix.lower() in PLAIN_SUFFIXES:  # of which all is used
        return []
    return [f"its image {path.name} {note}" for note in open_slide(path).notes]


def _doubt_scale(section: Section) -> str | None:
    """Name a section whose slide and spots give different um per px."""
    path = section.adata.uns["image_path"]
    if path.lower().endswith(PLAIN_SUFFIXES):  # a JPEG or PNG has no scale
        return None
    slide = open_slide(path)
    of_spots = section.adata.uns["um_per_px"]
    if slide.um_per_px is None or states_scale(slide, of_spots):
        return None
    scales = f"its image says {slide.um_per_px:.3f} um per px, its spots {of_spots:.3f}"
    return f"{scales}; which is right?"


def _doubt_glass(image: np.ndarray, coords: np.ndarray) -> str | None:
    """Name a section with many spots beside the tissue."""
    on_glass = 1 - _values_at(tissue_mask(image), coords).mean()
    if on_glass <= MAX_ON_GLASS:
        return None
    return f"{on_glass:.0%} of its spots lie on bare glass; is the image this section's?"


def _doubt_orientation(image: np.ndarray, coords: np.ndarray, counts: np.ndarray) -> str | None:
    """Name a section whose depth fits the stain better after a turn or a reflection."""
    if len(coords) < MIN_ORIENTED:
        return None
    r_of = orientations(image, coords, counts)
    best = max(r_of, key=r_of.__getitem__)
    if r_of[best] <= r_of[AS_THEY_ARE] + MIN_R_GAIN:
        return None
    fit = f"r {r_of[best]:.2f}, and {r_of[AS_THEY_ARE]:.2f} {AS_THEY_ARE}"
    return f"counts follow the stain better {best} ({fit}); is the image turned or mirrored?"


def orientations(image: np.ndarray, coords: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Correlate depth with darkness for the spots as they are, and turned and mirrored.

    Parameters
    ----------
    image
        The section, (h, w, 3) uint8.
    coords
        x, y of n spots in px of the image, (n, 2).
    counts
        Depth of each spot, (n,).

    Returns
    -------
    dict
        Pearson's r between log1p depth and darkness, by what was done to the spots (`TURNS`).
    """
    corner = coords.min(0)
    size = np.ptp(coords, axis=0)
    unit = (coords - corner) / size
    darkness = 255.0 - image.mean(-1)
    r_of = {}
    for name, (swap, *mirror) in TURNS.items():
        turned = np.where(mirror, 1 - unit, unit)
        if swap:
            turned = turned[:, ::-1]
        r_of[name] = correlation(_values_at(darkness, turned * size + corner), np.log1p(counts))
    return r_of


def _values_at(image: np.ndarray, coords: np.ndarray) -> np.ndarray:
    """Return the values of an image (h, w) at points x, y in its px, (n,)."""
    h, w = image.shape
    x, y = np.clip(coords.astype(int), 0, [w - 1, h - 1]).T
    return image[y, x]


def _doubts_about_all(
    root: str | Path, checks: Sequence[SectionCheck], config: Config
) -> list[str]:
    """Return what is odd about sections beside each other."""
    sections = [check.section for check in checks]
    patients = [section.patient for section in sections]
    doubts = list(mixtures(root, [section.adata for section in sections]))
    prints = [check.fingerprint for check in checks]
    doubts += describe_overlaps([section.name for section in sections], patients, prints)
    doubts += _doubt_sharpness(checks)
    n_pairs = sum(len(section.rows) for section in sections)
    if n_pairs < config.batch_size:
        doubts.append(
            f"{n_pairs} pairs are fewer than a batch of {config.batch_size}; add sections"
        )
    if len(set(patients)) < 2:
        doubts.append("all sections are of one patient: a score will not speak for others")
    return doubts


def _doubt_sharpness(checks: Sequence[SectionCheck]) -> list[str]:
    """Name the sections that are much less sharp than the median one."""
    medians = [np.median(check.sharpness) for check in checks]
    doubts = []
    for check, median in zip(checks, medians, strict=True):
        relative = median / np.median(medians)
        if relative < MIN_SHARPNESS:
            name = check.section.name
            doubts.append(
                f"{name}: is {relative:.2f} times as sharp as the others; blurred or enlarged?"
            )
    return doubts


def check_page(
    messages: Sequence[str], checks: Sequence[SectionCheck], *, patch_um: float, title: str
) -> str:
    """Return the findings as one self-contained HTML page: messages, a table and images.

    Images are JPEG inside the page, with scale bars in um; nothing is loaded from elsewhere.

    Parameters
    ----------
    messages, checks
        From `check_sections`.
    patch_um
        Edge of the patches in um.
    title
        Title of the page.
    """
    images = []
    for check in checks:
        for caption, figure in _draw_section(check, patch_um=patch_um).items():
            images.append((f"{check.section.name}: {caption}", _encode_jpeg(figure)))
    facts = pd.DataFrame({check.section.name: check.facts for check in checks})
    template = importlib.resources.files("seal_lite.data").joinpath("report.html").read_text()
    return Template(template, autoescape=True).render(
        title=title, messages=messages, table=facts.T.to_html(border=0), images=images
    )


def _draw_section(check: SectionCheck, *, patch_um: float) -> dict[str, Figure]:
    """Return the page's figures of a section by caption."""
    section = check.section
    units = ("log10 counts", "share of tissue", "sharpness")
    order = np.argsort(check.sharpness)
    if len(order) > 2 * N_EXTREMES:
        order = np.concatenate([order[:N_EXTREMES], order[-N_EXTREMES:]])
    titles = [f"{sharpness:.0f}" for sharpness in check.sharpness[order]]
    return {
        "where its spots lie": plots.overview(section),
        "its patches": plots.gene_maps(section, check.maps, units, label="as its title says"),
        "its least and its most sharp patches": plots.patches(
            section.patches[order], titles, patch_um=patch_um
        ),
    }


def _encode_jpeg(figure: Figure) -> str:
    """Return a figure as JPEG in base64."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpg", dpi=110, bbox_inches="tight")
    return base64.b64encode(buffer.getvalue()).decode()
