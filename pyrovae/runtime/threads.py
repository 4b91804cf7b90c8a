"""The number of torch threads of a training step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pyrovae.runtime.turns import TURN

SMALL_STEP = 2**25  # multiplications, some milliseconds of one core with their gradients


@contextmanager
def threads_for(num_multiplications: int) -> Iterator[None]:
    """Use one torch thread inside the block if a step's matrix products are too small to share.

    On two cores, a second thread that waits for the first made steps of small networks up to ten
    times slower. The choice depends only on the amount of work, never on timing.

    Args:
        num_multiplications: of one step: about the batch size times the number of parameters.

    Example:
        >>> with threads_for(64 * 20_000):
        ...     torch.get_num_threads()
        1
    """
    with TURN:  # the number is that of the process
        before = torch.get_num_threads()
        if num_multiplications < SMALL_STEP:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
