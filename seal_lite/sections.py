"""From a folder to sections: which are there, and each one's counts, coordinates and image.

A folder holds sections of any of the formats below, and may hold a table of what is known of them:

    ROOT/sections.tsv    section, and any of: patient, organ, technology, stain, species, image (a
                         path under ROOT), um_per_px, table (of a SpatialData store), pool_um, ...
    ROOT/genes.tsv       id and symbol of genes, where counts come with Ensembl ids alone
"""

from __future__ import annotations

import glob
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.spatial import cKDTree

from . import formats
from .config import Config
from .errors import InputError, reading
from .images import KINDS, open_slide
from .pairs import Section, extract_patches, um_per_px

log = logging.getLogger(__name__)

MIN_COUNTS = 100  # a spot with fewer transcripts has no profile worth the name
SOURCES = (  # a file that marks a section, which the first * names; and who reads it
    ("data/ST-cnts/*.tsv.gz", formats.legacy),
    ("st/*.h5ad", formats.hest),
    ("*/*filtered_feature_bc_matrix.h5", formats.visium),
    ("*/outs/*filtered_feature_bc_matrix.h5", formats.visium),
    ("*/binned_outputs", formats.visium_hd),
    ("*/outs/binned_outputs", formats.visium_hd),
    ("*/transcripts.parquet", formats.xenium),
    ("*.h5ad", formats.h5ad),
    ("*.zarr", formats.spatialdata))  # fmt: skip
IMAGES = (  # where its image is sought; .h5: HEST's ready patches, where the slide is not there
    "data/ST-imgs/*/{name}/*", "wsis/{name}.*", "patches/{name}.h5", "{name}/*he_image*",
    "{name}/*", "{name}/outs/*", "{name}.*", "{name}.zarr/images")  # fmt: skip
ENSEMBL = r"ENS[A-Z]*G\d+"
ARRAY = ("array_col", "array_row")
SYMBOLS = ("gene_symbols", "gene_symbol", "gene_name", "feature_name", "symbol")  # columns of var
SPECIES = {"homo sapiens": "human", "mus musculus": "mouse"}
FINE = 0.5  # of POOL_UM: what lies closer together is no spot, but a bin or a cell


def sources(root) -> dict[str, tuple]:
    """{name: (reader, path, base)} of every section under `root`, or of the one that it is itself.

    Tables and images are sought relative to `base`. Raises `InputError` where there is none.
    """
    root, found = Path(root).absolute(), {}
    for pattern, reader in SOURCES:
        star = next(i for i, part in enumerate(Path(pattern).parts) if "*" in part)
        end = Path(pattern).parts[star].partition("*")[2]
        inside = [(p, root) for p in sorted(root.glob(pattern))]
        itself = [(p, root.parent) for p in root.parent.glob(pattern) if root in (p, *p.parents)]
        for path, base in inside or itself:
            name = path.relative_to(base).parts[star].removesuffix(end)
            found.setdefault(name, (reader, path, base))
    if not found:
        marks = ", ".join(pattern for pattern, _ in SOURCES)
        raise InputError(f"{root}: holds no section; what marks one is {marks}")
    return found


def list_sections(root) -> list[str]:
    """Names of all sections under `root` that have both counts and an image, sorted.

    Raises `InputError` where there is no section at all, and for an image that is named in
    sections.tsv but absent, or not the only one.
    """
    found = sources(root)
    return sorted(n for n, (*_, base) in found.items() if image_path(base, n) is not None)


def image_path(base, name: str) -> Path | None:
    """The section's image, as sections.tsv names it or where it is expected; None without one.

    Raises `InputError` where it is named and absent, or not the only one.
    """
    base = Path(base)
    if told := section_labels(base, name).get("image"):
        if not (base / told).exists():
            raise InputError(f"{base / told}: no such image; correct sections.tsv")
        return base / told
    for pattern in IMAGES:
        places = sorted(base.glob(pattern.format(name=glob.escape(name))))
        found = [p for p in places if p.suffix.lower() in KINDS or "*" not in pattern]
        if len(found) > 1:
            both = f"{found[0]}: is not the only image there ({found[1].name})"
            raise InputError(f"{both}; name one in the column image of sections.tsv")
        if found:
            return found[0]
    return None


def section_labels(base, name: str) -> dict[str, str]:
    """What BASE/sections.tsv says of a section: {column: value}, or nothing without that file.

    Raises `InputError` unless it has one row for the section.
    """
    path = Path(base) / "sections.tsv"
    if not path.exists():
        return {}
    table = formats.read_table(path, needs=["section"], dtype=str, keep_default_na=False)
    rows = table[table.section == name]
    if len(rows) != 1:
        raise InputError(f"{path}: has {len(rows)} rows for section {name}; give it one")
    labels = {k: v for k, v in rows.iloc[0].drop("section").items() if v}
    for k in labels.keys() & {"um_per_px", "pitch_um", "spot_um", "pool_um"}:
        with reading(path, fault=f"{k} '{labels[k]}' is no number", remedy="correct it"):
            float(labels[k])
    return labels


