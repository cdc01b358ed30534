"""Draw a phantom `Tissue` as a haematoxylin and eosin slide.

Light is absorbed after Beer and Lambert: transmitted = white * 10^-(h H + e E), with the absorbance
vectors H and E of Ruifrok & Johnston, Anal Quant Cytol Histol 2001. The two densities h and e are
composed tile by tile: a ground from the tissue's masks and ready noise textures, then one stamp per
cell from a library drawn once. Tiles of float32 keep the work inside the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter, map_coordinates

from seal_lite.data.phantom.tissue import (
    CELL_TYPES,
    CHROMATIN,
    FLOW_STEP,
    STEP,
    CellType,
    Tissue,
)

STAINS = np.array([[0.644, 0.717, 0.267], [0.093, 0.954, 0.283]])  # H and E, absorbance in R, G, B
TILE = 512  # px
TURNS = 12  # orientations of a stamp
VARIANTS = 7  # shapes of a stamp, for each cell type, chromatin state and orientation
TEXTURE = 1024  # px, period of the textures
BORDER = 64  # cells of the masks' grid beyond the image, for tiles that stick out


@dataclass(frozen=True)
class Look:
    """How one patient's slide was stained and scanned.

    Parameters
    ----------
    stains
        Natural absorbance of H and E in R, G, B: (2, 3) float32.
    white
        Light through an empty slide in R, G, B: (3,) float32, 0 to 255.
    blur
        Share of light that a pixel gets from each neighbour.
    """

    stains: np.ndarray
    white: np.ndarray
    blur: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Look:
        """Draw a slide of the first site.

        Strengths vary by a quarter, as between laboratories (the strong augmentation of Tellez et
        al., Medical Image Analysis 2019: 20%).
        """
        stains = STAINS * rng.normal(1.0, 0.08, (2, 3)) + np.abs(rng.normal(0, 0.03, (2, 3)))
        stains *= rng.uniform(0.75, 1.3, (2, 1)) / np.linalg.norm(stains, axis=1, keepdims=True)
        stains *= rng.uniform(0.92, 1.08)  # the scanner's gamma, an exponent of the light
        white = rng.uniform([236, 232, 236], [248, 245, 250])
        return cls(
            stains=(np.log(10) * stains).astype(np.float32),
            white=white.astype(np.float32),
            blur=rng.uniform(0.05, 0.11),
        )

    def elsewhere(self) -> Look:
        """Return the same slide from a laboratory outside that range.

        Its haematoxylin is bluer and weaker, its eosin strong and more orange, its glass yellow,
        and its scanner blurs twice as much.
        """
        return replace(
            self,
            stains=self.stains * np.array([[1.15, 0.85, 0.55], [0.7, 1.35, 1.9]], np.float32),
            white=self.white * np.array([1.0, 0.98, 0.93], np.float32),
            blur=self.blur * 2,
        )


def _noise(rng: np.random.Generator, sigma: float | tuple[float, float]) -> np.ndarray:
    """Draw periodic Gaussian noise of zero mean and unit variance, (TEXTURE, TEXTURE) float32."""
    white_noise = rng.standard_normal((TEXTURE,) * 2).astype(np.float32)
    field = gaussian_filter(white_noise, sigma, mode="wrap")
    return (field - field.mean()) / field.std()


class _Textures(NamedTuple):
    """Periodic textures, float32.

    All but the last are padded so far beyond their period that any tile is one plain slice.
    """

    fine: np.ndarray
    coarse: np.ndarray
    speck: np.ndarray  # debris
    collagen: np.ndarray  # flat: rows across the fibres in 0.5 um, columns along them in 1 um


@lru_cache(maxsize=2)
def _textures(um: float) -> _Textures:
    """Draw the textures at ``um`` per pixel."""
    rng = np.random.default_rng(11)
    fine = 0.6 * _noise(rng, 0.45 / um) + 0.4 * _noise(rng, 1.0 / um)
    coarse = 0.6 * _noise(rng, 2.2 / um) + 0.6 * _noise(rng, 7.0 / um)
    speck = np.clip(_noise(rng, 0.55 / um) - 1.6, 0, 1)
    thin = 0.55 * _noise(rng, (1.6, 22))
    medium = 0.6 * _noise(rng, (4.0, 40))
    thick = 0.75 * _noise(rng, (11.0, 70))
    fibre = thin + medium + thick
    along = np.arange(TEXTURE) * (2 * np.pi / TEXTURE)
    crimp = 5 * np.sin(9 * along) + 3 * np.sin(17 * along + 1)
    rows, columns = np.indices(fibre.shape)
    collagen = map_coordinates(fibre, [rows + crimp, columns], order=1, mode="grid-wrap")
    fine, coarse, speck = (
        np.pad(grain, (0, 2 * TILE), mode="wrap") for grain in (fine, coarse, speck)
    )
    return _Textures(fine, coarse, speck, collagen.astype(np.float32).ravel())


class _Nucleus(NamedTuple):
    """Coordinates of a stamp's pixels in its nucleus, (n, n) each."""

    along: np.ndarray  # um along the cell's axis, from its centre
    across: np.ndarray
    radius: np.ndarray  # 1 on the nucleus's outline


