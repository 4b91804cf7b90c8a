"""Checks of values: settings, containers and dtypes, shape and support of the data.

Each check takes what a caller passed and either returns it in one form or raises,
with the place (row, column), what was expected there, and what to write instead.
They look at all of the data, in chunks; they are plain `if`s, so `python -O` keeps
them. Nothing is ever repaired: no scaling, clipping or binarising happens here.

What a program expects of its data is found out in `pyrovae.admission`.
"""

import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyrovae.errors import ConfigError, DataError

NUMBERS_AT_A_TIME = 2**24  # bounds the memory of one pass over the data


def whole_number(value: Any, name: str, minimum: int) -> int:
    """`value` when it is a whole number ≥ minimum; else ConfigError.

    Example:
        >>> whole_number(128, "batch_size", 1)
        128
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise ConfigError(f"{name} = {value!r}, but it must be a whole number ≥ {minimum}.")
    if value < minimum:
        raise ConfigError(f"{name} = {value}, but it must be at least {minimum}.")
    return int(value)


def real_number(value: Any, name: str, *, above: float = -math.inf, least: float = -math.inf):
    """`value` as a float when it is finite, > above and ≥ least; else ConfigError.

    Example:
        >>> real_number(1e-3, "learning_rate", above=0.0)
        0.001
    """
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    is_finite = is_number and abs(value) <= sys.float_info.max
    if not is_finite or value <= above or value < least:
        bound = f" > {above:g}" if above > -math.inf else f" ≥ {least:g}"
        raise ConfigError(f"{name} = {value!r}, but it must be a finite number{bound}.")
    return float(value)


def seed_number(seed: int | None) -> int:
    """The seed itself, or a fresh random one for None (recorded by the caller).

    Example:
        >>> seed_number(7)
        7
    """
    if seed is None:
        return int(np.random.SeedSequence().entropy % 2**63)
    if whole_number(seed, "seed", 0) >= 2**64:
        raise ConfigError(f"seed = {seed}, but generators take a whole number below 2⁶⁴.")
    return int(seed)


def as_tensor(value: Any, name: str = "x") -> Tensor:
    """A detached strided tensor with the caller's numbers; never a view of their array.

    Accepts tensors, NumPy arrays of any order, stride or byte order, data frames of
    numbers, and nested lists.

    Args:
        value: the data.
        name: what the caller calls it, for the message.

    Raises:
        DataError: complex, sparse, text, object or otherwise not numbers; the message
            names the dtype, and the column of a data frame.

    Example:
        >>> as_tensor(np.array([[0, 1]], dtype=">i2"))
        tensor([[0, 1]], dtype=torch.int16)
    """
    if isinstance(value, Tensor):
        return _checked_tensor(value, name)
    if isinstance(value, np.ma.MaskedArray):
        raise DataError(
            f"{name} is a masked array, whose hidden values a density would see.\n"
            f"Pass {name}.filled(0) as x and ~np.ma.getmaskarray({name}) as mask=."
        )
    if hasattr(value, "columns") and hasattr(value, "dtypes"):
        value = _from_data_frame(value, name)
    if hasattr(value, "tocsr"):
        raise DataError(
            f"{name} is a sparse matrix, but a dense array is needed: {name}.toarray()."
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{name} is no array of numbers: {error}.") from None
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{name} has dtype {array.dtype}, but a density needs real numbers (float, integer "
            f"or bool).\nConvert it first, for example {name}.astype('float32')."
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype("float64")  # torch has no long double
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype("float64")  # nor arithmetic on wide unsigned integers
    # a copy in native byte order: torch takes neither big-endian nor negative strides
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=True))


def _checked_tensor(value: Tensor, name: str) -> Tensor:
    if value.is_complex() or value.is_quantized or value.layout is not torch.strided:
        kind = value.layout if value.layout is not torch.strided else value.dtype
        raise DataError(
            f"{name} is a tensor of {kind}, but a density needs dense real numbers.\n"
            f"Convert it first: {name}.to_dense(), or {name}.real."
        )
    is_wide_unsigned = value.dtype in (torch.uint16, torch.uint32, torch.uint64)
    return value.detach().double() if is_wide_unsigned else value.detach()


def _from_data_frame(frame: Any, name: str) -> np.ndarray:
    for index, column in enumerate(frame.columns):
        values = frame.iloc[:, index]
        if getattr(values.dtype, "kind", "O") not in "biuf":
            raise DataError(
                f"column {column!r} of {name} has dtype {values.dtype}, but a density needs "
                f"numbers.\nDrop it or encode it: {name}.drop(columns=[{column!r}])."
            )
        is_missing = values.isna().to_numpy()
        if is_missing.any():
            raise DataError(
                f"column {column!r} of {name} has a missing value in row {is_missing.argmax()} "
                f"({is_missing.sum():,} in all), and an encoder cannot read it.\n"
                f"Pass x={name}.fillna(0) together with mask={name}.notna()."
            )
    return frame.to_numpy(dtype="float64")


def as_mask(mask: Any, x: Tensor, *, is_whole: bool = True) -> Tensor | None:
    """The mask as a bool tensor of x's shape: true where x is observed.

    Args:
        mask: None, or an array of x's shape that holds only true/false or 0/1.
        x: (N, *event).
        is_whole: whether x is all of the data, so that something in it must be observed.

    Raises:
        DataError: another shape, a value between, or nothing observed at all.

    Example:
        >>> as_mask([[1, 0]], torch.zeros(1, 2))
        tensor([[ True, False]])
    """
    if mask is None:
        return None
    values = as_tensor(mask, "mask")
    if values.shape != x.shape:
        raise DataError(
            f"mask has shape {tuple(values.shape)}, but x has {tuple(x.shape)}: a mask says for "
            "every number in x whether it was observed.\nWrite mask=~torch.isnan(x), say."
        )
    is_bad = (values != 0) & (values != 1)
    if is_bad.any():
        at = _first(is_bad)
        raise DataError(
            f"mask{_at(at)} = {values[at].item():g}, but a mask holds true (observed) and false "
            "(missing), or 1 and 0.\nThreshold it first: mask > 0.5."
        )
    if is_whole and not values.any():
        raise DataError(
            "mask is false everywhere: there are no observed entries to learn from.\n"
            "True means observed; if yours marks the missing ones, pass ~mask."
        )
    return values.bool().to(x.device)


def check_event_shape(x: Tensor, event_shape: torch.Size) -> None:
    """DataError unless x is (N, *event_shape).

    Example:
        >>> check_event_shape(torch.zeros(7, 64), torch.Size([64]))
    """
    if x.dim() and x.shape[1:] == event_shape:
        return
    wanted, arrived = tuple(event_shape), tuple(x.shape[1:])
    sizes = ", ".join(map(str, wanted))
    message = f"each datum in x has shape {arrived}, but p(x|z) is over shape {wanted}: x must be "
    message += f"(N, {sizes}), one datum a row.\n"
    if math.prod(arrived) == math.prod(wanted) and x.dim() > 1:
        message += f"The numbers are as many, so write x.reshape(-1, {sizes})."
    elif len(arrived) < len(wanted):
        message += "Without the first dimension one datum would be taken for many. "
        message += "If x is a single datum, add a batch dim: x[None]."
    else:
        message += f"Give data of that shape, or a likelihood with event_shape={arrived}."
    raise DataError(message)


def check_values(x: Tensor, p_x: Distribution, mask: Tensor | None = None) -> None:
    """DataError unless x is finite and inside the support of p(x|z), in every observed cell.

    Args:
        x: (N, *event), as the caller has it (any dtype).
        p_x: p(x|z) for one datum; its event shape and support are what is required.
        mask: of x's shape; what is false is not looked at.

    Example:
        >>> import pyro.distributions as dist
        >>> check_values(torch.zeros(3, 2), dist.Bernoulli(torch.full((2,), 0.5)).to_event(1))
    """
    check_event_shape(x, p_x.event_shape)
    check_finite(x, mask)
    support = p_x.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    bad = _Counter()
    for start, rows, observed in _chunks(x, mask):
        is_bad = ~support.check(rows)
        if has_edges(support):
            is_bad = is_bad | ~_has_density(p_x, rows, observed, is_bad)
        if observed is not None and is_bad.dim() == rows.dim():
            is_bad = is_bad & observed
        bad.add(is_bad, start)
    if bad.count:
        raise DataError(_outside_support(x, bad, p_x, support))


def has_edges(support: Any) -> bool:
    """Whether a continuous support is bounded: the density may be 0 or infinite at its edge."""
    edged = (constraints.unit_interval, constraints.positive, constraints.nonnegative)
    return isinstance(support, tuple(type(e) for e in edged)) and not support.is_discrete


def _has_density(p_x: Distribution, rows: Tensor, observed: Tensor | None, is_bad: Tensor):
    """Which values have a finite log-density: Gamma says that 0 is in its support, say."""
    base = elementwise(p_x)
    middle = torch.where(is_bad, 0.5, rows)  # 0.5 lies inside every support with edges
    middle = middle if observed is None else torch.where(observed, middle, 0.5)
    return torch.isfinite(base.log_prob(middle.to(torch.get_default_dtype())))


def elementwise(p_x: Distribution) -> Distribution:
    """p_x without the Independent and mask around it: one density for each number of x."""
    while type(p_x).__name__ in ("Independent", "MaskedDistribution"):
        p_x = p_x.base_dist
    return p_x


def check_finite(x: Tensor, mask: Tensor | None = None, name: str = "x") -> None:
    """DataError unless every observed number is finite.

    Example:
        >>> check_finite(torch.tensor([[0.0, torch.nan]]), torch.tensor([[True, False]]))
    """
    if not x.is_floating_point():
        return
    bad = _Counter()
    for start, rows, observed in _chunks(x, mask):
        is_bad = ~torch.isfinite(rows)
        bad.add(is_bad if observed is None else is_bad & observed, start)
    if bad.count:
        fix = (
            f"If they are missing values, pass mask=~torch.isnan({name}), and they are left out."
            if name == "x" and x[bad.first].isnan()
            else f"Rescale or drop them; {x.dtype} ends at {torch.finfo(x.dtype).max:.3g}."
        )
        raise DataError(
            f"{name}{_at(bad.first)} = {x[bad.first].item()}, but every number must be finite "
            f"({bad.count:,} of {x.numel():,} entries are not).\n{fix}"
        )


def check_precision(x: Tensor, dtype: torch.dtype, mask: Tensor | None = None) -> None:
    """DataError unless float arithmetic in `dtype` can hold every observed number, and its square.

    A whole number above 2²⁴ is not exact in float32; a number whose square overflows gives an
    infinite Gaussian log-density.

    Example:
        >>> check_precision(torch.tensor([[1e4]]), torch.float32)
    """
    ends = torch.finfo(dtype)
    largest, exact = math.sqrt(ends.max) / 2, 2 / ends.eps
    if x.element_size() == 1 or _is_within(x, exact):
        return
    large, inexact = _Counter(), _Counter()
    for start, rows, observed in _chunks(x, mask):
        size = rows.double().abs()
        seen = torch.ones_like(size, dtype=torch.bool) if observed is None else observed
        large.add((size > largest) & seen, start)
        inexact.add((size > exact) & seen, start)
    if large.count:
        raise DataError(
            f"x{_at(large.first)} = {x[large.first].item():.3g}, but its square overflows {dtype} "
            f"({large.count:,} of {x.numel():,} entries above {largest:.3g}), and a log-density "
            "squares it.\nStandardise x: (x - x.mean(0)) / x.std(0)."
        )
    if inexact.count and not x.is_floating_point():
        raise DataError(
            f"x{_at(inexact.first)} = {x[inexact.first].item()}, but whole numbers above "
            f"{exact:,.0f} are not exact in {dtype} ({inexact.count:,} of {x.numel():,} entries).\n"
            "Use vae.double(), or rescale x."
        )


def _is_within(x: Tensor, bound: float) -> bool:
    """Whether |x| ≤ bound everywhere, in one pass; False where NaN stands."""
    low, high = x.aminmax()
    return bool(-bound <= low.item() and high.item() <= bound)


class _Counter:
    """How many entries are bad, and where the first one is."""

    def __init__(self) -> None:
        self.count, self.first = 0, ()

    def add(self, is_bad: Tensor, start: int) -> None:
        here = int(is_bad.sum())
        if here and not self.count:
            row, *rest = _first(is_bad)
            self.first = (start + row, *rest)
        self.count += here


def _chunks(x: Tensor, mask: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    rows = max(1, NUMBERS_AT_A_TIME // max(1, x[:1].numel()))
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        yield start, x[part], None if mask is None else mask[part]


def _first(is_bad: Tensor) -> tuple[int, ...]:
    return tuple(
        int(i) for i in np.unravel_index(int(is_bad.flatten().byte().argmax()), is_bad.shape)
    )


def _at(index: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, index))}]"


def _outside_support(x: Tensor, bad: _Counter, p_x: Distribution, support: Any) -> str:
    base = elementwise(p_x)
    low, high = x.double().min().item(), x.double().max().item()
    value = f"{x[bad.first].item():.6g}" if x[bad.first].dim() == 0 else "a row"
    total = x.numel() if x[bad.first].dim() == 0 else len(x)
    return (
        f"x{_at(bad.first)} = {value}, but a {type(base).__name__} likelihood needs "
        f"{_requirement(support)} ({bad.count:,} of {total:,} entries are not; x ranges from "
        f"{low:.6g} to {high:.6g}).\n{_fix(support, low, high)}"
    )


def _requirement(support: Any) -> str:
    low, high = (getattr(support, name, None) for name in ("lower_bound", "upper_bound"))
    if support is constraints.boolean:
        return "values in {0, 1}"
    if hasattr(support, "num_levels"):
        return f"values in {support}"
    if support.is_discrete and high is not None:
        return f"whole numbers from {low} to {high}"
    if support.is_discrete and low is not None:
        return f"whole numbers ≥ {low}"
    if low is not None and high is not None:
        return f"values in [{low:g}, {high:g}], or in ({low:g}, {high:g}) where its density ends"
    if low is not None:
        return f"values > {low:g}"
    return f"values in {support}"


def _fix(support: Any, low: float, high: float) -> str:
    if support is constraints.boolean:
        return _fix_binary(low, high)
    if hasattr(support, "num_levels"):
        scale = "Scale x to [0, 1] first: x / 255." if high > 1 else "Quantise x first."
        return scale + " For values between the levels use likelihoods.ContinuousBernoulli."
    if support.is_discrete and getattr(support, "upper_bound", None) is not None:
        return f"Number the categories from 0, or give num_categories={int(max(high, 1)) + 1}."
    if support.is_discrete:
        fix = "For real values use likelihoods.Normal or StudentT."
        return fix if low < 0 else fix + " If x is normalised, pass the raw counts and sizes as y."
    if getattr(support, "upper_bound", None) is not None:
        return "Scale x into that interval first; nothing is scaled silently."
    return "Transform x, or choose a likelihood with that support (pyrovae.likelihoods)."


def _fix_binary(low: float, high: float) -> str:
    if low < 0:
        return "Shift and scale x to [0, 1] first, then datasets.binarize(x)."
    if high > 1:
        return f"Scale, then binarise: datasets.binarize(x / {255 if high > 16 else f'{high:g}'})."
    return "Use datasets.binarize(x), or likelihoods.ContinuousBernoulli."
