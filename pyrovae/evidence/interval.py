"""A 95 % interval for log p(x) from importance weights.

With K_j weights of component j of a mixture, w̄ their mean over all K and c = w − w̄_j,

    s² = Σ_j (K_j/K) Var_j(w) / (K w̄²)        (delta method for log w̄, stratified)
    ν  = (Σ c²)² / Σ c⁴                       (how many weights determine s)
    lower = log w̄ − t_ν s
    upper = log w̄ + t_ν s + s γ (1 + 2 z²) / (6 √K)

t_ν is Student's 97.5 % quantile, z the normal one. γ is the skewness of the weights: where they
are skewed, most runs are below log p(x), so the upper end is farther away (Johnson 1978).

Without a two-sided interval there is still a bound: E[w̄] = p(x), so by Markov's inequality
w̄ < 20 p(x) with probability 95 % at least, which gives log p(x) > log w̄ − log 20.

References:
    Modified t Tests and Confidence Intervals for Asymmetrical Populations, Johnson, 1978,
    https://doi.org/10.1080/01621459.1978.10480051
"""

import math

import torch
from scipy.special import stdtrit
from torch import Tensor

QUANTILE = 0.975
NORMAL_QUANTILE = 1.959964
MARKOV = math.log(20)


def moments(log_weights: Tensor, counts: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log w̄, s, ν and γ, (N,) each.

    Args:
        log_weights: (K, N) float64, nats, component after component.
        counts: K_j of each component, at least 2.
    """
    top = log_weights.amax(0)
    weights = (log_weights - top.where(top.isfinite(), 0.0)).exp()
    parts = weights.split(counts)
    mean = weights.mean(0)
    centered = torch.cat([part - part.mean(0) for part in parts])
    variance = sum(len(part) * part.var(0) for part in parts) / len(weights) ** 2
    square = centered**2
    degrees = (square.sum(0) ** 2 / (square**2).sum(0)).nan_to_num(nan=math.inf).clamp(min=1)
    skewness = (centered**3).mean(0) / square.mean(0) ** 1.5
    std_error = (variance.sqrt() / mean).nan_to_num(nan=math.inf)
    return mean.log() + top, std_error, degrees, skewness.nan_to_num(nan=0.0)


def interval(log_weights: Tensor, counts: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log w̄, its standard error, and the ends of the interval, (N,) each, nats.

    Args:
        log_weights: (K, N) float64, nats, component after component.
        counts: K_j of each component, at least 2.

    Example:
        >>> log_w = torch.randn(1000, 1, dtype=torch.float64) - 0.5  # E[w] = 1
        >>> _, _, lower, upper = interval(log_w, [1000])
        >>> bool(lower < 0 < upper)
        True
    """
    log_px, std_error, degrees, skewness = moments(log_weights, counts)
    quantile = torch.from_numpy(stdtrit(degrees.cpu().numpy(), QUANTILE)).to(degrees.device)
    spread = quantile * std_error
    skew = std_error * skewness.clamp(min=0) * (1 + 2 * NORMAL_QUANTILE**2)
    return (
        log_px,
        std_error,
        log_px - spread,
        log_px + spread + skew / (6 * len(log_weights) ** 0.5),
    )
