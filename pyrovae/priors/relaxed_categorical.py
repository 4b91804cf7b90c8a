"""The relaxed (Concrete) categorical prior."""

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.densities.discrete import block_shape, categorical_logits
from pyrovae.densities.relaxed import Concrete, relaxed_temperature


class RelaxedCategorical(nn.Module):
    """p(z) = Π_b Concrete(z_b; log π_b, T): L simplex blocks z_b = softmax((log π_b + Gumbel)/T).

    Category k is the largest with probability π_bk, and z → one-hot as T → 0. Use it with
    `guides.RelaxedCategorical`. The ELBO then bounds log p(x) of this continuous model, not
    of the model with `priors.Categorical`.

    Args:
        latent_dim: D = L·K, the width of z.
        temperature: T ≥ 0.4; smaller is closer to one-hot.
        num_categories: K ≥ 2; None means K = D, one latent.
        probs: π, (K,) or (L, K), inside (0, 1) and summing to 1; None is uniform.

    Raises:
        ConfigError: the sizes are inconsistent, or temperature or probs is invalid.

    References:
        The Concrete Distribution, Maddison, Mnih & Teh, 2017, https://arxiv.org/abs/1611.00712
        Categorical Reparameterization with Gumbel-Softmax, Jang, Gu & Poole, 2017,
        https://arxiv.org/abs/1611.01144

    Example:
        >>> prior = RelaxedCategorical(6, temperature=0.5, num_categories=3)
        >>> prior().sample().unflatten(-1, (2, 3)).sum(-1).round(decimals=4)
        tensor([1., 1.])
    """

    def __init__(
        self,
        latent_dim: int,
        temperature: float = 2 / 3,
        *,
        num_categories: int | None = None,
        probs: Tensor | Sequence | None = None,
    ):
        super().__init__()
        shape = block_shape(latent_dim, num_categories)
        self.temperature = relaxed_temperature(temperature)
        self.register_buffer("logits", categorical_logits(probs, shape))

    def forward(self) -> dist.Distribution:
        return Concrete(self.logits, self.temperature)

    def extra_repr(self) -> str:
        size, k = self.logits.numel(), self.logits.shape[-1]
        return f"latent_dim={size}, temperature={self.temperature:.3g}, num_categories={k}"
