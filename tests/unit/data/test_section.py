"""From files of the legacy layout to sections: right ones are read exactly, wrong ones refused."""

import gzip
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
from helpers import make_adata, square
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from seal_lite.data.patches import extract_patches, thumbnail
from seal_lite.data.readers.catalogue import list_sections
from seal_lite.data.readers.legacy_st import patient_of
from seal_lite.data.registration import locate_spots
from seal_lite.data.section import load_sections, read_counts
from seal_lite.errors import InputError

PITCH_PX = 20.0  # the array's 200 um
PATCH_EDGE = 22.4  # px: the default 224 um at 10 um per px


def spot_table(offset=(30.0, 40.0)):
    """A 4 x 4 array whose first spot, 5x5, lies at `offset` px."""
    array = square(4)
    pixels = array * PITCH_PX + offset
    return pd.DataFrame(
        {
            "x": array[:, 0] + 5,
            "y": array[:, 1] + 5,
            "new_x": array[:, 0] + 5.1,
            "new_y": array[:, 1] + 4.9,
            "pixel_x": pixels[:, 0],
            "pixel_y": pixels[:, 1],
            "selected": 1,
        }
    )


def barcodes(spots):
    return [f"{x}x{y}" for x, y in zip(spots.x, spots.y, strict=True)]


def count_table(spots, genes=("A", "B", "C")):
    """Counts of every spot, above 100 in sum."""
    counts = np.random.default_rng(0).poisson(60, (len(spots), len(genes))) + 34
    return pd.DataFrame(counts, index=barcodes(spots), columns=list(genes))


def ramp_image():
    """180 x 200 px, in which R is x and G is y."""
    y, x = np.indices((180, 200))
    return np.stack([x, y, np.full_like(x, 7)], -1).astype(np.uint8)


def write(root, *, spots=None, counts=None, image=None, name="X1"):
    """A section on disk in the upstream layout."""
    spots = spot_table() if spots is None else spots
    counts = count_table(spots) if counts is None else counts
    image = ramp_image() if image is None else image
    image_folder = root / f"data/ST-imgs/{patient_of(name)}/{name}"
    for folder in (root / "data/ST-cnts", root / "data/ST-spotfiles", image_folder):
        folder.mkdir(parents=True, exist_ok=True)
    spots.to_csv(root / f"data/ST-spotfiles/{name}_selection.tsv", sep="\t", index=False)
    counts.to_csv(root / f"data/ST-cnts/{name}.tsv.gz", sep="\t")
    Image.fromarray(image).save(image_folder / "HE.png")
    return root


def test_section_is_what_the_files_say(tmp_path):
    spots = spot_table()
    counts = count_table(spots).sample(frac=1, random_state=1)  # rows are matched by name
    adata = read_counts(write(tmp_path, spots=spots, counts=counts), "X1")
    assert list_sections(tmp_path) == ["X1"]
    assert list(adata.obs_names) == barcodes(spots)
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), counts.loc[adata.obs_names])
    np.testing.assert_array_equal(adata.obsm["spatial"], spots[["pixel_x", "pixel_y"]])
    np.testing.assert_array_equal(adata.obs[["array_col", "array_row"]], spots[["x", "y"]])
    assert adata.uns["um_per_px"] == pytest.approx(200 / PITCH_PX)
    assert adata.uns["section_id"] == "X1"
    assert adata.uns["patient_id"] == "X"


def test_genes_keep_their_spelling_and_the_first_of_duplicates_is_kept(tmp_path):
    counts = count_table(spot_table(), genes=("Erbb2", "ERBB2", "KRT19"))
    adata = read_counts(write(tmp_path, counts=counts), "X1")
    assert list(adata.var_names) == ["Erbb2", "KRT19"]
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), counts.iloc[:, [0, 2]])


