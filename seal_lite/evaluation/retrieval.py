"""From genes to tissue and back: within a slide, across slides, across patients. Exact search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from seal_lite.data.readers.gene_names import gene_positions
from seal_lite.errors import InputError
from seal_lite.evaluation.targets import pearson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from seal_lite.data.genes import GenePanel
    from seal_lite.data.section import Section
    from seal_lite.model.seal import SEAL

Z_QUERY = 3.0  # a gene set queries at three standard deviations above its mean
CHUNK = 65536  # gallery rows compared at once: any gallery fits, also a memory-mapped one
COSINES_AT_ONCE = 2**22  # of queries to all spots: 32 MB
WEIGHTS = ("equal", "cosine", "softmax")
PREDICTORS: dict[str, dict[str, Any]] = {  # options of `predict_by_retrieval`
    "BLEEP": {"top": 50, "weights": "equal"},
    "Loki": {"top": None, "weights": "cosine"},
}
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


def predict_by_retrieval(
    images: np.ndarray,
    spots: np.ndarray,
    expression: np.ndarray,
    *,
    top: int | None = 50,
    weights: str = "equal",
    temperature: float = 0.1,
) -> np.ndarray:
    """Predict expression from images: the mean over the most similar spots in the shared space.

    Parameters
    ----------
    images, spots
        Embeddings (n, d) of images and (m, d) of the profiles of training spots, as `shared_space`
        and `SEAL` return them; any length.
    expression
        Expression (m, g) of the training spots, on any scale.
    top
        How many spots the mean is over; None for all, and so is a number above m.
    weights
        "equal"; "cosine", each spot by its cosine to the image; or "softmax", by the softmax of the
        cosines over ``temperature``.
    temperature
        Above 0; counts for "softmax" alone.

    Returns
    -------
    np.ndarray
        Predicted expression (n, g) float64.

    Raises
    ------
    InputError
        Where rows or widths of the three do not fit, ``top`` is no number of spots, ``temperature``
        is not above 0, the name of the weights is another, or the cosines of an image sum to 0.

    Notes
    -----
    The defaults are those of BLEEP's published inference (Xie et al., 2023): the plain mean of the
    top 50. ``top=None, weights="cosine"`` is Loki's PredEx (Chen et al., 2025): all spots, each
    weighted by its cosine, over the sum of the cosines. ``top=None, weights="softmax"`` with the
    temperature of the training weights a spot by the probability that the contrast gives it.
    """
    _check_retrieval(images, spots, expression, top=top, weights=weights, temperature=temperature)
    k = len(spots) if top is None else min(top, len(spots))
    image_units = _units(images)
    spot_units = _units(spots)
    predicted = np.empty((len(images), expression.shape[1]))
    for part in _blocks(np.arange(len(images)), len(spots)):
        cosines = image_units[part] @ spot_units.T  # (part, m)
        weight = _weigh(cosines, weights, temperature)
        if k < len(spots):
            farthest = np.argpartition(cosines, -k, axis=1)[:, :-k]
            np.put_along_axis(weight, farthest, 0.0, axis=1)
        total = weight.sum(1, keepdims=True)
        if not total.all():
            raise InputError("retrieval: an image's cosines sum to 0; set weights='equal'")
        predicted[part] = (weight / total) @ expression
    return predicted


def _weigh(cosines: np.ndarray, weights: str, temperature: float) -> np.ndarray:
    """Return the weight (n, m) of every spot for every image, not yet divided by its sum."""
    if weights == "equal":
        return np.ones_like(cosines)
    if weights == "cosine":
        return cosines.copy()
    below_best = cosines - cosines.max(1, keepdims=True)
    return np.exp(below_best / temperature)


def prediction_scores(space: Mapping[str, np.ndarray]) -> list[dict]:
    """Return how well the expression of each slide is predicted by retrieval from the others.

    Parameters
    ----------
    space
        As `shared_space` returns it.

    Returns
    -------
    list of dict
        A row for each slide, scope and way of `PREDICTORS`: {"slide", "scope", "as", "r"}, r the
        mean over genes of the correlation within the slide. Scopes are the "other slides" of the
        patient and "other patients": a slide's own spots would give the answer away.
    """
    rows = []
    for slide in dict.fromkeys(space["slide"]):
        own = space["slide"] == slide
        scopes = _scopes(space["slide"], space["patient"], slide)
        for scope in ("other slides", "other patients"):
            if scope not in scopes:
                continue
            gallery = scopes[scope]
            for name, options in PREDICTORS.items():
                predicted = predict_by_retrieval(
                    space["images"][own],
                    space["genes"][gallery],
                    space["expression"][gallery],
                    **options,
                )
                r = pearson(predicted, space["expression"][own])  # (genes,)
                rows.append({"slide": slide, "scope": scope, "as": name, "r": float(r.mean())})
    return rows


def _check_retrieval(
    images: np.ndarray,
    spots: np.ndarray,
    expression: np.ndarray,
    *,
    top: int | None,
    weights: str,
    temperature: float,
) -> None:
    """Raise `InputError` where `predict_by_retrieval` cannot take these arguments."""
    if images.shape[1] != spots.shape[1]:
        widths = f"{images.shape[1]} and {spots.shape[1]} dimensions"
        raise InputError(f"retrieval: images and spots have {widths}; embed both with one model")
    if len(spots) != len(expression):
        rows = f"{len(spots)} spots, {len(expression)} rows of expression"
        raise InputError(f"retrieval: {rows}; give one row for each spot")
    if not len(spots) or (top is not None and top < 1):
        raise InputError(f"retrieval: top={top} of {len(spots)} spots; take at least one")
    if weights not in WEIGHTS:
        raise InputError(f"retrieval: weights={weights!r} is unknown; use one of {WEIGHTS}")
    if not temperature > 0:
        raise InputError(f"retrieval: temperature={temperature}; give a number above 0")


def _units(embeddings: np.ndarray) -> np.ndarray:
    """Return embeddings (n, d) as unit vectors in float64."""
    embeddings = np.asarray(embeddings, float)
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


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
    own_rank = _own_ranks(similarity, np.asarray(own))
    return _recall_scores(own_rank, similarity.shape[1], ranks=ranks)


def _own_ranks(similarity: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return the rank (q,) at which each query of `recall` finds its own pair."""
    own_similarity = np.take_along_axis(similarity, own[:, None], axis=1)
    better = (similarity > own_similarity).sum(1)
    equal = (similarity == own_similarity).sum(1) - 1
    return 1 + better + equal / 2  # ties share the middle rank


