"""Slide-level tasks on a cohort of phantom patients: results/cohort.json.

    python benchmarks/cohort.py        # an hour on 2 cores

A pilot of other patients, scored with frozen and oracle features, decides how many patients the
cohort has: as many as show the oracle's gain in 8 of 10 studies. The encoders are finetuned on
phantom sections of patients that neither has. One process runs on each core, with one thread. Every
finished step is kept in runs/cohort, so that a command that was stopped resumes. Remove that folder
to measure changed code.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from threadpoolctl import threadpool_limits

from seal_lite import SEAL, Config, Section, finetune, load_sections
from seal_lite.data.phantom import UM_PER_PX, cohort, oracle_features, phantom
from seal_lite.encoders.vision import VisionEncoder, build_encoder
from seal_lite.io import usable_cores, write_atomic
from seal_lite.slides.bench import score_bags
from seal_lite.slides.embed import embed_slides, list_slides
from seal_lite.slides.places import TissueGrid
from seal_lite.slides.tasks import read_bags, read_slide_task
from seal_lite.studies.plan import smallest_gain
from seal_lite.training.provenance import provenance
from trained_encoders import ROOT, save_result

TRAIN_SEED, PILOT_SEED, COHORT_SEED = 31, 32, 33  # every one draws patients of its own
MAIN_METRIC = {"activity": "pearson", "mutation": "auc", "response": "auc", "survival": "c_index"}
READER = "mean"  # the power calculation's model: it has no random start
MAX_PATIENTS = 100_000  # beyond, a gain counts as none

Row = dict[str, Any]
Map = Callable[[Callable[[str], Any], Iterable[str]], Iterable[Any]]


@dataclass(frozen=True)
class Design:
    """What is measured, at which size.

    Parameters
    ----------
    config
        Settings of the finetuning; its seed is replaced by 0, 1, ... `seeds` - 1.
    seeds
        Number of finetunings, each on true and on shuffled pairs.
    train_patients, train_spots
        Patients that train, with one section each, and spots of a section.
    pilot_patients
        Patients of the pilot.
    most_patients
        The most that the cohort may have, whatever the power calculation says.
    slide_spots
        Array positions that the tissue of a slide would cover.
    """

    config: Config = Config(epochs=16)
    seeds: int = 2
    train_patients: int = 12
    train_spots: int = 200
    pilot_patients: int = 80
    most_patients: int = 200
    slide_spots: int = 36

    def digest(self) -> str:
        """Return what names the folder of this design's steps."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Benchmark:
    """The steps of a design, each kept in `folder` once it is finished."""

    folder: Path
    design: Design

    @property
    def encoders(self) -> list[str]:
        """The finetuned encoders: "shuffled-0", "tuned-0", "shuffled-1", ..."""
        seeds = range(self.design.seeds)
        return [f"{kind}-{seed}" for seed in seeds for kind in ("shuffled", "tuned")]

    @property
    def patch(self) -> dict[str, Any]:
        """The size of a patch, as `load_sections` and `embed_slides` take it."""
        config = self.design.config
        return {"patch_um": config.patch_um, "patch_px": config.patch_px}

    def keep(self, step: str, work: Callable[[], Any]) -> Any:
        """Return what a step returns, of an earlier command where it finished there."""
        path = self.folder / f"steps/{step}.json"
        if not path.exists():
            started = time.perf_counter()
            result = work()
            seconds = round(time.perf_counter() - started, 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps({"seconds": seconds, "result": result}, default=float))
            print(f"{step}: {seconds:.0f} s", flush=True)
        return json.loads(path.read_text())["result"]

    def seconds(self) -> float:
        """Return the time of all finished steps, added up."""
        steps = (self.folder / "steps").glob("*.json")
        return round(sum(json.loads(path.read_text())["seconds"] for path in steps), 1)

    def draw_sections(self) -> list[Section]:
        """Return the training sections, drawn if they are not there yet."""
        root = phantom(
            self.folder / "sections",
            patients=self.design.train_patients,
            sections_per_patient=1,
            spots=self.design.train_spots,
            seed=TRAIN_SEED,
        )
        return load_sections(root, **self.patch)

    def draw_cohort(self, name: str, patients: int, seed: int) -> Path:
        """Return a cohort with frozen and oracle features, made if it is not there yet."""
        spots = self.design.slide_spots
        root = cohort(self.folder / name, patients=patients, spots=spots, seed=seed)
        config = self.design.config
        encoder = build_encoder(config.backbone, tune_blocks=config.tune_blocks)
        frozen = self.embed_with(encoder, name, "frozen")
        oracle = frozen.with_name("oracle")
        oracle_features(root, frozen, oracle, patch_um=config.patch_um)
        return root

    def embed_with(self, encoder: VisionEncoder, name: str, features: str) -> Path:
        """Return the folder with an encoder's features of a cohort, embedded if it is not there."""
        folder = self.folder / f"features/{name}/{features}"
        slides = list_slides(self.folder / name / "slides")
        places = TissueGrid(min_tissue=0.5)
        embed_slides(encoder, slides, folder, um_per_px=UM_PER_PX, places=places, **self.patch)
        return folder

    def score_with(self, name: str, task_name: str, kinds: list[str]) -> Row:
        """Return the scores of a cohort's task with these features."""
        task = read_slide_task(self.folder / name / "tasks" / task_name)
        features = self.folder / "features" / name
        bags = {kind: read_bags(task, features / kind) for kind in kinds}
        return score_bags(task, bags, seeds=1)

    def pilot(self) -> Row:
        """Return the power calculation from the pilot, and the size of the cohort."""
        patients = self.design.pilot_patients
        self.draw_cohort("pilot", patients, PILOT_SEED)
        rows = []
        for task in MAIN_METRIC:
            scored = self.score_with("pilot", task, ["frozen", "oracle"])
            row = oracle_gain(scored)
            needed = patients_needed(row["mean"], row["ci95"], patients)
            rows.append({"task": task, **row, "patients": needed})
        size = cohort_size([row["patients"] for row in rows], self.design.most_patients)
        return {
            "pilot_patients": patients,
            "most_patients": self.design.most_patients,
            "patients": size,
            "rows": rows,
        }

    def prepare(self, step: str) -> Any:
        """Draw the cohort, in the size that the pilot asks for, or finetune an encoder."""
        if step == "cohort":
            power = self.keep("pilot", self.pilot)
            return self.keep("cohort", lambda: self._make_cohort(power["patients"]))
        return self.keep(f"train-{step}", lambda: self._train(step))

    def _make_cohort(self, patients: int) -> None:
        self.draw_cohort("cohort", patients, COHORT_SEED)

    def _train(self, name: str) -> None:
        kind, _, seed = name.partition("-")
        finetune(
            self.draw_sections(),
            replace(self.design.config, seed=int(seed)),
            out=self.folder / "runs" / name,
            shuffle_pairs=kind == "shuffled",
            progress=False,
        )

    def embed(self, name: str) -> None:
        """Embed the cohort with a finetuned encoder."""
        self.keep(f"embed-{name}", lambda: self._embed(name))

    def _embed(self, name: str) -> None:
        model = SEAL.from_pretrained(self.folder / "runs" / name)
        self.embed_with(model.encoder, "cohort", name)

    def score(self, task: str) -> Row:
        """Return the scores of a task with every seed's encoders."""
        kinds = ["frozen", *self.encoders, "oracle"]
        return self.keep(f"score-{task}", lambda: self.score_with("cohort", task, kinds))

    def measure(self, each: Map = map) -> Row:
        """Run all steps, those that do not wait for one another by `each`; return the result."""
        sections = self.draw_sections()
        list(each(self.prepare, ["cohort", *self.encoders]))
        list(each(self.embed, self.encoders))
        scored = list(each(self.score, MAIN_METRIC))
        power = self.keep("pilot", self.pilot)
        seeds = range(self.design.seeds)
        return {
            "provenance": provenance(sections, self.design.config, seeds=len(seeds)),
            "design": asdict(self.design),
            "power": power,
            "cohort": {"patients": power["patients"], "spots": self.design.slide_spots},
            "slides": len(list_slides(self.folder / "cohort/slides")),
            "results": [of_seed(result, seed) for seed in seeds for result in scored],
            "seconds": self.seconds(),
        }


