"""What a source of minibatches is: the interface that training relies on."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Batch(NamedTuple):
    """The arguments of a program: x (B, *event), y (B, …) or None, mask of x's shape or None."""

    x: Tensor
    y: Tensor | None = None
    mask: Tensor | None = None


ALL = slice(None)


def shared(batch: Batch, share: slice) -> Batch:
    """The rows of a batch that a share names.

    Example:
        >>> import torch
        >>> shared(Batch(torch.arange(5)), slice(1, None, 2)).x
        tensor([1, 3])
    """
    if share == ALL:
        return batch
    return Batch(*(None if t is None else t[share].contiguous() for t in batch))


class Batches(Protocol):
    """Data as minibatches, epoch after epoch; each datum that they give was checked before.

    Attributes:
        num_data: N, the number of data in one epoch; None for a stream of unknown length until
            its first epoch has ended.
        num_batches: minibatches in one epoch; None where N is, or where a loader does not say.
        batch_size: B, the largest number of data in a batch.
        preloaded: all of the data as one batch, where they are in memory as tensors; else None.
    """

    num_data: int | None
    num_batches: int | None
    batch_size: int
    preloaded: Batch | None

    def epoch(self, shuffle: bool, skip: int = 0, share: slice = ALL) -> Iterator[Batch]:
        """Start one pass over the data, in an order drawn from the global generator.

        The order is drawn, and the first batches are left out, when this is called, not at the
        first `next`: afterwards the caller may set the generators to another state.

        Args:
            shuffle: whether the order is random; a loader decided when it was made.
            skip: how many batches to leave out. Those that follow are, bit for bit, those
                of a pass from the same generator state that leaves none out.
            share: of the rows of each batch, in its order: only these are given, and of data in
                arrays only these are gathered. It may leave none of a small batch.

        Raises:
            DataError: while it runs, where a batch does not fit the program; at its end, where
                the data were not as many as their length or the epochs before said.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What tells these data from others: flat, JSON-able; shapes, dtypes, SHA-256."""
        ...
