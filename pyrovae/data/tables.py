"""Data that are not in memory as tensors: memory-mapped files and sparse matrices.

Columns are read a few rows at a time. One pass checks all rows and computes the SHA-256 of the
file; if it rejects a chunk, the data are read again, so that the message counts over all of them.
The result for an unchanged read-only file is cached until the process ends: the key is the file
(path, inode, size, times), the part of it, and the requirements of the validator.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterator
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.checks import check_mask
from pyrovae.data.batch import ALL, Batch, is_by_site
from pyrovae.data.orders import BlockOrder
from pyrovae.data.rows import MappedRows, Rows, SparseRows, as_rows, mapped_file
from pyrovae.data.source import Source, Validator
from pyrovae.errors import DataError
from pyrovae.runtime.hashing import as_bytes, sha256, sha256_of_arrays

NUMBERS_AT_A_TIME = 2**21  # in a pass: 8 MiB of float32
BLOCK_BYTES = 2**19  # read at once: takes a disk milliseconds, so that seeking costs little
WINDOW_BYTES = 2**26  # in memory at once: 128 blocks, among which rows are shuffled


class TableSource(Source):
    """Columns that are read a few rows at a time; y and mask may be in any other container.

    Args:
        x: (N, *event), memory-mapped or sparse.
        y: (N, …); mask: of x's shape.
        batch_size: B; if it exceeds N, an epoch is one batch.

    Raises:
        DataError: one of them is not a numeric array.
    """

    def __init__(self, x: Any, y: Any = None, mask: Any = None, *, batch_size: int):
        self.table = Batch(x, y, mask).map_named(as_rows)
        self.batch_size, self.digests = batch_size, {}
        self.cast: Callable[[Batch], Batch] = lambda batch: batch

    @property
    def num_data(self) -> int:
        """N, the number of data."""
        return self.table.num_data

    @property
    def num_batches(self) -> int:
        """The number of batches in an epoch."""
        return -(-self.num_data // self.batch_size)

    def accept(self, validator: Validator) -> None:
        """Check all rows and compute the SHA-256 of each file in one pass, unless it is cached."""
        validator.begin(self.table)
        # row indices are on the CPU
        self.table = self.table.map(lambda c: c.cpu() if isinstance(c, Tensor) else c)
        self.cast = validator.cast
        if not self._stores_allowed_numbers(validator):
            key = self._key(validator)
            work = _Pass(key, lambda: self._pass(validator))
            self.digests = dict(work.result() if key is None else _remembered(work))
        validator.end()

    def _pass(self, validator: Validator) -> tuple[tuple[str, str], ...]:
        columns = self.table.columns
        files = {n: hashlib.sha256() for n, c in columns.items() if isinstance(c, MappedRows)}
        sites = self.table.sites.values()
        size = sum(site.x.shape[1:].numel() for site in sites)
        step = max(1, NUMBERS_AT_A_TIME // max(1, size))
        is_any_observed = self.table.mask is None
        for start in range(0, self.num_data, step):
            rows = self.table.rows(slice(start, min(start + step, self.num_data)))
            for name, digest in files.items():
                digest.update(as_bytes(rows.columns[name]))
            self._check(validator, rows, start)
            masks = (site.mask for site in rows.sites.values())
            is_any_observed = is_any_observed or any(m is None or bool(m.any()) for m in masks)
        if not is_any_observed:
            for site in self.table.sites.values():
                if site.mask is not None:
                    check_mask(site.mask, site.x.shape)
        return tuple((name, digest.hexdigest()) for name, digest in files.items())

    def _check(self, validator: Validator, rows: Batch, start: int) -> None:
        try:
            _check_masks(rows)
            validator.check(rows, first_row=start)
        except DataError:
            # the same checks of all data, so that the message counts over all of them
            _check_masks(self.table)
            validator.check(Batch(self.table.x, None, self.table.mask))
            raise

    def _stores_allowed_numbers(self, validator: Validator) -> bool:
        """Return whether the stored numbers and 0 are allowed in every cell."""
        x = self.table.x
        if not isinstance(x, SparseRows) or self.table.mask is not None:
            return False
        stored, size = x.matrix.data, NUMBERS_AT_A_TIME
        parts = (stored[i : i + size] for i in range(0, len(stored), size))
        has_y = self.table.y is not None
        return all(
            validator.allows_stored(part, has_y=has_y) for part in chain([np.zeros(1)], parts)
        )

    def _key(self, validator: Validator) -> Hashable | None:
        """Return a key of all that the result of a pass depends on; None if unknown."""
        key = validator.key(self.table)
        # a pass does not read y that is in memory
        seen = [c for n, c in self.table.columns.items() if n != "y" or isinstance(c, Rows)]
        files = tuple(c.facts() if isinstance(c, MappedRows) else None for c in seen)
        return None if key is None or None in files else (files, key)

    def epoch(self, shuffle: bool, skip: int = 0, share: slice = ALL) -> Iterator[Batch]:
        """Start one pass over the data, each datum once, in a uniformly random order."""
        order = torch.randperm(self.num_data) if shuffle else torch.arange(self.num_data)
        indices = order[skip * self.batch_size :].split(self.batch_size)
        return (self.take(index[share]) for index in indices if len(index))

    def read(self, rows: int) -> Iterator[Batch]:
        """Yield all data in their own order, `rows` rows at a time."""
        for start in range(0, self.num_data, rows):
            yield self.cast(self.table.rows(slice(start, start + rows)))

    def take(self, index: Tensor) -> Batch:
        """Return the rows with these indices, in the given order."""
        return self.cast(self.table.rows(index))

    def whole(self) -> Batch:
        """Return all rows as one batch in memory."""
        return self.cast(self.table.rows(ALL))

    def fingerprint(self) -> dict[str, Any]:
        """Return shape, dtype and SHA-256 of each column, and the size of each file."""
        return dict(self._fingerprint)

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for name, column in self.table.columns.items():
            kind = "sparse " if isinstance(column, SparseRows) else ""
            facts[f"{name} shape"] = list(column.shape)
            facts[f"{name} dtype"] = f"{kind}{column.dtype}"
            if isinstance(column, MappedRows):
                facts[f"{name} file bytes"] = column.num_file_bytes
            facts[f"{name} sha256"] = self.digests.get(name) or _digest(column)
        return facts


class SparseSource(TableSource):
    """scipy sparse matrix or array of any format; rows are made dense batch by batch.

    The matrix stays sparse in memory, as CSR; the order of an epoch is a uniform permutation.

    Example:
        >>> import scipy.sparse
        >>> x = scipy.sparse.eye_array(3, 2, format="csr")
        >>> source = SparseSource(x, batch_size=2)
        >>> [batch.x.tolist() for batch in source.epoch(shuffle=False)]
        [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0]]]
    """

    @classmethod
    def takes(cls, x: Any) -> bool:
        """Return whether x is a scipy sparse container, which has the method `tocsr`."""
        return _any_of(x, lambda array: hasattr(array, "tocsr"))


class MappedSource(TableSource):
    """Memory-mapped file of any size, read through a window of 64 MiB.

    To shuffle, blocks of 512 KiB are read in random order, 128 of them into a window, whose rows
    are shuffled (`BlockOrder`). Each datum occurs once per epoch, and every batch but the last is
    full. The order is uniform over blocks, and over rows within a window: if neighbors in the file
    are similar, as in a file sorted by class, the data of a batch are more similar than a random
    sample. A file that fits into one window is shuffled exactly like data in memory.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryFile() as file:
        ...     x = np.memmap(file, "u1", "w+", shape=(5, 2))
        ...     source = MappedSource(x, batch_size=2)
        ...     [batch.num_data for batch in source.epoch(shuffle=True)]
        [2, 2, 1]
    """

    def __init__(self, x: Any, y: Any = None, mask: Any = None, *, batch_size: int):
        super().__init__(x, y, mask, batch_size=batch_size)
        row = [c.shape[1:].numel() * c.dtype.itemsize for c in self.table.columns.values()]
        num_bytes = sum(row) + 8  # and its position in the order
        self.block = max(1, BLOCK_BYTES // num_bytes)
        # a multiple of the batch size, so that no batch is split between windows
        self.window = max(1, WINDOW_BYTES // num_bytes // batch_size) * batch_size
        self.spare: dict[str, Tensor] | None = None

    @classmethod
    def takes(cls, x: Any) -> bool:
        """Return whether x is a `numpy.memmap`, or an array over one."""
        return _any_of(x, lambda array: mapped_file(array) is not None and np.ndim(array) > 0)

    def epoch(self, shuffle: bool, skip: int = 0, share: slice = ALL) -> Iterator[Batch]:
        """Start one pass over the data, each datum once, in an order of blocks and windows."""
        if not shuffle:
            starts = range(skip * self.batch_size, self.num_data, self.batch_size)
            rows = (self.table.rows(slice(start, start + self.batch_size)) for start in starts)
            return (self.cast(batch).share(share) for batch in rows)
        order = BlockOrder(self.num_data, block=self.block, window=self.window)
        return self._shuffled(order, skip * self.batch_size, share)

    def _shuffled(self, order: BlockOrder, first: int, share: slice) -> Iterator[Batch]:
        """Yield batches from position `first` of the order on, a multiple of the batch size."""
        # the window of the previous epoch: allocating memory takes longer than filling it
        windows, self.spare = self.spare or self._new_windows(), None
        try:
            for number in range(first // self.window, order.num_windows):
                self._read(windows, order.runs(number))
                skipped = max(0, first - number * self.window)
                for index in order.permutation(number)[skipped:].split(self.batch_size):
                    if len(index):
                        rows = {n: w.index_select(0, index[share]) for n, w in windows.items()}
                        yield self.cast(self.table.with_columns(rows))
        finally:
            self.spare = windows

    def _new_windows(self) -> dict[str, Tensor]:
        size, columns = min(self.window, self.num_data), self.table.columns.items()
        return {name: torch.empty(size, *c.shape[1:], dtype=c.dtype) for name, c in columns}

    def _read(self, windows: dict[str, Tensor], runs: list[slice]) -> None:
        """Fill the windows with these rows of the file, run by run."""
        start = 0
        for run in runs:
            stop = start + run.stop - run.start
            for name, column in self.table.columns.items():
                if isinstance(column, MappedRows):
                    column.read_into(windows[name][start:stop], run)
                else:
                    windows[name][start:stop] = column[run]
            start = stop


def _any_of(x: Any, is_one: Callable[[Any], bool]) -> bool:
    return any(map(is_one, x.values())) if is_by_site(x) else is_one(x)


def _check_masks(batch: Batch) -> None:
    for site in batch.sites.values():
        if site.mask is not None:
            check_mask(site.mask, site.x.shape, is_whole=False)


def _digest(column: Tensor | Rows) -> str:
    if isinstance(column, SparseRows):
        matrix = column.matrix
        return sha256_of_arrays([matrix.data, matrix.indices, matrix.indptr])
    return sha256(column)


class _Pass:
    """Pass over data, equal to any other with the same key; it drops the data afterwards."""

    def __init__(self, key: Hashable, work: Callable[[], Any]):
        self.key, self.work = key, work

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Pass) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def result(self) -> Any:
        """Run the pass."""
        work, self.work = self.work, None  # the cache keeps this object, and must not keep x
        return work()


@lru_cache(maxsize=64)
def _remembered(work: _Pass) -> Any:
    return work.result()
