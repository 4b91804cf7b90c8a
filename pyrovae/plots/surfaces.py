"""Plot of one datum's exact posterior on a grid of z, with the guide's density."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

from pyrovae.errors import ConfigError, DataError
from pyrovae.plots.inputs import as_axis, as_finite, as_real, with_shape
from pyrovae.plots.style import RED, dot_area, dress, ellipse, normal_reach, own_axes

LEVELS = (0.5, 0.9, 0.99)  # probabilities of the regions
SHADES = ("#c5dcf3", "#7fb3e6", "#3f90da")  # from the widest region to the narrowest
MARGIN = 0.3  # of the regions' extent, left free on each side
KEY_BELOW = 38 / 72  # inches below the panel, leaving room for the axis label
MIN_CELLS = 20  # within the 99 % region: fewer show the grid instead of the density


def grid_posterior(
    log_density: Any,
    axes: Sequence[Any],
    *,
    log_guide: Any = None,
    mean: Any = None,
    covariance: Any = None,
    draws: Any = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Shade p(z|x) of one datum, by Bayes' rule on a grid, and outline q(z|x) over it.

    Shades and outlines are the smallest regions that contain 50, 90 and 99 % of each density, so
    a guide equal to the posterior outlines the shades exactly. The view is fitted to them.

    Args:
        log_density: (K0, K1), log p(z) + log p(x|z) at z = (z0[i], z1[j]), nats, up to a constant;
            −∞ where impossible. The order of torch.meshgrid(z0, z1, indexing="ij").
        axes: (z0, z1), K0 and K1 increasing numbers, in the units of the latent space.
        log_guide: (K0, K1), log q(z|x) on the same grid, for a guide of any family.
        mean: (2,), mean of a normal guide, instead of log_guide.
        covariance: (2, 2), its covariance, required with a mean.
        draws: (S, 2), draws of q(z|x), or of another approximation of p(z|x), as points.
        title: text above the panel.
        ax: axes to draw on; a new figure's by default.

    Returns:
        The Axes: z0 to the right, z1 upwards, the legend below. Of several panels, all but one
        can do without it: `ax.get_legend().remove()`.

    Raises:
        DataError: other shapes, a density that is nowhere positive, or a grid so coarse that
            fewer than 20 cells hold 99 % of it.
        ConfigError: both log_guide and a mean, or a mean without a covariance.

    Example:
        >>> z = np.linspace(-4, 4, 101)
        >>> log_density = -(z[:, None] ** 2 + 4 * z**2) / 2
        >>> ax = grid_posterior(log_density, (z, z), mean=[0, 0], covariance=np.diag([1, 0.25]))
        >>> len(ax.patches)  # outlines of 50, 90 and 99 %
        3
    """
    _refuse_two_guides(log_guide, mean, covariance)
    z0, z1 = _two_axes(axes)
    cells = np.outer(np.gradient(z0), np.gradient(z1))
    why = f"the axes have {len(z0)} and {len(z1)} values"
    shape = cells.shape
    log_density = with_shape(as_real(log_density, "log_density"), "log_density", shape, why)
    levels = _thresholds(log_density, cells, "log_density")
    ax = own_axes(ax, 6, 6)
    _shade(ax, z0, z1, log_density, levels)
    regions = [_extent(z0, z1, log_density >= levels[-1])]
    if log_guide is not None:
        log_guide = with_shape(as_real(log_guide, "log_guide"), "log_guide", shape, why)
        levels = _thresholds(log_guide, cells, "log_guide")
        regions.append(_outline(ax, z0, z1, log_guide, levels))
    elif mean is not None:
        regions.append(_normal_outlines(ax, mean, covariance))
    if draws is not None:
        regions.append(_points(ax, draws))
    _look_at(ax, np.array(regions))
    has_guide = log_guide is not None or mean is not None
    _key(ax, has_guide=has_guide, has_draws=draws is not None)
    return dress(ax, "latent dimension 0", "latent dimension 1", title=title)


def _refuse_two_guides(log_guide: Any, mean: Any, covariance: Any) -> None:
    if (mean is None) != (covariance is None) or not (mean is None or log_guide is None):
        raise ConfigError(
            "q(z|x) was given twice, or as a mean or covariance alone, but it is outlined once.\n"
            "Pass log_guide=, or mean= and covariance=, or neither."
        )


def _two_axes(axes: Any) -> tuple[np.ndarray, np.ndarray]:
    if len(axes) != 2:
        raise DataError(
            f"axes has {len(axes)} entries, but the plot shows a plane: it needs (z0, z1).\n"
            "Write axes=(z, z) with z = np.linspace(-4, 4, 201)."
        )
    return as_axis(axes[0], "axes[0]"), as_axis(axes[1], "axes[1]")


