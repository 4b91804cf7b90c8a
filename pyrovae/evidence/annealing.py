"""Annealed importance sampling: log p(x) along a path of densities, with Hamiltonian moves.

    f_t(z) ∝ f_0(z) (p(x, z) / f_0(z))^β_t,   0 = β_0 < β_1 < … < β_T = 1
    z_0 ~ f_0,   z_t ~ K_t(z_{t−1}) which leaves f_t invariant,
    log w = Σ_{t=1}^T (β_t − β_{t−1}) [log p(x, z_{t−1}) − log f_0(z_{t−1})],   E[w] = p(x)

f_0 is the prior (then the bracket is log p(x|z)) or the guide. T = 1 is plain importance
sampling from f_0. Each datum has its own S chains, step sizes and scales. A pilot run with
separate draws adapts them; then they are frozen, so that the kernels are exact.

The same chain run backwards from z* ~ p(z|x), which simulated data (z*, x) ~ p(z) p(x|z)
provide, gives E[1/w] = 1/p(x): an upper bound alongside the lower one (`evidence.sandwich`).

Scales: the precision 1/s² of the path is (1 − β)/s_0² + β/s_q², with s_0 of f_0 and s_q of
the guide: exact where prior and posterior are normal and q is the posterior.

References:
    Annealed Importance Sampling, Neal, 2001, https://arxiv.org/abs/physics/9803008
    Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo, Grosse, Ghahramani &
    Adams, 2015, https://arxiv.org/abs/1511.02543
    On the Quantitative Analysis of Decoder-Based Generative Models, Wu, Burda, Salakhutdinov &
    Grosse, 2017, https://arxiv.org/abs/1611.04273
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.core.chunking import chunked
from pyrovae.core.hamiltonian import Kernel, Tempered, adapted, point_at, transition
from pyrovae.core.joint import Unconstrained, joint_of
from pyrovae.core.summed import without_discrete
from pyrovae.data import Batch, Source
from pyrovae.errors import ConfigError
from pyrovae.evidence.record import Evidence, bound, concat, estimated
from pyrovae.runtime.memory import keep_freed_memory

STEEPNESS = 4.0  # of the sigmoidal schedule: most temperatures are near the ends
PILOT_CHAINS = 8
PILOT_TEMPERATURES = 200
PILOT_GAIN = 0.3
SCALE_DRAWS = 64
MIN_CHAINS = 8  # for an interval
BACKWARD_COST = 3  # memory with the backward pass, relative to the forward pass alone


class Kernels(NamedTuple):
    """Frozen kernels of a path.

    Attributes:
        betas: β_0 … β_T, (T + 1,) float64.
        step_size: ε of the kernels at β_1 … β_{T−1}, (T − 1, N).
        start_scale, guide_scale: s_0 and s_q, (N, D).
        num_leapfrog: L.
    """

    betas: Tensor
    step_size: Tensor
    start_scale: Tensor
    guide_scale: Tensor
    num_leapfrog: int

    def at(self, t: int) -> Kernel:
        """Return the kernel at β_t, 1 ≤ t < T."""
        beta = self.betas[t].item()
        scale = path_scale(self.start_scale, self.guide_scale, beta)
        return Kernel(beta, self.step_size[t - 1], scale, self.num_leapfrog)


def sigmoidal(num_temperatures: int) -> Tensor:
    """Return β_t = (β̃_t − β̃_0) / (β̃_T − β̃_0), β̃_t = σ(4 (2t/T − 1)): (T + 1,), from 0 to 1.

    References:
        Grosse et al., 2015, https://arxiv.org/abs/1511.02543

    Example:
        >>> sigmoidal(2).tolist()
        [0.0, 0.5, 1.0]
    """
    line = torch.linspace(-STEEPNESS, STEEPNESS, num_temperatures + 1, dtype=torch.float64)
    raw = line.sigmoid()
    return (raw - raw[0]) / (raw[-1] - raw[0])


def path_scale(start: Tensor, guide: Tensor, beta: float) -> Tensor:
    """Return s with 1/s² = (1 − β)/s_0² + β/s_q².

    Example:
        >>> path_scale(torch.ones(1), torch.full((1,), 0.5), 1.0)
        tensor([0.5000])
    """
    return ((1 - beta) / start**2 + beta / guide**2).rsqrt()


@dataclass(frozen=True)
class AIS:
    """Annealed importance sampling, for programs with local latents that map from the real line.

    Discrete latents with few values are summed out.

    Args:
        num_samples: S, chains per datum.
        num_temperatures: T, steps from f_0 to the posterior.
        num_leapfrog: L, leapfrog steps per transition.
        start: f_0, "prior" or "guide".

    References:
        Annealed Importance Sampling, Neal, 2001, https://arxiv.org/abs/physics/9803008

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> x = torch.ones(1, 2)
        >>> annealed = pv.log_evidence(vae, x, method=AIS(num_temperatures=50))
        >>> exact = pv.log_evidence(vae, x, method="grid").log_px
        >>> bool(abs(annealed.log_px - exact) < 5 * annealed.std_error + 1e-3)
        True
    """

    num_samples: int = 16
    num_temperatures: int = 1000
    num_leapfrog: int = 5
    start: str = "prior"

    def __post_init__(self) -> None:
        if self.start not in ("prior", "guide"):
            raise ConfigError(
                f"start = {self.start!r}, but annealing starts from 'prior' or 'guide'."
            )
        for name in ("num_samples", "num_temperatures", "num_leapfrog"):
            whole_number(getattr(self, name), name, 1)

    def __call__(
        self, program: nn.Module, data: Source | Batch, *, memory_budget: int | None = None
    ) -> Evidence:
        """Return the estimate of log p(x) for each datum; errors as in `log_evidence`."""
        program, parts = without_discrete(program, data), []
        for rows in rows_at_a_time(program, data, self.num_samples, memory_budget):
            density = Unconstrained(joint_of(program, rows), method="method='ais'")
            parts.append(summed(forward(density, pilot(density, self), self)))
        return concat(parts)


def rows_at_a_time(
    program: nn.Module, data: Source | Batch, num_chains: int, memory_budget: int | None
) -> Iterator[Batch]:
    """Yield the data in chunks whose chains, moved together, fit the memory budget."""
    keep_freed_memory(data.device)
    chunks = chunked(
        data,
        1,
        lambda rows: joint_of(program, rows).weighted_draws,
        memory_budget=memory_budget,
        what=f"sets of {num_chains} chains",
        factor=BACKWARD_COST * num_chains,
    )
    return (rows for rows, _ in chunks)


def summed(log_weights: Tensor) -> Evidence:
    """Return the record of (S, N) log-weights, with an interval from 8 chains on."""
    if len(log_weights) >= MIN_CHAINS:
        return estimated(log_weights, [len(log_weights)])
    return bound(log_weights)


def tempered(density: Unconstrained, how: AIS) -> Tempered:
    """Return the function u → log f_0(u), log p(x, u) − log f_0(u), (S, N) each."""
    if how.start == "prior":
        return density.terms

    def from_guide(u: Tensor) -> tuple[Tensor, Tensor]:
        log_prior, log_likelihood = density.terms(u)
        log_guide = density.log_guide(u)
        return log_guide, log_prior + log_likelihood - log_guide

    return from_guide


def first_draws(density: Unconstrained, how: AIS, num_samples: int) -> Tensor:
    """Draw u ~ f_0, (S, N, D)."""
    is_prior = how.start == "prior"
    return density.draw_prior(num_samples) if is_prior else density.draw_guide(num_samples)


def pilot(density: Unconstrained, how: AIS) -> Kernels:
    """Adapt step sizes and scales on a short run whose draws are discarded."""
    num_steps = min(how.num_temperatures, PILOT_TEMPERATURES)
    betas = sigmoidal(num_steps)
    u = first_draws(density, how, PILOT_CHAINS)
    scales = spread(first_draws(density, how, SCALE_DRAWS)), spread(density.draw_guide(SCALE_DRAWS))
    step = torch.full_like(u[0, :, 0], 0.5 * math.pi / how.num_leapfrog)
    steps = []
    for t in range(1, num_steps):
        kernel = Kernel(
            betas[t].item(), step, path_scale(*scales, betas[t].item()), how.num_leapfrog
        )
        point, info = transition(
            tempered(density, how), point_at(tempered(density, how), u, kernel.beta), kernel
        )
        u, step = point.position, adapted(step, info.acceptance, how.num_leapfrog, PILOT_GAIN)
        steps.append(step)
    every = _stretched(steps, how.num_temperatures - 1)
    return Kernels(sigmoidal(how.num_temperatures), every, *scales, how.num_leapfrog)


def spread(u: Tensor) -> Tensor:
    """Return the standard deviation over draws, (N, D); 1e-6 where all draws are equal."""
    return u.std(0).clamp(min=1e-6)


def _stretched(steps: list[Tensor], num: int) -> Tensor:
    """Stretch the pilot's step sizes to `num` temperatures, by the nearest one."""
    if not num:
        return torch.empty(0)
    index = torch.arange(num) * len(steps) // num
    return torch.stack(steps)[index]


