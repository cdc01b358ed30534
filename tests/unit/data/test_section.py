"""From files to sections: what is right is read exactly, what is wrong is one clear sentence."""

import gzip
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import make_adata, square
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from seal_lite.data.patches import extract_patches, thumbnail
from seal_lite.data.readers.catalogue import list_sections
from seal_lite.data.readers.legacy_st import patient_of
from seal_lite.data.registration import um_per_px
from seal_lite.data.section import load_sections, read_counts
from seal_lite.errors import InputError

PITCH, EDGE = 20.0, 22.4  # px: 10 um per px, so 224 um are 22.4 px


def spot_table(side=4, offset=(30.0, 40.0)):
    place = square(side) + 5
    pixel = (place - 5) * PITCH + offset
    return pd.DataFrame(
        {
            "x": place[:, 0],
            "y": place[:, 1],
            "new_x": place[:, 0] + 0.1,
            "new_y": place[:, 1] - 0.1,
            "pixel_x": pixel[:, 0],
            "pixel_y": pixel[:, 1],
            "selected": 1,
        }
    )


def count_table(spots, genes=("A", "B", "C")):
    barcodes = [f"{x}x{y}" for x, y in zip(spots.x, spots.y, strict=True)]
    counts = np.random.default_rng(0).poisson(60, (len(spots), len(genes))) + 34  # above 100
    return pd.DataFrame(counts, index=barcodes, columns=list(genes))


def write(root, *, spots=None, counts=None, image=None, name="X1"):
    """A section on disk in the upstream layout; a ramp image with R = x, G = y."""
    spots = spot_table() if spots is None else spots
    counts = count_table(spots) if counts is None else counts
    for folder in ("ST-cnts", "ST-spotfiles", f"ST-imgs/{patient_of(name)}/{name}"):
        (root / "data" / folder).mkdir(parents=True, exist_ok=True)
    spots.to_csv(root / f"data/ST-spotfiles/{name}_selection.tsv", sep="\t", index=False)
    counts.to_csv(root / f"data/ST-cnts/{name}.tsv.gz", sep="\t")
    if image is None:
        y, x = np.indices((180, 200))
        image = np.stack([x, y, np.full_like(x, 7)], -1)
    file = root / f"data/ST-imgs/{patient_of(name)}/{name}/HE.png"
    Image.fromarray(image.astype(np.uint8)).save(file)
    return root


def test_section_is_what_the_files_say(tmp_path):
    spots = spot_table()
    counts = count_table(spots).sample(frac=1, random_state=1)  # rows are matched by name
    adata = read_counts(write(tmp_path, spots=spots, counts=counts), "X1")
    assert list_sections(tmp_path) == ["X1"]
    assert list(adata.obs_names) == [f"{x}x{y}" for x, y in zip(spots.x, spots.y, strict=True)]
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), counts.loc[adata.obs_names])
    np.testing.assert_array_equal(adata.obsm["spatial"], spots[["pixel_x", "pixel_y"]])
    np.testing.assert_array_equal(adata.obs[["array_col", "array_row"]], spots[["x", "y"]])
    assert adata.uns["um_per_px"] == pytest.approx(200 / PITCH)
    assert (adata.uns["section_id"], adata.uns["patient_id"]) == ("X1", "X")


def test_gene_names_are_upper_case_and_the_first_of_duplicates_is_kept(tmp_path):
    counts = count_table(spot_table(), genes=("Erbb2", "ERBB2", "KRT19"))
    adata = read_counts(write(tmp_path, counts=counts), "X1")
    assert list(adata.var_names) == ["ERBB2", "KRT19"]
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), counts.iloc[:, [0, 2]])


def test_spots_without_counts_are_dropped_and_reported(tmp_path, caplog):
    spots = spot_table()
    counts = count_table(spots).drop(index=["5x5", "6x7"])
    counts.loc["8x8"] = [98, 1, 0]  # a spot under 100 counts has no profile
    counts.loc["8x7"] = [98, 1, 1]
    spots.loc[spots.x.eq(7) & spots.y.eq(5), "selected"] = 0
    with caplog.at_level(logging.INFO):
        adata = read_counts(write(tmp_path, spots=spots, counts=counts), "X1")
    assert {"5x5", "6x7", "8x8", "7x5"}.isdisjoint(adata.obs_names) and adata.n_obs == 12
    assert adata.uns["spots_without_counts"] == 2
    assert "2 of 15 selected spots have no counts" in caplog.text
    assert "1 spots with under 100 counts" in caplog.text


