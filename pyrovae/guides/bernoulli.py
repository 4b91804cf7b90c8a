"""The guide of independent binary latents."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.densities.discrete import BernoulliVector
from pyrovae.heads import as_latent_shape, split_features


class Bernoulli(nn.Module):
    """Bernoulli guide, q(z|x) = Π_j Bernoulli(z_j; σ(l_j(x))), z in {0, 1}^D; features: logits l.

    Draws are not reparameterized. `objectives.EnumELBO` draws nothing: it sums over the 2^D
    joint values (D ≤ 12). `objectives.TraceELBO`, the default of `fit`, uses Pyro's
    score-function gradient, unbiased but noisy. The KL to `priors.Bernoulli` is analytic.

    Args:
        latent_dim: D.

    Attributes:
        num_features: D.

    Raises:
        ConfigError: latent_dim is not a whole number ≥ 1, or the features have the wrong width.

    References:
        Neural Variational Inference and Learning in Belief Networks, Mnih & Gregor, 2014,
        https://arxiv.org/abs/1402.0030

    Example:
        >>> import torch
        >>> q_z = Bernoulli(2)(torch.zeros(7, 2))
        >>> q_z.has_rsample, q_z.enumerate_support(expand=False).shape
        (False, torch.Size([4, 1, 2]))
    """

    def __init__(self, latent_dim: int):
        super().__init__()
        self.event_shape = as_latent_shape(latent_dim)
        self.num_features = latent_dim

    def forward(self, features: Tensor) -> dist.Distribution:
        (logits,) = split_features(features, self.event_shape)
        return BernoulliVector(logits)

    def extra_repr(self) -> str:
        return f"latent_dim={self.event_shape[0]}"