def test_spots_without_counts_are_dropped_and_reported(tmp_path, caplog):
    spots = spot_table()
    counts = count_table(spots).drop(index=["5x5", "6x7"])
    counts.loc["8x8"] = [98, 1, 0]  # a spot under 100 counts has no profile
    counts.loc["8x7"] = [98, 1, 1]
    spots.loc[spots.x.eq(7) & spots.y.eq(5), "selected"] = 0
    with caplog.at_level(logging.INFO):
        adata = read_counts(write(tmp_path, spots=spots, counts=counts), "X1")
    assert {"5x5", "6x7", "8x8", "7x5"}.isdisjoint(adata.obs_names)
    assert adata.n_obs == 12
    assert adata.uns["spots_without_counts"] == 2
    assert "2 of 15 selected spots have no counts" in caplog.text
    assert "1 spots with under 100 counts" in caplog.text


def fitted_scale(adata):
    """The um per px that an upright array of 200 um gives."""
    array = {"step_um": (200, 200), "upright": True}
    return locate_spots(adata, array, path="FILE", image=None).um_per_px


@given(
    pitch=st.floats(5, 1000),
    x=st.floats(-1e4, 1e5),
    y=st.floats(-1e4, 1e5),
    degrees=st.floats(-8, 8),
)
def test_um_per_px_round_trip(pitch, x, y, degrees):
    """Any pitch, offset and small rotation of the slide comes back."""
    adata = make_adata(np.ones((12, 1)))
    array = adata.obs[["array_col", "array_row"]].to_numpy()
    angle = np.radians(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    adata.obsm["spatial"] = pitch * array @ np.array([[cos, sin], [-sin, cos]]) + [x, y]
    assert fitted_scale(adata) == pytest.approx(200 / pitch, rel=1e-6)


WRONG_PIXELS = {
    "axes swapped": lambda p: p[:, ::-1],
    "x mirrored": lambda p: p * [-1, 1],
    "y mirrored": lambda p: p * [1, -1],
    "turned by a quarter": lambda p: p[:, ::-1] * [1, -1],
    "anisotropic": lambda p: p * [1.1, 1],
    "one spot far off": lambda p: p + 0.8 * (np.arange(len(p)) == 5)[:, None],
    "all on one pixel": lambda p: p * 0,
}


@pytest.mark.parametrize("wrong", WRONG_PIXELS)
def test_coordinates_that_contradict_the_array_are_refused(wrong):
    adata = make_adata(np.ones((16, 1)))
    adata.obsm["spatial"] = WRONG_PIXELS[wrong](square(4).astype(float))
    with pytest.raises(InputError, match="^FILE: (?!spots lie on one line)"):
        fitted_scale(adata)


def test_spots_on_one_line_have_no_scale():
    diagonal = np.c_[range(4), range(4)]
    adata = make_adata(np.ones((4, 1)), place=diagonal)
    adata.obsm["spatial"] = diagonal * 100.0
    with pytest.raises(InputError, match="spots lie on one line"):
        fitted_scale(adata)


def with_count(value):
    """The counts, one of which is `value`."""
    counts = count_table(spot_table()).astype(object)
    counts.iloc[3, 1] = value
    return counts


def with_pixel_y(value):
    """The spots, one of which has `value` as its pixel_y."""
    spots = spot_table().astype(object)
    spots.loc[3, "pixel_y"] = value
    return spots


COUNTS = count_table(spot_table())
BAD_TABLES = {
    "negative count": ({"counts": with_count(-1)}, "whole numbers >= 0"),
    "normalised count": ({"counts": with_count(1.5)}, "whole numbers >= 0"),
    "count is NaN": ({"counts": with_count(np.nan)}, "whole numbers >= 0"),
    "count is infinite": ({"counts": with_count("inf")}, "whole numbers >= 0"),
    "count is text": ({"counts": with_count("many")}, "cannot be read"),
    "barcode twice in the counts": (
        {"counts": pd.concat([COUNTS, COUNTS])},
        "a barcode is listed twice",
    ),
    "spot twice": (
        {"spots": pd.concat([spot_table(), spot_table()[:1]]), "counts": COUNTS},
        "a spot is listed twice",
    ),
    "no pixel_x": ({"spots": spot_table().drop(columns="pixel_x")}, "column pixel_x is missing"),
    "pixel_y is NaN": ({"spots": with_pixel_y(np.nan)}, "a pixel_y is not a number"),
    "pixel_y is text": ({"spots": with_pixel_y("left")}, "a pixel_y is not a number"),
    "another section's counts": ({"counts": COUNTS.add_suffix("0", axis=0)}, "no barcode is also"),
}


@pytest.mark.parametrize("fault", BAD_TABLES)
def test_bad_tables_are_refused(tmp_path, fault):
    changes, message = BAD_TABLES[fault]
    write(tmp_path, **changes)
    with pytest.raises(InputError, match=f"{tmp_path}.*{message}"):
        read_counts(tmp_path, "X1")


def _corrupt(good):
    return good[:60] + bytes(20) + good[80:]


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[: len(b) // 2], _corrupt, lambda b: b"", lambda b: gzip.compress(b"")],
    ids=["truncated", "corrupt", "no bytes", "empty"],
)
def test_damaged_counts_are_refused(tmp_path, damage):
    file = write(tmp_path) / "data/ST-cnts/X1.tsv.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match="X1.tsv.gz"):
        read_counts(tmp_path, "X1")


@pytest.mark.parametrize("content", [b"", bytes(range(128, 256))], ids=["empty", "binary"])
def test_damaged_spot_file_is_refused(tmp_path, content):
    (write(tmp_path) / "data/ST-spotfiles/X1_selection.tsv").write_bytes(content)
    with pytest.raises(InputError, match="X1_selection.tsv"):
        read_counts(tmp_path, "X1")


def test_damaged_image_is_refused(tmp_path):
    file = write(tmp_path) / "data/ST-imgs/X/X1/HE.png"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match="HE.png"):
        extract_patches(read_counts(tmp_path, "X1"), patch_px=8)


