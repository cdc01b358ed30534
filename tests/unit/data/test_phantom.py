"""The phantom: the layout of real data, reproducible bytes, and a truth that is true."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from seal_lite.data.phantom import phantom
from seal_lite.data.phantom.render import _stamp
from seal_lite.data.phantom.tissue import CELL_TYPES, gene_table, smooth_field, transcriptomes
from seal_lite.errors import InputError

SIZE = {"patients": 2, "sections_per_patient": 1, "spots": 60, "um_per_px": 1.0, "progress": False}
NAMES = ["PA1", "PB1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return phantom(tmp_path_factory.mktemp("phantom") / "root", workers=1, **SIZE)


def _counts(root, name):
    return pd.read_csv(root / f"data/ST-cnts/{name}.tsv.gz", sep="\t", index_col=0)


def _spots(root, name):
    spots = pd.read_csv(root / f"data/ST-spotfiles/{name}_selection.tsv", sep="\t")
    return spots.set_index(spots.x.astype(str) + "x" + spots.y.astype(str))


def _truth(root, name):
    truth = np.load(root / f"truth/{name}.npz")
    expected = pd.DataFrame(truth["expected"], index=truth["barcodes"], columns=truth["genes"])
    return expected, pd.Series(truth["region"], index=truth["barcodes"])


def _genes_of(visibility):
    table = gene_table()
    return list(table["gene"][table["class"] == visibility].unique())


def test_layout_is_that_of_her2st_with_its_traps(root):
    assert json.loads((root / "phantom.json").read_text())["spots"] == 60
    listed = pd.read_csv(root / "truth/genes.tsv", sep="\t", index_col="gene")
    assert set(listed["class"]) == {"visible", "subtle", "invisible", "housekeeping"}
    for name in NAMES:
        assert len(list((root / f"data/ST-imgs/{name[:2]}/{name}").glob("*.jpg"))) == 1
        spots, counts = _spots(root, name), _counts(root, name)
        columns = ["x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"]
        assert list(spots.columns) == columns and len(spots) == 60
        assert 58 <= len(counts) <= 59 and set(counts.index) < set(spots.index)
        assert set(counts.columns) < set(listed.index)
        assert counts.to_numpy().dtype.kind == "i" and (counts.to_numpy() >= 0).all()
    assert set(_counts(root, "PA1").columns) != set(_counts(root, "PB1").columns)


def test_same_bytes_whatever_the_workers(root, tmp_path):
    again = phantom(tmp_path / "again", workers=2, **SIZE)
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    for file in files:
        assert (root / file).read_bytes() == (again / file).read_bytes(), file
    assert [p.name for p in tmp_path.iterdir()] == ["again"]  # no half-written folder beside it


def test_pitch_and_scale_of_the_coordinates(root):
    for name in NAMES:
        spots = _spots(root, name)
        for axis in "xy":
            step = np.polyfit(spots[axis], spots[f"pixel_{axis}"], 1)[0]
            assert step * SIZE["um_per_px"] == pytest.approx(200.0, rel=0.005)


def test_spots_lie_on_tissue_and_the_margin_is_blank(root):
    for name in NAMES:
        (file,) = root.glob(f"data/ST-imgs/*/{name}/*.jpg")
        image = np.asarray(Image.open(file)).mean(2)
        assert image[:20].min() > 215 and image[:, -20:].min() > 215
        _, region = _truth(root, name)
        spots = _spots(root, name).loc[region.index[region != "adipose"]]  # vacuoles are white
        for x, y in spots[["pixel_x", "pixel_y"]].astype(int).to_numpy():
            assert (image[y - 50 : y + 50, x - 50 : x + 50] < 215).mean() > 0.2


def test_truth_is_aligned_sums_to_one_and_shows_in_the_counts(root):
    for name in NAMES:
        counts = _counts(root, name)
        expected, region = _truth(root, name)
        assert list(expected.index) == list(counts.index) == list(region.index)
        np.testing.assert_allclose(expected.sum(1), 1, rtol=1e-4)
        share = counts.div(counts.sum(1), axis=0)
        for visibility in ("visible", "subtle", "invisible"):
            genes = [g for g in _genes_of(visibility) if g in share]
            r = share[genes].corrwith(expected[genes]).mean()
            moved = share[genes].sample(frac=1, random_state=0).set_axis(share.index)
            assert r > 0.5 and abs(moved.corrwith(expected[genes]).mean()) < 0.3, (name, visibility)


def _explained(expected, region, genes):
    """Share of the genes' variance between the regions, above what chance gives."""
    values = expected[genes] - expected[genes].mean()
    between = values.groupby(region.to_numpy()).transform("mean").pow(2).sum().sum()
    chance = (region.nunique() - 1) / (len(region) - 1)
    return (between / values.pow(2).sum().sum() - chance) / (1 - chance)


