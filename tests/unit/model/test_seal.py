"""The model: determinism, flows, and a run folder that is read strictly or not at all."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_adata
from safetensors.torch import load_file, save_file

from seal_lite import Config
from seal_lite.data.genes import GenePanel
from seal_lite.encoders.embedding import embed_patches
from seal_lite.encoders.vision import build_encoder
from seal_lite.errors import InputError
from seal_lite.model.gene_vae import GeneVAE, PlanarFlow
from seal_lite.model.seal import SEAL
from seal_lite.training.loop import finetune


@pytest.fixture
def model(tiny):
    counts = np.random.default_rng(0).poisson(20, (30, 25))
    panel = GenePanel.fit([make_adata(counts)], n_genes=20)
    return SEAL.build(panel, tiny)


def batch(model, n=12, seed=0):
    torch.manual_seed(seed)
    images = torch.rand(n, 3, 64, 64)
    with torch.no_grad():
        return model.encoder.prefix(images), torch.randn(n, len(model.panel.genes))


def wild_flow(dim, seed):
    torch.manual_seed(seed)
    flow = PlanarFlow(dim).double()
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=1.5)
    return flow


@pytest.mark.parametrize("seed", range(5))
def test_planar_flow_log_det_is_that_of_its_jacobian(seed):
    flow = wild_flow(4, seed)
    z = torch.randn(6, 4, dtype=torch.float64)
    _, logdet = flow(z)
    for row, found in zip(z, logdet, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda r: flow(r[None])[0][0], row)
        sign, expected = torch.linalg.slogdet(jacobian)
        assert found.item() == pytest.approx(expected.item(), abs=1e-9)
        assert sign > 0  # invertible whatever u and w


def test_kl_with_flows_is_the_expected_log_density_ratio():
    """E[log q_K(z_K) - log p(z_K)] by Monte Carlo, the density of z_K written out."""
    torch.manual_seed(0)
    vae = GeneVAE(5, 3, hidden=(8, 6), n_flows=2).double().train()
    vae.flows = torch.nn.ModuleList(wild_flow(3, s) for s in (1, 2))
    x, normal = torch.randn(40_000, 5, dtype=torch.float64), torch.distributions.Normal
    with torch.no_grad():
        torch.manual_seed(1)
        z, kl = vae.encode(x)
        h = vae.trunk(x)
        mu, sd = vae.mu(h), (0.5 * vae.logvar(h)).exp()
        torch.manual_seed(1)
        z0 = at = mu + sd * torch.randn_like(mu)
        log_q = normal(mu, sd).log_prob(z0).sum(1)
        for flow in vae.flows:
            at, logdet = flow(at)
            log_q = log_q - logdet
        torch.testing.assert_close(at, z)
        ratio = log_q - normal(torch.zeros_like(at), 1.0).log_prob(at).sum(1)
    assert kl.item() == pytest.approx(ratio.mean().item(), abs=5 * ratio.std().item() / 200)
    assert ratio.mean() > 0 and abs(kl.item()) > 0.1


def test_same_profile_same_embedding(model):
    """Fault of released SEAL: embeddings are sampled from the posterior at inference."""
    _, x = batch(model)
    model.train()
    assert not torch.equal(model.genes.encode(x)[0], model.genes.encode(x)[0])  # training samples
    first = model.encode_genes(x)
    np.testing.assert_array_equal(model.encode_genes(x), first)
    np.testing.assert_allclose(model.encode_genes(x[:1]), first[:1], atol=1e-6)  # of its batch too
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-5)


def test_embedding_is_the_posterior_mean(model):
    _, x = batch(model)
    model.eval()
    torch.testing.assert_close(model.genes.encode(x)[0], model.genes.mu(model.genes.trunk(x)))


def test_loss_is_the_weighted_sum_of_its_named_terms(model, tiny):
    hidden, x = batch(model)
    terms = model.eval()(hidden, x)
    assert list(terms) == ["clip", "gene", "image", "kl", "loss"]
    expected = (
        tiny.w_clip * terms["clip"]
        + tiny.w_gene * terms["gene"]
        + tiny.w_image * terms["image"]
        + tiny.w_kl * terms["kl"]
    )
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    alone = model.forward_genes(x)
    assert alone["gene"].item() == pytest.approx(terms["gene"].item(), rel=1e-6)


def test_a_step_changes_lora_and_heads_and_nothing_else(model):
    """Base weights and BatchNorm statistics of the encoder are the same bits afterwards."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for step in range(2):  # lora_B is zero at first, so lora_A moves in the second step
        model.train()
        optimizer.zero_grad()
        model(*batch(model, seed=step))["loss"].backward()
        optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    encoder = {k for k in changed if k.startswith("encoder.")}
    assert encoder == {n for n in trained if n.startswith("encoder.")}
    lora, whole = ([k for k in encoder if ("lora_" in k) == is_lora] for is_lora in (True, False))
    assert len(lora) == 12 and len(whole) == 21  # A and B of six; depthwise filters, scale, shift
    assert all("modules_to_save" in k for k in whole)
    statistics = {k for k in before if k.startswith("genes.trunk") and "num_batches" in k}
    assert statistics <= changed  # the gene encoder's own BatchNorm does learn
    heads = {n for n in trained if not n.startswith("encoder.")}
    untouched = heads - changed
    assert all("logvar" in n for n in untouched), untouched  # only of use to sampling


def test_temperature_is_fixed_unless_learned(model, tiny):
    assert not model.log_temperature.requires_grad
    assert model.log_temperature.exp().item() == pytest.approx(tiny.temperature)
    learned = SEAL.build(model.panel, Config(**{**vars(tiny), "learn_temperature": True}))
    learned.train()(*batch(learned))["loss"].backward()
    assert learned.log_temperature.grad.abs() > 0


