"""Draw a phantom `Tissue` as a haematoxylin and eosin slide.

Light is absorbed after Beer and Lambert: transmitted = white * 10^-(h H + e E), with the absorbance
vectors H and E of Ruifrok & Johnston, Anal Quant Cytol Histol 2001. The two densities h and e are
composed tile by tile: a ground from the tissue's masks and ready noise textures, then one stamp per
cell from a library drawn once. Tiles of float32 keep the work inside the processor's cache.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter, map_coordinates

from .tissue import CELL_TYPES, CHROMATIN, FLOW_STEP, STEP

STAINS = np.array([[0.644, 0.717, 0.267], [0.093, 0.954, 0.283]])  # H and E, absorbance in R, G, B
TILE = 512  # px
TURNS, VARIANTS = 12, 7  # stamps per cell type and chromatin state: orientations x shapes
TEXTURE = 1024  # px, period of the textures
BORDER = 64  # cells of the masks' grid beyond the image, for tiles that stick out


class Look:
    """How one patient's slide was stained and scanned; strengths vary by a quarter, as between
    laboratories (the strong augmentation of Tellez et al., Medical Image Analysis 2019: 20%)."""

    def __init__(self, rng):
        stains = STAINS * rng.normal(1.0, 0.08, (2, 3)) + np.abs(rng.normal(0, 0.03, (2, 3)))
        stains *= rng.uniform(0.75, 1.3, (2, 1)) / np.linalg.norm(stains, axis=1, keepdims=True)
        stains *= rng.uniform(0.92, 1.08)  # the scanner's gamma, an exponent of the light
        self.stains = (np.log(10) * stains).astype(np.float32)  # (2, 3), natural absorbance
        self.white = rng.uniform([236, 232, 236], [248, 245, 250]).astype("f4")  # of an empty slide
        self.blur = rng.uniform(0.05, 0.11)  # share of light that a pixel gets from each neighbour

    def elsewhere(self):
        """As at a laboratory outside that range: a bluer, weaker haematoxylin, a strong and more
        orange eosin, yellow glass, and a scanner that blurs twice as much."""
        self.stains *= np.array([[1.15, 0.85, 0.55], [0.7, 1.35, 1.9]], np.float32)
        self.white = self.white * np.array([1.0, 0.98, 0.93], np.float32)
        self.blur *= 2


def _noise(rng, sigma):
    """Periodic Gaussian noise of zero mean and unit variance, (TEXTURE, TEXTURE) float32."""
    field = gaussian_filter(rng.standard_normal((TEXTURE,) * 2).astype("f4"), sigma, mode="wrap")
    return (field - field.mean()) / field.std()


@lru_cache(maxsize=2)
def _textures(um):
    """Periodic textures at `um` per pixel: `fine` and `coarse` grain, `speck` (debris), `fibre`."""
    rng = np.random.default_rng(11)
    fine = 0.6 * _noise(rng, 0.45 / um) + 0.4 * _noise(rng, 1.0 / um)
    coarse = 0.6 * _noise(rng, 2.2 / um) + 0.6 * _noise(rng, 7.0 / um)
    speck = np.clip(_noise(rng, 0.55 / um) - 1.6, 0, 1)
    # Collagen: rows lie across the fibres in steps of 0.5 um, columns along them in steps of 1 um.
    sizes = {0.55: (1.6, 22), 0.6: (4.0, 40), 0.75: (11.0, 70)}
    fibre = sum(weight * _noise(rng, sigma) for weight, sigma in sizes.items())
    along = np.arange(TEXTURE) * (2 * np.pi / TEXTURE)
    crimp = 5 * np.sin(9 * along) + 3 * np.sin(17 * along + 1)
    rows, columns = np.indices(fibre.shape)
    fibre = map_coordinates(fibre, [rows + crimp, columns], order=1, mode="grid-wrap")
    # Repeated so far beyond the period that any tile is one plain slice.
    grains = (np.pad(grain, (0, 2 * TILE), mode="wrap") for grain in (fine, coarse, speck))
    return *grains, fibre.astype(np.float32).ravel()


def _stamp(seed, cell, coarse, turn, um):
    """One cell at one orientation: (2, n, n) float32, its haematoxylin and eosin at `um` per pixel.
    Both chromatin states use the same random numbers, hence the same outline, and are scaled to the
    same mean density: only the texture differs."""
    rng = np.random.default_rng(seed)
    size, stretch = np.exp(rng.normal(0, cell.spread)), np.exp(rng.normal(0, 0.10))
    bumps = [(k, rng.normal(0, 0.03), rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4)]
    half = int(np.ceil((0.62 * max(cell.length * stretch, cell.cell) * size + 1.5) / um))
    y, x = np.mgrid[-half : half + 1, -half : half + 1] * um
    a, b = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    angle = np.arctan2(b, a)
    outline = 1 + sum(c * np.cos(k * angle + p) for k, c, p in bumps)
    h, e = np.zeros_like(x), np.zeros_like(x)
    if cell.cell:
        away = rng.uniform(0, 0.18 if cell.name == "plasma" else 0.08) * cell.cell
        r = np.hypot(a - away, b) * 2 / (cell.cell * size * outline)
        body = np.clip((1 - r) * cell.cell / 2 / 1.6, 0, 1)
        body = body * (0.85 + 0.2 * np.exp(-(((r - 0.85) / 0.12) ** 2)))  # a denser membrane
        h += cell.basophilia * body
        e += cell.eosin * body
    if cell.length:
        r = np.hypot(2 * a / (cell.length * size * stretch), 2 * b * stretch / (cell.width * size))
        r = r / outline
        inside = np.clip((1 - r) * cell.width / 2 / 0.7 + 0.5, 0, 1)
        grain = _grain(rng, a, b, r, cell, coarse, um)
        grain *= cell.nucleus * inside.sum() / max((grain * inside).sum(), 1e-6)
        h += grain * inside
        e -= 0.10 * inside
    return np.stack([h, e]).astype(np.float32)


def _grain(rng, a, b, r, cell, coarse, um):
    """Chromatin over a nucleus, of any mean: fine and even, or coarse: a share `CHROMATIN` of the
    way to pale with clumps, a dark rim and a nucleolus of about 2 um."""
    fine, clumps = rng.standard_normal((2, *a.shape))
    where = rng.uniform(-0.3, 0.3, 2) * (cell.length, cell.width)
    even = np.clip(1 + 0.13 * gaussian_filter(fine, 0.35 / um) * 2 * 0.35 / um, 0.6, 1.5)
    if not coarse:
        return even
    clumps = gaussian_filter(clumps, 0.75 / um) * (0.75 / um * 3.5)
    width = min(cell.width / 6, 0.9)
    nucleolus = np.exp(-(((a - where[0]) ** 2 + (b - where[1]) ** 2) / (2 * width**2)))
    rim = np.exp(-(((r - 0.92) / 0.16) ** 2))
    vesicular = np.clip(0.62 + 0.26 * clumps + 0.5 * rim + 1.2 * nucleolus, 0.15, 2.6)
    return even + CHROMATIN * (vesicular - even)


@lru_cache(maxsize=2)
def _stamps(um):
    """The library: a list indexed by ((kind * 2 + coarse) * TURNS + turn) * VARIANTS + variant."""
    return [_stamp((kind, variant), cell, coarse, np.pi * turn / TURNS, um)
            for kind, cell in enumerate(CELL_TYPES) for coarse in (False, True)
            for turn in range(TURNS) for variant in range(VARIANTS)]  # fmt: skip


# Tables for uint8 masks: their share of 255, and the same as a steep ramp around the middle.
_SOFT = (np.arange(256) / 255).astype(np.float32)
_EDGE = np.clip((np.arange(256) / 255 - 0.38) / (0.62 - 0.38), 0, 1).astype(np.float32)


class _Canvas:
    """The two densities of one tile after another, and the colours they make."""

    def __init__(self, tissue, look, um, rng):
        self.um, self.look = um, look
        *self.grains, self.collagen = _textures(um)
        self.masks = {name: self._widened(mask) for name, mask in tissue.masks.items()}
        self.fibre = [self._widened(coordinate) for coordinate in tissue.fibre]
        self.shift = rng.integers(0, TEXTURE, 2)
        noise = rng.uniform(0, 4, (TILE + 2, TILE + 2))  # of the sensor; stays within 0 to 255
        self.sensor = noise.astype(np.float32)

    def _widened(self, layer):
        return Image.fromarray(np.pad(layer, BORDER, mode="edge"))

    def _crop(self, image, step, x, y, w, h):
        """A low-resolution image over the tile at (x, y) px, resampled to w x h px."""
        box = tuple(v * self.um / step + BORDER for v in (x, y, x + w, y + h))
        return np.asarray(image.resize((w, h), Image.BILINEAR, box=box))

    def ground(self, *tile):
        """Haematoxylin and eosin of all but the cells in a tile x, y, w, h: two (h, w) float32."""
        x, y, w, h = tile
        mask = {name: self._crop(image, STEP, *tile) for name, image in self.masks.items()}
        sx, sy = (self.shift + (x, y)) % TEXTURE
        fine, coarse, speck = (grain[sy : sy + h, sx : sx + w] for grain in self.grains)
        u, v = (self._crop(image, FLOW_STEP, *tile) for image in self.fibre)
        index = ((v * 2).astype(np.int32) % TEXTURE) * TEXTURE + u.astype(np.int32) % TEXTURE
        fibre = self.collagen.take(index)
        # Collagen: dense and pink or loose and pale; gaps between the bundles of loose collagen.
        dense = _SOFT[mask["collagen"]]
        e = 0.08 + 0.15 * dense + (0.04 + 0.04 * dense) * fibre + 0.015 * coarse
        e *= np.clip((fibre + 1.0 + 1.6 * dense) * 2.5, 0.12, 1)
        hx = 0.055 + 0.015 * fibre + 0.05 * _SOFT[mask["inflamed"]]
        for share, eosin, basophilia in (
            (_SOFT[mask["lymphoid"]], 0.10 + 0.02 * coarse, 0.09),
            (_SOFT[mask["necrosis"]], 0.22 + 0.045 * coarse + 0.04 * fine, 0.06 + 0.4 * speck),
            (_EDGE[mask["epithelium"]], 0.12 + 0.02 * coarse, 0.10 + 0.02 * coarse),
        ):
            e += share * (eosin - e)
            hx += share * (basophilia - hx)
        solid, rim, inside = 1 - _EDGE[mask["void"]], _SOFT[mask["rim"]], _EDGE[mask["tissue"]]
        e = e * solid + 0.20 * rim + 0.006 * fine + 0.008
        return (hx * solid + 0.05 * rim) * inside, e * inside

    def colour(self, hx, e):
        """Transmitted light of the two densities, (h, w, 3) uint8, blurred by the optics."""
        rgb, k = np.empty((*hx.shape, 3), np.uint8), self.look.blur
        for c, (h_stain, e_stain) in enumerate(self.look.stains.T):
            light = self.look.white[c] * np.exp(-(h_stain * hx + e_stain * e))
            rgb[..., c] = light + self.sensor[: hx.shape[0], : hx.shape[1]]
        kernel = ImageFilter.Kernel((3, 3), [k * k, k, k * k, k, 1, k, k * k, k, k * k])
        return np.asarray(Image.fromarray(rgb).filter(kernel))


def render(tissue, look, *, um_per_px, rng):
    """Draw `tissue`: (n, n, 3) uint8 RGB with n = side / um_per_px."""
    cells, size = tissue.cells, round(tissue.side / um_per_px)
    canvas, stamps = _Canvas(tissue, look, um_per_px, rng), _stamps(um_per_px)
    turn = np.rint(cells.angle / np.pi * TURNS).astype(int) % TURNS
    stamp = ((cells.kind * 2 + cells.chromatin) * TURNS + turn) * VARIANTS
    stamp = (stamp + rng.integers(0, VARIANTS, len(cells))).to_numpy()
    cx, cy = (cells[["x", "y"]].to_numpy() / um_per_px).astype(int).T
    pad = max(s.shape[1] for s in stamps) + 1  # px
    image = np.empty((size, size, 3), np.uint8)
    for y in range(0, size, TILE):
        for x in range(0, size, TILE):
            h, w = min(TILE, size - y), min(TILE, size - x)
            tile = image[y : y + h, x : x + w]
            x0, y0, x1, y1 = (int(v * um_per_px / STEP) for v in (x, y, x + w, y + h))
            if not tissue.masks["tissue"][y0 : y1 + 1, x0 : x1 + 1].any():
                tile[:] = look.white + canvas.sensor[:h, :w, None]
                continue
            # One pixel more on each side for the blur, and a margin for the stamps to hang over.
            density = np.zeros((2, h + 2 * pad, w + 2 * pad), np.float32)
            core = np.s_[:, pad - 1 : pad + h + 1, pad - 1 : pad + w + 1]
            density[core] = canvas.ground(x - 1, y - 1, w + 2, h + 2)
            near = (abs(cx - x - w / 2) < w / 2 + pad / 2) & (abs(cy - y - h / 2) < h / 2 + pad / 2)
            for i in np.flatnonzero(near):
                s = stamps[stamp[i]]
                n = s.shape[1]
                top, left = cy[i] - y + pad - n // 2, cx[i] - x + pad - n // 2
                density[:, top : top + n, left : left + n] += s
            tile[:] = canvas.colour(*np.maximum(density[core], 0))[1:-1, 1:-1]
    return image
