"""Does anything cross a split that should not? Patients on both sides, and twins under two names.

Public collections of spatial transcriptomics hold the same sample under two ids, and one patient's
sections under ids that do not say so. A score on such a split is a score on what was trained on.
"""

from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np
from PIL import Image

from .errors import InputError
from .pairs import thumbnail
from .targets import pearson

# Correlation of log pseudo-bulk over common genes. In her2st sections of one tumour have 0.945 to
# 0.985, of different patients at most 0.892; a sample under a second id differs by filtering only.
TWINS = 0.995
ALIKE = 0.95  # correlation of thumbnails: the same picture, whatever was counted on it


def found(sections, groups: list[str]) -> list[str]:
    """A sentence for every pair of sections in different groups that should not be split.

    sections: `Section`s. groups: of each the group that is held out together. Of each pair the
    first that applies: equal counts, pseudo-bulk all but equal (r above `TWINS` over shared genes),
    thumbnails all but equal (r above `ALIKE`), one patient. An empty list where there is nothing.
    """
    hashes = [_counts_hash(s.adata) for s in sections]
    bulks = [_pseudobulk(s.adata) for s in sections]
    pictures = [_picture(s.adata) for s in sections]
    said = []
    for i, j in combinations(range(len(sections)), 2):
        if groups[i] == groups[j]:
            continue
        names = f"sections {sections[i].name} and {sections[j].name}"
        genes = sorted(bulks[i].keys() & bulks[j].keys())
        bulk = _r([bulks[i][g] for g in genes], [bulks[j][g] for g in genes])
        picture = _r(pictures[i], pictures[j])
        if hashes[i] == hashes[j]:
            said.append(f"{names} have the same counts")
        elif bulk > TWINS:
            said.append(f"{names} have all but the same expression (r = {bulk:.4f})")
        elif picture > ALIKE:
            said.append(f"{names} show all but the same picture (r = {picture:.3f})")
        elif sections[i].patient == sections[j].patient:
            said.append(f"{names} are both of patient {sections[i].patient}")
    return said


def check(sections, groups: list[str], *, allow: bool = False) -> list[str]:
    """What `found` says, to mark a result with. Raises `InputError` where that is something and not
    allowed."""
    said = found(sections, groups)
    if said and not allow:
        more = f", and {len(said) - 1} more pairs" if len(said) > 1 else ""
        remedy = "group them together, or say --allow-leakage, which marks the result"
        raise InputError(f"{said[0]} but would be on both sides of a split{more}; {remedy}")
    return said


def _counts_hash(adata) -> str:
    """A name for the counts that knows neither the order of genes and spots nor their names."""
    counts = adata.layers["counts"]
    sums = [np.sort(np.asarray(counts.sum(axis), np.int64).ravel()) for axis in (0, 1)]
    return hashlib.sha256(b"|".join(s[s > 0].tobytes() for s in sums)).hexdigest()


def _pseudobulk(adata) -> dict[str, float]:
    total = np.asarray(adata.layers["counts"].sum(0), float).ravel()
    return dict(zip(adata.var_names, np.log1p(1e6 * total / total.sum()), strict=True))


def _picture(adata) -> np.ndarray | None:
    """The section's thumbnail in grey, 64 x 64, or None without an image."""
    if not adata.uns.get("image_path"):
        return None
    small = Image.fromarray(thumbnail(adata, um_per_px=50.0)[0]).convert("L").resize((64, 64))
    return np.asarray(small, float).ravel()


def _r(a, b) -> float:
    """Pearson's r, or 0 where there is nothing to correlate."""
    if a is None or b is None or len(a) < 3:
        return 0.0
    return float(pearson(np.c_[a], np.c_[b])[0])
