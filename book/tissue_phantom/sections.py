"""A tissue phantom with known truth, written in the layout of her2st (see `seal_lite.sections`).

    OUT/phantom.json          every parameter and the seed
    OUT/data/...              images, counts and spot tables, as upstream writes them
    OUT/truth/genes.tsv       gene, class (visible, subtle, invisible, housekeeping), program
    OUT/truth/SECTION.npz     barcodes, genes, expected (spots, genes), region (spots,)

`expected` is what the counts would be without noise: each gene's share of the spot's transcripts,
after lateral diffusion and with the patient's batch effect. Spots see what `tissue.grow` grew and
`render.render` drew; an image encoder can therefore be judged against what was there to be seen.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count, product
from pathlib import Path
from string import ascii_uppercase
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import csr_array
from scipy.spatial import cKDTree, distance
from tqdm import tqdm

from seal_lite.errors import InputError

from .render import Look, render
from .tissue import CELL_TYPES, REGIONS, STATES, STEP, gene_table, grow, outline, transcriptomes

FORMAT = 3  # raised whenever the same parameters would give other files
# The measurement. None of these numbers was chosen by any model's score.
ASSAY = SimpleNamespace(
    pitch_um=200.0,  # centre to centre, Ståhl et al., Science 2016
    spot_um=100.0,  # diameter, ibid.
    depth=(5500.0, 10500.0),  # median counts a spot; 8,500 in her2st's C2
    depth_sd=0.4,  # of the log of a spot's depth beyond what its RNA content explains
    depth_power=0.5,  # depth ~ RNA^0.5; log-sd 0.6 in all, 1.1 in C2 with its empty spots
    # A spot's share of transcripts from its neighbours: 30% and more at 100 um pitch (SpotClean,
    # Ni et al., Nat Commun 2022); less is expected at 200 um.
    diffusion=0.2,
    ambient=0.02,  # share of the section's mean everywhere, ibid.
    # Var = mean + dispersion mean^2: a coefficient of variation of 0.3 beyond Poisson, between
    # that of replicates of one line (0.1) and of human individuals (0.4), edgeR user's guide.
    dispersion=0.1,
    batch_sd=0.3,  # of the log of a gene's factor in a patient
    no_counts=2,  # up to so many selected spots without a row in the counts, as upstream
    genes_lost=3,  # weakly expressed genes that a section's table lacks, as upstream
)


SHIFTS = ("stain", "regions", "batch")  # what may differ between two sites' patients


class Patient:
    """What the sections of one patient share: composition, stain and scanner, batch and depth.

    `shift` names what is drawn as at another site, whose patients alternate with the first's.
    """

    def __init__(self, rng, shift: str | None = None):
        self.bias = {region: bias + rng.normal(0, sd) for region, (bias, _, sd) in REGIONS.items()}
        self.look = Look(rng)
        self.batch = rng.lognormal(0, ASSAY.batch_sd, gene_table()["gene"].nunique())  # factors
        self.depth = rng.uniform(*ASSAY.depth)  # median counts a spot
        if shift == "stain":
            self.look.elsewhere()
        elif shift == "regions":  # little tumour and gland, much that is rare at the first site
            for region, more in {"tumour": -0.5, "gland": -0.5, "lymphoid": 0.6,
                                 "adipose": 0.5, "necrosis": 0.6}.items():  # fmt: skip
                self.bias[region] += more
        elif shift == "batch":  # one factor a gene for the whole site, and patients twice as far
            site = np.random.default_rng(13).lognormal(0, 2 * ASSAY.batch_sd, len(self.batch))
            self.batch = self.batch**2 * site


def _spots_under_tissue(rng, spots):
    """Grow an outline over exactly `spots` array positions: the image's side in um, what is inside
    (bool grid of STEP um), array indices (spots, 2) and true positions (spots, 2) in um."""
    n = int(np.ceil(np.sqrt(spots / 0.7)))
    side = (n + 1) * ASSAY.pitch_um
    score = outline(rng, side)
    index = np.stack(np.meshgrid(np.arange(1, n + 1), np.arange(1, n + 1)), -1).reshape(-1, 2)
    x, y = (index * ASSAY.pitch_um / STEP).astype(int).T
    chosen = np.sort(np.argsort(-score[y, x], kind="stable")[:spots])
    # The array is printed with a small error; the tissue reaches a little beyond the last spots.
    position = (index[chosen] + rng.normal(0, 0.01, (spots, 2))) * ASSAY.pitch_um
    return side, score > score[y, x][chosen].min() - 0.01, index[chosen], position


def _expected_expression(cells, index, position, batch):
    """Noise-free expression of each spot, from a `Tissue`'s cells, the spots' array indices and
    positions in um, (spots, 2) each, and the batch's factors (genes,). Returns the expected shares
    (spots, genes), rows summing to one, and the RNA content (spots,) in average cells."""
    _, base, gain = transcriptomes()
    rna = np.array([cell.rna for cell in CELL_TYPES])
    under = cKDTree(cells[["x", "y"]]).query_ball_point(position, ASSAY.spot_um / 2)  # sorted
    cells = cells.iloc[np.concatenate(under).astype(int)]
    spot = np.repeat(np.arange(len(under)), [len(u) for u in under])
    amount = rna[cells.kind]
    expression = csr_array((amount, (spot, cells.kind)), shape=(len(under), len(rna))) @ base
    for state, extra in zip(STATES, gain, strict=True):
        expression += np.outer(np.bincount(spot, amount * cells[state], len(under)), extra)

    near = csr_array(distance.cdist(index, index, "chebyshev") == 1, dtype=float)
    around = near @ expression / np.maximum(near.sum(1), 1)[:, None]
    expression += ASSAY.diffusion * (around - expression)
    expression += ASSAY.ambient * (expression.mean(0) - expression)
    share = expression * batch
    return share / share.sum(1, keepdims=True), expression.sum(1)


def _dominant_region(region, position):
    """The most frequent region under each spot's footprint: (spots,) str."""
    reach = int(ASSAY.spot_um / 2 / STEP)
    disc = np.argwhere(np.hypot(*np.indices((2 * reach + 1,) * 2) - reach) <= reach) - reach
    x, y = np.moveaxis((position / STEP).astype(int)[:, None] + disc, -1, 0)  # (spots, points)
    share = np.stack([(region[y, x] == i).sum(1) for i in range(len(REGIONS))])
    return np.array(list(REGIONS))[share.argmax(0)]


