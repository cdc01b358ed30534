"""Augmented views of a patch, each a fixed function of (patch name, view number).

View 0 is the patch itself. Any other view is one of the 8 dihedral transforms with its stains
rescaled in optical density. Because a view depends on nothing else, a cached activation, a resumed
run and the plain training loop all see the same pixels.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch

# Absorbance of haematoxylin, eosin and a residual in R, G, B (Ruifrok & Johnston, 2001).
STAINS = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


def view_parameters(keys: list[str], views, *, jitter: float) -> tuple[np.ndarray, np.ndarray]:
    """Dihedral element (n,) in 0..7 and stain log-scales (n, 3) for patch `keys[i]`, `views[i]`.

    Arguments as in `make_views`.
    """
    turn, scale = np.zeros(len(keys), int), np.zeros((len(keys), 3), np.float32)
    for i, (key, view) in enumerate(zip(keys, views, strict=True)):
        if view:
            rng = np.random.default_rng([zlib.crc32(key.encode()), int(view)])
            turn[i], scale[i] = rng.integers(8), jitter * rng.standard_normal(3)
    return turn, scale


def dihedral(images: torch.Tensor, element: int) -> torch.Tensor:
    """One of the 8 symmetries of the square on (..., h, w): quarter turns 0..3, then mirrored."""
    images = torch.rot90(images, element % 4, dims=(-2, -1))
    return images.flip(-1) if element >= 4 else images


def jitter_stains(images: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Multiply each stain's optical density by exp(log_scale): (n, 3, h, w) in [0, 1] and (n, 3).

    Unmixing, scaling and mixing is one 3 x 3 matrix an image: od' = od @ S^-1 diag(s) S, with the
    stains of Ruifrok & Johnston (2001).
    """
    stains = (STAINS / STAINS.norm(dim=1, keepdim=True)).to(images)
    mix = torch.linalg.inv(stains) @ torch.diag_embed(log_scale.to(images).exp()) @ stains
    density = -torch.log(images.clamp(min=1 / 256))
    return torch.exp(-torch.einsum("nchw,ncd->ndhw", density, mix)).clamp(0, 1)


def make_views(patches, keys: list[str], views, *, jitter: float, device=None) -> torch.Tensor:
    """uint8 patches (n, h, w, 3) -> augmented float images (n, 3, h, w) in [0, 1].

    keys (n,): the patches' names (`Section.keys`). views (n,): the number of the view of each, 0
    the patch as it is. jitter: the sd of the log of what each stain's optical density is multiplied
    by (normally distributed, mean 0). device: where all but reading is done.
    """
    images = torch.from_numpy(np.ascontiguousarray(patches)).to(device)  # as bytes: a quarter
    images = images.permute(0, 3, 1, 2).float() / 255
    turn, scale = view_parameters(keys, views, jitter=jitter)
    changed = np.flatnonzero(np.asarray(views))
    if len(changed):
        images[changed] = jitter_stains(images[changed], torch.from_numpy(scale[changed]))
        for i in changed:
            images[i] = dihedral(images[i], int(turn[i]))
    return images
