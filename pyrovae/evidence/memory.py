"""How much is computed at a time: chunks of draws and data sized from a byte budget.

A draw for one datum costs c bytes, the outputs of all operations of decoder and densities
together. That is measured on one datum, because no formula knows what a user's network
keeps; it bounds what is alive at any moment from above. Then budget / c pairs of a draw and
a datum fit at once:

    chunk of draws  = min(K, budget / c),     rows of data = budget / (c · chunk of draws)

Many draws of few data rather than the reverse: the encoder is cheap, and what is kept per
datum (the largest weights) is merged once per chunk.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyrovae.batches import Batch
from pyrovae.checks import whole_number

MEMORY_BUDGET = 2**25  # bytes; larger chunks leave the cache of a CPU core and are slower


class Chunk(NamedTuple):
    """What is computed at once.

    Attributes:
        draws: how many draws of each datum.
        rows: of how many data.
    """

    draws: int
    rows: int


class _Bytes(TorchDispatchMode):
    """Adds up the bytes of what every operation gives; views count too."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        own = () if _is_view(func) else tree_leaves(result)
        self.total += sum(t.numel() * t.element_size() for t in own if isinstance(t, Tensor))
        return result


def _is_view(func: Any) -> bool:
    return any(r.alias_info is not None for r in func._schema.returns)


def bytes_of(function: Callable[[], Any]) -> int:
    """The bytes of all outputs of all torch operations that the function calls.

    Example:
        >>> bytes_of(lambda: torch.zeros(3) + 1)
        24
    """
    with _Bytes() as counter:
        function()
    return counter.total


def bytes_per_draw(draw: Callable[[int], Any]) -> int:
    """What one more draw costs: the difference between three draws and two, at least 1.

    Example:
        >>> bytes_per_draw(lambda n: torch.zeros(n, 5) + torch.ones(7))  # doctest: +SKIP
        40
    """
    return max(1, bytes_of(lambda: draw(3)) - bytes_of(lambda: draw(2)))


def chunk_of(num_draws: int, num_data: int, cost: int, budget: Any, *, what: str) -> Chunk:
    """How many draws of how many data fit into the budget.

    Args:
        num_draws: K.
        num_data: N.
        cost: c, bytes for one draw of one datum.
        budget: bytes.
        what: the kind of draws, for the error.

    Raises:
        ConfigError: the budget is not a whole number ≥ 1.
        MemoryError: not even one draw of one datum fits.

    Example:
        >>> chunk_of(5000, 100, 1000, 10**6, what="draws")
        Chunk(draws=1000, rows=1)
        >>> chunk_of(50, 100, 1000, 10**6, what="draws")
        Chunk(draws=50, rows=20)
    """
    budget = whole_number(budget, "memory_budget", 1)
    pairs = budget // cost
    if not pairs:
        raise MemoryError(
            f"K = {num_draws:,} {what} for each of {num_data:,} data: even a chunk of 1 draw of 1 "
            f"datum takes {cost:,} bytes, but memory_budget is {budget:,}.\n"
            f"Write memory_budget={2 ** cost.bit_length()} or more."
        )
    draws = min(num_draws, pairs)
    return Chunk(draws, max(1, min(num_data, pairs // draws)))


def sizes(total: int, size: int) -> Iterator[int]:
    """total cut into pieces of this size, the last one smaller.

    Example:
        >>> list(sizes(10, 4))
        [4, 4, 2]
    """
    for start in range(0, total, size):
        yield min(size, total - start)


def row_batches(batch: Batch, rows: int) -> Iterator[Batch]:
    """The batch in pieces of so many rows."""
    for start in range(0, len(batch.x), rows):
        yield Batch(*(None if t is None else t[start : start + rows] for t in batch))


def first_row(batch: Batch) -> Batch:
    """The first datum as a batch of one."""
    return next(row_batches(batch, 1))
