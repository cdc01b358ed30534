"""The paper preset computes what released SEAL computes, by the formulas of benchmarks/parity."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import make_adata
from torch.nn import functional as F

from parity.formulas import released_outputs
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


def test_loss_and_outputs_are_those_of_the_released_formulas(model, hidden, log_counts):
    model.eval()
    released = released_outputs(model, hidden, log_counts)
    with torch.no_grad():
        outputs = model(hidden, standardised(log_counts, model))
        losses = seal_loss(outputs, model.config)
    z, of_image = released["z"], released["of_image"]
    assert (released["of_genes"] < 0).any()
    assert (of_image == 0).any()
    terms = {name: released[name].item() for name in ("clip", "gene", "image")}
    for name, value in terms.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-6)
    assert losses["loss"].item() == pytest.approx(sum(terms.values()), rel=1e-6)
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
