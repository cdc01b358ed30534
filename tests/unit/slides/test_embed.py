"""From slides to feature files: the right places at the right scale, and nothing embedded twice."""

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

from seal_lite import InputError
from seal_lite.slides.places import TissueGrid

SIDE = 1024
UM_PER_PX = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One scene as a PNG and as a pyramidal TIFF: tissue on the left, bare glass on the right."""
    from seal_lite.data.phantom import write_pyramid

    folder = tmp_path_factory.mktemp("slides")
    rng = np.random.default_rng(0)
    texture = rng.integers(-40, 40, (SIDE // 8, SIDE // 16, 3)).repeat(8, 0).repeat(8, 1)
    image = np.full((SIDE, SIDE, 3), 244, np.uint8)
    image[:, : SIDE // 2] = np.array([190, 110, 170]) + texture
    Image.fromarray(image).save(folder / "plain.png")
    write_pyramid(folder / "pyramid.tif", image, um_per_px=UM_PER_PX)
    return folder


@pytest.fixture(scope="module")
def encoder():
    from seal_lite.encoders.vision import build_encoder

    return build_encoder("test_vit")


def open_plain(folder):
    from seal_lite.data.images import open_slide

    return open_slide(folder / "plain.png", um_per_px=UM_PER_PX)


def open_pyramid(folder):
    from seal_lite.data.images import open_slide

    return open_slide(folder / "pyramid.tif")


@pytest.mark.parametrize("edge", [64, 256], ids=["full resolution", "a smaller level"])
def test_a_plain_image_and_a_pyramid_give_the_same_patches(folder, edge):
    plain = open_plain(folder).read(128, 192, edge=edge, px=64).astype(int)
    pyramid = open_pyramid(folder).read(128, 192, edge=edge, px=64).astype(int)
    elsewhere = open_plain(folder).read(0, 0, edge=edge, px=64).astype(int)
    assert np.abs(plain - pyramid).mean() < 4
    assert np.abs(plain - elsewhere).mean() > 9


@pytest.mark.parametrize("open_one", [open_plain, open_pyramid])
def test_patches_lie_side_by_side_on_tissue_only(folder, open_one):
    from seal_lite.slides.places import grid

    corners = grid(open_one(folder), patch_um=64.0)  # 128 px: 4 columns of tissue, 8 rows
    columns, rows = np.meshgrid(np.arange(4) * 128, np.arange(8) * 128)
    expected = np.column_stack([columns.ravel(), rows.ravel()])
    np.testing.assert_array_equal(corners, expected)


def test_a_slide_smaller_than_a_patch_has_no_patches(folder):
    from seal_lite.slides.places import grid

    assert grid(open_plain(folder), patch_um=1000.0).shape == (0, 2)


def test_features_are_those_of_the_patches_at_their_coords(folder, encoder, tmp_path):
    from seal_lite.encoders.embedding import embed_patches
    from seal_lite.slides.embed import embed_slides

    slides = [folder / "pyramid.tif"]
    (file,) = embed_slides(encoder, slides, tmp_path, patch_um=128.0, patch_px=160)
    with h5py.File(file) as h5:
        features = h5["features"][:]
        coords = h5["coords"][:]
        size = h5["coords"].attrs["patch_size_level0"]
    assert features.shape == (8, 64)
    assert size == 256
    slide = open_pyramid(folder)
    patches = np.stack([slide.read(x, y, edge=256, px=160) for x, y in coords])
    np.testing.assert_allclose(features, embed_patches(encoder, patches), atol=1e-5)


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_is_drawn_where_it_is_wanted(folder, encoder, tmp_path, capfd, progress):
    from seal_lite.slides.embed import embed_slides

    slides = [folder / "pyramid.tif"]
    embed_slides(encoder, slides, tmp_path, patch_um=128.0, patch_px=160, progress=progress)
    assert ("embed" in capfd.readouterr().err) == progress


@pytest.mark.parametrize(
    "um_per_px, patch_um, patch_px",
    [(0.5, 128.0, 160), (0.25, 112.0, 160), (0.2527, 100.0, 160), (0.4961, 64.0, 128)],
)
def test_trident_finds_the_patches_by_the_attributes(
    encoder, tmp_path, um_per_px, patch_um, patch_px, monkeypatch
):
    """Its tools take the edge at full resolution from patch size and magnifications."""
    from seal_lite.slides import embed

    rng = np.random.default_rng(0)
    texture = rng.integers(90, 200, (1024, 1024, 3), np.uint8)
    Image.fromarray(texture).save(tmp_path / "s.png")
    blank = np.zeros((1, 64), np.float32)
    monkeypatch.setattr(embed, "embed_patches", lambda _, patches: blank.repeat(len(patches), 0))
    (file,) = embed.embed_slides(
        encoder,
        [tmp_path / "s.png"],
        tmp_path,
        patch_um=patch_um,
        patch_px=patch_px,
        um_per_px=um_per_px,
    )
    with h5py.File(file) as h5:
        attributes = dict(h5["coords"].attrs)
        assert np.issubdtype(h5["coords"].dtype, np.integer)
    ratio = attributes["level0_magnification"] / attributes["target_magnification"]
    edge = round(attributes["patch_size"] * ratio)
    assert edge == attributes["patch_size_level0"] == round(patch_um / um_per_px)
    assert attributes["level0_magnification"] == pytest.approx(10 / um_per_px)
    assert attributes["target_magnification"] == pytest.approx(10 * patch_px / patch_um)
    assert {"overlap", "name", "level0_width", "level0_height"} <= set(attributes)


def test_a_file_that_exists_is_not_embedded_again(folder, encoder, tmp_path, monkeypatch, caplog):
    from seal_lite.slides import embed

    options = {"patch_um": 128.0, "patch_px": 160, "um_per_px": UM_PER_PX}
    slides = [folder / "plain.png"]
    with caplog.at_level("INFO"):
        (file,) = embed.embed_slides(encoder, slides, tmp_path, **options)
    assert "1 slides, patches of 128 um, 160 px" in caplog.text
    written = file.read_bytes()
    monkeypatch.setattr(embed, "open_slide", lambda *_, **__: pytest.fail("opened again"))
    assert embed.embed_slides(encoder, slides, tmp_path, **options) == [file]
    assert file.read_bytes() == written


OTHER_ORIGINS = [
    ({"patch_um": 64.0}, "was embedded with patch_um=128.0, not 64.0"),
    ({"places": TissueGrid(0.5)}, "was embedded with places=min_tissue 0.05, not min_tissue 0.5"),
    ({"um_per_px": 0.25}, "was embedded at 0.5 um per px, not 0.25"),
]


@pytest.mark.parametrize("changed, message", OTHER_ORIGINS)
def test_features_of_other_patches_are_not_kept(folder, encoder, tmp_path, changed, message):
    from seal_lite.slides.embed import embed_slides

    options = {"patch_um": 128.0, "patch_px": 160, "um_per_px": UM_PER_PX}
    slides = [folder / "plain.png"]
    (file,) = embed_slides(encoder, slides, tmp_path, **options)
    written = file.read_bytes()
    with pytest.raises(InputError, match=f"plain.h5: {message}; choose another folder, or remove"):
        embed_slides(encoder, slides, tmp_path, **{**options, **changed})
    assert file.read_bytes() == written


def test_features_of_another_encoder_are_not_kept(folder, encoder, tmp_path):
    """The second command returned the first one's features, and reported success."""
    from seal_lite.encoders.vision import build_encoder
    from seal_lite.slides.embed import embed_slides

    options = {"patch_um": 128.0, "patch_px": 160, "um_per_px": UM_PER_PX}
    slides = [folder / "plain.png"]
    embed_slides(encoder, slides, tmp_path, **options)
    for other in ({"seed": 1}, {"pooling": "mean"}):
        changed = build_encoder("test_vit", **other)
        with pytest.raises(InputError, match="plain.h5: was embedded by another encoder"):
            embed_slides(changed, slides, tmp_path, **options)


