"""Validation of data: the program is inspected once, the values at every call.

Running the program on the first two rows (`program.trace_first_rows`) gives p(x|z), whose event
shape and support the values must match. The result is cached per program, shapes, dtype and
presence of y and mask, until a part is swapped or edited (`requirements`); later calls check the
values only.
Values are never changed, only cast to the dtype and device of the parameters.
"""

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.checks import (
    as_tensor,
    check_event_shape,
    check_finite,
    check_mask,
    check_precision,
    check_values,
    is_clearly_fine,
)
from pyrovae.checks.supports import columns_of, has_edges
from pyrovae.checks.values import elementwise, innermost
from pyrovae.contract.covariates import (
    check_is_not_mask,
    check_is_seen,
    check_num_covariates,
    check_num_rows,
    checking_parts,
    read_by_schema,
    sees_covariates,
    tensor_options,
)
from pyrovae.contract.densities import check_densities
from pyrovae.contract.layout import nesting_of
from pyrovae.contract.plated import density_of_data
from pyrovae.contract.program import check_mask_is_seen, check_signatures, trace_first_rows
from pyrovae.contract.requirements import (
    Requirement,
    Requirements,
    is_one_for_all,
    known,
    state_of,
)
from pyrovae.contract.sites import check_sites, for_each_site, observed_site
from pyrovae.data import Batch, Source, open_source
from pyrovae.data.batch import is_by_site
from pyrovae.densities.supports import support_of
from pyrovae.errors import DataError

READ_AT_A_TIME = 1024  # rows of a Dataset or of a mask


def validated(
    program: nn.Module, x: Any, y: Any = None, mask: Any = None, *, batch_size: int | None = None
) -> Source:
    """Open data in any container, checked against the program; its batches fit the program.

    Args:
        program: a module with `.model` and `.guide`.
        x, y, mask: as for `fit`.
        batch_size: B, for training: all of a Dataset is checked beforehand. None reads the data
            in their own order and checks the rows of a Dataset as they are read.

    Returns:
        The source; x in the dtype and on the device of the program's parameters.

    Raises:
        DataError: the data do not fit the program; the message says where.
        ConfigError: the parts of the program do not fit each other.

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1)
        >>> validated(vae, [[0, 1], [1, 1]]).whole().x
        tensor([[0., 1.],
                [1., 1.]])
    """
    x, y, mask = read_by_schema(program, x, y, mask)
    validator = Validator(program)
    if batch_size is None:
        source = open_source(x, y, mask, batch_size=READ_AT_A_TIME)
        source.watch(validator)
    else:
        source = open_source(x, y, mask, batch_size=batch_size)
        source.accept(validator)
    return source


