"""Supports that differ between the columns of a datum, as `constraints.cat` and `stack` say.

    constraints.cat([real, positive], -1, [3, 1])    three real columns, then a positive one

A support of one number is the same for all cells. Functions here answer for both kinds: a number,
or an array that broadcasts against data (*S, N, *event).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints


class Columns(NamedTuple):
    """Supports along one dimension of a datum.

    Attributes:
        supports: one for each piece.
        lengths: the number of columns in each piece.
        dim: the dimension, negative.
    """

    supports: list[Any]
    lengths: list[int]
    dim: int

    def spread(self, values: list[Any], dtype: torch.dtype, device: Any) -> Tensor:
        """Return one value per piece as an array that broadcasts against data."""
        pieces = zip(values, self.lengths, strict=True)
        row = torch.tensor([v for v, n in pieces for _ in range(n)], dtype=dtype, device=device)
        return row.reshape(-1, *[1] * (-self.dim - 1))

    def at(self, place: tuple[int, ...]) -> Any:
        """Return the support at an index of data."""
        column = place[self.dim]
        for support, length in zip(self.supports, self.lengths, strict=True):
            if column < length:
                return support
            column -= length
        raise IndexError(column)


def columns_of(support: Any) -> Columns | None:
    """Return the supports of columns that may differ; None if all cells have the same.

    Example:
        >>> columns_of(constraints.real) is None
        True
        >>> each = constraints.cat([constraints.real, constraints.positive], -1, [3, 1])
        >>> columns_of(each).lengths
        [3, 1]
    """
    is_split = isinstance(support, constraints.cat | constraints.stack) and support.dim < 0
    if not is_split:
        return None
    supports = list(support.cseq)
    lengths = getattr(support, "lengths", None)
    return Columns(supports, [1] * len(supports) if lengths is None else list(lengths), support.dim)


def inside(support: Any, dtype: torch.dtype, device: Any = None) -> Tensor | float:
    """Return a value inside the support, where a density is finite; for each column if they differ.

    Args:
        support: of a cell, or of columns.
        dtype, device: of the array.

    Example:
        >>> inside(constraints.positive, torch.float32)
        0.5
        >>> each = constraints.cat([constraints.real, constraints.positive], -1, [2, 1])
        >>> inside(each, torch.float32)
        tensor([0.0000, 0.0000, 0.5000])
    """
    columns = columns_of(support)
    if columns:
        names = [repr(each) for each in columns.supports]
        kinds = dict(zip(names, columns.supports, strict=True))  # each once: a table has few
        value = {name: _inside(support) for name, support in kinds.items()}
        return columns.spread([value[name] for name in names], dtype, device)
    return _inside(support)


def _inside(support: Any) -> float:
    # at an edge the density may be 0 or infinite, and its gradient NaN
    candidates = (0.5,) if has_edges(support) else (0.0, 1.0, 0.5)
    return next((c for c in candidates if bool(support.check(torch.tensor(c)))), 0.0)


def has_edges(support: Any) -> bool:
    """Return whether a continuous support has edges, where the density may be 0 or infinite.

    Example:
        >>> has_edges(constraints.unit_interval), has_edges(constraints.real)
        (True, False)
    """
    columns = columns_of(support)
    if columns:
        return any(map(has_edges, columns.supports))
    edged = (constraints.unit_interval, constraints.positive, constraints.nonnegative)
    return isinstance(support, tuple(type(e) for e in edged)) and not support.is_discrete


def cells_with_edges(support: Any, device: Any = None) -> Tensor | bool:
    """Return `has_edges` of each column, as an array; a truth value if all cells have the same."""
    columns = columns_of(support)
    if columns:
        return columns.spread([has_edges(each) for each in columns.supports], torch.bool, device)
    return has_edges(support)


def whole_cells(support: Any, device: Any = None) -> Tensor | bool:
    """Return whether each column is discrete, as an array; a truth value if all are the same.

    Example:
        >>> each = constraints.cat([constraints.real, constraints.boolean], -1, [1, 1])
        >>> whole_cells(each)
        tensor([False,  True])
    """
    columns = columns_of(support)
    if columns:
        is_whole = [bool(each.is_discrete) for each in columns.supports]
        return columns.spread(is_whole, torch.bool, device)
    return bool(getattr(support, "is_discrete", False))
