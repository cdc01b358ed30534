"""Is the tissue still in the embedding? What learning expression may have cost."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .evaluate import read_truth


def effective_rank(x) -> float:
    """How many directions an embedding (n, d) uses: exp of the entropy of its singular values, as
    shares of their sum (Roy & Vetterli, 2007), after centring."""
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def region_accuracy(x, regions, x_test, regions_test) -> float:
    """Balanced accuracy (mean over the test spots' regions of the share named right) of a logistic
    regression on standardised embeddings (n, d) and (m, d).

    Its penalty (C = 0.1) is the same for all features: nothing is chosen.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    right = model.fit(x, regions).predict(x_test) == regions_test
    return float(np.mean([right[regions_test == r].mean() for r in np.unique(regions_test)]))


def morphology(root, train, test, features: dict) -> dict[str, dict[str, float]]:
    """{features: {"effective_rank", on the phantom "region_accuracy"}} on the test sections.

    `features` as `evaluate.fold_features` gives them.
    """
    n, truth = len(train), [read_truth(root, s, ()) for s in (*train, *test)]
    found = {}
    for name, x in features.items():
        found[name] = {"effective_rank": effective_rank(np.concatenate(x[n:]))}
        if None not in truth:
            regions = [region for _, region in truth]
            parts = (np.concatenate(p) for p in (x[:n], regions[:n], x[n:], regions[n:]))
            found[name]["region_accuracy"] = region_accuracy(*parts)
    return found
