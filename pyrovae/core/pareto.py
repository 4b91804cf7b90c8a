"""Tail weight of importance weights: the Pareto shape k̂, per datum.

A generalized Pareto density is fitted to the M largest of S weights, above a cutoff u,

    p(w) = (1/σ) (1 + k (w − u) / σ)^(−1 − 1/k),    M = ⌈min(S/5, 3 √S)⌉

1/k is the number of finite moments of the weights: for k < ½ their variance is finite and the
central limit theorem holds; above k̂ = min(1 − 1/log₁₀ S, 0.7), an estimate from S draws and its
standard error are unreliable. That is the one threshold of this library: for S draws the mean of
weights with k needs S ≥ 10^(1/(1 − k)) of them, so S sets the largest k; beyond 0.7 that number
grows so fast (10^10 at 0.9) that more draws do not help. The fit is Zhang & Stephens' empirical
Bayes mean, with Vehtari's weak prior that pulls k̂ towards ½ by 10 pseudo-draws.

Symbols: log_weights (S, N), nats, S draws for each of N data. Everything is float64.
Left out: the smoothing of the weights that PSIS is named after.

References:
    A New and Efficient Estimation Method for the Generalized Pareto Distribution,
    Zhang & Stephens, 2009, https://doi.org/10.1198/tech.2009.08017
    Pareto Smoothed Importance Sampling, Vehtari et al., 2024,
    https://jmlr.org/papers/v25/19-556.html
"""

import math

import torch
from torch import Tensor

from pyrovae.checks import whole_number
from pyrovae.errors import ConfigError

PRIOR_DRAWS = 10  # pseudo-draws with k = 1/2
MIN_TAIL = 5
MOST = 0.7  # threshold of k̂ for many draws
LOG_TINY = math.log(torch.finfo(torch.float64).tiny)
EQUAL = 1e-10  # nats: weights closer than this differ only by rounding


def tail_size(num_samples: int) -> int:
    """Return M = ⌈min(S/5, 3 √S)⌉, the number of S weights that form the tail.

    Example:
        >>> tail_size(100), tail_size(10_000)
        (20, 300)
    """
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def pareto_k_threshold(num_samples: int) -> float:
    """Return min(1 − 1/log₁₀ S, 0.7): below it, mean and error from S weights are reliable.

    Args:
        num_samples: S ≥ 2.

    Raises:
        ConfigError: S is not a whole number ≥ 2.

    References:
        Pareto Smoothed Importance Sampling, Vehtari et al., 2024,
        https://jmlr.org/papers/v25/19-556.html (equation 13)

    Example:
        >>> pareto_k_threshold(100), pareto_k_threshold(10_000)
        (0.5, 0.7)
    """
    num_samples = whole_number(num_samples, "num_samples", 2)
    return min(1 - 1 / math.log10(num_samples), MOST)


def pareto_k(log_weights: Tensor) -> Tensor:
    """Estimate k̂, the Pareto shape of the largest importance weights, unitless; lower is better.

    Args:
        log_weights: (S, N), nats, up to a constant per datum.

    Returns:
        (N,) float64. NaN for S < 21, which is too few; ∞ where the tail has fewer than 5 weights,
        the others being equal or negligible (708 nats below the largest); −∞ where there is no
        tail: the largest weights are equal, for example if the guide is the posterior.

    Raises:
        ConfigError: log_weights is not two-dimensional.

    References:
        Pareto Smoothed Importance Sampling, Vehtari et al., 2024,
        https://jmlr.org/papers/v25/19-556.html

    Example:
        >>> w = torch.distributions.Pareto(1.0, 2.0).sample((100_000,))  # k = 1/2
        >>> bool(abs(pareto_k(w.log()[:, None]) - 0.5) < 0.2)
        True
    """
    if log_weights.dim() != 2:
        raise ConfigError(
            f"log_weights has shape {tuple(log_weights.shape)}, but must be (S, N): k̂ is fitted to "
            "the draws of each datum.\nFor one datum write log_weights[:, None]."
        )
    num_samples = len(log_weights)
    size = min(tail_size(num_samples) + 1, num_samples)
    return pareto_k_of_largest(log_weights.double().topk(size, 0).values)


def pareto_k_of_largest(largest: Tensor) -> Tensor:
    """Estimate k̂ from the M + 1 largest log-weights only: the tail, and the cutoff below it.

    Args:
        largest: (M + 1, N), nats, in descending order; M = `tail_size`.

    Returns:
        (N,) float64, as for `pareto_k`.

    Example:
        >>> pareto_k_of_largest(torch.zeros(31, 2))
        tensor([-inf, -inf], dtype=torch.float64)
    """
    relative = (largest - largest[0]).double()
    cutoff = relative[-1].clamp(min=LOG_TINY)
    in_tail = relative > cutoff  # strictly: weights equal to the cutoff are not in the tail
    num_tail = in_tail.sum(0)
    k = torch.full_like(cutoff, math.inf)
    for n in num_tail.unique().tolist():
        if n >= MIN_TAIL:
            rows = num_tail == n
            top, base = relative[:n, rows].flip(0), cutoff[rows]
            k[rows] = _shape(base.exp() * torch.expm1(top - base))
    if len(largest) <= MIN_TAIL:
        return torch.full_like(k, math.nan)
    return torch.where(cutoff >= -EQUAL, -math.inf, k.nan_to_num(nan=math.inf, posinf=math.inf))


def _shape(excess: Tensor) -> Tensor:
    """Fit k̂ to w − u, (n, N), ascending: Zhang & Stephens' θ = −k/σ on a grid, then k(θ)."""
    n = len(excess)
    num_grid = 30 + math.isqrt(n)
    grid = torch.arange(1, num_grid + 1, dtype=excess.dtype, device=excess.device) - 0.5
    quartile = excess[int(n / 4 + 0.5) - 1]
    theta = 1 / excess[-1] + (1 - (num_grid / grid).sqrt())[:, None] / (3 * quartile)  # (m, N)
    k = _mean_log1p(theta, excess)
    log_profile = n * ((-theta / k).log() - k - 1)
    weight = log_profile.softmax(0)
    weight = torch.where(weight >= 10 * torch.finfo(weight.dtype).eps, weight, 0.0)
    theta = (weight * theta).sum(0) / weight.sum(0)
    k = _mean_log1p(theta[None], excess)[0]
    return (n * k + PRIOR_DRAWS * 0.5) / (n + PRIOR_DRAWS)


def _mean_log1p(theta: Tensor, excess: Tensor) -> Tensor:
    """Average log(1 − θ (w − u)) over draws, (m, N), one θ at a time to save memory."""
    return torch.stack([torch.log1p(-t * excess).mean(0) for t in theta])
