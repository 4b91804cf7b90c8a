"""Where bad entries are: counted over chunks, so that all of the data is looked at."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

NUMBERS_AT_A_TIME = 2**20  # bounds the memory of one pass; more than a cache holds takes longer


class Counter:
    """How many entries are bad, and where the first one is."""

    def __init__(self) -> None:
        self.count, self.first = 0, ()

    def add(self, is_bad: Tensor, start: int) -> None:
        if not is_bad.any():  # takes a fifth of the time of a sum
            return
        here = int(is_bad.sum())
        if not self.count:
            row, *rest = first_true(is_bad)
            self.first = (start + row, *rest)
        self.count += here


def chunks(x: Any, mask: Any = None) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """(first row, x, mask) over the rows of x, a tensor or `Rows`, and of a mask likewise."""
    step = max(1, NUMBERS_AT_A_TIME // max(1, math.prod(x.shape[1:])))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        yield start, x[part], None if mask is None else mask[part].bool()


def first_true(is_bad: Tensor) -> tuple[int, ...]:
    """The index of the first true entry; there must be one."""
    return tuple(
        int(i) for i in np.unravel_index(int(is_bad.flatten().byte().argmax()), is_bad.shape)
    )


def at(index: tuple[int, ...]) -> str:
    """An index as messages write it: [3, 4]."""
    return f"[{', '.join(map(str, index))}]"
