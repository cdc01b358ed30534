"""Space Ranger's folders as they are published: what nobody needs is missing, damaged or moved."""

import gzip
import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from made import GENES, IDS, UM, write_10x, write_visium, write_visium_hd
from PIL import Image

from seal_lite.data.readers.catalogue import find_sections, list_sections
from seal_lite.data.section import load_counts, load_sections, read_counts
from seal_lite.errors import InputError

OFF_TISSUE = "GGGGGGGGGGGGGGGG-1"  # of the positions; without counts in the filtered matrix


@pytest.fixture
def folder(tmp_path, truth):
    """A whole folder of Visium, with the full image."""
    write_visium(tmp_path / "S1", truth)
    Image.fromarray(truth.image).save(tmp_path / "S1/tissue_image.tif")
    return tmp_path / "S1"


@pytest.fixture
def bins(tmp_path, truth):
    """A whole folder of Visium HD with bins of 16 um."""
    write_visium_hd(tmp_path / "S1", truth)
    return tmp_path / "S1"


def check_same(root, truth, *, genes=GENES, barcodes=None):
    """Compare the one section under `root` with the truth."""
    assert list_sections(root) == ["S1"]
    adata = read_counts(root, "S1")
    assert list(adata.var_names) == genes
    order = adata.obs_names.get_indexer(truth.barcodes if barcodes is None else barcodes)
    counts = truth.counts[:, : len(genes)]
    np.testing.assert_array_equal(adata.layers["counts"].toarray()[order], counts)
    np.testing.assert_allclose(adata.obsm["spatial"][order], truth.xy, atol=0.01)
    assert adata.n_obs == len(truth.barcodes)
    assert adata.uns["um_per_px"] == pytest.approx(UM, rel=1e-3)
    assert adata.uns["grid"] == "hex"
    assert adata.uns["image_path"].endswith("tissue_image.tif")
    return adata


def compress(path):
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def positions_of(folder):
    return folder / "spatial/tissue_positions.csv"


# ---------------------------------------------------------------------------- files not needed


def lose_small_images(folder, truth):
    for path in (folder / "spatial").glob("*.png"):
        path.unlink()


def lose_scale_factors(folder, truth):
    (folder / "spatial/scalefactors_json.json").unlink()


def damage_scale_factors(folder, truth):
    (folder / "spatial/scalefactors_json.json").write_text('{"spot_diam')


def damage_small_images(folder, truth):
    for path in (folder / "spatial").glob("*.png"):
        path.write_bytes(b"no image")


def lose_library_ids(folder, truth):
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "a") as file:
        del file.attrs["library_ids"]