def draw_stamp(
    seed: tuple[int, int],
    cell: CellType,
    *,
    coarse: bool,
    turn: float,
    um: float,
    contrast: float = CHROMATIN,
) -> np.ndarray:
    """Draw one cell at one orientation.

    Both chromatin states use the same random numbers, hence the same outline, and are scaled to the
    same mean density: only the texture differs.

    Parameters
    ----------
    seed
        Of the cell's shape: its kind and variant.
    cell
        Its type.
    coarse
        Whether its chromatin is coarse.
    turn
        Angle of its axis in radians.
    um
        um per pixel.
    contrast
        How far coarse chromatin differs from fine, 0 to 1.

    Returns
    -------
    np.ndarray
        Densities of haematoxylin and eosin, (2, n, n) float32.
    """
    rng = np.random.default_rng(seed)
    size = np.exp(rng.normal(0, cell.spread))
    stretch = np.exp(rng.normal(0, 0.10))
    bumps = [(lobes, rng.normal(0, 0.03), rng.uniform(0, 2 * np.pi)) for lobes in (2, 3, 4)]
    longest = max(cell.length * stretch, cell.body) * size
    half = int(np.ceil((0.62 * longest + 1.5) / um))
    y, x = np.mgrid[-half : half + 1, -half : half + 1] * um
    along = x * np.cos(turn) + y * np.sin(turn)
    across = y * np.cos(turn) - x * np.sin(turn)
    angle = np.arctan2(across, along)
    outline = 1 + sum(height * np.cos(lobes * angle + phase) for lobes, height, phase in bumps)
    haematoxylin = np.zeros_like(x)
    eosin = np.zeros_like(x)
    if cell.body:
        off_centre = rng.uniform(0, 0.18 if cell.name == "plasma" else 0.08) * cell.body
        radius = np.hypot(along - off_centre, across) * 2 / (cell.body * size * outline)
        body = np.clip((1 - radius) * cell.body / 2 / 1.6, 0, 1)
        body = body * (0.85 + 0.2 * np.exp(-(((radius - 0.85) / 0.12) ** 2)))  # a denser membrane
        haematoxylin += cell.basophilia * body
        eosin += cell.eosin * body
    if cell.length:
        in_lengths = 2 * along / (cell.length * size * stretch)
        in_widths = 2 * across * stretch / (cell.width * size)
        nucleus = _Nucleus(along, across, np.hypot(in_lengths, in_widths) / outline)
        inside = np.clip((1 - nucleus.radius) * cell.width / 2 / 0.7 + 0.5, 0, 1)
        grain = _chromatin(rng, nucleus, cell, coarse=coarse, um=um, contrast=contrast)
        grain *= cell.nucleus * inside.sum() / max((grain * inside).sum(), 1e-6)
        haematoxylin += grain * inside
        eosin -= 0.10 * inside
    return np.stack([haematoxylin, eosin]).astype(np.float32)


def _chromatin(
    rng: np.random.Generator,
    nucleus: _Nucleus,
    cell: CellType,
    *,
    coarse: bool,
    um: float,
    contrast: float,
) -> np.ndarray:
    """Draw the chromatin of a nucleus, of any mean: (n, n).

    Fine chromatin is even. Coarse chromatin is a share ``contrast`` of the way to a pale nucleus
    with clumps, a dark rim and a nucleolus of about 2 um.
    """
    fine, clumps = rng.standard_normal((2, *nucleus.radius.shape))
    x, y = rng.uniform(-0.3, 0.3, 2) * (cell.length, cell.width)  # of the nucleolus
    even = np.clip(1 + 0.13 * gaussian_filter(fine, 0.35 / um) * 2 * 0.35 / um, 0.6, 1.5)
    if not coarse:
        return even
    clumps = gaussian_filter(clumps, 0.75 / um) * (0.75 / um * 3.5)
    width = min(cell.width / 6, 0.9)
    distance_squared = (nucleus.along - x) ** 2 + (nucleus.across - y) ** 2
    nucleolus = np.exp(-(distance_squared / (2 * width**2)))
    rim = np.exp(-(((nucleus.radius - 0.92) / 0.16) ** 2))
    vesicular = np.clip(0.62 + 0.26 * clumps + 0.5 * rim + 1.2 * nucleolus, 0.15, 2.6)
    return even + contrast * (vesicular - even)


