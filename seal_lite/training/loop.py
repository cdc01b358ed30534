"""Finetuning, from top to bottom: data, model, optimizer, schedule, the loop, checkpoints."""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.amp import GradScaler
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from seal_lite.config import Config
from seal_lite.data.genes import GenePanel
from seal_lite.encoders.checks import check_adapted
from seal_lite.errors import InputError
from seal_lite.model.losses import PairOutputs, seal_loss, warmup_loss
from seal_lite.model.seal import SEAL
from seal_lite.training.callbacks import Callback
from seal_lite.training.distributed import average_gradients, join_processes, share_of
from seal_lite.training.loader import (
    Activations,
    Pairs,
    Sections,
    check_extra_expression,
    check_pairs,
)
from seal_lite.training.provenance import Shuffle, provenance
from seal_lite.training.run import (
    claim_folder,
    finish_run,
    load_checkpoint,
    load_finished,
    open_run,
    save_checkpoint,
)

Loss = Callable[[PairOutputs, Config], dict[str, Tensor]]
Batches = Iterator[tuple[Tensor | None, Tensor]]
History = list[dict[str, Any]]
# What decides a run beside data, settings and backbone.
SAME_RUN = ("shuffle_pairs", "panel_sha256", "loss", "callbacks", "extra_expression_sha256")


def finetune(  # noqa: PLR0913
    sections: Sections,
    config: Config,
    *,
    panel: GenePanel | None = None,
    out: str | Path | None = None,
    include: Sequence[str] = (),
    shuffle_pairs: Shuffle = False,
    extra_expression: np.ndarray | None = None,
    cached: bool = True,
    cache_dir: str | Path | None = None,
    chunk: int = 0,
    loss: Loss = seal_loss,
    callbacks: Sequence[Callback] = (),
    device: str | torch.device = "auto",
    progress: bool = True,
) -> tuple[SEAL, History]:
    """Finetune the config's backbone on pairs of patch and expression.

    Under `accelerate launch` the processes share every batch, and the contrast sees all of it: the
    result is that of one process.

    Parameters
    ----------
    sections
        Training sections, or shards of them.
    config
        All settings.
    panel
        The genes. None fits a panel on these sections; shards come with theirs.
    out
        Run folder: config, panel, adapter, heads, metrics.jsonl, provenance.json, and after every
        epoch a checkpoint from which the same call resumes to the same result. A finished run is
        loaded, not repeated. None writes nothing.
    include
        Genes that a fitted panel must hold beside the most variable ones. `seal-lite finetune`
        includes those that are scored: give `genes_to_score` here, or the panel, and with it the
        model, is another one.
    shuffle_pairs
        Break the pairing within each section: the control that every gain is measured against.
        "every epoch" draws the partners anew each time.
    extra_expression : array (m, genes) float32, optional
        z-scored profiles without an image, for the gene encoder's warm-up epochs; needs `panel`.
    cached, cache_dir
        Whether, and in which folder, the frozen blocks' activations are cached. "auto" is the
        common folder (`cache_folder`), None the memory.
    chunk
        Number of images whose activations a step holds. The backward pass computes them again, so
        that memory does not limit the batch (Gao et al., 2021, GradCache). 0 holds all.
    loss
        From a batch's outputs and the config to named terms, scalars, of which "loss" is minimised.
        Warm-up epochs use `warmup_loss`.
    callbacks
        Objects whose methods run between steps and epochs.
    device
        Where it runs, and where the model is afterwards; "auto" is the fastest of this machine
        (`resolve_device`). A run that was interrupted may resume on another.
    progress
        Whether to show progress bars.

    Returns
    -------
    model
        The finetuned model, in eval mode.
    history
        A dict for each epoch: "epoch", "phase" ("genes" in the warm-up, then "joint"), the mean of
        each loss term, "lr_lora", "seconds" and "pairs_per_s".

    Raises
    ------
    InputError
        Before any work where `out` holds a run of other settings or data, where the pairs do not
        fill a batch, and where `extra_expression` does not fit the panel; in training for a loss
        that is not finite, and where the first gradients do not reach all that LoRA adapts.
    """
    state, place = join_processes(device)

    # Data: the genes, and what this run is computed from.
    if panel is None:
        panel = GenePanel.from_config(sections, config, include=include)  # type: ignore[arg-type]
    record = provenance(
        sections, config, device=place, shuffle_pairs=shuffle_pairs, panel_sha256=panel.digest
    )
    record |= _departures(loss, callbacks, extra_expression)
    out = None if out is None else Path(out)
    if out is not None:
        claimed = claim_folder(out, record, same=SAME_RUN)
        if claimed.get("finished"):
            return load_finished(out, device=place)

    # Model.
    check_pairs(sections, config, processes=state.num_processes)
    check_extra_expression(extra_expression, panel)
    model = SEAL.build(panel, config, device=place)

    # All input has proved good: only now is there a folder. One process writes, and shows progress.
    is_main = state.is_main_process
    folder = out if is_main else None
    with open_run(folder, record):
        activations = Activations(
            model.encoder,
            sections,
            config,
            state=state,
            cached=cached,
            cache_dir=cache_dir,
            chunk=chunk,
            progress=progress and is_main,
        )
        pairs = Pairs(
            sections,
            panel,
            config,
            activations,
            shuffle_pairs=shuffle_pairs,
            extra_expression=extra_expression,
            share=share_of(state),
        )
        history = train(
            model,
            pairs,
            state,
            loss=loss,
            callbacks=callbacks,
            out=out,
            progress=progress and is_main,
        )
        model.eval()
        finish_run(folder, model, history, record)
    return model, history


