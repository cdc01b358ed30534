"""What people's AnnData, HEST, SpatialData and Xenium files look like: read right, or refused."""

import json
import shutil

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from made import (
    ARRAY,
    GENES,
    UM,
    make_h5ad,
    write_hest,
    write_spatialdata,
    write_xenium,
)

from seal_lite.data.phantom import write_pyramid
from seal_lite.data.readers.catalogue import section_labels
from seal_lite.data.section import load_sections, read_counts
from seal_lite.errors import InputError


def arrayed(truth):
    """The section with its array and `in_tissue`."""
    adata = make_h5ad(truth)
    adata.obs[["array_col", "array_row"]] = ARRAY
    adata.obs["in_tissue"] = 1
    return adata


def write_section(folder, adata, truth):
    """The section with its image; in sections.tsv is its scale."""
    folder.mkdir(exist_ok=True)
    adata.write_h5ad(folder / "S1.h5ad")
    write_pyramid(folder / "S1.tif", truth.image, um_per_px=UM)
    return folder


def check_counts(root, truth):
    """The section under `root` has the truth's counts, genes and places; return it."""
    adata = read_counts(root, "S1")
    assert adata.var_names.tolist() == GENES
    order = adata.obs_names.get_indexer(truth.barcodes)
    np.testing.assert_array_equal(adata.layers["counts"].toarray()[order], truth.counts)
    np.testing.assert_allclose(adata.obsm["spatial"][order], truth.xy, atol=0.01)
    return adata


# ---------------------------------------------------------------------------- where counts are


def normalise(adata):
    adata.X = adata.X.multiply(0.3).tocsr()


def move_to_layer(name):
    def change(adata):
        adata.layers[name] = adata.X.copy()
        normalise(adata)

    return change


def move_to_raw(adata):
    adata.raw = adata.copy()
    normalise(adata)
    return adata[:, :2].copy()


def scale_raw(adata):
    raw = adata.copy()
    normalise(raw)
    adata.raw = raw


def lose_x(adata):
    adata.layers["counts"] = adata.X.copy()
    adata.X = None


@pytest.mark.parametrize(
    "change",
    [
        move_to_layer("counts"),
        move_to_layer("raw_counts"),
        move_to_raw,
        scale_raw,
        lose_x,
        lambda adata: setattr(adata, "X", adata.X.toarray().astype(int)),
        lambda adata: setattr(adata, "X", sp.csc_matrix(adata.X)),
    ],
    ids=["layer", "raw_counts", "raw of more genes", "normalised raw", "no X", "dense", "csc"],
)
def test_counts_are_found_where_the_field_puts_them(tmp_path, truth, change):
    adata = arrayed(truth)
    changed = change(adata)
    write_section(tmp_path, adata if changed is None else changed, truth)
    check_counts(tmp_path, truth)


def test_counts_in_raw_are_those_of_the_spots_on_tissue(tmp_path, truth):
    adata = arrayed(truth)
    adata.obs["in_tissue"] = np.arange(adata.n_obs) % 2
    write_section(tmp_path, move_to_raw(adata), truth)
    counts = read_counts(tmp_path, "S1").layers["counts"].toarray()
    np.testing.assert_array_equal(counts, truth.counts[1::2])


def test_what_a_section_does_not_use_is_not_read(tmp_path, truth):
    write_section(tmp_path, arrayed(truth), truth)
    with h5py.File(tmp_path / "S1.h5ad", "a") as file:
        for name in ("uns/spatial", "obsm/X_umap", "layers/scaled", "obsp/distances"):
            file.create_group(name).attrs["encoding-type"] = "of a later version"
    check_counts(tmp_path, truth)


def test_without_counts_anywhere_a_file_is_refused(tmp_path, truth):
    adata = arrayed(truth)
    normalise(adata)
    adata.raw = adata.copy()
    write_section(tmp_path, adata, truth)
    with pytest.raises(InputError, match="give raw counts, not normalised"):
        read_counts(tmp_path, "S1")


# ---------------------------------------------------------------------------- types


def store(names, convert):
    """Columns of `obs` are stored otherwise."""

    def change(adata):
        for name in names:
            adata.obs[name] = convert(adata.obs[name])

    return change


