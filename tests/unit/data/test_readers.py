"""One section in every format: each reader gives the same counts, places and pixels."""

import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from made import (
    ARRAY,
    GENES,
    IDS,
    UM,
    make_h5ad,
    write_hest,
    write_spatialdata,
    write_visium,
    write_visium_hd,
    write_xenium,
)
from PIL import Image

from seal_lite.data.images import open_slide
from seal_lite.data.phantom import write_pyramid
from seal_lite.data.readers import xenium
from seal_lite.data.readers.catalogue import list_sections
from seal_lite.data.readers.xenium import read_xenium
from seal_lite.data.registration import neighbour_mean
from seal_lite.data.section import MIN_COUNTS, load_sections, read_counts
from seal_lite.errors import InputError

MOUSE_GENES = ["Erbb2", "Krt19", "Col1a1", "Cd3e"]
CUT = {"patch_um": 64.0, "patch_px": 16}


def write_tiff(path, image, **options):
    import tifffile

    tifffile.imwrite(path, image, **{"photometric": "rgb", **options})


def mean_red_green(patches):
    return patches.astype(float).mean((1, 2))[:, :2]


def check_section(root, truth, *, names=GENES):
    """Read the one section under `root`, compare it with the truth and return it."""
    assert list_sections(root) == ["S1"]
    (section,) = load_sections(root, **CUT)
    adata = section.adata
    assert adata.uns["section_id"] == "S1"
    assert adata.n_obs == len(truth.barcodes)
    assert list(adata.var_names) == names
    assert section.rows.tolist() == list(range(adata.n_obs))
    order = adata.obs_names.get_indexer(truth.barcodes)
    np.testing.assert_array_equal(adata.layers["counts"].toarray()[order], truth.counts)
    np.testing.assert_allclose(adata.obsm["spatial"][order], truth.xy, atol=0.01)
    assert adata.uns["um_per_px"] == pytest.approx(UM, rel=1e-3)
    assert adata.uns["pitch_um"] == pytest.approx(100.0, rel=1e-3)
    # Pixel i covers [i, i + 1): a patch's mean is its centre's x less a half, and R is x // 2.
    shown = mean_red_green(section.patches[order])
    np.testing.assert_allclose(shown, (truth.xy - 1) / 2, atol=0.6)
    return section


# ---------------------------------------------------------------------------- formats


@pytest.mark.parametrize("header", [True, False], ids=["Space Ranger 2", "Space Ranger 1"])
@pytest.mark.parametrize("inside", ["", "outs"])
def test_visium(tmp_path, truth, header, inside):
    folder = tmp_path / "S1" / inside
    write_visium(folder, truth, header=header)
    write_tiff(folder / "tissue_image.tif", truth.image)
    adata = check_section(tmp_path, truth).adata
    assert adata.uns["grid"] == "hex"
    assert adata.uns["spot_um"] == 55.0
    assert adata.uns["species"] == "human"
    assert np.diff(neighbour_mean(adata).indptr).max() == 6
    if not inside:
        check_section(tmp_path / "S1", truth)  # the folder itself is a section, too


def test_visium_on_a_turned_and_mirrored_image(tmp_path, truth):
    turned = replace(truth, xy=truth.xy[:, ::-1])
    write_visium(tmp_path / "S1", turned)
    write_tiff(tmp_path / "S1/image.tif", truth.image)
    check_section(tmp_path, turned)


