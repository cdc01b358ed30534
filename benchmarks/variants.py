"""Ideas that `trials.py` measures without their being part of the method.

A variant maps training sections, gene panel and settings to the arguments of `finetune` that it
changes: another loss, callbacks, more profiles; or, as "trainer", what stands in its place
(`pair_variants.py`). An encoder that differs is a row of `BACKBONES`.
This module writes no file; results/trials.json has the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize

from pair_variants import (
    OneSection,
    TwoViews,
    denoised,
    residuals,
    train_with_teacher,
    trainer,
    view_loss,
    without_images,
)
from seal_lite import SEAL, Config, Section
from seal_lite.data.genes import GenePanel
from seal_lite.encoders import BACKBONES, load_backbone
from seal_lite.encoders.vision import encoder_for
from seal_lite.model.losses import PairOutputs, seal_loss, weighted_sum
from seal_lite.training.callbacks import Callback

Arguments = dict[str, Any]
LITE0 = BACKBONES["tf_efficientnet_lite0"]


def replace_contrast(outputs: PairOutputs, config: Config, contrast: Tensor) -> dict[str, Tensor]:
    """Return the method's terms with another contrast () in their sum."""
    terms = {**seal_loss(outputs, config), "clip": contrast}
    return {**terms, "loss": weighted_sum(terms, config)}


def contrast_logits(outputs: PairOutputs) -> Tensor:
    """Return cosines of images and profiles (b, b) over the temperature."""
    image = normalize(outputs.image_projection, dim=1)  # (b, d)
    gene = normalize(outputs.gene_embedding, dim=1)  # (b, d)
    return image @ gene.T / outputs.temperature


def siglip_loss(outputs: PairOutputs, config: Config) -> dict[str, Tensor]:
    """Ask of every image and profile of a batch whether they are a pair (Zhai et al., 2023).

    The scale is 1 / temperature. The bias balances a row's one positive with its negatives.
    """
    logits = contrast_logits(outputs)  # (b, b)
    bias = -math.log(len(logits) - 1)
    sign = 2 * torch.eye(len(logits), device=logits.device) - 1  # 1 for a pair, else -1
    contrast = -logsigmoid(sign * (logits + bias)).sum(1).mean()
    return replace_contrast(outputs, config, contrast)


def expression_target_loss(outputs: PairOutputs, config: Config) -> dict[str, Tensor]:
    """Give half of the contrast's target to pairs with similar measured profiles.

    Neighbouring near-duplicates are then no negatives.
    """
    logits = contrast_logits(outputs)  # (b, b)
    x = normalize(outputs.expression, dim=1)  # (b, genes)
    similar = (x @ x.T / outputs.temperature).softmax(1)  # (b, b)
    target = (torch.eye(len(logits), device=logits.device) + similar) / 2
    both_ways = logits.log_softmax(1) + logits.T.log_softmax(1)
    contrast = -(target * both_ways).sum(1).mean() / 2
    return replace_contrast(outputs, config, contrast)


def near_the_base(sections: list[Section], panel: GenePanel, config: Config) -> Arguments:
    """Hold the embedding near the frozen one.

    Their squared distance, in units of the frozen one's variance over the batch, joins the loss.
    """
    frozen = encoder_for(config).requires_grad_(False)

    def near_base_loss(outputs: PairOutputs, config: Config) -> dict[str, Tensor]:
        terms = seal_loss(outputs, config)
        base = frozen.to(outputs.hidden.device).tail(outputs.hidden)  # (b, dim)
        distance = (outputs.image_embedding - base).square().mean(0) / base.var(0)  # (dim,)
        return {**terms, "loss": terms["loss"] + distance.mean()}

    return {"loss": near_base_loss}


