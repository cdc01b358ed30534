"""The gene encoder: a variational autoencoder, with planar flows if asked."""

from __future__ import annotations

import torch
from torch import nn

from seal_lite.model import losses


class PlanarFlow(nn.Module):
    """f(z) = z + u tanh(w.z + b), invertible for u.w >= -1 (Rezende & Mohamed, 2015, eq. 10).

    `dim` is d, the width of z. `forward` moves u so that this holds (their appendix A.1).
    """

    def __init__(self, dim: int):
        super().__init__()
        self.w = nn.Parameter(torch.randn(dim) * 0.01)
        self.u = nn.Parameter(torch.randn(dim) * 0.01)
        self.b = nn.Parameter(torch.zeros(()))

    def forward(self, z):
        """z (b, d) -> f(z) (b, d) and log |det df/dz| (b,)."""
        wu = self.w @ self.u
        u = self.u + (nn.functional.softplus(wu) - 1 - wu) * self.w / (self.w @ self.w + 1e-12)
        t = torch.tanh(z @ self.w + self.b)
        slope = (1 - t.square())[:, None] * self.w
        return z + t[:, None] * u, torch.log((1 + slope @ u).abs() + 1e-12)


class GeneVAE(nn.Module):
    """Expression (b, genes) -> mean, log-variance, sample, and back.

    Linear, BatchNorm, ReLU per hidden layer, decoder mirrored (SEAL's gene encoder). Outside
    training the sample is the mean: the same profile always has the same embedding.

    genes: how many. latent: the width of the embedding. hidden: widths of the encoder's layers, the
    decoder has them in reverse, without BatchNorm. n_flows: `PlanarFlow`s behind the sample.
    dropout: before the decoder's last layer.
    """

    def __init__(self, genes: int, latent: int, *, hidden=(1024, 512), n_flows=0, dropout=0.0):
        super().__init__()
        self.trunk = nn.Sequential(
            *(
                layer
                for i, o in zip((genes, *hidden), hidden, strict=False)
                for layer in (nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU())
            )
        )
        self.mu, self.logvar = nn.Linear(hidden[-1], latent), nn.Linear(hidden[-1], latent)
        self.flows = nn.ModuleList(PlanarFlow(latent) for _ in range(n_flows))
        widths = (latent, *reversed(hidden))
        self.decoder = nn.Sequential(
            *(
                layer
                for i, o in zip(widths, widths[1:], strict=False)
                for layer in (nn.Linear(i, o), nn.ReLU())
            ),
            nn.Dropout(dropout),
            nn.Linear(hidden[0], genes),
        )

    def encode(self, x):
        """x (b, genes) -> z (b, latent) the embedding, KL to the standard normal ()."""
        h = self.trunk(x)
        mu, logvar = self.mu(h), self.logvar(h).clamp(-10, 10)
        base = mu + torch.randn_like(mu) * (0.5 * logvar).exp() if self.training else mu
        z, kl = base, losses.kl_loss(mu, logvar)
        for flow in self.flows:
            z, logdet = flow(z)
            kl = kl - logdet.mean()
        # Behind the flows the prior is met by f(z), not z: log p(z) - log p(f(z)), one sample.
        return z, kl + 0.5 * (z.square() - base.square()).sum(1).mean()

    def forward(self, x):
        """x (b, genes) -> embedding z (b, latent), reconstruction (b, genes), KL ()."""
        z, kl = self.encode(x)
        return z, self.decoder(z), kl