def add_other_images(folder, truth):
    """Space Ranger's own, a CytAssist's, and what a Mac leaves beside a file."""
    small = Image.fromarray(truth.image[::4, ::4])
    small.save(folder / "spatial/cytassist_image.tiff")
    for name in ("aligned_fiducials.jpg", "detected_tissue_image.jpg", "S1_CytAssist_image.tif"):
        small.save(folder / name)
    for name in ("._tissue_image.tif", "._filtered_feature_bc_matrix.h5"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    (folder / "spatial/._tissue_positions.csv").write_bytes(b"\0\5\x16\7")


@pytest.mark.parametrize(
    "change",
    [
        lose_small_images,
        damage_small_images,
        lose_scale_factors,
        damage_scale_factors,
        lose_library_ids,
        add_other_images,
    ],
)
def test_files_that_nobody_needs_are_not_read(folder, truth, change):
    change(folder, truth)
    check_same(folder.parent, truth)
    check_same(folder, truth)


def test_counts_are_read_without_opening_an_image(folder, truth, monkeypatch):
    def fail(*_, **__):
        pytest.fail("an image has been opened")

    monkeypatch.setattr(Image, "open", fail)
    monkeypatch.setattr("seal_lite.data.registration.open_slide", fail)
    check_same(folder.parent, truth)


# ---------------------------------------------------------------------------- counts


def write_mtx(folder, truth, *, features="features.tsv", sample="", transpose=False):
    """Write counts as Matrix Market in a folder, and drop the HDF5 file beside it."""
    folder.mkdir(exist_ok=True)
    counts = sp.coo_matrix(truth.counts.astype(int))
    scipy.io.mmwrite(folder / f"{sample}matrix.mtx", counts if transpose else counts.T)
    (folder / f"{sample}barcodes.tsv").write_text("".join(f"{b}\n" for b in truth.barcodes))
    columns = [IDS, GENES]
    if features == "features.tsv":
        columns.append(["Gene Expression"] * 4)
    rows = ["\t".join(row) for row in zip(*columns, strict=True)]
    (folder / f"{sample}{features}").write_text("\n".join(rows) + "\n")


def in_gzip(folder, truth):
    write_mtx(folder / "filtered_feature_bc_matrix", truth)
    for path in list((folder / "filtered_feature_bc_matrix").iterdir()):
        compress(path)


def in_text(folder, truth):
    write_mtx(folder / "filtered_feature_bc_matrix", truth)


def of_old_version(folder, truth):
    write_mtx(folder / "raw_feature_bc_matrix", truth, features="genes.tsv")
    compress(folder / "raw_feature_bc_matrix/genes.tsv")


def beside_spatial(folder, truth):
    write_mtx(folder, truth)


def under_another_name(folder, truth):
    write_mtx(folder / "filtered_count_matrix", truth, transpose=True)


def with_the_sample_s_name(folder, truth):
    write_mtx(folder, truth, sample="GSM1_S1_")


@pytest.mark.parametrize(
    "write",
    [
        in_gzip,
        in_text,
        of_old_version,
        beside_spatial,
        under_another_name,
        with_the_sample_s_name,
    ],
)
def test_counts_as_matrix_market(folder, truth, write):
    (folder / "filtered_feature_bc_matrix.h5").unlink()
    write(folder, truth)
    check_same(folder.parent, truth)


def test_a_matrix_beside_the_barcodes_of_another_is_refused(folder, truth):
    (folder / "filtered_feature_bc_matrix.h5").unlink()
    write_mtx(folder, truth)
    (folder / "barcodes.tsv").write_text("\n".join(truth.barcodes[:20]))
    with pytest.raises(InputError, match="matrix.mtx: is 4 x 36, but beside it are 4 features and"):
        read_counts(folder.parent, "S1")
    (folder / "barcodes.tsv").unlink()
    with pytest.raises(InputError, match="matrix.mtx: no barcodes.tsv beside it; restore it"):
        read_counts(folder.parent, "S1")


def test_of_raw_counts_those_on_tissue_are_taken(folder, truth):
    (folder / "filtered_feature_bc_matrix.h5").unlink()
    counts = np.vstack([truth.counts, np.full((1, 4), 500, np.float32)])
    barcodes = [*truth.barcodes, OFF_TISSUE]
    write_10x(folder / "raw_feature_bc_matrix.h5", counts, barcodes)
    check_same(folder.parent, truth)


def test_filtered_counts_come_before_raw_ones(folder, truth):
    write_10x(folder / "raw_feature_bc_matrix.h5", truth.counts * 2, truth.barcodes)
    check_same(folder.parent, truth)


def set_types(path, types):
    with h5py.File(path, "a") as file:
        del file["matrix/features/feature_type"]
        file["matrix/features/feature_type"] = np.array(types, "S")


def test_antibodies_are_no_genes(folder, truth):
    matrix = folder / "filtered_feature_bc_matrix.h5"
    set_types(matrix, ["Gene Expression"] * 3 + ["Antibody Capture"])
    check_same(folder.parent, truth, genes=GENES[:3])
    set_types(matrix, ["Antibody Capture"] * 4)
    with pytest.raises(InputError, match="matrix.h5: has no features of type Gene Expression"):
        read_counts(folder.parent, "S1")


@pytest.mark.parametrize("suffix", ["-2", "", "-1_3"])
def test_barcodes_that_name_another_library_are_matched(folder, truth, suffix):
    barcodes = [barcode[:16] + suffix for barcode in truth.barcodes]
    write_10x(folder / "filtered_feature_bc_matrix.h5", truth.counts, barcodes)
    check_same(folder.parent, truth, barcodes=barcodes)


def test_several_libraries_in_one_matrix_are_refused(folder, truth):
    barcodes = [f"{barcode[:16]}-{1 + i % 2}" for i, barcode in enumerate(truth.barcodes)]
    write_10x(folder / "filtered_feature_bc_matrix.h5", truth.counts, barcodes)
    with pytest.raises(InputError, match=r"holds several libraries \(-1, -2\); give one file"):
        read_counts(folder.parent, "S1")


# ---------------------------------------------------------------------------- positions


def with_tabs(path):
    pd.read_csv(path).to_csv(path, sep="\t", index=False)


def with_row_names(path):  # as R writes a table
    pd.read_csv(path).to_csv(path, quoting=1)


def with_the_barcodes_as_row_names(path):
    pd.read_csv(path, index_col=0).rename_axis(None).to_csv(path)


def in_another_order(path):
    pd.read_csv(path).iloc[:, ::-1].to_csv(path, index=False)


def with_text(path):
    table = pd.read_csv(path).astype(str)
    table["in_tissue"] = table["in_tissue"].map({"1": "True", "0": "FALSE"})
    table["pxl_row_in_fullres"] = " " + table["pxl_row_in_fullres"]
    table.to_csv(path, index=False, quoting=1)


def without_a_word_on_tissue(path):
    pd.read_csv(path).drop(columns="in_tissue").to_csv(path, index=False)


def in_parquet(path):
    pd.read_csv(path).astype(str).to_parquet(path.with_suffix(".parquet"))
    path.unlink()


def without_a_header_under_the_new_name(path):
    pd.read_csv(path).to_csv(path, index=False, header=False)


def with_a_header_under_the_old_name(path):
    path.rename(path.with_name("tissue_positions_list.csv"))


def with_a_spot_that_has_no_pixel(path):
    path.write_text(path.read_text() + "TTTTTTTTTTTTTTTT-1,1,8,8,,None\n")


@pytest.mark.parametrize(
    "change",
    [
        compress,
        with_tabs,
        with_row_names,
        with_the_barcodes_as_row_names,
        in_another_order,
        with_text,
        without_a_word_on_tissue,
        in_parquet,
        without_a_header_under_the_new_name,
        with_a_header_under_the_old_name,
        with_a_spot_that_has_no_pixel,
    ],
)
def test_positions_of_every_version(folder, truth, change):
    change(positions_of(folder))
    check_same(folder.parent, truth)


def test_spots_with_counts_or_a_position_alone_are_dropped_and_counted(folder, truth):
    lines = positions_of(folder).read_text().splitlines()
    without_two = [lines[0], *lines[3:], "TTTTTTTTTTTTTTTT-1,1,8,8,90,90"]
    positions_of(folder).write_text("\n".join(without_two))
    adata = read_counts(folder.parent, "S1")
    assert list(adata.obs_names) == truth.barcodes[2:]
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), truth.counts[2:])
    assert adata.uns["spots_without_position"] == 2
    assert adata.uns["spots_without_counts"] == 1


