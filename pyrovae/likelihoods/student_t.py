"""The Student-t likelihood: real data with outliers."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae import densities
from pyrovae.errors import ConfigError
from pyrovae.heads import MIN_SCALE, EventShape, as_event_shape, split_features
from pyrovae.likelihoods.moments import FROM_DATA, hold_units, in_units, inputs_of, unit_of
from pyrovae.likelihoods.own_positive import (
    held_positive,
    held_scale,
    hold_positive,
    hold_scale,
    how_held,
    is_learned_per_cell,
)


class StudentT(nn.Module):
    """Student-t likelihood, p(x|z) = Π_j StudentT(x_j; ν_j, μ_j, s_j); features: the centers μ.

    log p = log Γ((ν+1)/2) − log Γ(ν/2) − ½ log(πν) − log s − (ν+1)/2 log(1 + t²/ν), with
    t = (x − μ)/s. An outlier costs log t instead of t². The degrees of freedom ν > 1, so that
    the mean exists, and the scale s belong to the head; the variance is s² ν/(ν − 2), not s².

    Args:
        event_shape: the shape of one datum.
        df: ν: a number > 1, or a tensor of event_shape.
        scale: s in the units of x: a number, or a tensor of event_shape. None is 1, or if it is
            learned the spread of the data, one for each x_j.
        learn_df: whether to learn ν = 1 + softplus + 1e-5, starting from `df`.
        learn_scale: whether to learn s = softplus + 1e-5, starting from `scale`.
        center, spread: units of the features, μ = center + spread · feature, and of a learned s:
            numbers or tensors of event_shape; None is 0 and 1. `build(data=)` takes mean and
            standard deviation of the data.

    Attributes:
        num_features: the product of event_shape.

    Raises:
        ConfigError: df ≤ 1, scale ≤ 0, or one of them has the wrong shape.

    References:
        Student-t Variational Autoencoder for Robust Density Estimation, Takahashi et al., 2018,
        https://www.ijcai.org/proceedings/2018/374

    Example:
        >>> head = StudentT(3, df=5.0, learn_df=True)
        >>> p_x = head(torch.zeros(7, 3))
        >>> p_x.log_prob(torch.full((3,), 1e20)).isfinite().all()
        tensor(True)
    """

    from_data = FROM_DATA

    def __init__(
        self,
        event_shape: EventShape,
        df: float | Tensor = 4.0,
        scale: float | Tensor | None = None,
        learn_df: bool = False,
        learn_scale: bool = True,
        center: float | Tensor | None = None,
        spread: float | Tensor | None = None,
    ):
        super().__init__()
        self.event_shape = as_event_shape(event_shape)
        self.num_features = self.event_shape.numel()
        excess = torch.as_tensor(df, dtype=torch.get_default_dtype()) - 1
        if not (excess > MIN_SCALE).all():
            raise ConfigError(
                f"StudentT: df holds {excess.min().item() + 1:.3g}, but it must be above 1: at or "
                "below 1, x has no mean to reconstruct.\nWrite for example df=4.0."
            )
        hold_positive(self, "df_above_one", excess, is_learned=learn_df)
        hold_units(self, center, spread)
        hold_scale(self, scale, is_learned=learn_scale)

    @property
    def df(self) -> Tensor:
        """ν, of shape () or event_shape."""
        return 1 + held_positive(self, "df_above_one")

    @property
    def scale(self) -> Tensor:
        """s, of shape () or event_shape, in the units of x."""
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
        """Whether each x_j has its own learned s_j, which falls to 1e-5 for a constant x_j."""
        return is_learned_per_cell(self, "scale")

    def forward(self, features: Tensor) -> dist.Distribution:
        (loc,) = split_features(features, self.event_shape)
        return densities.StudentT(self.df, in_units(self, loc), self.scale).to_event(
            len(self.event_shape)
        )

    def extra_repr(self) -> str:
        df = how_held(self, "df_above_one").replace("_above_one", "")
        return f"event_shape={tuple(self.event_shape)}, {df}, {how_held(self, 'scale')}"