def test_visium_hd_bins_are_pooled(tmp_path, truth):
    """Bins of 16 um become pseudo-spots of 100 um, each with the sum of its bins."""
    xy, counts = write_visium_hd(tmp_path / "S1", truth)
    (section,) = load_sections(tmp_path, **CUT)
    adata = section.adata
    pooled = adata.layers["counts"].toarray()
    square_of_bin = (xy * UM // 100).astype(int)
    for name, row in zip(adata.obs_names, pooled, strict=True):
        square = [int(number) for number in name.split("x")]
        is_inside = (square_of_bin == square).all(axis=1)
        np.testing.assert_array_equal(row, counts[is_inside].sum(axis=0))
    assert pooled.sum() > 0.9 * counts.sum()
    assert adata.uns["pitch_um"] == 100.0
    assert adata.uns["grid"] == "square"
    np.testing.assert_allclose(adata.obsm["spatial"] * UM % 100, 50.0)


def test_xenium(tmp_path, truth):
    """Transcripts in um, on an H&E that lies a quarter turn and a shift away, at another scale."""
    squares, counts = write_xenium(tmp_path / "S1", truth)
    (section,) = load_sections(tmp_path, **CUT)
    adata = section.adata
    assert adata.uns["um_per_px"] == pytest.approx(UM)
    names = [f"{col}x{row}" for col, row in squares]
    order = [names.index(barcode) for barcode in adata.obs_names]
    genes = [GENES.index(gene) for gene in adata.var_names]
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), counts[order][:, genes])
    centre = (squares[order] + 0.5) * 100 / UM  # px of 2 um, in the morphology's frame
    expected = np.c_[450 - centre[:, 1], centre[:, 0] + 20]
    np.testing.assert_allclose(adata.obsm["spatial"], expected)
    shown = mean_red_green(section.patches)
    np.testing.assert_allclose(shown, (expected[section.rows] - 1) / 2, atol=0.6)


def test_small_squares_of_xenium_are_pooled_once(tmp_path, truth):
    """Squares of 40 um lie in the morphology's axes, from which the H&E is turned by 30 degrees."""
    folder = tmp_path / "S1"
    write_xenium(folder, truth)
    (tmp_path / "sections.tsv").write_text("section\tpool_um\nS1\t40\n")
    transcripts = pd.read_parquet(folder / "transcripts.parquet")
    pd.concat([transcripts] * 6).to_parquet(folder / "transcripts.parquet")
    cos, sin = np.cos(np.radians(30)), np.sin(np.radians(30))
    scale = 0.2125 / UM  # px of the H&E per px of the morphology
    to_image = (
        np.array([[cos, sin, 40 / scale], [-sin, cos, 140 / scale], [0, 0, 1 / scale]]) * scale
    )
    alignment = np.linalg.inv(to_image)
    np.savetxt(folder / "S1_he_imagealignment.csv", alignment, delimiter=",")
    read = read_xenium(folder / "transcripts.parquet", {"pool_um": "40"})
    read = read[np.asarray(read.layers["counts"].sum(1)).ravel() >= MIN_COUNTS]
    (section,) = load_sections(tmp_path, **CUT)
    adata = section.adata
    assert list(adata.obs_names) == list(read.obs_names)
    assert adata.n_obs > 30
    counts = read[:, adata.var_names].layers["counts"].toarray()
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), counts)
    squares = adata.obs[["array_col", "array_row"]].to_numpy()
    on_morphology = np.c_[(squares + 0.5) * 40 / 0.2125, np.ones(len(squares))]
    expected = on_morphology @ to_image.T
    np.testing.assert_allclose(adata.obsm["spatial"], expected[:, :2])
    assert (adata.uns["grid"], adata.uns["pitch_um"]) == ("square", pytest.approx(40.0))
    assert adata.uns["spot_um"] == 40.0


def test_an_alignment_may_be_written_in_one_line(tmp_path, truth):
    write_xenium(tmp_path / "S1", truth)
    (section,) = load_sections(tmp_path, **CUT)
    path = tmp_path / "S1/S1_he_imagealignment.csv"
    path.write_text(",".join(path.read_text().split()))
    (again,) = load_sections(tmp_path, **CUT)
    np.testing.assert_array_equal(again.adata.obsm["spatial"], section.adata.obsm["spatial"])


def test_transcripts_are_counted_alike_in_batches_of_any_size(tmp_path, truth, monkeypatch):
    write_xenium(tmp_path / "S1", truth)
    path = tmp_path / "S1/transcripts.parquet"
    whole = read_xenium(path, {})
    monkeypatch.setattr(xenium, "BATCH_ROWS", 37)
    in_batches = read_xenium(path, {})
    assert list(in_batches.obs_names) == list(whole.obs_names)
    assert list(in_batches.var_names) == list(whole.var_names) == sorted(GENES)
    counts = in_batches.layers["counts"].toarray()
    np.testing.assert_array_equal(counts, whole.layers["counts"].toarray())


