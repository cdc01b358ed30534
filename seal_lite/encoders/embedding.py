"""Embeddings of patches, at the output or at every feature layer."""

from __future__ import annotations

import numpy as np
import torch

from seal_lite.encoders.prefix_cache import PrefixCache
from seal_lite.encoders.views import make_views
from seal_lite.encoders.vision import VisionEncoder


def image_batches(patches: np.ndarray, *, batch_size: int = 16):
    """Yield uint8 patches (n, h, w, 3), as they are, in batches (b, 3, h, w) in [0, 1]."""
    for i in range(0, len(patches), batch_size):
        part = patches[i : i + batch_size]
        yield make_views(part, [""] * len(part), np.zeros(len(part), int), jitter=0.0)


@torch.inference_mode()
def embed_patches(
    encoder: VisionEncoder, patches: np.ndarray, *, batch_size: int = 16
) -> np.ndarray:
    """Embeddings (n, dim) float32 of uint8 patches (n, h, w, 3), deterministic, in their order."""
    device = next(encoder.parameters()).device
    encoder.eval()
    batches = image_batches(patches, batch_size=batch_size)
    return torch.cat([encoder(x.to(device)).float().cpu() for x in batches]).numpy()


@torch.inference_mode()
def embed_stages(encoder, sections, caches=None) -> dict[str, list[np.ndarray]]:
    """Embeddings (n, width) per section of the patches as they are, at every stage from the end of
    the prefix to the tap; `caches` is the folder of the prefix cache, if there is one."""
    device, found = next(encoder.parameters()).device, {}
    cache = caches and PrefixCache(encoder, n_views=1, jitter=0.0, folder=caches)
    encoder.eval()
    for s in sections:
        if cache is None:
            hidden = (encoder.prefix(x.to(device)) for x in image_batches(s.patches))
        else:
            (stored,) = cache.activations(s)
            parts = (stored[i : i + 64].copy() for i in range(0, len(stored), 64))
            hidden = (torch.from_numpy(part).to(device) for part in parts)
        taps = [encoder.taps(h) for h in hidden]
        for stage in taps[0]:
            joined = torch.cat([t[stage] for t in taps]).float().cpu().numpy()
            found.setdefault(stage, []).append(joined)
    return found
