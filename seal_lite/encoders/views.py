"""Augmented views of a patch, each a fixed function of the patch's name and the view's number.

View 0 is the patch itself. Any other view is one of the 8 dihedral transforms of the patch, with
its stains rescaled in optical density. A view depends on nothing else, so that a cached activation,
a resumed run and the plain training loop all see the same pixels.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seal_lite.encoders.devices import pinned

# Absorbance of haematoxylin, eosin and a residual in R, G, B (Ruifrok & Johnston, 2001).
STAINS = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


def make_views(
    patches: np.ndarray,
    keys: Sequence[str],
    views: Sequence[int] | np.ndarray,
    *,
    jitter: float,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Return one augmented view of each patch.

    Parameters
    ----------
    patches : array (n, h, w, 3) uint8
    keys : (n,)
        Names of the patches, such as `Section.keys`.
    views : (n,)
        The number of each patch's view; 0 leaves a patch as it is.
    jitter
        Standard deviation of the logarithm of the factor on each stain's optical density.
    device
        Where the views are computed.

    Returns
    -------
    Tensor (n, 3, h, w) float32
        In [0, 1].
    """
    place = torch.device(device or "cpu")
    # Bytes go to the device: they are a quarter of the floats.
    pixels = torch.from_numpy(np.ascontiguousarray(patches)).to(place)  # (n, h, w, 3)
    return augment(pixels, Views.of(keys, views, jitter=jitter, device=place))


@dataclass(frozen=True)
class Views:
    """What the views of n patches do to them, ready to be sent to a card.

    Parameters
    ----------
    turned
        By element of the dihedral group from 1 to 7, as in `dihedral`, the rows (k,) that it turns.
    log_scales : Tensor (n, 3) float32
        As in `jitter_stains`.
    unchanged : Tensor (k,) int
        The rows that stay as they are.
    """

    turned: dict[int, torch.Tensor]
    log_scales: torch.Tensor
    unchanged: torch.Tensor

    @classmethod
    def of(
        cls,
        keys: Sequence[str],
        views: Sequence[int] | np.ndarray,
        *,
        jitter: float,
        device: torch.device,
    ) -> Views:
        """Return the views of these numbers; `make_views` explains the arguments."""
        elements, log_scales = view_parameters(keys, views, jitter=jitter)

        def ready(array: np.ndarray) -> torch.Tensor:
            return pinned(torch.from_numpy(array), device)

        rows = {element: np.flatnonzero(elements == element) for element in range(1, 8)}
        turned = {element: ready(which) for element, which in rows.items() if len(which)}
        unchanged = np.flatnonzero(np.asarray(views) == 0)
        return cls(turned, ready(log_scales), ready(unchanged))


def augment(pixels: torch.Tensor, views: Views) -> torch.Tensor:
    """Return the views of patches, all computed at once where the pixels are.

    Parameters
    ----------
    pixels : Tensor (n, h, w, 3) uint8
    views
        Of these n patches.

    Returns
    -------
    Tensor (n, 3, h, w) float32
        In [0, 1].
    """
    if len(views.unchanged) == len(pixels):
        return as_images(pixels)  # (n, 3, h, w)

    def sent(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(pixels.device, non_blocking=True)

    # Bytes are turned, a quarter of the floats, and plane by plane the stains are mixed fastest.
    planes = pixels.permute(0, 3, 1, 2).contiguous()  # (n, 3, h, w)
    for element, which in views.turned.items():
        rows = sent(which)
        planes[rows] = dihedral(planes[rows], element)
    images = planes.float() / 255
    jittered = jitter_stains(images, sent(views.log_scales))
    rows = sent(views.unchanged)
    jittered[rows] = images[rows]  # which unmixing and mixing would round
    return jittered


def as_images(pixels: torch.Tensor) -> torch.Tensor:
    """Return pixels (n, h, w, 3) uint8 as images (n, 3, h, w) float32 in [0, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 255


def view_parameters(
    keys: Sequence[str], views: Sequence[int] | np.ndarray, *, jitter: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return what each view does to its patch.

    Parameters
    ----------
    keys, views, jitter
        As in `make_views`.

    Returns
    -------
    elements : array (n,) int
        Elements of the dihedral group, 0 to 7, as in `dihedral`.
    log_scales : array (n, 3) float32
        As in `jitter_stains`.
    """
    elements = np.zeros(len(keys), int)
    log_scales = np.zeros((len(keys), 3), np.float32)
    for i, (key, view) in enumerate(zip(keys, views, strict=True)):
        if view:
            rng = np.random.default_rng([zlib.crc32(key.encode()), int(view)])
            elements[i] = rng.integers(8)
            log_scales[i] = jitter * rng.standard_normal(3)
    return elements, log_scales


def dihedral(images: torch.Tensor, element: int) -> torch.Tensor:
    """Return images (..., h, w) under one of the 8 symmetries of the square.

    Elements 0 to 3 are quarter turns, 4 to 7 the same, then mirrored.
    """
    turned = torch.rot90(images, element % 4, dims=(-2, -1))
    return turned.flip(-1) if element >= 4 else turned


def jitter_stains(images: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Multiply the optical density of each stain by ``exp(log_scale)``.

    Parameters
    ----------
    images : Tensor (n, 3, h, w)
        In [0, 1].
    log_scale : Tensor (n, 3)
        For haematoxylin, eosin and the residual.

    Returns
    -------
    Tensor (n, 3, h, w)
        In [0, 1].

    Notes
    -----
    Unmixing, scaling and mixing is one matrix an image, od' = od @ S^-1 diag(s) S, with the stain
    vectors S of Ruifrok & Johnston (2001).
    """
    stains = (STAINS / STAINS.norm(dim=1, keepdim=True)).to(images)  # (3 stains, 3 channels)
    scale = torch.diag_embed(log_scale.to(images).exp())  # (n, 3, 3)
    mix = torch.linalg.inv(stains) @ scale @ stains  # (n, 3, 3)
    log_light = images.clamp(min=1 / 256).log_()  # minus the optical density, (n, 3, h, w)
    mixed = torch.bmm(mix.transpose(1, 2), log_light.flatten(2))  # (n, 3, h * w)
    return mixed.exp_().clamp_(max=1).view_as(images)
