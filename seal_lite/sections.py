"""From files to sections: counts and coordinates as AnnData, beside an H&E image.

One reader serves the her2st layout (Andersson et al., Nat Commun 2021) and the phantom, which is
written in the same layout:

    ROOT/data/ST-imgs/<patient>/<section>/*.jpg        full-resolution H&E
    ROOT/data/ST-cnts/<section>.tsv.gz                 raw counts, rows "XxY", columns gene symbols
    ROOT/data/ST-spotfiles/<section>_selection.tsv     x y new_x new_y pixel_x pixel_y selected
    ROOT/sections.tsv, if there                        section patient organ technology stain ...
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from .config import Config
from .errors import InputError

log = logging.getLogger(__name__)

PITCH_UM = 200.0  # centre to centre on the legacy ST array (Ståhl et al., Science 2016)
SPOT_UM = 100.0  # spot diameter on that array
MIN_COUNTS = 100  # a spot with fewer transcripts has no profile worth the name
MAX_UPSAMPLING = 2.0  # more would ask for detail the scanner never recorded
Image.MAX_IMAGE_PIXELS = 2**31  # sections are trusted local files of about 10^8 px


@dataclass
class Section:
    """A section with the image regions of those spots that have one.

    adata: all spots with counts (see `read_section`). rows: (n,) indices into `adata` of the spots
    whose region lies on the image. patches: (n, px, px, 3) uint8 RGB, aligned with `rows`.
    """

    adata: object
    rows: np.ndarray
    patches: np.ndarray

    @property
    def name(self) -> str:
        return self.adata.uns["section_id"]

    @property
    def patient(self) -> str:
        return self.adata.uns["patient_id"]

    def label(self, by: str) -> str | None:
        """What the section is by "section", "patient" or a column of sections.tsv, if known."""
        labels = self.adata.uns.get("labels", {})
        return {**labels, "section": self.name, "patient": self.patient}.get(by)

    @property
    def keys(self) -> list[str]:
        """One stable name a patch: 'section/barcode'."""
        return [f"{self.name}/{b}" for b in self.adata.obs_names[self.rows]]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, counts and pixels: what a recorded result was computed from."""
        h = hashlib.sha256("\n".join([*self.keys, *self.adata.var_names]).encode())
        counts = self.adata.layers["counts"]
        for part in (counts.data, counts.indices, counts.indptr, self.patches):
            h.update(np.ascontiguousarray(part).data)
        return h.hexdigest()


def list_sections(root) -> list[str]:
    """Names of all sections under `root` that have both counts and an image, sorted."""
    root = Path(root)
    if not (root / "data/ST-cnts").is_dir():
        raise InputError(
            f"{root}: no data/ST-cnts folder in it; give the folder that `seal-lite fetch her2st` "
            "or `seal-lite phantom` wrote"
        )
    names = [p.name.removesuffix(".tsv.gz") for p in (root / "data/ST-cnts").glob("*.tsv.gz")]
    return sorted(n for n in names if image_path(root, n) is not None)


def image_path(root, name: str) -> Path | None:
    """The section's full-resolution image, or None where the folder has none."""
    folder = Path(root) / "data/ST-imgs" / patient_of(name) / name
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".jpg", ".png", ".tif"))
    return found[0] if found else None


def patient_of(name: str) -> str:
    """'C2' -> 'C': upstream numbers the sections of a patient."""
    return name.rstrip("0123456789")


def section_labels(root, name: str) -> dict[str, str]:
    """What ROOT/sections.tsv says of a section: {column: value}, or nothing without that file.

    Its columns are "section", and any of "patient", "organ", "technology", "stain" and more.
    """
    path = Path(root) / "sections.tsv"
    if not path.exists():
        return {}
    table = _read_table(path, dtype=str, keep_default_na=False)
    if "section" not in table:
        raise InputError(f"{path}: column section is missing; name each row's section in it")
    rows = table[table.section == name]
    if len(rows) != 1:
        raise InputError(f"{path}: has {len(rows)} rows for section {name}; give it one")
    return {k: v for k, v in rows.iloc[0].drop("section").items() if v}