def oracle_gain(scored: Row) -> Row:
    """Return the oracle's gain over the frozen encoder, in a task's main metric."""
    metric = MAIN_METRIC[scored["task"]]
    pair = {"of": "oracle", "minus": "frozen", "model": READER, "metric": metric}
    (row,) = [row for row in scored["delta"] if pair.items() <= row.items()]
    return {"metric": metric, "mean": row["mean"], "ci95": row["ci95"]}


def patients_needed(gain: float, ci95: list[float], patients: int) -> int | None:
    """Return how many patients show a paired gain in 8 of 10 studies, at 5% two-sided.

    Parameters
    ----------
    gain
        The gain that so many `patients` measured.
    ci95
        Its interval. The standard error in it falls with the square root of their number.
    patients
        Number of patients behind it.

    Returns
    -------
    int or None
        The fewest patients; None where the gain is not above 0, or too small for any cohort.
    """
    low, high = ci95
    standard_error = (high - low) / (2 * stats.norm.ppf(0.975))
    sd = standard_error * math.sqrt(patients)
    sizes = range(2, MAX_PATIENTS + 1)

    def negative_gain(n: int) -> float:
        smallest = smallest_gain(n, sd=sd)
        assert smallest is not None, "two patients have a spread"
        return -smallest

    fewer = bisect_left(sizes, -gain, key=negative_gain)
    return sizes[fewer] if fewer < len(sizes) else None


def cohort_size(needed: list[int | None], most: int) -> int:
    """Return an even number of patients that shows every gain, or the most there may be."""
    largest = max((patients for patients in needed if patients is not None), default=most)
    even = largest + largest % 2
    return min(max(even, 20), most)  # a cohort has at least 20


def of_seed(scored: Row, seed: int) -> Row:
    """Return a task's scores with the encoders of one seed, named "shuffled" and "tuned"."""
    names = {"frozen": "frozen", "oracle": "oracle"}
    names |= {f"{kind}-{seed}": kind for kind in ("shuffled", "tuned")}
    scores = [
        row | {"features": names[row["features"]]}
        for row in scored["scores"]
        if row["features"] in names
    ]
    delta = [
        row | {"of": names[row["of"]], "minus": names[row["minus"]]}
        for row in scored["delta"]
        if row["of"] in names and row["minus"] in names
    ]
    return {"seed": seed, **scored, "scores": scores, "delta": delta}


def use_one_thread() -> None:
    """Keep a process to one thread."""
    torch.set_num_threads(1)
    threadpool_limits(1)


def main() -> None:
    """Measure with one process on each core, and write the results file."""
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    use_one_thread()
    design = Design()
    benchmark = Benchmark(ROOT / "runs/cohort" / design.digest(), design)
    cores = usable_cores()
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit the threads of torch
    with ProcessPoolExecutor(cores, spawn, initializer=use_one_thread) as pool:
        save_result("cohort", benchmark.measure(pool.map))


if __name__ == "__main__":
    main()
