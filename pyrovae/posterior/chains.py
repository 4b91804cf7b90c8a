"""Draws of p(z|x) by Hamiltonian Monte Carlo, with separate chains and step sizes per datum.

Chains start from the guide. The warm-up adapts a mass matrix, a step size and a path length for
each datum, and chooses between Hamiltonian paths, Langevin moves and random walks
(`posterior.warmup` has the rules); afterwards all is frozen, and the kernel leaves p(z|x) exactly
invariant. Moves are made in coordinates u on the real line, z = T(u)
(`core.joint.Unconstrained`).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.contract import validated
from pyrovae.core.conditional import given_globals
from pyrovae.core.draws import diagnosing
from pyrovae.core.hamiltonian import Kernel, Point, transition
from pyrovae.core.joint import Unconstrained, flat, joint_of
from pyrovae.data import Source
from pyrovae.evidence.annealing import rows_at_a_time
from pyrovae.posterior.convergence import bulk_ess, split_r_hat
from pyrovae.posterior.record import Posterior, joined, shares_of
from pyrovae.posterior.warmup import warmed_up


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
        num_leapfrog: L, leapfrog steps per transition at most; the warm-up lowers it if all data
            mix with fewer.
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
        point, kernel = warmed_up(density, num_chains, num_warmup, num_leapfrog)
        parts.append(_drawn(density, point, kernel, num_samples))
    draws = torch.cat(parts, 2)
    ess, r_hat = least_ess(draws), split_r_hat(draws).amax(-1)
    return Posterior(draws, ess, r_hat, torch.full_like(ess, math.nan))


def least_ess(draws: Tensor) -> Tensor:
    """Return the least ESS over latent dimensions, (N,), of location z and spread |z − median|.

    Hamiltonian paths may mirror a draw, so that means mix well while variances do not.
    """
    spread_of = (draws - draws.flatten(0, 1).median(0).values).abs()
    return torch.minimum(bulk_ess(draws), bulk_ess(spread_of)).amin(-1)


def _drawn(density: Unconstrained, point: Point, kernel: Kernel, num: int) -> Tensor:
    """Return draws, (C, S, n, D)."""
    draws = []
    for _ in range(num):
        point, _ = transition(density.terms, point, kernel)
        draws.append(flat(density.latents(point.position)))
    return torch.stack(draws, 1)
