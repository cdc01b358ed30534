"""Write what the explorer shows, book/extra/explorer/data.js, from the chapters' shared run.

    python book/explorer.py [--data DIR] [--out data.js]

A page opened from a folder may not fetch files, so the data are a script, `window.EXPLORER = ...`.
Pictures are WebP, arrays are base64 of little-endian integers, and the whole is under 5 MB.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from seal_lite.data.patches import thumbnail
from seal_lite.data.phantom.truth import gene_classes
from seal_lite.encoders.embedding import embed_patches
from seal_lite.evaluation.retrieval import gene_set_profile
from seal_lite.tutorial import begin

OUT = Path(__file__).parent / "extra/explorer/data.js"
LIMIT = 5_000_000  # bytes
EDGES = (128, 96, 64, 48, 32)  # px of a region's picture: the largest with which all stays below
COLUMNS = 16  # of regions in a section's sheet of pictures
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
    """An integer array as base64, rows one after the other, little-endian."""
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def directions(vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, d) as int8, each scaled by its own largest number: a cosine needs no length."""
    largest = np.abs(vectors).max(1, keepdims=True)
    return np.rint(127 * vectors / np.maximum(largest, 1e-12)).astype(np.int8)


def thousandths(z: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(z, -32, 32) / Z_STEP).astype(np.int16)


def picture(image: np.ndarray, quality: int = 75) -> str:
    """An RGB image as the address of a WebP picture that holds it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", quality=quality, method=6)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def sheet(patches: np.ndarray, edge: int) -> np.ndarray:
    """Patches (n, h, w, 3) at `edge` px, `COLUMNS` a row, in one image."""
    out = np.full((-(-len(patches) // COLUMNS) * edge, COLUMNS * edge, 3), 255, np.uint8)
    for i, patch in enumerate(patches):
        y, x = i // COLUMNS * edge, i % COLUMNS * edge
        small = Image.fromarray(patch).resize((edge, edge), Image.Resampling.LANCZOS)
        out[y : y + edge, x : x + edge] = small
    return out


def section_data(model, section, at: list[int], *, role: str) -> dict:
    """One section: its picture, its spots, and what was measured and predicted of genes `at`."""
    um = section.adata.uns["um_per_px"]
    small, step = thumbnail(section.adata, um_per_px=4.0)
    z = model.panel.transform(section.adata)[section.rows]
    embeddings = embed_patches(model.encoder, section.patches)
    return {
        "name": section.name,
        "patient": section.patient,
        "role": role,
        "held_out": role.endswith("held out"),
        "um": [round(side * step * um) for side in small.shape[1::-1]],
        "pitch": section.adata.uns["pitch_um"],
        "spots": np.rint(section.adata.obsm["spatial"][section.rows] * um).astype(int).tolist(),
        "tissue": picture(small),
        "measured": packed(thousandths(z[:, at])),
        "predicted": packed(thousandths(model.predict_genes(embeddings)[:, at])),
        "images": packed(directions(model.project_images(embeddings))),
        "genes": packed(directions(model.encode_genes(z))),
    }


def roles(train, test) -> list[tuple]:
    """(what the model has seen of it, section): training sections, then those held out."""
    patients = {s.patient for s in train}
    found = [("seen in training", s) for s in train]
    return found + [
        (f"{'section' if s.patient in patients else 'patient'} held out", s) for s in test
    ]


def explorer_data(model, train, test, genes, *, sets=SETS, classes=None) -> dict:
    """What the page shows of training sections and held-out ones (lists of `Section`), but for the
    regions' pictures.

    `genes` are of the model's panel; of `sets` {name: genes} those remain that lie within `genes`.
    `classes` {gene: class} groups the genes in the menu.
    """
    panel, genes = model.panel, list(genes)
    sets = {name: of for name, of in sets.items() if set(of) <= set(genes)}
    targets = [{"name": name, "kind": "gene sets", "genes": of} for name, of in sets.items()]
    targets += [{"name": g, "kind": (classes or {}).get(g, ""), "genes": [g]} for g in genes]
    profiles = [gene_set_profile(panel, t["genes"]) for t in targets]
    at = [panel.genes.index(g) for g in genes]
    mean = "the section’s mean" if panel.zscore == "section" else "the mean of training"
    return {
        "patch_um": model.config.patch_um,
        "columns": COLUMNS,
        "z_step": Z_STEP,
        "unit": f"standard deviations from {mean}, smoothed as in training",
        "targets": targets,
        "genes": genes,
        "queries": packed(directions(model.encode_genes(np.concatenate(profiles)))),
        "sections": [section_data(model, s, at, role=role) for role, s in roles(train, test)],
    }


def script(data: dict, sections, *, edges=EDGES, limit=LIMIT) -> str:
    """data.js, with the regions' pictures at the largest edge at which it is below `limit` bytes.

    `sections` are those of `data`, in its order.
    """
    for edge in edges:
        data["edge"] = edge
        for entry, section in zip(data["sections"], sections, strict=True):
            entry["sheet"] = picture(sheet(section.patches, edge))
        text = f"window.EXPLORER = {json.dumps(data, separators=(',', ':'))};\n"
        if len(text) < limit:
            return text
    raise SystemExit(f"{len(text):,} bytes are more than {limit:,}: take fewer sections")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="phantom", help="a folder of sections (the phantom)")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    here = begin(args.data)
    model, _ = here.finetuned()
    data = explorer_data(
        model, here.train, [here.test], here.genes, classes=gene_classes(here.root)
    )
    text = script(data, [*here.train, here.test])
    args.out.write_text(text)
    print(f"wrote {args.out}: {len(text) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
