"""Flattening of leading sample dimensions, so that any torch layer works on (*S, B, *event).

Vectorized particles and enumeration add dimensions in front of the batch; convolutions take
exactly one. `FlattenBatch` flattens and restores them.
"""

import math

from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.errors import ConfigError


class FlattenBatch(nn.Module):
    """Wrapper that applies a module of (B, *event) to (*S, B, *event).

    y = unfold(module(fold(x))), with fold: (*S, B, *event) → (∏S · B, *event).

    Args:
        module: maps (B, *event) to (B, *out), row by row.
        event_dims: the number of dimensions of an event; 3 for (C, H, W).

    Raises:
        ConfigError: event_dims is not a whole number ≥ 1, or x has fewer dimensions.

    Example:
        >>> import torch
        >>> layer = FlattenBatch(nn.Conv2d(1, 4, 3), event_dims=3)
        >>> layer(torch.zeros(5, 7, 1, 8, 8)).shape
        torch.Size([5, 7, 4, 6, 6])
    """

    def __init__(self, module: nn.Module, *, event_dims: int):
        super().__init__()
        self.module = module
        self.event_dims = whole_number(event_dims, "event_dims", 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < self.event_dims:
            raise ConfigError(
                f"this network takes events of {self.event_dims} dimensions, but its input has "
                f"shape {tuple(x.shape)}.\nPass it (*S, B, *event)."
            )
        batch, event = x.shape[: -self.event_dims], x.shape[-self.event_dims :]
        out = self.module(x.reshape(math.prod(batch), *event))  # torch.export keeps B free
        return out.reshape(*batch, *out.shape[1:])

    def extra_repr(self) -> str:
        return f"event_dims={self.event_dims}"
