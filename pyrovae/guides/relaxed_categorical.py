"""The relaxed (Concrete) categorical guide."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.densities.discrete import block_shape
from pyrovae.densities.relaxed import Concrete, max_logit, relaxed_temperature
from pyrovae.heads import split_features


class RelaxedCategorical(nn.Module):
    """q(z|x) = Π_b Concrete(z_b; l_b(x), T): L simplex blocks, reparameterized.

    z_b = softmax((l_b + Gumbel noise)/T). The logits are bounded, l = B tanh(f/B) for features
    f with B = (80 T − 21)/2 (16.2 at T = 2/3), so that no draw underflows in float32 and the
    ELBO stays a bound. With `priors.RelaxedCategorical` it bounds log p(x) of the relaxed,
    continuous model. The KL is Monte Carlo.

    Args:
        latent_dim: D = L·K, the width of z.
        temperature: T ≥ 0.4; may differ from the prior's.
        num_categories: K ≥ 2; None means K = D, one latent.

    Attributes:
        num_features: D.

    Raises:
        ConfigError: the sizes are inconsistent, temperature is invalid, or the features have
            the wrong width.

    References:
        The Concrete Distribution, Maddison, Mnih & Teh, 2017, https://arxiv.org/abs/1611.00712
        Categorical Reparameterization with Gumbel-Softmax, Jang, Gu & Poole, 2017,
        https://arxiv.org/abs/1611.01144

    Example:
        >>> import torch
        >>> q_z = RelaxedCategorical(3)(torch.tensor([[0.0, 1e6, 0.0]]))
        >>> q_z.rsample().round()
        tensor([[0., 1., 0.]])
    """

    def __init__(
        self, latent_dim: int, temperature: float = 2 / 3, *, num_categories: int | None = None
    ):
        super().__init__()
        self.blocks = block_shape(latent_dim, num_categories)
        self.num_features = latent_dim
        self.temperature = relaxed_temperature(temperature)

    def forward(self, features: Tensor) -> dist.Distribution:
        (raw,) = split_features(features, self.blocks)
        bound = max_logit(self.temperature)
        return Concrete(bound * (raw / bound).tanh(), self.temperature)

    def extra_repr(self) -> str:
        size, k = self.num_features, self.blocks[1]
        return f"latent_dim={size}, temperature={self.temperature:.3g}, num_categories={k}"
