"""Patches per second from a slide to its features: `embed_slides` beside a loop as TRIDENT's.

    python benchmarks/slide_throughput.py PHANTOM BACKBONE TURNS

prints one line of JSON; `bench.py` runs it in a process of its own. The slide is a pyramid of one
phantom section, repeated side by side. The loop is that of TRIDENT's extraction: a data set that
reads patch after patch, a DataLoader with batches of 512 and a worker for each core, the forward
pass, and one H5 file at the end. Both read the same patches with the same reader and the same
encoder, so they differ in the loop alone. The limit is the bare forward pass on images that are in
place, in batches of `embed_slides`. All three take turns.
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from seal_lite.data.images import open_slide
from seal_lite.data.phantom.pyramid import write_pyramid
from seal_lite.encoders.registry import config_for
from seal_lite.encoders.vision import VisionEncoder, build_encoder
from seal_lite.io import usable_cores
from seal_lite.slides.embed import embed_slides
from seal_lite.slides.places import grid
from throughput import seconds_of, share

UM_PER_PX = 0.5
REPEATS = (2, 3)  # of the section's image, down and across
LOOP_BATCH = 512
LIMIT_BATCH = 64


class SlidePatches(Dataset):
    """The patches of a slide, one by one, as images (3, px, px) of 0 to 1."""

    def __init__(self, path: Path, corners: np.ndarray, *, patch_um: float, px: int) -> None:
        self.path = path
        self.corners = corners  # (n, 2)
        self.edge = patch_um / UM_PER_PX
        self.px = px
        self.slide: Any = None  # each worker opens its own
        self.transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, i: int) -> torch.Tensor:
        if self.slide is None:
            self.slide = open_slide(self.path)
        x, y = self.corners[i]
        patch = self.slide.read(x, y, edge=self.edge, px=self.px)
        return self.transform(Image.fromarray(patch))


def embed_by_loop(encoder: VisionEncoder, patches: SlidePatches, file: Path, workers: int) -> None:
    """Write a slide's features as TRIDENT's loop does."""
    loader = DataLoader(patches, batch_size=LOOP_BATCH, num_workers=workers)
    with torch.inference_mode():
        parts = [encoder(images.to(encoder.device)).cpu().numpy() for images in loader]
    with h5py.File(file, "w") as h5:
        h5["features"] = np.concatenate(parts)
        h5["coords"] = patches.corners


def compare(
    image: np.ndarray, folder: Path, *, backbone: str, workers: int, turns: int
) -> dict[str, Any]:
    """Return patches per second of `embed_slides`, of the loop and of the limit.

    Parameters
    ----------
    image
        The slide, RGB (h, w, 3) uint8 at `UM_PER_PX`.
    folder
        An empty folder, for the slide and its features.
    backbone
        The frozen encoder.
    workers
        Processes that read patches for the loop.
    turns
        How often each is timed.

    Returns
    -------
    dict
        "ours" and "loop": rate, limit and share, medians over the turns; "ratio": the median over
        turns of ours over the loop's; and the sizes.
    """
    path = folder / "slide.tif"
    write_pyramid(path, image, um_per_px=UM_PER_PX)
    encoder = build_encoder(backbone)
    config = config_for(backbone)
    patch_um = config.patch_um
    px = config.patch_px
    corners = grid(open_slide(path), patch_um=patch_um)
    patches = SlidePatches(path, corners, patch_um=patch_um, px=px)
    first = [patches[i] for i in range(min(LIMIT_BATCH, len(patches)))]
    images = torch.stack(first).to(encoder.device)
    n_batches = -(-len(patches) // len(images))

    def run_limit(turn: int) -> None:
        with torch.inference_mode():
            for _ in range(n_batches):
                encoder(images)

    def run_ours(turn: int) -> None:
        embed_slides(encoder, [path], folder / f"ours-{turn}", patch_um=patch_um, patch_px=px)

    def run_loop(turn: int) -> None:
        unopened = SlidePatches(path, corners, patch_um=patch_um, px=px)
        embed_by_loop(encoder, unopened, folder / f"loop-{turn}.h5", workers)

    works = {
        "limit": (run_limit, n_batches * len(images)),
        "ours": (run_ours, len(patches)),
        "loop": (run_loop, len(patches)),
    }
    rates: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns):
        for name, (work, n_patches) in works.items():
            seconds = seconds_of(partial(work, turn), encoder.device)
            rates[name].append(n_patches / seconds)
    return {
        "ours": share(rates["ours"], rates["limit"]),
        "loop": share(rates["loop"], rates["limit"]),
        "ratio": share(rates["ours"], rates["loop"])["share"],
        "backbone": backbone,
        "patches": len(patches),
        "turns": turns,
        "workers": workers,
        "threads": torch.get_num_threads(),
    }


def section_image(root: Path) -> np.ndarray:
    """Return the image of a phantom's first section, repeated."""
    path, *_ = sorted((root / "data/ST-imgs").rglob("*.jpg"))
    image = np.asarray(Image.open(path).convert("RGB"))
    down, across = REPEATS
    return np.tile(image, (down, across, 1))


if __name__ == "__main__":
    Image.MAX_IMAGE_PIXELS = None
    tiled = section_image(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as scratch:
        result = compare(
            tiled,
            Path(scratch),
            backbone=sys.argv[2],
            workers=usable_cores(),
            turns=int(sys.argv[3]),
        )
    print(json.dumps(result))
