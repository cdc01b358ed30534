"""Pairs on disk are those in memory; shards of different data never mix."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import TINY

from seal_lite.errors import InputError


@pytest.fixture(scope="module")
def panel(sections):
    from seal_lite.data.genes import GenePanel

    return GenePanel.fit([section.adata for section in sections], n_genes=TINY.n_genes)


@pytest.fixture(scope="module")
def folder(sections, panel, tmp_path_factory):
    from seal_lite.data.shards import write_shards

    folder = tmp_path_factory.mktemp("shards")
    write_shards(iter(sections), folder, panel=panel, config=TINY)
    return folder


def test_shards_hold_what_sections_hold(sections, panel, folder):
    from seal_lite.data.shards import read_shards

    shards, stored_panel = read_shards(folder, TINY)
    assert stored_panel.genes == panel.genes
    assert [shard.name for shard in shards] == [section.name for section in sections]
    for shard, section in zip(shards, sections, strict=True):
        assert shard.digest == section.digest
        assert [shard.key(i) for i in shard.rows] == section.keys
        np.testing.assert_array_equal(shard.patches[:], section.patches)
        rows = shard.expression(panel)
        expected = section.expression(panel)
        np.testing.assert_array_equal([rows[i] for i in shard.rows], expected)  # to the bit
        n_above_lowest = (expected > expected.min(0)).sum()
        assert len(rows.data) == n_above_lowest < expected.size  # stored sparsely


def test_sections_are_sharded_as_they_are_loaded(sections, tmp_path):
    """From counts alone: panel and patches are those that training makes in memory."""
    from seal_lite.data.genes import GenePanel
    from seal_lite.data.shards import read_shards, shard_sections

    adatas = [section.adata for section in sections]
    shard_sections(adatas, TINY, tmp_path, include=["ACTB"])
    shards, stored_panel = read_shards(tmp_path, TINY, names=["PB1"])
    expected = GenePanel.from_config(sections, TINY, include=["ACTB"])
    assert stored_panel.genes == expected.genes
    assert stored_panel.genes[0] == "ACTB"
    assert [shard.digest for shard in shards] == [sections[1].digest]


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", ".x", "\x1b[31m"])
def test_a_section_of_any_name_is_a_file_of_the_folder(sections, panel, tmp_path, name):
    from seal_lite.data.section import Section
    from seal_lite.data.shards import read_shards, write_shards

    adata = sections[0].adata.copy()
    adata.uns["section_id"] = name
    section = Section(adata, sections[0].rows, sections[0].patches)
    folder = tmp_path / "a/b/shards"
    (path,) = write_shards([section], folder, panel=panel, config=TINY)
    assert path.parent == folder
    assert {file.parent for file in tmp_path.rglob("*") if file.is_file()} == {folder}
    ((shard,), _) = read_shards(folder, TINY, names=[name])
    assert shard.name == name


def test_shards_that_are_there_stay(sections, panel, folder):
    from seal_lite.data.shards import write_shards

    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    assert len(write_shards(sections, folder, panel=panel, config=TINY)) == 2
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    assert after == before


def test_shards_of_other_data_are_never_mixed(sections, panel, folder):
    from seal_lite.data.genes import GenePanel
    from seal_lite.data.shards import write_shards

    other_panel = GenePanel.fit([section.adata for section in sections], n_genes=9)
    with pytest.raises(InputError, match="another gene panel"):
        write_shards(sections, folder, panel=other_panel, config=TINY)
    other_config = replace(TINY, smooth=0.5)
    with pytest.raises(InputError, match="smooth=0.2, not smooth=0.5"):
        write_shards(sections, folder, panel=panel, config=other_config)
    patches = sections[0].patches.copy()
    patches[0, 0, 0, 0] ^= 1
    other_section = replace(sections[0], patches=patches)
    with pytest.raises(InputError, match="PA1.h5: holds other data"):
        write_shards([other_section], folder, panel=panel, config=TINY)


def test_a_shard_takes_its_own_panel_only(panel, folder):
    """Another panel of as many genes would train on the wrong ones without a word."""
    from seal_lite.data.shards import Shard, read_shards

    shard = Shard(folder / "PA1.h5")
    _, stored_panel = read_shards(folder, TINY)
    assert shard.genes == panel.genes
    assert len(shard.expression(stored_panel)[0]) == len(panel.genes)
    first, second, *others = panel.genes
    message = "PA1.h5: was written with another gene panel; give the one that `read_shards` returns"
    for genes in [(second, first, *others), ("OTHER", second, *others), (second, *others)]:
        with pytest.raises(InputError, match=message):
            shard.expression(replace(panel, genes=genes))


def test_what_is_no_shard_is_named(folder, tmp_path):
    from seal_lite.data.shards import Shard, read_shards

    with pytest.raises(InputError, match="no shard of section 'PZ9'"):
        read_shards(folder, TINY, names=["PZ9"])
    with pytest.raises(InputError, match="holds no shards"):
        read_shards(tmp_path, TINY)
    cut_off = tmp_path / "X1.h5"
    cut_off.write_bytes((folder / "PA1.h5").read_bytes()[:5000])
    with pytest.raises(InputError, match="X1.h5: is no shard"):
        Shard(cut_off)


def set_entry(name, position, value):
    """One entry of an array of the shard is another."""

    def change(file):
        array = file[name][:]
        array[position] = value
        del file[name]
        file[name] = array

    return change


def reshape(name, shape, dtype):
    """An array of the shard is another."""

    def change(file):
        del file[name]
        file[name] = np.zeros(shape, dtype)

    return change


def state(name, value):
    return lambda file: file.attrs.update({name: value})


@pytest.mark.parametrize(
    "change",
    [
        set_entry("indices", 3, 10**6),
        set_entry("indices", 3, -1),
        set_entry("indptr", 2, -1),
        set_entry("indptr", 2, 10**6),
        set_entry("indptr", -1, 10**6),
        set_entry("data", 0, np.nan),
        set_entry("data", -1, np.inf),
        set_entry("lowest", 0, np.nan),
        set_entry("genes", 1, b""),
        set_entry("key", 1, b"\xff\xfe"),
        lambda file: set_entry("genes", 1, file["genes"][0])(file),
        lambda file: set_entry("key", 1, file["key"][0])(file),
        reshape("lowest", 3, "f4"),
        reshape("lowest", 40, "S3"),
        reshape("indptr", 3, "i4"),
        reshape("key", 3, "i4"),
        reshape("img", (70, 64, 64), "u1"),
        reshape("img", (9, 64, 64, 3), "u1"),
        reshape("img", (70, 64, 64, 3), "f4"),
        state("name", 3),
        state("name", ""),
        state("digest", "abc"),
        lambda file: file.attrs.pop("digest"),
        lambda file: file.pop("lowest"),
        lambda file: file.pop("img"),
    ],
)
def test_a_shard_whose_arrays_do_not_fit_is_refused(folder, tmp_path, change):
    import h5py

    from seal_lite.data.shards import Shard

    path = tmp_path / "PA1.h5"
    path.write_bytes((folder / "PA1.h5").read_bytes())
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(InputError, match="PA1.h5"):
        Shard(path)
