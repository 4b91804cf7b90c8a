"""Train and eval mode of a module for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from pyrovae.runtime.turns import TURN


@contextmanager
def module_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Set train or eval mode inside the block, and restore each submodule's own mode after it.

    No other thread changes modes meanwhile.

    Example:
        >>> dropout = nn.Dropout()
        >>> with module_mode(dropout, training=False):
        ...     print(dropout.training)
        False
        >>> dropout.training
        True
    """
    with TURN:
        others = [m for m in module.modules() if m.training != training]
        if others:  # a custom `train` may keep some of them as they are
            module.train(training)
        try:
            yield
        finally:
            for m in others:
                m.training = not training
