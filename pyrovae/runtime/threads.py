"""How many torch threads a training step uses."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL_STEP = 2**25  # multiplications, some milliseconds of one core with their gradients


@contextmanager
def threads_for(num_multiplications: int) -> Iterator[None]:
    """One torch thread for the block where a step's matrix products are too small to share.

    On two cores, a second thread that waits for the first made steps of small networks up to
    ten times slower; the choice depends on the work only, never on a stopwatch.

    Args:
        num_multiplications: of one step: about batch size times parameters.

    Example:
        >>> with threads_for(64 * 20_000):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    if num_multiplications < SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
