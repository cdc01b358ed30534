"""The gene encoder: a variational autoencoder, optionally with planar flows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seal_lite.model.losses import kl_loss


class PlanarFlow(nn.Module):
    """The map f(z) = z + u tanh(w.z + b).

    Parameters
    ----------
    dim
        d, the width of z.
    invertible
        Move u along w where that keeps the map invertible; released SEAL does not.

    Notes
    -----
    Rezende & Mohamed, 2015, eq. 10. The map is invertible for u.w >= -1 (their appendix A.1).
    """

    def __init__(self, dim: int, *, invertible: bool = True) -> None:
        super().__init__()
        self.invertible = invertible
        self.w = nn.Parameter(torch.randn(dim) * 0.01)
        self.u = nn.Parameter(torch.randn(dim) * 0.01)
        self.b = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return f(z) (b, d) and log abs det df/dz (b,) for z (b, d)."""
        u: Tensor = self.u  # (d,)
        if self.invertible:
            wu = self.w @ u  # ()
            target = nn.functional.softplus(wu) - 1  # (), what u.w becomes: above -1
            u = u + (target - wu) * self.w / (self.w @ self.w + 1e-12)  # (d,)
        t = torch.tanh(z @ self.w + self.b)  # (b,)
        slope = (1 - t.square())[:, None] * self.w  # (b, d), dt/dz
        log_det = torch.log((1 + slope @ u).abs() + 1e-12)  # (b,)
        return z + t[:, None] * u, log_det


class GeneVAE(nn.Module):
    """A variational autoencoder of expression (SEAL's gene encoder).

    In training the embedding is a sample. Otherwise it is the mean: one profile always has one
    embedding.

    Parameters
    ----------
    genes
        Number of genes.
    latent
        Width d of the embedding.
    hidden
        Widths of the encoder's layers (Linear, BatchNorm, ReLU). The decoder has them in reverse,
        without BatchNorm.
    n_flows
        Number of flows (`PlanarFlow`) behind the sample.
    invertible
        As in `PlanarFlow`.
    dropout
        Share of units that are dropped before the decoder's last layer.
    """

    def __init__(
        self,
        genes: int,
        latent: int,
        *,
        hidden: tuple[int, ...] = (1024, 512),
        n_flows: int = 0,
        invertible: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        encoder: list[nn.Module] = []
        width = genes
        for next_width in hidden:
            encoder += [nn.Linear(width, next_width), nn.BatchNorm1d(next_width), nn.ReLU()]
            width = next_width
        self.trunk = nn.Sequential(*encoder)
        self.mu = nn.Linear(width, latent)
        self.logvar = nn.Linear(width, latent)
        flows = [PlanarFlow(latent, invertible=invertible) for _ in range(n_flows)]
        self.flows = nn.ModuleList(flows)

        decoder: list[nn.Module] = []
        width = latent
        for next_width in reversed(hidden):
            decoder += [nn.Linear(width, next_width), nn.ReLU()]
            width = next_width
        decoder += [nn.Dropout(dropout), nn.Linear(width, genes)]
        self.decoder = nn.Sequential(*decoder)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding z (b, latent) of expression x (b, genes), and its KL ()."""
        h = self.trunk(x)  # (b, hidden[-1])
        mu = self.mu(h)  # (b, latent)
        logvar = self.logvar(h).clamp(-10, 10)  # (b, latent)
        sample = mu
        if self.training:
            sample = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
        z = sample  # (b, latent)
        kl = kl_loss(mu, logvar)  # ()
        for flow in self.flows:
            z, log_det = flow(z)
            kl = kl - log_det.mean()
        # The prior is on f(z), behind the flows: one sample of log p(z) - log p(f(z)) joins.
        moved = 0.5 * (z.square() - sample.square())  # (b, latent), 0 without flows
        return z, kl + moved.sum(1).mean()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return embedding z (b, latent), reconstruction (b, genes) and KL () of x (b, genes)."""
        z, kl = self.encode(x)
        return z, self.decoder(z), kl
