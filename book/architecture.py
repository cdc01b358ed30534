"""The method as a picture, drawn in code (for `results.py`)."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch

from seal_lite import Config
from seal_lite.plots import INK, STYLE


def architecture():
    """The method: two encoders that meet in one space, and two decoders that keep them honest."""
    with plt.rc_context(STYLE):
        blue, green, grey = "#d6e6f2", "#d5ece3", "#ececec"
        boxes = {  # name: (x, y of the centre, text, colour)
            "patch": (0, 2, f"H&E patch\n{Config.patch_um:g} µm, {Config.patch_px} px", grey),
            "prefix": (2.2, 2, "frozen blocks\ncomputed once", grey),
            "tail": (4.4, 2, "last blocks\n+ LoRA", blue),
            "tap": (6.6, 2, "pooled tap\nembedding e", blue),
            "image": (8.8, 2, "decoder\nimage to gene", blue),
            "counts": (0, 0, "spot's counts\nsmoothed, log, z", grey),
            "vae": (3.3, 0, "gene encoder\n(VAE)", green),
            "z": (6.6, 0, "posterior mean\nembedding z", green),
            "gene": (8.8, 0, "decoder\ngene to gene", green),
            "space": (6.6, 1, "contrast: pairs close, others apart", "#fbe3d2"),
        }
        figure, ax = plt.subplots(figsize=(8.6, 3.2))
        ax.set(xlim=(-1, 9.8), ylim=(-0.45, 2.45))
        ax.axis("off")
        tall = 0.31
        for name, (x, y, text, colour) in boxes.items():
            w = 1.65 if name == "space" else 0.88
            ax.add_patch(
                FancyBboxPatch(
                    (x - w, y - tall),
                    2 * w,
                    2 * tall,
                    fc=colour,
                    ec="none",
                    boxstyle="round,pad=0,rounding_size=0.08",
                )
            )
            ax.text(x, y, text, ha="center", va="center", fontsize=9.5, linespacing=1.35)
        arrows = (
            "patch-prefix prefix-tail tail-tap tap-image tap-space counts-vae vae-z z-gene z-space"
        )
        for a, b in (arrow.split("-") for arrow in arrows.split()):
            (ax0, ay0), (bx0, by0) = boxes[a][:2], boxes[b][:2]
            dx, dy = (0.88, 0) if ay0 == by0 else (0, np.sign(by0 - ay0) * tall)
            style = {"arrowstyle": "-|>", "color": INK, "shrinkA": 1, "shrinkB": 1}
            ax.annotate("", (bx0 - dx, by0 - dy), (ax0 + dx, ay0 + dy), arrowprops=style)
    return figure
