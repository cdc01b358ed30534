"""A tissue phantom with known truth, written in the layout of her2st (see `seal_lite.sections`).

    OUT/phantom.json          every parameter and the seed
    OUT/data/...              images, counts and spot tables, as upstream writes them
    OUT/truth/genes.tsv       gene, class (visible, subtle, invisible, housekeeping), program
    OUT/truth/SECTION.npz     barcodes, genes, expected (spots, genes), region (spots,)

`expected` is what the counts would be without noise: each gene's share of the spot's transcripts,
after lateral diffusion and with the patient's batch effect. Spots see what `tissue.grow` grew and
`render.render` drew; an image encoder can therefore be judged against what was there to be seen.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import csr_array
from scipy.spatial import cKDTree
from tqdm import tqdm

from ..errors import InputError
from .render import Look, draw_look, render
from .tissue import CELL_TYPES, REGIONS, STATES, STEP, gene_table, grow, outline, transcriptomes

FORMAT = 1  # raised whenever the same parameters would give other files


@dataclass(frozen=True)
class Assay:
    """The measurement. None of these numbers was chosen by any model's score."""

    pitch_um: float = 200.0  # centre to centre, Ståhl et al., Science 2016
    spot_um: float = 100.0  # diameter, ibid.
    depth: tuple[float, float] = (5500.0, 10500.0)  # median counts a spot; 8,500 in her2st's C2
    depth_sd: float = 0.4  # of the log of a spot's depth beyond what its RNA content explains
    depth_power: float = 0.5  # depth ~ RNA^0.5; log-sd 0.6 in all, 1.1 in C2 with its empty spots
    # A spot's share of transcripts from its neighbours: 30% and more at 100 um pitch (SpotClean,
    # Ni et al., Nat Commun 2022); less is expected at 200 um.
    diffusion: float = 0.2
    ambient: float = 0.02  # share of the section's mean everywhere, ibid.
    # Var = mean + dispersion mean^2: a coefficient of variation of 0.3 beyond Poisson, between
    # that of replicates of one line (0.1) and of human individuals (0.4), edgeR user's guide.
    dispersion: float = 0.1
    batch_sd: float = 0.3  # of the log of a gene's factor in a patient
    no_counts: int = 2  # up to so many selected spots without a row in the counts, as upstream
    genes_lost: int = 3  # weakly expressed genes that a section's table lacks, as upstream


ASSAY = Assay()


@dataclass(frozen=True)
class Patient:
    """What the sections of one patient share: composition, stain and scanner, batch and depth."""

    bias: dict[str, float]
    look: Look
    batch: np.ndarray  # (genes,) factors
    depth: float  # median counts a spot


def _draw_patient(rng):
    return Patient(
        bias={name: bias + rng.normal(0, spread) for name, (bias, _, spread) in REGIONS.items()},
        look=draw_look(rng),
        batch=rng.lognormal(0, ASSAY.batch_sd, gene_table()["gene"].nunique()),
        depth=rng.uniform(*ASSAY.depth),
    )


def _patient_name(i):
    """PA ... PZ, PAA, PAB ..."""
    letters = ""
    while i >= 0:
        letters, i = chr(ord("A") + i % 26) + letters, i // 26 - 1
    return "P" + letters


def _spots_under_tissue(rng, spots):
    """Grow an outline over exactly `spots` array positions: the image's side in um, what is inside
    (bool grid of STEP um), array indices (spots, 2) and true positions (spots, 2) in um."""
    n = int(np.ceil(np.sqrt(spots / 0.7)))
    side = (n + 1) * ASSAY.pitch_um
    score = outline(rng, side)
    index = np.stack(np.meshgrid(np.arange(1, n + 1), np.arange(1, n + 1)), -1).reshape(-1, 2)
    at = (index * ASSAY.pitch_um / STEP).astype(int)
    depth = score[at[:, 1], at[:, 0]]
    chosen = np.sort(np.argsort(-depth, kind="stable")[:spots])
    # The array is printed with a small error; the tissue reaches a little beyond the last spots.
    position = (index[chosen] + rng.normal(0, 0.01, (spots, 2))) * ASSAY.pitch_um
    return side, score > depth[chosen].min() - 0.01, index[chosen], position


