"""From slides to feature files: the right places at the right scale, and nothing written twice."""

import h5py
import numpy as np
import pytest
from PIL import Image

from seal_lite import InputError
from seal_lite.data.images import open_slide, tissue_mask
from seal_lite.data.phantom import write_pyramid
from seal_lite.encoders.embedding import embed_patches
from seal_lite.encoders.vision import build_encoder
from seal_lite.slides.embed import embed_slides, grid, list_slides

SIDE, UM = 1024, 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One scene as a picture and as a pyramidal TIFF: tissue on the left, empty slide beside it."""
    out = tmp_path_factory.mktemp("slides")
    rng = np.random.default_rng(0)
    image = np.full((SIDE, SIDE, 3), 244, np.uint8)
    tissue = rng.integers(-40, 40, (SIDE // 8, SIDE // 16, 3)).repeat(8, 0).repeat(8, 1)
    image[:, : SIDE // 2] = np.array([190, 110, 170]) + tissue
    Image.fromarray(image).save(out / "picture.png")
    write_pyramid(out / "pyramid.tif", image, um_per_px=UM)
    return out


def test_a_picture_and_a_pyramid_are_read_alike(folder):
    picture, pyramid = open_slide(folder / "picture.png", UM), open_slide(folder / "pyramid.tif")
    assert pyramid.um_per_px == pytest.approx(UM) and pyramid.size == picture.size == (SIDE, SIDE)
    assert len(pyramid.levels) == 3
    for edge, px in ((64, 64), (256, 64)):  # from the full resolution and from a smaller level
        a, b = (s.read(128, 192, edge, px).astype(int) for s in (picture, pyramid))
        assert a.shape == (px, px, 3) and np.abs(a - b).mean() < 4
    assert np.abs(picture.read(0, 0, 64, 64).astype(int) - picture.read(64, 0, 64, 64)).mean() > 9


def test_regions_lie_on_tissue_only(folder):
    for name, um in (("picture.png", UM), ("pyramid.tif", None)):
        corners = grid(open_slide(folder / name, um), patch_um=64.0)
        assert len(corners) == 4 * 8  # 128 px each: 4 columns of tissue, 8 rows
        assert set(corners[:, 0]) == {0, 128, 256, 384} and corners[:, 1].max() == 896
    assert not tissue_mask(np.full((50, 50, 3), 240, np.uint8)).any()


def test_features_are_those_of_the_regions_and_resume(folder, tmp_path, monkeypatch):
    encoder = build_encoder("test_vit")
    (file,) = embed_slides(
        encoder, [folder / "pyramid.tif"], tmp_path, patch_um=128.0, patch_px=160
    )
    with h5py.File(file) as h5:
        x, coords, about = h5["features"][:], h5["coords"][:], dict(h5["coords"].attrs)
    assert x.shape == (8, 64) and coords.shape == (8, 2) and about["patch_size_level0"] == 256
    slide = open_slide(folder / "pyramid.tif")
    regions = np.stack([slide.read(*c, 256, 160) for c in coords])
    np.testing.assert_allclose(x, embed_patches(encoder, regions), atol=1e-5)
    monkeypatch.setattr("seal_lite.wsi.open_slide", lambda *_: pytest.fail("read again"))
    assert embed_slides(
        encoder, [folder / "pyramid.tif"], tmp_path, patch_um=128.0, patch_px=160
    ) == [file]
    assert [p.name for p in tmp_path.glob("[!.]*")] == ["pyramid.h5"]


def test_wrong_slides_are_named_before_anything_is_written(folder, tmp_path):
    encoder = build_encoder("test_vit")
    size = {"patch_um": 128.0, "patch_px": 160}
    with pytest.raises(InputError, match="picture.png: does not say its um per px"):
        embed_slides(encoder, [folder / "picture.png"], tmp_path, **size)
    with pytest.raises(InputError, match="picture.png: has 4.00 um/px"):
        embed_slides(encoder, [folder / "picture.png"], tmp_path, um_per_px=4.0, **size)
    (tmp_path / "bad.svs").write_bytes(b"no slide")
    with pytest.raises(InputError, match="bad.svs: cannot be read"):
        open_slide(tmp_path / "bad.svs")
    assert [p.name for p in list_slides(folder)] == ["picture.png", "pyramid.tif"]
    Image.new("RGB", (9, 9)).save(folder / "pyramid.jpg")
    with pytest.raises(InputError, match="two slides are called pyramid"):
        list_slides(folder)
    (folder / "pyramid.jpg").unlink()
    with pytest.raises(InputError, match="holds no slide"):
        list_slides(tmp_path / "nowhere")
    assert [p.name for p in tmp_path.glob("[!.]*")] == ["bad.svs"]