def train(
    model: SEAL,
    pairs: Pairs,
    state: PartialState,
    *,
    loss: Loss = seal_loss,
    callbacks: Sequence[Callback] = (),
    out: Path | None = None,
    progress: bool = True,
) -> History:
    """Train the model in place, from the checkpoint in `out` if there is one.

    Arguments and the returned history are those of `finetune`.
    """
    config = model.config
    device = model.encoder.device
    dtype = model.encoder.working_dtype
    folder = out if state.is_main_process else None

    # Optimizer.
    on_card = device.type == "cuda"
    optimizer = torch.optim.AdamW(parameter_groups(model, config), fused=on_card)

    scaler = GradScaler(device.type, enabled=dtype == torch.float16)
    history: History = load_checkpoint(out, model, optimizer, scaler)

    # Schedule: the gene encoder's warm-up epochs at the full rate, then a rise and a cosine.
    warmup_steps = config.gene_warmup_epochs * pairs.expression_steps
    joint_steps = config.epochs * pairs.steps

    def rate(step: int) -> float:
        return learning_rate(step - warmup_steps, steps=joint_steps, warmup=config.warmup)

    n_warmup = min(len(history), config.gene_warmup_epochs)
    steps_done = n_warmup * pairs.expression_steps + (len(history) - n_warmup) * pairs.steps
    scheduler = LambdaLR(optimizer, rate, last_epoch=steps_done - 1)

    for callback in callbacks:
        callback.on_fit_start(model)

    epochs = range(len(history), config.gene_warmup_epochs + config.epochs)
    bar = tqdm(epochs, "finetune", disable=not progress)
    for epoch in bar:
        torch.manual_seed(hash((config.seed, epoch)) % 2**63)  # dropout: resumes to the same bits
        model.train()
        joint = epoch >= config.gene_warmup_epochs
        batches: Batches = pairs.epoch(epoch) if joint else pairs.expression_epoch(epoch)
        steps: list[dict[str, Tensor]] = []  # each loss term, by step
        started = time.perf_counter()

        for hidden, x in batches:  # (b, ...), or None in the warm-up; (b, genes)
            # Forward. The encoder computes in its own precision, heads and loss in float32.
            if hidden is None:
                terms = warmup_loss(model.forward_genes(x), config)
            else:
                outputs = model(hidden, x, chunk=pairs.activations.chunk)
                terms = loss(outputs, config)

            # Backward.
            optimizer.zero_grad()
            scaler.scale(terms["loss"]).backward()
            if joint and not steps:
                check_adapted(model.encoder)
            average_gradients(state, model)
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()

            # Values stay on the device: to read one would wait for the step.
            steps.append({name: term.detach() for name, term in terms.items()})
            for callback in callbacks:
                callback.on_step_end(model, steps[-1])

        means = _mean_terms(steps, epoch)
        seconds = time.perf_counter() - started
        history.append(
            {
                "epoch": epoch,
                "phase": "joint" if joint else "genes",
                **means,
                "lr_lora": optimizer.param_groups[0]["lr"],
                "seconds": seconds,
                "pairs_per_s": len(steps) * config.batch_size / seconds,
            }
        )
        bar.set_postfix(loss=f"{history[-1]['loss']:.3f}")
        for callback in callbacks:
            callback.on_epoch_end(model, history)
        save_checkpoint(folder, model, optimizer, scaler, history)
    return history


