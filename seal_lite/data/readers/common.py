"""What every reader uses: tables, HDF5, raw counts, and the AnnData that it returns."""

from __future__ import annotations

import io
import logging
import reprlib
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from seal_lite.data.readers.sparse import check_matrices
from seal_lite.errors import InputError, reading
from seal_lite.io import open_h5, open_text

if TYPE_CHECKING:
    import h5py
    import zarr
    from anndata import AnnData

log = logging.getLogger(__name__)

ARRAY = ("array_col", "array_row")  # columns of `obs`: where a spot lies on the array
PIXELS = ["pxl_col_in_fullres", "pxl_row_in_fullres"]  # columns of x, y in px of the full image
LONGEST_UM = 1e6  # a metre: no length of a section is longer
SHORTEST_UM = 1e-3  # a nanometre: none is shorter
LONGEST_NAME = 1000  # characters of a patient, a species, a gene
POOL_UM = 100.0  # edge of pseudo-spots; HEST pools to the same
UNKNOWN = ("", "nan", "none", "null", "na", "n/a", "<na>")  # what stands for a missing value
FLAGS = {"1": True, "true": True, "yes": True} | dict.fromkeys(("0", "false", "no", "nan"), False)
COUNT_LAYERS = ("counts", "raw_counts", "raw_count", "count", "raw", "umi", "umi_counts")
KEPT_METADATA = ("um_per_px", "pitch_um", "spot_um", "patient", "species")  # of an AnnData's `uns`

# What a section uses of an AnnData's folders.
USED_PARTS = {
    "layers": COUNT_LAYERS,
    "obsm": ("spatial", "X_spatial"),
    "uns": KEPT_METADATA,
    "raw": ("X", "var"),
}


def make_spots(
    counts: np.ndarray | sp.spmatrix,
    *,
    obs: pd.DataFrame,
    genes: pd.DataFrame | Sequence[str] | pd.Index,
    xy: np.ndarray,
    uns: dict[str, Any],
) -> AnnData:
    """Return an AnnData of spots.

    Parameters
    ----------
    counts
        (n, g) raw counts, which become `X` and `layers["counts"]`, csr float32.
    obs
        n rows, named by barcodes.
    genes
        g names, or the table that becomes `var`.
    xy
        (n, 2) x, y in px of the full image, which become `obsm["spatial"]`, float64.
    uns
        Metadata of the section.
    """
    import anndata as ad

    counts = sp.csr_matrix(counts, dtype=np.float32)
    var = genes if isinstance(genes, pd.DataFrame) else pd.DataFrame(index=genes)
    return ad.AnnData(
        counts,
        obs=obs,
        var=var,
        layers={"counts": counts},
        obsm={"spatial": np.asarray(xy, np.float64)},
        uns=uns,
    )


def array_table(positions: np.ndarray) -> pd.DataFrame:
    """Return `obs` of spots at array columns and rows (n, 2) int, which are called "COLxROW"."""
    barcodes = [f"{col}x{row}" for col, row in positions]
    return pd.DataFrame(positions, columns=list(ARRAY), index=barcodes)


def kept_metadata(uns: dict[str, Any]) -> dict[str, Any]:
    """Return those of an AnnData's unstructured metadata that a section uses."""
    return {key: value for key, value in uns.items() if key in KEPT_METADATA}


def add_note(path: Path, adata: AnnData, note: str) -> None:
    """Add to `uns["notes"]`, and to the log, a sentence about what was set aside; `check` shows it.

    The sentence does not name the section.
    """
    log.warning("%s: %s", path, note)
    adata.uns["notes"] = [*adata.uns.get("notes", []), note]


def read_table(
    path: Path, *, needs: Sequence[str] = (), remedy: str = "fetch it again", **options: Any
) -> pd.DataFrame:
    """Read a table whose columns are separated by tabs, or by `sep`.

    Parameters
    ----------
    path
        A text file, which may be compressed.
    needs
        Columns that the table must have.
    remedy
        What the error message advises where the file cannot be read.
    **options
        Passed to `pandas.read_csv`.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a column of `needs`, or as `open_text` does.
    """
    with reading(path, remedy=remedy), open_text(path) as text:
        table = pd.read_csv(text, **{"sep": "\t", **options})
    _require_columns(path, table, needs)
    return table


