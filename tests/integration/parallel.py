"""What each of several processes runs in a test: a step's loss and gradients, and a whole run.

accelerate launch ... tests/parallel.py PHANTOM OUT CHUNK
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from conftest import TINY
from safetensors.torch import save_file

from seal_lite.data.genes import GenePanel
from seal_lite.data.section import load_sections
from seal_lite.model.seal import SEAL
from seal_lite.training.distributed import average_gradients
from seal_lite.training.loader import Pairs
from seal_lite.training.loop import finetune


def main(root, out: Path, chunk: int = 0):
    """Writes `out`/step.safetensors (the loss, and every gradient), and a finished run."""
    config = replace(TINY, batch_size=128, w_kl=0.01, w_corr=0.5, epochs=2)
    sections = load_sections(root, patch_px=config.patch_px)
    accelerator = Accelerator()
    panel = GenePanel.from_config(sections, config)
    model = SEAL.build(panel, config)
    share = accelerator.process_index, accelerator.num_processes
    pairs = Pairs(sections, panel, config, model.encoder, chunk=chunk, share=share, progress=False)
    model.train()
    torch.manual_seed(0)  # the gene encoder draws its samples
    loss = model(*next(pairs.epoch(0)), chunk=chunk)["loss"]
    loss.backward()
    average_gradients(accelerator, model)
    if accelerator.is_main_process:
        found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        out.mkdir(parents=True)
        save_file({**found, "loss": loss.detach()}, out / "step.safetensors")
    finetune(sections, config, out=out / "run", chunk=chunk, progress=False)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
