"""A source of batches: what every container becomes, and what training and methods rely on.

    epoch(shuffle)   one pass of training, in an order drawn from the global generator
    read(rows)       one pass in the data's own order, in chunks of exactly that many rows
    take(index)      some rows by number

Sources know nothing of programs. They hold arrays as the caller has them, until `accept` shows
them to a validator: it checks every value once, and casts each batch from then on.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from pyrovae.data.batch import ALL, Batch, Labels, concat


class Validator(Protocol):
    """What a source asks of whoever knows the program: `contract.Validator`."""

    def begin(self, batch: Batch) -> None:
        """Check the shapes of all columns, and learn from the first rows what is required."""

    def check(self, batch: Batch, *, first_row: int = 0) -> None:
        """Raise DataError unless every observed value is allowed; places count from first_row."""

    def cast(self, batch: Batch) -> Batch:
        """Return the rows as the program takes them."""

    def end(self) -> None:
        """Check what is checked only after all values were."""

    def one_of_many(self, batch: Batch) -> Batch:
        """Check and cast a batch whose siblings were not seen yet."""

    def key(self, batch: Batch) -> Any:
        """Return what the outcome of `check` depends on beside the values; None if unknown."""

    def allows_stored(self, values: Any, *, has_y: bool) -> bool:
        """Return whether these values, wherever they lie in x, are allowed."""


class Source:
    """Data in some container.

    Attributes:
        num_data: N, the number of data in one epoch; None for a stream of unknown length until
            its first epoch has ended.
        num_batches: batches in one epoch; None where N is, or where a loader does not say.
        batch_size: B, the largest number of data in a batch.
        preloaded: all of the data as one batch, where they are in memory as tensors; else None.
        labels: names of rows and columns.
    """

    num_data: int | None = None
    num_batches: int | None = None
    batch_size: int
    preloaded: Batch | None = None
    labels = Labels()

    @classmethod
    def takes(cls, x: Any) -> bool:
        """Return whether x is a container of this kind."""
        raise NotImplementedError

    def accept(self, validator: Validator) -> None:
        """Let a validator see all of the data, and cast what is given from now on.

        Raises:
            DataError: the data do not fit the program.
        """
        raise NotImplementedError

    def watch(self, validator: Validator) -> None:
        """Let a validator see the data at the latest as they are read; nothing is trained."""
        self.accept(validator)

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
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells these data from others: flat, JSON-able; shapes, dtypes, SHA-256."""
        raise NotImplementedError

    def read(self, rows: int) -> Iterator[Batch]:
        """Yield all data in their own order, in chunks of `rows` rows; the last may be smaller."""
        held: list[Batch] = []
        size = 0
        for batch in self._in_order():
            held, size = [*held, batch], size + batch.num_data
            if size < rows:
                continue
            whole = concat(held)
            stop = size - size % rows
            for start in range(0, stop, rows):
                yield whole.rows(slice(start, start + rows))
            held, size = ([whole.rows(slice(stop, None))] if stop < size else []), size - stop
        if size:
            yield concat(held)

    def _in_order(self) -> Iterator[Batch]:
        """Yield batches of any size in the data's own order."""
        raise NotImplementedError

    def count(self) -> int:
        """Return N, by a pass over the data where no length is declared."""
        if self.num_data is None:
            self.num_data = sum(batch.num_data for batch in self._in_order())
        return self.num_data

    def head(self, rows: int = 1) -> Batch:
        """Return the first rows."""
        return next(iter(self.read(rows)))

    def take(self, index: Tensor) -> Batch:
        """Return the rows that a tensor of whole numbers names, in its order."""
        ordered, place = index.cpu().unique(return_inverse=True)
        found, start = [], 0
        for batch in self._in_order():
            here = ordered[(ordered >= start) & (ordered < start + batch.num_data)] - start
            if len(here):
                found.append(batch.rows(here))
            start += batch.num_data
        return concat(found).rows(place)

    def whole(self) -> Batch:
        """Return all rows as one batch in memory."""
        return self.preloaded or concat(list(self._in_order()))

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self.head().x.device
