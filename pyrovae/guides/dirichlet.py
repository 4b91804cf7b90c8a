"""The Dirichlet guide on the simplex."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.heads import as_latent_shape, positive, split_features


class Dirichlet(nn.Module):
    """Dirichlet guide on the simplex, q(z|x) ∝ Π_k z_k^(α_k(x) − 1), z_k > 0, Σ_k z_k = 1.

    The features are s, and α = softplus(s) + 1e-5. Draws are reparameterized implicitly. The KL to
    a Dirichlet prior is analytic: `priors.Fixed(dist.Dirichlet, concentration=…)`.

    Args:
        latent_dim: K, the number of components.

    Attributes:
        num_features: K.

    Raises:
        ConfigError: latent_dim is not a whole number ≥ 1, or the features have the wrong width.

    References:
        Implicit Reparameterization Gradients, Figurnov, Mohamed & Mnih, 2018,
        https://arxiv.org/abs/1805.08498

    Example:
        >>> import torch
        >>> head = Dirichlet(3)
        >>> q_z = head(torch.zeros(7, head.num_features))
        >>> q_z.batch_shape, q_z.event_shape
        (torch.Size([7]), torch.Size([3]))
    """

    def __init__(self, latent_dim: int):
        super().__init__()
        self.event_shape = as_latent_shape(latent_dim)
        self.num_features = latent_dim

    def forward(self, features: Tensor) -> dist.Distribution:
        (raw,) = split_features(features, self.event_shape)
        return dist.Dirichlet(positive(raw))

    def extra_repr(self) -> str:
        return f"latent_dim={self.event_shape[0]}"