@given(
    pitch=st.floats(5, 1000),
    x=st.floats(-1e4, 1e5),
    y=st.floats(-1e4, 1e5),
    degrees=st.floats(-8, 8),
)
def test_um_per_px_round_trip(pitch, x, y, degrees):
    """Any pitch, offset and small rotation of the slide comes back."""
    adata, a = make_adata(np.ones((12, 1))), np.radians(degrees)
    place = adata.obs[["array_col", "array_row"]].to_numpy()
    turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    adata.obsm["spatial"] = pitch * place @ turn + [x, y]
    assert um_per_px(adata, step_um=(200, 200)) == pytest.approx(200 / pitch, rel=1e-6)


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
    with pytest.raises(InputError, match="^here: (?!its spots lie on one line)"):
        um_per_px(adata, step_um=(200, 200), source="here")


def test_spots_on_one_line_have_no_scale():
    adata = make_adata(np.ones((4, 1)), place=np.c_[range(4), range(4)])
    adata.obsm["spatial"] = np.c_[range(4), range(4)] * 100.0
    with pytest.raises(InputError, match="line"):
        um_per_px(adata, step_um=(200, 200))


def _counts_with(value):
    counts = count_table(spot_table()).astype(object)
    counts.iloc[3, 1] = value
    return counts


def _spots_with(column, value):
    spots = spot_table().astype(object)
    spots.loc[3, column] = value
    return spots


BAD_TABLES = {
    "negative count": {"counts": _counts_with(-1)},
    "normalised count": {"counts": _counts_with(1.5)},
    "count is NaN": {"counts": _counts_with(np.nan)},
    "count is infinite": {"counts": _counts_with("inf")},
    "count is text": {"counts": _counts_with("many")},
    "barcode twice in the counts": {"counts": pd.concat([count_table(spot_table())] * 2)},
    "spot twice": {
        "spots": pd.concat([spot_table(), spot_table()[:1]]),
        "counts": count_table(spot_table()),
    },
    "no pixel_x": {"spots": spot_table().drop(columns="pixel_x")},
    "pixel_y is NaN": {"spots": _spots_with("pixel_y", np.nan)},
    "pixel_y is text": {"spots": _spots_with("pixel_y", "left")},
    "another section's counts": {"counts": count_table(spot_table()).add_suffix("0", axis=0)},
}


@pytest.mark.parametrize("bad", BAD_TABLES)
def test_bad_tables_are_refused(tmp_path, bad):
    write(tmp_path, **BAD_TABLES[bad])
    with pytest.raises(InputError, match=str(tmp_path)):
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


def test_sections_are_named_rightly_or_refused(tmp_path):
    write(tmp_path)
    (write(tmp_path, name="Y1") / "data/ST-imgs/Y/Y1/HE.png").unlink()
    assert list_sections(tmp_path) == ["X1"]  # Y1 has counts only: readable, without patches
    only_counts = read_counts(tmp_path, "Y1")
    assert only_counts.uns["image_path"] == "" and only_counts.n_obs == 16
    with pytest.raises(InputError, match="Y1: no image"):
        extract_patches(only_counts)
    for names, word in ((["Y1"], "Y1"), (["Z9"], "Z9"), (["X1", "X1"], "twice")):
        with pytest.raises(InputError, match=word):
            load_sections(tmp_path, names, patch_px=8)
    with pytest.raises(InputError, match="ST-cnts"):
        list_sections(tmp_path / "elsewhere")


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.3, -0.45)])
def test_patch_shows_its_place_at_sub_pixel_precision(tmp_path, shift):
    """On R = x, G = y a patch's pixels are their own coordinates: x right, y down, no offset."""
    spots = spot_table(offset=(30 + shift[0], 40 + shift[1]))
    (section,) = load_sections(write(tmp_path, spots=spots), patch_px=8)
    assert len(section.rows) == 16 and section.patches.shape == (16, 8, 8, 3)
    step = EDGE / 8
    inner = slice(2, 6)  # where the resampling kernel is not cut by the region's edge
    for (x, y), patch in zip(section.adata.obsm["spatial"], section.patches, strict=True):
        # pixel i of the image covers [i, i + 1) and so shows i at i + 0.5
        at = (np.arange(8) + 0.5) * step - EDGE / 2 - 0.5
        right, down = np.meshgrid(x + at, y + at)
        assert np.abs(patch[..., 0] - right)[inner, inner].max() <= 0.52  # rounding to uint8
        assert np.abs(patch[..., 1] - down)[inner, inner].max() <= 0.52
        assert (patch[..., 2] == 7).all()


