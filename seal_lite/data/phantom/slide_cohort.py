"""A cohort of phantom patients with slide-level labels, as slides, bulk expression and tasks.

    OUT/slides/<slide>.jpg     H&E at `UM_PER_PX`; some patients have two
    OUT/expression.h5ad        bulk counts of each patient; OUT/programs.gmt: its programs
    OUT/tasks/<TASK>/          mutation, activity, response, survival, as Patho-Bench writes tasks
    OUT/truth/<slide>.npz      x, y (um) and the two drawn states of every cell
    OUT/cohort.json            the arguments

A mutation turns on coarse chromatin in a clone: a minority of the slide's regions. The activity of
`arrangement` is the whole slide's. Response and survival follow both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from scipy.special import expit
from tqdm import tqdm

from seal_lite.data.pathways import activities, read_gmt
from seal_lite.data.phantom.measurement import expected_expression, place_spots
from seal_lite.data.phantom.output import whole_folder
from seal_lite.data.phantom.render import render
from seal_lite.data.phantom.sections import Patient
from seal_lite.data.phantom.tissue import (
    FLOW_STEP,
    gene_table,
    grow,
    smooth_field,
    transcriptomes,
)
from seal_lite.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

UM_PER_PX = 0.5
CLONE_SHARE = (0.15, 0.3)  # of the slide, which a mutated patient's clone covers
CLONE_SCALE = 250.0  # um
LOGIT_OUTSIDE = -2.0  # of coarse chromatin outside a clone
LOGIT_GAIN = 5.0  # what is added to it inside
N_FOLDS = 5
N_BINS = 4  # of the days of survival
LOGIT_SD = 0.8  # of the logit of `arrangement` between patients
BULK_DEPTH = 2_000_000  # counts of a patient


@dataclass(frozen=True)
class _Labels:
    """What is drawn for each of n patients, (n,) each."""

    mutated: np.ndarray  # bool
    activity: np.ndarray  # of `arrangement`, in standard deviations
    responds: np.ndarray  # bool
    death: np.ndarray  # days
    censored: np.ndarray  # days

    @classmethod
    def draw(cls, rng: np.random.Generator, n: int) -> _Labels:
        """Draw labels; half of the patients are mutated."""
        mutated = rng.permutation(np.arange(n) % 2).astype(bool)
        activity = rng.standard_normal(n)
        risk = 1.5 * (2 * mutated - 1) + 1.2 * activity
        responds = rng.random(n) < expit(risk)
        death = rng.exponential(900 * np.exp(0.6 * risk))
        censored = rng.uniform(300, 3000, n)
        return cls(mutated, activity, responds, death, censored)


def cohort(out: str | Path, *, patients: int = 60, spots: int = 100, seed: int = 0) -> Path:
    """Write a cohort with slide-level labels; every fourth patient has two slides.

    The same arguments give the same cohort. An existing cohort of the same arguments is left as it
    is.

    Parameters
    ----------
    out
        Folder to write.
    patients
        How many, an even number of at least 20; half of them are mutated.
    spots
        Size of a slide: its tissue is that of so many array positions, 200 um apart.
    seed
        Seed of every random draw.

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
    if patients < 20 or patients % 2:
        raise InputError(f"cohort: patients={patients} must be an even number of at least 20.")
    rng = np.random.default_rng(seed)
    case_ids = [f"P{i:03d}" for i in range(patients)]
    labels = _Labels.draw(rng, patients)
    arguments = {"format": 2, "patients": patients, "spots": spots, "seed": seed}
    with whole_folder(out, "cohort.json", arguments) as root:
        if root is None:
            return out
        for folder in ("slides", "truth"):
            (root / folder).mkdir(parents=True)
        slides = []
        counts = []
        patient_rngs = rng.spawn(patients)
        for i, case_id in enumerate(tqdm(case_ids, "cohort", disable=None)):
            n_slides = 2 if i % 4 == 3 else 1
            slide_ids = [f"{case_id}_{j}" for j in range(n_slides)]
            lift = _Lift(mutated=labels.mutated[i], activity=labels.activity[i])
            counts.append(_write_patient(root, slide_ids, patient_rngs[i], lift, spots=spots))
            slides += [(case_id, slide_id) for slide_id in slide_ids]
        bulk = _write_expression(root, case_ids, np.array(counts, np.float32))
        _write_programs(root)
        scores = activities(bulk, read_gmt(root / "programs.gmt"))["arrangement"]
        tasks = _tasks(labels, activity_scores=scores.round(4).to_numpy())
        slide_table = pd.DataFrame(slides, columns=["case_id", "slide_id"])
        for task in tasks:
            _write_task(root / "tasks", task, slide_table, case_ids)
    return out


