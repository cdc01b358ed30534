"""An image as a whole-slide image: what scanners write, and every slide reader opens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_pyramid(path: str | Path, image: np.ndarray, *, um_per_px: float) -> None:
    """Write an image as a tiled TIFF with its scale and two smaller levels.

    Parameters
    ----------
    path
        The file to write.
    image
        RGB (h, w, 3) uint8.
    um_per_px
        Scale of the image, in um per pixel.
    """
    import tifffile

    with tifffile.TiffWriter(path) as tiff:
        for factor in (1, 2, 4):
            px_per_cm = 1e4 / um_per_px / factor
            tiff.write(
                np.asarray(Image.fromarray(image).reduce(factor)),
                tile=(256, 256),
                photometric="rgb",
                compression="zlib",
                subfiletype=int(factor > 1),
                resolution=(px_per_cm, px_per_cm),
                resolutionunit="CENTIMETER",
            )
