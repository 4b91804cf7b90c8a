"""The multinomial likelihood of word or rating counts."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae import densities
from pyrovae.checks import whole_number
from pyrovae.errors import ConfigError
from pyrovae.heads import EventShape, as_event_shape, split_features
from pyrovae.likelihoods.sizes import size_of_each


class Multinomial(nn.Module):
    """Multinomial likelihood, p(x|z, n) = n! / Π_j x_j! · Π_j π_jˣʲ, for Σ_j x_j = n.

    π = softmax(features). The total n, the number of words or ratings per datum, is not
    modeled: it is the y of `CountDecoder`, or one fixed number. Without either it is the sum
    of x, so data can be scored, but neither drawn nor reconstructed. The density does not
    factorize over j, so it takes no `mask`.

    Args:
        event_shape: V, the number of words.
        total: n, if shared by all data.

    Attributes:
        num_features: V.

    Raises:
        ConfigError: event_shape is not one-dimensional, total is not a whole number ≥ 1, or a
            draw or a mean is requested without a total.

    References:
        Variational Autoencoders for Collaborative Filtering, Liang et al., 2018,
        https://arxiv.org/abs/1802.05814

    Example:
        >>> p_x = Multinomial(3)(torch.zeros(2, 3), torch.tensor([4, 60]))
        >>> p_x.sample().sum(-1), p_x.mean[1]
        (tensor([ 4., 60.]), tensor([20., 20., 20.]))
    """

    def __init__(self, event_shape: EventShape, total: int | None = None):
        super().__init__()
        self.event_shape = as_event_shape(event_shape)
        if len(self.event_shape) > 1:
            raise ConfigError(
                f"Multinomial: event_shape = {tuple(self.event_shape)}, but the categories that "
                "share one total form a vector.\n"
                f"Flatten each datum and write event_shape={self.event_shape.numel()}."
            )
        self.num_features = self.event_shape.numel()
        total = None if total is None else torch.tensor(float(whole_number(total, "total", 1)))
        self.register_buffer("total", total)

    def forward(self, features: Tensor, size: Tensor | None = None) -> dist.Distribution:
        (logits,) = split_features(features, self.event_shape)
        total = self.total if size is None else size_of_each(size, logits)
        return densities.Multinomial(logits, total)

    def extra_repr(self) -> str:
        total = "of each datum" if self.total is None else int(self.total)
        return f"event_shape={tuple(self.event_shape)}, total: {total}"
