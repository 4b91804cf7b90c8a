"""The relaxed (binary Concrete) guide."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.densities.relaxed import BinaryConcrete, relaxed_temperature
from pyrovae.heads import as_latent_shape, split_features


class RelaxedBernoulli(nn.Module):
    """q(z|x) = Π_j BinaryConcrete(z_j; l_j(x), T) on (0, 1)^D; the features are the logits l.

    z_j = σ((l_j + logistic noise)/T), reparameterized. With `priors.RelaxedBernoulli` the
    ELBO bounds log p(x) of the relaxed, continuous model. z is truncated where its dtype
    cannot distinguish it from 1, and its density renormalized, so that the bound holds for
    logits of any size (`relaxed.BinaryConcrete`). The KL is Monte Carlo.

    Args:
        latent_dim: D.
        temperature: T ≥ 0.4; may differ from the prior's.

    Attributes:
        num_features: D.

    Raises:
        ConfigError: latent_dim or temperature is invalid, or the features have the wrong
            width.

    References:
        The Concrete Distribution, Maddison, Mnih & Teh, 2017, https://arxiv.org/abs/1611.00712
        Categorical Reparameterization with Gumbel-Softmax, Jang, Gu & Poole, 2017,
        https://arxiv.org/abs/1611.01144

    Example:
        >>> import torch
        >>> q_z = RelaxedBernoulli(2)(torch.tensor([[-1e6, 1e6]]))
        >>> q_z.rsample().round()
        tensor([[0., 1.]])
    """

    def __init__(self, latent_dim: int, temperature: float = 2 / 3):
        super().__init__()
        self.event_shape = as_latent_shape(latent_dim)
        self.num_features = latent_dim
        self.temperature = relaxed_temperature(temperature)

    def forward(self, features: Tensor) -> dist.Distribution:
        (logits,) = split_features(features, self.event_shape)
        return BinaryConcrete(logits, self.temperature)

    def extra_repr(self) -> str:
        return f"latent_dim={self.num_features}, temperature={self.temperature:.3g}"