def expected_expression(cells, index, position, batch):
    """Noise-free expression of each spot.

    cells: a `Tissue`'s cells. index: (spots, 2) array indices. position: (spots, 2) in um. batch:
    (genes,) factors. Returns the expected shares (spots, genes), rows summing to one, and the
    spots' RNA content (spots,) in average cells."""
    _, base, gain = transcriptomes()
    rna = np.array([cell.rna for cell in CELL_TYPES])
    tree = cKDTree(cells[["x", "y"]].to_numpy())
    under = tree.query_ball_point(position, ASSAY.spot_um / 2, return_sorted=True)
    cell = np.concatenate(under).astype(int)
    spot = np.repeat(np.arange(len(under)), [len(u) for u in under])
    kind = cells["kind"].to_numpy()[cell]
    amount = csr_array((rna[kind], (spot, kind)), shape=(len(under), len(rna)))
    expression = amount @ base
    for state, extra in zip(STATES, gain, strict=True):
        on = np.bincount(spot, rna[kind] * cells[state].to_numpy()[cell], len(under))
        expression += np.outer(on, extra)

    near = cKDTree(index).query_ball_point(index, 1.5)  # itself and up to eight neighbours
    links = [(i, j) for i, neighbours in enumerate(near) for j in neighbours if j != i]
    i, j = np.array(links, dtype=int).reshape(-1, 2).T
    around = csr_array((np.ones(len(i)), (i, j)), shape=(len(near),) * 2) @ expression
    around /= np.maximum(np.bincount(i, minlength=len(near)), 1)[:, None]
    expression += ASSAY.diffusion * (around - expression)
    expression += ASSAY.ambient * (expression.mean(0) - expression)
    content = expression.sum(1)
    share = expression * batch
    return share / share.sum(1, keepdims=True), content


def _write_section(root, name, patient, seed, spots, um_per_px):
    """Grow, measure, draw and write one section under `root`."""
    rng, image_rng = (np.random.default_rng(s) for s in seed.spawn(2))
    side, inside, index, position = _spots_under_tissue(rng, spots)
    tissue = grow(rng, side, inside, patient.bias)
    share, content = expected_expression(tissue.cells, index, position, patient.batch)

    depth = (content / np.median(content)) ** ASSAY.depth_power
    depth *= patient.depth * rng.lognormal(0, ASSAY.depth_sd, spots)
    shape = 1 / ASSAY.dispersion  # negative binomial as a Poisson of a gamma
    counts = rng.poisson(share * depth[:, None] * rng.gamma(shape, 1 / shape, share.shape))

    genes, *_ = transcriptomes()
    weak = gene_table().query("program == 'all cells'").nsmallest(40, "per_mille")["gene"]
    keep = ~np.isin(genes, rng.choice(weak, ASSAY.genes_lost, replace=False))
    lost = rng.choice(spots, rng.integers(1, ASSAY.no_counts + 1), replace=False)
    rows = np.setdiff1d(np.arange(spots), lost)
    barcodes = np.array([f"{x}x{y}" for x, y in index[rows]])
    table = pd.DataFrame(counts[rows][:, keep], index=barcodes, columns=genes[keep])
    table.to_csv(root / "data/ST-cnts" / f"{name}.tsv.gz", sep="\t",
                 compression={"method": "gzip", "compresslevel": 6, "mtime": 0})
    new, pixel = position / ASSAY.pitch_um, position / um_per_px
    where = {"x": index[:, 0], "y": index[:, 1], "new_x": new[:, 0].round(3),
             "new_y": new[:, 1].round(3), "pixel_x": pixel[:, 0].round(2),
             "pixel_y": pixel[:, 1].round(2), "selected": 1}
    where = pd.DataFrame(where)
    where.to_csv(root / "data/ST-spotfiles" / f"{name}_selection.tsv", sep="\t", index=False)
    np.savez_compressed(root / "truth" / f"{name}.npz", barcodes=barcodes,
                        genes=genes.astype(str), expected=share[rows].astype(np.float32),
                        region=_dominant_region(tissue.region, position[rows]))

    folder = root / "data/ST-imgs" / name.rstrip("0123456789") / name
    folder.mkdir(parents=True)
    image = render(tissue, patient.look, um_per_px=um_per_px, rng=image_rng)
    Image.fromarray(image).save(folder / f"HE_{name}.jpg", quality=90)
    return name