def test_features_of_half_precision_are_float32_and_no_others(cli, folder, trained, tmp_path):
    """A run keeps its precision, and features of another one are not taken for its own."""
    run = shutil.copytree(trained[0], tmp_path / "run")
    (run / "checksums.json").unlink()
    slides = tmp_path / "slides"
    slides.mkdir()
    shutil.copy(folder / "pyramid.tif", slides)

    def embed(precision, out):
        settings = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**settings, "precision": precision}))
        arguments = ["embed", "--run", run, "--slides", slides, "--out", tmp_path / out]
        return cli(*arguments, "--device", "cpu")

    def read_features(out):
        with h5py.File(tmp_path / out / "pyramid.h5") as file:
            return file["features"][:]

    for precision, out in (("bf16", "half"), ("no", "full")):
        code, _, error = embed(precision, out)
        assert code == 0, error
    half, full = read_features("half"), read_features("full")
    assert half.dtype == full.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 0.05 * np.abs(full).max()
    code, _, error = embed("no", "half")
    assert code == 2
    message = "pyramid.h5: was embedded by another encoder, or in another precision"
    assert message in error
    np.testing.assert_array_equal(read_features("half"), half)


def test_features_of_other_coords_are_not_kept(folder, encoder, tmp_path):
    from seal_lite.slides.embed import embed_slides
    from seal_lite.slides.places import StoredCoords

    coords = tmp_path / "coords"
    coords.mkdir()
    out = tmp_path / "out"
    options = {"patch_um": 128.0, "patch_px": 160, "places": StoredCoords(coords)}
    for corner in (0, 8):
        with h5py.File(coords / "pyramid.h5", "w") as h5:
            h5["coords"] = np.array([[corner, 0]])
            h5["coords"].attrs["patch_size_level0"] = 256
        if not corner:
            (file,) = embed_slides(encoder, [folder / "pyramid.tif"], out, **options)
            assert embed_slides(encoder, [folder / "pyramid.tif"], out, **options) == [file]
    with pytest.raises(InputError, match="pyramid.h5: was embedded with places=coords .*, not coo"):
        embed_slides(encoder, [folder / "pyramid.tif"], out, **options)


