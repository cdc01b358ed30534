"""A sparse matrix that would be read outside its arrays is refused before it is built."""

import gzip
import itertools
import shutil
import tracemalloc

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from made import GENES, UM, make_h5ad, make_truth, write_10x, write_spatialdata, write_visium
from PIL import Image

from seal_lite.errors import InputError

N_SPOTS, N_GENES = 36, 4


class Stored:
    """A compressed matrix of a file, which can be changed: {"data", "indices", "indptr"}, shape."""

    def __init__(self, group):
        self.group = group
        self.shape_on_disk = "shape" not in group.attrs
        shape = group["shape"][:] if self.shape_on_disk else group.attrs["shape"]
        self.shape = [int(edge) for edge in shape]
        self.arrays = {name: group[name][:] for name in ("data", "indices", "indptr")}
        self.by_columns = len(self.arrays["indptr"]) == self.shape[1] + 1
        self.n_minor = self.shape[0 if self.by_columns else 1]

    def save(self):
        values = dict(self.arrays)
        if self.shape_on_disk:
            values["shape"] = np.array(self.shape)
        else:
            self.group.attrs["shape"] = self.shape
        for name, array in values.items():
            del self.group[name]
            if isinstance(self.group, h5py.Group):
                self.group[name] = array
            else:
                self.group.create_array(name, data=array)


def set_entry(name, position, value):
    """One entry of an array is another: a number, or what a function makes of the matrix."""

    def change(stored):
        entry = value(stored) if callable(value) else value
        stored.arrays[name][position] = entry

    return change


def cut(name):
    def change(stored):
        stored.arrays[name] = stored.arrays[name][:-1]

    return change


def convert(name, dtype):
    def change(stored):
        stored.arrays[name] = stored.arrays[name].astype(dtype)

    return change


def set_edge(edge, value):
    def change(stored):
        stored.shape[edge] = value

    return change


ATTACKS = {
    "an index behind the last": set_entry("indices", 3, lambda stored: stored.n_minor),
    "a large index": set_entry("indices", 3, 2**31 - 1),
    "a negative index": set_entry("indices", -1, -1),
    "indices of fractions": convert("indices", np.float32),
    "an index fewer": cut("indices"),
    "a value fewer": cut("data"),
    "indptr falls": set_entry("indptr", 2, 0),
    "indptr jumps over the end": set_entry("indptr", 2, 10**6),
    "a negative indptr": set_entry("indptr", 1, -5),
    "indptr begins late": set_entry("indptr", 0, 1),
    "indptr ends late": set_entry("indptr", -1, 10**6),
    "indptr ends early": set_entry("indptr", -1, lambda stored: len(stored.arrays["data"]) - 1),
    "an indptr fewer": cut("indptr"),
    "a negative number of rows": set_edge(0, -1),
    "a negative number of columns": set_edge(1, -1),
    "many rows": set_edge(0, 10**12),
    "many columns": set_edge(1, 10**12),
    "more rows than there are": set_edge(0, 10**9),
    "more columns than there are": set_edge(1, 10**9),
}


def h5ad(root, part="X", kind=sp.csr_matrix):
    """An AnnData with its image; returns the file and the matrix's place in it."""
    adata = make_h5ad(make_truth())
    counts = kind(adata.X)
    if part == "X":
        adata.X = counts
    elif part == "raw/X":
        adata.raw = adata.copy()
        adata.X = np.log1p(adata.X.toarray())
    else:
        adata.layers["counts"] = counts
        adata.X = np.log1p(adata.X.toarray())
    adata.write_h5ad(root / "S1.h5ad")
    return root / "S1.h5ad", part


def store(root):
    adata = make_h5ad(make_truth())
    adata.write_zarr(root / "S1.zarr")
    return root / "S1.zarr", "X"


def spatialdata_store(root):
    write_spatialdata(root / "S1.zarr", make_truth())
    return root / "S1.zarr", "tables/table/X"


def visium(root):
    write_visium(root / "S1", make_truth())
    return root / "S1/filtered_feature_bc_matrix.h5", "matrix"


def old_h5ad(root):
    """What AnnData 0.6 wrote."""
    truth = make_truth()
    counts = sp.csr_matrix(truth.counts)
    with h5py.File(root / "S1.h5ad", "w") as file:
        group = file.create_group("X")
        group.attrs["h5sparse_format"] = "csr"
        group.attrs["h5sparse_shape"] = group.attrs["shape"] = counts.shape
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(counts, name)
        file["obs"] = np.array([(name,) for name in truth.barcodes], [("index", "S20")])
        file["var"] = np.array([(name,) for name in GENES], [("index", "S20")])
        file["obsm"] = np.array([(xy,) for xy in truth.xy], [("spatial", "f8", (2,))])
    return root / "S1.h5ad", "X"


