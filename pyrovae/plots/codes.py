"""Scatter plots of codes, with the spread of the densities whose means they are."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from pyrovae.errors import ConfigError, DataError
from pyrovae.plots.inputs import as_finite, row_labels, whole_count, with_shape
from pyrovae.plots.style import COLORS, dot_area, dress, ellipse, normal_reach, own_axes

HALF = 5  # classes drawn as circles; the others are triangles, a second channel besides color
LEVEL = 0.5  # share of q(z|x) inside its ellipse


class Plane(NamedTuple):
    """Positions of codes in the plane."""

    points: np.ndarray  # (N, 2)
    names: tuple[str, str]  # of the two axes
    projection: np.ndarray  # (D, 2), maps codes to points up to a shift, and spreads as well


def latent_scatter(
    codes: Any,
    labels: Any = None,
    *,
    scales: Any = None,
    covariances: Any = None,
    num_ellipses: int = 30,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot codes as points in the plane, colored by label, with each label at its median.

    One-dimensional codes are drawn against the label; codes of more than two dimensions are
    projected onto their first two principal components, and the axes give the share of variance
    that each explains. With scales or covariances, some codes get the ellipse (in one dimension,
    the interval) that contains half of a normal density of that mean and (projected) spread.

    Args:
        codes: (N, D), N ≥ 2 when D > 2.
        labels: (N,), whole numbers or names. Up to ten classes are colored; with more, the
            points are gray and the title says so.
        scales: (N, D), standard deviations of q(z|x) with independent dimensions.
        covariances: (N, D, D), covariance matrices of q(z|x), instead of scales.
        num_ellipses: number of codes with an ellipse, evenly spaced over the rows.
        title: text above the points.
        ax: axes to draw on; a new figure's by default.

    Returns:
        The Axes, in the units of the codes.

    Raises:
        DataError: codes is not (N, D) and finite, or labels, scales or covariances do not fit it.
        ConfigError: both scales and covariances, or num_ellipses is not a whole number ≥ 1.

    Example:
        >>> codes = np.array([[0, 0, 0], [2, 0, 0], [0, 1, 0], [2, 1, 0]])
        >>> ax = latent_scatter(codes, [3, 3, 8, 8], scales=np.full((4, 3), 0.1))
        >>> ax.get_xlabel(), sorted(text.get_text() for text in ax.texts), len(ax.patches)
        ('principal component 0 (80.0 % of the variance)', ['3', '8'], 4)
    """
    codes = as_finite(codes, "codes")
    if codes.ndim != 2 or not codes.size:
        raise DataError(
            f"codes has shape {codes.shape}, but a scatter plot needs (N, D), one code per row.\n"
            "Write codes.reshape(len(codes), -1)."
        )
    labels = row_labels(labels, len(codes))
    classes = np.unique(labels) if labels is not None else np.array([])
    plane = _plane(codes, labels)
    spreads = _covariances(codes, scales, covariances)
    ax = own_axes(ax, 6.8, 6)
    is_colored = 0 < len(classes) <= len(COLORS)
    colors = [COLORS[8]] * len(codes)
    if is_colored:
        colors = np.array(COLORS)[np.searchsorted(classes, labels)].tolist()
        _classes(ax, plane.points, labels, classes)
    else:
        ax.scatter(*plane.points.T, s=dot_area(len(codes)), color=COLORS[8], linewidths=0)
    notes = [title]
    if labels is not None and not is_colored:
        notes.append(f"{len(classes)} classes, too many to color")
    if spreads is not None:
        num = whole_count(num_ellipses, "num_ellipses")
        notes.append(_ellipses(ax, plane, spreads, colors, num))
    ax.set_title("\n".join(filter(None, notes)))
    return dress(ax, *plane.names)


