"""The standard normal prior."""

import pyro.distributions as dist
import torch
from torch import nn

from pyrovae.heads import as_latent_shape


class StandardNormal(nn.Module):
    """Standard normal prior, p(z) = N(z; 0, I).

    log p(z) = −½ |z|² − (D / 2) log 2π

    Args:
        latent_dim: D.

    Raises:
        ConfigError: latent_dim is not a whole number ≥ 1.

    References:
        Auto-Encoding Variational Bayes, Kingma & Welling, 2014,
        https://arxiv.org/abs/1312.6114

    Example:
        >>> prior = StandardNormal(2)
        >>> prior().log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    def __init__(self, latent_dim: int):
        super().__init__()
        shape = as_latent_shape(latent_dim)
        self.register_buffer("loc", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def forward(self) -> dist.Distribution:
        return dist.Normal(self.loc, self.scale).to_event(1)

    def extra_repr(self) -> str:
        return f"latent_dim={len(self.loc)}"