def test_project_zero_contrasts_in_the_encoders_own_space(model, tiny):
    paper = SEAL.build(model.panel, Config(**{**vars(tiny), "project": 0, "n_flows": 3}))
    e = torch.randn(3, 112)
    np.testing.assert_allclose(
        paper.project_images(e), torch.nn.functional.normalize(e, dim=1), rtol=1e-6
    )
    assert paper.encode_genes(torch.zeros(2, 20)).shape == (2, 112)


def test_a_loaded_run_reproduces_every_output_to_the_bit(trained, sections):
    run, model, _ = trained
    again, section = SEAL.from_pretrained(run), sections[1]
    e = embed_patches(model.encoder, section.patches)
    np.testing.assert_array_equal(embed_patches(again.encoder, section.patches), e)
    z = model.panel.transform(section.adata)
    np.testing.assert_array_equal(again.panel.transform(section.adata), z)
    for call, x in (("encode_genes", z), ("project_images", e), ("predict_genes", e)):
        np.testing.assert_array_equal(getattr(again, call)(x), getattr(model, call)(x))


def test_a_run_without_lora_keeps_its_tuned_blocks(sections, tiny, tmp_path):
    config = replace(tiny, lora_rank=0, lr_lora=1e-3)
    model, _ = finetune(sections[:1], config, out=tmp_path / "run", progress=False)
    frozen, patches = build_encoder(tiny.backbone), sections[1].patches[:8]
    e = embed_patches(model.encoder, patches)
    assert np.abs(e - embed_patches(frozen, patches)).max() > 1e-3
    np.testing.assert_array_equal(
        embed_patches(SEAL.from_pretrained(tmp_path / "run").encoder, patches), e
    )
    assert not (tmp_path / "run/adapter").exists()
    assert not any(k.startswith("encoder") for k in load_file(tmp_path / "run" / HEADS))
    tuned = load_file(tmp_path / "run/blocks.safetensors")
    assert tuned and all(k.startswith("blocks.4.") for k in tuned)
    (tmp_path / "run/blocks.safetensors").unlink()
    with pytest.raises(InputError, match="blocks.safetensors"):
        SEAL.from_pretrained(tmp_path / "run")


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "copy")


def _rename(file):
    def damage(run):
        state = load_file(run / file)
        state["odd.name"] = state.pop(next(iter(state)))
        save_file(state, run / file)

    return damage


def _drop(file):
    def damage(run):
        state = load_file(run / file)
        state.pop(next(iter(state)))
        save_file(state, run / file)

    return damage


def _fewer_genes(run):
    panel = json.loads((run / "panel.json").read_text())
    for key in ("genes", "mean", "std"):
        panel[key] = panel[key][:-1]
    (run / "panel.json").write_text(json.dumps(panel))


def _edit_config(**changes):
    def damage(run):
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**config, **changes}))

    return damage


def _truncate(file):
    def damage(run):
        data = (run / file).read_bytes()
        (run / file).write_bytes(data[: len(data) // 2])

    return damage


def _other_base(run):
    """The encoder that the run was tuned from has changed under its name."""
    path = run / "base.json"
    path.write_text(path.read_text().replace("a", "b").replace("1", "2"))


HEADS, ADAPTER = "heads.safetensors", "adapter/adapter_model.safetensors"
DAMAGE = {
    "heads: renamed tensor": _rename(HEADS),
    "heads: lacking tensor": _drop(HEADS),
    "heads: truncated": _truncate(HEADS),
    "heads: absent": lambda run: (run / HEADS).unlink(),
    "adapter: renamed tensor": _rename(ADAPTER),
    "adapter: lacking tensor": _drop(ADAPTER),
    "adapter: absent": lambda run: shutil.rmtree(run / "adapter"),
    "panel: a gene fewer": _fewer_genes,
    "panel: absent": lambda run: (run / "panel.json").unlink(),
    "config: another width": _edit_config(hidden=[32, 8]),
    "config: another LoRA rank": _edit_config(lora_rank=4),
    "config: another backbone": _edit_config(backbone="test_vit", patch_px=160),
    "base: other weights": _other_base,
    "base: absent": lambda run: (run / "base.json").unlink(),
    "config: unknown key": _edit_config(colour="blue"),
    "config: truncated": _truncate("config.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_run_is_refused(copy, damage):
    """Fault of released SEAL: strict=False drops what does not fit and goes on with noise."""
    DAMAGE[damage](copy)
    with pytest.raises(InputError, match=str(copy)):
        SEAL.from_pretrained(copy)


def test_a_run_on_the_hub_is_fetched_by_its_name(monkeypatch, tmp_path, copy):
    """Only what a run consists of, and a failure is one sentence."""
    asked = {}

    def snapshot(repo, allow_patterns):
        asked.update({repo: allow_patterns})
        return str(copy)

    monkeypatch.setattr("seal_lite.model.snapshot_download", snapshot)
    loaded = SEAL.from_pretrained("hf-hub:somebody/tuned-uni")
    assert list(asked) == ["somebody/tuned-uni"]
    assert not any(pattern.endswith((".pt", ".bin", ".pkl")) for pattern in asked.popitem()[1])
    assert loaded.config == SEAL.from_pretrained(copy).config

    def refuse(*_, **__):
        raise OSError("no such repository")

    monkeypatch.setattr("seal_lite.model.snapshot_download", refuse)
    with pytest.raises(InputError, match="hf-hub:no/thing: cannot be fetched"):
        SEAL.from_pretrained("hf-hub:no/thing")
