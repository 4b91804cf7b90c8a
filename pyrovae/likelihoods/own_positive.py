"""A positive number of a head's own, beside its features: fixed, or learned from a start."""

import torch
from torch import Tensor, nn

from pyrovae.errors import ConfigError
from pyrovae.heads import MIN_SCALE, inverse_positive, positive


def hold_positive(head: nn.Module, name: str, value: float | Tensor, *, is_learned: bool) -> None:
    """Give a head a positive number: a parameter that starts at `value`, or a buffer.

    Args:
        head: the module, with `event_shape` set.
        name: what the number is called, for the state and the message.
        value: a number, or a tensor of event_shape; finite and above 1e-5.
        is_learned: a parameter raw with value = softplus(raw) + 1e-5, or a fixed buffer.

    Raises:
        ConfigError: the value is not positive and finite, or has another shape.

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
            "Give one number, or one for each of these."
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
    """The number that `hold_positive` gave, of shape () or event_shape."""
    raw = getattr(head, f"raw_{name}", None)
    return getattr(head, f"fixed_{name}") if raw is None else positive(raw)


def is_learned_per_cell(head: nn.Module, name: str) -> bool:
    """Whether each number of a datum has its own, and these are trained.

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
    """A few words for `extra_repr`: whether it is learned, and its shape."""
    how = "learned" if hasattr(head, f"raw_{name}") else "fixed"
    return f"{name}: {how}, {tuple(held_positive(head, name).shape)}"