@lru_cache(maxsize=2)
def _stamps(um: float, contrast: float) -> list[np.ndarray]:
    """Draw the library of stamps, in the order of `_stamp_index`."""
    library = []
    for kind, cell in enumerate(CELL_TYPES):
        for coarse, turn, variant in product((False, True), range(TURNS), range(VARIANTS)):
            angle = np.pi * turn / TURNS
            stamp = draw_stamp(
                (kind, variant), cell, coarse=coarse, turn=angle, um=um, contrast=contrast
            )
            library.append(stamp)
    return library


def _stamp_index(cells: pd.DataFrame, variant: np.ndarray) -> np.ndarray:
    """Return the place of each cell's stamp in the library, (cells,)."""
    kind = cells["kind"].to_numpy()
    coarse = cells["chromatin"].to_numpy()
    turn = np.rint(cells["angle"].to_numpy() / np.pi * TURNS).astype(int) % TURNS
    return ((kind * 2 + coarse) * TURNS + turn) * VARIANTS + variant


# Tables for uint8 masks: their share of 255, and the same as a steep ramp around the middle.
_SOFT = (np.arange(256) / 255).astype(np.float32)
_EDGE = np.clip((np.arange(256) / 255 - 0.38) / (0.62 - 0.38), 0, 1).astype(np.float32)


class _Tile(NamedTuple):
    """A part of the image: its upper left corner and size, in px."""

    x: int
    y: int
    w: int
    h: int

    def with_margin(self) -> _Tile:
        """Return the tile with one pixel more on each side, for the blur."""
        return _Tile(self.x - 1, self.y - 1, self.w + 2, self.h + 2)


def _tiles(size: int) -> Iterator[_Tile]:
    """Cut an image of size x size px into tiles."""
    for y, x in product(range(0, size, TILE), repeat=2):
        yield _Tile(x, y, min(TILE, size - x), min(TILE, size - y))


def _with_border(layer: np.ndarray) -> Image.Image:
    """Extend a low-resolution layer beyond the image."""
    return Image.fromarray(np.pad(layer, BORDER, mode="edge"))