def store_places(convert):
    def change(adata):
        adata.obsm["spatial"] = convert(adata.obsm["spatial"])

    return change


def rename_places(adata):
    adata.obsm["X_spatial"] = adata.obsm["spatial"]
    del adata.obsm["spatial"]


def move_places_to_obs(adata):
    adata.obs[["pxl_col_in_fullres", "pxl_row_in_fullres"]] = adata.obsm["spatial"].astype(str)
    del adata.obsm["spatial"]


PLACES = ["array_col", "array_row"]
TYPES = {
    "text": store(PLACES, lambda column: column.astype(str)),
    "text of floats": store(PLACES, lambda column: column.astype(float).astype(str)),
    "categories of text": store(PLACES, lambda column: column.astype(str).astype("category")),
    "nullable": store([*PLACES, "in_tissue"], lambda column: column.astype("Int64")),
    "bool": store(["in_tissue"], lambda column: column == 1),
    "text of bool": store(["in_tissue"], lambda column: (column == 1).astype(str)),
    "text of 1": store(["in_tissue"], lambda column: column.astype(str).astype("category")),
    "places as text": store_places(lambda xy: xy.astype(str)),
    "places as a table": store_places(
        lambda xy: pd.DataFrame(xy, columns=["x", "y"], index=make_names(xy))
    ),
    "X_spatial": rename_places,
    "places in obs": move_places_to_obs,
}


def make_names(xy):
    return [f"{i:016b}".replace("0", "A").replace("1", "C") + "-1" for i in range(len(xy))]


@pytest.mark.parametrize("kind", TYPES)
def test_types_are_converted_where_the_meaning_is_plain(tmp_path, truth, kind):
    adata = arrayed(truth)
    TYPES[kind](adata)
    write_section(tmp_path, adata, truth)
    assert check_counts(tmp_path, truth).uns["grid"] == "hex"


@pytest.mark.parametrize(
    "column, value, message",
    [("in_tissue", "perhaps", "in_tissue has 'perhaps'"), ("array_col", "left", "array_col has")],
)
def test_a_column_of_words_is_named(tmp_path, truth, column, value, message):
    adata = arrayed(truth)
    adata.obs[column] = [value, *adata.obs[column].astype(str)[1:]]
    write_section(tmp_path, adata, truth)
    with pytest.raises(InputError, match=message):
        read_counts(tmp_path, "S1")


def test_spots_off_tissue_are_left_out(tmp_path, truth):
    adata = arrayed(truth)
    adata.obs["in_tissue"] = ["False", "nan", *["True"] * (adata.n_obs - 2)]
    write_section(tmp_path, adata, truth)
    assert list(read_counts(tmp_path, "S1").obs_names) == truth.barcodes[2:]


def test_in_tissue_of_0_everywhere_has_no_meaning(tmp_path, truth):
    adata = arrayed(truth)
    adata.obs["in_tissue"] = 0
    write_section(tmp_path, adata, truth)
    assert "in_tissue is 0" in check_counts(tmp_path, truth).uns["notes"][0]


@pytest.mark.parametrize("version", [2, 3])
def test_an_anndata_store_is_no_spatialdata(tmp_path, truth, version):
    with ad.settings.override(zarr_write_format=version):
        arrayed(truth).write_zarr(tmp_path / "S1.zarr")
    write_pyramid(tmp_path / "S1.tif", truth.image, um_per_px=UM)
    check_counts(tmp_path, truth)
    check_counts(tmp_path / "S1.zarr", truth)


# ---------------------------------------------------------------------------- missing values


@pytest.mark.parametrize("missing", ["None", "nan", " ", "NA", np.nan, 0])
def test_a_missing_value_is_unknown(tmp_path, truth, missing):
    adata = arrayed(truth)
    adata.uns |= {"um_per_px": missing, "pitch_um": missing}
    if missing != 0:
        adata.uns |= {"patient": missing, "species": missing}
    write_section(tmp_path, adata, truth)
    uns = read_counts(tmp_path, "S1").uns
    assert (uns["patient_id"], uns["species"]) == ("S1", "human")
    assert uns["um_per_px"] == pytest.approx(UM)


