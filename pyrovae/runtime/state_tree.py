"""Nested states to named tensors and JSON, and back, without pickle.

    pack(state) = (tensors, plain),    unpack(tensors, plain) = state

A state consists of dicts, lists, tuples, tensors, NumPy arrays, numbers, strings, booleans and
None, in any nesting: the `state_dict` of modules, optimizers and schedulers does, and so do the
states of generators. In `plain` each JSON object has one key that says what it stands for:

    {"tensor": name}  {"array": name}  {"tuple": […]}  {"dict": {…}}  {"items": [[key, value], …]}

A tensor that occurs several times is stored once. Floats are restored bit for bit.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.checks import shortened
from pyrovae.errors import ConfigError, CorruptCheckpointError, StateMismatchError
from pyrovae.runtime.tensor_file import check_name

Tensors = dict[str, Tensor]


def pack(state: Any) -> tuple[Tensors, Any]:
    """Split a nested state into tensors, named by their path, and a value for JSON.

    Raises:
        ConfigError: it holds something else, such as a function; the message says where.

    Example:
        >>> tensors, plain = pack({"step": 3, "moments": (torch.ones(2), None)})
        >>> tensors
        {'moments/0': tensor([1., 1.])}
        >>> unpack(tensors, plain)
        {'step': 3, 'moments': (tensor([1., 1.]), None)}
    """
    packer = _Packer()
    return packer.tensors, packer.plain(state, "")


class _Packer:
    def __init__(self) -> None:
        self.tensors: Tensors = {}
        self.names: dict[Any, str] = {}
        self.alive: list[Tensor] = []  # the id and memory of a freed tensor would be reused

    def plain(self, node: Any, path: str) -> Any:
        if node is None or isinstance(node, bool | int | float | str):
            return node
        if isinstance(node, np.generic):
            return self.plain(node.item(), path)
        if isinstance(node, Tensor):
            return {"tensor": self.name(node, path)}
        if isinstance(node, np.ndarray):
            return {"array": self.name(_from_array(node, path), path)}
        if isinstance(node, list | tuple):
            parts = [self.plain(part, _join(path, i)) for i, part in enumerate(node)]
            return {"tuple": parts} if isinstance(node, tuple) else parts
        if isinstance(node, dict):
            return self.of_dict(node, path)
        raise ConfigError(
            f"{path or 'the state'} is a {type(node).__name__}, but a checkpoint holds tensors, "
            "numbers, strings, and lists, tuples and dicts of these: nothing that would have to be "
            "pickled.\nKeep its state_dict(), or its settings as plain values."
        )

    def of_dict(self, node: dict, path: str) -> dict[str, Any]:
        for key in node:
            if not isinstance(key, str | int | float | None):
                raise ConfigError(
                    f"{path or 'the state'} has a key of type {type(key).__name__}, but keys in a "
                    "checkpoint are strings or numbers."
                )
        values = {key: self.plain(value, _join(path, key)) for key, value in node.items()}
        if all(isinstance(key, str) for key in values):
            return {"dict": values}
        return {"items": [[key, value] for key, value in values.items()]}

    def name(self, tensor: Tensor, path: str) -> str:
        path = path or "state"
        key = memory_of(tensor)
        if key not in self.names:
            while path in self.tensors:
                path += "~"
            check_name(path)
            self.tensors[path], self.names[key] = tensor.detach(), path
            self.alive.append(tensor)
        return self.names[key]


def memory_of(tensor: Tensor) -> Any:
    """Return a key that is equal for tensors of the same numbers in the same memory."""
    if tensor.layout is not torch.strided or not tensor.numel():
        return id(tensor)
    place = tensor.device, tensor.data_ptr(), tensor.dtype, tensor.is_neg()
    return (*place, tuple(tensor.shape), tensor.stride())


def _from_array(array: np.ndarray, path: str) -> Tensor:
    try:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=True))
    except TypeError:
        raise ConfigError(
            f"{path} is an array of {array.dtype}, but a checkpoint holds numbers only."
        ) from None


def _join(path: str, key: Any) -> str:
    return f"{path}/{key}" if path else str(key)


def unpack(tensors: Tensors, plain: Any) -> Any:
    """Return the nested state that `pack` split; arguments and an example are there.

    Raises:
        CorruptCheckpointError: the two do not belong together.
    """
    if plain is None or isinstance(plain, bool | int | float | str):
        return plain
    if isinstance(plain, list):
        return [unpack(tensors, part) for part in plain]
    try:
        ((kind, value),) = plain.items()
        if kind == "tensor":
            return tensors[value]
        if kind == "array":
            return tensors[value].numpy()
        if kind == "tuple" and isinstance(value, list):
            return tuple(unpack(tensors, part) for part in value)
        if kind == "dict":
            return {key: unpack(tensors, part) for key, part in value.items()}
        if kind == "items":
            return {key: unpack(tensors, part) for key, part in value}
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise CorruptCheckpointError(
        f"the state of the run holds {shortened(plain)}, which is not part of a state"
    )


def check_like(found: Any, expected: Any, name: str = "state") -> None:
    """Raise a StateMismatchError unless two states have the same keys, types, shapes and dtypes."""
    if isinstance(expected, Tensor | np.ndarray):
        wanted, arrived = describe(expected), describe(found)
        if wanted != arrived:
            raise StateMismatchError(f"{name}: {arrived} in the file, but {wanted} is needed.")
    elif isinstance(expected, dict):
        check_keys(found if isinstance(found, dict) else {}, expected, name)
        for key, value in expected.items():
            check_like(found[key], value, f"{name}/{key}")
    elif isinstance(expected, list | tuple):
        if type(found) is not type(expected) or len(found) != len(expected):
            raise StateMismatchError(
                f"{name}: not a {type(expected).__name__} of {len(expected)} items."
            )
        for index, pair in enumerate(zip(found, expected, strict=True)):
            check_like(*pair, f"{name}/{index}")
    elif expected is not None and type(found) is not type(expected):
        raise StateMismatchError(
            f"{name}: a {type(found).__name__} in the file, but a {type(expected).__name__} is "
            "needed."
        )


def describe(value: Any) -> str:
    """Return the dtype and shape of a tensor or array, in words.

    Example:
        >>> describe(torch.ones(2, 3))
        'float32 (2, 3)'
    """
    if not isinstance(value, Tensor | np.ndarray):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def check_keys(found: Any, expected: Any, name: str) -> None:
    """Raise a StateMismatchError with the first names unless both have the same keys."""
    missing = [str(key) for key in expected if key not in found]
    extra = [str(key) for key in found if key not in expected]
    if missing or extra:
        raise StateMismatchError(
            f"{name} does not fit: missing in the file: {_some(missing)}; in the file only: "
            f"{_some(extra)}.\nIt was saved from another model: make one of the same parts and "
            "sizes."
        )


def _some(names: list[str], limit: int = 3) -> str:
    shown = ", ".join(shortened(name) for name in names[:limit]) or "nothing"
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
