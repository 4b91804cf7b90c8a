"""Rates of counts: from features, and times the size of each datum."""

import torch
from torch import Tensor, nn

from pyrovae.checks import real_number
from pyrovae.errors import DataError
from pyrovae.heads import positive


def hold_total(head: nn.Module, total: float | None) -> None:
    """Add the total rate of a datum of size 1 to a head; None adds none."""
    value = None if total is None else torch.tensor(real_number(total, "total", above=0))
    head.register_buffer("total", value)


def shares_at(x: Tensor) -> Tensor:
    """Return features whose softmax is the share of each mean in the total, from data (N, *event).

    A mean of 0 would need an infinite feature: it becomes 0.1 % of the mean over all cells.
    """
    mean = x.nanmean(0).flatten()
    return mean.clamp(min=1e-3 * mean.mean()).log()


def rates(head: nn.Module, raw: Tensor) -> Tensor:
    """Return rates of raw features (*S, B, *event): softplus, or total · softmax over the event."""
    if head.total is None:
        return positive(raw)
    return head.total * raw.flatten(-len(head.event_shape)).softmax(-1).reshape(raw.shape)


def size_of_each(size: Tensor, like: Tensor) -> Tensor:
    """Return sizes (B,) or (B, 1) as (B,), with the dtype and device of `like`."""
    if size.dim() != 1 and size.shape[1:] != (1,):
        raise DataError(
            f"y has shape {tuple(size.shape)}, but a count likelihood takes one size per datum, "
            "(B,) or (B, 1).\nPass one number per row; a custom decoder can use more covariates."
        )
    return size.reshape(-1).to(like)


def scaled_by_size(rate: Tensor, size: Tensor | None, event_dim: int) -> Tensor:
    """Multiply rate (*S, B, *event) by the size of each datum; None means 1."""
    if size is None:
        return rate
    return rate * size_of_each(size, rate)[(..., *[None] * event_dim)]
