"""The Gaussian likelihood whose scale does not depend on z."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.heads import EventShape, as_event_shape, split_features
from pyrovae.likelihoods.moments import FROM_DATA, hold_units, in_units, inputs_of, unit_of
from pyrovae.likelihoods.own_positive import (
    held_scale,
    hold_scale,
    how_held,
    is_learned_per_cell,
)


class Normal(nn.Module):
    """Normal likelihood, p(x|z) = Π_j N(x_j; μ_j, σ_j²); the features are the means μ.

    The scale σ belongs to the head, not to the features: one shared number, or one for
    each x_j; fixed, or learned (σ = softplus + 1e-5, so a constant column cannot drive it
    to 0). For a σ that depends on z, see `HeteroscedasticNormal`.

    Args:
        event_shape: the shape of one datum.
        scale: σ in the units of x: a number, or a tensor of event_shape. None is 1, or if it is
            learned the spread of the data, one for each x_j.
        learn_scale: whether to learn σ, starting from `scale`.
        center, spread: units of the features, μ = center + spread · feature, and of a learned σ:
            numbers or tensors of event_shape; None is 0 and 1. `build(data=)` takes mean and
            standard deviation of the data.

    Attributes:
        num_features: the product of event_shape.

    Raises:
        ConfigError: scale is not positive and finite, or has the wrong shape.

    References:
        Auto-Encoding Variational Bayes, Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114;
        a learned σ: Simple and Effective VAE Training with Calibrated Decoders, Rybkin et al.,
        2021, https://arxiv.org/abs/2006.13202

    Example:
        >>> import torch
        >>> head = Normal(3, scale=0.5, learn_scale=True)
        >>> head(torch.zeros(7, 3)).base_dist.scale[0]
        tensor([0.5000, 0.5000, 0.5000], grad_fn=<SelectBackward0>)
    """

    from_data = FROM_DATA

    def __init__(
        self,
        event_shape: EventShape,
        scale: float | Tensor | None = None,
        learn_scale: bool = False,
        center: float | Tensor | None = None,
        spread: float | Tensor | None = None,
    ):
        super().__init__()
        self.event_shape = as_event_shape(event_shape)
        self.num_features = self.event_shape.numel()
        hold_units(self, center, spread)
        hold_scale(self, scale, is_learned=learn_scale)

    @property
    def scale(self) -> Tensor:
        """σ, of shape () or event_shape, in the units of x."""
        return held_scale(self)

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
        """Whether each x_j has its own learned σ_j, which falls to 1e-5 for a constant x_j."""
        return is_learned_per_cell(self, "scale")

    def forward(self, features: Tensor) -> dist.Distribution:
        (loc,) = split_features(features, self.event_shape)
        return dist.Normal(in_units(self, loc), self.scale).to_event(len(self.event_shape))

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}, {how_held(self, 'scale')}"
