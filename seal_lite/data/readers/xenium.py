"""Xenium's output folder, transcripts pooled into pseudo-spots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypedDict

import numpy as np
import pandas as pd
import scipy.sparse as sp

from seal_lite.data.readers.common import LONGEST_UM, POOL_UM, array_table, make_spots
from seal_lite.data.readers.gene_names import are_genes
from seal_lite.errors import InputError, reading
from seal_lite.io import open_text, refuse_oversize
from seal_lite.schema import Number, read

if TYPE_CHECKING:
    import pyarrow.parquet as pq
    from anndata import AnnData

# What Xenium Ranger and Xenium Explorer call the alignment of an image, in a folder or beside it.
ALIGNMENTS = ("*imagealignment*.csv", "*matrix.csv", "*alignment*/*matrix.csv")
REMEDY = "copy it again from Xenium's output"
MIN_QV = 20.0  # Xenium's own threshold for a transcript to be counted
BATCH_ROWS = 2**20  # transcripts in memory at a time
MAX_FEATURES = 10**6  # distinct names; a panel has at most some ten thousand


def read_xenium(path: Path, labels: dict[str, str]) -> AnnData:
    """Read Xenium's output folder with an H&E image: transcripts pooled into square pseudo-spots.

    The label pool_um sets the edge of a pseudo-spot. The image's place is a 3 x 3 matrix from its
    px to the px of the morphology, under any of the names that 10x gives it (`ALIGNMENTS`). Without
    one, coordinates are px of the morphology, and only the counts can be used.

    Raises
    ------
    InputError
        If a matrix is no invertible 3 x 3 matrix, or one of several.
    """
    folder = path.parent
    size_um = float(labels.get("pool_um", 0)) or POOL_UM
    experiment: Experiment = read(folder / "experiment.xenium", Experiment, remedy=REMEDY)
    pixel_um = experiment["pixel_size"]
    alignment = _read_alignment(folder)
    pooled = _pool_transcripts(path, size_um)
    uns: dict[str, Any] = {"spot_um": size_um, "step_um": (size_um, size_um), "is_pooled": True}
    if alignment is None:
        alignment = np.eye(3)
        uns["unaligned"] = f"no {' or '.join(ALIGNMENTS)}; export it from Xenium Explorer"
    n = len(pooled.squares)
    centres = np.c_[(pooled.squares + 0.5) * size_um / pixel_um, np.ones(n)]  # morphology's px
    uns["um_per_px"] = pixel_um * abs(np.linalg.det(alignment[:2, :2])) ** 0.5
    return make_spots(
        pooled.counts,
        obs=array_table(pooled.squares),
        genes=pooled.genes,
        xy=np.linalg.solve(alignment, centres.T).T[:, :2],
        uns=uns,
    )


def _read_alignment(folder: Path) -> np.ndarray | None:
    """Return the matrix (3, 3) from px of the H&E image to px of the morphology; None without."""
    paths = [path for pattern in ALIGNMENTS for path in sorted(folder.glob(pattern))]
    if not paths:
        return None
    path = paths[0]
    if len(paths) > 1:
        raise InputError(f"{path}: is not the only alignment there ({paths[1].name}); keep one")
    with reading(path, fault="is no 3 x 3 matrix", remedy="export it again"):
        matrix = np.loadtxt(path, delimiter=",", encoding="utf-8-sig").reshape(3, 3)
        np.linalg.inv(matrix)
    return matrix


class Experiment(TypedDict):
    """What of Xenium's `experiment.xenium` is used."""

    pixel_size: Annotated[float, Number(above=0, at_most=1000)]  # um


class PooledTranscripts(NamedTuple):
    """Transcripts counted in squares.

    Attributes
    ----------
    counts
        (n, g) float32.
    squares
        (n, 2) int, columns and rows of the squares.
    genes
        g names.
    """

    counts: sp.csr_matrix
    squares: np.ndarray
    genes: pd.Index