def read_section(root, name: str):
    """Read one section's counts and coordinates.

    Returns AnnData (spots x genes): `layers["counts"]` csr of raw counts, `obsm["spatial"]` (n, 2)
    x, y in full-image px, `obs` array_col, array_row, section_id, patient_id; `uns` section_id,
    patient_id, um_per_px, grid, image_path (str), spots_without_counts, labels (`section_labels`).
    Raises `InputError` for anything missing or inconsistent.
    """
    import anndata as ad
    import scipy.sparse as sp

    root = Path(root)
    spots = _read_spots(root / f"data/ST-spotfiles/{name}_selection.tsv")
    counts = _read_counts(root / f"data/ST-cnts/{name}.tsv.gz")
    both = [b for b in spots.index if b in counts.index]
    if not both:
        raise InputError(
            f"{root}: no barcode of {name} is in both counts and spot file; pair the right files"
        )
    labels = section_labels(root, name)
    patient = labels.get("patient", patient_of(name))
    missing = len(spots) - len(both)
    if missing:
        log.info("%s: %d of %d selected spots have no counts: dropped", name, missing, len(spots))
    spots, counts = spots.loc[both], counts.loc[both]
    shallow = counts.to_numpy().sum(1) < MIN_COUNTS
    if shallow.any():
        log.info("%s: %d spots with under %d counts: dropped", name, shallow.sum(), MIN_COUNTS)
        spots, counts = spots[~shallow], counts[~shallow]

    matrix = sp.csr_matrix(counts.to_numpy(np.float32))
    adata = ad.AnnData(
        matrix,
        obs=pd.DataFrame(
            {"array_col": spots.x, "array_row": spots.y, "section_id": name,
             "patient_id": patient}, index=spots.index),
        var=pd.DataFrame(index=counts.columns.astype(str)),
        layers={"counts": matrix},
        obsm={"spatial": spots[["pixel_x", "pixel_y"]].to_numpy(np.float64)},
    )  # fmt: skip
    adata.uns = {
        "section_id": name,
        "patient_id": patient,
        "um_per_px": um_per_px(adata, source=f"{name}_selection.tsv"),
        "grid": "square",
        "image_path": str(image_path(root, name) or ""),
        "spots_without_counts": missing,
        "labels": labels,
    }
    return adata