@dataclass(frozen=True)
class _Lift:
    """How a patient's labels change the states of the cells."""

    mutated: bool
    activity: float

    def draw(self, rng: np.random.Generator, side: float) -> dict[str, np.ndarray]:
        """Return what is added to the logit of each state, on a grid of FLOW_STEP um."""
        field = smooth_field(rng, side, CLONE_SCALE, step=FLOW_STEP)
        clone = field > np.quantile(field, 1 - rng.uniform(*CLONE_SHARE))
        return {
            "chromatin": LOGIT_OUTSIDE + LOGIT_GAIN * (clone & self.mutated),
            "arrangement": np.full(field.shape, LOGIT_SD * self.activity),
        }


def _write_patient(
    root: Path, slide_ids: Sequence[str], rng: np.random.Generator, lift: _Lift, *, spots: int
) -> np.ndarray:
    """Write the slides of one patient and return its bulk counts, (g,)."""
    patient = Patient.draw(rng)
    expression = np.zeros(len(patient.batch))
    for slide_id in slide_ids:
        expression += _write_slide(root, slide_id, patient, rng, lift=lift, spots=spots)
    return rng.poisson(BULK_DEPTH * expression / expression.sum())


def _write_slide(
    root: Path,
    slide_id: str,
    patient: Patient,
    rng: np.random.Generator,
    *,
    lift: _Lift,
    spots: int,
) -> np.ndarray:
    """Grow and draw one slide; return the expression (g,) of the tissue under its spots."""
    layout = place_spots(rng, spots)
    logit_lift = lift.draw(rng, layout.side)
    tissue = grow(rng, layout.inside, side=layout.side, bias=patient.bias, lift=logit_lift)
    shares, content = expected_expression(tissue.cells, layout, patient.batch)
    columns = ("x", "y", "chromatin", "arrangement")
    cells = {column: tissue.cells[column].to_numpy() for column in columns}
    np.savez_compressed(root / f"truth/{slide_id}.npz", **cells)
    image = render(tissue, patient.look, um_per_px=UM_PER_PX, rng=rng)
    Image.fromarray(image).save(root / f"slides/{slide_id}.jpg", quality=90)
    return content @ shares


def _write_expression(root: Path, case_ids: Sequence[str], counts: np.ndarray) -> AnnData:
    """Write and return the bulk counts (patients, g)."""
    import anndata as ad

    bulk = ad.AnnData(
        counts,
        obs=pd.DataFrame(index=list(case_ids)),
        var=pd.DataFrame(index=transcriptomes().genes),
    )
    bulk.layers["counts"] = bulk.X.copy()
    bulk.write_h5ad(root / "expression.h5ad")
    return bulk


def _write_programs(root: Path) -> None:
    """Write the phantom's programs as gene sets."""
    programs = gene_table().query("program != 'all cells'").groupby("program")["gene"].unique()
    lines = ["\t".join([program, "phantom", *genes]) for program, genes in programs.items()]
    (root / "programs.gmt").write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class _Task:
    """A task of Patho-Bench: its label columns (n,), the first to predict, and its settings.

    Patho-Bench reads the label of a class as its code, the number of the class in `classes`. It has
    no regression; a task of that kind has no classes.
    """

    name: str
    kind: str
    columns: Mapping[str, np.ndarray]
    metric: str
    classes: Sequence[str] = ()
    extra: Sequence[str] = ()

    def settings(self) -> dict[str, object]:
        """Return what config.yaml holds."""
        label, *_ = self.columns
        return {
            "task_col": label,
            "task_type": self.kind,
            "sample_col": "case_id",
            "extra_cols": list(self.extra),
            "label_dict": {str(code): name for code, name in enumerate(self.classes)},
            "metrics": [self.metric],
        }


