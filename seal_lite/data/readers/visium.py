"""Space Ranger's folders, Visium and Visium HD: of their files, those with counts and positions."""

from __future__ import annotations

import glob
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from seal_lite.data.readers.common import ARRAY, PIXELS, as_flags, as_numbers, read_table
from seal_lite.data.readers.sparse import check_10x
from seal_lite.errors import InputError, reading
from seal_lite.io import open_h5, open_text, read_json, refuse_bomb, refuse_oversize

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

# 10x Genomics: rows of spots 100 um apart, each moved by half against the next; a neighbour in the
# row is two array columns away.
VISIUM_STEP_UM = (50.0, 50.0 * 3**0.5)
VISIUM_SPOT_UM = 55.0

# Where the files of a sample are sought below its folder, the preferred first.
COUNTS_PATTERNS = (
    "{sample}filtered_feature_bc_matrix.h5",
    "{sample}filtered_feature_bc_matrix/*matrix.mtx*",
    "{sample}raw_feature_bc_matrix.h5",
    "{sample}raw_feature_bc_matrix/*matrix.mtx*",
    "{sample}matrix.mtx*",
    "{sample}/*matrix.mtx*",
)
POSITIONS_PATTERNS = (
    "{sample}spatial/*tissue_positions*",
    "{sample}tissue_positions*",
    "{sample}spatial/*spatial/*tissue_positions*",
)
HIRES_PATTERNS = ("{sample}spatial/*tissue_hires_image.*", "{sample}tissue_hires_image.*")
SAMPLE_FILE = re.compile(  # a file of a sample, whose name it may begin with
    r"(.*?)((?:filtered|raw)_feature_bc_matrix\.h5|matrix\.mtx.*|tissue_positions.*)"
)
SMALL_IMAGE = re.compile(r"(.*)tissue_(hires|lowres)_image")  # Space Ranger's own

# tissue_positions_list.csv has no header; tissue_positions.csv and .parquet have this one.
POSITIONS_COLUMNS = (
    "barcode",
    "in_tissue",
    "array_row",
    "array_col",
    "pxl_row_in_fullres",
    "pxl_col_in_fullres",
)
GENE_TYPE = "Gene Expression"
# What names a spot or a bin. The rest of its barcode, as "-1", names the library.
BARCODE = r"([ACGT]{10,}|s_\d+um_\d+_\d+)"
SHORTEST_ENTRY = len("1 1\n")  # bytes of a value in a Matrix Market file
ENTRY_BYTES = 16  # of a value in memory, with its row and column
CELL_BYTES = 8  # of a number of a table in memory; text takes more
MIN_PLACED = 0.1  # share of the barcodes with counts that must have a position


def read_visium(path: Path, labels: dict[str, str]) -> AnnData:
    """Read the folder of Visium in which a file with counts or positions lies."""
    return _read_spots(path, Sample.at(path), step_um=VISIUM_STEP_UM, spot_um=VISIUM_SPOT_UM)


def read_visium_of_series(path: Path, labels: dict[str, str]) -> AnnData:
    """Read one of several samples of Visium in a folder, whose files begin with its name."""
    sample = Sample.of_series(path)
    return _read_spots(path, sample, step_um=VISIUM_STEP_UM, spot_um=VISIUM_SPOT_UM)


def read_visium_hd(path: Path, labels: dict[str, str]) -> AnnData:
    """Read Visium HD's bins of one size from their folder, square_SIZEum."""
    size_um = float(re.sub(r"\D", "", path.name))
    adata = _read_spots(path, Sample(path), step_um=(size_um, size_um), spot_um=size_um)
    stated = _read_scale_factors(adata.uns["spots_path"]).get("microns_per_pixel")
    if stated:
        adata.uns["um_per_px"] = float(stated)
    return adata


