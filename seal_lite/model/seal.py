"""The model: a vision encoder and a gene encoder that meet in a shared space, and two decoders.

image --prefix--> h --tail(LoRA)--> e --project--> shared space <-- mu <--encoder-- expression
                                    |                               z
                                    +--decoder--> expression        +--decoder--> expression
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from seal_lite.config import Config
from seal_lite.data.genes import GenePanel
from seal_lite.encoders.registry import backbone_row
from seal_lite.encoders.vision import VisionEncoder, build_encoder
from seal_lite.errors import InputError, reading
from seal_lite.io import RUN, read_json, write_atomic
from seal_lite.model import losses
from seal_lite.model.gene_vae import GeneVAE
from seal_lite.model.parallel import gather_batch, map_chunks

PARTS = ["*.json", "*.safetensors", "adapter/*", "README.md"]  # what is shared of a run folder
HUB = "hf-hub:"
ADAPTER, BLOCKS = "adapter/adapter_model.safetensors", "blocks.safetensors"


def _fetched(run: str) -> Path:
    remedy = "check the name, go online, or `hf auth login`"
    with reading(run, fault="cannot be fetched", remedy=remedy):
        return Path(snapshot_download(run.removeprefix(HUB), allow_patterns=PARTS))


class SEAL(nn.Module):
    """Vision encoder, gene encoder, projection and image -> gene decoder, with their loss.

    After Hemker et al., 2026. encoder: a `VisionEncoder`. panel: the `GenePanel` that says which
    genes. config: the `Config`, of which `hidden`, `project`, `n_flows`, `head_dropout` and the
    losses' settings are used here. The heads get random weights: `build` and `from_pretrained` are
    the usual ways in. Its parts: `encoder`, `project`, `genes` (a `GeneVAE`), `image_decoder`.
    """

    def __init__(self, encoder: VisionEncoder, panel: GenePanel, config: Config):
        super().__init__()
        self.panel, self.config = panel, config
        dim, genes = encoder.row.dim, len(panel.genes)
        latent = config.project or dim
        self.encoder = encoder
        self.project = nn.Linear(dim, latent) if config.project else nn.Identity()
        self.genes = GeneVAE(
            genes, latent, hidden=config.hidden, n_flows=config.n_flows, dropout=config.head_dropout
        )
        self.image_decoder = nn.Sequential(
            nn.Linear(dim, config.hidden[-1]),
            nn.ReLU(),
            nn.Dropout(config.head_dropout),
            nn.Linear(config.hidden[-1], genes),
        )
        start = torch.tensor(math.log(config.temperature))
        self.log_temperature = nn.Parameter(start, requires_grad=config.learn_temperature)

    @classmethod
    def build(cls, panel: GenePanel, config: Config) -> SEAL:
        """A fresh model from the config's backbone; `config.seed` fixes every initial weight.

        Raises `InputError` where a transformer's patches would not have its resolution, and as
        `encoders.build_encoder` does.
        """
        row = backbone_row(config.backbone)
        if row.fixed and row.px != config.patch_px:
            raise InputError(f"{row.name}: reads {row.px} px; set patch_px={row.px}")
        encoder = build_encoder(
            config.backbone,
            seed=config.seed,
            tune_blocks=config.tune_blocks,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return cls(encoder, panel, config)

    def forward(self, hidden, x, *, chunk: int = 0):
        """Loss terms of a batch, named: prefix activations `hidden` and expression x (b, genes).

        hidden (b, ...) as `VisionEncoder.prefix` returns it, x z-scored. Returns scalars {"clip",
        "gene", "image", "kl", "loss"}; "loss" is their weighted sum. With `chunk` the tail holds
        the activations of so many images at a time and computes them again in the backward pass.
        Of several processes each has its part of the batch, and all have the whole batch's loss.
        """
        c = self.config
        e, x = gather_batch(map_chunks(self.encoder.tail, hidden, chunk)), gather_batch(x)
        z, from_gene, kl = self.genes(x)
        inside = {"w_mse": c.w_mse, "w_corr": c.w_corr}
        temperature = self.log_temperature.exp().clamp(min=0.01)  # CLIP's bound
        clip = losses.clip_loss(self.project(e), z, temperature=temperature, soft=c.soft_targets)
        gene, image = (losses.gene_loss(y, x, **inside) for y in (from_gene, self.image_decoder(e)))
        terms = {"clip": clip, "gene": gene, "image": image, "kl": kl}
        weights = {"clip": c.w_clip, "gene": c.w_gene, "image": c.w_image, "kl": c.w_kl}
        terms["loss"] = sum(weights[k] * terms[k] for k in weights)
        return terms

    def forward_genes(self, x):
        """The terms that need no image, for the gene encoder's warm-up epochs.

        x (b, genes), z-scored. Returns scalars {"gene", "kl", "loss"}.
        """
        _, from_gene, kl = self.genes(x := gather_batch(x))
        c = self.config
        gene = losses.gene_loss(from_gene, x, w_mse=c.w_mse, w_corr=c.w_corr)
        return {"gene": gene, "kl": kl, "loss": c.w_gene * gene + c.w_kl * kl}

    def heads(self) -> dict[str, torch.Tensor]:
        """Everything but the vision encoder, by name."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("encoder.")}

    def tuned(self) -> dict[str, torch.Tensor]:
        """What training changes in the vision encoder: the adapter (peft's names), or without LoRA
        the weights of the tuned blocks (the network's own names)."""
        net = self.encoder.net
        if self.encoder.adapted:
            return get_peft_model_state_dict(net)
        return {k: p.detach() for k, p in net.named_parameters() if p.requires_grad}

    def trainable(self) -> dict[str, torch.Tensor]:
        """What training changes: "tuned.*" of the vision encoder, and the heads."""
        return {**{f"tuned.{k}": v for k, v in self.tuned().items()}, **self.heads()}

    def load_trainable(self, state: dict[str, torch.Tensor], *, source):
        """Strict inverse of `trainable`; a differing key is an `InputError` naming `source`."""
        shapes, ours = ({k: v.shape for k, v in s.items()} for s in (state, self.trainable()))
        odd = [k for k in shapes | ours if shapes.get(k) != ours.get(k)]
        if odd:
            remedy = "take the backbone, panel and config that it was made with"
            raise InputError(f"{source}: tensor {min(odd)} does not fit this model; {remedy}")
        tuned = {k[6:]: v for k, v in state.items() if k.startswith("tuned.")}
        heads = {k: v for k, v in state.items() if not k.startswith("tuned.")}
        if self.encoder.adapted:
            set_peft_model_state_dict(self.encoder.net, tuned)
        else:
            heads |= {f"encoder.net.{k}": v for k, v in tuned.items()}
        self.load_state_dict({**self.state_dict(), **heads}, strict=True)

    def save_pretrained(self, out):
        """Write config.json, panel.json, heads.safetensors, what was tuned: adapter/ (peft,
        safetensors), or without LoRA blocks.safetensors; and in base.json what it was tuned from.
        """
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "config.json", self.config.to_json())
        self.panel.save(out / "panel.json")
        base = {"backbone": self.config.backbone, "sha256": self.encoder.base_digest()}
        write_atomic(out / "base.json", json.dumps(base, indent=1))
        save_file({k: v.contiguous() for k, v in self.heads().items()}, out / "heads.safetensors")
        if self.encoder.adapted:
            shutil.rmtree(out / "adapter", ignore_errors=True)
            self.encoder.net.save_pretrained(str(out / "adapter"))
        else:
            save_file({k: v.contiguous() for k, v in self.tuned().items()}, out / BLOCKS)

    @classmethod
    def from_pretrained(cls, run) -> SEAL:
        """Load a run folder, or "hf-hub:OWNER/NAME", strictly, in eval mode; nothing is unpickled.

        What is absent or does not fit, and a base that has other weights than it was tuned from, is
        an `InputError`.
        """
        run = _fetched(run) if str(run).startswith(HUB) else Path(run)
        config = Config.from_json(run / "config.json")
        model = cls.build(GenePanel.load(run / "panel.json"), config)
        if read_json(run / "base.json", "sha256")["sha256"] != model.encoder.base_digest():
            said = f"{config.backbone} has other weights here than the run was tuned from"
            raise InputError(f"{run / 'base.json'}: {said}; take the version that it names")
        state, tuned = {}, ADAPTER if model.encoder.adapted else BLOCKS
        for file, start in ((tuned, "tuned."), ("heads.safetensors", "")):
            with reading(run / file, remedy=RUN):
                state |= {f"{start}{k}": v for k, v in load_file(run / file).items()}
        model.load_trainable(state, source=run)
        return model.eval()

    @torch.inference_mode()
    def _infer(self, function, x):
        x = torch.as_tensor(x, device=self.log_temperature.device)
        return function(self.eval(), x).cpu().numpy()

    def encode_genes(self, x):
        """z-scored expression (n, genes) in the panel's order -> unit vectors (n, d).

        In the shared space: d is `config.project`, or with 0 the image encoder's own dimension.
        """
        return self._infer(lambda m, x: nn.functional.normalize(m.genes.encode(x)[0], dim=1), x)

    def project_images(self, e):
        """Image embeddings (n, dim) of `encoders.embed` -> unit vectors (n, d) in the shared space.

        d as in `encode_genes`.
        """
        return self._infer(lambda m, e: nn.functional.normalize(m.project(e), dim=1), e)

    def predict_genes(self, e):
        """Image embeddings (n, dim) -> z-scored expression (n, genes) by the model's decoder.

        Genes in the panel's order.
        """
        return self._infer(lambda m, e: m.image_decoder(e), e)