class Validator:
    """Checks of data against a program, and their cast; sources call it (`data.Validator`).

    Args:
        program: as for `validated`.

    Raises:
        DataError, ConfigError: from its methods; also if y or mask is present only in some
            batches of a loader, or changes shape.

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
        self.traces: tuple | None = None  # of a program that is inspected now
        self.kind: Any = None
        self.options = tensor_options(program)

    def begin(self, batch: Batch) -> None:
        """Check the shapes of all columns, and the program if it is not cached."""
        self._check_columns(batch, is_whole=True)
        if batch.y is not None:
            check_is_seen(self.program)
        self._inspect(batch)
        if self.traces:
            of = self.requirements.sites
            for_each_site(
                batch, lambda name, site: check_event_shape(site.x, of[name].density.event_shape)
            )

    def _check_columns(self, batch: Batch, *, is_whole: bool) -> None:
        if is_by_site(batch.x) or is_by_site(batch.mask):
            check_sites(self.program, batch)
            # a whole site may be missing, but not all of them
            masks = [site.mask for site in batch.sites.values()]
            is_whole = is_whole and not any(mask is None or bool(mask.any()) for mask in masks)

        def check(_: str, site: Batch) -> None:
            x, _, mask = site
            check_num_rows(x)
            if mask is not None and (isinstance(mask, Tensor) or mask.shape != x.shape):
                check_mask(mask, x.shape, is_whole=is_whole)

        for_each_site(batch, check)
        if batch.y is not None:
            check_num_covariates(batch.y, batch.num_data)
            check_finite(batch.y, name="y")

    def check(self, batch: Batch, *, first_row: int = 0) -> None:
        """Raise DataError unless every observed value is in the support of p(x|z)."""
        of = self.requirements.sites
        for_each_site(batch, lambda name, site: self._check_site(site, of[name]))
        if batch.y is not None or hasattr(self.program, "check_data"):
            self._check_by_parts(batch, first_row)

    def _check_by_parts(self, batch: Batch, first_row: int = 0) -> None:
        modules = checking_parts(self.program, has_y=batch.y is not None)
        if not modules or not isinstance(batch.x, Tensor):
            return
        x, y, _ = self.cast(replace(batch, mask=None))
        for module in modules:
            try:
                module.check_data(x, y)
            except DataError as error:
                if not first_row:
                    raise
                last_row = first_row + batch.num_data - 1
                where = f"in rows {first_row:,} to {last_row:,}, numbered from 0: "
                raise DataError(where + str(error)) from None

    def _check_site(self, site: Batch, required: Requirement) -> None:
        x, _, mask = site
        mask = mask.bool() if isinstance(mask, Tensor) else mask
        density, support = required
        is_fine = mask is None and support is not None
        if not (is_fine and is_clearly_fine(x, density.event_shape, support, self.options.dtype)):
            check_values(x, density, mask, names=site.labels.columns)
            check_precision(x, self.options.dtype, mask, p_x=density)

    def cast(self, batch: Batch) -> Batch:
        """Return x and floats of y in the dtype, and all on the device, of the parameters."""
        device, dtype = self.options.device, self.options.dtype

        def cast(array: Tensor, name: str) -> Tensor:
            if name.startswith("mask"):
                return array.to(device, torch.bool)
            is_float = name.startswith("x") or array.is_floating_point()
            return array.to(device, dtype if is_float else array.dtype)

        return batch.map_named(cast)

    def end(self) -> None:
        """Check the densities of the program, after the values: NaN may come from x."""
        if self.traces:
            check_densities(*self.traces)
            self.traces = None
            if self.memory is not None:
                self.requirements.remember(self.program, self.memory)

    def one_of_many(self, batch: Batch) -> Batch:
        """Check and cast a batch of a loader, the first one as `begin` does."""
        if not sees_covariates(self.program):
            check_is_not_mask(batch.y, batch.x)
            batch = replace(batch, y=None)  # class labels that come with each image of a Dataset
        batch = batch.map_named(as_tensor)
        self._check_columns(batch, is_whole=False)
        kind = (None if batch.y is None else tuple(batch.y.shape[1:]), batch.mask is not None)
        if self.requirements is None:
            self._inspect(batch)
            self.kind = kind
        self.check(batch)
        if kind != self.kind:
            raise DataError(_other_kind(kind, self.kind))
        self.end()
        return self.cast(batch)

    def key(self, batch: Batch) -> Hashable | None:
        """Return a key of all that `check` depends on besides the values; None if unknown."""
        if list(self.requirements.sites) != ["x"]:
            return None
        density = self.requirements.sites["x"].density
        support = innermost(density.support)
        if checking_parts(self.program, has_y=batch.y is not None):
            return None
        if not is_one_for_all(support) or not _has_finite_ends(density):
            return None
        kinds = [type(support), type(elementwise(density))]
        names = tuple(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
        bounds = tuple(sorted((name, repr(value)) for name, value in vars(support).items()))
        return names, bounds, self.options.dtype

    def allows_stored(self, values: Any, *, has_y: bool) -> bool:
        """Return whether these values are allowed in every cell of x."""
        density = self.requirements.sites["x"].density
        support = innermost(density.support)
        is_checked = bool(checking_parts(self.program, has_y=has_y))
        if is_checked or not is_one_for_all(support) or has_edges(support):
            return False
        try:
            part = as_tensor(values)
            check_finite(part)
            check_precision(part, self.options.dtype, p_x=density)
        except DataError:
            return False
        return bool(support.check(part).all())

    def _inspect(self, batch: Batch) -> None:
        """Use the cached requirements, or inspect the program."""
        columns = ((name, c.shape[1:], c.dtype) for name, c in batch.columns.items())
        self.memory = (self.program.training, self.options, *columns)
        state, objects = state_of(self.program)
        self.requirements = known(self.program, self.memory, state)
        if self.requirements:
            return
        check_signatures(self.program)
        rows = _first_rows(batch)
        if hasattr(self.program, "check_data"):
            self._check_by_parts(rows)
        self.traces = trace_first_rows(self.program, self.cast(rows))
        if batch.mask is not None and not hasattr(self.program, "check_parts"):
            self._check_mask_is_seen(batch)
        nesting = nesting_of(*self.traces)
        sites = {name: observed_site(self.traces[0], name) for name in batch.sites}
        densities = {name: density_of_data(site, nesting) for name, site in sites.items()}
        self.requirements = Requirements(densities, state, objects)

    def _check_mask_is_seen(self, batch: Batch) -> None:
        for name, site in batch.sites.items():
            row = None if site.mask is None else _first_hidden(site.mask)
            if row is not None:
                twice = self.cast(batch.rows(torch.tensor([row, row])))
                check_mask_is_seen(self.program, twice, name, self.traces[0])
            elif site.mask is not None:
                self.memory = None  # not cached: another mask may hide a cell


def _first_rows(batch: Batch) -> Batch:
    """Return the first two rows; a single row is repeated."""
    if batch.num_data >= 2:
        return batch.rows(slice(0, 2))
    return batch.rows(torch.zeros(2, dtype=torch.long))


def _first_hidden(mask: Any) -> int | None:
    """Return the first row of a mask, in memory or not, that hides a cell."""
    start = 0
    for part in Batch(mask).read(READ_AT_A_TIME):
        hidden = (~part.x.bool()).reshape(part.num_data, -1).any(1).nonzero()
        if len(hidden):
            return start + int(hidden[0])
        start += part.num_data
    return None


def _has_finite_ends(p_x: Distribution) -> bool:
    """Return whether no value in the support has density 0 or ∞ for some parameters."""
    if not has_edges(innermost(p_x.support)):
        return True
    ends = elementwise(p_x).log_prob(torch.zeros(())), elementwise(p_x).log_prob(torch.ones(()))
    return all(bool(torch.isfinite(end).all()) for end in ends)


def _other_kind(kind: tuple, first: tuple) -> str:
    def shape(of: tuple | None) -> str:
        return "none" if of is None else str(of)

    return (
        f"the batch comes with y of shape {shape(kind[0])} per datum and "
        f"{'a' if kind[1] else 'no'} mask, but the first one had y {shape(first[0])} and "
        f"{'a' if first[1] else 'no'} mask: the program would see another kind of data.\n"
        "Give every datum the same."
    )


def is_discrete(program: nn.Module, x: Any, y: Any = None, mask: Any = None) -> bool | None:
    """Return whether p(x|z) is a probability rather than a density; None where unknown.

    Example:
        >>> import pyrovae as pv
        >>> is_discrete(pv.build((2,), latent_dim=1), torch.ones(3, 2))
        True
    """
    validator = Validator(program)
    source = open_source(*read_by_schema(program, x, y, mask))
    source.watch(validator)
    source.head()  # the first batch of a loader is validated only when it is read
    supports = [support_of(site.density) for site in validator.requirements.sites.values()]
    known = {kind for support in supports for kind in _kinds_of(support)}
    return known.pop() if len(known) == 1 else None


def _kinds_of(support: Any) -> list[bool | None]:
    """Return whether the support of each column is discrete; None where unknown."""
    if support is None:
        return [None]
    columns = columns_of(innermost(support))
    return [bool(each.is_discrete) for each in (columns.supports if columns else [support])]
