"""The losses, each a short function of tensors to a scalar, tested against its formula."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def clip_loss(image, gene, *, temperature, soft: float = 0.0):
    """Symmetric contrastive loss (Radford et al., 2021) on (b, d) embeddings of b pairs.

    logits = cos(image_i, gene_j) / temperature: dividing sharpens when temperature < 1. `soft`
    mixes the one-hot targets with softmax of the mean within-modality similarity at the same
    temperature (BLEEP, Xie et al., 2023), so that look-alike neighbours are not pure negatives.
    Returns a scalar, as all losses do.
    """
    image, gene = F.normalize(image, dim=1), F.normalize(gene, dim=1)
    logits = image @ gene.T / temperature
    target = torch.eye(len(logits), device=logits.device, dtype=logits.dtype)
    if soft:
        with torch.no_grad():
            similar = (image @ image.T + gene @ gene.T) / (2 * temperature)
            target = (1 - soft) * target + soft * similar.softmax(1)
    rows = -(target * logits.log_softmax(1)).sum(1).mean()
    columns = -(target * logits.T.log_softmax(1)).sum(1).mean()  # `similar` is symmetric
    return (rows + columns) / 2


def mse(predicted, z):
    """Mean squared error between z-scored expression matrices (b, genes)."""
    return (predicted - z).square().mean()


def correlation_loss(predicted, z, *, eps: float = 1e-6):
    """mean over genes of (1 - c_gg)^2, with c_gg the Pearson correlation over the batch.

    The diagonal part of Barlow twins (Zbontar et al., 2021, eq. 1) with genes as features, as in
    SEAL's `barlow_std_mse`, whose off-diagonal weight is 0. predicted, z (b, genes).
    """
    predicted = predicted - predicted.mean(0)
    z = z - z.mean(0)
    c = (predicted * z).mean(0) / (predicted.std(0, False) * z.std(0, False) + eps)
    return (1 - c).square().mean()


def gene_loss(predicted, z, *, w_mse: float, w_corr: float):
    """Reconstruction of z-scored expression (b, genes): w_mse * mse + w_corr * correlation_loss."""
    return w_mse * mse(predicted, z) + w_corr * correlation_loss(predicted, z)


def kl_loss(mu, logvar):
    """KL(N(mu, exp(logvar)) || N(0, 1)), summed over dimensions, mean over the batch (b, d).

    Kingma & Welling, 2013, appendix B.
    """
    return -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1).mean()
