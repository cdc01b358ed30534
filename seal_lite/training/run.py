"""A run folder: whose it is, its checkpoints, and how a run resumes."""

from __future__ import annotations

from pathlib import Path

import torch

from seal_lite.errors import InputError, reading
from seal_lite.io import HIDDEN, atomic_file, read_json

AGAIN = "free some space and run it again: it goes on"


def claim_folder(out: Path, record: dict, *, same) -> dict:
    """The provenance that is in `out`, if that is of the same work, or {} where nothing is there.

    The same are data, settings and encoder, and what is under the keys `same` of `record`. Raises
    `InputError` for a folder of other work, and one of none.
    """
    path = out / "provenance.json"
    if not path.exists():
        if out.is_dir() and [p for p in out.iterdir() if p.suffix not in HIDDEN]:
            raise InputError(f"{out}: exists and is not of this work; choose another --out")
        return {}
    old = read_json(path, remedy="remove that folder")
    keys = ("sections", "data_sha256", "config_sha256", "backbone_sha256", *same)
    if odd := [k for k in keys if old.get(k) != record[k]]:
        raise InputError(f"{out}: holds other work ({odd[0]}); choose another --out or remove it")
    return old


def _checkpoint(out, model, optimizer, scheduler, history):
    if out is None:
        return
    state = {
        "model": model.trainable(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "history": history,
    }
    with (
        reading(out, fault="cannot be written", remedy=AGAIN),
        atomic_file(out / "checkpoint.pt") as part,
    ):
        torch.save(state, part)


def _resume(out, model, optimizer, scheduler) -> list[dict]:
    if out is None or not (out / "checkpoint.pt").exists():
        return []
    with reading(out / "checkpoint.pt", remedy="remove it: the run starts again"):
        state = torch.load(out / "checkpoint.pt", weights_only=True)
    model.load_trainable(state["model"], source=out / "checkpoint.pt")
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return state["history"]
