"""`save` and `load`: a finished model in one file.

A model that `build` made is stored with its specification and rebuilt from it; the specification
may name only the public parts of pyrovae. Any other model is loaded into an object that the caller
passes. Either way, names, shapes and dtypes must agree before any number changes.

A tensor that has several names is stored once, under the first, with the others as aliases of it; a
model is loaded only into one that shares the same tensors. The data, non-persistent buffers, train
or eval mode and the device are not stored.
"""

import inspect
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyrovae.checks import as_path, shortened
from pyrovae.data.schema import Schema
from pyrovae.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpointError,
    StateMismatchError,
    UnsafeFormatError,
)
from pyrovae.runtime.ambient import exclusive
from pyrovae.runtime.files import opened, write_atomically
from pyrovae.runtime.state_tree import check_keys, describe, memory_of
from pyrovae.runtime.tensor_file import TensorFile, read_tensor_file, tensor_file

if TYPE_CHECKING:
    from pyrovae.vae import VAE

Program = TypeVar("Program", bound=nn.Module)

FAMILIES = ("priors", "guides", "likelihoods")


@exclusive
def save(vae: nn.Module, path: Any) -> Path:
    """Write a model to one file, atomically: safetensors, with a JSON description.

    Parameters and persistent buffers are stored bit for bit, shared ones once. Readers see the old
    file or the new one, even after a crash.

    Args:
        vae: a `VAE`, or any module.
        path: path of the file, in an existing folder; an existing file is replaced.

    Returns:
        The path.

    Raises:
        ConfigError: the path cannot name a file, or the state holds anything but dense real
            tensors.
        CheckpointError: the weights contain NaN, or the file cannot be written; an existing file
            is unchanged.

    Example:
        >>> import tempfile
        >>> from pyrovae import builder
        >>> vae = builder.build((4,), latent_dim=2, hidden=(8,), seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save(vae, f"{folder}/vae.safetensors")
        ...     again = load(path)
        >>> x = torch.ones(3, 4)
        >>> bool((again.encode(x).mean == vae.encode(x).mean).all())
        True
    """
    path = as_path(path)
    tensors, aliases = named_tensors(vae)
    for name, tensor in tensors.items():
        if has_nan(tensor):
            raise CheckpointError(
                f"{name} has NaN, so there is no model to save.\nSave one from before it diverged: "
                "fit leaves the weights as they were before the step that failed."
            )
    held = vae.state_dict(keep_vars=True)
    frozen = [n for n, t in held.items() if isinstance(t, nn.Parameter) and not t.requires_grad]
    description = {"kind": "model", "aliases": aliases, "frozen": frozen, "parts": parts_of(vae)}
    schema = getattr(vae, "schema", None)
    description["schema"] = None if schema is None else schema.to_json()
    write_atomically(path, tensor_file(tensors, description | _recipe(vae, tensors, aliases)))
    return path


@overload
def load(path: Any, *, into: None = None) -> "VAE": ...
@overload
def load(path: Any, *, into: Program) -> Program: ...


@exclusive
def load(path: Any, *, into: nn.Module | None = None) -> nn.Module:
    """Read a model that `save` wrote.

    Args:
        path: path of the file.
        into: the model to fill, in place, with the same parts and sizes. None rebuilds a model
            that `build` made, on the CPU and in eval mode, as `fit` leaves it.

    Returns:
        The model: `into`, or a new one.

    Raises:
        UnsafeFormatError: the file is not a safetensors file written by pyrovae, or names something
            that is not a part of pyrovae. Nothing that a file names is imported or run.
        CorruptCheckpointError: the file was cut or altered, or has NaN.
        VersionMismatchError: a later release wrote it.
        StateMismatchError: names, shapes, dtypes or shared tensors differ from those of `into`,
            which is then unchanged; or the file holds no specification, and `into` is needed.
        CheckpointError: the file does not exist, or cannot be read.

    Example:
        >>> import tempfile
        >>> model, other = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save(model, f"{folder}/linear.safetensors")
        ...     load(path, into=other) is other
        True
        >>> bool((other.weight == model.weight).all())
        True
    """
    path = as_path(path)
    with opened(path, follow_links=True) as fd:
        file = read_tensor_file(fd, path)
    _check_description(file.description, path)
    vae = _rebuilt(file, path).eval() if into is None else into
    _check_fit(vae, file)
    schema = _schema_in(file, path)
    for name, tensor in file.tensors.items():
        if has_nan(tensor):
            raise CorruptCheckpointError(
                f"{path}: {shortened(name)} has NaN, which is never saved.", path
            )
    _fill(vae, file.tensors)
    if schema is not None:
        vae.schema = schema
    return vae


