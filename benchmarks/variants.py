"""Ideas that are tried without being part of the method: each replaces one piece of it for one run.

What earns its place moves into `seal_lite`; the others stay here, so that the trial log can be
measured again. Every variant is a context manager around `finetune` and the embedding that follows,
given the training sections.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from seal_lite import Config
from seal_lite.data.section import read_counts
from seal_lite.encoders.registry import BACKBONES
from seal_lite.encoders.vision import VisionEncoder
from seal_lite.model.gene_vae import GeneVAE
from seal_lite.model.seal import SEAL
from seal_lite.training import run
from seal_lite.training.loader import Pairs


@contextlib.contextmanager
def siglip(sections):
    """Every pair of a batch is its own yes-or-no question (SigLIP, Zhai et al., 2023).

    Scale 1 / temperature, and the bias at which a batch's one positive balances its negatives.
    """

    def loss(image, gene, *, temperature, soft=0.0):
        logits = F.normalize(image, dim=1) @ F.normalize(gene, dim=1).T / temperature
        bias = -np.log(len(logits) - 1)
        sign = 2 * torch.eye(len(logits), device=logits.device) - 1
        return -F.logsigmoid(sign * (logits + bias)).sum(1).mean()

    with mock.patch.object(losses, "clip_loss", loss):
        yield


@contextlib.contextmanager
def expression_targets(sections):
    """Half of a contrast's target goes to pairs whose measured profiles are alike: neighbouring
    near-duplicates are then no negatives."""
    seen, plain = {}, GeneVAE.forward

    def forward(self, x):
        seen["x"] = F.normalize(x, dim=1)
        return plain(self, x)

    def loss(image, gene, *, temperature, soft=0.0):
        logits = F.normalize(image, dim=1) @ F.normalize(gene, dim=1).T / temperature
        alike = (seen["x"] @ seen["x"].T / temperature).softmax(1)
        target = (torch.eye(len(logits), device=logits.device) + alike) / 2
        rows, columns = logits.log_softmax(1), logits.T.log_softmax(1)
        return -(target * (rows + columns)).sum(1).mean() / 2

    with (
        mock.patch.object(GeneVAE, "forward", forward),
        mock.patch.object(losses, "clip_loss", loss),
    ):
        yield


@contextlib.contextmanager
def averaged(sections, *, last: int = 5):
    """The mean of the trainable weights over the last epochs (SWA, Izmailov et al., 2018)."""
    kept, saved = [], run._checkpoint

    def checkpoint(out, model, optimizer, scheduler, history):
        saved(out, model, optimizer, scheduler, history)
        kept.append({k: v.detach().clone() for k, v in model.trainable().items()})
        del kept[:-last]
        total = model.config.gene_warmup_epochs + model.config.epochs
        if len(history) == total:
            mean = {
                k: torch.stack([w[k].float() for w in kept]).mean(0).to(v.dtype)
                for k, v in kept[-1].items()
            }
            model.load_trainable(mean, source="the mean of the last epochs")

    with mock.patch.object(train, "_checkpoint", checkpoint):
        yield


@contextlib.contextmanager
def lora_alone(sections):
    """Depthwise filters and normalisation stay as they were: LoRA's matrices alone are tuned."""
    name = Config.backbone
    with mock.patch.dict(BACKBONES, {name: dataclasses.replace(BACKBONES[name], whole="")}):
        yield


@contextlib.contextmanager
def centre_pooling(sections, *, sd_um: float = 80.0):
    """The tap is averaged with a Gaussian weight around the spot: transcripts come from there."""
    plain = VisionEncoder.pool

    def pool(self, x):
        if x.ndim != 4:
            return plain(self, x)
        n = x.shape[-1]
        at = ((torch.arange(n) + 0.5) / n - 0.5) * Config.patch_um
        weight = torch.exp(-at.square() / (2 * sd_um**2))
        weight = weight[:, None] * weight
        return (x * (weight / weight.sum())).sum((2, 3))

    name = Config.backbone
    unchecked = dataclasses.replace(BACKBONES[name], fingerprint=None)  # its embedding is another
    with (
        mock.patch.object(VisionEncoder, "pool", pool),
        mock.patch.dict(BACKBONES, {name: unchecked}),
    ):
        yield


@contextlib.contextmanager
def quarter_of_counts(sections):
    """Finetunes as if sequenced a quarter as deep: three of four transcripts are left out."""
    whole, rng = [s.adata.layers["counts"] for s in sections], np.random.default_rng(0)
    for s, counts in zip(sections, whole, strict=True):
        assert s.digest  # known before the counts change: the pictures' cache is named by it
        thinned = counts.copy()
        thinned.data = rng.binomial(counts.data.astype(int), 0.25).astype(counts.dtype)
        thinned.eliminate_zeros()
        s.adata.layers["counts"] = thinned
    try:
        yield
    finally:
        for s, counts in zip(sections, whole, strict=True):
            s.adata.layers["counts"] = counts


@contextlib.contextmanager
def near_the_base(sections, *, weight: float = 1.0):
    """The embedding is held near the frozen one: their squared distance, in the frozen one's
    variance over the batch, joins the loss."""
    base, plain = {}, SEAL.forward

    def forward(self, hidden, x, **options):
        if "tail" not in base:
            base["tail"] = copy.deepcopy(self.encoder).eval().requires_grad_(False).tail
        terms = plain(self, hidden, x, **options)
        with torch.no_grad():
            frozen = base["tail"](hidden)
        gap = (self.encoder.tail(hidden) - frozen).square().mean(0) / frozen.var(0)
        terms["loss"] = terms["loss"] + weight * gap.mean()
        return terms

    with mock.patch.object(SEAL, "forward", forward):
        yield


@contextlib.contextmanager
def warm_on_expression(sections):
    """The gene encoder's own epochs read the sections that have counts and no image, too."""
    root = Path(sections[0].adata.uns["image_path"]).parents[4]
    names = [p.name.removesuffix(".tsv.gz") for p in sorted(root.glob("data/ST-cnts/*.tsv.gz"))]
    others = [read_counts(root, n) for n in names if n[0] != sections[0].patient]
    begin, plain = Pairs.__init__, Pairs.epoch

    def init(self, given, panel, *args, **options):
        begin(self, given, panel, *args, **options)
        more = [panel.transform(a) for a in others]
        self.profiles = torch.from_numpy(np.concatenate([*self.expression, *more]))

    def epoch(self, number):
        if number >= self.config.gene_warmup_epochs:
            yield from plain(self, number)
            return
        rng = np.random.default_rng([self.config.seed, number])
        order, b = rng.permutation(len(self.profiles)), self.config.batch_size
        for i in range(0, len(order) - b + 1, b):
            yield torch.empty(0), self.profiles[order[i : i + b]]

    with mock.patch.object(Pairs, "__init__", init), mock.patch.object(Pairs, "epoch", epoch):
        yield
