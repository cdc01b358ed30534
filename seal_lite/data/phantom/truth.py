"""The ground truth of a phantom: its counts without noise, and where each tissue is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np
import pandas as pd

from seal_lite.data.genes import columns
from seal_lite.errors import InputError, reading
from seal_lite.paths import inside
from seal_lite.schema import Names, check, check_array
from seal_lite.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seal_lite.data.section import Section

REMEDY = "write the phantom again"


# The columns of genes.tsv; one is named with a word of Python.
GeneClasses = TypedDict(
    "GeneClasses",
    {
        "gene": Names,
        "class": list[Literal["visible", "subtle", "invisible", "housekeeping"]],
    },
)


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
        with reading(path, remedy=REMEDY):
            table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        listed = {name: list(table[name]) for name in table}
        genes: GeneClasses = check(listed, GeneClasses, path=path, remedy=REMEDY)
        classes = dict(zip(genes["gene"], genes["class"], strict=True))
        declared: dict[str, str] = {
            gene: kind for gene, kind in classes.items() if kind != "housekeeping"
        }
        return cls(folder, declared)

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
        arrays = self._read(section)
        shares, _ = columns(arrays["expected"], arrays["genes"], genes)
        return shares.astype(float)

    def regions(self, section: Section) -> np.ndarray:
        """Return the name of the region under each of the section's n patches, (n,) str."""
        return self._read(section)["region"]

    def _read(self, section: Section) -> dict[str, np.ndarray]:
        """Return the truth of a section's n patches: "genes" (g,), "expected" (n, g), "region".

        Raises
        ------
        InputError
            Where the file is damaged, or lacks a patch.
        """
        path = inside(self.folder, f"{section.name}.npz", table=section.name)
        with reading(path, fault="is no truth of a section", remedy=REMEDY), np.load(path) as file:
            arrays = {name: file[name] for name in ("barcodes", "genes", "expected", "region")}
        n, g = len(arrays["barcodes"]), len(arrays["genes"])
        check_array(path, "expected", arrays["expected"], shape=(n, g), remedy=REMEDY)
        check_array(path, "region", arrays["region"], shape=(n,), dtype="str.*", remedy=REMEDY)
        if not np.isfinite(arrays["expected"]).all():
            raise InputError(f"{path}: expected has NaN or infinity; {REMEDY}")
        row_of = {barcode: row for row, barcode in enumerate(arrays["barcodes"])}
        patches = section.adata.obs_names[section.rows]
        missing = [barcode for barcode in patches if barcode not in row_of]
        if missing:
            raise InputError(f"{path}: barcode {printable(missing[0])} is missing; {REMEDY}")
        rows = [row_of[barcode] for barcode in patches]
        return {
            "genes": arrays["genes"],
            "expected": arrays["expected"][rows],
            "region": arrays["region"][rows],
        }
