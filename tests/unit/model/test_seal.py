"""The model: what a step changes, and what it computes of images and expression."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import make_adata

from seal_lite import SEAL, InputError
from seal_lite.config import LOWEST_TEMPERATURE
from seal_lite.model.losses import seal_loss

IMAGE_DIM = 112  # of the default backbone's embedding


@pytest.fixture(scope="module")
def panel():
    from seal_lite.data.genes import GenePanel

    counts = np.random.default_rng(0).poisson(20, (30, 25))
    return GenePanel.fit([make_adata(counts)], n_genes=20)


@pytest.fixture
def model(panel, tiny):
    return SEAL.build(panel, tiny)


def batch(model, n=12, seed=0):
    """Activations of n random images, and random expression."""
    torch.manual_seed(seed)
    images = torch.rand(n, 3, 64, 64)
    with torch.no_grad():
        return model.encoder.prefix(images), torch.randn(n, len(model.panel.genes))


def test_one_seed_one_model(panel, tiny):
    one, same, other = (SEAL.build(panel, replace(tiny, seed=s)).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    for part in ("lora_A", "genes.mu.weight", "project.weight", "image_decoder.0.weight"):
        names = [name for name in one if part in name]
        assert names
        assert not any(torch.equal(one[name], other[name]) for name in names)


def test_same_profile_same_embedding(model):
    """Fault of released SEAL: embeddings are sampled from the posterior at inference."""
    _, x = batch(model)
    model.train()
    embeddings = model.encode_genes(x)
    np.testing.assert_array_equal(model.encode_genes(x), embeddings)
    np.testing.assert_allclose(model.encode_genes(x[:1]), embeddings[:1], atol=1e-6)  # any batch
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_heads_and_loss_compute_in_float32_in_any_loop(panel, tiny, precision):
    """The encoder alone is in half precision: logits of 10 would be rounded to 0.06."""
    model = SEAL.build(panel, replace(tiny, precision=precision), device="cpu")
    hidden, x = batch(model)
    assert hidden.dtype in (torch.bfloat16, torch.float16)
    outputs = model(hidden, x)
    loss = seal_loss(outputs, model.config)["loss"]
    loss.backward()
    for value in (outputs.image_embedding, outputs.image_projection, outputs.gene_embedding, loss):
        assert value.dtype is torch.float32


def test_a_learned_temperature_at_its_bound_still_learns(panel, tiny):
    model = SEAL.build(panel, replace(tiny, learn_temperature=True))
    with torch.no_grad():
        model.log_temperature.fill_(-20.0)
    outputs = model(*batch(model))
    assert outputs.temperature.item() == pytest.approx(LOWEST_TEMPERATURE)
    seal_loss(outputs, model.config)["loss"].backward()
    assert model.log_temperature.grad.item() != 0


def test_outputs_have_their_shapes_and_are_those_of_inference(model, tiny):
    hidden, x = batch(model)
    outputs = model.eval()(hidden, x)
    e = outputs.image_embedding.detach().numpy()
    genes = len(model.panel.genes)
    assert e.shape == (12, IMAGE_DIM)
    assert outputs.gene_reconstruction.shape == outputs.image_reconstruction.shape == (12, genes)
    assert outputs.gene_embedding.shape == outputs.image_projection.shape == (12, tiny.project)
    assert torch.equal(outputs.expression, x)
    unit = torch.nn.functional.normalize
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(
        model.project_images(e), unit(outputs.image_projection).detach(), **close
    )
    np.testing.assert_allclose(
        model.encode_genes(x), unit(outputs.gene_embedding).detach(), **close
    )
    np.testing.assert_allclose(
        model.predict_genes(e), outputs.image_reconstruction.detach(), **close
    )
    warmup = model.forward_genes(x)
    torch.testing.assert_close(warmup.gene_reconstruction, outputs.gene_reconstruction)


def test_a_step_changes_lora_and_heads_and_nothing_else(model, tiny):
    """Base weights and BatchNorm statistics of the encoder are the same bits afterwards."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for step in range(2):  # lora_B is zero at first, so lora_A moves in the second step
        model.train()
        optimizer.zero_grad()
        hidden, x = batch(model, seed=step)
        seal_loss(model(hidden, x), tiny)["loss"].backward()
        optimizer.step()
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    encoder = {name for name in changed if name.startswith("encoder.")}
    assert encoder == {name for name in trained if name.startswith("encoder.")}
    lora = {name for name in encoder if "lora_" in name}
    whole = encoder - lora
    assert len(lora) == 12  # A and B of six layers
    assert len(whole) == 21  # depthwise filters, scale, shift
    assert all("modules_to_save" in name for name in whole)
    statistics = {k for k in before if k.startswith("genes.trunk") and "num_batches" in k}
    assert statistics <= changed  # the gene encoder's own BatchNorm does learn
    heads = {name for name in trained if not name.startswith("encoder.")}
    unchanged = heads - changed
    assert all("logvar" in name for name in unchanged), unchanged  # it serves sampling only


def test_temperature_is_fixed_unless_learned(model, panel, tiny):
    assert not model.log_temperature.requires_grad
    assert model.log_temperature.exp().item() == pytest.approx(tiny.temperature)
    config = replace(tiny, learn_temperature=True)
    learned = SEAL.build(panel, config).train()
    hidden, x = batch(learned)
    seal_loss(learned(hidden, x), config)["loss"].backward()
    assert learned.log_temperature.grad.abs() > 0


def test_project_zero_contrasts_in_the_encoders_own_space(panel, tiny):
    paper = SEAL.build(panel, replace(tiny, project=0, n_flows=3))
    e = torch.randn(3, IMAGE_DIM)
    expected = torch.nn.functional.normalize(e, dim=1)
    np.testing.assert_allclose(paper.project_images(e), expected, rtol=1e-6)
    assert paper.encode_genes(torch.zeros(2, 20)).shape == (2, IMAGE_DIM)


def test_a_backbone_of_fixed_resolution_refuses_other_patches(panel, tiny):
    with pytest.raises(InputError, match="test_vit: reads 160 px; set patch_px=160"):
        SEAL.build(panel, replace(tiny, backbone="test_vit"))


@pytest.mark.parametrize("chunk", [5, 8])
def test_a_batch_in_chunks_has_the_gradients_of_the_whole(model, tiny, chunk):
    hidden, x = batch(model)
    gradients = []
    for size in (0, chunk):
        torch.manual_seed(0)  # the gene encoder's samples
        model.train().zero_grad()
        loss = seal_loss(model(hidden, x, chunk=size), tiny)["loss"]
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    whole, chunked = gradients
    assert any("lora_B" in name for name in whole)
    assert whole.keys() == chunked.keys()
    largest = max(gradient.abs().max() for gradient in whole.values())
    for name in whole:
        assert (whole[name] - chunked[name]).abs().max() <= 1e-4 * largest, name


def test_chunks_bound_what_a_step_holds(model, tiny):
    """The values that are kept for the backward pass are those of one chunk."""
    hidden, x = batch(model, n=48)
    numbers = {}
    for chunk in (0, 8):
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.train()(hidden, x, chunk=chunk)
        numbers[chunk] = sum(sizes)
    assert numbers[8] < numbers[0] / 2