def _dominant_region(region, position):
    """The most frequent region under each spot's footprint: (spots,) str."""
    reach = int(ASSAY.spot_um / 2 / STEP)
    disc = np.argwhere(np.hypot(*np.indices((2 * reach + 1,) * 2) - reach) <= reach) - reach
    under = (position / STEP).astype(int)[:, None] + disc  # (spots, points, 2) as x, y
    under = region[under[..., 1], under[..., 0]]
    share = np.stack([(under == i).sum(1) for i in range(len(REGIONS))])
    return np.array(list(REGIONS))[share.argmax(0)]


def phantom(out, *, patients=4, sections_per_patient=2, spots=300, seed=0, um_per_px=0.5, workers=2,
            progress=True):
    """Write a phantom of `patients` x `sections_per_patient` sections under `out`.

    Patients are PA, PB, ..., sections PA1, PA2, ...; each section has exactly `spots` spots under
    tissue and an image at `um_per_px` um per pixel. The same arguments give the same bytes whatever
    the number of `workers` (processes); an existing phantom of the same arguments is left as it is.
    Returns `out` as a Path. Raises InputError if an argument is out of range or if `out` holds
    anything else. Nothing is left behind if it fails."""
    out = Path(out).absolute()
    arguments = {"patients": patients, "sections_per_patient": sections_per_patient,
                 "spots": spots, "seed": seed}
    for key, low in (("patients", 1), ("sections_per_patient", 1), ("spots", 9), ("seed", 0)):
        if arguments[key] != int(arguments[key]) or arguments[key] < low:
            raise InputError(f"phantom: {key}={arguments[key]} must be a whole number >= {low}.")
    um_per_px = float(um_per_px)
    if not 0.2 <= um_per_px <= 2:
        raise InputError(f"phantom: um_per_px={um_per_px} must lie between 0.2 and 2.")
    parameters = {"format": FORMAT, **arguments, "um_per_px": um_per_px, "assay": asdict(ASSAY)}
    parameters = json.dumps(parameters, indent=1) + "\n"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        mark = out / "phantom.json"
        if mark.is_file() and mark.read_text() == parameters:
            return out
        raise InputError(f"{out} exists and is not a phantom of these parameters: choose another "
                         "folder or remove this one.")

    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    for folder in ("data/ST-imgs", "data/ST-cnts", "data/ST-spotfiles", "truth"):
        (partial / folder).mkdir(parents=True)
    try:
        table = gene_table().groupby("gene", sort=False)
        table = table.agg({"class": "first", "program": "+".join})
        table.to_csv(partial / "truth/genes.tsv", sep="\t")
        jobs = []
        for i, patient_seed in enumerate(np.random.SeedSequence(seed).spawn(patients)):
            own, *section_seeds = patient_seed.spawn(1 + sections_per_patient)
            patient = _draw_patient(np.random.default_rng(own))
            jobs += [(partial, f"{_patient_name(i)}{j}", patient, section_seed, spots, um_per_px)
                     for j, section_seed in enumerate(section_seeds, start=1)]
        with tqdm(total=len(jobs), desc="phantom", unit="section", disable=not progress) as bar:
            for name in _each(jobs, workers):
                bar.set_postfix_str(name)
                bar.update()
        (partial / "phantom.json").write_text(parameters)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _each(jobs, workers):
    """Names of the sections as they are done, in this process or in `workers` fresh ones."""
    if min(workers, len(jobs)) <= 1:
        yield from (_write_section(*job) for job in jobs)
        return
    # Spawned, not forked: the caller may hold threads (torch does) that a fork would not survive.
    # Workers usually run the caller's script again; an empty stand-in for it spares them that.
    script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=spawn) as pool:
        try:
            running = [pool.submit(_write_section, *job) for job in jobs]
        finally:
            sys.modules["__main__"] = script
        for future in as_completed(running):
            yield future.result()
