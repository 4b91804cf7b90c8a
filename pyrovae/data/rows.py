"""Memory-mapped files and sparse matrices as rows that are read on demand.

`Rows` has the part of a tensor's interface that checks use (shape, dtype, slices of rows), so the
same checks and messages serve a 20 GB file. Nothing is written back.
"""

import mmap
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.checks.tensors import as_tensor
from pyrovae.errors import DataError


class Rows:
    """Array (N, *event), read on demand as dense tensors: rows[3:9] is (6, *event).

    Attributes:
        shape: (N, *event).
        dtype: of the tensors that are returned.
    """

    def __init__(self, shape: tuple[int, ...], empty: np.ndarray, name: str):
        none = as_tensor(empty, name)  # raises the error for a dtype that is not numeric
        self.shape, self.dtype, self._native = torch.Size(shape), none.dtype, none.numpy().dtype

    def _read(self, place: slice | np.ndarray) -> np.ndarray:
        """Return rows as a new dense array of `self.dtype`."""
        raise NotImplementedError

    def __getitem__(self, place: slice | tuple[int, ...]) -> Tensor:
        if isinstance(place, slice):
            return torch.from_numpy(self._read(place))
        return self[place[0] : place[0] + 1][(0, *place[1:])]

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return the rows with these indices, in the given order; dim is 0."""
        return torch.from_numpy(self._read(index.numpy()))

    def __len__(self) -> int:
        return self.shape[0]

    def dim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return self.shape.numel()

    def element_size(self) -> int:
        return self.dtype.itemsize

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point


class MappedRows(Rows):
    """Rows of a `numpy.memmap` or a view of one; only the requested rows are read.

    Args:
        array: (N, *event), of any numeric dtype, byte order and strides.
        name: its name in messages.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryFile() as file:
        ...     mapped = np.memmap(file, "u1", "w+", shape=(5, 2))
        ...     mapped[:] = np.arange(10).reshape(5, 2)
        ...     MappedRows(mapped)[1:3]
        tensor([[2, 3],
                [4, 5]], dtype=torch.uint8)
    """

    def __init__(self, array: np.ndarray, name: str = "x"):
        super().__init__(array.shape, np.zeros((0, *array.shape[1:]), array.dtype), name)
        self.file = mapped_file(array)
        self._array = np.asarray(array)

    def _read(self, place: slice | np.ndarray) -> np.ndarray:
        return np.array(self._array[place], self._native, order="C")

    def read_into(self, out: Tensor, place: slice) -> None:
        """Copy rows into a tensor of their shape and `self.dtype`, without an intermediate copy."""
        out.numpy()[:] = self._array[place]

    @property
    def num_file_bytes(self) -> int | None:
        """The size of the file with its header; None if the file no longer has a name."""
        status = self._status()
        return status and status.st_size

    def facts(self) -> tuple | None:
        """Return facts that identify this part of the unchanged file; None if there are none.

        A writable memory map can change without a change of the file's times.
        """
        status = self._status()
        if self.file.mode != "r" or status is None:
            return None
        there = self._array.ctypes.data - self.file.ctypes.data + self.file.offset
        identity = (os.path.realpath(self.file.filename), status.st_dev, status.st_ino)
        times = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        layout = (there, self._array.dtype.str, tuple(self.shape), self._array.strides)
        return *identity, *times, *layout

    def _status(self) -> os.stat_result | None:
        try:
            return os.stat(self.file.filename)
        except (OSError, TypeError):  # deleted, or a temporary file without a name
            return None


class SparseRows(Rows):
    """Rows of a scipy sparse matrix or array of any format, kept as compressed sparse rows.

    Args:
        matrix: (N, D); not copied if it is in canonical CSR format.
        name: its name in messages.

    Raises:
        DataError: it does not have two dimensions.

    Example:
        >>> import scipy.sparse
        >>> SparseRows(scipy.sparse.eye_array(3, 2, format="coo"))[1:3]
        tensor([[0., 1.],
                [0., 0.]], dtype=torch.float64)
    """

    def __init__(self, matrix: Any, name: str = "x"):
        if len(matrix.shape) != 2:
            raise DataError(
                f"{name} is a sparse array of shape {tuple(matrix.shape)}, but data are (N, D), one"
                f" datum per row.\nReshape it: {name}.reshape(-1, D)."
            )
        super().__init__(matrix.shape, np.zeros((0, matrix.shape[1]), matrix.dtype), name)
        self.matrix = matrix.tocsr()
        if not self.matrix.has_canonical_format:  # duplicate entries are summed
            self.matrix = self.matrix.copy()
            self.matrix.sum_duplicates()

    def _read(self, place: slice | np.ndarray) -> np.ndarray:
        return self.matrix[place].toarray().astype(self._native, order="C", copy=False)


def mapped_file(array: Any) -> np.memmap | None:
    """Return the `numpy.memmap` behind an array, or None if it is in memory.

    Example:
        >>> mapped_file(np.zeros(3)) is None
        True
    """
    owner = None
    while isinstance(array, np.ndarray):
        owner, array = array, array.base
    return owner if isinstance(owner, np.memmap) and isinstance(array, mmap.mmap) else None


def as_rows(value: Any, name: str = "x") -> Tensor | Rows:
    """Return `value` as `Rows` if it is memory-mapped or sparse, else as a tensor.

    Args:
        value: the data, in any container.
        name: its name in messages.

    Raises:
        DataError: it is not a numeric array.

    Example:
        >>> as_rows([[1, 2]])
        tensor([[1, 2]])
    """
    if isinstance(value, Rows):
        return value
    if mapped_file(value) is not None and np.ndim(value):
        return MappedRows(value, name)
    if hasattr(value, "tocsr"):
        return SparseRows(value, name)
    return as_tensor(value, name)