def test_more_names_than_any_panel_has_are_no_features(tmp_path, truth, monkeypatch):
    write_xenium(tmp_path / "S1", truth)
    monkeypatch.setattr(xenium, "MAX_FEATURES", len(GENES) - 1)
    with pytest.raises(InputError, match="transcripts.parquet: feature_name has over 3 names"):
        read_xenium(tmp_path / "S1/transcripts.parquet", {})


def test_transcripts_unpack_to_no_more_than_the_free_memory(tmp_path, truth, monkeypatch):
    """Repeated values take next to nothing on disk: what counts is the largest row group."""
    write_xenium(tmp_path / "S1", truth)
    path = tmp_path / "S1/transcripts.parquet"
    with pq.ParquetFile(path) as file:
        n_groups = file.metadata.num_row_groups
        largest = xenium._largest_row_group(file.metadata)
    assert n_groups > 1
    assert 0 < largest < path.stat().st_size
    monkeypatch.setattr("seal_lite.io.free_memory", lambda: largest)
    read_xenium(path, {})
    monkeypatch.setattr("seal_lite.io.free_memory", lambda: largest - 1)
    with pytest.raises(InputError, match="transcripts.parquet: declares .* of memory are free"):
        read_xenium(path, {})


def test_batches_of_transcripts_do_not_pile_up_in_memory(monkeypatch):
    """Ten times as many transcripts in the same squares take little more memory."""
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 2000, (5000, 2))
    batch = pd.DataFrame(places, columns=["x_location", "y_location"])
    batch = batch.assign(feature_name=np.array(GENES, object)[rng.integers(0, 4, len(batch))])

    def peak_of(n_batches):
        monkeypatch.setattr(xenium, "_read_transcripts", lambda _: [batch] * n_batches)
        tracemalloc.start()
        pooled = xenium._pool_transcripts("FILE", 100.0)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert pooled.counts.sum() == n_batches * len(batch)
        return peak

    peak_of(1)  # imports
    assert peak_of(60) < 4 * peak_of(6)


@pytest.mark.parametrize(
    ("patient", "name"), [(np.array(["P1"]), "P1"), (np.array([7]), "7"), (7, "7")]
)
def test_metadata_may_be_numbers_or_as_in_r_arrays_of_one_entry(tmp_path, truth, patient, name):
    adata = make_h5ad(truth)
    adata.uns = {"um_per_px": np.array([UM]), "patient": patient}
    adata.write_h5ad(tmp_path / "S1.h5ad")
    section = read_counts(tmp_path, "S1")
    assert (section.uns["um_per_px"], section.uns["patient_id"]) == (UM, name)


@pytest.mark.parametrize("image", ["wsis", "patches"])
def test_hest_sample(tmp_path, truth, image):
    write_hest(tmp_path, truth, image=image)
    section = check_section(tmp_path, truth)
    assert section.patient == "P7"
    assert section.label("organ") == "Breast"
    assert section.label("st_technology") == "Visium"
    assert section.label("subseries") is None  # NaN in the metadata
    assert section.adata.uns["species"] == "human"


def test_hest_patches_are_not_enlarged(tmp_path, truth):
    write_hest(tmp_path, truth, image="patches")
    with pytest.raises(InputError, match="show 112 um, not 224"):
        load_sections(tmp_path, patch_um=224.0, patch_px=16)


@pytest.mark.parametrize("suffix", ["tif", "svs"])
def test_any_anndata_with_a_slide_that_states_its_scale(tmp_path, truth, suffix):
    make_h5ad(truth).write_h5ad(tmp_path / "S1.h5ad")
    write_pyramid(tmp_path / f"S1.{suffix}", truth.image, um_per_px=UM)
    section = check_section(tmp_path, truth)
    assert section.patient == "S1"
    assert section.adata.uns["grid"] == "free"
    assert np.diff(neighbour_mean(section.adata).indptr).max() == 6  # of a hexagon, by distance