def _tasks(labels: _Labels, *, activity_scores: np.ndarray) -> list[_Task]:
    """Return the cohort's tasks; the activity is measured from the bulk expression."""
    days = np.minimum(labels.death, labels.censored).round(1)
    event = (labels.death <= labels.censored).astype(int)
    quarter = pd.qcut(
        days, N_BINS, labels=False
    )  # the classes of a survival model in discrete time
    quarters = [f"quarter {i + 1} of the days" for i in range(N_BINS)]
    auc = "macro-ovr-auc"
    mutation = {"mutation": labels.mutated.astype(int)}
    response = {"response": labels.responds.astype(int)}
    survival = {"OS": quarter, "OS_event": event, "OS_days": days}
    return [
        _Task("mutation", "classification", mutation, auc, classes=("wildtype", "mutant")),
        _Task("activity", "regression", {"activity": activity_scores}, "pearson"),
        _Task("response", "classification", response, auc, classes=("other", "responder")),
        _Task("survival", "survival", survival, "cindex", quarters, extra=("OS_event", "OS_days")),
    ]


def _write_task(root: Path, task: _Task, slides: pd.DataFrame, case_ids: Sequence[str]) -> None:
    """Write a task's table, one row for each slide, and its settings."""
    folder = root / task.name
    folder.mkdir(parents=True)
    cases = pd.DataFrame({"case_id": case_ids, **task.columns, **_folds(task)})
    table = slides.merge(cases)
    table.to_csv(folder / "k=all.tsv", sep="\t", index=False)
    (folder / "config.yaml").write_text(yaml.safe_dump(task.settings()))


def _folds(task: _Task) -> dict[str, np.ndarray]:
    """Return fold_0, fold_1, ...: "train" or "test" (n,) for each case, stratified by class."""
    from sklearn.model_selection import StratifiedGroupKFold

    label, *_ = task.columns.values()
    strata = label if task.kind == "classification" else np.zeros(len(label))
    splitter = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=0)
    folds = {}
    for i, (_, test) in enumerate(splitter.split(strata, strata, np.arange(len(strata)))):
        half = np.full(len(strata), "train", dtype=object)
        half[test] = "test"
        folds[f"fold_{i}"] = half
    return folds


def oracle_features(
    root: str | Path, features: str | Path, out: str | Path, *, patch_um: float
) -> Path:
    """Write what an encoder could know at best, as feature files.

    Parameters
    ----------
    root
        A cohort.
    features
        Folder of feature files; their coordinates say where the patches lie.
    out
        Folder to write. Features (patches, 3): the share of cells with coarse chromatin, that with
        the arrangement on, and the number of cells in hundreds.
    patch_um
        Edge of the patches in um.

    Returns
    -------
    Path
        The written folder.
    """
    import h5py

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(Path(features).glob("*.h5")):
        with h5py.File(path) as file:
            corners = file["coords"][:] * UM_PER_PX
        with np.load(Path(root) / f"truth/{path.stem}.npz") as truth:
            rows = [_summarise_cells(truth, corner, patch_um) for corner in corners]
        with h5py.File(out / path.name, "w") as file:
            file["features"] = np.array(rows, np.float32).reshape(-1, 3)
            file["coords"] = np.rint(corners / UM_PER_PX)
    return out


def _summarise_cells(
    cells: Mapping[str, np.ndarray], corner: np.ndarray, patch_um: float
) -> list[float]:
    """Return the share of both states and the number of cells in a patch, in hundreds."""
    left, top = corner
    is_in_x = (cells["x"] >= left) & (cells["x"] < left + patch_um)
    is_in_y = (cells["y"] >= top) & (cells["y"] < top + patch_um)
    is_inside = is_in_x & is_in_y
    n_cells = is_inside.sum()
    shares = [
        cells[state][is_inside].sum() / max(n_cells, 1) for state in ("chromatin", "arrangement")
    ]
    return [*shares, n_cells / 100]