def _read_spots(path: Path, sample: Sample, **lengths_um: Any) -> AnnData:
    """Read counts and positions of a sample; `lengths_um` become metadata."""
    counts_path = sample.file(COUNTS_PATTERNS)
    if counts_path is None:
        raise InputError(f"{path}: no counts beside it; add filtered_feature_bc_matrix.h5")
    positions_path = sample.file(POSITIONS_PATTERNS)
    if positions_path is None:
        raise InputError(f"{counts_path}: no tissue_positions.csv beside it; add spatial/")
    adata = _read_genes(counts_path)
    positions = _read_positions(positions_path)
    rows = _match_barcodes(adata.obs_names, positions, counts_path, positions_path)
    is_placed = rows >= 0
    if not is_placed.all():
        n_lost = int((~is_placed).sum())
        log.info("%s: %d barcodes have no position: dropped", counts_path, n_lost)
        adata = adata[is_placed].copy()
    spots = positions.iloc[rows[is_placed]].set_axis(adata.obs_names)
    in_tissue = positions.get("in_tissue", pd.Series(0, positions.index)) == 1
    without_counts = np.delete(in_tissue.to_numpy(), rows[is_placed])
    columns = [column for column in ("in_tissue", *ARRAY) if column in spots]
    adata.obs = spots[columns]
    adata.obsm["spatial"] = spots[PIXELS].to_numpy(float)
    adata.uns = {
        "spots_path": positions_path,
        "spots_without_counts": int(without_counts.sum()),
        "spots_without_position": int((~is_placed).sum()),
        "px_of_full_image": True,
        **lengths_um,
    }
    return adata


# ---------------------------------------------------------------------------- which files


@dataclass(frozen=True)
class Sample:
    """The files of one sample.

    Attributes
    ----------
    folder
        The folder below which they lie.
    prefix
        Glob pattern of what their names begin with.
    """

    folder: Path
    prefix: str = "*"

    @classmethod
    def at(cls, path: Path) -> Sample:
        """Return the only sample of the folder in which a file, or a folder of bins, lies."""
        if path.is_dir():
            return cls(path)
        inner_folder = "spatial" if "tissue_positions" in path.name else "feature_bc_matrix"
        is_inside = "feature_bc_matrix.h5" not in path.name and path.parent.name.endswith(
            inner_folder
        )
        return cls(path.parents[1] if is_inside else path.parent)

    @classmethod
    def of_series(cls, path: Path) -> Sample:
        """Return the sample of a file beside those of other samples."""
        name, _ = _split_name(path)
        return cls(path.parent, glob.escape(name))

    def files(self, patterns: tuple[str, ...]) -> list[Path]:
        """Return the files that the first of the patterns that has any matches."""
        for pattern in patterns:
            paths = sorted(self.folder.glob(pattern.format(sample=self.prefix)))
            visible = [path for path in paths if not path.name.startswith(".")]
            if visible:
                return visible
        return []

    def file(self, patterns: tuple[str, ...]) -> Path | None:
        """Return the first of `files`, None without one.

        Raises
        ------
        InputError
            If there are files of several samples.
        """
        paths = self.files(patterns)
        if not paths:
            return None
        samples = {(path.parent, _split_name(path)[0]): path for path in paths}
        if len(samples) > 1:
            first, second, *_ = samples.values()
            raise InputError(
                f"{first}: lies beside {second.relative_to(self.folder)}; give each sample a "
                "folder of its own, or name this folder as data"
            )
        return paths[0]


def is_of_series(path: Path) -> bool:
    """Return whether like files of several samples lie beside a file."""
    _, suffix = _split_name(path)
    others = [other for other in path.parent.glob(f"*{suffix}") if other.name[0] != "."]
    return bool(suffix) and len(others) > 1


def _split_name(path: Path) -> tuple[str, str]:
    """Return what a file's name begins with, and Space Ranger's own name of the file."""
    match = SAMPLE_FILE.fullmatch(path.name)
    if match is None:
        return path.name, ""
    sample, suffix = match.groups()
    return sample, suffix


# ---------------------------------------------------------------------------- images


