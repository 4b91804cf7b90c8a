"""The mean-field Laplace guide."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.heads import as_latent_shape, positive, split_features


class Laplace(nn.Module):
    """Laplace guide, q(z|x) = Π_i Laplace(z_i; μ_i(x), b_i(x)) = Π_i exp(−|z_i − μ_i|/b_i)/(2 b_i).

    The features are (μ, s), and b = softplus(s) + 1e-5; the standard deviation is √2 b. The
    KL to a Laplace prior is analytic: priors.Fixed(lambda b: Laplace(0, b).to_event(1), b=…).

    Args:
        latent_dim: D.

    Attributes:
        num_features: 2 D.

    Raises:
        ConfigError: latent_dim is not a whole number ≥ 1, or the features have the wrong width.

    References:
        Auto-Encoding Variational Bayes, Kingma & Welling, 2014, section 2.4 (location-scale
        families), https://arxiv.org/abs/1312.6114

    Example:
        >>> import torch
        >>> head = Laplace(2)
        >>> q_z = head(torch.zeros(7, head.num_features))
        >>> q_z.batch_shape, q_z.event_shape
        (torch.Size([7]), torch.Size([2]))
    """

    def __init__(self, latent_dim: int):
        super().__init__()
        self.event_shape = as_latent_shape(latent_dim)
        self.num_features = 2 * latent_dim

    def forward(self, features: Tensor) -> dist.Distribution:
        loc, raw_scale = split_features(features, self.event_shape, 2)
        return dist.Laplace(loc, positive(raw_scale)).to_event(1)

    def extra_repr(self) -> str:
        return f"latent_dim={self.event_shape[0]}"
