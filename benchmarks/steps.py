"""Training steps on the clock, with what makes them fast switched off by name.

    python benchmarks/steps.py '{"data": ..., "sections": [...], "px": 224, ..., "off": ["cache"]}'

It prints one line of JSON for `bench.py`, which runs each job in a process of its own. With all of
`OFF` this is the loop that tutorials show: the whole network in every step, as peft wraps it.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch

OFF = {
    "cache": "activations of the frozen blocks kept, per view",
    "cut": "nothing run behind the feature layer, no gradient before the first tuned block",
    "merged": "LoRA convolutions as one convolution",
    "layout": "channels last",
    "allocator": "large buffers kept by glibc",
}
DEFAULTS = {"off": [], "chunk": 0}


def peak_bytes() -> int:
    """Return the most memory that this process has held, as Linux reports it.

    The maximum of `getrusage` outlives `exec`, so that it may be the parent's.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def build_encoder(job: SimpleNamespace) -> Any:
    """Return the job's encoder, which runs its whole network where the cut is off."""
    from seal_lite import Config
    from seal_lite.encoders.registry import backbone_row, load_backbone
    from seal_lite.encoders.vision import VisionEncoder

    class WholeNetwork(VisionEncoder):
        """An encoder whose every step runs the whole network, as in tutorials."""

        def prefix(self, images: torch.Tensor) -> torch.Tensor:
            return images

        def tail(self, images: torch.Tensor) -> torch.Tensor:
            outputs: list[torch.Tensor] = []
            stage = self.base.get_submodule(self.feature_layer)
            hook = stage.register_forward_hook(lambda module, args, out: outputs.append(out))
            self.base((images - self.mean) / self.std)
            hook.remove()
            return self.pool(outputs[0])

    row = backbone_row(Config.backbone)
    net = load_backbone(row)
    stage = net.get_submodule(job.feature_layer)
    norms = [module for module in stage.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    row = replace(row, feature_layer=job.feature_layer, dim=norms[-1].num_features)
    torch.manual_seed(0)
    kind = WholeNetwork if "cut" in job.off else VisionEncoder
    lora = {"rank": Config.lora_rank, "alpha": Config.lora_alpha, "dropout": 0.0}
    encoder = kind(net, row, tune_blocks=job.blocks, **lora).eval()
    if "merged" in job.off:
        for module in encoder.modules():
            vars(module).pop("forward", None)
    return encoder


class Training:
    """Steps that train on a batch of pairs; a step's value is its loss."""

    def __init__(self, job: SimpleNamespace, encoder: Any, sections: list[Any]) -> None:
        from seal_lite import SEAL, Config
        from seal_lite.data.genes import GenePanel
        from seal_lite.training.loader import Activations, Pairs

        config = Config(patch_px=job.px, patch_um=job.um, batch_size=job.batch, n_views=2)
        panel = GenePanel.from_config(sections, config)
        started = time.perf_counter()
        options = {"cached": "cache" not in job.off, "chunk": job.chunk, "progress": False}
        activations = Activations(encoder, sections, config, **options)
        self.cache_seconds = time.perf_counter() - started
        self.pairs = Pairs(sections, panel, config, activations)
        self.batches = itertools.chain.from_iterable(map(self.pairs.epoch, itertools.count()))
        self.model = SEAL(encoder, panel, config).train()
        self.optimizer = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad], lr=1e-3
        )
        self.job = job

    def step(self, number: int) -> float:
        """Train on the next batch."""
        from seal_lite.model.losses import seal_loss

        torch.manual_seed(number)  # the gene encoder's samples
        hidden, x = next(self.batches)
        outputs = self.model(hidden, x, chunk=self.job.chunk)
        loss = seal_loss(outputs, self.model.config)["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def run(job: SimpleNamespace) -> dict[str, Any]:
    """Time the job's steps; the first warms up and does not count."""
    if "allocator" in job.off:
        with mock.patch("ctypes.CDLL", side_effect=OSError):  # no C library whose allocator is set
            __import__("seal_lite.encoders")
    from seal_lite import load_sections
    from seal_lite.encoders import vision

    sections = load_sections(job.data, job.sections, patch_um=job.um, patch_px=job.px)
    encoder = build_encoder(job)
    layout = torch.Tensor.contiguous if "layout" in job.off else vision.channels_last
    values = []
    with mock.patch.object(vision, "channels_last", layout):
        work = Training(job, encoder, sections)
        clock = [time.perf_counter()]
        for number in range(job.steps + 1):
            values.append(work.step(number))
            clock.append(time.perf_counter())
    seconds = np.diff(clock).tolist()[1:]
    result = {"seconds": seconds, "rate": job.batch * job.steps / sum(seconds)}
    result |= {"threads": torch.get_num_threads(), "peak_bytes": peak_bytes()}
    about = {"pairs": len(work.pairs), "cache_seconds": work.cache_seconds}
    return {**result, **about, "losses": values}


if __name__ == "__main__":
    settings = {**DEFAULTS, **json.loads(sys.argv[1])}
    print(json.dumps(run(SimpleNamespace(**settings))))
