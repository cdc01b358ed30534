"""A section: counts and coordinates as AnnData, with the image patches of its spots."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from seal_lite.config import Config
from seal_lite.data.patches import Thumbnail, extract_patches, thumbnail
from seal_lite.data.readers.catalogue import (
    NUMBER_COLUMNS,
    SectionFile,
    find_sections,
    list_sections,
    section_image,
    section_labels,
)
from seal_lite.data.readers.common import (
    ARRAY,
    POOL_UM,
    as_flags,
    as_length,
    as_name,
    as_numbers,
    coordinates,
    counted_genes,
    known,
    make_spots,
)
from seal_lite.data.readers.gene_names import (
    SPECIES,
    are_ensembl_ids,
    gene_keys,
    guess_species,
    use_symbols,
)
from seal_lite.data.readers.visium import image_scale
from seal_lite.data.registration import locate_spots, pool
from seal_lite.errors import InputError, reading

if TYPE_CHECKING:
    from anndata import AnnData

    from seal_lite.data.genes import GenePanel

log = logging.getLogger(__name__)

MIN_COUNTS = 100  # a spot with fewer transcripts has no profile worth the name
FINE_UM = 0.5 * POOL_UM  # spots with a smaller pitch are bins or cells, and are pooled
MIN_FITTED = 3  # spots that determine an array
NAME_FIELDS = ("patient", "species")  # metadata that are text


@dataclass
class Section:
    """A section with the image patches of those spots that have one.

    Attributes
    ----------
    adata
        All spots with counts, as `read_counts` returns them.
    rows
        (n,) int, indices into `adata` of the spots whose patch lies on the image.
    patches
        (n, px, px, 3) uint8 RGB, aligned with `rows`.
    """

    adata: AnnData
    rows: np.ndarray
    patches: np.ndarray
    _thumbnails: dict[float, Thumbnail] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def name(self) -> str:
        """The section's name."""
        return self.adata.uns["section_id"]

    @property
    def patient(self) -> str:
        """The patient's name; where none is known, the section's."""
        return self.adata.uns["patient_id"]

    def label(self, by: str) -> str | None:
        """Return the section's value of "section", "patient" or a label, None where it has none.

        The case of a label's name is ignored.
        """
        if by == "section":
            return self.name
        if by == "patient":
            return self.patient
        return self.adata.uns.get("labels", {}).get(by.lower())

    @property
    def keys(self) -> list[str]:
        """A stable name of each patch, as "section/barcode"."""
        return [f"{self.name}/{barcode}" for barcode in self.adata.obs_names[self.rows]]

    def key(self, i: int) -> str:
        """Return the name of patch `i`, as in `keys`."""
        return f"{self.name}/{self.adata.obs_names[self.rows[i]]}"

    def thumbnail(self, *, um_per_px: float = 8.0) -> Thumbnail:
        """Return the whole image at about `um_per_px`, and px of the full image per px of it.

        It is kept: figures draw it again and again, and a slide is slow to open.
        """
        if um_per_px not in self._thumbnails:
            self._thumbnails[um_per_px] = thumbnail(self.adata, um_per_px=um_per_px)
        return self._thumbnails[um_per_px]

    def expression(self, panel: GenePanel) -> np.ndarray:
        """Return z-scored expression (n, g) float32 of a panel's genes, aligned with `patches`.

        Raises
        ------
        InputError
            If the section lacks too many of the panel's genes.
        """
        return panel.transform(self.adata)[self.rows]

    @cached_property
    def digest(self) -> str:
        """The version of the data, a SHA-256 over names, counts and pixels in 64 hex digits."""
        names = "\n".join([*self.keys, *gene_keys(self.adata.var_names)])
        digest = hashlib.sha256(names.encode())
        counts = self.adata.layers["counts"]
        for array in (counts.data, counts.indices, counts.indptr, self.patches):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def read_counts(root: str | Path, name: str) -> AnnData:
    """Read one section's counts and coordinates.

    Bins and cells are pooled into square pseudo-spots. Spots with fewer than `MIN_COUNTS` counts
    are dropped and reported in the log.

    Parameters
    ----------
    root
        A folder with sections of any format of `readers.catalogue.SOURCES`, or one section.
    name
        The section's name.

    Returns
    -------
    anndata.AnnData
        n spots x g genes. `layers["counts"]`: (n, g) csr float32, raw counts. `obsm["spatial"]`:
        (n, 2) x, y in px of the full image. `obs`: section_id, patient_id, and array_col,
        array_row where there is an array. `uns`: section_id, patient_id, species, labels (of the
        reader and of sections.tsv); um_per_px, pitch_um and spot_um (of the spots), grid ("square",
        "hex" or "free"); image_path (empty without an image); gene_names ("symbols" or "Ensembl
        ids"); spots_without_counts, spots_without_position, shallow_spots (how many); notes
        (sentences about what was set aside).

    Raises
    ------
    InputError
        If something is missing, damaged or inconsistent.
    """
    file = _locate(root, name)
    labels = section_labels(file.base, name)
    with reading(file.path, remedy="restore what is missing"):
        raw = file.reader(file.path, labels)
        image = raw.uns.get("image_path")
        if not image:
            image = section_image(file)
        if image and raw.uns.get("px_of_full_image"):
            _shrink_to(Path(image), raw)
        adata = _select_spots(raw, file.path)
    metadata = _check_metadata(file.path, known({**raw.uns, **labels}))
    if image and "unaligned" in metadata:
        raise InputError(f"{file.path}: {metadata['unaligned']}")
    labels = {**raw.uns.get("labels", {}), **labels}
    notes = list(raw.uns.get("notes", []))
    del raw  # a section of bins is large
    species = _species_name(metadata, adata)  # by names as they are written
    adata = _place_on_slide(adata, metadata, path=file.path, image=image)
    n_features = adata.n_vars
    adata = use_symbols(adata, folder=file.base)
    if adata.n_vars < n_features:
        n_dropped = n_features - adata.n_vars
        notes.append(f"{n_dropped} of its features are no genes, or there twice: dropped")
    adata, n_shallow = _drop_shallow_spots(adata, name=name, path=file.path)
    patient = metadata.get("patient", name)
    adata.obs = adata.obs.assign(section_id=name, patient_id=patient)
    adata.uns |= {
        "section_id": name,
        "notes": [*notes, *adata.uns.get("notes", [])],
        "patient_id": patient,
        "image_path": "" if image is None else str(image),
        "labels": labels,
        "species": species,
        "gene_names": "Ensembl ids" if are_ensembl_ids(adata.var_names) else "symbols",
        "spots_without_counts": metadata.get("spots_without_counts", 0),
        "spots_without_position": metadata.get("spots_without_position", 0),
        "shallow_spots": n_shallow,
    }
    return adata


