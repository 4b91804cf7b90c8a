"""Grids of images on one scale: samples, reconstructions, and how x changes with z.

Images are gray (H, W), or in color, (3, H, W) or (H, W, 3).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pyrovae.errors import DataError
from pyrovae.images import can_be_drawn
from pyrovae.plots.inputs import as_axis, as_finite, as_images, some_names, whole_count
from pyrovae.plots.style import every, own_axes

MOST_TICKS = 10  # numbers written along an axis, at most


def images(
    array: Any, *, columns: int | None = None, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw a grid of images, row by row, on one scale that the axis label gives.

    Args:
        array: (N, H, W), or in color (N, 3, H, W) or (N, H, W, 3). White is 0 and black is 1 if all
            values are in [0, 1], else white is the smallest value and black the largest; in color
            0 is dark.
        columns: images per row; about √N by default.
        title: text above the grid.
        ax: axes to draw on; a new figure's by default.

    Returns:
        The Axes, in pixels of the images.

    Raises:
        DataError: another shape, no images, or a non-finite value.
        ConfigError: columns is not a whole number ≥ 1.

    Example:
        >>> ax = images(np.zeros((10, 8, 8)), columns=5)
        >>> ax.get_xlabel()
        'white = 0, black = 1'
    """
    array = as_images(array, "array")
    default = math.ceil(math.sqrt(len(array)))
    columns = whole_count(default if columns is None else columns, "columns")
    rows = [array[start : start + columns] for start in range(0, len(array), columns)]
    return _show_rows(rows, limits_of(array), ax, title=title)[0]


