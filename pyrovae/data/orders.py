"""Random orders of rows that a disk can follow: blocks of rows, shuffled within windows.

    file      | b0 | b1 | b2 | b3 | b4 | b5 | b6 | b7 |     blocks of contiguous rows
    order     | b5 | b2 | b7 | b0 ‖ b3 | b6 | b1 | b4 |     a random order of blocks
    window          rows shuffled   ‖   rows shuffled       each read into memory whole

The order of blocks is uniform, and within a window so is that of rows. The first block starts
at a random row, and row 0 follows the last one, so that each row is as likely at each place.
Two rows of one block are in the same window, or in two that follow each other; others by
chance. Where everything fits one window, the order is a uniform permutation of all rows, and
the same one that `torch.randperm` gives for data in memory.
"""

import torch
from torch import Tensor


class BlockOrder:
    """A random order of num_rows rows, each once, drawn from the global generator when made.

    Args:
        num_rows: N.
        block: contiguous rows that are read together.
        window: rows that are in memory together.

    Example:
        >>> order = BlockOrder(10, block=2, window=4)
        >>> sorted(row for w in range(order.num_windows) for row in order.rows(w).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(self, num_rows: int, *, block: int, window: int):
        self.num_rows, self.window = num_rows, window
        self.num_windows = -(-num_rows // window)
        if self.num_windows == 1:
            self.starts = self.begins = torch.zeros(1, dtype=torch.int64)
            self.ends, self.shift = torch.tensor([num_rows]), 0
            self.within = torch.randperm(num_rows)
            return
        self.shift = int(torch.randint(num_rows, ()))
        self.starts = (
            torch.randperm(-(-num_rows // block)) * block
        )  # in the file, from the shift on
        lengths = (num_rows - self.starts).clamp(max=block)
        self.ends = lengths.cumsum(0)  # in the order
        self.begins = self.ends - lengths
        self.seeds = torch.randint(2**62, (self.num_windows,))

    def runs(self, window: int) -> list[slice]:
        """The contiguous rows that window number `window` holds, in the order of its blocks."""
        place = window * self.window
        last = min(place + self.window, self.num_rows)
        runs, block = [], int(torch.searchsorted(self.ends, place, right=True))
        while place < last:
            stop = min(last, int(self.ends[block]))
            start = int(self.starts[block] - self.begins[block]) + place + self.shift
            runs += self._in_file(start, start + stop - place)
            place, block = stop, block + 1
        return runs

    def _in_file(self, start: int, stop: int) -> list[slice]:
        """The rows from start to stop where row 0 follows the last one."""
        if start < self.num_rows < stop:
            return [slice(start, self.num_rows), slice(0, stop - self.num_rows)]
        turn = start // self.num_rows * self.num_rows
        return [slice(start - turn, stop - turn)]

    def permutation(self, window: int) -> Tensor:
        """The order of the window's rows, as places in the window."""
        if self.num_windows == 1:
            return self.within
        size = min(self.window, self.num_rows - window * self.window)
        generator = torch.Generator().manual_seed(int(self.seeds[window]))
        return torch.randperm(size, generator=generator)

    def rows(self, window: int) -> Tensor:
        """The rows of the window, as numbers of the file, in the order in which they come."""
        there = torch.cat([torch.arange(run.start, run.stop) for run in self.runs(window)])
        return there[self.permutation(window)]
