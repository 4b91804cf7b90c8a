"""The Poisson likelihood of counts."""

from collections.abc import Callable

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae import densities
from pyrovae.heads import EventShape, as_event_shape, split_features
from pyrovae.likelihoods.sizes import hold_total, rates, scaled_by_size, shares_at


class Poisson(nn.Module):
    """Poisson likelihood, p(x|z) = Π_j μ_jˣ exp(−μ_j) / x_j!, for whole x_j ≥ 0.

    Mean and variance are μ = size · (softplus(feature) + 1e-5), in counts; size is the exposure
    of the datum, 1 unless passed as a covariate through `CountDecoder`.

    Args:
        event_shape: the shape of one datum.
        total: the sum of the rates of a datum of size 1; the rates are then total · softmax of the
            features, so that only their shares depend on z (as in scVI). None for softplus.

    Attributes:
        num_features: the product of event_shape.

    Raises:
        ConfigError: a size is not a whole number ≥ 1, or the features have the wrong width.

    References:
        Stable log-density: Fast and Accurate Computation of Binomial Probabilities, Loader, 2000,
        https://www.r-project.org/doc/reports/CLoader-dbinom-2002.pdf

    Example:
        >>> import torch
        >>> head = Poisson(3)
        >>> head(torch.zeros(2, 3), torch.tensor([1.0, 10.0])).mean[:, 0]
        tensor([0.6932, 6.9316])
    """

    def __init__(self, event_shape: EventShape, total: float | None = None):
        super().__init__()
        self.event_shape = as_event_shape(event_shape)
        self.num_features = self.event_shape.numel()
        hold_total(self, total)

    @property
    def start_at(self) -> Callable[[Tensor], Tensor]:
        """Data → features with their mean, where rates are shares of a total; else missing."""
        if self.total is None:  # `networks.start_at_mean` inverts softplus itself
            raise AttributeError("start_at")
        return shares_at

    def forward(self, features: Tensor, size: Tensor | None = None) -> dist.Distribution:
        (raw,) = split_features(features, self.event_shape)
        event_dim = len(self.event_shape)
        return densities.Poisson(scaled_by_size(rates(self, raw), size, event_dim)).to_event(
            event_dim
        )

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}"
