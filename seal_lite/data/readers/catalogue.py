"""From a folder to its sections: the files of each one, its image, its row of sections.tsv.

A folder holds sections of any of the formats in `SOURCES`, and may hold two tables about them::

    ROOT/sections.tsv    section, and any of: patient, organ, technology, stain, species, image (a
                         path under ROOT, where a link may lead elsewhere), um_per_px, table (of a
                         SpatialData store), library (of a file with several), pool_um, ...
    ROOT/genes.tsv       id and symbol of genes, where counts come with Ensembl ids alone
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lite.data.images import IMAGE_SUFFIXES, PLAIN_SUFFIXES, is_hidden, open_slide
from seal_lite.data.readers.common import as_length, known, read_labels
from seal_lite.data.readers.h5ad import read_anndata
from seal_lite.data.readers.hest import read_hest
from seal_lite.data.readers.legacy_st import read_legacy_st
from seal_lite.data.readers.spatialdata import read_spatialdata
from seal_lite.data.readers.visium import (
    Sample,
    hires_image,
    is_of_series,
    read_visium,
    read_visium_hd,
    read_visium_of_series,
)
from seal_lite.data.readers.xenium import read_xenium
from seal_lite.errors import InputError
from seal_lite.paths import inside

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

Reader = Callable[[Path, dict[str, str]], "AnnData"]


def read_zarr(path: Path, labels: dict[str, str]) -> AnnData:
    """Read a zarr store, which is either an AnnData or a SpatialData."""
    reader = read_anndata if (path / "obs").is_dir() else read_spatialdata
    return reader(path, labels)


@dataclass(frozen=True)
class Source:
    """A format.

    Attributes
    ----------
    patterns
        Glob patterns of the file, or folder, that marks a section, the preferred first. The first *
        is its name.
    reader
        Function (path, labels) that reads the section which the file at `path` marks. The labels
        are its row of sections.tsv.
    accepts
        Function (path) that returns whether a matching file marks a section.
    """

    patterns: tuple[str, ...]
    reader: Reader
    accepts: Callable[[Path], bool] = Path.exists


def _name_of(path: Path, base: Path, pattern: str) -> str:
    """Return the name of the section that a file under `base` marks."""
    parts = Path(pattern).parts
    position = next(i for i, part in enumerate(parts) if "*" in part)
    _, _, suffix = parts[position].partition("*")
    return path.relative_to(base).parts[position].removesuffix(suffix)


def _below(folders: Sequence[str], *names: str) -> tuple[str, ...]:
    """Return patterns of each name below each of the folders."""
    return tuple(folder + name for name in names for folder in folders)


SAMPLE_FOLDERS = ("*/outs/", "*/")
BIN_FOLDERS = ("*/outs/binned_outputs/", "*/binned_outputs/", *SAMPLE_FOLDERS)
SOURCES = (
    Source(("data/ST-cnts/*.tsv.gz",), read_legacy_st),
    Source(("st/*.h5ad",), read_hest),
    Source(  # bins of 16 um, of 8 um, of any other two-digit size, of any size
        _below(BIN_FOLDERS, "square_016um", "square_008um", "square_0[1-9]?um", "square_*um"),
        read_visium_hd,
    ),
    Source(
        (
            "*_filtered_feature_bc_matrix.h5",
            "*_raw_feature_bc_matrix.h5",
            "*_matrix.mtx",
            "*_matrix.mtx.gz",
        ),
        read_visium_of_series,
        accepts=is_of_series,
    ),
    Source(
        _below(
            SAMPLE_FOLDERS,
            "*filtered_feature_bc_matrix.h5",
            "*raw_feature_bc_matrix.h5",
            "*feature_bc_matrix/*matrix.mtx*",
            "*_matrix.mtx*",
            "spatial/*tissue_positions*",
        ),
        read_visium,
    ),
    Source(("*/transcripts.parquet", "*/transcripts.csv.gz"), read_xenium),
    Source(("*.h5ad",), read_anndata),
    Source(("*.zarr",), read_zarr),
)
# Where the image of a section is sought, in this order. A pattern without * names the image itself;
# of the others' matches, those with an image's suffix count.
IMAGE_PATTERNS = (
    "data/ST-imgs/*/{name}/*",
    "wsis/{name}.*",
    "patches/{name}.h5",  # HEST's ready patches, where the slide is not there
    "{name}/*he_image*",
    "{name}/*",
    "{name}/outs/*",
    "{name}/microscope_image/*",
    "{name}.*",
    "{name}.zarr/images",
)
# Names, in lower case, of images that Space Ranger writes beside the one it has read.
BY_PRODUCTS = (
    "tissue_hires_image",
    "tissue_lowres_image",
    "aligned_fiducials",
    "aligned_tissue_image",
    "detected_tissue_image",
)
NUMBER_COLUMNS = ("um_per_px", "pitch_um", "spot_um", "pool_um")  # of sections.tsv


@dataclass(frozen=True)
class SectionFile:
    """Where a section stands on disk.

    Attributes
    ----------
    name
        The section's name.
    path
        The file, or folder, that marks it.
    base
        The folder with its tables, to which its image's path is relative.
    reader
        Function (path, labels) that reads it.
    """

    name: str
    path: Path
    base: Path
    reader: Reader


def find_sections(root: str | Path) -> dict[str, SectionFile]:
    """Return every section under `root`, or the one that `root` is itself, by name.

    Raises
    ------
    InputError
        If there is none.
    """
    root = Path(root).absolute()
    sections: dict[str, SectionFile] = {}
    claimed: set[Path] = set()  # a file marks one section, and what a folder of bins holds none
    for source in SOURCES:
        for pattern in source.patterns:
            for path, base in _marking_files(root, pattern):
                if not claimed.isdisjoint([path, *path.parents]) or not source.accepts(path):
                    continue
                claimed.add(path)
                name = _name_of(path, base, pattern)
                sections.setdefault(name, SectionFile(name, path, base, source.reader))
    if not sections:
        patterns = ", ".join(source.patterns[-1] for source in SOURCES)
        raise InputError(f"{root}: holds no section; one is marked by {patterns}")
    return sections


def _marking_files(root: Path, pattern: str) -> list[tuple[Path, Path]]:
    """Return (path, base) of the files that match a pattern.

    The base is `root`, or else a folder above it which the pattern leads from through `root`.
    """
    parts = Path(pattern).parts
    bases = (root, *root.parents)
    for depth, base in enumerate(bases[: len(parts) + 1]):
        is_on_the_way = all(map(fnmatch, root.relative_to(base).parts, parts[:depth]))
        if not is_on_the_way:
            continue
        rest = "/".join(parts[depth:])
        paths = sorted(root.glob(rest)) if rest else [root]
        visible = [path for path in paths if not is_hidden(path.relative_to(base))]
        if visible:
            return [(path, base) for path in visible]
    return []


def list_sections(root: str | Path) -> list[str]:
    """Return the names of all sections under `root` with both counts and an image, sorted.

    Raises
    ------
    InputError
        If there is no section at all, or as `image_path`.
    """
    sections = find_sections(root).values()
    return sorted(section.name for section in sections if section_image(section) is not None)


def section_image(section: SectionFile) -> Path | None:
    """Return a section's image as `image_path`, else the small one that Space Ranger has made.

    Raises
    ------
    InputError
        As `image_path`.
    """
    image = image_path(section.base, section.name)
    if image is None and section.reader is read_visium_of_series:
        image = _find_image(section.base, section.name, ("{name}_*",))
        if image is None:
            image = hires_image(Sample.of_series(section.path))
    elif image is None and section.reader in (read_visium, read_visium_hd):
        image = hires_image(Sample.at(section.path))
    return image


def image_path(base: str | Path, name: str) -> Path | None:
    """Return a section's image, which BASE/sections.tsv names or a pattern finds; None without one.

    Raises
    ------
    InputError
        If the image is named and absent, or outside of the folder, or one of several.
    """
    base = Path(base)
    labels = section_labels(base, name)
    if "image" in labels:
        path = inside(base, labels["image"], table=base / "sections.tsv")
        if not path.exists():
            raise InputError(f"{path}: no such image; correct sections.tsv")
        return path
    return _find_image(base, name, IMAGE_PATTERNS)


def _find_image(base: Path, name: str, patterns: Sequence[str]) -> Path | None:
    """Return the image that the first matching pattern finds."""
    for pattern in patterns:
        matches = sorted(base.glob(pattern.format(name=glob.escape(name))))
        matches = [path for path in matches if not is_hidden(path.relative_to(base))]
        if "*" in pattern:
            matches = _full_images(matches)
        if len(matches) > 1:
            matches = _readable(matches)
        if len(matches) > 1:
            raise InputError(
                f"{matches[0]}: is not the only image there ({matches[1].name}); "
                "name one in the column image of sections.tsv"
            )
        if matches:
            return matches[0]
    return None


def _readable(paths: Sequence[Path]) -> list[Path]:
    """Return of several images those that can be H&E, and log the others; all where none can."""
    readable = []
    others = []
    for path in paths:
        try:
            if path.suffix.lower() not in PLAIN_SUFFIXES:  # these are read whole
                open_slide(path)
            readable.append(path)
        except InputError as error:
            others.append(str(error))
    if not readable:
        return list(paths)
    for fault in others:
        log.info("%s is taken; %s", readable[0].name, fault)
    return readable


def _full_images(paths: Sequence[Path]) -> list[Path]:
    """Return the images among files, but for Space Ranger's and, beside another, CytAssist's."""
    images = []
    for path in paths:
        is_by_product = any(word in path.name.lower() for word in BY_PRODUCTS)
        if path.suffix.lower() in IMAGE_SUFFIXES and not is_by_product:
            images.append(path)
    named_by_10x = [path for path in images if "tissue_image" in path.name.lower()]
    of_microscope = [path for path in images if "cytassist" not in path.name.lower()]
    for preferred in (named_by_10x, of_microscope):
        if len(preferred) == 1:
            return preferred
    return images


def section_labels(base: str | Path, name: str) -> dict[str, str]:
    """Return a section's row of BASE/sections.tsv by column, without cells of missing values.

    Without that file, the result is empty.

    Raises
    ------
    InputError
        If the table cannot be read, has not one row for the section, or has text where a number
        belongs.
    """
    path = Path(base) / "sections.tsv"
    if not path.exists():
        return {}
    table = read_labels(path, needs=["section"])
    rows = table[table.section == name]
    if len(rows) != 1:
        raise InputError(f"{path}: has {len(rows)} rows for section {name}; give it one")
    row = rows.iloc[0].drop("section")
    labels = known(row)
    for column in NUMBER_COLUMNS:
        if column in labels:
            as_length(path, column, labels[column], remedy="correct it")
    return labels
