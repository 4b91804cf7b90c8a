"""Positive numbers that a head holds alongside its features, fixed or learned."""

import torch
from torch import Tensor, nn

from pyrovae.errors import ConfigError
from pyrovae.heads import MIN_SCALE, inverse_positive, positive


def hold_positive(head: nn.Module, name: str, value: float | Tensor, *, is_learned: bool) -> None:
    """Add a positive number to a head: a parameter with initial value `value`, or a buffer.

    Args:
        head: the module, with `event_shape` set.
        name: the name in the state and in messages.
        value: a number, or a tensor of event_shape; finite and above 1e-5.
        is_learned: a parameter raw with value = softplus(raw) + 1e-5, or a fixed buffer.

    Raises:
        ConfigError: the value is not positive and finite, or has the wrong shape.

    Example:
        >>> head = nn.Module()
        >>> head.event_shape = torch.Size([3])
        >>> hold_positive(head, "scale", 0.5, is_learned=True)
        >>> held_positive(head, "scale")
        tensor(0.5000, grad_fn=<AddBackward0>)
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


def is_learned_per_cell(head: nn.Module, name: str) -> bool:
    """Return whether each element of x has its own number and these are trained.

    Example:
        >>> head = nn.Module()
        >>> head.event_shape = torch.Size([3])
        >>> hold_positive(head, "scale", torch.ones(3), is_learned=True)
        >>> is_learned_per_cell(head, "scale")
        True
    """
    raw = getattr(head, f"raw_{name}", None)
    return raw is not None and raw.requires_grad and raw.numel() == head.event_shape.numel()


def how_held(head: nn.Module, name: str) -> str:
    """Describe it for `extra_repr`: whether it is learned, and its shape."""
    how = "learned" if hasattr(head, f"raw_{name}") else "fixed"
    return f"{name}: {how}, {tuple(held_positive(head, name).shape)}"