def _read_spots(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: no such spot file; check the section's name")
    spots = _read_table(path)
    lacking = {"x", "y", "pixel_x", "pixel_y"} - set(spots.columns)
    if lacking:
        raise InputError(f"{path}: column {', '.join(sorted(lacking))} is missing; restore it")
    if "selected" in spots:
        spots = spots[spots.selected == 1]
    spots.index = [f"{x}x{y}" for x, y in zip(spots.x, spots.y, strict=True)]
    if not spots.index.is_unique:
        twice = spots.index[spots.index.duplicated()][0]
        raise InputError(f"{path}: spot {twice} stands there twice; keep one row")
    pixels = spots[["pixel_x", "pixel_y"]].apply(pd.to_numeric, errors="coerce")
    if not np.isfinite(pixels.to_numpy(float)).all():
        raise InputError(f"{path}: pixel_x or pixel_y is not a number in some row; correct it")
    return spots


def _read_table(path: Path, **options) -> pd.DataFrame:
    try:
        return pd.read_csv(path, sep="\t", **options)
    except (OSError, EOFError, ValueError, zlib.error) as error:  # pandas' errors are ValueErrors
        raise InputError(f"{path}: cannot be read ({error}); fetch it again") from error


def _read_counts(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: no such counts file; check the section's name")
    counts = _read_table(path, index_col=0)
    values = counts.to_numpy()
    if not np.issubdtype(values.dtype, np.number):
        raise InputError(f"{path}: some count is not a number; correct or fetch it again")
    if not np.isfinite(values).all() or (values < 0).any() or (values != np.rint(values)).any():
        raise InputError(
            f"{path}: counts must be whole numbers >= 0; give raw counts, not normalised ones"
        )
    counts.columns = counts.columns.astype(str).str.upper()
    if not counts.index.is_unique:
        raise InputError(f"{path}: a barcode stands there twice; keep one row each")
    return counts.loc[:, ~counts.columns.duplicated()]


def um_per_px(adata, *, pitch_um: float = PITCH_UM, source: str = "coordinates") -> float:
    """Microns per pixel from the array pitch: pixel = A @ (col, row) + t, least squares.

    Raises `InputError` where the array and the pixels disagree: axes swapped or mirrored, scales of
    the two axes more than 5% apart, or spots further than half a pitch from the fitted grid.
    """
    array = adata.obs[["array_col", "array_row"]].to_numpy(float)
    design = np.c_[array, np.ones(len(array))]
    pixel = np.asarray(adata.obsm["spatial"], float)
    if len(array) < 3 or np.linalg.matrix_rank(design - design.mean(0) + [0, 0, 1]) < 3:
        raise InputError(
            f"{source}: its spots lie on one line, so um per px is undefined; add spots"
        )
    coef, *_ = np.linalg.lstsq(design, pixel, rcond=None)
    (xx, xy), (yx, yy) = coef[:2]
    if max(abs(xy), abs(yx)) > 0.2 * min(abs(xx), abs(yy)) or xx <= 0 or yy <= 0:
        raise InputError(
            f"{source}: pixel_x does not grow with x and pixel_y with y; swap or unmirror them"
        )
    if not 0.95 < xx / yy < 1.05:
        raise InputError(
            f"{source}: the pitch is {xx:.1f} px along x but {yy:.1f} px along y; rescale the image"
        )
    pitch_px = np.sqrt(xx * yy - xy * yx)
    off = np.abs(design @ coef - pixel).max()
    if off > pitch_px / 2:
        raise InputError(
            f"{source}: a spot lies {off:.0f} px from its place on the array; correct its pixels"
        )
    return float(pitch_um / pitch_px)


def extract_patches(adata, *, patch_um=Config.patch_um, patch_px=Config.patch_px):
    """Cut a square region of `patch_um` um around every spot and resample it to `patch_px`.

    Returns rows (n,) into `adata` and patches (n, patch_px, patch_px, 3) uint8. A region that
    leaves the image is dropped and reported. Raises `InputError` where the image is absent or the
    wanted resolution is more than twice the recorded one.
    """
    name, mpp = adata.uns["section_id"], adata.uns["um_per_px"]
    if not adata.uns["image_path"]:
        raise InputError(f"section {name}: no image beside its counts; fetch it or leave it out")
    edge = patch_um / mpp  # px in the full image
    if patch_px > MAX_UPSAMPLING * edge:
        raise InputError(
            f"section {name}: {patch_px} px for {patch_um:g} um needs {patch_um / patch_px:.2f} "
            f"um/px but the image has {mpp:.2f}; ask for fewer pixels or a larger region"
        )
    image = open_image(adata.uns["image_path"])
    corner = np.asarray(adata.obsm["spatial"]) - edge / 2
    inside = (corner >= 0).all(1) & (corner + edge <= image.size).all(1)
    rows = np.flatnonzero(inside)
    if len(rows) < len(inside):
        log.info("%s: %d regions leave the image: dropped", name, (~inside).sum())
    if not len(rows):
        raise InputError(
            f"section {name}: no spot lies on its {image.size[0]} x {image.size[1]} px image; "
            "image and coordinates must share one scale"
        )
    patches = np.empty((len(rows), patch_px, patch_px, 3), np.uint8)
    for patch, (x, y) in zip(patches, corner[rows], strict=True):
        box = (x, y, x + edge, y + edge)
        patch[:] = image.resize((patch_px, patch_px), Image.Resampling.BICUBIC, box=box)
    return rows, patches


def open_image(path) -> Image.Image:
    """Decode an image to RGB; a damaged one is an `InputError`."""
    try:
        image = Image.open(path)
        image.load()
    except (OSError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be decoded ({error}); fetch it again") from error
    return image.convert("RGB")


def thumbnail(adata, *, um_per_px: float = 8.0) -> tuple[np.ndarray, float]:
    """The whole section at about `um_per_px`: RGB uint8 (h, w, 3) and full-image px per its px."""
    image = Image.open(adata.uns["image_path"])
    full = image.width
    want = [max(1, round(s * adata.uns["um_per_px"] / um_per_px)) for s in image.size]
    image.draft("RGB", want)  # JPEG decodes at 1/2, 1/4 or 1/8 directly
    small = image.convert("RGB").resize(want, Image.Resampling.BOX)
    return np.asarray(small), full / small.width


def load_sections(root, names=None, *, patch_um=Config.patch_um, patch_px=Config.patch_px):
    """A list of `Section`s with their patches; `names=None` takes all that have an image."""
    known = list_sections(root)
    names = list(known if names is None else names)
    for n in names:
        if n not in known:
            raise InputError(f"{root}: no section '{n}' with counts and image; it has {known}")
    if len(set(names)) < len(names):
        raise InputError(f"sections {','.join(names)}: one is named twice; name each once")
    sections = []
    for n in names:
        adata = read_section(root, n)
        sections.append(
            Section(adata, *extract_patches(adata, patch_um=patch_um, patch_px=patch_px))
        )
    return sections
