"""Data frames with other numbers: pandas, polars and Arrow, of which none is imported here.

Rows, columns, their order and their names are those of the given frame, as is every cell that is
not replaced, to the bit.
"""

from typing import Any

import numpy as np

from pyrovae.checks.tensors import as_frame, is_frame, names_of
from pyrovae.data.schema import Table
from pyrovae.errors import ConfigError


def with_cells(frame: Any, mask: np.ndarray, values: np.ndarray) -> Any:
    """Return a copy of a data frame with other numbers in the cells where mask is false.

    A column keeps its dtype if that can hold the new numbers: floats always, whole numbers and
    truth values if these are whole; otherwise it becomes float64.

    Args:
        frame: (N, D), a pandas or polars data frame, an Arrow table, or a `Table`.
        mask: (N, D), true in cells to keep.
        values: (N, D).

    Raises:
        ConfigError: frame is not a data frame.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"a": [1.0, None], "b": [3, 4]}, index=["r", "s"])
        >>> with_cells(frame, frame.notna().to_numpy(), np.full((2, 2), 0.5))
             a  b
        r  1.0  3
        s  0.5  4
    """
    if isinstance(frame, Table):
        return _with_categories(frame, mask, values)
    found = _narwhals(frame)  # pandas columns numbered, since names may occur twice
    columns = zip(found.iter_columns(), mask.T, values.T, strict=True)
    filled = found.with_columns(*(_filled(*column) for column in columns)).to_native()
    return filled.set_axis(names_of(frame), axis=1) if hasattr(frame, "set_axis") else filled


def _with_categories(table: Table, mask: np.ndarray, values: np.ndarray) -> Any:
    """Return the data frame of a table with other cells, codes as the names of categories."""
    frame = table.frame
    found, filled = _narwhals(frame), []
    for cells, j in zip(found.iter_columns(), table.positions(), strict=True):
        column = table.schema.columns[j]
        if column.categories is None:
            filled.append(_filled(cells, mask[:, j], values[:, j]))
        else:
            codes = values[:, j][~mask[:, j]].astype(int)
            names = [column.categories[code] for code in codes]
            filled.append(_with_names(cells, np.flatnonzero(~mask[:, j]), names))
    native = found.with_columns(*filled).to_native()
    return native.set_axis(names_of(frame), axis=1) if hasattr(frame, "set_axis") else native


def _with_names(cells: Any, index: np.ndarray, names: list[Any]) -> Any:
    """Return a narwhals Series with categories in these rows, of the same dtype."""
    import narwhals.stable.v1 as nw

    native = cells.to_native()
    if not len(index):
        return cells
    if hasattr(native, "iloc"):
        native = native.copy()
        native.iloc[index] = names
        return nw.from_native(native, series_only=True)
    values = cells.to_list()
    for i, name in zip(index, names, strict=True):
        values[i] = name
    space = cells.__native_namespace__()
    if hasattr(space, "Series"):  # polars
        made = space.Series(cells.name, values).cast(native.dtype)
    else:
        made = _arrow(space, native, values)
    return nw.from_native(made, series_only=True).alias(cells.name)


def _arrow(pa: Any, native: Any, values: list[Any]) -> Any:
    """Return an Arrow array of values, with the dictionary of another one if it has one."""
    if not pa.types.is_dictionary(native.type):
        return pa.chunked_array([values], type=native.type)
    known = native.unify_dictionaries().combine_chunks().dictionary.to_pylist()
    known += sorted(set(values) - set(known) - {None})
    codes = [None if value is None else known.index(value) for value in values]
    array = pa.DictionaryArray.from_arrays(
        pa.array(codes, native.type.index_type),
        pa.array(known, native.type.value_type),
        ordered=native.type.ordered,
    )
    return pa.chunked_array([array])


def _narwhals(frame: Any) -> Any:
    if is_frame(frame):
        return as_frame(frame)
    raise ConfigError(
        f"the data were a {type(frame).__name__}, without names of rows and columns to give back.\n"
        "Pass x as a pandas or polars data frame, or read the tensors: draws, mean, ess, pareto_k."
    )


def _filled(column: Any, is_kept: np.ndarray, values: np.ndarray) -> Any:
    import narwhals.stable.v1 as nw

    index = np.flatnonzero(~is_kept)
    if not len(index):
        return column
    new = values[index].astype("float64")
    is_whole = bool((new == np.floor(new)).all())
    dtype = column.dtype if column.dtype.is_float() or is_whole else nw.Float64()
    as_float = column.cast(nw.Float64()) if not column.dtype.is_float() else column
    filled = as_float.scatter(index.tolist(), new.tolist())
    return filled if filled.dtype == dtype else filled.cast(dtype)


def beside(frame: Any, columns: dict[str, np.ndarray]) -> Any:
    """Return a data frame of the same kind and index with other columns, one row per row.

    Example:
        >>> import pandas as pd
        >>> beside(pd.DataFrame({"a": [1.0]}, index=["r"]), {"ess": np.ones(1)})
           ess
        r  1.0
    """
    import narwhals.stable.v1 as nw

    frame = frame.frame if isinstance(frame, Table) else frame
    found = nw.from_dict(columns, native_namespace=_narwhals(frame).__native_namespace__())
    native = found.to_native()
    return native.set_axis(frame.index, axis=0) if hasattr(frame, "set_axis") else native
