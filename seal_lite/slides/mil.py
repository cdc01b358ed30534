"""From a bag of patch features to a prediction: mean pooling and attention."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def mean_pool(bags, y, test_bags, kind: str, *, seed: int = 0) -> np.ndarray:
    """The mean patch of a bag, then logistic regression, ridge or a Cox model (lifelines), the
    first two with their penalty chosen inside training; returns (m, classes) probabilities or (m,).

    bags, test_bags: lists of n and of m arrays (patches, d), each with its own number of patches. y
    and `kind` as in `SlideTask`. The (m,) are values, or log hazards of survival, where the penalty
    is fixed (0.1, on at most 8 principal components).
    """
    x, x_test = (np.stack([b.mean(0) for b in part]) for part in (bags, test_bags))
    if kind == "classification":
        inner = StratifiedKFold(
            max(2, min(5, np.bincount(y).min())), shuffle=True, random_state=seed
        )
        logistic = LogisticRegression(class_weight="balanced", max_iter=5000)
        model = make_pipeline(StandardScaler(), logistic)
        penalties = {"logisticregression__C": np.logspace(-4, 1, 6)}
        model = GridSearchCV(model, penalties, cv=inner, scoring="neg_log_loss")
        return model.fit(x, y).predict_proba(x_test)
    if kind == "regression":
        model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13)))
        return model.fit(x, y).predict(x_test)
    from lifelines import CoxPHFitter

    few = make_pipeline(StandardScaler(), PCA(min(8, len(x) // 8, x.shape[1]))).fit(x)
    table = pd.DataFrame(few.transform(x)).assign(days=y[:, 0], event=y[:, 1])
    fitted = CoxPHFitter(penalizer=0.1).fit(table, "days", "event")
    return np.log(fitted.predict_partial_hazard(pd.DataFrame(few.transform(x_test))).to_numpy())


def abmil(bags, y, test_bags, kind: str, *, epochs=100, size=512, batch=16, seed=0) -> np.ndarray:
    """Attention-based MIL (Ilse et al., 2018; torchmil's), one model a class or one in all.

    Each step sees `batch` bags, of each at most `size` patches at random; a test bag is seen whole.
    Nothing is chosen: the settings are the same for all features. Arguments and result as for
    `mean_pool`, but a regression's values are in standard deviations of y from its mean.
    """
    from torchmil.models import ABMIL

    scaler = StandardScaler().fit(np.concatenate(bags))
    bags, test_bags = (
        [torch.from_numpy(scaler.transform(b).astype(np.float32)) for b in part]
        for part in (bags, test_bags)
    )
    if kind == "classification":  # of two classes one logit
        targets, criterion = np.eye(y.max() + 1)[y], torch.nn.BCEWithLogitsLoss()
        targets = targets[:, 1:] if targets.shape[1] == 2 else targets
    elif kind == "regression":
        targets, criterion = ((y - y.mean()) / y.std())[:, None], torch.nn.MSELoss()
    else:
        targets, criterion = y[:, None], cox_loss
    found, rng = [], np.random.default_rng(seed)
    for column in np.moveaxis(targets, 1, 0):
        torch.manual_seed(seed)
        model = ABMIL(in_shape=(bags[0].shape[1],), att_dim=64, gated=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)
        for _ in range(epochs * math.ceil(len(bags) / batch)):
            some = rng.choice(len(bags), min(batch, len(bags)), replace=False)
            parts = [bags[i][rng.permutation(len(bags[i]))[:size]] for i in some]
            x = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
            mask = torch.arange(x.shape[1]) < torch.tensor([len(p) for p in parts])[:, None]
            out = model(x, mask.float()).flatten()
            loss = criterion(out, torch.from_numpy(column[some]).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            found.append([model(b[None]).item() for b in test_bags])
    if kind != "classification":
        return np.array(found[0])
    chance = 1 / (1 + np.exp(-np.array(found).T))
    return np.c_[1 - chance, chance] if chance.shape[1] == 1 else chance / chance.sum(1)[:, None]


def cox_loss(risk, time):
    """Negative partial log-likelihood (Cox, 1972) of log hazards (b,), days and event (b, 2); of
    tied days each sees all (Breslow). A scalar, per event."""
    days, event = time.T
    later = torch.where(days[None] >= days[:, None], risk[None], -torch.inf)
    return -(event * (risk - later.logsumexp(1))).sum() / event.sum().clamp(min=1)


MODELS = {"mean": mean_pool, "abmil": abmil}
