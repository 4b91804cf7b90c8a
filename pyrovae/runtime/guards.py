"""What a traced graph takes from a program's Python: constants, watched for changes.

Parameters and buffers are inputs of a graph. Any other attribute is read once, while the step is
traced: a number, a tensor that is not a buffer, a list or dict of these. `Constants` says which of
them has changed since; `Copies` restores what tracing itself changed. Both compare

    numbers, strings, tensors, arrays    contents, in any nesting of lists, tuples, sets, dicts
    other objects                        identity, and numbers and tensors among their attributes

Nothing is compared during a step. Closures, globals and class attributes are not watched.
"""

import hashlib
from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import chain
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyrovae.runtime.hashing import as_bytes

NUMBERS = (type(None), bool, int, float, complex, str, bytes)
ARRAYS = (Tensor, np.ndarray)
CONTAINERS = (list, tuple, deque, set, frozenset, dict)
KNOWN = (*NUMBERS, *ARRAYS, *CONTAINERS)
# parameters, buffers, submodules and hooks, which graphs take as inputs or refuse
TORCHS_OWN = frozenset(vars(nn.Module())) - {"training"}


def hooks_within(program: nn.Module) -> str | None:
    """Say which hooks a graph would not run; None for none.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> _ = layer.register_forward_hook(print)
        >>> hooks_within(layer)
        'one of its modules has hooks, which run as Python at each step'
    """
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, name, None) for module in program.modules() for name in hooks):
        return "one of its modules has hooks, which run as Python at each step"
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in program.parameters()):
        return "one of its parameters has hooks, which run as Python at each step"
    return None


class Constants:
    """The attributes of a program and its submodules at the time of construction.

    It holds a digest of each, not a copy.

    Args:
        program: the module.

    Example:
        >>> dropout = nn.Dropout(0.2)
        >>> constants = Constants(dropout)
        >>> dropout.p = 0.3
        >>> constants.change()
        'p of a Dropout changes, and a graph has it as a constant'
    """

    def __init__(self, program: nn.Module):
        self.program, self.digests = program, _digests(program)
        found = _all_within(program)
        self.alive = [v for v in found if not isinstance(v, KNOWN)]  # so that no id is reused

    def change(self) -> str | None:
        """Say which attribute has changed; None for none."""
        now = _digests(self.program)
        for holder, name in {**now, **self.digests}:
            if now.get((holder, name)) != self.digests.get((holder, name)):
                kind = type(holder).__name__
                return f"{name} of a {kind} changes, and a graph has it as a constant"
        return None


class Copies:
    """Copies of everything that a program's Python may write into; keep them only briefly.

    Example:
        >>> layer = nn.Identity()
        >>> layer.scales = [1.0]
        >>> copies = Copies(layer)
        >>> layer.scales.append(2.0)
        >>> copies.restore()
        >>> layer.scales
        [1.0]
    """

    def __init__(self, program: nn.Module):
        found = _all_within(program)
        holders = [vars(v) for v in (*program.modules(), *found) if _is_object(v)]
        written = [v for v in found if isinstance(v, (*ARRAYS, list, deque, set, dict))]
        written = [v for v in written if not isinstance(v, nn.Parameter)]
        self.copies = [(v, _copy(v)) for v in (*holders, *written)]
        self.requires_grad = [(p, p.requires_grad) for p in program.parameters()]

    def restore(self) -> None:
        """Restore the program's Python attributes, in place."""
        with torch.no_grad():
            for value, copy in self.copies:
                _restore(value, copy)
        for parameter, requires_grad in self.requires_grad:
            parameter.requires_grad = requires_grad


def _copy(value: Any) -> Any:
    """Return a copy of the built-in type: a subclass may need other arguments."""
    if isinstance(value, ARRAYS):
        return value.detach().clone() if isinstance(value, Tensor) else value.copy()
    return _plain(value)(value)


def _plain(value: Any) -> type:
    kinds = (OrderedDict, dict, set, list, deque)
    return next(kind for kind in kinds if isinstance(value, kind))


def _restore(value: Any, copy: Any) -> None:
    if isinstance(value, ARRAYS):
        if _contents(value) != _contents(copy):  # some cannot be written into
            value[...] = copy
        return
    kind = _plain(value)
    if not _holds_the_same(kind(value), copy):  # some forbid writing
        kind.clear(value)
        (kind.update if kind in (OrderedDict, dict, set) else kind.extend)(value, copy)


def _holds_the_same(one: Any, other: Any) -> bool:
    if isinstance(one, set):
        return one == other
    if isinstance(one, dict):
        one, other = (list(chain(*value.items())) for value in (one, other))
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _attributes(program: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    for module in program.modules():
        for name, value in vars(module).items():
            if name not in TORCHS_OWN:
                yield module, name, value


def _all_within(program: nn.Module) -> list[Any]:
    return [v for _, _, value in _attributes(program) for v in _within(value)]


def _digests(program: nn.Module) -> dict[tuple[Any, str], bytes]:
    digests = {(m, name): _digest(value) for m, name, value in _attributes(program)}
    return digests | {(p, "requires_grad"): _digest(p.requires_grad) for p in program.parameters()}


def _digest(value: Any) -> bytes:
    digest = hashlib.sha256()
    for part in _within(value):
        for piece in _pieces(part):
            digest.update(piece)
    return digest.digest()


def _within(value: Any, above: tuple[int, ...] = ()) -> Iterator[Any]:
    """Yield a value and everything that it holds, a container before its items."""
    yield value
    if id(value) in above:  # a list may hold itself
        return
    above = (*above, id(value))
    parts: Any = ()
    if isinstance(value, dict):
        parts = (part for item in value.items() for part in item)
    elif isinstance(value, set | frozenset):
        parts = sorted(value, key=repr)  # a set has no order
    elif isinstance(value, CONTAINERS):
        parts = value
    elif _is_object(value):
        named = vars(value).items()
        parts = (part for n, v in named if isinstance(v, (*NUMBERS, *ARRAYS)) for part in (n, v))
    for part in parts:
        yield from _within(part, above)


def _is_object(value: Any) -> bool:
    """Return whether value has attributes and is not a tensor, container, class or module."""
    is_other = isinstance(value, (*KNOWN, type, ModuleType))
    return not is_other and isinstance(getattr(value, "__dict__", None), dict)


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    """Yield what distinguishes a value from others, except for what it holds."""
    yield f"\n{type(value).__name__} ".encode()
    if isinstance(value, NUMBERS):
        yield repr(value).encode()
    elif isinstance(value, CONTAINERS):
        yield str(len(value)).encode()
    elif isinstance(value, ARRAYS):
        yield f"{value.dtype} {tuple(value.shape)} ".encode()
        contents = _contents(value)
        yield str(id(value)).encode() if contents is None else contents
    else:
        yield str(id(value)).encode()


def _contents(value: Tensor | np.ndarray) -> memoryview | None:
    """Return the bytes of its numbers; None if there is no access, or they are not constant."""
    try:
        if isinstance(value, np.ndarray):
            return np.ascontiguousarray(value).view(np.uint8).data
        return None if isinstance(value, nn.Parameter) else as_bytes(value.detach())
    except (TypeError, ValueError, RuntimeError, NotImplementedError):  # of objects; sparse
        return None
