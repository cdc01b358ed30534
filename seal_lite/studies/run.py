"""The study: what happens in which order, and what stands in the output folder.

plan.json, costs.json, crossval/ (the folds), encoder/ (the final run and its model card),
embeddings/ (an AnnData a section), report.html and report.json. A study that was interrupted
resumes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from seal_lite.data.leakage import check_leakage
from seal_lite.data.phantom.truth import GroundTruth
from seal_lite.data.report import check_usable
from seal_lite.encoders.registry import config_for
from seal_lite.encoders.vision import encoder_for
from seal_lite.errors import InputError
from seal_lite.evaluation.crossval import crossval, folds_of, groups_of
from seal_lite.evaluation.scores import genes_to_score
from seal_lite.hub import model_card
from seal_lite.io import write_atomic
from seal_lite.locks import exclusive_folder
from seal_lite.paths import nearest_existing
from seal_lite.schema import read
from seal_lite.studies.costs import Costs
from seal_lite.studies.evidence import embed_sections, genes_to_map, held_out_evidence, robustness
from seal_lite.studies.plan import STEPS, Plan, choose_groups, make_plan
from seal_lite.studies.report import Findings, draw_figures, report_facts, report_page
from seal_lite.studies.speed import measure_speed
from seal_lite.training.loop import finetune
from seal_lite.training.provenance import provenance, read_provenance
from seal_lite.training.run import check_unused

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from seal_lite.config import Config
    from seal_lite.data.section import Section

log = logging.getLogger(__name__)
PLAN = "plan.json"
PLAN_REMEDY = "remove it: the study is planned again"
RUNS_REMEDY = "remove the folder crossval: its folds run again"


class PlanFile(TypedDict):
    """The content of plan.json."""

    of: dict[str, Any]  # what was planned: data, settings and options
    plan: Plan


def study(  # noqa: PLR0913 (an entry point)
    data: str | Path,
    *,
    out: str | Path,
    config: Config | None = None,
    by: str | None = None,
    hours: float | None = None,
    names: Sequence[str] | None = None,
    allow_leakage: bool = False,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Find out whether finetuning an encoder on these sections is worth it.

    Parameters
    ----------
    data
        A folder of sections, in any format that can be read.
    out
        Folder of the results. The same call resumes an interrupted study.
    config
        The settings; None for the default encoder's recipe.
    by
        What is held out together: "patient" or "section". None chooses.
    hours
        How long the study may take; None for as long as its first plan needs.
    names
        Names of the sections; None for all that can be used.
    allow_leakage
        Go on where a split separates sections that share a sample or a patient; marks the report.
    device
        Where the networks run (`resolve_device`).
    progress
        Show progress bars.

    Returns
    -------
    dict
        As report.json: "verdict", "headline", "sentences", "differences", "scores", "genes" and so
        on.

    Raises
    ------
    InputError
        Where the encoder's weights cannot be had, the data cannot be used, nothing can be held out,
        the time is too short, or the folder holds other work. All of it is raised before training.
    """
    data, out = Path(data), Path(out)
    config = config or config_for("tf_efficientnet_lite0", "default")
    encoder_for(config, device=device)  # weights behind a licence stop a study before the data
    doubts, checks = check_usable(data, config, names=names, progress=progress)
    for doubt in doubts:
        log.warning("%s", doubt)
    loaded = [check.section for check in checks]
    by, reason = choose_groups(loaded, by)
    groups = groups_of(loaded, by)
    prints = [check.fingerprint for check in checks]
    leakage = check_leakage(loaded, groups, allow=allow_leakage, prints=prints)

    origin = provenance(loaded, config, device=device, groups=by, hours=hours)
    plan = resume_plan(out, origin)
    if plan is None:
        speed = measure_speed(loaded, config, device=device)
        plan = make_plan(loaded, config, speed=speed, by=by, reason=reason, hours=hours)
        check_disk(out, plan)
    with exclusive_folder(out):
        if not (out / PLAN).exists():
            content = {"of": origin, "plan": dataclasses.asdict(plan)}
            write_atomic(out / PLAN, json.dumps(content, indent=1))
        for sentence in plan.sentences():
            log.info("%s", sentence)

        config = dataclasses.replace(config, epochs=plan.epochs)
        costs = Costs(out, plan)
        truth = GroundTruth.find(data)
        with costs.step("cross-validation"):
            result = crossval(
                loaded,
                config,
                data_name=data.resolve().name,
                out=out / "crossval",
                truth=truth,
                by=by,
                train_groups=plan.train_groups,
                seeds=plan.seeds,
                leakage=leakage,
                cache_dir=out / "cache",
                after_fold=costs.after_fold,
                device=device,
                progress=progress,
            )
        genes = genes_to_score([section.adata for section in loaded], truth)
        with costs.step("final training"):
            _, history = finetune(
                loaded,
                config,
                out=out / "encoder",
                include=genes,
                cache_dir=out / "cache",
                device=device,
                progress=progress,
            )
        shutil.rmtree(out / "cache", ignore_errors=True)  # gigabytes that no result needs
        with costs.step("report"):
            card = model_card(out / "encoder", scores=out / "crossval/metrics.json")
            card.save(out / "encoder/README.md")
            joint = embed_sections(
                loaded, out / "encoder", out / "embeddings", config, device=device
            )
            runs = fold_runs(out / "crossval", loaded, groups, plan)
            scored = sorted(result["folds"][0]["scores"][0]["per_gene"])
            findings = Findings(
                data=data.resolve().name,
                sections=loaded,
                config=config,
                plan=plan,
                result=result,
                history=history,
                held_out=held_out_evidence(runs, genes_to_map(loaded, scored), device=device),
                joint=joint,
                robustness=robustness(joint),
                section_facts={check.section.name: check.facts for check in checks},
                doubts=doubts,
                leakage=leakage,
            )
            images = draw_figures(findings)
        facts = report_facts(findings) | {"costs": costs.rows()}
        write_atomic(out / "report.json", json.dumps(facts, indent=1, default=float))
        write_atomic(out / "report.html", report_page(findings, facts, images))
    return facts


