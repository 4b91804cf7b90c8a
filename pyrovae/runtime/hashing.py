"""SHA-256 of arrays, computed in chunks."""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from pyrovae.checks.places import chunks


def sha256(column: Tensor) -> str:
    """Return the SHA-256 of a tensor's numbers, row by row, in its own dtype.

    Example:
        >>> sha256(torch.zeros(2, 3)) == sha256(torch.zeros(3, 2)) != sha256(torch.ones(2, 3))
        True
    """
    digest = hashlib.sha256()
    for _, rows, _ in chunks(column):
        digest.update(as_bytes(rows))
    return digest.hexdigest()


def sha256_of_arrays(arrays: Iterable[np.ndarray]) -> str:
    """Return the SHA-256 of several arrays, one after another."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def as_bytes(rows: Tensor) -> memoryview:
    """Return the bytes of a tensor, without a copy if it is contiguous and in main memory.

    Example:
        >>> bytes(as_bytes(torch.tensor([1, 2], dtype=torch.uint8)))
        b'\\x01\\x02'
    """
    # as bytes, because NumPy has no bfloat16
    return rows.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