@pytest.mark.parametrize("is_h5, fault", [(True, "does not state of which"), (False, "holds no f")])
def test_a_file_of_unknown_origin_is_not_kept(folder, encoder, tmp_path, is_h5, fault):
    """As TRIDENT writes it, or damaged."""
    from seal_lite.slides.embed import embed_slides

    file = tmp_path / "pyramid.h5"
    if is_h5:
        with h5py.File(file, "w") as h5:
            h5["features"] = np.zeros((2, 64), np.float32)
            h5["features"].attrs["name"] = "pyramid"
    else:
        file.write_text("damaged")
    with pytest.raises(InputError, match=f"pyramid.h5: {fault}.*; choose another folder"):
        embed_slides(encoder, [folder / "pyramid.tif"], tmp_path, patch_um=128.0, patch_px=160)


def test_features_that_another_encoder_wrote_meanwhile_are_an_error(
    folder, encoder, tmp_path, monkeypatch
):
    from seal_lite.slides import embed

    def write_as_another(encoder, slide, file, *, origin, places):
        with h5py.File(file, "w") as h5:
            h5["features"] = np.zeros((2, 64), np.float32)
            h5["features"].attrs.update(dataclasses.asdict(origin), encoder="0" * 64)

    monkeypatch.setattr(embed, "write_features", write_as_another)
    with pytest.raises(InputError, match="pyramid.h5: was embedded by another encoder"):
        embed.embed_slides(
            encoder, [folder / "pyramid.tif"], tmp_path, patch_um=128.0, patch_px=160
        )


def test_features_that_were_removed_meanwhile_are_an_error(folder, encoder, tmp_path, monkeypatch):
    from seal_lite.slides import embed

    written = []
    write = embed.write_features

    def write_and_remove(encoder, slide, file, **sizes):
        for other in written:
            other.unlink(missing_ok=True)
        write(encoder, slide, file, **sizes)
        written.append(file)

    monkeypatch.setattr(embed, "write_features", write_and_remove)
    with pytest.raises(InputError, match="plain.h5: was removed after plain.png was embedded"):
        embed.embed_slides(
            encoder, embed.list_slides(folder), tmp_path, patch_um=64, patch_px=128, um_per_px=0.5
        )


def test_a_slide_of_any_name_is_embedded_and_read_again(folder, encoder, tmp_path):
    from seal_lite.slides.embed import embed_slides
    from seal_lite.slides.tasks import _features_path

    name = f"a:\x1b{'x' * 240}"
    (tmp_path / f"{name}.png").symlink_to(folder / "plain.png")
    options = {"patch_um": 64, "patch_px": 128, "um_per_px": 0.5}
    out = tmp_path / "features"
    (file,) = embed_slides(encoder, [tmp_path / f"{name}.png"], out, **options)
    assert file.name.isprintable()
    assert _features_path(out, name) == _features_path(out, f"{name}.png") == file


def test_glass_without_tissue_gives_an_empty_file(encoder, tmp_path):
    from seal_lite.slides.embed import embed_slides

    Image.new("RGB", (512, 512), (244, 244, 244)).save(tmp_path / "glass.png")
    (file,) = embed_slides(
        encoder, [tmp_path / "glass.png"], tmp_path, patch_um=128.0, patch_px=160, um_per_px=0.5
    )
    with h5py.File(file) as h5:
        assert h5["features"].shape == (0, 64)
        assert h5["coords"].shape == (0, 2)


