"""Checks of what the plots accept: arrays of any kind, as NumPy float64.

Tensors are detached and copied to the CPU through their own methods, so torch is not imported.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyrovae.errors import ConfigError, DataError
from pyrovae.images import can_be_drawn, channel_dim


def as_array(value: Any, name: str) -> np.ndarray:
    """Convert tensors, NumPy arrays and nested lists to an array of the same dtype."""
    value = value.detach().cpu() if hasattr(value, "detach") else value
    try:
        return np.asarray(value)
    except ValueError as error:
        raise DataError(f"{name} is not an array: {error}.") from None


def as_real(value: Any, name: str) -> np.ndarray:
    """Convert to float64; infinities and NaN pass."""
    array = as_array(value, name)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name} has dtype {array.dtype}, but a plot needs real numbers.")
    return array.astype(float)


def as_finite(value: Any, name: str) -> np.ndarray:
    """Convert to float64, all values finite."""
    array = as_real(value, name)
    is_bad = ~np.isfinite(array)
    if is_bad.any():
        place = ", ".join(map(str, np.argwhere(is_bad)[0]))
        raise DataError(
            f"{name}[{place}] = {array[is_bad][0]}, but only finite numbers can be drawn "
            f"({is_bad.sum():,} are not).\nLeave those rows out."
        )
    return array


def as_images(value: Any, name: str, *, leading: Sequence[int] | None = None) -> np.ndarray:
    """Return images (*leading, H, W), or in color (*leading, H, W, 3).

    Args:
        value: images (H, W), (C, H, W) or (H, W, C) with C in 1, 3, 4, after the leading sizes.
        name: its name in messages.
        leading: the sizes before an image; (N,) with any N ≥ 1 by default.
    """
    array = as_finite(value, name)
    num = 1 if leading is None else len(leading)
    sizes, event = array.shape[:num], array.shape[num:]
    if not array.size or not can_be_drawn(event) or (leading and sizes != tuple(leading)):
        wanted = "N" if leading is None else ", ".join(map(str, leading))
        raise DataError(
            f"{name} has shape {array.shape}, but a grid of images needs ({wanted}, H, W), or "
            f"({wanted}, 3, H, W) in color, and at least one.\n"
            f"Reshape it, for example {name}.reshape(-1, 28, 28); one image is {name}[None]."
        )
    dim = channel_dim(event)
    return array if dim is None else _in_color(np.moveaxis(array, dim, -1))


def _in_color(array: np.ndarray) -> np.ndarray:
    """Return (…, H, W) for one channel, else (…, H, W, 3); opacity is laid over white."""
    if array.shape[-1] == 1:
        return array[..., 0]
    if array.shape[-1] == 3:
        return array
    color, opacity = array[..., :3], array[..., 3:]
    return color * opacity + array.max() * (1 - opacity)


def as_axis(value: Any, name: str) -> np.ndarray:
    """Return the increasing values along an axis, (K,), K ≥ 2."""
    array = as_finite(value, name)
    if array.ndim != 1 or len(array) < 2 or not (np.diff(array) > 0).all():
        raise DataError(
            f"{name} has shape {array.shape}, but the values along an axis must be (K,), K ≥ 2, "
            "and increase: they are placed from left to right or upwards.\n"
            "Write for example np.linspace(-3, 3, 15)."
        )
    return array


def with_shape(array: np.ndarray, name: str, shape: Sequence[int], why: str) -> np.ndarray:
    """Return the array, or raise a DataError that gives the expected shape and why."""
    if array.shape != tuple(shape):
        raise DataError(
            f"{name} has shape {array.shape}, but {why}, so it needs {tuple(shape)}.\n"
            f"Pass {name} with the same rows and dimensions in the same order."
        )
    return array


def row_labels(labels: Any, num_codes: int) -> np.ndarray | None:
    """Return one label per code, (N,); None stays None."""
    if labels is None:
        return None
    labels = as_array(labels, "labels")
    if labels.shape != (num_codes,):
        raise DataError(
            f"labels has shape {labels.shape}, but there are {num_codes} codes: each needs one "
            f"label, shape ({num_codes},).\nLeave labels out to draw without colors."
        )
    return labels


def some_names(names: Any, num: int, *, default: Sequence[str]) -> list[str]:
    """Return one name for each of `num` drawn items."""
    names = [str(name) for name in (default if names is None else names)]
    if len(names) != num:
        raise DataError(
            f"{len(names)} names were given for {num} items, but each is written next to its "
            "item.\nGive one name per item, in the same order, or leave them out."
        )
    return names


def record_with(record: Any, fields: Sequence[str], source: str) -> Any:
    """Return the record, or raise a DataError that names the function to call."""
    missing = [name for name in fields if not hasattr(record, name)]
    if missing:
        raise DataError(
            f"the record is a {type(record).__name__} without {', '.join(missing)}, but this "
            f"plot shows what pyrovae.{source} returns.\n"
            f"Pass that record itself, or any object with {', '.join(fields)}."
        )
    return record


def with_errors(values: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return values (K,) and standard errors (K,), 0 where unknown, of `Estimate`s or numbers."""
    values = list(as_array(values, name) if hasattr(values, "detach") else values)
    errors = [getattr(value, "std_error", 0.0) for value in values]
    array = as_finite([getattr(value, "value", value) for value in values], name)
    if array.ndim != 1 or not len(array):
        raise DataError(
            f"{name} has shape {array.shape}, but there is one per point: (K,), K ≥ 1.\n"
            f"Write {name}=[one number, or one Estimate, for each model]."
        )
    return array, np.nan_to_num(np.array(errors, dtype=float))


def whole_count(value: Any, name: str) -> int:
    """Return a whole number ≥ 1, or raise a ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ConfigError(f"{name} = {value!r}, but it must be a whole number ≥ 1.")
    return int(value)