def test_a_length_that_is_a_word_is_named(tmp_path, truth):
    adata = arrayed(truth)
    adata.uns["um_per_px"] = "fine"
    write_section(tmp_path, adata, truth)
    with pytest.raises(InputError, match="um_per_px 'fine' is no number .*; give um_per_px in"):
        read_counts(tmp_path, "S1")


TABLE = "section\tpatient\tum_per_px\tstain\nS1\tMüller\t0.5\tNA\n"
TABLES = {
    "plain": TABLE.encode(),
    "byte order mark": TABLE.encode("utf-8-sig"),
    "UTF-16": TABLE.encode("utf-16"),
    "Windows": TABLE.replace("\n", "\r\n").encode("cp1252"),
    "commas": TABLE.replace("\t", ",").encode(),
    "semicolons": TABLE.replace("\t", ";").encode(),
    "capitals and blanks": TABLE.replace("section\t", "Section \t").replace("S1", " S1 ").encode(),
    "empty lines": (TABLE + "\n\t\t\t\n").encode(),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_sections_is_read_as_people_save_it(tmp_path, kind):
    (tmp_path / "sections.tsv").write_bytes(TABLES[kind])
    assert section_labels(tmp_path, "S1") == {"patient": "Müller", "um_per_px": "0.5"}


# ---------------------------------------------------------------------------- several sections


def concatenate(truth, *, column="library_id", shift=0.0, array=True):
    """Two sections in one AnnData; the second has twice the counts."""
    first, second = arrayed(truth), arrayed(truth)
    second.X = second.X * 2
    second.obsm["spatial"] = second.obsm["spatial"] + shift
    both = ad.concat({"a": first, "b": second}, label=column, index_unique="-")
    if not array:
        both.obs = both.obs.drop(columns=PLACES)
    return both


@pytest.mark.parametrize("shift", [0.0, 7.0, 30.0])
@pytest.mark.parametrize("array", [True, False])
@pytest.mark.parametrize("column", ["library_id", "sample", "batch", "unknown"])
def test_sections_in_one_file_are_never_overlaid(tmp_path, truth, column, array, shift):
    """Without a column, what stands around the barcodes tells them apart."""
    write_section(tmp_path, concatenate(truth, column=column, array=array, shift=shift), truth)
    with pytest.raises(InputError, match="one file a section, or name one in the column library"):
        read_counts(tmp_path, "S1")


def test_sections_at_the_same_places_are_never_overlaid(tmp_path, truth):
    """Names of rows that are no barcodes tell nothing; the places do."""
    both = concatenate(truth, column="x", array=False)
    both.obs_names = [f"spot{i}" for i in range(both.n_obs)]
    write_section(tmp_path, both, truth)
    with pytest.raises(InputError, match="sections 0, 1 by coordinates"):
        read_counts(tmp_path, "S1")


@pytest.mark.parametrize("library, factor", [("a", 1), ("b", 2)])
def test_the_table_chooses_a_library(tmp_path, truth, library, factor):
    write_section(tmp_path, concatenate(truth), truth)
    (tmp_path / "sections.tsv").write_text(f"section\tlibrary\nS1\t{library}\n")
    adata = read_counts(tmp_path, "S1")
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), factor * truth.counts)
    (tmp_path / "sections.tsv").write_text("section\tlibrary\nS1\tc\n")
    with pytest.raises(InputError, match=r"has no library c \(a, b\)"):
        read_counts(tmp_path, "S1")


def test_parts_beside_one_another_are_one_section(tmp_path, truth):
    """Cores of a microarray, or halves of a section, have a sample each and one image."""
    adata = arrayed(truth)
    adata.obs["sample"] = np.where(truth.xy[:, 0] < 256, "left", "right")
    write_section(tmp_path, adata, truth)
    assert check_counts(tmp_path, truth).uns["grid"] == "hex"


# ---------------------------------------------------------------------------- HEST-1k


def edit_metadata(root, **fields):
    path = root / "metadata/S1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_patients_of_hest_are_counted_within_a_study(tmp_path, truth):
    write_hest(tmp_path, truth)
    edit_metadata(tmp_path, dataset_title="A study", patient="Patient 1")
    assert read_counts(tmp_path, "S1").uns["patient_id"] == "Patient 1 of: A study"
    edit_metadata(tmp_path, patient=float("nan"))
    assert read_counts(tmp_path, "S1").uns["patient_id"] == "S1"