def named_tensors(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return parameters and persistent buffers by name, each once, and the aliases of shared ones.

    Raises:
        ConfigError: the module's state holds something other than a tensor.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> tensors, aliases = named_tensors(nn.ModuleDict({"a": layer, "b": layer}))
        >>> list(tensors), aliases
        (['a.weight'], {'b.weight': 'a.weight'})
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor) or isinstance(value, nn.UninitializedParameter):
            raise ConfigError(
                f"{name} is a {type(value).__name__}, but only tensors are saved.\nMake it a "
                "buffer, or run the module once if it is lazy and does not know its sizes yet."
            )
        if value.is_meta:
            raise ConfigError(
                f"{name} is on the device 'meta', where tensors have no values to save or to fill."
                "\nBuild the model outside of torch.device('meta')."
            )
        key = memory_of(value)
        if key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            tensors[name] = value.detach()
    return tensors, aliases


def parts_of(module: nn.Module) -> dict[str, str]:
    """Return the submodules that are public parts of pyrovae: name → the part's name.

    Example:
        >>> from pyrovae import guides
        >>> parts_of(nn.Sequential(nn.Linear(2, 4), guides.DiagonalNormal(2)))
        {'1': 'DiagonalNormal'}
    """
    rooms = tuple(f"pyrovae.{family}." for family in FAMILIES)
    found = {name: type(part) for name, part in module.named_modules()}
    return {n: kind.__name__ for n, kind in found.items() if kind.__module__.startswith(rooms)}


def has_nan(tensor: Tensor) -> bool:
    """Return whether the tensor contains NaN."""
    if not tensor.is_floating_point():
        return False
    return bool((tensor.float() if tensor.element_size() == 1 else tensor).isnan().any())


# Specifications.


def _recipe(vae: nn.Module, tensors: dict[str, Tensor], aliases: dict[str, str]) -> dict[str, Any]:
    """Return the specification for the file, after checking that it rebuilds this model."""
    spec = getattr(vae, "spec", None)
    if not isinstance(spec, dict):
        return {"spec": None, "why": "it was not made by pyrovae.build"}
    try:
        spec = json.loads(json.dumps(spec, allow_nan=False))
    except (TypeError, ValueError) as error:
        return {"spec": None, "why": f"its specification is not plain JSON ({error})"}
    recipe = {"spec": spec, "data_spec": getattr(vae, "data_spec", {})}
    try:
        again = _built(recipe, tensors)
        held, held_aliases = named_tensors(again)
        is_same = (list(held), held_aliases) == (list(tensors), aliases)
        if is_same:
            _fill(again, tensors)  # because its repr may show numbers
            is_same = repr(again) == repr(vae)
    except Exception as error:  # the caller may have changed the model or its specification
        return {"spec": None, "why": f"its specification does not build it: {error}"[:300]}
    return recipe if is_same else {"spec": None, "why": "it was changed after pyrovae.build"}


