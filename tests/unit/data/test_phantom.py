"""The phantom: the layout of real data, reproducible bytes, and a ground truth that is true."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from seal_lite.data.phantom import GroundTruth, phantom
from seal_lite.data.phantom.tissue import CELL_TYPES, gene_table, smooth_field, transcriptomes
from seal_lite.data.section import load_sections
from seal_lite.errors import InputError

UM_PER_PX = 2.0
SIZE = {"patients": 2, "sections_per_patient": 1, "spots": 60, "um_per_px": UM_PER_PX}
NAMES = ["PA1", "PB1"]
STATE_CLASSES = ("subtle", "invisible")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return phantom(tmp_path_factory.mktemp("phantom") / "root", **SIZE)


def read_counts(root, name):
    return pd.read_csv(root / f"data/ST-cnts/{name}.tsv.gz", sep="\t", index_col=0)


def read_spots(root, name):
    spots = pd.read_csv(root / f"data/ST-spotfiles/{name}_selection.tsv", sep="\t")
    return spots.set_index(spots.x.astype(str) + "x" + spots.y.astype(str))


def read_truth(root, name):
    """Expected shares (spots, genes) and the region of each spot, by barcode."""
    truth = np.load(root / f"truth/{name}.npz")
    expected = pd.DataFrame(truth["expected"], index=truth["barcodes"], columns=truth["genes"])
    return expected, pd.Series(truth["region"], index=truth["barcodes"])


def image_path(root, name):
    (path,) = root.glob(f"data/ST-imgs/{name[:2]}/{name}/*.jpg")
    return path


def genes_of(*classes):
    table = gene_table()
    return list(table["gene"][table["class"].isin(classes)].unique())


def files_under(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_importing_the_phantoms_package_imports_nothing_heavy():
    code = "import sys, seal_lite.data.phantom; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"numpy", "pandas", "scipy", "torch"}.isdisjoint(run.stdout.split())


def test_layout_is_that_of_her2st_with_its_traps(root):
    assert json.loads((root / "phantom.json").read_text())["spots"] == 60
    genes = pd.read_csv(root / "truth/genes.tsv", sep="\t", index_col="gene")
    assert set(genes["class"]) == {"visible", "subtle", "invisible", "housekeeping"}
    for name in NAMES:
        assert image_path(root, name).exists()
        spots = read_spots(root, name)
        columns = ["x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"]
        assert list(spots.columns) == columns
        assert len(spots) == 60
        counts = read_counts(root, name)
        assert 58 <= len(counts) <= 59
        assert set(counts.index) < set(spots.index)
        assert set(counts.columns) < set(genes.index)
        assert counts.to_numpy().dtype.kind == "i"
        assert (counts.to_numpy() >= 0).all()
    assert set(read_counts(root, "PA1").columns) != set(read_counts(root, "PB1").columns)


def test_bytes_do_not_depend_on_the_number_of_threads(root, tmp_path, monkeypatch):
    monkeypatch.setattr("seal_lite.data.phantom.sections.WORKERS", 1)
    alone = phantom(tmp_path / "alone", **SIZE)
    assert files_under(alone) == files_under(root)
    assert [path.name for path in tmp_path.iterdir()] == ["alone"]  # no partial folder beside it


def test_pitch_and_scale_of_the_coordinates(root):
    for name in NAMES:
        spots = read_spots(root, name)
        for axis in "xy":
            px_per_step, _ = np.polyfit(spots[axis], spots[f"pixel_{axis}"], 1)
            assert px_per_step * UM_PER_PX == pytest.approx(200.0, rel=0.005)


def test_spots_lie_on_tissue_and_the_margin_is_blank(root):
    margin = round(20 / UM_PER_PX)
    radius = round(50 / UM_PER_PX)  # of a spot
    for name in NAMES:
        brightness = np.asarray(Image.open(image_path(root, name))).mean(2)
        assert brightness[:margin].min() > 215
        assert brightness[:, -margin:].min() > 215
        _, region = read_truth(root, name)
        solid = region.index[region != "adipose"]  # vacuoles are white
        centres = read_spots(root, name).loc[solid, ["pixel_x", "pixel_y"]].astype(int)
        for x, y in centres.to_numpy():
            under_spot = brightness[y - radius : y + radius, x - radius : x + radius]
            assert (under_spot < 215).mean() > 0.2


def test_truth_is_aligned_sums_to_one_and_shows_in_the_counts(root):
    for name in NAMES:
        counts = read_counts(root, name)
        expected, region = read_truth(root, name)
        assert list(expected.index) == list(counts.index)
        assert list(region.index) == list(counts.index)
        np.testing.assert_allclose(expected.sum(1), 1, rtol=1e-4)
        share = counts.div(counts.sum(1), axis=0)
        for visibility in ("visible", *STATE_CLASSES):
            genes = [gene for gene in genes_of(visibility) if gene in share]
            r = share[genes].corrwith(expected[genes]).mean()
            shuffled = share[genes].sample(frac=1, random_state=0).set_axis(share.index)
            r_shuffled = shuffled.corrwith(expected[genes]).mean()
            assert r > 0.5, (name, visibility)
            assert abs(r_shuffled) < 0.3, (name, visibility)


def test_ground_truth_is_read_by_barcode_and_gene(root):
    """In the order of a section's patches, whatever the order of the spots on disk."""
    truth = GroundTruth.find(root)
    assert set(truth.classes) == set(genes_of("visible", *STATE_CLASSES))
    expected, region = read_truth(root, "PA1")
    barcodes = expected.index[::-1]
    adata = SimpleNamespace(obs_names=barcodes)
    section = SimpleNamespace(name="PA1", adata=adata, rows=np.array([3, 0]))
    shares = truth.expected(section, ["KRT14", "NOSUCHGENE", "ERBB2"])
    assert (shares[:, 1] == 0).all()
    of_patches = barcodes[[3, 0]]
    np.testing.assert_array_equal(shares[:, [0, 2]], expected.loc[of_patches, ["KRT14", "ERBB2"]])
    assert list(truth.regions(section)) == list(region[of_patches])


