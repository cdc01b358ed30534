"""What can be wrong with sections: counts, spots, images, and their formats."""

import json
import shutil
import struct
import zlib

import h5py
import numpy as np
import pandas as pd
from faults import (
    all_of,
    check_fault,
    copy,
    declare_terabytes,
    each_fault,
    edit,
    edit_h5,
    fault_table,
    point_elsewhere,
    remove,
    replace,
    truncate,
    write,
)
from PIL import Image

COUNTS = "legacy/data/ST-cnts/PA1.tsv.gz"
SPOTS = "legacy/data/ST-spotfiles/PA1_selection.tsv"
IMAGE = "legacy/data/ST-imgs/PA/PA1/HE_PA1.jpg"
MATRIX = "visium/S1/filtered_feature_bc_matrix.h5"
POSITIONS = "visium/S1/spatial/tissue_positions.csv"
HIRES = "S1/spatial/tissue_hires_image.png"
ALIGNMENT = "xenium/S1/S1_he_imagealignment.csv"
OTHER_GENES = {
    "Ensembl ids": [f"ENSG{i:011d}" for i in range(4)],
    "mouse": ["Erbb2", "Krt19", "Col1a1", "Cd3e"],
}


def edit_table(path, change, *, sep="\t"):
    """The table is changed, or written with another separator."""

    def damage(root):
        index = 0 if path == COUNTS else None  # barcodes
        table = pd.read_csv(root / path, sep="\t", index_col=index)
        change(table).to_csv(root / path, sep=sep, index=index is not None)

    return damage


def set_value(path, column, value, *, row=0):
    """One value of the table is another; the column is a name or a number."""

    def change(table):
        table = table.astype(object)
        j = column if isinstance(column, int) else table.columns.get_loc(column)
        table.iloc[row, j] = value
        return table

    return edit_table(path, change)


def edit_counts(change):
    return edit_table(COUNTS, change)


def edit_spots(change):
    return edit_table(SPOTS, change)


def edit_transcripts(change):
    """Transcripts of the Xenium folder are changed."""

    def damage(root):
        path = root / "xenium/S1/transcripts.parquet"
        change(pd.read_parquet(path)).to_parquet(path)

    return damage


def edit_metadata(**fields):
    """Some of the HEST sample's metadata are others."""

    def damage(root):
        path = root / "hest/metadata/S1.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return damage


def double_gene(table):
    return table.set_axis([*table.columns[:-1], table.columns[0]], axis=1)


def double_barcode(table):
    return pd.concat([table, table.iloc[:1]])


def rename_barcodes(table):
    return table.set_axis([f"9{barcode}" for barcode in table.index])


def swap(spots):
    return spots.rename(columns={"pixel_x": "pixel_y", "pixel_y": "pixel_x"})


def mirror(spots):
    return spots.assign(pixel_x=3000 - spots.pixel_x)


def rotate(spots):
    x = spots.pixel_x - spots.pixel_x.mean()
    y = spots.pixel_y - spots.pixel_y.mean()
    return spots.assign(pixel_x=0.8 * x - 0.6 * y + 400, pixel_y=0.6 * x + 0.8 * y + 400)


def stretch(spots):
    return spots.assign(pixel_x=2 * spots.pixel_x)


def displace_first(spots):
    is_first = spots.index == 0
    return spots.assign(pixel_x=spots.pixel_x + 150 * is_first)


def keep_one_row(spots):
    return spots[spots.y == spots.y.iloc[30]]


def name_two_libraries(file):
    barcodes = np.char.replace(file["matrix/barcodes"][:], b"-1", b"-2")
    file["matrix/barcodes"][::2] = barcodes[::2]


def make_antibodies(file):
    n = len(file["matrix/features/feature_type"])
    del file["matrix/features/feature_type"]
    file["matrix/features/feature_type"] = np.array(["Antibody Capture"] * n, "S")


def repeat_line(text):
    return text + text.splitlines()[1]


def describe(text):
    """There is a sections.tsv with this text."""
    return write("legacy/sections.tsv", text)


def edit_image(change):
    """The image of the section is changed."""

    def damage(root):
        image = Image.open(root / IMAGE)
        change(image).save(root / IMAGE)

    return damage


