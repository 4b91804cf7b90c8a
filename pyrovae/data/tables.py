"""Minibatches of data that are not in memory as tensors: memory-mapped files, sparse matrices.

Both are read through `Columns`, which checks them whole when they are made and casts the rows
of each batch to the program's dtype and device.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.data.batch import ALL, Batch, shared
from pyrovae.data.columns import Columns
from pyrovae.data.orders import BlockOrder
from pyrovae.data.rows import MappedRows

BLOCK_BYTES = 2**19  # read at once: milliseconds of a disk, so that finding it costs little
WINDOW_BYTES = 2**26  # in memory at once: 128 blocks to shuffle rows among


class _Table:
    """What both are: columns, counted, in batches of a size."""

    preloaded = None

    def __init__(self, program: nn.Module, x: Any, y: Any, mask: Any, *, batch_size: int):
        self.columns = Columns(program, x, y, mask)
        self.num_data = len(self.columns)
        self.batch_size = batch_size
        self.num_batches = -(-self.num_data // batch_size)

    def fingerprint(self) -> dict[str, Any]:
        """Shape, dtype and SHA-256 of each column, of a file its size too."""
        return dict(self.columns.fingerprint)


class SparseBatches(_Table):
    """Minibatches of a scipy sparse matrix: rows are filled in batch by batch.

    The matrix stays in memory as it is (as CSR); the order of an epoch is a uniform permutation.

    Args:
        program, y, mask, batch_size: as for `ArrayBatches`.
        x: (N, D), a scipy sparse matrix or array.

    Raises:
        DataError: the data do not fit the program.

    Example:
        >>> import pyrovae as pv, scipy.sparse
        >>> vae = pv.build((2,), latent_dim=1)
        >>> x = scipy.sparse.eye_array(3, 2, format="csr")
        >>> batches = SparseBatches(vae, x, None, None, batch_size=2)
        >>> [batch.x.tolist() for batch in batches.epoch(shuffle=False)]
        [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0]]]
    """

    def epoch(self, shuffle: bool, skip: int = 0, share: slice = ALL) -> Iterator[Batch]:
        """One pass over the data, each datum once, in an order drawn from the global generator."""
        order = torch.randperm(self.num_data) if shuffle else torch.arange(self.num_data)
        indices = order[skip * self.batch_size :].split(self.batch_size)
        return (self.columns.take(index[share]) for index in indices if len(index))


class MappedBatches(_Table):
    """Minibatches of a memory-mapped file of any size, in main memory of 64 MiB.

    Shuffled, blocks of 512 KiB are read in random order, 128 of them into a window, whose rows
    are shuffled (`BlockOrder`). Each datum comes once an epoch and every batch but the last is
    full. The order is uniform over blocks, and over rows within a window: where neighbors in
    the file are alike, as in a file sorted by class, a batch is more alike than a random one. A
    file that fits a window is shuffled exactly as data in memory are.

    Args:
        program, y, mask, batch_size: as for `ArrayBatches`.
        x: (N, *event), a `numpy.memmap` or an array over one, of any dtype of numbers.

    Raises:
        DataError: the data do not fit the program.

    Example:
        >>> import numpy as np, pyrovae as pv, tempfile
        >>> vae = pv.build((2,), latent_dim=1)
        >>> with tempfile.TemporaryFile() as file:
        ...     x = np.memmap(file, "u1", "w+", shape=(5, 2))
        ...     batches = MappedBatches(vae, x, None, None, batch_size=2)
        ...     [len(batch.x) for batch in batches.epoch(shuffle=True)]
        [2, 2, 1]
    """

    def __init__(self, program: nn.Module, x: Any, y: Any, mask: Any, *, batch_size: int):
        super().__init__(program, x, y, mask, batch_size=batch_size)
        row = [c.shape[1:].numel() * c.dtype.itemsize for c in self.columns.columns.values()]
        num_bytes = sum(row) + 8  # and its place in the order
        self.block = max(1, BLOCK_BYTES // num_bytes)
        # whole batches, so that none is cut in two by the end of a window
        self.window = max(1, WINDOW_BYTES // num_bytes // batch_size) * batch_size
        self.spare: dict[str, Tensor] | None = None

    def epoch(self, shuffle: bool, skip: int = 0, share: slice = ALL) -> Iterator[Batch]:
        """One pass over the data, each datum once; the order is drawn from the global generator."""
        if not shuffle:
            starts = range(skip * self.batch_size, self.num_data, self.batch_size)
            batches = (self.columns[start : start + self.batch_size] for start in starts)
            return (shared(batch, share) for batch in batches)
        order = BlockOrder(self.num_data, block=self.block, window=self.window)
        return self._shuffled(order, skip * self.batch_size, share)

    def _shuffled(self, order: BlockOrder, first: int, share: slice) -> Iterator[Batch]:
        """The batches from place `first` of the order on, a multiple of the batch size."""
        # the window of the epoch before: new memory takes longer to get than to fill
        windows, self.spare = self.spare or self._new_windows(), None
        try:
            for number in range(first // self.window, order.num_windows):
                self._read(windows, order.runs(number))
                skipped = max(0, first - number * self.window)
                for index in order.permutation(number)[skipped:].split(self.batch_size):
                    if len(index):
                        rows = {n: w.index_select(0, index[share]) for n, w in windows.items()}
                        yield self.columns.cast(**rows)
        finally:
            self.spare = windows

    def _new_windows(self) -> dict[str, Tensor]:
        size, columns = min(self.window, self.num_data), self.columns.columns.items()
        return {name: torch.empty(size, *c.shape[1:], dtype=c.dtype) for name, c in columns}

    def _read(self, windows: dict[str, Tensor], runs: list[slice]) -> None:
        """Fill the windows with these rows of the file, one run after the other."""
        start = 0
        for run in runs:
            stop = start + run.stop - run.start
            for name, column in self.columns.columns.items():
                if isinstance(column, MappedRows):
                    column.read_into(windows[name][start:stop], run)
                else:
                    windows[name][start:stop] = column[run]
            start = stop
