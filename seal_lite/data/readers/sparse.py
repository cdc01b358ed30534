"""Compressed sparse matrices on disk, checked before anything builds one in memory.

SciPy trusts `indices` and `indptr`: out of range, they read and write foreign memory. What is
stored twice or unsorted is no fault: it is summed and sorted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from seal_lite.errors import InputError, reading
from seal_lite.io import refuse_oversize

if TYPE_CHECKING:
    import h5py
    import zarr

MEMBERS = ("data", "indices", "indptr")
CHUNK = 2**20  # values in memory at a time
MAX_EDGE = 2**31 - 1  # rows or columns; no section has more
MAX_ITEMS = 20_000  # groups and arrays of a file, counted under each of their names
MAX_DEPTH = 32  # groups in one another


def check_matrices(path: str | Path, root: h5py.Group | zarr.Group | h5py.Dataset) -> None:
    """Check what AnnData would build of a group: every matrix, and that memory has room for all.

    Parameters
    ----------
    path
        The file or store, which messages begin with.
    root
        A group of HDF5 or zarr, or an array, which holds no matrix.

    Raises
    ------
    InputError
        As `check_matrix` and `refuse_oversize`, and where a group holds itself, or too much.
    """
    for group in _groups(path, root):
        with reading(path):
            layout = str(_attribute(group, "encoding-type", "h5sparse_format"))
            shape = _attribute(group, "shape", "h5sparse_shape")
        is_matrix = layout.startswith(("csr", "csc")) and set(MEMBERS) <= set(group.keys())
        if is_matrix:
            check_matrix(path, group, shape=shape, by_columns=layout.startswith("csc"))
    refuse_oversize(path, _stored_bytes(path, root))


def _stored_bytes(path: str | Path, root: h5py.Group | zarr.Group | h5py.Dataset) -> int:
    """Return the bytes that an array, or all below a group, takes in memory when it is read."""
    arrays = [root]
    if hasattr(root, "keys"):
        items = [group[name] for group in _groups(path, root) for name in group]
        arrays = [item for item in items if not hasattr(item, "keys")]
    return sum(getattr(array, "nbytes", 0) for array in arrays)  # a stored type has none


def check_10x(path: str | Path, file: h5py.File) -> None:
    """Check the matrices, features x barcodes, of a 10x HDF5 file, as `check_matrices` does."""
    for group in _groups(path, file):
        if not {*MEMBERS, "shape"} <= set(group.keys()):
            continue
        # scanpy looks for the members in the groups below, too, and takes the last.
        for inner in _groups(path, group):
            twice = {*MEMBERS, "shape", "barcodes"} & set(inner.keys())
            if inner != group and twice:
                _refuse(path, f"{inner.name}/{min(twice)} is there twice")
        with reading(path):
            shape = group["shape"][()]
        check_matrix(path, group, shape=shape, by_columns=True)
    refuse_oversize(path, _stored_bytes(path, file))


def check_matrix(
    path: str | Path, stored: Mapping[str, Any], *, shape: Any, by_columns: bool = False
) -> None:
    """Check a compressed matrix on disk, a chunk in memory at a time.

    Parameters
    ----------
    path
        The file or store, which messages begin with.
    stored
        Has the arrays `data` (k,), `indices` (k,) and `indptr` (rows + 1,).
    shape
        Its rows and columns, of any type: it is checked, too.
    by_columns
        Whether columns are compressed, not rows.

    Raises
    ------
    InputError
        Where `shape` is not that of the arrays, an array has another type or number of dimensions,
        `indptr` does not rise from 0 to k, or an index lies outside the matrix.
    """
    name = str(getattr(stored, "name", "")).strip("/")
    name = f"{name}/" if name else ""
    arrays = [stored[member] for member in MEMBERS]
    for member, array in zip(MEMBERS, arrays, strict=True):
        kinds = "iufb" if member == "data" else "iu"
        if getattr(array, "ndim", None) != 1 or array.dtype.kind not in kinds:
            _refuse(path, f"{name}{member} is no list of {'' if kinds[2:] else 'whole '}numbers")
    _, indices, indptr = arrays
    n_major, n_minor = _edges(path, name, shape, by_columns=by_columns)
    n_data, n_indices, n_pointers = (array.shape[0] for array in arrays)
    if n_pointers != n_major + 1:
        _refuse(path, f"{name}indptr has {n_pointers} entries, not {n_major + 1} as its shape")
    if n_data != n_indices:
        _refuse(path, f"{name}data has {n_data} entries, {name}indices {n_indices}")
    previous = 0
    for chunk in _chunks(path, indptr):
        if chunk[0] < previous or (chunk[1:] < chunk[:-1]).any():
            _refuse(path, f"{name}indptr is negative, or falls")
        previous = int(chunk[-1])
    first = int(indptr[0])
    if first != 0 or previous != n_data:
        ends = f"{name}indptr goes from {first} to {previous}"
        _refuse(path, f"{ends}, not from 0 to {n_data}")
    for chunk in _chunks(path, indices):
        if chunk.min() < 0 or chunk.max() >= n_minor:
            _refuse(path, f"{name}indices has one outside 0 to {n_minor - 1}")


def check_finite(path: str | Path, name: str, array: Any, *, largest: float = math.inf) -> None:
    """Check that a list of numbers on disk has no NaN, no infinity and none beyond the largest."""
    for chunk in _chunks(path, array):
        if not np.isfinite(chunk).all():
            _refuse(path, f"{name} has NaN or infinity")
        if np.abs(chunk).max(initial=0) > largest:
            _refuse(path, f"{name} has values beyond {largest:g}")


def _edges(path: str | Path, name: str, shape: Any, *, by_columns: bool) -> tuple[int, int]:
    """Return the compressed and the other edge of a matrix of this shape."""
    edges = np.asarray(shape)
    is_pair = edges.shape == (2,) and edges.dtype.kind in "iu"
    if not is_pair or edges.min() < 0 or edges.max() > MAX_EDGE:
        _refuse(path, f"{name}shape is {str(shape)[:40]}, not rows and columns")
    rows, columns = (int(edge) for edge in edges)
    return (columns, rows) if by_columns else (rows, columns)


def _chunks(path: str | Path, array: Any) -> Iterator[np.ndarray]:
    """Yield an array on disk piece by piece."""
    for start in range(0, array.shape[0], CHUNK):
        with reading(path):
            chunk = np.asarray(array[start : start + CHUNK])
        yield chunk


def _groups(path: str | Path, root: Any) -> Iterator[Any]:
    """Yield a group and all groups below it, links included: each as often as it is named."""
    pending: list[tuple[Any, frozenset[Any]]] = [(root, frozenset())]  # and the groups around it
    n_items = 1
    while pending:
        item, around = pending.pop()
        if not hasattr(item, "keys"):
            continue
        identity = item.id if hasattr(item, "id") else item.path  # HDF5, else zarr
        if identity in around:
            _refuse(path, f"{item.name} holds itself")
        if len(around) > MAX_DEPTH:
            _refuse(path, f"holds more than {MAX_DEPTH} groups in one another")
        with reading(path):
            n_items += len(item)
        if n_items > MAX_ITEMS:
            _refuse(path, f"holds more than {MAX_ITEMS} groups and arrays")
        with reading(path):
            pending += [(item[name], around | {identity}) for name in item]
        yield item


def _attribute(group: Any, *names: str) -> Any:
    """Return the first of these attributes that a group has; "" without one."""
    values = [group.attrs[name] for name in names if name in group.attrs]
    return values[0] if values else ""


def _refuse(path: str | Path, fault: str) -> NoReturn:
    """Raise the `InputError` of a damaged matrix."""
    raise InputError(f"{path}: {fault}; do not trust it, fetch it again")
