"""The record of an evidence estimate."""

import math
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor

from pyrovae.core.importance import WeightSums
from pyrovae.core.pareto import pareto_k, pareto_k_threshold
from pyrovae.evidence.interval import MARKOV, QUANTILE, interval

LEAST_SHARE = 0.25  # of K, for an interval


class Evidence(NamedTuple):
    """log p(x) per datum, in nats; higher is better.

    Attributes:
        log_px: (N,) float64, the estimate of log p(x), nats.
        std_error: (N,), its Monte-Carlo standard error by the delta method, nats; unreliable
            where `upper` is ∞. 0 where exact, ∞ for K = 1.
        ess: (N,), the effective sample size (Σ w)² / Σ w² of the K importance weights, between
            1 and K; ∞ where exact.
        pareto_k: (N,), the Pareto shape k̂ of their tail; −∞ where exact, NaN for K < 21.
        rows: (N,), indices of the rows of x: all in order, or the random subset of `num_data`.
        lower: (N,), nats; log p(x) is above it with probability 95 % at least.
        upper: (N,), nats; lower and upper are the ends of a 95 % interval for log p(x). ∞ where
            the estimate is a lower bound only, without such an interval.
        methods: the name of the method that gave each number, for method="auto"; else empty.
    """

    log_px: Tensor
    std_error: Tensor
    ess: Tensor
    pareto_k: Tensor
    rows: Tensor
    lower: Tensor
    upper: Tensor
    methods: tuple[str, ...] = ()


def exact(log_px: Tensor) -> Evidence:
    """Return the record of values without Monte-Carlo error."""
    infinite = torch.full_like(log_px, math.inf)
    zero = torch.zeros_like(log_px)
    return Evidence(log_px, zero, infinite, -infinite, _all(log_px), log_px, log_px)


def bounded(sums: WeightSums) -> Evidence:
    """Return the record of K log-weights as a lower bound, after all were added."""
    log_px, *others = sums.estimates()
    return Evidence(log_px, *others, _all(log_px), *_one_sided(log_px))


def bound(log_weights: Tensor) -> Evidence:
    """Return the record of (K, N) log-weights as a lower bound."""
    sums = WeightSums(len(log_weights))
    sums.add(log_weights)
    return bounded(sums)


def estimated(log_weights: Tensor, counts: list[int]) -> Evidence:
    """Return the record of (K, N) log-weights, K_j ≥ 2 of each component, with an interval.

    The record is a lower bound where k̂ is above its threshold, or the effective sample size below
    a quarter of K. Among data that are hard for the proposal, k̂ alone is below its threshold by
    chance for one in ten, and then the interval covers log p(x) in half of the runs only.
    """
    num_samples = len(log_weights)
    log_px, std_error, *ends = interval(log_weights, counts)
    ess = (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()
    ess, shape = ess.nan_to_num(nan=0.0).clamp(max=num_samples), pareto_k(log_weights)
    is_heavy = shape > pareto_k_threshold(num_samples)  # false if there are too few for k̂
    is_reliable = ~is_heavy & (ess > LEAST_SHARE * num_samples)
    lower, upper = map(torch.where, [is_reliable] * 2, ends, _one_sided(log_px))
    return Evidence(log_px, std_error, ess, shape, _all(log_px), lower, upper)


def _one_sided(log_px: Tensor) -> tuple[Tensor, Tensor]:
    return log_px - MARKOV, torch.full_like(log_px, math.inf)


def concat(parts: list[Evidence]) -> Evidence:
    """Concatenate the records of consecutive rows."""
    methods = sum((part.methods for part in parts), ())
    arrays = zip(*(part[:-1] for part in parts), strict=True)
    whole = Evidence(*(torch.cat(values) for values in arrays), methods)
    return whole._replace(rows=_all(whole.log_px))


def over_globals(parts: list[Evidence]) -> Evidence:
    """Return the record of E_q(w)[log p(x|w)] from one record per draw of w, at least two.

    The error is that of the mean: the estimates differ by their own errors and by w. The worst
    k̂ and the least effective sample size stand for all, and an interval needs one at each draw.
    """
    log_px, _, ess, shape, _, _, upper = map(
        torch.stack, zip(*(p[:-1] for p in parts), strict=True)
    )
    mean, std_error = log_px.mean(0), log_px.std(0) / math.sqrt(len(parts))
    spread = float(stdtrit(len(parts) - 1, QUANTILE)) * std_error
    ends = torch.where(upper.isinf().any(0), math.inf, mean + spread)
    arrays = (mean, std_error, ess.amin(0), shape.amax(0), parts[0].rows, mean - spread, ends)
    return Evidence(*arrays, parts[0].methods)


def _all(log_px: Tensor) -> Tensor:
    return torch.arange(len(log_px), device=log_px.device)
