"""Whether data are what a program takes: the program looked at once, the values every time.

A program says what it requires when it is run on the first two rows (`program.first_look`):
p(x|z), whose event shape and support the values must have. That is remembered per program,
shapes, dtype and presence of y and mask, until a part is swapped or edited (`_state_of`), so a
second call looks at the values only. Values are never changed, only cast to the dtype and device
of the parameters.
"""

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn.modules.batchnorm import _NormBase

from pyrovae.checks import (
    as_tensor,
    check_event_shape,
    check_finite,
    check_mask,
    check_precision,
    check_values,
    is_clearly_fine,
)
from pyrovae.checks.values import elementwise, has_edges, innermost
from pyrovae.contract.densities import check_densities, support_of
from pyrovae.contract.program import (
    check_mask_is_seen,
    check_signatures,
    first_look,
    observed_site,
)
from pyrovae.data import Batch, Source, open_source
from pyrovae.errors import DataError


def validated(
    program: nn.Module, x: Any, y: Any = None, mask: Any = None, *, batch_size: int | None = None
) -> Source:
    """Open data in any container, checked against the program; its batches fit the program.

    Args:
        program: a module with `.model` and `.guide`.
        x, y, mask: as for `fit`.
        batch_size: B, for training: then all of a Dataset is looked at beforehand. None reads
            the data in their own order, and looks at a Dataset's rows as they come.

    Returns:
        The source; x in the dtype and on the device of the program's parameters.

    Raises:
        DataError: the data do not fit the program; says where, and what to write.
        ConfigError: the program's own parts do not fit each other.

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1)
        >>> validated(vae, [[0, 1], [1, 1]]).whole().x
        tensor([[0., 1.],
                [1., 1.]])
    """
    validator = Validator(program)
    if batch_size is None:
        source = open_source(x, y, mask, batch_size=READ_AT_A_TIME)
        source.watch(validator)
    else:
        source = open_source(x, y, mask, batch_size=batch_size)
        source.accept(validator)
    return source


READ_AT_A_TIME = 1024  # rows of a Dataset


class Requirements:
    """What a program asks of its data.

    Attributes:
        density: p(x|z) of two data, without a mask.
        support: of one number of x, where it is that of every datum; else None.
        state: of the program when it was looked at (`_state_of`).
        references: weak ones to the objects that the state names by address: where all are
            alive, no address was used twice.
    """

    def __init__(self, density: Distribution, state: tuple, objects: list):
        self.density, self.state = density, state
        # strong ones would keep the program, whose entry here goes with it
        self.references = [_weak(thing) for thing in objects]
        support = support_of(density)
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        self.support = support if support is not None and _is_one_for_all(support) else None

    def is_of(self, state: tuple) -> bool:
        """Return whether a program in this state is the one that was looked at."""
        return self.state == state and all(r is None or r() is not None for r in self.references)


def _weak(thing: Any) -> ref | None:
    try:
        return ref(thing)
    except TypeError:  # a list, say
        return None


# per program, and there per kind of data; an entry goes with its program
_KNOWN: WeakKeyDictionary[nn.Module, dict[Hashable, Requirements]] = WeakKeyDictionary()


