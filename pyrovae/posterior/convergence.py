"""Convergence of Markov chains, per datum: rank-normalized split R̂, bulk ESS and E-BFMI.

Draws θ (C, S, …): each chain is split in half, so that a drift within a chain shows as a
difference between two; draws become normal scores Φ⁻¹((rank − 3/8) / (n + 1/4)). With W the
mean variance within the 2C half-chains of length n and B/n the variance of their means,

    R̂ = √((W (n − 1)/n + B/n) / W)          the larger of that of θ and of |θ − median|
    ESS = 2C n / τ,    τ = −1 + 2 Σ_t (ρ_2t + ρ_2t+1)

summed over Geyer's initial positive monotone sequence of pairs of autocorrelations. Everything
is vectorized over the dimensions after the first two, in float64, and equals ArviZ's
`rhat(method="rank")` and `ess(method="bulk")`, which loop.

References:
    Rank-Normalization, Folding, and Localization: An Improved R̂, Vehtari et al., 2021,
    https://arxiv.org/abs/1903.08008
"""

import math

import torch
from torch import Tensor

MIN_DRAWS = 10  # per chain


def split_r_hat(draws: Tensor) -> Tensor:
    """Return R̂ of chains, without unit: 1 when they agree; above 1.01 they have not mixed.

    Args:
        draws: (C, S, *rest).

    Returns:
        rest, float64; NaN for fewer than 10 draws, or where all draws are equal.

    References:
        Vehtari et al., 2021, https://arxiv.org/abs/1903.08008

    Example:
        >>> bool(split_r_hat(torch.randn(4, 1000, 2)).max() < 1.02)
        True
    """
    if draws.shape[1] < MIN_DRAWS:
        return draws.new_full(draws.shape[2:], torch.nan, dtype=torch.float64)
    halves = _split(draws.double())
    median = halves.flatten(0, 1).quantile(0.5, dim=0)
    folded = (halves - median).abs()
    return torch.maximum(_r_hat(_normal_scores(halves)), _r_hat(_normal_scores(folded)))


def bulk_ess(draws: Tensor) -> Tensor:
    """Return the number of independent draws that estimate the posterior's bulk equally well.

    Args:
        draws: (C, S, *rest).

    Returns:
        rest, float64; NaN for fewer than 10 draws, or where all draws are equal.

    References:
        Vehtari et al., 2021, https://arxiv.org/abs/1903.08008

    Example:
        >>> bool(bulk_ess(torch.randn(4, 1000, 2)).min() > 3000)
        True
    """
    if draws.shape[1] < MIN_DRAWS:
        return draws.new_full(draws.shape[2:], torch.nan, dtype=torch.float64)
    return _ess(_normal_scores(_split(draws.double())))


def e_bfmi(energy: Tensor) -> Tensor:
    """Return the energy Bayesian fraction of missing information of each chain, without unit.

    Σ_t (E_t − E_{t−1})² / Σ_t (E_t − Ē)²: about 1 or more if a new momentum changes the energy as
    much as the posterior varies; below 0.3 chains explore the tails too slowly.

    Args:
        energy: (C, S, *rest), the Hamiltonian at each draw, nats.

    Returns:
        (C, *rest), float64; NaN for fewer than 10 draws, or where all energies are equal.

    References:
        Diagnosing Suboptimal Cotangent Disintegrations in Hamiltonian Monte Carlo, Betancourt,
        2016, https://arxiv.org/abs/1604.00695

    Example:
        >>> e_bfmi(torch.tensor([[0.0, 1.0] * 5]))
        tensor([3.6000], dtype=torch.float64)
    """
    if energy.shape[1] < MIN_DRAWS:
        return energy.new_full((len(energy), *energy.shape[2:]), torch.nan, dtype=torch.float64)
    energy = energy.double()
    centered = energy - energy.mean(1, keepdim=True)
    return energy.diff(dim=1).square().sum(1) / centered.square().sum(1)


def _split(draws: Tensor) -> Tensor:
    """Split chains in half, (2C, S // 2, *rest); the middle draw of an odd number is dropped."""
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, -half:]])


def _normal_scores(draws: Tensor) -> Tensor:
    """Return Φ⁻¹((r − 3/8)/(n + 1/4)), r the rank among all chains; ties have their mean rank."""
    columns = draws.flatten(0, 1).movedim(0, -1).contiguous()  # (*rest, n)
    ordered = columns.sort(-1).values
    below = torch.searchsorted(ordered, columns)
    up_to = torch.searchsorted(ordered, columns, right=True)
    rank = (below + up_to + 1).double() / 2
    scores = torch.special.ndtri((rank - 0.375) / (columns.shape[-1] + 0.25))
    return scores.movedim(-1, 0).reshape(draws.shape)


def _r_hat(draws: Tensor) -> Tensor:
    num = draws.shape[1]
    within = draws.var(1).mean(0)
    between = draws.mean(1).var(0)  # B / n
    return ((within * (num - 1) / num + between) / within).sqrt()


def _ess(draws: Tensor) -> Tensor:
    num_chains, num = draws.shape[:2]
    covariance = _autocovariance(draws).mean(0)  # (n, *rest)
    within = covariance[0] * num / (num - 1)
    variance = covariance[0] + (draws.mean(1).var(0) if num_chains > 1 else 0.0)
    rho = 1 - (within - covariance) / variance
    rho[0] = 1.0
    tau = _integrated(rho)
    total = num_chains * num
    # anticorrelated chains beat independent draws, but a noisy τ near 0 would exaggerate it
    return total / tau.clamp(min=1 / math.log10(total))


def _autocovariance(draws: Tensor) -> Tensor:
    """Return the biased autocovariance at lags 0 … n − 1, along dim 1, by FFT."""
    num = draws.shape[1]
    centered = draws - draws.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centered, 2 * num, dim=1)
    return torch.fft.irfft(spectrum.abs() ** 2, 2 * num, dim=1)[:, :num] / num


def _integrated(rho: Tensor) -> Tensor:
    """Return τ over the initial positive pairs, made monotone, plus the next pair's even lag."""
    num_pairs = (len(rho) - 3) // 2  # the limit of ArviZ
    pairs = rho[: 2 * num_pairs].unflatten(0, (num_pairs, 2)).sum(1)
    is_initial = (pairs > 0).long().cumprod(0)
    following = rho.gather(0, 2 * is_initial.sum(0, keepdim=True))[0]
    return -1 + 2 * (pairs.cummin(0).values * is_initial).sum(0) + following.clamp(min=0.0)
