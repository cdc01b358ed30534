"""The gene encoder: flows that are invertible, a KL that counts them, one embedding a profile."""

import pytest
import torch

from seal_lite.model.gene_vae import GeneVAE, PlanarFlow


def wild_flow(dim, seed):
    """A planar flow with large random weights."""
    torch.manual_seed(seed)
    flow = PlanarFlow(dim).double()
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=1.5)
    return flow


@pytest.mark.parametrize("seed", range(5))
def test_planar_flow_log_det_is_that_of_its_jacobian(seed):
    flow = wild_flow(4, seed)
    z = torch.randn(6, 4, dtype=torch.float64)
    _, log_det = flow(z)
    for i, row in enumerate(z):
        jacobian = torch.autograd.functional.jacobian(lambda r: flow(r[None])[0][0], row)
        sign, expected = torch.linalg.slogdet(jacobian)
        assert log_det[i].item() == pytest.approx(expected.item(), abs=1e-9)
        assert sign > 0  # invertible whatever u and w


def test_kl_with_flows_is_the_expected_log_density_ratio():
    """E[log q_K(z_K) - log p(z_K)] by Monte Carlo, the density of z_K written out."""
    n = 10_000
    torch.manual_seed(0)
    vae = GeneVAE(5, 3, hidden=(8, 6), n_flows=2).double().train()
    vae.flows = torch.nn.ModuleList(wild_flow(3, seed) for seed in (1, 2))
    x = torch.randn(n, 5, dtype=torch.float64)
    normal = torch.distributions.Normal
    with torch.no_grad():
        torch.manual_seed(1)
        z, kl = vae.encode(x)
        h = vae.trunk(x)
        mu = vae.mu(h)
        sd = (0.5 * vae.logvar(h)).exp()
        torch.manual_seed(1)  # the same samples
        moved = mu + sd * torch.randn_like(mu)
        log_q = normal(mu, sd).log_prob(moved).sum(1)
        for flow in vae.flows:
            moved, log_det = flow(moved)
            log_q = log_q - log_det
        torch.testing.assert_close(moved, z)
        ratio = log_q - normal(torch.zeros_like(z), 1.0).log_prob(z).sum(1)
    standard_error = ratio.std().item() / n**0.5
    assert kl.item() == pytest.approx(ratio.mean().item(), abs=5 * standard_error)
    assert abs(kl.item()) > 0.1


@pytest.mark.parametrize("n_flows", [0, 2])
def test_training_samples_and_inference_does_not(n_flows):
    """Fault of released SEAL: embeddings are sampled from the posterior at inference."""
    torch.manual_seed(0)
    vae = GeneVAE(9, 4, hidden=(8, 6), n_flows=n_flows)
    x = torch.randn(12, 9)
    vae.train()
    assert not torch.equal(vae.encode(x)[0], vae.encode(x)[0])
    vae.eval()
    assert torch.equal(vae.encode(x)[0], vae.encode(x)[0])


def test_without_flows_the_embedding_is_the_posterior_mean():
    torch.manual_seed(0)
    vae = GeneVAE(9, 4, hidden=(8, 6)).eval()
    x = torch.randn(12, 9)
    torch.testing.assert_close(vae.encode(x)[0], vae.mu(vae.trunk(x)))


def test_layers_have_the_widths_of_the_released_gene_encoder():
    """2,000 genes, hidden 1,024 and 512, latent 1,024, 3 flows; decoder mirrored."""
    vae = GeneVAE(2000, 1024, hidden=(1024, 512), n_flows=3)
    linear = [m for m in vae.modules() if isinstance(m, torch.nn.Linear)]
    shapes = [(m.in_features, m.out_features) for m in linear]
    assert shapes == [
        (2000, 1024),
        (1024, 512),
        (512, 1024),  # mean
        (512, 1024),  # log-variance
        (1024, 512),
        (512, 1024),
        (1024, 2000),
    ]
    assert isinstance(vae.decoder[-1], torch.nn.Linear)  # no ReLU at its end
    assert vae(torch.zeros(2, 2000))[1].shape == (2, 2000)
