"""The Gaussian guide with a full covariance."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.densities import full_normal as densities
from pyrovae.heads import as_latent_shape, positive, split_features


class FullNormal(nn.Module):
    """Full-covariance normal guide, q(z|x) = N(z; μ(x), L(x) L(x)ᵀ), L = diag(σ) (I + A).

    z_i = μ_i + σ_i (ε_i + Σ_{j<i} A_ij ε_j). The features are (μ, s, a): σ = softplus(s) + 1e-5,
    and A = 10 tanh(a / 10), row by row, strictly lower triangular; correlations stay below 0.995.
    log q(z|x) of a draw comes from its ε, exact and finite for features of ±1e6 in any number
    of dimensions; other points are solved for ε, losing a digit per dimension near the bound.

    Args:
        latent_dim: D.

    Attributes:
        num_features: 2 D + D (D − 1) / 2.

    Raises:
        ConfigError: latent_dim is not a whole number ≥ 1, or the features have the wrong width.

    References:
        An Introduction to Variational Autoencoders, Kingma & Welling, 2019, section 2.5.1,
        https://arxiv.org/abs/1906.02691

    Example:
        >>> head = FullNormal(3)
        >>> head.num_features
        9
        >>> q_z = head(torch.zeros(7, 9))
        >>> q_z.batch_shape, q_z.event_shape
        (torch.Size([7]), torch.Size([3]))
    """

    def __init__(self, latent_dim: int):
        super().__init__()
        (self.latent_dim,) = as_latent_shape(latent_dim)
        self.num_features = 2 * latent_dim + latent_dim * (latent_dim - 1) // 2

    def forward(self, features: Tensor) -> dist.Distribution:
        dim = self.latent_dim
        (features,) = split_features(features, torch.Size([self.num_features]))
        loc, raw_scale, raw_below = features.tensor_split((dim, 2 * dim), dim=-1)
        row, column = torch.tril_indices(dim, dim, -1, device=features.device)
        eye = torch.eye(dim, dtype=features.dtype, device=features.device)
        unit_lower = eye.expand(*features.shape[:-1], dim, dim).clone()
        unit_lower[..., row, column] = 10 * torch.tanh(raw_below / 10)
        return densities.FullNormal(loc, positive(raw_scale)[..., None] * unit_lower)

    def extra_repr(self) -> str:
        return f"latent_dim={self.latent_dim}"
