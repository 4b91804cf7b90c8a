"""Minibatches of arrays in memory, each drawn by one gather a column."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import nn

from pyrovae.checks import as_tensor
from pyrovae.contract.validation import admit
from pyrovae.data.batch import ALL, Batch
from pyrovae.runtime.hashing import sha256


class ArrayBatches:
    """Minibatches of arrays in memory; the last one of an epoch may be smaller.

    Args:
        program: whose parameters fix dtype and device, and whose decoder fixes the support.
        x, y, mask: as for `fit`.
        batch_size: B; one batch when it exceeds N.

    Raises:
        DataError: the data do not fit the program.

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1)
        >>> batches = ArrayBatches(vae, [[0, 1], [1, 1], [0, 0]], None, None, batch_size=2)
        >>> [batch.x.tolist() for batch in batches.epoch(shuffle=False)]
        [[[0.0, 1.0], [1.0, 1.0]], [[0.0, 0.0]]]
    """

    def __init__(self, program: nn.Module, x: Any, y: Any, mask: Any, *, batch_size: int):
        given = (as_tensor(x, "x"), None if y is None else as_tensor(y, "y"), mask)
        self.dtypes = [getattr(value, "dtype", None) for value in given]
        self.preloaded = self.data = Batch(*admit(program, *given))
        self.num_data = len(self.data.x)
        self.batch_size = batch_size
        self.num_batches = -(-self.num_data // batch_size)

    def epoch(self, shuffle: bool, skip: int = 0, share: slice = ALL) -> Iterator[Batch]:
        """One pass over the data, each datum once, in an order drawn from the global generator."""
        device = self.data.x.device
        if not shuffle:
            return self._in_order(skip, share)
        order = torch.randperm(self.num_data).to(device)
        return self._gathered(order[skip * self.batch_size :].split(self.batch_size), share)

    def _gathered(self, indices: tuple, share: slice) -> Iterator[Batch]:
        x, y, mask = self.data
        for index in indices:
            if not len(index):  # an epoch of which all batches were skipped
                return
            index = index[share]
            # index_select takes half the time of x[index] on rows of some kilobytes
            yield Batch(
                x.index_select(0, index),
                None if y is None else y.index_select(0, index),
                None if mask is None else mask.index_select(0, index),
            )

    def _in_order(self, skip: int, share: slice) -> Iterator[Batch]:
        for start in range(skip * self.batch_size, self.num_data, self.batch_size):
            rows = slice(start, start + self.batch_size)
            # copies, because a program may write into its arguments
            yield Batch(*(None if t is None else t[rows][share].clone() for t in self.data))

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for name, column, dtype in zip(Batch._fields, self.data, self.dtypes, strict=True):
            if column is not None:
                facts[f"{name} shape"] = list(column.shape)
                facts[f"{name} dtype"] = _name(column.dtype if dtype is None else dtype)
                facts[f"{name} sha256"] = sha256(column)
        return facts

    def fingerprint(self) -> dict[str, Any]:
        """Shape, the caller's dtype, and SHA-256 of the numbers as the program takes them."""
        return dict(self._fingerprint)


def _name(dtype: Any) -> str:
    """One name for a dtype of NumPy's and the same one of torch's."""
    return f"torch.{str(dtype).removeprefix('torch.')}"