def _rebuilt(file: TensorFile, path: Path) -> nn.Module:
    description = file.description
    if description.get("spec") is None:
        why = shortened(description.get("why"), 200)
        raise StateMismatchError(
            f"{path} cannot be built from its description: {why}.\n"
            "Make a model of the same parts and sizes, and fill it: "
            "pyrovae.load(path, into=vae)."
        )
    _check_names(description["spec"], path, description.get("pyrovae"))
    try:
        vae = _built(description, file.tensors)
    except Exception as error:  # the arguments come from the file, so anything can be wrong
        raise StateMismatchError(
            f"{path}: its specification builds no model: {shortened(error, 300)}.\n"
            "The file was made by hand, or by another release of pyrovae."
        ) from None
    _as_stored(vae, file)
    return vae


def _check_names(spec: Any, path: Path, version: Any) -> None:
    """Raise an UnsafeFormatError unless the specification names only parts of pyrovae."""
    from pyrovae import builder  # here, so that training, which only saves, imports no parts

    names = builder.NAMES
    known = set(inspect.signature(builder.build).parameters) - {"data", "seed"}
    unknown = set(spec) - known if isinstance(spec, dict) else {"specification"}
    named = {} if unknown else {kind: spec.get(kind, "") for kind in names if kind in spec}
    for kind, choice in named.items():
        name = choice.get("name") if isinstance(choice, dict) else choice
        if not isinstance(name, str) or name not in names[kind]:
            unknown.add(f"{kind}: {name}")
    if unknown:
        raise UnsafeFormatError(
            f"{path} names {shortened(sorted(unknown)[0])}, which is not a part of pyrovae; "
            f"nothing that a file names is imported or run.\nIt says that pyrovae "
            f"{shortened(version)} wrote it. For custom parts: pyrovae.load(path, into=vae)."
        )


