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
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from .backbones import backbone_row
from .cache import prefix_cache
from .config import Config
from .errors import InputError
from .genes import GenePanel
from .model import SEAL
from .views import make_views

CODE = ("crossval", "pairs")  # what decides a cross-validation, with all that they import


class Pairs:
    """All training pairs, and their batches as (prefix activations, expression).

    With `cached=True` activations come from the frozen-prefix cache, otherwise the prefix runs in
    every step (the plain loop). Both see the same views and give the same losses. `shuffle_pairs`
    breaks the pairing within each section: the control that every gain is measured against.

    sections: `Section`s. encoder: the `VisionEncoder` whose prefix is run. cache_dir: the cache's
    folder; with None it is in memory. Of `config`, the batch size, seed, views and jitter count.
    Raises `InputError` where pairs are fewer than a batch. Attributes: `keys`, a name for each of n
    pairs, and `expression` (n, genes), z-scored by `panel`.
    """

    def __init__(self, sections, panel: GenePanel, config: Config, encoder, *, cached=True,
                 cache_dir=None, shuffle_pairs=False, progress=True):  # fmt: skip
        self.config, self.encoder = config, encoder
        self.keys = [k for s in sections for k in s.keys]
        if len(self.keys) < config.batch_size:
            raise InputError(
                f"{len(self.keys)} training pairs are fewer than batch_size={config.batch_size}; "
                "add sections or lower it"
            )
        rng = np.random.default_rng(config.seed)
        expression = []
        for s in sections:
            x = panel.transform(s.adata)[s.rows]
            expression.append(x[rng.permutation(len(x))] if shuffle_pairs else x)
        self.expression = torch.from_numpy(np.concatenate(expression))  # (n, genes)
        self.where = [(i, j) for i, s in enumerate(sections) for j in range(len(s.rows))]
        self.patches = [s.patches for s in sections]
        self.cache = [
            prefix_cache(encoder, s, n_views=config.n_views, jitter=config.stain_jitter,
                         folder=cache_dir, progress=progress) for s in sections
        ] if cached else None  # fmt: skip

    def epoch(self, number: int):
        """Yield batches in an order, and with views, that depend on (seed, epoch) alone.

        A batch is (prefix activations (b, ...), expression (b, genes)), b the batch size. What is
        left over at the end is dropped.
        """
        rng = np.random.default_rng([self.config.seed, number])
        order = rng.permutation(len(self.keys))
        views = rng.integers(self.config.n_views, size=len(order))
        b = self.config.batch_size
        for i in range(0, len(order) - b + 1, b):  # the last, smaller batch is dropped
            index, view = order[i : i + b], views[i : i + b]
            yield self._hidden(index, view), self.expression[index]

    def _hidden(self, index, views):
        at = [self.where[i] for i in index]
        if self.cache is not None:
            rows = [self.cache[s][v, j] for (s, j), v in zip(at, views, strict=True)]
            return torch.from_numpy(np.stack(rows))
        patches = np.stack([self.patches[s][j] for s, j in at])
        images = make_views(patches, [self.keys[i] for i in index], views,
                            jitter=self.config.stain_jitter)  # fmt: skip
        with torch.no_grad():
            return self.encoder.prefix(images.to(next(self.encoder.parameters()).device))


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
             shuffle_pairs=False, cached=True, cache_dir=None, progress=True):  # fmt: skip
    """Finetune the config's backbone on `sections` (list of `sections.Section`).

    The panel is fitted on these sections unless given. With `out`, the run folder holds config,
    panel, adapter, heads, metrics.jsonl, provenance.json, and a checkpoint after every epoch from
    which the same call resumes to the same result. `include` as in `GenePanel.fit`, the other
    options as in `Pairs`.

    Returns (model, list of per-epoch records {"epoch", "phase": "genes" or "joint", the mean of
    each loss term, "lr_lora", "seconds", "pairs_per_s"}). Raises `InputError` before any work where
    `out` holds a run of other settings or data, as `Pairs` does, and for a loss that is not finite.
    """
    out = None if out is None else Path(out)
    if panel is None:
        panel = GenePanel.from_config(sections, config, include=include)
    genes = hashlib.sha256(" ".join(panel.genes).encode()).hexdigest()
    record = provenance(sections, config, shuffle_pairs=shuffle_pairs, genes_sha256=genes)
    if out is not None and (finished := _open_run(out, record)):
        return finished
    accelerator = Accelerator(mixed_precision=config.precision)
    model = SEAL.build(panel, config).to(accelerator.device)
    pairs = Pairs(sections, panel, config, model.encoder, cached=cached, progress=progress,
                  cache_dir=cache_dir, shuffle_pairs=shuffle_pairs)  # fmt: skip

    if out is not None:  # only now: all input has proved good
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "provenance.json", json.dumps(record, indent=1))

    adapter = [p for p in model.encoder.parameters() if p.requires_grad]
    heads = [p for n, p in model.named_parameters() if not n.startswith("encoder.")]
    optimizer = torch.optim.AdamW(
        [{"params": adapter, "lr": config.lr_lora}, {"params": heads, "lr": config.lr_heads}],
        weight_decay=config.weight_decay,
    )
    warm, per_epoch = config.gene_warmup_epochs, len(pairs.keys) // config.batch_size
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: learning_rate(
            step - warm * per_epoch, steps=config.epochs * per_epoch, warmup=config.warmup
        ),
    )
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
                terms = model.forward_genes(x) if epoch < warm else model(hidden, x)
            optimizer.zero_grad()
            accelerator.backward(terms["loss"])
            if not torch.isfinite(terms["loss"]):
                raise InputError(
                    f"epoch {epoch}: the loss is {terms['loss'].item()}; lower lr_lora or lr_heads"
                )
            accelerator.clip_grad_norm_(model.parameters(), config.grad_clip)
            optimizer.step()
            scheduler.step()
            seen += len(x)
            for k, v in terms.items():
                sums[k] = sums.get(k, 0.0) + v.item() * len(x)
        seconds = time.perf_counter() - started
        history.append({
            "epoch": epoch, "phase": "genes" if epoch < warm else "joint",
            **{k: v / seen for k, v in sums.items()}, "lr_lora": optimizer.param_groups[0]["lr"],
            "seconds": seconds, "pairs_per_s": seen / seconds,
        })  # fmt: skip
        bar.set_postfix(loss=f"{history[-1]['loss']:.3f}")
        _checkpoint(out, model, optimizer, scheduler, history)
    model.eval()
    if out is not None:
        model.save_pretrained(out)
        write_atomic(out / "metrics.jsonl", "".join(json.dumps(h) + "\n" for h in history))
        write_atomic(out / "provenance.json", json.dumps({**record, "finished": _now()}, indent=1))
        (out / "checkpoint.pt").unlink(missing_ok=True)
    return model, history


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


def _open_run(out: Path, record: dict):
    """Refuse a folder of another run; return (model, history) if this very run is finished."""
    same = ("sections", "data_sha256", "config_sha256", "backbone_sha256", "shuffle_pairs",
            "genes_sha256")  # fmt: skip
    if (out / "provenance.json").exists():
        old = json.loads((out / "provenance.json").read_text())
        if any(old.get(k) != record[k] for k in same):
            raise InputError(
                f"{out}: holds a run of other data or settings; choose another --out or remove it"
            )
        if old.get("finished"):
            lines = (out / "metrics.jsonl").read_text().splitlines()
            return SEAL.from_pretrained(out), [json.loads(line) for line in lines]
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is not a run; choose another --out")
    return None


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
