"""The prior of one-hot categorical latents."""

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.densities.discrete import OneHotVector, block_shape, categorical_logits


class Categorical(nn.Module):
    """Categorical prior, p(z) = Π_b π_b[k_b], z the concatenated one-hot codes of k_1 … k_L.

    z has L·K = D entries, 0 or 1: L latents of K categories; a single latent by default.
    With `guides.Categorical`, `objectives.EnumELBO` sums exactly over the K^L joint values
    (at most 4,096); `objectives.TraceELBO` draws z and uses the score-function gradient.

    Args:
        latent_dim: D, the width of z: a multiple of num_categories.
        num_categories: K ≥ 2; None means K = D, one latent.
        probs: π, (K,) or (L, K), inside (0, 1) and summing to 1; None is uniform.
        learn_probs: whether to learn the logits of π, starting from `probs`.

    Raises:
        ConfigError: the sizes are inconsistent, or probs is invalid.

    References:
        Categorical Reparameterization with Gumbel-Softmax, Jang, Gu & Poole, 2017,
        https://arxiv.org/abs/1611.01144 (for latents of this form)

    Example:
        >>> prior = Categorical(6, 3)  # two latents of three categories
        >>> prior().enumerate_support().shape
        torch.Size([9, 6])
        >>> prior().log_prob(prior().sample()).exp()
        tensor(0.1111)
    """

    def __init__(
        self,
        latent_dim: int,
        num_categories: int | None = None,
        *,
        probs: Tensor | Sequence | None = None,
        learn_probs: bool = False,
    ):
        super().__init__()
        logits = categorical_logits(probs, block_shape(latent_dim, num_categories))
        if learn_probs:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)

    def forward(self) -> dist.Distribution:
        return OneHotVector(self.logits)

    def extra_repr(self) -> str:
        how = "learned" if self.logits.requires_grad else "fixed"
        size, k = self.logits.numel(), self.logits.shape[-1]
        return f"latent_dim={size}, num_categories={k}, probs: {how}"
