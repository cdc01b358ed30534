"""Find what crosses a split: a patient on both sides, or one sample under two names.

Public collections of spatial transcriptomics hold the same sample under two ids, and sections of
one patient under ids that do not show it. A score on such a split is a score on training data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from seal_lite.data.patches import thumbnail
from seal_lite.data.readers.gene_names import gene_keys
from seal_lite.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

    from seal_lite.data.section import Section

# Correlation of log pseudo-bulk over common genes. In her2st sections of one tumour have 0.945 to
# 0.985, of different patients at most 0.892; a sample under a second id differs by filtering only.
SAME_EXPRESSION = 0.995
SAME_IMAGE = 0.95  # correlation of thumbnails: one image, whatever was counted on it
THUMBNAIL_UM_PER_PX = 50.0
THUMBNAIL_PX = 64


def find_leakage(sections: Sequence[Section], groups: Sequence[str]) -> list[str]:
    """Describe every pair of sections that a split by groups should not separate.

    Parameters
    ----------
    sections
        Sections of a cross-validation.
    groups
        The group of each section; a group is held out as a whole.

    Returns
    -------
    list of str
        One message for each pair in different groups that has, in this order, the same counts,
        almost the same pseudo-bulk expression, almost the same image, or the same patient.
    """
    prints = [_Fingerprint.of_section(section) for section in sections]
    messages = []
    for i, j in combinations(range(len(sections)), 2):
        if groups[i] == groups[j]:
            continue
        overlap = prints[i].overlap(prints[j])
        if overlap:
            messages.append(f"sections {sections[i].name} and {sections[j].name} {overlap}")
    return messages


def check_leakage(
    sections: Sequence[Section], groups: Sequence[str], *, allow: bool = False
) -> list[str]:
    """Return the messages of `find_leakage`, with which a result is marked.

    Raises
    ------
    InputError
        Where there is a message and ``allow`` is False.
    """
    messages = find_leakage(sections, groups)
    if messages and not allow:
        n_more = len(messages) - 1
        more = f", and {n_more} more pairs" if n_more else ""
        raise InputError(
            f"{messages[0]} but would be on both sides of a split{more}; "
            "group them together, or say --allow-leakage, which marks the result"
        )
    return messages


@dataclass(frozen=True)
class _Fingerprint:
    """What two names of one sample have in common."""

    counts_hash: str
    pseudobulk: dict[str, float]  # log1p counts per million of each gene
    thumbnail: np.ndarray | None  # grey, (THUMBNAIL_PX^2,); None without an image
    patient: str

    @classmethod
    def of_section(cls, section: Section) -> _Fingerprint:
        """Return the fingerprint of a section."""
        adata = section.adata
        return cls(_hash_counts(adata), _pseudobulk(adata), _grey_thumbnail(adata), section.patient)

    def overlap(self, other: _Fingerprint) -> str | None:
        """Say what two sections share, as the end of a sentence about them, or None."""
        if self.counts_hash == other.counts_hash:
            return "have the same counts"
        genes = sorted(self.pseudobulk.keys() & other.pseudobulk.keys())
        r_expression = correlation(
            [self.pseudobulk[gene] for gene in genes], [other.pseudobulk[gene] for gene in genes]
        )
        if r_expression > SAME_EXPRESSION:
            return f"have almost the same expression (r = {r_expression:.4f})"
        if self.thumbnail is not None and other.thumbnail is not None:
            r_image = correlation(self.thumbnail, other.thumbnail)
            if r_image > SAME_IMAGE:
                return f"show almost the same image (r = {r_image:.3f})"
        if self.patient == other.patient:
            return f"are both of patient {self.patient}"
        return None


def _hash_counts(adata: AnnData) -> str:
    """Hash the counts, whatever the order and the names of genes and spots."""
    counts = adata.layers["counts"]
    digest_input = []
    for axis in (0, 1):
        sums = np.sort(np.asarray(counts.sum(axis), np.int64).ravel())
        digest_input.append(sums[sums > 0].tobytes())
    return hashlib.sha256(b"|".join(digest_input)).hexdigest()


def _pseudobulk(adata: AnnData) -> dict[str, float]:
    """Return log1p counts per million of each gene over the whole section."""
    total = np.asarray(adata.layers["counts"].sum(0), float).ravel()
    per_million = 1e6 * total / total.sum()
    return dict(zip(gene_keys(adata.var_names), np.log1p(per_million), strict=True))


def _grey_thumbnail(adata: AnnData) -> np.ndarray | None:
    """Return the grey thumbnail, (THUMBNAIL_PX^2,) float64, or None without an image."""
    if not adata.uns.get("image_path"):
        return None
    image, _ = thumbnail(adata, um_per_px=THUMBNAIL_UM_PER_PX)
    grey = Image.fromarray(image).convert("L").resize((THUMBNAIL_PX, THUMBNAIL_PX))
    return np.asarray(grey, float).ravel()


def correlation(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Return Pearson's r of two (n,) vectors, or 0 where n < 3 or one of them is constant."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])