def parameter_groups(model: SEAL, config: Config) -> list[dict[str, Any]]:
    """Return the optimizer's four groups: what is tuned of the encoder, then the heads.

    Each has its own learning rate. Weights decay, while biases, norms and the temperature, which
    have fewer than two dimensions, do not.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    adapter = [p for name, p in trained.items() if name.startswith("encoder.")]
    heads = [p for name, p in trained.items() if not name.startswith("encoder.")]
    groups = []
    for parameters, rate in ((adapter, config.lr_lora), (heads, config.lr_heads)):
        weights = [p for p in parameters if p.ndim >= 2]
        others = [p for p in parameters if p.ndim < 2]
        rates = {"lr": rate, "initial_lr": rate}  # the second is what the schedule scales
        groups.append({"params": weights, **rates, "weight_decay": config.weight_decay})
        groups.append({"params": others, **rates, "weight_decay": 0.0})
    return groups


def _mean_terms(steps: list[dict[str, Tensor]], epoch: int) -> dict[str, float]:
    """Return the mean of each loss term over an epoch's steps.

    Raises
    ------
    InputError
        The loss of a step is not finite.
    """
    means = {}
    for name in steps[0]:
        values = torch.stack([terms[name].float() for terms in steps]).tolist()  # one transfer
        if name == "loss" and not all(map(math.isfinite, values)):
            worst = next(value for value in values if not math.isfinite(value))
            raise InputError(f"epoch {epoch}: the loss is {worst}; lower lr_lora or lr_heads")
        means[name] = sum(values) / len(values)
    return means


def learning_rate(step: int, *, steps: int, warmup: float) -> float:
    """Return the factor on the base rate at a step of the joint epochs.

    It rises linearly over the share `warmup` of all `steps`, then falls along a cosine to 0. Steps
    below 0 belong to the gene encoder's warm-up epochs, which run at the full rate.
    """
    if step < 0:
        return 1.0
    rise = int(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    fall = max(1, steps - rise)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / fall))


def _departures(
    loss: Loss, callbacks: Sequence[Callback], extra_expression: np.ndarray | None
) -> dict[str, Any]:
    """Return how a run departs from the method, for its provenance; {} where it does not."""
    departures: dict[str, Any] = {}
    if loss is not seal_loss:
        departures["loss"] = _loss_name(loss)
    if callbacks:
        departures["callbacks"] = [type(callback).__qualname__ for callback in callbacks]
    if extra_expression is not None:
        profiles = np.ascontiguousarray(extra_expression)
        departures["extra_expression_sha256"] = hashlib.sha256(profiles.data).hexdigest()
    return departures


def _loss_name(loss: Loss) -> str:
    """Return a loss's name, with the arguments that `functools.partial` has fixed."""
    if not isinstance(loss, functools.partial):
        return getattr(loss, "__qualname__", type(loss).__qualname__)
    fixed = [repr(value) for value in loss.args]
    fixed += [f"{name}={value!r}" for name, value in sorted(loss.keywords.items())]
    return f"{_loss_name(loss.func)}({', '.join(fixed)})"
