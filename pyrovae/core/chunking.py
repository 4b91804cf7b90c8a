"""How much is computed at a time: chunks of draws and data sized from a byte budget.

A draw for one datum costs c bytes, the outputs of all operations of decoder and densities
together. That is measured on one datum, because no formula knows what a user's network
keeps; it bounds what is alive at any moment from above. Then budget / c pairs of a draw and
a datum fit at once:

    chunk of draws  ≤ min(K, budget / c),     rows of data ≤ budget / (c · chunk of draws)

Many draws of few data rather than the reverse: the encoder is cheap, and what is kept per
datum (the largest weights) is merged once per chunk.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from pyrovae.checks import whole_number
from pyrovae.data import Batch
from pyrovae.runtime.memory import bytes_of

CPU_BUDGET = 2**24  # bytes; more is not faster
GPU_BUDGET = 2**30


class Chunk(NamedTuple):
    """What is computed at once.

    Attributes:
        draws: how many draws of each datum.
        rows: of how many data.
    """

    draws: int
    rows: int


def bytes_per_draw(draw: Callable[[int], Any]) -> int:
    """What one more draw costs: the difference between three draws and two, at least 1.

    Example:
        >>> bytes_per_draw(lambda n: torch.zeros(n, 5) + torch.ones(1))
        40
    """
    return max(1, bytes_of(lambda: draw(3)) - bytes_of(lambda: draw(2)))


def budget_in_bytes(memory_budget: int | None, device: torch.device) -> int:
    """The budget as given, or for None the default: 16 MiB on a CPU, 1 GiB elsewhere.

    Raises:
        ConfigError: it is not a whole number ≥ 1.

    Example:
        >>> budget_in_bytes(None, torch.device("cpu"))
        16777216
    """
    if memory_budget is None:
        return CPU_BUDGET if device.type == "cpu" else GPU_BUDGET
    return whole_number(memory_budget, "memory_budget", 1)


def chunk_of(num_draws: int, num_data: int, cost: int, budget: int, *, what: str) -> Chunk:
    """How many draws of how many data fit into the budget.

    A default budget is what is fast, not what there is: one draw of one datum is taken all the
    same where it needs more.

    Args:
        num_draws: K.
        num_data: N.
        cost: c, bytes for one draw of one datum.
        budget: bytes.
        what: the kind of draws, for the error.

    Raises:
        MemoryError: not even one draw of one datum fits into a budget of the caller's own.

    Example:
        >>> chunk_of(5000, 100, 1000, 10**6, what="draws")
        Chunk(draws=1000, rows=1)
        >>> chunk_of(50, 100, 1000, 10**6, what="draws")
        Chunk(draws=50, rows=20)
        >>> chunk_of(50, 100, 2 * CPU_BUDGET, CPU_BUDGET, what="draws")
        Chunk(draws=1, rows=1)
    """
    pairs = budget // cost or int(budget in (CPU_BUDGET, GPU_BUDGET))
    if not pairs:
        raise MemoryError(
            f"K = {num_draws:,} {what} for each of {num_data:,} data: even a chunk of 1 draw of 1 "
            f"datum takes {cost:,} bytes, but memory_budget is {budget:,}.\n"
            f"Write memory_budget={2 ** cost.bit_length()} or more."
        )
    draws = math.ceil(num_draws / math.ceil(num_draws / pairs))  # equal chunks, no small last one
    return Chunk(draws, max(1, min(num_data, pairs // draws)))


def row_batches(batch: Batch, rows: int) -> Iterator[Batch]:
    """The batch in pieces of so many rows."""
    for start in range(0, len(batch.x), rows):
        yield Batch(*(None if t is None else t[start : start + rows] for t in batch))


def first_row(batch: Batch) -> Batch:
    """The first datum as a batch of one."""
    return next(row_batches(batch, 1))
