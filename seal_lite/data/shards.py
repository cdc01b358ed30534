"""Pairs on disk, one file for each section: for more pairs than memory holds.

::

    FOLDER/panel.json       the `GenePanel`, fitted before the first shard is written
    FOLDER/config.json      the settings that patches and expression were made with
    FOLDER/<section>.h5     the pairs of one section:
        img (n, px, px, 3) uint8            patches
        key (n,) bytes                      their names, "section/barcode"
        genes (g,) bytes                    the panel's genes, in its order
        lowest (g,) float32                 the lowest z-score of each gene
        data, indices, indptr               z-scores above the lowest, as a sparse matrix by rows

Shards are HDF5, as are HEST's pairs. One seek reads a row of a contiguous array, so that the order
of an epoch can be a full shuffle; a format that is read in sequence would need a buffer for that.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import h5py
import numpy as np
from scipy.sparse import csr_matrix

from seal_lite.config import Config
from seal_lite.data.genes import GenePanel
from seal_lite.data.patches import extract_patches
from seal_lite.data.readers.sparse import check_finite, check_matrix
from seal_lite.data.section import Section
from seal_lite.errors import InputError, reading
from seal_lite.io import atomic_file, check_h5, write_atomic
from seal_lite.locks import exclusive_folder
from seal_lite.paths import file_name
from seal_lite.schema import Names, Sha256, Size, check, check_array
from seal_lite.terminal import printable

if TYPE_CHECKING:
    from anndata import AnnData

LARGEST_Z = 1e6  # far beyond any z-score, and far below what a loss in float32 overflows with
SHARD_REMEDY = "remove it and write it again"
SETTINGS = ("patch_um", "patch_px", "n_genes", "hvg", "smooth", "smooth_over", "zscore", "clip")


def shard_sections(
    adatas: Sequence[AnnData], config: Config, out: str | Path, *, include: Iterable[str] = ()
) -> list[Path]:
    """Fit a panel to sections and write their pairs, one section's patches in memory at a time.

    Parameters
    ----------
    adatas
        Training sections, from `load_counts`.
    config
        Settings of patches and panel.
    out
        Folder of the shards.
    include
        Names of genes that the panel holds beside the most variable ones.

    Returns
    -------
    list of Path
        The shards, one for each section.

    Raises
    ------
    InputError
        As `extract_patches`, `GenePanel.fit` and `write_shards`.
    """
    panel = GenePanel.from_adatas(adatas, config, include=include)
    sections = (
        Section(adata, *extract_patches(adata, patch_um=config.patch_um, patch_px=config.patch_px))
        for adata in adatas
    )
    return write_shards(sections, out, panel=panel, config=config)


def write_shards(
    sections: Iterable[Section], out: str | Path, *, panel: GenePanel, config: Config
) -> list[Path]:
    """Write every section with its expression on a panel.

    A file appears only when it is complete; a file that is there already stays.

    Parameters
    ----------
    sections
        Sections, or a generator of them, of which one is held at a time.
    out
        Folder of the shards.
    panel
        The panel that z-scores the expression.
    config
        The settings that patches and panel were made with.

    Returns
    -------
    list of Path
        The shards, one for each section.

    Raises
    ------
    InputError
        Where ``out`` holds shards of another panel, of other settings or of other data.
    """
    out = Path(out)
    if not holds_shards(out):
        write_atomic(out / "config.json", config.to_json())
        panel.save(out / "panel.json")  # last: a folder with this file is one of shards
    if _read_panel(out, config).genes != panel.genes:
        raise InputError(f"{out}: holds shards of another gene panel; choose another folder")
    paths = []
    with exclusive_folder(out):
        for section in sections:
            path = out / f"{file_name(section.name)}.h5"
            if not path.exists():
                _write_shard(path, section, panel)
            elif Shard(path).digest != section.digest:
                raise InputError(f"{path}: holds other data of this name; choose another folder")
            paths.append(path)
    return paths


def _write_shard(path: Path, section: Section, panel: GenePanel) -> None:
    """Write the pairs of one section."""
    z = section.expression(panel)  # (n, g)
    lowest = z.min(0)  # the z-score without a count: that of most spots, for most genes
    is_above = z > lowest
    layout = csr_matrix(is_above)
    with atomic_file(path) as part, h5py.File(part, "w") as file:
        file.attrs.update(name=section.name, digest=section.digest)
        file["img"] = section.patches
        file["key"] = np.char.encode(section.keys)
        file["genes"] = np.char.encode(panel.genes)
        file["data"] = z[is_above]
        file["lowest"] = lowest
        file["indices"] = layout.indices
        file["indptr"] = layout.indptr


def read_shards(
    folder: str | Path, config: Config, *, names: Sequence[str] | None = None
) -> tuple[list[Shard], GenePanel]:
    """Open shards for `finetune`.

    Parameters
    ----------
    folder
        A folder of `write_shards`.
    config
        Settings of the run, which must be those of the shards.
    names
        Names of sections; None for all in the folder.

    Returns
    -------
    shards
        One for each section.
    panel
        The panel of their expression.

    Raises
    ------
    InputError
        Where a section has no shard, a file is damaged, or the shards were made with other
        settings.
    """
    folder = Path(folder)
    panel = _read_panel(folder, config)
    available = sorted(path.stem for path in folder.glob("*.h5"))
    stems = [file_name(name) for name in names] if names else available
    missing = sorted(set(stems) - set(available))
    if missing:
        raise InputError(f"{folder}: has no shard of section '{missing[0]}'; it has {available}")
    return [Shard(folder / f"{stem}.h5", px=config.patch_px) for stem in stems], panel


def holds_shards(folder: str | Path) -> bool:
    """Return whether `write_shards` made this folder."""
    return (Path(folder) / "panel.json").exists()


def _read_panel(folder: Path, config: Config) -> GenePanel:
    """Read the panel of a folder whose shards were made with these settings."""
    if not holds_shards(folder):
        raise InputError(f"{folder}: holds no shards; write them with `seal-lite shard`")
    stored = Config.from_json(folder / "config.json")
    for key in SETTINGS:
        old = getattr(stored, key)
        new = getattr(config, key)
        if old != new:
            raise InputError(
                f"{folder}: its shards were made with {key}={old}, not {key}={new}; "
                "write them again"
            )
    return GenePanel.load(folder / "panel.json")


class ShardFields(TypedDict):
    """What a shard's file states beside its arrays of numbers."""

    name: Annotated[str, Size(1, 1000)]
    digest: Sha256
    key: Names
    genes: Names


