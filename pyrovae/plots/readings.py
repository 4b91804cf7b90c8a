"""Plots of diagnostics: the KL per dimension, k̂ per datum, the inference gaps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pyrovae.errors import DataError
from pyrovae.plots.inputs import as_array, as_finite, as_real, record_with, some_names, with_shape
from pyrovae.plots.style import BLUE, COLORS, ORANGE, RED, dot_area, dress, own_axes

MOST_NAMES = 40  # named bars, at most
THRESHOLD = 0.7  # core.pareto.MOST; importing that would import torch
ERRORS = 2  # standard errors on either side of a bar


def kl_by_dimension(
    kl: Any,
    active: Any = None,
    *,
    names: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot KL(q(z_d|x) ‖ p(z_d)) as bars, the largest first; inactive dimensions are hatched.

    Args:
        kl: nats; (D,), or (N, D) per datum, drawn as the mean over data ± 2 standard errors; or a
            record with `kl_per_dimension` or `mean_kl`, such as those of `decompose_elbo` and
            `collapsed_dimensions`.
        active: (D,), true where active; or a record with `is_active`, as from `active_units`.
            Records of `collapsed_dimensions` contain their own.
        names: names of the D dimensions; those of the record, or 0 … D − 1, by default. More than
            40 are not written.
        title: text above the bars.
        ax: axes to draw on; a new figure's by default.

    Returns:
        The Axes, in nats per datum.

    Raises:
        DataError: another shape, or a KL that is not finite (NaN: the prior does not factorize,
            so its KL does not split over dimensions).

    References:
        Importance Weighted Autoencoders, Burda, Grosse & Salakhutdinov, 2016,
        https://arxiv.org/abs/1509.00519 (active units)

    Example:
        >>> ax = kl_by_dimension([0.1, 2.0, 0.0], [True, True, False])
        >>> [float(bar.get_height()) for bar in ax.patches]
        [2.0, 0.1, 0.0]
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['1', '0', '2']
    """
    names = getattr(kl, "names", None) if names is None else names
    if active is None and hasattr(kl, "is_collapsed"):
        active = ~as_array(kl.is_collapsed, "is_collapsed")
    mean, error = _mean_kl(kl)
    names = some_names(names, len(mean), default=[str(d) for d in range(len(mean))])
    order = np.argsort(-mean, kind="stable")
    ax = own_axes(ax, 7, 4)
    bars = ax.bar(np.arange(len(mean)), mean[order], color=BLUE, width=0.8)
    if error is not None:
        style = {"fmt": "none", "ecolor": "black", "capsize": 2, "elinewidth": 1}
        ax.errorbar(np.arange(len(mean)), mean[order], ERRORS * error[order], **style)
    if active is not None:
        _mark_inactive(ax, bars, _flags(active, len(mean))[order])
    is_named = len(mean) <= MOST_NAMES
    shown = [names[d] for d in order] if is_named else []
    is_long = len(shown) > 16 or max(map(len, shown), default=0) > 4
    ax.set_xticks(range(len(shown)), shown, rotation=90 if is_long else 0)
    ax.set_ylim(bottom=min(0.0, mean.min()))
    return dress(
        ax,
        f"latent dimension{'' if is_named else f' (of {len(mean)})'}, largest KL first",
        f"KL(q(z_d|x) ‖ p(z_d)), nats{'' if error is None else ', ± 2 s.e.'}",
        title=title,
    )


