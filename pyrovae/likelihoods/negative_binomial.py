"""The negative binomial likelihood of overdispersed counts."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae import densities
from pyrovae.heads import EventShape, as_event_shape, split_features
from pyrovae.likelihoods.own_positive import held_positive, hold_positive, how_held
from pyrovae.likelihoods.sizes import hold_total, rates, scaled_by_size, shares_at


class NegativeBinomial(nn.Module):
    """Negative binomial, p(x|z) = Π_j Γ(x + r)/(Γ(r) x!) (r/(r + μ))ʳ (μ/(r + μ))ˣ, whole x_j ≥ 0.

    The mean is μ and the variance μ + μ²/r: a Poisson whose rate varies with relative
    variance 1/r, and the Poisson itself for r → ∞. μ = size · (softplus(feature) + 1e-5), in
    counts; the concentration r belongs to the head, one r_j for each x_j.

    Args:
        event_shape: the shape of one datum.
        concentration: r, or its initial value: a number, or a tensor of event_shape.
        learn_concentration: whether r_j = softplus + 1e-5 are parameters.
        total: the sum of the rates of a datum of size 1; the rates are then total · softmax of the
            features, so that only their shares depend on z (as in scVI). None for softplus.

    Attributes:
        num_features: the product of event_shape.

    Raises:
        ConfigError: concentration is not positive and finite, or has the wrong shape.

    References:
        Deep generative modeling for single-cell transcriptomics (scVI), Lopez et al., 2018,
        https://doi.org/10.1038/s41592-018-0229-2, where r is the inverse dispersion.

    Example:
        >>> p_x = NegativeBinomial(3)(torch.zeros(2, 3), size=torch.tensor([1, 10]))
        >>> p_x.mean[:, 0]
        tensor([0.6932, 6.9316])
    """

    def __init__(
        self,
        event_shape: EventShape,
        concentration: float | Tensor = 1.0,
        learn_concentration: bool = True,
        total: float | None = None,
    ):
        super().__init__()
        self.event_shape = as_event_shape(event_shape)
        self.num_features = self.event_shape.numel()
        hold_total(self, total)
        start = torch.as_tensor(concentration, dtype=torch.get_default_dtype())
        start = start.expand(self.event_shape) if start.dim() == 0 else start
        hold_positive(self, "concentration", start, is_learned=learn_concentration)

    @property
    def concentration(self) -> Tensor:
        """r, of shape event_shape."""
        return held_positive(self, "concentration")

    @property
    def start_at(self) -> Callable[[Tensor], Tensor]:
        """Data → features with their mean, where rates are shares of a total; else missing."""
        if self.total is None:  # `networks.start_at_mean` inverts softplus itself
            raise AttributeError("start_at")
        return shares_at

    def forward(self, features: Tensor, size: Tensor | None = None) -> dist.Distribution:
        (raw,) = split_features(features, self.event_shape)
        event_dim = len(self.event_shape)
        rate = scaled_by_size(rates(self, raw), size, event_dim)
        return densities.NegativeBinomial(rate, self.concentration).to_event(event_dim)

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}, {how_held(self, 'concentration')}"
