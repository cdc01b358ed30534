"""What the model computes of a batch, and the loss of it: short functions of tensors to a scalar.

`seal_loss` is the method's loss; `finetune(loss=...)` takes any other function of this signature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from seal_lite.config import Config


@dataclass(frozen=True)
class GeneOutputs:
    """What the gene encoder computes of the expression of b spots."""

    expression: Tensor  # x (b, genes), measured, z-scored
    gene_embedding: Tensor  # z (b, d), in the shared space
    gene_reconstruction: Tensor  # (b, genes), decoded from z
    kl: Tensor  # (), divergence of z from the standard normal


@dataclass(frozen=True)
class PairOutputs(GeneOutputs):
    """What the whole model computes of b pairs of image and expression."""

    hidden: Tensor  # (b, ...), activations before the first tuned block; of this process only
    image_embedding: Tensor  # e (b, dim), the encoder's output
    image_projection: Tensor  # (b, d), e in the shared space
    image_reconstruction: Tensor  # (b, genes), decoded from e
    temperature: Tensor  # (), cosines are divided by it


def seal_loss(outputs: PairOutputs, config: Config) -> dict[str, Tensor]:
    """Return the loss of a batch of pairs and its terms (Hemker et al., 2026).

    Parameters
    ----------
    outputs
        What the model computes of the batch.
    config
        The weights of the terms, and what is inside them.

    Returns
    -------
    dict
        Scalars: "clip", the contrast; "gene" and "image", the two reconstructions; "kl"; and
        "loss", their weighted sum, which training minimises.
    """
    x = outputs.expression  # (b, genes)
    terms = {
        "clip": clip_loss(
            outputs.image_projection,  # (b, d)
            outputs.gene_embedding,  # (b, d)
            temperature=outputs.temperature,
            soft=config.soft_targets,
        ),
        "gene": _reconstruction_loss(outputs.gene_reconstruction, x, config),
        "image": _reconstruction_loss(outputs.image_reconstruction, x, config),
        "kl": outputs.kl,
    }
    terms["loss"] = weighted_sum(terms, config)
    return terms


def warmup_loss(outputs: GeneOutputs, config: Config) -> dict[str, Tensor]:
    """Return the terms "gene" and "kl", which need no image, and "loss", their weighted sum.

    The gene encoder trains with it alone in its warm-up epochs.
    """
    terms = {
        "gene": _reconstruction_loss(outputs.gene_reconstruction, outputs.expression, config),
        "kl": outputs.kl,
    }
    terms["loss"] = weighted_sum(terms, config)
    return terms


def weighted_sum(terms: dict[str, Tensor], config: Config) -> Tensor:
    """Return the sum () of the terms that are there, each times the config's weight for it."""
    weights = {
        "clip": config.w_clip,
        "gene": config.w_gene,
        "image": config.w_image,
        "kl": config.w_kl,
    }
    total = torch.zeros(())
    for name, weight in weights.items():
        if name in terms:
            total = total + weight * terms[name]
    return total


def clip_loss(
    image: Tensor, gene: Tensor, *, temperature: float | Tensor, soft: float = 0.0
) -> Tensor:
    """Return the symmetric contrastive loss () of the embeddings of b pairs.

    Parameters
    ----------
    image, gene
        Embeddings (b, d); row i of both is pair i.
    temperature
        Cosines are divided by it: below 1 it sharpens.
    soft
        Share of the target that goes to pairs with similar embeddings; the rest is one-hot.

    Notes
    -----
    Radford et al., 2021 (CLIP). The soft targets are a softmax of the mean similarity within both
    modalities at the same temperature, as in BLEEP (Xie et al., 2023): patches that look alike are
    then not pure negatives.
    """
    image = normalize(image, dim=1)  # (b, d), unit vectors
    gene = normalize(gene, dim=1)  # (b, d)
    logits = image @ gene.T / temperature  # (b, b), image i against gene j
    target = torch.eye(len(logits), device=logits.device, dtype=logits.dtype)  # (b, b)
    if soft:
        with torch.no_grad():
            similar = (image @ image.T + gene @ gene.T) / (2 * temperature)  # (b, b), symmetric
            target = (1 - soft) * target + soft * similar.softmax(1)
    of_images = -(target * logits.log_softmax(1)).sum(1).mean()
    of_genes = -(target * logits.T.log_softmax(1)).sum(1).mean()
    return (of_images + of_genes) / 2


def gene_loss(predicted: Tensor, x: Tensor, *, w_mse: float, w_corr: float) -> Tensor:
    """Return w_mse * `mse` + w_corr * `correlation_loss` of z-scored expression (b, genes)."""
    return w_mse * mse(predicted, x) + w_corr * correlation_loss(predicted, x)


def mse(predicted: Tensor, x: Tensor) -> Tensor:
    """Return the mean squared error () of z-scored expression (b, genes)."""
    return (predicted - x).square().mean()


def correlation_loss(predicted: Tensor, x: Tensor, *, eps: float = 1e-9) -> Tensor:
    """Return the mean over genes of (1 - c_gg)^2, with c_gg the Pearson correlation of gene g.

    Parameters
    ----------
    predicted, x
        z-scored expression (b, genes); the correlation is over the b spots of the batch.
    eps
        Added to both variances, as in released SEAL, so that a constant gene costs 1.

    Notes
    -----
    The diagonal part of Barlow twins (Zbontar et al., 2021, eq. 1) with genes as features. SEAL's
    `barlow_std_mse` has it too, with an off-diagonal weight of 0.
    """
    dtype = torch.promote_types(predicted.dtype, torch.float32)  # half precision has no such eps
    predicted = predicted.to(dtype)
    predicted = predicted - predicted.mean(0)  # (b, genes), centred
    x = x.to(dtype)
    x = x - x.mean(0)  # (b, genes)
    covariance = (predicted * x).mean(0)  # (genes,)
    predicted_std = (predicted.square().mean(0) + eps).sqrt()  # (genes,)
    x_std = (x.square().mean(0) + eps).sqrt()  # (genes,)
    correlation = covariance / (predicted_std * x_std)
    return (1 - correlation).square().mean()


def kl_loss(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return KL(N(mu, exp(logvar)) || N(0, 1)) () for mu and logvar (b, d).

    Summed over the d dimensions, mean over the batch (Kingma & Welling, 2013, appendix B).
    """
    per_dimension = -0.5 * (1 + logvar - mu.square() - logvar.exp())  # (b, d)
    return per_dimension.sum(1).mean()


def _reconstruction_loss(predicted: Tensor, x: Tensor, config: Config) -> Tensor:
    """Return the `gene_loss` of predicted and measured expression (b, genes) with both weights."""
    return gene_loss(predicted, x, w_mse=config.w_mse, w_corr=config.w_corr)
