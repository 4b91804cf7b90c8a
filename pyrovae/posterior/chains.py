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

from pyrovae.checks import warn_caller, whole_number
from pyrovae.contract import validated
from pyrovae.core.conditional import given_globals
from pyrovae.core.draws import diagnosing
from pyrovae.core.hamiltonian import Info, Kernel, Point, transition
from pyrovae.core.joint import Unconstrained, flat, joint_of
from pyrovae.core.summed import completed, without_discrete
from pyrovae.data import Source
from pyrovae.evidence.annealing import rows_at_a_time
from pyrovae.posterior.convergence import bulk_ess, e_bfmi, split_r_hat
from pyrovae.posterior.record import Posterior, SampleStats, concat_stats, joined, shares_of
from pyrovae.posterior.warmup import warmed_up
from pyrovae.runtime.ambient import exclusive

MAX_DIVERGING = 0.001  # share of a datum's draws
MIN_E_BFMI = 0.3  # Betancourt (2016)
MIN_ENERGIES = 100  # draws per chain below which E-BFMI is too noisy to warn


@exclusive
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

    Check `r_hat` (above 1.01: not mixed) and `ess` before using the draws; `stats` and `e_bfmi`
    describe the sampler. Modes in which no chain starts may be missed. With global latents w
    they are from ∫ p(z|x, w) q(w) dw, an equal share at each draw of w, with a warm-up of its
    own.

    Args:
        program: any program whose local latents map from the real line; discrete ones with few
            values are summed out while the others move, and then drawn given them.
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
        Posterior, draws (C, S, N, D), with r_hat, ess, e_bfmi and stats.

    Warns:
        UserWarning: more than 0.1 % of a datum's draws diverged, or its E-BFMI, averaged over
            chains of at least 100 draws, is below 0.3.

    Raises:
        DataError: x does not fit the program.
        ConfigError: a latent is discrete or has no map from the real line, or a setting
            is invalid.
        MemoryError: the chains of one datum do not fit memory_budget.

    References:
        MCMC using Hamiltonian dynamics, Neal, 2011, https://arxiv.org/abs/1206.1901
        Diagnosing Suboptimal Cotangent Disintegrations in Hamiltonian Monte Carlo, Betancourt,
        2016, https://arxiv.org/abs/1604.00695

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
        found = joined([_hmc(one, data, num, *how) for one, num in counts])
    warn_of_trouble(found)
    return found


def _hmc(
    program: nn.Module,
    data: Source,
    num_samples: int,
    num_chains: int,
    num_warmup: int,
    num_leapfrog: int,
    memory_budget: int | None,
) -> Posterior:
    moved, draws, stats = [], [], []
    moving = without_discrete(program, data)
    for rows in rows_at_a_time(moving, data, num_chains, memory_budget):
        density = Unconstrained(joint_of(moving, rows), method="posterior.hmc")
        point, kernel = warmed_up(density, num_chains, num_warmup, num_leapfrog)
        drawn = _drawn(density, point, kernel, num_samples)
        moved.append(drawn[0])
        draws.append(completed(moving, rows, drawn[0]))
        stats.append(drawn[1])
    moved, draws, stats = torch.cat(moved, 2), torch.cat(draws, 2), concat_stats(stats, 2)
    ess, r_hat = least_ess(moved), split_r_hat(moved).amax(-1)
    nan = torch.full_like(ess, math.nan)
    return Posterior(draws, ess, r_hat, nan, stats, e_bfmi(stats.energy))


def least_ess(draws: Tensor) -> Tensor:
    """Return the least ESS over latent dimensions, (N,), of location z and spread |z − median|.

    Hamiltonian paths may mirror a draw, so that means mix well while variances do not.
    """
    spread_of = (draws - draws.flatten(0, 1).median(0).values).abs()
    return torch.minimum(bulk_ess(draws), bulk_ess(spread_of)).amin(-1)


def _drawn(
    density: Unconstrained, point: Point, kernel: Kernel, num: int
) -> tuple[Tensor, SampleStats]:
    """Return draws, (C, S, n, D), and what the kernel did for each."""
    draws, infos = [], []
    for _ in range(num):
        point, info = transition(density.terms, point, kernel)
        draws.append(flat(density.latents(point.position)))
        infos.append(info)
    found = Info(*(torch.stack(values, 1) for values in zip(*infos, strict=True)))
    return torch.stack(draws, 1), SampleStats(
        acceptance_rate=found.acceptance,
        diverging=found.is_divergent,
        step_size=kernel.step_size.expand_as(found.energy),
        energy=found.energy,
        n_steps=torch.full_like(found.energy, kernel.num_leapfrog, dtype=torch.int32),
    )


def warn_of_trouble(found: Posterior) -> None:
    """Warn where many paths diverge, or energies mix slowly."""
    num_data = len(found.ess)
    is_divergent = found.stats.diverging.double().mean((0, 1)) > MAX_DIVERGING
    is_slow = (found.e_bfmi.mean(0) < MIN_E_BFMI) & (found.draws.shape[1] >= MIN_ENERGIES)
    if is_divergent.any():
        warn_caller(
            f"more than {MAX_DIVERGING:.1%} of the draws diverged for {int(is_divergent.sum())} of "
            f"{num_data} data: the draws may miss regions where p(z|x) is sharply curved.\n"
            "Use more num_warmup, or reparameterize the program; see stats.diverging."
        )
    if is_slow.any():
        warn_caller(
            f"E-BFMI is below {MIN_E_BFMI} for {int(is_slow.sum())} of {num_data} data: the "
            "chains explore the tails of p(z|x) slowly.\n"
            "Use more num_samples, or reparameterize the program; see e_bfmi."
        )
