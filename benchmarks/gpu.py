"""What a graphics card makes of the loop: results/gpu.json.

    make bench-gpu                              # at most 8 minutes, one card, no data
    python benchmarks/gpu.py --smoke            # a tiny network, anywhere; writes nothing

Networks have random weights and patches are noise: speed depends on neither. Each setting trains
through the package's own loop. Its share is the floating-point operations of the pairs a second,
over those of a large matrix product on the same card.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from seal_lite import SEAL, Config
from seal_lite.data.genes import GenePanel
from seal_lite.encoders.devices import clock, resolve_device, resolve_precision
from seal_lite.encoders.embedding import embed_patches
from seal_lite.encoders.vision import build_encoder
from seal_lite.model.losses import seal_loss
from seal_lite.training.distributed import join_processes
from seal_lite.training.loader import Activations, Pairs
from seal_lite.training.loop import train

RESULT = Path(__file__).parents[1] / "results/gpu.json"
NETWORKS = {
    "ViT-S/14": "dinov2_s14",
    "ViT-B/16": "vit_base_patch16_224",
    "ViT-L/16": "vit_large_patch16_224",
    "ViT-H/14": "vit_huge_patch14_224",
}
SMOKE = {"ViT-Ti/16": "vit_tiny_patch16_224"}
TUNED_BLOCKS = (1, 4, 0)  # 0: all
SECONDS = 420  # settings that would begin later are left out, and named
N_GENES = 128


@dataclass(frozen=True)
class Noise:
    """A section of patches of noise."""

    n: int
    px: int
    name: str = "noise"
    digest: str = "0" * 64

    @property
    def rows(self) -> range:
        """The n pairs."""
        return range(self.n)

    @cached_property
    def patches(self) -> np.ndarray:
        """Patches (n, px, px, 3) uint8."""
        shape = (self.n, self.px, self.px, 3)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def key(self, i: int) -> str:
        """Return the name of a patch."""
        return f"{self.name}/{i}"

    def expression(self, panel: GenePanel) -> np.ndarray:
        """Return profiles (n, genes) float32."""
        rng = np.random.default_rng(1)
        return rng.standard_normal((self.n, len(panel.genes)), dtype=np.float32)


def noise_panel() -> GenePanel:
    """Return a panel of genes that are names only."""
    genes = tuple(f"G{i}" for i in range(N_GENES))
    zeros, ones = np.zeros(N_GENES), np.ones(N_GENES)
    return GenePanel(genes, mean=zeros, std=ones, share=0.0, zscore="train", clip=5.0)


def matmul_rate(device: torch.device, dtype: torch.dtype, *, n: int) -> float:
    """Return floating-point operations a second of an n x n matrix product."""
    a = torch.randn(n, n, device=device, dtype=dtype)
    repeats = 20
    for _ in range(3):
        a @ a
    started = clock(device)
    for _ in range(repeats):
        a @ a
    return 2 * n**3 * repeats / (clock(device) - started)


def operations(model: SEAL, hidden: torch.Tensor, x: torch.Tensor, images: Any) -> float:
    """Return floating-point operations a pair of a training step; images are streamed, or None."""
    with FlopCounterMode(display=False) as counter:
        if images is not None:
            with torch.no_grad():
                model.encoder.prefix(images)
        seal_loss(model(hidden, x), model.config)["loss"].backward()
    model.zero_grad()
    return counter.get_total_flops() / len(x)


def measure(name: str, section: Noise, config: Config, *, cached: bool, peak: float) -> dict:
    """Train a network; return pairs a second, the share of the card's rate, and memory in bytes."""
    state, device = join_processes()
    options = {"rank": config.lora_rank, "alpha": config.lora_alpha, "dropout": 0.0}
    encoder = build_encoder(name, pretrained=False, tune_blocks=config.tune_blocks, **options)
    panel = noise_panel()
    model = SEAL(encoder, panel, config).to(device)
    sections: Any = [section]  # no sections of tissue, but they have what a training reads
    activations = Activations(encoder, sections, config, cached=cached, progress=False)
    pairs = Pairs(sections, panel, config, activations)
    forget_peak(device)  # filling the cache searches for a batch size, up to what the card holds
    history = train(model, pairs, state, progress=False)
    rate = max(epoch["pairs_per_s"] for epoch in history[1:])
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    hidden, x = next(pairs.epoch(0))
    images = None if cached else torch.zeros(len(x), 3, section.px, section.px, device=device)
    share = rate * operations(model, hidden, x, images) / peak
    return {"pairs_per_s": rate, "share": share, "memory_bytes": memory}


def forget_peak(device: torch.device) -> None:
    """Free what nothing refers to, and measure a card's peak memory from here on."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def agreement(name: str, section: Noise) -> dict[str, float]:
    """Return the largest difference of embeddings to those of a CPU, over their largest value."""
    patches = section.patches[:16]
    expected = embed_patches(build_encoder(name, pretrained=False, device="cpu"), patches)
    differences = {}
    for precision in ("no", "bf16", "fp16"):
        encoder = build_encoder(name, pretrained=False, precision=precision)
        difference = np.abs(embed_patches(encoder, patches) - expected).max()
        differences[precision] = float(difference / np.abs(expected).max())
    return differences


def n_blocks(name: str) -> int:
    """Return the number of a network's blocks."""
    return len(build_encoder(name, pretrained=False, device="cpu").prefix_stages) - 1


def main(*, smoke: bool) -> None:
    """Measure everything; a card is needed but for a smoke test, which writes nothing.

    The file is written after each setting: what a card has no memory for is named there.
    """
    device = resolve_device()
    if device.type != "cuda" and not smoke:
        raise SystemExit("torch finds no CUDA card here, so there is nothing to measure")
    started = time.perf_counter()
    networks = SMOKE if smoke else NETWORKS
    config = Config(patch_px=224, n_views=2, batch_size=256, epochs=3)
    section = Noise(n=1024, px=224)
    if smoke:
        config = replace(config, batch_size=8, epochs=2)
        section = Noise(n=16, px=224)
    dtype = resolve_precision("auto", device)
    peak = matmul_rate(device, dtype, n=512 if smoke else 8192)
    result: dict[str, Any] = {"matmul_per_s": peak, "settings": [], "left_out": []}
    result["torch"] = torch.__version__
    result["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    result["agreement"] = {name: agreement(arch, section) for name, arch in networks.items()}
    for name, arch in networks.items():
        total = n_blocks(arch)
        for tuned, cached in itertools.product(TUNED_BLOCKS, (True, False)):
            setting = {"network": name, "blocks": tuned or total, "cached": cached}
            tuned_config = replace(config, tune_blocks=tuned or total)
            if time.perf_counter() - started > SECONDS:
                result["left_out"].append({**setting, "reason": "no time"})
            else:
                try:
                    measured = measure(arch, section, tuned_config, cached=cached, peak=peak)
                    result["settings"].append({**setting, **measured})
                    print(setting, measured, flush=True)
                except torch.cuda.OutOfMemoryError:
                    result["left_out"].append({**setting, "reason": "no memory"})
            forget_peak(device)
            if not smoke:
                RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny, on any device")
    options = parser.parse_args()
    main(smoke=options.smoke)
