"""Every loss against its formula in float64, and what training minimises."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seal_lite import Config, preset
from seal_lite.model.losses import (
    GeneOutputs,
    PairOutputs,
    clip_loss,
    correlation_loss,
    gene_loss,
    kl_loss,
    mse,
    seal_loss,
    warmup_loss,
)


def random_pair(b=7, d=5, seed=0):
    """Two matrices (b, d) of standard normal numbers."""
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
    image, gene = random_pair()
    logits = unit(image) @ unit(gene).T / temperature
    rows = np.diag(log_softmax(logits))
    columns = np.diag(log_softmax(logits.T))
    expected = -(rows.mean() + columns.mean()) / 2
    assert clip_loss(image, gene, temperature=temperature).item() == pytest.approx(expected, 1e-12)


def test_lower_temperature_sharpens():
    image, _ = random_pair(b=16, d=32)
    losses = [clip_loss(image, image, temperature=t).item() for t in (1.0, 0.3, 0.1, 0.03)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-6


@pytest.mark.parametrize("soft", [0.0, 0.4, 1.0])
def test_contrast_is_symmetric_in_its_modalities(soft):
    """Fault of released BLEEP: soft targets transposed for the second direction do not sum to 1."""
    image, gene = random_pair()
    one = clip_loss(image, gene, temperature=0.5, soft=soft)
    other = clip_loss(gene, image, temperature=0.5, soft=soft)
    assert one.item() == pytest.approx(other.item(), rel=1e-12)


def test_soft_targets_are_their_formula():
    """Each direction's targets: (1 - soft) one-hot + soft softmax of the mean similarity."""
    image, gene = random_pair()
    temperature, soft = 0.5, 0.3
    u, v = unit(image), unit(gene)
    similar = np.exp(log_softmax((u @ u.T + v @ v.T) / (2 * temperature)))
    target = (1 - soft) * np.eye(len(u)) + soft * similar
    logits = u @ v.T / temperature
    of_images = (target * log_softmax(logits)).sum(1).mean()
    of_genes = (target * log_softmax(logits.T)).sum(1).mean()
    loss = clip_loss(image, gene, temperature=temperature, soft=soft).item()
    assert loss == pytest.approx(-(of_images + of_genes) / 2, rel=1e-12)


@given(st.integers(0, 10**6), st.integers(2, 20), st.floats(0.05, 2.0))
@settings(max_examples=25, deadline=None)
def test_contrast_ignores_order_and_scale_and_is_bounded(seed, b, temperature):
    image, gene = random_pair(b=b, seed=seed)
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
    predicted, x = random_pair(b=30, d=8)
    predicted = predicted + 0.7 * x
    correlations = [np.corrcoef(predicted[:, g], x[:, g])[0, 1] for g in range(8)]
    expected = np.mean((1 - np.array(correlations)) ** 2)
    assert correlation_loss(predicted, x, eps=0).item() == pytest.approx(expected, rel=1e-12)
    assert correlation_loss(predicted, x).item() == pytest.approx(expected, rel=1e-5)
    assert correlation_loss(5 * x - 2, x).item() == pytest.approx(0, abs=1e-10)


