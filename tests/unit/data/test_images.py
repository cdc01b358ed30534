"""Images of every kind of colours and planes are read as RGB on white, or named; their scale."""

import gc
import itertools
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from seal_lite.data.images import open_slide, tiff, tissue_mask
from seal_lite.data.images.blocks import Blocks
from seal_lite.errors import InputError

SIDE = 512
TILED = {"tile": (256, 256), "metadata": None}


@pytest.fixture(scope="module")
def scene():
    """Red tells the column, green the row; blue is even."""
    rows, cols = np.indices((SIDE, SIDE)) // 2
    return np.stack([cols, rows, np.full_like(rows, 90)], -1).astype(np.uint8)


def planes(image):
    return np.moveaxis(image, -1, 0)


def read(path):
    """What is shown in the middle of the image, in its own pixels."""
    return open_slide(path).read(200, 100, edge=64, px=64).astype(int)


def write_palette(path, image):
    """Each px is the number of its red in a table of three colours each."""
    table = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 7)])
    table = table.astype(np.uint16) * 257
    tifffile.imwrite(path, image[..., 0], photometric="palette", colormap=table, **TILED)


def write_cmyk(path, image):
    ink = np.concatenate([255 - image, np.zeros_like(image[..., :1])], -1)
    tifffile.imwrite(path, ink, photometric="separated", **TILED)


def write_ycbcr(path, image):
    luma = np.asarray(Image.fromarray(image).convert("YCbCr"))
    tifffile.imwrite(path, luma, photometric="ycbcr", **TILED)


def write_planar(path, image):
    planar = {"photometric": "rgb", "planarconfig": "separate"}
    tifffile.imwrite(path, planes(image), **planar, **TILED)


def write_ome_planar(path, image):
    tifffile.imwrite(
        path, planes(image), ome=True, photometric="rgb", planarconfig="separate", tile=(256, 256)
    )


def write_channels(path, image):
    tifffile.imwrite(path, planes(image), photometric="minisblack", metadata={"axes": "CYX"})


def write_pages(path, image):
    tifffile.imwrite(path, planes(image), photometric="minisblack", metadata=None)


def write_deep_ome(path, image):
    axes = {"axes": "TZCYXS"}
    tifffile.imwrite(path, image[None, None, None], ome=True, photometric="rgb", metadata=axes)


IN_COLOUR = {
    "planar": write_planar,
    "OME, planar": write_ome_planar,
    "three channels": write_channels,
    "three pages": write_pages,
    "OME with axes of one": write_deep_ome,
    "YCbCr that is not JPEG": write_ycbcr,
    "CMYK": write_cmyk,
}


@pytest.mark.parametrize("kind", IN_COLOUR)
def test_colours_come_back_from_every_order_of_planes(tmp_path, scene, kind):
    path = tmp_path / "a.tif"
    IN_COLOUR[kind](path, scene)
    assert open_slide(path).size == (SIDE, SIDE)
    shown = read(path)
    expected = scene[100:164, 200:264].astype(int)
    assert np.abs(shown - expected).max() <= 3  # of YCbCr in 8 bits


def test_a_palette_is_looked_up(tmp_path, scene):
    write_palette(tmp_path / "a.tif", scene)
    red = scene[100:164, 200:264, 0].astype(int)
    expected = np.stack([red, 255 - red, np.full_like(red, 7)], -1)
    assert np.abs(read(tmp_path / "a.tif") - expected).max() <= 1


def test_grey_is_light_where_its_tag_says_so(tmp_path, scene):
    red = scene[..., 0]
    tifffile.imwrite(tmp_path / "white.tif", 255 - red, photometric="miniswhite", **TILED)
    tifffile.imwrite(tmp_path / "bits.tif", red > 120, photometric="minisblack", metadata=None)
    expected = red[100:164, 200:264].astype(int)
    for channel in range(3):
        assert np.abs(read(tmp_path / "white.tif")[..., channel] - expected).max() <= 1
    bits = open_slide(tmp_path / "bits.tif").thumbnail(1.0)
    assert set(np.unique(bits)) == {0, 255}