def halve(image):
    return image.resize((image.width // 2, image.height // 2))


def write_slide(shape, *, dtype=np.uint8, dots=(5000, "CENTIMETER"), **options):
    """The slide has other pixels, and states its scale in dots per unit."""
    import tifffile

    def damage(root):
        tifffile.imwrite(
            root / "h5ad/S1.tif",
            np.zeros(shape, dtype),
            resolution=(dots[0], dots[0]),
            resolutionunit=dots[1],
            **{"photometric": "rgb", **options},
        )

    return damage


def declare_gigabytes(root):
    """A PNG of 4 x 10^9 black px, packed a row at a time, so that the test need not hold them."""
    edge = 2**16
    packer = zlib.compressobj(9)
    row = bytes(1 + edge // 8)
    rows = b"".join(packer.compress(row) for _ in range(edge)) + packer.flush()
    header = struct.pack(">IIBBBBB", edge, edge, 1, 0, 0, 0, 0)
    with (root / "slides/a.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")):
            checksum = struct.pack(">I", zlib.crc32(kind + data))
            file.write(struct.pack(">I", len(data)) + kind + data + checksum)


def declare_a_terabyte(root):
    """A TIFF whose pixels nobody wrote."""
    import tifffile

    shutil.copy(root / "slides/s.tif", root / "slides/a.tif")
    with tifffile.TiffFile(root / "slides/a.tif", mode="r+b") as file:
        for tag in ("ImageWidth", "ImageLength"):
            file.pages[0].tags[tag].overwrite(2**19)


def edit_adata(change):
    """The AnnData is changed in place."""
    import anndata as ad

    def damage(root):
        adata = ad.read_h5ad(root / "h5ad/S1.h5ad")
        change(adata)
        adata.write_h5ad(root / "h5ad/S1.h5ad")

    return damage


def lose_a_coordinate(adata):
    adata.obsm["spatial"][3, 0] = np.nan


def double_name(adata):
    adata.obs_names.values[1] = adata.obs_names[0]


def normalise_all(adata):
    adata.X = adata.X * 0.5
    adata.raw = adata.copy()


def add_library(root):
    """The file holds the section twice, as two libraries."""
    import anndata as ad

    path = root / "h5ad/S1.h5ad"
    adata = ad.read_h5ad(path)
    both = ad.concat({"1": adata, "2": adata}, label="library_id", index_unique="-")
    both.write_h5ad(path)


def add_section(kind):
    """There is a second section, whose genes have other names; both train."""
    from made import make_h5ad, make_truth

    def damage(root):
        make_h5ad(make_truth(), genes=OTHER_GENES[kind]).write_h5ad(root / "h5ad/S2.h5ad")
        shutil.copy(root / "h5ad/S1.tif", root / "h5ad/S2.tif")

    return damage, "--train S1,S2"


def rename_patches(file: h5py.File):
    names = file["barcode"]
    names[...] = np.full(names.shape, b"TTTT", names.dtype)


FAULTS = [
    *fault_table(
        "finetune",
        # counts
        ("counts end early", truncate(COUNTS), "PA1.tsv.gz: cannot be read"),
        ("plain counts", write(COUNTS, "x\tERBB2\n1x1\t3\n"), "PA1.tsv.gz: cannot be read"),
        (
            "counts with commas",
            edit_table(COUNTS, lambda counts: counts, sep=","),
            "has one column",
        ),
        ("a barcode twice", edit_counts(double_barcode), "a barcode is listed twice"),
        ("counts of other spots", edit_counts(rename_barcodes), "no barcode is also in"),
        ("negative counts", set_value(COUNTS, 5, -1), "whole numbers >= 0"),
        ("a count is missing", set_value(COUNTS, 5, None), "whole numbers >= 0"),
        ("counts are halves", edit_counts(lambda counts: counts * 0.5), "whole numbers >= 0"),
        ("normalised counts", edit_counts(np.log1p), "give raw counts, not normalised"),
        ("a count is a word", set_value(COUNTS, 5, "many"), "PA1.tsv.gz: cannot be read"),
        ("all counts are zero", edit_counts(lambda counts: counts * 0), "no spot has 100 counts"),
        ("a gene twice", edit_counts(double_gene), "a gene is listed twice"),
        # spots
        ("spots end early", edit(SPOTS, lambda text: text[:9]), "is missing; restore it"),
        (
            "no selected spot",
            edit_spots(lambda spots: spots.assign(selected=0)),
            "no barcode is also in",
        ),
        (
            "spots without pixels",
            edit_spots(lambda spots: spots.drop(columns="pixel_x")),
            "column pixel_x is missing",
        ),
        ("a pixel is a word", set_value(SPOTS, "pixel_x", "left"), "pixel_x is not a number"),
        ("a pixel is missing", set_value(SPOTS, "pixel_y", None), "pixel_y is not a number"),
        ("x and y are swapped", edit_spots(swap), "swap or unmirror"),
        ("the image is mirrored", edit_spots(mirror), "swap or unmirror"),
        ("spots are rotated", edit_spots(rotate), "swap or unmirror"),
        ("one axis is stretched", edit_spots(stretch), "px per um; rescale"),
        ("a spot is elsewhere", edit_spots(displace_first), "off its place on the array"),
        ("spots on one line", edit_spots(keep_one_row), "lie on one line"),
        # sections.tsv
        (
            "um per px against the pitch",
            describe("section\tum_per_px\nPA1\t2.5\nPB1\t1\n"),
            "um_per_px is 2.500",
        ),
        (
            "um per px is a word",
            describe("section\tum_per_px\nPA1\tfine\nPB1\t1\n"),
            "um_per_px 'fine'",
        ),
        ("negative um per px", describe("section\tum_per_px\nPA1\t-1\nPB1\t1\n"), "um_per_px"),
        ("two rows for a section", describe("section\nPA1\nPA1\n"), "2 rows for section PA1"),
        (
            "sections.tsv names no section",
            describe("name,patient\nPA1,P\n"),
            "sections.tsv: column section is missing",
        ),
        (
            "sections.tsv is binary",
            lambda root: (root / "legacy/sections.tsv").write_bytes(b"\xff\xfe\x00"),
            "sections.tsv: cannot be read",
        ),
        (
            "its image is not there",
            describe("section\timage\nPA1\tslide.tif\n"),
            "slide.tif: no such image",
        ),
        # images
        ("no image", remove(IMAGE), "no section 'PA1' with counts and image"),
        ("the image ends early", truncate(IMAGE), "HE_PA1.jpg: cannot be decoded"),
        ("the image is text", write(IMAGE, "attached"), "HE_PA1.jpg: cannot be decoded"),
        ("two images", copy(IMAGE, IMAGE.replace("HE_PA1", "b")), "is not the only image there"),
        ("an image of half the size", edit_image(halve), "must share one scale"),
        (
            "another section's image",
            edit_image(lambda image: image.crop((0, 0, 400, 400))),
            "must share one scale",
        ),
        ("the patch exceeds the image", "--set patch_um=90000", "no patch of 90000 um"),
        ("more pixels than recorded", "--set patch_px=1000", "um/px, but 1000 px"),
        # sections
        ("a section twice", "--train PA1,PA1", "one is named twice"),
        ("an unknown section", "--train PA1,ZZ9", "no section 'ZZ9'"),
        ("no section is named", "--train ,", "names nothing"),
        ("no data", "--data nowhere", "nowhere: holds no section"),
    ),
    *fault_table(
        "embed",
        ("a slide declares a terabyte", declare_a_terabyte, "a.tif: declares"),
        ("an image declares gigabytes", declare_gigabytes, "a.png: declares"),
    ),
    *fault_table(
        "h5ad",
        ("16 bits a channel", write_slide((512, 512, 3), dtype=np.uint16), "more than 8 bits"),
        (
            "five channels",
            write_slide((5, 512, 512), photometric="minisblack", metadata={"axes": "CYX"}),
            "(C 5); convert it to 8-bit RGB",
        ),
        (
            "colours of another kind",
            write_slide((512, 512, 3), photometric="cielab"),
            "CIELAB; convert it to 8-bit RGB",
        ),
        (
            "a screen's dots per inch",
            write_slide((512, 512, 3), dots=(96, "INCH")),
            "um per px is unknown (S1.tif states 264.6 um per px, not believed); give um_per_px",
        ),
        ("a slide ends early", truncate("h5ad/S1.tif", 0.3), "S1.tif: cannot be read"),
        ("an AnnData ends early", truncate("h5ad/S1.h5ad"), "S1.h5ad: cannot be read"),
        ("an AnnData declares 4 TB", declare_terabytes("h5ad/S1.h5ad", "X/data"), "declares"),
        (
            "an AnnData points elsewhere",
            edit_h5("h5ad/S1.h5ad", point_elsewhere("X")),
            "S1.h5ad: X/indices has one outside 0 to 3",
        ),
        ("no coordinates", edit_adata(lambda adata: adata.obsm.clear()), 'no obsm["spatial"]'),
        ("a coordinate is NaN", edit_adata(lose_a_coordinate), "coordinate is not a number"),
        ("a name twice", edit_adata(double_name), "a barcode is listed twice"),
        ("two sections in one file", add_library, "holds sections 1, 2 by library_id"),
        (
            "an unknown library",
            write("h5ad/sections.tsv", "section\tlibrary\nS1\tz\n"),
            "has no library z",
        ),
        (
            "in_tissue is a word",
            edit_adata(lambda adata: adata.obs.insert(0, "in_tissue", "perhaps")),
            "in_tissue has 'perhaps'",
        ),
        (
            "a column of the array has words",
            edit_adata(lambda adata: adata.obs.insert(0, "array_col", "left")),
            "array_col has 'left'",
        ),
        (
            "the file's um per px is a word",
            edit_adata(lambda adata: adata.uns.update(um_per_px="fine")),
            "um_per_px 'fine' is no number",
        ),
        (
            "the file's um per px is infinite",
            edit_adata(lambda adata: adata.uns.update(um_per_px=np.inf)),
            "um_per_px is inf, must be 0.001 to 1e+06, or 0 where it is unknown; give um_per_px",
        ),
        (
            "a spot of negative width",
            edit_adata(lambda adata: adata.uns.update(spot_um=-1.0)),
            "spot_um is -1, must be",
        ),
        (
            "a pixel shorter than any",
            edit_adata(lambda adata: adata.uns.update(um_per_px=1e-300)),
            "um_per_px is 1e-300, must be 0.001 to",
        ),
        (
            "the patient is several",
            edit_adata(lambda adata: adata.uns.update(patient=np.array(["P1", "P2"]))),
            "must be one name; give patient in sections.tsv",
        ),
        (
            "the species is a book",
            edit_adata(lambda adata: adata.uns.update(species="human" * 1000)),
            "species is 5000 characters long, must be at most 1000; give species in",
        ),
        ("normalised everywhere", edit_adata(normalise_all), "give raw counts, not normalised"),
        (
            "another pitch is stated",
            edit_adata(lambda adata: adata.uns.update(pitch_um=200.0)),
            "spots are 100 um apart",
        ),
        (
            "the scale is nowhere",
            all_of(
                remove("h5ad/S1.tif"),
                lambda root: Image.new("RGB", (512, 512)).save(root / "h5ad/S1.png"),
            ),
            "um per px is unknown",
        ),
        ("ids beside symbols", add_section("Ensembl ids"), "has Ensembl ids"),
        ("a mouse beside a human", add_section("mouse"), "has mouse"),
    ),
    *fault_table(
        "visium",
        ("a matrix ends early", truncate(MATRIX), "cannot be read"),
        ("a matrix declares 4 TB", declare_terabytes(MATRIX, "matrix/data"), "declares"),
        (
            "a matrix points elsewhere",
            edit_h5(MATRIX, point_elsewhere("matrix")),
            "matrix/indices has one outside 0 to 3",
        ),
        ("no positions", remove(POSITIONS), "no tissue_positions.csv beside it"),
        ("no counts", remove(MATRIX), "no counts beside it"),
        (
            "counts of two samples",
            copy(MATRIX, "visium/S1/S2_filtered_feature_bc_matrix.h5"),
            "give each sample a folder of its own",
        ),
        ("counts of two libraries", edit_h5(MATRIX, name_two_libraries), "several libraries"),
        ("counts of antibodies", edit_h5(MATRIX, make_antibodies), "no features of type Gene"),
        ("a pixel is text", replace(POSITIONS, ",120.7", ",top", 1), "; give numbers there"),
        (
            "a column of pixels is lost",
            replace(POSITIONS, "pxl_col_in_fullres", "x"),
            "is missing; restore",
        ),
        (
            "the position of a barcode twice",
            edit(POSITIONS, repeat_line),
            "a barcode is listed twice",
        ),
        (
            "a small image of no known scale",
            all_of(
                remove("visium/S1/spatial/scalefactors_json.json"),
                write("visium/sections.tsv", f"section\timage\nS1\t{HIRES}\n"),
            ),
            "no scalefactors_json.json beside it",
        ),
        (
            "a small image of too little detail",
            write("visium/sections.tsv", f"section\timage\nS1\t{HIRES}\n"),
            "tissue_hires_image.png): has 8.00 um/px",
        ),
        ("no image at all", remove("visium/S1/image.tif"), "tissue_hires_image.png): has 8.00"),
        (
            "positions of other barcodes",
            replace(POSITIONS, "A", "T"),
            "0% of its barcodes are in tissue_positions.csv",
        ),
        (
            "no spot on tissue",
            replace(POSITIONS, "-1,1,", "-1,0,"),
            "none of its spots is on tissue",
        ),
    ),
    *fault_table(
        "xenium",
        ("no alignment", remove(ALIGNMENT), "no *imagealignment*.csv or"),
        ("an alignment of words", write(ALIGNMENT, "a,b,c\n"), "is no 3 x 3 matrix"),
        ("an alignment of four numbers", write(ALIGNMENT, "1,0\n0,1\n"), "is no 3 x 3 matrix"),
        (
            "two alignments",
            copy(ALIGNMENT, "xenium/S1/matrix.csv"),
            "is not the only alignment there",
        ),
        (
            "transcripts end early",
            truncate("xenium/S1/transcripts.parquet"),
            "transcripts.parquet: cannot be read",
        ),
        ("no size of pixels", write("xenium/S1/experiment.xenium", "{}"), "pixel_size"),
        (
            "a transcript far away",
            edit_transcripts(lambda table: table.assign(x_location=1e9)),
            "transcripts.parquet: a transcript lies 1e+09 um from the origin, must be at most",
        ),
        (
            "squares of no width",
            write("xenium/sections.tsv", "section\tpool_um\nS1\t1e-300\n"),
            "sections.tsv: pool_um is 1e-300, must be 0.001 to",
        ),
    ),
    *fault_table(
        "zarr",
        ("a store without its table", remove("zarr/S1.zarr/tables"), "S1.zarr"),
        ("a store's image is damaged", remove("zarr/S1.zarr/images/he/zarr.json"), "S1.zarr"),
    ),
    *fault_table(
        "hest",
        ("metadata end early", truncate("hest/metadata/S1.json"), "S1.json: cannot be read"),
        (
            "metadata are a list",
            write("hest/metadata/S1.json", "[]"),
            "S1.json: it is [], but must be an object",
        ),
        (
            "a sample of several patients",
            edit_metadata(patient=["P1", "P2"]),
            "S1.json: patient=['P1', 'P2'] must be text; correct it, or fetch it again",
        ),
        (
            "an organ is an object",
            edit_metadata(organ={"name": "breast"}),
            "S1.json: organ={'name': 'breast'} must be text",
        ),
        (
            "a spot wider than a slide",
            edit_metadata(spot_diameter=1e9),
            "S1.json: spot_diameter=1000000000.0 must be a number at least 0 and at most 1000000",
        ),
        (
            "a spot of a word",
            edit_metadata(spot_diameter="wide"),
            "spot_um 'wide' is no number",
        ),
    ),
    *fault_table(
        "ready",
        ("patches end early", truncate("ready/patches/S1.h5"), "S1.h5: has no img"),
        (
            "patches of other spots",
            edit_h5("ready/patches/S1.h5", rename_patches),
            "holds no patch of these spots",
        ),
        ("patches are too small", "--set patch_um=224", "show 112 um"),
    ),
]


@each_fault(FAULTS)
def test_a_fault_is_one_line_and_nothing_is_written(cli, good, tmp_path, monkeypatch, fault):
    check_fault(cli, good, tmp_path, monkeypatch, fault)
