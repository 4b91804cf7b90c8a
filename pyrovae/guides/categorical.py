"""The guide of one-hot categorical latents."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.densities.discrete import OneHotVector, block_shape
from pyrovae.heads import split_features


class Categorical(nn.Module):
    """Categorical guide, q(z|x) = Π_b softmax(l_b(x))[k_b], z the one-hot codes of k_1 … k_L.

    The features are the logits l; draws are not reparameterized. `objectives.EnumELBO` sums over
    the K^L joint values (at most 4,096). `objectives.TraceELBO`, the default of `fit`, uses Pyro's
    score-function gradient, unbiased but noisy. The KL to `priors.Categorical` is analytic.

    Args:
        latent_dim: D = L·K, the width of z.
        num_categories: K ≥ 2; None means K = D, one latent.

    Attributes:
        num_features: D.

    Raises:
        ConfigError: the sizes are inconsistent, or the features have the wrong width.

    References:
        Categorical Reparameterization with Gumbel-Softmax, Jang, Gu & Poole, 2017,
        https://arxiv.org/abs/1611.01144 (for latents of this form)

    Example:
        >>> import torch
        >>> q_z = Categorical(6, 3)(torch.zeros(7, 6))
        >>> q_z.event_shape, q_z.enumerate_support(expand=False).shape
        (torch.Size([6]), torch.Size([9, 1, 6]))
    """

    def __init__(self, latent_dim: int, num_categories: int | None = None):
        super().__init__()
        self.blocks = block_shape(latent_dim, num_categories)
        self.num_features = latent_dim

    def forward(self, features: Tensor) -> dist.Distribution:
        (logits,) = split_features(features, self.blocks)
        return OneHotVector(logits)

    def extra_repr(self) -> str:
        return f"latent_dim={self.num_features}, num_categories={self.blocks[1]}"
