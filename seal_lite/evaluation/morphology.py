"""Is the tissue still in the embedding? What learning expression may have cost."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def effective_rank(x) -> float:
    """How many directions an embedding (n, d) uses: exp of the entropy of its singular values, as
    shares of their sum (Roy & Vetterli, 2007), after centring."""
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def region_accuracy(x, regions, x_test, regions_test) -> float:
    """Balanced accuracy (mean over the test spots' regions of the share named right) of a logistic
    regression on standardised embeddings (n, d) and (m, d).

    Its penalty (C = 0.1) is the same for all features: nothing is chosen. `regions` (n,) and
    `regions_test` (m,) are names.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    right = model.fit(x, regions).predict(x_test) == regions_test
    return float(np.mean([right[regions_test == r].mean() for r in np.unique(regions_test)]))


def robustness_index(x, biology, source, *, k: int = 20) -> float:
    """Do neighbours share biology or share the slide? 1: biology alone, 0: the source alone.

    Of each row's `k` nearest by cosine, SO has the same biology from another source and OS another
    biology from the same source: the index is SO / (SO + OS) (Kömen et al., 2026, PathoROB). Rows
    are drawn so that every (biology, source) counts alike, without which the index would tell how
    common they are. x (n, d), biology and source (n,); nan where nothing is to be told apart.
    """
    cells = [
        [c for f in np.unique(source) if len(c := np.flatnonzero(kind & (source == f))) > k // 2]
        for kind in (biology == b for b in np.unique(biology))
    ]
    cells = [c for c in cells if len(c) > 1]  # what one source alone has cannot be matched
    if len(cells) < 2:
        return float("nan")
    rng, cells = np.random.default_rng(0), sum(cells, [])
    n = min(map(len, cells))
    pick = np.concatenate([rng.choice(c, n, replace=False) for c in cells])
    x = x[pick] / np.maximum(np.linalg.norm(x[pick], axis=1, keepdims=True), 1e-12)
    similar = x @ x.T
    np.fill_diagonal(similar, -np.inf)
    near = pick[np.argsort(-similar, axis=1)[:, :k]]
    same, own = biology[near] == biology[pick, None], source[near] == source[pick, None]
    so, os = (same & ~own).sum(), (~same & own).sum()
    return float(so / (so + os)) if so + os else float("nan")


def morphology(train, test, features: dict, *, truth=None) -> dict[str, dict[str, float]]:
    """{features: {"effective_rank", on the phantom "region_accuracy"}} on the test sections.

    Where those are several patients' of the phantom, also "robustness_index" by region and patient.
    train, test: `Section`s. `features` as `evaluate.fold_features` gives them. See the functions of
    these names.
    """
    n = len(train)
    patient = np.concatenate([[s.patient] * len(s.rows) for s in test])
    found = {}
    for name, x in features.items():
        found[name] = {"effective_rank": effective_rank(np.concatenate(x[n:]))}
        if truth is not None:
            regions = [truth.regions(s) for s in (*train, *test)]
            x, y, x_test, y_test = (
                np.concatenate(p) for p in (x[:n], regions[:n], x[n:], regions[n:])
            )
            found[name]["region_accuracy"] = region_accuracy(x, y, x_test, y_test)
            if np.isfinite(index := robustness_index(x_test, y_test, patient)):
                found[name]["robustness_index"] = index
    return found
