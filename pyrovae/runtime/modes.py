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
        modules = list(modules_of(module))
        others = [m for m in modules if m.training != training]
        if all(type(m).train is nn.Module.train for m in modules):
            _set(others, training)
        else:  # a custom `train` may keep some of them as they are
            module.train(training)
        try:
            yield
        finally:
            _set(others, not training)


def _set(modules: list[nn.Module], training: bool) -> None:
    """Set their modes; torch's `__setattr__`, made for parameters, takes ten times as long."""
    for module in modules:
        is_plain = type(module).__setattr__ is nn.Module.__setattr__
        (object.__setattr__ if is_plain else setattr)(module, "training", training)


def modules_of(program: nn.Module) -> Iterator[nn.Module]:
    """Yield `program.modules()`, in the same order, in a third of the time.

    Example:
        >>> [type(m).__name__ for m in modules_of(nn.Sequential(nn.ReLU(), nn.Tanh()))]
        ['Sequential', 'ReLU', 'Tanh']
    """
    stack, seen = [program], set()
    while stack:
        module = stack.pop()
        if module is not None and module not in seen:
            seen.add(module)
            yield module
            stack.extend(reversed(module._modules.values()))
