"""Center and spread of each element of data, to write a density in standardized units.

    x = center + spread · u,    log p(x) = log p(u) − log spread

Hidden elements are NaN. A density whose location and scale are multiples of these has the same
log-density on raw data as on standardized data, up to that Jacobian.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from pyrovae.errors import ConfigError
from pyrovae.heads import MIN_SPREAD


def center_and_spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over observed data, (*event,), float64.

    Never observed elements have 0 and 1; constant ones a spread of 1, or of their size if that is
    larger.

    Args:
        x: (N, *event), NaN where hidden.

    Example:
        >>> x = torch.tensor([[1.0, 5.0], [3.0, 5.0], [torch.nan, 5.0]])
        >>> center_and_spread(x)
        (tensor([2., 5.], dtype=torch.float64), tensor([1., 5.], dtype=torch.float64))
    """
    x = x.double()
    center = x.nanmean(0).nan_to_num(0.0)
    spread = (x - center).square().nanmean(0).sqrt().nan_to_num(0.0)
    size = center.abs().clamp(min=1.0)
    # rounding of float32 is no spread
    is_spread = spread > (1e-6 * center.abs()).clamp(min=MIN_SPREAD)
    return center, torch.where(is_spread, spread, size)


def center_of(x: Tensor) -> Tensor:
    """Return the center alone."""
    return center_and_spread(x)[0].to(torch.get_default_dtype())


def spread_of(x: Tensor) -> Tensor:
    """Return the spread alone; the elements of an image share one, as they share their unit."""
    center, spread = center_and_spread(x)
    if spread.dim() > 1:
        square = (x.double() - center).square().nanmean()
        spread = torch.where(square > MIN_SPREAD**2, square.sqrt(), 1.0).expand(spread.shape)
    return spread.to(torch.get_default_dtype())


FROM_DATA: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"center": center_of, "spread": spread_of}
)


def hold_units(head: nn.Module, center: Tensor | None, spread: Tensor | None) -> None:
    """Add center and spread to a head as buffers, of event_shape; None adds none."""
    for name, value in (("center", center), ("spread", spread)):
        if value is not None:
            value = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach().clone()
            is_bad = not torch.isfinite(value).all() or (name == "spread" and not (value > 0).all())
            if value.shape not in (torch.Size(), head.event_shape) or is_bad:
                raise ConfigError(
                    f"{type(head).__name__}: {name} has shape {tuple(value.shape)} and ranges from "
                    f"{value.min():.3g} to {value.max():.3g}, but it must be finite, a spread also "
                    f"positive, and one number or of shape {tuple(head.event_shape)}."
                )
            value = value.expand(head.event_shape).clone()
        head.register_buffer(name, value)


def in_units(head: nn.Module, value: Tensor) -> Tensor:
    """Return center + spread · value."""
    value = value if head.spread is None else head.spread * value
    return value if head.center is None else head.center + value


def scaled(head: nn.Module, value: Tensor) -> Tensor:
    """Return spread · value."""
    return value if head.spread is None else head.spread * value


def unit_of(head: nn.Module) -> Tensor:
    """Return the spread of x that a head's features are written for, of event_shape."""
    return torch.ones(head.event_shape) if head.spread is None else head.spread


def inputs_of(head: nn.Module) -> str | None:
    """Return what an encoder should see: standardized data if the head standardizes them."""
    return None if head.center is None or head.spread is None else "standardized"
