"""The categorical likelihood of K levels or classes per element."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae import densities
from pyrovae.checks import whole_number
from pyrovae.heads import EventShape, as_event_shape, split_features


class Categorical(nn.Module):
    """Categorical likelihood of x_j in {0, …, K − 1}, p(x|z) = Π_j softmax(l_j)_{x_j}.

    The features are the logits l. x holds category numbers, not one-hot vectors. The mean
    Σ_k k p_k is useful if the categories are ordered, such as quantized gray values.

    Args:
        event_shape: the shape of one datum.
        num_categories: K ≥ 2, for each x_j.

    Attributes:
        num_features: K times the product of event_shape, the categories first, as channels.

    Raises:
        ConfigError: a size is not a whole number, or the features have the wrong width.

    References:
        Pixel Recurrent Neural Networks, van den Oord et al., 2016,
        https://arxiv.org/abs/1601.06759

    Example:
        >>> head = Categorical((2, 3), num_categories=4)
        >>> p_x = head(torch.zeros(7, head.num_features))
        >>> p_x.event_shape, p_x.mean[0, 0]
        (torch.Size([2, 3]), tensor([1.5000, 1.5000, 1.5000]))
    """

    def __init__(self, event_shape: EventShape, num_categories: int):
        super().__init__()
        self.event_shape = as_event_shape(event_shape)
        self.num_categories = whole_number(num_categories, "num_categories", 2)
        self.num_features = self.event_shape.numel() * self.num_categories

    def forward(self, features: Tensor) -> dist.Distribution:
        # categories first, as channels, so that a convolutional decoder's pixels stay neighbors
        logits = torch.stack(split_features(features, self.event_shape, self.num_categories), -1)
        return densities.Categorical(logits=logits).to_event(len(self.event_shape))

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}, num_categories={self.num_categories}"
