"""Arrays and data frames in memory; a batch is one gather per column."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from pyrovae.checks import as_labels, as_tensor
from pyrovae.data.batch import ALL, Batch, Labels, arrays_of, is_by_site
from pyrovae.data.source import Source, Validator
from pyrovae.runtime.hashing import sha256


class ArraySource(Source):
    """Tensors, arrays, data frames and nested lists; the last batch of an epoch may be smaller.

    Args:
        x, y, mask: as for `fit`.
        batch_size: B; if it exceeds N, an epoch is one batch.

    Raises:
        DataError: one of them is not a numeric array.

    Example:
        >>> source = ArraySource([[0, 1], [1, 1], [0, 0]], batch_size=2)
        >>> [batch.x.tolist() for batch in source.epoch(shuffle=False)]
        [[[0, 1], [1, 1]], [[0, 0]]]
    """

    def __init__(self, x: Any, y: Any = None, mask: Any = None, *, batch_size: int):
        rows, columns = as_labels(arrays_of(x)[0])
        self.labels = Labels(rows, None if is_by_site(x) else columns)

        def read(array: Any, name: str) -> torch.Tensor:
            return as_tensor(array, name, is_masked=mask is not None and name.startswith("x"))

        self.preloaded = Batch(x, y, mask, self.labels).map_named(read)
        self.dtypes = {name: array.dtype for name, array in self.preloaded.columns.items()}
        self.batch_size = batch_size

    @classmethod
    def takes(cls, x: Any) -> bool:
        """Return True: remaining containers are read as arrays or rejected."""
        return True

    def accept(self, validator: Validator) -> None:
        """Check and cast all data at once."""
        validator.begin(self.preloaded)
        validator.check(self.preloaded)
        self.preloaded = validator.cast(self.preloaded)
        validator.end()

    @property
    def num_data(self) -> int:
        """N, the number of data."""
        return self.preloaded.num_data

    @property
    def num_batches(self) -> int:
        """The number of batches in an epoch."""
        return -(-self.num_data // self.batch_size)

    @property
    def device(self) -> torch.device:
        """The device of the data."""
        return self.preloaded.device

    def epoch(self, shuffle: bool, skip: int = 0, share: slice = ALL) -> Iterator[Batch]:
        """Start one pass over the data, in an order drawn from the global generator."""
        if not shuffle:
            return self._in_order_copied(skip, share)
        order = torch.randperm(self.num_data).to(self.device)
        indices = order[skip * self.batch_size :].split(self.batch_size)
        data = replace(self.preloaded, labels=Labels())  # training needs no names
        return (data.rows(index[share]) for index in indices if len(index))

    def _in_order_copied(self, skip: int, share: slice) -> Iterator[Batch]:
        for start in range(skip * self.batch_size, self.num_data, self.batch_size):
            rows = self.preloaded.rows(slice(start, start + self.batch_size))
            # copies, because a program may write into its arguments
            yield rows.rows(share).map(torch.clone)

    def read(self, rows: int) -> Iterator[Batch]:
        """Yield views of at most `rows` rows, in order."""
        return self.preloaded.read(rows)

    def take(self, index: torch.Tensor) -> Batch:
        """Return the rows with these indices, in the given order."""
        return self.preloaded.take(index)

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for name, column in self.preloaded.columns.items():
            facts[f"{name} shape"] = list(column.shape)
            facts[f"{name} dtype"] = str(self.dtypes[name])
            facts[f"{name} sha256"] = sha256(column)
        return facts

    def fingerprint(self) -> dict[str, Any]:
        """Return the shape, the caller's dtype, and the SHA-256 of the values after casting."""
        return dict(self._fingerprint)
