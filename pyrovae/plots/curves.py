"""Plots of what training recorded, by epoch or by step: one small panel each."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from pyrovae.errors import DataError
from pyrovae.plots.inputs import as_real
from pyrovae.plots.style import BLUE, COLORS, dress, own_figure

_TERMS = {
    "elbo": "ELBO (higher is better)",
    "reconstruction": "reconstruction, −log p(x|z)",
    "kl": "KL(q(z|x) ‖ p(z))",
}
_NATS, _COUNT = "nats per datum", "number"
_SNR = ("encoder gradient, signal to noise", "ratio, no unit")
# title and unit of known columns; any other is drawn under its own name
_RECORDED = {
    "elbo": ("ELBO", _NATS),
    "rate": ("rate, KL(q(z|x) ‖ p(z))", _NATS),
    "distortion": ("distortion, −log p(x|z)", _NATS),
    "active_units": ("active units", _COUNT),
    "mutual_information": ("mutual information of x and z", "nats"),
    "marginal_kl": ("marginal KL(q(z) ‖ p(z))", "nats"),
    "kl_per_dimension": ("KL, one line per latent dimension", _NATS),
    **dict.fromkeys(("signal_to_noise", "encoder_snr", "gradient_snr"), _SNR),
}
PANELS_ACROSS = 3
SPAN = 100.0  # positive quantities that span a larger factor get a logarithmic axis


def training_curve(
    history: Mapping[str, Sequence[float | None]] | Any, *, fig: Figure | SubFigure | None = None
) -> Figure | SubFigure:
    """Plot ELBO, reconstruction and KL by epoch in nats per datum, validation dashed.

    Each panel has its own scale, because the terms differ by an order of magnitude.

    Args:
        history: a `pyrovae.History`, or a mapping or data frame with its columns "epoch", "elbo",
            "reconstruction", "kl" and, optionally, the last three prefixed by "validation_";
            each of length E, in nats per datum; None where nothing was recorded.
        fig: figure to draw on; a new one by default. Without a layout engine, it becomes
            constrained.

    Returns:
        The figure, with three axes over the same epochs.

    Raises:
        DataError: a column is missing or differs in length from "epoch", or there are no epochs.

    Example:
        >>> figure = training_curve(
        ...     {"epoch": [1, 2], "elbo": [-9, -8], "reconstruction": [8, 6], "kl": [1, 2]}
        ... )
        >>> [ax.get_title(loc="left") for ax in figure.axes]
        ['ELBO (higher is better)', 'reconstruction, ...', 'KL(q(z|x) ...']
    """
    epochs = _column(history, "epoch")
    if not len(epochs):
        raise DataError("the history holds no epochs: there is nothing to draw.\nCall fit first.")
    curves = {
        name: [_column(history, prefix + name, len(epochs)) for prefix in ("", "validation_")]
        for name in _TERMS
    }
    figure = own_figure(fig, 10, 3.4)
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
    _by_time(ax, "epoch", "nats per datum")


def _by_time(ax: Axes, time: str, unit: str) -> None:
    dress(ax, time, unit)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
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
            "Give one value per epoch; None where nothing was recorded."
        )
    return column


def training_monitor(
    records: Mapping[str, Sequence[Any]],
    units: Mapping[str, str] | None = None,
    *,
    fig: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Plot what was recorded during training over optimizer steps, one small panel each.

    Positive quantities that are not in nats and span more than a factor of 100 get a logarithmic
    axis.

    Args:
        records: a mapping or data frame, name → (E,) numbers, or (E, D) for one line per latent
            dimension; "step" → (E,) is required. None or NaN where nothing was recorded.
        units: name → label of the vertical axis, for names that are not known or in other
            units. Known: rate, distortion, elbo, kl_per_dimension (nats per datum),
            mutual_information, marginal_kl (nats), active_units, signal_to_noise.
        fig: figure to draw on; a new one by default. Without a layout engine, it becomes
            constrained.

    Returns:
        The figure, with one axes per column, three in a row.

    Raises:
        DataError: "step" is missing or the only column, or a column has another length.

    Example:
        >>> figure = training_monitor({"step": [1, 50], "rate": [0.1, 4.0], "lr": [0.1, 0.01]})
        >>> [(ax.get_title(loc="left"), ax.get_ylabel()) for ax in figure.axes]
        [('rate, KL(q(z|x) ‖ p(z))', 'nats per datum'), ('lr', '')]
    """
    steps, columns = _recorded(records)
    num_rows = -(-len(columns) // PANELS_ACROSS)
    num_across = min(len(columns), PANELS_ACROSS)
    figure = own_figure(fig, max(3.4 * num_across, 4.5), 2.6 * num_rows)
    panels = figure.subplots(num_rows, num_across, squeeze=False).flatten()
    for ax, (name, values) in zip(panels, columns.items(), strict=False):
        title, unit = _RECORDED.get(name, (name.replace("_", " "), ""))
        unit = (units or {}).get(name, unit)
        _recorded_lines(ax, steps, values, is_ratio="nats" not in unit)
        _by_time(ax, "step", unit)
        if unit == _COUNT:
            ax.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        ax.set_title(title, loc="left", fontsize="medium")
    for ax in panels[len(columns) :]:
        ax.remove()
    return figure


def _recorded_lines(ax: Axes, steps: np.ndarray, values: np.ndarray, *, is_ratio: bool) -> None:
    is_many = values.ndim == 2
    marker = "o" if len(steps) < 15 else None
    style = {"linewidth": 1.0, "alpha": 0.6} if is_many else {}
    ax.plot(steps, values, color=BLUE, marker=marker, markersize=4, **style)
    seen = values[np.isfinite(values)]
    low, high = (seen.min(), seen.max()) if len(seen) else (0.0, 0.0)
    if is_ratio and 0 < SPAN * low < high:
        ax.set_yscale("log")
    elif 0 <= low < 0.2 * high:  # 0 is near, and worth more than a few percent of the height
        ax.set_ylim(bottom=0)


def _recorded(records: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the steps (E,), and each other column as (E,) or (E, D)."""
    names = list(getattr(records, "keys", list)())
    others = [name for name in names if name != "step"]
    if "step" not in names or not others:
        raise DataError(
            f"records is a {type(records).__name__} with columns {names[:8]}, but a monitor record "
            'needs "step" and at least one other column.\n'
            'Write {"step": [1, 2], "rate": [0.1, 0.3]}.'
        )
    columns = {name: _numbers(records[name], name) for name in names}
    steps = columns.pop("step")
    if steps.ndim != 1 or not len(steps):
        raise DataError(
            f"'step' has shape {steps.shape}, but the horizontal axis needs (E,), E ≥ 1.\n"
            "Record at least one step."
        )
    for name, column in columns.items():
        if column.ndim not in (1, 2) or len(column) != len(steps):
            raise DataError(
                f"column {name!r} has shape {column.shape}, but there are {len(steps)} steps: a "
                f"column is ({len(steps)},) or ({len(steps)}, D).\n"
                "Give one entry per step; None where nothing was recorded."
            )
    return steps, columns


def _numbers(values: Any, name: str) -> np.ndarray:
    """Return (E,) or (E, D); a list may hold None and arrays."""
    if hasattr(values, "detach"):
        return as_real(values, name)
    rows = [as_real(np.nan if value is None else value, name) for value in values]
    width = max((row.shape for row in rows), key=len, default=())
    return as_real([row if row.shape else np.full(width, row) for row in rows], name)
