"""Data that name, link or are other files than their own: an attack is one line, exit code 2."""

import json
import lzma
import os
import shutil

import h5py
import numpy as np
import pytest
from faults import (
    Fault,
    all_of,
    check_fault,
    each_fault,
    edit,
    edit_h5,
    fault_table,
    replace,
    write,
)

SECRET = "secret.h5"  # beside the folder that the command is given
OUTSIDE = "which is outside of"
PIPE = "is a pipe, a socket or a device"
IMAGE = "legacy/data/ST-imgs/PA/PA1/HE_PA1.jpg"
MATRIX = "visium/S1/filtered_feature_bc_matrix.h5"

POSITIONS = "visium/S1/spatial/tissue_positions.csv"


def name_image(folder, path, section="S1"):
    """sections.tsv names an image."""
    return write(f"{folder}/sections.tsv", f"section\timage\n{section}\t{path}\n")


def make_pipe(path, *, into=None):
    """The file is a pipe, which nobody writes to; `into` gives it another name."""

    def damage(root):
        (root / path).unlink()
        os.mkfifo(root / (into or path))

    return damage


def link_device(path):
    """The file is a link to an endless device."""

    def damage(root):
        (root / path).unlink()
        (root / path).symlink_to("/dev/zero")

    return damage


def move_out(path, dataset):
    """A dataset is a link to a file outside of the folder, which holds the same."""

    def damage(root):
        with h5py.File(root / path, "a") as file, h5py.File(root / SECRET, "w") as secret:
            file.copy(dataset, secret, name="x")
            del file[dataset]
            file[dataset] = h5py.ExternalLink(str(root / SECRET), "x")

    return damage


def store_outside(path, dataset):
    """A dataset has its bytes in another file, and declares more than all disks hold."""

    def change(file):
        del file[dataset]
        external = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
        file.create_dataset(dataset, (2**40,), "u1", external=external)

    return edit_h5(path, change)


def link_chunks(root):
    """A folder of a Zarr store is a link that leads out of it."""
    inside = root / "zarr/S1.zarr/tables/table/X"
    inside.rename(root / "elsewhere")
    inside.symlink_to(root / "elsewhere")


def point_out_of_store(root):
    """An OME-Zarr image names levels outside of its folder, where they are."""
    (path,) = (root / "zarr/S1.zarr/images/he").glob("*.json")
    text = json.loads(path.read_text())
    for level in text["attributes"]["ome"]["multiscales"][0]["datasets"]:
        shutil.copytree(path.parent / level["path"], root / level["path"])
        level["path"] = f"../../../../{level['path']}"
    path.write_text(json.dumps(text))


def declare_gigabytes(path):
    """An array of a Zarr store declares 6 GB, in one piece that nobody wrote."""

    def damage(root):
        text = json.loads((root / path).read_text())
        length = 8 * 10**8
        text["shape"] = [length]
        text["chunk_grid"]["configuration"]["chunk_shape"] = [length]
        (root / path).write_text(json.dumps(text))
        shutil.rmtree((root / path).with_name("c"))

    return damage


def pack(path, text):
    """The text file is packed, and unpacks to far more than it holds."""

    def damage(root):
        (root / path).unlink()
        (root / f"{path}.xz").write_bytes(lzma.compress(text.encode() * 10**7))

    return damage


def feature_of_other_slide(name):
    return replace("task/k=all.tsv", "c7_0", name)


def unfold(text):
    """The settings, behind aliases that stand for 10^6 entries."""
    lines = ["a0: &a0 {x: 1}"]
    for i in range(1, 7):
        copies = ", ".join([f"*a{i - 1}"] * 10)
        lines.append(f"a{i}: &a{i} {{<<: [{copies}]}}")
    return "\n".join([*lines, text])


