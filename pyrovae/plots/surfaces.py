"""The exact posterior of one datum on a grid of z, and the guide's density beside it."""

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

LEVELS = (0.5, 0.9, 0.99)  # of the regions that are drawn
SHADES = ("#c5dcf3", "#7fb3e6", "#3f90da")  # from the widest region to the narrowest
MARGIN = 0.3  # of the drawn regions' extent, left free on each side
KEY_BELOW = 38 / 72  # inches from the panel's lower edge: numbers and name of the axis between
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
    """p(z|x) of one datum by Bayes' rule on a grid, shaded, and the outlines of q(z|x) over it.

    Shades and outlines are the smallest regions that hold 50, 90 and 99 % of either density, so a
    guide that is the posterior outlines the shades exactly. The view is where they are.

    Args:
        log_density: (K1, K2), log p(z) + log p(x|z) at z = (z1[i], z2[j]), nats, up to a constant;
            −∞ where impossible. The order of torch.meshgrid(z1, z2, indexing="ij").
        axes: (z1, z2), of K1 and K2 increasing numbers, in the units of the latent space.
        log_guide: (K1, K2), log q(z|x) on the same grid, for a guide of any family.
        mean: (2,), of a normal guide, instead of log_guide.
        covariance: (2, 2), of a normal guide, with its mean.
        draws: (S, 2), of q(z|x) or of anything else that should lie on p(z|x), as points.
        title: put above.
        ax: where to draw; a new figure's by default.

    Returns:
        The Axes: z1 to the right, z2 upwards; the key is below, and of several panels all but
        one can do without: `ax.get_legend().remove()`.

    Raises:
        DataError: other shapes, a density that is nowhere positive, or a grid so coarse that
            fewer than 20 cells hold 99 % of it.
        ConfigError: both log_guide and a mean, or a mean without a covariance.

    Example:
        >>> z = np.linspace(-4, 4, 101)
        >>> log_density = -(z[:, None] ** 2 + 4 * z**2) / 2
        >>> ax = grid_posterior(log_density, (z, z), mean=[0, 0], covariance=np.diag([1, 0.25]))
        >>> len(ax.patches)  # outlines: of 50, 90 and 99 %
        3
    """
    _refuse_two_guides(log_guide, mean, covariance)
    z1, z2 = _two_axes(axes)
    cells = np.outer(np.gradient(z1), np.gradient(z2))
    why = f"the axes have {len(z1)} and {len(z2)} values"
    shape = cells.shape
    log_density = with_shape(as_real(log_density, "log_density"), "log_density", shape, why)
    levels = _thresholds(log_density, cells, "log_density")
    ax = own_axes(ax, 6, 6)
    _shade(ax, z1, z2, log_density, levels)
    regions = [_extent(z1, z2, log_density >= levels[-1])]
    if log_guide is not None:
        log_guide = with_shape(as_real(log_guide, "log_guide"), "log_guide", shape, why)
        levels = _thresholds(log_guide, cells, "log_guide")
        regions.append(_outline(ax, z1, z2, log_guide, levels))
    elif mean is not None:
        regions.append(_normal_outlines(ax, mean, covariance))
    if draws is not None:
        regions.append(_points(ax, draws))
    _look_at(ax, np.array(regions))
    has_guide, has_draws = log_guide is not None or mean is not None, draws is not None
    _key(ax, has_guide=has_guide, has_draws=has_draws)
    return dress(ax, "latent dimension 1", "latent dimension 2", title=title)


def _refuse_two_guides(log_guide: Any, mean: Any, covariance: Any) -> None:
    if (mean is None) != (covariance is None) or not (mean is None or log_guide is None):
        raise ConfigError(
            "q(z|x) came twice, or as a mean or covariance alone, but it is outlined once.\n"
            "Pass log_guide=, or mean= and covariance=, or neither."
        )


def _two_axes(axes: Any) -> tuple[np.ndarray, np.ndarray]:
    if len(axes) != 2:
        raise DataError(
            f"axes has {len(axes)} entries, but the picture is of a plane: it needs (z1, z2).\n"
            "Write axes=(z, z) with z = np.linspace(-4, 4, 201)."
        )
    return as_axis(axes[0], "axes[0]"), as_axis(axes[1], "axes[1]")


def _thresholds(log_density: np.ndarray, cells: np.ndarray, name: str) -> list[float]:
    """For each of `LEVELS`, the log-density above which that share of the mass lies."""
    top = log_density.max()
    if not np.isfinite(top) or np.isnan(log_density).any():
        raise DataError(
            f"the largest value of {name} is {top}, but a log-density has a finite maximum; only "
            "−∞ may be among its values.\nWrite vae.prior().log_prob(z) + "
            "vae.decode(z).log_prob(x), in nats."
        )
    mass = (np.exp(log_density - top) * cells).flatten()
    order = np.argsort(-log_density, axis=None)
    share = np.cumsum(mass[order]) / mass.sum()
    last = [min(int(np.searchsorted(share, level)), len(order) - 1) for level in LEVELS]
    if last[-1] + 1 < MIN_CELLS:
        raise DataError(
            f"{last[-1] + 1} cells of the grid hold 99 % of {name}, but fewer than {MIN_CELLS} "
            "show the grid and not the density.\nTake finer axes around its mode."
        )
    return [float(log_density.flatten()[order[i]]) for i in last]


def _drawable(log_density: np.ndarray, levels: list[float]) -> np.ndarray:
    """Without −∞, between which and a number a contour has no place."""
    return np.maximum(log_density, levels[-1] - 50)


def _shade(ax: Axes, z1, z2, log_density: np.ndarray, levels: list[float]) -> None:
    edges = [*levels[::-1], float(log_density.max()) + 1.0]
    ax.contourf(z1, z2, _drawable(log_density, levels).T, edges, colors=SHADES)


def _outline(ax: Axes, z1, z2, log_guide: np.ndarray, levels: list[float]) -> list[float]:
    style = {"colors": RED, "linewidths": 1.4, "linestyles": "dashed"}
    ax.contour(z1, z2, _drawable(log_guide, levels).T, levels[::-1], **style)
    return _extent(z1, z2, log_guide >= levels[-1])


def _extent(z1: np.ndarray, z2: np.ndarray, inside: np.ndarray) -> list[float]:
    """Left, right, bottom and top of a region."""
    first, second = z1[inside.any(1)], z2[inside.any(0)]
    return [first[0], first[-1], second[0], second[-1]]


def _normal_outlines(ax: Axes, mean: Any, covariance: Any) -> list[float]:
    mean = with_shape(as_finite(mean, "mean"), "mean", (2,), "the plane has two dimensions")
    why = "the plane has two dimensions"
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
            f"draws has shape {draws.shape}, but points in the plane are (S, 2), of one datum.\n"
            "Of a Posterior write draws[0, :, i], its first chain for datum i."
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
    """Below the panel, where it covers nothing however small the panel is."""
    texts = [f"{100 * level:.0f} % of p(z|x)" for level in LEVELS[::-1]]
    keys = [Patch(color=shade) for shade in SHADES]
    if has_guide:
        keys.append(Line2D([], [], color=RED, linestyle="--"))
        texts.append("q(z|x), the same shares")
    if has_draws:
        keys.append(Line2D([], [], color="black", linestyle="", marker=".", alpha=0.5))
        texts.append("draws")
    below = ax.transAxes + ScaledTranslation(0, -KEY_BELOW, ax.figure.dpi_scale_trans)
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below}
    ax.legend(keys, texts, fontsize="small", frameon=False, ncols=2, **place)
