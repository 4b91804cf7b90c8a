"""Random orders of rows that suit a disk: blocks of rows, shuffled within windows.

    file      | b0 | b1 | b2 | b3 | b4 | b5 | b6 | b7 |     blocks of contiguous rows
    order     | b5 | b2 | b7 | b0 ‖ b3 | b6 | b1 | b4 |     a random order of blocks
    window          rows shuffled   ‖   rows shuffled       each held in memory as a whole

The order of blocks is uniformly random, and so is the order of rows within a window. The first
block starts at a random row, and row 0 follows the last one, so that each row is equally likely at
each position. Two rows of a block are in the same window or in consecutive ones, rows of different
blocks only by chance. If one window holds all rows, the order is a uniform permutation, the one
that `torch.randperm` draws for data in memory.
"""

import torch
from torch import Tensor


class BlockOrder:
    """Random order of `num_rows` rows, drawn from the global generator on construction.

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
        # positions in the file, relative to the shift
        self.starts = torch.randperm(-(-num_rows // block)) * block
        lengths = (num_rows - self.starts).clamp(max=block)
        self.ends = lengths.cumsum(0)  # positions in the order
        self.begins = self.ends - lengths
        self.seeds = torch.randint(2**62, (self.num_windows,))

    def runs(self, window: int) -> list[slice]:
        """Return the contiguous runs of rows in a window, in the order of its blocks."""
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
        """Return the rows from start to stop, where row 0 follows the last one."""
        if start < self.num_rows < stop:
            return [slice(start, self.num_rows), slice(0, stop - self.num_rows)]
        turn = start // self.num_rows * self.num_rows
        return [slice(start - turn, stop - turn)]

    def permutation(self, window: int) -> Tensor:
        """Return the order of a window's rows, as positions in the window."""
        if self.num_windows == 1:
            return self.within
        size = min(self.window, self.num_rows - window * self.window)
        generator = torch.Generator().manual_seed(int(self.seeds[window]))
        return torch.randperm(size, generator=generator)

    def rows(self, window: int) -> Tensor:
        """Return a window's rows in their order, as row numbers of the file."""
        there = torch.cat([torch.arange(run.start, run.stop) for run in self.runs(window)])
        return there[self.permutation(window)]
