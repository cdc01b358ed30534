"""The ground truth of a phantom: its counts without noise, and where each tissue is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np

from seal_lite.data.genes import columns
from seal_lite.data.readers.common import read_table
from seal_lite.errors import InputError, reading
from seal_lite.paths import inside
from seal_lite.schema import Names, check, check_array
from seal_lite.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from seal_lite.data.section import Section

REMEDY = "write the phantom again, or remove the folder truth"
ARRAYS = ("barcodes", "genes", "expected", "region")  # of a section's file
TEXT = r"str\d+"


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
        table = read_table(path, remedy=REMEDY, dtype=str, keep_default_na=False)
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
        truth = self._read(section)
        shares, _ = columns(truth["expected"], truth["genes"], genes)
        return shares.astype(float)

    def regions(self, section: Section) -> np.ndarray:
        """Return the name of the region under each of the section's n patches, (n,) str."""
        return self._read(section)["region"]

    def check(self, sections: Iterable[Section]) -> None:
        """Check that sections have a ground truth.

        Raises
        ------
        InputError
            Where the file of one is absent, damaged, or lacks one of its patches.
        """
        for section in sections:
            self._read(section)

    def _read(self, section: Section) -> dict[str, np.ndarray]:
        """Return the truth of a section's n patches: "expected" (n, g), "region" (n,), "genes"."""
        path = inside(self.folder, f"{section.name}.npz", table=section.name)
        with reading(path, remedy=REMEDY), np.load(path) as file:
            barcodes, genes, expected, region = (file[name] for name in ARRAYS)
        n, g = len(barcodes), len(genes)
        for name, array in (("barcodes", barcodes), ("region", region)):
            check_array(path, name, array, shape=(n,), dtype=TEXT, remedy=REMEDY)
        check_array(path, "genes", genes, shape=(g,), dtype=TEXT, remedy=REMEDY)
        check_array(path, "expected", expected, shape=(n, g), remedy=REMEDY)
        if not np.isfinite(expected).all():
            raise InputError(f"{path}: expected has NaN or infinity; {REMEDY}")
        row_of = {barcode: row for row, barcode in enumerate(barcodes)}
        names = section.adata.obs_names[section.rows]
        missing = [name for name in names if name not in row_of]
        if missing:
            raise InputError(f"{path}: has no barcode {printable(missing[0])}; {REMEDY}")
        rows = [row_of[name] for name in names]
        return {"expected": expected[rows], "region": region[rows], "genes": genes}