class AverageWeights(Callback):
    """Replace the trainable weights by their mean over the last epochs (Izmailov et al., 2018)."""

    def __init__(self, *, last: int = 5) -> None:
        self.last = last
        self.kept: list[dict[str, Tensor]] = []

    def on_epoch_end(self, model: SEAL, history: list[dict[str, Any]]) -> None:
        """Keep the weights; after the last epoch load their mean."""
        weights = {name: tensor.detach().clone() for name, tensor in model.trainable().items()}
        self.kept = [*self.kept, weights][-self.last :]
        if len(history) == model.config.gene_warmup_epochs + model.config.epochs:
            mean = {}
            for name, tensor in weights.items():
                epochs = torch.stack([kept[name].float() for kept in self.kept])
                mean[name] = epochs.mean(0).to(tensor.dtype)
            model.load_trainable(mean, source="the mean of the last epochs")


def quarter_of_counts(sections: list[Section], panel: GenePanel, config: Config) -> Arguments:
    """Finetune as if sequenced a quarter as deep: three of four transcripts are left out."""
    rng = np.random.default_rng(0)
    thinned = []
    for section in sections:
        adata = section.adata.copy()
        counts = adata.layers["counts"].copy()
        counts.data = rng.binomial(counts.data.astype(int), 0.25).astype(counts.dtype)
        counts.eliminate_zeros()
        adata.layers["counts"] = counts
        thinned.append(replace(section, adata=adata))
    return {"sections": thinned, "panel": None}  # the panel is fitted on what is left


def warmup_on_expression(sections: list[Section], panel: GenePanel, config: Config) -> Arguments:
    """Read the sections with counts and no image, of other patients, in the warm-up epochs too."""
    return {"extra_expression": without_images(sections, panel)}


def load_centre_weighted(name: str, *, sd_um: float) -> nn.Module:
    """Load a network whose feature layer is weighted by a Gaussian around the spot.

    The mean over positions is then the weighted mean: the transcripts are those of the centre.
    """

    def weight(stage: nn.Module, args: tuple, x: Tensor) -> Tensor:  # x (b, c, n, n)
        n = x.shape[-1]
        offset_um = ((torch.arange(n, device=x.device) + 0.5) / n - 0.5) * Config.patch_um
        side = torch.exp(-offset_um.square() / (2 * sd_um**2))  # (n,)
        weights = side[:, None] * side  # (n, n)
        return x * (weights / weights.mean())

    net = load_backbone(BACKBONES[name])
    net.get_submodule(BACKBONES[name].feature_layer).register_forward_hook(weight)
    return net


# LoRA's matrices alone are tuned: depthwise filters and normalisation stay as they were.
BACKBONES["lite0_lora_alone"] = replace(LITE0, name="lite0_lora_alone", whole="")
BACKBONES["lite0_centre_pooling"] = replace(
    LITE0,
    name="lite0_centre_pooling",
    loader="variants.load_centre_weighted",
    args={"sd_um": 80.0},
    state="",
    fingerprint=None,  # its embedding is another
)

VARIANTS: dict[str, Callable[[list[Section], GenePanel, Config], Arguments]] = {
    "shuffled": lambda *_: {"shuffle_pairs": True},
    "shuffled_anew": lambda *_: {"shuffle_pairs": "every epoch"},
    "self_supervision": lambda *_: {"trainer": trainer(TwoViews, loss=view_loss)},
    "one_section": lambda *_: {"trainer": trainer(OneSection)},
    "denoised": lambda *_: {"trainer": trainer(profiles=denoised)},
    "residuals": lambda *_: {"trainer": trainer(profiles=residuals)},
    "teacher": lambda *_: {"trainer": train_with_teacher},
    "siglip": lambda *_: {"loss": siglip_loss},
    "expression_targets": lambda *_: {"loss": expression_target_loss},
    "average_weights": lambda *_: {"callbacks": [AverageWeights()]},
    "near_the_base": near_the_base,
    "quarter_of_counts": quarter_of_counts,
    "warmup_on_expression": warmup_on_expression,
}
