"""The Gaussian likelihood whose scale the decoder predicts."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.heads import EventShape, as_event_shape, positive, split_features
from pyrovae.likelihoods.moments import FROM_DATA, hold_units, in_units, inputs_of, scaled, unit_of


class HeteroscedasticNormal(nn.Module):
    """Normal likelihood with predicted scale, p(x|z) = Π_j N(x_j; μ_j(z), σ_j(z)²).

    The features are μ, then the raw σ; σ = softplus(raw) + 1e-5, in the units of x, or with
    center and spread μ = center + spread · feature and σ = spread · (softplus(raw) + 1e-5). The
    floor bounds log p(x|z) by 10.6 nats per x_j of spread 1; without it a perfect reconstruction
    has no bound.

    Args:
        event_shape: the shape of one datum.
        center, spread: numbers or tensors of event_shape, in the units of x; None is 0 and 1.
            `build(data=)` takes mean and standard deviation of the data.

    Attributes:
        num_features: twice the product of event_shape.

    Raises:
        ConfigError: a size is not a whole number ≥ 1, the features have the wrong width, or
            spread ≤ 0.

    References:
        Auto-Encoding Variational Bayes (appendix C.2), Kingma & Welling, 2014,
        https://arxiv.org/abs/1312.6114

    Example:
        >>> import torch
        >>> head = HeteroscedasticNormal(3)
        >>> head.num_features, head(torch.zeros(7, 6)).base_dist.scale[0]
        (6, tensor([0.6932, 0.6932, 0.6932]))
    """

    from_data = FROM_DATA

    def __init__(
        self,
        event_shape: EventShape,
        center: float | Tensor | None = None,
        spread: float | Tensor | None = None,
    ):
        super().__init__()
        self.event_shape = as_event_shape(event_shape)
        self.num_features = 2 * self.event_shape.numel()
        hold_units(self, center, spread)

    @property
    def unit(self) -> Tensor:
        """The spread of each x_j that the features are written for, of event_shape."""
        return unit_of(self)

    @property
    def inputs(self) -> str | None:
        """What an encoder should see of x (`networks.Inputs`)."""
        return inputs_of(self)

    @property
    def learns_scale_per_cell(self) -> bool:
        """True: each x_j has its own σ_j(z), which falls to 1e-5 for a constant x_j."""
        return True

    def forward(self, features: Tensor) -> dist.Distribution:
        loc, raw_scale = split_features(features, self.event_shape, 2)
        return dist.Normal(in_units(self, loc), scaled(self, positive(raw_scale))).to_event(
            len(self.event_shape)
        )

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}"
