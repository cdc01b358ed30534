"""The model: a vision encoder and a gene encoder that meet in a shared space, and two decoders.

::

    image --prefix--> hidden --LoRA blocks--> e --project--> space <-- z <--encoder-- expression
                                              |                        |
                                              +--decoder--> expression +--decoder--> expression
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from seal_lite.config import LOWEST_TEMPERATURE, Config
from seal_lite.data.genes import GenePanel
from seal_lite.encoders.registry import backbone_row
from seal_lite.encoders.vision import VisionEncoder, encoder_for
from seal_lite.errors import blaming
from seal_lite.model import storage
from seal_lite.model.gene_vae import GeneVAE
from seal_lite.model.losses import GeneOutputs, PairOutputs
from seal_lite.model.parallel import gather_batch, map_chunks, own_randomness


class SEAL(nn.Module):
    """Vision encoder, gene encoder, projection into the shared space, and image -> gene decoder.

    `build` and `from_pretrained` are the usual ways to a model; here the heads get random weights.

    Parameters
    ----------
    encoder
        The vision encoder; its embedding has `dim` dimensions.
    panel
        The genes, in order.
    config
        The settings; `hidden`, `project`, `n_flows`, `as_released`, `head_dropout` and the
        temperature are used.

    Attributes
    ----------
    encoder, project, genes, image_decoder
        The four parts; `genes` is a `GeneVAE`.

    Notes
    -----
    After Hemker et al., 2026 (arXiv 2602.14177). All that goes in and comes out is z-scored. With
    `as_released`, the networks themselves read and predict log counts, by the panel's mean and
    standard deviation.
    """

    panel_mean: Tensor
    panel_std: Tensor

    def __init__(self, encoder: VisionEncoder, panel: GenePanel, config: Config) -> None:
        super().__init__()
        dim = encoder.row.dim
        n_genes = len(panel.genes)
        latent = config.project or dim
        width = config.hidden[-1]
        self.panel = panel
        self.config = config
        self.encoder = encoder
        self.project = nn.Linear(dim, latent) if config.project else nn.Identity()
        self.genes = GeneVAE(
            n_genes,
            latent,
            hidden=config.hidden,
            n_flows=config.n_flows,
            invertible=not config.as_released,
            dropout=config.head_dropout,
        )
        decoder = [
            nn.Linear(dim, width),
            nn.ReLU(),
            nn.Dropout(config.head_dropout),
            nn.Linear(width, n_genes),
        ]
        if config.as_released:
            decoder.append(nn.ReLU())  # log counts are not negative
        self.image_decoder = nn.Sequential(*decoder)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(panel, name), dtype=torch.float32)  # (genes,)
            self.register_buffer(f"panel_{name}", values, persistent=False)
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(config.temperature)), requires_grad=config.learn_temperature
        )

    @classmethod
    def build(
        cls, panel: GenePanel, config: Config, *, device: str | torch.device = "auto"
    ) -> SEAL:
        """Return a fresh model on the config's backbone; `config.seed` fixes every initial weight.

        It is on `device`, of which "auto" is the fastest of this machine (`resolve_device`).

        Raises
        ------
        InputError
            Where the backbone reads patches of another size, and as `build_encoder` does.
        """
        return cls._on(cls._encoder(config, device=device), panel, config)

    @staticmethod
    def _encoder(config: Config, *, device: str | torch.device) -> VisionEncoder:
        """Return the config's encoder, which reads patches of the config's size."""
        backbone_row(config.backbone).check_px(config.patch_px)
        return encoder_for(config, device=device)

    @classmethod
    def _on(cls, encoder: VisionEncoder, panel: GenePanel, config: Config) -> SEAL:
        """Return a fresh model on an encoder, where that is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return cls(encoder, panel, config).to(encoder.device)

    def forward(self, hidden: Tensor, x: Tensor, *, chunk: int = 0) -> PairOutputs:
        """Compute what the loss of a batch of b pairs needs.

        Several processes each give their part of the batch, and all get the outputs of the whole.

        Parameters
        ----------
        hidden
            Activations (b, ...) before the first tuned block, as `VisionEncoder.prefix` has them.
        x
            z-scored expression (b, genes) in the panel's order.
        chunk
            Number of images whose activations are held at once; the backward pass computes them
            again (Gao et al., 2021, GradCache). 0 holds those of all.
        """
        with torch.no_grad():  # of the parameter: below a bound of its value there is no gradient
            self.log_temperature.clamp_(min=math.log(LOWEST_TEMPERATURE))
        with own_randomness(hidden.device):
            own_e = map_chunks(self.encoder.tail, hidden, chunk)  # (this process's b, dim)
        e = gather_batch(own_e)  # (b, dim)
        x = gather_batch(x)  # (b, genes)
        z, gene_reconstruction, kl = self._run_genes(x)  # (b, d), (b, genes), ()
        return PairOutputs(
            expression=x,
            gene_embedding=z,
            gene_reconstruction=gene_reconstruction,
            kl=kl,
            hidden=hidden,
            image_embedding=e,
            temperature=self.log_temperature.exp(),  # ()
            image_projection=self.project(e),  # (b, d)
            image_reconstruction=self._as_z(self.image_decoder(e)),  # (b, genes)
        )

    def forward_genes(self, x: Tensor) -> GeneOutputs:
        """Compute what needs no image, for the gene encoder's warm-up epochs.

        x is z-scored expression (b, genes); processes share a batch as in `forward`.
        """
        x = gather_batch(x)  # (b, genes)
        z, gene_reconstruction, kl = self._run_genes(x)  # (b, d), (b, genes), ()
        return GeneOutputs(
            expression=x, gene_embedding=z, gene_reconstruction=gene_reconstruction, kl=kl
        )

    @torch.inference_mode()
    def encode_genes(self, x: np.ndarray) -> np.ndarray:
        """Embed expression in the shared space.

        Parameters
        ----------
        x : array (n, genes) float32
            z-scored, in the panel's order.

        Returns
        -------
        array (n, d) float32
            Unit vectors; d is `config.project`, or with 0 the image encoder's own dimension.
        """
        self.eval()
        z, _ = self.genes.encode(self._as_read(self._to_device(x)))  # (n, d)
        return normalize(z, dim=1).cpu().numpy()

    @torch.inference_mode()
    def project_images(self, e: np.ndarray) -> np.ndarray:
        """Project image embeddings (n, dim) of `embed_patches` to unit vectors (n, d) float32.

        They lie in the shared space, as those of `encode_genes`.
        """
        self.eval()
        projected = self.project(self._to_device(e))  # (n, d)
        return normalize(projected, dim=1).cpu().numpy()

    @torch.inference_mode()
    def predict_genes(self, e: np.ndarray) -> np.ndarray:
        """Predict z-scored expression (n, genes) float32 from image embeddings (n, dim).

        The genes are in the panel's order.
        """
        self.eval()
        return self._as_z(self.image_decoder(self._to_device(e))).cpu().numpy()

    def _run_genes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the gene encoder on z-scored x (b, genes); its reconstruction is z-scored, too."""
        z, decoded, kl = self.genes(self._as_read(x))  # (b, d), (b, genes), ()
        return z, self._as_z(decoded), kl

    def _as_read(self, x: Tensor) -> Tensor:
        """Return z-scored expression (b, genes) in the units that the networks read."""
        return x * self.panel_std + self.panel_mean if self.config.as_released else x

    def _as_z(self, decoded: Tensor) -> Tensor:
        """Return what a decoder gives (b, genes) as z-scores."""
        return (decoded - self.panel_mean) / self.panel_std if self.config.as_released else decoded

    def _to_device(self, x: np.ndarray) -> Tensor:
        """Return the array as a tensor on the model's device."""
        return torch.as_tensor(x, device=self.log_temperature.device)

    def heads(self) -> dict[str, Tensor]:
        """Return everything but the vision encoder, by name."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("encoder.")}

    def trainable(self) -> dict[str, Tensor]:
        """Return what training changes: "tuned.*" of the vision encoder, and the heads."""
        tuned = storage.tuned_tensors(self.encoder)
        return {storage.TUNED + name: tensor for name, tensor in tuned.items()} | self.heads()

    def load_trainable(self, tensors: dict[str, Tensor], *, source: str | Path) -> None:
        """Put back what `trainable` returned.

        Raises
        ------
        InputError
            Where a name or a shape differs, and where a value is not finite; the message names
        `source`.
        """
        own = self.trainable()
        storage.check_shapes(storage.shapes_of(tensors), storage.shapes_of(own), source=source)
        storage.check_tensors(tensors, own, source=source)
        tuned = {}
        heads = {}
        for name, tensor in tensors.items():
            if name.startswith(storage.TUNED):
                tuned[name.removeprefix(storage.TUNED)] = tensor
            else:
                heads[name] = tensor
        storage.load_tuned_tensors(self.encoder, tuned)
        self.load_state_dict({**self.state_dict(), **heads}, strict=True)

    def save_pretrained(self, out: str | Path) -> None:
        """Write the model's files into the folder `out`; `seal_lite.model.storage` lists them."""
        storage.write_model(
            Path(out),
            config=self.config,
            panel=self.panel,
            encoder=self.encoder,
            heads=self.heads(),
        )

    @classmethod
    def from_pretrained(cls, run: str | Path, *, device: str | torch.device = "auto") -> SEAL:
        """Load a run folder, or "hf-hub:OWNER/NAME", strictly and in eval mode.

        It is put on `device`, of which "auto" is the fastest of this machine (`resolve_device`).

        Raises
        ------
        InputError
            Where a file is absent, damaged or does not fit, and where the backbone has other
            weights here than the run was tuned from.
        """
        run = storage.local_folder(run)
        config = Config.from_json(run / "config.json")
        panel = GenePanel.load(run / "panel.json")
        storage.check_adapter(run, config)
        files = {run / file: prefix for file, prefix in storage.tensor_files(config).items()}
        shapes = {file: storage.read_shapes(file, prefix) for file, prefix in files.items()}
        for file in files:
            storage.check_rank(file, shapes[file], config.lora_rank)
        with blaming(run / "config.json"):
            encoder = cls._encoder(config, device=device)
        storage.check_base(run, config, encoder)

        # Damaged settings may ask for terabytes: shapes are compared before there is any memory.
        with torch.device("meta"):
            own = cls(encoder, panel, config).trainable()
        for file, prefix in files.items():
            is_here = bool(prefix)
            own_here = {k: v for k, v in own.items() if k.startswith(storage.TUNED) == is_here}
            storage.check_shapes(shapes[file], storage.shapes_of(own_here), source=file)
        storage.check_checksums(run)

        model = cls._on(encoder, panel, config)
        tensors: dict[str, Tensor] = {}
        for file, prefix in files.items():
            tensors_here = storage.read_tensors(file, prefix)
            storage.check_tensors(tensors_here, own, source=file)
            tensors |= tensors_here
        model.load_trainable(tensors, source=run)
        return model.eval()
