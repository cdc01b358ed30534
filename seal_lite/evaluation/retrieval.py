"""From genes to tissue and back: within a slide, across slides, across patients. Exact search."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from seal_lite.data.readers.gene_names import gene_positions
from seal_lite.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from seal_lite.data.genes import GenePanel
    from seal_lite.data.section import Section
    from seal_lite.model.seal import SEAL

Z_QUERY = 3.0  # a gene set queries at three standard deviations above its mean
CHUNK = 65536  # gallery rows compared at once: any gallery fits, also a memory-mapped one
RANKS = (1, 5, 10)  # recall within so many
# Which embeddings query which.
DIRECTIONS = {"genes to images": ("genes", "images"), "images to genes": ("images", "genes")}


def gene_set_profile(panel: GenePanel, genes: Sequence[str], *, z: float = Z_QUERY) -> np.ndarray:
    """Return a z-scored profile with a gene set raised and every other gene at its mean.

    Parameters
    ----------
    panel
        The model's genes.
    genes
        The gene set.
    z
        Expression of these genes, in standard deviations above the mean.

    Returns
    -------
    np.ndarray
        Profile (1, panel genes) float32.

    Raises
    ------
    InputError
        For a gene outside the panel.
    """
    positions = gene_positions(genes, panel.genes)
    outside = [gene for gene in genes if gene not in positions]
    if outside:
        message = f"--genes: {', '.join(outside)} not among the run's {len(panel.genes)} genes"
        raise InputError(f"{message}; finetune with it in --include, or query with other genes")
    profile = np.zeros((1, len(panel.genes)), np.float32)
    profile[0, list(positions.values())] = z
    return profile


def search(
    queries: np.ndarray, gallery: np.ndarray, *, top: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Return the most similar rows of the gallery for each query, best first.

    Parameters
    ----------
    queries, gallery
        Unit vectors (q, d) and (n, d).
    top
        How many rows.

    Returns
    -------
    rows : np.ndarray
        Indices into the gallery, (q, min(top, n)). Equal rows keep the gallery's order.
    cosines : np.ndarray
        Their cosines, (q, min(top, n)).
    """
    query = torch.as_tensor(queries)
    best_cosines = torch.empty((len(query), 0), dtype=query.dtype)
    best_rows = torch.empty((len(query), 0), dtype=torch.long)
    for start in range(0, len(gallery), CHUNK):
        part = torch.from_numpy(np.array(gallery[start : start + CHUNK]))
        part_cosines, part_rows = (query @ part.T).topk(min(top, len(part)), dim=1)
        cosines = torch.cat([best_cosines, part_cosines], dim=1)
        rows = torch.cat([best_rows, part_rows + start], dim=1)
        rows, order = rows.sort(dim=1)  # the stable sort below then keeps equal rows in order
        cosines, order = cosines.gather(1, order).sort(dim=1, descending=True, stable=True)
        best_cosines = cosines[:, :top]
        best_rows = rows.gather(1, order)[:, :top]
    return best_rows.numpy(), best_cosines.numpy()


def recall(
    similarity: np.ndarray, own: np.ndarray | Sequence[int], *, ranks: Sequence[int] = RANKS
) -> dict[str, float]:
    """Return how often a query finds its own pair among the k nearest.

    Parameters
    ----------
    similarity
        Similarity (q, n) of each query to each row of the gallery.
    own
        The column (q,) of each query's own pair.
    ranks
        The values of k.

    Returns
    -------
    dict
        "recall@k", the share of queries, and "chance@k", that of random order, for each k;
        "median_rank" (1 is best); "n", the size of the gallery.
    """
    own_similarity = np.take_along_axis(similarity, np.asarray(own)[:, None], axis=1)
    better = (similarity > own_similarity).sum(1)
    equal = (similarity == own_similarity).sum(1) - 1
    rank = 1 + better + equal / 2  # ties share the middle rank
    n = similarity.shape[1]
    scores = {f"recall@{k}": float((rank <= k).mean()) for k in ranks}
    for k in ranks:
        scores[f"chance@{k}"] = min(1.0, k / n)
    scores["median_rank"] = float(np.median(rank))
    scores["n"] = n
    return scores


