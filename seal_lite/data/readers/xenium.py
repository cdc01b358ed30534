"""Xenium's output folder, transcripts pooled into pseudo-spots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypedDict

import numpy as np
import pandas as pd
import scipy.sparse as sp

from seal_lite.data.readers.common import POOL_UM, array_table, make_spots
from seal_lite.data.readers.gene_names import are_genes
from seal_lite.errors import InputError, reading
from seal_lite.schema import Number, read

if TYPE_CHECKING:
    from anndata import AnnData

# What Xenium Ranger and Xenium Explorer call the alignment of an image, in a folder or beside it.
ALIGNMENTS = ("*imagealignment*.csv", "*matrix.csv", "*alignment*/*matrix.csv")
REMEDY = "copy it again from Xenium's output"
MIN_QV = 20.0  # Xenium's own threshold for a transcript to be counted
BATCH_ROWS = 2**20  # transcripts in memory at a time


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
    size_um = float(labels.get("pool_um", POOL_UM))
    experiment: Experiment = read(folder / "experiment.xenium", Experiment, remedy=REMEDY)
    pixel_um = experiment["pixel_size"]
    alignment = _read_alignment(folder)
    pooled = _pool_transcripts(path, size_um)
    uns: dict[str, Any] = {"spot_um": size_um, "step_um": (size_um, size_um)}
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
        matrix = np.loadtxt(path, delimiter=",", encoding="utf-8-sig")
        np.linalg.inv(matrix.reshape(3, 3))
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
    """Count transcripts by square and gene, in batches: there may be hundreds of millions."""
    parts = [_count_transcripts(batch, size_um) for batch in _read_transcripts(path)]
    counts = pd.concat(parts).groupby(level=[0, 1, 2]).sum()
    rows, squares = pd.factorize(counts.index.droplevel(2), sort=True)
    cols, genes = pd.factorize(counts.index.get_level_values(2), sort=True)
    matrix = sp.csr_matrix((counts, (rows, cols)), dtype=np.float32)
    return PooledTranscripts(matrix, np.array([*squares]), genes)


def _read_transcripts(path: Path) -> Iterator[pd.DataFrame]:
    """Yield batches of transcripts: feature_name as text, x_location, y_location and, if any, qv.

    Names may be stored as text, bytes or a dictionary.
    """
    if path.suffix == ".gz":
        yield from pd.read_csv(path, usecols=_is_read, chunksize=BATCH_ROWS)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    columns = [name for name in file.schema_arrow.names if _is_read(name)]
    for batch in file.iter_batches(BATCH_ROWS, columns=columns):
        names = batch.column("feature_name").cast(pa.string())
        yield batch.drop_columns("feature_name").to_pandas().assign(feature_name=names.to_pandas())


def _is_read(column: str) -> bool:
    """Return whether a column of the transcripts is used."""
    return column in ("x_location", "y_location", "feature_name", "qv")


def _count_transcripts(transcripts: pd.DataFrame, size_um: float) -> pd.Series:
    """Return the number of transcripts by column and row of the square, and gene.

    Transcripts of unknown quality count, those without a name or a place do not.
    """
    transcripts = transcripts.dropna(subset=["x_location", "y_location", "feature_name"])
    is_counted = are_genes(pd.Index(transcripts.feature_name, dtype=object))
    if "qv" in transcripts:
        is_counted &= ~(transcripts.qv < MIN_QV).to_numpy()
    transcripts = transcripts[is_counted]
    squares = (transcripts[["x_location", "y_location"]] // size_um).astype(int)
    return squares.assign(gene=transcripts.feature_name).value_counts()
