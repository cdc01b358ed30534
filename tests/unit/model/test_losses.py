"""Every loss against its formula, written out in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seal_lite.config import preset
from seal_lite.model.losses import clip_loss, correlation_loss, gene_loss, kl_loss, mse


def pair(b=7, d=5, seed=0):
    torch.manual_seed(seed)
    return torch.randn(b, d, dtype=torch.float64), torch.randn(b, d, dtype=torch.float64)


def unit(x):
    x = np.asarray(x)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(1, keepdims=True))


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0, 3.0])
def test_contrast_is_its_formula_with_logits_divided_by_the_temperature(temperature):
    """Fault of released BLEEP: similarities are multiplied by what is called temperature."""
    image, gene = pair()
    logits = unit(image) @ unit(gene).T / temperature
    rows, columns = np.diag(log_softmax(logits)), np.diag(log_softmax(logits.T))
    expected = -(rows.mean() + columns.mean()) / 2
    assert clip_loss(image, gene, temperature=temperature).item() == pytest.approx(expected, 1e-12)


def test_lower_temperature_sharpens():
    image, _ = pair(b=16, d=32)
    losses = [clip_loss(image, image, temperature=t).item() for t in (1.0, 0.3, 0.1, 0.03)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 1e-6


@pytest.mark.parametrize("soft", [0.0, 0.4, 1.0])
def test_contrast_is_symmetric_in_its_modalities(soft):
    """Fault of released BLEEP: soft targets transposed for the second direction do not sum to 1."""
    image, gene = pair()
    one = clip_loss(image, gene, temperature=0.5, soft=soft)
    other = clip_loss(gene, image, temperature=0.5, soft=soft)
    assert one.item() == pytest.approx(other.item(), rel=1e-12)


def test_soft_targets_are_their_formula():
    """Each direction's targets: (1 - soft) one-hot + soft softmax of the mean similarity."""
    image, gene = pair()
    a, b, t, soft = unit(image), unit(gene), 0.5, 0.3
    target = np.exp(log_softmax((a @ a.T + b @ b.T) / (2 * t)))
    target = (1 - soft) * np.eye(len(a)) + soft * target
    logits = a @ b.T / t
    expected = (
        -(
            (target * log_softmax(logits)).sum(1).mean()
            + (target * log_softmax(logits.T)).sum(1).mean()
        )
        / 2
    )
    found = clip_loss(image, gene, temperature=t, soft=soft).item()
    assert found == pytest.approx(expected, rel=1e-12)


@given(st.integers(0, 10**6), st.integers(2, 20), st.floats(0.05, 2.0))
@settings(max_examples=25, deadline=None)
def test_contrast_ignores_order_and_scale_and_is_bounded(seed, b, temperature):
    image, gene = pair(b=b, seed=seed)
    loss = clip_loss(image, gene, temperature=temperature).item()
    order = torch.randperm(b)
    moved = clip_loss(3 * image[order], 0.1 * gene[order], temperature=temperature).item()
    assert moved == pytest.approx(loss, rel=1e-9, abs=1e-12)
    # cosines lie in [-1, 1], so logits differ by at most 2 / temperature
    assert 0 <= loss <= np.log(1 + (b - 1) * np.exp(2 / temperature))


def test_uninformative_embeddings_cost_log_b():
    same = torch.ones(9, 4, dtype=torch.float64)
    assert clip_loss(same, same, temperature=0.1).item() == pytest.approx(np.log(9))


def test_correlation_loss_is_that_of_numpy():
    predicted, z = pair(b=30, d=8)
    predicted = predicted + 0.7 * z
    c = [np.corrcoef(predicted[:, g], z[:, g])[0, 1] for g in range(8)]
    expected = np.mean((1 - np.array(c)) ** 2)
    assert correlation_loss(predicted, z, eps=0).item() == pytest.approx(expected, rel=1e-12)
    assert correlation_loss(predicted, z).item() == pytest.approx(expected, rel=1e-5)
    assert correlation_loss(5 * z - 2, z).item() == pytest.approx(0, abs=1e-10)


def test_constant_genes_cost_one_and_keep_gradients_finite():
    predicted, z = pair(b=10, d=3)
    z[:, 0], predicted[:, 1] = 0, 4.0  # a gene missing from a section; a dead output
    predicted.requires_grad_()
    loss = correlation_loss(predicted, z)
    loss.backward()
    c = np.corrcoef(predicted[:, 2].detach(), z[:, 2])[0, 1]
    assert loss.item() == pytest.approx((1 + 1 + (1 - c) ** 2) / 3, rel=1e-5)
    assert torch.isfinite(predicted.grad).all()


def test_mse():
    predicted, z = pair()
    assert mse(predicted, z).item() == pytest.approx(np.mean((predicted - z).numpy() ** 2))


def test_paper_preset_is_the_released_gene_loss():
    """Released `barlow_std_mse`: 0.1 (0.05 sum_g (1 - c_gg)^2 + 5 mse) on standardised data."""
    paper, genes = preset("paper"), 2000
    assert paper.n_genes == genes and paper.zscore == "train"
    predicted, z = pair(b=24, d=genes)
    p, t = ((x - x.mean(0)) / x.std(0, correction=0) for x in (predicted, z))
    c = (p.T @ t / len(p)).diagonal()
    released = 0.1 * (0.05 * (1 - c).square().sum() + 5 * (predicted - z).square().mean())
    found = gene_loss(predicted, z, w_mse=paper.w_mse, w_corr=paper.w_corr)
    assert found.item() == pytest.approx(released.item(), rel=1e-5)


def test_paper_preset_is_the_released_configuration():
    p = preset("paper")
    assert (p.lora_rank, p.lora_alpha, p.lora_dropout, p.tune_blocks) == (8, 8.0, 0.15, 1)
    assert (p.temperature, p.learn_temperature, p.w_clip, p.w_gene, p.w_image) == (
        0.05,
        False,
        1.0,
        1.0,
        1.0,
    )
    assert (p.lr_lora, p.lr_heads, p.weight_decay, p.epochs, p.batch_size, p.seed) == (
        1e-4,
        1e-4,
        0.2,
        10,
        384,
        42,
    )
    assert (p.hidden, p.n_flows, p.w_kl, p.hvg, p.smooth) == ((1024, 512), 3, 0.0, "seurat", 0.5)


def test_kl_is_that_of_torch():
    mu, logvar = pair()
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(mu, (0.5 * logvar).exp()), normal(torch.zeros_like(mu), 1.0)
    )
    assert kl_loss(mu, logvar).item() == pytest.approx(expected.sum(1).mean().item(), rel=1e-12)
    assert kl_loss(0 * mu, 0 * mu).item() == 0
