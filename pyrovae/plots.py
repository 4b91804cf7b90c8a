"""Pictures of arrays: training curves, grids of images, codes in the plane.

A function that draws one panel takes `ax=` and returns the Axes; `training_curve` draws three and
takes `fig=` (a Figure or a SubFigure) and returns that. Without one, each makes a
`matplotlib.figure.Figure` of a fitting size: pyplot, its backends and its current figure are
never touched, so `images(x).figure.savefig("x.png")` is all that a script needs. In a notebook,
end a cell with `images(x).figure`.

Everything here takes arrays (tensors, NumPy, nested lists) and returns matplotlib objects. What
the arrays mean, and which model they came from, is not known here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from pyrovae.errors import ConfigError, DataError

__all__ = ["images", "latent_scatter", "reconstructions", "training_curve"]

# Ten colours told apart under the common colour-vision deficiencies: Petroff 2021,
# "Accessible Color Sequences for Data Visualization", https://arxiv.org/abs/2107.02270
COLORS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
HALF = 5  # classes drawn as circles; the others are triangles, a second channel beside colour
_TERMS = {
    "elbo": "ELBO (higher is better)",
    "reconstruction": "reconstruction, −log p(x|z)",
    "kl": "KL(q(z|x) ‖ p(z))",
}


def training_curve(
    history: Mapping[str, Sequence[float | None]] | Any, *, fig: Figure | SubFigure | None = None
) -> Figure | SubFigure:
    """ELBO, reconstruction and KL by epoch, in nats per datum: a panel each, validation dashed.

    Each panel has its own scale, because the terms differ by an order of magnitude.

    Args:
        history: a `pyrovae.History`, or a mapping or data frame with its columns "epoch", "elbo",
            "reconstruction", "kl" and, optionally, the last three with "validation_" before;
            each of length E, in nats per datum; None where nothing was recorded.
        fig: where to draw; a new figure by default.

    Returns:
        The figure, with three axes that share the epochs.

    Raises:
        DataError: a column is missing or has another length than "epoch", or there is no epoch.

    Example:
        >>> figure = training_curve(
        ...     {"epoch": [1, 2], "elbo": [-9, -8], "reconstruction": [8, 6], "kl": [1, 2]}
        ... )
        >>> [ax.get_title(loc="left") for ax in figure.axes]
        ['ELBO (higher is better)', 'reconstruction, ...', 'KL(q(z|x) ...']
    """
    epochs = _column(history, "epoch")
    if not len(epochs):
        raise DataError("the history holds no epoch: there is nothing to draw.\nTrain it first.")
    curves = {
        name: [_column(history, prefix + name, len(epochs)) for prefix in ("", "validation_")]
        for name in _TERMS
    }
    figure = Figure(figsize=(10, 3.4), layout="constrained") if fig is None else fig
    panels = figure.subplots(1, len(_TERMS), sharex=True)
    for ax, color, (name, lines) in zip(panels, COLORS, curves.items(), strict=False):
        _curve(ax, epochs, *lines, color=color)
        ax.set_title(_TERMS[name], loc="left", fontsize="medium")
    return figure


def _curve(ax: Axes, epochs, training, validation, *, color: str) -> None:
    marker = "o" if len(epochs) < 15 else None
    ax.plot(epochs, training, color=color, marker=marker, label="training, epoch mean")
    if np.isfinite(validation).any():
        ax.plot(epochs, validation, "--", color="black", marker=marker, label="validation")
        ax.legend(frameon=False, fontsize="small")
    ax.set_xlabel("epoch")
    ax.set_ylabel("nats per datum")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.3)


def _column(history: Any, name: str, length: int | None = None) -> np.ndarray:
    try:
        values = history[name]
    except (KeyError, AttributeError):
        if name.startswith("validation_"):
            return np.full(length, np.nan)
        raise DataError(
            f"the history has no column {name!r}, but a training curve shows {', '.join(_TERMS)} "
            "by epoch.\nPass what fit returned, or a mapping of lists with these names."
        ) from None
    column = np.array([np.nan if value is None else value for value in values], dtype=float)
    if length is not None and len(column) != length:
        raise DataError(
            f"column {name!r} has {len(column)} values, but there are {length} epochs.\n"
            "Give one value an epoch; None where nothing was recorded."
        )
    return column


def images(
    array: Any, *, columns: int | None = None, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """A grid of grey images, row by row, on one common grey scale that the axis states.

    Args:
        array: (N, H, W). White is 0 and black is 1 when all values are within, else white is the
            smallest value and black the largest.
        columns: images in a row; about √N by default.
        title: put above the grid.
        ax: where to draw; a new figure's by default.

    Returns:
        The Axes, in units of pixels of the images.

    Raises:
        DataError: another shape, no image, or a value that is not finite.
        ConfigError: columns is not a whole number ≥ 1.

    Example:
        >>> ax = images(np.zeros((10, 8, 8)), columns=5)
        >>> ax.get_xlabel()
        'white = 0, black = 1'
    """
    array = _images(array, "array")
    columns = _columns(columns, default=math.ceil(math.sqrt(len(array))))
    rows = [array[start : start + columns] for start in range(0, len(array), columns)]
    ax, _ = _show_rows(rows, _grey_limits(array), ax)
    if title:
        ax.set_title(title)
    return ax


def reconstructions(
    x: Any,
    reconstructed: Any,
    *,
    columns: int = 10,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Inputs and their reconstructions in pairs of rows, the input above its reconstruction.

    Args:
        x: (N, H, W), the inputs.
        reconstructed: (N, H, W), in the same units and order.
        columns: pairs side by side.
        title: put above the grid.
        ax: where to draw; a new figure's by default.

    Returns:
        The Axes; both kinds are on one grey scale, which the axis states.

    Raises:
        DataError: a shape that is no (N, H, W), two different ones, or a value not finite.
        ConfigError: columns is not a whole number ≥ 1.

    Example:
        >>> ax = reconstructions(np.zeros((3, 8, 8)), np.ones((3, 8, 8)))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['input', 'reconstruction']
    """
    x, reconstructed = _images(x, "x"), _images(reconstructed, "reconstructed")
    if x.shape != reconstructed.shape:
        raise DataError(
            f"x has shape {x.shape}, but reconstructed has {reconstructed.shape}: each input is "
            "drawn above its own reconstruction.\nPass the reconstructions of the same rows."
        )
    columns = _columns(columns, default=10)
    starts = range(0, len(x), columns)
    rows = [part[i : i + columns] for i in starts for part in (x, reconstructed)]
    limits = _grey_limits(np.concatenate([x, reconstructed]))
    ax, centres = _show_rows(rows, limits, ax, pairs=True)
    ax.set_yticks(centres, ["input", "reconstruction"] * len(starts))
    if title:
        ax.set_title(title)
    return ax


