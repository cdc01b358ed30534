"""Models from a bag of patch features to a prediction: mean pooling and attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from seal_lite.encoders.devices import resolve_device

if TYPE_CHECKING:
    from seal_lite.slides.tasks import Kind

Bags = list[np.ndarray]
Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
COX_COMPONENTS = 8  # at most so many principal components enter the Cox model
COX_PENALTY = 0.1
ATTENTION_DIM = 64
BAGS_PER_STEP = 16
PATCHES_PER_BAG = 512  # of each bag in a step, drawn at random; a test bag is seen whole


def mean_pool(
    bags: Bags,
    y: np.ndarray,
    test_bags: Bags,
    *,
    kind: Kind,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> np.ndarray:
    """Predict from the mean patch of a bag: logistic regression, ridge or a Cox model.

    The penalty of the first two is chosen inside the training bags. The Cox model (lifelines) has
    a fixed penalty and reads at most 8 principal components.

    Parameters
    ----------
    bags
        The n training bags, each (patches, d) with its own number of patches.
    y
        Labels of the training bags, as in `SlideTask`.
    test_bags
        The m test bags, each (patches, d).
    kind
        "classification", "regression" or "survival".
    seed
        Seed of the inner folds of a classification.
    device
        As in `abmil`, but not used: no network runs.

    Returns
    -------
    np.ndarray
        Probabilities (m, classes), values (m,), or log hazards (m,).
    """
    x = np.stack([bag.mean(0) for bag in bags])
    x_test = np.stack([bag.mean(0) for bag in test_bags])
    if kind == "classification":
        return _predict_logistic(x, y, x_test, seed=seed)
    if kind == "regression":
        ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13)))
        return ridge.fit(x, y).predict(x_test)
    return _predict_cox(x, y, x_test)


def _predict_logistic(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, *, seed: int) -> np.ndarray:
    """Return probabilities (m, classes) from x (n, d), y (n,) and x_test (m, d).

    `y` has the codes 0 to classes - 1, each at least once. A class with one sample leaves no inner
    folds: the penalty is then scikit-learn's own.
    """
    rarest = np.bincount(y).min()
    logistic = LogisticRegression(class_weight="balanced", max_iter=5000)
    model = make_pipeline(StandardScaler(), logistic)
    if rarest > 1:
        inner = StratifiedKFold(min(5, rarest), shuffle=True, random_state=seed)
        penalties = {"logisticregression__C": np.logspace(-4, 1, 6)}
        model = GridSearchCV(model, penalties, cv=inner, scoring="neg_log_loss")
    return model.fit(x, y).predict_proba(x_test)


def _predict_cox(x: np.ndarray, y: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    """Return log hazards (m,) from x (n, d), days and event y (n, 2) and x_test (m, d)."""
    from lifelines import CoxPHFitter

    n_components = min(COX_COMPONENTS, len(x) // 8, x.shape[1])
    components = make_pipeline(StandardScaler(), PCA(n_components)).fit(x)
    table = pd.DataFrame(components.transform(x))
    table = table.assign(days=y[:, 0], event=y[:, 1])
    cox = CoxPHFitter(penalizer=COX_PENALTY).fit(table, "days", "event")
    test_table = pd.DataFrame(components.transform(x_test))
    return np.log(cox.predict_partial_hazard(test_table).to_numpy())


def cox_loss(risk: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Return the negative partial log-likelihood per event (Cox, 1972).

    Of tied days each sees all (Breslow, 1974).

    Parameters
    ----------
    risk
        Log hazards (b,).
    time
        Days and event (b, 2); an event of 0 is censored.

    Returns
    -------
    torch.Tensor
        A scalar.
    """
    days, event = time.T  # (b,), (b,)
    at_risk = torch.where(days[None] >= days[:, None], risk[None], -torch.inf)  # (b, b)
    log_likelihood = event * (risk - at_risk.logsumexp(1))  # (b,)
    return -log_likelihood.sum() / event.sum().clamp(min=1)


