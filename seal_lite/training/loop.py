"""Finetuning: one visible loop over pairs (prefix activations of a view, z-scored expression)."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from seal_lite.config import Config
from seal_lite.data.genes import GenePanel
from seal_lite.errors import InputError, reading
from seal_lite.io import exclusive_folder, write_atomic
from seal_lite.model.seal import SEAL
from seal_lite.training.distributed import average_gradients
from seal_lite.training.loader import Pairs, check_batch_size
from seal_lite.training.provenance import provenance
from seal_lite.training.run import AGAIN, _checkpoint, _resume, claim_folder


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


def finetune(
    sections,
    config: Config,
    *,
    panel=None,
    out=None,
    include=(),
    shuffle_pairs=False,
    cached=True,
    cache_dir=None,
    chunk=0,
    progress=True,
):
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
    if out and claim_folder(out, record, same=("shuffle_pairs", "genes_sha256")).get("finished"):
        (out / "checkpoint.pt").unlink(missing_ok=True)
        lines = (out / "metrics.jsonl").read_text().splitlines()
        return SEAL.from_pretrained(out), [json.loads(line) for line in lines]
    patience = InitProcessGroupKwargs(timeout=datetime.timedelta(days=1))  # for the first's cache
    accelerator = Accelerator(mixed_precision=config.precision, kwargs_handlers=[patience])
    kept, progress = (out, progress) if accelerator.is_main_process else (None, False)
    check_batch_size(sections, config, processes=accelerator.num_processes)
    model = SEAL.build(panel, config).to(accelerator.device)
    with exclusive_folder(kept) if kept else nullcontext():  # only now: all input has proved good
        if kept is not None:
            write_atomic(kept / "provenance.json", json.dumps(record, indent=1))
        with accelerator.main_process_first():  # the others find its cache
            pairs = Pairs(
                sections,
                panel,
                config,
                model.encoder,
                cached=cached,
                cache_dir=cache_dir,
                chunk=chunk,
                shuffle_pairs=shuffle_pairs,
                progress=progress,
                share=(accelerator.process_index, accelerator.num_processes),
            )
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
        history.append(
            {
                "epoch": epoch,
                "phase": "joint" if joint else "genes",
                **{k: v / seen for k, v in sums.items()},
                "lr_lora": optimizer.param_groups[0]["lr"],
                "seconds": seconds,
                "pairs_per_s": seen / seconds,
            }
        )
        bar.set_postfix(loss=f"{history[-1]['loss']:.3f}")
        _checkpoint(kept, model, optimizer, scheduler, history)
    return history
