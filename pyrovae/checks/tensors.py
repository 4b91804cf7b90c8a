"""Conversion of the user's arrays, data frames and masks to tensors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.checks.places import at, chunks, first_true
from pyrovae.errors import DataError


def as_tensor(value: Any, name: str = "x", *, is_masked: bool = False) -> Tensor:
    """Return a detached strided tensor with the caller's numbers; never a view of their array.

    Accepts tensors, NumPy arrays of any order, stride or byte order, numeric data frames,
    and nested lists.

    Args:
        value: the data.
        name: the caller's name for it, for the message.
        is_masked: whether a mask of it is given: missing values of a data frame are then NaN, and
            otherwise an error.

    Raises:
        DataError: value is complex, sparse, text, object or otherwise not numeric; the message
            names the dtype, and the column of a data frame.

    Example:
        >>> as_tensor(np.array([[0, 1]], dtype=">i2"))
        tensor([[0, 1]], dtype=torch.int16)
    """
    if isinstance(value, Tensor):
        return _checked_tensor(value, name)
    if hasattr(value, "_fields"):
        raise DataError(
            f"{name} is a {type(value).__name__} of several arrays, "
            f"{', '.join(value._fields[:3])}, …\nPass one of them, such as data.{value._fields[0]}."
        )
    if isinstance(value, np.ma.MaskedArray):
        raise DataError(
            f"{name} is a masked array, but a density would see its masked values.\n"
            f"Pass {name}.filled(0) as x and ~np.ma.getmaskarray({name}) as mask=."
        )
    if is_frame(value):
        value = _from_data_frame(value, name, is_masked=is_masked)
    if hasattr(value, "tocsr"):
        raise DataError(
            f"{name} is a sparse matrix, but a dense array is needed: {name}.toarray()."
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{name} is not a numeric array: {error}.") from None
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{name} has dtype {array.dtype}, but a density needs real numbers (float, integer "
            f"or bool).\nConvert it first, for example {name}.astype('float32')."
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype("float64")  # torch has no long double
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype("float64")  # nor arithmetic on wide unsigned integers
    # a copy in native byte order: torch supports neither big-endian nor negative strides
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=True))


def _checked_tensor(value: Tensor, name: str) -> Tensor:
    if value.is_complex() or value.is_quantized or value.layout is not torch.strided:
        kind = value.layout if value.layout is not torch.strided else value.dtype
        raise DataError(
            f"{name} is a tensor of {kind}, but a density needs dense real numbers.\n"
            f"Convert it first: {name}.to_dense(), or {name}.real."
        )
    if value.is_inference():
        value = value.clone()  # which can be differentiated through, outside of inference mode
    is_wide_unsigned = value.dtype in (torch.uint16, torch.uint32, torch.uint64)
    return value.detach().double() if is_wide_unsigned else value.detach()


def as_labels(value: Any) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Return the names of rows and columns that a data frame gives, None where it gives none.

    The numbers of a default index are not names.

    Example:
        >>> import pandas as pd
        >>> rows, columns = as_labels(pd.DataFrame({"a": [0, 1]}, index=["r", "s"]))
        >>> rows.tolist(), columns
        (['r', 's'], ('a',))
    """
    if not is_frame(value):
        return None, None
    index = getattr(value, "index", None)
    is_default = index is None or callable(index) or type(index).__name__ == "RangeIndex"
    return None if is_default else np.asarray(index), tuple(map(str, names_of(value)))


def is_frame(value: Any) -> bool:
    """Return whether value is a pandas or polars data frame, or an Arrow table."""
    is_table = hasattr(value, "columns") and hasattr(value, "dtypes")
    return is_table or (hasattr(value, "column_names") and hasattr(value, "schema"))


def as_frame(value: Any) -> Any:
    import narwhals.stable.v1 as nw

    if hasattr(value, "set_axis"):  # pandas, where names may occur twice
        value = value.set_axis(range(len(value.columns)), axis=1)
    return nw.from_native(value, eager_only=True)


def names_of(value: Any) -> list[Any]:
    return list(value.column_names if hasattr(value, "column_names") else value.columns)


def _from_data_frame(value: Any, name: str, *, is_masked: bool) -> np.ndarray:
    frame = as_frame(value)
    arrays = []
    for column, values in zip(names_of(value), frame.iter_columns(), strict=True):
        if not (values.dtype.is_numeric() or str(values.dtype) == "Boolean"):
            raise DataError(
                f"column {column!r} of {name} has dtype {values.dtype}, but a density needs "
                f"numbers.\nEncode it, or drop it: {name}.drop(columns=[{column!r}])."
            )
        is_missing = values.is_null().to_numpy()
        if is_missing.any() and not is_masked:
            raise DataError(
                f"column {column!r} of {name} has a missing value in row {is_missing.argmax()} "
                f"({is_missing.sum():,} in all), and an encoder cannot read it.\n"
                f"{_advice(value, name)}"
            )
        arrays.append(values.to_numpy().astype("float64"))
    return np.stack(arrays, 1) if arrays else np.empty((len(frame), 0))


def _advice(frame: Any, name: str) -> str:
    if name != "x":
        return "Drop these rows, or fill the column with a number."
    is_pandas = hasattr(frame, "notna")
    mask = "x.notna()" if is_pandas else "x.select(polars.all().is_not_null())"
    return f"If it may be left out, pass mask={mask} alongside x: true where x is observed."


def as_mask(mask: Any, x: Tensor, *, is_whole: bool = True) -> Tensor | None:
    """Return the mask as a bool tensor of x's shape, true where x is observed.

    Args:
        mask: None, or an array of x's shape that holds only true/false or 0/1.
        x: (N, *event).
        is_whole: whether x is all of the data, so that some entry must be observed.

    Raises:
        DataError: the mask has another shape, other values, or no true entry.

    Example:
        >>> as_mask([[1, 0]], torch.zeros(1, 2))
        tensor([[ True, False]])
    """
    if mask is None:
        return None
    values = as_tensor(mask, "mask")
    check_mask(values, x.shape, is_whole=is_whole)
    return values.bool().to(x.device)


def check_mask(mask: Any, shape: torch.Size, *, is_whole: bool = True) -> None:
    """Raise DataError unless a mask, a tensor or `Rows`, is valid for data of this shape.

    Example:
        >>> check_mask(torch.tensor([[1, 0]]), torch.Size([1, 2]))
    """
    if mask.shape != shape:
        raise DataError(
            f"mask has shape {tuple(mask.shape)}, but x has {tuple(shape)}: a mask says for "
            "every number in x whether it was observed.\nWrite for example mask=~torch.isnan(x)."
        )
    is_any = False
    for start, values, _ in chunks(mask):
        is_any = is_any or bool(values.any())
        is_bad = (values != 0) & (values != 1)
        if is_bad.any():
            row, *rest = first_true(is_bad)
            place = (start + row, *rest)
            raise DataError(
                f"mask{at(place)} = {mask[place].item():g}, but a mask holds true (observed) and "
                "false (missing), or 1 and 0.\nThreshold it first: mask > 0.5."
            )
    if is_whole and not is_any:
        raise DataError(
            "mask is false everywhere: there are no observed entries to learn from.\n"
            "True means observed; if yours marks missing entries, pass ~mask."
        )
