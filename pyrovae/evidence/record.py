"""The record of an evidence estimate, and how K log-weights become one.

    log p̂ = log (1/K) Σ_k w_k,    ESS = (Σ w)² / Σ w²
    std_error² = Var(w) / (K w̄²) = (K / ESS − 1) / (K − 1)          (delta method)

Weights arrive in chunks and are not kept, but for the largest M + 1 of each datum, which
k̂ needs. Sums are of exponentials shifted by a running maximum, in float64.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.pareto import pareto_k_of_largest, tail_size


class Evidence(NamedTuple):
    """log p(x) per datum, in nats; higher is better.

    Attributes:
        log_px: (N,) float64, the estimate of log p(x), nats.
        std_error: (N,), its Monte-Carlo standard error by the delta method, nats; not to be
            trusted where pareto_k is above `pareto_k_threshold(K)`. 0 where exact, ∞ for K = 1.
        ess: (N,), the effective sample size (Σ w)² / Σ w² of the K importance weights, between
            1 and K; ∞ where exact.
        pareto_k: (N,), the shape k̂ of their largest; −∞ where exact, NaN for K < 21.
        rows: (N,), which rows of x these are: all in order, or the random subset of `num_data`.
    """

    log_px: Tensor
    std_error: Tensor
    ess: Tensor
    pareto_k: Tensor
    rows: Tensor


def exact(log_px: Tensor) -> Evidence:
    """The record of a number without Monte-Carlo error."""
    infinite = torch.full_like(log_px, math.inf)
    return Evidence(log_px, torch.zeros_like(log_px), infinite, -infinite, _all(log_px))


def joined(parts: list[Evidence]) -> Evidence:
    """The records of consecutive rows as one."""
    whole = Evidence(*(torch.cat(arrays) for arrays in zip(*parts, strict=True)))
    return whole._replace(rows=_all(whole.log_px))


def _all(log_px: Tensor) -> Tensor:
    return torch.arange(len(log_px), device=log_px.device)


class WeightSums:
    """Running sums over importance weights, chunk by chunk of draws.

    Args:
        num_samples: K, the draws in all.

    Example:
        >>> log_w = torch.randn(100, 3, dtype=torch.float64)
        >>> sums = WeightSums(100)
        >>> for chunk in log_w.split(30):
        ...     sums.add(chunk)
        >>> torch.allclose(sums.evidence().log_px, log_w.logsumexp(0) - math.log(100), rtol=1e-12)
        True
    """

    def __init__(self, num_samples: int):
        self.num_samples = num_samples
        self.num_largest = min(tail_size(num_samples) + 1, num_samples)
        self.log_sum: Tensor | None = None  # of w
        self.log_sum_squares: Tensor | None = None  # of w²
        self.largest: Tensor | None = None  # (≤ M + 1, N), sorted downwards

    def add(self, log_weights: Tensor) -> None:
        """Count these (S, N) log-weights."""
        new = log_weights.double()
        sums = new.logsumexp(0), (2 * new).logsumexp(0)
        if self.largest is None:
            self.log_sum, self.log_sum_squares = sums
        else:
            self.log_sum = torch.logaddexp(self.log_sum, sums[0])
            self.log_sum_squares = torch.logaddexp(self.log_sum_squares, sums[1])
            new = torch.cat([self.largest, new])
        self.largest = new.topk(min(self.num_largest, len(new)), 0).values

    def evidence(self) -> Evidence:
        """The record, once all K are counted."""
        k = self.num_samples
        log_px = self.log_sum - math.log(k)
        ess = (2 * self.log_sum - self.log_sum_squares).exp().nan_to_num(nan=0.0).clamp(max=k)
        variance = (k / ess - 1).clamp(min=0) / (k - 1) if k > 1 else torch.full_like(ess, math.inf)
        return Evidence(log_px, variance.sqrt(), ess, pareto_k_of_largest(self.largest), _all(ess))