def _mean_kl(kl: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Return means (D,), and standard errors (D,) if there is one number per datum."""
    for field in ("kl_per_dimension", "mean_kl"):
        kl = getattr(kl, field, kl)
    array = as_real(kl, "kl")
    if array.ndim not in (1, 2) or not array.size:
        raise DataError(
            f"kl has shape {array.shape}, but bars per dimension need (D,), or (N, D) per datum.\n"
            "Pass decompose_elbo(…).kl_per_dimension, or that record itself."
        )
    if np.isnan(array).any():
        raise DataError(
            "kl holds NaN: under a prior that does not factorize (a mixture, a flow) the KL does "
            "not split over latent dimensions.\nDraw the variance of the posterior means instead, "
            "active_units(…).variance, and name it in the title."
        )
    array = as_finite(array, "kl")
    if array.ndim == 1:
        return array, None
    error = array.std(0, ddof=1) / np.sqrt(len(array)) if len(array) > 1 else None
    return array.mean(0), error


def _flags(active: Any, num: int) -> np.ndarray:
    flags = as_array(getattr(active, "is_active", active), "active")
    if flags.shape != (num,) or flags.dtype != bool:
        raise DataError(
            f"active has shape {flags.shape} and dtype {flags.dtype}, but it needs one bool for "
            f"each of {num} dimensions: ({num},).\n"
            "Pass active_units(…) of the same model, or its is_active."
        )
    return flags


def _mark_inactive(ax: Axes, bars: Any, flags: np.ndarray) -> None:
    for bar, is_active in zip(bars, flags, strict=True):
        if not is_active:
            bar.set(facecolor="white", edgecolor=COLORS[8], hatch="////")
    # the legend keys are drawn by hand, because a kind may have no bar
    keys = [ax.bar([0], [0], color=BLUE), ax.bar([0], [0], fc="white", ec=COLORS[8], hatch="////")]
    texts = [f"active: {flags.sum()} of {len(flags)}", f"inactive: {(~flags).sum()}"]
    ax.legend(keys, texts, frameon=False, loc="upper right")
    for key in keys:
        key.remove()


def pareto_k(
    k: Any, *, num_samples: int | None = None, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Plot k̂ of each datum's importance weights; those above the threshold are red and counted.

    Below min(1 − 1/log₁₀ S, 0.7) the guide covers the posterior well enough for weights from S
    draws. k̂ = ∞ is drawn at the upper edge, k̂ = −∞ (exact, no tail) at the lower one.

    Args:
        k: (N,), unitless; or a record with `pareto_k`, as from `diagnostics.pareto_k`,
            `log_evidence`, `posterior.sir` or `inference_gaps`.
        num_samples: S, the draws behind k̂, for the threshold; by default the record's own
            threshold, or 0.7.
        title: text above the points, before the count.
        ax: axes to draw on; a new figure's by default.

    Returns:
        The Axes: k̂ against the row of x.

    Raises:
        DataError: k is not (N,), or all of it is NaN (fewer than 21 draws).
        ConfigError: num_samples is not a whole number ≥ 2.

    References:
        Pareto Smoothed Importance Sampling, Vehtari et al., 2024,
        https://jmlr.org/papers/v25/19-556.html

    Example:
        >>> pareto_k([0.2, 0.9, 0.4]).get_title()
        'k̂ > 0.70 for 1 of 3 data points: row 1'
    """
    threshold = _threshold(k, num_samples)
    values = as_real(getattr(k, "pareto_k", k), "k")
    if values.ndim != 1 or not len(values) or np.isnan(values).all():
        raise DataError(
            f"k has shape {values.shape} and {np.isnan(values).sum()} NaN, but this plot shows "
            "one k̂ per datum: (N,). Fewer than 21 draws give NaN.\n"
            "For k̂ per cell (N, *event), pass the worst of each row: k.flatten(1).amax(1)."
        )
    ax = own_axes(ax, 7, 4)
    seen = values[np.isfinite(values)]
    low, high = min([*seen, 0.0]) - 0.1, max([*seen, threshold]) + 0.1
    shown = np.clip(values, low, high)
    failed = values > threshold
    style = {"s": dot_area(len(values)), "linewidths": 0}
    rows = np.arange(len(values))
    if hasattr(k, "rows"):  # evidence estimated for a subset of the data
        rows = with_shape(as_array(k.rows, "rows"), "rows", values.shape, f"k̂ is {values.shape}")
    ax.scatter(rows[~failed], shown[~failed], color=BLUE, **style)
    ax.scatter(rows[failed], shown[failed], color=RED, marker="^", **style)
    ax.axhline(threshold, color="black", linestyle="--", linewidth=1)
    ax.set_ylim(low - 0.05, high + 0.05)
    heading = "\n".join(filter(None, [title, _worst(values, rows, threshold)]))
    return dress(ax, "datum, row of x", "k̂, unitless (lower is better)", title=heading)


def _threshold(k: Any, num_samples: int | None) -> float:
    if num_samples is None:
        return float(getattr(k, "threshold", THRESHOLD))
    from pyrovae.core.pareto import pareto_k_threshold  # imports torch, which plots do not need

    return pareto_k_threshold(num_samples)


def _worst(values: np.ndarray, rows: np.ndarray, threshold: float) -> str:
    """Say how many data points are above the threshold, and which are the worst."""
    unknown, failed = int(np.isnan(values).sum()), values > threshold
    text = f"k̂ > {threshold:.2f} for {failed.sum():,} of {len(values):,} data points"
    text += f" ({unknown:,} unknown)" if unknown else ""
    worst = np.argsort(-np.where(failed, values, -np.inf), kind="stable")[: min(5, failed.sum())]
    if not len(worst):
        return text
    kind = "row" if failed.sum() == 1 else "rows" if failed.sum() <= 5 else "worst rows"
    return f"{text}: {kind} {', '.join(map(str, rows[worst]))}"


def gaps(record: Any, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Plot the gaps between log p(x) and the ELBO, one point per datum, means with errors.

    The approximation gap is due to the guide family, the amortization gap to the encoder network;
    total is their sum. A hollow point has k̂ above the record's threshold: its log p(x),
    approximation gap and total are too low.

    Args:
        record: an `InferenceGaps` from `diagnostics.inference_gaps`.
        title: text above the points.
        ax: axes to draw on; a new figure's by default.

    Returns:
        The Axes: nats, one row per gap; bars are ± 2 standard errors of the mean.

    Raises:
        DataError: record is not an `InferenceGaps`, or a gap is not finite.

    References:
        Inference Suboptimality in Variational Autoencoders, Cremer, Li & Duvenaud, 2018,
        https://arxiv.org/abs/1801.03558

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> ax = gaps(pv.diagnostics.inference_gaps(vae, torch.eye(2), num_steps=20))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['total', 'amortization\\n(encoder network)', 'approximation\\n(guide family)']
    """
    fields = ("approximation", "amortization", "pareto_k", "mean_approximation")
    record_with(record, fields, "diagnostics.inference_gaps")
    family = as_finite(record.approximation, "approximation")
    network = as_finite(record.amortization, "amortization")
    rows = [
        ("approximation\n(guide family)", family, record.mean_approximation),
        ("amortization\n(encoder network)", network, record.mean_amortization),
        ("total", family + network, record.mean_total),
    ]
    if getattr(record, "generalization", None) is not None:
        rows.append(("train − held-out\nELBO", np.array([]), record.generalization))
    ax = own_axes(ax, 7, 1.2 + 0.8 * len(rows))
    threshold = _threshold(record, None)
    is_weak = as_real(record.pareto_k, "pareto_k") > threshold
    for place, (name, values, mean) in enumerate(reversed(rows)):
        _gap(ax, place, values, is_weak & (not name.startswith("amortization")), mean)
    if is_weak.any():
        key = Line2D([], [], linestyle="", marker="o", markerfacecolor="none", color=ORANGE)
        ax.legend(
            [key], [f"k̂ > {threshold:.2f}: log p(x) too low"], frameon=False, fontsize="small"
        )
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    return dress(ax, "nats (one point per datum; mean ± 2 standard errors)", "", title=title)


def _gap(ax: Axes, place: int, values: np.ndarray, is_weak: np.ndarray, mean: Any) -> None:
    """Draw one row: a point per datum, and their mean."""
    heights = place + np.random.default_rng(0).uniform(-0.3, 0.3, len(values))
    solid = {"color": BLUE, "linewidths": 0, "alpha": 0.5}
    hollow = {"facecolors": "none", "edgecolors": ORANGE}
    for chosen, style in ((~is_weak, solid), (is_weak, hollow)):
        if len(values) and chosen.any():
            ax.scatter(values[chosen], heights[chosen], s=dot_area(len(values)), **style)
    diamond = {"fmt": "D", "color": "black", "markersize": 5, "capsize": 4, "zorder": 4}
    ax.errorbar(mean.value, place, xerr=ERRORS * np.nan_to_num(mean.std_error), **diamond)
    text = f"{mean.value:.2f}".replace("-", "−")
    ax.annotate(text, (mean.value, place + 0.32), ha="center", va="bottom", fontsize="small")
