"""Draws of p(z|x) by Hamiltonian Monte Carlo, with separate chains and step sizes per datum.

Chains start from the guide. Warm-up adapts scales and step sizes, first with the guide's
standard deviations as scales, then with those of the chains; afterwards both are frozen, and
the kernel leaves p(z|x) exactly invariant. Moves are made in coordinates u on the real line,
z = T(u) (`core.joint.Unconstrained`).
"""

import math
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrovae.checks import seed_number, whole_number
from pyrovae.contract import validated
from pyrovae.core.conditional import given_globals
from pyrovae.core.hamiltonian import Kernel, Point, adapted, point_at, transition
from pyrovae.core.joint import Unconstrained, flat, joint_of
from pyrovae.data import Source
from pyrovae.evidence.annealing import SCALE_DRAWS, rows_at_a_time, spread
from pyrovae.handlers import evaluation
from pyrovae.posterior.convergence import bulk_ess, split_r_hat
from pyrovae.posterior.record import Posterior, joined, shares_of
from pyrovae.runtime.random_stream import RandomStream

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
    with RandomStream(seed_number(seed)), evaluation(program), pyro.validation_enabled(False):
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
        point, kernel = warmed_up(density, num_chains, num_warmup, num_leapfrog)
        parts.append(_chains(density, point, kernel, num_samples))
    draws = torch.cat(parts, 2)
    ess, r_hat = least_ess(draws), split_r_hat(draws).amax(-1)
    return Posterior(draws, ess, r_hat, torch.full_like(ess, math.nan))


def least_ess(draws: Tensor) -> Tensor:
    """Return the least ESS over latent dimensions, (N,), of location z and spread |z − median|.

    Hamiltonian paths may mirror a draw, so that means mix well while variances do not.
    """
    spread_of = (draws - draws.flatten(0, 1).median(0).values).abs()
    return torch.minimum(bulk_ess(draws), bulk_ess(spread_of)).amin(-1)


def warmed_up(
    density: Unconstrained, num_chains: int, num_warmup: int, num_leapfrog: int
) -> tuple[Point, Kernel]:
    """Return chains near the posterior, and a kernel with adapted scales and step sizes."""
    u = density.draw_guide(num_chains)
    scale = spread(density.draw_guide(SCALE_DRAWS))
    step = torch.full_like(u[0, :, 0], 0.5 * math.pi / num_leapfrog)
    point = point_at(density.terms, u)
    kernel = Kernel(1.0, step, scale, num_leapfrog)
    half = num_warmup // 2
    point, kernel, visited = _adapting(density, point, kernel, half)
    if len(visited) >= SCALE_DRAWS:
        seen = torch.stack(visited[len(visited) // 2 :]).flatten(0, 1)
        kernel = kernel._replace(scale=spread(seen), step_size=step)
    point, kernel, _ = _adapting(density, point, kernel, num_warmup - half)
    return point, kernel


def _adapting(
    density: Unconstrained, point: Point, kernel: Kernel, num: int
) -> tuple[Point, Kernel, list[Tensor]]:
    """Make `num` transitions with an adaptive step size, which ends at the mean of log ε."""
    visited, log_steps = [], []
    for t in range(num):
        point, acceptance = transition(density.terms, point, kernel)
        gain = (t + 1) ** -GAIN_POWER
        step = adapted(kernel.step_size, acceptance, kernel.num_leapfrog, gain)
        kernel = kernel._replace(step_size=step)
        visited.append(point.position)
        log_steps.append(step.log())
    if num:
        kernel = kernel._replace(step_size=torch.stack(log_steps[num // 2 :]).mean(0).exp())
    return point, kernel, visited


def _chains(density: Unconstrained, point: Point, kernel: Kernel, num_samples: int) -> Tensor:
    """Return draws, (C, S, n, D)."""
    draws = []
    for _ in range(num_samples):
        point, _ = transition(density.terms, point, kernel)
        draws.append(flat(density.latents(point.position)))
    return torch.stack(draws, 1)
