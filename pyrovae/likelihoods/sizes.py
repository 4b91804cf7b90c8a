"""Sizes of the data, as count likelihoods take them."""

from torch import Tensor

from pyrovae.errors import DataError


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
