"""What can be wrong with what users bring: one row each, one sentence on stderr, exit code 2.

A row: the fault; the command, of `COMMANDS`, on good data; what is done to the data, or what is
added to the command; words of the sentence. Nothing may have been written, and no long work begun.
"""

import json
import os
import resource
import shutil
import struct
import zlib
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
import yaml
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from made import make_h5ad, make_truth, write_everything
from PIL import Image

from seal_lite.encoders import prefix_cache
from seal_lite.io import HIDDEN
from seal_lite.model import seal

SMALL = "--set hidden=32,16 --set project=16 --set batch_size=16 --set n_views=2"
LITE = f"{SMALL} --set patch_px=64 --set n_genes=40"
FEW = f"{SMALL} --set patch_um=64 --set patch_px=32"
COMMANDS = {  # all of them are right
    "finetune": f"finetune --data legacy --train PA1 --out out --epochs 1 {LITE}",
    "crossval": f"crossval --data legacy --seeds 1 --out out --epochs 1 {LITE}",
    "shard": f"shard --data legacy --train PA1 --out out {LITE}",
    "shards": f"finetune --data shards --out out --epochs 1 {LITE}",
    "check": "check --data legacy --out out",
    "probe": "probe --run run --data legacy --train PA1 --test PB1 --json out",
    "retrieve": "retrieve --run run --data legacy --section PB1 --genes ERBB2 --out out",
    "sets": "retrieval-bench --run run --data legacy --gmt sets.gmt --json out",
    "bench": "hest-bench --root bench --backbone tf_efficientnet_lite0 --json out",
    "embed": "embed --slides slides --backbone tf_efficientnet_lite0 --out out",
    "slides": "slide-bench --task task --features a=features --seeds 1 --json out",
    "h5ad": f"finetune --data h5ad --train S1 --out out --epochs 1 {FEW}",
    "visium": f"finetune --data visium --train S1 --out out --epochs 1 {FEW}",
    "xenium": f"finetune --data xenium --train S1 --out out --epochs 1 {FEW}",
    "zarr": f"finetune --data zarr --train S1 --out out --epochs 1 {FEW}",
    "hest": f"finetune --data hest --train S1 --out out --epochs 1 {FEW}",
    "ready": f"finetune --data ready --train S1 --out out --epochs 1 {FEW}",
}
CNT, SPOTS, HE = (
    f"legacy/data/{p}"
    for p in ("ST-cnts/PA1.tsv.gz", "ST-spotfiles/PA1_selection.tsv", "ST-imgs/PA/PA1/HE_PA1.jpg")
)
MATRIX = "visium/S1/filtered_feature_bc_matrix.h5"


# What is done to good data: functions of the folder in which it lies.


def without(path):
    """The file or folder is gone."""
    return lambda root: (
        shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()
    )


def cut(path, share=0.6):
    """The file ends early."""
    return lambda root: os.truncate(root / path, int(share * (root / path).stat().st_size))


def text(path, change):
    """The file's text is changed, or another."""

    def damage(root):
        file = root / path
        file.write_text(change(file.read_text()) if callable(change) else change)

    return damage


def table(path, change, *, sep="\t"):
    """The table is changed, or written with another separator."""

    def damage(root):
        index = 0 if path == CNT else None
        found = change(pd.read_csv(root / path, sep="\t", index_col=index))
        found.to_csv(root / path, sep=sep, index=index is not None)

    return damage


def cell(column, value, *, row=0):
    """One value of a table is another."""

    def change(t):
        t = t.astype(object)
        t.iloc[row, column if isinstance(column, int) else t.columns.get_loc(column)] = value
        return t

    return change


def picture(change, path=HE):
    """The picture is changed."""

    def damage(root):
        change(Image.open(root / path)).save(root / path)

    return damage


def adata(change, path="h5ad/S1.h5ad"):
    """The AnnData is changed."""
    import anndata as ad

    def damage(root):
        found = ad.read_h5ad(root / path)
        (change(found) or found).write_h5ad(root / path)

    return damage


def h5(path, change):
    """The HDF5 file is changed."""

    def damage(root):
        with h5py.File(root / path, "a") as file:
            change(file)

    return damage


def huge(file, name):
    """A dataset that declares 4 TB and holds nothing: a bomb."""
    del file[name]
    file.create_dataset(name, (2**40,), "f4", chunks=(2**20,))