def _recall_scores(own_rank: np.ndarray, n: int, *, ranks: Sequence[int]) -> dict[str, float]:
    """Return what `recall` does, of the ranks (q,) of own pairs in a gallery of n rows."""
    scores = {f"recall@{k}": float((own_rank <= k).mean()) for k in ranks}
    for k in ranks:
        scores[f"chance@{k}"] = min(1.0, k / n)
    scores["median_rank"] = float(np.median(own_rank))
    scores["n"] = n
    return scores


def _blocks(queries: np.ndarray, n: int) -> list[np.ndarray]:
    """Return queries in parts whose similarities to n rows are at most `COSINES_AT_ONCE`."""
    at_once = max(1, COSINES_AT_ONCE // n)
    return [queries[start : start + at_once] for start in range(0, len(queries), at_once)]


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
        How many retrieved rows "found" and "oracle" average over; of a smaller gallery, all.
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
        scopes = _scopes(space["slide"], space["patient"], slide)
        matches: dict[tuple[str, str], list[Match]] = {
            (direction, scope): [] for direction in DIRECTIONS for scope in scopes
        }
        for queries in _blocks(np.flatnonzero(space["slide"] == slide), n):
            correlation = profiles[queries] @ profiles.T  # (queries, n)
            for direction, (source, target) in DIRECTIONS.items():
                similarity = space[source][queries] @ space[target].T  # (queries, n)
                for scope, gallery in scopes.items():
                    match = _match(similarity, correlation, queries, gallery, top=top)
                    matches[direction, scope].append(match)
        for (direction, scope), parts in matches.items():
            row = {"slide": slide, "direction": direction, "scope": scope}
            if scope in ("slide", "all"):
                own_rank = np.concatenate([part.own_rank for part in parts])
                row |= _recall_scores(own_rank, int(scopes[scope].sum()), ranks=ranks)
            for name in ("found", "random", "oracle"):
                row[name] = float(np.concatenate([getattr(part, name) for part in parts]).mean())
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


class Match(NamedTuple):
    """What q queries find in a gallery, themselves left out.

    Attributes
    ----------
    own_rank
        (q,) rank of the own pair; empty where the gallery does not hold it.
    found, oracle
        (q, top) correlation of expression with the retrieved, and with those that correlate best.
    random
        (q,) mean correlation with the whole gallery.
    """

    own_rank: np.ndarray
    found: np.ndarray
    random: np.ndarray
    oracle: np.ndarray


def _match(
    similarity: np.ndarray,
    correlation: np.ndarray,
    queries: np.ndarray,
    gallery: np.ndarray,
    *,
    top: int,
) -> Match:
    """Return what queries find by similarity (q, n), and what that has in correlation (q, n).

    The queries are indices (q,), all of them in the gallery, a mask (n,), or none of them.
    """
    columns = np.flatnonzero(gallery)
    similarity = similarity[:, columns]
    correlation = correlation[:, columns]
    totals = correlation.sum(1, dtype=np.float64)
    n_others = len(columns)
    own_rank = np.empty(0)
    if gallery[queries].all():
        own = np.searchsorted(columns, queries)
        own_rank = _own_ranks(similarity, own)
        each = np.arange(len(queries))
        totals -= correlation[each, own]
        n_others -= 1
        similarity[each, own] = -np.inf
        correlation[each, own] = -np.inf
    top = min(top, n_others)
    retrieved = _highest(similarity, top)
    best = _highest(correlation, top)
    return Match(
        own_rank=own_rank,
        found=np.take_along_axis(correlation, retrieved, axis=1),
        random=totals / n_others,
        oracle=np.take_along_axis(correlation, best, axis=1),
    )


def _highest(values: np.ndarray, top: int) -> np.ndarray:
    """Columns (rows, top) of the highest values of each row, the first of equal ones first."""
    lowest = np.partition(values, -top, axis=1)[:, [-top]]  # of those that are taken
    is_above = values > lowest
    n_equal = top - is_above.sum(1, keepdims=True)  # of those that equal it, how many are taken
    is_equal = values == lowest
    is_taken = is_above | (is_equal & (is_equal.cumsum(1, dtype=np.int32) <= n_equal))
    columns = np.nonzero(is_taken)[1].reshape(len(values), top)
    order = np.argsort(-np.take_along_axis(values, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


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
    n = len(embeddings)
    own_rank = []
    for queries in _blocks(np.arange(n), n):
        similarity = space["genes"][queries] @ space["images"].T
        own_rank.append(_own_ranks(similarity, queries))
    return _recall_scores(np.concatenate(own_rank), n, ranks=ranks)


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