def _write_section(root, name, patient, seed, spots, um_per_px):
    """Grow, measure, draw and write one section under `root`."""
    rng, image_rng = (np.random.default_rng(s) for s in seed.spawn(2))
    side, inside, index, position = _spots_under_tissue(rng, spots)
    tissue = grow(rng, side, inside, patient.bias)
    share, content = _expected_expression(tissue.cells, index, position, patient.batch)

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
    gzip = {"method": "gzip", "compresslevel": 6, "mtime": 0}
    table.to_csv(root / f"data/ST-cnts/{name}.tsv.gz", sep="\t", compression=gzip)
    where = pd.DataFrame(index, columns=["x", "y"])
    where[["new_x", "new_y"]] = (position / ASSAY.pitch_um).round(3)
    where[["pixel_x", "pixel_y"]] = (position / um_per_px).round(2)
    where["selected"] = 1
    where.to_csv(root / f"data/ST-spotfiles/{name}_selection.tsv", sep="\t", index=False)
    region, expected = _dominant_region(tissue.region, position[rows]), share[rows].astype("f4")
    np.savez_compressed(root / f"truth/{name}.npz", barcodes=barcodes, genes=genes.astype(str),
                        expected=expected, region=region)  # fmt: skip
    folder = root / "data/ST-imgs" / name.rstrip("0123456789") / name
    folder.mkdir(parents=True)
    image = render(tissue, patient.look, um_per_px=um_per_px, rng=image_rng)
    Image.fromarray(image).save(folder / f"HE_{name}.jpg", quality=90)