FORMATS = {
    "h5ad by rows": h5ad,
    "h5ad by columns": lambda root: h5ad(root, kind=sp.csc_matrix),
    "h5ad layer": lambda root: h5ad(root, part="layers/counts"),
    "h5ad raw": lambda root: h5ad(root, part="raw/X"),
    "h5ad of old": old_h5ad,
    "zarr": store,
    "spatialdata": spatialdata_store,
    "10x": visium,
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """By format: a folder with one good section S1, its file's place in it, and its matrix's."""
    made = {}
    for name, write in FORMATS.items():
        root = tmp_path_factory.mktemp("format")
        path, part = write(root)
        if name != "spatialdata":
            Image.fromarray(make_truth().image).save(path.parent / "S1.png")
            text = f"section\tum_per_px\timage\nS1\t{UM}\t{path.parent.name}/S1.png\n"
            (root / "sections.tsv").write_text(
                text if name == "10x" else text.replace(f"{path.parent.name}/", "")
            )
        made[name] = (root, path.relative_to(root), part)
    return made


@pytest.fixture
def edited(originals, tmp_path):
    """Copy the section of a format, and change its matrix."""

    def edit(name, change):
        root, path, part = originals[name]
        copy = shutil.copytree(root, tmp_path / "data")
        if (copy / path).is_dir():
            import zarr

            stored = Stored(zarr.open_group(copy / path, use_consolidated=False)[part])
            change(stored)
            stored.save()
            zarr.consolidate_metadata(copy / path)
        else:
            with h5py.File(copy / path, "a") as file:
                stored = Stored(file[part])
                change(stored)
                stored.save()
        return copy, path.name

    return edit


def read(root):
    from seal_lite.data.section import read_counts

    return read_counts(root, "S1")


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_matrix_that_would_be_read_outside_its_arrays_is_refused(edited, name, attack):
    root, file = edited(name, ATTACKS[attack])
    with pytest.raises(InputError, match=file):
        read(root)


def shuffle_and_split(stored):
    """Every value is stored in two parts, in another order of the row or column."""
    data, indices, indptr = (stored.arrays[name] for name in ("data", "indices", "indptr"))
    new_data, new_indices = [], []
    for start, stop in zip(indptr[:-1], indptr[1:], strict=True):
        backwards = slice(start, stop)
        values = data[backwards][::-1]
        new_data += [*values - 1, *np.ones_like(values)]
        new_indices += [*indices[backwards][::-1]] * 2
    stored.arrays = {
        "data": np.array(new_data, data.dtype),
        "indices": np.array(new_indices, indices.dtype),
        "indptr": indptr * 2,
    }


@pytest.mark.parametrize("name", FORMATS)
def test_values_stored_in_parts_and_unsorted_are_summed_and_sorted(edited, truth, name):
    root, _ = edited(name, shuffle_and_split)
    counts = read(root).layers["counts"]
    np.testing.assert_array_equal(counts.toarray(), truth.counts)
    assert counts.has_canonical_format


@pytest.mark.parametrize("name", FORMATS)
def test_check_names_a_damaged_matrix_in_one_line(edited, cli, tmp_path, name):
    root, file = edited(name, ATTACKS["an index behind the last"])
    code, output, error = cli("check", "--data", root, "--out", tmp_path / "page.html")
    assert code == 2
    assert "indices has one outside 0 to" in output + error
    assert file in output + error
    assert "Traceback" not in output + error


def test_a_matrix_of_the_10x_group_below_is_no_way_around_the_check(edited):
    """scanpy takes arrays of inner groups for those of the matrix."""

    def hide(stored):
        stored.group["features/indices"] = np.full(len(stored.arrays["indices"]), 10**6)

    root, _ = edited("10x", hide)
    with pytest.raises(InputError, match="matrix/features/indices is there twice"):
        read(root)


def test_a_link_is_no_way_around_the_check(edited):
    def link(stored):
        file = stored.group.file
        stored.arrays["indices"][0] = 10**6
        file.move("X", "elsewhere")
        stored.group = file["elsewhere"]
        file["X"] = h5py.SoftLink("/elsewhere")

    root, _ = edited("h5ad by rows", link)
    with pytest.raises(InputError, match="indices has one outside 0 to 3"):
        read(root)


def hold_itself(file):
    file["obs/self"] = file["obs"]


def hold_itself_many_times(file):
    for i in range(300):
        file[f"X/{i}"] = file["X"]


def hold_itself_through_another(file):
    file["obs/a/b"] = file["obs"]


def double_and_double(file):
    """Each of 30 groups holds the next one twice."""
    groups = [file["obs"], *(file.create_group(f"uns/{i}") for i in range(30))]
    for group, following in itertools.pairwise(groups):
        group["left"] = group["right"] = following


def nest(file):
    file.create_group("obs" + "/inner" * 1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hold_itself, "/obs.* holds itself"),
        (hold_itself_many_times, "/X.* holds itself"),
        (hold_itself_through_another, "/obs.* holds itself"),
        (double_and_double, "holds more than 20000 groups and arrays"),
        (nest, "holds more than 32 groups in one another"),
    ],
)
def test_groups_without_end_are_refused_in_little_memory(tmp_path, change, message):
    h5ad(tmp_path)
    with h5py.File(tmp_path / "S1.h5ad", "a") as file:
        change(file)
    tracemalloc.start()
    with pytest.raises(InputError, match=f"S1.h5ad: {message}; do not trust it"):
        read(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**8


def test_an_array_may_have_two_names(originals, tmp_path):
    root, path, _ = originals["h5ad by rows"]
    copy = shutil.copytree(root, tmp_path / "data")
    with h5py.File(copy / path, "a") as file:
        file["layers/counts"] = file["X"]
        file["obs/again"] = file["obs/_index"]
    assert read(copy).n_obs == N_SPOTS


def test_a_large_matrix_is_checked_in_little_memory(tmp_path):
    from seal_lite.data.readers.sparse import check_matrices

    n, width = 20_000, 1000
    with h5py.File(tmp_path / "large.h5", "w") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "shape": (n, width)})
        indices = np.tile(np.arange(width, dtype=np.int32), n)
        options = {"chunks": (10**5,), "compression": "gzip"}
        group.create_dataset("indices", data=indices, **options)
        group.create_dataset("data", (n * width,), "f4", **options)
        group["indptr"] = np.arange(n + 1) * width
        n_bytes = indices.nbytes
        del indices
        tracemalloc.start()
        check_matrices(tmp_path / "large.h5", file)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < n_bytes / 4
        group["indices"][-1] = width
        with pytest.raises(InputError, match="large.h5: X/indices has one outside 0 to 999"):
            check_matrices(tmp_path / "large.h5", file)


