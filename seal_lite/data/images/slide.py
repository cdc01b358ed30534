"""A slide: an image of known size and scale whose regions are read one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from seal_lite.data.images.colour import WHITE, AnyImage, resized, to_rgb
from seal_lite.io import usable_cores

STRIP_PX = 2**22  # px that a thread reads at a time for a thumbnail: about 12 MB of RGB
# Um per px between those of an oil objective and of a flatbed scanner. Others are of programs that
# wrote a screen's 72 or 96 dots per inch, or 1 per unit.
MIN_UM_PER_PX, MAX_UM_PER_PX = 0.02, 20.0
SAME_SCALE = 0.01  # relative difference up to which two stated scales are the same

Box = tuple[int, int, int, int]  # left, top, right, bottom in px


@dataclass(frozen=True)
class Slide:
    """An image of known size whose regions are read one by one.

    Attributes
    ----------
    path
        The file, or the folder of an OME-Zarr image.
    size
        Width and height in px of full resolution.
    um_per_px
        Microns per px of full resolution, or None where the image does not state it.
    levels
        (n,) px of full resolution per px of each level, rising from 1.
    region
        Function (level, box) that returns the box, in px of that level and inside it, as an image
        or an array (h, w, channels).
    notes
        What of the file is not used, or implausible, in clauses that follow its name.
    blocks
        (n,) height and width in px of what is decoded together at each level; empty where there is
        no such thing, or it is unknown.
    """

    path: Path
    size: tuple[int, int]
    um_per_px: float | None
    levels: tuple[float, ...]
    region: Callable[[int, Box], AnyImage]
    notes: tuple[str, ...] = ()
    blocks: tuple[tuple[int, int], ...] = ()

    @property
    def scale_fault(self) -> str:
        """Why the scale is unknown, where it is, in a clause that follows the file's name."""
        return "; ".join(self.notes) or "does not state its um per px"

    def read(self, x: float, y: float, edge: float, px: int) -> np.ndarray:
        """Read a square at sub-pixel precision, from the coarsest level that has the detail.

        It is cut out, then resampled, as other tools do: what lies around it has no effect. What
        is outside of the image, by a pixel or more, is white.

        Parameters
        ----------
        x, y
            The square's upper left corner in px of full resolution.
        edge
            The square's width in px of full resolution.
        px
            Width of the result in px.

        Returns
        -------
        numpy.ndarray
            (px, px, 3) uint8 RGB.

        Raises
        ------
        InputError
            If the image has more than 8 bits a channel, or the region cannot be read.
        """
        level = self._coarsest_level(edge / px)
        step = self.levels[level]
        start = np.array([x, y]) / step
        stop = start + edge / step
        level_size = np.ceil(np.array(self.size) / step - 0.01)
        low = np.clip(np.floor(start), 0, level_size).astype(int)
        high = np.clip(np.ceil(stop), 0, level_size).astype(int)
        if (low == high).any():  # it lies outside
            return np.full((px, px, 3), WHITE, np.uint8)
        image = to_rgb(self.region(level, (low[0], low[1], high[0], high[1])), self.path)
        if max(*-start, *(stop - level_size)) >= 1:
            whole_low, whole_high = np.floor(start).astype(int), np.ceil(stop).astype(int)
            paper = Image.new("RGB", tuple(whole_high - whole_low), "white")
            paper.paste(image, tuple(low - whole_low))
            image, low = paper, whole_low
        left, top = start - low
        right, bottom = stop - low
        return resized(image, px, box=(left, top, right, bottom))

    def read_all(self, corners: np.ndarray, edge: float, px: int) -> np.ndarray:
        """Read squares as `read` does, several at once: a thread for each core.

        Parameters
        ----------
        corners
            (n, 2) x, y of the squares' upper left corners in px of full resolution.
        edge
            The squares' width in px of full resolution.
        px
            Width of the results in px.

        Returns
        -------
        numpy.ndarray
            (n, px, px, 3) uint8 RGB, in the order of the corners.

        Raises
        ------
        InputError
            As `read` does.
        """
        corners = np.reshape(corners, (-1, 2))
        patches = np.empty((len(corners), px, px, 3), np.uint8)

        def read_into(i: int) -> None:
            x, y = corners[i]
            patches[i] = self.read(x, y, edge=edge, px=px)

        with ThreadPoolExecutor(usable_cores()) as threads:
            for _ in threads.map(read_into, self._block_by_block(corners, edge / px)):
                pass  # raises what a thread has raised
        return patches

    def _block_by_block(self, corners: np.ndarray, factor: float) -> np.ndarray:
        """Return the order (n,) of squares in which those that share a block follow one another."""
        x, y = np.transpose(corners)
        if not self.blocks:
            return np.argsort(y, kind="stable")
        level = self._coarsest_level(factor)
        height, width = self.blocks[level]
        step = self.levels[level]
        rows, columns = y // (height * step), x // (width * step)
        return np.lexsort((x, y, columns, rows))  # by rows first

    def thumbnail(self, factor: float) -> np.ndarray:
        """Return the whole image with 1 px for `factor` px of full resolution.

        The image is read in strips, a thread for each core, so that one that is larger than what is
        kept of it is never in memory as a whole.

        Returns
        -------
        numpy.ndarray
            (h, w, 3) uint8 RGB.

        Raises
        ------
        InputError
            If the image has more than 8 bits a channel, or cannot be read.
        """
        width, height = (max(1, round(s / factor)) for s in self.size)
        level = self._coarsest_level(factor)
        step = self.levels[level]
        level_width, level_height = (max(1, int(s / step + 0.01)) for s in self.size)
        scale = level_height / height  # rows of the level for one row of the thumbnail
        strip_height = max(1, int(STRIP_PX / level_width / scale))

        def read_strip(first: int) -> np.ndarray:
            last = min(first + strip_height, height)
            low = int(first * scale)
            high = min(level_height, int(np.ceil(last * scale)))
            image = to_rgb(self.region(level, (0, low, level_width, high)), self.path)
            box = (0, first * scale - low, level_width, min(last * scale, level_height) - low)
            return np.asarray(image.resize((width, last - first), Image.Resampling.BOX, box=box))

        with ThreadPoolExecutor(usable_cores()) as threads:
            return np.concatenate(list(threads.map(read_strip, range(0, height, strip_height))))

    def _coarsest_level(self, factor: float) -> int:
        """Return the coarsest level with at most `factor` full px per px; 0 where none has."""
        fine_enough = [i for i, step in enumerate(self.levels) if step <= factor + 1e-6]
        return max(fine_enough, default=0)


def choose_scale(
    stated: Sequence[float | None], given: float | None
) -> tuple[float | None, tuple[str, ...]]:
    """Return an image's um per px, and what is to be said about it.

    Parameters
    ----------
    stated
        What the file says, the most trustworthy first; None where it says nothing.
    given
        What the user says, which counts where the file says nothing that can be true.
    """
    numbers = [number for number in stated if number and math.isfinite(number)]
    believed = [number for number in numbers if MIN_UM_PER_PX <= number <= MAX_UM_PER_PX]
    if not believed:
        doubted = [f"states {number:.4g} um per px, not believed" for number in numbers[:1]]
        return given, tuple(doubted)
    scale = believed[0]
    if given is None or abs(given / scale - 1) < SAME_SCALE:
        return scale, ()
    return scale, (f"states {scale:.4g} um per px, which counts, and not the {given:g} given",)
