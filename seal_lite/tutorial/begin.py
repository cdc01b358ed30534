"""How a chapter begins: data, settings and runs, chosen for the machine at hand."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from seal_lite import Config, __version__
from seal_lite.data.download import fetch_her2st
from seal_lite.data.phantom import phantom
from seal_lite.data.readers.catalogue import list_sections
from seal_lite.data.readers.legacy_st import patient_of
from seal_lite.data.section import load_sections
from seal_lite.encoders.registry import backbone_row
from seal_lite.evaluation.scores import genes_to_score
from seal_lite.training.loop import finetune

PHANTOM = {"patients": 3, "sections_per_patient": 1, "spots": 160, "seed": 0}
TINY = {"patients": 2, "sections_per_patient": 1, "spots": 80, "seed": 0}
HER2ST = ("A1", "B1", "C1", "D1", "E1", "F1", "G1", "H1")  # one section a patient


@dataclass(frozen=True)
class Beginning:
    """A folder of sections of which one patient is held out, and the settings of a run."""

    root: Path
    config: Config
    names: list[str]  # all sections
    held_out: str  # one section of the patient who is held out

    def load(self, names):
        c = self.config
        return load_sections(self.root, names, patch_um=c.patch_um, patch_px=c.patch_px)

    @cached_property
    def train(self):
        """The other patients' sections; those of the same patient where there is no other."""
        others = [n for n in self.names if patient_of(n) != patient_of(self.held_out)]
        return self.load(others or [n for n in self.names if n != self.held_out])

    @cached_property
    def test(self):
        (section,) = self.load([self.held_out])
        return section

    @cached_property
    def genes(self):
        """The genes that are scored: declared by the phantom, or else most variable in training."""
        return genes_to_score(self.root, self.train)

    def run(self, name="tuned") -> Path:
        """A run's folder. It ends in the version of this package."""
        c, network = self.config, self.config.backbone.replace("/", "-")
        setting = f"{self.root.name}-without-{patient_of(self.held_out)}-{network}"
        size = f"{c.epochs}x{c.n_views}-seed{c.seed}-{__version__}"
        return Path("runs") / f"{setting}-{size}" / name

    def finetuned(self, *, shuffle_pairs=False):
        """(model, history) of the run that the chapters share, trained if it is not there yet."""
        return finetune(
            self.train,
            self.config,
            include=self.genes,
            shuffle_pairs=shuffle_pairs,
            out=self.run("shuffled" if shuffle_pairs else "tuned"),
            cache_dir="runs/cache",
        )


def begin(dataset="auto", backbone="auto", epochs=0, smoke=False, *, test="", seed=0) -> Beginning:
    """What is asked for; "auto" and 0 mean what suits the machine.

    On a processor: the phantom, the default encoder, 12 epochs of 4 views. On a GPU: real tumours
    of eight patients (her2st, fetched into data/), the open pathology encoder Phikon, 20 epochs of
    8 views. With `smoke` everything is tiny, to see that it runs. Logs what was chosen.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    large = torch.cuda.is_available() and not smoke
    if dataset == "auto":
        dataset = "her2st" if large else "phantom"
    if dataset == "phantom" and smoke:
        root = phantom("data/phantom-tiny", **TINY)
    elif dataset == "phantom":
        root = phantom("data/phantom", **PHANTOM)
    elif dataset == "her2st":
        root = fetch_her2st("data/her2st", sections=HER2ST)
    else:
        root = Path(dataset)
    if backbone == "auto":
        backbone = "phikon" if large else Config.backbone
    size = {"n_views": 8 if large else 2 if smoke else 4}
    if backbone != Config.backbone:  # regions as large as those that it was trained on
        row = backbone_row(backbone)
        size["patch_px"] = row.px
        if row.um_per_px:
            size["patch_um"] = row.px * row.um_per_px
    epochs = epochs or (Config.epochs if large else 2 if smoke else 12)
    config = Config(backbone=backbone, epochs=epochs, seed=seed, **size)
    names = list_sections(root)
    place, held_out = os.path.relpath(root), test or names[-1]
    said = f"{place}, {backbone}, {epochs} epochs; held out: {held_out}"
    logging.getLogger(__name__).info(said)
    return Beginning(root, config, names, held_out)
