"""Plots of simulation-based calibration: uniformity of ranks and coverage of regions."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pyrovae.plots.inputs import as_array, as_finite, record_with, with_shape
from pyrovae.plots.style import BLUE, COLORS, GRAY, RED, dress, own_axes

MOST_KEYS = 6  # lines named one by one in the legend, at most
DASHES = ("-", "--", "-.", ":")


def calibration(record: Any, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Plot the ranks' ECDF minus the uniform one, per latent dimension, and the uniform band.

    A line that leaves the band is red: that dimension of q(z|x) is not the posterior's. An S,
    first above and then below, means that q is too narrow; the reverse, that it is too wide; an
    arch to one side, that it is biased.

    Args:
        record: a `Calibration` from `diagnostics.calibration`: ecdf (D, L + 1), band
            (L + 1, 2), level, is_calibrated (D,).
        title: text above the lines.
        ax: axes to draw on; a new figure's by default.

    Returns:
        The Axes: difference of shares against the share of draws below the truth.

    Raises:
        DataError: record is not a `Calibration`, or its arrays do not match.

    References:
        Graphical test for discrete uniformity, Säilynoja, Bürkner & Vehtari, 2022,
        https://arxiv.org/abs/2103.10522

    Example:
        >>> import pyrovae as pv
        >>> found = pv.diagnostics.calibration(pv.build((2,), latent_dim=1, seed=0), 200)
        >>> ax = calibration(found)
        >>> bool(np.allclose(ax.lines[0].get_ydata()[-1], 0))  # both end at 1
        True
    """
    record_with(record, ("ecdf", "band", "level", "is_calibrated"), "diagnostics.calibration")
    ecdf = as_finite(record.ecdf, "ecdf")
    num_dimensions, num_ranks = ecdf.shape
    why = f"ecdf is (D, L + 1) = {ecdf.shape}"
    band = with_shape(as_finite(record.band, "band"), "band", (num_ranks, 2), why)
    is_inside = as_array(record.is_calibrated, "is_calibrated")
    is_inside = with_shape(is_inside, "is_calibrated", (num_dimensions,), why)
    uniform = np.arange(1, num_ranks + 1) / num_ranks
    ax = own_axes(ax, 7, 4.2)
    _ecdf_lines(ax, uniform, ecdf - uniform, is_inside.astype(bool))
    key = f"uniform ranks,\n{100 * record.level:.0f} % band"
    ax.fill_between(uniform, *(band - uniform[:, None]).T, color=GRAY, alpha=0.35, lw=0, label=key)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_xlim(0, 1)
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    xlabel, ylabel = "share of draws of q(z|x) below the true z_d", "ECDF − uniform, shares"
    return dress(ax, xlabel, ylabel, title=title)


def _ecdf_lines(ax: Axes, uniform: np.ndarray, lines: np.ndarray, is_inside: np.ndarray) -> None:
    """Draw the lines outside the band last, on top; name them one by one if they are few."""
    counts = {True: is_inside.sum(), False: (~is_inside).sum()}
    for number, d in enumerate(np.argsort(~is_inside, kind="stable")):
        inside = bool(is_inside[d])
        style = {"color": BLUE if inside else RED, "linewidth": 1.5}
        if len(lines) <= MOST_KEYS:
            name = f"dimension {d}{'' if inside else ', outside'}"
            style |= {"label": name, "linestyle": DASHES[number % len(DASHES)]}
        elif number in (0, counts[True]):
            where = "within" if inside else "outside"
            style |= {"label": f"{counts[inside]} dimensions {where}"}
        ax.plot(uniform, lines[d], **style)


def coverage(record: Any, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Plot how often highest-density regions of q(z|x) contain the truth.

    Below the diagonal q(z|x) is overconfident, above it too wide.

    Args:
        record: a `Calibration` from `diagnostics.calibration`: coverage_levels,
            expected_coverage and coverage_std_error, (m,) each, in [0, 1].
        title: text above the points.
        ax: axes to draw on; a new figure's by default.

    Returns:
        The Axes: share of simulations ± 2 standard errors against nominal probability.

    Raises:
        DataError: record is not a `Calibration`, or its arrays do not match.

    References:
        A Trust Crisis in Simulation-Based Inference?, Hermans et al., 2022,
        https://arxiv.org/abs/2110.06581

    Example:
        >>> import pyrovae as pv
        >>> found = pv.diagnostics.calibration(pv.build((2,), latent_dim=1, seed=0), 200)
        >>> coverage(found).get_xlabel()
        'nominal probability of the region'
    """
    fields = ("coverage_levels", "expected_coverage", "coverage_std_error")
    record_with(record, fields, "diagnostics.calibration")
    levels, share, error = (as_finite(getattr(record, name), name) for name in fields)
    why = f"there are {len(levels)} levels"
    share = with_shape(share, fields[1], levels.shape, why)
    error = with_shape(error, fields[2], levels.shape, why)
    ax = own_axes(ax, 5, 4.6)
    ax.plot([0, 1], [0, 1], "--", color=COLORS[8], linewidth=1, label="calibrated")
    ax.errorbar(levels, share, 2 * error, fmt="o", color=BLUE, markersize=4, label="q(z|x)")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.legend(frameon=False, loc="upper left")
    ylabel = "share of simulations with z inside (± 2 s.e.)"
    return dress(ax, "nominal probability of the region", ylabel, title=title)
