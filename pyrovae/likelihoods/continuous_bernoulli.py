"""The continuous Bernoulli likelihood of data in [0, 1]."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae import densities
from pyrovae.heads import EventShape, as_event_shape, split_features


class ContinuousBernoulli(nn.Module):
    """Continuous Bernoulli, p(x|z) = Π_j exp(l_j x_j) · l_j / (exp(l_j) − 1) for x_j in [0, 1].

    The features are the logits l. It normalizes the binary cross-entropy of gray values; its
    mean is 1/(1 − exp(−l)) − 1/l, not sigmoid(l).

    Args:
        event_shape: the shape of one datum, such as 784 or (28, 28).

    Attributes:
        num_features: the product of event_shape.

    Raises:
        ConfigError: a size is not a whole number ≥ 1, or the features have the wrong width.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders,
        Loaiza-Ganem & Cunningham, 2019, https://arxiv.org/abs/1907.06845

    Example:
        >>> import torch
        >>> p_x = ContinuousBernoulli(2)(torch.tensor([[0.0, 30.0]]))
        >>> p_x.mean, p_x.log_prob(torch.tensor([0.3, 1.0]))  # uniform, and log 30
        (tensor([[0.5000, 0.9667]]), tensor([3.4012]))
    """

    def __init__(self, event_shape: EventShape):
        super().__init__()
        self.event_shape = as_event_shape(event_shape)
        self.num_features = self.event_shape.numel()

    def forward(self, features: Tensor) -> dist.Distribution:
        (logits,) = split_features(features, self.event_shape)
        return densities.ContinuousBernoulli(logits).to_event(len(self.event_shape))

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}"
