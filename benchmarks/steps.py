"""Training steps and embeddings on the clock, with what makes them fast switched off by name.

    python book/steps.py '{"data": ..., "sections": [...], "px": 224, ..., "off": ["cache"]}'

`bench.py` runs it, each job in a process of its own, because allocator and threads are the
process's. With all of `OFF` this is the loop that tutorials show: the whole network in every step,
as peft wraps it, on contiguous images. Prints one line of JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import re
import sys
import time
from pathlib import Path
from unittest import mock

OFF = {
    "cache": "activations of the frozen prefix kept, per view",
    "cut": "nothing run behind the tap, no gradient before the first tuned block",
    "merged": "LoRA convolutions as one convolution",
    "layout": "channels last",
    "allocator": "large buffers kept by glibc",
}


class WithoutC(ctypes.CDLL):
    """No C library to be found, whose allocator could be set."""

    def __init__(self, name, *args, **options):
        if name == "libc.so.6":
            raise OSError(name)
        super().__init__(name, *args, **options)


def peak_bytes() -> int:
    """The most memory that this process has held, as Linux tells it.

    `getrusage` would not do: its maximum outlives `exec`, so that it may be the parent's.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def job(
    data,
    sections,
    px: int,
    um: float,
    blocks: int,
    tap: str,
    batch: int,
    steps: int,
    off,
    embedding=False,
    precision="no",
    chunk=0,
    threads=0,
) -> dict:
    """{"rate": pairs or patches per second, "seconds" of each step, "losses", "threads",
    "peak_bytes" of the process}.

    The first step warms up and is not counted; what cutting patches and filling the cache take is
    not either (the cache's is "cache_seconds"). With `embedding` patches are embedded instead.
    """
    import accelerate  # noqa: F401 (before it: others look for the C library, too)
    import peft  # noqa: F401
    import torch

    with contextlib.ExitStack() as undo:
        if "allocator" in off:
            undo.enter_context(mock.patch.object(ctypes, "CDLL", WithoutC))
        from seal_lite.encoders import embedding
    from seal_lite.config import Config
    from seal_lite.data.genes import GenePanel
    from seal_lite.data.section import load_sections
    from seal_lite.encoders.registry import backbone_row, load_backbone
    from seal_lite.encoders.vision import VisionEncoder
    from seal_lite.model.seal import SEAL
    from seal_lite.training.loader import Pairs

    torch.set_num_threads(threads or torch.get_num_threads())
    config = Config(patch_px=px, patch_um=um, tune_blocks=blocks, batch_size=batch, n_views=2)
    found = load_sections(data, sections, patch_um=um, patch_px=px)
    row = backbone_row(config.backbone)
    if tap != row.tap:  # another cut of the same network
        stage = dict(load_backbone(row, pretrained=False).named_modules())[tap]
        width = [m for m in stage.modules() if isinstance(m, torch.nn.BatchNorm2d)][-1].num_features
        row = dataclasses.replace(row, tap=tap, dim=width)
    torch.manual_seed(0)
    encoder = VisionEncoder(
        load_backbone(row),
        row,
        tune_blocks=blocks,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=0.0,
    ).eval()
    panel = GenePanel.from_config(found, config)
    model = SEAL(encoder, panel, config)
    if "layout" in off:
        undo.enter_context(mock.patch.object(encoders, "_channels_last", torch.Tensor.contiguous))
    if "merged" in off:
        for module in encoder.modules():
            vars(module).pop("forward", None)
    if "cut" in off:
        undo.enter_context(mock.patch.object(VisionEncoder, "prefix", lambda self, images: images))
        undo.enter_context(mock.patch.object(VisionEncoder, "tail", whole))
    ready = time.perf_counter()
    result = {"threads": torch.get_num_threads()}
    with undo:
        if embedding:
            return result | embeddings(encoder, found, batch, steps)
        pairs = Pairs(
            found, panel, config, encoder, cached="cache" not in off, chunk=chunk, progress=False
        )
        result["cache_seconds"] = time.perf_counter() - ready
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        batches = (b for epoch in range(10**6) for b in pairs.epoch(epoch))
        seconds, losses = [], []
        for step in range(steps + 1):
            started = time.perf_counter()
            torch.manual_seed(step)  # the gene encoder's samples
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(*next(batches), chunk=chunk)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            seconds.append(time.perf_counter() - started)
    rate = batch * steps / sum(seconds[1:])
    return result | {
        "rate": rate,
        "seconds": seconds[1:],
        "losses": losses,
        "pairs": len(pairs),
        "peak_bytes": peak_bytes(),
    }


def whole(encoder, images):
    """The pooled tap of a forward pass through the whole network, none of it left out."""
    found = []
    stage = encoder.base.get_submodule(encoder.row.tap)
    hook = stage.register_forward_hook(lambda module, args, out: found.append(out))
    encoder.base((images - encoder.mean) / encoder.std)
    hook.remove()
    return encoder.pool(found[0])


def embeddings(encoder, found, batch: int, steps: int) -> dict:
    """Patches of the sections, embedded in batches as `embedding.embed_patches` does."""
    import numpy as np

    from seal_lite.encoders.embedding import embed_patches

    patches = np.concatenate([s.patches for s in found])
    seconds = []
    for step in range(steps + 1):
        part = patches[np.arange(step * batch, (step + 1) * batch) % len(patches)]
        started = time.perf_counter()
        out = embed_patches(encoder, part, batch_size=batch)
        seconds.append(time.perf_counter() - started)
    return {
        "rate": batch * steps / sum(seconds[1:]),
        "seconds": seconds[1:],
        "sum": float(np.abs(out).sum()),
    }


if __name__ == "__main__":
    print(json.dumps(job(**json.loads(sys.argv[1]))))
