"""A picture as a whole-slide image: what scanners write, and every slide reader opens."""

import numpy as np
from PIL import Image


def write_pyramid(path, image, *, um_per_px: float):
    """Write an image (h, w, 3) uint8 as a tiled TIFF with its scale and two smaller levels."""
    import tifffile

    with tifffile.TiffWriter(path) as tiff:
        for k in (1, 2, 4):
            per_cm = 1e4 / um_per_px / k
            tiff.write(np.asarray(Image.fromarray(image).reduce(k)), tile=(256, 256),
                       photometric="rgb", compression="zlib", subfiletype=int(k > 1),
                       resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")  # fmt: skip
