"""Requirements of a program on its data, cached until a part is swapped or edited."""

from collections.abc import Hashable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn.modules.batchnorm import _NormBase

from pyrovae.checks.supports import columns_of
from pyrovae.densities.supports import support_of
from pyrovae.runtime.modes import modules_of


class Requirement(NamedTuple):
    """Requirement of an observed site on its data.

    Attributes:
        density: p(x|z) of two data, without a mask.
        support: the support of one element of x, or of its columns, if it is the same for every
            datum; else None.
    """

    density: Distribution
    support: constraints.Constraint | None


class Requirements:
    """Requirements of a program on its data.

    Attributes:
        sites: observed site → its requirement.
        state: the state of the program when it was inspected (`state_of`).
        references: weak references to the objects whose ids are in the state: while all are
            alive, no id has been reused.
    """

    def __init__(self, densities: dict[str, Distribution], state: tuple, objects: list):
        self.sites = {n: Requirement(d, _support_for_all(d)) for n, d in densities.items()}
        self.state = state
        # strong references would keep the program alive
        self.references = [_weak(thing) for thing in objects]

    def is_of(self, state: tuple) -> bool:
        """Return whether a program in this state is the one that was inspected."""
        return self.state == state and all(r is None or r() is not None for r in self.references)

    def remember(self, program: nn.Module, kind: Hashable) -> None:
        """Cache the requirements, unless they hold for some data only."""
        if all(site.support is not None for site in self.sites.values()):
            _KNOWN.setdefault(program, {})[kind] = self


def _support_for_all(density: Distribution) -> constraints.Constraint | None:
    support = support_of(density)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    columns = None if support is None else columns_of(support)
    each = [support] if columns is None else columns.supports
    return support if support is not None and all(map(is_one_for_all, each)) else None


def _weak(thing: Any) -> ref | None:
    try:
        return ref(thing)
    except TypeError:  # a list, say
        return None


# program → kind of data → requirements
_KNOWN: WeakKeyDictionary[nn.Module, dict[Hashable, Requirements]] = WeakKeyDictionary()


def known(program: nn.Module, kind: Hashable, state: tuple) -> Requirements | None:
    """Return the requirements of a program in this state for this kind of data, if known."""
    found = _KNOWN.get(program, {}).get(kind)
    return found if found is not None and found.is_of(state) else None


TORCHS_OWN = frozenset(vars(nn.Module()))
NUM_OF_TORCH = len(TORCHS_OWN)
PLAIN = (bool, int, float, str, type(None))


def state_of(program: nn.Module) -> tuple[tuple, list]:
    """Return a tuple that changes if a part is swapped or edited, and the objects in it.

    It holds modules, their attributes, parameters and buffers, and in eval mode the versions of
    parameters: in train mode an optimizer changes them at each step.
    """
    state: list[Any] = []
    objects: list[Any] = []
    is_training = program.training
    for module in modules_of(program):
        held = module.__dict__
        objects.append(module)
        if len(held) > NUM_OF_TORCH:
            for name, value in held.items():
                if name not in TORCHS_OWN:
                    state.append(value if type(value) in PLAIN else None)
                    objects.append(value)
        is_norm = isinstance(module, _NormBase)  # updates its buffers in the forward pass
        for tensors in (held["_parameters"], held["_buffers"]):
            for tensor in tensors.values():
                if tensor is not None:
                    objects.append(tensor)
                    is_moving = is_norm or (is_training and tensor.requires_grad)
                    state.append((tensor.dtype, 0 if is_moving else tensor._version))
    state.extend(map(id, objects))
    return tuple(state), objects


def is_one_for_all(support: constraints.Constraint) -> bool:
    """Return whether every number of a datum has this same support, regardless of the others."""
    if columns_of(support):
        return False
    attributes = vars(support).values()
    is_by_cell = any(isinstance(value, Tensor) and value.numel() > 1 for value in attributes)
    return support.event_dim == 0 and not is_by_cell
