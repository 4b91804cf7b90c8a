"""Several models in one plot: rate against distortion, and paired differences of evidence."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from pyrovae.plots.inputs import record_with, some_names, with_errors, with_shape
from pyrovae.plots.style import BLUE, COLORS, GRAY, RED, dress, own_axes

ERRORS = 2  # standard errors on either side of a bar
OUTLINED = {"path_effects": (withStroke(linewidth=3, foreground="white"),), "zorder": 5}


def rate_distortion(
    rates: Any,
    distortions: Any,
    *,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot models by rate R and distortion D; dashed lines have a constant ELBO = −(D + R).

    Closer to the lower left is better. Models of equal ELBO can lie anywhere on its line: with
    high R and low D they use the latents, with R = 0 they ignore them.

    Args:
        rates: (K,) numbers or `Estimate`s, KL(q(z|x) ‖ p(z)), nats per datum.
        distortions: (K,) likewise, −E_q[log p(x|z)], nats per datum.
        labels: names of the K models, written next to their points.
        title: text above the points.
        ax: axes to draw on; a new figure's by default.

    Returns:
        The Axes; bars are ± 2 standard errors, for `Estimate`s.

    Raises:
        DataError: shapes other than (K,), or a non-finite number.

    References:
        Fixing a Broken ELBO, Alemi et al., 2018, https://arxiv.org/abs/1711.00464

    Example:
        >>> ax = rate_distortion([1.0, 5.0], [40.0, 30.0], labels=["β = 4", "β = 1"])
        >>> [text.get_text() for text in ax.texts][:2]
        ['β = 4', 'β = 1']
    """
    rate, rate_error = with_errors(rates, "rates")
    distortion, distortion_error = with_errors(distortions, "distortions")
    with_shape(distortion, "distortions", rate.shape, f"there are {len(rate)} rates")
    ax = own_axes(ax, 6, 5)
    bars = {"fmt": "o", "color": BLUE, "markersize": 6, "capsize": 3}
    ax.errorbar(rate, distortion, ERRORS * distortion_error, ERRORS * rate_error, **bars)
    ax.margins(0.15)
    names = [] if labels is None else some_names(labels, len(rate), default=())
    for at, name in zip(zip(rate, distortion, strict=True), names, strict=False):
        ax.annotate(name, at, xytext=(7, 7), textcoords="offset points", **OUTLINED)
    _equal_elbo(ax)
    has_errors = rate_error.any() or distortion_error.any()
    unit = f"nats per datum{' (± 2 s.e.)' if has_errors else ''}"
    xlabel, ylabel = f"rate R = KL(q(z|x) ‖ p(z)), {unit}", f"distortion D = −log p(x|z), {unit}"
    return dress(ax, xlabel, ylabel, title=title)


def _equal_elbo(ax: Axes) -> None:
    """Draw lines D + R = const. across the current view, each labeled at its upper end."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    left = max(left, -0.02 * right)  # a rate is never negative
    totals = MaxNLocator(nbins=6).tick_values(left + bottom, right + top)
    for total in totals[(totals > left + bottom) & (totals < right + top)]:
        start, end = max(left, total - top), min(right, total - bottom)
        ax.plot([start, end], [total - start, total - end], "--", color=GRAY, lw=0.8, zorder=0)
        if start < left + 0.8 * (right - left):  # else the label would not fit
            _name_line(ax, f"ELBO {-total:g}".replace("-", "−"), start, total - start, start > left)
    ax.set(xlim=(left, right), ylim=(bottom, top))


def _name_line(ax: Axes, text: str, x: float, y: float, is_at_top: bool) -> None:
    """Label a line on its right if it starts at the upper edge, above it if at the left."""
    place = {"xytext": (14, -3), "va": "top"} if is_at_top else {"xytext": (4, 2), "va": "bottom"}
    style = OUTLINED | {"color": COLORS[8], "fontsize": "small", "zorder": 1}
    ax.annotate(text, (x, y), textcoords="offset points", **place, **style)


def comparison(record: Any, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Plot how far each model's held-out log p(x) is below the best one's, paired over data.

    Bars are ± 2 standard errors of the paired difference. The gray line to the left of a point
    shows by how much importance sampling may underestimate that model: models differ only where
    even its far end, minus two errors, is above 0 (filled points).

    Args:
        record: a `Comparison` from `diagnostics.compare_priors`.
        title: text above the rows.
        ax: axes to draw on; a new figure's by default.

    Returns:
        The Axes: nats per datum, one row per model, the best at the top.

    Raises:
        DataError: record is not a `Comparison`.

    Example:
        >>> import torch, pyrovae as pv
        >>> models = {s: pv.build((2,), latent_dim=1, seed=s) for s in (0, 1)}
        >>> found = pv.diagnostics.compare_priors(models, torch.eye(2), num_samples=100)
        >>> len(comparison(found).get_yticklabels())
        2
    """
    rows = record_with(record, ("rows",), "diagnostics.compare_priors").rows
    ax = own_axes(ax, 7, 1.4 + 0.5 * len(rows))
    for place, row in enumerate(reversed(rows)):
        _difference(ax, place, row)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(rows)), [_name(row) for row in reversed(rows)])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    best = f"log p(x) of the best: {rows[0].log_px}".replace("-", "−")
    return dress(ax, f"nats per datum below the best (± 2 s.e.)\n{best}", "", title=title)


def _difference(ax: Axes, place: int, row: Any) -> None:
    value, error = row.difference.value, np.nan_to_num(row.difference.std_error)
    color = RED if row.is_distinguishable else BLUE
    fill = color if row.is_distinguishable else "white"
    ax.plot([value - row.bias, value], [place, place], color=GRAY, linewidth=6, alpha=0.6)
    style = {"fmt": "o", "color": color, "markerfacecolor": fill, "capsize": 4}
    ax.errorbar(value, place, xerr=ERRORS * error, **style)


def _name(row: Any) -> str:
    failed = f"\nlower bounds: {100 * row.share_failed:.0f} %" if row.share_failed else ""
    return f"{row.name}{failed}"