FAULTS = [
    *fault_table(
        "finetune",
        ("an image above the folder", name_image("legacy", "../x.jpg", "PA1"), OUTSIDE),
        ("an image anywhere", name_image("legacy", "/etc/passwd", "PA1"), OUTSIDE),
        ("an image on the way up", name_image("legacy", "data/../../x.jpg", "PA1"), OUTSIDE),
        (
            "an image with control characters",
            name_image("legacy", "\x1b[31m\u202e.jpg", "PA1"),
            r"\x1b[31m\u202e.jpg: no such image",
        ),
        ("an image is a pipe", make_pipe(IMAGE), PIPE),
        ("an image is a device", link_device(IMAGE), PIPE),
        ("counts are a pipe", make_pipe("legacy/data/ST-cnts/PA1.tsv.gz"), PIPE),
        (
            "sections.tsv is a pipe",
            all_of(name_image("legacy", "x", "PA1"), make_pipe("legacy/sections.tsv")),
            PIPE,
        ),
    ),
    *fault_table(
        "h5ad",
        ("counts lie in another file", move_out("h5ad/S1.h5ad", "X"), "X lies in another file"),
        ("a matrix lies anywhere", store_outside("h5ad/S1.h5ad", "X/data"), "in another file"),
        ("AnnData is a pipe", make_pipe("h5ad/S1.h5ad"), PIPE),
    ),
    *fault_table(
        "visium",
        ("10x counts lie in another file", move_out(MATRIX, "matrix/data"), "in another file"),
        ("10x counts are a pipe", make_pipe(MATRIX), PIPE),
        ("positions are a bomb", pack(POSITIONS, "0,0\n"), "tissue_positions.csv.xz: unpacks to"),
        ("positions are a pipe", make_pipe(POSITIONS), PIPE),
    ),
    *fault_table(
        "xenium",
        ("transcripts are a pipe", make_pipe("xenium/S1/transcripts.parquet"), PIPE),
        ("the experiment is a pipe", make_pipe("xenium/S1/experiment.xenium"), PIPE),
    ),
    *fault_table(
        "zarr",
        ("a store links to the outside", link_chunks, "X: is a link that leads out of its store"),
        (
            "a store's table declares gigabytes",
            declare_gigabytes("zarr/S1.zarr/tables/table/obs/spot/zarr.json"),
            "S1.zarr: declares",
        ),
        ("a store's image lies outside", point_out_of_store, "S1.zarr"),
        ("an image beside the store", name_image("zarr", "../x.zarr/images/he"), OUTSIDE),
    ),
    *fault_table(
        "hest",
        ("metadata are a pipe", make_pipe("hest/metadata/S1.json"), PIPE),
    ),
    *fault_table(
        "ready",
        ("patches lie in another file", move_out("ready/patches/S1.h5", "img"), "another file"),
    ),
    *fault_table(
        "shards",
        ("a shard's patches lie elsewhere", move_out("shards/PA1.h5", "img"), "another file"),
        ("a shard is a pipe", make_pipe("shards/PA1.h5"), PIPE),
        ("a panel is a pipe", make_pipe("shards/panel.json"), PIPE),
    ),
    *fault_table(
        "probe",
        ("heads are a pipe", make_pipe("run/heads.safetensors"), PIPE),
        ("settings are a pipe", make_pipe("run/config.json"), PIPE),
    ),
    *fault_table(
        "sets",
        ("gene sets are a pipe", make_pipe("sets.gmt"), PIPE),
    ),
    *fault_table(
        "bench",
        (
            "a split names patches above",
            replace("bench/TINY/splits/test_0.csv", "patches/", "../../patches/"),
            OUTSIDE,
        ),
        (
            "a split names counts anywhere",
            replace("bench/TINY/splits/train_1.csv", "adata/PB1.h5ad", "/etc/passwd"),
            OUTSIDE,
        ),
        (
            "a sample's patches lie elsewhere",
            move_out("bench/TINY/patches/PB1.h5", "img"),
            "another file",
        ),
        ("a list of genes is a pipe", make_pipe("bench/TINY/var_50genes.json"), PIPE),
    ),
    *fault_table(
        "slides",
        ("settings that unfold", edit("task/config.yaml", unfold), "config.yaml: cannot be read"),
        (
            "settings nested without end",
            write("task/config.yaml", "[" * 10**5),
            "config.yaml: cannot be read",
        ),
        (
            "settings of a megabyte",
            edit("task/config.yaml", lambda text: text + "# x\n" * 10**6),
            "config.yaml: cannot be read",
        ),
        ("a slide_id leads up", feature_of_other_slide("../features/c7_0"), OUTSIDE),
        ("a slide_id leads anywhere", feature_of_other_slide("/etc/c7_0"), OUTSIDE),
        ("features lie in another file", move_out("features/c7_0.h5", "features"), "another file"),
        ("features lie anywhere", store_outside("features/c7_0.h5", "features"), "another file"),
    ),
    *fault_table(
        "embed",
        ("a slide is a pipe", make_pipe("slides/s.tif"), PIPE),
        ("a scanner's slide is a pipe", make_pipe("slides/s.tif", into="slides/s.svs"), PIPE),
        ("a slide for openslide is a pipe", make_pipe("slides/s.tif", into="slides/s.bif"), PIPE),
        ("a slide is a device", link_device("slides/s.tif"), PIPE),
    ),
]


@each_fault(FAULTS)
def test_a_fault_is_one_line_and_nothing_is_written(cli, good, tmp_path, monkeypatch, fault):
    check_fault(cli, good, tmp_path, monkeypatch, fault)


@pytest.mark.parametrize("option", ["--json", "--out"])
def test_nothing_is_written_into_a_device_or_pipe(cli, good, tmp_path, option):
    os.mkfifo(tmp_path / "pipe")
    commands = {
        "--json": ["slide-bench", "--task", good / "task", "--features", f"a={good / 'features'}"],
        "--out": ["check", "--data", good / "legacy"],
    }
    code, _, error = cli(*commands[option], option, tmp_path / "pipe")
    assert (code, "pipe: cannot be written" in error) == (2, True)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("command", "small", "file"),  # small: bytes of memory that are free
    [
        ("finetune", 100, "PA1.tsv.gz: holds"),
        ("h5ad", 100, "S1.h5ad: declares"),
        ("visium", 100, "filtered_feature_bc_matrix.h5: declares"),
        ("xenium", 10, "experiment.xenium: takes up to"),
        ("xenium", 1000, "transcripts.parquet: declares"),
        ("zarr", 100, "S1.zarr: declares"),
        ("ready", 10**5, "S1.h5: declares"),
        ("slides", 100, "k=all.tsv: holds"),
        ("probe", 100, "config.json: takes up to"),
    ],
)
def test_what_exceeds_the_memory_is_not_read(
    cli, good, tmp_path, monkeypatch, command, small, file
):
    monkeypatch.setattr("seal_lite.io.free_memory", lambda: small)
    fault = Fault("little memory", command, None, "", file)
    check_fault(cli, good, tmp_path, monkeypatch, fault)


def test_features_that_exceed_the_memory_are_not_read(cli, good, tmp_path, monkeypatch):
    def enlarge(file):
        features = file["features"]
        file["large"] = np.zeros((10_000, features.shape[-1]), np.float32)
        file.move("features", "small")
        file.move("large", "features")

    monkeypatch.setattr("seal_lite.io.free_memory", lambda: 10**5)
    damage = edit_h5("features/c0_0.h5", enlarge)
    fault = Fault("little memory", "slides", damage, "", "c0_0.h5: declares")
    check_fault(cli, good, tmp_path, monkeypatch, fault)
