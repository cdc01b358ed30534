"""Finetuning: one visible loop over pairs (prefix activations of a view, z-scored expression)."""

from __future__ import annotations

import ast
import datetime
import hashlib
import json
import math
import os
import platform
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from .backbones import backbone_row
from .batches import Pairs
from .config import Config
from .errors import InputError
from .genes import GenePanel
from .model import SEAL

CODE = ("crossval", "pairs")  # what decides a cross-validation, with all that they import


def learning_rate(step: int, *, steps: int, warmup: float) -> float:
    """Factor on the base rate: linear rise over `warmup` of the steps, then a cosine to 0.

    Steps below 0 belong to the gene encoder's own epochs, which run at the full rate.
    """
    rise = int(warmup * steps)
    if step < 0:
        return 1.0
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def finetune(sections, config: Config, *, panel: GenePanel | None = None, out=None, include=(),
             shuffle_pairs=False, cached=True, cache_dir=None, chunk=0,
             progress=True):  # fmt: skip
    """Finetune the config's backbone on `sections` (list of `sections.Section`).

    The panel is fitted on these sections unless given. With `out`, the run folder holds config,
    panel, adapter, heads, metrics.jsonl, provenance.json, and a checkpoint after every epoch from
    which the same call resumes to the same result. `include` as in `GenePanel.fit`, the other
    options as in `Pairs`: `chunk` also bounds the images whose activations a step holds, at the
    cost of computing them twice, so that memory no longer limits the batch (Gao et al., 2021,
    GradCache). Under `accelerate launch` the processes share every batch, and the contrast sees
    all of it: the result is that of one process.

    Returns (model, list of per-epoch records {"epoch", "phase": "genes" or "joint", the mean of
    each loss term, "lr_lora", "seconds", "pairs_per_s"}). Raises `InputError` before any work where
    `out` holds a run of other settings or data, as `Pairs` does, and for a loss that is not finite.
    """
    out = None if out is None else Path(out)
    if panel is None:
        panel = GenePanel.from_config(sections, config, include=include)
    genes = hashlib.sha256(" ".join(panel.genes).encode()).hexdigest()
    record = provenance(sections, config, shuffle_pairs=shuffle_pairs, genes_sha256=genes)
    if out and claimed(out, record, same=("shuffle_pairs", "genes_sha256")).get("finished"):
        lines = (out / "metrics.jsonl").read_text().splitlines()
        return SEAL.from_pretrained(out), [json.loads(line) for line in lines]
    patience = InitProcessGroupKwargs(timeout=datetime.timedelta(days=1))  # for the first's cache
    accelerator = Accelerator(mixed_precision=config.precision, kwargs_handlers=[patience])
    kept, progress = (out, progress) if accelerator.is_main_process else (None, False)
    model = SEAL.build(panel, config).to(accelerator.device)
    with accelerator.main_process_first():  # the others find its cache
        pairs = Pairs(
            sections, panel, config, model.encoder, cached=cached, cache_dir=cache_dir, chunk=chunk,
            shuffle_pairs=shuffle_pairs, progress=progress,
            share=(accelerator.process_index, accelerator.num_processes),
        )  # fmt: skip

    if kept is not None:  # only now: all input has proved good
        kept.mkdir(parents=True, exist_ok=True)
        write_atomic(kept / "provenance.json", json.dumps(record, indent=1))

    adapter = [p for p in model.encoder.parameters() if p.requires_grad]
    heads = [p for n, p in model.named_parameters() if not n.startswith("encoder.")]
    optimizer = torch.optim.AdamW(
        [{"params": adapter, "lr": config.lr_lora}, {"params": heads, "lr": config.lr_heads}],
        weight_decay=config.weight_decay,
    )
    warm, per_epoch = config.gene_warmup_epochs, len(pairs) // config.batch_size
    rate = partial(learning_rate, steps=config.epochs * per_epoch, warmup=config.warmup)
    scheduler = LambdaLR(optimizer, lambda step: rate(step - warm * per_epoch))
    optimizer = accelerator.prepare_optimizer(optimizer)  # unscales fp16 gradients
    history = _resume(out, model, optimizer, scheduler)
    bar = tqdm(range(len(history), warm + config.epochs), "finetune", disable=not progress)
    for epoch in bar:
        torch.manual_seed(hash((config.seed, epoch)) % 2**63)  # dropout: resumes to the same bits
        model.train()
        sums, started, seen = {}, time.perf_counter(), 0
        for hidden, x in pairs.epoch(epoch):
            hidden, x = hidden.to(accelerator.device), x.to(accelerator.device)
            with accelerator.autocast():
                terms = model.forward_genes(x) if epoch < warm else model(hidden, x, chunk=chunk)
            optimizer.zero_grad()
            accelerator.backward(terms["loss"])
            if not math.isfinite(loss := terms["loss"].item()):
                raise InputError(f"epoch {epoch}: the loss is {loss}; lower lr_lora or lr_heads")
            average_gradients(accelerator, model)
            accelerator.clip_grad_norm_(model.parameters(), config.grad_clip)
            optimizer.step()
            scheduler.step()
            seen += config.batch_size
            for k, v in terms.items():
                sums[k] = sums.get(k, 0.0) + v.item() * config.batch_size
        seconds = time.perf_counter() - started
        history.append({
            "epoch": epoch, "phase": "genes" if epoch < warm else "joint",
            **{k: v / seen for k, v in sums.items()}, "lr_lora": optimizer.param_groups[0]["lr"],
            "seconds": seconds, "pairs_per_s": seen / seconds,
        })  # fmt: skip
        bar.set_postfix(loss=f"{history[-1]['loss']:.3f}")
        _checkpoint(kept, model, optimizer, scheduler, history)
    model.eval()
    if kept is not None:
        model.save_pretrained(kept)
        write_atomic(kept / "metrics.jsonl", "".join(json.dumps(h) + "\n" for h in history))
        write_atomic(kept / "provenance.json", json.dumps({**record, "finished": _now()}, indent=1))
        (kept / "checkpoint.pt").unlink(missing_ok=True)
    return model, history