@contextmanager
def whole_folder(out: Path, mark: str, arguments: dict):
    """Yield a new folder that becomes `out` when all of it is there, with the arguments in its
    JSON file `mark`; or None where these arguments have made it already. Anything else in `out` is
    an `InputError`; nothing is left behind if it fails."""
    text = json.dumps(arguments, indent=1) + "\n"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / mark).is_file() or (out / mark).read_text() != text:
            raise InputError(f"{out}: not made with these arguments; remove it, or choose another")
        yield None
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.partial-", dir=out.parent) as partial:
        root = Path(partial, out.name)
        root.mkdir()
        yield root
        (root / mark).write_text(text)
        root.replace(out)


def phantom(out, *, patients=4, sections_per_patient=2, spots=300, seed=0, um_per_px=0.5,
            shift=None, workers=2, progress=True):  # fmt: skip
    """Write a phantom of `patients` x `sections_per_patient` sections under `out`.

    Patients are PA, PB, ..., sections PA1, PA2, ...; each section has exactly `spots` spots under
    tissue and an image at `um_per_px` um per pixel. The same arguments give the same bytes whatever
    the number of `workers` (threads); an existing phantom of the same arguments is left as it is.
    With a `shift` ("stain", "regions" or "batch") every other patient is from another site, where
    that alone differs; sections.tsv says who, in a column of that name. Returns `out` as a Path.
    Raises InputError if an argument is out of range or if `out` holds anything else. Nothing is
    left behind if it fails."""
    out, um_per_px = Path(out).absolute(), float(um_per_px)
    arguments = {"patients": patients, "sections_per_patient": sections_per_patient,
                 "spots": spots, "seed": seed}  # fmt: skip
    for (key, value), low in zip(arguments.items(), (1, 1, 9, 0), strict=True):
        if value != int(value) or value < low:
            raise InputError(f"phantom: {key}={value} must be a whole number >= {low}.")
    if not 0.2 <= um_per_px <= 2:
        raise InputError(f"phantom: um_per_px={um_per_px} must lie between 0.2 and 2.")
    if shift is not None and shift not in SHIFTS:
        raise InputError(f"phantom: shift={shift} is unknown; use one of {', '.join(SHIFTS)}.")
    parameters = {"format": FORMAT, **arguments, "um_per_px": um_per_px, "assay": vars(ASSAY)}
    parameters |= {"shift": shift} if shift else {}
    with whole_folder(out, "phantom.json", parameters) as root:
        if root is None:
            return out
        for folder in ("data/ST-imgs", "data/ST-cnts", "data/ST-spotfiles", "truth"):
            (root / folder).mkdir(parents=True)
        each = {"class": "first", "program": "+".join}
        genes = gene_table().groupby("gene", sort=False).agg(each)
        genes.to_csv(root / "truth/genes.tsv", sep="\t")
        jobs, sites = [], []
        names = ("P" + "".join(s) for n in count(1) for s in product(ascii_uppercase, repeat=n))
        for seeds, name in zip(np.random.SeedSequence(seed).spawn(patients), names, strict=False):
            own, *section_seeds = seeds.spawn(1 + sections_per_patient)
            elsewhere = shift if len(sites) % 2 else None
            patient = Patient(np.random.default_rng(own), elsewhere)
            sites.append("second site" if elsewhere else "first site")
            jobs += [(root, f"{name}{i}", patient, section_seed, spots, um_per_px)
                     for i, section_seed in enumerate(section_seeds, start=1)]  # fmt: skip
        if shift:
            table = [(job[1], job[1].rstrip("0123456789"), site) for job, site in
                     zip(jobs, np.repeat(sites, sections_per_patient), strict=True)]  # fmt: skip
            table = pd.DataFrame(table, columns=["section", "patient", shift])
            table.to_csv(root / "sections.tsv", sep="\t", index=False)
        # Threads suffice: Pillow, SciPy and large NumPy operations release the interpreter's lock.
        bar = tqdm(total=len(jobs), desc="phantom", unit="section", disable=not progress)
        with bar, ThreadPoolExecutor(max(workers, 1)) as pool:
            for _ in pool.map(_write_section, *zip(*jobs, strict=True)):
                bar.update()
    return out
