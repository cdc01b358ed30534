"""From genes to tissue: rank image regions by their similarity to a gene profile. Exact search."""

from __future__ import annotations

import numpy as np

from .errors import InputError

Z_QUERY = 3.0  # a gene set is asked for at three standard deviations above its mean


def gene_set_profile(panel, genes, *, z: float = Z_QUERY) -> np.ndarray:
    """A z-scored profile (1, panel) with `genes` raised and every other gene at its mean.

    Raises `InputError` for a gene outside the panel.
    """
    lost = [g for g in genes if g not in panel.genes]
    if lost:
        raise InputError(
            f"--genes: {', '.join(lost)} not among the run's {len(panel.genes)} genes; finetune "
            "with it in --include, or ask for others"
        )
    profile = np.zeros((1, len(panel.genes)), np.float32)
    profile[0, [panel.genes.index(g) for g in genes]] = z
    return profile


def search(queries: np.ndarray, gallery: np.ndarray, *, top: int = 10):
    """The `top` most similar rows of `gallery` for each query, best first.

    queries (q, d) and gallery (n, d) are unit vectors; returns indices and cosines, (q, top).
    """
    similarity = queries @ gallery.T
    best = np.argsort(-similarity, axis=1, kind="stable")[:, :top]
    return best, np.take_along_axis(similarity, best, axis=1)


def recall(queries: np.ndarray, gallery: np.ndarray, *, at=(1, 5, 10)) -> dict[str, float]:
    """Share of queries whose own region (same row) is among the k nearest, and by chance.

    Also the median rank (1 is best). queries and gallery are (n, d) unit vectors of n pairs.
    """
    similarity = queries @ gallery.T
    own = np.diag(similarity)[:, None]
    rank = 1 + (similarity > own).sum(1) + ((similarity == own).sum(1) - 1) / 2  # ties: the middle
    n = len(rank)
    out = {f"recall@{k}": float((rank <= k).mean()) for k in at}
    out |= {f"chance@{k}": min(1.0, k / n) for k in at}
    return out | {"median_rank": float(np.median(rank)), "n": n}


def retrieval_scores(model, section, embeddings, *, at=(1, 5, 10)) -> dict[str, float]:
    """Gene -> image recall within a section: every spot's measured profile asks for its region."""
    profiles = model.panel.transform(section.adata)[section.rows]
    return recall(model.encode_genes(profiles), model.project_images(embeddings), at=at)