# Shape, and how it is written; words of the error.
UNREAD = {
    "five channels": ((5, 64, 64), {"metadata": {"axes": "CYX"}}, "C 5"),
    "two channels": ((2, 64, 64), {"metadata": {"axes": "CYX"}}, "C 2"),
    "a stack": ((3, 64, 64), {"imagej": True, "metadata": {"axes": "ZYX"}}, "Z 3"),
    "a stack in colour": (
        (4, 64, 64, 3),
        {"photometric": "rgb", "metadata": {"axes": "ZYXS"}},
        "Z 4",
    ),
    "CIELAB": ((64, 64, 3), {"photometric": "cielab", "metadata": None}, "CIELAB"),
    "16 bits": (
        (64, 64, 3),
        {"photometric": "rgb", "metadata": None, "dtype": np.uint16},
        "more than 8 bits",
    ),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_what_no_h_and_e_image_has_is_named(tmp_path, kind):
    shape, options, words = UNREAD[kind]
    options = {"photometric": "minisblack", "dtype": np.uint8, **options}
    tifffile.imwrite(tmp_path / "a.tif", shape=shape, **options)
    with pytest.raises(InputError, match=f"a.tif: .*{words}.*; convert it to 8-bit RGB"):
        open_slide(tmp_path / "a.tif")


def test_levels_that_are_stored_as_images_are_not_others(tmp_path, scene):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for step in (1, 2, 4):
            file.write(scene[::step, ::step], photometric="rgb", metadata={"axes": "YXS"})
    slide = open_slide(path)
    assert slide.size == (SIDE, SIDE)
    assert slide.notes == ()


def test_of_several_images_the_one_in_colour_is_read_and_the_others_are_named(tmp_path, scene):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(np.zeros((700, 600), np.uint8), photometric="minisblack", metadata=None)
        file.write(scene, photometric="rgb", metadata=None)
    slide = open_slide(path)
    assert slide.size == (SIDE, SIDE)
    (note,) = slide.notes
    assert note.startswith("holds several images: 512 x 512 x 3 is read, and not unnamed (YX 700 x")


# ---------------------------------------------------------------------------- transparency


@pytest.fixture(params=["unassociated", "associated", "PNG", "PNG with a palette"])
def transparent(request, tmp_path, scene):
    """The left half is transparent, and black beneath; the rest is opaque."""
    rgba = np.dstack([scene, np.full(scene.shape[:2], 255, np.uint8)])
    rgba[:, : SIDE // 2] = 0
    if request.param == "PNG":
        Image.fromarray(rgba).save(tmp_path / "a.png")
        return tmp_path / "a.png"
    if request.param == "PNG with a palette":
        Image.fromarray(rgba).quantize(256).save(tmp_path / "a.png")
        return tmp_path / "a.png"
    kind = {"unassociated": "unassalpha", "associated": "assocalpha"}[request.param]
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=[kind], **TILED)
    return tmp_path / "a.tif"


def test_what_is_transparent_is_white(transparent, scene):
    slide = open_slide(transparent)
    assert (slide.read(100, 100, edge=64, px=64) == 255).all()
    opaque = slide.read(400, 100, edge=64, px=64).astype(int)
    assert np.abs(opaque - scene[100:164, 400:464]).mean() < 8  # a palette has 256 colours


def test_half_opaque_is_half_white(tmp_path):
    colour = np.full((64, 64, 4), (200, 0, 0, 128), np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif", colour, photometric="rgb", extrasamples=["unassalpha"], metadata=None
    )
    premultiplied = np.full((64, 64, 4), (100, 0, 0, 128), np.uint8)
    tifffile.imwrite(
        tmp_path / "b.tif",
        premultiplied,
        photometric="rgb",
        extrasamples=["assocalpha"],
        metadata=None,
    )
    for name in ("a.tif", "b.tif"):
        shown = open_slide(tmp_path / name).read(10, 10, edge=8, px=8).astype(int)
        assert np.abs(shown - [227, 127, 127]).max() <= 1


# ---------------------------------------------------------------------------- scale

INCH, CM = "INCH", "CENTIMETER"
APERIO = "Aperio Image Library v12\r\n64x64 (64x64) JPEG/RGB Q=70|AppMag = 20"
SCALES = {
    "OME, um": ({"ome": True, "metadata": {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm"}}, 0.5),
    "OME, no unit": ({"ome": True, "metadata": {"PhysicalSizeX": 0.5}}, 0.5),
    "OME, nm": (
        {"ome": True, "metadata": {"PhysicalSizeX": 500.0, "PhysicalSizeXUnit": "nm"}},
        0.5,
    ),
    "ImageJ": ({"imagej": True, "resolution": (2, 2), "metadata": {"unit": "um"}}, 0.5),
    "px per cm": ({"resolution": (2e4, 2e4), "resolutionunit": CM}, 0.5),
    "MPP": ({"description": f"{APERIO}|MPP = 0.5", "metadata": None}, 0.5),
    "MPP with a comma": ({"description": f"{APERIO}|MPP = 0,5", "metadata": None}, 0.5),
    "no MPP": ({"description": APERIO, "metadata": None}, None),
    "MPP of 0": ({"description": f"{APERIO}|MPP = 0", "metadata": None}, None),
    "72 dpi": ({"resolution": (72, 72), "resolutionunit": INCH}, None),
    "96 dpi": ({"resolution": (96, 96), "resolutionunit": INCH}, None),
    "10 px per cm": ({"resolution": (10, 10), "resolutionunit": CM}, None),
    "0 px per cm": ({"resolution": (0, 1), "resolutionunit": CM}, None),
    "no unit": ({"metadata": None}, None),
}


def write_scaled(path, kind):
    options, _ = SCALES[kind]
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), photometric="rgb", **options)


@pytest.mark.parametrize("kind", SCALES)
def test_the_scale_is_what_the_file_says_where_that_can_be_true(tmp_path, kind):
    path = tmp_path / ("a.svs" if "MPP" in kind else "a.tif")
    write_scaled(path, kind)
    expected = SCALES[kind][1]
    assert open_slide(path).um_per_px == (None if expected is None else pytest.approx(expected))
    given = open_slide(path, um_per_px=0.25).um_per_px
    assert given == pytest.approx(0.25 if expected is None else expected)


def test_what_is_said_of_a_scale_is_noted(tmp_path):
    write_scaled(tmp_path / "a.tif", "72 dpi")
    write_scaled(tmp_path / "b.tif", "px per cm")
    assert open_slide(tmp_path / "a.tif").notes == ("states 352.8 um per px, not believed",)
    (note,) = open_slide(tmp_path / "b.tif", um_per_px=0.25).notes
    assert note == "states 0.5 um per px, which counts, and not the 0.25 given"
    assert open_slide(tmp_path / "b.tif", um_per_px=0.5).notes == ()


# ------------------------------------------------------------------------------ tiles, threads

TILE_PX = 64
COMPRESSIONS = {
    "none": {},
    "zlib with differences": {"compression": "zlib", "predictor": True},
    "JPEG": {"compression": "jpeg"},
}


def write_tiled(path, image, **options):
    tifffile.imwrite(
        path, image, photometric="rgb", tile=(TILE_PX, TILE_PX), metadata=None, **options
    )


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_a_box_across_tiles_is_that_of_the_whole_image(tmp_path, scene, kind):
    path = tmp_path / "slide.tif"
    write_tiled(path, scene[:500, :450], **COMPRESSIONS[kind])  # no multiple of the tiles
    whole = tifffile.imread(path)
    slide = open_slide(path)
    for left, top, right, bottom in [(0, 0, 450, 500), (63, 64, 129, 128), (400, 470, 450, 500)]:
        box = slide.region(0, (left, top, right, bottom))
        np.testing.assert_array_equal(box, whole[top:bottom, left:right])


def test_each_tile_is_decoded_once_for_all_patches_that_share_it(tmp_path, scene, monkeypatch):
    path = tmp_path / "slide.tif"
    write_tiled(path, scene, compression="zlib")
    slide = open_slide(path)
    read_bytes = tifffile.FileHandle.read
    decoded = []

    def count(self, size=-1, /):
        decoded.append(self.tell())
        return read_bytes(self, size)

    monkeypatch.setattr(tifffile.FileHandle, "read", count)
    for x in range(0, SIDE - 96, 32):
        slide.read(x, 40, edge=96, px=48)
    assert len(decoded) == 3 * (SIDE // TILE_PX)  # y from 40 to 136: three rows of tiles


KINDS = {
    "RGB": {"photometric": "rgb"},
    "YCbCr in JPEG": {"photometric": "ycbcr", "compression": "jpeg"},  # as Philips' scanners
    "YCbCr": {"photometric": "ycbcr"},
    "CMYK": {"photometric": "separated"},
    "grey": {"photometric": "minisblack"},
    "dark is light": {"photometric": "miniswhite"},
    "palette": {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
}
CHANNELS = {"CMYK": 4, "grey": 0, "dark is light": 0, "palette": 0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tag", ["TileOffsets", "TileByteCounts"])
def test_a_tile_that_is_left_out_is_white(tmp_path, kind, tag):
    path = tmp_path / "slide.tif"
    n_channels = CHANNELS.get(kind, 3)
    pixels = np.full((SIDE, SIDE, n_channels) if n_channels else (SIDE, SIDE), 120, np.uint8)
    tifffile.imwrite(path, pixels, tile=(TILE_PX, TILE_PX), metadata=None, **KINDS[kind])
    with tifffile.TiffFile(path, mode="r+b") as file:
        tags = file.pages[0].tags
        values = list(tags[tag].value)
        values[1] = 0
        tags[tag].overwrite(values)
    slide = open_slide(path)
    assert (slide.read(TILE_PX, 0, edge=TILE_PX, px=TILE_PX) == 255).all()
    beside = slide.read(2 * TILE_PX, 0, edge=TILE_PX, px=TILE_PX)
    assert (beside < 230).any(axis=-1).all()


def test_a_palette_of_two_colours_is_looked_up(tmp_path, scene):
    """Its px are bits, which are no numbers of rows."""
    path = tmp_path / "bits.tif"
    colours = [200, 250, 90, 248, 120, 251]  # red of both, green, blue
    colour_map = (320, "H", 6, [257 * colour for colour in colours], True)
    bits = {"photometric": "minisblack", "metadata": None, "extratags": [colour_map]}
    tifffile.imwrite(path, scene[..., 0] > 128, **bits)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["PhotometricInterpretation"].overwrite(tifffile.PHOTOMETRIC.PALETTE)
    shown = open_slide(path).read(0, 0, edge=SIDE, px=SIDE)
    np.testing.assert_array_equal(shown[5, 5], [200, 90, 120])
    np.testing.assert_array_equal(shown[5, -5], [250, 248, 251])


def test_what_a_leica_scanner_has_not_scanned_is_white(tmp_path):
    """tiffslide fills the gaps between the scanned areas with zeros."""
    area = np.full((40, 40, 3), 180, np.uint8)
    glass = np.zeros((100, 100, 3), np.uint8)
    glass[30:70, 30:70] = area

    def read_region(corner, level, size, *, as_array):
        (x, y), (width, height) = corner, size
        return glass[y : y + height, x : x + width]

    slide = SimpleNamespace(level_downsamples=(1.0,), read_region=read_region)
    shown = tiff._scn_region(tmp_path, slide, 0, (20, 20, 80, 80))
    assert (shown[:10] == 255).all() and (shown[:, -10:] == 255).all()
    np.testing.assert_array_equal(shown[10:50, 10:50], area)


@pytest.mark.parametrize("kept", [0.2, 0.6, 0.999])
def test_a_slide_that_was_cut_off_is_an_error_and_not_white(tmp_path, scene, kept):
    path = tmp_path / "slide.tif"
    write_tiled(path, scene, compression="zlib")
    content = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        last = file.pages[0].dataoffsets[-1]
    path.write_bytes(content[: int(last * kept)])
    with pytest.raises(InputError, match=r"slide.tif: cannot be read"):
        open_slide(path).read(SIDE - 64, SIDE - 64, edge=64, px=64)


@pytest.mark.parametrize(
    "options", [{"tile": (64, 64)}, {"rowsperstrip": 7}, {"rowsperstrip": SIDE}]
)
def test_threads_read_what_one_reads(tmp_path, scene, options, monkeypatch):
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, scene, photometric="rgb", compression="zlib", metadata=None, **options)
    monkeypatch.setattr("seal_lite.data.images.slide.usable_cores", lambda: 8)
    corners = np.random.default_rng(0).uniform(-20, SIDE - 40, (200, 2))
    one_by_one = [open_slide(path).read(x, y, edge=60.5, px=32) for x, y in corners[:20]]
    together = open_slide(path).read_all(corners, edge=60.5, px=32)
    np.testing.assert_array_equal(together[:20], one_by_one)


def test_what_one_of_the_threads_cannot_read_is_an_error(tmp_path, scene):
    path = tmp_path / "slide.tif"
    write_tiled(path, scene, compression="zlib")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        damaged = file.pages[0].dataoffsets[20]
    content[damaged : damaged + 8] = b"damaged!"
    path.write_bytes(content)
    corners = np.argwhere(np.ones((8, 8))) * TILE_PX
    with pytest.raises(InputError, match=r"slide.tif: cannot be read"):
        open_slide(path).read_all(corners, edge=TILE_PX, px=TILE_PX)


def test_no_square_is_an_empty_array(tmp_path, scene):
    path = tmp_path / "slide.tif"
    write_tiled(path, scene)
    patches = open_slide(path).read_all(np.zeros((0, 2)), edge=TILE_PX, px=32)
    assert patches.shape == (0, 32, 32, 3)


# ------------------------------------------------------------------------------ chunks of zarr


def write_ome_zarr(path, image, *, chunks, levels=1):
    group = zarr.open_group(path, mode="w", zarr_format=2)
    for level in range(levels):
        pixels = planes(image[:: 2**level, :: 2**level])
        chunk = [min(length, size) for length, size in zip(chunks, pixels.shape, strict=True)]
        array = group.create_array(f"{level}", shape=pixels.shape, chunks=chunk, dtype="u1")
        array[...] = pixels
    group.attrs["multiscales"] = [
        {
            "datasets": [{"path": f"{level}"} for level in range(levels)],
            "axes": [{"name": axis} for axis in "cyx"],
        }
    ]


CHUNKS = {"small": (3, 64, 64), "a plane each": (1, 200, 200), "the whole image": (3, SIDE, SIDE)}


@pytest.mark.parametrize("kind", CHUNKS)
def test_a_chunk_is_read_once_for_all_patches(tmp_path, scene, kind, monkeypatch):
    """A SpatialData store may hold an image of 25,000 px in one chunk: seconds for each patch."""
    path = tmp_path / "image"
    write_ome_zarr(path, scene, chunks=CHUNKS[kind])
    slide = open_slide(path)
    n_chunks = zarr.open_group(path, mode="r")["0"].nchunks
    read_chunk = zarr.storage.LocalStore.get
    got = []

    async def count(self, key, *arguments, **options):
        got.append(key)
        return await read_chunk(self, key, *arguments, **options)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", count)
    monkeypatch.setattr("seal_lite.data.images.slide.usable_cores", lambda: 4)
    corners = np.random.default_rng(0).integers(0, SIDE - 64, (60, 2))
    patches = slide.read_all(corners, edge=64, px=64)
    for (x, y), patch in zip(corners, patches, strict=True):
        np.testing.assert_array_equal(patch, scene[y : y + 64, x : x + 64])
    assert len(got) == len(set(got)) <= n_chunks


def test_a_patch_at_the_edge_of_a_coarse_level_whose_size_was_rounded_down(tmp_path):
    image = np.full((101, 101, 3), (200, 90, 120), np.uint8)
    write_ome_zarr(tmp_path / "image", image, chunks=(3, 40, 40))
    group = zarr.open_group(tmp_path / "image", mode="a")
    coarse = group.create_array("1", shape=(3, 50, 50), chunks=(3, 40, 40), dtype="u1")
    coarse[...] = planes(image[:100:2, :100:2])
    axes = [{"name": axis} for axis in "cyx"]
    datasets = [{"path": "0"}, {"path": "1"}]
    group.attrs["multiscales"] = [{"datasets": datasets, "axes": axes}]
    shown = open_slide(tmp_path / "image").read(61, 61, edge=40, px=19)
    assert (shown == [200, 90, 120]).all()


@pytest.mark.parametrize("px_bytes", [1, 2000])  # a block of 10 kB, and of 20 MB
def test_threads_wait_for_a_large_block_and_decode_small_ones_side_by_side(px_bytes):
    decoding = threading.Semaphore(0)
    most = 0

    def decode(box):
        nonlocal most
        decoding.release()
        time.sleep(0.05)
        most = max(most, decoding._value)
        decoding.acquire()
        left, top, right, bottom = box
        return np.full((bottom - top, right - left, 1), left % 256, np.uint8)

    size, block = (400, 100), (100, 100)
    blocks = Blocks(decode, size, block, px_bytes=px_bytes, one_at_a_time=False)
    boxes = [(left, 0, left + 10, 10) for left in (0, 100, 200, 300)]
    with ThreadPoolExecutor(4) as threads:
        read_boxes = list(threads.map(blocks.read, boxes))
    for (left, *_), pixels in zip(boxes, read_boxes, strict=True):
        assert (pixels == left % 256).all()
    assert (most > 1) == (px_bytes == 1)


def test_threads_that_need_one_block_decode_it_once():
    decoded = []

    def decode(box):
        decoded.append(box)
        time.sleep(0.02)
        left, top, right, bottom = box
        return np.zeros((bottom - top, right - left, 1), np.uint8)

    blocks = Blocks(decode, (400, 100), (100, 100), px_bytes=1, one_at_a_time=False)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(blocks.read, [(left, 0, left + 60, 60) for left in range(0, 340, 4)]))
    assert len(decoded) == 4


def test_decoded_blocks_are_freed_with_their_image():
    """A cycle would keep them until Python looks for cycles, which it does not for gigabytes."""

    def decode(box):
        left, top, right, bottom = box
        return np.zeros((bottom - top, right - left, 1), np.uint8)

    blocks = Blocks(decode, (400, 100), (100, 100), px_bytes=1, one_at_a_time=False)
    blocks.read((0, 0, 400, 100))
    gone = weakref.ref(blocks)
    gc.disable()
    try:
        del blocks
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("corner", "size"), [((0, 100), (100, 101)), ((100, 0), (101, 100))])
def test_a_square_that_begins_in_the_last_pixel_of_a_rounded_level(tmp_path, corner, size):
    width, height = size
    path = tmp_path / "image"
    image = np.full((height, width, 3), (200, 90, 120), np.uint8)
    write_ome_zarr(path, image, chunks=(3, 40, 40))
    group = zarr.open_group(path, mode="a")
    coarse = group.create_array("1", shape=(3, 50, 50), chunks=(3, 40, 40), dtype="u1")
    coarse[...] = planes(image[:100:2, :100:2])
    axes = [{"name": axis} for axis in "cyx"]
    group.attrs["multiscales"] = [{"datasets": [{"path": "0"}, {"path": "1"}], "axes": axes}]
    shown = open_slide(path).read(*corner, edge=40, px=20)
    assert shown.shape == (20, 20, 3)
    assert (shown[10:, 10:] == 255).all()  # outside


def visits(order, blocks):
    """How often the blocks change along an order."""
    return 1 + sum(blocks[a] != blocks[b] for a, b in itertools.pairwise(order))


@pytest.mark.parametrize("level", [0, 1])
def test_squares_of_one_block_follow_one_another(tmp_path, scene, level):
    write_ome_zarr(tmp_path / "image", scene, chunks=(3, 128, 128), levels=2)
    slide = open_slide(tmp_path / "image")
    corners = np.random.default_rng(0).uniform(0, SIDE - 40, (300, 2))
    px = 40 // 2**level
    order = slide._block_by_block(corners, factor=40 / px)
    blocks = [tuple(corner // (128 * 2**level)) for corner in corners]
    assert sorted(order) == list(range(300))
    assert visits(order, blocks) == len(set(blocks))


@pytest.mark.parametrize("kind", ["TIFF in tiles", "TIFF in strips", "OME-Zarr", "PNG"])
def test_a_square_outside_of_the_image_is_white(tmp_path, scene, kind):
    path = tmp_path / "image.tif"
    if kind == "OME-Zarr":
        path = tmp_path / "image"
        write_ome_zarr(path, scene, chunks=(3, 128, 128))
    elif kind == "PNG":
        path = tmp_path / "image.png"
        Image.fromarray(scene).save(path)
    else:
        tile = {"tile": (64, 64)} if kind == "TIFF in tiles" else {}
        tifffile.imwrite(path, scene, photometric="rgb", metadata=None, **tile)
    slide = open_slide(path)
    for x, y in [(SIDE, 0), (SIDE + 70, 5), (-40, 5), (3, -90), (3, SIDE + 0.0)]:
        assert (slide.read(x, y, edge=40, px=20) == 255).all()


# ---------------------------------------------------------------------------- strips and edges


@pytest.mark.parametrize("rows", [1, 100, SIDE])
def test_an_image_in_strips_is_decoded_once(tmp_path, scene, rows, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, scene, photometric="rgb", rowsperstrip=rows, metadata=None)
    slide = open_slide(path)
    first = slide.read(20, 230, edge=64, px=64).astype(int)  # across two bands of 256 rows
    assert np.abs(first - scene[230:294, 20:84]).max() <= 1
    monkeypatch.setattr(tifffile.TiffPage, "decode", None)
    monkeypatch.setattr(tifffile.FileHandle, "read", None)
    elsewhere = slide.read(400, 240, edge=64, px=64).astype(int)
    assert np.abs(elsewhere - scene[240:304, 400:464]).max() <= 1


def test_the_last_pixels_of_an_image_that_is_no_multiple_of_its_tiles(tmp_path):
    image = np.full((300, 300, 3), 250, np.uint8)
    image[-30:, -30:] = [10, 200, 30]
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", **TILED)
    slide = open_slide(tmp_path / "a.tif")
    assert (slide.read(272, 272, edge=28, px=28) == [10, 200, 30]).all()
    assert (slide.thumbnail(10)[-1, -1] == [10, 200, 30]).all()


# ---------------------------------------------------------------------------- tissue


OME_OF_ANOTHER_FILE = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"
  UUID="urn:uuid:00000000-0000-0000-0000-000000000001"><Image ID="Image:0">
<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="256" SizeY="256" SizeC="3"
  SizeZ="1" SizeT="1"><Channel ID="Channel:0" SamplesPerPixel="3"/>
<TiffData IFD="0" PlaneCount="1"><UUID FileName="../other.ome.tif"
  >urn:uuid:00000000-0000-0000-0000-000000000002</UUID></TiffData></Pixels></Image></OME>"""


def test_an_ome_tiff_does_not_choose_which_other_files_are_read(tmp_path):
    own = np.full((256, 256, 3), (10, 200, 10), np.uint8)
    path = tmp_path / "data/own.ome.tif"
    path.parent.mkdir()
    options = {"photometric": "rgb", "metadata": None, "compression": "zlib"}
    tifffile.imwrite(path, own, description=OME_OF_ANOTHER_FILE, **options)
    tifffile.imwrite(tmp_path / "other.ome.tif", 255 - own, **options)
    with tifffile.TiffFile(path) as file:  # what the library would read
        assert (file.series[0].asarray() == 255 - own).all()
    shown = open_slide(path).read(0, 0, edge=64, px=64)
    np.testing.assert_array_equal(shown, own[:64, :64])


def glass(shape=(120, 160), colour=(243, 243, 243)):
    noise = np.random.default_rng(0).normal(0, 1.5, (*shape, 3))
    return colour + noise


def test_a_pale_piece_is_tissue_on_a_slide_that_is_mostly_glass():
    image = glass()
    image[20:40, 20:44] = [214, 217, 226]  # hardly any colour
    image[24:30, 26:34] = [120, 110, 170]  # a few nuclei
    image[80:90, 100:120] = [200, 201, 200]  # a shadow
    mask = tissue_mask(image.astype(np.uint8))
    assert mask[20:40, 20:44].mean() > 0.95
    assert mask.sum() < 1.1 * 20 * 24


@pytest.mark.parametrize("colour", [(243, 243, 243), (240, 238, 226)], ids=["grey", "yellowish"])
def test_glass_alone_is_no_tissue(colour):
    assert not tissue_mask(glass(colour=colour).astype(np.uint8)).any()


def test_tissue_without_glass_is_tissue_and_black_is_not():
    noise = np.random.default_rng(0).normal(0, 18, (60, 60, 1))
    field = np.clip([190, 120, 180] + noise, 0, 255).astype(np.uint8)
    assert tissue_mask(field).all()
    assert not tissue_mask(np.zeros((60, 60, 3), np.uint8)).any()


@pytest.mark.parametrize("box", [(3, 5, 43, 45), (3.4, 5.7, 43.4, 45.7), (0, 0, 40, 40)])
def test_what_lies_around_a_box_has_no_effect(box):
    """A patch that another tool has cut out gives the same bits as one read from a slide."""
    from seal_lite.data.images import resized

    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    left, top = (int(corner) for corner in box[:2])
    right, bottom = (int(np.ceil(corner)) for corner in box[2:])
    around = pixels.copy()
    around[:top] = around[bottom:] = 0
    around[:, :left] = around[:, right:] = 255
    for px in (16, 40, 64):
        shown = resized(Image.fromarray(pixels), px, box=box)
        np.testing.assert_array_equal(resized(Image.fromarray(around), px, box=box), shown)
    if all(corner == int(corner) for corner in box):
        cut = Image.fromarray(pixels[top:bottom, left:right])
        np.testing.assert_array_equal(resized(cut, 64), shown)