class Shard:
    """A section's pairs on disk, as training reads them: a `Section` without its counts.

    Parameters
    ----------
    path
        A file of `write_shards`, which stays open.
    px
        Edge of its patches, which is checked; None takes any.

    Attributes
    ----------
    path : Path
        The file.
    name, digest : str
        Those of the section.
    genes : tuple of str
        The genes of the expression, in the order of the panel that it was written with.
    rows : range
        The n pairs.
    patches : h5py.Dataset
        Patches (n, px, px, 3) uint8, read by index.

    Raises
    ------
    InputError
        Where the file is no shard.
    """

    def __init__(self, path: str | Path, *, px: int | None = None) -> None:
        self.path = Path(path)
        access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
        # HDF5 would keep the 64 KB around each row that was read in memory.
        access.set_sieve_buf_size(0)
        with reading(path, fault="is no shard", remedy=SHARD_REMEDY):
            file = h5py.File(h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY, access))
            check_h5(file)
            fields = {**file.attrs, "key": _texts(file["key"]), "genes": _texts(file["genes"])}
            stored: ShardFields = check(fields, ShardFields, path=path, remedy=SHARD_REMEDY)
            self.name = stored["name"]
            self.digest = stored["digest"]
            self.patches = file["img"]
            self._keys = stored["key"]
            self.genes = tuple(stored["genes"])
            self._expression = Rows(path, file, shape=(len(self._keys), len(self.genes)))
            if self.path.stem != file_name(self.name):
                message = f"{path}: holds section {printable(self.name)}"
                raise InputError(f"{message}, of which it has not the name; {SHARD_REMEDY}")
        shape = (len(self._keys), px, px, 3)
        check_array(path, "img", self.patches, shape=shape, dtype="uint8", remedy=SHARD_REMEDY)
        self.rows = range(len(self._keys))

    def key(self, i: int) -> str:
        """Return the name of patch ``i``: 'section/barcode'."""
        return self._keys[i]

    def expression(self, panel: GenePanel) -> Rows:
        """Return z-scored expression by index, on the panel that the shard was written with.

        Raises
        ------
        InputError
            Where `panel` has other genes, or another order of them. `Section.expression` takes any
            panel; here it must be the one that `read_shards` returns.
        """
        if tuple(panel.genes) != self.genes:
            raise InputError(
                f"{self.path}: was written with another gene panel; give the one that "
                "`read_shards` returns, or write it again"
            )
        return self._expression


class Rows:
    """z-scores of a shard's open file, n rows of g genes: ``rows[i]`` is dense, (g,) float32.

    Raises
    ------
    InputError
        Where the file does not hold a sparse matrix of this shape, of finite numbers.
    """

    def __init__(self, path: str | Path, file: h5py.File, *, shape: tuple[int, int]) -> None:
        check_matrix(path, file, shape=shape)
        for name, lengths in (("data", (None,)), ("lowest", shape[1:])):
            check_array(path, name, file[name], shape=lengths, dtype="float32", remedy=SHARD_REMEDY)
            check_finite(path, name, file[name], largest=LARGEST_Z)
        self.data = file["data"]
        self.indices = file["indices"]
        self.indptr = file["indptr"][:]
        self.lowest = file["lowest"][:]

    def __getitem__(self, i: int) -> np.ndarray:
        stored = slice(self.indptr[i], self.indptr[i + 1])
        row = self.lowest.copy()
        row[self.indices[stored]] = self.data[stored]
        return row


def _texts(dataset: h5py.Dataset) -> list[str]:
    """Return the texts of an array of bytes."""
    return [text.decode() for text in dataset[:]]
