"""Binarization of gray images: always explicit, in one of two ways.

threshold   b = 1[x > threshold]              the same at every access
sampled     b ~ Bernoulli(x) for each pixel   redrawn at every access
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyrovae.checks import as_tensor
from pyrovae.errors import ConfigError, DataError


def binarize(
    x: Tensor | np.ndarray, method: str = "threshold", *, threshold: float = 0.5
) -> "Tensor | Sampled":
    """Binarize gray values: once by a threshold, or by a new draw at every access.

    Args:
        x: Gray values in [0, 1], shape (N, *event).
        method: `"threshold"`, 1[x > threshold] as a tensor like x; or `"sampled"`, a `Sampled`.
        threshold: In [0, 1); used by `"threshold"` only.

    Raises:
        ConfigError: Unknown method, or a threshold outside [0, 1).
        DataError: A value outside [0, 1], or NaN.

    Example:
        >>> binarize(torch.tensor([0.2, 0.5, 0.8]))
        tensor([0., 0., 1.])
    """
    if method not in ("threshold", "sampled"):
        raise ConfigError(
            f"binarize: expected method 'threshold' or 'sampled', got {method!r}.\n"
            "Write binarize(x) for a fixed set, binarize(x, 'sampled') for fresh draws."
        )
    if not 0 <= threshold < 1:
        raise ConfigError(
            f"binarize: expected a threshold in [0, 1), got {threshold!r}.\n"
            "Any other makes all values equal. Write binarize(x, threshold=0.5)."
        )
    if method == "sampled":
        return Sampled(x)
    x = _unit_interval(x)
    return (x > threshold).to(x.dtype)


class Sampled(Dataset):
    """Dynamic binarization: each access draws b ~ Bernoulli(x), with torch's global generator.

    The gray values x, shape (N, *event) in [0, 1], are its `gray`. A batch is one tensor, so write
    `DataLoader(sampled, batch_size=B, collate_fn=torch.as_tensor)`.

    Example:
        >>> sampled = Sampled(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
        >>> sampled[0], sampled.__getitems__([1, 0]).shape, sampled.draw(seed=0).shape
        (tensor([0., 1.]), torch.Size([2, 2]), torch.Size([2, 2]))
    """

    def __init__(self, gray: Tensor | np.ndarray):
        self.gray = _unit_interval(gray)

    def __len__(self) -> int:
        return len(self.gray)

    def __getitem__(self, index: int) -> Tensor:
        """Draw one datum, shape (*event)."""
        return torch.bernoulli(self.gray[index])

    def __getitems__(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Draw a batch, shape (B, *event)."""
        return torch.bernoulli(self.gray[torch.as_tensor(indices)])

    def draw(self, seed: int) -> Tensor:
        """Draw all data once, shape (N, *event), fixed by `seed`: for held-out data."""
        generator = torch.Generator(self.gray.device).manual_seed(seed)
        return torch.bernoulli(self.gray, generator=generator)

    def fingerprint(self) -> dict[str, Any]:
        """Return shape, dtype and SHA-256 of the gray values, which a resumed run compares."""
        numbers = self.gray.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return {
            "gray shape": list(self.gray.shape),
            "gray dtype": str(self.gray.dtype),
            "gray sha256": hashlib.sha256(numbers).hexdigest(),
        }


def _unit_interval(x: Tensor | np.ndarray) -> Tensor:
    x = as_tensor(x)
    x = x if x.is_floating_point() else x.float()
    outside = ~((x >= 0) & (x <= 1))  # true for NaN too
    if outside.any():
        index = tuple(outside.nonzero()[0].tolist())
        raise DataError(
            f"binarize: expected gray values in [0, 1], got {x[index]:g} at index {index}; "
            f"x ranges from {x.min():g} to {x.max():g}.\n"
            "A pixel is the probability of a one. Write x / 255 for 0..255; replace NaN first."
        )
    return x
