"""A learned mixture of Gaussians as the prior."""

import pyro.distributions as dist
import torch
from torch import nn

from pyrovae.checks import whole_number
from pyrovae.densities.mixture import Mixture
from pyrovae.heads import as_latent_shape, inverse_positive, positive


class GaussianMixture(nn.Module):
    """Gaussian mixture, p(z) = Σ_k π_k N(z; μ_k, diag σ_k²), with learned weights, means, scales.

    π = softmax(logits), σ = softplus(s) + 1e-5. Initially π_k = 1 / K, μ_k ~ N(0, I / 2) and
    σ_k² = 1 / 2: distinct components that together have the variance of N(0, I).

    Args:
        latent_dim: D.
        num_components: K.

    Raises:
        ConfigError: latent_dim or num_components is not a whole number ≥ 1.

    References:
        Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders,
        Dilokthanakul et al., 2016, https://arxiv.org/abs/1611.02648
        VAE with a VampPrior, Tomczak & Welling, 2018 ("MoG"), https://arxiv.org/abs/1705.07120

    Example:
        >>> prior = GaussianMixture(2, num_components=3)
        >>> prior
        GaussianMixture(latent_dim=2, num_components=3)
        >>> prior().log_prob(torch.zeros(7, 2)).shape
        torch.Size([7])
    """

    def __init__(self, latent_dim: int, *, num_components: int = 10):
        super().__init__()
        (latent_dim,) = as_latent_shape(latent_dim)
        shape = (whole_number(num_components, "num_components", 1), latent_dim)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(shape) * 0.5**0.5)
        self.raw_scale = nn.Parameter(inverse_positive(torch.full(shape, 0.5**0.5)))

    def forward(self) -> dist.Distribution:
        components = dist.Normal(self.loc, positive(self.raw_scale)).to_event(1)
        return Mixture(dist.Categorical(logits=self.logits), components)

    def extra_repr(self) -> str:
        num_components, latent_dim = self.loc.shape
        return f"latent_dim={latent_dim}, num_components={num_components}"
