"""Locations of bad entries, counted over chunks of all the data."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

NUMBERS_AT_A_TIME = 2**20  # bounds the memory of a pass; chunks beyond the cache are slower


class Counter:
    """Number of bad entries and index of the first."""

    def __init__(self) -> None:
        self.count, self.first = 0, ()

    def add(self, is_bad: Tensor, start: int) -> None:
        if not is_bad.any():  # five times faster than a sum
            return
        here = int(is_bad.sum())
        if not self.count:
            row, *rest = first_true(is_bad)
            self.first = (start + row, *rest)
        self.count += here


def chunks(x: Any, mask: Any = None) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Iterate over (first row, x, mask) for chunks of x, a tensor or `Rows`, and of a mask."""
    step = max(1, NUMBERS_AT_A_TIME // max(1, math.prod(x.shape[1:])))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        yield start, x[part], None if mask is None else mask[part].bool()


def first_true(is_bad: Tensor) -> tuple[int, ...]:
    """Return the index of the first true entry; there must be one."""
    return tuple(
        int(i) for i in np.unravel_index(int(is_bad.flatten().byte().argmax()), is_bad.shape)
    )


def at(index: tuple[int, ...]) -> str:
    """Format an index for messages: [3, 4]."""
    return f"[{', '.join(map(str, index))}]"