def test_a_spot_without_a_place_on_the_array_is_dropped_alone(folder, truth):
    table = pd.read_csv(positions_of(folder))
    table.loc[0, "array_row"] = np.nan
    table.to_csv(positions_of(folder), index=False)
    adata = read_counts(folder.parent, "S1")
    assert list(adata.obs_names) == truth.barcodes[1:]
    assert adata.uns["grid"] == "hex"
    assert adata.uns["spots_without_position"] == 1


def name_a_pixel(table):
    return table.assign(pxl_row_in_fullres=["left", *table.pxl_row_in_fullres[1:]])


def double_first_row(table):
    return pd.concat([table, table.iloc[:1]])


@pytest.mark.parametrize(
    "change, message",
    [
        (name_a_pixel, "tissue_positions.csv: pxl_row_in_fullres has .left.; give numbers"),
        (lambda table: table.drop(columns="pxl_col_in_fullres"), "pxl_col_in_fullres is missing"),
        (double_first_row, "tissue_positions.csv: a barcode is listed twice"),
        (lambda table: table[-1:], "0% of its barcodes are in tissue_positions.csv; pair"),
    ],
)
def test_positions_that_cannot_be_used_are_named(folder, change, message):
    path = positions_of(folder)
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(InputError, match=message):
        read_counts(folder.parent, "S1")


# ---------------------------------------------------------------------------- where files lie


def flatten(folder, sample):
    """Move all files into the folder, each under the sample's name, as GEO has them."""
    for path in [*(folder / "spatial").iterdir(), *folder.glob("*.*")]:
        path.rename(folder / f"{sample}{path.name}")
    (folder / "spatial").rmdir()