class _Canvas:
    """A tissue drawn tile by tile: first two densities, then the colours they make."""

    def __init__(
        self, tissue: Tissue, look: Look, *, um_per_px: float, rng: np.random.Generator
    ) -> None:
        self.um = um_per_px
        self.look = look
        self.textures = _textures(um_per_px)
        self.is_tissue = tissue.masks["tissue"] > 0
        self.masks = {name: _with_border(mask) for name, mask in tissue.masks.items()}
        self.fibre = [_with_border(coordinate) for coordinate in tissue.fibre]
        self.texture_shift = rng.integers(0, TEXTURE, 2)
        sensor = rng.uniform(0, 4, (TILE + 2, TILE + 2))  # noise; stays within 0 to 255
        self.sensor = sensor.astype(np.float32)

        cells = tissue.cells
        self.stamps = _stamps(um_per_px, CHROMATIN)
        self.stamp_of = _stamp_index(cells, rng.integers(0, VARIANTS, len(cells)))
        self.cell_x, self.cell_y = (cells[["x", "y"]].to_numpy() / um_per_px).astype(int).T
        self.pad = max(stamp.shape[1] for stamp in self.stamps) + 1  # px

    def draw(self, tile: _Tile) -> np.ndarray:
        """Draw a tile, (h, w, 3) uint8."""
        if not self._holds_tissue(tile):
            light = self.look.white + self.sensor[: tile.h, : tile.w, None]
            return light.astype(np.uint8)
        density = np.maximum(self._density(tile), 0)
        return self._colour(*density)[1:-1, 1:-1]

    def _holds_tissue(self, tile: _Tile) -> bool:
        x0, y0, x1, y1 = (
            int(px * self.um / STEP) for px in (tile.x, tile.y, tile.x + tile.w, tile.y + tile.h)
        )
        return bool(self.is_tissue[y0 : y1 + 1, x0 : x1 + 1].any())

    def _density(self, tile: _Tile) -> np.ndarray:
        """Return haematoxylin and eosin of a tile with its margin, (2, h + 2, w + 2) float32."""
        x, y, w, h = tile
        pad = self.pad  # for the stamps to hang over
        padded = np.zeros((2, h + 2 * pad, w + 2 * pad), np.float32)
        core = np.s_[:, pad - 1 : pad + h + 1, pad - 1 : pad + w + 1]
        padded[core] = self._ground(tile.with_margin())
        is_near_x = abs(self.cell_x - x - w / 2) < w / 2 + pad / 2
        is_near_y = abs(self.cell_y - y - h / 2) < h / 2 + pad / 2
        for i in np.flatnonzero(is_near_x & is_near_y):
            stamp = self.stamps[self.stamp_of[i]]
            n = stamp.shape[1]
            top = self.cell_y[i] - y + pad - n // 2
            left = self.cell_x[i] - x + pad - n // 2
            padded[:, top : top + n, left : left + n] += stamp
        return padded[core]

    def _ground(self, tile: _Tile) -> np.ndarray:
        """Return haematoxylin and eosin of all but the cells, (2, h, w) float32."""
        mask = {name: self._crop(image, STEP, tile) for name, image in self.masks.items()}
        fine, coarse, speck = self._grains(tile)
        fibre = self._collagen(tile)
        # Collagen is dense and pink or loose and pale; loose collagen has gaps between its bundles.
        dense = _SOFT[mask["collagen"]]
        eosin = 0.08 + 0.15 * dense + (0.04 + 0.04 * dense) * fibre + 0.015 * coarse
        eosin *= np.clip((fibre + 1.0 + 1.6 * dense) * 2.5, 0.12, 1)
        haematoxylin = 0.055 + 0.015 * fibre + 0.05 * _SOFT[mask["inflamed"]]
        for share, its_eosin, its_haematoxylin in (
            (_SOFT[mask["lymphoid"]], 0.10 + 0.02 * coarse, 0.09),
            (_SOFT[mask["necrosis"]], 0.22 + 0.045 * coarse + 0.04 * fine, 0.06 + 0.4 * speck),
            (_EDGE[mask["epithelium"]], 0.12 + 0.02 * coarse, 0.10 + 0.02 * coarse),
        ):
            eosin += share * (its_eosin - eosin)
            haematoxylin += share * (its_haematoxylin - haematoxylin)
        solid = 1 - _EDGE[mask["void"]]
        rim = _SOFT[mask["rim"]]
        inside = _EDGE[mask["tissue"]]
        eosin = eosin * solid + 0.20 * rim + 0.006 * fine + 0.008
        haematoxylin = haematoxylin * solid + 0.05 * rim
        return np.stack([haematoxylin * inside, eosin * inside])

    def _crop(self, image: Image.Image, step: float, tile: _Tile) -> np.ndarray:
        """Resample a layer with a border, on a grid of ``step`` um, to the tile: (h, w)."""
        x, y, w, h = tile
        left, top, right, bottom = (px * self.um / step + BORDER for px in (x, y, x + w, y + h))
        box = (left, top, right, bottom)
        return np.asarray(image.resize((w, h), Image.Resampling.BILINEAR, box=box))

    def _grains(self, tile: _Tile) -> list[np.ndarray]:
        """Return the fine and the coarse grain, and debris, over a tile: (h, w) each."""
        x, y = (self.texture_shift + (tile.x, tile.y)) % TEXTURE
        textures = (self.textures.fine, self.textures.coarse, self.textures.speck)
        return [texture[y : y + tile.h, x : x + tile.w] for texture in textures]

    def _collagen(self, tile: _Tile) -> np.ndarray:
        """Return the texture of the collagen along its fibres, (h, w)."""
        along, across = (self._crop(image, FLOW_STEP, tile) for image in self.fibre)
        row = (across * 2).astype(np.int32) % TEXTURE
        column = along.astype(np.int32) % TEXTURE
        return self.textures.collagen.take(row * TEXTURE + column)

    def _colour(self, haematoxylin: np.ndarray, eosin: np.ndarray) -> np.ndarray:
        """Return the light that two densities transmit, blurred by the optics: (h, w, 3) uint8."""
        h, w = haematoxylin.shape
        rgb = np.empty((h, w, 3), np.uint8)
        for channel, (per_haematoxylin, per_eosin) in enumerate(self.look.stains.T):
            absorbed = per_haematoxylin * haematoxylin + per_eosin * eosin
            light = self.look.white[channel] * np.exp(-absorbed)
            rgb[..., channel] = light + self.sensor[:h, :w]
        side = self.look.blur
        corner = side * side
        weights = [corner, side, corner, side, 1, side, corner, side, corner]
        kernel = ImageFilter.Kernel((3, 3), weights)
        return np.asarray(Image.fromarray(rgb).filter(kernel))


def render(tissue: Tissue, look: Look, *, um_per_px: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a tissue.

    Parameters
    ----------
    tissue
        What to draw.
    look
        Stain and scanner.
    um_per_px
        Scale of the image.
    rng
        Source of randomness: the sensor's noise, and which shape each cell has.

    Returns
    -------
    np.ndarray
        RGB (n, n, 3) uint8 with n = side / um_per_px.
    """
    canvas = _Canvas(tissue, look, um_per_px=um_per_px, rng=rng)
    size = round(tissue.side / um_per_px)
    image = np.empty((size, size, 3), np.uint8)
    for tile in _tiles(size):
        image[tile.y : tile.y + tile.h, tile.x : tile.x + tile.w] = canvas.draw(tile)
    return image
