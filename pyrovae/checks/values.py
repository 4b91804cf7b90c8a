"""Checks of shape, support and precision of the data against a density."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyrovae.checks.places import NUMBERS_AT_A_TIME, Counter, at, chunks
from pyrovae.checks.supports import cells_with_edges, columns_of, has_edges, inside, whole_cells
from pyrovae.errors import DataError


def check_event_shape(x: Any, event_shape: torch.Size) -> None:
    """Raise DataError unless x is (N, *event_shape).

    Example:
        >>> check_event_shape(torch.zeros(7, 64), torch.Size([64]))
    """
    if x.dim() and x.shape[1:] == event_shape:
        return
    wanted, arrived = tuple(event_shape), tuple(x.shape[1:])
    sizes = ", ".join(map(str, wanted))
    message = f"each datum in x has shape {arrived}, but p(x|z) is over shape {wanted}: x must be "
    message += f"(N, {sizes}), one datum per row.\n"
    if wanted == (1,) and x.dim() == 1:
        message += "One number per datum is a column: write x[:, None]."
    elif math.prod(arrived) == math.prod(wanted) and x.dim() > 1:
        message += f"The sizes match, so write x.reshape(-1, {sizes})."
    elif len(arrived) < len(wanted):
        message += "Without the first dimension, one datum would be read as several. "
        message += "If x is a single datum, add a batch dim: x[None]."
    else:
        message += f"Pass data of that shape, or use a likelihood with event_shape={arrived}."
    raise DataError(message)


def check_values(
    x: Any, p_x: Distribution, mask: Any = None, *, names: tuple[str, ...] | None = None
) -> None:
    """Raise DataError unless each observed cell of x is finite and in the support of p(x|z).

    Args:
        x: (N, *event), as the caller passed it (any dtype, a tensor or `Rows`).
        p_x: p(x|z) for one datum, with the required event shape and support.
        mask: of x's shape; false entries are ignored.
        names: of the columns of x, for the message.

    Example:
        >>> import pyro.distributions as dist
        >>> check_values(torch.zeros(3, 2), dist.Bernoulli(torch.full((2,), 0.5)).to_event(1))
    """
    check_event_shape(x, p_x.event_shape)
    check_finite(x, mask)
    support = innermost(p_x.support)
    bad = Counter()
    for start, rows, observed in chunks(x, mask):
        is_bad = ~support.check(rows)
        if has_edges(support):
            has_density = _has_density(p_x, rows, observed, is_bad)
            is_bad = is_bad | (~has_density & cells_with_edges(support, rows.device))
        if observed is not None and is_bad.dim() == rows.dim():
            is_bad = is_bad & observed
        bad.add(is_bad, start)
    if bad.count:
        raise DataError(_outside_support(x, bad, p_x, support, names))


def is_clearly_fine(x: Any, event_shape: torch.Size, support: Any, dtype: torch.dtype) -> bool:
    """Return whether a pass or two show that every value is allowed; False says nothing.

    Args:
        x: (N, *event), fully observed.
        event_shape: of p(x|z).
        support: of one number (`innermost`).
        dtype: of the arithmetic to come.

    Example:
        >>> is_clearly_fine(torch.ones(3, 2), (2,), constraints.boolean, torch.float32)
        True
    """
    is_small = isinstance(x, Tensor) and 0 < x.numel() <= NUMBERS_AT_A_TIME
    if not is_small or x.shape[1:] != event_shape or x.dtype in WIDE_UNSIGNED:
        return False
    low, high = (end.item() for end in x.aminmax())  # NaN where x holds one
    exact = 2 / torch.finfo(dtype).eps  # below it whole numbers are exact, and squares finite
    if not -exact <= low <= high <= exact:
        return False
    least, most = getattr(support, "lower_bound", low), getattr(support, "upper_bound", high)
    if support is constraints.boolean:
        return low >= 0 and high <= 1 and (not x.is_floating_point() or _is_zero(x - x * x))
    if type(support) in WHOLE:
        is_whole = not x.is_floating_point() or _is_zero(x - x.round())
        return least <= low and high <= most and is_whole
    return support is constraints.real or (type(support) in OPEN and least < low and high < most)


def _is_zero(x: Tensor) -> bool:
    """Return whether all elements are 0, in half the time of `torch.equal` or `any`."""
    low, high = x.aminmax()
    return low.item() == high.item() == 0


WIDE_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
WHOLE = tuple({type(constraints.nonnegative_integer), constraints.integer_interval})
OPEN = tuple({type(c) for c in (constraints.unit_interval, constraints.positive)})


def innermost(support: Any) -> Any:
    """Return the support of one element of x, or of one event if it does not factorize.

    Example:
        >>> innermost(constraints.independent(constraints.positive, 1))
        GreaterThan(lower_bound=0.0)
    """
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return _for_any_datum(support)


def _for_any_datum(support: Any) -> Any:
    """Replace bounds that differ between data (tensors) by the widest ones."""
    names = [n for n in ("lower_bound", "upper_bound") if hasattr(support, n)]
    bounds = {name: getattr(support, name) for name in names}
    if not any(isinstance(bound, Tensor) and bound.dim() for bound in bounds.values()):
        return support
    low_or_high = {"lower_bound": torch.min, "upper_bound": torch.max}
    return type(support)(*(low_or_high[n](torch.as_tensor(b)).item() for n, b in bounds.items()))


def _has_density(p_x: Distribution, rows: Tensor, observed: Tensor | None, is_bad: Tensor):
    """Return which values have a finite log-density; Gamma, for one, includes 0 in its support."""
    base = elementwise(p_x)
    within = inside(innermost(p_x.support), torch.get_default_dtype(), rows.device)
    middle = torch.where(is_bad, within, rows)
    middle = middle if observed is None else torch.where(observed, middle, within)
    middle = middle.to(torch.get_default_dtype())
    # p_x may have a batch of data: each value must have a density under all of them
    lead = len(base.batch_shape) - (rows.dim() - 1)
    beside = middle.reshape(len(rows), *[1] * lead, *rows.shape[1:])
    return (
        torch.isfinite(base.log_prob(beside)).flatten(1, lead).all(1)
        if lead
        else (torch.isfinite(base.log_prob(middle)))
    )


def elementwise(p_x: Distribution) -> Distribution:
    """Return p_x without Independent and mask: one density for each element of x."""
    while type(p_x).__name__ in ("Independent", "MaskedDistribution"):
        p_x = p_x.base_dist
    return p_x


def check_finite(x: Any, mask: Any = None, name: str = "x") -> None:
    """Raise DataError unless every observed number is finite.

    Example:
        >>> check_finite(torch.tensor([[0.0, torch.nan]]), torch.tensor([[True, False]]))
    """
    if not x.is_floating_point():
        return
    bad = Counter()
    for start, rows, observed in chunks(x, mask):
        if math.isfinite(rows.sum()):  # then every number is, and a sum is the cheapest check
            continue
        is_bad = ~torch.isfinite(rows)
        bad.add(is_bad if observed is None else is_bad & observed, start)
    if bad.count:
        fix = f"Rescale or drop them; {x.dtype} ends at {torch.finfo(x.dtype).max:.3g}."
        if x[bad.first].isnan():
            fix = "Drop these rows; unknown labels are -1 in programs.SemiSupervisedVAE."
            if name == "x":
                fix = "If they are missing values, pass mask=~torch.isnan(x) to leave them out."
        raise DataError(
            f"{name}{at(bad.first)} = {x[bad.first].item()}, but every number must be finite "
            f"({bad.count:,} of {x.numel():,} entries are not).\n{fix}"
        )


def check_precision(
    x: Any,
    dtype: torch.dtype,
    mask: Any = None,
    *,
    p_x: Distribution | None = None,
) -> None:
    """Raise DataError unless `dtype` can represent every observed number and its square.

    Whole numbers above 2²⁴ are not exact in float32, which matters if x has an integer dtype
    or p_x is a density of counts; real numbers may be rounded. A number whose square
    overflows has an infinite Gaussian log-density.

    Example:
        >>> check_precision(torch.tensor([[1e4]]), torch.float32)
    """
    ends = torch.finfo(dtype)
    largest, exact = math.sqrt(ends.max) / 2, 2 / ends.eps
    if x.element_size() == 1 or _is_within(x, exact):
        return
    is_whole: Any = not x.is_floating_point()
    if not is_whole and p_x is not None:
        is_whole = whole_cells(innermost(p_x.support), getattr(x, "device", None))
    large, inexact = Counter(), Counter()
    for start, rows, observed in chunks(x, mask):
        size = rows.double().abs()
        seen = torch.ones_like(size, dtype=torch.bool) if observed is None else observed
        large.add((size > largest) & seen, start)
        inexact.add((size > exact) & seen & is_whole, start)
    if large.count:
        raise DataError(
            f"x{at(large.first)} = {x[large.first].item():.3g}, but its square overflows {dtype} "
            f"({large.count:,} of {x.numel():,} entries above {largest:.3g}), and a log-density "
            "squares it.\nStandardize x: (x - x.mean(0)) / x.std(0)."
        )
    if inexact.count:
        raise DataError(
            f"x{at(inexact.first)} = {int(x[inexact.first])}, but whole numbers above "
            f"{exact:,.0f} are not exact in {dtype} ({inexact.count:,} of {x.numel():,} entries).\n"
            "Use vae.double(), or rescale x."
        )


def _is_within(x: Any, bound: float) -> bool:
    """Return whether |x| ≤ bound everywhere, in one pass; False if x holds NaN."""
    low, high = _ends(x)
    return -bound <= low and high <= bound


def _ends(x: Any, column: tuple[int, ...] = ()) -> tuple[float, float]:
    """Return the smallest and largest number of x, or of a column; NaN if it holds one."""
    # torch does not order wide unsigned integers
    is_ordered = x.is_floating_point() or x.element_size() == 1
    parts = (rows[(slice(None), *column)] for _, rows, _ in chunks(x))
    ends = [(part if is_ordered else part.double()).aminmax() for part in parts]
    both = torch.stack([torch.stack(pair).double() for pair in ends])
    return both[:, 0].min().item(), both[:, 1].max().item()


def _outside_support(
    x: Any, bad: Counter, p_x: Distribution, support: Any, names: tuple[str, ...] | None
) -> str:
    columns, base = columns_of(support), elementwise(p_x)
    column = bad.first[1:] if columns else ()
    support = columns.at(bad.first) if columns else support
    kind = base.kind_of(*column) if hasattr(base, "kind_of") else type(base).__name__
    low, high = _ends(x, column)
    value = f"{x[bad.first].item():.6g}" if x[bad.first].dim() == 0 else "a row"
    total = x.numel() if x[bad.first].dim() == 0 else len(x)
    name = f"column {names[column[0]]!r}: " if columns and names else ""
    what = "the column" if columns else "x"
    return (
        f"{name}x{at(bad.first)} = {value}, but {_a(kind)} likelihood needs "
        f"{_requirement(support)} ({bad.count:,} of {total:,} entries are not; {what} ranges from "
        f"{low:.6g} to {high:.6g}).\n{_fix(support, low, high)}"
    )


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOU' else 'a'} {noun}"


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
        return f"values in [{low:g}, {high:g}], or ({low:g}, {high:g}) if log p diverges at an end"
    if low is not None:
        return f"values > {low:g}"
    return f"values in {support}"


def _fix(support: Any, low: float, high: float) -> str:
    if support is constraints.boolean:
        return _fix_binary(low, high)
    if hasattr(support, "num_levels"):
        scale = "Scale x to [0, 1] first: x / 255." if high > 1 else "Quantize x first."
        return scale + " For values between the levels use likelihoods.ContinuousBernoulli."
    if support.is_discrete and getattr(support, "upper_bound", None) is not None:
        return f"Number the categories from 0, or set num_categories={int(max(high, 1)) + 1}."
    if support.is_discrete:
        fix = "For real values use likelihoods.Normal or StudentT."
        return fix if low < 0 else fix + " If x is normalized, pass the raw counts and sizes as y."
    if getattr(support, "upper_bound", None) is not None:
        return "Scale x into that interval first; nothing is scaled silently."
    return "Transform x, or choose a likelihood with that support (pyrovae.likelihoods)."


def _fix_binary(low: float, high: float) -> str:
    if low < 0:
        return "Shift and scale x to [0, 1] first, then datasets.binarize(x)."
    if high > 1:
        return f"Scale, then binarize: datasets.binarize(x / {255 if high > 16 else f'{high:g}'})."
    return "Use datasets.binarize(x), or likelihoods.ContinuousBernoulli."
