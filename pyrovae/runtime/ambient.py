"""torch's settings of the caller's thread that must not change numbers.

    inference mode     its tensors cannot be differentiated later
    default device     where indices and constants would be made
    autocast           16 bits in place of a log-density's 24

`as_usual` leaves the first two, for the length of a block, and `in_full_precision` the last. Both
cost about a microsecond where there is nothing to leave. The default dtype belongs to the process
and stays: draws name their dtype instead.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from pyrovae.runtime.turns import TURN

P = ParamSpec("P")
R = TypeVar("R")
AUTOCAST = ("cpu", "cuda", "mps", "xpu")
NOTHING = nullcontext()


def as_usual() -> AbstractContextManager:
    """Return a context with new tensors on the CPU, outside of inference mode.

    Where inference mode was on, gradients stay off.

    Example:
        >>> with torch.inference_mode(), torch.device("meta"), as_usual():
        ...     a = torch.zeros(1)
        >>> a, a.is_inference()
        (tensor([0.]), False)
    """
    is_inference, is_on_cpu = torch.is_inference_mode_enabled(), torch.empty(0).is_cpu
    if is_on_cpu and not is_inference:
        return NOTHING
    stack = ExitStack()
    if is_inference:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
    if not is_on_cpu:
        stack.enter_context(torch.device("cpu"))
    return stack


def in_full_precision() -> AbstractContextManager:
    """Return a context without autocast.

    Example:
        >>> layer, x = torch.nn.Linear(1, 1), torch.ones(1, 1)
        >>> with torch.autocast("cpu", torch.bfloat16), in_full_precision():
        ...     layer(x).dtype
        torch.float32
    """
    devices = [device for device in AUTOCAST if torch.is_autocast_enabled(device)]
    if not devices:
        return NOTHING
    stack = ExitStack()
    for device in devices:
        stack.enter_context(torch.autocast(device, enabled=False))
    return stack


def exclusive(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function run as usual and hold the turn, so that no other thread changes what it sees.

    Example:
        >>> @exclusive
        ... def depth():
        ...     return TURN.depth
        >>> depth(), TURN.depth
        (1, 0)
    """

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with TURN, as_usual():
            return function(*args, **kwargs)

    return alone