def _show_rows(
    rows: Sequence[np.ndarray], limits: tuple[float, float], ax: Axes | None, pairs: bool = False
) -> tuple[Axes, list[float]]:
    """Draw rows of images as one mosaic; the Axes, and each row's centre on its vertical axis."""
    mosaic, centres = _mosaic(rows, pairs)
    if ax is None:
        height, width = mosaic.shape
        inches = min(8.0, 0.75 * len(rows[0]) + 1), min(9.0, 0.75 * len(rows) + 1)
        scale = min(inches[0] / width, inches[1] / height)
        size = max(width * scale, 4.0) + (1.2 if pairs else 0.3), height * scale + 0.8
        ax = Figure(figsize=size, layout="constrained").subplots()
    ax.imshow(mosaic, cmap="gray_r", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel(f"white = {limits[0]:.4g}, black = {limits[1]:.4g}")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_facecolor("#dfe6ee")  # shows through the gaps, where the mosaic is NaN
    return ax, centres


def _mosaic(rows: Sequence[np.ndarray], pairs: bool) -> tuple[np.ndarray, list[float]]:
    _, height, width = rows[0].shape
    gap = max(1, height // 12)
    tops = [gap + i * (height + gap) + (gap * (i // 2) if pairs else 0) for i in range(len(rows))]
    mosaic = np.full((tops[-1] + height + gap, gap + len(rows[0]) * (width + gap)), np.nan)
    for top, row in zip(tops, rows, strict=True):
        for index, image in enumerate(row):
            left = gap + index * (width + gap)
            mosaic[top : top + height, left : left + width] = image
    return mosaic, [top + (height - 1) / 2 for top in tops]


def latent_scatter(
    codes: Any, labels: Any = None, *, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Codes as points in the plane, coloured by label, each label written at its median.

    One dimension is drawn against the label; more than two are projected on their first
    two principal components, and the axes tell the share of the variance that each explains.

    Args:
        codes: (N, D), N ≥ 2 when D > 2.
        labels: (N,), whole numbers or names. Up to ten classes are coloured; with more, the
            points are grey and the title says so.
        title: put above the points.
        ax: where to draw; a new figure's by default.

    Returns:
        The Axes; a point has the units of the codes.

    Raises:
        DataError: codes is not (N, D) and finite, or labels not (N,).

    Example:
        >>> codes = np.array([[0, 0, 0], [2, 0, 0], [0, 1, 0], [2, 1, 0]])
        >>> ax = latent_scatter(codes, [3, 3, 8, 8])
        >>> ax.get_xlabel(), sorted(text.get_text() for text in ax.texts)
        ('principal component 1 (80.0 % of the variance)', ['3', '8'])
    """
    codes = _finite(codes, "codes")
    if codes.ndim != 2 or not codes.size:
        raise DataError(
            f"codes has shape {codes.shape}, but a scatter needs (N, D), one code a row.\n"
            "Write codes.reshape(len(codes), -1)."
        )
    labels = _labels(labels, len(codes))
    classes = np.unique(labels) if labels is not None else np.array([])
    points, names = _plane(codes, labels)
    if ax is None:
        ax = Figure(figsize=(6.8, 6), layout="constrained").subplots()
    is_colored = 0 < len(classes) <= len(COLORS)
    if is_colored:
        _classes(ax, points, labels, classes)
    else:
        ax.scatter(*points.T, s=_dot(len(points)), color=COLORS[8], linewidths=0)
    note = f"{len(classes)} classes, too many to colour" if labels is not None else ""
    ax.set_title("\n".join(filter(None, [title, "" if is_colored else note])))
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _classes(ax: Axes, points: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> None:
    index = np.searchsorted(classes, labels)
    style = {"s": _dot(len(points)), "alpha": 0.8, "linewidths": 0}
    # two layers only, in the order of the rows: a layer a class would bury the first classes
    for start, marker in enumerate("o^"):
        chosen = index // HALF == start
        ax.scatter(*points[chosen].T, c=np.array(COLORS)[index[chosen]], marker=marker, **style)
    outline = [withStroke(linewidth=4, foreground="white")]
    for i, label in enumerate(classes):
        ax.scatter([], [], color=COLORS[i], marker="o^"[i // HALF], label=str(label))
        middle = np.median(points[labels == label], axis=0)
        ax.annotate(
            str(label),
            middle,
            ha="center",
            va="center",
            fontsize="x-large",
            fontweight="bold",
            path_effects=outline,
        )
    ax.legend(title="label", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _plane(codes: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, tuple[str, str]]:
    """(N, 2) points, and what their two axes are."""
    if codes.shape[1] == 2:
        return codes, ("latent dimension 1", "latent dimension 2")
    if codes.shape[1] > 2:
        return _principal_components(codes)
    if labels is None:
        return np.column_stack([codes, np.arange(len(codes))]), ("latent dimension 1", "row")
    classes, index = np.unique(labels, return_inverse=True)
    spread = np.random.default_rng(0).uniform(-0.3, 0.3, len(codes))
    return np.column_stack([codes, index + spread]), (
        "latent dimension 1",
        f"class, {classes[0]} at the bottom to {classes[-1]} (spread is for legibility)",
    )


def _principal_components(codes: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    if len(codes) < 2:
        raise DataError("codes holds one row, and principal components need two or more.")
    centred = codes - codes.mean(0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    shares = singular**2 / max((singular**2).sum(), np.finfo(float).tiny)
    names = [
        f"principal component {i + 1} ({100 * shares[i]:.1f} % of the variance)" for i in (0, 1)
    ]
    return (left * singular)[:, :2], (names[0], names[1])


def _dot(num_points: int) -> float:
    """Area of a point in points²: smaller when there are many."""
    return float(np.clip(20000 / num_points, 6, 25))


def _array(value: Any, name: str) -> np.ndarray:
    value = value.detach().cpu() if hasattr(value, "detach") else value
    try:
        return np.asarray(value)
    except ValueError as error:
        raise DataError(f"{name} is no array: {error}.") from None


def _finite(value: Any, name: str) -> np.ndarray:
    array = _array(value, name)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name} has dtype {array.dtype}, but a picture needs real numbers.")
    array = array.astype(float)
    is_bad = ~np.isfinite(array)
    if is_bad.any():
        place = ", ".join(map(str, np.argwhere(is_bad)[0]))
        raise DataError(
            f"{name}[{place}] = {array[is_bad][0]}, but only finite numbers have a place in a "
            f"picture ({is_bad.sum():,} are not).\nLeave those rows out."
        )
    return array


def _images(value: Any, name: str) -> np.ndarray:
    array = _finite(value, name)
    if array.ndim != 3 or not array.size:
        raise DataError(
            f"{name} has shape {array.shape}, but a grid of grey images needs (N, H, W), N ≥ 1.\n"
            f"Reshape it, for example {name}.reshape(-1, 28, 28); one image is {name}[None]."
        )
    return array


def _labels(labels: Any, num_codes: int) -> np.ndarray | None:
    if labels is None:
        return None
    labels = _array(labels, "labels")
    if labels.shape != (num_codes,):
        raise DataError(
            f"labels has shape {labels.shape}, but there are {num_codes} codes: each needs one "
            f"label, shape ({num_codes},).\nLeave labels out to draw without colours."
        )
    return labels


def _columns(columns: int | None, *, default: int) -> int:
    columns = default if columns is None else columns
    if isinstance(columns, bool) or not isinstance(columns, int | np.integer) or columns < 1:
        raise ConfigError(f"columns = {columns!r}, but it must be a whole number ≥ 1.")
    return int(columns)


def _grey_limits(array: np.ndarray) -> tuple[float, float]:
    low, high = float(array.min()), float(array.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
