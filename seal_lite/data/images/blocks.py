"""What of an image is decoded together, tile, strip or chunk: decoded once for all its patches."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import lru_cache
from itertools import product
from threading import Lock

import numpy as np

from seal_lite.data.images.slide import Box
from seal_lite.io import usable_cores

KEPT_BYTES = 2**28  # of decoded blocks of a level
FEWEST_KEPT = 4  # blocks: those that meet in a corner
LARGE_BYTES = 2**23  # of a block
MANY_BLOCKS = 64  # that several threads decode: those of a box that is no patch


class Blocks:
    """A level of an image, read by boxes, also by several threads at once.

    The blocks decoded last are kept, for patches side by side share them: a block may be the whole
    image.

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
        Whether one thread decodes while the others wait, where the reader has threads of its own.
        A large block is always decoded by one: each thread would hold it.
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
        self._block = lru_cache(max(FEWEST_KEPT, KEPT_BYTES // block_bytes))(self._decode_block)
        is_large = block_bytes > LARGE_BYTES
        self._turn = Lock() if one_at_a_time or is_large else nullcontext()

    def read(self, box: Box) -> np.ndarray:
        """Return a box that shares a px with the level, (h, w, channels).

        Where it ends beyond, the edge is repeated: a level's size may have been rounded.
        """
        left, top, right, bottom = box
        level_width, level_height = self.size
        pixels = self._read_inside((left, top, min(right, level_width), min(bottom, level_height)))
        beyond = [(0, max(0, bottom - level_height)), (0, max(0, right - level_width)), (0, 0)]
        if not np.any(beyond):
            return pixels
        return np.pad(pixels, beyond, mode="edge")

    def _read_inside(self, box: Box) -> np.ndarray:
        """Put together a box inside the level."""
        left, top, right, bottom = box
        height, width = self.block
        rows = range(top // height, -(-bottom // height))
        columns = range(left // width, -(-right // width))
        first = self._kept(rows[0], columns[0])
        pixels = np.empty((bottom - top, right - left, first.shape[2]), first.dtype)

        def paste(place: tuple[int, int]) -> None:
            row, column = place
            y, x = row * height, column * width
            first_y, last_y = max(top, y), min(bottom, y + height)
            first_x, last_x = max(left, x), min(right, x + width)
            part = self._kept(row, column)[first_y - y : last_y - y, first_x - x : last_x - x]
            pixels[first_y - top : last_y - top, first_x - left : last_x - left] = part

        places = list(product(rows, columns))
        if len(places) < MANY_BLOCKS:
            for place in places:
                paste(place)
            return pixels
        with ThreadPoolExecutor(usable_cores()) as threads:
            for _ in threads.map(paste, places):
                pass  # raises what a thread has raised
        return pixels

    def _kept(self, row: int, column: int) -> np.ndarray:
        """Return a block, decoded now or earlier."""
        with self._turn:
            return self._block(row, column)

    def _decode_block(self, row: int, column: int) -> np.ndarray:
        """Decode a block."""
        height, width = self.block
        left, top = column * width, row * height
        right, bottom = min(left + width, self.size[0]), min(top + height, self.size[1])
        return self._decode((left, top, right, bottom))
