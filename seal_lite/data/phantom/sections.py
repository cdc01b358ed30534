"""A tissue phantom with ground truth, written in the layout of her2st.

    OUT/phantom.json          every parameter and the seed
    OUT/data/...              images, counts and spot tables, as upstream writes them
    OUT/truth/genes.tsv       gene, class (visible, subtle, invisible, housekeeping), program
    OUT/truth/SECTION.npz     barcodes, genes, expected (spots, genes), region (spots,)
    OUT/sections.tsv          with a shift only: section, patient, site

`expected` is what the counts would be without noise: each gene's share of the spot's transcripts,
after lateral diffusion and with the patient's batch effect. Spots measure what `tissue.grow` grew
and `render.render` drew; an image encoder can therefore be judged against what was there to be
seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, product
from pathlib import Path
from string import ascii_uppercase

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from seal_lite.data.phantom.measurement import (
    ASSAY,
    SpotLayout,
    dominant_region,
    draw_counts,
    expected_expression,
    place_spots,
)
from seal_lite.data.phantom.output import whole_folder
from seal_lite.data.phantom.render import Look, render
from seal_lite.data.phantom.tissue import REGIONS, gene_table, grow, transcriptomes
from seal_lite.errors import InputError

FORMAT = 3  # raised whenever the same parameters would give other files
WORKERS = 2  # threads that write sections
SHIFTS = ("stain", "regions", "batch")  # what may differ between two sites' patients
# Added to the bias of a region at the second site: little tumour and gland, much that is rare at
# the first.
SHIFTED_BIAS = {"tumour": -0.5, "gland": -0.5, "lymphoid": 0.6, "adipose": 0.5, "necrosis": 0.6}


@dataclass(frozen=True)
class Patient:
    """What the sections of one patient share.

    Parameters
    ----------
    bias
        Weight of each region.
    look
        Stain and scanner.
    batch
        A factor for the expression of each gene, (g,).
    depth
        Median counts of a spot.
    """

    bias: dict[str, float]
    look: Look
    batch: np.ndarray
    depth: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Patient:
        """Draw a patient of the first site."""
        bias = {
            name: region.bias + rng.normal(0, region.spread) for name, region in REGIONS.items()
        }
        look = Look.draw(rng)
        batch = rng.lognormal(0, ASSAY.batch_sd, gene_table()["gene"].nunique())
        return cls(bias, look, batch, depth=rng.uniform(*ASSAY.depth))

    def elsewhere(self, shift: str) -> Patient:
        """Return the patient as of the second site, which differs in ``shift`` alone."""
        if shift == "stain":
            return replace(self, look=self.look.elsewhere())
        if shift == "regions":
            bias = {name: self.bias[name] + SHIFTED_BIAS.get(name, 0) for name in self.bias}
            return replace(self, bias=bias)
        # One factor a gene for the whole site, and patients twice as far from each other.
        rng = np.random.default_rng(13)
        site = rng.lognormal(0, 2 * ASSAY.batch_sd, len(self.batch))
        return replace(self, batch=self.batch**2 * site)


@dataclass(frozen=True)
class _Plan:
    """A section to write."""

    name: str
    patient_id: str
    patient: Patient
    site: str
    seed: np.random.SeedSequence


def phantom(
    out: str | Path,
    *,
    patients: int = 4,
    sections_per_patient: int = 2,
    spots: int = 300,
    seed: int = 0,
    um_per_px: float = 0.5,
    shift: str | None = None,
) -> Path:
    """Write a phantom in the layout of her2st.

    The same arguments give the same bytes. An existing phantom of the same arguments is left as it
    is, and nothing is left behind if writing fails.

    Parameters
    ----------
    out
        Folder to write.
    patients
        How many; they are named PA, PB, ...
    sections_per_patient
        Sections of each; those of PA are named PA1, PA2, ...
    spots
        How many spots of each section lie under tissue.
    seed
        Seed of every random draw.
    um_per_px
        Scale of the images, 0.2 to 2 um per pixel.
    shift
        "stain", "regions" or "batch": every other patient is from a second site, where that alone
        differs. The column of that name in sections.tsv holds each section's site.

    Returns
    -------
    Path
        The folder, absolute.

    Raises
    ------
    InputError
        Where an argument is out of range, or ``out`` holds anything else.
    """
    out = Path(out).absolute()
    um_per_px = float(um_per_px)
    arguments = {
        "patients": patients,
        "sections_per_patient": sections_per_patient,
        "spots": spots,
        "seed": seed,
    }
    _check_arguments(arguments, um_per_px, shift)
    parameters = {"format": FORMAT, **arguments, "um_per_px": um_per_px, "assay": vars(ASSAY)}
    if shift:
        parameters["shift"] = shift
    with whole_folder(out, "phantom.json", parameters) as root:
        if root is None:
            return out
        for folder in ("data/ST-imgs", "data/ST-cnts", "data/ST-spotfiles", "truth"):
            (root / folder).mkdir(parents=True)
        _write_genes(root)
        plans = _plan_sections(patients, sections_per_patient, seed=seed, shift=shift)
        if shift:
            _write_sites(root, plans, shift)
        write = partial(_write_section, root, spots=spots, um_per_px=um_per_px)
        # Threads suffice: Pillow, SciPy and large NumPy operations release the interpreter's lock.
        bar = tqdm(total=len(plans), desc="phantom", unit="section", disable=None)
        with bar, ThreadPoolExecutor(WORKERS) as pool:
            for _ in pool.map(write, plans):
                bar.update()
    return out


def _check_arguments(arguments: dict[str, int], um_per_px: float, shift: str | None) -> None:
    """Raise `InputError` for an argument out of range."""
    least = {"patients": 1, "sections_per_patient": 1, "spots": 9, "seed": 0}
    for key, value in arguments.items():
        if value != int(value) or value < least[key]:
            raise InputError(f"phantom: {key}={value} must be a whole number >= {least[key]}.")
    if not 0.2 <= um_per_px <= 2:
        raise InputError(f"phantom: um_per_px={um_per_px} must lie between 0.2 and 2.")
    if shift is not None and shift not in SHIFTS:
        raise InputError(f"phantom: shift={shift} is unknown; use one of {', '.join(SHIFTS)}.")


def _patient_ids() -> Iterator[str]:
    """Yield PA to PZ, PAA, PAB, ..."""
    for length in count(1):
        for letters in product(ascii_uppercase, repeat=length):
            yield "P" + "".join(letters)


def _plan_sections(
    patients: int, sections_per_patient: int, *, seed: int, shift: str | None
) -> list[_Plan]:
    """Draw the patients, and give every section its own seed."""
    plans = []
    patient_seeds = np.random.SeedSequence(seed).spawn(patients)
    for i, (patient_seed, patient_id) in enumerate(
        zip(patient_seeds, _patient_ids(), strict=False)
    ):
        own_seed, *section_seeds = patient_seed.spawn(1 + sections_per_patient)
        patient = Patient.draw(np.random.default_rng(own_seed))
        site = "first site"
        if shift and i % 2:
            patient = patient.elsewhere(shift)
            site = "second site"
        for number, section_seed in enumerate(section_seeds, start=1):
            plans.append(_Plan(f"{patient_id}{number}", patient_id, patient, site, section_seed))
    return plans


def _write_genes(root: Path) -> None:
    """Write the class and the programs of each gene."""
    by_gene = gene_table().groupby("gene", sort=False)
    genes = by_gene.agg({"class": "first", "program": "+".join})
    genes.to_csv(root / "truth/genes.tsv", sep="\t")


def _write_sites(root: Path, plans: list[_Plan], shift: str) -> None:
    """Write the site of each section."""
    rows = [(plan.name, plan.patient_id, plan.site) for plan in plans]
    table = pd.DataFrame(rows, columns=["section", "patient", shift])
    table.to_csv(root / "sections.tsv", sep="\t", index=False)


def _write_section(root: Path, plan: _Plan, *, spots: int, um_per_px: float) -> None:
    """Grow, measure, draw and write one section."""
    rng, image_rng = (np.random.default_rng(seed) for seed in plan.seed.spawn(2))
    patient = plan.patient
    layout = place_spots(rng, spots)
    tissue = grow(rng, layout.inside, side=layout.side, bias=patient.bias)
    shares, content = expected_expression(tissue.cells, layout, patient.batch)
    counts = draw_counts(rng, shares, content, median_depth=patient.depth)

    table = _lose_some(rng, _name_counts(counts, layout.index))
    compression = {"method": "gzip", "compresslevel": 6, "mtime": 0}
    table.to_csv(root / f"data/ST-cnts/{plan.name}.tsv.gz", sep="\t", compression=compression)
    spot_table = _spot_table(layout, um_per_px)
    spot_file = root / f"data/ST-spotfiles/{plan.name}_selection.tsv"
    spot_table.to_csv(spot_file, sep="\t", index=False)
    has_counts = np.isin(_barcodes(layout.index), table.index)
    np.savez_compressed(
        root / f"truth/{plan.name}.npz",
        barcodes=_barcodes(layout.index[has_counts]),
        genes=transcriptomes().genes.astype(str),
        expected=shares[has_counts].astype(np.float32),
        region=dominant_region(tissue.region, layout.position[has_counts]),
    )
    folder = root / "data/ST-imgs" / plan.patient_id / plan.name
    folder.mkdir(parents=True)
    image = render(tissue, patient.look, um_per_px=um_per_px, rng=image_rng)
    Image.fromarray(image).save(folder / f"HE_{plan.name}.jpg", quality=90)


def _barcodes(index: np.ndarray) -> np.ndarray:
    """Name spots after their column and row on the array, (n,) str."""
    return np.array([f"{x}x{y}" for x, y in index])


def _name_counts(counts: np.ndarray, index: np.ndarray) -> pd.DataFrame:
    """Return counts (n, g) with barcodes and genes."""
    return pd.DataFrame(counts, index=_barcodes(index), columns=transcriptomes().genes)


def _lose_some(rng: np.random.Generator, table: pd.DataFrame) -> pd.DataFrame:
    """Drop a few weakly expressed genes and a spot or two, as upstream's tables lack them."""
    housekeeping = gene_table().query("program == 'all cells'")
    weak = housekeeping.nsmallest(40, "per_mille")["gene"]
    lost_genes = rng.choice(weak, ASSAY.genes_lost, replace=False)
    n_lost_spots = rng.integers(1, ASSAY.no_counts + 1)
    lost_spots = rng.choice(len(table), n_lost_spots, replace=False)
    return table.drop(columns=lost_genes, index=table.index[lost_spots])


def _spot_table(layout: SpotLayout, um_per_px: float) -> pd.DataFrame:
    """Return the spots as upstream's selection tables hold them."""
    table = pd.DataFrame(layout.index, columns=["x", "y"])
    table[["new_x", "new_y"]] = (layout.position / ASSAY.pitch_um).round(3)
    table[["pixel_x", "pixel_y"]] = (layout.position / um_per_px).round(2)
    table["selected"] = 1
    return table