def resume_plan(out: Path, origin: dict[str, Any]) -> Plan | None:
    """Return the plan of an interrupted study, or None where there is none.

    Raises
    ------
    InputError
        Where the folder holds a study of other data, settings or options, a damaged plan, or other
        files.
    """
    path = out / PLAN
    if not path.exists():
        check_unused(out)
        return None
    content = read(path, PlanFile, remedy=PLAN_REMEDY)
    for key in ("sections", "data_sha256", "config_sha256", "groups", "hours"):
        if content["of"].get(key) != origin[key]:
            message = f"{out}: holds another study ({key})"
            raise InputError(f"{message}; choose another --out or remove it")
    plan = content["plan"]
    if plan.by != origin["groups"] or set(plan.seconds) != set(STEPS):
        raise InputError(f"{path}: is of other groups or steps than this study; {PLAN_REMEDY}")
    return plan


def check_disk(out: Path, plan: Plan) -> None:
    """Raise an `InputError` where the disk has less room than the plan needs."""
    free_gb = shutil.disk_usage(nearest_existing(out)).free / 1e9
    if plan.disk_gb > free_gb:
        message = f"{out}: the study needs {plan.disk_gb:.1f} GB and {free_gb:.1f} GB are free"
        raise InputError(f"{message}; choose another --out")


def fold_runs(
    crossval_folder: Path, sections: Sequence[Section], groups: Sequence[str], plan: Plan
) -> list[tuple[Path, list[Section]]]:
    """Return the tuned run of each fold's first seed, with the fold's held-out sections.

    Raises
    ------
    InputError
        Where a run is damaged or absent.
    """
    folders = sorted((crossval_folder / "runs").glob("*/tuned/provenance.json"))
    by_training: dict[tuple[str, ...], Path] = {}
    for path in folders:
        record = read_provenance(path, remedy=RUNS_REMEDY)
        if record.get("seed") == 0:
            by_training[tuple(record["sections"])] = path.parent
    runs = []
    for train, tests in folds_of(sections, groups, plan.train_groups):
        trained = tuple(section.name for section in train)
        if trained not in by_training:
            fault = f"has no run of seed 0 that was trained on {trained[0]} and so on"
            raise InputError(f"{crossval_folder / 'runs'}: {fault}; {RUNS_REMEDY}")
        held_out = [section for part in tests.values() for section in part]
        runs.append((by_training[trained], held_out))
    return runs
