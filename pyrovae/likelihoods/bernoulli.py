"""The Bernoulli likelihood of binary data."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.heads import EventShape, as_event_shape, split_features


class Bernoulli(nn.Module):
    """Bernoulli likelihood of x_j in {0, 1}, p(x|z) = Π_j Bernoulli(x_j; sigmoid(l_j)).

    The features are the logits l. −log p(x|z) = Σ_j log(1 + exp(l_j)) − x_j l_j is the binary
    cross-entropy.

    Args:
        event_shape: the shape of one datum, such as 784 or (28, 28).

    Attributes:
        num_features: the product of event_shape.

    Raises:
        ConfigError: a size is not a whole number ≥ 1, or the features have the wrong width.

    Example:
        >>> import torch
        >>> head = Bernoulli((28, 28))
        >>> p_x = head(torch.zeros(7, head.num_features))
        >>> p_x.batch_shape, p_x.event_shape
        (torch.Size([7]), torch.Size([28, 28]))
    """

    def __init__(self, event_shape: EventShape):
        super().__init__()
        self.event_shape = as_event_shape(event_shape)
        self.num_features = self.event_shape.numel()

    def forward(self, features: Tensor) -> dist.Distribution:
        (logits,) = split_features(features, self.event_shape)
        return dist.Bernoulli(logits=logits).to_event(len(self.event_shape))

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}"
