"""The folder of a run: whose it is, its checkpoints, and its end."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from seal_lite.config import Config, Weight
from seal_lite.encoders.vision import hash_tensors
from seal_lite.errors import InputError, reading
from seal_lite.io import RUN_REMEDY, TEMPORARY_SUFFIXES, atomic_file, write_atomic
from seal_lite.locks import exclusive_folder
from seal_lite.model.seal import SEAL
from seal_lite.model.storage import add_checksums
from seal_lite.schema import Count, Number, Sha256, check, read_lines
from seal_lite.training.provenance import read_provenance

SAME_WORK = ("sections", "data_sha256", "config_sha256", "backbone_sha256")
CHECKPOINT = "checkpoint.pt"
HISTORY = "metrics.jsonl"
PROVENANCE = "provenance.json"
RESTART_REMEDY = "remove it: the run starts again"
RESUME_REMEDY = "free some space and run it again: it resumes"


class Epoch(TypedDict):
    """An epoch of the history; the loss has further terms, each under its own name."""

    epoch: Count
    phase: Literal["genes", "joint"]
    loss: float
    lr_lora: Weight
    seconds: Annotated[float, Number(at_least=0)]
    pairs_per_s: Annotated[float, Number(at_least=0)]


class Moments(TypedDict):
    """Adam's state of a parameter."""

    step: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class OptimizerState(TypedDict):
    """What is taken of an optimizer's state."""

    state: dict[Count, Moments]


class ScalerState(TypedDict, total=False):
    """The loss scale of fp16; empty without."""

    scale: Annotated[float, Number(above=0)]
    growth_factor: Annotated[float, Number(above=1)]
    backoff_factor: Annotated[float, Number(above=0, at_most=1)]
    growth_interval: Annotated[int, Number(at_least=1)]
    _growth_tracker: Count


class _Checkpoint(TypedDict):
    model: dict[str, Tensor]
    optimizer: OptimizerState
    history: list[Epoch]


class Checkpoint(_Checkpoint, total=False):
    """What a checkpoint holds; older ones have no hash, and the state of a scheduler."""

    scaler: ScalerState
    sha256: Sha256


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
        check_unused(out)
        return {}
    claimed = dict(read_provenance(path, remedy="remove that folder"))
    for key in (*SAME_WORK, *same):
        if claimed.get(key) != record.get(key):
            raise InputError(f"{out}: holds other work ({key}); choose another --out or remove it")
    return claimed


def check_unused(out: Path) -> None:
    """Check that a folder is absent or empty, but for what locks and interruptions leave.

    Raises
    ------
    InputError
        Where it holds files.
    """
    if out.is_dir() and any(file.suffix not in TEMPORARY_SUFFIXES for file in out.iterdir()):
        raise InputError(f"{out}: exists and is not of this work; choose another --out")


def load_finished(
    out: Path, *, device: str | torch.device = "auto"
) -> tuple[SEAL, list[dict[str, Any]]]:
    """Return the model and the history of a finished run.

    Raises
    ------
    InputError
        As `SEAL.from_pretrained`, and where the history is damaged, or not that of the settings.
    """
    (out / CHECKPOINT).unlink(missing_ok=True)
    path = out / HISTORY
    history = read_lines(path, Epoch)
    model = SEAL.from_pretrained(out, device=device)
    check_history(path, history, model.config)
    n_epochs = model.config.gene_warmup_epochs + model.config.epochs
    if len(history) != n_epochs:
        raise InputError(f"{path}: has {len(history)} epochs, not {n_epochs}; {RUN_REMEDY}")
    return model, history


def check_history(path: Path, history: list[dict[str, Any]], config: Config) -> None:
    """Check that epochs follow one another, first those of the warm-up, and not too many.

    Raises
    ------
    InputError
        Where they do not; the message names `path`.
    """
    n_warmup = config.gene_warmup_epochs
    phases = ["genes"] * n_warmup + ["joint"] * config.epochs
    stated = [(epoch["epoch"], epoch["phase"]) for epoch in history]
    if stated != list(enumerate(phases[: len(history)])):
        raise InputError(
            f"{path}: its epochs are not the first of {n_warmup} of warm-up and {config.epochs} "
            "joint ones; remove it"
        )


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
    add_checksums(out, [HISTORY])
    finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_atomic(out / PROVENANCE, json.dumps({**record, "finished": finished}, indent=1))
    (out / CHECKPOINT).unlink(missing_ok=True)


def save_checkpoint(
    out: Path | None,
    model: SEAL,
    optimizer: Optimizer,
    scaler: GradScaler,
    history: list[dict[str, Any]],
) -> None:
    """Write what a run needs to resume; None writes nothing."""
    if out is None:
        return
    state = {
        "model": model.trainable(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),  # empty but for fp16
        "history": history,
    }
    state["sha256"] = _hash_state(state)
    with (
        reading(out, fault="cannot be written", remedy=RESUME_REMEDY),
        atomic_file(out / CHECKPOINT) as part,
    ):
        torch.save(state, part)


def load_checkpoint(
    out: Path | None, model: SEAL, optimizer: Optimizer, scaler: GradScaler
) -> list[dict[str, Any]]:
    """Restore the state of an interrupted run and return its history; [] where there is none.

    The run may have begun on another device. Rates and other settings are those of `optimizer`: of
    the file, only what was learnt is taken.

    Raises
    ------
    InputError
        Where the file is damaged, or of another model.
    """
    if out is None or not (out / CHECKPOINT).exists():
        return []
    path = out / CHECKPOINT
    with reading(path, remedy=RESTART_REMEDY):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        state: dict[str, Any] = check(loaded, Checkpoint, path=path, remedy=RESTART_REMEDY)
        if "sha256" in state and state["sha256"] != _hash_state(state):
            raise InputError(f"{path}: is not as it was written; {RESTART_REMEDY}")
        check_history(path, state["history"], model.config)
        moments = state["optimizer"]["state"]
        _check_moments(path, moments, optimizer)
        model.load_trainable(state["model"], source=path)
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if scaler.is_enabled() and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
    return state["history"]


def _check_moments(path: Path, stored: dict[int, dict[str, Tensor]], optimizer: Optimizer) -> None:
    """Raise an `InputError` where Adam's moments are not those of the optimizer's parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, moments in stored.items():
        if i >= len(parameters):
            raise InputError(f"{path}: optimizer.state.{i} is of no parameter; {RESTART_REMEDY}")
        for name, tensor in moments.items():
            shape = torch.Size() if name == "step" else parameters[i].shape
            is_number = tensor.is_floating_point() and bool(torch.isfinite(tensor).all())
            is_in_range = is_number and (name == "exp_avg" or bool((tensor >= 0).all()))
            if tensor.shape != shape or not is_in_range:
                fault = f"optimizer.state.{i}.{name} is no moment of its parameter"
                raise InputError(f"{path}: {fault}; {RESTART_REMEDY}")


def _hash_state(state: dict[str, Any]) -> str:
    """Return the SHA-256 of what is taken of a checkpoint, 64 hex digits."""
    tensors = dict(state["model"])
    for i, moments in state["optimizer"]["state"].items():
        tensors |= {f"{i}.{name}": tensor for name, tensor in moments.items()}
    salt = json.dumps([state["history"], state.get("scaler", {})])
    return hash_tensors(tensors, salt=salt)