def test_a_hest_sample_needs_no_metadata(tmp_path, truth):
    write_hest(tmp_path, truth)
    shutil.rmtree(tmp_path / "metadata")
    assert check_counts(tmp_path, truth).uns["um_per_px"] == pytest.approx(UM)


@pytest.mark.parametrize("labels", [None, "section\tpitch_um\nS1\t128\n"])
def test_hest_numbers_its_pooled_squares_past_the_empty_ones(tmp_path, truth, labels):
    """Its metadata state the size of a bin, not that of the squares to which HEST pools."""
    write_hest(tmp_path, truth)
    edit_metadata(tmp_path, st_technology="Visium HD", inter_spot_dist=2.0, spot_diameter=2.0)
    col, row = (places.ravel() for places in np.meshgrid(range(7), range(7)))
    is_tissue = np.hypot(col - 3, row - 3) < 3.2
    xy = np.c_[col, row][is_tissue] * 128 / UM + 60
    n = len(xy)
    adata = ad.AnnData(
        np.random.default_rng(0).poisson(60, (n, 4)).astype(np.float32),
        obs=pd.DataFrame({"array_col": np.arange(n) % 7, "array_row": np.arange(n) // 7}),
        var=pd.DataFrame(index=GENES),
        obsm={"spatial": xy},
    )
    adata.obs_names = [f"b{i}" for i in range(n)]
    adata.write_h5ad(tmp_path / "st/S1.h5ad")
    if labels is not None:
        (tmp_path / "sections.tsv").write_text(labels)
    read = read_counts(tmp_path, "S1")
    assert read.n_obs == n
    assert read.uns["pitch_um"] == pytest.approx(128)
    np.testing.assert_allclose(read.obsm["spatial"], xy)


# ---------------------------------------------------------------------------- SpatialData


def edit_store(path, change):
    """The store is written again, changed."""
    import spatialdata as sd

    data = sd.read_zarr(path)
    change(data)
    data.write(path.with_name("new.zarr"))
    shutil.rmtree(path)
    path.with_name("new.zarr").rename(path)


def annotate(data, regions, region_of):
    """The table annotates several regions, whose shapes are parts of the first ones."""
    from spatialdata.models import TableModel

    table = data.tables["table"]
    shapes = data.shapes["spots"]
    del data.tables["table"], data.shapes["spots"]
    for name in set(region_of):
        data.shapes[name] = shapes
    table.obs["region"] = pd.Categorical(region_of)
    table.uns.pop("spatialdata_attrs")
    data.tables["table"] = TableModel.parse(
        table, region=regions, region_key="region", instance_key="spot"
    )


@pytest.mark.parametrize("regions", [["spots"], ["left", "right"]])
def test_a_table_may_annotate_a_list_of_regions(tmp_path, truth, regions):
    write_spatialdata(tmp_path / "S1.zarr", truth)
    region_of = np.array(regions)[np.arange(len(truth.xy)) * len(regions) // len(truth.xy)]
    edit_store(tmp_path / "S1.zarr", lambda data: annotate(data, regions, region_of))
    check_counts(tmp_path, truth)
    (tmp_path / "sections.tsv").write_text(f"section\tlibrary\nS1\t{regions[-1]}\n")
    assert read_counts(tmp_path, "S1").n_obs == len(truth.xy) / len(regions)


def test_the_image_of_a_store_is_the_one_in_colour(tmp_path, truth):
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity

    def add_dapi(data):
        deep = np.zeros((1, 1024, 1024), np.uint16)
        data.images["dapi"] = Image2DModel.parse(deep, transformations={"slide": Identity()})

    write_spatialdata(tmp_path / "S1.zarr", truth)
    edit_store(tmp_path / "S1.zarr", add_dapi)
    assert check_counts(tmp_path, truth).uns["image_path"].endswith("images/he")

    def drop_colours(data):
        del data.images["he"], data.images["small"]

    edit_store(tmp_path / "S1.zarr", drop_colours)
    with pytest.raises(InputError, match=r"none of its images \(dapi\) has colours of 8 bits"):
        read_counts(tmp_path, "S1")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: data.images.clear(), "has no image; write its H&E into the store"),
        (lambda data: data.tables.clear(), "has no table of counts; write one into the store"),
        (
            lambda data: data.tables["table"].uns.pop("spatialdata_attrs"),
            "its table annotates no region",
        ),
    ],
)
def test_a_store_that_lacks_something_says_what(tmp_path, truth, change, message):
    write_spatialdata(tmp_path / "S1.zarr", truth)
    edit_store(tmp_path / "S1.zarr", change)
    with pytest.raises(InputError, match=message):
        read_counts(tmp_path, "S1")


