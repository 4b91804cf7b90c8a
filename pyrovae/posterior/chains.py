"""Draws of p(z|x) by Hamiltonian Monte Carlo, with separate chains and step sizes per datum.

Chains start from the guide. Warm-up adapts scales and step sizes, first with the guide's
standard deviations as scales, then with those of the chains, and chooses for each datum between
long Hamiltonian paths, Langevin moves and random walks; afterwards all is frozen, and the kernel
leaves p(z|x) exactly invariant. Moves are made in coordinates u on the real line,
z = T(u) (`core.joint.Unconstrained`).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.contract import validated
from pyrovae.core.conditional import given_globals
from pyrovae.core.draws import diagnosing
from pyrovae.core.hamiltonian import (
    STYLES,
    Kernel,
    Point,
    Style,
    adapted,
    point_at,
    styled_transition,
)
from pyrovae.core.joint import Unconstrained, flat, joint_of
from pyrovae.data import Source
from pyrovae.evidence.annealing import SCALE_DRAWS, rows_at_a_time, spread
from pyrovae.posterior.convergence import bulk_ess, split_r_hat
from pyrovae.posterior.record import Posterior, joined, shares_of

GAIN_POWER = 0.6  # the gain of the stochastic approximation decreases as t^-0.6


def hmc(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    num_samples: int = 500,
    num_warmup: int = 300,
    num_chains: int = 4,
    num_leapfrog: int = 5,
    num_globals: int = 10,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> Posterior:
    """Draw from p(z|x) by batched Hamiltonian Monte Carlo, started from the guide.

    Check `r_hat` (above 1.01: not mixed) and `ess` before using the draws. Modes in which no
    chain starts may be missed. With global latents w they are from ∫ p(z|x, w) q(w) dw, an equal
    share at each draw of w, with a warm-up of its own.

    Args:
        program: any program whose local latents map from the real line.
        x: (N, *event).
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        num_samples: S, draws kept per chain.
        num_warmup: transitions before these, discarded.
        num_chains: C, chains per datum.
        num_leapfrog: L, leapfrog steps per transition.
        num_globals: draws of w ~ q(w), at most S.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes for moving the chains of one chunk of data, as in `log_evidence`,
            in addition to the draws that are kept.

    Returns:
        Posterior, draws (C, S, N, D), with r_hat and ess.

    Raises:
        DataError: x does not fit the program.
        ConfigError: a latent is discrete or has no map from the real line, or a setting
            is invalid.
        MemoryError: the chains of one datum do not fit memory_budget.

    References:
        MCMC using Hamiltonian dynamics, Neal, 2011, https://arxiv.org/abs/1206.1901

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> found = hmc(vae, torch.ones(3, 2), num_samples=200, num_warmup=100)
        >>> found.draws.shape, bool((found.r_hat < 1.05).all())
        (torch.Size([4, 200, 3, 1]), True)
    """
    settings = {"num_samples": num_samples, "num_chains": num_chains, "num_leapfrog": num_leapfrog}
    num_samples, num_chains, num_leapfrog = (whole_number(v, k, 1) for k, v in settings.items())
    num_warmup = whole_number(num_warmup, "num_warmup", 0)
    num_globals = min(num_samples, whole_number(num_globals, "num_globals", 1))
    data = validated(program, x, y, mask)
    with diagnosing(program, seed):
        programs = given_globals(program, data, num_globals)
        counts = zip(programs, shares_of(num_samples, len(programs)), strict=True)
        how = (num_chains, num_warmup, num_leapfrog, memory_budget)
        return joined([_hmc(one, data, num, *how) for one, num in counts])


def _hmc(
    program: nn.Module,
    data: Source,
    num_samples: int,
    num_chains: int,
    num_warmup: int,
    num_leapfrog: int,
    memory_budget: int | None,
) -> Posterior:
    parts = []
    for rows in rows_at_a_time(program, data, num_chains, memory_budget):
        density = Unconstrained(joint_of(program, rows), method="posterior.hmc")
        chains = warmed_up(density, num_chains, num_warmup, num_leapfrog)
        parts.append(_drawn(density, chains, num_samples))
    draws = torch.cat(parts, 2)
    ess, r_hat = least_ess(draws), split_r_hat(draws).amax(-1)
    return Posterior(draws, ess, r_hat, torch.full_like(ess, math.nan))


def least_ess(draws: Tensor) -> Tensor:
    """Return the least ESS over latent dimensions, (N,), of location z and spread |z − median|.

    Hamiltonian paths may mirror a draw, so that means mix well while variances do not.
    """
    spread_of = (draws - draws.flatten(0, 1).median(0).values).abs()
    return torch.minimum(bulk_ess(draws), bulk_ess(spread_of)).amin(-1)


class Chains(NamedTuple):
    """Chains of all data, with their kernels.

    Attributes:
        point: the current state.
        kernel: step sizes and scales.
        style: how each datum moves.
    """

    point: Point
    kernel: Kernel
    style: Style


def warmed_up(
    density: Unconstrained, num_chains: int, num_warmup: int, num_leapfrog: int
) -> Chains:
    """Return chains near the posterior, adapted, each datum in the style that moves it farthest.

    Every style is tried for a third of the transitions; the best one adapts for as many as all
    three again. Styles are compared by the mean squared jump of a transition, which costs the same
    in each: in units of the standard deviation over all, in the dimension where it is least.
    """
    num_trial = num_warmup // 3
    tried = [_tried(density, num_chains, num_trial, num_leapfrog, style) for style in STYLES]
    if not num_trial:
        return tried[0][0]
    visited = torch.stack([torch.stack(path) for _, path in tried])  # (styles, T, C, n, D)
    unit = visited.flatten(0, 2).std(0).clamp(min=1e-12)
    jumps = (visited.diff(dim=1) / unit).square().mean((1, 2)).amin(-1)  # (styles, n)
    best = jumps.argmax(0)
    chains = _chosen(best, [chains for chains, _ in tried])
    return _warmed_up(density, chains, num_warmup)[0]


def _chosen(best: Tensor, tried: list[Chains]) -> Chains:
    """Return for each datum what its best style has."""

    def pick(values: list[Tensor], dim: int) -> Tensor:
        chosen = [values[int(b)].select(dim, i) for i, b in enumerate(best)]
        return torch.stack(chosen, dim)

    point = Point(*(pick(list(v), 1) for v in zip(*(c.point for c in tried), strict=True)))
    style = Style(*(pick(list(v), 0) for v in zip(*(c.style for c in tried), strict=True)))
    kernel = tried[0].kernel._replace(
        step_size=pick([c.kernel.step_size for c in tried], 0),
        scale=pick([c.kernel.scale for c in tried], 0),
    )
    return Chains(point, kernel, style)


def _tried(
    density: Unconstrained, num_chains: int, num_trial: int, num_leapfrog: int, style: tuple
) -> tuple[Chains, list[Tensor]]:
    """Return chains from the guide that were adapted in one style, and where they went."""
    u = density.draw_guide(num_chains)
    scale = spread(density.draw_guide(SCALE_DRAWS))
    step = torch.full_like(u[0, :, 0], 0.5 * math.pi / num_leapfrog)
    is_short, drift, target = style
    style = Style(
        torch.full_like(step, is_short, dtype=torch.bool),
        torch.full_like(step, drift),
        torch.full_like(step, target),
    )
    chains = Chains(point_at(density.terms, u), Kernel(1.0, step, scale, num_leapfrog), style)
    return _warmed_up(density, chains, num_trial)


def _warmed_up(
    density: Unconstrained, chains: Chains, num_warmup: int
) -> tuple[Chains, list[Tensor]]:
    """Adapt scales in the first half and step sizes throughout; return the second half's path."""
    half = num_warmup // 2
    chains, visited = _adapting(density, chains, half)
    if len(visited) >= SCALE_DRAWS:
        seen = torch.stack(visited[len(visited) // 2 :]).flatten(0, 1)
        chains = chains._replace(kernel=chains.kernel._replace(scale=spread(seen)))
    return _adapting(density, chains, num_warmup - half)


def _adapting(density: Unconstrained, chains: Chains, num: int) -> tuple[Chains, list[Tensor]]:
    """Make `num` transitions with an adaptive step size, which ends at the mean of log ε."""
    point, kernel, style = chains
    visited, log_steps = [], []
    # a path is one step where every step is accepted on its own
    lengths = torch.where(style.is_short, 1, kernel.num_leapfrog)
    for t in range(num):
        point, acceptance = styled_transition(density.terms, point, kernel, style)
        gain = (t + 1) ** -GAIN_POWER
        step = adapted(kernel.step_size, acceptance, lengths, gain, style.target)
        kernel = kernel._replace(step_size=step)
        visited.append(point.position)
        log_steps.append(step.log())
    if num:
        kernel = kernel._replace(step_size=torch.stack(log_steps[num // 2 :]).mean(0).exp())
    return Chains(point, kernel, style), visited


def _drawn(density: Unconstrained, chains: Chains, num_samples: int) -> Tensor:
    """Return draws, (C, S, n, D)."""
    draws, point = [], chains.point
    for _ in range(num_samples):
        point, _ = styled_transition(density.terms, point, chains.kernel, chains.style)
        draws.append(flat(density.latents(point.position)))
    return torch.stack(draws, 1)
