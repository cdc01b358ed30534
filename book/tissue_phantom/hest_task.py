"""Sections of any kind as a task of HEST-bench, where its own cannot be downloaded."""

import json
from pathlib import Path

import h5py
import pandas as pd

from seal_lite.hest import COLUMNS, GENES


def write_task(root, name: str, sections, folds, genes) -> Path:
    """Write sections as a task: `folds` are (training, test) lists of section names.

    The sections' patches should show `PATCH_UM`: `load_sections(patch_um=112, patch_px=224)`.
    """
    folder = Path(root) / name
    for part in ("patches", "adata", "splits"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for s in sections:
        with h5py.File(folder / f"patches/{s.name}.h5", "w") as file:
            file["img"] = s.patches
            file["barcode"] = s.adata.obs_names[s.rows].to_numpy().astype("S")[:, None]
            file["coords"] = s.adata.obsm["spatial"][s.rows].astype(int)
        plain = s.adata.copy()
        plain.X = plain.layers.pop("counts")
        plain.uns = {}
        plain.write_h5ad(folder / f"adata/{s.name}.h5ad")
    for i, halves in enumerate(folds):
        for half, names in zip(("train", "test"), halves, strict=True):
            table = [[n, f"patches/{n}.h5", f"adata/{n}.h5ad"] for n in names]
            table = pd.DataFrame(table, columns=COLUMNS)
            table.to_csv(folder / f"splits/{half}_{i}.csv", index=False)
    (folder / GENES).write_text(json.dumps({"genes": list(genes)}))
    return folder
