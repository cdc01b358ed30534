"""Finetuning: one visible loop over pairs (prefix activations of a view, z-scored expression)."""

from __future__ import annotations

import ast
import datetime
import hashlib
import json
import math
import platform
import subprocess
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from .backbones import backbone_row
from .batches import Pairs, refuse_batches
from .config import Config
from .errors import InputError, reading
from .files import HIDDEN, alone, appearing, read_json, write_atomic
from .genes import GenePanel
from .model import SEAL

AGAIN = "free some space and run it again: it goes on"
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


def finetune(sections, config: Config, *, panel=None, out=None, include=(), shuffle_pairs=False,
             cached=True, cache_dir=None, chunk=0, progress=True):  # fmt: skip
    """Finetune the config's backbone on `sections` (list of `sections.Section`).

    The `GenePanel` is fitted on these sections unless given. With `out`, the run folder holds
    config, panel, adapter, heads, metrics.jsonl, provenance.json, and a checkpoint after every
    epoch from which the same call resumes to the same result. `include` as in `GenePanel.fit`, the
    other options as in `Pairs`: `chunk` also bounds the images whose activations a step holds, at
    the cost of computing them twice, so that memory no longer limits the batch (Gao et al., 2021,
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
        (out / "checkpoint.pt").unlink(missing_ok=True)
        lines = (out / "metrics.jsonl").read_text().splitlines()
        return SEAL.from_pretrained(out), [json.loads(line) for line in lines]
    patience = InitProcessGroupKwargs(timeout=datetime.timedelta(days=1))  # for the first's cache
    accelerator = Accelerator(mixed_precision=config.precision, kwargs_handlers=[patience])
    kept, progress = (out, progress) if accelerator.is_main_process else (None, False)
    refuse_batches(sections, config, processes=accelerator.num_processes)
    model = SEAL.build(panel, config).to(accelerator.device)
    with alone(kept) if kept else nullcontext():  # only now: all input has proved good
        if kept is not None:
            write_atomic(kept / "provenance.json", json.dumps(record, indent=1))
        with accelerator.main_process_first():  # the others find its cache
            pairs = Pairs(
                sections, panel, config, model.encoder, cached=cached, cache_dir=cache_dir,
                chunk=chunk, shuffle_pairs=shuffle_pairs, progress=progress,
                share=(accelerator.process_index, accelerator.num_processes))  # fmt: skip
        history = _train(pairs, model, accelerator, out, kept, progress=progress)
        model.eval()
        if kept is not None:
            with reading(kept, fault="cannot be written", remedy=AGAIN):
                model.save_pretrained(kept)
            write_atomic(kept / "metrics.jsonl", "".join(json.dumps(h) + "\n" for h in history))
            ended = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            ended = json.dumps({**record, "finished": ended}, indent=1)
            write_atomic(kept / "provenance.json", ended)
            (kept / "checkpoint.pt").unlink(missing_ok=True)
    return model, history


def _train(pairs: Pairs, model: SEAL, accelerator, out, kept, *, progress=True) -> list[dict]:
    """The loop: `model` is trained, the records of its epochs are returned.

    It goes on from the checkpoint in `out`, and leaves one in `kept` (None: nowhere).
    """
    config = model.config
    adapter = [p for p in model.encoder.parameters() if p.requires_grad]
    heads = [p for n, p in model.named_parameters() if not n.startswith("encoder.")]
    groups = [{"params": adapter, "lr": config.lr_lora}, {"params": heads, "lr": config.lr_heads}]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    warm, per_epoch = config.gene_warmup_epochs, len(pairs) // config.batch_size
    rate = partial(learning_rate, steps=config.epochs * per_epoch, warmup=config.warmup)
    scheduler = LambdaLR(optimizer, lambda step: rate(step - warm * per_epoch))
    optimizer = accelerator.prepare_optimizer(optimizer)  # unscales fp16 gradients
    history = _resume(out, model, optimizer, scheduler)
    bar = tqdm(range(len(history), warm + config.epochs), "finetune", disable=not progress)
    for epoch in bar:
        torch.manual_seed(hash((config.seed, epoch)) % 2**63)  # dropout: resumes to the same bits
        model.train()
        sums, started, seen, joint = {}, time.perf_counter(), 0, epoch >= warm
        for hidden, x in pairs.epoch(epoch):
            hidden, x = hidden.to(accelerator.device), x.to(accelerator.device)
            with accelerator.autocast():
                terms = model(hidden, x, chunk=pairs.chunk) if joint else model.forward_genes(x)
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
            "epoch": epoch, "phase": "joint" if joint else "genes",
            **{k: v / seen for k, v in sums.items()}, "lr_lora": optimizer.param_groups[0]["lr"],
            "seconds": seconds, "pairs_per_s": seen / seconds})  # fmt: skip
        bar.set_postfix(loss=f"{history[-1]['loss']:.3f}")
        _checkpoint(kept, model, optimizer, scheduler, history)
    return history


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
    git = subprocess.run("git describe --always --dirty --abbrev=12".split(), text=True,
                         cwd=Path(__file__).parent, capture_output=True)  # fmt: skip
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "sections": [s.name for s in sections], "data_sha256": data, "seed": config.seed,
        "config_sha256": hashlib.sha256(config.to_json().encode()).hexdigest(),
        "backbone_sha256": hashlib.sha256(repr(backbone_row(config.backbone)).encode()).hexdigest(),
        "code": list(code), "code_sha256": code_hash(code),
        "commit": git.stdout.strip() or "unknown",
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "timm": timm.__version__, "numpy": np.__version__},
        "device": f"{device} ({platform.machine()}, {torch.get_num_threads()} threads)",
        **extra}  # fmt: skip


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


def claimed(out: Path, record: dict, *, same) -> dict:
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
    state = {"model": model.trainable(), "optimizer": optimizer.state_dict(),
             "scheduler": scheduler.state_dict(), "history": history}  # fmt: skip
    with (reading(out, fault="cannot be written", remedy=AGAIN),
          appearing(out / "checkpoint.pt") as part):  # fmt: skip
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