def hires_image(sample: Sample) -> Path | None:
    """Return Space Ranger's own small image of a sample, where its scale is known."""
    images = sample.files(HIRES_PATTERNS)
    return next((image for image in images if image_scale(image) is not None), None)


def is_small_image(path: str | Path) -> bool:
    """Return whether an image is one that Space Ranger has made of the full one."""
    return SMALL_IMAGE.match(Path(path).name) is not None


def image_scale(path: Path) -> float | None:
    """Return px of an image per px of the full image; None where it is small and not stated."""
    match = SMALL_IMAGE.match(path.name)
    if match is None:
        return 1.0
    _, size = match.groups()
    scale = _read_scale_factors(path).get(f"tissue_{size}_scalef")
    if not scale:
        return None
    return float(scale)


def _read_scale_factors(beside: Path) -> dict[str, Any]:
    """Return the scale factors in the folder of a file; none where they are absent or damaged."""
    sample, _, _ = beside.name.partition("tissue_")
    path = beside.with_name(f"{sample}scalefactors_json.json")
    try:
        return dict(read_json(path))
    except (ValueError, TypeError):
        log.info("%s: cannot be read; the scale is that of the array", path)
        return {}


# ---------------------------------------------------------------------------- counts


def _read_genes(path: Path) -> AnnData:
    """Read the counts of genes; those of antibodies and the like are left out."""
    with reading(path):
        if path.suffix == ".h5":
            adata = _read_h5(path)
        else:
            adata = _read_mtx(path)
    if "feature_types" not in adata.var:
        return adata
    is_gene = (adata.var["feature_types"] == GENE_TYPE).to_numpy()
    if is_gene.all():
        return adata
    if not is_gene.any():
        raise InputError(f"{path}: has no features of type {GENE_TYPE}; give the genes' counts")
    log.info("%s: %d features are no genes: left out", path, (~is_gene).sum())
    return adata[:, is_gene].copy()


def _read_h5(path: Path) -> AnnData:
    """Read a 10x HDF5 file of version 2 or 3."""
    import scanpy as sc

    with open_h5(path) as file:
        check_10x(path, file)
        return sc.read_10x_h5(path, gex_only=False)


def _read_mtx(path: Path) -> AnnData:
    """Read a Matrix Market file with its barcodes, and its genes or features, beside it."""
    import anndata as ad
    from scipy.io import mminfo, mmread

    sample, _ = _split_name(path)
    features = _read_names(path, f"{sample}features.tsv", f"{sample}genes.tsv")
    barcodes = _read_names(path, f"{sample}barcodes.tsv")
    shape = (len(barcodes), len(features))
    with open_text(path, is_kept=False) as text:
        rows, columns, n_entries, *_ = mminfo(text)
    if (rows, columns) not in (shape, shape[::-1]):
        raise InputError(
            f"{path}: is {rows} x {columns}, but beside it are {shape[1]} "
            f"features and {shape[0]} barcodes; take the three files of one matrix"
        )
    refuse_bomb(path, SHORTEST_ENTRY * n_entries)
    refuse_oversize(path, ENTRY_BYTES * n_entries)
    with open_text(path, is_kept=False) as text:
        entries = mmread(text)
    matrix = entries.tocsr().astype(np.float32)
    if matrix.shape == shape[::-1]:  # as 10x writes it
        matrix = matrix.T.tocsr()
    var = pd.DataFrame({"gene_ids": features[0].to_numpy()}, index=features.iloc[:, :2].iloc[:, -1])
    if 2 in features:
        var["feature_types"] = features[2].to_numpy()
    var.index.name = None
    return ad.AnnData(matrix, obs=pd.DataFrame(index=barcodes[0].to_numpy()), var=var)


def _read_names(matrix_path: Path, *names: str) -> pd.DataFrame:
    """Read a table without a header beside a matrix, under the first name that is there."""
    for name in names:
        for path in (matrix_path.with_name(name), matrix_path.with_name(f"{name}.gz")):
            if path.exists():
                return read_table(path, header=None, dtype=str, keep_default_na=False)
    raise InputError(f"{matrix_path}: no {names[0]} beside it; restore it")


