"""The power spherical guide on the unit sphere."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.densities import sphere
from pyrovae.errors import ConfigError
from pyrovae.heads import positive

MIN_LENGTH = 1e-6


class PowerSpherical(nn.Module):
    """Power spherical guide on the unit sphere, q(z|x) = (1 + μᵀz)^κ / C, concentrated around μ.

    C = 2^(α+β) π^β Γ(α) / Γ(α+β), β = (D − 1)/2, α = β + κ. The features are (d, s): D
    numbers for the direction and one for the concentration,

        μ = d / |d|,   κ = softplus(s) + 1e-5

    Where |d| < 1e-6 the direction is undefined: μ is then the basis vector e₁, and no gradient
    flows through d. Draws are reparameterized (`sphere.PowerSpherical`), and the KL to
    `priors.HypersphericalUniform` is analytic. Computed in float64.

    Args:
        latent_dim: D ≥ 2, the number of coordinates of z.

    Attributes:
        num_features: D + 1.

    Raises:
        ConfigError: latent_dim is not a whole number ≥ 2, or the features have the wrong width.

    References:
        The Power Spherical distribution, De Cao & Aziz, 2020, https://arxiv.org/abs/2006.04437

    Example:
        >>> head = PowerSpherical(3)
        >>> q_z = head(torch.tensor([[2.0, 0.0, 0.0, 10.0]]))
        >>> q_z.mean, q_z.rsample().norm(dim=-1).round(decimals=4)
        (tensor([[0.8333, 0.0000, 0.0000]]), tensor([1.]))
    """

    def __init__(self, latent_dim: int):
        super().__init__()
        self.event_shape = torch.Size([sphere.sphere_dim(latent_dim)])
        self.num_features = latent_dim + 1

    def forward(self, features: Tensor) -> dist.Distribution:
        if features.shape[-1] != self.num_features:
            raise ConfigError(
                f"this head needs {self.num_features} features ({self.event_shape[0]} for the "
                f"direction, 1 for the concentration), but the network before it returns "
                f"{features.shape[-1]}.\n"
                "Set out_features=head.num_features in the network's last layer."
            )
        concentration = positive(features[..., -1])
        return sphere.PowerSpherical(_direction(features[..., :-1]), concentration)

    def extra_repr(self) -> str:
        return f"latent_dim={self.event_shape[0]}"


def _direction(raw: Tensor) -> Tensor:
    """Return raw / |raw|, or e₁ where |raw| < 1e-6; (B, D)."""
    first_axis = torch.zeros_like(raw)
    first_axis[..., 0] = 1.0
    has_none = torch.linalg.vector_norm(raw.detach(), dim=-1, keepdim=True) < MIN_LENGTH
    # replaced before the division, so that no NaN reaches the gradient
    raw = torch.where(has_none, first_axis, raw)
    return raw / torch.linalg.vector_norm(raw, dim=-1, keepdim=True)
