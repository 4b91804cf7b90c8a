"""Memory of torch's operations: count it, and let the C library keep what was freed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LARGEST_KEPT = 2**25 - 2**16  # bytes; glibc learns from blocks below 32 MiB only


class _Bytes(TorchDispatchMode):
    """Add up the bytes of the output of every operation; views do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_view = any(r.alias_info is not None for r in func._schema.returns)
        own = () if is_view else tree_leaves(result)
        self.total += sum(t.numel() * t.element_size() for t in own if isinstance(t, Tensor))
        return result


def bytes_of(function: Callable[[], Any]) -> int:
    """Return the total size of the outputs of all torch operations that a function calls.

    Example:
        >>> bytes_of(lambda: torch.zeros(3) + 1)
        24
    """
    with _Bytes() as counter:
        function()
    return counter.total


def free_memory() -> float:
    """Return the bytes of memory that new arrays can take; ∞ where the system does not say.

    Example:
        >>> free_memory() > 2**20
        True
    """
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return math.inf
    sizes = dict(line.split(":", 1) for line in lines)
    return 1024 * int(sizes["MemAvailable"].split()[0])


def keep_freed_memory(device: torch.device) -> None:
    """Let the C library keep freed blocks, so that the next chunk can reuse them.

    By default glibc returns them to the system, which clears every page before handing it out
    again: a third of the time of an IWAE evaluation went there. It raises its threshold
    (M_MMAP_THRESHOLD, and M_TRIM_THRESHOLD to twice that) when a large block is freed, so this
    function frees one. It is never written to, so it takes no memory. Harmless elsewhere.
    """
    if device.type == "cpu":
        torch.empty(LARGEST_KEPT, dtype=torch.uint8)
