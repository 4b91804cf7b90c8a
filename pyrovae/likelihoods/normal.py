"""The Gaussian likelihood with a scale of its own."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.errors import ConfigError
from pyrovae.heads import MIN_SCALE, as_event_shape, inverse_positive, positive, split_features


class Normal(nn.Module):
    """p(x|z) = Π_j N(x_j; μ_j, σ_j²); the features are the means μ.

    The scale σ belongs to the head, not to the features: one number for all, or one
    for each number of the datum; fixed, or learned from that start (σ = softplus + 1e-5,
    so a constant column cannot drive it to 0).

    Args:
        event_shape: the shape of one datum.
        scale: σ in the units of x: a number, or a tensor of event_shape.
        learn_scale: whether σ is a parameter that starts there.

    Attributes:
        num_features: the product of event_shape.

    Raises:
        ConfigError: scale is not positive and finite, or of another shape.

    Example:
        >>> head = Normal(3, scale=0.5, learn_scale=True)
        >>> head(torch.zeros(7, 3)).base_dist.scale[0]
        tensor([0.5000, 0.5000, 0.5000], grad_fn=<SelectBackward0>)
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        scale: float | Tensor = 1.0,
        learn_scale: bool = False,
    ):
        super().__init__()
        self.event_shape = as_event_shape(event_shape)
        self.num_features = self.event_shape.numel()
        scale = self._checked(torch.as_tensor(scale, dtype=torch.get_default_dtype()))
        self.is_scale_learned = learn_scale
        if learn_scale:
            self.raw_scale = nn.Parameter(inverse_positive(scale))
        else:
            self.register_buffer("fixed_scale", scale)

    @property
    def scale(self) -> Tensor:
        """σ, of shape () or event_shape, in the units of x."""
        return positive(self.raw_scale) if self.is_scale_learned else self.fixed_scale

    def forward(self, features: Tensor) -> dist.Distribution:
        (loc,) = split_features(features, self.event_shape)
        return dist.Normal(loc, self.scale).to_event(len(self.event_shape))

    def extra_repr(self) -> str:
        how = "learned" if self.is_scale_learned else "fixed"
        return f"event_shape={tuple(self.event_shape)}, scale: {how}, {tuple(self.scale.shape)}"

    def _checked(self, scale: Tensor) -> Tensor:
        if scale.shape not in (torch.Size(), self.event_shape):
            raise ConfigError(
                f"Normal: scale has shape {tuple(scale.shape)}, but a datum has "
                f"{tuple(self.event_shape)}. Give one number, or one for each of these."
            )
        if not ((scale > MIN_SCALE) & torch.isfinite(scale)).all():
            raise ConfigError(
                f"Normal: scale holds {scale.min().item():.3g}, but a standard deviation is "
                f"finite and above {MIN_SCALE:g}. Write for example scale=0.1."
            )
        return scale.clone()
