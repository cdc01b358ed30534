"""Is the tissue still in the embedding? What learning expression may have cost."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seal_lite.data.phantom.truth import GroundTruth
    from seal_lite.data.section import Section
    from seal_lite.evaluation.features import Features


def effective_rank(x: np.ndarray) -> float:
    """Return how many directions an embedding uses.

    Parameters
    ----------
    x
        Embeddings (n, d).

    Returns
    -------
    float
        Between 1 and min(n, d).

    Notes
    -----
    Roy & Vetterli, 2007: exp of the entropy of the singular values of the centred embedding, each
    divided by their sum.
    """
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def region_accuracy(
    train_x: np.ndarray,
    train_regions: np.ndarray,
    *,
    test_x: np.ndarray,
    test_regions: np.ndarray,
) -> float:
    """Return the balanced accuracy of the tissue region, read from the embedding.

    A logistic regression on standardised embeddings predicts the region. Its penalty (C = 0.1) is
    the same for all features: nothing is chosen.

    Parameters
    ----------
    train_x, test_x
        Embeddings (n, d) and (m, d).
    train_regions, test_regions
        Names of the regions, (n,) and (m,).

    Returns
    -------
    float
        Mean over the test spots' regions of the accuracy in that region.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    predicted = model.fit(train_x, train_regions).predict(test_x)
    correct = predicted == test_regions
    accuracies = [correct[test_regions == region].mean() for region in np.unique(test_regions)]
    return float(np.mean(accuracies))


def robustness_index(
    x: np.ndarray, biology: np.ndarray, source: np.ndarray, *, k: int = 20
) -> float:
    """Return whether neighbours in the embedding share biology (1) or only their source (0).

    Parameters
    ----------
    x
        Embeddings (n, d).
    biology, source
        What each row shows and where it comes from, both (n,).
    k
        Number of nearest neighbours, by cosine.

    Returns
    -------
    float
        The index; nan where fewer than two kinds of biology come from more than one source.

    Notes
    -----
    Kömen et al., 2026 (PathoROB): of each row's k nearest neighbours, SO have the same biology from
    another source and OS another biology from the same source. The index is SO / (SO + OS), as
    croma computes it. The same number of rows is drawn from every (biology, source). Otherwise the
    index would measure how common they are.
    """
    from croma import RI

    cells = _comparable_cells(biology, source, more_than=k // 2)
    if not cells:
        return float("nan")
    rng = np.random.default_rng(0)
    size = min(len(rows) for rows in cells)
    drawn = np.concatenate([rng.choice(rows, size, replace=False) for rows in cells])
    rows = np.arange(len(drawn)).astype(str)
    manifest = pd.DataFrame({"sample_id": rows, "group_id": rows, "image_path": ""})
    manifest["label"] = np.unique(biology[drawn], return_inverse=True)[1].astype(str)
    manifest["source"] = np.unique(source[drawn], return_inverse=True)[1].astype(str)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows without such neighbours do not count
        result = RI.compute(x[drawn], manifest, confounder_column="source", k_candidates=[k])
    return result.value if result.support else float("nan")


def _comparable_cells(
    biology: np.ndarray, source: np.ndarray, *, more_than: int
) -> list[np.ndarray]:
    """Rows of each (biology, source) that has enough; empty where nothing can be compared."""
    comparable: list[list[np.ndarray]] = []
    for kind in np.unique(biology):
        cells = []
        for origin in np.unique(source):
            rows = np.flatnonzero((biology == kind) & (source == origin))
            if len(rows) > more_than:
                cells.append(rows)
        if len(cells) > 1:  # what one source alone has cannot be matched
            comparable.append(cells)
    if len(comparable) < 2:
        return []
    return [rows for cells in comparable for rows in cells]


def morphology(
    train: Sequence[Section],
    test: Sequence[Section],
    features: Features,
    *,
    truth: GroundTruth | None = None,
) -> dict[str, dict[str, float]]:
    """Return what each kind of features keeps of the tissue of the test sections.

    Parameters
    ----------
    train, test
        The sections that train and those held out.
    features
        As `features.fold_features` returns them, training sections first.
    truth
        The phantom's ground truth; None for real data.

    Returns
    -------
    dict
        By name of the features: "effective_rank"; with ``truth`` also "region_accuracy"; and where
        several patients of the phantom can be compared "robustness_index", by region and patient.
    """
    n_train = len(train)
    kept = {
        name: {"effective_rank": effective_rank(np.concatenate(x[n_train:]))}
        for name, x in features.items()
    }
    if truth is None:
        return kept
    train_regions = np.concatenate([truth.regions(s) for s in train])
    test_regions = np.concatenate([truth.regions(s) for s in test])
    patients = np.concatenate([[s.patient] * len(s.rows) for s in test])
    for name, x in features.items():
        train_x = np.concatenate(x[:n_train])
        test_x = np.concatenate(x[n_train:])
        kept[name]["region_accuracy"] = region_accuracy(
            train_x, train_regions, test_x=test_x, test_regions=test_regions
        )
        index = robustness_index(test_x, test_regions, patients)
        if np.isfinite(index):
            kept[name]["robustness_index"] = index
    return kept
