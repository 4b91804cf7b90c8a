"""Train and eval mode of a module for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def module_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Set train or eval mode inside the block, and restore each submodule's own mode after it.

    Example:
        >>> dropout = nn.Dropout()
        >>> with module_mode(dropout, training=False):
        ...     print(dropout.training)
        False
        >>> dropout.training
        True
    """
    modes = [(m, m.training) for m in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for m, was_training in modes:
            m.training = was_training
