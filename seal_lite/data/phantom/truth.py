"""The ground truth of a phantom: its counts without noise, and where each tissue is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from seal_lite.data.genes import columns
from seal_lite.errors import reading
from seal_lite.paths import inside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.lib.npyio import NpzFile

    from seal_lite.data.section import Section


@dataclass(frozen=True)
class GroundTruth:
    """The ground truth that `phantom` writes beside its sections.

    Parameters
    ----------
    folder
        The phantom's folder ``truth``.
    classes
        The class of each declared gene: "visible", "subtle" or "invisible".
    """

    folder: Path
    classes: dict[str, str]

    @classmethod
    def find(cls, root: str | Path) -> GroundTruth | None:
        """Return the ground truth under ``root``, or None where the data are real."""
        folder = Path(root) / "truth"
        path = folder / "genes.tsv"
        if not path.exists():
            return None
        with reading(path, remedy="write the phantom again"):
            classes = pd.read_csv(path, sep="\t", index_col="gene")["class"]
        declared = classes[classes != "housekeeping"]
        return cls(folder, declared.to_dict())

    def expected(self, section: Section, genes: Sequence[str]) -> np.ndarray:
        """Return the noise-free share of each gene in a patch's transcripts.

        Parameters
        ----------
        section
            A section of the phantom, with n patches.
        genes
            Names of g genes. The share of an unknown gene is 0.

        Returns
        -------
        np.ndarray
            Shares (n, g), float64.
        """
        with self._open(section) as truth:
            rows = _rows_of_patches(truth["barcodes"], section)
            shares, _ = columns(truth["expected"][rows], truth["genes"], genes)
        return shares.astype(float)

    def _open(self, section: Section) -> NpzFile:
        """Open the file with the truth of a section."""
        path = inside(self.folder, f"{section.name}.npz", table=section.name)
        with reading(path, remedy="write the phantom again"):
            return np.load(path)

    def regions(self, section: Section) -> np.ndarray:
        """Return the name of the region under each of the section's n patches, (n,) str."""
        with self._open(section) as truth:
            rows = _rows_of_patches(truth["barcodes"], section)
            return truth["region"][rows]


def _rows_of_patches(barcodes: np.ndarray, section: Section) -> list[int]:
    """Rows of the truth's table, in the order of the section's patches."""
    row_of = {barcode: row for row, barcode in enumerate(barcodes)}
    return [row_of[barcode] for barcode in section.adata.obs_names[section.rows]]