def test_rows_without_a_shape_are_dropped_and_reported(tmp_path, truth):
    def drop_shape(data):
        data.shapes["spots"] = data.shapes["spots"].drop(index=[0, 5])

    write_spatialdata(tmp_path / "S1.zarr", truth)
    edit_store(tmp_path / "S1.zarr", drop_shape)
    adata = read_counts(tmp_path, "S1")
    assert adata.n_obs == len(truth.xy) - 2
    assert adata.uns["notes"] == ["2 rows of its table have no place on he: dropped"]


# ---------------------------------------------------------------------------- Xenium


def store_transcripts(change):
    def write(folder):
        path = folder / "transcripts.parquet"
        change(pd.read_parquet(path)).to_parquet(path)

    return write


def to_csv(folder):
    path = folder / "transcripts.parquet"
    pd.read_parquet(path).to_csv(folder / "transcripts.csv.gz", index=False)
    path.unlink()


def unnamed(transcripts):
    nameless = transcripts.iloc[:7].assign(feature_name=None, qv=40.0)
    placeless = transcripts.iloc[:7].assign(x_location=np.nan, qv=40.0)
    return pd.concat([nameless, transcripts, placeless])


TRANSCRIPTS = {
    "bytes": store_transcripts(lambda t: t.assign(feature_name=t.feature_name.str.encode("utf8"))),
    "dictionary": store_transcripts(
        lambda t: t.assign(feature_name=t.feature_name.astype("category"))
    ),
    "null": store_transcripts(unnamed),
    "csv.gz": to_csv,
    "no qv": store_transcripts(lambda t: t[t.qv >= 20].drop(columns="qv")),
    "qv unknown": store_transcripts(lambda t: t.assign(qv=t.qv.where(t.qv < 20))),
}


@pytest.mark.parametrize("kind", TRANSCRIPTS)
def test_transcripts_of_every_kind_are_counted(tmp_path, truth, kind):
    _, counts = write_xenium(tmp_path / "S1", truth)
    TRANSCRIPTS[kind](tmp_path / "S1")
    adata = read_counts(tmp_path, "S1")
    genes = [GENES.index(gene) for gene in adata.var_names]
    assert sorted(genes) == [0, 1, 2, 3]
    totals = adata.layers["counts"].toarray().sum(axis=0)
    np.testing.assert_array_equal(totals, counts.sum(axis=0)[genes])


@pytest.mark.parametrize(
    "name",
    [
        "S1_he_imagealignment_v2.csv",
        "S1_he_image_matrix.csv",
        "matrix.csv",
        "S1_he_image_alignment_files/matrix.csv",
    ],
)
def test_alignments_have_the_names_that_10x_gives_them(tmp_path, truth, name):
    write_xenium(tmp_path / "S1", truth)
    expected = read_counts(tmp_path, "S1").obsm["spatial"]
    (tmp_path / "S1" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "S1/S1_he_imagealignment.csv").rename(tmp_path / "S1" / name)
    np.testing.assert_array_equal(read_counts(tmp_path, "S1").obsm["spatial"], expected)


def test_counts_without_an_image_need_no_alignment(tmp_path, truth):
    write_xenium(tmp_path / "S1", truth)
    (tmp_path / "S1/S1_he_imagealignment.csv").unlink()
    with pytest.raises(InputError, match=r"no \*imagealignment.*export it from Xenium Explorer"):
        load_sections(tmp_path)
    (tmp_path / "S1/S1_he_image.ome.tif").unlink()
    (tmp_path / "S1/morphology.ome.tif").unlink()
    assert read_counts(tmp_path, "S1").uns["image_path"] == ""
