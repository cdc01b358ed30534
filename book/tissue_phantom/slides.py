"""A cohort of phantom patients with slide-level labels, as slides, bulk expression and tasks.

    OUT/slides/<slide>.jpg     H&E at `UM_PER_PX`; some patients have two
    OUT/expression.h5ad        bulk counts of each patient; OUT/programs.gmt: its programs
    OUT/tasks/<TASK>/          mutation, activity, response, survival, as Patho-Bench writes tasks
    OUT/truth/<slide>.npz      x, y (um) and the two drawn states of every cell
    OUT/cohort.json            the arguments

A mutation turns on coarse chromatin in a clone: a minority of the slide's regions. The activity of
`arrangement` is the whole slide's. Response and survival follow both.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from scipy.special import expit
from tqdm import tqdm

from seal_lite.errors import InputError
from seal_lite.pathways import activities, read_gmt

from .render import render
from .sections import Patient, _expected_expression, _spots_under_tissue, whole_folder
from .tissue import FLOW_STEP, gene_table, grow, smooth_field, transcriptomes

UM_PER_PX = 0.5
CLONE = (0.15, 0.3)  # share of the slide that a mutated patient's clone covers
OFF, ON = -2.0, 5.0  # logit of coarse chromatin outside a clone, and what is added inside
SPREAD = 0.8  # sd of the logit of `arrangement` between patients
BULK = 2_000_000  # counts of a patient


def cohort(out, *, patients: int = 60, spots: int = 100, seed: int = 0, progress=True) -> Path:
    """Write a cohort of `patients`, half of them mutated, under `out`; every fourth has two slides.

    A slide's tissue is that of `spots` array positions, 200 um apart. The same arguments give the
    same cohort; one that is there is left as it is, anything else is an `InputError`.
    """
    import anndata as ad

    out = Path(out).absolute()
    if patients < 20 or patients % 2:
        raise InputError(f"cohort: patients={patients} must be an even number of at least 20.")
    rng = np.random.default_rng(seed)
    names = [f"P{i:03d}" for i in range(patients)]
    mutated = rng.permutation(np.arange(patients) % 2).astype(bool)
    activity = rng.standard_normal(patients)
    mixed = 1.5 * (2 * mutated - 1) + 1.2 * activity
    response = rng.random(patients) < expit(mixed)
    death, censored = rng.exponential(900 * np.exp(0.6 * mixed)), rng.uniform(300, 3000, patients)

    given = {"format": 1, "patients": patients, "spots": spots, "seed": seed}
    with whole_folder(out, "cohort.json", given) as root:
        if root is None:
            return out
        for folder in ("slides", "truth"):
            (root / folder).mkdir(parents=True)
        counts, slides = [], []
        bar = tqdm(zip(names, mutated, activity, rng.spawn(patients), strict=True), "cohort",
                   total=patients, disable=not progress)  # fmt: skip
        for i, (name, mutation, level, own) in enumerate(bar):
            person, bulk = Patient(own), 0
            for slide in [f"{name}_{k}" for k in range(2 if i % 4 == 3 else 1)]:
                slides.append((name, slide))
                bulk = bulk + _write_slide(root, slide, person, own, spots, mutation, level)
            counts.append(own.poisson(BULK * bulk / bulk.sum()))
        genes, *_ = transcriptomes()
        bulk = ad.AnnData(np.array(counts, np.float32), pd.DataFrame(index=names),
                          pd.DataFrame(index=genes))  # fmt: skip
        bulk.layers["counts"] = bulk.X.copy()
        bulk.write_h5ad(root / "expression.h5ad")
        sets = gene_table().query("program != 'all cells'").groupby("program")["gene"].unique()
        lines = ("\t".join([program, "phantom", *of]) for program, of in sets.items())
        (root / "programs.gmt").write_text("\n".join(lines) + "\n")
        found = activities(bulk, read_gmt(root / "programs.gmt"))["arrangement"]
        days = np.minimum(death, censored).round(1)
        for task, columns, config in (
            ("mutation", {"mutation": np.where(mutated, "mutant", "wildtype")},
             {"label_dict": {"0": "wildtype", "1": "mutant"}}),
            ("activity", {"activity": found.round(4).to_numpy()}, {}),
            ("response", {"response": np.where(response, "responder", "other")},
             {"label_dict": {"0": "other", "1": "responder"}}),
            ("survival", {"OS_days": days, "OS_event": (death <= censored).astype(int)},
             {"extra_cols": ["OS_event", "OS_days"]}),
        ):  # fmt: skip
            table = pd.DataFrame(slides, columns=["case_id", "slide_id"])
            table = table.merge(pd.DataFrame({"case_id": names, **columns}))
            (root / "tasks" / task).mkdir(parents=True)
            table.to_csv(root / "tasks" / task / "k=all.tsv", sep="\t", index=False)
            config = {"task_col": list(columns)[0], "sample_col": "case_id", **config}
            (root / "tasks" / task / "config.yaml").write_text(yaml.safe_dump(config))
    return out


def _write_slide(root, slide, person, rng, spots, mutation, level):
    """Grow and draw one slide; returns the expression (genes,) of the tissue under its spots."""
    side, inside, index, position = _spots_under_tissue(rng, spots)
    field = smooth_field(rng, side, 250.0, FLOW_STEP)
    clone = field > np.quantile(field, 1 - rng.uniform(*CLONE))
    lift = {"chromatin": OFF + ON * (clone & mutation),
            "arrangement": np.full(field.shape, SPREAD * level)}  # fmt: skip
    tissue = grow(rng, side, inside, person.bias, lift)
    share, content = _expected_expression(tissue.cells, index, position, person.batch)
    cells = {k: tissue.cells[k].to_numpy() for k in ("x", "y", "chromatin", "arrangement")}
    np.savez_compressed(root / f"truth/{slide}.npz", **cells)
    image = render(tissue, person.look, um_per_px=UM_PER_PX, rng=rng)
    Image.fromarray(image).save(root / f"slides/{slide}.jpg", quality=90)
    return content @ share


def oracle_features(root, features, out, *, patch_um: float) -> Path:
    """Write what an encoder could know at best: for the regions of the feature files in `features`,
    the share of cells with either state on, and their number, as feature files in `out`."""
    import h5py

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(Path(features).glob("*.h5")):
        with np.load(Path(root) / f"truth/{file.stem}.npz") as cells, h5py.File(file) as found:
            corners = found["coords"][:] * UM_PER_PX
            x, y, *states = (cells[k] for k in ("x", "y", "chromatin", "arrangement"))
        rows = []
        for a, b in corners:
            here = (x >= a) & (x < a + patch_um) & (y >= b) & (y < b + patch_um)
            rows.append([*(s[here].sum() / max(here.sum(), 1) for s in states), here.sum() / 100])
        with h5py.File(out / file.name, "w") as h5:
            h5["features"] = np.array(rows, np.float32).reshape(-1, 3)
            h5["coords"] = np.rint(corners / UM_PER_PX)
    return out