@pytest.fixture
def two_sections(tmp_path):
    """X1, and Y1 without an image."""
    write(tmp_path, name="X1")
    write(tmp_path, name="Y1")
    (tmp_path / "data/ST-imgs/Y/Y1/HE.png").unlink()
    return tmp_path


def test_a_section_without_image_has_counts_and_no_patches(two_sections):
    assert list_sections(two_sections) == ["X1"]
    adata = read_counts(two_sections, "Y1")
    assert adata.uns["image_path"] == ""
    assert adata.n_obs == 16
    with pytest.raises(InputError, match="Y1: no image"):
        extract_patches(adata)


@pytest.mark.parametrize(
    "names, message",
    [(["Y1"], "no section 'Y1'"), (["Z9"], "no section 'Z9'"), (["X1", "X1"], "named twice")],
)
def test_wrong_names_are_refused(two_sections, names, message):
    with pytest.raises(InputError, match=message):
        load_sections(two_sections, names, patch_px=8)


def test_a_folder_without_sections_is_refused(tmp_path):
    with pytest.raises(InputError, match="ST-cnts"):
        list_sections(tmp_path / "elsewhere")


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.3, -0.45)])
def test_patch_shows_its_place_at_sub_pixel_precision(tmp_path, shift):
    """On R = x, G = y a patch's pixels are their own coordinates: x right, y down, no offset."""
    spots = spot_table(offset=(30 + shift[0], 40 + shift[1]))
    (section,) = load_sections(write(tmp_path, spots=spots), patch_px=8)
    assert len(section.rows) == 16
    assert section.patches.shape == (16, 8, 8, 3)
    # Pixel i of the image covers [i, i + 1) and so shows i at i + 0.5.
    from_centre = (np.arange(8) + 0.5) * PATCH_EDGE / 8 - PATCH_EDGE / 2 - 0.5
    inner = slice(2, 6)  # where the resampling kernel is not cut by the patch's edge
    for (x, y), patch in zip(section.adata.obsm["spatial"], section.patches, strict=True):
        right, down = np.meshgrid(x + from_centre, y + from_centre)
        assert np.abs(patch[..., 0] - right)[inner, inner].max() <= 0.52  # rounding to uint8
        assert np.abs(patch[..., 1] - down)[inner, inner].max() <= 0.52
        assert (patch[..., 2] == 7).all()