def _built(recipe: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """Build the model of a recipe, for these tensors; its initial numbers do not matter."""
    from pyrovae import builder

    num_elements, num_tensors = sum(t.numel() for t in tensors.values()), len(tensors)
    hidden = recipe["spec"].get("hidden")
    if isinstance(hidden, list) and len(hidden) > num_tensors:
        raise CorruptCheckpointError(
            f"it asks for {len(hidden):,} layers, more than there are tensors"
        )
    spec = dict(recipe["spec"])
    with _Budget(4 * num_elements + 2**20, 500 * num_tensors + 20_000):
        for kind, taken in recipe["data_spec"].items():
            choice = spec[kind] if isinstance(spec[kind], dict) else {"name": spec[kind]}
            spec[kind] = choice | {n: _stand_in(**facts) for n, facts in taken.items()}
        vae = builder.build(**spec, seed=0)
    vae.spec, vae.data_spec = recipe["spec"], recipe["data_spec"]
    return vae


def _stand_in(shape: list[int], range: list[float]) -> Tensor:
    """Return a placeholder for a tensor taken from data, with its shape and range."""
    return torch.linspace(*range, math.prod(shape)).reshape(shape)


class _Budget(TorchFunctionMode):
    """Limit on the size of new tensors and on the number of operations.

    A specification of a few bytes can ask for terabytes of weights. The meta device would not do:
    zuko reads the values of its masks, and the first `randn` on it imports torch's compiler, which
    takes more time and memory than a hostile file should cost.
    """

    def __init__(self, num_elements: int, num_operations: int):
        super().__init__()
        self.num_elements, self.num_operations = num_elements, num_operations

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.num_operations -= 1
        is_arithmetic = getattr(function, "__name__", "").startswith("__")
        largest = 0 if is_arithmetic else _largest_size([*args, *kwargs.values()])
        # raised once only: on exit, `no_grad` restores its mode by one more operation
        if self.num_operations == 0 or largest > self.num_elements:
            raise CorruptCheckpointError("it asks for a far larger model than the file holds")
        result = function(*args, **kwargs)
        if isinstance(result, Tensor) and result.numel() > self.num_elements:
            raise CorruptCheckpointError("it asks for a far larger model than the file holds")
        return result


def _largest_size(arguments: list[Any]) -> int:
    """Return the number of elements that integer arguments can ask for: (3, 4) or [3, 4] is 12."""
    lists = [a for a in arguments if isinstance(a, list | tuple)]
    sizes = [math.prod(a) for a in lists if all(type(size) is int for size in a)]
    whole = [a for a in arguments if type(a) is int]
    return max([*sizes, *whole, math.prod(whole)])


def _schema_in(file: TensorFile, path: Path) -> Schema | None:
    """Return the names of columns and classes in a file, if it holds any."""
    stored = file.description.get("schema")
    try:
        return None if stored is None else Schema.from_json(stored)
    except ValueError as error:
        raise CorruptCheckpointError(
            f"{path}: its names of columns are not readable: {shortened(error)}.", path
        ) from None


# Filling a model.


def _check_description(description: dict[str, Any], path: Path) -> None:
    kinds = {"aliases": dict, "frozen": list, "parts": dict}
    is_model = all(isinstance(description.get(name), kind) for name, kind in kinds.items())
    if description.get("kind") != "model" or not is_model:
        raise CorruptCheckpointError(
            f"{path}: it is not a saved model (but perhaps a step of a run).", path
        )


def _as_stored(vae: nn.Module, file: TensorFile) -> None:
    """Convert a new model to the dtypes in the file, and freeze the parameters that were frozen."""
    state = vae.state_dict(keep_vars=True)
    for name, tensor in file.tensors.items():
        if name in state and state[name].shape == tensor.shape:
            state[name].data = state[name].data.to(tensor.dtype)
    for name in file.description["frozen"]:
        if isinstance(name, str) and isinstance(state.get(name), nn.Parameter):
            state[name].requires_grad_(False)


def _check_parts(vae: nn.Module, stored: dict[str, str]) -> None:
    """Raise a StateMismatchError if a part of pyrovae would get the numbers of a different part.

    Their shapes may agree. Custom classes are not compared, because they may have been renamed.
    """
    for name, part in parts_of(vae).items():
        if stored.get(name) != part:
            was = shortened(stored[name]) if name in stored else "a custom part"
            raise StateMismatchError(
                f"{name} is a {part} in the model, but {was} in the file: the numbers have the "
                "same shapes, but mean another density.\nMake a model of the parts that were saved."
            )


def _check_fit(vae: nn.Module, file: TensorFile) -> None:
    """Raise a StateMismatchError unless names, shapes, dtypes and shared tensors agree."""
    _check_parts(vae, file.description["parts"])
    held, aliases = named_tensors(vae)
    stored, stored_aliases = file.tensors, file.description["aliases"]
    check_keys({**stored, **stored_aliases}, {**held, **aliases}, "the model")
    if _shared(aliases) != _shared(stored_aliases):
        one, other = _shared(aliases), _shared(stored_aliases)
        where = "only in the model" if one - other else "only in the file"
        names = sorted(next(iter(one - other or other - one)))
        raise StateMismatchError(
            f"{' and '.join(map(shortened, names[:2]))} are one tensor {where}.\nMake the model "
            "as it was when it was saved: share the same modules between its parts."
        )
    for name, tensor in stored.items():
        wanted, arrived = map(describe, (tensor, held[aliases.get(name, name)]))
        if wanted != arrived:
            raise StateMismatchError(
                f"{shortened(name)} is {wanted} in the file, but {arrived} in the model.\n"
                "Make a model of the same sizes, and of the same dtype: vae.double(), say."
            )


def _shared(aliases: dict[str, str]) -> set[frozenset[str]]:
    """Return the groups of names of one tensor, in any order."""
    groups: dict[str, set[str]] = {}
    for name, first in aliases.items():
        groups.setdefault(str(first), {str(first)}).add(name)
    return {frozenset(group) for group in groups.values()}


def _fill(vae: nn.Module, tensors: dict[str, Tensor]) -> None:
    held, aliases = named_tensors(vae)
    for name, tensor in tensors.items():
        held[aliases.get(name, name)].copy_(tensor)
