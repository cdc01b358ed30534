"""How a chapter begins: data, settings and runs, chosen for the machine at hand."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from seal_lite import Config, __version__
from seal_lite.data.download import fetch_her2st
from seal_lite.data.phantom import phantom
from seal_lite.data.phantom.truth import GroundTruth
from seal_lite.data.readers.catalogue import list_sections
from seal_lite.data.readers.legacy_st import patient_of
from seal_lite.data.section import Section, load_sections
from seal_lite.encoders.registry import backbone_row, config_for
from seal_lite.evaluation.scores import genes_to_score
from seal_lite.paths import file_name
from seal_lite.terminal import start_logging

PHANTOM = {"patients": 3, "sections_per_patient": 1, "spots": 160, "seed": 0}
TINY_PHANTOM = {"patients": 2, "sections_per_patient": 1, "spots": 80, "seed": 0}
HER2ST = ("A1", "B1", "C1", "D1", "E1", "F1", "G1", "H1")  # one section of each patient
RUNS = Path("runs/chapters")


@dataclass(frozen=True)
class Scale:
    """What "auto" means on a machine: data, encoder, and the length of a run."""

    dataset: str
    backbone: str
    epochs: int
    n_views: int


SMOKE_TEST = Scale("phantom", Config.backbone, epochs=2, n_views=2)
ON_CPU = Scale("phantom", Config.backbone, epochs=12, n_views=4)
ON_GPU = Scale("her2st", "phikon", epochs=Config.epochs, n_views=8)


@dataclass(frozen=True)
class Beginning:
    """Sections of which one patient is held out, and the settings of a run.

    Parameters
    ----------
    root
        Folder of the sections.
    config
        Settings of the run.
    names
        All sections of the folder.
    held_out
        One section of the patient who is held out.
    n_train
        Train on so many sections at most; 0 means all.
    """

    root: Path
    config: Config
    names: list[str]
    held_out: str
    n_train: int = 0

    def load(self, names: Sequence[str]) -> list[Section]:
        """Load sections with patches of the run's size."""
        config = self.config
        return load_sections(self.root, names, patch_um=config.patch_um, patch_px=config.patch_px)

    @property
    def has_other_patients(self) -> bool:
        """Whether some section is of another patient than the held-out one."""
        return len({patient_of(name) for name in self.names}) > 1

    @cached_property
    def train(self) -> list[Section]:
        """The sections of other patients; of the same patient where there is no other."""
        patient = patient_of(self.held_out)
        if self.has_other_patients:
            names = [name for name in self.names if patient_of(name) != patient]
        else:
            names = [name for name in self.names if name != self.held_out]
        return self.load(names[: self.n_train or None])

    @cached_property
    def test(self) -> Section:
        """The held-out section."""
        (section,) = self.load([self.held_out])
        return section

    @cached_property
    def truth(self) -> GroundTruth | None:
        """The phantom's ground truth; None for real data."""
        return GroundTruth.find(self.root)

    @cached_property
    def genes(self) -> list[str]:
        """The genes to score, declared by the phantom or chosen in the training sections."""
        return genes_to_score([section.adata for section in self.train], self.truth)

    def run(self, name: str = "tuned") -> Path:
        """Return the folder of a run, which names its settings and the version of SEAL-lite."""
        config = self.config
        held_out = patient_of(self.held_out) if self.has_other_patients else self.held_out
        split = f"{self.root.name}-without-{held_out}"
        if self.n_train:
            split += f"-on-{self.n_train}"
        size = f"{config.epochs}x{config.n_views}-seed{config.seed}"
        return RUNS / file_name(f"{split}-{config.backbone}-{size}-{__version__}") / name


def begin(
    dataset: str = "auto",
    backbone: str = "auto",
    epochs: int = 0,
    smoke: bool = False,
    *,
    test: str = "",
    seed: int = 0,
    n_train: int | None = None,
) -> Beginning:
    """Choose sections and settings, and print the choice.

    The log of the package goes to standard error, which the book leaves out.

    On a CPU, "auto" means the phantom, the default encoder, and 12 epochs of 4 views. On a GPU it
    means real tumours of eight patients (her2st), the pathology encoder Phikon, and 20 epochs
    of 8 views. A run on the phantom has the same length everywhere. On a CPU a transformer gets the
    `small` preset (smaller patches, at most 8 epochs of 4 views, 32 pairs a step) and one training
    section, so that a chapter takes minutes.

    Parameters
    ----------
    dataset
        "phantom" or "her2st", which are written or downloaded into ``data/``, a folder of sections,
        or "auto".
    backbone
        An encoder's name, or "auto"; the settings are those of `config_for`, by their preset.
    epochs
        0 means "auto".
    smoke
        Make everything tiny, to see that it runs.
    test
        The held-out section; by default the last.
    seed
        Of the run.
    n_train
        Train on so many sections at most; 0 means all, None what suits the machine.
    """
    start_logging(sys.stderr, force=True)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    scale = _choose_scale(dataset, smoke=smoke)
    root = _find_sections(scale.dataset if dataset == "auto" else dataset, smoke=smoke)
    backbone = scale.backbone if backbone == "auto" else backbone
    config = replace(_choose_settings(backbone, scale), seed=seed)
    if epochs:
        config = replace(config, epochs=epochs)
    names = list_sections(root)
    held_out = test or names[-1]
    place = os.path.relpath(root)
    print(f"{place}, {backbone}, {config.epochs} epochs; held out: {held_out}")
    if scale is ON_GPU:
        print("On a GPU with real sections a chapter takes up to half an hour.")
    if n_train is None:
        n_train = 1 if _is_slow(backbone) else 0
    beginning = Beginning(root, config, names, held_out, n_train)
    if not beginning.has_other_patients:
        print("All sections are of one patient: the test is a new section, not a new patient.")
    return beginning


def _choose_scale(dataset: str, *, smoke: bool) -> Scale:
    """Return the scale that suits the machine; on the phantom it is the same on all of them."""
    if smoke:
        return SMOKE_TEST
    if dataset == "phantom" or not torch.cuda.is_available():
        return ON_CPU
    return ON_GPU


def _choose_settings(backbone: str, scale: Scale) -> Config:
    """Return an encoder's settings; without a GPU a transformer gets those for two cores."""
    if not _is_slow(backbone):
        return replace(config_for(backbone), epochs=scale.epochs, n_views=scale.n_views)
    config = config_for(backbone, "small")
    epochs = min(config.epochs, scale.epochs)
    n_views = min(config.n_views, scale.n_views)
    return replace(config, epochs=epochs, n_views=n_views)


def _is_slow(backbone: str) -> bool:
    """Return whether an encoder is a transformer on a machine without a GPU."""
    is_transformer = backbone_row(backbone).recipe == "transformer"
    return is_transformer and not torch.cuda.is_available()


def _find_sections(dataset: str, *, smoke: bool) -> Path:
    """Return the folder of a data set, after writing or downloading what is absent."""
    if dataset == "phantom" and smoke:
        return phantom("data/phantom-tiny", **TINY_PHANTOM)
    if dataset == "phantom":
        return phantom("data/phantom", **PHANTOM)
    if dataset == "her2st":
        return fetch_her2st("data/her2st", names=HER2ST)
    return Path(dataset)
