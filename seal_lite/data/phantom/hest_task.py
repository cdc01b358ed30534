"""Sections of any kind as a task of HEST-bench, where its own cannot be downloaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import pandas as pd

from seal_lite.data.readers.hest import GENES_FILE, SPLIT_COLUMNS
from seal_lite.paths import file_name

if TYPE_CHECKING:
    from seal_lite.data.section import Section

Fold = tuple[Sequence[str], Sequence[str]]  # names of the training and of the test sections


def write_task(
    root: str | Path,
    name: str,
    sections: Iterable[Section],
    *,
    folds: Iterable[Fold],
    genes: Iterable[str],
) -> Path:
    """Write sections as a task.

    Parameters
    ----------
    root
        Folder of tasks.
    name
        Name of the task, and of its folder.
    sections
        Sections with patches of 112 um at 224 px, as HEST-bench has them.
    folds
        Names of the training and of the test sections of each fold.
    genes
        Names of the genes to predict.

    Returns
    -------
    Path
        The task's folder.
    """
    folder = Path(root) / name
    for part in ("patches", "adata", "splits"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for section in sections:
        _write_sample(folder, section)
    for i, (train, test) in enumerate(folds):
        _split_table(train).to_csv(folder / f"splits/train_{i}.csv", index=False)
        _split_table(test).to_csv(folder / f"splits/test_{i}.csv", index=False)
    (folder / GENES_FILE).write_text(json.dumps({"genes": list(genes)}))
    return folder


def _write_sample(folder: Path, section: Section) -> None:
    """Write the patches and the counts of a section."""
    adata = section.adata
    stem = file_name(section.name)
    barcodes = adata.obs_names[section.rows].to_numpy().astype("S")
    with h5py.File(folder / f"patches/{stem}.h5", "w") as file:
        file["img"] = section.patches
        file["barcode"] = barcodes[:, None]
        file["coords"] = adata.obsm["spatial"][section.rows].astype(int)
    counts = adata.copy()
    counts.X = counts.layers.pop("counts")
    counts.uns = {}
    counts.write_h5ad(folder / f"adata/{stem}.h5ad")


def _split_table(names: Sequence[str]) -> pd.DataFrame:
    """Return half of a fold as a table of files."""
    rows = []
    for name in names:
        stem = file_name(name)
        rows.append([name, f"patches/{stem}.h5", f"adata/{stem}.h5ad"])
    return pd.DataFrame(rows, columns=SPLIT_COLUMNS)