def forward(density: Unconstrained, kernels: Kernels, how: AIS) -> Tensor:
    """Return log w, (S, N) float64, from u ~ f_0 to the posterior. E[w] = p(x)."""
    u = first_draws(density, how, how.num_samples)
    return walk(density, kernels, how, u, range(1, len(kernels.betas) - 1))


def backward(density: Unconstrained, kernels: Kernels, how: AIS, u: Tensor) -> Tensor:
    """Return log w, (S, N) float64, from u ~ p(u|x) to f_0, same kernels. E[1/w] = 1/p(x)."""
    return walk(density, kernels, how, u, range(len(kernels.betas) - 2, 0, -1))


def walk(density: Unconstrained, kernels: Kernels, how: AIS, u: Tensor, order: range) -> Tensor:
    """Accumulate Σ_t Δβ_t d(u_t) along the kernels in this order, (S, N) float64.

    d is evaluated before each move and after the last one, with the increment of the interval
    that the move comes from.
    """
    path, increments = tempered(density, how), list(_increments(kernels.betas, order))
    log_w = torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device)
    part = path(u)[1]
    for t, increment in zip(order, increments, strict=False):
        log_w += increment * part.double()
        kernel = kernels.at(t)
        point, _ = transition(path, point_at(path, u, kernel.beta), kernel)
        u, part = point.position, point.part
    return log_w + increments[-1] * part.double()


def _increments(betas: Tensor, order: range) -> Iterator[float]:
    """Return β_t − β_{t−1} for t = 1 … T, in the order in which the chain uses them."""
    all_of_them = betas.diff().tolist()
    is_backward = len(order) and order.step < 0
    return iter(all_of_them[::-1] if is_backward else all_of_them)