def test_a_folder_without_folders(folder, truth):
    flatten(folder, "GSM1_S1_")
    compress(folder / "GSM1_S1_tissue_positions.csv")
    check_same(folder.parent, truth)
    check_same(folder, truth)


def test_several_samples_in_one_folder(folder, truth):
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    write_10x(other / "filtered_feature_bc_matrix.h5", truth.counts * 2, truth.barcodes)
    flatten(folder, "GSM1_")
    flatten(other, "GSM2_")
    for path in list(other.iterdir()):
        path.rename(folder / path.name)
    other.rmdir()
    first, second = load_counts(folder)
    assert first.uns["section_id"] == "GSM1"
    assert second.uns["image_path"].endswith("GSM2_tissue_image.tif")
    np.testing.assert_array_equal(first.layers["counts"].toarray(), truth.counts)
    np.testing.assert_array_equal(second.layers["counts"].toarray(), truth.counts * 2)
    with pytest.raises(InputError, match="GSM1_filtered.* lies beside GSM2_filtered"):
        read_counts(folder.parent, "S1")


@pytest.mark.parametrize("part", ["", "spatial", "filtered_feature_bc_matrix"])
def test_any_folder_of_a_section_may_be_given(folder, truth, part):
    (folder / "filtered_feature_bc_matrix.h5").unlink()
    in_gzip(folder, truth)
    folder.rename(folder.parent / "outs")
    folder.mkdir()
    (folder.parent / "outs").rename(folder / "outs")
    check_same(folder, truth)
    check_same(folder / "outs" / part, truth)


def test_a_folder_with_positions_alone_or_counts_alone_says_what_is_missing(folder):
    shutil.move(folder / "spatial", folder / "elsewhere")
    with pytest.raises(InputError, match="matrix.h5: no tissue_positions.csv beside it"):
        read_counts(folder.parent, "S1")
    shutil.move(folder / "elsewhere", folder / "spatial")
    (folder / "filtered_feature_bc_matrix.h5").unlink()
    with pytest.raises(InputError, match="no counts beside it; add filtered_feature_bc_matrix"):
        read_counts(folder.parent, "S1")


# ---------------------------------------------------------------------------- images


def test_the_image_may_lie_in_the_microscope_s_folder(folder, truth):
    (folder / "microscope_image").mkdir()
    (folder / "tissue_image.tif").rename(folder / "microscope_image/tissue_image.tif")
    check_same(folder.parent, truth)


@pytest.mark.parametrize("named", [True, False])
def test_a_small_image_is_read_at_its_own_scale(folder, truth, named):
    """Space Ranger's hires image is a quarter of the full one, and its places are, too."""
    if named:
        path = "S1/spatial/tissue_hires_image.png"
        (folder.parent / "sections.tsv").write_text(f"section\timage\nS1\t{path}\n")
    else:
        (folder / "tissue_image.tif").unlink()
    (section,) = load_sections(folder.parent, patch_um=64.0, patch_px=8)
    assert section.adata.uns["image_path"].endswith("tissue_hires_image.png")
    assert section.adata.uns["um_per_px"] == pytest.approx(4 * UM, rel=1e-3)
    order = section.adata.obs_names[section.rows].get_indexer(truth.barcodes)
    np.testing.assert_allclose(section.adata.obsm["spatial"][order], truth.xy / 4, atol=0.01)
    # Pixel i shows pixel 4 i of the full image, where R is 4 i // 2.
    shown = section.patches[order].astype(float).mean((1, 2))[:, :2]
    np.testing.assert_allclose(shown, (truth.xy - 2) / 2, atol=1)


def test_a_small_image_of_unknown_scale_is_no_image(folder):
    (folder / "tissue_image.tif").unlink()
    lose_scale_factors(folder, None)
    assert list_sections(folder.parent) == []
    with pytest.raises(InputError, match="no section has both counts and an image"):
        load_sections(folder.parent)
    path = "S1/spatial/tissue_hires_image.png"
    (folder.parent / "sections.tsv").write_text(f"section\timage\nS1\t{path}\n")
    with pytest.raises(InputError, match="hires_image.png: no scalefactors_json.json beside it"):
        read_counts(folder.parent, "S1")


