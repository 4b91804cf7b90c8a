"""The prior of independent binary latents."""

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.densities.discrete import BernoulliVector, bernoulli_logits
from pyrovae.heads import as_latent_shape


class Bernoulli(nn.Module):
    """Independent Bernoulli prior, p(z) = Π_j π_j^z_j (1 − π_j)^(1−z_j), z in {0, 1}^D as floats.

    With `guides.Bernoulli`, `objectives.EnumELBO` sums exactly over the 2^D joint values
    (D ≤ 12); `objectives.TraceELBO` draws z and uses the score-function gradient.

    Args:
        latent_dim: D.
        probs: π, the probability of z_j = 1: one number or D numbers, inside (0, 1).
        learn_probs: whether to learn the logits of π, starting from `probs`.

    Raises:
        ConfigError: latent_dim is not a whole number ≥ 1, or probs is invalid.

    References:
        Neural Variational Inference and Learning in Belief Networks, Mnih & Gregor, 2014,
        https://arxiv.org/abs/1402.0030

    Example:
        >>> import torch
        >>> prior = Bernoulli(2, 0.25)
        >>> prior().log_prob(torch.tensor([0.0, 1.0])).exp()
        tensor(0.1875)
        >>> prior().enumerate_support().shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        latent_dim: int,
        probs: float | Tensor | Sequence[float] = 0.5,
        *,
        learn_probs: bool = False,
    ):
        super().__init__()
        (latent_dim,) = as_latent_shape(latent_dim)
        logits = bernoulli_logits(probs, latent_dim)
        if learn_probs:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)

    def forward(self) -> dist.Distribution:
        return BernoulliVector(self.logits)

    def extra_repr(self) -> str:
        how = "learned" if self.logits.requires_grad else "fixed"
        return f"latent_dim={len(self.logits)}, probs: {how}"
