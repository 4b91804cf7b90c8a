"""Shared functions of heads: features (*S, B, F) in, parameters of a density out.

A *head* is a module features → Distribution that declares its input width as
`num_features`; guide families (`pyrovae.guides`) and likelihoods
(`pyrovae.likelihoods`) are heads. All of them follow two rules:

- `positive` maps an unconstrained real feature to a scale,
- `split_features` splits F features into parameters of one event shape each.

This file defines neither a distribution nor a base class.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyrovae.errors import ConfigError

MIN_SCALE = 1e-5
# of data: below it the square of a scale, 1e-5 of the spread, would be 0 in float32
MIN_SPREAD = 1e-15

EventShape = int | Sequence[int]  # of one datum: a length, or a shape


def positive(raw: Tensor) -> Tensor:
    """Map an unconstrained real to a positive scale: softplus(raw) + 1e-5.

    softplus grows linearly, so raw = 1e6 gives a scale of 1e6 where exp(raw) would
    overflow; the floor keeps 1 / scale² finite in float32, so raw = -1e6 gives 1e-5
    and no division by zero.

    Args:
        raw: any shape.

    Returns:
        A tensor of the shape of raw, in [1e-5, ∞).

    Example:
        >>> positive(torch.tensor([-1e6, 0.0, 1e6]))
        tensor([1.0000e-05, 6.9316e-01, 1.0000e+06])
    """
    return softplus(raw) + MIN_SCALE


def inverse_positive(scale: Tensor) -> Tensor:
    """Return the raw value that `positive` maps to `scale`; scale must exceed 1e-5.

    Args:
        scale: any shape, in (1e-5, ∞).

    Returns:
        raw with positive(raw) = scale: log(exp(s) − 1) for s = scale − 1e-5, in a form
        that does not overflow for large s.

    Example:
        >>> inverse_positive(positive(torch.tensor(3.0)))
        tensor(3.)
    """
    s = scale - MIN_SCALE
    return s + torch.log(-torch.expm1(-s))


def as_event_shape(event_shape: EventShape, *, name: str = "event_shape") -> torch.Size:
    """Check the shape of one datum (or one latent) and return it as a torch.Size.

    Args:
        event_shape: a positive whole number, or a sequence of them.
        name: the caller's name for it, for the message.

    Returns:
        The shape, at least one-dimensional.

    Raises:
        ConfigError: a size is not a whole number ≥ 1.

    Example:
        >>> as_event_shape(64), as_event_shape((28, 28))
        (torch.Size([64]), torch.Size([28, 28]))
    """
    sizes = list(event_shape) if isinstance(event_shape, tuple | list) else [event_shape]
    whole = [isinstance(n, int | np.integer) and not isinstance(n, bool) for n in sizes]
    if not sizes or not all(whole) or min(sizes) < 1:
        raise ConfigError(
            f"{name} = {event_shape!r}, but it is the size of one vector or array: a whole "
            f"number ≥ 1, or a tuple of them. Write for example {name}=2."
        )
    return torch.Size([int(n) for n in sizes])


def as_index(numbers: Sequence[int]) -> Tensor:
    """Return whole numbers as an int64 tensor.

    By way of NumPy, because `load` limits sizes, and takes lists of whole numbers for shapes.

    Example:
        >>> as_index([3, 1])
        tensor([3, 1])
    """
    return torch.from_numpy(np.array(numbers, dtype="int64"))


def as_latent_shape(latent_dim: int) -> torch.Size:
    """Return the shape (D,) of a latent vector of D numbers.

    Raises:
        ConfigError: latent_dim is not a whole number ≥ 1.

    Example:
        >>> as_latent_shape(2)
        torch.Size([2])
    """
    if isinstance(latent_dim, tuple | list):
        raise ConfigError(
            f"latent_dim = {latent_dim!r}, but z is a vector: pass its length, a whole number ≥ 1, "
            "such as latent_dim=2."
        )
    return as_event_shape(latent_dim, name="latent_dim")


def split_features(features: Tensor, event_shape: torch.Size, count: int = 1) -> list[Tensor]:
    """Split features into `count` parameters of shape `event_shape` each.

    Args:
        features: (*S, B, count · prod(event_shape)).
        event_shape: the shape of one datum.
        count: the number of parameters that the density has per element of the datum.

    Returns:
        `count` tensors (*S, B, *event_shape).

    Raises:
        ConfigError: the last dimension of features has the wrong size.

    Example:
        >>> loc, raw = split_features(torch.zeros(7, 12), torch.Size([2, 3]), 2)
        >>> loc.shape
        torch.Size([7, 2, 3])
    """
    expected = count * math.prod(event_shape)
    if features.shape[-1] != expected:
        raise ConfigError(
            f"this head needs {expected} features ({count} for each of "
            f"{tuple(event_shape)}), but the network before it returns {features.shape[-1]}.\n"
            "Set out_features=head.num_features in the network's last layer."
        )
    if features.dtype in (torch.bfloat16, torch.float16):
        features = features.float()  # densities are never computed in 16 bits
    return [part.unflatten(-1, event_shape) for part in features.chunk(count, dim=-1)]
