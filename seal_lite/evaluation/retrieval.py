"""From genes to tissue and back: within a slide, across slides, across patients. Exact search."""

from __future__ import annotations

import numpy as np
import torch

from seal_lite.errors import InputError

Z_QUERY = 3.0  # a gene set is asked for at three standard deviations above its mean
CHUNK = 65536  # gallery rows compared at once: any gallery fits, also a memory-mapped one


def gene_set_profile(panel, genes, *, z: float = Z_QUERY) -> np.ndarray:
    """A z-scored profile (1, panel) with `genes` raised and every other gene at its mean.

    Raises `InputError` for a gene outside the panel.
    """
    if lost := [g for g in genes if g not in panel.genes]:
        said = f"--genes: {', '.join(lost)} not among the run's {len(panel.genes)} genes"
        raise InputError(f"{said}; finetune with it in --include, or ask for others")
    profile = np.zeros((1, len(panel.genes)), np.float32)
    profile[0, [panel.genes.index(g) for g in genes]] = z
    return profile


def search(queries: np.ndarray, gallery: np.ndarray, *, top: int = 10):
    """The `top` most similar rows of `gallery` for each query, best first.

    queries (q, d) and gallery (n, d) are unit vectors; returns indices and cosines, (q, top).
    """
    queries, best, at = torch.as_tensor(queries), None, None
    for start in range(0, len(gallery), CHUNK):
        part = torch.from_numpy(np.array(gallery[start : start + CHUNK]))
        found, where = (queries @ part.T).topk(min(top, len(part)), dim=1)
        if best is not None:
            found, where = torch.cat([best, found], 1), torch.cat([at, where + start], 1)
        where, order = where.sort(dim=1)  # the stable sort below then keeps equal ones in order
        found, order = found.gather(1, order).sort(dim=1, descending=True, stable=True)
        best, at = found[:, :top], where.gather(1, order)[:, :top]
    return at.numpy(), best.numpy()


def recall(similarity: np.ndarray, own, *, at=(1, 5, 10)) -> dict[str, float]:
    """Share of queries whose own region is among the k nearest, and by chance.

    Also the median rank (1 is best). similarity (q, n), own (q,) the column of a query's own pair.
    Returns {"recall@k" and "chance@k" for each k of `at`, "median_rank", "n": regions searched}.
    """
    mine = np.take_along_axis(similarity, np.asarray(own)[:, None], axis=1)
    rank = 1 + (similarity > mine).sum(1) + ((similarity == mine).sum(1) - 1) / 2  # ties: middle
    n = similarity.shape[1]
    out = {f"recall@{k}": float((rank <= k).mean()) for k in at}
    out |= {f"chance@{k}": min(1.0, k / n) for k in at}
    return out | {"median_rank": float(np.median(rank)), "n": n}


def shared_space(model, sections, embeddings) -> dict[str, np.ndarray]:
    """What `cross_modal` compares, of a `SEAL` and sections' image embeddings (lists of (n, dim)).

    {"genes", "images": unit vectors (n, d), "expression": z-scored (n, panel), "slide", "patient":
    names (n,)}, where n counts the patches of all sections.
    """
    z = np.concatenate([model.panel.transform(s.adata)[s.rows] for s in sections])
    sizes = [len(s.rows) for s in sections]
    return {
        "genes": model.encode_genes(z),
        "expression": z,
        "images": model.project_images(np.concatenate(embeddings)),
        "slide": np.repeat([s.name for s in sections], sizes),
        "patient": np.repeat([s.patient for s in sections], sizes),
    }


def cross_modal(space: dict, *, top: int = 10, at=(1, 5, 10)) -> list[dict]:
    """Retrieval in both directions and every scope, a row for each slide that asks.

    `space` as `shared_space` gives it. A row: {"slide", "direction", "scope", "found", "random",
    "oracle"}, all r, and `recall`'s keys. Directions: a gene profile asks for images, an image for
    profiles. Scopes: the own "slide", "other slides" of the patient, "other patients", or "all".
    Where the own pair can be found there are `recall`'s numbers. Near-duplicate spots make those
    harsh, so beside them stands "found": the mean correlation of the query's expression with that
    of the `top` retrieved, itself left out; between "random", the gallery's mean, and "oracle", the
    `top` that correlate best.
    """
    slide, patient = space["slide"], space["patient"]
    z = space["expression"] - space["expression"].mean(1, keepdims=True)
    z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    rows = []
    for name in dict.fromkeys(slide):
        mine = np.flatnonzero(slide == name)
        whose = patient[mine[0]]
        scopes = {
            "slide": slide == name,
            "other slides": (patient == whose) & (slide != name),
            "other patients": patient != whose,
            "all": np.ones(len(slide), bool),
        }
        for direction, asks, answers in (
            ("genes to images", "genes", "images"),
            ("images to genes", "images", "genes"),
        ):
            similarity, alike = space[asks][mine] @ space[answers].T, z[mine] @ z.T
            for scope, gallery in scopes.items():
                if not gallery.any() or (scope == "all" and scopes["slide"].all()):
                    continue
                row = {"slide": name, "direction": direction, "scope": scope}
                if scope in ("slide", "all"):
                    own = np.searchsorted(np.flatnonzero(gallery), mine)
                    row |= recall(similarity[:, gallery], own, at=at)
                others = gallery & (np.arange(len(slide)) != mine[:, None])  # (queries, n)
                s, a = (np.where(others, v, -np.inf) for v in (similarity, alike))
                near, best = (np.argsort(-v, axis=1, kind="stable")[:, :top] for v in (s, a))
                row |= {
                    "found": float(np.take_along_axis(alike, near, 1).mean()),
                    "random": float((alike * others).sum() / others.sum()),
                    "oracle": float(np.take_along_axis(alike, best, 1).mean()),
                }
                rows.append(row)
    return rows


def retrieval_scores(model, section, embeddings, *, at=(1, 5, 10)) -> dict[str, float]:
    """Gene -> image recall within a section: every spot's measured profile asks for its region.

    model: a `SEAL`. embeddings (n, dim) of the section's patches. Returns `recall`'s keys.
    """
    space = shared_space(model, [section], [embeddings])
    return recall(space["genes"] @ space["images"].T, np.arange(len(embeddings)), at=at)


def gene_set_scores(model, space: dict, sets: dict, *, top: int = 10) -> list[dict]:
    """A gene set asks each slide for its regions: {set: genes} -> a row per set and slide.

    "found" is the set's mean z over the `top` retrieved, between "random" (the slide's mean) and
    "oracle" (the highest `top`); "set" and "slide" name the row. `space` as `shared_space` gives
    it. Raises `InputError` for a gene outside the panel.
    """
    rows = []
    for name, genes in sets.items():
        query = model.encode_genes(gene_set_profile(model.panel, genes))
        score = space["expression"][:, [model.panel.genes.index(g) for g in genes]].mean(1)
        for slide in dict.fromkeys(space["slide"]):
            here = np.flatnonzero(space["slide"] == slide)
            (hits,), _ = search(query, space["images"][here], top=top)
            rows.append(
                {
                    "set": name,
                    "slide": slide,
                    "found": float(score[here[hits]].mean()),
                    "random": float(score[here].mean()),
                    "oracle": float(np.sort(score[here])[-top:].mean()),
                }
            )
    return rows