def _thresholds(log_density: np.ndarray, cells: np.ndarray, name: str) -> list[float]:
    """Return, for each of `LEVELS`, the log-density above which that share of the mass lies."""
    top = log_density.max()
    if not np.isfinite(top) or np.isnan(log_density).any():
        raise DataError(
            f"the largest value of {name} is {top}, but a log-density has a finite maximum; its "
            "only infinite value is −∞.\nWrite vae.prior().log_prob(z) + "
            "vae.decode(z).log_prob(x), in nats."
        )
    mass = (np.exp(log_density - top) * cells).flatten()
    order = np.argsort(-log_density, axis=None)
    share = np.cumsum(mass[order]) / mass.sum()
    last = [min(int(np.searchsorted(share, level)), len(order) - 1) for level in LEVELS]
    if last[-1] + 1 < MIN_CELLS:
        raise DataError(
            f"{last[-1] + 1} cells of the grid hold 99 % of {name}, but fewer than {MIN_CELLS} "
            "show the grid, not the density.\nUse finer axes around its mode."
        )
    return [float(log_density.flatten()[order[i]]) for i in last]


def _drawable(log_density: np.ndarray, levels: list[float]) -> np.ndarray:
    """Replace −∞, next to which a contour has no position."""
    return np.maximum(log_density, levels[-1] - 50)


def _shade(ax: Axes, z0, z1, log_density: np.ndarray, levels: list[float]) -> None:
    edges = [*levels[::-1], float(log_density.max()) + 1.0]
    ax.contourf(z0, z1, _drawable(log_density, levels).T, edges, colors=SHADES)


def _outline(ax: Axes, z0, z1, log_guide: np.ndarray, levels: list[float]) -> list[float]:
    style = {"colors": RED, "linewidths": 1.4, "linestyles": "dashed"}
    ax.contour(z0, z1, _drawable(log_guide, levels).T, levels[::-1], **style)
    return _extent(z0, z1, log_guide >= levels[-1])


def _extent(z0: np.ndarray, z1: np.ndarray, inside: np.ndarray) -> list[float]:
    """Return left, right, bottom and top of a region."""
    first, second = z0[inside.any(1)], z1[inside.any(0)]
    return [first[0], first[-1], second[0], second[-1]]


def _normal_outlines(ax: Axes, mean: Any, covariance: Any) -> list[float]:
    why = "the plane has two dimensions"
    mean = with_shape(as_finite(mean, "mean"), "mean", (2,), why)
    covariance = with_shape(as_finite(covariance, "covariance"), "covariance", (2, 2), why)
    style = {"edgecolor": RED, "linewidth": 1.4, "linestyle": "--", "zorder": 3}
    for level in LEVELS:
        ax.add_patch(ellipse(mean, covariance, normal_reach(level), **style))
    reach = normal_reach(LEVELS[-1]) * np.sqrt(np.diag(covariance))
    (left, bottom), (right, top) = mean - reach, mean + reach
    return [left, right, bottom, top]


def _points(ax: Axes, draws: Any) -> list[float]:
    draws = as_finite(draws, "draws")
    if draws.ndim != 2 or draws.shape[1] != 2 or not len(draws):
        raise DataError(
            f"draws has shape {draws.shape}, but points in the plane are (S, 2), for one datum.\n"
            "For a Posterior write draws[0, :, i]: chain 0 of datum i."
        )
    style = {"s": 0.5 * dot_area(len(draws)), "color": "black", "alpha": 0.5, "linewidths": 0}
    ax.scatter(*draws.T, zorder=2.5, **style)
    (left, right), (bottom, top) = np.quantile(draws, [0.005, 0.995], axis=0).T
    return [left, right, bottom, top]


def _look_at(ax: Axes, regions: np.ndarray) -> None:
    left, right = regions[:, 0].min(), regions[:, 1].max()
    bottom, top = regions[:, 2].min(), regions[:, 3].max()
    ax.set_xlim(left - MARGIN * (right - left), right + MARGIN * (right - left))
    ax.set_ylim(bottom - MARGIN * (top - bottom), top + MARGIN * (top - bottom))


def _key(ax: Axes, *, has_guide: bool, has_draws: bool) -> None:
    """Draw the legend below the panel, where it covers nothing in a small panel either."""
    texts = [f"{100 * level:.0f} % of p(z|x)" for level in LEVELS[::-1]]
    keys = [Patch(color=shade) for shade in SHADES]
    if has_guide:
        keys.append(Line2D([], [], color=RED, linestyle="--"))
        texts.append("q(z|x), the same levels")
    if has_draws:
        keys.append(Line2D([], [], color="black", linestyle="", marker=".", alpha=0.5))
        texts.append("draws")
    below = ax.transAxes + ScaledTranslation(0, -KEY_BELOW, ax.figure.dpi_scale_trans)
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below}
    ax.legend(keys, texts, fontsize="small", frameon=False, ncols=2, **place)
