"""The paper preset computes what released SEAL computes: its formulas, written down again."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import make_adata
from torch.nn import functional as F

from seal_lite import SEAL, preset
from seal_lite.model.losses import seal_loss

N_GENES = 2000  # as released: the weight of the correlation is a sum over them
SMALL = {"n_genes": N_GENES, "hidden": (32, 16), "batch_size": 12, "patch_px": 64}


@pytest.fixture(scope="module")
def model():
    """A model of the preset on a small network, with flows and decoders far from their start."""
    from seal_lite.data.genes import GenePanel

    rng = np.random.default_rng(0)
    rate = rng.gamma(2.0, 2.0, N_GENES) * rng.gamma(4.0, 0.25, (30, N_GENES))
    config = replace(preset("paper"), **SMALL)
    panel = GenePanel.from_adatas([make_adata(rng.poisson(rate) + 1)], config)
    model = SEAL.build(panel, config)
    torch.manual_seed(0)
    for flow in model.genes.flows:
        for parameter in flow.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    for decoder in (model.genes.decoder[-1], model.image_decoder[3]):
        torch.nn.init.normal_(decoder.weight, std=1.0)
        torch.nn.init.normal_(decoder.bias, std=1.0)
    return model


@pytest.fixture(scope="module")
def hidden(model):
    images = torch.rand(12, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.encoder.prefix(images)


@pytest.fixture(scope="module")
def log_counts(model):
    """Log-normalised expression (12, genes), as the release's networks read it."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(12, N_GENES, generator=generator)
    return (model.panel_mean + model.panel_std * noise).clamp(min=0)


def standardised(values, model):
    return (values - model.panel_mean) / model.panel_std


def released_flows(z, flows):
    """z + u tanh(w.z + b), with u as it is."""
    for flow in flows:
        z = z + torch.tanh(z @ flow.w + flow.b)[:, None] * flow.u
    return z


def released_barlow_std_mse(predicted, target, model):
    """0.1 (0.05 sum_g (1 - c_gg)^2 + 5 mse of both standardised), of log counts."""
    mse = (standardised(predicted, model) - standardised(target, model)).square().mean()
    centred = [values - values.mean(0) for values in (predicted, target)]
    units = [values / (values.var(0, correction=0) + 1e-9).sqrt() for values in centred]
    correlation = (units[0].T @ units[1] / len(target)).diagonal()
    barlow = 0.05 * (1 - correlation).square().sum()
    return 0.1 * (barlow + 5 * mse)


def released_clip(image, gene):
    """The symmetric contrast at temperature 0.05."""
    logits = F.normalize(image, dim=1) @ F.normalize(gene, dim=1).T / 0.05
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def test_loss_and_outputs_are_those_of_the_released_formulas(model, hidden, log_counts):
    model.eval()
    vae = model.genes
    with torch.no_grad():
        outputs = model(hidden, standardised(log_counts, model))
        losses = seal_loss(outputs, model.config)
        e = model.encoder.tail(hidden)
        z = released_flows(vae.mu(vae.trunk(log_counts)), vae.flows)
        first, _, _, last, *_ = model.image_decoder
        of_image = F.relu(last(F.relu(first(e))))  # the image decoder alone ends in a ReLU
        of_genes = vae.decoder(z)
        expected = {
            "clip": released_clip(e, z),
            "gene": released_barlow_std_mse(of_genes, log_counts, model),
            "image": released_barlow_std_mse(of_image, log_counts, model),
        }
    assert (of_genes < 0).any()
    assert (of_image == 0).any()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-6)
    assert losses["loss"].item() == pytest.approx(sum(expected.values()).item(), rel=1e-6)
    close = {"rtol": 1e-6, "atol": 1e-5}
    torch.testing.assert_close(outputs.gene_embedding, z, **close)
    torch.testing.assert_close(outputs.image_reconstruction, standardised(of_image, model), **close)


def test_free_flows_are_not_those_that_stay_invertible(model, log_counts):
    """With the same weights, so that the setting decides and not the draw."""
    from seal_lite.model.gene_vae import GeneVAE

    free = model.genes.eval()
    bound = GeneVAE(N_GENES, model.encoder.row.dim, hidden=(32, 16), n_flows=3).eval()
    bound.load_state_dict(free.state_dict())
    with torch.no_grad():
        gap = (free.encode(log_counts)[0] - bound.encode(log_counts)[0]).abs().max()
    assert gap > 0.05


def test_what_the_model_gives_is_z_scored_as_without_the_preset(model, hidden, log_counts):
    """Searching, predicting and warming up read and return z-scores, as the loss does."""
    model.eval()
    x = standardised(log_counts, model)
    with torch.no_grad():
        outputs = model(hidden, x)
        warm = model.forward_genes(x)
    predicted = model.predict_genes(outputs.image_embedding.numpy())
    np.testing.assert_allclose(predicted, outputs.image_reconstruction, rtol=1e-4, atol=1e-5)
    embedded = model.encode_genes(x.numpy())
    expected = F.normalize(outputs.gene_embedding, dim=1)
    np.testing.assert_allclose(embedded, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(warm.gene_reconstruction, outputs.gene_reconstruction)


def test_the_default_is_linear_to_its_end():
    assert not preset("default").as_released
    assert not preset("small").as_released