def _require_columns(path: Path, table: pd.DataFrame, needs: Sequence[str]) -> None:
    """Raise `InputError` where a table lacks a column."""
    missing = sorted(set(needs) - set(table))
    if missing:
        raise InputError(f"{path}: column {', '.join(missing)} is missing; restore it")


def read_h5ad(path: str | Path) -> AnnData:
    """Read of an AnnData file what a section uses.

    Raises
    ------
    InputError
        As `open_h5` and `check_matrices` do.
    """
    import anndata as ad

    with open_h5(path) as file:
        if file.attrs.get("encoding-type") == "anndata":
            return read_parts(path, file)
        check_matrices(path, file)
        return ad.read_h5ad(path)  # anndata 0.7 and before had another layout


def read_parts(path: str | Path, group: h5py.Group | zarr.Group) -> AnnData:
    """Read of an AnnData on disk what a section uses; the rest may be large, or damaged.

    Raises
    ------
    InputError
        As `check_matrices` does; the message names `path`.
    """
    import anndata as ad

    def read(folder: Any, names: Sequence[str]) -> dict[str, Any]:
        parts = {}
        for name in names:
            if name in folder:
                check_matrices(path, folder[name])
                parts[name] = ad.io.read_elem(folder[name])
        return parts

    parts = read(group, ("X", "obs", "var"))
    for folder, names in USED_PARTS.items():
        if folder in group:
            parts[folder] = read(group[folder], names)
    return ad.AnnData(**parts)


def counted_genes(path: str | Path, adata: AnnData) -> tuple[sp.csr_matrix, pd.DataFrame]:
    """Return the raw counts of an AnnData, and the table of their genes.

    They are the first matrix of whole numbers among `layers` ("counts", or a usual name of it),
    `raw`, which has genes of its own, and `X`.

    Returns
    -------
    counts : scipy.sparse.csr_matrix
        (n, g) float32.
    genes : pandas.DataFrame
        g rows, as those of `var`.

    Raises
    ------
    InputError
        If a count of each of them is not a whole number from 0. `path` names the file.
    """
    layers = [adata.layers[name] for name in COUNT_LAYERS if name in adata.layers]
    candidates = [(layer, adata.var) for layer in layers]
    if adata.raw is not None:
        candidates.append((adata.raw.X, adata.raw.var))
    if adata.X is not None:
        candidates.append((adata.X, adata.var))
    for matrix, genes in candidates:
        counts = sp.csr_matrix(matrix, dtype=np.float32)
        if _are_counts(counts.data):
            return _in_order(counts), genes
    raise InputError(f"{path}: needs whole numbers >= 0; give raw counts, not normalised ones")


def _in_order(counts: sp.csr_matrix) -> sp.csr_matrix:
    """Return counts sorted by column, each once: those stored in parts are summed."""
    if counts.has_canonical_format:
        return counts
    summed = counts.copy()
    summed.sum_duplicates()
    return summed


def _are_counts(values: np.ndarray) -> bool:
    """Return whether all values are whole numbers from 0."""
    is_count = np.isfinite(values) & (values >= 0) & (values == np.floor(values))
    return bool(is_count.all())


def is_unknown(value: object) -> bool:
    """Return whether a value stands for a missing one: None, NaN, blank, "NA" and the like."""
    return text_of(value).lower() in UNKNOWN


def text_of(value: object) -> str:
    """Return a value as text, without blanks around it.

    It may be stored as bytes, and be the only entry of an array: R knows no other values.
    """
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    text = value.decode() if isinstance(value, bytes) else str(value)
    return text.strip()


