"""Where patches lie: on tissue, or where the file of another program says."""

import h5py
import numpy as np
import pytest
from PIL import Image

from seal_lite import InputError

SIDE, UM_PER_PX = 512, 0.5
CORNERS = np.array([[300, 7], [0, 0], [100, 256], [410, 400]])  # the last leaves the slide


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    from seal_lite.data.images import open_slide

    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    path = tmp_path_factory.mktemp("slide") / "s.png"
    Image.fromarray(pixels).save(path)
    return open_slide(path, um_per_px=UM_PER_PX)


def write_coords(path, corners=CORNERS, **attributes):
    with h5py.File(path, "w") as file:
        file["coords"] = corners
        file["coords"].attrs.update(attributes)


def find(folder, slide, patch_um=64.0):
    from seal_lite.slides.places import StoredCoords

    return StoredCoords(folder).find(slide, patch_um)


TRIDENTS = {"patch_size": 64, "level0_magnification": 20, "target_magnification": 10, "overlap": 16}
LEVEL_0 = {"patch_size_level0": 128}


@pytest.mark.parametrize(
    "name, corners, attributes, overlap",
    [
        ("s.h5", CORNERS, {"patch_size_level0": 128}, 0.0),
        ("s_patches.h5", CORNERS, {**TRIDENTS, "patch_size_level0": 128}, 0.25),
        ("s.h5", CORNERS[None], TRIDENTS, 0.25),
        ("s.h5", np.zeros((0, 2)), TRIDENTS, 0.25),
        ("s.h5", np.zeros(0), TRIDENTS, 0.25),
    ],
    ids=["level 0", "TRIDENT", "magnifications", "no patches", "no patches and no axis"],
)
def test_coords_are_read_in_their_order(tmp_path, slide, name, corners, attributes, overlap):
    write_coords(tmp_path / name, corners, **attributes)
    place = find(tmp_path, slide)
    np.testing.assert_array_equal(place.corners, corners.reshape(-1, 2))
    assert (place.edge, place.overlap) == (128, overlap)


@pytest.mark.parametrize("edge, fits", [(124, False), (126, True), (130, True), (132, False)])
def test_the_edge_fits_within_two_per_cent(tmp_path, slide, edge, fits):
    write_coords(tmp_path / "s.h5", patch_size_level0=edge)
    if fits:
        assert find(tmp_path, slide).edge == edge
        return
    message = f"s.h5: its patches show {edge / 2:g} um of s.png, not the 64 um .* --patch-um"
    with pytest.raises(InputError, match=message):
        find(tmp_path, slide)


@pytest.mark.parametrize(
    "corners, attributes, message",
    [
        (CORNERS, {}, "s.h5: its coords have no attribute patch_size"),
        (CORNERS, {"patch_size_level0": 0}, "s.h5: states patches 0 px wide"),
        (CORNERS, {"patch_size_level0": np.nan}, "s.h5: states patches nan px wide"),
        (CORNERS, {"patch_size_level0": "wide"}, "s.h5: has an edge that is no number"),
        (CORNERS, {**TRIDENTS, "target_magnification": 0}, "s.h5: "),
        (CORNERS, {**TRIDENTS, "overlap": "much"}, "s.h5: coords.overlap='much' must be a number"),
        (CORNERS, {**TRIDENTS, "overlap": [8, 8]}, "s.h5: coords.overlap=array"),
        (CORNERS, {**TRIDENTS, "overlap": np.inf}, "s.h5: coords.overlap=.*inf"),
        (CORNERS, {**TRIDENTS, "overlap": -1}, "s.h5: coords.overlap=.*at least 0"),
        (CORNERS, {**TRIDENTS, "overlap": 64}, "s.h5: states an overlap of 64 px of patches 64"),
        (CORNERS, {**LEVEL_0, "patch_size": 0}, "s.h5: coords.patch_size=.*above 0"),
        (CORNERS, {**LEVEL_0, "overlap": 128}, "s.h5: states an overlap of 128 px of patches 128"),
        (CORNERS + [0, 112], {"patch_size_level0": 128}, "410, 512 lies outside of s.png, .* 512"),
        (CORNERS - [0, 128], {"patch_size_level0": 128}, "0, -128 lies outside of s.png"),
        ([[np.nan, 0]], {"patch_size_level0": 128}, "nan, 0 lies outside of s.png"),
        (np.zeros((2, 3, 3)), {"patch_size_level0": 128}, "s.h5: holds no coords"),
    ],
)
def test_coords_that_do_not_fit_are_an_error(tmp_path, slide, corners, attributes, message):
    write_coords(tmp_path / "s.h5", np.array(corners), **attributes)
    with pytest.raises(InputError, match=message):
        find(tmp_path, slide)


def test_coords_in_another_file_are_refused(tmp_path, slide):
    write_coords(tmp_path / "other.h5", patch_size_level0=128)
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["coords"] = h5py.ExternalLink("other.h5", "coords")
    with pytest.raises(InputError, match="s.h5: coords lies in another file"):
        find(tmp_path, slide)


def test_the_features_are_those_of_the_stored_patches_and_keep_their_coords(tmp_path, slide):
    from seal_lite.encoders.embedding import embed_patches
    from seal_lite.encoders.vision import build_encoder
    from seal_lite.slides.embed import embed_slides
    from seal_lite.slides.places import StoredCoords

    edge = 126  # 1.6% from the 64 um that the encoder is to see
    attributes = {**TRIDENTS, "patch_size": 63}
    write_coords(tmp_path / "s_patches.h5", **attributes)
    encoder = build_encoder("test_vit")
    (file,) = embed_slides(
        encoder,
        [slide.path],
        tmp_path / "out",
        patch_um=64.0,
        patch_px=160,
        um_per_px=UM_PER_PX,
        places=StoredCoords(tmp_path),
    )
    padded = np.pad(np.asarray(Image.open(slide.path)), ((0, edge),) * 2 + ((0, 0),), "constant")
    padded[SIDE:], padded[:, SIDE:] = 255, 255
    patches = [Image.fromarray(padded[y : y + edge, x : x + edge]) for x, y in CORNERS]
    patches = [np.asarray(p.resize((160, 160), Image.Resampling.BICUBIC)) for p in patches]
    with h5py.File(file) as h5:
        np.testing.assert_array_equal(h5["coords"], CORNERS)
        expected = embed_patches(encoder, np.stack(patches))
        np.testing.assert_allclose(h5["features"], expected, atol=1e-5)
        written = dict(h5["coords"].attrs)
    ratio = written["level0_magnification"] / written["target_magnification"]
    assert written["patch_size"] * ratio == pytest.approx(edge) == written["patch_size_level0"]
    assert written["overlap"] == round(160 * 16 / 63)


def test_a_patch_needs_a_share_of_tissue(tmp_path):
    from seal_lite.data.images import open_slide
    from seal_lite.slides.places import TissueGrid

    image = np.full((1024, 1024, 3), 244, np.uint8)
    image[:, :288] = (190, 110, 170)  # a patch of 256 px and an eighth of the next
    Image.fromarray(image).save(tmp_path / "a.png")
    slide = open_slide(tmp_path / "a.png", um_per_px=1.0)
    columns = {
        share: TissueGrid(share).find(slide, 256.0).corners[:, 0] for share in (0.0, 0.1, 0.5)
    }
    assert {share: sorted(set(x)) for share, x in columns.items()} == {
        0.0: [0, 256],
        0.1: [0, 256],
        0.5: [0],
    }
    assert set(TissueGrid().find(slide, 256.0).corners[:, 0]) == {0, 256}