def test_a_patch_that_leaves_the_image_is_dropped_and_reported(tmp_path, caplog):
    spots = spot_table(offset=(4.0, 40.0))  # the first column's patches begin 7.2 px outside
    with caplog.at_level(logging.INFO):
        (section,) = load_sections(write(tmp_path, spots=spots), patch_px=8)
    assert "4 patches leave the image" in caplog.text
    inside = spots[spots.x > 5]
    np.testing.assert_array_equal(section.rows, inside.index)
    assert section.keys == [f"X1/{barcode}" for barcode in barcodes(inside)]
    assert (section.patches[:, 4, 4, 0] > 10).all()  # patches follow rows, not spots


def test_spots_off_the_image_are_refused(tmp_path):
    spots = spot_table(offset=(1000.0, 1000.0))
    with pytest.raises(InputError, match="100% of its patches lie off its 200 x 180 px image"):
        load_sections(write(tmp_path, spots=spots), patch_px=8)


def test_spots_beside_the_image_are_dropped_where_most_lie_on_it(tmp_path, caplog):
    spots = spot_table(offset=(-5.0, 40.0))  # of 4 columns, 20 px apart, the first is off
    with caplog.at_level(logging.INFO):
        (section,) = load_sections(write(tmp_path, spots=spots), patch_px=8)
    assert section.adata.n_obs == 16
    np.testing.assert_array_equal(section.rows, spots[spots.x > 5].index)
    assert "4 patches leave the image: dropped" in caplog.text


def test_a_staggered_array_is_read_in_its_own_steps(tmp_path):
    """The 2K array: a spot in the middle of each square, numbered in half steps."""
    numbering = [(x, y) for y in range(4, 12) for x in range(4, 12) if (x + y) % 2 == 0]
    spots = pd.DataFrame(numbering, columns=["x", "y"])
    spots = spots.assign(pixel_x=12.0 * spots.x, pixel_y=12.0 * spots.y, selected=1)
    image = np.full((180, 200, 3), 90, np.uint8)
    adata = read_counts(write(tmp_path, spots=spots, image=image), "X1")
    assert adata.uns["grid"] == "staggered"
    assert adata.uns["um_per_px"] == pytest.approx(100 / 12)
    assert adata.uns["pitch_um"] == pytest.approx(100 * 2**0.5)
    # Published sections: 66 half steps are as long as 33 whole ones, 63 as 35.
    spots.pixel_y *= (34 / 62) / (32 / 65)
    adata = read_counts(write(tmp_path / "2K", spots=spots, image=image), "X1")
    assert adata.uns["um_per_px"] == pytest.approx(200 * 32 / 65 / 12)


def test_hidden_files_mark_no_section_and_are_no_image(tmp_path):
    root = write(tmp_path)
    counts = root / "data/ST-cnts/X1.tsv.gz"
    image = next(root.glob("data/ST-imgs/*/X1/*"))
    for path in (counts, image):
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
    assert list_sections(root) == ["X1"]


def test_pixels_that_do_not_exist_are_refused(tmp_path):
    adata = read_counts(write(tmp_path), "X1")
    assert extract_patches(adata, patch_px=44)[1].shape[1] == 44  # 22.4 px: just below 2 x
    with pytest.raises(InputError, match="um/px"):
        extract_patches(adata, patch_px=45)
    with pytest.raises(InputError, match="um/px"):
        extract_patches(adata, patch_um=50, patch_px=22)