# ---------------------------------------------------------------------------- positions


def _read_positions(path: Path) -> pd.DataFrame:
    """Read positions with or without a header, as numbers, indexed by the barcodes.

    Spots without a pixel, or a place on the array that others have, are left out.

    Raises
    ------
    InputError
        If a column of pixels is missing, a column has other text than numbers, or a barcode is
        listed twice.
    """
    with reading(path):
        if path.suffix == ".parquet":
            table = _read_positions_parquet(path)
        else:
            table = _read_positions_text(path)
    if "barcode" not in table:
        table = table.reset_index(drop=isinstance(table.index, pd.RangeIndex))
        table = table.rename(columns={table.columns[0]: "barcode"})
    columns = [column for column in POSITIONS_COLUMNS[1:] if column in table]
    numbers = {}
    for column in columns:
        parse = as_flags if column == "in_tissue" else as_numbers
        numbers[column] = parse(path, column, table[column]).astype(float)
    positions = pd.DataFrame(numbers)
    positions.index = pd.Index(table["barcode"].astype(str), name="barcode")
    positions = positions.dropna(axis=1, how="all")
    missing = [column for column in PIXELS if column not in positions]
    if missing:
        raise InputError(f"{path}: column {', '.join(missing)} is missing; restore it")
    places = [column for column in (*PIXELS, *ARRAY) if column in positions]
    positions = positions.dropna(subset=places)
    if not positions.index.is_unique:
        raise InputError(f"{path}: a barcode is listed twice; keep one row each")
    return positions


def _read_positions_parquet(path: Path) -> pd.DataFrame:
    """Read positions of Parquet, whose repeated values take next to nothing on disk."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        stored = file.metadata
        refuse_oversize(path, CELL_BYTES * stored.num_rows * stored.num_columns)
    return pd.read_parquet(path)


def _read_positions_text(path: Path) -> pd.DataFrame:
    """Read positions that are separated by commas, tabs or semicolons."""
    no_separator = "\x01"
    with open_text(path) as text:
        header = pd.read_csv(text, sep=no_separator, header=None, nrows=1, quoting=3)
    first = str(header.iloc[0, 0])
    separator = max(",\t;", key=first.count)
    unnamed: dict[str, Any] = {"header": None, "names": list(POSITIONS_COLUMNS)}
    columns = {} if "pxl_" in first else unnamed
    return read_table(path, sep=separator, **columns)


def _match_barcodes(
    names: pd.Index, positions: pd.DataFrame, counts_path: Path, positions_path: Path
) -> np.ndarray:
    """Return the row of `positions` of each barcode with counts, (n,) int, -1 without one.

    Where no barcode is the same, those that differ in the library alone ("-1") are matched.

    Raises
    ------
    InputError
        If the counts are of several libraries, or nearly no barcode has a position.
    """
    cores = _cores(names)
    libraries = sorted(set(names.str.replace(BARCODE, "", regex=True)[cores != names]))
    if len(libraries) > 1:
        raise InputError(
            f"{counts_path}: holds several libraries ({', '.join(libraries[:3])}); "
            "give one file for each"
        )
    rows = positions.index.get_indexer(names)
    if (rows < 0).all():
        cores_of_positions = _cores(positions.index)
        if cores_of_positions.is_unique:
            rows = cores_of_positions.get_indexer(cores)
    if (rows >= 0).mean() < MIN_PLACED:
        share = f"{(rows >= 0).mean():.0%}"
        raise InputError(
            f"{counts_path}: {share} of its barcodes are in {positions_path.name}; "
            "pair counts and positions"
        )
    return rows


def _cores(names: pd.Index) -> pd.Index:
    """Return barcodes without the library: the part that names the spot, else the whole."""
    cores = names.str.extract(BARCODE, expand=False)
    return cores.where(cores.notna(), names)
