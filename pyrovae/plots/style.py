"""Style of the plots: colors, sizes, and what all panels share."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Ellipse

# Ten colors that stay distinct under common color-vision deficiencies: Petroff 2021,
# "Accessible Color Sequences for Data Visualization", https://arxiv.org/abs/2107.02270
COLORS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
BLUE, ORANGE, RED, GRAY = COLORS[0], COLORS[1], COLORS[2], COLORS[3]


def own_axes(ax: Axes | None, width: float, height: float) -> Axes:
    """Return the caller's Axes, or those of a new figure of this size in inches."""
    if ax is not None:
        return ax
    return Figure(figsize=(width, height), layout="constrained").subplots()


def own_figure(fig: Figure | SubFigure | None, width: float, height: float) -> Figure | SubFigure:
    """Return the caller's figure, or a new one of this size in inches, without overlaps.

    A figure without a layout engine gets the constrained one: otherwise the title of one panel
    overlaps the numbers of the next.
    """
    if fig is None:
        return Figure(figsize=(width, height), layout="constrained")
    whole = fig.get_figure(root=True) if isinstance(fig, SubFigure) else fig
    if whole.get_layout_engine() is None:
        whole.set_layout_engine("constrained")
    return fig


def dress(ax: Axes, xlabel: str, ylabel: str, *, title: str | None = None) -> Axes:
    """Label the axes, set a title, and hide the upper and right spines."""
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    if title:
        ax.set_title(title, fontsize="medium")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def dot_area(num_points: int) -> float:
    """Return the area of a point in points²: smaller when there are many."""
    return float(np.clip(20000 / num_points, 6, 25))


def every(num: int, most: int) -> range:
    """Return at most `most` of `num` tick indices, evenly spaced from the first."""
    return range(0, num, max(1, math.ceil(num / most)))


def normal_reach(level: float, num_dimensions: int = 2) -> float:
    """Return the radius, in standard deviations, of a normal density's central region.

    √(−2 log(1 − level)) in the plane. On a line level = erf(r / √2), solved by bisection.
    """
    if num_dimensions == 2:
        return math.sqrt(-2 * math.log1p(-level))
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erf(middle / math.sqrt(2)) < level else (low, middle)
    return low


def ellipse(mean: np.ndarray, covariance: np.ndarray, reach: float, **style) -> Ellipse:
    """Return the points `reach` standard deviations from the mean, as a patch."""
    variances, axes = np.linalg.eigh(covariance)
    width, height = 2 * reach * np.sqrt(np.clip(variances, 0, None))
    angle = math.degrees(math.atan2(axes[1, 0], axes[0, 0]))
    return Ellipse(tuple(mean), width, height, angle=angle, fill=False, **style)