def test_region_that_leaves_the_image_is_dropped_and_reported(tmp_path, caplog):
    spots = spot_table(offset=(4.0, 40.0))  # the first column's regions begin 7.2 px outside
    with caplog.at_level(logging.INFO):
        (section,) = load_sections(write(tmp_path, spots=spots), patch_px=8)
    inside = np.flatnonzero(spots.x > 5)
    np.testing.assert_array_equal(section.rows, inside)
    assert section.keys == [f"X1/{x}x{y}" for x, y in spots.loc[inside, ["x", "y"]].to_numpy()]
    assert "4 regions leave the image" in caplog.text
    assert (section.patches[:, 4, 4, 0] > 10).all()  # patches follow rows, not spots
    with pytest.raises(InputError, match="100% of regions lie off its 200 x 180 px image"):
        far = spot_table(offset=(1000.0, 1000.0))
        load_sections(write(tmp_path / "far", spots=far), patch_px=8)


def test_pixels_that_do_not_exist_are_refused(tmp_path):
    adata = read_counts(write(tmp_path), "X1")
    assert extract_patches(adata, patch_px=44)[1].shape[1] == 44  # 22.4 px: just below 2 x
    with pytest.raises(InputError, match="um/px"):
        extract_patches(adata, patch_px=45)
    with pytest.raises(InputError, match="um/px"):
        extract_patches(adata, patch_um=50, patch_px=22)


def test_digest_sees_counts_pixels_and_names(tmp_path):
    def digest(where, **changes):
        return load_sections(write(tmp_path / where, **changes), patch_px=8)[0].digest

    first, counts = digest("a"), count_table(spot_table())
    assert digest("b") == first
    image = np.zeros((180, 200, 3))
    others = [
        digest("c", counts=counts + (np.arange(3) == 1)),
        digest("d", image=image),
        digest("e", counts=counts.rename(columns={"A": "D"})),
    ]
    assert len({first, *others}) == 4


def test_thumbnail_states_its_scale(tmp_path):
    small, factor = thumbnail(read_counts(write(tmp_path), "X1"), um_per_px=40.0)
    assert small.shape == (45, 50, 3) and factor == 4.0


@pytest.mark.parametrize(
    "name, selected, paired, deep",
    [("C2", 187, 187, 185), ("C3", 182, 180, 179), ("C4", 187, 184, 184), ("C5", 183, 181, 179)],
)
def test_her2st_sections(her2st, name, selected, paired, deep):
    """um per px against the mean step between neighbours, by hand. (The distance to the *nearest*
    neighbour, 202 to 280 px, would underestimate the pitch: spots are placed with an error.)"""
    adata = read_counts(her2st, name)
    assert adata.n_obs == deep and adata.uns["spots_without_counts"] == selected - paired
    place = adata.obs[["array_col", "array_row"]].to_numpy()
    at = {tuple(p): xy for p, xy in zip(place, adata.obsm["spatial"], strict=True)}
    steps = [at[c + 1, r][0] - at[c, r][0] for c, r in at if (c + 1, r) in at]
    steps += [at[c, r + 1][1] - at[c, r][1] for c, r in at if (c, r + 1) in at]
    assert len(steps) > 250
    assert adata.uns["um_per_px"] == pytest.approx(200 / np.mean(steps), rel=0.01)


def test_her2st_patches_and_counts_only_section(her2st):
    (section,) = load_sections(her2st, ["C3"])
    assert section.patches.shape == (len(section.rows), 160, 160, 3)
    assert len(section.rows) == 179  # all paired spots of 100 counts
    tissue = section.patches.mean((1, 2, 3)) < 230  # of 255: slide is white
    assert tissue.mean() > 0.9  # swapped axes or a wrong scale would land on blank slide
    a1 = read_counts(her2st, "A1")
    assert a1.n_obs == 345 and a1.uns["spots_without_counts"] == 2 and not a1.uns["image_path"]


def test_a_table_says_more_of_sections_than_their_names(phantom_root, tmp_path):
    root = shutil.copytree(phantom_root, tmp_path / "p")
    assert [s.label("stain") for s in load_sections(root, patch_px=64)] == [None, None]
    table = root / "sections.tsv"
    table.write_text("section\tpatient\tstain\nPB1\tsomebody\tnew\nPA1\tsomebody\t\n")
    a, b = load_sections(root, patch_px=64)
    assert (a.label("section"), a.label("patient"), a.label("stain")) == ("PA1", "somebody", None)
    assert (b.patient, b.label("stain"), b.label("organ")) == ("somebody", "new", None)
    assert set(b.adata.obs.patient_id) == {"somebody"}
    for text, said in (
        ("section\tstain\nPA1\told\n", "0 rows for section PB1"),
        ("name\tstain\nPA1\told\n", "column section is missing"),
    ):
        table.write_text(text)
        with pytest.raises(InputError, match=said):
            read_counts(root, "PB1")
