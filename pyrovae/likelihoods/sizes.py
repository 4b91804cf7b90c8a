"""The size of a datum, as count likelihoods take it."""

from torch import Tensor

from pyrovae.errors import DataError


def size_of_each(size: Tensor, like: Tensor) -> Tensor:
    """Sizes (B,) or (B, 1) as (B,), in the dtype and on the device of `like`.

    Raises:
        DataError: another shape.

    Example:
        >>> import torch
        >>> size_of_each(torch.tensor([[3], [5]]), torch.zeros(1))
        tensor([3., 5.])
    """
    if size.dim() != 1 and size.shape[1:] != (1,):
        raise DataError(
            f"y has shape {tuple(size.shape)}, but a count likelihood takes one size a datum, (B,) "
            "or (B, 1).\nPass one number a row; a decoder of your own can use more covariates."
        )
    return size.reshape(-1).to(like)


def scaled_by_size(rate: Tensor, size: Tensor | None, event_dim: int) -> Tensor:
    """rate (*S, B, *event) times the size of each datum; None is 1.

    Example:
        >>> import torch
        >>> scaled_by_size(torch.ones(2, 3), torch.tensor([1, 5]), 1)
        tensor([[1., 1., 1.],
                [5., 5., 5.]])
    """
    if size is None:
        return rate
    return rate * size_of_each(size, rate)[(..., *[None] * event_dim)]