def damaged_truth(root, folder, **changes):
    """The truth of PA1 with some arrays replaced; None leaves one out."""
    shutil.copytree(root / "truth", folder / "truth")
    path = folder / "truth/PA1.npz"
    with np.load(path) as file:
        arrays = {**file, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return GroundTruth.find(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"barcodes": None}, "cannot be read"),
        ({"barcodes": np.array(["A", "B"])}, "region is"),
        ({"expected": np.full((3, 3), np.nan)}, "expected is"),
        ({"region": np.array([{}], object)}, "cannot be read"),
    ],
)
def test_a_damaged_truth_is_named(root, tmp_path, changes, message):
    truth = damaged_truth(root, tmp_path, **changes)
    (section,) = load_sections(root, ["PA1"], patch_um=64, patch_px=16)
    with pytest.raises(InputError, match=rf"PA1\.npz: {message}.*write the phantom again"):
        truth.expected(section, ["ERBB2"])


def test_a_truth_that_is_not_finite_or_lacks_a_patch_is_named(root, tmp_path):
    (section,) = load_sections(root, ["PA1"], patch_um=64, patch_px=16)
    with np.load(root / "truth/PA1.npz") as file:
        expected, barcodes = file["expected"], file["barcodes"]
    expected[0, 0] = np.nan
    truth = damaged_truth(root, tmp_path / "nan", expected=expected)
    with pytest.raises(InputError, match="expected has NaN"):
        truth.expected(section, ["ERBB2"])
    others = np.array([f"{barcode}x" for barcode in barcodes])
    truth = damaged_truth(root, tmp_path / "others", barcodes=others)
    with pytest.raises(InputError, match="has no barcode"):
        truth.regions(section)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("visible", "1", r"class\[\d+\]='1' must be one of visible"),
        ("ERBB2", "GRB7", "'GRB7' is there twice"),
        ("class", "kind", "class is missing"),
    ],
)
def test_classes_of_genes_are_checked(root, tmp_path, old, new, message):
    shutil.copytree(root / "truth", tmp_path / "truth")
    path = tmp_path / "truth/genes.tsv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        GroundTruth.find(tmp_path)


def test_a_table_of_classes_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "truth/genes.tsv"
    path.parent.mkdir()
    path.write_bytes(b"\xff\x00")
    with pytest.raises(InputError, match=r"genes\.tsv: cannot be read .*; write the phantom again"):
        GroundTruth.find(tmp_path)


def test_real_data_have_no_ground_truth(tmp_path):
    assert GroundTruth.find(tmp_path) is None


@pytest.fixture(scope="module")
def large_section(tmp_path_factory):
    """Relative expected expression, and the regions of its spots.

    Large enough that regions do not explain a smooth field by chance.
    """
    out = tmp_path_factory.mktemp("large") / "p"
    root = phantom(out, **SIZE | {"patients": 1, "spots": 240, "seed": 3})
    expected, region = read_truth(root, "PA1")
    return expected / expected.mean(), region


def variance_between(region, values):
    """The share of variance that lies between regions, above what chance gives."""
    values = values - values.mean()
    between = values.groupby(region.to_numpy()).transform("mean").pow(2).sum().sum()
    share = between / values.pow(2).sum().sum()
    chance = (region.nunique() - 1) / (len(region) - 1)
    return (share - chance) / (1 - chance)


