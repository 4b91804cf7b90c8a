"""`Batch`, the carrier of data: the arguments (x, y, mask) of a program, for some rows.

A batch unpacks into these three: `program.model(*batch)`. The names of rows and columns of a data
frame travel with it. Where a program observes several sites, x is a dict of their arrays, and mask
a dict with an array for each site that has missing values.
"""

from collections.abc import Callable, Iterator, Mapping
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
        x, y, mask: tensors, or before validation possibly rows read on demand (`data.rows`); x and
            mask may be dicts of them, by observed site.
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
        return num_rows(self.x)

    @property
    def columns(self) -> dict[str, Any]:
        """The arrays of x, y and mask that are present; "x.site" for each site of a dict."""
        columns = {}
        for name, column in zip(COLUMNS, self, strict=True):
            if is_by_site(column):
                columns |= {f"{name}.{site}": array for site, array in column.items()}
            elif column is not None:
                columns[name] = column
        return columns

    @property
    def sites(self) -> dict[str, "Batch"]:
        """The data of each observed site, without y: "x" unless x is a dict."""
        if not is_by_site(self.x):
            return {"x": Batch(self.x, None, self.mask, self.labels)}
        masks = self.mask or {}
        return {n: Batch(x, None, spread(masks.get(n), x)) for n, x in self.x.items()}

    def with_columns(self, columns: Mapping[str, Any]) -> "Batch":
        """Return the batch with other arrays in its `columns`."""
        arrays = iter(columns.values())
        return self.map(lambda _: next(arrays))

    def map(self, function: Callable[[Any], Any]) -> "Batch":
        """Return the batch with a function applied to each array that is present."""
        return self.map_named(lambda array, _: function(array))

    def map_named(self, function: Callable[[Any, str], Any]) -> "Batch":
        """Return the batch with function(array, name) of each; site a of x is named x['a']."""
        arrays = []
        for name, column in zip(COLUMNS, self, strict=True):
            if column is None:
                arrays.append(None)
            elif is_by_site(column):
                arrays.append({n: function(array, f"{name}[{n!r}]") for n, array in column.items()})
            else:
                arrays.append(function(column, name))
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
        return next(iter(self.columns.values())).device

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
    columns = [batch.columns for batch in batches]
    labels = first.labels
    if labels.rows is not None:
        labels = labels._replace(rows=np.concatenate([b.labels.rows for b in batches]))
    arrays = {name: torch.cat([each[name] for each in columns]) for name in columns[0]}
    return replace(first.with_columns(arrays), labels=labels)


def is_by_site(column: Any) -> bool:
    """Return whether a column is a dict of arrays; scipy's dok format is a dict as well."""
    if column is None or isinstance(column, Tensor):  # an abstract class takes longer to ask
        return False
    return isinstance(column, Mapping) and not hasattr(column, "tocsr")


def arrays_of(x: Any) -> list[Any]:
    """Return the arrays of a dict, or x itself."""
    return list(x.values()) if is_by_site(x) else [x]


def num_rows(x: Any) -> int:
    """Return the number of rows of an array, or of the first array of a dict.

    Example:
        >>> num_rows({"image": torch.zeros(3, 2), "text": torch.zeros(3, 5)})
        3
    """
    return len(arrays_of(x)[0])


def spread(mask: Any, x: Any) -> Any:
    """Return a mask of whole data, (N,), in x's shape; others unchanged.

    Example:
        >>> spread(torch.tensor([True, False]), torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """
    if mask is None or mask.shape != x.shape[:1] or x.dim() == 1:
        return mask
    mask = mask if isinstance(mask, Tensor) else mask[ALL]  # read from a file
    return mask.reshape(-1, *[1] * (x.dim() - 1)).expand(x.shape)


def _device(array: Any) -> Any:
    return getattr(array, "device", "cpu")