def known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return those fields whose value is not missing."""
    return {key: value for key, value in fields.items() if not is_unknown(value)}


def as_length(path: str | Path, name: str, value: object, *, remedy: str) -> float:
    """Return a length in um, which may be stored as text or bytes; 0 stands for an unknown one.

    Raises
    ------
    InputError
        If it is no number, or no length of a section is so short or so long.
    """
    text = text_of(value)
    with reading(path, fault=f"{name} '{text}' is no number", remedy=remedy):
        length = float(text)
    if length != 0 and not SHORTEST_UM <= length <= LONGEST_UM:
        limits = f"{SHORTEST_UM:g} to {LONGEST_UM:g}, or 0 where it is unknown"
        raise InputError(f"{path}: {name} is {length:g}, must be {limits}; {remedy}")
    return length


def as_name(path: str | Path, name: str, value: object, *, remedy: str) -> str:
    """Return the name of a patient or the like, which may be stored as a number or as bytes.

    Raises
    ------
    InputError
        If it is a list or another collection, or longer than any name. `path` and `name` say of
        what.
    """
    if isinstance(value, Mapping | Set) or np.asarray(value).size != 1:
        raise InputError(f"{path}: {name} is {reprlib.repr(value)}, must be one name; {remedy}")
    text = text_of(value)
    if len(text) > LONGEST_NAME:
        length = f"{len(text)} characters long, must be at most {LONGEST_NAME}"
        raise InputError(f"{path}: {name} is {length}; {remedy}")
    return text


def as_numbers(path: str | Path, name: str, values: pd.Series) -> np.ndarray:
    """Return numbers (n,) float64 that may be stored as text, bytes or categories; NaN is missing.

    Raises
    ------
    InputError
        If a value is no number. `path` and `name` say of what.
    """
    if pd.api.types.is_bool_dtype(values) or pd.api.types.is_numeric_dtype(values):
        return values.to_numpy(np.float64, na_value=np.nan)
    text = values.astype(object).map(text_of)
    numbers = pd.to_numeric(text, errors="coerce").to_numpy(np.float64)
    is_wrong = np.isnan(numbers) & ~text.str.lower().isin(UNKNOWN).to_numpy()
    if is_wrong.any():
        raise InputError(f"{path}: {name} has '{text[is_wrong].iloc[0]}'; give numbers there")
    return numbers


def coordinates(path: str | Path, adata: AnnData) -> np.ndarray:
    """Return x, y of `obsm["spatial"]`, (n, 2) float64.

    Raises
    ------
    InputError
        As `as_numbers` does.
    """
    table = pd.DataFrame(adata.obsm["spatial"]).iloc[:, :2]
    columns = [as_numbers(path, 'obsm["spatial"]', table[name]) for name in table]
    return np.column_stack(columns)


def as_flags(path: str | Path, name: str, values: pd.Series) -> np.ndarray:
    """Return truth values (n,) bool that may be stored as numbers or text; a missing one is false.

    Raises
    ------
    InputError
        If a value is neither true nor false. `path` and `name` say of what.
    """
    text = values.astype(object).map(text_of).str.lower().str.removesuffix(".0")
    text = text.where(~text.isin(UNKNOWN), "nan")
    is_wrong = ~text.isin(FLAGS)
    if is_wrong.any():
        raise InputError(f"{path}: {name} has '{text[is_wrong].iloc[0]}'; give 1 or 0 there")
    return text.map(FLAGS).to_numpy(bool)


def read_labels(path: Path, *, needs: Sequence[str]) -> pd.DataFrame:
    """Read a table that people write: every cell as text, without blanks around it.

    The text may be UTF-8, UTF-16 or Windows' Latin-1, and separated by tabs, commas or semicolons.
    Names of columns are in lower case, and rows without any text are left out.

    Raises
    ------
    InputError
        As `read_table` does.
    """
    with reading(path):
        with open_text(path) as file:
            text = _decode_text(file.read())
        header = text.partition("\n")[0]
        separator = max("\t,;", key=header.count)
        table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False)
        table.columns = table.columns.str.strip().str.lower()
        table = table.apply(lambda column: column.str.strip())
    _require_columns(path, table, needs)
    return table[(table != "").any(axis=1)]


def _decode_text(content: bytes) -> str:
    """Return text that may begin with a byte order mark; Excel writes one."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252")
