"""Rows and columns of several data frames, matched by their names.

    x and mask    the same columns, in the order of x
    x, y, mask    pandas indexes: the same rows, in the order of x

Names in another order are put in order, with a warning; other names are an error. Arrays and
frames without names, such as a default index, are taken by position.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyrovae.checks import warn_caller
from pyrovae.checks.tensors import as_frame, is_frame, names_of
from pyrovae.data.batch import is_by_site
from pyrovae.errors import DataError


def column_names(frame: Any) -> tuple[str, ...] | None:
    """Return the names of a frame's columns; None if they are numbers, or if there are none.

    Example:
        >>> import pandas as pd
        >>> column_names(pd.DataFrame({"a": [1]})), column_names(pd.DataFrame([[1]]))
        (('a',), None)
    """
    if not is_frame(frame):
        return getattr(frame, "column_names", None)
    is_numbered = type(getattr(frame, "columns", None)).__name__ == "RangeIndex"
    return None if is_numbered else tuple(map(str, names_of(frame)))


def aligned(x: Any, y: Any, mask: Any) -> tuple[Any, Any, Any]:
    """Return x, y and mask with the rows and columns of y and mask in the order of x.

    Raises:
        DataError: the names of rows or columns differ.
    """
    if is_by_site(x):
        return x, y, mask
    is_table = not is_frame(x) and hasattr(x, "schema")  # a `Table`, in the order of its schema
    frame = x.frame if is_table else x
    names = x.schema.names if is_table else column_names(x)
    if names is not None and column_names(mask) is not None:
        mask = in_columns(mask, names, "mask", "x")
    return x, in_rows_of(frame, y, "y"), in_rows_of(frame, mask, "mask")


def in_columns(frame: Any, names: Sequence[str], what: str, whose: str) -> Any:
    """Return a frame with these columns, in this order.

    Args:
        frame: with names.
        names: the wanted ones.
        what: the name of the frame, for messages.
        whose: what has the wanted names.

    Raises:
        DataError: a column is missing, or one is not wanted, or a name occurs twice.

    Example:
        >>> import pandas as pd
        >>> in_columns(pd.DataFrame({"a": [1], "b": [2]}), ["a", "b"], "x", "the model").shape
        (1, 2)
    """
    found = column_names(frame)
    found = tuple(map(str, names_of(frame))) if found is None else found
    if found == tuple(names):
        return frame
    missing, extra = set(names) - set(found), set(found) - set(names)
    if missing or extra or len(set(found)) < len(found):
        problem = f"lacks {_listed(missing, names)}" if missing else ""
        if extra:
            joined = " and " if problem else ""
            problem += f"{joined}has {_listed(extra, found)}, which {whose} has not"
        raise DataError(
            f"the columns of {what} are not those of {whose}: it "
            f"{problem or 'has a name twice'}.\nColumns are matched by name; pass the same ones."
        )
    warn_caller(
        f"the columns of {what} are those of {whose} in another order: they were put in order by "
        "name"
    )
    return take_columns(frame, [found.index(name) for name in names])


def take_columns(frame: Any, positions: list[int]) -> Any:
    """Return a frame of the columns at these positions."""
    if hasattr(frame, "iloc"):
        return frame.iloc[:, positions]
    return as_frame(frame)[:, positions].to_native()


def in_rows_of(x: Any, other: Any, what: str) -> Any:
    """Return y or mask with its rows in the order of x, if both have pandas indexes.

    Raises:
        DataError: both name their rows, and the names differ.
    """
    mine, its = getattr(x, "index", None), getattr(other, "index", None)
    if not (_is_index(mine) and _is_index(its)) or mine.equals(its):
        return other
    if len(mine) == len(its) and mine.is_unique and its.is_unique:
        place = its.get_indexer(mine)
        if (np.asarray(place) >= 0).all():
            warn_caller(
                f"the rows of {what} are those of x in another order: they were put in order by "
                "the index"
            )
            return other.iloc[place]
    if _is_default(mine) or _is_default(its):
        return other  # one of them has no names
    raise DataError(
        f"{what} has another index than x ({_first_difference(mine, its)}): it is unclear which "
        f"rows belong together.\nGive {what} the index of x, or pass {what}.to_numpy() if they are "
        "in the same order."
    )


def _is_index(index: Any) -> bool:
    return hasattr(index, "get_indexer") and hasattr(index, "equals")


def _is_default(index: Any) -> bool:
    return type(index).__name__ == "RangeIndex" and index.start == 0 and index.step == 1


def _first_difference(mine: Any, its: Any) -> str:
    if len(mine) != len(its):
        return f"{len(its):,} rows instead of {len(mine):,}"
    row = next((i for i, (a, b) in enumerate(zip(mine, its, strict=True)) if a != b), 0)
    return f"row {row} is {its[row]!r} instead of {mine[row]!r}"


def _listed(names: set[str], order: Sequence[str]) -> str:
    shown = [repr(name) for name in order if name in names]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