def reconstructions(
    x: Any,
    reconstructed: Any,
    *,
    columns: int = 10,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw inputs and reconstructions in pairs of rows, each input above its reconstruction.

    Args:
        x: (N, H, W), or in color, the inputs.
        reconstructed: (N, H, W), in the same units and order.
        columns: pairs side by side.
        title: text above the grid.
        ax: axes to draw on; a new figure's by default.

    Returns:
        The Axes; both share one gray scale, which the axis label gives.

    Raises:
        DataError: shapes that are not (N, H, W) or not equal, or a non-finite value.
        ConfigError: columns is not a whole number ≥ 1.

    Example:
        >>> ax = reconstructions(np.zeros((3, 8, 8)), np.ones((3, 8, 8)))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['input', 'reconstruction']
    """
    x, reconstructed = as_images(x, "x"), as_images(reconstructed, "reconstructed")
    if x.shape != reconstructed.shape:
        raise DataError(
            f"x has shape {x.shape}, but reconstructed has {reconstructed.shape}: each input is "
            "drawn above its own reconstruction.\nPass the reconstructions of the same rows."
        )
    columns = whole_count(10 if columns is None else columns, "columns")
    starts = range(0, len(x), columns)
    rows = [part[i : i + columns] for i in starts for part in (x, reconstructed)]
    limits = limits_of(np.concatenate([x, reconstructed]))
    ax, down, _ = _show_rows(rows, limits, ax, title=title, pairs=True, beside=1.2)
    ax.set_yticks(down, ["input", "reconstruction"] * len(starts))
    return ax


def traversals(
    images: Any,
    values: Any,
    *,
    names: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw one row of images per latent dimension: x as z moves along that dimension alone.

    Args:
        images: (D, K, H, W), or in color; images[d, k] decodes a code with dimension d set to
            values[k] and the others unchanged. Rows in any order, for example the most informative
            first.
        values: (K,), increasing, in the units of the latent space.
        names: names of the D rows; 0 … D − 1 by default.
        title: text above the grid.
        ax: axes to draw on; a new figure's by default.

    Returns:
        The Axes: dimensions down, their values across.

    Raises:
        DataError: another shape, a non-finite number, or values that do not increase.

    Example:
        >>> ax = traversals(np.zeros((3, 5, 8, 8)), np.linspace(-2, 2, 5), names=["z1", "z4", "z7"])
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['z1', 'z4', 'z7']
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['−2', '−1', '0', '1', '2']
    """
    array, values = as_finite(images, "images"), as_axis(values, "values")
    if array.ndim < 4 or not array.size or array.shape[1] != len(values):
        raise DataError(
            f"images has shape {array.shape}, but traversals need (D, K, H, W), one image for "
            f"each of D dimensions at each of K = {len(values)} values.\n"
            f"Write images.reshape(D, {len(values)}, H, W)."
        )
    rows = as_images(array, "images", leading=array.shape[:2])
    names = some_names(names, len(rows), default=[str(d) for d in range(len(rows))])
    ax, down, across = _show_rows(list(rows), limits_of(rows), ax, title=title, beside=0.9)
    ax.set_yticks(down, names)
    _write_values(ax.set_xticks, across, values)
    ax.set_xlabel(f"value of the dimension, units of z\n{ax.get_xlabel()}")
    ax.set_ylabel("latent dimension")
    return ax


def latent_manifold(
    images: Any,
    first: Any,
    *,
    second: Any = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the plane of a two-dimensional latent space as the images that its points decode to.

    Args:
        images: (K0, K1, H, W), or (K0·K1, H, W) in the order of `torch.cartesian_prod`, gray or in
            color: images[i, j] decodes z = (first[i], second[j]), indexing="ij" of a meshgrid.
        first: (K0,), increasing values of z0, evenly spaced or not (normal quantiles, say).
        second: (K1,), values of z1; those of z0 by default.
        title: text above the plane.
        ax: axes to draw on; a new figure's by default.

    Returns:
        The Axes: z0 to the right and z1 upwards, as in `latent_scatter`.

    Raises:
        DataError: another shape, a non-finite number, or values that do not increase.

    Example:
        >>> ax = latent_manifold(np.zeros((9, 8, 8)), [-1, 0, 1])
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['−1', '0', '1']
    """
    first = as_axis(first, "first")
    second = first if second is None else as_axis(second, "second")
    array = _plane_of_images(as_finite(images, "images"), len(first), len(second))
    rows = list(array.swapaxes(0, 1)[::-1])  # the largest z1 at the top
    ax, down, across = _show_rows(rows, limits_of(array), ax, title=title, beside=0.8)
    _write_values(ax.set_xticks, across, first)
    _write_values(ax.set_yticks, down[::-1], second)
    ax.set_xlabel(f"latent dimension 0\n{ax.get_xlabel()}")
    ax.set_ylabel("latent dimension 1")
    return ax


def _plane_of_images(array: np.ndarray, num_first: int, num_second: int) -> np.ndarray:
    """Return images (K0, K1, H, W), or in color (K0, K1, H, W, 3)."""
    if len(array) == num_first * num_second and can_be_drawn(array.shape[1:]):
        array = array.reshape(num_first, num_second, *array.shape[1:])
    is_plane = array.shape[:2] == (num_first, num_second) and can_be_drawn(array.shape[2:])
    if not is_plane or not array.size:
        raise DataError(
            f"images has shape {array.shape}, but {num_first} values of z0 and {num_second} of z1 "
            f"need one image each: ({num_first}, {num_second}, H, W).\n"
            "Decode torch.cartesian_prod(first, second) and reshape to that."
        )
    return as_images(array, "images", leading=array.shape[:2])


def limits_of(array: np.ndarray) -> tuple[float, float]:
    """Return the values of white and black: 0 and 1 if all are in [0, 1], else the extremes."""
    low, high = float(array.min()), float(array.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def _write_values(set_ticks: Any, places: Sequence[float], values: np.ndarray) -> None:
    chosen = every(len(values), MOST_TICKS)
    texts = [f"{values[i]:.3g}".replace("-", "−") for i in chosen]
    set_ticks([places[i] for i in chosen], texts)


def _show_rows(
    rows: Sequence[np.ndarray],
    limits: tuple[float, float],
    ax: Axes | None,
    *,
    title: str | None,
    pairs: bool = False,
    beside: float = 0.3,
) -> tuple[Axes, list[float], list[float]]:
    """Draw rows of images as one mosaic; return the Axes and the centers of rows and columns.

    `beside` is the width in inches that a new figure leaves for labels left of the rows.
    """
    mosaic, down, across = _mosaic(rows, pairs)
    if ax is None:
        height, width = mosaic.shape[:2]
        inches = min(8.0, 0.75 * len(rows[0]) + 1), min(9.0, 0.75 * len(rows) + 1)
        scale = min(inches[0] / width, inches[1] / height)
        ax = own_axes(None, max(width * scale, 4.0) + beside, height * scale + 0.8)
    is_gray = mosaic.ndim == 2
    ax.imshow(mosaic if is_gray else _scaled(mosaic, limits), **_scale(is_gray, limits))
    ax.set_xticks([])
    ax.set_yticks([])
    names = ("white", "black") if is_gray else ("dark", "light")
    ax.set_xlabel(f"{names[0]} = {limits[0]:.4g}, {names[1]} = {limits[1]:.4g}")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_facecolor("#dfe6ee")  # shows through the gaps, where the mosaic is NaN
    if title:
        ax.set_title(title)
    return ax, down, across


def _scale(is_gray: bool, limits: tuple[float, float]) -> dict[str, Any]:
    gray = {"cmap": "gray_r", "vmin": limits[0], "vmax": limits[1]} if is_gray else {}
    return gray | {"interpolation": "nearest"}


def _scaled(mosaic: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Return colors in [0, 1] with an opacity, 0 in the gaps."""
    low, high = limits
    color = (mosaic - low) / (high - low if high > low else 1)
    opacity = ~np.isnan(mosaic[..., :1])
    return np.concatenate([np.nan_to_num(color).clip(0, 1), opacity], -1)


def _mosaic(rows: Sequence[np.ndarray], pairs: bool) -> tuple[np.ndarray, list[float], list[float]]:
    height, width, *channels = rows[0].shape[1:]
    gap = max(1, height // 12)
    tops = [gap + i * (height + gap) + (gap * (i // 2) if pairs else 0) for i in range(len(rows))]
    lefts = [gap + j * (width + gap) for j in range(len(rows[0]))]
    mosaic = np.full((tops[-1] + height + gap, lefts[-1] + width + gap, *channels), np.nan)
    for top, row in zip(tops, rows, strict=True):
        for left, image in zip(lefts, row, strict=False):  # the last row may be short
            mosaic[top : top + height, left : left + width] = image
    down, across = (
        [at + (size - 1) / 2 for at in starts] for starts, size in ((tops, height), (lefts, width))
    )
    return mosaic, down, across