def average_gradients(accelerator, model):
    """The mean over processes of all gradients, in one message; LoRA's are few. Alone: nothing."""
    if accelerator.num_processes == 1:
        return
    held = [p for p in model.parameters() if p.grad is not None]
    mean = accelerator.reduce(torch.cat([p.grad.flatten() for p in held]), "mean")
    for p, part in zip(held, mean.split([p.numel() for p in held]), strict=True):
        p.grad = part.view_as(p)


def provenance(sections, config: Config, *, code=CODE, **extra) -> dict:
    """What a result was computed from: data hash, seed, settings, commit, versions, device; and the
    modules that made it, with their hash (`code_hash`).

    {"sections": names, "data_sha256", "config_sha256", "backbone_sha256", "seed", "commit", "code",
    "code_sha256", "versions", "device"} and `extra`, as JSON has it.
    """
    import timm

    data = hashlib.sha256("".join(s.digest for s in sections).encode()).hexdigest()
    git = "git describe --always --dirty --abbrev=12".split()
    here = Path(__file__).parent
    commit = subprocess.run(git, cwd=here, capture_output=True, text=True).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "sections": [s.name for s in sections],
        "data_sha256": data,
        "config_sha256": hashlib.sha256(config.to_json().encode()).hexdigest(),
        "backbone_sha256": hashlib.sha256(repr(backbone_row(config.backbone)).encode()).hexdigest(),
        "seed": config.seed,
        "commit": commit or "unknown",
        "code": list(code),
        "code_sha256": code_hash(code),
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "timm": timm.__version__, "numpy": np.__version__},
        "device": f"{device} ({platform.machine()}, {torch.get_num_threads()} threads)",
        **extra,
    }  # fmt: skip


def code_hash(code=CODE) -> str:
    """SHA-256 of the code that decides a result: does a record still belong to it?

    That is the modules of this package that `code` names, and whatever they import of it. Comments,
    docstrings and layout do not count. In 64 hex digits.
    """
    folder, trees, waiting = Path(__file__).parent, {}, set(code)
    while waiting:
        name = waiting.pop()
        trees[name] = tree = ast.parse((folder / f"{name}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                names = {node.module} if node.module else {a.name for a in node.names}
                waiting |= names - trees.keys()
            body = getattr(node, "body", None)
            if isinstance(body, list) and isinstance(body[0], ast.Expr):
                node.body = body[1:] or [ast.Pass()]
    code = "".join(ast.dump(trees[name]) for name in sorted(trees))
    return hashlib.sha256(code.encode()).hexdigest()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write_atomic(path: Path, text: str):
    """Write a file that appears only when complete."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def claimed(out: Path, record: dict, *, same) -> dict:
    """The provenance that is in `out`, if that is of the same work, or {} where nothing is there.

    The same are data, settings and encoder, and what is under the keys `same` of `record`. Raises
    `InputError` for a folder of other work, and one of none.
    """
    path = out / "provenance.json"
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out}: exists and is not of this work; choose another --out")
        return {}
    old = json.loads(path.read_text())
    keys = ("sections", "data_sha256", "config_sha256", "backbone_sha256", *same)
    if odd := [k for k in keys if old.get(k) != record[k]]:
        said = f"holds work of other data, settings or code ({odd[0]})"
        raise InputError(f"{out}: {said}; choose another --out or remove it")
    return old


def _checkpoint(out, model, optimizer, scheduler, history):
    if out is None:
        return
    state = {"model": model.trainable(), "optimizer": optimizer.state_dict(),
             "scheduler": scheduler.state_dict(), "history": history}  # fmt: skip
    torch.save(state, out / "checkpoint.part")
    os.replace(out / "checkpoint.part", out / "checkpoint.pt")


def _resume(out, model, optimizer, scheduler) -> list[dict]:
    if out is None or not (out / "checkpoint.pt").exists():
        return []
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    model.load_trainable(state["model"], source=out / "checkpoint.pt")
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return state["history"]
