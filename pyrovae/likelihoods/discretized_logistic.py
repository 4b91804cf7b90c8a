"""The discretized logistic likelihood of gray values."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae import densities
from pyrovae.checks import whole_number
from pyrovae.heads import EventShape, as_event_shape, positive, split_features


class DiscretizedLogistic(nn.Module):
    """Discretized logistic, P(x|z) = Π_j σ(b_j) − σ(a_j) for levels x_j in {0, 1/(K − 1), …, 1}.

    a, b = (x ∓ ½/(K − 1) − loc)/scale, but a = −∞ at x = 0 and b = ∞ at x = 1. The features
    are loc, then the raw scale, scale = softplus(raw) + 1e-5, both in the units of x. P is a
    probability, so bits per pixel, −log P / (D log 2), compare with those of `Categorical`.

    x is the image scaled to [0, 1], as for `ContinuousBernoulli`: 8-bit values v become v / 255
    with K = 256; `datasets.digits()` has K = 17.

    Args:
        event_shape: the shape of one datum.
        num_levels: K ≥ 2.

    Attributes:
        num_features: twice the product of event_shape.

    Raises:
        ConfigError: a size is not a whole number, or the features have the wrong width.

    References:
        PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood,
        Salimans et al., 2017, https://arxiv.org/abs/1701.05517

    Example:
        >>> import torch
        >>> head = DiscretizedLogistic(1)
        >>> levels = torch.arange(256.0)[:, None] / 255
        >>> head(torch.zeros(1, 2)).log_prob(levels).logsumexp(0).abs() < 1e-5
        tensor(True)
    """

    def __init__(self, event_shape: EventShape, num_levels: int = 256):
        super().__init__()
        self.event_shape = as_event_shape(event_shape)
        self.num_levels = whole_number(num_levels, "num_levels", 2)
        self.num_features = 2 * self.event_shape.numel()

    def forward(self, features: Tensor) -> dist.Distribution:
        loc, raw_scale = split_features(features, self.event_shape, 2)
        p_x = densities.DiscretizedLogistic(loc, positive(raw_scale), self.num_levels)
        return p_x.to_event(len(self.event_shape))

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}, num_levels={self.num_levels}"
