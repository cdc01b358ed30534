"""Pixels of any kind as RGB on white; where an image shows tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_closing, generate_binary_structure, iterate_structure, label

from seal_lite.errors import InputError

# Of 255, against the glass. A slide without tissue has grey noise only.
MIN_SATURATION = 12  # of a pixel that makes its piece tissue
MIN_DARKENING = 12  # of the darkest channel of a pixel of tissue
MIN_GLASS, MAX_TINT = 180, 25  # of the darkest channel of glass; between its channels
GLASS_PERCENTILE = 95
CLOSED_PX = 2  # gaps of up to twice as many px are no holes
WHITE = 255
NO_PX = 1e-6  # px that are rounding

AnyImage = Image.Image | np.ndarray


def to_rgb(image: AnyImage, path: str | Path) -> Image.Image:
    """Convert any 8-bit image, or array (h, w, channels), to RGB; what is transparent is white.

    Raises
    ------
    InputError
        If the image has more than 8 bits a channel, for clipping would whiten it, or channels that
        are neither grey, RGB nor RGBA. `path` names it.
    """
    if isinstance(image, np.ndarray):
        image = _from_array(image, path)
    elif image.mode[0] in "IF":
        raise InputError(f"{path}: has more than 8 bits a channel; convert it to 8-bit RGB")
    is_transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    if is_transparent:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    if image.mode == "RGB":
        return image
    return image.convert("RGB")


def _from_array(array: np.ndarray, path: str | Path) -> Image.Image:
    """Return an array (h, w, 1, 3 or 4) uint8 as an image."""
    if array.dtype != np.uint8:
        raise InputError(f"{path}: has more than 8 bits a channel; convert it to 8-bit RGB")
    n_channels = array.shape[-1]
    if n_channels == 1:
        return Image.fromarray(array[..., 0])
    if n_channels not in (3, 4):
        raise InputError(f"{path}: has {n_channels} channels; convert it to 8-bit RGB")
    return Image.fromarray(array)


def on_white(colour: np.ndarray, alpha: np.ndarray, *, is_associated: bool) -> np.ndarray:
    """Return colours (h, w, c) uint8 on white, given their opacity (h, w) uint8.

    `is_associated` tells whether the colours have been multiplied by it.
    """
    opacity = alpha[..., None].astype(np.uint16)
    paper = WHITE - opacity
    if is_associated:
        return np.minimum(colour + paper, WHITE).astype(np.uint8)
    mixed = colour * opacity + paper * WHITE  # at most 255 * 255
    return ((mixed + WHITE // 2) // WHITE).astype(np.uint8)


def resized(
    image: Image.Image, px: int, *, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Return an image, or a box of it in px, as an array (px, px, channels) uint8.

    The filter is bicubic, and low-pass where the result has fewer pixels. A box is cut out first,
    as other tools do: what lies around it has no effect.
    """
    if box is not None:
        start, stop = np.array(box[:2]), np.array(box[2:])
        low = np.floor(start + NO_PX).clip(0).astype(int)
        high = np.minimum(np.ceil(stop - NO_PX), image.size).astype(int)
        image = image.crop((low[0], low[1], high[0], high[1]))
        left, top = (start - low).clip(0)
        right, bottom = np.minimum(stop - low, high - low)
        box = (left, top, right, bottom)
    return np.asarray(image.resize((px, px), Image.Resampling.BICUBIC, box))


def tissue_mask(image: np.ndarray) -> np.ndarray:
    """Return where an image shows tissue.

    Parameters
    ----------
    image
        (h, w, 3) uint8 RGB, usually a thumbnail.

    Returns
    -------
    numpy.ndarray
        (h, w) bool.

    Notes
    -----
    Tissue is what is darker than the glass, gaps of a few px included, and has colour somewhere.
    Pale parts of a stained piece have hardly any; dust and shadows have none at all.
    """
    glass = _glass_colour(image)
    balanced = np.clip(np.rint(image * (WHITE / glass)), 0, WHITE).astype(np.uint8)
    saturation = np.asarray(Image.fromarray(balanced).convert("HSV"))[..., 1]
    is_dark = WHITE - balanced.min(axis=-1) > MIN_DARKENING
    reach = iterate_structure(generate_binary_structure(2, 1), CLOSED_PX)
    around = np.pad(is_dark, CLOSED_PX)  # a closing would eat what touches the edge
    inside = slice(CLOSED_PX, -CLOSED_PX)
    pieces, _ = label(binary_closing(around, reach)[inside, inside])
    has_colour = np.unique(pieces[saturation > MIN_SATURATION])
    return np.isin(pieces, has_colour[has_colour > 0])


def _glass_colour(image: np.ndarray) -> np.ndarray:
    """Return the colour of bare glass (3,) in an image (h, w, 3): its palest, or else white."""
    palest = np.percentile(image, GLASS_PERCENTILE, axis=(0, 1))
    is_glass = palest.min() > MIN_GLASS and np.ptp(palest) < MAX_TINT
    return palest if is_glass else np.full(3, float(WHITE))
