"""`Source`, the interface of all containers for training and methods.

    epoch(shuffle)   one pass of training, in an order drawn from the global generator
    read(rows)       one pass in the data's own order, in chunks of exactly that many rows
    take(index)      the rows with given indices

Sources do not depend on programs. They hold the caller's arrays until `accept` passes them to a
validator, which checks every value once and casts each batch from then on.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from pyrovae.data.batch import ALL, Batch, Labels, concat


class Validator(Protocol):
    """The checks that a source calls; implemented by `contract.Validator`."""

    def begin(self, batch: Batch) -> None:
        """Check the shapes of all columns, and inspect the program on the first rows."""

    def check(self, batch: Batch, *, first_row: int = 0) -> None:
        """Raise DataError unless every observed value is allowed; row 0 is shown as first_row."""

    def cast(self, batch: Batch) -> Batch:
        """Return the rows in the dtype and on the device of the program."""

    def end(self) -> None:
        """Run the checks that follow those of all values."""

    def one_of_many(self, batch: Batch) -> Batch:
        """Check and cast one batch of a loader."""

    def key(self, batch: Batch) -> Any:
        """Return a key of all that `check` depends on besides the values; None if unknown."""

    def allows_stored(self, values: Any, *, has_y: bool) -> bool:
        """Return whether these values are allowed in every cell of x."""


class Source:
    """Data in a container.

    Attributes:
        num_data: N, the number of data in one epoch; None for a stream of unknown length until
            its first epoch has ended.
        num_batches: the number of batches in an epoch; None if N is, or if a loader has no length.
        batch_size: B, the largest number of data in a batch.
        smallest_batch: the smallest number of data in a batch; None if unknown.
        preloaded: all data as one batch if they are tensors in memory; else None.
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
        """Check all data with a validator, and cast batches from then on.

        Raises:
            DataError: the data do not fit the program.
        """
        raise NotImplementedError

    def watch(self, validator: Validator) -> None:
        """Check the data with a validator, at the latest when they are read."""
        self.accept(validator)

    def epoch(self, shuffle: bool, skip: int = 0, share: slice = ALL) -> Iterator[Batch]:
        """Start one pass over the data, in an order drawn from the global generator.

        The order is drawn and the first batches are skipped when this is called, not at the first
        `next`: afterwards the caller may change the state of the generators.

        Args:
            shuffle: whether the order is random; ignored by a loader, which has its own order.
            skip: number of batches to skip. The others are, bit for bit, those of a pass from the
                same generator state that skips none.
            share: the rows of each batch to yield, possibly none of a small batch; arrays gather
                only these.

        Raises:
            DataError: during the pass, a batch does not fit the program; at its end, the number of
                data differs from the declared length or from earlier epochs.
        """
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        """Return a flat JSON-serializable record: shapes, dtypes, SHA-256."""
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
        """Return N, counted by a pass over the data if no length is declared."""
        if self.num_data is None:
            self.num_data = sum(batch.num_data for batch in self._in_order())
        return self.num_data

    def head(self, rows: int = 1) -> Batch:
        """Return the first rows."""
        return next(iter(self.read(rows)))

    def take(self, index: Tensor) -> Batch:
        """Return the rows with these indices, in the given order."""
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
    def smallest_batch(self) -> int | None:
        return None if self.num_data is None else self.num_data % self.batch_size or self.batch_size

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.head().device