def sections(lines):
    """A sections.tsv with these lines."""
    return text("legacy/sections.tsv", lines)


def both(*damages):
    return lambda root: [damage(root) for damage in damages]


def named(key, value):
    """A key of a JSON file's dictionary is another, or gone."""

    def change(found):
        found = json.loads(found)
        found[key] = value
        return json.dumps({k: v for k, v in found.items() if v is not None})

    return change


def swap(t):
    return t.rename(columns={"pixel_x": "pixel_y", "pixel_y": "pixel_x"})


def turn(t):
    x, y = t.pixel_x - t.pixel_x.mean(), t.pixel_y - t.pixel_y.mean()
    return t.assign(pixel_x=0.8 * x - 0.6 * y + 400, pixel_y=0.6 * x + 0.8 * y + 400)


def blank_png(root):
    """4 x 10^9 px of nothing, packed a row at a time: nobody has to hold them."""
    edge, pack = 2**16, zlib.compressobj(9)
    rows = b"".join(pack.compress(bytes(1 + edge // 8)) for _ in range(edge)) + pack.flush()
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", edge, edge, 1, 0, 0, 0, 0),
        b"IDAT": rows,
        b"IEND": b"",
    }
    with (root / "slides/a.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in chunks.items():
            check = struct.pack(">I", zlib.crc32(kind + data))
            file.write(struct.pack(">I", len(data)) + kind + data + check)


def empty_tiff(root):
    """A terabyte of pixels that nobody wrote."""
    shutil.copy(root / "slides/s.tif", root / "slides/a.tif")
    with tifffile.TiffFile(root / "slides/a.tif", mode="r+b") as file:
        for tag in ("ImageWidth", "ImageLength"):
            file.pages[0].tags[tag].overwrite(2**19)


FAULTS = [
    # counts
    ("counts end early", "finetune", cut(CNT), "PA1.tsv.gz: cannot be read"),
    (
        "counts are not compressed",
        "finetune",
        text(CNT, "x\tERBB2\n1x1\t3\n"),
        "PA1.tsv.gz: cannot be read",
    ),
    (
        "counts are separated by commas",
        "finetune",
        table(CNT, lambda t: t, sep=","),
        "PA1.tsv.gz: has one column",
    ),
    (
        "a barcode stands twice",
        "finetune",
        table(CNT, lambda t: pd.concat([t, t.iloc[:1]])),
        "a barcode stands there twice",
    ),
    (
        "counts of other spots",
        "finetune",
        table(CNT, lambda t: t.set_axis([f"9{b}" for b in t.index])),
        "no barcode is also in",
    ),
    ("negative counts", "finetune", table(CNT, cell(5, -1)), "whole numbers >= 0"),
    ("counts are missing", "finetune", table(CNT, cell(5, None)), "whole numbers >= 0"),
    ("counts are halves", "finetune", table(CNT, lambda t: t * 0.5), "whole numbers >= 0"),
    ("counts are normalised", "finetune", table(CNT, np.log1p), "give raw counts, not normalised"),
    ("counts are words", "finetune", table(CNT, cell(5, "many")), "PA1.tsv.gz: cannot be read"),
    ("all counts are zero", "finetune", table(CNT, lambda t: t * 0), "no spot has 100 counts"),
    (
        "a gene stands twice",
        "finetune",
        table(CNT, lambda t: t.set_axis([*t.columns[:-1], t.columns[0]], axis=1)),
        "a gene stands there twice",
    ),
    # spots
    ("spots end early", "finetune", text(SPOTS, lambda t: t[:9]), "is missing; restore it"),
    (
        "no spot is selected",
        "finetune",
        table(SPOTS, lambda t: t.assign(selected=0)),
        "no barcode is also in",
    ),
    (
        "no pixels of spots",
        "finetune",
        table(SPOTS, lambda t: t.drop(columns="pixel_x")),
        "column pixel_x is missing",
    ),
    (
        "a pixel is a word",
        "finetune",
        table(SPOTS, cell("pixel_x", "left")),
        "some pixel_x is not a number",
    ),
    (
        "a pixel is missing",
        "finetune",
        table(SPOTS, cell("pixel_y", None)),
        "some pixel_y is not a number",
    ),
    ("x and y are swapped", "finetune", table(SPOTS, swap), "swap or unmirror"),
    (
        "the image is mirrored",
        "finetune",
        table(SPOTS, lambda t: t.assign(pixel_x=3000 - t.pixel_x)),
        "swap or unmirror",
    ),
    ("spots are rotated", "finetune", table(SPOTS, turn), "swap or unmirror"),
    (
        "one axis is stretched",
        "finetune",
        table(SPOTS, lambda t: t.assign(pixel_x=2 * t.pixel_x)),
        "px per um; rescale",
    ),
    (
        "a spot is elsewhere",
        "finetune",
        table(SPOTS, lambda t: cell("pixel_x", t.pixel_x[0] + 150)(t)),
        "off its place on the array",
    ),
    (
        "spots on one line",
        "finetune",
        table(SPOTS, lambda t: t[t.y == t.y.iloc[30]]),
        "lie on one line",
    ),
    # what is said of sections
    (
        "um per px against the pitch",
        "finetune",
        sections("section\tum_per_px\nPA1\t2.5\nPB1\t1\n"),
        "2.500 um per px is said",
    ),
    (
        "um per px is a word",
        "finetune",
        sections("section\tum_per_px\nPA1\tfine\nPB1\t1\n"),
        "um_per_px 'fine' is no number",
    ),
    (
        "um per px is negative",
        "finetune",
        sections("section\tum_per_px\nPA1\t-1\nPB1\t1\n"),
        "um_per_px",
    ),
    (
        "two rows for a section",
        "finetune",
        sections("section\nPA1\nPA1\n"),
        "has 2 rows for section PA1",
    ),
    (
        "sections.tsv has commas",
        "finetune",
        sections("section,patient\nPA1,P\n"),
        "sections.tsv: column section is missing",
    ),
    (
        "sections.tsv is binary",
        "finetune",
        lambda root: (root / "legacy/sections.tsv").write_bytes(b"\xff\xfe\x00\x9f"),
        "sections.tsv: cannot be read",
    ),
    (
        "its image is not there",
        "finetune",
        sections("section\timage\nPA1\tslide.tif\n"),
        "slide.tif: no such image",
    ),
    # images
    ("no image", "finetune", without(HE), "no section 'PA1' with counts and image"),
    ("the image ends early", "finetune", cut(HE), "HE_PA1.jpg: cannot be decoded"),
    (
        "the image is no image",
        "finetune",
        text(HE, "see attachment"),
        "HE_PA1.jpg: cannot be decoded",
    ),
    (
        "two images",
        "finetune",
        lambda root: shutil.copy(root / HE, (root / HE).with_name("b.jpg")),
        "is not the only image there",
    ),
    (
        "an image of half the size",
        "finetune",
        picture(lambda i: i.resize((i.width // 2, i.height // 2))),
        "must share one scale",
    ),
    (
        "another section's image",
        "finetune",
        picture(lambda i: i.crop((0, 0, 400, 400))),
        "must share one scale",
    ),
    (
        "16 bits a channel",
        "h5ad",
        lambda root: tifffile.imwrite(
            root / "h5ad/S1.tif",
            np.zeros((512, 512, 3), np.uint16),
            photometric="rgb",
            resolution=(5000, 5000),
            resolutionunit="CENTIMETER",
        ),
        "more than 8 bits",
    ),
    ("a slide ends early", "h5ad", cut("h5ad/S1.tif", 0.3), "S1.tif: cannot be read"),
    ("a slide declares a terabyte", "embed", empty_tiff, "a.tif: declares"),
    ("a picture declares gigabytes", "embed", blank_png, "a.png: declares"),
    (
        "the region is larger than the image",
        "finetune",
        "--set patch_um=90000",
        "no region of 90000 um",
    ),
    ("more pixels than were recorded", "finetune", "--set patch_px=1000", "um/px, but 1000 px"),
    # AnnData, Space Ranger, Xenium, SpatialData, HEST
    ("an AnnData ends early", "h5ad", cut("h5ad/S1.h5ad"), "S1.h5ad: cannot be read"),
    (
        "an AnnData declares 4 TB",
        "h5ad",
        h5("h5ad/S1.h5ad", lambda f: huge(f, "X/data")),
        "S1.h5ad: declares",
    ),
    ("no coordinates", "h5ad", adata(lambda a: a.obsm.clear()), 'no obsm["spatial"]'),
    (
        "a coordinate is NaN",
        "h5ad",
        adata(lambda a: a.obsm["spatial"].__setitem__((3, 0), np.nan)),
        "coordinate is not a number",
    ),
    (
        "barcodes stand twice",
        "h5ad",
        adata(lambda a: a.obs_names.values.__setitem__(1, a.obs_names[0])),
        "a barcode stands there twice",
    ),
    (
        "another pitch is said",
        "h5ad",
        adata(lambda a: a.uns.update(pitch_um=200.0)),
        "spots are 100 um apart",
    ),
    (
        "nothing says the scale",
        "h5ad",
        both(
            without("h5ad/S1.tif"),
            lambda root: Image.new("RGB", (512, 512)).save(root / "h5ad/S1.png"),
        ),
        "nothing says um per px",
    ),
    (
        "ids beside symbols",
        "h5ad",
        (
            lambda root: write_other(root / "h5ad", [f"ENSG{i:011d}" for i in range(4)]),
            "--train S1,S2",
        ),
        "has Ensembl ids",
    ),
    (
        "a mouse beside a human",
        "h5ad",
        (
            lambda root: write_other(root / "h5ad", ["Erbb2", "Krt19", "Col1a1", "Cd3e"]),
            "--train S1,S2",
        ),
        "has mouse",
    ),
    ("a matrix ends early", "visium", cut(MATRIX), "cannot be read"),
    ("a matrix declares 4 TB", "visium", h5(MATRIX, lambda f: huge(f, "matrix/data")), "declares"),
    (
        "no scale factors",
        "visium",
        without("visium/S1/spatial/scalefactors_json.json"),
        "cannot be read",
    ),
    ("no positions", "visium", without("visium/S1/spatial/tissue_positions.csv"), "cannot be read"),
    (
        "positions of other barcodes",
        "visium",
        text("visium/S1/spatial/tissue_positions.csv", lambda t: t.replace("-C,", "-2,")),
        "none of its spots is on tissue",
    ),
    (
        "no alignment",
        "xenium",
        without("xenium/S1/S1_he_imagealignment.csv"),
        "no *imagealignment.csv",
    ),
    (
        "an alignment of words",
        "xenium",
        text("xenium/S1/S1_he_imagealignment.csv", "a,b,c\n"),
        "cannot be read",
    ),
    (
        "transcripts end early",
        "xenium",
        cut("xenium/S1/transcripts.parquet"),
        "transcripts.parquet: cannot be read",
    ),
    ("no size of pixels", "xenium", text("xenium/S1/experiment.xenium", "{}"), "pixel_size"),
    ("a store without its table", "zarr", without("zarr/S1.zarr/tables"), "S1.zarr"),
    ("a store's image is damaged", "zarr", without("zarr/S1.zarr/images/he/zarr.json"), "S1.zarr"),
    ("metadata are damaged", "hest", cut("hest/metadata/S1.json"), "S1.h5ad: cannot be read"),
    ("patches end early", "ready", cut("ready/patches/S1.h5"), "has no img, barcode and coords"),
    (
        "patches of other spots",
        "ready",
        h5(
            "ready/patches/S1.h5",
            lambda f: f["barcode"].write_direct(
                np.full(f["barcode"].shape, b"TTTT", f["barcode"].dtype)
            ),
        ),
        "holds no patch of these spots",
    ),
    ("patches are too small", "ready", "--set patch_um=224", "its patches show 112 um"),
    # splits
    ("one section only", "crossval", "--sections PA1", "nothing can be held out"),
    (
        "one patient only",
        "crossval",
        (sections("section\tpatient\nPA1\tA\nPB1\tA\n"), "--groups patient"),
        "--groups patient: all sections belong to 'A'",
    ),
    ("sections without a group", "crossval", "--groups organ", "organ: not known of section PA1"),
    ("more groups than there are", "crossval", "--train-groups 2", "leave some to test"),
    ("fewer pairs than a batch", "finetune", "--set batch_size=500", "fewer than batch_size=500"),
    (
        "a fold has fewer pairs than a batch",
        "crossval",
        "--set batch_size=100",
        "fewer than batch_size=100",
    ),
    (
        "a test section lacks a gene",
        "crossval",
        table(CNT, lambda t: t.drop(columns="ERBB2")),
        "PA1: lacks ERBB2",
    ),
    (
        "twins under two names",
        "crossval",
        lambda root: twins(root / "legacy"),
        "have the same counts",
    ),
    ("tested on what it trained on", "probe", "--test PA1", "PA1: also in"),
    (
        "the panel's genes are absent",
        "probe",
        table(CNT.replace("PA1", "PB1"), lambda t: t.add_prefix("X")),
        "PB1: lacks ERBB2",
    ),
    ("a section twice", "finetune", "--train PA1,PA1", "one is named twice"),
    ("an unknown section", "finetune", "--train PA1,ZZ9", "no section 'ZZ9'"),
    ("no data", "finetune", "--data nowhere", "nowhere: holds no section"),
    # HEST-bench
    (
        "a sample in both halves",
        "bench",
        text("bench/TINY/splits/test_0.csv", lambda t: t.replace("PB1", "PA1")),
        "sample PA1 also trains",
    ),
    (
        "a split without its other half",
        "bench",
        without("bench/TINY/splits/test_0.csv"),
        "test_0.csv: cannot be read",
    ),
    (
        "a sample's file is gone",
        "bench",
        without("bench/TINY/adata/PB1.h5ad"),
        "PB1.h5ad: is missing",
    ),
    (
        "a sample's patches end early",
        "bench",
        cut("bench/TINY/patches/PB1.h5"),
        "PB1.h5: has no img",
    ),
    (
        "genes are no list",
        "bench",
        text("bench/TINY/var_50genes.json", "[]"),
        "restore its list 'genes'",
    ),
    (
        "a gene that no one counted",
        "bench",
        text("bench/TINY/var_50genes.json", '{"genes": ["NOPE"]}'),
        "gene NOPE is missing",
    ),
    ("an unknown task", "bench", "--tasks IDC", "IDC: has no folder splits"),
    # slides and their labels
    (
        "no slide",
        "embed",
        both(without("slides"), lambda root: (root / "slides").mkdir()),
        "slides: holds no slide",
    ),
    (
        "two slides of one name",
        "embed",
        lambda root: shutil.copy(root / "slides/s.tif", root / "slides/s.svs"),
        "two slides are called s",
    ),
    (
        "a slide without scale",
        "embed",
        lambda root: Image.new("RGB", (99, 99)).save(root / "slides/z.png"),
        "z.png: does not say its um per px",
    ),
    (
        "a damaged slide behind a good one",
        "embed",
        text("slides/t.tif", "tiff"),
        "t.tif: cannot be read",
    ),
    ("a scale of 0", "embed", "--um-per-px 0", "--um-per-px"),
    (
        "labels of one class",
        "slides",
        text("task/k=all.tsv", lambda t: t.replace("wildtype", "mutant")),
        "one class",
    ),
    (
        "no label",
        "slides",
        text("task/k=all.tsv", lambda t: t.replace("status", "other")),
        "column status is missing",
    ),
    (
        "a label is empty",
        "slides",
        text("task/k=all.tsv", lambda t: t.replace("\tmutant\t", "\t\t", 1)),
        "a status is empty",
    ),
    (
        "a case with two labels",
        "slides",
        text("task/k=all.tsv", lambda t: t.replace("c3_1\tmutant", "c3_1\twild")),
        "c3 has two status",
    ),
    (
        "a case on both sides",
        "slides",
        lambda root: both_sides(root / "task"),
        "is on both sides of fold",
    ),
    ("a task's settings are damaged", "slides", text("task/config.yaml", "a: [1"), "is no task"),
    (
        "a task that would run code",
        "slides",
        text("task/config.yaml", "!!python/object/apply:os.mkdir [out]"),
        "is no task",
    ),
    ("features are gone", "slides", without("features/c7_0.h5"), "c7_0.h5"),
    ("features end early", "slides", cut("features/c7_0.h5"), "c7_0.h5"),
    (
        "features declare 4 TB",
        "slides",
        h5("features/c7_0.h5", lambda f: huge(f, "features")),
        "c7_0.h5: declares",
    ),
    (
        "a slide without tissue",
        "slides",
        h5("features/c6_0.h5", lambda f: (f.pop("features"), f.update(features=np.zeros((0, 4))))),
        "c6 has no region with tissue",
    ),
    (
        "features of another width",
        "slides",
        h5("features/c7_0.h5", lambda f: (f.pop("features"), f.update(features=np.zeros((2, 9))))),
        "features: holds features of several widths",
    ),
    ("features without a name", "slides", "--features features", "NAME=FOLDER"),
    # runs
    ("no run", "probe", "--run nowhere", "nowhere/config.json: cannot be read"),
    (
        "a run of another version",
        "probe",
        text("run/config.json", named("speed", 9)),
        "keys speed differ from this version's",
    ),
    (
        "a run with a setting of words",
        "probe",
        text("run/config.json", named("epochs", "ten")),
        "epochs='ten' is no int",
    ),
    ("settings end early", "probe", cut("run/config.json"), "config.json: cannot be read"),
    ("the panel ends early", "probe", cut("run/panel.json"), "panel.json: cannot be read"),
    (
        "the panel is another's",
        "probe",
        text("run/panel.json", lambda t: t.replace('"ERBB2", ', "", 1)),
        "does not fit this model",
    ),
    (
        "the base is another's",
        "probe",
        text("run/base.json", named("sha256", "0" * 64)),
        "other weights here",
    ),
    ("the base is not named", "probe", text("run/base.json", "{}"), "base.json: cannot be read"),
    ("no adapter", "probe", without("run/adapter"), "adapter_model.safetensors: cannot be read"),
    (
        "the adapter ends early",
        "probe",
        cut("run/adapter/adapter_model.safetensors"),
        "adapter_model.safetensors: cannot be read",
    ),
    (
        "an adapter of another rank",
        "probe",
        text("run/config.json", named("lora_rank", 4)),
        "does not fit this model",
    ),
    ("heads end early", "probe", cut("run/heads.safetensors"), "heads.safetensors: cannot be read"),
    (
        "heads are a pickle",
        "probe",
        lambda root: torch.save({}, root / "run/heads.safetensors"),
        "heads.safetensors: cannot be read",
    ),
    (
        "nobody knows what it trained on",
        "probe",
        without("run/provenance.json"),
        "provenance.json: cannot be read",
    ),
    ("a gene outside the panel", "retrieve", "--genes NOPE", "NOPE not among the run's"),
    ("no gene", "retrieve", "--genes ,", "names nothing"),
    ("no region to retrieve", "retrieve", "--top 0", "--top"),
    ("gene sets are none", "sets", text("sets.gmt", "\n"), "sets.gmt"),
    ("gene sets of other genes", "sets", text("sets.gmt", "A\tx\tNOPE\n"), "sets.gmt"),
    ("neither run nor backbone", "bench", "--run run", "give either --run or --backbone"),
    # shards
    ("a shard ends early", "shards", cut("shards/PA1.h5"), "PA1.h5: is no shard"),
    (
        "a shard declares 4 TB",
        "shards",
        h5("shards/PA1.h5", lambda f: huge(f, "img")),
        "PA1.h5: declares",
    ),
    ("shards of other settings", "shards", "--set smooth=0.5", "smooth=0.2, not smooth=0.5"),
    ("a section without a shard", "shards", "--train ZZ9", "no shard of section 'ZZ9'"),
    ("a gene that shards lack", "shards", "--include ACTB", "has its panel"),
    # options and settings
    ("an unknown option", "finetune", "--colour red", "No such option: --colour"),
    ("an option without value", "finetune", "--seed", "--seed"),
    ("a number of words", "finetune", "--epochs ten", "--epochs"),
    ("an unknown preset", "finetune", "--preset quick", "--preset quick: unknown"),
    ("an unknown setting", "finetune", "--set speed=9", "no setting 'speed'"),
    ("a setting of words", "finetune", "--set n_genes=many", "'many' is not a int"),
    ("an unknown choice", "finetune", "--set hvg=best", "hvg='best' is unknown"),
    ("no epoch", "finetune", "--epochs 0", "epochs=0 must be above 0"),
    (
        "a temperature of nothing",
        "finetune",
        "--set temperature=nan",
        "temperature=nan must be above 0",
    ),
    ("a share above 1", "finetune", "--set smooth=3", "smooth=3.0 must be in 0 to 1"),
    ("a negative rate", "finetune", "--set lr_lora=-1", "lr_lora=-1.0 must be in"),
    ("a layer without width", "finetune", "--set hidden=32,0", "hidden=(32, 0)"),
    ("more blocks than there are", "finetune", "--set tune_blocks=99", "tune_blocks=99"),
    ("an unknown encoder", "finetune", "--backbone no_such_model", "no_such_model"),
    (
        "an encoder of other pixels",
        "crossval",
        "--backbone test_vit",
        "reads 160 px; set patch_px=160",
    ),
    ("a gene that no section has", "finetune", "--include NOPE", "NOPE is in no training section"),
    ("no seed at all", "crossval", "--seeds 0", "--seeds"),
    # where to write
    ("the folder is a file", "finetune", text("out", "mine"), "out: cannot be written"),
    (
        "the folder is below a file",
        "crossval",
        "--out legacy/phantom.json/new",
        "new: cannot be written",
    ),
    (
        "the file is a folder",
        "probe",
        lambda root: (root / "out").mkdir(),
        "out: cannot be written",
    ),
    (
        "the page is a folder",
        "check",
        lambda root: (root / "out").mkdir(),
        "out: cannot be written",
    ),
    (
        "the folder has other files",
        "finetune",
        lambda root: ((root / "out").mkdir(), (root / "out/notes").write_text("mine")),
        "out: exists and is not of this work",
    ),
    (
        "a run of other settings",
        "finetune",
        lambda root: shutil.copytree(root / "run", root / "out"),
        "holds other work",
    ),
]

REFUSED = SimpleNamespace(headers={}, status_code=401, request=None, history=[])
WORLD = [  # what is wrong around us: (fault, command, what fails, how it does, words)
    ("an unknown data set", "fetch tcga --out out", None, None, "use her2st, visium or hest"),
    (
        "an unknown section of it",
        "fetch her2st --sections Z9 --out out",
        None,
        None,
        "choose among A1",
    ),
    ("a collection without names", "fetch hest --out out", None, None, "name some, --sections"),
    (
        "no network",
        "fetch hest --sections TENX95 --out out",
        "huggingface_hub.HfApi.dataset_info",
        OSError("Name or service not known"),
        "go online",
    ),
    (
        "a token that is refused",
        "fetch hest --sections TENX95 --out out",
        "huggingface_hub.HfApi.dataset_info",
        HfHubHTTPError("401 Unauthorized", response=REFUSED),
        "hf auth login",
    ),
    (
        "no access to what is gated",
        "embed --slides slides --backbone uni --out out",
        "timm.create_model",
        GatedRepoError("403", response=REFUSED),
        "is gated; accept its terms",
    ),
    (
        "no network for an encoder",
        "embed --slides slides --backbone resnet18 --out out",
        "timm.create_model",
        OSError("unreachable"),
        "its weights cannot be fetched",
    ),
    (
        "an encoder that is not installed",
        "embed --slides slides --backbone conch --out out",
        "seal_lite.backbones._function",
        ModuleNotFoundError("no", name="conch"),
        "conch",
    ),
    (
        "a run that the hub does not have",
        "probe --run hf-hub:me/none --data legacy --train PA1 --test PB1 --json out",
        "seal_lite.model.snapshot_download",
        RepositoryNotFoundError("404", response=REFUSED),
        "hf-hub:me/none: cannot be fetched",
    ),
    (
        "no network to share",
        "share --run run --repo me/x",
        "huggingface_hub.HfApi.create_repo",
        OSError("unreachable"),
        "me/x: cannot be written",
    ),
    (
        "scores that are none",
        "share --run run --repo me/x --scores sets.gmt",
        None,
        None,
        "sets.gmt: cannot be read",
    ),
    (
        "a package that is not installed",
        "embed --slides slides --backbone tf_efficientnet_lite0 --out out",
        "seal_lite.wsi.open_slide",
        ModuleNotFoundError("no", name="tiffslide"),
        "tiffslide is not installed; pip install",
    ),
]


def write_other(folder, genes):
    """A second section whose genes are called otherwise, which trains, too."""
    truth = make_truth()
    make_h5ad(truth, genes=genes).write_h5ad(folder / "S2.h5ad")
    shutil.copy(folder / "S1.tif", folder / "S2.tif")


def twins(root):
    """PA1 under PB1's name."""
    shutil.copy(root / "data/ST-cnts/PA1.tsv.gz", root / "data/ST-cnts/PB1.tsv.gz")
    spots = root / "data/ST-spotfiles"
    shutil.copy(spots / "PA1_selection.tsv", spots / "PB1_selection.tsv")
    shutil.rmtree(root / "truth")  # real data has none


def both_sides(task):
    """Samples are slides, and one of a case's two is dealt to the other half."""
    lines = (task / "k=all.tsv").read_text().splitlines()
    row = next(i for i, line in enumerate(lines) if "c3_1" in line)
    lines[row] = lines[row].replace("train\ttest", "test\ttrain")
    (task / "k=all.tsv").write_text("\n".join(lines))
    config = yaml.safe_load((task / "config.yaml").read_text())
    (task / "config.yaml").write_text(yaml.safe_dump({**config, "sample_col": "slide_id"}))


@pytest.fixture(scope="module")
def good(tmp_path_factory, phantom_root, sections, trained):
    """A folder with everything that `COMMANDS` read, all of it right."""
    return write_everything(tmp_path_factory.mktemp("good"), phantom_root, sections, trained[0])


def arrange(good, tmp_path, command, more=""):
    """Copy what a command reads, and return its arguments."""
    args = [*COMMANDS[command].split(), *more.split()]
    for name in {"run", *(a.partition("=")[2] or a for a in args)}:
        if name in os.listdir(good):
            copy = shutil.copytree if (good / name).is_dir() else shutil.copy
            copy(good / name, tmp_path / name)
    return args


def contents(root):
    """All that is in a folder, to the byte."""
    return {p: p.read_bytes() if p.is_file() else None for p in root.rglob("*")}


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_fault_the_commands_work(cli, good, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    code, _, error = cli(*arrange(good, tmp_path, command))
    assert code == 0, error
    assert (tmp_path / "out").exists()
    assert not [p for p in tmp_path.rglob("*") if p.suffix in HIDDEN and p.parent.name != "out"]


LONG = (
    (encoders, "embed"),
    (prefix_cache.PrefixCache, "_prefix"),
    (seal.SEAL, "forward"),
    (evaluate, "embed"),
    (wsi, "embed"),
    (evaluate, "embed_stages"),
    (hest, "bench"),
    (slides, "evaluate"),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda row: row[0])
def test_a_fault_is_one_sentence_and_nothing_is_written(cli, good, tmp_path, monkeypatch, fault):
    monkeypatch.chdir(tmp_path)
    _, command, wrong, words = fault
    damage, more = wrong if isinstance(wrong, tuple) else (wrong, "")
    damage, more = (None, damage) if isinstance(damage, str) else (damage, more)
    args = arrange(good, tmp_path, command, more)
    if damage:
        damage(tmp_path)
    before = contents(tmp_path)
    for owner, name in LONG:
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("long work has begun"))
    code, told, error = cli(*args)
    said = [line for line in error.splitlines() if line.startswith("seal-lite: ")]
    assert len(said) == 1 and words in said[0], error
    assert code == 2 and "Traceback" not in error and not told.strip()
    assert len(said[0]) < 500
    assert contents(tmp_path) == before


@pytest.mark.parametrize("fault", WORLD, ids=lambda row: row[0])
def test_a_fault_of_the_world_is_one_sentence(cli, good, tmp_path, monkeypatch, fault):
    monkeypatch.chdir(tmp_path)
    _, command, place, error, words = fault

    def fail(*_, **__):
        raise error

    for name in ("run", "legacy", "slides"):
        shutil.copytree(good / name, tmp_path / name)
    shutil.copy(good / "sets.gmt", tmp_path)
    if place:
        monkeypatch.setattr(place, fail)
    before = contents(tmp_path)
    code, _, told = cli(*command.split())
    (said,) = (line for line in told.splitlines() if line.startswith("seal-lite: "))
    assert code == 2 and words in said and "Traceback" not in told, told
    assert contents(tmp_path) == before


def test_a_full_disk_is_said_and_the_run_goes_on(cli, good, tmp_path, monkeypatch):
    """No file may be larger than 300 kB for a while, as if the disk were full: no checkpoint."""
    monkeypatch.chdir(tmp_path)
    args = [*arrange(good, tmp_path, "finetune"), "--cache", "cache"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        code, _, told = cli(*args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (said,) = (line for line in told.splitlines() if line.startswith("seal-lite: "))
    assert code == 2 and "Traceback" not in told and "large" in said, told
    assert not list(tmp_path.rglob("*.part"))
    code, *_ = cli(*args)
    assert code == 0 and (tmp_path / "out/heads.safetensors").exists()


def test_the_catalogue_is_long_and_no_fault_stands_twice():
    names = [name for name, *_ in (*FAULTS, *WORLD)]
    assert len(set(names)) == len(names) >= 60
