"""Cells of a column of a data frame as numbers: codes of categories, NaN where missing."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyrovae.checks import nearest
from pyrovae.errors import DataError

Value = str | int | float | bool


def missing_cells(column: Any) -> np.ndarray:
    """Return which cells of a narwhals Series are missing: null, or NaN among floats."""
    found = column.is_null().to_numpy().astype(bool)
    if column.dtype.is_float():
        found = found | np.isnan(column.to_numpy().astype("float64"))
    return found


def values_of(column: Any) -> list[Value | None]:
    """Return the cells as Python values, None where missing; of other types, their text."""
    gone = missing_cells(column)
    return [None if m else as_value(v) for v, m in zip(column.to_list(), gone, strict=True)]


def as_value(value: Any) -> Value:
    """Return a category as a value of JSON; one number for equal numbers.

    Example:
        >>> as_value(np.float32(2.0)), as_value("a"), as_value((1, 2))
        (2, 'a', '(1, 2)')
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating) and math.isfinite(value):
        return int(value) if float(value).is_integer() else float(value)
    return str(value)


def as_codes(
    values: Sequence[Value | None], categories: Sequence[Value], what: str
) -> list[float | int]:
    """Return the position of each value among the categories, NaN where missing.

    Raises:
        DataError: a value is not among the categories.

    Example:
        >>> as_codes(["b", None], ["a", "b"], "column 'x'")
        [1, nan]
    """
    code = {(type(c) is str, c): k for k, c in enumerate(categories)}
    found = [math.nan if v is None else code.get((type(v) is str, v), -1) for v in values]
    if -1 in found:
        row = found.index(-1)
        known = ", ".join(map(repr, list(categories)[:8])) + (", …" if len(categories) > 8 else "")
        near = nearest(values[row], map(str, categories))
        hint = f" Did you mean {near!r}?" if near and isinstance(values[row], str) else ""
        raise DataError(
            f"{what} has the category {values[row]!r} in row {row} ({found.count(-1):,} rows in "
            f"all), but the model knows {known}.\nIt has no probability for others: correct or "
            f"drop these rows, or fit a model with all categories.{hint}"
        )
    return found


def as_numbers(column: Any, name: str) -> np.ndarray:
    """Return the cells as float64, NaN where missing.

    Raises:
        DataError: they are not numbers.
    """
    gone = missing_cells(column)
    if column.dtype.is_numeric() or str(column.dtype) == "Boolean":
        column = column.cast(_float64()) if not column.dtype.is_float() else column
        numbers = column.to_numpy().astype("float64").copy()
        numbers[gone] = np.nan
        return numbers
    values = values_of(column)
    bad = next((i for i, v in enumerate(values) if type(v) is str), None)
    if bad is not None:
        raise DataError(
            f"column {name!r} holds {values[bad]!r} in row {bad}, of type {column.dtype}, but the "
            f"model needs a number there.\nConvert it, or make it a Categorical column: "
            f'pv.data.table(x, kinds={{{name!r}: "Categorical"}}).'
        )
    return np.array([math.nan if v is None else float(v) for v in values])


def _float64() -> Any:
    import narwhals.stable.v1 as nw

    return nw.Float64()