def _pool_transcripts(path: Path, size_um: float) -> PooledTranscripts:
    """Count transcripts by square and gene, batch by batch: there may be hundreds of millions.

    Each batch is added to one sum, which has a place for each gene that a square holds.

    Raises
    ------
    InputError
        If there are more names than any panel has, and as `_locate_transcripts` does.
    """
    squares = pd.MultiIndex.from_arrays(np.empty((2, 0), int))
    genes = pd.Index([], dtype=object)
    counts = sp.csr_matrix((0, 0), dtype=np.int32)
    for batch in _read_transcripts(path):
        located = _locate_transcripts(path, batch, size_um)
        squares, rows = _number(squares, pd.MultiIndex.from_frame(located[["col", "row"]]))
        genes, cols = _number(genes, pd.Index(located.gene, dtype=object))
        if len(genes) > MAX_FEATURES:
            raise InputError(f"{path}: feature_name has over {MAX_FEATURES:,} names; {REMEDY}")
        shape = (len(squares), len(genes))
        ones = np.ones(len(located), np.int32)
        counts.resize(shape)
        counts = counts + sp.csr_matrix((ones, (rows, cols)), shape=shape)
    square_order = squares.argsort()
    gene_order = genes.argsort()
    return PooledTranscripts(
        counts[square_order][:, gene_order].astype(np.float32),
        np.array([*squares[square_order]]),
        genes[gene_order],
    )


def _number(known: pd.Index, names: pd.Index) -> tuple[pd.Index, np.ndarray]:
    """Return known names with the new ones of `names` behind them, and where each of `names` is."""
    distinct = names.unique()
    known = known.append(distinct[~distinct.isin(known)])
    return known, known.get_indexer(names)


def _read_transcripts(path: Path) -> Iterator[pd.DataFrame]:
    """Yield batches of transcripts: feature_name as text, x_location, y_location and, if any, qv.

    Names may be stored as text, bytes or a dictionary.
    """
    if path.suffix == ".gz":
        with open_text(path, is_kept=False) as text:
            yield from pd.read_csv(text, usecols=_is_read, chunksize=BATCH_ROWS)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        refuse_oversize(path, _largest_row_group(file.metadata))
        columns = [name for name in file.schema_arrow.names if _is_read(name)]
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            names = batch.column("feature_name").cast(pa.string()).to_pandas()
            table = batch.drop_columns("feature_name").to_pandas()
            yield table.assign(feature_name=names)


def _largest_row_group(stored: pq.FileMetaData) -> int:
    """Return the bytes that the used columns of a Parquet file's largest part unpack to."""
    largest = 0
    for i in range(stored.num_row_groups):
        group = stored.row_group(i)
        chunks = [group.column(j) for j in range(group.num_columns)]
        used = [chunk for chunk in chunks if _is_read(chunk.path_in_schema)]
        largest = max(largest, sum(chunk.total_uncompressed_size for chunk in used))
    return largest


def _is_read(column: str) -> bool:
    """Return whether a column of the transcripts is used."""
    return column in ("x_location", "y_location", "feature_name", "qv")


def _locate_transcripts(path: Path, transcripts: pd.DataFrame, size_um: float) -> pd.DataFrame:
    """Return col and row of the square, and gene, of each transcript that counts.

    Transcripts of unknown quality count, those without a name or a place do not.

    Raises
    ------
    InputError
        If one lies farther away than any section is long.
    """
    transcripts = transcripts.dropna(subset=["x_location", "y_location", "feature_name"])
    is_counted = are_genes(pd.Index(transcripts.feature_name, dtype=object))
    if "qv" in transcripts:
        is_counted &= ~(transcripts.qv < MIN_QV).to_numpy()
    transcripts = transcripts[is_counted]
    places = transcripts[["x_location", "y_location"]]  # um
    is_outside = (places.abs() > LONGEST_UM).any(axis=None)
    if is_outside:
        farthest = places.abs().max(axis=None)
        limit = f"{farthest:g} um from the origin, must be at most {LONGEST_UM:g}"
        raise InputError(f"{path}: a transcript lies {limit}; {REMEDY}")
    squares = (places // size_um).astype(int)
    return squares.set_axis(["col", "row"], axis=1).assign(gene=transcripts.feature_name)
