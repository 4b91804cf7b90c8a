"""The logistic-normal guide on the simplex."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.heads import as_latent_shape, positive, split_features


class LogisticNormal(nn.Module):
    """Logistic-normal guide on the simplex: z = T(u), u ~ N(μ(x), diag σ(x)²), T stick-breaking.

    The features are (μ, s) of K − 1 coordinates, and σ = softplus(s) + 1e-5. The KL to a
    logistic-normal prior is analytic: `priors.Fixed(dist.LogisticNormal, loc=…, scale=…)`.

    Args:
        latent_dim: K ≥ 2, the number of components.

    Attributes:
        num_features: 2 (K − 1).

    Raises:
        ConfigError: latent_dim is not a whole number ≥ 2, or the features have the wrong width.

    References:
        Logistic-Normal Distributions: Some Properties and Uses, Atchison & Shen, 1980,
        https://doi.org/10.1093/biomet/67.2.261

    Example:
        >>> import torch
        >>> head = LogisticNormal(3)
        >>> q_z = head(torch.zeros(7, head.num_features))
        >>> q_z.batch_shape, q_z.event_shape
        (torch.Size([7]), torch.Size([3]))
    """

    def __init__(self, latent_dim: int):
        super().__init__()
        self.event_shape = as_latent_shape(whole_number(latent_dim, "latent_dim", 2))
        self.num_features = 2 * (latent_dim - 1)

    def forward(self, features: Tensor) -> dist.Distribution:
        shape = as_latent_shape(self.event_shape[0] - 1)
        loc, raw_scale = split_features(features, shape, 2)
        return dist.LogisticNormal(loc, positive(raw_scale))

    def extra_repr(self) -> str:
        return f"latent_dim={self.event_shape[0]}"
