"""The relaxed (binary Concrete) prior."""

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.densities.discrete import bernoulli_logits
from pyrovae.densities.relaxed import BinaryConcrete, relaxed_temperature
from pyrovae.heads import as_latent_shape


class RelaxedBernoulli(nn.Module):
    """p(z) = Π_j BinaryConcrete(z_j; l, T) on (0, 1)^D: z_j = σ((l_j + logistic noise)/T).

    P(z_j > 1/2) = π_j = σ(l_j), and z → Bernoulli(π) as T → 0. Use it with
    `guides.RelaxedBernoulli`. The ELBO then bounds log p(x) of this continuous model, not of
    the model with `priors.Bernoulli`. z is truncated where its dtype cannot distinguish it
    from 1, about 1e-3 of the mass in float32, and renormalized (`relaxed.BinaryConcrete`).

    Args:
        latent_dim: D.
        temperature: T ≥ 0.4; smaller is closer to {0, 1}.
        probs: π: one number or D numbers, inside (0, 1).

    Raises:
        ConfigError: latent_dim, temperature or probs is invalid.

    References:
        The Concrete Distribution, Maddison, Mnih & Teh, 2017, https://arxiv.org/abs/1611.00712
        Categorical Reparameterization with Gumbel-Softmax, Jang, Gu & Poole, 2017,
        https://arxiv.org/abs/1611.01144

    Example:
        >>> import torch
        >>> prior = RelaxedBernoulli(2, temperature=0.5)
        >>> prior().log_prob(torch.full((2,), 0.5))
        tensor(-1.3835)
    """

    def __init__(
        self,
        latent_dim: int,
        temperature: float = 2 / 3,
        *,
        probs: float | Tensor | Sequence[float] = 0.5,
    ):
        super().__init__()
        (latent_dim,) = as_latent_shape(latent_dim)
        self.temperature = relaxed_temperature(temperature)
        self.register_buffer("logits", bernoulli_logits(probs, latent_dim))

    def forward(self) -> dist.Distribution:
        return BinaryConcrete(self.logits, self.temperature)

    def extra_repr(self) -> str:
        return f"latent_dim={len(self.logits)}, temperature={self.temperature:.3g}"
