"""The frozen-prefix cache: what no step can change is computed once per view.

Only the last blocks adapt, so the activations before them are a fixed function of weights, pixels
and view. They are stored per section as one array (views, spots, ...) named by a hash of all three,
so a stale file cannot be picked up.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .encoders import VisionEncoder
from .views import make_views


def cache_key(encoder: VisionEncoder, section, *, n_views: int, jitter: float) -> str:
    """SHA-256 over prefix weights, normalisation, views and the section (names, counts, pixels).

    Arguments as in `prefix_cache`. Returns its first 32 hex digits.
    """
    h = hashlib.sha256(repr((encoder.prefix_stages, n_views, jitter, section.digest)).encode())
    # LoRA wraps only tail modules; their tensors are left out so that every run shares the cache.
    tail = tuple(f"{s}." for s in encoder.tail_stages)
    scale = {"mean": encoder.mean, "std": encoder.std}
    for name, tensor in (encoder.base.state_dict() | scale).items():
        if not name.startswith(tail):
            h.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return h.hexdigest()[:32]


def prefix_cache(encoder: VisionEncoder, section, *, n_views: int, jitter: float, folder=None,
                 batch_size: int = 16, progress: bool = True) -> np.ndarray:  # fmt: skip
    """Activations (n_views, n, ...) float32 before the first tuned block.

    section: a `Section` of n patches. Views 0 to `n_views` - 1 are those of `make_views`, with
    `jitter` the sd of each stain's log-scale; `batch_size` images are computed at once. With a
    `folder` they are memory-mapped from (or first written to) `<hash>.npy`, which appears only when
    complete.
    """
    if folder is not None:
        path = Path(folder) / f"{cache_key(encoder, section, n_views=n_views, jitter=jitter)}.npy"
        if path.exists():
            return np.load(path, mmap_mode="r")
        path.parent.mkdir(parents=True, exist_ok=True)
    device = next(encoder.parameters()).device
    n, out = len(section.patches), None
    temporary = path.with_suffix(f".{os.getpid()}.part") if folder is not None else None
    jobs = [(v, i) for v in range(n_views) for i in range(0, n, batch_size)]
    encoder.eval()
    with torch.inference_mode():
        for v, i in tqdm(jobs, f"cache {section.name}", disable=not progress, leave=False):
            part = slice(i, min(i + batch_size, n))
            keys = section.keys[part]
            images = make_views(section.patches[part], keys, [v] * len(keys), jitter=jitter)
            hidden = encoder.prefix(images.to(device)).float().cpu().numpy()
            if out is None:
                shape = (n_views, n, *hidden.shape[1:])
                out = (np.empty(shape, np.float32) if temporary is None else
                       np.lib.format.open_memmap(temporary, "w+", np.float32, shape))  # fmt: skip
            out[v, part] = hidden
    if temporary is None:
        return out
    out.flush()
    os.replace(temporary, path)
    return np.load(path, mmap_mode="r")
