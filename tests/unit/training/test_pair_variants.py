"""The trials' other batches and profiles are what their names say, at the method's budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import TINY

import pair_variants
from pair_variants import OneSection, TwoViews, trainer
from seal_lite import finetune
from seal_lite.data.genes import GenePanel, depth

CONFIG = replace(TINY, gene_warmup_epochs=0, n_views=3)


@pytest.fixture(scope="module")
def panel(sections):
    return GenePanel.from_config(sections, CONFIG)


class Places:
    """Activations that say which patch in which view was asked for."""

    device = torch.device("cpu")

    def read(self, sections, rows, views):
        return torch.from_numpy(np.stack([sections, rows, views], axis=1))

    def finish(self, read):
        return read


def epoch_of(batches, sections, panel):
    """Return the places (b, 3) of each batch of an epoch."""
    pairs = batches(sections, panel, CONFIG, Places())
    places = [hidden.numpy() for hidden, _ in pairs.epoch(0)]
    assert len(places) == pairs.steps
    return places


def test_the_trainer_without_a_change_is_the_method(sections, panel, tmp_path):
    model, _ = finetune(sections, CONFIG, panel=panel, progress=False)
    other, _ = trainer()(sections, CONFIG, panel, cache_dir=tmp_path)
    weights = other.trainable()
    for name, tensor in model.trainable().items():
        assert torch.equal(tensor, weights[name]), name


def test_a_batch_of_one_section_has_each_patch_once(sections, panel):
    places = epoch_of(OneSection, sections, panel)
    assert all(len(set(batch[:, 0])) == 1 for batch in places)
    assert {batch[0, 0] for batch in places} == {0, 1}
    patches = [tuple(place[:2]) for batch in places for place in batch]
    assert len(patches) == len(set(patches))


def test_the_second_half_of_a_batch_shows_the_same_patches_in_other_views(sections, panel):
    for batch in epoch_of(TwoViews, sections, panel):
        first, second = np.split(batch, 2)
        assert np.array_equal(first[:, :2], second[:, :2])
        assert (first[:, 2] != second[:, 2]).all()


def test_residual_profiles_follow_depth_less(sections, panel):
    """Mean |r| with log depth, over genes, is lower than that of the method's profiles."""

    def follows_depth(profiles):
        rs = []
        for section, x in zip(sections, profiles, strict=True):
            log_depth = np.log(depth(section.adata)[section.rows])
            rs += [abs(np.corrcoef(log_depth, gene)[0, 1]) for gene in x.T if gene.std() > 0]
        return np.mean(rs)

    residual = pair_variants.residuals(sections, panel, CONFIG)
    for x in residual:
        assert np.abs(x.mean(0)).max() < 0.1 and np.abs(x).max() <= CONFIG.clip
    measured = [section.expression(panel) for section in sections]
    assert follows_depth(residual) < follows_depth(measured)


def test_denoised_profiles_have_few_components(sections, panel, monkeypatch):
    more = np.random.default_rng(0).normal(size=(50, len(panel.genes))).astype(np.float32)
    monkeypatch.setattr(pair_variants, "without_images", lambda *_: more)
    profiles = pair_variants.denoised(sections, panel, CONFIG)
    centred = np.concatenate(profiles) - np.concatenate(profiles).mean(0)
    assert np.linalg.matrix_rank(centred, tol=1e-2) <= pair_variants.N_COMPONENTS
    assert [x.shape for x in profiles] == [section.expression(panel).shape for section in sections]


def test_a_teacher_has_not_seen_the_section_it_teaches(sections, panel, tmp_path, monkeypatch):
    taught_by = []

    def finetune_and_note(training, *arguments, **options):
        taught_by.append([section.name for section in training])
        return finetune(training, *arguments, **options)

    monkeypatch.setattr(pair_variants, "finetune", finetune_and_note)
    pair_variants.train_with_teacher(sections, CONFIG, panel, cache_dir=tmp_path)
    first, second = sections
    assert taught_by == [[second.name], [first.name]]
