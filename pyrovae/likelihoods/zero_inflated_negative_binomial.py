"""The negative binomial likelihood with extra zeros."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae import densities
from pyrovae.heads import EventShape, split_features
from pyrovae.likelihoods.negative_binomial import NegativeBinomial
from pyrovae.likelihoods.sizes import hold_total, rates, scaled_by_size


class ZeroInflatedNegativeBinomial(nn.Module):
    """ZINB likelihood, p(x|z) = Π_j π_j [x_j = 0] + (1 − π_j) NegativeBinomial(x_j; μ_j, r_j).

    The features are the raw μ, then the logits of π, the probability of an extra zero.
    μ = size · (softplus(feature) + 1e-5) and r are as for `NegativeBinomial`; the mean of x
    is (1 − π) μ.

    Args:
        event_shape: the shape of one datum.
        concentration: r, or its initial value: a number, or a tensor of event_shape.
        learn_concentration: whether r_j = softplus + 1e-5 are parameters.
        total: the sum of the rates of a datum of size 1; the rates are then total · softmax of the
            features, so that only their shares depend on z (as in scVI). None for softplus.

    Attributes:
        num_features: twice the product of event_shape.

    Raises:
        ConfigError: concentration is not positive and finite, or has the wrong shape.

    References:
        Deep generative modeling for single-cell transcriptomics (scVI), Lopez et al., 2018,
        https://doi.org/10.1038/s41592-018-0229-2

    Example:
        >>> import torch
        >>> p_x = ZeroInflatedNegativeBinomial(3)(torch.zeros(7, 6))
        >>> p_x.mean[0]  # half of softplus(0)
        tensor([0.3466, 0.3466, 0.3466])
    """

    def __init__(
        self,
        event_shape: EventShape,
        concentration: float | Tensor = 1.0,
        learn_concentration: bool = True,
        total: float | None = None,
    ):
        super().__init__()
        self.counts = NegativeBinomial(event_shape, concentration, learn_concentration)
        self.event_shape = self.counts.event_shape
        self.num_features = 2 * self.event_shape.numel()
        hold_total(self, total)

    @property
    def concentration(self) -> Tensor:
        """r, of shape event_shape."""
        return self.counts.concentration

    def forward(self, features: Tensor, size: Tensor | None = None) -> dist.Distribution:
        raw, gate_logits = split_features(features, self.event_shape, 2)
        event_dim = len(self.event_shape)
        rate = scaled_by_size(rates(self, raw), size, event_dim)
        p_x = densities.ZeroInflatedNegativeBinomial(rate, self.concentration, gate_logits)
        return p_x.to_event(event_dim)
