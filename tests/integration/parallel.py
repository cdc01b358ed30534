"""What several processes run in a test: a step, a whole run, and two jobs about the prefix cache.

torchrun --nproc_per_node 2 tests/integration/parallel.py PHANTOM OUT [step] [run] [room] [cache]

Each job writes into a folder of its name. Starting the processes takes longer than most jobs, so
one start can do several of them.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from helpers import TINY

CONFIG = replace(TINY, batch_size=128, w_kl=0.01, w_corr=0.5)


def write_step(sections, out: Path) -> None:
    """Write the loss of a step, and every gradient, to step.safetensors."""
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
        save_file(tensors, out / "step.safetensors")


def write_room(sections, out: Path) -> None:
    """Write whether each process stores activations, where the cache fits the first or all."""
    from seal_lite.data.genes import GenePanel
    from seal_lite.encoders.prefix_cache import PrefixCache
    from seal_lite.model.seal import SEAL
    from seal_lite.training.distributed import join_processes
    from seal_lite.training.loader import Activations

    state, _ = join_processes()
    model = SEAL.build(GenePanel.from_config(sections, CONFIG), CONFIG)
    stores = {}
    for room in ("first", "all"):
        fits = room == "all" or state.is_main_process
        with patch.object(PrefixCache, "fits", return_value=fits):
            activations = Activations(model.encoder, sections, CONFIG, state=state, progress=False)
        stores[room] = activations.stored is not None
    (out / f"{state.process_index}.json").write_text(json.dumps(stores))


def write_cache(sections, out: Path) -> None:
    """Write the sections whose activations each process computes, and a sum of all that it has."""
    from seal_lite.data.genes import GenePanel
    from seal_lite.encoders.prefix_cache import PrefixCache
    from seal_lite.model.seal import SEAL
    from seal_lite.training.distributed import join_processes
    from seal_lite.training.loader import Activations

    state, _ = join_processes()
    model = SEAL.build(GenePanel.from_config(sections, CONFIG), CONFIG)
    computed = []
    compute = PrefixCache._write

    def note_and_compute(cache, section, folder):
        computed.append(section.name)
        return compute(cache, section, folder)

    options = {"state": state, "cache_dir": out / "cache", "progress": False}
    with patch.object(PrefixCache, "_write", note_and_compute):
        activations = Activations(model.encoder, sections, CONFIG, **options)
    sums = [float(stored.sum()) for stored in activations.stored]
    result = {"computed": computed, "sums": sums}
    (out / f"{state.process_index}.json").write_text(json.dumps(result))


def write_run(sections, out: Path) -> None:
    """Finetune, into the folder."""
    from seal_lite.training.loop import finetune

    finetune(sections, CONFIG, out=out, progress=False)


JOBS = {"step": write_step, "run": write_run, "room": write_room, "cache": write_cache}


def main(root: Path, out: Path, names: list[str]) -> None:
    from seal_lite.data.section import load_sections
    from seal_lite.training.distributed import join_processes

    state, _ = join_processes()
    out.mkdir(parents=True, exist_ok=True)
    (out / "processes").write_text(str(state.num_processes))
    sections = load_sections(root, patch_px=CONFIG.patch_px)
    for name in names:
        folder = out / name
        folder.mkdir(exist_ok=True)
        JOBS[name](sections, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
