"""Categorical distribution over float values, with a mean."""

import pyro.distributions as dist
import torch
from torch import Tensor


class Categorical(dist.Categorical):
    """Categorical, p(x = k) = softmax(logits)_k for k = 0 … K − 1; values and draws are floats.

    Args:
        logits: (*batch, K).

    Example:
        >>> p = Categorical(logits=torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
        >>> p.log_prob(torch.tensor([0.0, 1.0])), p.mean
        (tensor([-0.6931, -0.1269]), tensor([0.5000, 0.8808]))
    """

    @property
    def mean(self) -> Tensor:
        """Σ_k k p_k, in [0, K − 1]; meaningful if the categories are ordered."""
        return self.probs @ torch.arange(
            self.probs.shape[-1], dtype=self.probs.dtype, device=self.probs.device
        )

    def sample(self, sample_shape=()) -> Tensor:
        return super().sample(sample_shape).to(self.logits.dtype)
