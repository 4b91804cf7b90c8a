"""`Batch`, the carrier of data: the arguments (x, y, mask) of a program, for some rows.

A batch unpacks into these three: `program.model(*batch)`. The names of rows and columns of a data
frame travel with it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

ALL = slice(None)
COLUMNS = ("x", "y", "mask")


class Labels(NamedTuple):
    """Names of rows and columns; None if the container has none.

    Attributes:
        rows: (N,), the index of a data frame.
        columns: D names.
    """

    rows: np.ndarray | None = None
    columns: tuple[str, ...] | None = None


NO_LABELS = Labels()


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """The arguments of a program: x (B, *event), y (B, …) or None, mask of x's shape or None.

    Attributes:
        x, y, mask: tensors, or before validation possibly rows read on demand (`data.rows`).
        labels: names of rows and columns.

    Example:
        >>> batch = Batch(torch.arange(4), mask=torch.ones(4, dtype=torch.bool))
        >>> batch.num_data, batch.rows(slice(1, 3)).x
        (4, tensor([1, 2]))
        >>> x, y, mask = batch
    """

    x: Any
    y: Any = None
    mask: Any = None
    labels: Labels = NO_LABELS

    def __iter__(self) -> Iterator[Any]:
        return iter((self.x, self.y, self.mask))

    @property
    def num_data(self) -> int:
        """B, the number of rows."""
        return len(self.x)

    @property
    def columns(self) -> dict[str, Any]:
        """The arrays among x, y and mask that are present, by name."""
        return {n: c for n, c in zip(COLUMNS, self, strict=True) if c is not None}

    def map(self, function: Callable[[Any], Any]) -> "Batch":
        """Return the batch with a function applied to each array that is present."""
        arrays = (None if array is None else function(array) for array in self)
        return Batch(*arrays, self.labels)

    def rows(self, index: Any) -> "Batch":
        """Return the rows selected by a slice or a tensor of indices.

        Rows that are read on demand are read here.
        """
        labels = self.labels
        if labels.rows is not None:
            at = index if isinstance(index, slice) else np.asarray(index.cpu())
            labels = labels._replace(rows=labels.rows[at])
        if isinstance(index, slice):
            return replace(self.map(lambda array: array[index]), labels=labels)
        # index_select takes half the time of x[index] on rows of a few kilobytes
        taken = self.map(lambda array: array.index_select(0, index.to(_device(array))))
        return replace(taken, labels=labels)

    def read(self, rows: int) -> Iterator["Batch"]:
        """Yield views of at most `rows` rows, in order."""
        for start in range(0, self.num_data, rows):
            yield self.rows(slice(start, start + rows))

    def head(self, rows: int = 1) -> "Batch":
        """Return the first rows."""
        return self.rows(slice(0, rows))

    def take(self, index: Tensor) -> "Batch":
        """Return the rows with these indices, in the given order."""
        return self.rows(index)

    def whole(self) -> "Batch":
        """Return the batch itself."""
        return self

    def count(self) -> int:
        """Return B."""
        return self.num_data

    @property
    def device(self) -> torch.device:
        """The device of x."""
        return self.x.device

    def share(self, share: slice) -> "Batch":
        """Return the rows of one process, contiguous."""
        return self if share == ALL else self.rows(share).map(Tensor.contiguous)

    def repeat(self, times: int) -> "Batch":
        """Return all rows, repeated `times` times."""
        return self.rows(torch.arange(self.num_data).repeat(times))

    def double(self) -> "Batch":
        """Return the batch with floating-point arrays in float64."""
        return self.map(lambda array: array.double() if array.is_floating_point() else array)


def concat(batches: list[Batch]) -> Batch:
    """Concatenate the rows of batches.

    Example:
        >>> concat([Batch(torch.zeros(2, 3)), Batch(torch.zeros(1, 3))]).num_data
        3
    """
    first = batches[0]
    if len(batches) == 1:
        return first
    arrays = {n: torch.cat([getattr(b, n) for b in batches]) for n in first.columns}
    labels = first.labels
    if labels.rows is not None:
        labels = labels._replace(rows=np.concatenate([b.labels.rows for b in batches]))
    return replace(first, labels=labels, **arrays)


def _device(array: Any) -> Any:
    return getattr(array, "device", "cpu")
