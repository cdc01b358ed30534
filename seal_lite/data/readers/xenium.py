"""Xenium's output folder, transcripts pooled into pseudo-spots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from seal_lite.data.readers.common import POOL_UM, array_table, make_spots
from seal_lite.data.readers.gene_names import CONTROLS
from seal_lite.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

MIN_QV = 20.0  # Xenium's own threshold for a transcript to be counted
BATCH_ROWS = 2**20  # transcripts in memory at a time


def read_xenium(path: Path, labels: dict[str, str]) -> AnnData:
    """Read Xenium's output folder with an H&E image: transcripts pooled into square pseudo-spots.

    The label pool_um sets the edge of a pseudo-spot. The image's place is that of
    `*imagealignment.csv`, a 3 x 3 matrix from its px to the px of the morphology.

    Raises
    ------
    InputError
        If there is no `*imagealignment.csv`.
    """
    folder = path.parent
    size_um = float(labels.get("pool_um", POOL_UM))
    pixel_um = json.loads((folder / "experiment.xenium").read_text())["pixel_size"]
    alignment = _read_alignment(folder)
    pooled = _pool_transcripts(path, size_um)
    n = len(pooled.squares)
    centres = np.c_[(pooled.squares + 0.5) * size_um / pixel_um, np.ones(n)]  # morphology's px
    image_um = pixel_um * abs(np.linalg.det(alignment[:2, :2])) ** 0.5
    return make_spots(
        pooled.counts,
        obs=array_table(pooled.squares),
        genes=pooled.genes,
        xy=np.linalg.solve(alignment, centres.T).T[:, :2],
        uns={"um_per_px": image_um, "spot_um": size_um, "step_um": (size_um, size_um)},
    )


def _read_alignment(folder: Path) -> np.ndarray:
    """Return the matrix (3, 3) from px of the H&E image to px of the morphology."""
    paths = sorted(folder.glob("*imagealignment.csv"))
    if not paths:
        raise InputError(f"{folder}: no *imagealignment.csv; export it beside the H&E image")
    return np.loadtxt(paths[0], delimiter=",")


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
    import pyarrow.parquet as pq

    columns = ["x_location", "y_location", "feature_name", "qv"]
    batches = pq.ParquetFile(path).iter_batches(BATCH_ROWS, columns=columns)
    parts = [_count_transcripts(batch.to_pandas(), size_um) for batch in batches]
    counts = pd.concat(parts).groupby(level=[0, 1, 2]).sum()
    rows, squares = pd.factorize(counts.index.droplevel(2), sort=True)
    cols, genes = pd.factorize(counts.index.get_level_values(2), sort=True)
    matrix = sp.csr_matrix((counts, (rows, cols)), dtype=np.float32)
    return PooledTranscripts(matrix, np.array([*squares]), genes)


def _count_transcripts(transcripts: pd.DataFrame, size_um: float) -> pd.Series:
    """Return the number of transcripts by column and row of the square, and gene."""
    genes = transcripts.feature_name.map(_decode)
    is_counted = (transcripts.qv >= MIN_QV) & ~genes.str.contains(CONTROLS)
    squares = (transcripts[["x_location", "y_location"]] // size_um).astype(int)[is_counted]
    return squares.assign(gene=genes[is_counted]).value_counts()


def _decode(name: str | bytes) -> str:
    """Return a feature's name, which older files store as bytes."""
    return name.decode() if isinstance(name, bytes) else name
