"""From a folder to its sections: the files of each one, its image, its row of sections.tsv.

A folder holds sections of any of the formats in `SOURCES`, and may hold two tables about them::

    ROOT/sections.tsv    section, and any of: patient, organ, technology, stain, species, image (a
                         path under ROOT), um_per_px, table (of a SpatialData store), library (of
                         a file with several), pool_um, ...
    ROOT/genes.tsv       id and symbol of genes, where counts come with Ensembl ids alone
"""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lite.data.images import IMAGE_SUFFIXES
from seal_lite.data.readers.common import known, read_labels
from seal_lite.data.readers.h5ad import read_anndata
from seal_lite.data.readers.hest import read_hest
from seal_lite.data.readers.legacy_st import read_legacy_st
from seal_lite.data.readers.spatialdata import read_spatialdata
from seal_lite.data.readers.visium import read_visium, read_visium_hd
from seal_lite.data.readers.xenium import read_xenium
from seal_lite.errors import InputError, reading

if TYPE_CHECKING:
    from anndata import AnnData

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
    pattern
        Glob pattern of the file, or folder, that marks a section. The first * is its name.
    reader
        Function (path, labels) that reads the section which the file at `path` marks. The labels
        are its row of sections.tsv.
    """

    pattern: str
    reader: Reader

    def name_of(self, path: Path, base: Path) -> str:
        """Return the name of the section that a file under `base` marks."""
        parts = Path(self.pattern).parts
        position = next(i for i, part in enumerate(parts) if "*" in part)
        _, _, suffix = parts[position].partition("*")
        return path.relative_to(base).parts[position].removesuffix(suffix)


SOURCES = (
    Source("data/ST-cnts/*.tsv.gz", read_legacy_st),
    Source("st/*.h5ad", read_hest),
    Source("*/*filtered_feature_bc_matrix.h5", read_visium),
    Source("*/outs/*filtered_feature_bc_matrix.h5", read_visium),
    Source("*/binned_outputs", read_visium_hd),
    Source("*/outs/binned_outputs", read_visium_hd),
    Source("*/transcripts.parquet", read_xenium),
    Source("*/transcripts.csv.gz", read_xenium),
    Source("*.h5ad", read_anndata),
    Source("*.zarr", read_zarr),
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
    "{name}.*",
    "{name}.zarr/images",
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
    for source in SOURCES:
        for path, base in _marking_files(root, source.pattern):
            name = source.name_of(path, base)
            sections.setdefault(name, SectionFile(name, path, base, source.reader))
    if not sections:
        patterns = ", ".join(source.pattern for source in SOURCES)
        raise InputError(f"{root}: holds no section; one is marked by {patterns}")
    return sections


def _marking_files(root: Path, pattern: str) -> list[tuple[Path, Path]]:
    """Return (path, base) of the files that match a pattern under `root`, or with `root` in it."""
    inside = sorted(root.glob(pattern))
    if inside:
        return [(path, root) for path in inside]
    beside = root.parent.glob(pattern)
    return [(path, root.parent) for path in beside if root in (path, *path.parents)]


def list_sections(root: str | Path) -> list[str]:
    """Return the names of all sections under `root` with both counts and an image, sorted.

    Raises
    ------
    InputError
        If there is no section at all, or as `image_path`.
    """
    sections = find_sections(root).values()
    return sorted(s.name for s in sections if image_path(s.base, s.name) is not None)


def image_path(base: str | Path, name: str) -> Path | None:
    """Return a section's image, which BASE/sections.tsv names or a pattern finds; None without one.

    Raises
    ------
    InputError
        If the image is named and absent, or one of several.
    """
    base = Path(base)
    labels = section_labels(base, name)
    if "image" in labels:
        path = base / labels["image"]
        if not path.exists():
            raise InputError(f"{path}: no such image; correct sections.tsv")
        return path
    for pattern in IMAGE_PATTERNS:
        matches = sorted(base.glob(pattern.format(name=glob.escape(name))))
        if "*" in pattern:
            matches = [path for path in matches if path.suffix.lower() in IMAGE_SUFFIXES]
        if len(matches) > 1:
            raise InputError(
                f"{matches[0]}: is not the only image there ({matches[1].name}); "
                "name one in the column image of sections.tsv"
            )
        if matches:
            return matches[0]
    return None


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
            value = labels[column]
            with reading(path, fault=f"{column} '{value}' is no number", remedy="correct it"):
                float(value)
    return labels