def test_visible_genes_follow_their_region_and_those_of_states_do_not(large_section):
    relative, region = large_section
    mean = relative.groupby(region.to_numpy()).mean()
    for gene, home in {"ERBB2": "tumour", "COL1A1": "stroma", "KRT14": "gland"}.items():
        assert mean[gene].idxmax() == home
    assert variance_between(region, relative[genes_of("visible")]) > 0.35
    for visibility in STATE_CLASSES:
        assert variance_between(region, relative[genes_of(visibility)]) < 0.2


def test_genes_of_every_class_vary_within_a_section(large_section):
    relative, _ = large_section
    for visibility in ("visible", *STATE_CLASSES):
        assert relative[genes_of(visibility)].std().min() > 0.25


def test_programs_are_shares():
    _, base, gain = transcriptomes()
    assert (base >= 0).all()
    assert (base + gain.min(0) >= 0).all()
    np.testing.assert_allclose(base.sum(1), 1)
    np.testing.assert_allclose(gain.sum(1), 0, atol=1e-12)


def test_genes_of_states_mark_no_cell_type():
    """With the states off, all cell types express them alike; each follows one state."""
    genes, base, gain = transcriptomes()
    follows_state = np.isin(genes, genes_of(*STATE_CLASSES))
    assert follows_state.sum() == 28
    assert (np.ptp(base[:, follows_state], axis=0) == 0).all()
    assert ((gain > 0).sum(0)[follows_state] == 1).all()


@pytest.mark.parametrize("kind", range(len(CELL_TYPES)), ids=[cell.name for cell in CELL_TYPES])
def test_chromatin_states_differ_in_texture_only(kind):
    from seal_lite.data.phantom.render import draw_stamp

    cell = CELL_TYPES[kind]
    fine, coarse = (
        draw_stamp((kind, 0), cell, coarse=state, turn=0.3, um=0.25) for state in (False, True)
    )
    np.testing.assert_array_equal(fine[1], coarse[1])  # eosin
    assert fine[0].sum() == pytest.approx(coarse[0].sum(), rel=1e-4)
    has_nucleus = cell.length > 0
    assert (np.abs(fine[0] - coarse[0]).max() > 0.1) == has_nucleus


def test_smooth_field_has_its_scale():
    field = smooth_field(np.random.default_rng(0), 20000.0, 200.0, step=50.0)
    assert field.mean() == pytest.approx(0, abs=0.1)
    assert field.std() == pytest.approx(1, abs=0.1)
    at_twice_the_scale = np.mean(field[:, 8:] * field[:, :-8])  # 400 um
    assert at_twice_the_scale == pytest.approx(np.exp(-1), abs=0.08)


@pytest.mark.parametrize(
    "shift, same", [("stain", {"counts"}), ("regions", set()), ("batch", {"image"})]
)
def test_another_site_differs_in_the_shift_and_in_nothing_else(root, tmp_path, shift, same):
    shifted = phantom(tmp_path / "p", shift=shift, **SIZE)
    table = pd.read_csv(shifted / "sections.tsv", sep="\t")
    assert list(table) == ["section", "patient", shift]
    assert list(table.section) == NAMES
    assert list(table[shift]) == ["first site", "second site"]

    def same_files(name):
        files = {"image": image_path(root, name), "counts": root / f"data/ST-cnts/{name}.tsv.gz"}
        return {
            kind
            for kind, path in files.items()
            if path.read_bytes() == (shifted / path.relative_to(root)).read_bytes()
        }

    assert same_files("PA1") == {"image", "counts"}  # of the first site: as without a shift
    assert same_files("PB1") == same


def test_a_phantom_that_is_there_stays(root):
    before = (root / "phantom.json").stat().st_mtime_ns
    assert phantom(root, **SIZE) == root
    assert (root / "phantom.json").stat().st_mtime_ns == before


def test_a_folder_with_other_content_is_an_error(root, tmp_path):
    with pytest.raises(InputError, match="remove"):
        phantom(root, **SIZE | {"seed": 1})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=str(tmp_path)):
        phantom(tmp_path, **SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "bad",
    [{"patients": 0}, {"spots": 3}, {"um_per_px": 5.0}, {"seed": -1}, {"shift": "age"}],
    ids=lambda bad: next(iter(bad)),
)
def test_arguments_out_of_range_are_named(tmp_path, bad):
    (argument,) = bad
    with pytest.raises(InputError, match=argument):
        phantom(tmp_path / "new", **SIZE | bad)
    assert not (tmp_path / "new").exists()
