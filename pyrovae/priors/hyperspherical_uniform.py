"""The uniform prior on the unit sphere."""

import pyro.distributions as dist
import torch
from torch import nn

from pyrovae.densities import sphere


class HypersphericalUniform(nn.Module):
    """Uniform prior on the unit sphere S^(D−1) in R^D, p(z) = 1 / A.

    log p(z) = −log A = log Γ(D/2) − log 2 − (D/2) log π, for |z| = 1

    Use it with `guides.PowerSpherical`, whose KL to it is analytic. The KL from a density
    on R^D, such as a normal guide, is undefined.

    Args:
        latent_dim: D ≥ 2, the number of coordinates; the sphere itself has D − 1 dimensions.

    Raises:
        ConfigError: latent_dim is not a whole number ≥ 2.

    References:
        Hyperspherical Variational Auto-Encoders, Davidson et al., 2018,
        https://arxiv.org/abs/1804.00891

    Example:
        >>> prior = HypersphericalUniform(2)
        >>> prior().log_prob(torch.tensor([0.0, 1.0]))  # −log 2π
        tensor(-1.8379)
    """

    def __init__(self, latent_dim: int):
        super().__init__()
        # the sphere's center; it follows .to(), so it knows dtype and device
        self.register_buffer("center", torch.zeros(sphere.sphere_dim(latent_dim)))

    def forward(self) -> dist.Distribution:
        kind = {"dtype": self.center.dtype, "device": self.center.device}
        return sphere.HypersphericalUniform(len(self.center), **kind)

    def extra_repr(self) -> str:
        return f"latent_dim={len(self.center)}"