def read_section(root, name: str):
    """Read one section's counts and coordinates.

    Returns AnnData (spots x genes): `layers["counts"]` csr of raw counts, `obsm["spatial"]` (n, 2)
    x, y in full-image px, `obs` section_id, patient_id, and array_col, array_row where there is an
    array; `uns` section_id, patient_id, species, um_per_px, pitch_um and spot_um (of the spots),
    grid ("square", "hex" or "free"), image_path (str), spots_without_counts, labels
    (`section_labels`). Bins and cells are pooled into square pseudo-spots. Raises `InputError` for
    anything missing or inconsistent.
    """
    found = sources(root)
    if name not in found:
        raise InputError(f"{root}: no section '{name}'; it has {', '.join(sorted(found))}")
    reader, path, base = found[name]
    labels = section_labels(base, name)
    with reading(path, remedy="restore what is missing"):
        raw = reader(path, labels)
        adata = _spots(path, raw)
    told, labels = {**raw.uns, **labels}, {**raw.uns.get("labels", {}), **labels}
    image = raw.uns.get("image_path") or image_path(base, name) or ""
    species = told.get("species") or _guess_species(adata.var_names)
    adata = _with_symbols(base, adata)
    deep = np.asarray(adata.layers["counts"].sum(1)).ravel() >= MIN_COUNTS
    adata.uns = _place(path, adata, adata[deep] if deep.sum() > 2 else adata, image, told)
    is_id = adata.var_names.str.match(ENSEMBL).mean() > 0.5
    if adata.uns["pitch_um"] < FINE * formats.POOL_UM:
        adata = pool(adata, float(told.get("pool_um", formats.POOL_UM)))
        deep = np.asarray(adata.layers["counts"].sum(1)).ravel() >= MIN_COUNTS
    if not deep.any():
        raise InputError(f"{path}: no spot has {MIN_COUNTS} counts; give raw ones, or pool wider")
    if shallow := int((~deep).sum()):
        log.info("%s: %d spots with under %d counts: dropped", name, shallow, MIN_COUNTS)
        adata = adata[deep].copy()
    patient = told.get("patient") or name
    adata.obs = adata.obs.assign(section_id=name, patient_id=patient)
    adata.uns |= {"section_id": name, "patient_id": patient, "image_path": str(image),
                  "labels": labels, "species": SPECIES.get(species.lower(), species),
                  "gene_names": "Ensembl ids" if is_id else "symbols",
                  "spots_without_counts": told.get("spots_without_counts", 0),
                  "shallow_spots": shallow}  # fmt: skip
    return adata


def _spots(path, adata):
    """What is on tissue, as a new AnnData with `layers["counts"]` csr float32, checked."""
    if "in_tissue" in adata.obs:
        adata = adata[adata.obs.in_tissue.astype(float) == 1]
    if not adata.n_obs:
        raise InputError(f"{path}: none of its spots is on tissue; pair counts and positions")
    if "spatial" not in adata.obsm:
        raise InputError(f'{path}: has no obsm["spatial"]; give px of the full image there')
    xy = np.asarray(adata.obsm["spatial"], np.float64)[:, :2]
    if not np.isfinite(xy).all():
        raise InputError(f"{path}: some coordinate is not a number; correct it")
    if not adata.obs_names.is_unique:
        raise InputError(f"{path}: a barcode stands there twice; keep one row each")
    counts = raw_counts(path, adata)
    array = [c for c in ARRAY if c in adata.obs and (adata.obs[c] == adata.obs[c].round()).all()]
    return formats.spots_of(counts, adata.obs[array].copy(), adata.var.copy(), xy, {})


def raw_counts(path, adata) -> sp.csr_matrix:
    """Counts (n, genes) float32 of `layers["counts"]`, `raw` or `X`, whichever is there first.

    Raises `InputError` about `path` unless they are whole numbers from 0.
    """
    raw = adata.X if adata.raw is None or adata.raw.shape != adata.shape else adata.raw.X
    counts = sp.csr_matrix(adata.layers.get("counts", raw), dtype=np.float32)
    if not (np.isfinite(counts.data) & (counts.data >= 0) & (counts.data % 1 == 0)).all():
        raise InputError(f"{path}: needs whole numbers >= 0; give raw counts, not normalised ones")
    return counts


def _guess_species(names) -> str:
    """By the convention of names: ENSG and ERBB2 are human, ENSMUSG and Erbb2 are a mouse's."""
    ids = names.str.extract(r"^ENS([A-Z]*)G\d+")[0].dropna()
    upper = (names == names.str.upper()).mean() > 0.5
    kind = ids.mode()[0] if len(ids) > len(names) / 2 else "" if upper else "MUS"
    return {"": "human", "MUS": "mouse"}.get(kind, kind)