def shared_space(
    model: SEAL, sections: Sequence[Section], embeddings: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Return what `cross_modal` compares: all patches of the sections in the shared space.

    Parameters
    ----------
    model
        A finetuned model.
    sections
        Sections with n patches together.
    embeddings
        The model's image embeddings (n_i, dim) of each section.

    Returns
    -------
    dict
        "genes" and "images": unit vectors (n, d). "expression": z-scored (n, panel genes). "slide"
        and "patient": names (n,).
    """
    z = np.concatenate([section.expression(model.panel) for section in sections])
    sizes = [len(section.rows) for section in sections]
    return {
        "genes": model.encode_genes(z),
        "expression": z,
        "images": model.project_images(np.concatenate(embeddings)),
        "slide": np.repeat([section.name for section in sections], sizes),
        "patient": np.repeat([section.patient for section in sections], sizes),
    }


def cross_modal(
    space: Mapping[str, np.ndarray], *, top: int = 10, ranks: Sequence[int] = RANKS
) -> list[dict]:
    """Return retrieval in both directions and every scope, for each slide that queries.

    Parameters
    ----------
    space
        As `shared_space` returns it.
    top
        How many retrieved rows "found" and "oracle" average over.
    ranks
        As in `recall`.

    Returns
    -------
    list of dict
        A row for each slide, direction and scope with a gallery: {"slide", "direction", "scope",
        "found", "random", "oracle"}, and the keys of `recall` where the own pair is in the gallery.

    Notes
    -----
    Directions: a gene profile queries images, an image queries profiles. Scopes: the own "slide",
    "other slides" of the patient, "other patients", or "all". Near-duplicate spots make recall
    harsh. So beside it stands "found": the mean correlation of the query's expression with that of
    the ``top`` retrieved, the query itself left out. "random" is the mean of the whole gallery, and
    "oracle" that of the ``top`` that correlate best.
    """
    profiles = _unit_profiles(space["expression"])
    n = len(profiles)
    rows = []
    for slide in dict.fromkeys(space["slide"]):
        queries = np.flatnonzero(space["slide"] == slide)
        correlation = profiles[queries] @ profiles.T  # (queries, n)
        scopes = _scopes(space["slide"], space["patient"], slide)
        for direction, (source, target) in DIRECTIONS.items():
            similarity = space[source][queries] @ space[target].T  # (queries, n)
            for scope, gallery in scopes.items():
                row = {"slide": slide, "direction": direction, "scope": scope}
                if scope in ("slide", "all"):
                    own = np.searchsorted(np.flatnonzero(gallery), queries)
                    row |= recall(similarity[:, gallery], own, ranks=ranks)
                others = gallery & (np.arange(n) != queries[:, None])  # (queries, n)
                row |= _profile_match(similarity, correlation, others, top=top)
                rows.append(row)
    return rows


def _unit_profiles(expression: np.ndarray) -> np.ndarray:
    """Centred profiles (n, genes) of norm 1, whose products are correlations."""
    centred = expression - expression.mean(1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def _scopes(slides: np.ndarray, patients: np.ndarray, slide: str) -> dict[str, np.ndarray]:
    """Return the galleries that a slide queries, as masks (n,); empty ones are left out."""
    own_slide = slides == slide
    own_patient = patients == patients[np.argmax(own_slide)]
    scopes = {
        "slide": own_slide,
        "other slides": own_patient & ~own_slide,
        "other patients": ~own_patient,
    }
    if not own_slide.all():
        scopes["all"] = np.ones(len(slides), bool)
    return {scope: gallery for scope, gallery in scopes.items() if gallery.any()}


def _profile_match(
    similarity: np.ndarray, correlation: np.ndarray, others: np.ndarray, *, top: int
) -> dict[str, float]:
    """Mean correlation of expression with the retrieved, the gallery's, and the best profiles.

    All three arrays are (queries, n); ``others`` is the mask of each query's gallery.
    """
    retrieved = _highest(np.where(others, similarity, -np.inf), top)
    best = _highest(np.where(others, correlation, -np.inf), top)
    return {
        "found": float(np.take_along_axis(correlation, retrieved, 1).mean()),
        "random": float((correlation * others).sum() / others.sum()),
        "oracle": float(np.take_along_axis(correlation, best, 1).mean()),
    }


def _highest(values: np.ndarray, top: int) -> np.ndarray:
    """Columns (rows, top) of the highest values of each row, the first of equal ones first."""
    return np.argsort(-values, axis=1, kind="stable")[:, :top]


def retrieval_scores(
    model: SEAL, section: Section, embeddings: np.ndarray, *, ranks: Sequence[int] = RANKS
) -> dict[str, float]:
    """Return gene -> image recall within a section: each spot's profile queries for its patch.

    Parameters
    ----------
    model
        A finetuned model.
    section
        The section.
    embeddings
        The model's image embeddings (n, dim) of its patches.
    ranks
        As in `recall`.

    Returns
    -------
    dict
        As `recall` returns it.
    """
    space = shared_space(model, [section], [embeddings])
    similarity = space["genes"] @ space["images"].T
    return recall(similarity, np.arange(len(embeddings)), ranks=ranks)


def gene_set_scores(
    model: SEAL,
    space: Mapping[str, np.ndarray],
    sets: Mapping[str, Sequence[str]],
    *,
    top: int = 10,
) -> list[dict]:
    """Return what each gene set finds on each slide.

    Parameters
    ----------
    model
        A finetuned model.
    space
        As `shared_space` returns it.
    sets
        The genes of each set.
    top
        How many patches are retrieved.

    Returns
    -------
    list of dict
        A row for each set and slide: {"set", "slide", "found", "random", "oracle"}. "found" is the
        set's mean z over the ``top`` retrieved patches, "random" over the slide, "oracle" over the
        ``top`` highest.

    Raises
    ------
    InputError
        For a gene outside the panel.
    """
    rows = []
    for name, genes in sets.items():
        query = model.encode_genes(gene_set_profile(model.panel, genes))
        columns = list(gene_positions(genes, model.panel.genes).values())
        set_score = space["expression"][:, columns].mean(1)  # (n,)
        for slide in dict.fromkeys(space["slide"]):
            patches = np.flatnonzero(space["slide"] == slide)
            hits, _ = search(query, space["images"][patches], top=top)
            slide_score = set_score[patches]
            row = {
                "set": name,
                "slide": slide,
                "found": float(slide_score[hits[0]].mean()),
                "random": float(slide_score.mean()),
                "oracle": float(np.sort(slide_score)[-top:].mean()),
            }
            rows.append(row)
    return rows
