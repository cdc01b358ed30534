"""What can be wrong with splits, HEST-bench tasks, slides, and slide-level tasks."""

import h5py
import numpy as np
import pandas as pd
import yaml
from faults import (
    all_of,
    check_fault,
    copy,
    copy_pa1_to_pb1,
    declare_terabytes,
    each_fault,
    edit,
    edit_h5,
    fault_table,
    make_folder,
    remove,
    replace,
    truncate,
    write,
)
from PIL import Image

GENES = "bench/TINY/var_50genes.json"
TABLE = "task/k=all.tsv"
CONFIG = "task/config.yaml"


def edit_counts(name, change):
    """The counts of a section are changed."""

    def damage(root):
        path = root / f"legacy/data/ST-cnts/{name}.tsv.gz"
        change(pd.read_csv(path, sep="\t", index_col=0)).to_csv(path, sep="\t")

    return damage


def edit_truth(change):
    """The ground truth of PB1 is changed."""

    def damage(root):
        path = root / "legacy/truth/PB1.npz"
        with np.load(path) as file:
            arrays = dict(file)
        change(arrays)
        np.savez(path, **arrays)

    return damage


def split_a_case(root):
    """Samples are slides, and one of a case's two slides is in the other half of the fold."""
    lines = (root / TABLE).read_text().splitlines()
    row = next(i for i, line in enumerate(lines) if "c3_1" in line)
    lines[row] = lines[row].replace("train\ttest", "test\ttrain")
    (root / TABLE).write_text("\n".join(lines))
    config = yaml.safe_load((root / CONFIG).read_text())
    (root / CONFIG).write_text(yaml.safe_dump({**config, "sample_col": "slide_id"}))


def set_features(name, shape):
    """The features of a slide have this shape."""

    def change(file):
        del file["features"]
        file["features"] = np.zeros(shape)

    return edit_h5(f"features/{name}.h5", change)


def spoil_features(name):
    """One feature of a slide is no number."""

    def change(file):
        file["features"][..., 3, 1] = np.nan

    return edit_h5(f"features/{name}.h5", change)


def write_channels(root):
    """A slide of fluorescence."""
    import tifffile

    channels = np.zeros((5, 64, 64), np.uint8)
    axes = {"axes": "CYX"}
    tifffile.imwrite(root / "slides/f.tif", channels, photometric="minisblack", metadata=axes)


def write_screen_shot(root):
    """A TIFF whose writer gave it the 72 dots per inch of a screen."""
    import tifffile

    tifffile.imwrite(
        root / "slides/f.tif",
        np.zeros((64, 64, 3), np.uint8),
        photometric="rgb",
        resolution=(72, 72),
        resolutionunit="INCH",
    )


def write_coords(corners, **attributes):
    """Coordinates of the patches of slide s, as another program writes them."""

    def damage(root):
        (root / "coords").mkdir()
        with h5py.File(root / "coords/s.h5", "w") as file:
            file["coords"] = np.array(corners)
            file["coords"].attrs.update(attributes)

    return damage


def share_patches(root):
    """Both samples name the patches of one."""
    for path in (root / "bench/TINY/splits").glob("*.csv"):
        path.write_text(path.read_text().replace("patches/PA1", "patches/PB1"))


COORDS = "--coords coords"
ONE_PATIENT = "section\tpatient\nPA1\tA\nPB1\tA\n"