def test_any_anndata_with_a_plain_image_and_a_table(tmp_path, truth):
    make_h5ad(truth).write_h5ad(tmp_path / "S1.h5ad")
    Image.fromarray(truth.image).save(tmp_path / "S1.png")
    with pytest.raises(InputError, match="um per px is unknown; give um_per_px"):
        read_counts(tmp_path, "S1")
    (tmp_path / "sections.tsv").write_text(f"section\tum_per_px\tpatient\nS1\t{UM}\tP1\n")
    assert check_section(tmp_path, truth).patient == "P1"


@pytest.mark.parametrize("scales", [None, [2, 2]], ids=["one scale", "pyramid"])
def test_spatialdata(tmp_path, truth, scales):
    """Spots in a coordinate system of um, an image of px in the same: found by transformation."""
    write_spatialdata(tmp_path / "S1.zarr", truth, scales=scales)
    check_section(tmp_path, truth)
    check_section(tmp_path / "S1.zarr", truth)


def test_the_table_chooses_among_images_of_spatialdata(tmp_path, truth):
    write_spatialdata(tmp_path / "S1.zarr", truth)
    (tmp_path / "sections.tsv").write_text(
        f"section\timage\tum_per_px\nS1\tS1.zarr/images/small\t{8 * UM}\n"
    )
    adata = read_counts(tmp_path, "S1")
    assert adata.uns["image_path"].endswith("S1.zarr/images/small")
    np.testing.assert_allclose(adata.obsm["spatial"] * 8 * UM, truth.xy * UM + [40, -30])


# ---------------------------------------------------------------------------- names of genes


def write_sample(folder, truth, *, name="S1", genes=GENES, change=None):
    """An AnnData file, to which `change` has been done, with its slide."""
    write_pyramid(folder / f"{name}.tif", truth.image, um_per_px=UM)
    adata = make_h5ad(truth, genes=genes)
    if change is not None:
        adata = change(adata)
    adata.write_h5ad(folder / f"{name}.h5ad")


def test_gene_names_of_both_kinds(tmp_path, truth):
    """A column of `var` or genes.tsv translates Ensembl ids, or they stay; kinds are not mixed."""
    versioned = [f"{gene_id}.{i}" for i, gene_id in enumerate(IDS)]
    write_sample(tmp_path, truth, genes=versioned)
    section = check_section(tmp_path, truth, names=IDS)
    assert section.adata.uns["gene_names"] == "Ensembl ids"

    def add_symbols(adata):
        adata.var["feature_name"] = GENES
        return adata

    write_sample(tmp_path, truth, name="S2", genes=versioned, change=add_symbols)
    assert list(read_counts(tmp_path, "S2").var_names) == GENES
    with pytest.raises(InputError, match="S1 has Ensembl ids, S2 has symbols; .* genes.tsv"):
        load_sections(tmp_path, **CUT)
    lines = [f"{gene_id}\t{gene}" for gene_id, gene in zip(IDS, GENES, strict=True)]
    (tmp_path / "genes.tsv").write_text("\n".join(["id\tsymbol", *lines]))
    for section in load_sections(tmp_path, **CUT):
        assert list(section.adata.var_names) == GENES


@pytest.mark.parametrize(
    "genes, species",
    [
        (GENES, "human"),
        (MOUSE_GENES, "mouse"),
        (IDS, "human"),
        ([gene_id.replace("ENSG", "ENSMUSG") for gene_id in IDS], "mouse"),
    ],
)
def test_species_is_guessed_unless_stated(tmp_path, truth, genes, species):
    write_sample(tmp_path, truth, genes=genes)
    assert read_counts(tmp_path, "S1").uns["species"] == species
    (tmp_path / "sections.tsv").write_text("section\tspecies\nS1\tRattus norvegicus\n")
    assert read_counts(tmp_path, "S1").uns["species"] == "Rattus norvegicus"


def test_species_are_not_mixed(tmp_path, truth):
    write_sample(tmp_path, truth, name="S1", genes=GENES)
    write_sample(tmp_path, truth, name="S2", genes=MOUSE_GENES)
    with pytest.raises(InputError, match="S1 has human, S2 has mouse; take sections of one kind"):
        load_sections(tmp_path, **CUT)