def test_slides_of_the_wrong_scale_are_named_before_any_is_embedded(folder, encoder, tmp_path):
    from seal_lite.slides.embed import embed_slides

    slides = [folder / "pyramid.tif", folder / "plain.png"]
    size = {"patch_um": 128.0, "patch_px": 160}
    with pytest.raises(InputError, match="plain.png: .* um per px"):
        embed_slides(encoder, slides, tmp_path, **size)
    with pytest.raises(InputError, match="plain.png: has 4.00 um/px"):
        embed_slides(encoder, slides, tmp_path, um_per_px=4.0, **size)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["slide.tif", "SLIDE.tif"])
def test_two_slides_of_one_name_are_an_error_and_not_one_file(encoder, folder, tmp_path, name):
    from seal_lite.slides.embed import embed_slides

    other = tmp_path / "other" / name
    other.parent.mkdir()
    first = tmp_path / "slide.tif"
    for path in (first, other):
        path.write_bytes((folder / "pyramid.tif").read_bytes())
    size = {"patch_um": 64.0, "patch_px": 16}
    with pytest.raises(InputError, match=f"other/{name}: is called as .*slide.tif is"):
        embed_slides(encoder, [first, other], tmp_path / "out", **size)
    assert not (tmp_path / "out").exists()


def test_slides_are_listed_by_name_and_two_of_one_name_are_an_error(folder, tmp_path):
    from seal_lite.slides.embed import list_slides

    assert [path.name for path in list_slides(folder)] == ["plain.png", "pyramid.tif"]
    for name in ("a.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "below").mkdir()
    assert [path.name for path in list_slides(tmp_path)] == ["a.png"]
    (tmp_path / "below/a.jpg").touch()
    with pytest.raises(InputError, match="a.jpg: is called as .*a.png is"):
        list_slides(tmp_path)
    with pytest.raises(InputError, match="holds no slide"):
        list_slides(tmp_path / "nowhere")


def test_hidden_files_are_no_slides_and_formats_that_cannot_be_read_are_named(
    tmp_path, caplog, monkeypatch
):
    from seal_lite.slides import embed
    from seal_lite.slides.embed import list_slides

    monkeypatch.setattr(embed, "has_openslide", lambda: False)

    (tmp_path / ".cache").mkdir()
    for name in ("a.png", "._a.png", ".cache/b.png", "c.mrxs", "d.czi"):
        (tmp_path / name).touch()
    assert [path.name for path in list_slides(tmp_path)] == ["a.png"]
    assert "d.czi: cannot be read; convert them to TIFF" in caplog.text
    assert "c.mrxs: cannot be read; pip install 'seal_lite[openslide]'" in caplog.text
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match="holds no slide; d.czi: cannot be read; .*; c.mrxs: can"):
        list_slides(tmp_path)
    monkeypatch.setattr(embed, "has_openslide", lambda: True)
    assert [path.name for path in list_slides(tmp_path)] == ["c.mrxs"]


def test_the_files_of_a_slide_in_dicom_are_one_slide(tmp_path, monkeypatch):
    from seal_lite.slides import embed

    for name in ("a.dcm", "b.dcm", "c.dcm", "d.png"):
        (tmp_path / name).touch()
    series = {"a": "1.2", "b": "1.3", "c": "1.2"}
    monkeypatch.setattr(embed, "has_openslide", lambda: True)
    monkeypatch.setattr(embed, "dicom_series", lambda path: series[path.stem])
    names = [path.name for path in embed.list_slides(tmp_path)]
    assert names == ["a.dcm", "b.dcm", "d.png"]


def test_a_scale_that_is_given_fills_gaps_and_says_where_it_does_not_count(
    folder, encoder, tmp_path, caplog
):
    from seal_lite.slides.embed import embed_slides

    slides = [folder / "pyramid.tif", folder / "plain.png"]
    files = embed_slides(encoder, slides, tmp_path, patch_um=256.0, patch_px=160, um_per_px=1.0)
    scales = []
    for file in files:
        with h5py.File(file) as h5:
            scales.append(float(h5["coords"].attrs["um_per_px_level0"]))
    assert scales == [UM_PER_PX, 1.0]
    assert "pyramid.tif: states 0.5 um per px, which counts, and not the 1 given" in caplog.text


def test_a_screens_resolution_is_no_scale(tmp_path, encoder):
    import tifffile

    from seal_lite.slides.embed import embed_slides

    path = tmp_path / "a.tif"
    image = np.full((64, 64, 3), 244, np.uint8)
    tifffile.imwrite(path, image, photometric="rgb", resolution=(72, 72), resolutionunit="INCH")
    with pytest.raises(InputError, match="states 352.8 um per px, not believed; give --um-per-px"):
        embed_slides(encoder, [path], tmp_path / "out", patch_um=128.0, patch_px=160)
