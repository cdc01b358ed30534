"""What of an image is decoded together, tile, strip or chunk: decoded once for all its patches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from itertools import product
from pathlib import Path
from threading import Lock

import numpy as np

from seal_lite.data.images.slide import Box
from seal_lite.errors import reading

KEPT_BYTES = 2**28  # of decoded blocks of a level
FEWEST_KEPT = 4  # blocks: those that meet in a corner
LARGE_BYTES = 2**23  # of a block


class Blocks:
    """A level of an image, read by boxes, also by several threads at once.

    The blocks decoded last are kept, for patches side by side share them: a block may be the whole
    image. A thread that needs a block waits for the one that is decoding it.

    Parameters
    ----------
    decode
        Function that returns the box of a block, in px of the level and inside it, as an array
        (h, w, channels).
    size
        Width and height of the level in px.
    block
        Height and width of a block in px; those at the right and lower edge may be smaller.
    px_bytes
        Size of a decoded px.
    one_at_a_time
        Whether one block is decoded while others wait, where the reader has threads of its own.
        Large blocks always are: every thread would hold one.
    """

    def __init__(
        self,
        decode: Callable[[Box], np.ndarray],
        size: tuple[int, int],
        block: tuple[int, int],
        *,
        px_bytes: int,
        one_at_a_time: bool,
    ) -> None:
        self.size = size
        self.block = block
        self._decode = decode
        block_bytes = block[0] * block[1] * px_bytes
        is_large = block_bytes > LARGE_BYTES
        self._turn = Lock() if one_at_a_time or is_large else nullcontext()
        # Not of a method: the cache would hold what holds it, and memory would not be freed.
        self._kept = lru_cache(max(FEWEST_KEPT, KEPT_BYTES // block_bytes))(_Block)
        self._looking_up = Lock()

    def read(self, box: Box) -> np.ndarray:
        """Return a box, (h, w, channels). Beyond the level the edge is repeated.

        A level's size may have been rounded down, so that boxes end, or begin, a px beyond.
        """
        left, top, right, bottom = box
        width, height = self.size
        first_x, first_y = min(left, width - 1), min(top, height - 1)
        last_x, last_y = min(right, width), min(bottom, height)
        pixels = self._read_inside((first_x, first_y, last_x, last_y))
        beyond = [(0, max(0, bottom - height)), (0, max(0, right - width)), (0, 0)]
        if not np.any(beyond):
            return pixels
        return np.pad(pixels, beyond, mode="edge")[top - first_y :, left - first_x :]

    def _read_inside(self, box: Box) -> np.ndarray:
        """Put together a box inside the level."""
        left, top, right, bottom = box
        height, width = self.block
        rows = range(top // height, -(-bottom // height))
        columns = range(left // width, -(-right // width))
        first = self._block(rows[0], columns[0])
        pixels = np.empty((bottom - top, right - left, first.shape[2]), first.dtype)
        for row, column in product(rows, columns):
            y, x = row * height, column * width
            first_y, last_y = max(top, y), min(bottom, y + height)
            first_x, last_x = max(left, x), min(right, x + width)
            part = self._block(row, column)[first_y - y : last_y - y, first_x - x : last_x - x]
            pixels[first_y - top : last_y - top, first_x - left : last_x - left] = part
        return pixels

    def _block(self, row: int, column: int) -> np.ndarray:
        """Return a block, decoded now or earlier."""
        with self._looking_up:
            block = self._kept(row, column)
        with block.turn:
            if block.pixels is None:
                with self._turn:
                    block.pixels = self._decode(self._box(row, column))
            return block.pixels

    def _box(self, row: int, column: int) -> Box:
        """Return the box of a block inside the level."""
        height, width = self.block
        left, top = column * width, row * height
        return left, top, min(left + width, self.size[0]), min(top + height, self.size[1])


def read_level(path: Path, levels: list[Blocks], level: int, box: Box) -> np.ndarray:
    """Read a box of a level, as `Slide.region` does; a fault names the file."""
    with reading(path):
        return levels[level].read(box)


class _Block:
    """A block of a row and column that is decoded, or will be."""

    def __init__(self, row: int, column: int) -> None:
        self.pixels: np.ndarray | None = None
        self.turn = Lock()