def _check_metadata(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata in which lengths are numbers and names are text, however they are stored."""
    converters = dict.fromkeys(NUMBER_COLUMNS, as_length) | dict.fromkeys(NAME_FIELDS, as_name)
    checked: dict[str, Any] = {}
    for name, convert in converters.items():
        if name in metadata:
            remedy = f"give {name} in sections.tsv"
            checked[name] = convert(path, name, metadata[name], remedy=remedy)
    return metadata | checked


def _locate(root: str | Path, name: str) -> SectionFile:
    """Find a section's file by its name."""
    sections = find_sections(root)
    if name not in sections:
        raise InputError(f"{root}: no section '{name}'; it has {', '.join(sorted(sections))}")
    return sections[name]


def _shrink_to(image: Path, raw: AnnData) -> None:
    """Convert places in px of the full image, where `image` is one that Space Ranger has shrunk."""
    scale = image_scale(image)
    if scale is None:
        raise InputError(
            f"{image}: no scalefactors_json.json beside it states its scale; "
            "restore that, or give the full image"
        )
    raw.obsm["spatial"] = raw.obsm["spatial"] * scale
    if "um_per_px" in raw.uns:
        raw.uns["um_per_px"] /= scale


def _select_spots(raw: AnnData, path: Path) -> AnnData:
    """Return the spots on tissue as a new AnnData, after checks of names, places and counts."""
    if "in_tissue" in raw.obs:
        raw = raw[as_flags(path, "in_tissue", raw.obs.in_tissue)]
    if not raw.n_obs:
        raise InputError(f"{path}: none of its spots is on tissue; pair counts and positions")
    if "spatial" not in raw.obsm:
        raise InputError(f'{path}: has no obsm["spatial"]; give px of the full image there')
    xy = coordinates(path, raw)
    if not np.isfinite(xy).all():
        raise InputError(f"{path}: a coordinate is not a number; correct it")
    if not raw.obs_names.is_unique:
        raise InputError(f"{path}: a barcode is listed twice; keep one row each")
    array = {name: as_numbers(path, name, raw.obs[name]) for name in ARRAY if name in raw.obs}
    whole = {name: place for name, place in array.items() if (place == place.round()).all()}
    counts, genes = counted_genes(path, raw)
    return make_spots(
        counts,
        obs=pd.DataFrame(whole, index=raw.obs_names),
        genes=genes.copy(),
        xy=xy,
        uns={},
    )


def _species_name(metadata: dict[str, Any], adata: AnnData) -> str:
    """Return the stated species, or the one that the genes' names suggest."""
    species = metadata.get("species")
    if not species:
        return guess_species(adata.var_names)
    return SPECIES.get(species.lower(), species)


def _place_on_slide(
    adata: AnnData, metadata: dict[str, Any], *, path: Path, image: str | Path | None
) -> AnnData:
    """Write scale and lattice into `uns`; return the spots, pooled where they are bins or cells.

    What a reader has pooled, in axes of its own, is not pooled again.
    """
    fit_to = _is_deep(adata)
    if fit_to.sum() < MIN_FITTED:
        fit_to = np.ones(adata.n_obs, bool)
    layout = locate_spots(adata, metadata, path=path, image=image, fit_to=fit_to)
    if not np.isfinite(layout.pitch_um):  # of one spot
        layout = replace(layout, pitch_um=POOL_UM, spot_um=POOL_UM / 2)
    adata.uns = asdict(layout)
    if layout.pitch_um < FINE_UM and not metadata.get("is_pooled"):
        return pool(adata, metadata.get("pool_um") or POOL_UM)
    return adata


def _is_deep(adata: AnnData) -> np.ndarray:
    """Return (n,) bool, which spots have at least `MIN_COUNTS` counts."""
    return np.asarray(adata.layers["counts"].sum(1)).ravel() >= MIN_COUNTS


def _drop_shallow_spots(adata: AnnData, *, name: str, path: Path) -> tuple[AnnData, int]:
    """Return the spots with at least `MIN_COUNTS` counts, and the number of the others."""
    is_deep = _is_deep(adata)
    if not is_deep.any():
        deepest = adata.layers["counts"].sum(1).max()
        raise InputError(
            f"{path}: no spot has {MIN_COUNTS} counts, the deepest has {deepest:.0f} of "
            f"{adata.n_vars} genes; give the raw counts of all genes, or for bins a larger pool_um"
        )
    n_shallow = int((~is_deep).sum())
    if n_shallow:
        log.info("%s: %d spots with under %d counts: dropped", name, n_shallow, MIN_COUNTS)
        adata = adata[is_deep].copy()
    return adata, n_shallow


def mixtures(root: str | Path, adatas: Sequence[AnnData]) -> Iterator[str]:
    """Yield a message where sections differ in species, or in the kind of their genes' names."""
    for key in ("species", "gene_names"):
        section_of_kind = {adata.uns[key]: adata.uns["section_id"] for adata in adatas}
        if len(section_of_kind) > 1:
            kinds = ", ".join(f"{section} has {kind}" for kind, section in section_of_kind.items())
            yield f"{root}: {kinds}; take sections of one kind, or add genes.tsv"


def load_sections(
    root: str | Path,
    names: Sequence[str] | None = None,
    *,
    patch_um: float = Config.patch_um,
    patch_px: int = Config.patch_px,
) -> list[Section]:
    """Read sections with their patches.

    Parameters
    ----------
    root
        A folder with sections of any format of `readers.catalogue.SOURCES`.
    names
        The sections to read; by default all that have an image.
    patch_um, patch_px
        Edge of a patch in um, and in px after resampling.

    Raises
    ------
    InputError
        As `load_counts` and `seal_lite.data.patches.extract_patches` do.
    """
    sections = []
    for adata in load_counts(root, names):
        rows, patches = extract_patches(adata, patch_um=patch_um, patch_px=patch_px)
        sections.append(Section(adata, rows, patches))
    return sections


def load_counts(root: str | Path, names: Sequence[str] | None = None) -> list[AnnData]:
    """Read the counts and coordinates of sections, as `read_counts` does.

    Parameters
    ----------
    root
        A folder with sections of any format of `readers.catalogue.SOURCES`.
    names
        The sections to read; by default all that have an image.

    Raises
    ------
    InputError
        If a name is absent or listed twice, the sections mix species or kinds of gene names, or as
        `read_counts` does.
    """
    with_image = list_sections(root)
    if not with_image:
        raise InputError(f"{root}: no section has both counts and an image; add images")
    names = list(with_image if names is None else names)
    for name in names:
        if name not in with_image:
            raise InputError(
                f"{root}: no section '{name}' with counts and image; it has {with_image}"
            )
    if len(set(names)) < len(names):
        raise InputError(f"sections {','.join(names)}: one is named twice; name each once")
    adatas = [read_counts(root, name) for name in names]
    for message in mixtures(root, adatas):
        raise InputError(message)
    return adatas
