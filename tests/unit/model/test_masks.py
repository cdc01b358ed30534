"""Processes that share a batch draw their own dropout masks, and the rest alike."""

import pytest
import torch

from seal_lite.model import parallel

CPU = torch.device("cpu")


@pytest.fixture
def draws(monkeypatch):
    """What a process draws for its part of the batch, and then for the whole."""

    def call(rank, *, processes=2):
        monkeypatch.setattr(parallel.dist, "is_initialized", lambda: processes > 1)
        monkeypatch.setattr(parallel.dist, "get_rank", lambda: rank)
        torch.manual_seed(7)
        torch.rand(3)
        with parallel.own_randomness(CPU):
            own = torch.rand(4)
        return own, torch.rand(4)

    return call


def test_each_process_has_its_own_masks(draws):
    (first, _), (second, _) = draws(0), draws(1)
    assert not torch.equal(first, second)
    assert torch.equal(draws(1)[0], second)  # and the same ones when it resumes


def test_what_is_computed_on_the_whole_batch_is_drawn_alike(draws):
    _, first = draws(0)
    _, second = draws(1)
    assert torch.equal(first, second)
    # Without dropout it is also what a single process draws.
    torch.manual_seed(7)
    torch.rand(3)
    assert torch.equal(torch.rand(4), first)


def test_a_single_process_draws_as_ever(draws):
    own, following = draws(0, processes=1)
    torch.manual_seed(7)
    torch.rand(3)
    assert torch.equal(torch.cat([own, following]), torch.cat([torch.rand(4), torch.rand(4)]))