# ---------------------------------------------------------------------------- faults


def halve(adata):
    adata.X = adata.X * 0.5
    return adata


def negate(adata):
    adata.X = -adata.X
    return adata


def drop_coordinates(adata):
    del adata.obsm["spatial"]
    return adata


def blank_coordinates(adata):
    adata.obsm["spatial"] = adata.obsm["spatial"] * np.nan
    return adata


def double_pitch(adata):
    adata.uns["pitch_um"] = 200.0
    return adata


def double_scale_beside_an_array(adata):
    adata.obs[["array_col", "array_row"]] = ARRAY
    adata.uns["um_per_px"] = 2 * UM
    return adata


@pytest.mark.parametrize(
    "change, message",
    [
        (halve, "raw counts"),
        (negate, "raw counts"),
        (drop_coordinates, 'no obsm\\["spatial"\\]'),
        (blank_coordinates, "a coordinate is not a number"),
        (double_pitch, "spots are 100 um apart at 2.000 um per px, not 200"),
        (double_scale_beside_an_array, "um_per_px is 4.000, but the spots' array has 2.000"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path, truth, change, message):
    write_sample(tmp_path, truth, change=change)
    with pytest.raises(InputError, match=message):
        read_counts(tmp_path, "S1")


def test_a_folder_without_a_section_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no section; one is marked by"):
        list_sections(tmp_path)


def test_the_table_chooses_one_of_two_images(tmp_path, truth):
    write_visium(tmp_path / "S1", truth)
    for name in ("a.tif", "b.tif"):
        write_tiff(tmp_path / "S1" / name, truth.image)
    with pytest.raises(InputError, match=r"a.tif: is not the only image there \(b.tif\)"):
        list_sections(tmp_path)
    table = tmp_path / "sections.tsv"
    table.write_text("section\timage\nS1\tS1/b.tif\n")
    assert read_counts(tmp_path, "S1").uns["image_path"].endswith("b.tif")
    table.write_text("section\timage\nS1\tS1/c.tif\n")
    with pytest.raises(InputError, match="c.tif: no such image"):
        list_sections(tmp_path)


def test_an_image_of_fluorescence_beside_the_section_is_not_taken(tmp_path, truth):
    import tifffile

    write_visium(tmp_path / "S1", truth)
    write_tiff(tmp_path / "S1/tissue_HE.tif", truth.image)
    fluorescence = np.zeros(truth.image.shape[:2], np.uint16)
    tifffile.imwrite(tmp_path / "S1/morphology.ome.tif", fluorescence)
    assert read_counts(tmp_path, "S1").uns["image_path"].endswith("tissue_HE.tif")


# ---------------------------------------------------------------------------- images


def write_rgba(path, image):
    alpha = np.full((*image.shape[:2], 1), 255, np.uint8)
    Image.fromarray(np.concatenate([image, alpha], axis=-1)).save(path)


RGB_IMAGES = {
    "rgb.png": lambda path, image: Image.fromarray(image).save(path),
    "rgba.png": write_rgba,
    "fine.jpg": lambda path, image: Image.fromarray(image).save(path, quality=98, subsampling=0),
    "plain.tif": write_tiff,
    "lzw.tif": lambda path, image: write_tiff(path, image, compression="lzw"),
    "tiled.svs": lambda path, image: write_pyramid(path, image, um_per_px=UM),
}


@pytest.mark.parametrize("name", RGB_IMAGES)
def test_images_of_every_kind_show_the_same(tmp_path, truth, name):
    """Red tells x // 2 and green y // 2."""
    RGB_IMAGES[name](tmp_path / name, truth.image)
    slide = open_slide(tmp_path / name)
    assert slide.size == (512, 512)
    tolerance = 3 if name.endswith(".jpg") else 1
    plain = tmp_path / "reference.png"
    Image.fromarray(truth.image).save(plain)
    expected = open_slide(plain).read(100.3, 30.2, edge=64, px=32).astype(int)
    shown = slide.read(100.3, 30.2, edge=64, px=32).astype(int)
    assert np.abs(shown - expected).max() <= tolerance
    small = slide.thumbnail(8.0)
    assert small.shape == (64, 64, 3)
    assert np.abs(small[:, :, 0].mean(0) - (np.arange(64) * 4 + 1.75)).max() <= 2


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_grey_images_are_read_as_rgb(tmp_path, truth, name):
    grey = truth.image[..., 0]
    if name == "grey.png":
        Image.fromarray(grey).save(tmp_path / name)
    else:
        write_tiff(tmp_path / name, grey, photometric="minisblack")
    shown = open_slide(tmp_path / name).read(100.3, 30.2, edge=64, px=32).astype(int)
    assert (shown[..., 0] == shown[..., 2]).all()
    columns = (100.3 + (np.arange(32) + 0.5) * 2 - 1) / 2  # R at the centre of each pixel
    assert np.abs(shown[:, 4:-4, 0] - columns[4:-4]).max() <= 1


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_images_of_16_bits_are_refused_not_clipped(tmp_path, truth, name):
    deep = truth.image.astype(np.uint16) * 257
    if name == "deep.png":
        Image.fromarray(deep[..., 0]).save(tmp_path / name)
    else:
        write_tiff(tmp_path / name, deep, tile=(256, 256))
    with pytest.raises(InputError, match=f"{name}: has more than 8 bits"):
        open_slide(tmp_path / name).read(0, 0, edge=64, px=32)


def test_a_patch_is_read_from_the_level_that_has_its_detail(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
    image = np.kron(noise, np.ones((16, 16, 1))).astype(np.uint8)
    write_pyramid(tmp_path / "p.tif", image, um_per_px=0.5)
    slide = open_slide(tmp_path / "p.tif")
    assert slide.levels == (1.0, 2.0, 4.0)
    levels = []

    def region(level, box):
        levels.append(level)
        return slide.region(level, box)

    spy = replace(slide, region=region)
    for edge in (64, 128, 200, 256, 800):
        spy.read(60, 60, edge=edge, px=64)
    assert levels == [0, 1, 1, 2, 2]


BIG_PX, TILE_PX = 24576, 512
MEASURE_BIG = """
import re, sys
import numpy as np
from pathlib import Path
from types import SimpleNamespace
from seal_lite.data.patches import extract_patches, thumbnail

xy = np.random.default_rng(0).uniform(500, 23000, (200, 2))
metadata = {"section_id": "big", "um_per_px": 0.5, "image_path": sys.argv[1]}
adata = SimpleNamespace(obsm={"spatial": xy}, uns=metadata)
rows, patches = extract_patches(adata, patch_um=224.0, patch_px=160)
assert len(rows) == 200
assert thumbnail(adata).image.shape == (1536, 1536, 3)
shown = patches.reshape(200, -1, 3).mean(1)
assert np.abs(shown[:, :2] - xy / 96).max() < 1.5  # R and G tell x and y
largest_kb = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(int(largest_kb) / 1024)
"""


def ramp_tiles(step):
    """Tiles of a level of the big image: R is x / 96 and G is y / 96 of full resolution."""
    ramp = np.arange(TILE_PX) * step / 96
    starts = range(0, BIG_PX // step, TILE_PX)
    for y in starts:
        for x in starts:
            tile = np.empty((TILE_PX, TILE_PX, 3), np.uint8)
            tile[..., 0] = x * step / 96 + ramp
            tile[..., 1] = (y * step / 96 + ramp)[:, None]
            tile[..., 2] = 200
            yield tile


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the process's largest memory")
def test_a_slide_of_24_576_px_is_read_in_less_than_500_mb(tmp_path):
    """1.8 GB of pixels as a JPEG pyramid, read by a process of its own: patches and thumbnail."""
    import tifffile

    path = tmp_path / "big.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for step in (1, 4, 16):
            file.write(
                ramp_tiles(step),
                shape=(BIG_PX // step, BIG_PX // step, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 90},
                subfiletype=int(step > 1),
            )
    command = [sys.executable, "-c", MEASURE_BIG, str(path)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert float(process.stdout) < 500
