"""Find what crosses a split: a patient on both sides, or one sample under two names.

Public collections of spatial transcriptomics hold the same sample under two ids, and sections of
one patient under ids that do not show it. A score on such a split is a score on training data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
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
GENES_AT_ONCE = 2048  # of which pseudo-bulks are dense at a time
CONSTANT = 1e-12  # share of the spread below which values differ by rounding only


def find_leakage(
    sections: Sequence[Section],
    groups: Sequence[str],
    *,
    prints: Sequence[Fingerprint] | None = None,
) -> list[str]:
    """Describe every pair of sections that a split by groups should not separate.

    Parameters
    ----------
    sections
        Sections of a cross-validation.
    groups
        The group of each section; a group is held out as a whole.
    prints
        The sections' fingerprints, where they are known.

    Returns
    -------
    list of str
        One message for each pair in different groups that has, in this order, the same counts,
        almost the same pseudo-bulk expression, almost the same image, or the same patient.
    """
    names = [section.name for section in sections]
    if prints is None:
        prints = [Fingerprint.of_section(section) for section in sections]
    return describe_overlaps(names, groups, prints)


def describe_overlaps(
    names: Sequence[str], groups: Sequence[str], prints: Sequence[Fingerprint]
) -> list[str]:
    """Return what `find_leakage` does, from the sections' names and fingerprints."""
    if not prints:
        return []
    r_expression = expression_correlations([print_.pseudobulk for print_ in prints])
    r_image = _image_correlations([print_.thumbnail for print_ in prints])
    same_counts = _are_equal([print_.counts_hash for print_ in prints])
    same_patient = _are_equal([print_.patient for print_ in prints])
    overlaps = (
        same_counts | same_patient | (r_expression > SAME_EXPRESSION) | (r_image > SAME_IMAGE)
    )
    messages = []
    for i, j in np.argwhere(np.triu(overlaps & ~_are_equal(groups), 1)):
        if same_counts[i, j]:
            shared = "have the same counts"
        elif r_expression[i, j] > SAME_EXPRESSION:
            shared = f"have almost the same expression (r = {r_expression[i, j]:.4f})"
        elif r_image[i, j] > SAME_IMAGE:
            shared = f"show almost the same image (r = {r_image[i, j]:.3f})"
        else:
            shared = f"are both of patient {prints[i].patient}"
        messages.append(f"sections {names[i]} and {names[j]} {shared}")
    return messages


def check_leakage(
    sections: Sequence[Section],
    groups: Sequence[str],
    *,
    allow: bool = False,
    prints: Sequence[Fingerprint] | None = None,
) -> list[str]:
    """Return the messages of `find_leakage`, with which a result is marked.

    Parameters
    ----------
    sections, groups, prints
        As in `find_leakage`.
    allow
        Return messages where there are any.

    Raises
    ------
    InputError
        Where there is a message and ``allow`` is False.
    """
    messages = find_leakage(sections, groups, prints=prints)
    if messages and not allow:
        n_more = len(messages) - 1
        more = f", and {n_more} more pairs" if n_more else ""
        raise InputError(
            f"{messages[0]} but would be on both sides of a split{more}; "
            "group them together, or say --allow-leakage, which marks the result"
        )
    return messages


@dataclass(frozen=True)
class Fingerprint:
    """What two names of one sample have in common.

    Parameters
    ----------
    counts_hash
        Hash of the counts, whatever the order and the names of genes and spots.
    pseudobulk
        log1p counts per million of each gene over the whole section, (g,) float64. Its index is a
        hash of each gene's key, uint64: the names of 1,200 sections' genes would fill a gigabyte.
    thumbnail
        The grey image, (THUMBNAIL_PX^2,) float64; None without one.
    patient
        The patient's name.
    """

    counts_hash: str
    pseudobulk: pd.Series
    thumbnail: np.ndarray | None
    patient: str

    @classmethod
    def of_section(cls, section: Section) -> Fingerprint:
        """Return the fingerprint of a section."""
        adata = section.adata
        return cls(_hash_counts(adata), _pseudobulk(adata), _grey_thumbnail(adata), section.patient)


def expression_correlations(profiles: Sequence[pd.Series]) -> np.ndarray:
    """Return Pearson's r of every two profiles over the genes that both have.

    Parameters
    ----------
    profiles
        Of each of s sections, values (g_i,) by gene. Lists of genes may differ.

    Returns
    -------
    np.ndarray
        r (s, s); 0 where fewer than three genes are common, or a profile is constant on them.

    Notes
    -----
    r needs five sums over the common genes. Each is a product of matrices (s, genes) in which an
    absent gene is 0. A block of genes is dense at a time, which bounds the memory.
    """
    genes, columns = np.unique(np.concatenate([p.index for p in profiles]), return_inverse=True)
    starts = np.cumsum([0, *map(len, profiles)])
    centred = np.concatenate([p.to_numpy() - p.mean() for p in profiles])  # which keeps r
    shape = (len(profiles), len(genes))
    values = sp.csr_matrix((centred, columns, starts), shape=shape).tocsc()
    has_gene = sp.csr_matrix((np.ones(len(columns)), columns, starts), shape=shape).tocsc()
    n, sums, squares, products = np.zeros((4, len(profiles), len(profiles)))
    for start in range(0, len(genes), GENES_AT_ONCE):
        block = slice(start, start + GENES_AT_ONCE)
        x = values[:, block].toarray()
        present = has_gene[:, block].toarray()
        n += present @ present.T
        sums += x @ present.T  # of the row's profile, over the genes of both
        squares += x**2 @ present.T
        products += x @ x.T
    n = np.maximum(n, 1)
    covariance = products - sums * sums.T / n
    spread = squares - sums**2 / n
    is_varied = (n >= 3) & (spread > CONSTANT * squares)
    is_varied &= is_varied.T
    return np.where(is_varied, covariance / np.sqrt(np.where(is_varied, spread * spread.T, 1)), 0.0)


def _image_correlations(thumbnails: Sequence[np.ndarray | None]) -> np.ndarray:
    """Return Pearson's r (s, s) of every two thumbnails; 0 without one, or of a constant one."""
    flat = np.zeros(THUMBNAIL_PX**2)
    pixels = np.stack([flat if image is None else image for image in thumbnails])
    centred = pixels - pixels.mean(1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.where(norm > 0, norm, 1)
    return unit @ unit.T


def _are_equal(labels: Sequence[str]) -> np.ndarray:
    """Return which two of s labels are equal, (s, s) bool."""
    codes, _ = pd.factorize(np.array(labels, object))
    return codes[:, None] == codes


def _hash_counts(adata: AnnData) -> str:
    """Hash the counts, whatever the order and the names of genes and spots."""
    counts = adata.layers["counts"]
    digest_input = []
    for axis in (0, 1):
        sums = np.sort(np.asarray(counts.sum(axis), np.int64).ravel())
        digest_input.append(sums[sums > 0].tobytes())
    return hashlib.sha256(b"|".join(digest_input)).hexdigest()


def _pseudobulk(adata: AnnData) -> pd.Series:
    """Return `Fingerprint.pseudobulk` of a section."""
    total = np.asarray(adata.layers["counts"].sum(0), float).ravel()
    per_million = 1e6 * total / total.sum()
    hashes = pd.util.hash_array(gene_keys(adata.var_names).to_numpy(object))
    return pd.Series(np.log1p(per_million), index=hashes)


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