class Validator:
    """Checks data against a program, and casts them; sources call it (`data.Validator`).

    Args:
        program: as for `validated`.

    Raises:
        DataError, ConfigError: from its methods; for batches of a loader also where y or mask
            comes with some batches only, or with another shape.

    Example:
        >>> import pyrovae as pv
        >>> validator = Validator(pv.build((2,), latent_dim=1))
        >>> [validator.one_of_many(Batch([[0, 1]] * n)).num_data for n in (3, 1)]
        [3, 1]
        >>> validator.one_of_many(Batch([[0, 2]]))
        Traceback (most recent call last):
            ...
        pyrovae.errors.DataError: x[0, 1] = 2, but a Bernoulli likelihood needs values in ...
    """

    def __init__(self, program: nn.Module):
        self.program = program
        self.requirements: Requirements | None = None
        self.traces: tuple | None = None  # of a program that is looked at for the first time
        self.kind: Any = None
        self.like = _like(program)

    def begin(self, batch: Batch) -> None:
        """Check the shapes of all columns, and the program where it is not known yet."""
        x, y, mask = batch
        check_num_rows(x)
        if mask is not None and (isinstance(mask, Tensor) or mask.shape != x.shape):
            check_mask(mask, x.shape)
        if y is not None:
            check_num_covariates(y, len(x))
            check_finite(y, name="y")
            check_is_seen(self.program)
        self._look(batch)
        if self.traces:
            check_event_shape(x, self.requirements.density.event_shape)

    def check(self, batch: Batch, *, first_row: int = 0) -> None:
        """Raise DataError unless every observed value is in the support of p(x|z)."""
        x, y, mask = batch
        mask = mask.bool() if isinstance(mask, Tensor) else mask
        density = self.requirements.density
        support = self.requirements.support
        is_fine = mask is None and support is not None
        if not (is_fine and is_clearly_fine(x, density.event_shape, support, self.like.dtype)):
            check_values(x, density, mask)
            check_precision(x, self.like.dtype, mask, p_x=density)
        for module in () if y is None else knowing_parts(self.program):
            try:
                module.check_data(*list(self.cast(Batch(x, y)))[:2])
            except DataError as error:
                if not first_row:
                    raise
                where = f"in rows {first_row:,} to {first_row + len(x) - 1:,}, numbered from 0: "
                raise DataError(where + str(error)) from None

    def cast(self, batch: Batch) -> Batch:
        """Return x and floats of y in the dtype, and all on the device, of the parameters."""
        device, dtype = self.like.device, self.like.dtype
        x, y, mask = batch
        if y is not None:
            y = y.to(device, dtype if y.is_floating_point() else y.dtype)
        mask = None if mask is None else mask.to(device, torch.bool)
        return Batch(x.to(device, dtype), y, mask, batch.labels)

    def end(self) -> None:
        """Check the program's densities, after the values: NaN in x is not the encoder's."""
        if self.traces:
            check_densities(*self.traces)
            self._remember()

    def one_of_many(self, batch: Batch) -> Batch:
        """Check and cast a batch of a loader, the first one as `begin` does."""
        x, y, mask = batch
        if not sees_covariates(self.program):
            check_is_no_mask(y, x)
            y = None  # labels that a Dataset gives with each image
        x = as_tensor(x, "x")
        check_num_rows(x)
        mask = None if mask is None else as_tensor(mask, "mask")
        if mask is not None:
            check_mask(mask, x.shape, is_whole=False)
        y = None if y is None else as_tensor(y, "y")
        if y is not None:
            check_num_covariates(y, len(x))
            check_finite(y, name="y")
        batch = Batch(x, y, mask)
        kind = (None if y is None else tuple(y.shape[1:]), mask is not None)
        if self.requirements is None:
            self._look(batch)
            self.kind = kind
        self.check(batch)
        if kind != self.kind:
            raise DataError(_other_kind(kind, self.kind))
        cast = self.cast(batch)
        if self.traces:
            check_densities(*self.traces)
            self._remember()
        return cast

    def key(self, batch: Batch) -> Hashable | None:
        """Return what `check` depends on beside the values; None where it is unknown."""
        density = self.requirements.density
        support = innermost(density.support)
        knows_y = batch.y is not None and bool(knowing_parts(self.program))
        if knows_y or not _is_one_for_all(support) or not _has_finite_ends(density):
            return None
        kinds = [type(support), type(elementwise(density))]
        names = tuple(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
        bounds = tuple(sorted((name, repr(value)) for name, value in vars(support).items()))
        return names, bounds, self.like.dtype

    def allows_stored(self, values: Any, *, has_y: bool) -> bool:
        """Return whether these values are allowed in every cell of x."""
        density = self.requirements.density
        support = innermost(density.support)
        knows_y = has_y and bool(knowing_parts(self.program))
        if knows_y or not _is_one_for_all(support) or has_edges(support):
            return False
        try:
            part = as_tensor(values)
            check_finite(part)
            check_precision(part, self.like.dtype, p_x=density)
        except DataError:
            return False
        return bool(support.check(part).all())

    def _look(self, batch: Batch) -> None:
        """Take what is known of the program, or look at it."""
        kind = self.program.training, *(c if c is None else (c.shape[1:], c.dtype) for c in batch)
        self.memory = (kind, self.like.dtype, self.like.device), *_state_of(self.program)
        known = _KNOWN.get(self.program, {}).get(self.memory[0])
        if known is not None and known.is_of(self.memory[1]):
            self.requirements = known
            return
        check_signatures(self.program)
        first = self.cast(_first_rows(batch))
        self.traces = first_look(self.program, first)
        if isinstance(batch.mask, Tensor) and not hasattr(self.program, "check_parts"):
            self._check_mask_is_seen(batch)
        density = observed_site(self.traces[0])["fn"]
        self.requirements = Requirements(density, *self.memory[1:])

    def _check_mask_is_seen(self, batch: Batch) -> None:
        row = (~batch.mask.bool().flatten(1).all(1)).nonzero()[:1, 0].repeat(2)
        if len(row):
            check_mask_is_seen(self.program, self.cast(batch.rows(row)), self.traces[0])

    def _remember(self) -> None:
        self.traces = None
        if self.requirements.support is not None:
            _KNOWN.setdefault(self.program, {})[self.memory[0]] = self.requirements


def _first_rows(batch: Batch) -> Batch:
    """The first two data, the first one twice where there is one only."""
    if len(batch.x) >= 2:
        return batch.rows(slice(0, 2))
    return batch.rows(torch.zeros(2, dtype=torch.long))


TORCHS_OWN = frozenset(vars(nn.Module()))
NUM_OF_TORCH = len(TORCHS_OWN)
PLAIN = (bool, int, float, str, type(None))


def _state_of(program: nn.Module) -> tuple[tuple, list]:
    """Return what a swapped or edited part would change, and the objects in it by address.

    Modules and their attributes; parameters and buffers as objects, and in eval mode their
    versions too: an optimizer changes weights at each step, which needs no other look.
    """
    state: list[Any] = []
    objects: list[Any] = []
    is_training = program.training
    for module in _modules(program):
        held = module.__dict__
        objects.append(module)
        if len(held) > NUM_OF_TORCH:
            for name, value in held.items():
                if name not in TORCHS_OWN:
                    state.append(value if type(value) in PLAIN else None)
                    objects.append(value)
        is_norm = isinstance(module, _NormBase)  # moves its buffers in the forward pass
        for tensors in (held["_parameters"], held["_buffers"]):
            for tensor in tensors.values():
                if tensor is not None:
                    objects.append(tensor)
                    is_moving = is_norm or (is_training and tensor.requires_grad)
                    state.append((tensor.dtype, 0 if is_moving else tensor._version))
    state.extend(map(id, objects))
    return tuple(state), objects


def _modules(program: nn.Module) -> Iterator[nn.Module]:
    """Yield `program.modules()`, in its order, in a third of its time."""
    stack, seen = [program], set()
    while stack:
        module = stack.pop()
        if module is not None and module not in seen:
            seen.add(module)
            yield module
            stack.extend(reversed(module._modules.values()))


def _is_one_for_all(support: constraints.Constraint) -> bool:
    """Whether every number of a datum has this same support, regardless of the others."""
    attributes = vars(support).values()
    is_by_cell = any(isinstance(value, Tensor) and value.numel() > 1 for value in attributes)
    return support.event_dim == 0 and not is_by_cell


def _has_finite_ends(p_x: Distribution) -> bool:
    """Whether no number of the support has density 0 or ∞, so that parameters do not matter."""
    if not has_edges(innermost(p_x.support)):
        return True
    ends = elementwise(p_x).log_prob(torch.zeros(())), elementwise(p_x).log_prob(torch.ones(()))
    return all(bool(torch.isfinite(end).all()) for end in ends)


# What a batch must be, whoever brings it.


def like_parameters(value: Tensor, program: nn.Module) -> Tensor:
    """Return floats in the dtype, and everything on the device, of the program's parameters.

    A program without parameters takes torch's default dtype.

    Example:
        >>> like_parameters(torch.zeros(2, dtype=torch.uint8), nn.Linear(2, 1).double()).dtype
        torch.float64
    """
    return value.to(*_like(program))


class _Like(NamedTuple):
    """Where and how a program computes; no device where it has no parameters."""

    device: torch.device | None
    dtype: torch.dtype


def _like(program: nn.Module) -> _Like:
    for module in _modules(program):
        for parameter in module._parameters.values():
            if parameter is not None and parameter.is_floating_point():
                return _Like(parameter.device, parameter.dtype)
    return _Like(None, torch.get_default_dtype())


def check_num_rows(x: Any) -> None:
    """Raise DataError unless x has rows, and at least one of them."""
    if not x.dim() or not len(x):
        raise DataError(
            f"x has shape {tuple(x.shape)}, so it has no rows (N = 0): there is nothing to learn "
            "from or to score.\nGive x one datum per row: (N, …). Add a batch dim to a single one."
        )


def check_num_covariates(y: Any, num_data: int) -> None:
    """Raise DataError unless y has num_data rows."""
    if not y.dim() or len(y) != num_data:
        raise DataError(
            f"y has shape {tuple(y.shape)}, but there are {num_data:,} rows of data, and each "
            "needs its own covariates.\nPass y with as many rows."
        )


def knowing_parts(program: nn.Module) -> list[nn.Module]:
    """Return the parts that know more of their covariates, and say so by `check_data`."""
    return [module for module in program.modules() if hasattr(module, "check_data")]


def sees_covariates(program: nn.Module) -> bool:
    """Return whether y means anything to the program: to a `VAE`, where a part is `Given`."""
    return getattr(program, "sees_covariates", True)


def check_is_seen(program: nn.Module) -> None:
    """Raise DataError unless the program sees the covariates that were given."""
    if not sees_covariates(program):
        raise DataError(
            "y was given, but no part of this VAE sees covariates: they would change nothing.\n"
            "Wrap the part that is to see them, networks.Given(part). For a mask write mask=…, and "
            "(x, None, mask) in validation."
        )


def check_is_no_mask(y: Any, x: Any) -> None:
    """Raise DataError for a mask in the place of covariates that would be left out."""
    if getattr(y, "dtype", None) in (torch.bool, bool) and y.shape == getattr(x, "shape", None):
        raise DataError(
            "each datum comes as (x, y) with a y that looks like a mask: bool, and of x's shape. "
            "No part of this VAE sees covariates, so it would be left out.\n"
            "Give a datum as {'x': x, 'mask': mask}."
        )


def _other_kind(kind: tuple, first: tuple) -> str:
    def shape(of: tuple | None) -> str:
        return "none" if of is None else str(of)

    return (
        f"the batch comes with y of shape {shape(kind[0])} per datum and "
        f"{'a' if kind[1] else 'no'} mask, but the first one had y {shape(first[0])} and "
        f"{'a' if first[1] else 'no'} mask: the program would see another kind of data.\n"
        "Give every datum the same."
    )


def as_covariates(y: Any, num_data: int, program: nn.Module) -> Tensor | None:
    """Return y as a tensor of num_data rows; floats in the parameters' dtype, integers as is."""
    if y is None:
        return None
    y = as_tensor(y, "y")
    check_num_covariates(y, num_data)
    check_finite(y, name="y")
    check_is_seen(program)
    like = _like(program)
    return y.to(like.device, like.dtype if y.is_floating_point() else y.dtype)


def is_discrete(program: nn.Module, x: Any, y: Any = None, mask: Any = None) -> bool | None:
    """Return whether p(x|z) is a probability rather than a density; None where unknown.

    Example:
        >>> import pyrovae as pv
        >>> is_discrete(pv.build((2,), latent_dim=1), torch.ones(3, 2))
        True
    """
    validator = Validator(program)
    source = open_source(x, y, mask)
    source.watch(validator)
    source.head()  # a loader's data are looked at as they come
    support = support_of(validator.requirements.density)
    return None if support is None else bool(support.is_discrete)