def test_visible_genes_follow_their_region_and_invisible_ones_do_not(tmp_path):
    """On a section large enough that a smooth field is not explained by regions by chance."""
    root = phantom(tmp_path / "one", workers=1, **SIZE | {"patients": 1, "spots": 240, "seed": 3})
    expected, region = _truth(root, "PA1")
    mean = expected.groupby(region.to_numpy()).mean()
    for gene, home in {"ERBB2": "tumour", "COL1A1": "stroma", "KRT14": "gland"}.items():
        assert mean[gene].idxmax() == home
    relative = expected / expected.mean()
    visible, subtle, invisible = (
        _explained(relative, region, _genes_of(c)) for c in ("visible", "subtle", "invisible")
    )
    assert visible > 0.35 > 0.2 > max(subtle, invisible), (visible, subtle, invisible)
    # ... although all of them vary within the section
    spread = relative.std()
    for visibility in ("visible", "subtle", "invisible"):
        assert spread[_genes_of(visibility)].min() > 0.25


def test_programs_are_shares():
    genes, base, gain = transcriptomes()
    assert (base >= 0).all() and ((base + gain.min(0)) >= 0).all()
    np.testing.assert_allclose(base.sum(1), 1)
    np.testing.assert_allclose(gain.sum(1), 0, atol=1e-12)
    # with the states off, all cell types express the genes of states alike: none is a marker
    states = np.isin(genes, _genes_of("subtle") + _genes_of("invisible"))
    assert states.sum() == 28 and (np.ptp(base[:, states], axis=0) == 0).all()
    assert ((gain > 0).sum(0)[states] == 1).all()


def test_chromatin_states_differ_in_texture_only():
    for kind, cell in enumerate(CELL_TYPES):
        if cell.length:
            fine, coarse = (_stamp((kind, 0), cell, state, 0.3, 0.25) for state in (False, True))
            assert fine.shape == coarse.shape and np.array_equal(fine[1], coarse[1])
            assert fine[0].sum() == pytest.approx(coarse[0].sum(), rel=1e-4)
            assert np.abs(fine[0] - coarse[0]).max() > 0.1


def test_smooth_field_has_its_scale():
    field = smooth_field(np.random.default_rng(0), 20000.0, 200.0, 50.0)
    assert field.mean() == pytest.approx(0, abs=0.1) and field.std() == pytest.approx(1, abs=0.1)
    apart = np.mean(field[:, 8:] * field[:, :-8])  # 400 um, twice the scale
    assert apart == pytest.approx(np.exp(-1), abs=0.08)


@pytest.mark.parametrize("shift", ["stain", "regions", "batch"])
def test_another_site_differs_in_what_was_asked_and_in_nothing_else(root, tmp_path, shift):
    moved = phantom(tmp_path / "p", shift=shift, workers=1, **SIZE)
    table = pd.read_csv(moved / "sections.tsv", sep="\t")
    assert list(table) == ["section", "patient", shift] and list(table.section) == NAMES
    assert list(table[shift]) == ["first site", "second site"]

    def same(name):
        picture = f"data/ST-imgs/{name[:-1]}/{name}/HE_{name}.jpg"
        files = {
            "stain": [picture],
            "batch": [f"data/ST-cnts/{name}.tsv.gz"],
            "regions": [picture, f"data/ST-cnts/{name}.tsv.gz"],
        }
        found = {
            kind: all((moved / f).read_bytes() == (root / f).read_bytes() for f in part)
            for kind, part in files.items()
        }
        return {kind for kind, equal in found.items() if equal}

    assert same("PA1") == {"stain", "regions", "batch"}  # of the first site: as without a shift
    assert same("PB1") == {"stain": {"batch"}, "batch": {"stain"}, "regions": set()}[shift]


def test_repeating_is_cheap_and_other_content_is_an_error(root, tmp_path):
    before = (root / "phantom.json").stat().st_mtime_ns
    assert phantom(root, workers=1, **SIZE) == root
    assert (root / "phantom.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="remove"):
        phantom(root, **SIZE | {"seed": 1})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=str(tmp_path)):
        phantom(tmp_path, **SIZE)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("bad", [{"patients": 0}, {"spots": 3}, {"um_per_px": 5.0}, {"seed": -1}])
def test_bad_arguments_name_themselves(tmp_path, bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        phantom(tmp_path / "new", **SIZE | bad)
    assert not (tmp_path / "new").exists()
