"""Sections and a network so small that a whole cross-validation takes a second."""

from __future__ import annotations

import numpy as np
import torch
from helpers import make_adata, square
from torch import nn

from seal_lite.data.section import Section
from seal_lite.encoders.networks.row import Backbone

PX = 32
SIDE = 4  # spots along the edge of the array of a random section
PATTERN_SIDE = 6  # ... and of one whose genes have patterns


class TinyBlock(nn.Module):
    """A residual layer for LoRA to adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.layer(x))


class TinyNet(nn.Module):
    """An encoder that sees a patch as 4 x 4 colours."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 16))
        self.blocks = nn.ModuleList([TinyBlock() for _ in range(3)])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return x


TINY_BACKBONE = Backbone(
    "tiny", loader="tiny_sections.TinyNet", source="", dim=16, px=PX, fixed=False
)


def make_section(name: str, *, seed: int, n_genes: int = 60, labels: dict | None = None) -> Section:
    """16 spots with random patches and counts; which genes vary most depends on the seed."""
    rng = np.random.default_rng(seed)
    n_spots = SIDE**2
    rates = rng.lognormal(2.0, 1.0, n_genes) * rng.lognormal(0.0, 0.5, (n_spots, n_genes))
    patches = rng.integers(0, 256, (n_spots, PX, PX, 3), dtype=np.uint8)
    adata = make_adata(rng.poisson(rates), name=name)
    adata.uns["labels"] = labels or {}
    return Section(adata, np.arange(n_spots), patches)


def pattern_shares() -> np.ndarray:
    """Expected share (36, 7) of genes in a spot: smooth patterns, nearly uncorrelated.

    The last gene is rare and has none.
    """
    x, y = (square(PATTERN_SIDE).T + 0.5) / PATTERN_SIDE  # each (36,) in (0, 1)
    patterns = [
        np.cos(np.pi * x),
        np.cos(np.pi * y),
        np.cos(np.pi * x) * np.cos(np.pi * y),
        np.cos(2 * np.pi * x),
        np.cos(2 * np.pi * y),
        np.ones_like(x),
    ]
    rates = 1 + 0.8 * np.stack(patterns, axis=1)
    rates = np.c_[rates, np.full(len(x), 0.001)]
    return rates / rates.sum(1, keepdims=True)


def make_patterned_section(name: str, *, seed: int = 0) -> Section:
    """A section whose genes G0 to G6 follow `pattern_shares`."""
    rng = np.random.default_rng(seed)
    adata = make_adata(rng.poisson(3000 * pattern_shares()), name=name)
    n_spots = len(adata)
    return Section(adata, np.arange(n_spots), np.zeros((n_spots, PX, PX, 3), np.uint8))
