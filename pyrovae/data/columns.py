"""The door for data that are not in memory: one pass in chunks that checks and fingerprints.

Each chunk is looked at as any batch is, and feeds the SHA-256 of the file. Only where a chunk
is refused are the data read again, for a message that counts over all of them. What a pass
over an unchanged read-only file found is remembered while the process lives: the key is the
file (path, inode, size, times), the part of it, and what the program asks of its numbers.
"""

import hashlib
from collections.abc import Callable, Hashable
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyrovae.checks import (
    as_tensor,
    check_event_shape,
    check_finite,
    check_mask,
    check_precision,
    check_values,
)
from pyrovae.checks.values import elementwise, has_edges, innermost
from pyrovae.contract.densities import check_densities
from pyrovae.contract.validation import (
    as_covariates,
    check_is_seen,
    check_num_covariates,
    check_num_rows,
    first_look,
    knowing_parts,
    like_parameters,
    observed_site,
)
from pyrovae.data.batch import Batch
from pyrovae.data.rows import MappedRows, Rows, SparseRows, as_rows
from pyrovae.errors import DataError
from pyrovae.runtime.hashing import as_bytes, sha256, sha256_of_arrays

NUMBERS_AT_A_TIME = 2**21  # of a pass: 8 MiB of float32


class Columns:
    """x, y and mask that are read some rows at a time, checked against a program.

    Args:
        program: as for `fit`.
        x: memory-mapped or sparse.
        y, mask: in any container, or None.

    Raises:
        DataError: the data do not fit the program, as for arrays in memory.

    Example:
        >>> import pyrovae as pv, scipy.sparse
        >>> x = scipy.sparse.eye_array(3, 2, format="csr")
        >>> columns = Columns(pv.build((2,), latent_dim=1), x, None, None)
        >>> columns[1:].x
        tensor([[0., 1.],
                [0., 0.]])
    """

    def __init__(self, program: nn.Module, x: Any, y: Any, mask: Any):
        self.program = program
        like = like_parameters(torch.empty(0), program)
        self.dtype, self.device = like.dtype, like.device
        self.x = as_rows(x, "x")
        check_num_rows(self.x)
        self.y = None if y is None else self._covariates(y)
        self.mask = None if mask is None else in_memory(as_rows(mask, "mask"))
        if mask is not None and self.mask.shape != self.x.shape:
            check_mask(self.mask, self.x.shape)
        traces = first_look(program, *self[:2], is_whole=True)
        self.density = observed_site(traces[0])["fn"]
        check_event_shape(self.x, self.density.event_shape)
        self.digests = self._look()
        check_densities(*traces)

    def _covariates(self, y: Any) -> Tensor | Rows:
        y = as_rows(y, "y")
        check_num_covariates(y, len(self.x))
        check_is_seen(self.program)
        if isinstance(y, Tensor):
            return in_memory(as_covariates(y, len(self.x), self.program))
        check_finite(y, name="y")
        return y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice) -> Batch:
        return self.cast(**{name: column[rows] for name, column in self.columns.items()})

    def take(self, index: Tensor) -> Batch:
        """The rows that index names, in its order."""
        return self.cast(**{n: c.index_select(0, index) for n, c in self.columns.items()})

    def cast(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> Batch:
        """Rows of the three columns as the program takes them."""
        if y is not None:
            y = y.to(self.device, self.dtype if y.is_floating_point() else y.dtype)
        mask = None if mask is None else mask.to(self.device, torch.bool)
        return Batch(x.to(self.device, self.dtype), y, mask)

    @property
    def columns(self) -> dict[str, Tensor | Rows]:
        """Those of x, y and mask that there are."""
        columns = {name: getattr(self, name) for name in Batch._fields}
        return {name: column for name, column in columns.items() if column is not None}

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Shape, dtype, size of the file and SHA-256 of each column."""
        facts: dict[str, Any] = {}
        for name, column in self.columns.items():
            kind = "sparse " if isinstance(column, SparseRows) else ""
            facts[f"{name} shape"] = list(column.shape)
            facts[f"{name} dtype"] = f"{kind}{column.dtype}"
            if isinstance(column, MappedRows):
                facts[f"{name} file bytes"] = column.num_file_bytes
            facts[f"{name} sha256"] = self.digests.get(name) or _digest(column)
        return facts

    def _look(self) -> dict[str, str]:
        """SHA-256 of each file, after a look at all rows, or the memory of one."""
        if isinstance(self.x, SparseRows) and self._stores_fine_numbers(self.x):
            return {}
        key = self._key()
        return dict(self._pass() if key is None else _remembered(_Look(key, self._pass)))

    def _pass(self) -> tuple[tuple[str, str], ...]:
        files = {n: hashlib.sha256() for n, c in self.columns.items() if isinstance(c, MappedRows)}
        step = max(1, NUMBERS_AT_A_TIME // max(1, self.x.shape[1:].numel()))
        is_any_observed = self.mask is None
        for start in range(0, len(self), step):
            rows = slice(start, min(start + step, len(self)))
            raw = {name: column[rows] for name, column in self.columns.items()}
            for name, digest in files.items():
                digest.update(as_bytes(raw[name]))
            self._check(rows, **raw)
            is_any_observed = is_any_observed or bool(raw["mask"].any())
        if not is_any_observed:
            check_mask(self.mask, self.x.shape)
        return tuple((name, digest.hexdigest()) for name, digest in files.items())

    def _check(
        self, rows: slice, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        try:
            if mask is not None:
                check_mask(mask, x.shape, is_whole=False)
                mask = mask.bool()
            check_values(x, self.density, mask)
            check_precision(x, self.dtype, mask, p_x=self.density)
        except DataError:
            self._refuse()
            raise
        for module in knowing_parts(self.program) if y is not None else ():
            try:
                module.check_data(*self.cast(x, y)[:2])
            except DataError as error:
                where = f"in rows {rows.start:,} to {rows.stop - 1:,}, numbered from 0 here: "
                raise DataError(where + str(error)) from None

    def _refuse(self) -> None:
        """Raise what the checks say of all of the data, with places and counts over all."""
        if self.mask is not None:
            check_mask(self.mask, self.x.shape, is_whole=False)
        check_values(self.x, self.density, self.mask)
        check_precision(self.x, self.dtype, self.mask, p_x=self.density)

    def _stores_fine_numbers(self, x: SparseRows) -> bool:
        """Whether what is stored, and 0, are fine in every cell: then none need be filled in."""
        support = innermost(self.density.support)
        knows_y = self.y is not None and bool(knowing_parts(self.program))
        if self.mask is not None or knows_y or not _is_one_for_all(support) or has_edges(support):
            return False
        stored, size = x.matrix.data, NUMBERS_AT_A_TIME
        parts = (stored[i : i + size] for i in range(0, len(stored), size))
        try:
            for part in map(as_tensor, chain([np.zeros(1)], parts)):
                check_finite(part)
                check_precision(part, self.dtype, p_x=self.density)
                if not support.check(part).all():
                    return False
        except DataError:
            return False
        return True

    def _key(self) -> Hashable | None:
        """What the outcome of a pass depends on; None where that cannot be told."""
        support = innermost(self.density.support)
        knows_y = self.y is not None and bool(knowing_parts(self.program))
        if knows_y or not _is_one_for_all(support) or not _has_finite_ends(self.density):
            return None
        # y in memory is not looked at by a pass
        looked_at = [c for c in (self.x, self.mask) if c is not None]
        looked_at += [self.y] if isinstance(self.y, Rows) else []
        files = tuple(c.facts() if isinstance(c, MappedRows) else None for c in looked_at)
        kinds = [type(support), type(elementwise(self.density))]
        names = tuple(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
        bounds = tuple(sorted((name, repr(value)) for name, value in vars(support).items()))
        return None if None in files else (files, names, bounds, self.dtype)


def in_memory(column: Tensor | Rows) -> Tensor | Rows:
    """A tensor in main memory, where indices of rows are; `Rows` as they are.

    Example:
        >>> in_memory(torch.zeros(2))
        tensor([0., 0.])
    """
    return column.cpu() if isinstance(column, Tensor) else column


def _digest(column: Tensor | Rows) -> str:
    if isinstance(column, SparseRows):
        matrix = column.matrix
        return sha256_of_arrays([matrix.data, matrix.indices, matrix.indptr])
    return sha256(column)


def _is_one_for_all(support: constraints.Constraint) -> bool:
    """Whether every number of a datum has this same support, whatever stands in the others."""
    attributes = vars(support).values()
    is_by_cell = any(isinstance(value, Tensor) and value.numel() > 1 for value in attributes)
    return support.event_dim == 0 and not is_by_cell


def _has_finite_ends(p_x: Distribution) -> bool:
    """Whether no number of the support has density 0 or ∞, so that parameters do not matter."""
    if not has_edges(innermost(p_x.support)):
        return True
    ends = elementwise(p_x).log_prob(torch.zeros(())), elementwise(p_x).log_prob(torch.ones(()))
    return all(bool(torch.isfinite(end).all()) for end in ends)


class _Look:
    """A pass over data, equal to another with the same key; it forgets the data once made."""

    def __init__(self, key: Hashable, work: Callable[[], Any]):
        self.key, self.work = key, work

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Look) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def made(self) -> Any:
        work, self.work = self.work, None  # the memory keeps this object, and must not keep x
        return work()


@lru_cache(maxsize=64)
def _remembered(look: _Look) -> Any:
    return look.made()
