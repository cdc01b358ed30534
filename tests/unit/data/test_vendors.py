"""Slides that openslide reads: no slide of a scanner is at hand, so it is given a tiled TIFF."""

import numpy as np
import pytest
import tifffile

from seal_lite.data.images import formats, open_slide, vendors
from seal_lite.errors import InputError

SIDE = 768
TILED = {"tile": (256, 256), "compression": "deflate", "photometric": "rgb", "metadata": None}
SCALE = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}  # 0.5 um per px


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A pyramid of two levels, with the scale in its tags."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    path = tmp_path_factory.mktemp("vendors") / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, **TILED, **SCALE)
        file.write(pixels[::4, ::4].copy(), subfiletype=1, **TILED)
    return path


@pytest.fixture(params=[ModuleNotFoundError, OSError], ids=["package", "library"])
def without_openslide(request, monkeypatch):
    """The package is missing, or the library in C that it loads."""
    import_module = vendors.importlib.import_module

    def refuse(name):
        if name == "openslide":
            raise request.param(name)
        return import_module(name)

    monkeypatch.setattr(vendors.importlib, "import_module", refuse)


def test_openslide_and_tifffile_read_the_same_pixels_at_the_same_scale(path):
    pytest.importorskip("openslide")
    mine, theirs = open_slide(path), vendors.open_vendors(path, None)
    assert theirs.size == mine.size == (SIDE, SIDE)
    assert theirs.levels == pytest.approx(mine.levels) == (1, 4)
    assert theirs.um_per_px == pytest.approx(mine.um_per_px) == 0.5
    places = [(100, 40, 64, 64), (33.4, 100.7, 200, 100), (64, 128, 512, 64), (-20, 700, 100, 50)]
    for x, y, edge, px in places:
        seen = theirs.read(x, y, edge=edge, px=px)
        np.testing.assert_array_equal(seen, mine.read(x, y, edge=edge, px=px))
    np.testing.assert_array_equal(theirs.thumbnail(8.0), mine.thumbnail(8.0))


def test_what_a_scanner_has_not_scanned_is_white(path):
    """openslide returns it transparent, and black."""
    pytest.importorskip("openslide")
    region = vendors.open_vendors(path, None).region
    assert region(0, (SIDE - 8, 0, SIDE + 8, 16)).getpixel((12, 3)) == (0, 0, 0, 0)
    slide = vendors.open_vendors(path, None)
    assert (slide.read(SIDE - 8, 0, edge=16, px=16)[:, 8:] == 255).all()


@pytest.mark.parametrize("suffix", vendors.VENDOR_SUFFIXES)
def test_a_scanners_format_needs_openslide(tmp_path, suffix, without_openslide):
    (tmp_path / f"a{suffix}").touch()
    with pytest.raises(InputError, match=r"needs openslide; pip install 'seal_lite\[openslide\]'"):
        open_slide(tmp_path / f"a{suffix}")


def test_a_damaged_slide_of_a_scanner_is_an_input_error(tmp_path):
    pytest.importorskip("openslide")
    (tmp_path / "a.mrxs").write_text("x")
    with pytest.raises(InputError, match="a.mrxs: cannot be read"):
        open_slide(tmp_path / "a.mrxs")
    assert vendors.dicom_series(tmp_path / "a.mrxs") == str(tmp_path / "a.mrxs")


def test_what_tifffile_does_not_read_is_read_by_openslide_if_it_is_a_scanners(path, monkeypatch):
    pytest.importorskip("openslide")

    def refuse(path, um_per_px):
        raise InputError(f"{path}: has YCbCr colours of which some were left out")

    monkeypatch.setattr(formats, "open_tiff", refuse)
    with pytest.raises(InputError, match="YCbCr"):  # of no scanner
        open_slide(path)
    openslide = pytest.importorskip("openslide")
    monkeypatch.setattr(openslide.OpenSlide, "detect_format", lambda _: "aperio")
    assert open_slide(path).size == (SIDE, SIDE)


def test_without_openslide_the_first_reason_stands(tmp_path, without_openslide):
    (tmp_path / "a.svs").write_text("tiff")
    with pytest.raises(InputError, match="a.svs: cannot be read"):
        open_slide(tmp_path / "a.svs")