FAULTS = [
    *fault_table(
        "crossval",
        ("one section only", "--sections PA1", "--groups section: all sections belong to 'PA1'"),
        (
            "one patient only",
            (write("legacy/sections.tsv", ONE_PATIENT), "--groups patient"),
            "--groups patient: all sections belong to 'A'",
        ),
        ("sections without a group", "--groups organ", "--groups organ: section PA1 has no organ"),
        ("an unknown section of a split", "--sections PA1,ZZ9", "no section 'ZZ9'"),
        ("more groups than there are", "--train-groups 2", "leave some to test"),
        ("a fold smaller than a batch", "--set batch_size=100", "fewer than batch_size=100"),
        (
            "a test section lacks a gene",
            edit_counts("PA1", lambda counts: counts.drop(columns="ERBB2")),
            "section PA1: gene ERBB2",
        ),
        ("twins under two names", copy_pa1_to_pb1, "PA1 and PB1 have the same counts"),
    ),
    *fault_table(
        "finetune",
        ("fewer pairs than a batch", "--set batch_size=500", "fewer than batch_size=500"),
    ),
    *fault_table(
        "probe",
        ("tested on what it trained on", "--test PA1", "PA1: also in"),
        ("an unknown test section", "--test ZZ9", "no section 'ZZ9'"),
        (
            "a truth without barcodes",
            edit_truth(lambda arrays: arrays.pop("barcodes")),
            "PB1.npz: cannot be read",
        ),
        (
            "a truth of other spots",
            edit_truth(lambda arrays: arrays.update(barcodes=np.char.add(arrays["barcodes"], "x"))),
            "PB1.npz: has no barcode",
        ),
        (
            "a truth of fewer spots",
            edit_truth(lambda arrays: arrays.update(expected=arrays["expected"][:3])),
            "PB1.npz: expected is",
        ),
        (
            "a truth that would be unpickled",
            edit_truth(lambda arrays: arrays.update(expected=arrays["expected"].astype(object))),
            "PB1.npz: cannot be read",
        ),
        (
            "a truth of NaN",
            edit_truth(lambda arrays: arrays.update(expected=arrays["expected"] * np.nan)),
            "PB1.npz: expected has NaN",
        ),
        (
            "the panel's genes are absent",
            edit_counts("PB1", lambda counts: counts.add_prefix("X")),
            "section PB1: gene ERBB2",
        ),
    ),
    *fault_table(
        "bench",
        (
            "a sample in both halves",
            replace("bench/TINY/splits/test_0.csv", "PB1", "PA1"),
            "sample PA1 also trains",
        ),
        (
            "a split without its other half",
            remove("bench/TINY/splits/test_0.csv"),
            "test_0.csv: cannot be read",
        ),
        ("a sample's file is gone", remove("bench/TINY/adata/PB1.h5ad"), "PB1.h5ad: is missing"),
        (
            "a sample's patches end early",
            truncate("bench/TINY/patches/PB1.h5"),
            "PB1.h5: has no img",
        ),
        (
            "a sample with other files in another fold",
            replace("bench/TINY/splits/train_1.csv", "/PB1.h5", "/PA1.h5"),
            "sample PB1 has other files than in another fold",
        ),
        (
            "two samples of one file",
            share_patches,
            "PB1.h5: is the file of samples PA1 and PB1",
        ),
        (
            "a sample twice in one half",
            edit("bench/TINY/splits/test_0.csv", lambda text: text + text.splitlines()[-1]),
            "sample PB1 is there twice",
        ),
        (
            "a half without samples",
            edit("bench/TINY/splits/test_0.csv", lambda text: text.splitlines()[0]),
            "test_0.csv: has no sample",
        ),
        ("a task's name that is a path", "--tasks ../bench/TINY", "is a path; give the name of a"),
        ("genes are no list", write(GENES, "[]"), "restore its list 'genes'"),
        ("a gene that no one counted", write(GENES, '{"genes": ["NOPE"]}'), "gene NOPE is missing"),
        ("an unknown task", "--tasks IDC", "IDC: has no folder splits"),
        ("a folder without tasks", "--root legacy", "legacy: holds no task"),
        ("both run and backbone", "--backbone resnet18", "give either --run or --backbone"),
    ),
    *fault_table(
        "embed",
        ("no slide", all_of(remove("slides"), make_folder("slides")), "slides: holds no slide"),
        ("two slides of one name", copy("slides/s.tif", "slides/s.svs"), "is called as"),
        (
            "a slide without scale",
            lambda root: Image.new("RGB", (99, 99)).save(root / "slides/z.png"),
            "z.png: does not state its um per px",
        ),
        (
            "a damaged slide behind a good one",
            write("slides/t.tif", "tiff"),
            "t.tif: cannot be read",
        ),
        (
            "slides of another format only",
            all_of(remove("slides"), make_folder("slides"), write("slides/a.czi", "x")),
            "a.czi: cannot be read; convert them to TIFF",
        ),
        ("a damaged slide of a scanner", write("slides/a.mrxs", "x"), "a.mrxs: "),
        ("a slide of five channels", write_channels, "(C 5); convert it to 8-bit RGB"),
        ("a screen's resolution", write_screen_shot, "states 352.8 um per px, not believed"),
        (
            "a patch that the transformer does not read",
            "--backbone test_vit --patch-um 256",
            "test_vit: 256 um are 183 px at 1.4 um per px, which it does not read",
        ),
        ("no coords of a slide", "--coords task", "task: has no s.h5; give the folder of its"),
        (
            "coords without an edge",
            (write_coords([[0, 0]], patch_size=256), COORDS),
            "s.h5: its coords have no attribute level0_magnification; add patch_size_level0",
        ),
        (
            "coords of other patches",
            (write_coords([[0, 0]], patch_size_level0=10), COORDS),
            "not the 224 um that are embedded; make coords of that size, or give --patch-um",
        ),
        (
            "coords that are no pairs",
            (write_coords([0, 0, 0], patch_size_level0=10), COORDS),
            "s.h5: holds no coords of patches",
        ),
        (
            "coords without an end to their overlap",
            (write_coords([[0, 0]], patch_size_level0=320, overlap=np.inf), COORDS),
            "s.h5: coords.overlap=",
        ),
        (
            "damaged coords",
            (all_of(make_folder("coords"), write("coords/s.h5", "x")), COORDS),
            "s.h5: holds no coords of patches",
        ),
        ("a scale of 0", "--um-per-px 0", "--um-per-px"),
        ("a patch of no width", "--patch-um 0", "--patch-um"),
    ),
    *fault_table(
        "slides",
        ("labels of one class", replace(TABLE, "wildtype", "mutant"), "one class"),
        ("no label", replace(TABLE, "status", "other"), "column status is missing"),
        (
            "a label is empty",
            replace(TABLE, "\tmutant\t", "\t\t", 1),
            "the status of row 4 is empty",
        ),
        (
            "a case with two labels",
            replace(TABLE, "c3_1\tmutant", "c3_1\twild"),
            "c3 has two values of status",
        ),
        (
            "a misspelt half of a fold",
            replace(TABLE, "\ttrain\t", "\ttrian\t", 1),
            "must be train, val, test or empty",
        ),
        ("a case on both sides", split_a_case, "is on both sides of fold"),
        ("a task's settings are damaged", write(CONFIG, "a: [1"), "config.yaml: cannot be read"),
        (
            "a task that would run code",
            write(CONFIG, "!!python/object/apply:os.mkdir [out]"),
            "config.yaml: cannot be read",
        ),
        ("no task", "--task nowhere", "nowhere: is no task, for it has no config.yaml"),
        ("features are gone", remove("features/c7_0.h5"), "c7_0.h5; embed that slide there"),
        ("a feature is NaN", spoil_features("c7_0"), "c7_0.h5: a feature is NaN or infinite"),
        ("features end early", truncate("features/c7_0.h5"), "c7_0.h5"),
        (
            "features declare 4 TB",
            declare_terabytes("features/c7_0.h5", "features"),
            "c7_0.h5: declares",
        ),
        ("a slide without tissue", set_features("c6_0", (0, 4)), "c6 has no patch on tissue"),
        ("TRIDENT found no tissue", set_features("c6_0", (0,)), "c6 has no patch on tissue"),
        ("features of another width", set_features("c7_0", (2, 9)), "features of several widths"),
        ("features without a name", "--features features", "NAME=FOLDER"),
    ),
]


@each_fault(FAULTS)
def test_a_fault_is_one_line_and_nothing_is_written(cli, good, tmp_path, monkeypatch, fault):
    check_fault(cli, good, tmp_path, monkeypatch, fault)
