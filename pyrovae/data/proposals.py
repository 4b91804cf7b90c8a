"""`table`: a data frame as a model sees it, with a kind proposed for each column."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyrovae.checks import nearest
from pyrovae.checks.tensors import as_frame, is_frame, names_of
from pyrovae.data.cells import Value, as_codes, as_numbers, values_of
from pyrovae.data.schema import Column, Schema, Table
from pyrovae.errors import ConfigError, DataError

MAX_LEVELS = 10  # distinct whole numbers that are levels rather than counts
MAX_COUNT = 1e6
MIN_SKEWNESS = 1.0
CODED = ("Categorical", "Ordinal")


def table(frame: Any, kinds: Mapping[str, Any] | None = None) -> Table:
    """Read a data frame as a table: a kind of density for each column, codes, missing cells.

    The first rule that holds proposes the kind:

    1. truth values, or only 0 and 1: Bernoulli.
    2. an ordered category dtype: Ordinal; other categories and strings: Categorical.
    3. at most 10 distinct whole numbers: Ordinal, of these levels.
    4. whole numbers from 0 to 10⁶ with a variance of at least half their mean: NegativeBinomial,
       or Poisson if it is at most 1.5 times the mean.
    5. positive numbers with a skewness above 1, which their logs have less of: LogNormal.
    6. other numbers: Normal.

    StudentT, Gamma and Beta are never proposed. None, NaN, NA and NaT are missing. The repr
    shows the kinds and why.

    Args:
        frame: a pandas or polars data frame, or an Arrow table. It is not changed.
        kinds: column → kind that overrides the proposal: a name or a dict of options, as for
            `likelihoods.Columns`; for Categorical and Ordinal {"kind": "Ordinal", "categories":
            ["low", "high"]} sets names and order, by default the sorted values.

    Returns:
        A `Table`, which `build(table)` makes a model for, and every function takes as x.

    Raises:
        DataError: a column has no values, a single category, dates or objects, almost as many
            strings as rows, or values that do not fit the given kind; or names occur twice.
        ConfigError: frame is not a data frame, or kinds names no column or no kind.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"age": [31.5, None, 47.0], "smokes": ["no", "yes", "no"]})
        >>> table(frame)
        Table of 3 rows × 2 columns
        column  kind             seen                       missing
        age     Normal           numbers from 31.5 to 47    33.3 %
        smokes  Categorical (2)  'no', 'yes'                0 %
    """
    if not is_frame(frame):
        raise ConfigError(
            f"table takes a data frame, but got a {type(frame).__name__}.\n"
            "Pass a pandas or polars data frame, or an Arrow table; arrays need no table."
        )
    names, kinds = list(map(str, names_of(frame))), dict(kinds or {})
    if len(set(names)) < len(names) or not names:
        twice = next((name for name in names if names.count(name) > 1), None)
        raise DataError(
            f"the data frame {'has no columns' if twice is None else f'has two columns {twice!r}'},"
            " but columns are known by their names.\nRename or drop one of them."
        )
    for name in kinds:
        if name not in names:
            near = nearest(name, names)
            hint = f"\nDid you mean {near!r}?" if near else ""
            raise ConfigError(f"kinds names {name!r}, which is not a column of the frame.{hint}")
    columns = zip(names, as_frame(frame).iter_columns(), strict=True)
    found = tuple(_column(name, cells, kinds.get(name)) for name, cells in columns)
    return Table(Schema(found), frame)


def _column(name: str, cells: Any, choice: Any) -> Column:
    options = {"kind": choice} if isinstance(choice, str) else dict(choice or {})
    values = _checked_values(name, cells)
    if options.get("kind") in CODED:
        given = options.pop("categories", None) or _declared(cells) or _sorted_values(values)
        return _coded(name, options["kind"], given, values)
    if options:
        numbers = as_numbers(cells, name)
        return Column(name, options, seen=_range(numbers[~np.isnan(numbers)]))
    return _proposed(name, cells, [value for value in values if value is not None])


def _checked_values(name: str, cells: Any) -> list[Value | None]:
    if cells.dtype.is_temporal():
        raise DataError(
            f"column {name!r} holds {cells.dtype}, for which there is no kind of density.\n"
            "Convert it to a number, such as days since the first date, or drop it."
        )
    if cells.dtype.is_nested():
        raise DataError(
            f"column {name!r} holds {cells.dtype}, but a cell must be one number or category.\n"
            "Split it into columns, or drop it."
        )
    values = values_of(cells)
    if all(value is None for value in values):
        raise DataError(f"column {name!r} has no values, so there is nothing to learn. Drop it.")
    return values


def _proposed(name: str, cells: Any, values: list[Value]) -> Column:
    distinct = set(values)
    if declared := _declared(cells):
        is_ordered = bool(getattr(getattr(cells.to_native(), "dtype", None), "ordered", False))
        return _coded(name, "Ordinal" if is_ordered else "Categorical", declared, values)
    if any(type(value) is str for value in values):
        is_text = all(type(value) is str for value in values)
        if not is_text:
            raise DataError(
                f"column {name!r} holds both text and numbers, such as "
                f"{next(v for v in values if type(v) is str)!r} and "
                f"{next(v for v in values if type(v) is not str)!r}.\nCorrect it, or name it: "
                f'kinds={{{name!r}: "Categorical"}}.'
            )
        if len(distinct) > max(20, len(values) / 2):
            raise DataError(
                f"column {name!r} holds {len(distinct):,} different strings in {len(values):,} "
                "rows: a name or an identifier, from which nothing can be learned.\n"
                f'Drop it; or if these are categories, kinds={{{name!r}: "Categorical"}}.'
            )
        return _coded(name, "Categorical", _sorted_values(values), values)
    if distinct <= {0, 1}:
        return Column(name, {"kind": "Bernoulli"}, seen="0 and 1")
    return _of_numbers(name, np.array(values, dtype="float64"), distinct)


def _of_numbers(name: str, numbers: np.ndarray, distinct: set[Value]) -> Column:
    """Return a column of at least one number other than 0 and 1, without missing cells."""
    seen = _range(numbers)
    is_whole = bool((numbers == np.floor(numbers)).all())
    if is_whole and 1 < len(distinct) <= MAX_LEVELS:
        return _coded(name, "Ordinal", _sorted_values(list(distinct)), list(distinct))
    if is_whole and numbers.min() >= 0 and numbers.max() <= MAX_COUNT:
        ratio = numbers.var() / numbers.mean()
        if ratio >= 0.5:
            kind = "Poisson" if ratio <= 1.5 else "NegativeBinomial"
            return Column(name, {"kind": kind}, seen=f"{seen}, variance {ratio:.3g} × mean")
    if numbers.min() > 0:
        skewness, of_log = _skewness(numbers), _skewness(np.log(numbers))
        if skewness > MIN_SKEWNESS and abs(of_log) < skewness:
            return Column(name, {"kind": "LogNormal"}, seen=f"{seen}, skewness {skewness:.2g}")
    return Column(name, {"kind": "Normal"}, seen=seen)


def _coded(
    name: str, kind: str, categories: Sequence[Any], values: Sequence[Value | None]
) -> Column:
    categories = tuple(categories)
    if len(categories) < 2:
        raise DataError(
            f"column {name!r} has one category, {categories[0]!r}: nothing varies in it.\n"
            "Drop it, or give all its categories: "
            f"kinds={{{name!r}: {{'kind': {kind!r}, 'categories': […]}}}}."
        )
    as_codes(list(values), categories, f"column {name!r}")
    shown = ", ".join(map(repr, categories[:4])) + (", …" if len(categories) > 4 else "")
    if kind == "Ordinal":
        shown = shown.replace(", ", " < ")
    return Column(name, {"kind": kind, "num_categories": len(categories)}, categories, shown)


def _declared(cells: Any) -> list[Value] | None:
    """Return the categories of a pandas category dtype or a polars Enum, in order."""
    dtype = getattr(cells.to_native(), "dtype", None)
    if type(dtype).__name__ not in ("CategoricalDtype", "Enum"):
        return None
    plain = [c.item() if isinstance(c, np.generic) else c for c in list(dtype.categories)]
    return [c if isinstance(c, Value) else str(c) for c in plain]


def _sorted_values(values: Sequence[Value | None]) -> list[Value]:
    distinct = {value for value in values if value is not None}
    is_text = any(type(value) is str for value in distinct)
    return sorted(distinct, key=str if is_text else None)


def _range(numbers: np.ndarray) -> str:
    is_whole = bool((numbers == np.floor(numbers)).all())
    what = "whole numbers" if is_whole else "numbers"
    return f"{what} from {numbers.min():.6g} to {numbers.max():.6g}"


def _skewness(numbers: np.ndarray) -> float:
    spread = numbers.std()
    return float((((numbers - numbers.mean()) / spread) ** 3).mean()) if spread > 0 else 0.0
