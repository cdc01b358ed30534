"""The conventions of other people's software, written down as formulas; no code of theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, arange, no_grad, tanh
from torch.nn import functional as F

if TYPE_CHECKING:
    from seal_lite import SEAL


def bleep(cosines: np.ndarray, expression: np.ndarray) -> np.ndarray:
    """BLEEP: the mean expression (n, g) of the 50 spots of the highest cosine."""
    nearest = np.argsort(cosines, axis=1)[:, -50:]
    return expression[nearest].mean(1)


def loki(cosines: np.ndarray, expression: np.ndarray) -> np.ndarray:
    """Loki's PredEx: the mean (n, g) of all spots, weighted by the cosine."""
    return cosines @ expression / cosines.sum(1, keepdims=True)


def released_smoothing(array: np.ndarray, *, share: float = 0.5) -> np.ndarray:
    """Released SEAL: half the spot, half the mean of all within sqrt(2), the spot among them."""
    distance = np.linalg.norm(array[:, None] - array[None], axis=2)
    disc = (distance <= 2**0.5 + 1e-9).astype(float)
    return (1 - share) * np.eye(len(array)) + share * disc / disc.sum(1, keepdims=True)


def released_flows(z: Tensor, flows: Any) -> Tensor:
    """Released SEAL's planar flows: z + u tanh(w.z + b), with u as it is."""
    for flow in flows:
        z = z + tanh(z @ flow.w + flow.b)[:, None] * flow.u
    return z


def released_gene_loss(predicted: Tensor, target: Tensor, model: SEAL) -> Tensor:
    """Released SEAL: 0.1 (0.05 sum_g (1 - c_gg)^2 + 5 mse of both standardised), of log counts."""
    mean, std = model.panel_mean, model.panel_std
    mse = ((predicted - mean) / std - (target - mean) / std).square().mean()
    centred = [values - values.mean(0) for values in (predicted, target)]
    units = [values / (values.var(0, correction=0) + 1e-9).sqrt() for values in centred]
    correlation = (units[0].T @ units[1] / len(target)).diagonal()
    barlow = 0.05 * (1 - correlation).square().sum()
    return 0.1 * (barlow + 5 * mse)


def released_contrast(image: Tensor, gene: Tensor) -> Tensor:
    """Released SEAL: the symmetric contrast at temperature 0.05."""
    logits = F.normalize(image, dim=1) @ F.normalize(gene, dim=1).T / 0.05
    own = arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


@no_grad()
def released_outputs(model: SEAL, hidden: Tensor, log_counts: Tensor) -> dict[str, Tensor]:
    """Released SEAL, with a model's weights: what its networks give, and the terms of its loss."""
    vae = model.genes
    first, _, _, last, *_ = model.image_decoder
    e = model.encoder.tail(hidden)
    z = released_flows(vae.mu(vae.trunk(log_counts)), vae.flows)
    of_image = F.relu(last(F.relu(first(e))))  # the image decoder alone ends in a ReLU
    of_genes = vae.decoder(z)
    return {
        "z": z,
        "of_image": of_image,
        "of_genes": of_genes,
        "clip": released_contrast(e, z),
        "gene": released_gene_loss(of_genes, log_counts, model),
        "image": released_gene_loss(of_image, log_counts, model),
    }