# ---------------------------------------------------------------------------- Matrix Market


def write_mtx(root, *, header=None, entries=None, n_genes=N_GENES):
    """A section of Visium whose counts are a Matrix Market file, features x barcodes."""
    truth = make_truth()
    write_visium(root / "S1", truth)
    (root / "S1/filtered_feature_bc_matrix.h5").unlink()
    Image.fromarray(truth.image).save(root / "S1/S1.png")
    (root / "sections.tsv").write_text(f"section\tum_per_px\nS1\t{UM}\n")
    folder = root / "S1/filtered_feature_bc_matrix"
    folder.mkdir()
    genes = [*GENES, *(f"EMPTY{i}" for i in range(n_genes - N_GENES))]
    lines = [f"ID{i}\t{gene}\tGene Expression\n" for i, gene in enumerate(genes)]
    (folder / "features.tsv").write_text("".join(lines))
    (folder / "barcodes.tsv").write_text("\n".join(truth.barcodes) + "\n")
    rows = [
        f"{gene + 1} {spot + 1} {int(count)}"
        for spot, counts in enumerate(truth.counts)
        for gene, count in enumerate(counts)
    ]
    rows = rows if entries is None else entries
    header = header or f"{n_genes} {N_SPOTS} {len(rows)}"
    text = "\n".join(["%%MatrixMarket matrix coordinate integer general", header, *rows, ""])
    with gzip.open(folder / "matrix.mtx.gz", "wt") as file:
        file.write(text)
    return root


@pytest.mark.parametrize(
    ("header", "entries"),
    [
        (f"{10**12} {N_SPOTS} 1", ["1 1 1"]),
        (f"{N_GENES} {10**12} 1", ["1 1 1"]),
        (f"{N_GENES} {N_SPOTS} {10**12}", ["1 1 1"]),
        (f"{N_GENES} {N_SPOTS} 5", ["1 1 1"]),
        (f"{N_GENES} {N_SPOTS} -1", ["1 1 1"]),
        (None, [f"{N_GENES + 1} 1 1"]),
        (None, ["0 1 1"]),
        (None, ["-1 1 1"]),
        (None, [f"1 {N_SPOTS + 1} 1"]),
        (None, ["1 1 -4"]),
        (None, ["1 1"]),
    ],
)
def test_a_matrix_market_file_that_does_not_fit_is_refused(tmp_path, header, entries):
    root = write_mtx(tmp_path, header=header, entries=entries)
    with pytest.raises(InputError, match="matrix.mtx.gz"):
        read(root)


@pytest.mark.parametrize("n_genes", [N_GENES, N_SPOTS], ids=["", "square"])
def test_a_matrix_market_file_is_read_features_by_barcodes(tmp_path, truth, n_genes):
    adata = read(write_mtx(tmp_path, n_genes=n_genes))
    np.testing.assert_array_equal(adata[:, GENES].layers["counts"].toarray(), truth.counts)


def test_10x_files_that_fit_are_read(tmp_path, truth):
    """The check refuses nothing that Space Ranger writes: integers of any width."""
    from seal_lite.data.readers.sparse import check_10x

    write_10x(tmp_path / "m.h5", truth.counts, truth.barcodes)
    with h5py.File(tmp_path / "m.h5") as file:
        check_10x(tmp_path / "m.h5", file)
