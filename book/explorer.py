"""Write the data of the explorer, book/extra/explorer/data.js, from the chapters' shared run.

    python book/explorer.py [DIR [DATA.js]]        # DIR: your sections

A page opened from a folder may not fetch files, so the data are a script, `window.EXPLORER = ...`.
Images are WebP, arrays are base64 of little-endian integers, and the whole is under 5 MB.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seal_lite import SEAL, Config, Section
from seal_lite.encoders.embedding import embed_patches
from seal_lite.evaluation.retrieval import gene_set_profile
from seal_lite.tutorial import begin, finetuned

OUT = Path(__file__).parent / "extra/explorer/data.js"
LIMIT = 5_000_000  # bytes
EDGES = (128, 96, 64, 48, 32)  # px of a patch's image: the largest with which all stays below
COLUMNS = 16  # of patches in a section's sheet
Z_STEP = 1e-3  # z is stored in thousandths
SETS = {
    "fat": ["ADIPOQ", "PLIN1", "FABP4"],  # the first is shown when the page opens
    "tumour": ["ERBB2", "GRB7", "EPCAM"],
    "stroma": ["COL1A1", "COL3A1", "DCN"],
    "lymphocytes": ["CD3E", "TRAC", "MS4A1"],
    "myoepithelium": ["KRT14", "KRT17", "ACTA2"],
    "plasma cells": ["IGKC", "JCHAIN", "CD79A"],
    "proliferation": ["MKI67", "TOP2A", "CCNB1"],
    "interferon": ["IFI6", "ISG15", "MX1"],
}


def packed(array: np.ndarray) -> str:
    """Return an integer array as base64, rows one after the other, little-endian."""
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def directions(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (n, d) as int8, each scaled by its largest entry: a cosine needs no length."""
    largest = np.abs(vectors).max(1, keepdims=True)
    return np.rint(127 * vectors / np.maximum(largest, 1e-12)).astype(np.int8)


def thousandths(z: np.ndarray) -> np.ndarray:
    """Return z-scores as int16 in steps of `Z_STEP`."""
    return np.rint(np.clip(z, -32, 32) / Z_STEP).astype(np.int16)


def webp(image: np.ndarray) -> str:
    """Return an RGB image (h, w, 3) as the address of a WebP image that holds it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", quality=75, method=6)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def sheet(patches: np.ndarray, edge: int) -> np.ndarray:
    """Return patches (n, h, w, 3) at `edge` px, `COLUMNS` a row, in one image."""
    n_rows = -(-len(patches) // COLUMNS)
    image = np.full((n_rows * edge, COLUMNS * edge, 3), 255, np.uint8)
    for i, patch in enumerate(patches):
        y = i // COLUMNS * edge
        x = i % COLUMNS * edge
        small = Image.fromarray(patch).resize((edge, edge), Image.Resampling.LANCZOS)
        image[y : y + edge, x : x + edge] = np.asarray(small)
    return image


def section_data(model: SEAL, section: Section, genes: list[str], *, role: str) -> dict[str, Any]:
    """Return a section's image, its spots, and what was measured and predicted of `genes`."""
    about = section.adata.uns
    um = about["um_per_px"]
    thumbnail, step = section.thumbnail(um_per_px=4.0)
    columns = [model.panel.genes.index(gene) for gene in genes]
    z = section.expression(model.panel)
    embeddings = embed_patches(model.encoder, section.patches)
    return {
        "name": section.name,
        "patient": section.patient,
        "role": role,
        "held_out": role.endswith("held out"),
        "um": [round(side * step * um) for side in thumbnail.shape[1::-1]],
        "pitch": about["pitch_um"],
        "spots": np.rint(section.adata.obsm["spatial"][section.rows] * um).astype(int).tolist(),
        "tissue": webp(thumbnail),
        "measured": packed(thousandths(z[:, columns])),
        "predicted": packed(thousandths(model.predict_genes(embeddings)[:, columns])),
        "images": packed(directions(model.project_images(embeddings))),
        "genes": packed(directions(model.encode_genes(z))),
    }


def roles(train: list[Section], test: list[Section]) -> list[str]:
    """Return what the model has seen of each section: training sections, then those held out."""
    patients = {section.patient for section in train}
    held_out = ["section" if section.patient in patients else "patient" for section in test]
    return ["seen in training"] * len(train) + [f"{unit} held out" for unit in held_out]


def explorer_data(
    model: SEAL,
    train: list[Section],
    test: list[Section],
    genes: Sequence[str],
    *,
    sets: dict[str, list[str]] = SETS,
    classes: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Return what the page shows of training and held-out sections, but for the patches.

    `genes` are of the model's panel. Of `sets`, those remain whose genes are all in `genes`.
    `classes`, the class of each gene, groups the menu.
    """
    genes = list(genes)
    panel = model.panel
    targets = [
        {"name": name, "kind": "gene sets", "genes": members}
        for name, members in sets.items()
        if set(members) <= set(genes)
    ]
    for gene in genes:
        kind = (classes or {}).get(gene, "")
        targets.append({"name": gene, "kind": kind, "genes": [gene]})
    profiles = [gene_set_profile(panel, target["genes"]) for target in targets]
    mean = "the section’s mean" if panel.zscore == "section" else "the mean of training"
    sections = zip([*train, *test], roles(train, test), strict=True)
    return {
        "patch_um": model.config.patch_um,
        "columns": COLUMNS,
        "z_step": Z_STEP,
        "unit": f"standard deviations from {mean}, smoothed as in training",
        "targets": targets,
        "genes": genes,
        "queries": packed(directions(model.encode_genes(np.concatenate(profiles)))),
        "sections": [section_data(model, section, genes, role=role) for section, role in sections],
    }


def script(
    data: dict[str, Any],
    sections: list[Section],
    *,
    edges: Iterable[int] = EDGES,
    limit: int = LIMIT,
) -> str:
    """Return data.js, with the patches at the largest edge at which it stays below `limit` bytes.

    `sections` are those of `data`, in its order.
    """
    for edge in edges:
        data["edge"] = edge
        for entry, section in zip(data["sections"], sections, strict=True):
            entry["sheet"] = webp(sheet(section.patches, edge))
        text = f"window.EXPLORER = {json.dumps(data, separators=(',', ':'))};\n"
        if len(text) < limit:
            return text
    raise SystemExit(f"{len(text):,} bytes are more than {limit:,}: take fewer sections")


def main(dataset: str = "phantom", out: str | Path = OUT) -> None:
    """Write the data of the phantom, or of a folder of sections."""
    chapter = begin(dataset, Config.backbone)
    model, _ = finetuned(chapter)
    classes = None if chapter.truth is None else chapter.truth.classes
    test = [chapter.test]
    data = explorer_data(model, chapter.train, test, chapter.genes, classes=classes)
    text = script(data, [*chapter.train, *test])
    Path(out).write_text(text)
    print(f"wrote {out}: {len(text) / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
