"""The folder of a run: whose it is, its checkpoints, and its end."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from seal_lite.errors import InputError, reading
from seal_lite.io import RUN_REMEDY, TEMPORARY_SUFFIXES, atomic_file, read_json, write_atomic
from seal_lite.locks import exclusive_folder
from seal_lite.model.seal import SEAL

SAME_WORK = ("sections", "data_sha256", "config_sha256", "backbone_sha256")
CHECKPOINT = "checkpoint.pt"
HISTORY = "metrics.jsonl"
PROVENANCE = "provenance.json"
RESUME_REMEDY = "free some space and run it again: it resumes"


def claim_folder(out: Path, record: dict[str, Any], *, same: Sequence[str] = ()) -> dict[str, Any]:
    """Check that a folder is free for this work, or holds this very work.

    Package version, commit, library versions and device do not matter.

    Parameters
    ----------
    out
        The folder; it need not exist.
    record
        The `provenance` of the work.
    same
        Keys of it that must be the same, beside data, settings and backbone.

    Returns
    -------
    dict
        The provenance in the folder; {} where there is none.

    Raises
    ------
    InputError
        Where the folder holds other work, or other files.
    """
    path = out / PROVENANCE
    if not path.exists():
        if out.is_dir() and any(file.suffix not in TEMPORARY_SUFFIXES for file in out.iterdir()):
            raise InputError(f"{out}: exists and is not of this work; choose another --out")
        return {}
    claimed = read_json(path, remedy="remove that folder")
    for key in (*SAME_WORK, *same):
        if claimed.get(key) != record.get(key):
            raise InputError(f"{out}: holds other work ({key}); choose another --out or remove it")
    return claimed


def load_finished(
    out: Path, *, device: str | torch.device = "auto"
) -> tuple[SEAL, list[dict[str, Any]]]:
    """Return the model and the history of a finished run."""
    (out / CHECKPOINT).unlink(missing_ok=True)
    with reading(out / HISTORY, remedy=RUN_REMEDY):
        lines = (out / HISTORY).read_text().splitlines()
    return SEAL.from_pretrained(out, device=device), [json.loads(line) for line in lines]


@contextmanager
def open_run(out: Path | None, record: dict[str, Any]) -> Iterator[None]:
    """Make the run's folder and keep others out of it; None writes nothing."""
    if out is None:
        yield
        return
    with exclusive_folder(out):
        write_atomic(out / PROVENANCE, json.dumps(record, indent=1))
        yield


def finish_run(
    out: Path | None, model: SEAL, history: list[dict[str, Any]], record: dict[str, Any]
) -> None:
    """Write the model, the history and the time of the end; None writes nothing."""
    if out is None:
        return
    with reading(out, fault="cannot be written", remedy=RESUME_REMEDY):
        model.save_pretrained(out)
    write_atomic(out / HISTORY, "".join(json.dumps(epoch) + "\n" for epoch in history))
    finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_atomic(out / PROVENANCE, json.dumps({**record, "finished": finished}, indent=1))
    (out / CHECKPOINT).unlink(missing_ok=True)


def save_checkpoint(
    out: Path | None,
    model: SEAL,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    scaler: GradScaler,
    history: list[dict[str, Any]],
) -> None:
    """Write what a run needs to resume; None writes nothing."""
    if out is None:
        return
    state = {
        "model": model.trainable(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": scaler.state_dict(),  # empty but for fp16
        "history": history,
    }
    with (
        reading(out, fault="cannot be written", remedy=RESUME_REMEDY),
        atomic_file(out / CHECKPOINT) as part,
    ):
        torch.save(state, part)


def load_checkpoint(
    out: Path | None,
    model: SEAL,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    scaler: GradScaler,
) -> list[dict[str, Any]]:
    """Restore the state of an interrupted run and return its history; [] where there is none.

    The run may have begun on another device.
    """
    if out is None or not (out / CHECKPOINT).exists():
        return []
    path = out / CHECKPOINT
    with reading(path, remedy="remove it: the run starts again"):
        state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_trainable(state["model"], source=path)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    if state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    return state["history"]