def _classes(ax: Axes, points: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> None:
    index = np.searchsorted(classes, labels)
    style = {"s": dot_area(len(points)), "alpha": 0.8, "linewidths": 0}
    # two layers only, in row order: one layer per class would bury the first classes
    for start, marker in enumerate("o^"):
        chosen = index // HALF == start
        ax.scatter(*points[chosen].T, c=np.array(COLORS)[index[chosen]], marker=marker, **style)
    name = {"ha": "center", "va": "center", "fontsize": "x-large", "fontweight": "bold"}
    name["path_effects"] = [withStroke(linewidth=4, foreground="white")]
    for i, label in enumerate(classes):
        ax.scatter([], [], color=COLORS[i], marker="o^"[i // HALF], label=str(label))
        ax.annotate(str(label), np.median(points[labels == label], axis=0), **name)
    ax.legend(title="label", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _ellipses(ax: Axes, plane: Plane, spreads: np.ndarray, colors: Sequence[str], num: int) -> str:
    """Draw ellipses of some codes; return a note about them."""
    is_line = len(plane.projection) == 1
    reach = normal_reach(LEVEL, 1 if is_line else 2)
    outline = [withStroke(linewidth=2.6, foreground="white")]
    chosen = np.unique(np.linspace(0, len(spreads) - 1, min(num, len(spreads))).round().astype(int))
    for i in chosen:
        projected = plane.projection.T @ spreads[i] @ plane.projection
        style = {"edgecolor": colors[i], "linewidth": 1.4, "path_effects": outline, "zorder": 2}
        ax.add_patch(ellipse(plane.points[i], projected, reach, **style))
    ax.autoscale_view()
    shape = "interval" if is_line else "ellipse"
    return f"{shape}s: {100 * LEVEL:.0f} % of q(z|x), for {len(chosen):,} of {len(spreads):,} codes"


def _covariances(codes: np.ndarray, scales: Any, covariances: Any) -> np.ndarray | None:
    """Return covariances (N, D, D), or None."""
    if scales is not None and covariances is not None:
        raise ConfigError(
            "both scales and covariances were given, but either one is the spread of q(z|x).\n"
            "Pass scales=q.stddev for independent dimensions, else covariances=q.covariance_matrix."
        )
    num, dim = codes.shape
    why = f"there are {num} codes of {dim} dimensions"
    if covariances is not None:
        found = as_finite(covariances, "covariances")
        return with_shape(found, "covariances", (num, dim, dim), why)
    if scales is None:
        return None
    scales = with_shape(as_finite(scales, "scales"), "scales", (num, dim), why)
    return scales[:, :, None] ** 2 * np.eye(dim)


def _plane(codes: np.ndarray, labels: np.ndarray | None) -> Plane:
    if codes.shape[1] == 2:
        return Plane(codes, ("latent dimension 0", "latent dimension 1"), np.eye(2))
    if codes.shape[1] > 2:
        return _principal_components(codes)
    first = np.array([[1.0, 0.0]])
    if labels is None:
        points = np.column_stack([codes, np.arange(len(codes))])
        return Plane(points, ("latent dimension 0", "row"), first)
    classes, index = np.unique(labels, return_inverse=True)
    spread = np.random.default_rng(0).uniform(-0.3, 0.3, len(codes))
    where = f"class, {classes[0]} at the bottom to {classes[-1]} (jittered for legibility)"
    return Plane(np.column_stack([codes, index + spread]), ("latent dimension 0", where), first)


def _principal_components(codes: np.ndarray) -> Plane:
    if len(codes) < 2:
        raise DataError("codes has one row, but principal components need at least two.")
    centered = codes - codes.mean(0)
    left, singular, right = np.linalg.svd(centered, full_matrices=False)
    shares = singular**2 / max((singular**2).sum(), np.finfo(float).tiny)
    names = [f"principal component {i} ({100 * shares[i]:.1f} % of the variance)" for i in (0, 1)]
    return Plane((left * singular)[:, :2], (names[0], names[1]), right[:2].T)