def test_digest_sees_counts_pixels_and_names(tmp_path):
    def digest(folder, **changes):
        (section,) = load_sections(write(tmp_path / folder, **changes), patch_px=8)
        return section.digest

    counts = count_table(spot_table())
    first = digest("same")
    assert digest("same again") == first
    changed = [
        digest("counts", counts=counts + [0, 1, 0]),
        digest("pixels", image=np.zeros((180, 200, 3), np.uint8)),
        digest("names", counts=counts.rename(columns={"A": "D"})),
    ]
    assert len({first, *changed}) == 4


def test_thumbnail_states_its_scale(tmp_path):
    small = thumbnail(read_counts(write(tmp_path), "X1"), um_per_px=40.0)
    assert small.image.shape == (45, 50, 3)
    assert small.step == 4.0


@pytest.mark.parametrize(
    "name, selected, paired, deep",
    [("C2", 187, 187, 185), ("C3", 182, 180, 179), ("C4", 187, 184, 184), ("C5", 183, 181, 179)],
)
def test_her2st_sections(her2st, name, selected, paired, deep):
    """um per px against the mean step between neighbours, by hand.

    The distance to the *nearest* neighbour, 202 to 280 px, would underestimate the pitch, as spots
    are placed with an error.
    """
    adata = read_counts(her2st, name)
    assert adata.n_obs == deep
    assert adata.uns["spots_without_counts"] == selected - paired
    array = adata.obs[["array_col", "array_row"]].to_numpy()
    xy_of = {tuple(p): xy for p, xy in zip(array, adata.obsm["spatial"], strict=True)}
    steps = []
    for (col, row), (x, y) in xy_of.items():
        if (col + 1, row) in xy_of:
            steps.append(xy_of[col + 1, row][0] - x)
        if (col, row + 1) in xy_of:
            steps.append(xy_of[col, row + 1][1] - y)
    assert len(steps) > 250
    assert adata.uns["um_per_px"] == pytest.approx(200 / np.mean(steps), rel=0.01)


def test_her2st_patches_show_tissue(her2st):
    (section,) = load_sections(her2st, ["C3"])
    assert len(section.rows) == 179  # all paired spots of 100 counts
    assert section.patches.shape == (179, 160, 160, 3)
    is_tissue = section.patches.mean((1, 2, 3)) < 230  # of 255: slide is white
    assert is_tissue.mean() > 0.9  # swapped axes or a wrong scale would land on blank slide


def test_her2st_section_without_image(her2st):
    adata = read_counts(her2st, "A1")
    assert adata.n_obs == 345
    assert adata.uns["spots_without_counts"] == 2
    assert adata.uns["image_path"] == ""


def test_sections_are_labelled_by_their_table(phantom_root, tmp_path):
    root = shutil.copytree(phantom_root, tmp_path / "p")
    assert [s.label("stain") for s in load_sections(root, patch_px=64)] == [None, None]
    table = root / "sections.tsv"
    table.write_text("section\tpatient\tstain\nPB1\tsomebody\tnew\nPA1\tsomebody\t\n")
    a, b = load_sections(root, patch_px=64)
    assert (a.label("section"), a.label("patient"), a.label("stain")) == ("PA1", "somebody", None)
    assert (b.patient, b.label("stain"), b.label("organ")) == ("somebody", "new", None)
    assert set(b.adata.obs.patient_id) == {"somebody"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("section\tstain\nPA1\told\n", "0 rows for section PB1"),
        ("name\tstain\nPA1\told\n", "column section is missing"),
        ("section\tpatient\nPB1\t" + "x" * 1001, "patient is 1001 characters long"),
    ],
)
def test_a_wrong_table_of_sections_is_refused(phantom_root, tmp_path, text, message):
    root = shutil.copytree(phantom_root, tmp_path / "p")
    (root / "sections.tsv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_counts(root, "PB1")
