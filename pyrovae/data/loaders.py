"""torch's Datasets and DataLoaders: all checked before training, or batch by batch as they stream.

A batch is x, (x, y) or (x, y, mask), as a tensor, a tuple, a list, or a dict with these keys.
A loader keeps its own shuffling and number of workers.

The pass that checks all batches also computes their SHA-256, in order. The hash is the data's
fingerprint if a resumed run will see the same values in the same order: the sampler is one of
torch's, whose order the seed determines, and rows that are read twice are equal. Randomly augmented
data have no fingerprint, unless the Dataset has a method `fingerprint` that returns a flat dict.
"""

import hashlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    default_collate,
)

from pyrovae.data.batch import ALL, Batch
from pyrovae.data.loader_items import (
    batch_of,
    gives_the_same_again,
    in_one_line,
    in_order,
    is_stream,
    num_rows,
)
from pyrovae.data.source import Source, Validator
from pyrovae.errors import ConfigError, DataError
from pyrovae.runtime.hashing import as_bytes
from pyrovae.runtime.random_stream import RandomStream


class LoaderSource(Source):
    """Map-style Dataset, or a DataLoader over one, in its own order and batch size.

    All batches are checked once before training, and each again before its step, because a Dataset
    may draw its data anew. N is the number of data in an epoch: with `drop_last`, fewer than the
    Dataset has. Evaluation reads all rows of the Dataset, in order.

    Args:
        x: the Dataset, or the DataLoader.
        batch_size: B for a Dataset; a DataLoader has its own.

    Raises:
        DataError: the Dataset is empty or fails.
        ConfigError: y or mask is given; both must come with each datum.

    Example:
        >>> import torch
        >>> source = LoaderSource(DataLoader(torch.eye(3, 2), batch_size=2), batch_size=9)
        >>> [batch.num_data for batch in source.read(3)]
        [3]
    """

    smallest_batch = None  # until `accept` has seen all batches

    def __init__(self, x: Any, y: Any = None, mask: Any = None, *, batch_size: int):
        self.name = type(x).__name__
        if y is not None or mask is not None:
            raise ConfigError(
                f"x is a {self.name}, so y and mask must come with each datum.\n"
                "Let it return tuples (x, y) or (x, y, mask)."
            )
        self.loader = self._as_loader(x, batch_size)
        self.batch_size = self.loader.batch_size or 1
        self.validator: Validator | None = None

    @classmethod
    def takes(cls, x: Any) -> bool:
        """Return whether x is a map-style Dataset, or a DataLoader over one."""
        return isinstance(x, Dataset | DataLoader) and not is_stream(x)

    def _as_loader(self, x: Any, batch_size: int) -> DataLoader:
        if isinstance(x, DataLoader):
            return x
        if not len(x):
            raise DataError(f"the {self.name} has no data (N = 0): there is nothing to learn from.")
        return DataLoader(x, batch_size=batch_size, shuffle=True, collate_fn=_collate)

    def watch(self, validator: Validator) -> None:
        """Check each batch when it is read."""
        self.validator = validator

    def accept(self, validator: Validator) -> None:
        """Check all batches before training changes anything."""
        self.watch(validator)
        hashes: dict[str, Any] = {}
        sizes = []
        try:
            for batch in self._checked(self._items(self.loader), 0, 0):
                sizes.append(batch.num_data)
                for name, column in batch.columns.items():
                    hashes.setdefault(name, hashlib.sha256()).update(as_bytes(column))
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            # torch reports a killed worker by a signal, which may interrupt any line
            raise self._failure(len(sizes) + 1, error) from error
        self.digests = {f"{name} sha256": digest.hexdigest() for name, digest in hashes.items()}
        self.num_data, self.num_batches = sum(sizes), len(sizes)
        self.batch_size, self.smallest_batch = max(sizes), min(sizes)

    def epoch(self, shuffle: bool, skip: int = 0, share: slice = ALL) -> Iterator[Batch]:
        """Start one pass of the loader; skipped batches are read but not checked."""
        items = self._items(self.loader)
        skipped = [batch_of(item).num_data for _, item in zip(range(skip), items, strict=False)]
        return (b.share(share) for b in self._checked(items, len(skipped), sum(skipped)))

    def _in_order(self) -> Iterator[Batch]:
        # a DataLoader draws a seed when it starts, which must not change the caller's draws
        stream, rows = RandomStream(0), in_order(self.loader)
        batches = self._checked(self._items(rows), 0, 0, is_counted=False)
        while True:
            with stream:
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def head(self, rows: int = 1) -> Batch:
        """Return the first rows; those of the first batch are read once."""
        first = self._first
        return first.rows(slice(0, rows)) if rows <= first.num_data else super().head(rows)

    @cached_property
    def _first(self) -> Batch:
        return next(self._in_order())

    def count(self) -> int:
        """Return N, the number of rows of the Dataset."""
        return num_rows(in_order(self.loader))

    def fingerprint(self) -> dict[str, Any]:
        """Return the type of the container, N, and each column's SHA-256 or None."""
        return dict(self._fingerprint)

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        facts = {"loader": self.name, "num_data": self.num_data}
        own = getattr(self.loader.dataset, "fingerprint", None)
        if callable(own):
            return facts | own()
        is_fixed = gives_the_same_again(self.loader)
        return facts | {n: d if is_fixed else None for n, d in self.digests.items()}

    def _checked(
        self, items: Iterator[Any], num_batches: int, num_data: int, *, is_counted: bool = True
    ) -> Iterator[Batch]:
        """Yield the remaining batches of a pass, checked."""
        for number, item in enumerate(items, num_batches + 1):
            batch = batch_of(item)
            try:
                batch = self.validator.one_of_many(batch) if self.validator else batch
            except (DataError, ConfigError) as error:
                raise type(error)(f"{error}\n(In batch {number} of the {self.name}.)") from None
            num_batches, num_data = number, num_data + batch.num_data
            self.batch_size = max(self.batch_size, batch.num_data)
            yield batch
        if is_counted or not num_data:
            self._end(num_batches, num_data)

    def _items(self, loader: DataLoader) -> Iterator[Any]:
        """Yield the items of the loader; summarize its errors in one line, and chain them."""
        number = 0
        try:
            for item in loader:
                number += 1
                if item is None:
                    raise DataError(
                        f"batch {number} of the {self.name} is None, but a batch is x, (x, y) or "
                        "(x, y, mask): the number of dropped data is unknown.\n"
                        "Let collate_fn drop bad items from their batch and return the others, "
                        "or remove them from the Dataset."
                    )
                yield item
        except (DataError, ConfigError, MemoryError):
            raise
        except Exception as error:
            raise self._failure(number + 1, error) from error

    def _failure(self, number: int, error: Exception) -> DataError:
        return DataError(
            f"the {self.name} failed to return batch {number}: {in_one_line(error)}\n"
            "The error above this one says where; the parameters are as after the last step."
        )

    def _end(self, num_batches: int, num_data: int) -> None:
        """Raise DataError unless an epoch yielded data, and as many as the one before."""
        if not num_data:
            raise DataError(
                f"the {self.name} yields no batch (N = 0): there is nothing to learn from.\n"
                "With drop_last=True it needs at least batch_size data; __iter__ must return a new "
                "iterator each time."
            )
        if self.num_data not in (None, num_data):
            raise DataError(
                f"the {self.name} declares {self.num_data:,} data, but an epoch yielded "
                f"{num_data:,}: numbers per datum would be wrong by that factor.\n"
                "Correct its __len__, or the rows that it drops or repeats (each worker of an "
                "IterableDataset yields all rows unless it takes only its share)."
            )


