"""Pairs on disk, a file for each section: for more of them than memory holds.

    FOLDER/panel.json       the `GenePanel`, fitted before anything was written
    FOLDER/config.json      the settings that patches and expression were made with
    FOLDER/<section>.h5     img (n, px, px, 3) uint8 and key (n,), the patches and their names, and
                            z-scored expression, sparse: the lowest value of each gene once, and
                            what lies above it by row (data, indices, indptr)

HDF5, because HEST's pairs come in it and one seek reads a row of a contiguous array, so that an
epoch's order can be a full shuffle; a format that is read in order would need a buffer for that.
"""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
from scipy.sparse import csr_matrix

from .config import Config
from .errors import InputError, reading
from .evaluate import genes_to_score
from .files import alone, appearing, refuse_h5_bomb, write_atomic
from .genes import GenePanel
from .pairs import Section, extract_patches
from .sections import load_counts

SETTINGS = ("patch_um", "patch_px", "n_genes", "hvg", "smooth", "zscore", "clip")


def shard_sections(root, names, config: Config, out, *, include=()) -> list[Path]:
    """Fit the panel to the sections `names` under `root` and write their pairs: `write_shards`.

    Counts of all, but patches of one section at a time, are in memory. The panel also holds
    `evaluate.genes_to_score` and the genes in `include`. Raises `InputError` as
    `sections.load_sections`, `GenePanel.fit` and `write_shards` do.
    """
    counts = load_counts(root, names)
    bare = [Section(a, np.arange(0), np.zeros(0, np.uint8)) for a in counts]
    panel = GenePanel.from_config(bare, config, include=[*genes_to_score(root, bare), *include])
    size = {"patch_um": config.patch_um, "patch_px": config.patch_px}
    sections = (Section(a, *extract_patches(a, **size)) for a in counts)
    return write_shards(sections, panel, config, out)


def write_shards(sections, panel: GenePanel, config: Config, out) -> list[Path]:
    """Write every `Section`, with its expression on `panel`, and return the files.

    `sections` may be a generator: one is held at a time. `config` says what patches and panel were
    made with. A file appears only when complete; one that is there already is kept. Raises
    `InputError` where `out` holds shards of another panel, of other settings or of other data.
    """
    out, files = Path(out), []
    if not holds_shards(out):
        write_atomic(out / "config.json", config.to_json())
        panel.save(out / "panel.json")  # last: with it they are shards
    if _made_with(out, config).genes != panel.genes:
        raise InputError(f"{out}: holds shards of another gene panel; choose another folder")
    with alone(out):
        for section in sections:
            files.append(path := out / f"{section.name}.h5")
            if path.exists():
                if Shard(path).digest != section.digest:
                    raise InputError(
                        f"{path}: holds other data of this name; choose another folder"
                    )
                continue
            z = section.expression(panel)
            lowest = z.min(0)  # what a spot without the gene has: most spots, of most genes
            above = csr_matrix(z > lowest)
            with appearing(path) as part, h5py.File(part, "w") as file:
                file.attrs.update(name=section.name, digest=section.digest)
                file["img"] = section.patches
                file["key"] = np.char.encode(section.keys)
                file["data"], file["lowest"] = z[z > lowest], lowest
                file["indices"], file["indptr"] = above.indices, above.indptr
    return files


def read_shards(folder, config: Config, *, names=None) -> tuple[list[Shard], GenePanel]:
    """The shards in `folder`, or those of the sections in `names`, and their panel, for `finetune`.

    Raises `InputError` where there is none of that name, a file is damaged, or they were made with
    other settings than the config's.
    """
    folder = Path(folder)
    panel = _made_with(folder, config)
    known = sorted(p.stem for p in folder.glob("*.h5"))
    if lost := sorted(set(names or ()) - set(known)):
        raise InputError(f"{folder}: has no shard of section '{lost[0]}'; it has {known}")
    return [Shard(folder / f"{n}.h5") for n in names or known], panel


def holds_shards(folder) -> bool:
    """Is this a folder of `write_shards`?"""
    return (Path(folder) / "panel.json").exists()


def _made_with(folder: Path, config: Config) -> GenePanel:
    if not holds_shards(folder):
        raise InputError(f"{folder}: holds no shards; write them with `seal-lite shard`")
    made = Config.from_json(folder / "config.json")
    if odd := [k for k in SETTINGS if getattr(made, k) != getattr(config, k)]:
        was, now = (f"{odd[0]}={getattr(c, odd[0])}" for c in (made, config))
        raise InputError(f"{folder}: its shards were made with {was}, not {now}; write them again")
    return GenePanel.load(folder / "panel.json")


class Shard:
    """A section's pairs on disk, as training reads them: a `Section` without its counts.

    Attributes: `name`; `digest`, that of the section; `rows`, as many as there are pairs; `patches`
    (n, px, px, 3) uint8, read by index. Raises `InputError` for a file that is no shard.
    """

    def __init__(self, path):
        access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
        access.set_sieve_buf_size(0)  # a row is wanted, not the 64 KB around it, in memory for good
        with reading(path, fault="is no shard", remedy="remove it and write it again"):
            file = h5py.File(h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY, access))
            refuse_h5_bomb(file)
            self.name, self.digest = file.attrs["name"], file.attrs["digest"]
            self._keys, self.patches = file["key"][:], file["img"]
            self._expression = Rows(file)
        self.rows = range(len(self._keys))

    def key(self, i: int) -> str:
        """The name of patch `i`: 'section/barcode'."""
        return self._keys[i].decode()

    def expression(self, panel) -> Rows:
        """What z-scored expression (genes,) is read from by index: on the panel that it was written
        with, which `read_shards` returns beside it."""
        return self._expression


class Rows:
    """Sparse rows of a shard's open file, dense one at a time: `rows[i]` is (genes,) float32."""

    def __init__(self, file):
        self.data, self.indices = file["data"], file["indices"]
        self.indptr, self.lowest = file["indptr"][:], file["lowest"][:]

    def __getitem__(self, i: int) -> np.ndarray:
        x, part = self.lowest.copy(), slice(*self.indptr[i : i + 2])
        x[self.indices[part]] = self.data[part]
        return x
