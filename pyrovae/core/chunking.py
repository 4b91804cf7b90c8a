"""Chunks of draws and data within a byte budget.

One draw for one datum costs c bytes: the outputs of all operations of decoder and densities. The
cost is measured on one datum, since no formula covers custom networks, and is an upper bound on
the memory in use. Then budget / c pairs of a draw and a datum fit at once:

    chunk of draws  ≤ min(K, budget / c),     rows of data ≤ budget / (c · chunk of draws)

Chunks hold many draws of few data rather than the reverse: the encoder is cheap, and the results
of a datum (its largest weights) are merged once per chunk.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch

from pyrovae.checks import whole_number
from pyrovae.data import Batch, Source
from pyrovae.runtime.memory import bytes_of
from pyrovae.runtime.random_stream import RandomStream

CPU_BUDGET = 2**24  # bytes; more is not faster
GPU_BUDGET = 2**30


class Chunk(NamedTuple):
    """Size of a chunk that is computed at once.

    Attributes:
        draws: number of draws per datum.
        rows: number of data.
    """

    draws: int
    rows: int


def bytes_per_draw(draw: Callable[[int], Any]) -> int:
    """Return the bytes of one more draw: the difference between three draws and two, at least 1.

    Example:
        >>> bytes_per_draw(lambda n: torch.zeros(n, 5) + torch.ones(1))
        40
    """
    return max(1, bytes_of(lambda: draw(3)) - bytes_of(lambda: draw(2)))


class Budget(NamedTuple):
    """Byte budget of one chunk.

    Attributes:
        num_bytes: the memory that a chunk should not exceed.
        is_limit: whether the caller set it; if so, even a single draw of one datum must fit. The
            default is chosen for speed and is not a limit.
    """

    num_bytes: int
    is_limit: bool


def budget_of(memory_budget: int | None, device: torch.device) -> Budget:
    """Return the caller's budget, or for None the default: 16 MiB on a CPU, 1 GiB elsewhere.

    Raises:
        ConfigError: memory_budget is not a whole number ≥ 1.

    Example:
        >>> budget_of(None, torch.device("cpu")).num_bytes
        16777216
    """
    if memory_budget is None:
        return Budget(CPU_BUDGET if device.type == "cpu" else GPU_BUDGET, False)
    return Budget(whole_number(memory_budget, "memory_budget", 1), True)


def chunk_of(num_draws: int, num_data: int, cost: int, budget: Budget, *, what: str) -> Chunk:
    """Return the numbers of draws and data that fit into the budget.

    Args:
        num_draws: K.
        num_data: N.
        cost: c, bytes for one draw of one datum.
        budget: for one chunk.
        what: the kind of draws, for the error.

    Raises:
        MemoryError: not even one draw of one datum fits into a budget that the caller set.

    Example:
        >>> chunk_of(5000, 100, 1000, Budget(10**6, True), what="draws")
        Chunk(draws=1000, rows=1)
        >>> chunk_of(50, 100, 1000, Budget(10**6, True), what="draws")
        Chunk(draws=50, rows=20)
        >>> chunk_of(50, 100, 2 * CPU_BUDGET, Budget(CPU_BUDGET, False), what="draws")
        Chunk(draws=1, rows=1)
    """
    pairs = budget.num_bytes // cost or int(not budget.is_limit)
    if not pairs:
        raise MemoryError(
            f"K = {num_draws:,} {what} for each of {num_data:,} data: even a chunk of 1 draw of 1 "
            f"datum takes {cost:,} bytes, but memory_budget is {budget.num_bytes:,}.\n"
            f"Write memory_budget={2 ** cost.bit_length()} or more."
        )
    draws = math.ceil(num_draws / math.ceil(num_draws / pairs))  # equal chunks, no small last one
    return Chunk(draws, max(1, min(num_data, pairs // draws)))


def chunked(
    data: Source | Batch,
    num_draws: int,
    draw: Callable[[Batch], Callable[[int], Any]],
    *,
    memory_budget: int | None,
    what: str = "draws",
    factor: int = 1,
    is_apart: bool = False,
    at_once: bool = True,
) -> Iterator[tuple[Batch, list[int]]]:
    """Yield the data in chunks of rows, each with the numbers of draws to make at a time.

    Args:
        data: validated.
        num_draws: K, per datum.
        draw: rows → (n → n draws for these rows); its cost is measured on the first row.
        memory_budget: bytes for one chunk, or None.
        what: the kind of draws, for the error.
        factor: cost of one draw, as a multiple of the bytes that `draw` allocates.
        is_apart: whether the measurement uses a separate random stream, so that it does not
            change the draws.
        at_once: whether `draw` takes more than one draw at a time.

    Yields:
        (rows, [s₁, s₂, …]) with Σ s = K.

    Raises:
        MemoryError: one draw of one datum does not fit a budget that the caller set.
    """
    budget = budget_of(memory_budget, data.device)
    with RandomStream(0) if is_apart else nullcontext():
        one = draw(data.head())
        cost = factor * (bytes_per_draw(one) if at_once else max(1, bytes_of(lambda: one(1))))
    chunk = chunk_of(num_draws, data.count(), cost, budget, what=what)
    for rows in data.read(chunk.rows):
        yield rows, sizes(num_draws, chunk.draws if at_once else 1)


def sizes(total: int, largest: int) -> list[int]:
    """Split `total` into chunks of at most `largest`.

    Example:
        >>> sizes(10, 4)
        [4, 4, 2]
    """
    return [min(largest, total - start) for start in range(0, total, largest)]
