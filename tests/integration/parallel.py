"""What each of several processes runs in a test: the gradients of a step, or a whole run.

accelerate launch ... tests/integration/parallel.py PHANTOM OUT step|run
"""

import sys
from dataclasses import replace
from pathlib import Path

from helpers import TINY

CONFIG = replace(TINY, batch_size=128, w_kl=0.01, w_corr=0.5)


def write_step(sections, out: Path) -> None:
    """Write the loss of a step, and every gradient, to OUT/step.safetensors."""
    import torch
    from safetensors.torch import save_file

    from seal_lite.data.genes import GenePanel
    from seal_lite.model.losses import seal_loss
    from seal_lite.model.seal import SEAL
    from seal_lite.training.distributed import average_gradients, join_processes
    from seal_lite.training.loader import Activations, Pairs

    state, _ = join_processes()
    share = state.process_index, state.num_processes
    panel = GenePanel.from_config(sections, CONFIG)
    model = SEAL.build(panel, CONFIG).train()
    activations = Activations(model.encoder, sections, CONFIG, progress=False)
    pairs = Pairs(sections, panel, CONFIG, activations, share=share)
    torch.manual_seed(0)  # the gene encoder draws its samples
    hidden, x = next(pairs.epoch(0))
    loss = seal_loss(model(hidden, x), CONFIG)["loss"]
    loss.backward()
    average_gradients(state, model)
    if state.is_main_process:
        tensors = {"loss": loss.detach()}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                tensors[name] = parameter.grad
        out.mkdir(parents=True, exist_ok=True)
        save_file(tensors, out / "step.safetensors")


def write_run(sections, out: Path) -> None:
    """Finetune, into OUT/run."""
    from seal_lite.training.loop import finetune

    finetune(sections, CONFIG, out=out / "run", progress=False)


def main(root: Path, out: Path, what: str) -> None:
    from seal_lite.data.section import load_sections

    sections = load_sections(root, patch_px=CONFIG.patch_px)
    {"step": write_step, "run": write_run}[what](sections, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