def test_constant_genes_cost_one_and_keep_gradients_finite():
    predicted, x = random_pair(b=10, d=3)
    x[:, 0] = 0.0  # a gene missing from a section
    predicted[:, 1] = 4.0  # a dead output
    predicted.requires_grad_()
    loss = correlation_loss(predicted, x)
    loss.backward()
    correlation = np.corrcoef(predicted[:, 2].detach(), x[:, 2])[0, 1]
    assert loss.item() == pytest.approx((1 + 1 + (1 - correlation) ** 2) / 3, rel=1e-5)
    assert torch.isfinite(predicted.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_constant_genes_cost_one_in_half_precision(dtype):
    x = torch.zeros(10, 3, dtype=dtype)
    predicted = x.clone().requires_grad_()
    loss = correlation_loss(predicted, x)
    loss.backward()
    assert loss.item() == 1
    assert torch.isfinite(predicted.grad).all()


def test_mse_is_that_of_numpy():
    predicted, x = random_pair()
    assert mse(predicted, x).item() == pytest.approx(np.mean((predicted - x).numpy() ** 2))


def test_paper_preset_is_the_released_gene_loss():
    """Released `barlow_std_mse`: 0.1 (0.05 sum_g (1 - c_gg)^2 + 5 mse) on standardised data."""
    paper = preset("paper")
    predicted, x = random_pair(b=24, d=paper.n_genes)
    standard_predicted = (predicted - predicted.mean(0)) / predicted.std(0, correction=0)
    standard_x = (x - x.mean(0)) / x.std(0, correction=0)
    correlation = (standard_predicted.T @ standard_x / len(x)).diagonal()
    barlow = (1 - correlation).square().sum()
    released = 0.1 * (0.05 * barlow + 5 * (predicted - x).square().mean())
    loss = gene_loss(predicted, x, w_mse=paper.w_mse, w_corr=paper.w_corr)
    assert loss.item() == pytest.approx(released.item(), rel=1e-7)


def test_kl_is_that_of_torch():
    mu, logvar = random_pair()
    normal = torch.distributions.Normal
    posterior = normal(mu, (0.5 * logvar).exp())
    prior = normal(torch.zeros_like(mu), 1.0)
    expected = torch.distributions.kl_divergence(posterior, prior).sum(1).mean()
    assert kl_loss(mu, logvar).item() == pytest.approx(expected.item(), rel=1e-12)
    assert kl_loss(0 * mu, 0 * mu).item() == 0


@pytest.fixture
def outputs():
    """Those of 12 pairs whose embeddings and reconstructions are near to what they should be."""
    z, noise = random_pair(b=12, d=6)
    x, gene_noise = random_pair(b=12, d=20, seed=1)
    return PairOutputs(
        expression=x,
        gene_embedding=z,
        gene_reconstruction=x + 0.1 * gene_noise,
        kl=torch.tensor(3.0, dtype=torch.float64),
        hidden=torch.zeros(12, 1),
        image_embedding=torch.zeros(12, 9),
        image_projection=z + 0.1 * noise,
        image_reconstruction=x + 0.3 * gene_noise,
        temperature=torch.tensor(0.1, dtype=torch.float64),
    )


def swap_first_two(x, *, dim=0):
    order = torch.arange(x.shape[dim])
    order[:2] = torch.tensor([1, 0])
    return x.index_select(dim, order)


@pytest.mark.parametrize(
    "part", ["image_projection", "gene_embedding", "image_reconstruction", "gene_reconstruction"]
)
def test_two_pairs_mixed_up_cost_more(outputs, part):
    """Each part of the method teaches which image and which profile belong together."""
    mixed = replace(outputs, **{part: swap_first_two(getattr(outputs, part))})
    config = Config()
    assert seal_loss(mixed, config)["loss"] > seal_loss(outputs, config)["loss"] + 0.01


@pytest.mark.parametrize("part", ["image_reconstruction", "gene_reconstruction"])
def test_two_genes_mixed_up_cost_more(outputs, part):
    mixed = replace(outputs, **{part: swap_first_two(getattr(outputs, part), dim=1)})
    config = Config()
    assert seal_loss(mixed, config)["loss"] > seal_loss(outputs, config)["loss"] + 0.01


@pytest.mark.parametrize("term", ["clip", "gene", "image", "kl"])
def test_a_terms_weight_decides_what_it_adds_to_the_loss(outputs, term):
    without = seal_loss(outputs, Config(**{f"w_{term}": 0.0}))
    with_term = seal_loss(outputs, Config(**{f"w_{term}": 2.0}))
    added = with_term["loss"] - without["loss"]
    assert with_term[term] > 0
    assert added.item() == pytest.approx(2 * with_term[term].item(), rel=1e-6)


def test_settings_of_the_loss_reach_its_terms(outputs):
    plain = seal_loss(outputs, Config())
    changed = seal_loss(outputs, Config(soft_targets=0.5, w_mse=0.0, w_corr=1.0))
    sharper = seal_loss(replace(outputs, temperature=torch.tensor(0.01)), Config())
    for term in ("clip", "gene", "image"):
        assert changed[term] != plain[term]
    assert sharper["clip"] < plain["clip"]


def test_the_warmup_has_the_terms_that_need_no_image(outputs):
    config = Config(w_kl=0.5)
    alone = GeneOutputs(
        outputs.expression, outputs.gene_embedding, outputs.gene_reconstruction, outputs.kl
    )
    terms = warmup_loss(alone, config)
    whole = seal_loss(outputs, config)
    assert list(terms) == ["gene", "kl", "loss"]
    assert terms["gene"] == whole["gene"]
    assert terms["loss"].item() == pytest.approx(terms["gene"].item() + 1.5)