def _with_symbols(base, adata):
    """Genes by their symbol in upper case, the first of duplicates; Ensembl ids that neither a
    column of `var` nor BASE/genes.tsv (id, symbol) translates stay, without their version."""
    names = adata.var_names.str.replace(rf"^({ENSEMBL})\.\d+$", r"\1", regex=True).to_series()
    known = [adata.var[c].astype(str) for c in SYMBOLS if c in adata.var]
    if (Path(base) / "genes.tsv").exists():
        table = formats.read_table(Path(base) / "genes.tsv", needs=["id", "symbol"], dtype=str)
        known.append(names.map(dict(zip(table.id, table.symbol, strict=True))).fillna(names))
    for symbols in known:
        names = names.mask(names.str.match(ENSEMBL).to_numpy(), symbols.to_numpy())
    adata.var_names = names.str.upper().to_numpy()
    return adata[:, ~adata.var_names.duplicated()].copy()


def _place(path, adata, deep, image, told) -> dict:
    """What is known of the spots' scale and array, checked against each other; the array is fitted
    to the `deep` ones."""
    um, pitch, step = (told.get(k) for k in ("um_per_px", "pitch_um", "step_um"))
    pitch = pitch and float(pitch)
    grid = "free"
    if set(ARRAY) <= set(adata.obs):
        hexagonal = (adata.obs[list(ARRAY)].sum(axis=1) % 2 == 0).all()
        grid = "hex" if hexagonal else "square"
        step = step or (formats.VISIUM["step_um"] if hexagonal else pitch and (pitch, pitch))
    file, upright = told.get("source", path), bool(told.get("upright"))
    fitted = step and um_per_px(deep, step_um=step, upright=upright, source=file)
    um = float(um or fitted or (image and open_slide(image).um_per_px) or 0)
    if not um > 0:
        raise InputError(f"{path}: nothing says um per px; give um_per_px in sections.tsv")
    apart = cKDTree(adata.obsm["spatial"]).query(adata.obsm["spatial"], k=2)[0][:, 1]
    measured = um * float(np.median(apart))
    if fitted and not 0.95 < um / fitted < 1.05:
        said = f"{path}: {um:.3f} um per px is said, but the spots' array says {fitted:.3f}"
        raise InputError(f"{said}; correct um_per_px, or give the coordinates' own image")
    if pitch and not fitted and not 0.85 < measured / pitch < 1.15:
        said = f"{path}: spots are {measured:.0f} um apart at {um:.3f} um per px, not {pitch:g}"
        raise InputError(f"{said}; correct um_per_px or pitch_um")
    pitch = (step[0] * (2 if grid == "hex" else 1)) if step else measured
    return {"um_per_px": um, "pitch_um": pitch, "grid": grid,
            "spot_um": float(told.get("spot_um") or pitch / 2)}  # fmt: skip


def pool(adata, size_um: float):
    """Counts summed in squares of `size_um` um, the centres being the coordinates of the new spots.

    HEST pools the cells of Xenium and the bins of Visium HD like this.
    """
    um = adata.obsm["spatial"] * adata.uns["um_per_px"]
    square, at = np.unique((um // size_um).astype(int), axis=0, return_inverse=True)
    ones = np.ones(len(um), np.float32)
    counts = sp.csr_matrix((ones, (at.ravel(), np.arange(len(um))))) @ adata.layers["counts"]
    obs = pd.DataFrame(square, columns=list(ARRAY), index=[f"{x}x{y}" for x, y in square])
    centre = (square + 0.5) * size_um / adata.uns["um_per_px"]
    given = {"pitch_um": size_um, "spot_um": size_um, "grid": "square"}
    return formats.spots_of(counts, obs, adata.var, centre, {**adata.uns, **given})


def mixtures(root, found):
    """Yield a sentence where sections (AnnData) differ in species, or in what genes are called."""
    for what in ("species", "gene_names"):
        kinds = {a.uns[what]: a.uns["section_id"] for a in found}
        if len(kinds) > 1:
            listed = ", ".join(f"{section} has {kind}" for kind, section in kinds.items())
            yield f"{root}: {listed}; take sections of one kind, or add genes.tsv"


def load_sections(root, names=None, *, patch_um=Config.patch_um, patch_px=Config.patch_px):
    """A list of `Section`s with their patches, each `patch_um` um and `patch_px` px wide.

    Raises `InputError` as `load_counts` and `extract_patches` do.
    """
    size = {"patch_um": patch_um, "patch_px": patch_px}
    return [Section(a, *extract_patches(a, **size)) for a in load_counts(root, names)]


def load_counts(root, names=None) -> list:
    """What `read_section` returns of every section; `names=None` takes all that have an image.

    Raises `InputError` as that does, for a name that is not there or twice, and for a mixture of
    species or of kinds of gene names.
    """
    known = list_sections(root)
    names = list(known if names is None else names)
    for n in names:
        if n not in known:
            raise InputError(f"{root}: no section '{n}' with counts and image; it has {known}")
    if len(set(names)) < len(names):
        raise InputError(f"sections {','.join(names)}: one is named twice; name each once")
    found = [read_section(root, n) for n in names]
    for said in mixtures(root, found):
        raise InputError(said)
    return found