def abmil(
    bags: Bags,
    y: np.ndarray,
    test_bags: Bags,
    *,
    kind: Kind,
    seed: int = 0,
    epochs: int = 100,
    device: str | torch.device = "auto",
) -> np.ndarray:
    """Predict with gated attention over the patches of a bag (Ilse et al., 2018; torchmil's ABMIL).

    A classification with more than two classes trains one model a class. No setting is chosen from
    data, so that all features have the same ones.

    Parameters
    ----------
    bags
        The n training bags, each (patches, d) with its own number of patches.
    y
        Labels of the training bags, as in `SlideTask`.
    test_bags
        The m test bags, each (patches, d).
    kind
        "classification", "regression" or "survival".
    seed
        Seed of the weights and of the batches.
    epochs
        Passes over the training bags.
    device
        Where the model runs; "auto" as in `resolve_device`. The bags stay in the CPU's memory, and
        only what a step reads is scaled and goes to the device.

    Returns
    -------
    np.ndarray
        Probabilities (m, classes), values (m,) in standard deviations of `y` from its mean, or log
        hazards (m,).
    """
    place = resolve_device(device)
    scale = PatchScale.of(bags)
    targets, criterion = _training_targets(y, kind)
    rng = np.random.default_rng(seed)
    outputs = []
    for target in targets:
        torch.manual_seed(seed)
        model = _fit_attention(bags, target, criterion, scale, epochs=epochs, rng=rng, device=place)
        outputs.append(_predict_bags(model, test_bags, scale, device=place))
    if kind == "classification":
        return _probabilities(np.stack(outputs, axis=1))
    return outputs[0]


@dataclass(frozen=True)
class PatchScale:
    """Mean and standard deviation of the features of the training patches, each (d,) float32."""

    mean: torch.Tensor
    sd: torch.Tensor

    @classmethod
    def of(cls, bags: Bags) -> PatchScale:
        """Read one bag after another, so that their patches are never copied all at once."""
        scaler = StandardScaler()
        for bag in bags:
            scaler.partial_fit(bag)
        mean = np.asarray(scaler.mean_, np.float32)
        sd = np.asarray(scaler.scale_, np.float32)
        return cls(torch.from_numpy(mean), torch.from_numpy(sd))

    def standardise(self, patches: np.ndarray) -> torch.Tensor:
        """Return patches (n, d) in standard deviations from the mean, float32."""
        return (torch.from_numpy(patches).float() - self.mean) / self.sd


def _training_targets(y: np.ndarray, kind: Kind) -> tuple[list[np.ndarray], Criterion]:
    """Return the target of each model, (n,) or of survival (n, 2), and the loss."""
    if kind == "survival":
        return [y], cox_loss
    if kind == "regression":
        return [(y - y.mean()) / y.std()], torch.nn.MSELoss()
    one_hot = np.eye(y.max() + 1)[y]  # (n, classes)
    columns = list(one_hot.T)
    if len(columns) == 2:  # one logit tells two classes apart
        columns = columns[1:]
    return columns, torch.nn.BCEWithLogitsLoss()


def _fit_attention(
    bags: Bags,
    target: np.ndarray,
    criterion: Criterion,
    scale: PatchScale,
    *,
    epochs: int,
    rng: np.random.Generator,
    device: torch.device,
) -> torch.nn.Module:
    """Train one attention model on batches of bags, and return it in evaluation mode."""
    from torchmil.models import ABMIL

    model = ABMIL(in_shape=(bags[0].shape[1],), att_dim=ATTENTION_DIM, gated=True).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)
    batch_size = min(BAGS_PER_STEP, len(bags))
    for _ in range(epochs * math.ceil(len(bags) / BAGS_PER_STEP)):
        batch = rng.choice(len(bags), batch_size, replace=False)
        parts = [scale.standardise(_draw_patches(bags[i], rng)) for i in batch]
        x = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)  # (b, patches, d)
        lengths = torch.tensor([len(part) for part in parts])
        mask = torch.arange(x.shape[1]) < lengths[:, None]  # (b, patches)
        output = model(x.to(device), mask.float().to(device)).flatten()  # (b,)
        loss = criterion(output, torch.from_numpy(target[batch]).float().to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.inference_mode()
def _predict_bags(
    model: torch.nn.Module, bags: Bags, scale: PatchScale, *, device: torch.device
) -> np.ndarray:
    """Return the output for each of m bags, (m,) float64, one bag on the device at a time."""
    outputs = [model(scale.standardise(bag)[None].to(device)).flatten() for bag in bags]
    return torch.cat(outputs).cpu().numpy().astype(np.float64)


def _draw_patches(bag: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return at most `PATCHES_PER_BAG` patches of a bag, in random order."""
    return bag[rng.permutation(len(bag))[:PATCHES_PER_BAG]]


def _probabilities(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (m, classes) from logits (m, models)."""
    positive = 1 / (1 + np.exp(-logits))
    if positive.shape[1] == 1:
        return np.c_[1 - positive, positive]
    return positive / positive.sum(1)[:, None]


MODELS: dict[str, Callable[..., np.ndarray]] = {"mean": mean_pool, "abmil": abmil}
