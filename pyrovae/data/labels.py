"""Names of classes as covariates y: strings or categories in any container, as codes 0 … K − 1."""

from typing import Any

import numpy as np
from torch import Tensor

from pyrovae.checks.tensors import as_frame, is_frame, names_of
from pyrovae.data.cells import Value, as_codes
from pyrovae.errors import DataError

UNKNOWN = -1  # the code of a missing label, which programs.SemiSupervisedVAE takes


def are_names(y: Any) -> bool:
    """Return whether y holds strings, in a list, an array, a Series or a data frame.

    Example:
        >>> are_names(["a", None]), are_names([0, 1]), are_names(None)
        (True, False, False)
    """
    return _names(y) is not None


def classes_of(y: Any) -> tuple[Value, ...] | None:
    """Return the names of classes: in the order of a category dtype, else sorted.

    Example:
        >>> classes_of(["stim", "ctrl", None])
        ('ctrl', 'stim')
    """
    values = _names(y)
    if values is None:
        return None
    dtype = getattr(_one_column(y), "dtype", None)
    if type(dtype).__name__ in ("CategoricalDtype", "Enum"):  # of pandas, polars
        return tuple(map(str, dtype.categories))
    return tuple(sorted({value for value in values if value is not None}))


def as_class_codes(y: Any, classes: tuple[Value, ...]) -> np.ndarray:
    """Return the codes of names, (N,) int64; −1 where missing.

    Raises:
        DataError: a name is not among the classes.

    Example:
        >>> as_class_codes(["b", None, "a"], ("a", "b"))
        array([ 1, -1,  0])
    """
    codes = np.array(as_codes(_names(y), classes, "y"), dtype="float64")
    return np.where(np.isnan(codes), UNKNOWN, codes).astype("int64")


def _names(y: Any) -> list[str | None] | None:
    """Return y as a list of strings, None where missing; None if it does not hold strings."""
    if y is None or isinstance(y, Tensor) or hasattr(y, "tocsr"):
        return None
    if is_frame(y):
        return _names_in_frame(y)
    try:
        array = np.asarray(y)
    except ValueError:
        return None
    if array.dtype.kind not in "OUT" or array.ndim != 1:
        return None
    is_text = [isinstance(value, str) for value in array]
    if not any(is_text):
        return None
    others = [value for value, text in zip(array, is_text, strict=True) if not text]
    if not all(map(_is_missing, others)):
        return None  # mixed with numbers
    return [str(v) if text else None for v, text in zip(array, is_text, strict=True)]


def _is_missing(value: Any) -> bool:
    is_nan = isinstance(value, float) and value != value
    return value is None or is_nan or type(value).__name__ in ("NAType", "NaTType")


def _names_in_frame(y: Any) -> list[str | None] | None:
    columns = list(as_frame(y).iter_columns())
    found = [_names(column.to_native()) for column in columns]
    if len(found) > 1 and any(found):
        name = next(n for n, values in zip(names_of(y), found, strict=True) if values)
        raise DataError(
            f"column {name!r} of y holds strings, among {len(found)} columns: it is unclear how a "
            "part should read them.\nPass the labels alone, y[name], or numbers for all columns."
        )
    return found[0] if found else None


def _one_column(y: Any) -> Any:
    return next(as_frame(y).iter_columns()).to_native() if is_frame(y) else y
