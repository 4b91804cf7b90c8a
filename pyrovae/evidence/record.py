"""The record of an evidence estimate."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.core.importance import WeightSums


class Evidence(NamedTuple):
    """log p(x) per datum, in nats; higher is better.

    Attributes:
        log_px: (N,) float64, the estimate of log p(x), nats.
        std_error: (N,), its Monte-Carlo standard error by the delta method, nats; unreliable
            where pareto_k is above `pareto_k_threshold(K)`. 0 where exact, ∞ for K = 1.
        ess: (N,), the effective sample size (Σ w)² / Σ w² of the K importance weights, between
            1 and K; ∞ where exact.
        pareto_k: (N,), the Pareto shape k̂ of their tail; −∞ where exact, NaN for K < 21.
        rows: (N,), indices of the rows of x: all in order, or the random subset of `num_data`.
    """

    log_px: Tensor
    std_error: Tensor
    ess: Tensor
    pareto_k: Tensor
    rows: Tensor


def exact(log_px: Tensor) -> Evidence:
    """Return the record of values without Monte-Carlo error."""
    infinite = torch.full_like(log_px, math.inf)
    return Evidence(log_px, torch.zeros_like(log_px), infinite, -infinite, _all(log_px))


def estimated(sums: WeightSums) -> Evidence:
    """Return the record of K log-weights, after all were added."""
    log_px, *others = sums.estimates()
    return Evidence(log_px, *others, _all(log_px))


def concat(parts: list[Evidence]) -> Evidence:
    """Concatenate the records of consecutive rows."""
    whole = Evidence(*(torch.cat(arrays) for arrays in zip(*parts, strict=True)))
    return whole._replace(rows=_all(whole.log_px))


def over_globals(parts: list[Evidence]) -> Evidence:
    """Return the record of E_q(w)[log p(x|w)] from one record per draw of w, at least two.

    The error is that of the mean: the estimates differ by their own errors and by w. The worst
    k̂ and the least effective sample size stand for all.
    """
    log_px, _, ess, pareto_k, _ = (torch.stack(arrays) for arrays in zip(*parts, strict=True))
    std_error = log_px.std(0) / math.sqrt(len(parts))
    return Evidence(log_px.mean(0), std_error, ess.amin(0), pareto_k.amax(0), parts[0].rows)


def _all(log_px: Tensor) -> Tensor:
    return torch.arange(len(log_px), device=log_px.device)