def test_check_names_the_small_image(cli, folder, tmp_path):
    options = ["--set", "patch_px=24"]
    arguments = ["check", "--data", folder, "--out", tmp_path / "page.html", *options]
    code, output, _ = cli(*arguments)
    assert (code, "tissue_hires_image" in output) == (0, False)
    (folder / "tissue_image.tif").unlink()
    code, output, _ = cli(*arguments)
    assert code == 0
    assert "S1: its image is tissue_hires_image.png, 8.0 um per px; the full image" in output


def test_check_of_counts_without_an_image_fails_and_says_what_it_has_read(cli, folder, tmp_path):
    (folder / "tissue_image.tif").unlink()
    lose_small_images(folder, None)
    code, output, _ = cli("check", "--data", folder, "--out", tmp_path / "page.html")
    assert code == 2
    assert "section S1: no image beside its counts of 36 spots and 4 genes; add its full" in output
    assert "patient" not in output
    assert (tmp_path / "page.html").exists()


# ---------------------------------------------------------------------------- Visium HD


def read_bins(root):
    assert list(find_sections(root)) == ["S1"]
    adata = read_counts(root, "S1")
    return adata.layers["counts"].toarray(), adata.obsm["spatial"]


def square(folder, size=16):
    return folder / f"binned_outputs/square_{size:03}um"


def lose_slice(folder):
    (folder / "feature_slice.h5").unlink()


def add_damaged_segmentation(folder):
    cells = folder / "segmented_outputs"
    cells.mkdir()
    matrix = square(folder) / "filtered_feature_bc_matrix.h5"
    shutil.copy(matrix, cells / "filtered_feature_cell_matrix.h5")
    (cells / "cell_segmentations.geojson").write_text('{"type": "FeatureColl')


def lose_scale_factors_of_bins(folder):
    (square(folder) / "spatial/scalefactors_json.json").unlink()


def convert_positions(folder):
    path = square(folder) / "spatial/tissue_positions.parquet"
    pd.read_parquet(path).to_csv(path.with_name("tissue_positions_list.csv"), index=False)
    path.unlink()


def move_bins_up(folder):
    square(folder).rename(folder / square(folder).name)
    square(folder).parent.rmdir()


def add_other_sizes(folder):
    for size in (2, 8):
        shutil.copytree(square(folder), square(folder, size))


def add_outs(folder):
    shutil.move(folder, folder.parent / "outs")
    folder.mkdir()
    shutil.move(folder.parent / "outs", folder / "outs")


@pytest.mark.parametrize(
    "change",
    [
        lose_slice,
        add_damaged_segmentation,
        lose_scale_factors_of_bins,
        convert_positions,
        move_bins_up,
        add_other_sizes,
        add_outs,
    ],
)
def test_bins_are_read_from_counts_and_positions_alone(bins, change):
    counts, xy = read_bins(bins.parent)
    change(bins)
    for root in (bins.parent, bins):
        same_counts, same_xy = read_bins(root)
        np.testing.assert_array_equal(same_counts, counts)
        np.testing.assert_allclose(same_xy, xy)


@pytest.mark.parametrize("part", ["binned_outputs", "binned_outputs/square_016um"])
def test_any_folder_of_bins_may_be_given(bins, part):
    counts, _ = read_bins(bins.parent)
    same_counts, _ = read_bins(bins / part)
    np.testing.assert_array_equal(same_counts, counts)


@pytest.mark.parametrize("size_um, pitch_um", [(32, 100), (64, 64)])
def test_bins_of_any_size_are_read(bins, size_um, pitch_um):
    """The folder's name states the size; fine bins are pooled, and coarse ones are spots."""
    square(bins).rename(square(bins, size_um))
    factors = square(bins, size_um) / "spatial/scalefactors_json.json"
    stated = json.loads(factors.read_text())
    factors.write_text(json.dumps({**stated, "microns_per_pixel": UM * size_um / 16}))
    with h5py.File(square(bins, size_um) / "filtered_feature_bc_matrix.h5", "a") as file:
        file["matrix/data"][:] *= 10
    adata = read_counts(bins.parent, "S1")
    assert adata.uns["um_per_px"] == pytest.approx(UM * size_um / 16)
    assert adata.uns["pitch_um"] == pytest.approx(pitch_um)


def test_bins_that_state_another_scale_than_they_have_are_refused(bins):
    square(bins).rename(square(bins, 32))
    with pytest.raises(InputError, match="um_per_px is 2.000, but the spots' array has 4.000"):
        read_counts(bins.parent, "S1")