class StreamSource(LoaderSource):
    """IterableDataset, a DataLoader over one, or a custom iterable of batches.

    Each batch is checked before its step. N is the Dataset's length, if it declares one, which each
    epoch must then match. Otherwise N is known after the first epoch, and is that of the latest.

    Args:
        x: the IterableDataset, the DataLoader, or any object whose `__iter__` starts a new pass
            over batches.
        batch_size: B, for an IterableDataset that yields single data.

    Example:
        >>> import torch
        >>> class Stream(torch.utils.data.IterableDataset):
        ...     def __iter__(self):
        ...         return iter(torch.eye(3, 2))
        >>> source = StreamSource(DataLoader(Stream(), batch_size=2), batch_size=2)
        >>> before = source.num_data
        >>> before, sum(batch.num_data for batch in source.epoch(shuffle=False)), source.num_data
        (None, 3, 3)
    """

    def __init__(self, x: Any, y: Any = None, mask: Any = None, *, batch_size: int):
        super().__init__(x, y, mask, batch_size=batch_size)
        # not len(loader), for which torch would warn of a mismatch that is an error here
        has_length = hasattr(self.loader.dataset, "__len__") and self.loader.batch_size is not None
        self.declared = len(self.loader.dataset) if has_length else None
        if self.loader.drop_last:
            self.declared = None
        self.num_data = self.declared
        if self.declared is not None and self.loader.num_workers < 2:
            self.num_batches = -(-self.declared // self.batch_size)

    @classmethod
    def takes(cls, x: Any) -> bool:
        """Return whether x is an IterableDataset, or another iterable without numbered rows."""
        return is_stream(x) or _is_iterable_of_batches(x)

    def _as_loader(self, x: Any, batch_size: int) -> DataLoader:
        if isinstance(x, DataLoader):
            return x
        if not isinstance(x, IterableDataset):
            return DataLoader(_Batches(x), batch_size=None, collate_fn=_unchanged)
        return DataLoader(x, batch_size=batch_size, collate_fn=_collate)

    def accept(self, validator: Validator) -> None:
        """Check each batch before its step."""
        self.watch(validator)

    def count(self) -> int:
        """Return N, counted by a pass over the data if no length is declared."""
        return Source.count(self)

    def fingerprint(self) -> dict[str, Any]:
        """Return the type of the container, and its declared length or None."""
        return {"loader": self.name, "num_data": self.declared}

    def _end(self, num_batches: int, num_data: int) -> None:
        self.num_data = self.declared
        super()._end(num_batches, num_data)
        self.num_data, self.num_batches = num_data, num_batches


class _Batches(IterableDataset):
    """A custom iterable of batches as an IterableDataset."""

    def __init__(self, batches: Iterable[Any]):
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def _is_iterable_of_batches(x: Any) -> bool:
    """Return whether x is an iterable, but not an array, a sequence, a set or a mapping."""
    holds_values = ("__array__", "__getitem__", "__dataframe__", "__contains__", "tocsr")
    return isinstance(x, Iterable) and not any(hasattr(x, name) for name in holds_values)


def _collate(items: Any) -> Any:
    # a Dataset with __getitems__ may return a whole batch as one tensor
    return items if isinstance(items, Tensor) else default_collate(items)


def _unchanged(item: Any) -> Any:
    return item
