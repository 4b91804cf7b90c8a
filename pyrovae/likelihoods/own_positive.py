"""Positive numbers that a head holds alongside its features, fixed or learned."""

import torch
from torch import Tensor, nn

from pyrovae.errors import ConfigError
from pyrovae.heads import MIN_SCALE, inverse_positive, positive


def hold_positive(head: nn.Module, name: str, value: float | Tensor, *, is_learned: bool) -> None:
    """Add a positive number, or a tensor of event_shape, to a head.

    A learned one is a parameter raw with value = softplus(raw) + 1e-5; a fixed one is a buffer.
    """
    value = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach().clone()
    kind, event_shape = type(head).__name__, tuple(head.event_shape)
    if value.shape not in (torch.Size(), head.event_shape):
        raise ConfigError(
            f"{kind}: {name} has shape {tuple(value.shape)}, but a datum has {event_shape}.\n"
            "Pass one number, or an array of that shape."
        )
    is_bad = ~((value > MIN_SCALE) & torch.isfinite(value))
    if is_bad.any():
        raise ConfigError(
            f"{kind}: {name} holds {value[is_bad].flatten()[0].item():.3g}, but it must be finite "
            f"and above {MIN_SCALE:g}: the density divides by it.\nWrite for example {name}=1.0."
        )
    if is_learned:
        head.register_parameter(f"raw_{name}", nn.Parameter(inverse_positive(value)))
    else:
        head.register_buffer(f"fixed_{name}", value)


def held_positive(head: nn.Module, name: str) -> Tensor:
    """Return the number that `hold_positive` added, of shape () or event_shape."""
    raw = getattr(head, f"raw_{name}", None)
    return getattr(head, f"fixed_{name}") if raw is None else positive(raw)


def hold_scale(head: nn.Module, scale: float | Tensor | None, *, is_learned: bool) -> None:
    """Add a scale in the units of x to a head that has a `spread`, in whose units it is learned."""
    if scale is None:
        has_units = is_learned and head.spread is not None
        scale = torch.ones(head.event_shape) if has_units else 1.0
    elif is_learned and head.spread is not None:
        scale = torch.as_tensor(scale, dtype=torch.get_default_dtype()) / head.spread
    hold_positive(head, "scale", scale, is_learned=is_learned)


def held_scale(head: nn.Module) -> Tensor:
    """Return the scale that `hold_scale` added, in the units of x."""
    scale = held_positive(head, "scale")
    is_learned = hasattr(head, "raw_scale")
    return head.spread * scale if is_learned and head.spread is not None else scale


def is_learned_per_cell(head: nn.Module, name: str) -> bool:
    """Return whether each element of x has its own number and these are trained."""
    raw = getattr(head, f"raw_{name}", None)
    return raw is not None and raw.requires_grad and raw.numel() == head.event_shape.numel()


def how_held(head: nn.Module, name: str) -> str:
    """Describe it for `extra_repr`: whether it is learned, and its shape."""
    how = "learned" if hasattr(head, f"raw_{name}") else "fixed"
    return f"{name}: {how}, {tuple(held_positive(head, name).shape)}"
